//! What an object says of itself at its end: its columns with their bounds, its rows, its window.

use std::{collections::HashMap, ops::Range};

use bytes::Bytes;
use iceberg::spec::{Datum, PrimitiveType};
use parquet::{
    basic::{ConvertedType, LogicalType, TimeUnit, Type as Physical},
    errors::ParquetError,
    file::{
        metadata::{ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader},
        statistics::Statistics,
    },
    schema::types::ColumnDescriptor,
};

/// Read at once from the end of an object: nearly every footer fits. (With 42 columns and all bounds, a row group has 6 KB.)
pub(crate) const TAIL_BYTES: u64 = 64 << 10;
/// Length of the footer, and the four letters behind it.
const END_BYTES: usize = 8;
const MAGIC: &[u8] = b"PAR1";
/// A longer footer than this is none of ours: 16 row groups for each of its MiB.
const FOOTER_BYTES_MAX: u64 = 64 << 20;
/// A longer text is no bound: it would be in every manifest for little. Addresses and names of reasons are shorter.
const BOUND_BYTES_MAX: usize = 64;

const VERSION_KEY: &str = "flowlog.schema_version";

/// An object that is none, or is broken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FooterError {
    #[error("it does not end as a Parquet file does")]
    NoParquet,
    #[error("its footer has {0} bytes")]
    TooLong(u64),
    #[error("its footer cannot be read: {0}")]
    Broken(#[from] ParquetError),
}

/// A column of an object.
#[derive(Clone, Debug)]
pub(crate) struct FooterColumn {
    pub(crate) name: String,
    /// Its field id; objects before version 4 have none.
    pub(crate) id: Option<i32>,
    /// `None`: a type that no column of ours has.
    pub(crate) of: Option<PrimitiveType>,
    pub(crate) bytes: u64,
    pub(crate) values: u64,
    pub(crate) nulls: Option<u64>,
    pub(crate) bounds: Option<(Datum, Datum)>,
}

/// See the module's head.
#[derive(Clone, Debug)]
pub(crate) struct Footer {
    /// Version of the schema; `None`: it is not flowlog's.
    pub(crate) version: Option<u32>,
    pub(crate) rows: u64,
    pub(crate) columns: Vec<FooterColumn>,
    /// Where its row groups begin.
    pub(crate) offsets: Vec<i64>,
    /// The metadata, without `flowlog.` in front of their names.
    metadata: HashMap<String, String>,
}

/// What the end of an object has told.
#[derive(Debug)]
pub(crate) enum Tail {
    Whole(Box<Footer>),
    /// The footer is longer: it is in this part of the object.
    Needs(Range<u64>),
}

impl Footer {
    /// From the last bytes of an object that has `size`.
    ///
    /// # Errors
    /// If it is no object, or broken.
    pub(crate) fn read(tail: &Bytes, size: u64) -> Result<Tail, FooterError> {
        let Some((rest, end)) = tail.split_last_chunk::<END_BYTES>() else { return Err(FooterError::NoParquet) };
        if &end[4..] != MAGIC {
            return Err(FooterError::NoParquet);
        }
        let length = u64::from(u32::from_le_bytes([end[0], end[1], end[2], end[3]]));
        if length > FOOTER_BYTES_MAX || length + END_BYTES as u64 > size {
            return Err(FooterError::TooLong(length));
        }
        match usize::try_from(length).ok().and_then(|length| rest.len().checked_sub(length)) {
            Some(start) => {
                Ok(Tail::Whole(Box::new(Self::of(&ParquetMetaDataReader::decode_metadata(&rest[start..])?))))
            }
            None => Ok(Tail::Needs(size - length - END_BYTES as u64..size)),
        }
    }

    /// What an object's metadata say of something.
    pub(crate) fn said(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    pub(crate) fn column(&self, id: i32) -> Option<&FooterColumn> {
        self.columns.iter().find(|c| c.id == Some(id))
    }

    fn of(parquet: &ParquetMetaData) -> Self {
        let file = parquet.file_metadata();
        let pairs = file.key_value_metadata().into_iter().flatten();
        let metadata: HashMap<String, String> = pairs
            .filter_map(|pair| Some((pair.key.strip_prefix("flowlog.")?.to_owned(), pair.value.clone()?)))
            .collect();
        let version = metadata.get(VERSION_KEY.trim_start_matches("flowlog.")).and_then(|v| v.parse().ok());
        let described = file.schema_descr().columns().iter().enumerate();
        let columns = described.map(|(number, column)| {
            let chunks: Vec<_> = parquet.row_groups().iter().map(|group| group.column(number)).collect();
            FooterColumn::of(column, &chunks)
        });
        Self {
            version,
            rows: count(file.num_rows()),
            columns: columns.collect(),
            offsets: parquet.row_groups().iter().map(|group| start(group.column(0))).collect(),
            metadata,
        }
    }
}

impl FooterColumn {
    fn of(column: &ColumnDescriptor, chunks: &[&ColumnChunkMetaData]) -> Self {
        let info = column.self_type().get_basic_info();
        let of = type_of(column);
        let statistics: Option<Vec<(&Statistics, u64)>> =
            chunks.iter().map(|chunk| Some((chunk.statistics()?, count(chunk.num_values())))).collect();
        let statistics = statistics.filter(|all| !all.is_empty());
        let nulls = statistics.as_ref().and_then(|all| all.iter().map(|(s, _)| s.null_count_opt()).sum());
        Self {
            name: column.path().string(),
            id: info.has_id().then(|| info.id()),
            bytes: chunks.iter().map(|chunk| count(chunk.compressed_size())).sum(),
            values: chunks.iter().map(|chunk| count(chunk.num_values())).sum(),
            nulls,
            bounds: of.as_ref().zip(statistics).and_then(|(of, all)| bounds(of, &all)),
            of,
        }
    }
}

fn count(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

/// Where a column chunk begins.
fn start(chunk: &ColumnChunkMetaData) -> i64 {
    let data = chunk.data_page_offset();
    chunk.dictionary_page_offset().map_or(data, |dictionary| dictionary.min(data))
}

fn type_of(column: &ColumnDescriptor) -> Option<PrimitiveType> {
    if column.max_rep_level() > 0 || column.path().parts().len() > 1 {
        return None;
    }
    match (column.physical_type(), column.logical_type_ref()) {
        (Physical::BOOLEAN, None) => Some(PrimitiveType::Boolean),
        (Physical::INT32, None) if column.converted_type() == ConvertedType::NONE => Some(PrimitiveType::Int),
        (Physical::INT64, None) if column.converted_type() == ConvertedType::NONE => Some(PrimitiveType::Long),
        (Physical::DOUBLE, None) => Some(PrimitiveType::Double),
        (Physical::BYTE_ARRAY, Some(LogicalType::String)) => Some(PrimitiveType::String),
        (Physical::INT64, Some(logical)) if *logical == LogicalType::timestamp(true, TimeUnit::MICROS) => {
            Some(PrimitiveType::Timestamptz)
        }
        _ => None,
    }
}

/// The least and the greatest value of all row groups, each with its values, nulls among them. `None`: one of them does not say, or all have
/// nothing but nulls.
fn bounds(of: &PrimitiveType, groups: &[(&Statistics, u64)]) -> Option<(Datum, Datum)> {
    let has_values = |(statistics, values): &&(&Statistics, u64)| statistics.null_count_opt() != Some(*values);
    let all: Vec<&Statistics> = groups.iter().filter(has_values).map(|(statistics, _)| *statistics).collect();
    let least = all.iter().map(|s| datum(of, s.min_bytes_opt()?)).collect::<Option<Vec<_>>>()?;
    let greatest = all.iter().map(|s| datum(of, s.max_bytes_opt()?)).collect::<Option<Vec<_>>>()?;
    let least = least.into_iter().reduce(|a, b| if b < a { b } else { a })?;
    let greatest = greatest.into_iter().reduce(|a, b| if b > a { b } else { a })?;
    Some((least, greatest))
}

fn datum(of: &PrimitiveType, bytes: &[u8]) -> Option<Datum> {
    match of {
        PrimitiveType::Boolean => Some(Datum::bool(*bytes.first()? != 0)),
        PrimitiveType::Int => Some(Datum::int(i32::from_le_bytes(bytes.try_into().ok()?))),
        PrimitiveType::Long => Some(Datum::long(i64::from_le_bytes(bytes.try_into().ok()?))),
        PrimitiveType::Timestamptz => Some(Datum::timestamptz_micros(i64::from_le_bytes(bytes.try_into().ok()?))),
        PrimitiveType::String if bytes.len() <= BOUND_BYTES_MAX => {
            Some(Datum::string(std::str::from_utf8(bytes).ok()?))
        }
        _ => None,
    }
}
