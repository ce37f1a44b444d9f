//! The values of a column while its rows are built.

use std::hash::Hash;

use hashbrown::{HashMap, hash_map::Entry};

use super::labels::{Label, Labels, NULL};

/// The values of one column in one row group.
pub(crate) enum Column {
    Labels(Labels),
    /// Many, and none missing.
    Longs(Vec<i64>),
}

impl Column {
    /// Whether no row has a value.
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Labels(labels) => labels.is_empty(),
            Self::Longs(_) => false,
        }
    }
}

/// Labels of a set that is found out on the way.
pub(super) struct Found<K> {
    pub(super) labels: Labels,
    codes: HashMap<K, u32>,
    last: Option<(K, u32)>,
}

impl<K> Default for Found<K> {
    fn default() -> Self {
        Self { labels: Labels::default(), codes: HashMap::new(), last: None }
    }
}

impl<K> Found<K> {
    /// For so many rows.
    pub(super) fn with_room(rows: usize) -> Self {
        Self { labels: Labels::with_room(rows), ..Self::default() }
    }
}

impl<K: Hash + Eq + Copy> Found<K> {
    #[inline]
    pub(super) fn push(&mut self, key: K, label: impl FnOnce(&K) -> Option<Label>) {
        let code = self.code(key, label);
        self.labels.push(code);
    }

    /// The code of a key. Most rows have that of the row before.
    #[inline]
    pub(super) fn code(&mut self, key: K, label: impl FnOnce(&K) -> Option<Label>) -> u32 {
        if let Some((last, code)) = self.last
            && last == key
        {
            return code;
        }
        let code = match self.codes.entry(key) {
            Entry::Occupied(e) => *e.get(),
            Entry::Vacant(e) => {
                let code = label(e.key()).map_or(NULL, |l| self.labels.label(&l));
                *e.insert(code)
            }
        };
        self.last = Some((key, code));
        code
    }
}

/// Labels of a set that is known: the code is the index.
pub(super) struct Known(pub(super) Labels);

impl Known {
    /// Names, for so many rows.
    pub(super) fn names(values: &[&str], rows: usize) -> Self {
        Self::of(values.iter().map(|value| Label::Text((*value).to_owned())), rows)
    }

    /// Whether or not: the code of `true` is 1.
    pub(super) fn bools(rows: usize) -> Self {
        Self::of([false, true].into_iter().map(Label::Bool), rows)
    }

    fn of(values: impl Iterator<Item = Label>, rows: usize) -> Self {
        let mut labels = Labels::with_room(rows);
        for value in values {
            labels.label(&value);
        }
        Self(labels)
    }

    /// The column, `rows` long.
    pub(super) fn take(&mut self, rows: usize) -> Labels {
        self.0.fill(rows);
        std::mem::take(&mut self.0)
    }
}
