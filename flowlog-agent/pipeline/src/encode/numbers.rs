//! Columns of numbers that are looked up in an array: those of 16 bits, and those that mostly are near some number.

use hashbrown::HashMap;

use super::{
    batch::BATCH,
    labels::{Label, Labels, NULL},
};
use crate::window::Flow;

/// Labels that are 16-bit numbers.
pub(super) struct Numbers {
    pub(super) labels: Labels,
    codes: Codes,
}

/// As many numbers as 16 bits tell apart.
const ALL: usize = 1 << 16;

/// Codes of 16-bit numbers.
enum Codes {
    /// An array of 256 KiB costs more than it saves.
    Few(HashMap<u16, u32>),
    /// Looked up in an array.
    Many(Box<[u32; ALL]>),
}

/// Out of the way of what is there for nearly all rows.
#[cold]
fn new_label(labels: &mut Labels, label: &Label) -> u32 {
    labels.label(label)
}

/// Rows above which the array is worth it.
const FEW_ROWS: usize = 4_096;

impl Numbers {
    pub(super) fn new(rows: usize) -> Self {
        let many = || vec![NULL; ALL].into_boxed_slice().try_into().ok().map(Codes::Many);
        let codes = if rows <= FEW_ROWS { None } else { many() };
        Self { labels: Labels::with_room(rows), codes: codes.unwrap_or_else(|| Codes::Few(HashMap::new())) }
    }

    /// The code of a number; of none, [`NULL`].
    #[inline]
    pub(super) fn code(&mut self, number: Option<u16>) -> u32 {
        let Some(number) = number else { return NULL };
        let code = match &mut self.codes {
            Codes::Few(codes) => codes.entry(number).or_insert(NULL),
            Codes::Many(codes) => &mut codes[usize::from(number)],
        };
        if *code == NULL {
            *code = new_label(&mut self.labels, &Label::Int(i32::from(number)));
        }
        *code
    }

    /// Appends the numbers of a batch.
    #[inline]
    pub(super) fn extend(&mut self, flows: &[Flow], number: impl Fn(&Flow) -> Option<u16>) {
        // Of what few flows have, mostly none.
        if flows.iter().all(|flow| number(flow).is_none()) {
            return self.labels.repeat(NULL, flows.len());
        }
        let mut found = [0; BATCH];
        for (found, flow) in found.iter_mut().zip(flows) {
            *found = self.code(number(flow));
        }
        self.labels.extend(&found[..flows.len()]);
    }

    #[inline]
    pub(super) fn push(&mut self, number: Option<u16>) {
        let code = self.code(number);
        self.labels.push(code);
    }
}

/// Labels that are numbers, most of them a little above some number: seconds of a window, counts.
pub(super) struct NearNumbers {
    pub(super) labels: Labels,
    from: i64,
    /// By distance from there.
    codes: Vec<u32>,
    /// So many have a place in the array.
    near: usize,
    /// Of those that are far from it.
    far: HashMap<i64, u32>,
}

/// As many seconds of a window have a place in the array: a day.
const NEAR_SECS: usize = 86_400;
/// Up to so many packets have one, and no more than there are rows.
const NEAR_COUNT: usize = 1 << 16;

impl NearNumbers {
    /// Seconds: what is far from the window's beginning is so after a step of the wall clock.
    pub(super) fn seconds(from: i64, rows: usize) -> Self {
        Self { labels: Labels::with_room(rows), from, codes: Vec::new(), near: NEAR_SECS, far: HashMap::new() }
    }

    pub(super) fn counts(rows: usize) -> Self {
        Self { near: NEAR_COUNT.min(rows), ..Self::seconds(0, rows) }
    }

    #[inline]
    pub(super) fn code(&mut self, number: i64) -> u32 {
        let code = match usize::try_from(number.wrapping_sub(self.from)) {
            Ok(at) if at < self.near => {
                if at >= self.codes.len() {
                    self.codes.resize(at + 1, NULL);
                }
                &mut self.codes[at]
            }
            _ => self.far.entry(number).or_insert(NULL),
        };
        if *code == NULL {
            *code = new_label(&mut self.labels, &Label::Long(number));
        }
        *code
    }

    pub(super) fn push(&mut self, number: i64) {
        let code = self.code(number);
        self.labels.push(code);
    }

    /// The column, `rows` long.
    pub(super) fn take(&mut self, rows: usize) -> Labels {
        self.labels.fill(rows);
        std::mem::take(&mut self.labels)
    }
}
