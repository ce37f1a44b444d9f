//! The columns that say between whom packets went: addresses and ports, here and on the other side of a translation. They take as long to build
//! as all others, and need nothing of those.

use super::{
    address::AddressColumn,
    batch::{BATCH, Batch},
    numbers::Numbers,
    sparse::OtherSideColumns,
};
use crate::window::{Addresses, Flow, FlowTable, OtherSide};

pub(super) struct EndColumns {
    pub(super) src: AddressColumn,
    pub(super) dst: AddressColumn,
    pub(super) sport: Numbers,
    pub(super) dport: Numbers,
    pub(super) other_side: OtherSideColumns,
    rows: usize,
}

impl EndColumns {
    pub(super) fn new(rows: usize) -> Self {
        Self {
            src: AddressColumn::with_room(rows),
            dst: AddressColumn::with_room(rows),
            sport: Numbers::new(rows),
            dport: Numbers::new(rows),
            other_side: OtherSideColumns::default(),
            rows: 0,
        }
    }

    /// How many of so many rows of flows can be added before it has to be looked whether a dictionary is that long. None: one is.
    pub(super) fn room(&self, rows: usize, dictionary_bytes: usize) -> usize {
        let addresses = self.src.labels.dictionary_bytes().max(self.dst.labels.dictionary_bytes());
        let left = dictionary_bytes.saturating_sub(addresses.max(self.other_side.dictionary_bytes()));
        rows.min(BATCH).min(left.div_ceil(AddressColumn::TEXT_MAX))
    }

    /// Rows of flows.
    pub(super) fn flows(&mut self, batch: &Batch, table: &FlowTable) {
        let flows = batch.flows();
        if table.told() > 0 {
            self.translated(flows, table);
        }
        self.addresses(flows);
        let port = |f: &Flow, n: u16| Some(if f.is_icmp() { 0 } else { n });
        self.sport.extend(flows, |f| port(f, f.sport));
        self.dport.extend(flows, |f| port(f, f.dport));
        self.rows += flows.len();
    }

    fn translated(&mut self, flows: &[Flow], table: &FlowTable) {
        for (row, flow) in (self.rows..).zip(flows) {
            if let Some(OtherSide::Is(addresses, sport, dport)) = table.other_side(flow) {
                let port = |n| if flow.is_icmp() { 0 } else { n };
                self.other_side.push(row, addresses, port(sport), port(dport));
            }
        }
    }

    fn addresses(&mut self, flows: &[Flow]) {
        let Self { src, dst, .. } = self;
        let mut found = [0; BATCH];
        let found = &mut found[..flows.len()];
        for (code, flow) in found.iter_mut().zip(flows) {
            *code = match flow.addresses {
                Addresses::V4(address, _) => src.code4(address),
                Addresses::V6(address, _) => src.code6(address),
            };
        }
        src.labels.extend(found);
        for (code, flow) in found.iter_mut().zip(flows) {
            *code = match flow.addresses {
                Addresses::V4(_, address) => dst.code4(address),
                Addresses::V6(_, address) => dst.code6(address),
            };
        }
        dst.labels.extend(found);
    }

    /// A row without any.
    pub(super) fn push_none(&mut self) {
        self.src.push_none();
        self.dst.push_none();
        self.sport.push(None);
        self.dport.push(None);
        self.rows += 1;
    }
}
