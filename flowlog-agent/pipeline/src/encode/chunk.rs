//! A column chunk while its pages are written, and what its metadata say of them.

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

use super::{labels::LabelRef, pack::run};

/// Rows in a data page.
pub(super) const PAGE_ROWS: usize = 128 * 1024;

/// The rows of each page, which has so many at most.
pub(super) fn pages(rows: usize, rows_max: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows).step_by(rows_max).map(move |start| start..(start + rows_max).min(rows))
}

/// A column chunk, and what is known of it.
pub(super) type Chunk = (Bytes, ColumnCloseResult);

pub(super) struct Compressor {
    codec: Compression,
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl Compressor {
    /// zstd with this level; 0: none.
    pub(super) fn new(codec: Compression, zstd_level: i32) -> Result<Self, ParquetError> {
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
pub(super) struct Says {
    /// The least and the greatest value.
    pub(super) bounds: bool,
    /// Where its pages are, and the bounds of each.
    pub(super) pages: bool,
}

/// Least and greatest value.
pub(super) type Bounds<'a> = (LabelRef<'a>, LabelRef<'a>);

/// The bounds of both.
fn wider<'a>(all: Option<Bounds<'a>>, (min, max): Bounds<'a>) -> Bounds<'a> {
    all.map_or((min, max), |(least, greatest)| (least.min(min), greatest.max(max)))
}

/// Appends the levels that a data page's body begins with, their length in front: which rows have a value.
pub(super) fn levels(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let from = out.len() + LENGTH;
    out.extend_from_slice(&[0; LENGTH]);
    write(out);
    let length = u32::try_from(out.len() - from).expect("a page is small");
    out[from - LENGTH..from].copy_from_slice(&length.to_le_bytes());
}

/// Bytes of the length in front of levels.
const LENGTH: usize = size_of::<u32>();

/// The same if all of a page's rows have a value, or if none has.
pub(super) fn same_levels(out: &mut Vec<u8>, has_value: bool, rows: usize) {
    levels(out, |out| run(out, u32::from(has_value), rows, 1));
}

/// A data page before it is compressed.
pub(super) struct PageBody<'a> {
    pub(super) bytes: Vec<u8>,
    pub(super) encoding: Encoding,
    pub(super) rows: usize,
    /// Rows without a value.
    pub(super) nulls: usize,
    pub(super) bounds: Option<Bounds<'a>>,
}

/// A column chunk whose pages are being written.
pub(super) struct Pages<'a> {
    column: &'a ColumnDescPtr,
    /// `None`: pages stay as they are.
    compressor: Option<&'a mut Compressor>,
    sink: TrackedWrite<Vec<u8>>,
    /// What its pages have, that of levels among it.
    encodings: Vec<Encoding>,
    compressed: u64,
    uncompressed: u64,
    /// Where the dictionary is, if there is one.
    dictionary: Option<u64>,
    index: ColumnIndexBuilder,
    offsets: OffsetIndexBuilder,
    first_offset: Option<i64>,
    bounds: Option<Bounds<'a>>,
    rows: u64,
    nulls: u64,
}

impl<'a> Pages<'a> {
    pub(super) fn new(column: &'a ColumnDescPtr, compressor: Option<&'a mut Compressor>) -> Self {
        Self {
            column,
            compressor,
            sink: TrackedWrite::new(Vec::new()),
            encodings: vec![Encoding::RLE],
            compressed: 0,
            uncompressed: 0,
            dictionary: None,
            index: ColumnIndexBuilder::new(column.physical_type()),
            offsets: OffsetIndexBuilder::new(),
            first_offset: None,
            bounds: None,
            rows: 0,
            nulls: 0,
        }
    }

    fn write(&mut self, page: impl FnOnce(Bytes) -> Page, body: Cow<'_, [u8]>) -> Result<PageWriteSpec, ParquetError> {
        let size = body.len();
        let body = match &mut self.compressor {
            Some(compressor) => compressor.compress(body)?,
            None => body.into_owned(),
        };
        let page = CompressedPage::new(page(body.into()), size);
        let spec = SerializedPageWriter::new(&mut self.sink).write_page(page)?;
        self.compressed += spec.bytes_written;
        self.uncompressed += spec.uncompressed_size as u64 + (spec.bytes_written - spec.compressed_size as u64);
        Ok(spec)
    }

    /// The first page: the values that codes stand for.
    pub(super) fn dictionary(&mut self, values: Cow<'_, [u8]>, number: usize) -> Result<(), ParquetError> {
        let num_values = u32::try_from(number).expect("codes have 32 bits");
        let page = |buf| Page::DictionaryPage { buf, num_values, encoding: Encoding::PLAIN, is_sorted: false };
        let spec = self.write(page, values)?;
        self.dictionary = Some(spec.offset);
        self.encodings.push(Encoding::PLAIN);
        Ok(())
    }

    /// A data page: of values, or of codes.
    pub(super) fn page(&mut self, body: PageBody<'a>) -> Result<(), ParquetError> {
        let PageBody { bytes, encoding, rows, nulls, bounds } = body;
        let page = |buf| Page::DataPage {
            buf,
            num_values: u32::try_from(rows).expect("a page is small"),
            encoding,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: None,
        };
        let spec = self.write(page, bytes.into())?;
        if !self.encodings.contains(&encoding) {
            self.encodings.push(encoding);
        }
        let offset = signed(spec.offset);
        self.first_offset.get_or_insert(offset);
        self.offsets.append_row_count(signed(rows as u64));
        self.offsets.append_offset_and_size(offset, i32::try_from(spec.bytes_written).unwrap_or(i32::MAX));
        let (min, max) = bounds.map_or_else(Default::default, |(a, b)| (a.plain(), b.plain()));
        self.index.append(bounds.is_none(), min, max, signed(nulls as u64), None);
        self.bounds = bounds.map(|of_page| wider(self.bounds, of_page)).or(self.bounds);
        self.rows += rows as u64;
        self.nulls += nulls as u64;
        Ok(())
    }

    /// The chunk, to be appended to a row group.
    pub(super) fn close(self, says: Says) -> Result<Chunk, ParquetError> {
        let bounds = self.bounds.filter(|_| says.bounds);
        let metadata = ColumnChunkMetaData::builder(self.column.clone())
            .set_encodings(self.encodings)
            .set_compression(self.compressor.map_or(Compression::UNCOMPRESSED, |compressor| compressor.codec))
            .set_num_values(signed(self.rows))
            .set_total_compressed_size(signed(self.compressed))
            .set_total_uncompressed_size(signed(self.uncompressed))
            .set_dictionary_page_offset(self.dictionary.map(signed))
            .set_data_page_offset(self.first_offset.unwrap_or_default())
            .set_statistics(statistics(self.column.physical_type(), bounds, self.nulls))
            .build()?;
        let close = ColumnCloseResult {
            bytes_written: self.compressed,
            rows_written: self.rows,
            metadata,
            bloom_filter: None,
            column_index: if says.pages { Some(self.index.build()?) } else { None },
            offset_index: says.pages.then(|| self.offsets.build()),
        };
        Ok((self.sink.into_inner()?.into(), close))
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
    let boolean = |l| if let Some(LabelRef::Bool(is_so)) = l { Some(is_so) } else { None };
    let text = |l| if let Some(LabelRef::Text(t)) = l { Some(ByteArray::from(t.to_vec())) } else { None };
    match of {
        Type::BOOLEAN => Statistics::boolean(boolean(min), boolean(max), None, nulls, false),
        Type::INT32 => Statistics::int32(int(min), int(max), None, nulls, false),
        Type::INT64 => Statistics::int64(long(min), long(max), None, nulls, false),
        _ => Statistics::byte_array(text(min), text(max), None, nulls, false),
    }
}
