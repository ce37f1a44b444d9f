//! What was lost of accepted flows after they had passed. Each reason of each flow is an entry of its own in the table, so that
//! flows of which nothing was lost, which are nearly all, pay nothing for it.

use std::hash::Hash;

use flowlog_ebpf::abi::Count;

use super::{
    Flow, FlowTable, Table, V6,
    entry::{FlowEntry, FlowKey},
};
use crate::window::block;

/// What was lost of an accepted flow after it had passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Packets and bytes, at most what the flow has.
    pub count: Count,
    /// Index of the drop reason that most of the packets died for.
    pub reason: u16,
}

impl<A: block::Address + Copy + Eq + Hash> Table<A> {
    /// Entries that say what was lost.
    fn losses(&self) -> impl Iterator<Item = (u32, &FlowEntry<A>)> {
        (0u32..).zip(self.chunks.iter().flatten()).filter(|(_, e)| e.is_lost()).take(self.losses)
    }

    /// Which of [`lost`](Self::lost) are of a flow.
    fn lost_of(&self, id: u32) -> &[(u32, u32)] {
        let first = self.lost.partition_point(|(flow, _)| *flow < id);
        let of_it = self.lost[first..].partition_point(|(flow, _)| *flow == id);
        &self.lost[first..first + of_it]
    }

    /// Finds the flows that something was lost of.
    pub(super) fn find_lost(&mut self) {
        let losses: Vec<(u32, FlowKey<A>)> = self.losses().map(|(id, e)| (id, e.key())).collect();
        // A loss without a flow is given one: without packets, which is what is wrong with it.
        self.lost = losses.into_iter().map(|(id, key)| (self.number(key.accepted()), id)).collect();
        self.lost.sort_unstable();
    }
}

impl<A> FlowEntry<A> {
    /// Reason, packets and bytes of an entry that says what was lost.
    fn loss(&self) -> (u16, Count) {
        let counted = |n: i64| u64::try_from(n).unwrap_or(0);
        (self.reason, Count { packets: counted(self.packets), bytes: counted(self.bytes) })
    }
}

fn sum(losses: impl Iterator<Item = (u16, Count)>) -> Count {
    losses.fold(Count::default(), |all, (_, n)| Count { packets: all.packets + n.packets, bytes: all.bytes + n.bytes })
}

impl FlowTable {
    /// What was lost of a flow, reason by reason, whether or not it has so much. Only once the table is sealed.
    fn losses_of(&self, number: u32) -> impl Iterator<Item = (u16, Count)> + '_ {
        let id = number & !V6;
        let v4 = if number & V6 == 0 { self.v4.lost_of(id) } else { &[] };
        let v6 = if number & V6 == 0 { &[] } else { self.v6.lost_of(id) };
        let v4 = v4.iter().filter_map(|(_, e)| self.v4.at(*e)).map(FlowEntry::loss);
        v4.chain(v6.iter().filter_map(|(_, e)| self.v6.at(*e)).map(FlowEntry::loss))
    }

    /// Whether anything was lost of any flow after it had passed. Only once the table is sealed.
    #[must_use]
    pub(crate) fn has_lost(&self) -> bool {
        !self.v4.lost.is_empty() || !self.v6.lost.is_empty()
    }

    /// What was lost of a flow after it had passed; `None`: nothing. Only once the table is sealed.
    #[must_use]
    pub fn lost(&self, number: u32, flow: &Flow) -> Option<Lost> {
        let (_, reason) = self.losses_of(number).map(|(reason, n)| (n.packets, reason)).max()?;
        let all = sum(self.losses_of(number));
        let count = Count { packets: all.packets.min(flow.totals.packets), bytes: all.bytes.min(flow.totals.bytes) };
        Some(Lost { count, reason })
    }

    /// What was lost of accepted flows: reason, packets and bytes, for each flow and reason.
    pub(crate) fn losses(&self) -> impl Iterator<Item = (u16, Count)> + '_ {
        let v4 = self.v4.losses().map(|(_, e)| e.loss());
        v4.chain(self.v6.losses().map(|(_, e)| e.loss()))
    }

    /// Flows of which more was lost than they have, and how much more. Only once the table is sealed.
    pub(crate) fn overdrawn(&self) -> impl Iterator<Item = (Flow, Count)> + '_ {
        let of = |lost: &[(u32, u32)], family: u32| lost.iter().map(|(flow, _)| flow | family).collect::<Vec<_>>();
        let mut flows: Vec<u32> = of(&self.v4.lost, 0).into_iter().chain(of(&self.v6.lost, V6)).collect();
        flows.dedup();
        flows.into_iter().filter_map(|number| {
            let (flow, _) = self.settled(number)?;
            let all = sum(self.losses_of(number));
            let packets = all.packets.saturating_sub(flow.totals.packets);
            let bytes = all.bytes.saturating_sub(flow.totals.bytes);
            ((packets, bytes) != (0, 0)).then_some((flow, Count { packets, bytes }))
        })
    }
}
