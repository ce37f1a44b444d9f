//! Writing rows as Parquet. Encodings and sizes were chosen by `cargo xtask bench agent`; docs/performance.md keeps the
//! figures.

use std::{cmp::Reverse, collections::BTreeMap, num::NonZero, sync::Arc, thread};

use parquet::{
    arrow::ArrowSchemaConverter,
    basic::{Compression, Encoding, ZstdLevel},
    column::writer::{get_column_writer, get_typed_column_writer},
    data_type::Int64Type,
    errors::ParquetError,
    file::{
        metadata::KeyValue,
        properties::{DEFAULT_DATA_PAGE_ROW_COUNT_LIMIT, EnabledStatistics, WriterProperties, WriterPropertiesPtr},
        writer::{SerializedFileWriter, SerializedPageWriter, TrackedWrite},
    },
    schema::types::{ColumnDescPtr, ColumnPath, SchemaDescriptor},
};

use flowlog_model::rule::Format;

use super::{
    Names, ObjectInfo,
    chunk::{Chunk, Compressor, Says},
    crew::{Crew, Group},
    labels,
    longs::{self, LongsEncoding},
    rows::{self, Rows},
    schema::{self, COLUMNS, ColumnId, ColumnSpec},
    values::Column,
};
use crate::window::{Balance, Untold};

/// How an object is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// zstd level; 0: uncompressed.
    pub zstd_level: i32,
    /// Bytes up to which a dictionary grows; past it a new row group begins, and numbers fall back to plain values.
    pub dictionary_bytes: usize,
    /// Delta encoding for the column `bytes`, else a dictionary as far as it goes.
    pub delta_bytes: bool,
    /// The columns `start_ns` and `end_ns`.
    pub times: TimesEncoding,
    /// Rows in a row group.
    pub row_group_rows: usize,
}

/// How nanoseconds are written. They are as good as random within their window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimesEncoding {
    /// Whole numbers: zstd finds that the upper bytes repeat, and that the lower ones are 0.
    Plain,
    Delta,
    Dictionary,
    /// Smaller still; but Spark 3.5 and fastparquet cannot read it.
    Split,
}

/// What objects are written with.
pub const CHOSEN: Profile = Profile {
    zstd_level: 1,
    dictionary_bytes: 4 << 20,
    delta_bytes: true,
    times: TimesEncoding::Plain,
    row_group_rows: 256 << 10,
};

/// How much an object says of itself. An idle interface's windows are nearly all footer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ObjectSize {
    /// Rows that are read as soon as the footer is: bounds of the window alone, by which tables are partitioned.
    Few,
    /// One page a column: its bounds are the chunk's, and where it is, is known.
    Some,
    /// Several pages.
    Many,
}

impl ObjectSize {
    fn of(rows: usize) -> Self {
        match rows {
            0..=labels::FEW_ROWS => Self::Few,
            n if n <= DEFAULT_DATA_PAGE_ROW_COUNT_LIMIT => Self::Some,
            _ => Self::Many,
        }
    }

    /// Whether the bounds of a column are worth their bytes.
    fn says_bounds_of(self, column: ColumnId) -> bool {
        self != Self::Few || column == ColumnId::WindowStart
    }
}

/// Writes one object.
///
/// # Errors
/// The writer's own; none are known for columns of [`schema::COLUMNS`].
pub fn write(info: &ObjectInfo, rows: &Rows<'_>, names: &Names, profile: Profile) -> Result<Vec<u8>, ParquetError> {
    write_with(info, rows, names, profile, threads_for(rows.len()))
}

/// The same with so many threads: one or two.
fn write_with(
    info: &ObjectInfo,
    rows: &Rows<'_>,
    names: &Names,
    profile: Profile,
    threads: usize,
) -> Result<Vec<u8>, ParquetError> {
    let build = |part: &[u32]| rows.groups_of(part, info, names, profile.dictionary_bytes);
    let parts = || rows.parts(profile.row_group_rows);
    if info.rule.format != Format::ParquetNarrow || ObjectSize::of(rows.len()) == ObjectSize::Many {
        return put(info, rows, names, (profile, threads), &[true; COLUMNS.len()], (parts(), build));
    }
    let groups: Vec<Group> = parts().flat_map(build).collect();
    let others: Vec<Group> = rows.other_groups(info).collect();
    let has_values = |number: usize| groups.iter().chain(&others).any(|columns| !columns[number].is_empty());
    let kept = std::array::from_fn(has_values);
    put(info, rows, names, (profile, threads), &kept, (groups.into_iter(), |group| vec![group]))
}

/// Writes the columns that are kept, of parts that row groups are built of.
fn put<T: Send>(
    info: &ObjectInfo,
    rows: &Rows<'_>,
    names: &Names,
    (profile, threads): (Profile, usize),
    kept: &[bool; COLUMNS.len()],
    (parts, build): (impl Iterator<Item = T> + Send, impl Fn(T) -> Vec<Group> + Sync),
) -> Result<Vec<u8>, ParquetError> {
    let specs: Vec<&ColumnSpec> = COLUMNS.iter().zip(kept).filter_map(|(c, kept)| kept.then_some(c)).collect();
    let schema = ArrowSchemaConverter::new().convert(&schema::schema(specs.iter().copied()))?;
    let lost = lost_words(rows, &names.reason);
    let more = [
        (LOST_KEY, Some(lost)),
        (TRANSLATIONS_KEY, info.translations.then(|| translations_words(rows))),
        (ORDER_KEY, (rows.len() > 1).then(|| rows::CHOSEN.words().to_owned())),
    ];
    let size = ObjectSize::of(rows.len());
    let profile = Profile { zstd_level: if size == ObjectSize::Few { 0 } else { profile.zstd_level }, ..profile };
    let properties = Arc::new(properties(info, &rows.balance, more, profile, size)?);
    let writer = ChunkWriter { schema: &schema, specs: &specs, properties: &properties, profile, size };
    let mut file = SerializedFileWriter::new(Vec::new(), schema.root_schema_ptr(), properties.clone())?;
    let keep = |groups: Vec<Group>| -> Vec<Group> {
        let keep = |columns: Group| columns.into_iter().zip(kept).filter_map(|(column, kept)| kept.then_some(column));
        groups.into_iter().map(|columns| keep(columns).collect()).collect()
    };
    let write = |number, column, compressor: &mut Compressor| writer.chunk(number, column, compressor);
    let compressor = || Compressor::new(compression(profile)?, profile.zstd_level);
    Crew::new(parts, &mut file, &compressor, |part| keep(build(part)), write).run(threads)?;
    Crew::new(rows.other_groups(info), &mut file, &compressor, |group| keep(vec![group]), write).run(1)?;
    file.into_inner()
}

/// Rows from which on two threads make an object: below, starting one takes as long as it saves.
const TWO_THREADS_ROWS: usize = 1 << 16;

/// How many threads make an object of so many rows.
fn threads_for(rows: usize) -> usize {
    if rows < TWO_THREADS_ROWS { 1 } else { thread::available_parallelism().map_or(1, NonZero::get).min(2) }
}

/// Makes column chunks.
struct ChunkWriter<'a> {
    schema: &'a SchemaDescriptor,
    specs: &'a [&'a ColumnSpec],
    properties: &'a WriterPropertiesPtr,
    profile: Profile,
    size: ObjectSize,
}

impl ChunkWriter<'_> {
    fn chunk(&self, number: usize, column: Column, compressor: &mut Compressor) -> Result<Chunk, ParquetError> {
        let description = self.schema.column(number);
        let id = self.specs[number].id;
        let says = Says { bounds: self.size.says_bounds_of(id), pages: self.size == ObjectSize::Many };
        match column {
            Column::Labels(labels) => labels::chunk(&description, &labels, compressor, says),
            Column::Longs(values) => match self.profile.longs(id) {
                Some(encoding) => longs::chunk(&description, &values, encoding, compressor, says),
                None => self.by_library(description, &values),
            },
        }
    }

    /// A column of numbers in one of the encodings that were tried and not chosen.
    fn by_library(&self, column: ColumnDescPtr, values: &[i64]) -> Result<Chunk, ParquetError> {
        let mut sink = TrackedWrite::new(Vec::new());
        let pages = Box::new(SerializedPageWriter::new(&mut sink));
        let writer = get_column_writer(column, self.properties.clone(), pages);
        let mut writer = get_typed_column_writer::<Int64Type>(writer);
        writer.write_batch(values, Some(&vec![1; values.len()]), None)?;
        let close = writer.close()?;
        Ok((sink.into_inner()?.into(), close))
    }
}

impl Profile {
    /// How a column of numbers is written that has no dictionary; `None`: in a way that is only there to be compared with.
    fn longs(self, column: ColumnId) -> Option<LongsEncoding> {
        match column {
            ColumnId::StartNs | ColumnId::EndNs => match self.times {
                TimesEncoding::Plain => Some(LongsEncoding::Plain),
                TimesEncoding::Delta => Some(LongsEncoding::Delta),
                TimesEncoding::Dictionary | TimesEncoding::Split => None,
            },
            _ => self.delta_bytes.then_some(LongsEncoding::Delta),
        }
    }
}

fn compression(profile: Profile) -> Result<Compression, ParquetError> {
    Ok(match profile.zstd_level {
        0 => Compression::UNCOMPRESSED,
        level => Compression::ZSTD(ZstdLevel::try_new(level)?),
    })
}

fn properties(
    info: &ObjectInfo,
    balance: &Balance,
    more: [(&str, Option<String>); 3],
    profile: Profile,
    size: ObjectSize,
) -> Result<WriterProperties, ParquetError> {
    let statistics = match size {
        ObjectSize::Few => EnabledStatistics::None,
        ObjectSize::Some => EnabledStatistics::Chunk,
        ObjectSize::Many => EnabledStatistics::Page,
    };
    let mut builder = WriterProperties::builder()
        .set_statistics_enabled(statistics)
        .set_offset_index_disabled(size != ObjectSize::Many)
        .set_dictionary_enabled(size != ObjectSize::Few)
        .set_compression(compression(profile)?)
        .set_dictionary_page_size_limit(profile.dictionary_bytes)
        .set_max_row_group_row_count(Some(profile.row_group_rows))
        .set_created_by(concat!("flowlog version ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_key_value_metadata(Some(metadata(info, balance, more)));
    let times = match profile.times {
        TimesEncoding::Plain => Some(Encoding::PLAIN),
        TimesEncoding::Delta => Some(Encoding::DELTA_BINARY_PACKED),
        TimesEncoding::Split => Some(Encoding::BYTE_STREAM_SPLIT),
        TimesEncoding::Dictionary => None,
    };
    let bytes = profile.delta_bytes.then_some(Encoding::DELTA_BINARY_PACKED);
    for (column, encoding) in [(ColumnId::StartNs, times), (ColumnId::EndNs, times), (ColumnId::Bytes, bytes)] {
        let Some(encoding) = encoding else { continue };
        let column = ColumnPath::from(column.name());
        builder = builder.set_column_dictionary_enabled(column.clone(), false).set_column_encoding(column, encoding);
    }
    Ok(builder.build())
}

/// Key of a balance entry in the object's metadata.
pub const BALANCE_KEY: &str = "flowlog.balance";
/// Keys of the window's begin and end, Unix seconds.
pub const WINDOW_START_KEY: &str = "flowlog.window_start";
pub const WINDOW_END_KEY: &str = "flowlog.window_end";

/// Key of what was lost after it had passed, by reason.
pub const LOST_KEY: &str = "flowlog.lost";

/// `REASON=packets/bytes` pairs of both directions, the most packets first, separated by spaces.
fn lost_words(rows: &Rows<'_>, reason_name: &dyn Fn(u16) -> Option<String>) -> String {
    let mut all = BTreeMap::<u16, (u64, u64)>::new();
    for (reason, count) in rows.table.losses() {
        let (packets, bytes) = all.entry(reason).or_default();
        *packets += count.packets;
        *bytes += count.bytes;
    }
    let mut all: Vec<_> = all.into_iter().collect();
    all.sort_unstable_by_key(|(reason, (packets, _))| (Reverse(*packets), *reason));
    let name = |reason| reason_name(reason).unwrap_or_else(|| reason.to_string());
    let words = all.into_iter().map(|(reason, (packets, bytes))| format!("{}={packets}/{bytes}", name(reason)));
    words.collect::<Vec<_>>().join(" ")
}

/// Key of the order that rows are in, if there are several.
const ORDER_KEY: &str = "flowlog.order";

/// Key of what is known of address translations, if that is wanted.
pub const TRANSLATIONS_KEY: &str = "flowlog.translations";

/// Rows by what is known of their other side: `known`, `several` (rows of several connections, whose other sides differ), `unknown`; and
/// `not_kept`, translations that later windows will not know of.
fn translations_words(rows: &Rows<'_>) -> String {
    let (known, several) = rows.translated;
    let Untold { unknown, not_kept } = rows.table.untold();
    format!("known={known} several={several} unknown={unknown} not_kept={not_kept}")
}

fn metadata(info: &ObjectInfo, balance: &Balance, more: [(&str, Option<String>); 3]) -> Vec<KeyValue> {
    let pair = |key: &str, value: String| KeyValue::new(format!("flowlog.{key}"), value);
    let mut pairs = vec![
        pair("schema_version", schema::SCHEMA_VERSION.to_owned()),
        pair("rule", info.rule.name.as_str().to_owned()),
        pair("rule_id", info.rule.label()),
        pair("node", info.node_id.clone()),
        pair("interface", info.interface_id.clone()),
        KeyValue::new(WINDOW_START_KEY.to_owned(), info.span.start_secs.to_string()),
        KeyValue::new(WINDOW_END_KEY.to_owned(), info.span.end_secs.to_string()),
        pair("sequence", info.span.sequence.to_string()),
        pair("marks", info.marks().unwrap_or_default()),
        KeyValue::new(BALANCE_KEY.to_owned(), balance.to_string()),
    ];
    pairs.extend(more.into_iter().filter_map(|(key, value)| Some(KeyValue::new(key.to_owned(), value?))));
    if !info.xdp.is_empty() {
        pairs.push(pair("xdp", info.xdp.programs_words()));
        pairs.push(pair("xdp_packets", info.xdp.counts_words()));
    }
    let hidden = [("in_front", info.hiding.front_words()), ("offload", info.hiding.offload_words())];
    pairs.extend(info.labels.iter().map(|(name, value)| pair(&format!("label.{name}"), value.to_owned())));
    pairs.extend(hidden.into_iter().filter(|(_, words)| !words.is_empty()).map(|(key, words)| pair(key, words)));
    pairs
}

#[cfg(test)]
mod tests;
