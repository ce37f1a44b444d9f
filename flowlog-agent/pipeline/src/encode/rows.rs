//! Building the columns of an object.

use flowlog_model::rule::{Action, Direction};

pub use super::order::{CHOSEN, Order};
use super::{
    Names, ObjectInfo, RowCounts,
    builder::{Builder, LogStatus, RowsFrom},
    crew::Group,
    order::{Sorter, by_service},
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

    /// The numbers of the flows, in parts that end after so many rows, each of which begins a row group.
    pub(super) fn parts(&self, rows_max: usize) -> impl Iterator<Item = &[u32]> + Send {
        self.flows.chunks(rows_max)
    }

    /// The row groups of a part: one, or several if a dictionary is as long as it may be before the end.
    pub(super) fn groups_of(
        &self,
        part: &[u32],
        info: &ObjectInfo,
        names: &Names,
        dictionary_bytes: usize,
    ) -> Vec<Group> {
        let stretch = Stretch::of(&info.span, info.flushed_early);
        let from = RowsFrom { table: self.table, stretch, names };
        let mut left = part;
        let groups = std::iter::from_fn(|| {
            let mut b = Builder::new(info, left.len());
            b.take(&mut left, dictionary_bytes, from);
            (b.rows() > 0).then(|| b.finish())
        });
        groups.collect()
    }

    /// The row groups of rows that are no flows, which follow.
    pub(super) fn other_groups(&self, info: &ObjectInfo) -> impl Iterator<Item = Group> {
        let losses = {
            let mut b = Builder::new(info, self.losses.len());
            self.losses.iter().for_each(|loss| b.loss(loss));
            if self.is_empty() {
                b.no_flow(LogStatus::NoData);
            }
            (b.rows() > 0).then(|| b.finish())
        };
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
        losses.into_iter().chain(xdp).chain(gap)
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
