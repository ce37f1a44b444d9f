//! Columns that few rows have a value in: rows without one cost nothing until the first that has.

use std::hash::Hash;

use flowlog_model::rule::Direction;

use super::{
    Names, ObjectInfo,
    address::AddressColumn,
    batch::BATCH,
    labels::{Label, Labels, NULL},
    values::{Found, Known},
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

/// Labels of a set that is known, of which few rows have one: in the dictionary are those that a row has.
pub(super) struct SparseNames {
    labels: Labels,
    names: &'static [&'static str],
    /// By place of the name.
    codes: [u32; NAMES_MAX],
}

/// Names that such a column may have.
const NAMES_MAX: usize = 4;
const _: () = assert!(FlowState::NAMES.len() <= NAMES_MAX && EndCause::NAMES.len() <= NAMES_MAX);

impl SparseNames {
    fn new(names: &'static [&'static str], rows: usize) -> Self {
        Self { labels: Labels::with_room(rows), names, codes: [NULL; NAMES_MAX] }
    }

    #[inline]
    fn code(&mut self, place: usize) -> u32 {
        match self.codes[place] {
            NULL => self.new_code(place),
            code => code,
        }
    }

    #[cold]
    fn new_code(&mut self, place: usize) -> u32 {
        self.codes[place] = self.labels.label(&Label::Text(self.names[place].to_owned()));
        self.codes[place]
    }

    /// The column, `rows` long.
    pub(super) fn take(&mut self, rows: usize) -> Labels {
        self.labels.fill(rows);
        std::mem::take(&mut self.labels)
    }
}

/// What flows show of their connections.
pub(super) struct ConnectionColumns {
    pub(super) initiator: Known,
    pub(super) state: SparseNames,
    pub(super) end: SparseNames,
    pub(super) rtt_us: Sparse<u32>,
}

impl ConnectionColumns {
    pub(super) fn new(rows: usize) -> Self {
        let names = |names| SparseNames::new(names, rows);
        let (state, end) = (names(&FlowState::NAMES), names(&EndCause::NAMES));
        Self { initiator: Known::bools(rows), state, end, rtt_us: Sparse::default() }
    }

    /// Rows of a batch, from this number on.
    pub(super) fn extend(&mut self, from: usize, connections: impl Iterator<Item = Connection>) {
        let mut found = [[NULL; BATCH]; 3];
        let [initiators, states, ends] = &mut found;
        let mut rows = 0;
        for connection in connections {
            let Connection { initiator, state, end, rtt_us } = connection;
            if let Some(initiator) = initiator {
                initiators[rows] = u32::from(initiator);
            }
            if let Some(state) = state {
                states[rows] = self.state.code(state as usize);
            }
            if let Some(end) = end {
                ends[rows] = self.end.code(end as usize);
            }
            if let Some(rtt_us) = rtt_us {
                self.rtt_us.push(from + rows, rtt_us, |us| Some(Label::Long(i64::from(*us))));
            }
            rows += 1;
        }
        let columns = [&mut self.initiator.0, &mut self.state.labels, &mut self.end.labels];
        for (labels, codes) in columns.into_iter().zip(&found) {
            labels.extend(&codes[..rows]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
