//! The other direction of a flow: its twin, which has its addresses and ports the other way round. Twins are looked for once, when
//! nothing is added any more, so that the index need not be kept for them. It costs four bytes a flow, and nothing where only one
//! direction is captured.

use std::hash::Hash;

use super::{
    FlowTable, Table, V6,
    entry::{FlowKey, LOST, REFUSED},
    told::answering,
};
use crate::window::block;

/// In place of a twin's number: it has none.
const NONE: u32 = u32::MAX;
/// Bit of [`FlowKey::flags`]: the direction.
const DIRECTION: u8 = 1;

impl<A: Copy> FlowKey<A> {
    /// The key of the packets that go the other way; `None`: it is not known which packets these are.
    fn other_way(self) -> Option<Self> {
        let Self { src, dst, .. } = self;
        let (sport, dport) = answering(self.proto, (self.sport, self.dport))?;
        Some(Self { src: dst, dst: src, sport, dport, flags: self.flags ^ DIRECTION, ..self })
    }
}

impl<A: block::Address + Copy + Eq + Hash> Table<A> {
    /// Finds the twins of accepted flows.
    pub(super) fn find_twins(&mut self) {
        let has =
            |direction: u8| self.chunks.iter().flatten().any(|e| e.flags & (DIRECTION | LOST | REFUSED) == direction);
        if !has(0) || !has(DIRECTION) {
            return;
        }
        let mut twins = vec![NONE; self.len()];
        for (id, entry) in (0u32..).zip(self.chunks.iter().flatten()) {
            if entry.flags & (DIRECTION | LOST | REFUSED) != 0 {
                continue;
            }
            if let Some(twin) = entry.key().other_way().and_then(|key| self.find(&key)) {
                twins[id as usize] = twin;
                twins[twin as usize] = id;
            }
        }
        self.twins = twins;
    }

    fn twin(&self, id: u32) -> u32 {
        self.twins.get(id as usize).copied().unwrap_or(NONE)
    }
}

impl FlowTable {
    /// Whether any flow may have one.
    #[must_use]
    pub(crate) fn has_twins(&self) -> bool {
        !self.v4.twins.is_empty() || !self.v6.twins.is_empty()
    }

    /// The number of the other direction of an accepted flow; of none, a number that no flow has. Only once the table is sealed.
    #[must_use]
    pub(crate) fn twin_number(&self, number: u32) -> u32 {
        let id = number & !V6;
        if number & V6 == 0 { self.v4.twin(id) } else { self.v6.twin(id) | V6 }
    }
}
