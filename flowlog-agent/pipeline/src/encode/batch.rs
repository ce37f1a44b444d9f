//! Flows of neighbouring rows. Their order is not that of the table, so nearly each is where no other one was: asked for one by one they
//! would take as long as memory does. Together they are under way at the same time.

use crate::window::{Flow, FlowTable, table::NOWHERE};

/// Flows in a batch: few enough that all stay in the cache next to the processor while column after column is built of them.
pub(super) const BATCH: usize = 128;

/// Flows and their twins.
#[derive(Default)]
pub(super) struct Batch {
    numbers: Vec<u32>,
    flows: Vec<Flow>,
    /// Of those flows that have one, in their order.
    twins: Vec<Flow>,
    /// The number of each flow's twin.
    twin_numbers: Vec<u32>,
    /// The same, of those that have one.
    asked: Vec<u32>,
    /// The number of each of the twins.
    found: Vec<u32>,
}

impl Batch {
    /// Takes the flows with these numbers out of a table.
    pub(super) fn gather(&mut self, table: &FlowTable, numbers: &[u32]) {
        let Self { numbers: kept, flows, twins, twin_numbers, asked, found } = self;
        table.flows_of(numbers, kept, flows);
        twin_numbers.clear();
        asked.clear();
        if table.has_twins() {
            twin_numbers.extend(kept.iter().map(|number| table.twin_number(*number)));
            asked.extend(twin_numbers.iter().filter(|number| **number != NOWHERE));
        }
        table.flows_of(asked, found, twins);
    }

    pub(super) fn flows(&self) -> &[Flow] {
        &self.flows
    }

    /// Flows with their numbers in the table.
    pub(super) fn numbered(&self) -> impl Iterator<Item = (u32, &Flow)> {
        self.numbers.iter().copied().zip(&self.flows)
    }

    /// Flows with their twins.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&Flow, Option<&Flow>)> {
        let mut twins = self.found.iter().zip(&self.twins).peekable();
        let mut numbers = self.twin_numbers.iter();
        self.flows.iter().map(move |flow| {
            let number = numbers.next();
            let twin = twins.next_if(|(found, _)| Some(*found) == number);
            (flow, twin.map(|(_, twin)| twin))
        })
    }
}
