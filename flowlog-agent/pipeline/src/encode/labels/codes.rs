//! Which label each row has. As few bytes a row as tell the labels apart: columns pass through the processor's caches several times, and
//! their memory has to come from the system.

use std::ops::Range;

use super::NULL;

/// A code as it is kept.
pub(super) trait Code: Copy + Eq {
    /// That of a row without a value: [`super::NULL`], as far as it fits.
    const NULL: Self;
    /// The lower bits of a code: what is left of [`super::NULL`] is [`Self::NULL`].
    fn of(code: u32) -> Self;
    /// The code that it is; of [`Self::NULL`], some that no label has.
    fn wide(self) -> u32;
}

impl Code for u8 {
    const NULL: Self = Self::MAX;

    #[inline]
    fn of(code: u32) -> Self {
        code.to_le_bytes()[0]
    }

    #[inline]
    fn wide(self) -> u32 {
        u32::from(self)
    }
}

impl Code for u16 {
    const NULL: Self = Self::MAX;

    #[inline]
    fn of(code: u32) -> Self {
        let [low, high, ..] = code.to_le_bytes();
        Self::from_le_bytes([low, high])
    }

    #[inline]
    fn wide(self) -> u32 {
        u32::from(self)
    }
}

impl Code for u32 {
    const NULL: Self = NULL;

    #[inline]
    fn of(code: u32) -> Self {
        code
    }

    #[inline]
    fn wide(self) -> u32 {
        self
    }
}

/// The codes of rows.
#[derive(Debug)]
pub(super) enum Codes {
    Narrow(Vec<u8>),
    Medium(Vec<u16>),
    Wide(Vec<u32>),
}

/// The same of some rows.
#[derive(Clone, Copy)]
pub(super) enum SomeCodes<'a> {
    Narrow(&'a [u8]),
    Medium(&'a [u16]),
    Wide(&'a [u32]),
}

impl Default for Codes {
    fn default() -> Self {
        Self::Narrow(Vec::new())
    }
}

/// Labels that one byte tells apart, one of its values being that of no label; and two bytes.
const NARROW_MAX: usize = u8::MAX as usize;
const MEDIUM_MAX: usize = u16::MAX as usize;

/// The same codes with more bytes each, and room for so many.
fn widened<C: Code, W: Code>(codes: &[C], room: usize) -> Vec<W> {
    let mut wide = Vec::with_capacity(room.max(codes.len()));
    wide.extend(codes.iter().map(|code| if *code == C::NULL { W::NULL } else { W::of(code.wide()) }));
    wide
}

impl Codes {
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Narrow(codes) => codes.is_empty(),
            Self::Medium(codes) => codes.is_empty(),
            Self::Wide(codes) => codes.is_empty(),
        }
    }

    /// Makes room for codes of so many labels, and for so many rows if there are none yet.
    #[inline]
    pub(super) fn fit(&mut self, labels: usize, room: usize) {
        let fits = match self {
            Self::Narrow(codes) => labels <= NARROW_MAX && codes.capacity() > 0,
            Self::Medium(_) => labels <= MEDIUM_MAX,
            Self::Wide(_) => true,
        };
        if !fits {
            self.widen(labels, room);
        }
    }

    #[cold]
    fn widen(&mut self, labels: usize, room: usize) {
        *self = match self {
            Self::Narrow(codes) if labels <= NARROW_MAX => Self::Narrow(widened(codes, room)),
            Self::Narrow(codes) if labels <= MEDIUM_MAX => Self::Medium(widened(codes, room)),
            Self::Narrow(codes) => Self::Wide(widened(codes, room)),
            Self::Medium(codes) => Self::Wide(widened(codes, room)),
            Self::Wide(codes) => Self::Wide(std::mem::take(codes)),
        };
    }

    /// Appends codes that [`fit`](Self::fit).
    #[inline]
    pub(super) fn extend(&mut self, some: &[u32]) {
        match self {
            Self::Narrow(codes) => codes.extend(some.iter().map(|code| u8::of(*code))),
            Self::Medium(codes) => codes.extend(some.iter().map(|code| u16::of(*code))),
            Self::Wide(codes) => codes.extend_from_slice(some),
        }
    }

    /// Appends the same code until there are so many.
    pub(super) fn fill(&mut self, code: u32, rows: usize) {
        match self {
            Self::Narrow(codes) => codes.resize(rows, Code::of(code)),
            Self::Medium(codes) => codes.resize(rows, Code::of(code)),
            Self::Wide(codes) => codes.resize(rows, Code::of(code)),
        }
    }

    /// Those of some rows.
    pub(super) fn of(&self, rows: Range<usize>) -> SomeCodes<'_> {
        match self {
            Self::Narrow(codes) => SomeCodes::Narrow(&codes[rows]),
            Self::Medium(codes) => SomeCodes::Medium(&codes[rows]),
            Self::Wide(codes) => SomeCodes::Wide(&codes[rows]),
        }
    }
}

/// The one code that there is, if all are the same.
fn only<C: Code>(codes: &[C]) -> Option<u32> {
    let first = *codes.first()?;
    codes.iter().all(|code| *code == first).then(|| if first == C::NULL { NULL } else { first.wide() })
}

fn mark<C: Code>(codes: &[C], used: &mut [bool]) {
    for code in codes {
        // That of no label is past all of them.
        if let Some(used) = used.get_mut(code.wide() as usize) {
            *used = true;
        }
    }
}

/// Labels up to which it is faster to look for each than to note that of every row: mostly, each is soon found.
const FEW_LABELS: usize = 16;

impl SomeCodes<'_> {
    /// The one code that all rows have.
    pub(super) fn only(self) -> Option<u32> {
        match self {
            Self::Narrow(codes) => only(codes),
            Self::Medium(codes) => only(codes),
            Self::Wide(codes) => only(codes),
        }
    }

    /// By label, of which there are so many, whether a row has it.
    pub(super) fn used(self, labels: usize) -> Vec<bool> {
        if let Self::Narrow(codes) = self
            && labels <= FEW_LABELS
        {
            return (0..u8::MAX).take(labels).map(|label| codes.contains(&label)).collect();
        }
        let mut used = vec![false; labels];
        match self {
            Self::Narrow(codes) => mark(codes, &mut used),
            Self::Medium(codes) => mark(codes, &mut used),
            Self::Wide(codes) => mark(codes, &mut used),
        }
        used
    }

    /// Codes by row.
    pub(super) fn to_vec(self) -> Vec<u32> {
        match self {
            Self::Narrow(codes) => widened(codes, 0),
            Self::Medium(codes) => widened(codes, 0),
            Self::Wide(codes) => codes.to_vec(),
        }
    }
}
