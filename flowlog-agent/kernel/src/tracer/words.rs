//! Sightings in words: one line each.

use std::{collections::BTreeMap, mem::offset_of, net::IpAddr};

use flowlog_ebpf::{
    abi::{
        PLACE_LOST, PLACE_NOWHERE, PLACE_RECORD, PLACE_SLOT, PLACE_XDP, REASON_BY_PLACE, REASON_LOST, REASON_SOCKET,
        REASON_XDP, WANT_EGRESS, WANT_INGRESS, WANT_REFUSED_EGRESS, WANT_REFUSED_INGRESS, XDP_INGRESS, reason_index,
    },
    expression::Subject,
    packet::{self, Frame, why},
    sighting::{
        AT_DEATH, AT_EGRESS, BEFORE_INGRESS, FOUND_FLOW, FOUND_NON_IP, NOTE_COUNTED, NOTE_GONE, NOTE_NONE, NOTE_OTHER,
        NOTE_OWN, Sighting,
    },
};
use flowlog_model::{NS_PER_SEC, Now, interface::IfKey, translation::Tuple};

use super::{
    borrowed::{Borrowed, Wanted},
    sighting::{Noted, Seen},
    symbols::Symbols,
};
use crate::layout::{Places, Reasons};

const SECS_PER_DAY: u64 = 86_400;

/// What is known besides the sightings.
pub(super) struct Knowledge {
    /// Interfaces that are traced, by name.
    pub(super) targets: BTreeMap<IfKey, String>,
    /// All others of their namespaces.
    pub(super) others: BTreeMap<IfKey, String>,
    pub(super) agent: Borrowed,
    pub(super) reasons: Reasons,
    pub(super) places: Places,
    pub(super) symbols: Symbols,
    /// Hooks are tcx links, ours behind the agent's.
    pub(super) has_tcx: bool,
    /// Frames on the interfaces begin with a link header.
    pub(super) link_header: bool,
}

impl Knowledge {
    /// One line.
    pub(super) fn line(&self, seen: &Seen, now: Now) -> String {
        let at = seen.word(offset_of!(Sighting, at));
        let key = self.place(seen);
        let name = key.and_then(|key| self.name(key)).unwrap_or("?");
        let what = match at {
            AT_DEATH => "died",
            AT_EGRESS => "out ",
            _ => "in  ",
        };
        let said = if at == AT_DEATH { self.death(seen, key) } else { self.hook(seen, at, key) };
        let time = time(seen.long(offset_of!(Sighting, now_ns)), now);
        format!("{time} {name} {what} {}: {said}{}", self.packet(seen), translation(seen))
    }

    /// The interface that the sighting is about: of those that are traced, if it is one of them.
    fn place(&self, seen: &Seen) -> Option<IfKey> {
        let member = |at| seen.word(at);
        let inum = member(offset_of!(Sighting, netns_inum));
        let noted = seen.note().ifindex;
        let indexes = [
            member(offset_of!(Sighting, iif)),
            member(offset_of!(Sighting, dev)),
            member(offset_of!(Sighting, dst)),
            if is_known(seen) { noted } else { 0 },
        ];
        let is_dead = member(offset_of!(Sighting, at)) == AT_DEATH;
        let at_hook = [member(offset_of!(Sighting, dev))];
        let indexes: &[u32] = if is_dead { &indexes } else { &at_hook };
        let fits = |key: &&IfKey| indexes.contains(&key.index) && (inum == 0 || key.netns_inum == inum);
        self.targets.keys().find(fits).copied()
    }

    fn name(&self, key: IfKey) -> Option<&str> {
        self.targets.get(&key).or_else(|| self.others.get(&key)).map(String::as_str)
    }

    /// Another interface, as a person would call it.
    fn named(&self, near: Option<IfKey>, index: u32) -> String {
        let key = near.map(|near| IfKey { index, ..near });
        key.and_then(|key| self.name(key)).map_or_else(|| format!("interface {index}"), str::to_owned)
    }

    /// What it was parsed as.
    fn packet(&self, seen: &Seen) -> String {
        let bytes = seen.word(offset_of!(Sighting, bytes));
        let tag = match seen.said(offset_of!(Subject, vlan)) {
            0 => String::new(),
            id => format!("vlan {id} "),
        };
        if let Some(tuple) = seen.headers() {
            return format!("{tag}{} {bytes} B", words(tuple));
        }
        let kind = seen.said(offset_of!(Subject, ethertype));
        let len = seen.word(offset_of!(Sighting, frame_bytes));
        let head = seen.head();
        let of = Frame { len, vlan_tci: seen.said(offset_of!(Subject, vlan)), link_header: self.link_header };
        let because = why(head, of)
            .filter(|_| !head.is_empty())
            .map_or_else(|| format!("Ethertype {kind:#06x}"), |w| w.to_string());
        if seen.word(offset_of!(Sighting, found)) == FOUND_NON_IP {
            format!("{tag}not IP ({because}) {len} B")
        } else if head.is_empty() {
            format!("{tag}IP that cannot be parsed {len} B")
        } else {
            format!("{tag}IP that cannot be parsed ({because}) {len} B")
        }
    }

    /// What became of it at its hook.
    fn hook(&self, seen: &Seen, at: u32, key: Option<IfKey>) -> String {
        if at == BEFORE_INGRESS {
            return "seen in front of the hooks, as this kernel has no tcx".to_owned();
        }
        let Some(key) = key else { return "an interface that is gone".to_owned() };
        let Some(wanted) = self.agent.wanted(key) else {
            let whose = if self.agent.is_there() { "not watched" } else { self.agent.absence() };
            return format!("no hook of flowlog's: {whose}");
        };
        let hook = if at != AT_EGRESS && wanted.flags & XDP_INGRESS != 0 {
            "hook xdp"
        } else if self.has_tcx {
            "hook tcx"
        } else {
            "hook clsact"
        };
        let counts = counted(seen, at, wanted);
        format!("{hook}, {counts}{}", note(seen))
    }

    /// What became of it where it died.
    fn death(&self, seen: &Seen, key: Option<IfKey>) -> String {
        let reason = seen.word(offset_of!(Sighting, reason));
        let place = seen.long(offset_of!(Sighting, place));
        let (verdict, reason) = self.verdict(reason, place);
        let at = self.symbols.words(place);
        let wanted = key.and_then(|key| self.agent.wanted(key));
        let whose = match wanted {
            Some(_) => String::new(),
            None if self.agent.is_there() => format!(" (not watched: {verdict} is what it would be)"),
            None => format!(" ({})", self.agent.absence()),
        };
        let verdict = if wanted.is_none() { "no verdict" } else { verdict };
        format!("{verdict}{whose}, {reason} at {at}{}{}", self.noted(seen, key), self.ways(seen, key))
    }

    /// What a reason counts as, and its name.
    fn verdict(&self, reason: u32, place: u64) -> (&'static str, String) {
        let index = reason_index(reason);
        let mut name = u16::try_from(index)
            .ok()
            .and_then(|i| self.reasons.name(i))
            .map_or_else(|| format!("reason {reason:#x}"), str::to_owned);
        let own = self.reasons.actions.get(index as usize).copied();
        let mut action = self.agent.action(index).or(own).unwrap_or(0);
        if action == REASON_BY_PLACE {
            let within = |[first, last, _]: [u64; 3]| first <= place && place <= last;
            let found = if within(self.places.xdp) {
                Some((self.places.xdp[2], REASON_XDP))
            } else if within(self.places.route) {
                Some((self.places.route[2], REASON_LOST))
            } else {
                None
            };
            action = 0;
            if let Some((index, by_place)) = found {
                let known = u16::try_from(index).ok().and_then(|i| self.reasons.name(i));
                name = known.unwrap_or(&name).to_owned();
                action = by_place;
            }
        }
        let verdict = match action {
            0 => "no refusal",
            REASON_LOST => "lost on its way (it stays ACCEPT)",
            REASON_SOCKET => "REJECT if a control group's program did it",
            _ => "REJECT",
        };
        (verdict, name)
    }

    /// What its note says.
    fn noted(&self, seen: &Seen, key: Option<IfKey>) -> String {
        let where_to = || {
            let Noted { ifindex, is_egress, tuple, .. } = seen.note();
            let way = if is_egress { "out" } else { "in" };
            let as_what = if seen.headers() == Some(tuple) { String::new() } else { format!(" as {}", words(tuple)) };
            format!(", noted on {} {way}{as_what}", self.named(key, ifindex))
        };
        let number = seen.word(offset_of!(Sighting, number));
        match seen.word(offset_of!(Sighting, identity)) {
            NOTE_NONE if self.agent.is_there() => "; no hook has noted it".to_owned(),
            NOTE_OWN => format!("; note {number:#06x} is its own{}", where_to()),
            NOTE_COUNTED => format!("; note {number:#06x} has its verdict{}", where_to()),
            NOTE_OTHER => format!("; note {number:#06x} is another buffer's: it is a copy"),
            NOTE_GONE if self.agent.is_there() => format!("; note {number:#06x} is gone"),
            _ => String::new(),
        }
    }

    /// The interfaces that it was between.
    fn ways(&self, seen: &Seen, key: Option<IfKey>) -> String {
        let of = |at| seen.word(at);
        let said =
            [("in", offset_of!(Sighting, iif)), ("on", offset_of!(Sighting, dev)), ("to", offset_of!(Sighting, dst))];
        let known: Vec<String> = said
            .into_iter()
            .filter(|(_, at)| of(*at) != 0)
            .map(|(way, at)| format!("{way} {}", self.named(key, of(at))))
            .collect();
        if known.is_empty() { String::new() } else { format!("; {}", known.join(", ")) }
    }
}

/// Whether the note is about this packet.
fn is_known(seen: &Seen) -> bool {
    matches!(seen.word(offset_of!(Sighting, identity)), NOTE_OWN | NOTE_COUNTED)
}

/// Where the hook has counted it.
fn counted(seen: &Seen, at: u32, wanted: Wanted) -> String {
    let (counts, notes) =
        if at == AT_EGRESS { (WANT_EGRESS, WANT_REFUSED_EGRESS) } else { (WANT_INGRESS, WANT_REFUSED_INGRESS) };
    let is = |flag: u16| wanted.flags & flag != 0;
    match seen.word(offset_of!(Sighting, found)) {
        FOUND_FLOW => {}
        _ if !is(counts) => return "not counted: this direction is not wanted".to_owned(),
        FOUND_NON_IP => return "counted as not IP".to_owned(),
        _ => return "counted as malformed".to_owned(),
    }
    if is_known(seen) {
        let Noted { kind, is_fragment, .. } = seen.note();
        let where_to = match kind {
            PLACE_NOWHERE => "noted, in case it is refused",
            PLACE_SLOT => "counted as ACCEPT in the cache",
            PLACE_RECORD => "counted as ACCEPT in a record",
            PLACE_LOST => "lost, as the ring is full",
            PLACE_XDP => "counted as ACCEPT by XDP",
            _ => "counted",
        };
        return format!("{where_to}{}", if is_fragment { ", a fragment" } else { "" });
    }
    if is(counts) {
        "counted as ACCEPT".to_owned()
    } else if is(notes) {
        "noted, in case it is refused".to_owned()
    } else {
        "not counted: this direction is not wanted".to_owned()
    }
}

/// The note that a hook has made.
fn note(seen: &Seen) -> String {
    let number = seen.word(offset_of!(Sighting, number));
    let cpu = seen.word(offset_of!(Sighting, cpu));
    match seen.word(offset_of!(Sighting, identity)) {
        NOTE_OWN => format!(" (note {number:#06x}, CPU {cpu})"),
        NOTE_COUNTED | NOTE_OTHER => format!(" (note {number:#06x} is another buffer's)"),
        NOTE_GONE => format!(" (note {number:#06x} is gone)"),
        _ => " (no note)".to_owned(),
    }
}

/// What it is translated to, if it is.
fn translation(seen: &Seen) -> String {
    let Some((before, after)) = seen.translation() else { return String::new() };
    format!("; translated: {} is {}", words(before), words(after))
}

/// A packet's tuple.
fn words(tuple: Tuple) -> String {
    let Tuple { src, dst, sport, dport, proto } = tuple;
    let name = match proto {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmp6".to_owned(),
        132 => "sctp".to_owned(),
        other => format!("protocol {other}"),
    };
    if packet::has_ports(proto) && (sport, dport) != (0, 0) {
        let end = |address: IpAddr, port: u16| match address {
            IpAddr::V4(v4) => format!("{v4}:{port}"),
            IpAddr::V6(v6) => format!("[{v6}]:{port}"),
        };
        return format!("{name} {} > {}", end(src, sport), end(dst, dport));
    }
    let kind =
        if matches!(proto, 1 | 58) && sport != packet::NOT_THERE { format!(" {sport}/{dport}") } else { String::new() };
    format!("{name}{kind} {src} > {dst}")
}

/// Time of day, UTC, of a point on the monotonic clock.
fn time(mono_ns: u64, now: Now) -> String {
    let ago = now.mono.0.saturating_sub(mono_ns);
    let wall = u64::try_from(now.wall.0).unwrap_or(0).saturating_sub(ago);
    let ns_per_sec = NS_PER_SEC.unsigned_abs();
    let (secs, micros) = (wall / ns_per_sec % SECS_PER_DAY, wall % ns_per_sec / 1_000);
    format!("{:02}:{:02}:{:02}.{micros:06}", secs / 3_600, secs / 60 % 60, secs % 60)
}

#[cfg(test)]
mod tests {
    use flowlog_model::{MonoNs, WallNs};

    use super::*;

    #[test]
    fn packets_and_times_are_written_as_people_write_them() {
        let tuple = |src: &str, dst: &str, proto, sport, dport| {
            let address = |text: &str| text.parse().expect("an address");
            words(Tuple { src: address(src), dst: address(dst), sport, dport, proto })
        };
        for (said, expected) in [
            (tuple("10.0.0.9", "10.0.0.1", 6, 4431, 22), "tcp 10.0.0.9:4431 > 10.0.0.1:22"),
            (tuple("2001:db8::9", "2001:db8::1", 17, 53, 1), "udp [2001:db8::9]:53 > [2001:db8::1]:1"),
            // A later fragment has no ports.
            (tuple("10.0.0.9", "10.0.0.1", 17, 0, 0), "udp 10.0.0.9 > 10.0.0.1"),
            (tuple("10.0.0.9", "10.0.0.1", 1, 8, 0), "icmp 8/0 10.0.0.9 > 10.0.0.1"),
            (tuple("fe80::1", "fe80::2", 58, packet::NOT_THERE, packet::NOT_THERE), "icmp6 fe80::1 > fe80::2"),
            (tuple("10.0.0.9", "10.0.0.1", 47, 0, 0), "protocol 47 10.0.0.9 > 10.0.0.1"),
        ] {
            assert_eq!(said, expected);
        }
        // 2026-11-27 10:00:00 UTC, and a packet a second and a half before it.
        let now = Now { mono: MonoNs(5_000_000_000), wall: WallNs(1_795_773_600_000_000_000) };
        assert_eq!(time(3_500_000_000, now), "09:59:58.500000");
        assert_eq!(time(5_000_000_001, now), "10:00:00.000000");
    }
}
