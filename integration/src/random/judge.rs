//! Compares what landed with what was expected.

use std::collections::BTreeMap;

use super::{
    expect::{Amount, Expected},
    path::Way,
};
use crate::rows::{Objects, Row, Sum};

/// Why the firewall's drops died.
const REASON: &str = "NETFILTER_DROP";

/// What is watched, and how.
#[derive(Clone, Debug)]
pub struct Watch<'a> {
    pub interfaces: &'a [String],
    /// Only refusals are wanted: there are no ACCEPT rows.
    pub only_rejected: bool,
    /// Sockets make the stack go on with clones: a refusal may be of unknown verdict.
    pub clones: bool,
}

/// Figures of one network, or of many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Packets in all rows.
    pub packets: u64,
    pub refused: u64,
    pub unknown: u64,
    /// Flows, as each interface and direction shows them, that were compared.
    pub compared: u64,
}

impl std::ops::AddAssign for Figures {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.refused += other.refused;
        self.unknown += other.unknown;
        self.compared += other.compared;
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { packets, refused, unknown, compared } = self;
        write!(f, "{packets} packets in rows, {refused} refused, {unknown} of unknown verdict, {compared} comparisons")
    }
}

/// Judges; returns figures, and a line about each mismatch.
#[must_use]
pub fn judge(watch: &Watch<'_>, expected: &[Expected], landed: &Objects) -> (Figures, Vec<String>) {
    let mut figures = Figures::default();
    let mut wrong = Vec::new();
    for interface in watch.interfaces {
        for way in [Way::Ingress, Way::Egress] {
            let of = |r: &&Row| r.interface == format!("node-{interface}") && r.direction == way.as_str();
            let rows: Vec<&Row> = landed.rows.iter().filter(of).collect();
            let mine: Vec<&Expected> = expected.iter().filter(|e| e.device == *interface && e.way == way).collect();
            let place = format!("{interface} {}", way.as_str());
            figures += one_place(&place, watch, &mine, &rows, &mut wrong);
        }
    }
    (figures, wrong)
}

fn sum<'a>(rows: impl Iterator<Item = &'a &'a Row>) -> Sum {
    rows.fold((0, 0), |(p, b), r| (p + r.packets, b + r.bytes))
}

fn one_place(
    place: &str,
    watch: &Watch<'_>,
    expected: &[&Expected],
    rows: &[&Row],
    wrong: &mut Vec<String>,
) -> Figures {
    let unknown = sum(rows.iter().filter(|r| r.skip == "verdict_unknown")).0;
    for row in rows.iter().filter(|r| r.status == "SKIPDATA" && r.skip != "verdict_unknown") {
        wrong.push(format!("{place}: {} packets {}", row.packets, row.skip));
    }
    let rejected: Vec<&Row> = rows.iter().filter(|r| r.action == "REJECT" && r.status == "OK").copied().collect();
    let mut claimed: BTreeMap<usize, &str> = BTreeMap::new();
    let mut missing = 0;
    let mut excuse = 0;
    for e in expected {
        let found = |action: &str| sum(rows.iter().filter(|r| r.status == "OK" && r.action == action && e.key.has(r)));
        let accept = found("ACCEPT");
        let reject = found("REJECT");
        excuse += e.unknowable;
        // An unknown verdict leaves a refused packet among the accepted ones.
        let short = e.reject.iter().map(|r| r.packets).min().unwrap_or(0).saturating_sub(reject.0);
        let stands = watch.only_rejected || accept.0 == e.accept.packets + short;
        let excused = (watch.clones || e.doubtful) && short > 0 && stands;
        if excused {
            missing += short;
        } else {
            if !e.reject.iter().any(|r| r.is(reject)) {
                wrong.push(format!("{place}: {}: REJECT {reject:?}, the firewall says {}", e.what, say(&e.reject)));
            }
            if !watch.only_rejected && !e.accept.is(accept) {
                wrong.push(format!(
                    "{place}: {}: ACCEPT {accept:?}, sent and let through {}",
                    e.what,
                    say(&[e.accept])
                ));
            }
        }
        for (i, row) in rows.iter().enumerate().filter(|(_, r)| e.key.has(r) && r.status == "OK") {
            claimed.insert(i, &e.what);
            check_row(place, e, row, wrong);
        }
    }
    for (i, row) in rows.iter().enumerate().filter(|(_, r)| r.action == "REJECT" && r.status == "OK") {
        if !claimed.contains_key(&i) {
            wrong.push(format!("{place}: REJECT without a rule: {}", show(row)));
        }
    }
    if watch.only_rejected && rows.iter().any(|r| r.action == "ACCEPT" && r.status == "OK") {
        wrong.push(format!("{place}: ACCEPT rows, although only refusals are wanted"));
    }
    // With only refusals wanted, nothing tells how many of them are missing for this reason.
    if unknown < missing || unknown > missing + excuse {
        wrong.push(format!("{place}: {unknown} of unknown verdict, where {missing} to {} may be", missing + excuse));
    }
    Figures {
        packets: sum(rows.iter().filter(|r| r.status == "OK")).0,
        refused: sum(rejected.iter()).0,
        unknown,
        compared: expected.len() as u64,
    }
}

fn check_row(place: &str, e: &Expected, row: &Row, wrong: &mut Vec<String>) {
    let src = e.src.as_ref().is_none_or(|s| *s == row.src);
    if !src || row.dst != e.dst {
        let from = e.src.as_deref().unwrap_or("any");
        wrong.push(format!("{place}: {}: on the wire it is {from} to {}: {}", e.what, e.dst, show(row)));
    }
    if row.action == "REJECT" && row.reason != REASON {
        wrong.push(format!("{place}: {}: the reason is {REASON}: {}", e.what, show(row)));
    }
}

fn say(amounts: &[Amount]) -> String {
    let one = |a: &Amount| a.bytes.map_or(format!("{}", a.packets), |b| format!("({}, {b})", a.packets));
    amounts.iter().map(one).collect::<Vec<_>>().join(" or ")
}

fn show(r: &Row) -> String {
    format!(
        "{} {} {}:{} > {}:{} icmp {} {} packets {} bytes {}",
        r.action, r.protocol, r.src, r.sport, r.dst, r.dport, r.icmp_type, r.packets, r.bytes, r.reason
    )
}
