//! Columns of few different values: each row holds the number of a label.
//!
//! The Parquet writer would hash the value of every row again to build the dictionary we already have (apache/arrow-rs#10465, open): given
//! finished batches it takes three quarters of the time that all of choosing, sorting, building and writing takes this way
//! (`cargo xtask bench agent`). So these column chunks are put together here, in the plainest form there is: a
//! dictionary page, and data pages of definition levels and dictionary indices, both run-length or bit-packed (<https://parquet.apache.org/docs/file-format/data-pages/encodings/>).

use std::ops::Range;

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

/// Rows in a data page.
const PAGE_ROWS: usize = 128 * 1024;
/// Rows up to which values are written one after the other: a dictionary's page has 15 bytes in front of it, and compression adds some to both.
pub(crate) const FEW_ROWS: usize = 4;
/// Values in one bit-packed run: as many as a header of one byte tells.
const RUN: usize = 63 * 8;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
    values: Vec<Label>,
    /// By row. Shorter than `rows` only while every row has the same.
    codes: Vec<u32>,
    rows: usize,
    text_bytes: usize,
}

/// Code of a row without a value.
pub(crate) const NULL: u32 = u32::MAX;

impl Labels {
    /// Adds a label; returns its code.
    pub(crate) fn label(&mut self, value: Label) -> u32 {
        self.text_bytes += if let Label::Text(text) = &value { text.len() + 4 } else { 8 };
        self.values.push(value);
        u32::try_from(self.values.len() - 1).unwrap_or(NULL)
    }

    /// Gives the next row the label with this code, or [`NULL`].
    #[inline]
    pub(crate) fn push(&mut self, code: u32) {
        self.codes.push(code);
        self.rows += 1;
    }

    /// `rows` rows of the same value.
    #[must_use]
    pub(crate) fn same(value: Option<Label>, rows: usize) -> Self {
        let mut labels = Self::default();
        if let Some(value) = value {
            labels.label(value);
        }
        Self { rows, ..labels }
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
        self.values.is_empty() || (!self.codes.is_empty() && self.codes.iter().all(|c| *c == NULL))
    }

    /// Whether a dictionary saves nothing.
    fn is_plain(&self) -> bool {
        self.values.is_empty() || self.rows <= FEW_ROWS
    }

    /// Bytes of the dictionary.
    #[must_use]
    pub(crate) fn dictionary_bytes(&self) -> usize {
        self.text_bytes
    }

    /// The least and the greatest label that rows of a page have. A label may be one that no row has.
    fn bounds(&self, page: Range<usize>) -> Option<Bounds<'_>> {
        if self.codes.is_empty() {
            return self.values.first().map(|only| (only, only));
        }
        let mut used = vec![false; self.values.len()];
        for code in self.codes[page].iter().filter(|c| **c != NULL) {
            used[*code as usize] = true;
        }
        let labels = self.values.iter().zip(used).filter_map(|(label, used)| used.then_some(label));
        labels.fold(None, |all, label| Some(wider(all, (label, label))))
    }

    fn page_codes(&self, page: std::ops::Range<usize>) -> Codes<'_> {
        if self.codes.is_empty() {
            let code = if self.values.is_empty() { NULL } else { 0 };
            return Codes::Same(code, page.len());
        }
        let codes = &self.codes[page];
        if codes.iter().all(|c| *c == codes[0]) { Codes::Same(codes[0], codes.len()) } else { Codes::Each(codes) }
    }
}

/// Least and greatest label.
type Bounds<'a> = (&'a Label, &'a Label);

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

fn varint(out: &mut Vec<u8>, mut n: usize) {
    while n >= 0x80 {
        out.push(n.to_le_bytes()[0] | 0x80);
        n >>= 7;
    }
    out.push(n.to_le_bytes()[0]);
}

/// One run of `count` equal values.
fn run(out: &mut Vec<u8>, value: u32, count: usize, bits: usize) {
    varint(out, count << 1);
    out.extend_from_slice(&value.to_le_bytes()[..bits.div_ceil(8)]);
}

/// Bit-packed runs; the last group of eight is filled up with zeros.
fn packed(out: &mut Vec<u8>, values: impl ExactSizeIterator<Item = u32>, bits: usize) {
    let mut left = values.len();
    let mut word = 0u64;
    let mut filled = 0;
    let mut in_run = RUN;
    for value in values {
        if in_run == RUN {
            varint(out, left.min(RUN).div_ceil(8) << 1 | 1);
            left -= left.min(RUN);
            in_run = 0;
        }
        in_run += 1;
        word |= u64::from(value) << filled;
        filled += bits;
        while filled >= 8 {
            out.push(word.to_le_bytes()[0]);
            word >>= 8;
            filled -= 8;
        }
    }
    let missing = in_run.next_multiple_of(8) - in_run;
    filled += missing * bits;
    while filled > 0 {
        out.push(word.to_le_bytes()[0]);
        word >>= 8;
        filled = filled.saturating_sub(8);
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
            Codes::Each(codes) if nulls > 0 => packed(&mut out, codes.iter().map(|c| u32::from(*c != NULL)), 1),
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
        Codes::Each(codes) if nulls == 0 => packed(&mut out, codes.iter().copied(), bits),
        Codes::Each(codes) => {
            let present: Vec<u32> = codes.iter().copied().filter(|c| *c != NULL).collect();
            packed(&mut out, present.into_iter(), bits);
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

    fn compress(&mut self, body: Vec<u8>) -> Result<Vec<u8>, ParquetError> {
        match &mut self.zstd {
            Some(zstd) => Ok(zstd.compress(&body)?),
            None => Ok(body),
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
    let plain = dictionary(&labels.values);
    let size = plain.len();
    let num_values = u32::try_from(labels.values.len()).unwrap_or(NULL);
    let buf = compressor.compress(plain)?.into();
    let first = write(Page::DictionaryPage { buf, num_values, encoding: Encoding::PLAIN, is_sorted: false }, size)?;
    let mut book = PageBook::new(column, labels);
    for start in (0..labels.rows).step_by(PAGE_ROWS) {
        let rows = start..(start + PAGE_ROWS).min(labels.rows);
        let (page, nulls) = body(&labels.page_codes(rows.clone()), optional, bits);
        let size = page.len();
        let spec = write(data_page(compressor.compress(page)?.into(), rows.len(), Encoding::RLE_DICTIONARY), size)?;
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
    let each = codes.iter().filter_map(|code| labels.values.get(code as usize));
    for value in each {
        plain_into(&mut page, value);
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
        let (min, max) = of_page.map_or_else(Default::default, |(a, b)| (plain_value(a), plain_value(b)));
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

/// A value in PLAIN encoding, without the length in front of text.
fn plain_value(value: &Label) -> Vec<u8> {
    match value {
        Label::Int(n) => n.to_le_bytes().to_vec(),
        Label::Long(n) => n.to_le_bytes().to_vec(),
        Label::Text(text) => text.as_bytes().to_vec(),
    }
}

/// A value in PLAIN encoding, behind others.
fn plain_into(out: &mut Vec<u8>, value: &Label) {
    if let Label::Text(text) = value {
        out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(NULL).to_le_bytes());
    }
    out.extend_from_slice(&plain_value(value));
}

fn dictionary(values: &[Label]) -> Vec<u8> {
    let mut out = Vec::new();
    for value in values {
        plain_into(&mut out, value);
    }
    out
}

/// None of a column without values: there is nothing that bounds could be of.
fn statistics(of: Type, bounds: Option<Bounds<'_>>, nulls: u64) -> Statistics {
    let (min, max) = bounds.unzip();
    let nulls = Some(nulls);
    let int = |l: Option<&Label>| if let Some(Label::Int(n)) = l { Some(*n) } else { None };
    let long = |l: Option<&Label>| if let Some(Label::Long(n)) = l { Some(*n) } else { None };
    let text = |l: Option<&Label>| if let Some(Label::Text(t)) = l { Some(ByteArray::from(t.as_str())) } else { None };
    match of {
        Type::INT32 => Statistics::int32(int(min), int(max), None, nulls, false),
        Type::INT64 => Statistics::int64(long(min), long(max), None, nulls, false),
        _ => Statistics::byte_array(text(min), text(max), None, nulls, false),
    }
}

#[cfg(test)]
mod tests;
