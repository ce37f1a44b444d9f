//! Building the columns of an object.

use flowlog_model::rule::{Action, Direction};

pub use super::order::{CHOSEN, Order};
use super::{
    Names, ObjectInfo, RowCounts,
    builder::{Builder, LogStatus, RowsFrom},
    order::{Sorter, by_service},
    values::Column,
};
use crate::window::{Balance, Flow, FlowTable, Loss, LossReason, OtherSide, Settled, connection::Stretch};

/// The rows a rule wants of a window.
pub struct Rows<'a> {
    /// All flows of the window.
    pub(super) table: &'a FlowTable,
    /// Numbers of the flows with the wanted verdict.
    flows: Vec<u32>,
    /// The books of the whole window, before the rule's choice.
    pub balance: Balance,
    losses: Vec<Loss>,
    /// Packets that only somebody else's XDP program has seen.
    xdp: Vec<Xdp>,
    /// Whether there is a row for a gap.
    gap: bool,
    counts: RowCounts,
    /// Flows whose other side is known, and those of several connections with different ones.
    pub(super) translated: (usize, usize),
}

impl<'a> Rows<'a> {
    /// Keeps what the rule wants, in the order it is written in. A direction that it does not want was counted only if the rule before it did:
    /// for the moment until the programs are told.
    #[must_use]
    pub fn select(info: &ObjectInfo, settled: &'a Settled, order: Order) -> Self {
        let Settled { table, losses, balance, short: _ } = settled;
        let mut losses = losses.clone();
        let wanted = [false, true].map(|refused| match info.rule.action {
            Action::Any => true,
            Action::Accepted => !refused,
            Action::Rejected => refused,
        });
        let wanted = |refused| wanted[usize::from(refused)];
        let goes = Direction::BOTH.map(|hook| info.rule.directions.includes(info.side.owners(hook)));
        let goes = |hook: Direction| goes[hook.index()];
        // Packets of unknown verdict are reported to rules that want one action only as well.
        losses.retain(|l| goes(l.direction) && (wanted(l.refused) || l.reason == LossReason::VerdictUnknown));
        let xdp: Vec<Xdp> = Xdp::of(info).filter(|x| wanted(x.refused)).collect();
        let mut counts = RowCounts { skipped: losses.len() + xdp.len(), ..RowCounts::default() };
        let mut translated = (0, 0);
        let mut sorter = Sorter::with_room(table.flow_count());
        let are_translated = table.told() > 0;
        table.for_each(|number, flow| {
            if !goes(flow.direction) || !wanted(flow.refused) {
                return;
            }
            *(if flow.refused { &mut counts.rejected } else { &mut counts.accepted }) += 1;
            match are_translated.then(|| table.other_side(flow)).flatten() {
                Some(OtherSide::Is(..)) => translated.0 += 1,
                Some(OtherSide::Several) => translated.1 += 1,
                None => {}
            }
            let key = if order == Order::Start { flow.totals.first_ns } else { by_service(flow) };
            sorter.push(key, number);
        });
        let flows = sorter.sorted();
        counts.skipped += usize::from(info.gap.is_some());
        Self { table, flows, balance: *balance, losses, xdp, gap: info.gap.is_some(), counts, translated }
    }

    /// Whether there is nothing but, perhaps, a NODATA row.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.flows.is_empty() && self.losses.is_empty() && self.xdp.is_empty() && !self.gap
    }

    /// The flows, in their order.
    pub(super) fn flows(&self) -> impl Iterator<Item = Flow> + '_ {
        self.flows.iter().filter_map(|number| self.table.flow(*number))
    }

    /// Whether packets are in no flow's row.
    #[must_use]
    pub(super) fn skips_packets(&self) -> bool {
        !self.losses.is_empty() || !self.xdp.is_empty()
    }

    /// How many there are, without a NODATA row.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.counts.accepted + self.counts.rejected + self.counts.skipped
    }

    #[must_use]
    pub(crate) fn counts(&self) -> RowCounts {
        self.counts
    }

    /// The columns of all row groups. A group ends after `rows_max` rows, or when a dictionary is `dictionary_bytes` long. One or two `threads`
    /// build them.
    pub(crate) fn groups<'b>(
        &'b self,
        info: &'b ObjectInfo,
        names: &'b Names,
        rows_max: usize,
        dictionary_bytes: usize,
        threads: usize,
    ) -> impl Iterator<Item = Vec<Column>> + 'b {
        let mut left = self.flows.as_slice();
        let stretch = Stretch::of(&info.span, info.flushed_early);
        let from = RowsFrom { table: self.table, stretch, names };
        let flow_groups = std::iter::from_fn(move || {
            let with_two = |left: &mut _| Builder::with_two_threads(info, left, rows_max, dictionary_bytes, from);
            let built = if threads > 1 && !left.is_empty() { with_two(&mut left) } else { None };
            let mut b = built.unwrap_or_else(|| Builder::new(info, rows_max.min(left.len())));
            if b.rows() == 0 {
                b.take(&mut left, rows_max, dictionary_bytes, from);
            }
            (b.rows() > 0).then(|| b.finish())
        });
        let rest = std::iter::once_with(move || {
            let mut b = Builder::new(info, self.losses.len());
            self.losses.iter().for_each(|loss| b.loss(loss));
            if self.is_empty() {
                b.no_flow(LogStatus::NoData);
            }
            (b.rows() > 0).then(|| b.finish())
        });
        // A group of its own: drivers count no bytes.
        let xdp = (!self.xdp.is_empty()).then(|| {
            let mut b = Builder::new(info, self.xdp.len());
            self.xdp.iter().for_each(|xdp| b.xdp(xdp));
            b.finish()
        });
        // A group of its own: unlike any other row it has no count of packets.
        let gap = info.gap.map(|(from, to)| {
            let mut b = Builder::new(info, 1);
            b.gap(from, to);
            b.finish()
        });
        flow_groups.chain(rest.flatten()).chain(xdp).chain(gap)
    }
}

/// Packets that somebody else's XDP program dropped or forwarded on their way in.
pub(super) struct Xdp {
    pub(super) refused: bool,
    pub(super) packets: u64,
}

impl Xdp {
    /// Those of a window, if the rule wants what comes in.
    fn of(info: &ObjectInfo) -> impl Iterator<Item = Self> {
        let wanted = info.rule.directions.includes(info.side.owners(Direction::Ingress));
        let counts = [(true, info.xdp.dropped.packets), (false, info.xdp.forwarded.packets)];
        let found = counts.into_iter().filter(move |(_, packets)| wanted && *packets > 0);
        found.map(|(refused, packets)| Self { refused, packets })
    }
}
