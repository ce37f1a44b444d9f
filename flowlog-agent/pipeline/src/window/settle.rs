//! Settling a window: its flows and its losses, balanced against what the programs counted.
//!
//! For each direction, with everything counted by programs and records alone:
//!
//! ```text
//! rows (ACCEPT + REJECT) + losses = seen at the hooks - not IP + refused before any hook
//! ```
//!
//! [`Balance::difference`] is left minus right, and is 0 (promise P1).
//!
//! and, as far as refusals are known:
//!
//! ```text
//! REJECT rows + losses of refused packets = refused
//! ```
//!
//! and of what was let through and died on its way, which stays in the ACCEPT rows:
//!
//! ```text
//! lost_packets of the rows + packets whose death could not be told = died
//! ```
//!
//! A flow from which more was taken back than it had is in no row. What is missing, its deficit, is in the balance by
//! name, and makes the difference another number than 0.

use flowlog_ebpf::abi::{Count, Truth, VerdictTruth};
use flowlog_model::{HookKind, rule::Direction};

pub use super::balance::{Balance, Loss, LossReason};
use super::{
    XdpWindow,
    table::{Flow, FlowTable},
};

#[derive(Debug, Default)]
pub struct Settled {
    pub table: FlowTable,
    /// Losses, each with a count above 0.
    pub losses: Vec<Loss>,
    pub balance: Balance,
    /// Some of the flows with a deficit, for the log.
    pub short: Vec<(Flow, Count)>,
}

/// Flows with a deficit that are named: one is a bug, and a thousand say no more than a few.
const SHORT_MAX: usize = 8;

impl Settled {
    /// Enters what other people's XDP programs did into the books.
    pub(crate) fn note_xdp(&mut self, xdp: &XdpWindow) {
        let packets = |packets| Count { packets, bytes: 0 };
        self.balance.xdp_dropped = packets(xdp.dropped.packets);
        self.balance.xdp_forwarded = packets(xdp.forwarded.packets);
    }

    /// The same window without its flows: for each direction and verdict, one loss with their total, for `reason`.
    #[must_use]
    pub(crate) fn totals_only(&self, reason: LossReason) -> Self {
        let mut losses = self.losses.clone();
        let mut balance = self.balance;
        let mut totals = [[Count::default(); 2]; 2];
        for flow in self.table.flows() {
            let total = &mut totals[flow.direction.index()][usize::from(flow.refused)];
            plus(total, Count { packets: flow.totals.packets, bytes: flow.totals.bytes });
        }
        for direction in Direction::BOTH {
            for refused in [false, true] {
                let count = totals[direction.index()][usize::from(refused)];
                if count != Count::default() {
                    losses.push(Loss { direction, refused, reason, count });
                    plus(&mut balance.lost, count);
                    if refused {
                        plus(&mut balance.refused_lost, count);
                    }
                }
            }
        }
        let told = std::mem::take(&mut balance.died_rows);
        plus(&mut balance.died_untold, told);
        balance.accepted_rows = Count::default();
        balance.rejected_rows = Count::default();
        Self { table: FlowTable::default(), losses, balance, short: self.short.clone() }
    }
}

/// Whether a flow's deficit is what a turn of the window leaves: a packet has no note of the window that an XDP hook
/// counted it in, so one that is refused after the turn is taken back in the new window, which never had it. Its row in
/// the earlier window stands, as for all refusals that are late.
pub(super) fn is_late(hook: HookKind, flow: &Flow) -> bool {
    hook == HookKind::Xdp && flow.direction == Direction::Ingress && !flow.refused
}

/// Settles a window's records against its truth counters; `None`: they are lost (the host went down).
#[must_use]
pub fn settle(mut table: FlowTable, truth: Option<&Truth>, hook: HookKind) -> Settled {
    table.seal();
    let refused_lost = table.refused_lost();
    let mut losses = Vec::new();
    let mut b = Balance { unverified: truth.is_none(), ..Balance::default() };
    let truth = truth.copied().unwrap_or_default();
    for direction in Direction::BOTH {
        let hook = &truth.hook[direction.index()];
        let verdict = both(&truth.verdict[direction.index()]);
        let mut report = |refused, reason, count: Count| {
            if count != Count::default() {
                losses.push(Loss { direction, refused, reason, count });
            }
        };
        // Refused, with a record that says so or without one: they have a verdict.
        let told = refused_lost[direction.index()];
        report(false, LossReason::RingFull, minus(minus(hook.lost, told), verdict.lost_twice));
        report(false, LossReason::Malformed, hook.malformed);
        report(true, LossReason::RingFull, sum(verdict.lost, verdict.lost_twice));
        report(true, LossReason::VerdictUnknown, verdict.lost_counted);
        report(false, LossReason::VerdictUnknown, verdict.unknown);
        plus(&mut b.seen, hook.seen);
        plus(&mut b.non_ip, hook.non_ip);
        plus(&mut b.refused, verdict.refused);
        plus(&mut b.refused_unseen, minus(verdict.refused, verdict.seen));
        plus(&mut b.died, verdict.died);
        plus(&mut b.died_untold, verdict.died_untold);
        plus(&mut b.died_late, verdict.died_late);
    }
    let (any_lost, mut deficits) = (table.has_lost(), Vec::new());
    table.for_each_settled(|number, flow, deficit| {
        if deficit != Count::default() {
            deficits.push((*flow, deficit));
        }
        if flow.totals.packets == 0 {
            return;
        }
        let count = Count { packets: flow.totals.packets, bytes: flow.totals.bytes };
        plus(if flow.refused { &mut b.rejected_rows } else { &mut b.accepted_rows }, count);
        if any_lost && let Some(lost) = table.lost(number, flow) {
            plus(&mut b.died_rows, lost.count);
        }
    });
    for loss in &losses {
        plus(if loss.reason == LossReason::VerdictUnknown { &mut b.verdict_unknown } else { &mut b.lost }, loss.count);
        match (loss.reason, loss.refused) {
            (LossReason::VerdictUnknown, _) | (LossReason::RingFull, false) => plus(&mut b.untold, loss.count),
            (_, true) => plus(&mut b.refused_lost, loss.count),
            (_, false) => {}
        }
    }
    let mut short = Vec::new();
    for (flow, deficit) in deficits {
        if is_late(hook, &flow) {
            plus(&mut b.refused_unseen, deficit);
            continue;
        }
        plus(&mut b.deficit, deficit);
        if short.len() < SHORT_MAX {
            short.push((flow, deficit));
        }
    }
    for (flow, more) in table.overdrawn() {
        // No note says in which window an XDP hook counted a packet, nor that it found the ring full for a fragment.
        if hook == HookKind::Xdp || truth.hook[flow.direction.index()].lost.packets > 0 {
            b.died = minus(b.died, more);
            plus(&mut b.died_late, more);
            continue;
        }
        plus(&mut b.deficit, more);
        if short.len() < SHORT_MAX {
            short.push((flow, more));
        }
    }
    Settled { table, losses, balance: b, short }
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
    plus(&mut sum.unknown, other.unknown);
    plus(&mut sum.lost_twice, other.lost_twice);
    plus(&mut sum.died, other.died);
    plus(&mut sum.died_untold, other.died_untold);
    plus(&mut sum.died_late, other.died_late);
    sum
}

fn sum(mut a: Count, b: Count) -> Count {
    plus(&mut a, b);
    a
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
    use flowlog_ebpf::abi::{FLAGS_UNSURE, Key, Meta, Record, Record4, Stats, class};

    use super::*;

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
        let settled = settle(table, Some(&truth), HookKind::Tcx);
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
        let settled = settle(table, Some(&truth), HookKind::Tcx);
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
        let settled = settle(table, Some(&truth), HookKind::Tcx);
        assert_eq!((packets(&settled, false), packets(&settled, true)), (vec![(1, 2)], vec![(1, 2)]));
        assert_eq!(settled.balance.difference(), (0, 0));
    }

    /// Two packets of flow 1 are counted, and refusals of two are taken from flow 2, which had none.
    fn wrong_flow(hook: HookKind, passed: u64) -> Settled {
        let mut table = FlowTable::default();
        table.add4(&record(1, class::PASSED, 0, passed));
        table.add4(&record(2, class::REFUSED_COUNTED, 12, 2));
        let mut truth = Truth::default();
        truth.hook[0].seen = count(2);
        truth.verdict[0][0].refused = count(2);
        truth.verdict[0][0].seen = count(2);
        settle(table, Some(&truth), hook)
    }

    #[test]
    fn a_flow_below_zero_is_in_the_balance_and_never_evened_out() {
        let settled = wrong_flow(HookKind::Tc, 2);
        assert_eq!((settled.balance.deficit, settled.balance.difference()), (count(2), (2, 200)));
        assert_eq!(
            settled.short.iter().map(|(f, n)| (f.sport, f.refused, *n)).collect::<Vec<_>>(),
            [(2, false, count(2))]
        );
        assert!(settled.balance.to_string().contains("deficit=2/200"), "{}", settled.balance);
        assert_eq!(settled.totals_only(LossReason::SpoolFull).balance.difference(), (2, 200));
        // With the passed record missing as well, the sum is right and the rows are not.
        let mut table = FlowTable::default();
        table.add4(&record(2, class::REFUSED_COUNTED, 12, 2));
        let mut truth = Truth::default();
        truth.hook[0].seen = count(2);
        truth.verdict[0][0].refused = count(2);
        truth.verdict[0][0].seen = count(2);
        assert_eq!(settle(table, Some(&truth), HookKind::Tc).balance.difference(), (-2, -200));
    }

    #[test]
    fn what_xdp_counted_in_an_earlier_window_is_late_and_no_error() {
        let settled = wrong_flow(HookKind::Xdp, 2);
        assert_eq!(settled.balance.difference(), (0, 0), "{}", settled.balance);
        assert_eq!((settled.balance.refused_unseen, settled.balance.deficit), (count(2), Count::default()));
        assert_eq!((packets(&settled, false), packets(&settled, true)), (vec![(1, 2)], vec![(2, 2)]));
        // A missing record still shows.
        assert_eq!(wrong_flow(HookKind::Xdp, 1).balance.difference(), (-1, -100));
    }

    #[test]
    fn a_refusal_whose_record_is_missing_shows_as_a_difference() {
        let mut truth = Truth::default();
        truth.hook[0].seen = count(5);
        truth.verdict[0][0].refused = count(2);
        truth.verdict[0][0].seen = count(2);
        let mut table = FlowTable::default();
        table.add4(&record(1, class::PASSED, 0, 5));
        assert_eq!(settle(table, Some(&truth), HookKind::Tc).balance.difference(), (-2, -200));
        truth.verdict[0][0].lost_counted = count(2);
        let mut table = FlowTable::default();
        table.add4(&record(1, class::PASSED, 0, 5));
        assert_eq!(settle(table, Some(&truth), HookKind::Tc).balance.difference(), (0, 0));
    }

    #[test]
    fn flags_are_uncertain_where_those_of_refused_packets_may_be_among_them() {
        let mut certain = record(1, class::PASSED, 0, 3);
        certain.stats.tcp_flags = 0x12;
        let mut marked = record(2, class::PASSED, 0, 3);
        marked.stats.tcp_flags = 0x02 | FLAGS_UNSURE;
        let mut evicted = record(3, class::PASSED, 0, 3);
        evicted.stats.tcp_flags = 0x2b;
        let mut table = FlowTable::default();
        for r in [certain, marked, record(2, class::PASSED, 0, 1), record(3, class::REFUSED_COUNTED, 12, 1), evicted] {
            table.add4(&r);
        }
        // The mark goes through a snapshot.
        let mut copy = FlowTable::default();
        table.blocks(1, 0, |block| {
            crate::window::block::Records::parse(block).expect("a block").for_each(|r| copy.add_all(&[r]));
        });
        for table in [table, copy] {
            let mut flows: Vec<_> = table
                .flows()
                .filter(|f| !f.refused)
                .map(|f| (f.sport, f.totals.packets, f.totals.tcp_flags, f.totals.flags_unsure))
                .collect();
            flows.sort_unstable();
            assert_eq!(flows, [(1, 3, 0x12, false), (2, 4, 0x02, true), (3, 2, 0x2b, true)]);
            let mut told: Vec<_> = table.flows().map(|f| (f.sport, f.refused, f.tcp_flags())).collect();
            told.sort_unstable();
            let expected = [(1, false, Some(0x12)), (2, false, None), (3, false, None), (3, true, Some(0))];
            assert_eq!(told, expected);
        }
    }

    #[test]
    fn a_missing_record_shows_as_a_difference() {
        let mut truth = Truth::default();
        truth.hook[1].seen = count(5);
        let mut table = FlowTable::default();
        table.add4(&record(1, class::PASSED, 0, 4));
        assert_eq!(settle(table, Some(&truth), HookKind::Tcx).balance.difference(), (-1, -100));
    }
}
