//! Columns of 16-bit numbers.

use hashbrown::HashMap;

use super::labels::{Label, Labels, NULL};

/// Labels that are 16-bit numbers.
pub(super) struct Numbers {
    pub(super) labels: Labels,
    codes: Codes,
}

/// Codes of 16-bit numbers.
enum Codes {
    /// An array of 256 KiB costs more than it saves.
    Few(HashMap<u16, u32>),
    /// Looked up in an array.
    Many(Box<[u32]>),
}

/// Rows above which the array is worth it.
const FEW_ROWS: usize = 4_096;

impl Numbers {
    pub(super) fn new(rows: usize) -> Self {
        let codes = if rows <= FEW_ROWS {
            Codes::Few(HashMap::new())
        } else {
            Codes::Many(vec![NULL; 1 << 16].into_boxed_slice())
        };
        Self { labels: Labels::default(), codes }
    }

    #[inline]
    pub(super) fn push(&mut self, number: Option<u16>) {
        let Some(number) = number else { return self.labels.push(NULL) };
        let code = match &mut self.codes {
            Codes::Few(codes) => codes.entry(number).or_insert(NULL),
            Codes::Many(codes) => &mut codes[usize::from(number)],
        };
        if *code == NULL {
            *code = self.labels.label(Label::Int(i32::from(number)));
        }
        self.labels.push(*code);
    }
}
