//! The other direction of a flow: its twin, which has its addresses and ports the other way round. Twins are looked for once, when
//! nothing is added any more, so that the index need not be kept for them. It costs four bytes a flow, and nothing where only one
//! direction is captured.

use std::{hash::Hash, hint::black_box};

use super::{
    FlowTable, NOWHERE, TOGETHER, Table, V6,
    entry::{FlowKey, LOST, REFUSED},
    told::answering,
};
use crate::window::block;

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
        let mut twins = vec![NOWHERE; self.len()];
        let ingress = (0u32..).zip(self.chunks.iter().flatten()).filter_map(|(id, entry)| {
            let wanted = entry.flags & (DIRECTION | LOST | REFUSED) == 0;
            Some((id, entry.key().other_way().filter(|_| wanted)?))
        });
        let mut asked = Vec::with_capacity(TOGETHER);
        for (id, other) in ingress {
            // Nearly all that have none are told by the guess.
            match self.guess(other) {
                NOWHERE => {}
                guess => asked.push((id, other, guess)),
            }
            if asked.len() == TOGETHER {
                self.note_twins(&mut asked, &mut twins);
            }
        }
        self.note_twins(&mut asked, &mut twins);
        self.twins = twins;
    }

    /// Looks at what was guessed of these flows, each with the key of its twin; all of them are under way from memory at once.
    fn note_twins(&self, asked: &mut Vec<(u32, FlowKey<A>, u32)>, twins: &mut [u32]) {
        black_box(asked.iter().filter_map(|(.., guess)| self.at(*guess)).fold(0, |all, e| all ^ e.ends()));
        for (id, other, guess) in asked.drain(..) {
            let is_it = self.at(guess).is_some_and(|e| e.key() == other);
            if let Some(twin) = is_it.then_some(guess).or_else(|| self.find(&other)) {
                twins[id as usize] = twin;
                twins[twin as usize] = id;
            }
        }
    }

    fn twin(&self, id: u32) -> u32 {
        self.twins.get(id as usize).copied().unwrap_or(NOWHERE)
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
