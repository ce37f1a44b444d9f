//! Sums by interface, flow, talker and reason.

use std::{collections::HashMap, hash::Hash, net::IpAddr};

use flowlog_model::{
    Now,
    live::{FlowLine, TopCounts, TopEntry, TopReport, Verdict},
};

use super::line::{Place, Seen, rfc3339};

/// Flows, and talkers, that are told apart at the same time: 2 MiB at most. Where more come, the smaller half makes room: large ones have
/// grown by then.
const KEYS_MAX: usize = 1 << 12;

/// Counts on their way: refused packets are taken out of the accepted ones that held them, whichever comes first.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    accepted: [i64; 2],
    rejected: [u64; 2],
    lost: u64,
}

impl Counts {
    fn add(&mut self, seen: &Seen) {
        let totals = &seen.flow.totals;
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        match seen.verdict {
            Verdict::Accepted => {
                self.accepted[0] += signed(totals.packets);
                self.accepted[1] += signed(totals.bytes);
            }
            Verdict::Rejected => {
                self.rejected[0] += totals.packets;
                self.rejected[1] += totals.bytes;
                if seen.was_accepted {
                    self.accepted[0] -= signed(totals.packets);
                    self.accepted[1] -= signed(totals.bytes);
                }
            }
            Verdict::Lost => self.lost += totals.packets,
        }
    }

    /// What it is compared by.
    fn size(&self) -> u64 {
        let counts = self.shown();
        counts.packets().max(counts.lost_packets)
    }

    fn shown(&self) -> TopCounts {
        let [accepted_packets, accepted_bytes] = self.accepted.map(|n| u64::try_from(n).unwrap_or(0));
        let [rejected_packets, rejected_bytes] = self.rejected;
        TopCounts { accepted_packets, accepted_bytes, rejected_packets, rejected_bytes, lost_packets: self.lost }
    }
}

/// What tells flows apart for a reader: no verdict, no reason.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct FlowName {
    interface_id: String,
    direction: &'static str,
    protocol: u8,
    addresses: [IpAddr; 2],
    ports: Option<(u16, u16)>,
    icmp: Option<(u16, u16)>,
}

impl FlowName {
    fn of(seen: &Seen, place: &Place) -> Self {
        Self {
            interface_id: place.spec.interface_id.clone(),
            direction: place.direction(seen.flow.direction).as_str(),
            protocol: seen.flow.proto,
            addresses: seen.addresses(),
            ports: seen.ports(),
            icmp: seen.flow.icmp(),
        }
    }

    /// As a line shows it.
    fn words(&self) -> String {
        let Self { direction, protocol, addresses: [src, dst], ports, icmp, .. } = self;
        let line = FlowLine {
            protocol: *protocol,
            srcaddr: src.to_string(),
            srcport: ports.map(|(src, _)| src),
            dstaddr: dst.to_string(),
            dstport: ports.map(|(_, dst)| dst),
            icmp_type: icmp.map(|(kind, _)| kind),
            icmp_code: icmp.map(|(_, code)| code),
            ..FlowLine::default()
        };
        format!("{line} {direction}")
    }
}

/// See the module's head.
#[derive(Default)]
pub(crate) struct Tally {
    total: Counts,
    interfaces: HashMap<String, (String, Counts)>,
    flows: HashMap<FlowName, Counts>,
    talkers: HashMap<IpAddr, Counts>,
    reasons: HashMap<String, Counts>,
    not_told_apart: u64,
}

/// Adds to the counts of a key; returns how many packets are forgotten, of the smallest that had to make room for it.
fn add<K: Eq + Hash>(all: &mut HashMap<K, Counts>, key: K, seen: &Seen) -> u64 {
    let mut forgotten = 0;
    if all.len() >= KEYS_MAX && !all.contains_key(&key) {
        let mut sizes: Vec<u64> = all.values().map(Counts::size).collect();
        let (_, middle, _) = sizes.select_nth_unstable(KEYS_MAX / 2);
        let middle = *middle;
        // Of those in the middle, too: they may be all there are.
        all.retain(|_, counts| {
            let stays = counts.size() > middle;
            forgotten += if stays { 0 } else { counts.size() };
            stays
        });
    }
    all.entry(key).or_default().add(seen);
    forgotten
}

/// The largest by packets, and by name where these are equal.
fn largest<K>(all: HashMap<K, Counts>, most: usize, words: impl Fn(&K) -> (String, Option<String>)) -> Vec<TopEntry> {
    let mut shown: Vec<(TopCounts, K)> = all.into_iter().map(|(key, counts)| (counts.shown(), key)).collect();
    let size = |counts: &TopCounts| std::cmp::Reverse((counts.packets(), counts.lost_packets));
    // Names are made of what can be on the list only.
    if shown.len() > most.saturating_mul(2) {
        shown.select_nth_unstable_by_key(most.saturating_mul(2), |(counts, _)| size(counts));
        shown.truncate(most.saturating_mul(2));
    }
    let entry = |(counts, key): (TopCounts, K)| {
        let (name, label) = words(&key);
        TopEntry { name, label, counts }
    };
    let mut entries: Vec<TopEntry> = shown.into_iter().map(entry).collect();
    entries.sort_by(|a, b| size(&a.counts).cmp(&size(&b.counts)).then_with(|| a.name.cmp(&b.name)));
    entries.truncate(most);
    entries
}

impl Tally {
    pub(crate) fn add(&mut self, seen: &Seen, place: &Place, reason: Option<&str>) {
        self.total.add(seen);
        let interface = self.interfaces.entry(place.spec.interface_id.clone());
        interface.or_insert_with(|| (place.flow_log.clone(), Counts::default())).1.add(seen);
        let flows = add(&mut self.flows, FlowName::of(seen, place), seen);
        let talkers = add(&mut self.talkers, seen.addresses()[0], seen);
        self.not_told_apart += flows.max(talkers);
        if let Some(reason) = reason {
            // There are fewer reasons than that.
            let _ = add(&mut self.reasons, reason.to_owned(), seen);
        }
    }

    /// What it has come to, and an end of it.
    pub(crate) fn report(self, entries: usize, interval_ms: u64, now: Now) -> TopReport {
        let Self { total, interfaces, flows, talkers, reasons, not_told_apart } = self;
        let labels: HashMap<String, String> =
            interfaces.iter().map(|(id, (label, _))| (id.clone(), label.clone())).collect();
        let interfaces = interfaces.into_iter().map(|(id, (_, counts))| (id, counts)).collect();
        // A reason has no accepted packets: those that died of it are what it is about.
        let reasons = reasons.into_iter().map(|(name, counts)| (name, Counts { accepted: [0; 2], ..counts })).collect();
        TopReport {
            time: rfc3339(now.wall.0),
            interval_ms,
            total: total.shown(),
            interfaces: largest(interfaces, entries, |id| (id.clone(), labels.get(id).cloned())),
            flows: largest(flows, entries, |flow| (flow.words(), Some(flow.interface_id.clone()))),
            talkers: largest(talkers, entries, |address| (address.to_string(), None)),
            reasons: largest(reasons, entries, |name| (name.clone(), None)),
            not_told_apart_packets: not_told_apart,
            lost_records: 0,
        }
    }
}
