//! The different values of a column, as its dictionary has them.

use std::borrow::Cow;

use super::{super::chunk::Bounds, Label};

/// The labels of a column, each with the number of its place. All are of one type.
#[derive(Debug, Default)]
pub(super) enum Vocabulary {
    #[default]
    Empty,
    Bools(Vec<bool>),
    Ints(Vec<i32>),
    Longs(Vec<i64>),
    /// As a dictionary's page has them, so that a text has no memory of its own: its length, then its bytes; and where each ends.
    Texts(Vec<u8>, Vec<u32>),
}

/// One label of a vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum LabelRef<'a> {
    Bool(bool),
    Int(i32),
    Long(i64),
    Text(&'a [u8]),
}

/// Bytes of the length in front of a text.
const LENGTH: usize = size_of::<u32>();

impl Vocabulary {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::Bools(values) => values.len(),
            Self::Ints(values) => values.len(),
            Self::Longs(values) => values.len(),
            Self::Texts(_, ends) => ends.len(),
        }
    }

    /// Adds a label. One of another type than those before is a bug, and is left out.
    pub(super) fn add(&mut self, label: &Label) {
        match label {
            Label::Bool(value) => {
                if self.len() == 0 {
                    *self = Self::Bools(Vec::new());
                }
                if let Self::Bools(values) = self {
                    values.push(*value);
                }
            }
            Label::Int(value) => {
                if self.len() == 0 {
                    *self = Self::Ints(Vec::new());
                }
                if let Self::Ints(values) = self {
                    values.push(*value);
                }
            }
            Label::Long(value) => {
                if self.len() == 0 {
                    *self = Self::Longs(Vec::new());
                }
                if let Self::Longs(values) = self {
                    values.push(*value);
                }
            }
            Label::Text(text) => self.add_text(|out| out.extend_from_slice(text.as_bytes())),
        }
    }

    /// Adds what `write` appends, a text in UTF-8.
    pub(super) fn add_text(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if self.len() == 0 {
            *self = Self::Texts(Vec::new(), Vec::new());
        }
        if let Self::Texts(plain, ends) = self {
            let from = plain.len() + LENGTH;
            plain.extend_from_slice(&[0; LENGTH]);
            write(plain);
            let length = u32::try_from(plain.len() - from).unwrap_or(u32::MAX);
            plain[from - LENGTH..from].copy_from_slice(&length.to_le_bytes());
            ends.push(u32::try_from(plain.len()).expect("a dictionary has an end long before"));
        }
    }

    pub(super) fn get(&self, at: usize) -> Option<LabelRef<'_>> {
        match self {
            Self::Empty => None,
            Self::Bools(values) => values.get(at).copied().map(LabelRef::Bool),
            Self::Ints(values) => values.get(at).copied().map(LabelRef::Int),
            Self::Longs(values) => values.get(at).copied().map(LabelRef::Long),
            Self::Texts(plain, ends) => {
                let end = *ends.get(at)? as usize;
                let begin = at.checked_sub(1).map_or(0, |before| ends[before] as usize) + LENGTH;
                Some(LabelRef::Text(&plain[begin..end]))
            }
        }
    }

    /// Bytes of the dictionary.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::Bools(values) => values.len(),
            Self::Ints(values) => size_of_val(values.as_slice()),
            Self::Longs(values) => size_of_val(values.as_slice()),
            Self::Texts(plain, _) => plain.len(),
        }
    }

    /// The least and the greatest of those that are used.
    pub(super) fn bounds(&self, used: &[bool]) -> Option<Bounds<'_>> {
        fn of<T: Copy + Ord>(values: impl Iterator<Item = T>, used: &[bool]) -> Option<(T, T)> {
            let mut used = values.zip(used).filter_map(|(value, used)| used.then_some(value));
            let first = used.next()?;
            Some(used.fold((first, first), |(min, max), value| (min.min(value), max.max(value))))
        }
        match self {
            Self::Empty => None,
            Self::Bools(values) => of(values.iter().copied().map(LabelRef::Bool), used),
            Self::Ints(values) => of(values.iter().copied(), used).map(|(a, b)| (LabelRef::Int(a), LabelRef::Int(b))),
            Self::Longs(values) => {
                of(values.iter().copied(), used).map(|(a, b)| (LabelRef::Long(a), LabelRef::Long(b)))
            }
            Self::Texts(plain, ends) => {
                let texts = ends.iter().scan(0, |begin, end| {
                    Some(&plain[std::mem::replace(begin, *end as usize) + LENGTH..*end as usize])
                });
                of(texts, used).map(|(a, b)| (LabelRef::Text(a), LabelRef::Text(b)))
            }
        }
    }

    /// The dictionary's page.
    pub(super) fn plain(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Empty => Cow::Borrowed(&[]),
            Self::Bools(values) => values.iter().map(|value| u8::from(*value)).collect(),
            Self::Ints(values) => values.iter().flat_map(|n| n.to_le_bytes()).collect(),
            Self::Longs(values) => values.iter().flat_map(|n| n.to_le_bytes()).collect(),
            Self::Texts(plain, _) => Cow::Borrowed(plain),
        }
    }
}

impl LabelRef<'_> {
    /// In PLAIN encoding, without the length in front of text.
    pub(crate) fn plain(self) -> Vec<u8> {
        match self {
            Self::Bool(value) => vec![u8::from(value)],
            Self::Int(n) => n.to_le_bytes().to_vec(),
            Self::Long(n) => n.to_le_bytes().to_vec(),
            Self::Text(text) => text.to_vec(),
        }
    }

    /// In PLAIN encoding, behind others.
    pub(super) fn plain_into(self, out: &mut Vec<u8>) {
        if let Self::Text(text) = self {
            out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
        }
        out.extend_from_slice(&self.plain());
    }
}
