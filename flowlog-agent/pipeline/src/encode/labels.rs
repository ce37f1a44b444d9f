//! Columns of few different values: each row holds the number of a label.
//!
//! The Parquet writer would hash the value of every row again to build the dictionary we already have (apache/arrow-rs#10465, open): given
//! finished batches it takes half as long again as all of choosing, sorting, building and writing takes this way
//! (`cargo xtask bench agent`). So these column chunks are put together here, in the plainest form there is: a
//! dictionary page, and data pages of definition levels and dictionary indices, both run-length or bit-packed (<https://parquet.apache.org/docs/file-format/data-pages/encodings/>).

mod codes;
mod vocabulary;

use std::ops::Range;

use parquet::{basic::Encoding, errors::ParquetError, schema::types::ColumnDescPtr};

pub(crate) use self::vocabulary::LabelRef;
use self::{
    codes::{Code, Codes, SomeCodes},
    vocabulary::Vocabulary,
};
use super::{
    chunk::{Bounds, Chunk, Compressor, PAGE_ROWS, PageBody, Pages, Says, levels, pages, same_levels},
    pack::{pack, packed, run},
};

/// Rows up to which values are written one after the other: a dictionary's page has 15 bytes in front of it, and compression adds some to both.
pub(crate) const FEW_ROWS: usize = 4;

/// Rows in a data page of a column of many different counts. More and more turn up, so pages have ever wider codes: what the first ones save is more
/// than what pages cost.
const PAGE_ROWS_OF_COUNTS: usize = 20_000;
const MANY_COUNTS: usize = 4_096;

/// One of the values that a column has.
#[derive(Clone, Debug)]
pub(crate) enum Label {
    /// Of a column of Parquet's type `BOOLEAN`, which knows no dictionary.
    Bool(bool),
    /// Of a column of Parquet's type `INT32`.
    Int(i32),
    /// Of a column of Parquet's type `INT64`.
    Long(i64),
    /// Of a column of Parquet's type `BYTE_ARRAY`, in UTF-8.
    Text(String),
}

/// The labels of one column and which of them each row has.
#[derive(Debug, Default)]
pub(crate) struct Labels {
    values: Vocabulary,
    /// By row; empty while every row has the same.
    codes: Codes,
    /// The code of every row, while that is the same.
    same: u32,
    rows: usize,
    /// How many rows there will be, as far as that is known: a column that grows as it is filled is moved about.
    room: usize,
}

/// Code of a row without a value.
pub(crate) const NULL: u32 = u32::MAX;

impl Labels {
    /// No rows yet, of so many.
    #[must_use]
    pub(crate) fn with_room(room: usize) -> Self {
        Self { room, ..Self::default() }
    }

    /// Adds a label; returns its code.
    pub(crate) fn label(&mut self, value: &Label) -> u32 {
        self.values.add(value);
        self.last_code()
    }

    /// Adds what `write` appends, a text in UTF-8; returns its code.
    pub(crate) fn text(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> u32 {
        self.values.add_text(write);
        self.last_code()
    }

    fn last_code(&self) -> u32 {
        u32::try_from(self.values.len() - 1).unwrap_or(NULL)
    }

    /// Gives the next row the label with this code, or [`NULL`].
    #[inline]
    pub(crate) fn push(&mut self, code: u32) {
        self.extend(&[code]);
    }

    /// The same for several rows.
    #[inline]
    pub(crate) fn extend(&mut self, codes: &[u32]) {
        let Some(first) = codes.first() else { return };
        if self.rows == 0 {
            self.same = *first;
        }
        if !self.codes.is_empty() || codes.iter().any(|code| *code != self.same) {
            self.keep_each();
            self.codes.extend(codes);
        }
        self.rows += codes.len();
    }

    /// From now on rows differ.
    #[inline]
    fn keep_each(&mut self) {
        self.codes.fit(self.values.len(), self.room);
        if self.codes.is_empty() {
            self.codes.fill(self.same, self.rows);
        }
    }

    /// Gives several rows the same label.
    pub(crate) fn repeat(&mut self, code: u32, rows: usize) {
        if rows == 0 {
            return;
        }
        if self.rows == 0 {
            self.same = code;
        }
        if !self.codes.is_empty() || code != self.same {
            self.keep_each();
            self.codes.fill(code, self.rows + rows);
        }
        self.rows += rows;
    }

    /// No value for the rows up to this number.
    pub(crate) fn fill(&mut self, rows: usize) {
        self.repeat(NULL, rows.saturating_sub(self.rows));
    }

    /// `rows` rows of the same value.
    #[must_use]
    pub(crate) fn same(value: Option<Label>, rows: usize) -> Self {
        let mut labels = Self { same: NULL, rows, ..Self::default() };
        if let Some(value) = value {
            labels.same = labels.label(&value);
        }
        labels
    }

    /// How many rows there are so far.
    #[must_use]
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// The code of each row; none while every row has the same.
    #[cfg(test)]
    pub(crate) fn codes(&self) -> Vec<u32> {
        self.codes.of(0..if self.codes.is_empty() { 0 } else { self.rows }).to_vec()
    }

    /// Whether no row has a value.
    pub(super) fn is_empty(&self) -> bool {
        match self.page_codes(0..self.rows) {
            PageCodes::Same(code, _) => code as usize >= self.values.len(),
            PageCodes::Each(_) => false,
        }
    }

    /// Whether a dictionary saves nothing.
    fn is_plain(&self) -> bool {
        self.values.len() == 0 || self.rows <= FEW_ROWS
    }

    /// Rows in a data page.
    fn page_rows(&self) -> usize {
        match &self.values {
            Vocabulary::Longs(values) if values.len() >= MANY_COUNTS => PAGE_ROWS_OF_COUNTS,
            _ => PAGE_ROWS,
        }
    }

    /// Bytes of the dictionary.
    #[must_use]
    pub(crate) fn dictionary_bytes(&self) -> usize {
        self.values.bytes()
    }

    /// The least and the greatest label that rows of a page have, and the greatest code. A label may be one that no row has.
    fn used(&self, page: &PageCodes<'_>) -> (Option<Bounds<'_>>, u32) {
        match page {
            PageCodes::Same(NULL, _) => (None, 0),
            PageCodes::Same(code, _) => (self.values.get(*code as usize).map(|only| (only, only)), *code),
            PageCodes::Each(codes) => {
                let used = codes.used(self.values.len());
                let greatest = used.iter().rposition(|used| *used).unwrap_or_default();
                (self.values.bounds(&used), u32::try_from(greatest).unwrap_or(NULL))
            }
        }
    }

    fn page_codes(&self, page: Range<usize>) -> PageCodes<'_> {
        if self.codes.is_empty() {
            return PageCodes::Same(self.same, page.len());
        }
        let rows = page.len();
        let codes = self.codes.of(page);
        codes.only().map_or(PageCodes::Each(codes), |code| PageCodes::Same(code, rows))
    }
}

/// The codes of one page.
enum PageCodes<'a> {
    Same(u32, usize),
    Each(SomeCodes<'a>),
}

/// How the codes of those rows are written that have a value.
#[derive(Clone, Copy)]
enum Written {
    /// As indices into a dictionary, of so many bits each.
    Indices(usize),
    /// They are the values, false and true.
    Bits,
}

impl Written {
    fn write<C: Code>(self, out: &mut Vec<u8>, codes: &[C]) {
        match self {
            Self::Indices(bits) => {
                out.push(u8::try_from(bits).expect("codes have 32 bits"));
                packed(out, codes, bits, C::wide);
            }
            Self::Bits => pack(out, codes, 1, codes.len().div_ceil(8), |code| u64::from(code.wide())),
        }
    }
}

/// A data page's body, and how many of its rows are null.
fn body(codes: &PageCodes<'_>, optional: bool, written: Written) -> (Vec<u8>, usize) {
    match *codes {
        PageCodes::Same(code, rows) => {
            let mut out = Vec::new();
            let has_value = code != NULL;
            if optional {
                same_levels(&mut out, has_value, rows);
            }
            match written {
                Written::Indices(bits) => {
                    out.push(u8::try_from(bits).expect("codes have 32 bits"));
                    if has_value {
                        run(&mut out, code, rows, bits);
                    }
                }
                Written::Bits => written.write(&mut out, &vec![u8::of(code); if has_value { rows } else { 0 }]),
            }
            (out, if has_value { 0 } else { rows })
        }
        PageCodes::Each(SomeCodes::Narrow(codes)) => body_of(codes, optional, written),
        PageCodes::Each(SomeCodes::Medium(codes)) => body_of(codes, optional, written),
        PageCodes::Each(SomeCodes::Wide(codes)) => body_of(codes, optional, written),
    }
}

fn body_of<C: Code>(codes: &[C], optional: bool, written: Written) -> (Vec<u8>, usize) {
    let nulls = codes.iter().filter(|code| **code == C::NULL).count();
    let mut out = Vec::new();
    match (optional, nulls) {
        (false, _) => {}
        (true, 0) => same_levels(&mut out, true, codes.len()),
        (true, _) => levels(&mut out, |out| packed(out, codes, 1, |code| u32::from(code != C::NULL))),
    }
    if nulls == 0 {
        written.write(&mut out, codes);
    } else {
        let present: Vec<C> = codes.iter().copied().filter(|code| *code != C::NULL).collect();
        written.write(&mut out, &present);
    }
    (out, nulls)
}

/// A whole column chunk, to be appended to a row group.
pub(crate) fn chunk(
    column: &ColumnDescPtr,
    labels: &Labels,
    compressor: &mut Compressor,
    says: Says,
) -> Result<Chunk, ParquetError> {
    let has_dictionary = !matches!(labels.values, Vocabulary::Bools(_));
    if has_dictionary && labels.is_plain() {
        return plain_chunk(column, labels, says);
    }
    let optional = column.max_def_level() > 0;
    let mut out = Pages::new(column, Some(compressor));
    if has_dictionary {
        out.dictionary(labels.values.plain(), labels.values.len())?;
    }
    for page in pages(labels.rows, labels.page_rows()) {
        let codes = labels.page_codes(page.clone());
        let (bounds, greatest) = labels.used(&codes);
        // A page's codes are as wide as they have to be: labels have them in the order in which they came.
        let (written, encoding) = if has_dictionary {
            (Written::Indices(greatest.bit_width() as usize), Encoding::RLE_DICTIONARY)
        } else {
            (Written::Bits, Encoding::PLAIN)
        };
        let (bytes, nulls) = body(&codes, optional, written);
        out.page(PageBody { bytes, encoding, rows: page.len(), nulls, bounds })?;
    }
    out.close(says)
}

/// The same of few rows, or of rows without any value: one page that is neither a dictionary's nor compressed. Each of the two would
/// cost more than it saves, and 32 of the 42 columns of a window without traffic have no value.
fn plain_chunk(column: &ColumnDescPtr, labels: &Labels, says: Says) -> Result<Chunk, ParquetError> {
    let codes = labels.page_codes(0..labels.rows);
    let each = match codes {
        PageCodes::Same(NULL, _) => Vec::new(),
        PageCodes::Same(code, rows) => vec![code; rows],
        PageCodes::Each(codes) => codes.to_vec(),
    };
    let nulls = labels.rows - each.iter().filter(|code| **code != NULL).count();
    let mut bytes = Vec::new();
    if column.max_def_level() > 0 {
        if nulls == 0 || nulls == labels.rows {
            same_levels(&mut bytes, nulls == 0, labels.rows);
        } else {
            levels(&mut bytes, |out| packed(out, &each, 1, |code| u32::from(code != NULL)));
        }
    }
    let values = each.iter().filter_map(|code| labels.values.get(*code as usize));
    values.for_each(|value| value.plain_into(&mut bytes));
    let mut out = Pages::new(column, None);
    let (bounds, _) = labels.used(&codes);
    out.page(PageBody { bytes, encoding: Encoding::PLAIN, rows: labels.rows, nulls, bounds })?;
    out.close(says)
}

#[cfg(test)]
mod tests;
