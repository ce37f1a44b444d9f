//! Columns of numbers that are looked up in an array: those of 16 bits, and seconds within a window.

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

/// Rows above which the array is worth it.
const FEW_ROWS: usize = 4_096;

impl Numbers {
    pub(super) fn new(rows: usize) -> Self {
        let many = || vec![NULL; ALL].into_boxed_slice().try_into().ok().map(Codes::Many);
        let codes = if rows <= FEW_ROWS { None } else { many() };
        Self { labels: Labels::default(), codes: codes.unwrap_or_else(|| Codes::Few(HashMap::new())) }
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
            *code = self.labels.label(&Label::Int(i32::from(number)));
        }
        *code
    }

    /// Appends the numbers of a batch.
    #[inline]
    pub(super) fn extend(&mut self, flows: &[Flow], number: impl Fn(&Flow) -> Option<u16>) {
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

/// Labels that are times in seconds, most of them within a window.
pub(super) struct Seconds {
    pub(super) labels: Labels,
    /// The beginning of the window.
    from: i64,
    /// By second of the window.
    codes: Vec<u32>,
    /// Of those that are far from it: after a step of the wall clock.
    far: HashMap<i64, u32>,
}

/// Seconds from the window's beginning that have a place in the array: a day.
const NEAR_SECS: usize = 86_400;

impl Seconds {
    pub(super) fn new(from: i64) -> Self {
        Self { labels: Labels::default(), from, codes: Vec::new(), far: HashMap::new() }
    }

    #[inline]
    pub(super) fn code(&mut self, secs: i64) -> u32 {
        let code = match usize::try_from(secs.wrapping_sub(self.from)) {
            Ok(at) if at < NEAR_SECS => {
                if at >= self.codes.len() {
                    self.codes.resize(at + 1, NULL);
                }
                &mut self.codes[at]
            }
            _ => self.far.entry(secs).or_insert(NULL),
        };
        if *code == NULL {
            *code = self.labels.label(&Label::Long(secs));
        }
        *code
    }

    pub(super) fn push(&mut self, secs: i64) {
        let code = self.code(secs);
        self.labels.push(code);
    }
}
