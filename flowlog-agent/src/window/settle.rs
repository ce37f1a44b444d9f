//! Settling a window: its flows and its losses, balanced against what the programs counted.
//!
//! For each direction, with everything counted by programs and records alone:
//!
//! ```text
//! rows (ACCEPT + REJECT) + losses = seen at the hooks - not IP + refused before any hook
//! ```
//!
//! [`Balance::difference`] is left minus right, and is 0 (promise P1).

use flowlog_ebpf::abi::{Count, Truth, VerdictTruth};

use super::table::FlowTable;
use crate::rule::Direction;

/// Why packets are in no row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossReason {
    /// The ring buffer was full.
    RingFull,
    /// IP that cannot be parsed.
    Malformed,
    /// Refused packets whose refusal found the ring full while they stand in an ACCEPT row. These packets *are* in
    /// rows, with the wrong verdict; they are reported and not added to the sum.
    VerdictUnknown,
    /// The spool had no room for their flows; these are the totals.
    SpoolFull,
}

impl LossReason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::RingFull, Self::Malformed, Self::VerdictUnknown, Self::SpoolFull];

    /// As in the column `skip_reason`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RingFull => "ring_full",
            Self::Malformed => "malformed",
            Self::VerdictUnknown => "verdict_unknown",
            Self::SpoolFull => "spool_full",
        }
    }
}

/// Packets without a row of their own: becomes a SKIPDATA row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Way through the interface.
    pub direction: Direction,
    /// Known to have been refused. Malformed packets have no known verdict.
    pub refused: bool,
    /// Why.
    pub reason: LossReason,
    /// How many.
    pub count: Count,
}

/// The books of one window, packets and bytes, both directions together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// Frames the hooks saw.
    pub seen: Count,
    /// Of these: not IP.
    pub non_ip: Count,
    /// Refused packets that no hook had counted in this window.
    pub refused_unseen: Count,
    /// All refused packets.
    pub refused: Count,
    /// In ACCEPT rows.
    pub accepted_rows: Count,
    /// In REJECT rows.
    pub rejected_rows: Count,
    /// In SKIPDATA rows that add to the sum.
    pub lost: Count,
    /// Refused packets that stand in ACCEPT rows (see [`LossReason::VerdictUnknown`]).
    pub verdict_unknown: Count,
    /// The programs' own counts went down with the host: there is nothing to compare the rows with.
    pub unverified: bool,
}

impl Balance {
    /// Packets and bytes in rows and losses, less what programs saw: 0.
    #[must_use]
    pub fn difference(&self) -> (i128, i128) {
        if self.unverified {
            return (0, 0);
        }
        let of = |f: fn(&Count) -> u64| {
            let n = |c: &Count| i128::from(f(c));
            n(&self.accepted_rows) + n(&self.rejected_rows) + n(&self.lost)
                - (n(&self.seen) - n(&self.non_ip) + n(&self.refused_unseen))
        };
        (of(|c| c.packets), of(|c| c.bytes))
    }
}

/// `name=packets/bytes` pairs, separated by spaces: the form of the books in object metadata and logs.
impl std::fmt::Display for Balance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [
            ("seen", self.seen),
            ("non_ip", self.non_ip),
            ("refused", self.refused),
            ("refused_unseen", self.refused_unseen),
            ("accepted_rows", self.accepted_rows),
            ("rejected_rows", self.rejected_rows),
            ("lost", self.lost),
            ("verdict_unknown", self.verdict_unknown),
        ];
        for (name, count) in parts {
            write!(f, "{name}={}/{} ", count.packets, count.bytes)?;
        }
        if self.unverified {
            return f.write_str("difference=unknown");
        }
        let (packets, bytes) = self.difference();
        write!(f, "difference={packets}/{bytes}")
    }
}

/// A settled window.
#[derive(Debug, Default)]
pub struct Settled {
    /// All flows.
    pub table: FlowTable,
    /// Losses, each with a count above 0.
    pub losses: Vec<Loss>,
    /// The books.
    pub balance: Balance,
}

impl Settled {
    /// The same window without its flows: for each direction and verdict, one loss with their total.
    #[must_use]
    pub fn totals_only(self) -> Self {
        let Self { table, mut losses, mut balance } = self;
        for direction in Direction::BOTH {
            for refused in [false, true] {
                let mut count = Count::default();
                for flow in table.flows().filter(|f| f.direction == direction && f.refused == refused) {
                    plus(&mut count, Count { packets: flow.totals.packets, bytes: flow.totals.bytes });
                }
                if count != Count::default() {
                    losses.push(Loss { direction, refused, reason: LossReason::SpoolFull, count });
                    plus(&mut balance.lost, count);
                }
            }
        }
        (balance.accepted_rows, balance.rejected_rows) = (Count::default(), Count::default());
        Self { table: FlowTable::default(), losses, balance }
    }
}

/// Settles a window's records against its truth counters; `None`: they are lost (the host went down).
#[must_use]
pub fn settle(mut table: FlowTable, truth: Option<&Truth>) -> Settled {
    table.seal();
    let refused_lost = table.refused_lost();
    let (mut losses, mut b) = (Vec::new(), Balance { unverified: truth.is_none(), ..Balance::default() });
    let truth = truth.copied().unwrap_or_default();
    for direction in Direction::BOTH {
        let (hook, verdict) = (&truth.hook[direction.index()], both(&truth.verdict[direction.index()]));
        let mut report = |refused, reason, count: Count| {
            if count != Count::default() {
                losses.push(Loss { direction, refused, reason, count });
            }
        };
        report(false, LossReason::RingFull, minus(hook.lost, refused_lost[direction.index()]));
        report(false, LossReason::Malformed, hook.malformed);
        report(true, LossReason::RingFull, verdict.lost);
        report(true, LossReason::VerdictUnknown, verdict.lost_counted);
        plus(&mut b.seen, hook.seen);
        plus(&mut b.non_ip, hook.non_ip);
        plus(&mut b.refused, verdict.refused);
        plus(&mut b.refused_unseen, minus(verdict.refused, verdict.seen));
    }
    for flow in table.flows() {
        let count = Count { packets: flow.totals.packets, bytes: flow.totals.bytes };
        plus(if flow.refused { &mut b.rejected_rows } else { &mut b.accepted_rows }, count);
    }
    for loss in &losses {
        plus(if loss.reason == LossReason::VerdictUnknown { &mut b.verdict_unknown } else { &mut b.lost }, loss.count);
    }
    Settled { table, losses, balance: b }
}

/// The two sets of verdict counters as one.
fn both(sets: &[VerdictTruth; 2]) -> VerdictTruth {
    let mut sum = sets[0];
    let other = &sets[1];
    plus(&mut sum.refused, other.refused);
    plus(&mut sum.seen, other.seen);
    plus(&mut sum.lost, other.lost);
    plus(&mut sum.lost_counted, other.lost_counted);
    plus(&mut sum.late, other.late);
    sum
}

fn plus(a: &mut Count, b: Count) {
    a.packets += b.packets;
    a.bytes += b.bytes;
}

fn minus(a: Count, b: Count) -> Count {
    Count { packets: a.packets.saturating_sub(b.packets), bytes: a.bytes.saturating_sub(b.bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowlog_ebpf::abi::{Key, Meta, Record, Record4, Stats, class};

    fn record(sport: u16, class: u8, reason: u16, packets: u64) -> Record4 {
        let meta =
            Meta { sport, dport: 443, iface: 1, proto: 6, flags: Meta::pack(0, class), reason, ..Meta::default() };
        let stats = Stats { first_ns: 10, last_ns: 20, bytes: packets * 100, packets, ..Stats::default() };
        Record {
            key: Key { src: u32::from_ne_bytes([10, 0, 0, 1]), dst: u32::from_ne_bytes([10, 0, 0, 2]), meta },
            stats,
        }
    }

    fn count(packets: u64) -> Count {
        Count { packets, bytes: packets * 100 }
    }

    fn packets(settled: &Settled, refused: bool) -> Vec<(u16, u64)> {
        let mut rows: Vec<_> =
            settled.table.flows().filter(|f| f.refused == refused).map(|f| (f.sport, f.totals.packets)).collect();
        rows.sort_unstable();
        rows
    }

    #[test]
    fn refused_packets_leave_the_flow_that_counted_them_whatever_way_they_were_refused() {
        let mut table = FlowTable::default();
        let mut truth = Truth::default();
        truth.hook[0].seen = count(17);
        truth.hook[0].lost = count(4);
        // 1: counted, 3 of 10 refused. 2: taken back in the kernel. 3: lost at the hook, then refused. 4: never seen.
        for r in [
            record(1, class::PASSED, 0, 10),
            record(1, class::REFUSED_COUNTED, 12, 3),
            record(2, class::REFUSED, 12, 3),
            record(3, class::REFUSED_LOST, 12, 1),
            record(4, class::REFUSED, 12, 5),
            record(4, class::REFUSED_LATE, 12, 2),
        ] {
            table.add4(&r);
        }
        truth.verdict[0][0].refused = count(3 + 3 + 1 + 5 + 2);
        truth.verdict[0][0].seen = count(3 + 3 + 1);
        // An interrupting program counts into the other set.
        truth.verdict[0][0].refused = count(10);
        truth.verdict[0][1].refused = count(4);
        truth.verdict[0][0].late = count(2);
        let settled = settle(table, Some(&truth));
        assert_eq!(packets(&settled, false), [(1, 7)]);
        assert_eq!(packets(&settled, true), [(1, 3), (2, 3), (3, 1), (4, 7)]);
        assert_eq!(settled.losses.len(), 1);
        assert_eq!(settled.losses[0].count, count(3));
        assert_eq!(settled.balance.difference(), (0, 0), "{:?}", settled.balance);
    }

    #[test]
    fn a_fully_refused_flow_has_no_accept_row() {
        let mut table = FlowTable::default();
        table.add4(&record(1, class::PASSED, 0, 2));
        table.add4(&record(1, class::REFUSED_COUNTED, 12, 2));
        let mut truth = Truth::default();
        truth.hook[0].seen = count(2);
        truth.verdict[0][0].refused = count(2);
        truth.verdict[0][0].seen = count(2);
        let settled = settle(table, Some(&truth));
        assert!(packets(&settled, false).is_empty());
        assert_eq!(settled.balance.difference(), (0, 0));
    }

    #[test]
    fn records_settle_in_any_order() {
        let mut table = FlowTable::default();
        for r in
            [record(1, class::REFUSED_COUNTED, 12, 2), record(1, class::PASSED, 0, 1), record(1, class::PASSED, 0, 3)]
        {
            table.add4(&r);
        }
        let mut truth = Truth::default();
        truth.hook[0].seen = count(4);
        truth.verdict[0][0].refused = count(2);
        truth.verdict[0][0].seen = count(2);
        let settled = settle(table, Some(&truth));
        assert_eq!((packets(&settled, false), packets(&settled, true)), (vec![(1, 2)], vec![(1, 2)]));
        assert_eq!(settled.balance.difference(), (0, 0));
    }

    #[test]
    fn a_missing_record_shows_as_a_difference() {
        let mut truth = Truth::default();
        truth.hook[1].seen = count(5);
        let mut table = FlowTable::default();
        table.add4(&record(1, class::PASSED, 0, 4));
        assert_eq!(settle(table, Some(&truth)).balance.difference(), (-1, -100));
    }
}
