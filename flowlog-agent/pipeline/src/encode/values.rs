//! The values of a column while its rows are built.

use std::hash::Hash;

use hashbrown::{HashMap, hash_map::Entry};

use super::labels::{Label, Labels, NULL};

/// The values of one column in one row group.
pub(crate) enum Column {
    Labels(Labels),
    /// Many, and none missing.
    Longs(Vec<i64>),
    Bools(Bools),
}

impl Column {
    /// Whether no row has a value.
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Labels(labels) => labels.is_empty(),
            Self::Longs(_) => false,
            Self::Bools(bools) => bools.values.is_empty(),
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
    pub(super) fn new(values: &[&str]) -> Self {
        let mut labels = Labels::default();
        for value in values {
            labels.label(&Label::Text((*value).to_owned()));
        }
        Self(labels)
    }
}

/// Whether or not, or null: a column of Parquet's type `BOOLEAN`, which knows no dictionary.
#[derive(Default)]
pub(crate) struct Bools {
    /// Those that are not null.
    pub(super) values: Vec<bool>,
    /// By row: 1 where there is a value.
    pub(super) levels: Vec<i16>,
}

impl Bools {
    /// Gives the next row a value.
    #[inline]
    pub(super) fn push(&mut self, value: Option<bool>) {
        self.levels.push(i16::from(value.is_some()));
        self.values.extend(value);
    }

    /// How many rows there are so far.
    #[must_use]
    pub(super) fn rows(&self) -> usize {
        self.levels.len()
    }
}
