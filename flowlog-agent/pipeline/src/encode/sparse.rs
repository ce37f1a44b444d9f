//! Columns that few rows have a value in: rows without one cost nothing until the first that has.

use std::hash::Hash;

use flowlog_model::rule::Direction;

use super::{
    Names, ObjectInfo,
    address::AddressColumn,
    labels::{Label, Labels},
    values::{Bools, Found},
};
use crate::window::{
    Addresses, Connection, Flow, Lost,
    connection::{EndCause, FlowState},
};

/// One such column.
pub(super) struct Sparse<K>(Found<K>);

impl<K> Default for Sparse<K> {
    fn default() -> Self {
        Self(Found::default())
    }
}

impl<K: Hash + Eq + Copy> Sparse<K> {
    /// Gives the row of this number a value. Rows come in order.
    pub(super) fn push(&mut self, row: usize, value: K, label: impl FnOnce(&K) -> Option<Label>) {
        self.0.labels.fill(row);
        self.0.push(value, label);
    }

    /// The column, `rows` long.
    pub(super) fn take(&mut self, rows: usize) -> Labels {
        if self.0.labels.rows() == 0 {
            return Labels::same(None, rows);
        }
        self.0.labels.fill(rows);
        std::mem::take(&mut self.0.labels)
    }
}

/// What was lost of flows that had passed.
#[derive(Default)]
pub(super) struct LostColumns {
    pub(super) packets: Sparse<u64>,
    pub(super) bytes: Sparse<u64>,
    pub(super) reason: Sparse<u16>,
}

impl LostColumns {
    pub(super) fn push(&mut self, row: usize, lost: Lost, reason_name: &dyn Fn(u16) -> Option<String>) {
        let long = |n: &u64| Some(Label::Long(i64::try_from(*n).unwrap_or(i64::MAX)));
        self.packets.push(row, lost.count.packets, long);
        self.bytes.push(row, lost.count.bytes, long);
        self.reason.push(row, lost.reason, |r| reason_name(*r).map(Label::Text));
    }
}

/// Which rule has refused flows.
#[derive(Default)]
pub(super) struct RuleColumns {
    pub(super) mark: Sparse<u32>,
    /// By drop reason, mark and direction.
    pub(super) name: Sparse<(u16, u32, Direction)>,
}

impl RuleColumns {
    pub(super) fn push(&mut self, row: usize, info: &ObjectInfo, flow: &Flow, names: &Names) {
        if flow.mark != 0 {
            self.mark.push(row, flow.mark, |mark| Some(Label::Long(i64::from(*mark))));
        }
        let key = (flow.reason, flow.mark, flow.direction);
        self.name.push(row, key, |_| (names.rule)(info, flow).map(Label::Text));
    }
}

/// What translated flows have on the other side.
#[derive(Default)]
pub(super) struct OtherSideColumns {
    pub(super) src: AddressColumn,
    pub(super) dst: AddressColumn,
    pub(super) sport: Sparse<u16>,
    pub(super) dport: Sparse<u16>,
}

impl OtherSideColumns {
    pub(super) fn push(&mut self, row: usize, addresses: Addresses, sport: u16, dport: u16) {
        let Self { src, dst, .. } = self;
        for column in [&mut *src, &mut *dst] {
            column.labels.fill(row);
        }
        let (from, to) = match addresses {
            Addresses::V4(a, b) => (src.code4(a), dst.code4(b)),
            Addresses::V6(a, b) => (src.code6(a), dst.code6(b)),
        };
        src.labels.push(from);
        dst.labels.push(to);
        let port = |n: &u16| Some(Label::Int(i32::from(*n)));
        self.sport.push(row, sport, port);
        self.dport.push(row, dport, port);
    }

    pub(super) fn dictionary_bytes(&self) -> usize {
        self.src.labels.dictionary_bytes().max(self.dst.labels.dictionary_bytes())
    }
}

/// What flows show of their connections.
#[derive(Default)]
pub(super) struct ConnectionColumns {
    initiator: Bools,
    pub(super) state: Sparse<u8>,
    pub(super) end: Sparse<u8>,
    pub(super) rtt_us: Sparse<u32>,
}

impl ConnectionColumns {
    pub(super) fn push(&mut self, row: usize, connection: &Connection) {
        let Connection { initiator, state, end, rtt_us } = *connection;
        self.initiator.push(initiator);
        let name = |names: &[&str], code: u8| names.get(usize::from(code)).map(|n| Label::Text((*n).to_owned()));
        if let Some(state) = state {
            self.state.push(row, state as u8, |code| name(&FlowState::NAMES, *code));
        }
        if let Some(end) = end {
            self.end.push(row, end as u8, |code| name(&EndCause::NAMES, *code));
        }
        if let Some(rtt_us) = rtt_us {
            self.rtt_us.push(row, rtt_us, |us| Some(Label::Long(i64::from(*us))));
        }
    }

    /// The column `initiator`, `rows` long.
    pub(super) fn initiator(&mut self, rows: usize) -> Bools {
        while self.initiator.rows() < rows {
            self.initiator.push(None);
        }
        std::mem::take(&mut self.initiator)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::labels::NULL, *};

    #[test]
    fn rows_without_a_value_are_null_wherever_they_are() {
        let mut column = Sparse::<u64>::default();
        assert_eq!(column.take(3).codes(), Vec::<u32>::new(), "no code for rows that are all the same");
        let label = |n: &u64| Some(Label::Long(i64::try_from(*n).expect("small")));
        column.push(2, 70, label);
        column.push(4, 80, label);
        column.push(5, 70, label);
        assert_eq!(column.take(7).codes(), [NULL, NULL, 0, NULL, 1, 0, NULL]);
    }
}
