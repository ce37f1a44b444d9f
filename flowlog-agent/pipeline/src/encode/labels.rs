//! Columns of few different values: each row holds the number of a label.
//!
//! The Parquet writer would hash the value of every row again to build the dictionary we already have (apache/arrow-rs#10465, open): given
//! finished batches it takes half as long again as all of choosing, sorting, building and writing takes this way
//! (`cargo xtask bench agent`). So these column chunks are put together here, in the plainest form there is: a
//! dictionary page, and data pages of definition levels and dictionary indices, both run-length or bit-packed (<https://parquet.apache.org/docs/file-format/data-pages/encodings/>).

mod pack;
mod vocabulary;

use std::{borrow::Cow, ops::Range};

use bytes::Bytes;
use parquet::{
    basic::{Compression, Encoding, Type},
    column::{
        page::{CompressedPage, Page, PageWriteSpec, PageWriter as _},
        writer::ColumnCloseResult,
    },
    data_type::ByteArray,
    errors::ParquetError,
    file::{
        metadata::{ColumnChunkMetaData, ColumnIndexBuilder, OffsetIndexBuilder},
        statistics::Statistics,
        writer::{SerializedPageWriter, TrackedWrite},
    },
    schema::types::ColumnDescPtr,
};

use self::{
    pack::{packed, packed_as, run},
    vocabulary::{LabelRef, Vocabulary},
};

/// Rows in a data page.
const PAGE_ROWS: usize = 128 * 1024;
/// Rows up to which values are written one after the other: a dictionary's page has 15 bytes in front of it, and compression adds some to both.
pub(crate) const FEW_ROWS: usize = 4;
/// One of the values that a column has.
#[derive(Clone, Debug)]
pub(crate) enum Label {
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
    codes: Vec<u32>,
    /// The code of every row, while that is the same.
    same: u32,
    rows: usize,
}

/// Code of a row without a value.
pub(crate) const NULL: u32 = u32::MAX;

impl Labels {
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
            if self.codes.is_empty() {
                self.codes.resize(self.rows, self.same);
            }
            self.codes.extend_from_slice(codes);
        }
        self.rows += codes.len();
    }

    /// No value for the rows up to this number.
    pub(crate) fn fill(&mut self, rows: usize) {
        if self.rows == 0 {
            self.same = NULL;
        }
        if self.codes.is_empty() && self.same != NULL && rows > self.rows {
            self.codes.resize(self.rows, self.same);
        }
        if !self.codes.is_empty() {
            self.codes.resize(rows.max(self.rows), NULL);
        }
        self.rows = self.rows.max(rows);
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
        self.codes.clone()
    }

    /// Whether no row has a value.
    pub(super) fn is_empty(&self) -> bool {
        if self.codes.is_empty() {
            self.same as usize >= self.values.len()
        } else {
            self.codes.iter().all(|c| *c == NULL)
        }
    }

    /// Whether a dictionary saves nothing.
    fn is_plain(&self) -> bool {
        self.values.len() == 0 || self.rows <= FEW_ROWS
    }

    /// Bytes of the dictionary.
    #[must_use]
    pub(crate) fn dictionary_bytes(&self) -> usize {
        self.values.bytes()
    }

    /// The least and the greatest label that rows of a page have. A label may be one that no row has.
    fn bounds(&self, page: Range<usize>) -> Option<Bounds<'_>> {
        if self.codes.is_empty() {
            return self.values.get(self.same as usize).map(|only| (only, only));
        }
        let mut used = vec![false; self.values.len()];
        for code in &self.codes[page] {
            // `NULL` is past all of them.
            if let Some(used) = used.get_mut(*code as usize) {
                *used = true;
            }
        }
        self.values.bounds(&used)
    }

    fn page_codes(&self, page: Range<usize>) -> Codes<'_> {
        if self.codes.is_empty() {
            return Codes::Same(self.same, page.len());
        }
        let codes = &self.codes[page];
        if codes.iter().all(|c| *c == codes[0]) { Codes::Same(codes[0], codes.len()) } else { Codes::Each(codes) }
    }
}

/// Least and greatest label.
type Bounds<'a> = (LabelRef<'a>, LabelRef<'a>);

/// The bounds of both.
fn wider<'a>(all: Option<Bounds<'a>>, (min, max): Bounds<'a>) -> Bounds<'a> {
    all.map_or((min, max), |(least, greatest)| (least.min(min), greatest.max(max)))
}

/// The codes of one page.
enum Codes<'a> {
    Same(u32, usize),
    Each(&'a [u32]),
}

impl Codes<'_> {
    fn iter(&self) -> impl Iterator<Item = u32> {
        let (same, each) = match self {
            Self::Same(code, rows) => (Some(std::iter::repeat_n(*code, *rows)), None),
            Self::Each(codes) => (None, Some(codes.iter().copied())),
        };
        same.into_iter().flatten().chain(each.into_iter().flatten())
    }
}

/// What a data page's body begins with: which rows have a value; and how many have none.
fn levels(codes: &Codes<'_>, optional: bool) -> (Vec<u8>, usize) {
    let mut out = Vec::new();
    let nulls = match codes {
        Codes::Same(code, rows) => usize::from(*code == NULL) * rows,
        Codes::Each(codes) => codes.iter().filter(|c| **c == NULL).count(),
    };
    if optional {
        out.extend_from_slice(&[0; 4]);
        match codes {
            Codes::Each(codes) if nulls > 0 => packed_as(&mut out, codes, 1, |c| u32::from(c != NULL)),
            Codes::Same(_, rows) => run(&mut out, u32::from(nulls == 0), *rows, 1),
            Codes::Each(codes) => run(&mut out, 1, codes.len(), 1),
        }
        let length = u32::try_from(out.len() - 4).expect("a page is small");
        out[..4].copy_from_slice(&length.to_le_bytes());
    }
    (out, nulls)
}

/// A data page's body, and how many of its rows are null.
fn body(codes: &Codes<'_>, optional: bool, bits: usize) -> (Vec<u8>, usize) {
    let (mut out, nulls) = levels(codes, optional);
    out.push(u8::try_from(bits).expect("codes have 32 bits"));
    match codes {
        Codes::Same(NULL, _) => {}
        Codes::Same(code, rows) => run(&mut out, *code, *rows, bits),
        Codes::Each(codes) if nulls == 0 => packed(&mut out, codes, bits),
        Codes::Each(codes) => {
            let present: Vec<u32> = codes.iter().copied().filter(|c| *c != NULL).collect();
            packed(&mut out, &present, bits);
        }
    }
    (out, nulls)
}

pub(crate) struct Compressor {
    codec: Compression,
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl Compressor {
    /// zstd with this level; 0: none.
    pub(crate) fn new(codec: Compression, zstd_level: i32) -> Result<Self, ParquetError> {
        let zstd = (zstd_level != 0).then(|| zstd::bulk::Compressor::new(zstd_level)).transpose()?;
        Ok(Self { codec, zstd })
    }

    fn compress(&mut self, body: Cow<'_, [u8]>) -> Result<Vec<u8>, ParquetError> {
        match &mut self.zstd {
            Some(zstd) => Ok(zstd.compress(&body)?),
            None => Ok(body.into_owned()),
        }
    }
}

/// What a chunk says besides its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Says {
    /// The least and the greatest value.
    pub(crate) bounds: bool,
    /// Where its pages are, and the bounds of each.
    pub(crate) pages: bool,
}

/// A whole column chunk, to be appended to a row group.
pub(crate) fn chunk(
    column: &ColumnDescPtr,
    labels: &Labels,
    compressor: &mut Compressor,
    says: Says,
) -> Result<(Bytes, ColumnCloseResult), ParquetError> {
    if labels.is_plain() {
        return plain_chunk(column, labels, says);
    }
    let mut sink = TrackedWrite::new(Vec::new());
    let mut pages = SerializedPageWriter::new(&mut sink);
    let optional = column.max_def_level() > 0;
    let bits = labels.values.len().saturating_sub(1).bit_width() as usize;
    let mut compressed = 0;
    let mut uncompressed = 0;
    let mut write = |page: Page, size: usize| {
        let spec = pages.write_page(CompressedPage::new(page, size))?;
        compressed += spec.bytes_written;
        uncompressed += spec.uncompressed_size as u64 + (spec.bytes_written - spec.compressed_size as u64);
        Ok::<_, ParquetError>(spec)
    };
    let plain = labels.values.plain();
    let size = plain.len();
    let num_values = u32::try_from(labels.values.len()).unwrap_or(NULL);
    let buf = compressor.compress(plain)?.into();
    let first = write(Page::DictionaryPage { buf, num_values, encoding: Encoding::PLAIN, is_sorted: false }, size)?;
    let mut book = PageBook::new(column, labels);
    for start in (0..labels.rows).step_by(PAGE_ROWS) {
        let rows = start..(start + PAGE_ROWS).min(labels.rows);
        let (page, nulls) = body(&labels.page_codes(rows.clone()), optional, bits);
        let size = page.len();
        let spec =
            write(data_page(compressor.compress(page.into())?.into(), rows.len(), Encoding::RLE_DICTIONARY), size)?;
        book.add(rows, &spec, nulls);
    }
    let size = Size { compressed, uncompressed, compression: compressor.codec, dictionary: Some(first.offset) };
    let close = book.close(&size, says)?;
    Ok((sink.into_inner()?.into(), close))
}

/// The same of few rows, or of rows without any value: one page that is neither a dictionary's nor compressed. Each of the two would
/// cost more than it saves, and 32 of the 42 columns of a window without traffic have no value.
fn plain_chunk(
    column: &ColumnDescPtr,
    labels: &Labels,
    says: Says,
) -> Result<(Bytes, ColumnCloseResult), ParquetError> {
    let mut sink = TrackedWrite::new(Vec::new());
    let mut pages = SerializedPageWriter::new(&mut sink);
    let codes = labels.page_codes(0..labels.rows);
    let (mut page, nulls) = levels(&codes, column.max_def_level() > 0);
    if labels.values.len() > 0 {
        let each = codes.iter().filter_map(|code| labels.values.get(code as usize));
        each.for_each(|value| value.plain_into(&mut page));
    }
    let size = page.len();
    let page = data_page(page.into(), labels.rows, Encoding::PLAIN);
    let spec = pages.write_page(CompressedPage::new(page, size))?;
    let mut book = PageBook::new(column, labels);
    book.add(0..labels.rows, &spec, nulls);
    let bytes = spec.bytes_written;
    let size =
        Size { compressed: bytes, uncompressed: bytes, compression: Compression::UNCOMPRESSED, dictionary: None };
    let close = book.close(&size, says)?;
    Ok((sink.into_inner()?.into(), close))
}

/// What a chunk takes, and how.
struct Size {
    compressed: u64,
    uncompressed: u64,
    compression: Compression,
    /// Where its dictionary is, if it has one.
    dictionary: Option<u64>,
}

/// What a chunk's metadata say of its data pages.
struct PageBook<'a> {
    column: &'a ColumnDescPtr,
    labels: &'a Labels,
    index: ColumnIndexBuilder,
    offsets: OffsetIndexBuilder,
    first_offset: Option<i64>,
    bounds: Option<Bounds<'a>>,
    nulls: u64,
}

impl<'a> PageBook<'a> {
    fn new(column: &'a ColumnDescPtr, labels: &'a Labels) -> Self {
        let (index, offsets) = (ColumnIndexBuilder::new(column.physical_type()), OffsetIndexBuilder::new());
        Self { column, labels, index, offsets, first_offset: None, bounds: None, nulls: 0 }
    }

    /// A page that has been written, with these rows.
    fn add(&mut self, rows: Range<usize>, spec: &PageWriteSpec, nulls: usize) {
        let offset = signed(spec.offset);
        self.first_offset.get_or_insert(offset);
        self.offsets.append_row_count(signed(rows.len() as u64));
        self.offsets.append_offset_and_size(offset, i32::try_from(spec.bytes_written).unwrap_or(i32::MAX));
        let of_page = self.labels.bounds(rows);
        let (min, max) = of_page.map_or_else(Default::default, |(a, b)| (a.plain(), b.plain()));
        self.index.append(of_page.is_none(), min, max, signed(nulls as u64), None);
        self.bounds = of_page.map(|of_page| wider(self.bounds, of_page)).or(self.bounds);
        self.nulls += nulls as u64;
    }

    fn close(self, size: &Size, says: Says) -> Result<ColumnCloseResult, ParquetError> {
        let rows = self.labels.rows as u64;
        let mut encodings = vec![Encoding::PLAIN, Encoding::RLE];
        encodings.extend(size.dictionary.map(|_| Encoding::RLE_DICTIONARY));
        let bounds = self.bounds.filter(|_| says.bounds);
        let metadata = ColumnChunkMetaData::builder(self.column.clone())
            .set_encodings(encodings)
            .set_compression(size.compression)
            .set_num_values(signed(rows))
            .set_total_compressed_size(signed(size.compressed))
            .set_total_uncompressed_size(signed(size.uncompressed))
            .set_dictionary_page_offset(size.dictionary.map(signed))
            .set_data_page_offset(self.first_offset.unwrap_or_default())
            .set_statistics(statistics(self.column.physical_type(), bounds, self.nulls))
            .build()?;
        Ok(ColumnCloseResult {
            bytes_written: size.compressed,
            rows_written: rows,
            metadata,
            bloom_filter: None,
            column_index: if says.pages { Some(self.index.build()?) } else { None },
            offset_index: says.pages.then(|| self.offsets.build()),
        })
    }
}

/// A page of values, or of indices into the dictionary.
fn data_page(buf: Bytes, rows: usize, encoding: Encoding) -> Page {
    Page::DataPage {
        buf,
        num_values: u32::try_from(rows).unwrap_or(NULL),
        encoding,
        def_level_encoding: Encoding::RLE,
        rep_level_encoding: Encoding::RLE,
        statistics: None,
    }
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// None of a column without values: there is nothing that bounds could be of.
fn statistics(of: Type, bounds: Option<Bounds<'_>>, nulls: u64) -> Statistics {
    let (min, max) = bounds.unzip();
    let nulls = Some(nulls);
    let int = |l| if let Some(LabelRef::Int(n)) = l { Some(n) } else { None };
    let long = |l| if let Some(LabelRef::Long(n)) = l { Some(n) } else { None };
    let text = |l| if let Some(LabelRef::Text(t)) = l { Some(ByteArray::from(t.to_vec())) } else { None };
    match of {
        Type::INT32 => Statistics::int32(int(min), int(max), None, nulls, false),
        Type::INT64 => Statistics::int64(long(min), long(max), None, nulls, false),
        _ => Statistics::byte_array(text(min), text(max), None, nulls, false),
    }
}

#[cfg(test)]
mod tests;
