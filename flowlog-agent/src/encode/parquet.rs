//! Writing rows as Parquet. Encodings, order and sizes were chosen by `cargo run --release --example encode_size`;
//! ARCHITECTURE.md keeps the figures.

use parquet::{
    arrow::{ArrowWriter, arrow_writer::ArrowWriterOptions},
    basic::{Compression, Encoding, ZstdLevel},
    errors::ParquetError,
    file::{metadata::KeyValue, properties::WriterProperties},
    schema::types::ColumnPath,
};

use super::{ObjectInfo, rows::Rows, schema};
use crate::window::{Addresses, Balance, Flow};

/// Order of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By first packet.
    Start,
    /// By service (protocol and lower port), then destination, then source.
    Service,
}

/// How an object is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Order of the rows.
    pub order: Order,
    /// zstd level; 0: snappy-less, uncompressed.
    pub zstd_level: i32,
    /// Bytes up to which a dictionary is kept; past it a column falls back to plain values.
    pub dictionary_bytes: usize,
    /// Delta encoding for the four time columns.
    pub delta_times: bool,
    /// Rows in a row group.
    pub row_group_rows: usize,
}

/// What objects are written with.
pub const CHOSEN: Profile = Profile {
    order: Order::Start,
    zstd_level: 1,
    dictionary_bytes: 4 << 20,
    delta_times: true,
    row_group_rows: 1 << 20,
};

/// Rows handed to the writer at a time: bounds the memory of the row builders to a few MiB.
const BATCH_ROWS: usize = 32 * 1024;

/// Writes one object.
///
/// # Errors
/// The writer's own; none are known for rows built from [`schema::COLUMNS`].
pub fn write(
    info: &ObjectInfo,
    mut rows: Rows,
    reason_name: &dyn Fn(u16) -> Option<String>,
    profile: Profile,
) -> Result<Vec<u8>, ParquetError> {
    sort(&mut rows.flows, profile.order);
    let options = ArrowWriterOptions::new()
        .with_properties(properties(info, &rows.balance, profile)?)
        .with_skip_arrow_metadata(true);
    let mut writer = ArrowWriter::try_new_with_options(Vec::new(), schema::schema(), options)?;
    for batch in rows.batches(info, reason_name, BATCH_ROWS) {
        writer.write(&batch.map_err(|e| ParquetError::General(e.to_string()))?)?;
    }
    writer.into_inner()
}

fn sort(flows: &mut [Flow], order: Order) {
    match order {
        Order::Start => flows.sort_unstable_by_key(|f| (f.totals.first_ns, f.meta.sport)),
        Order::Service => flows.sort_unstable_by_key(service),
    }
}

/// Protocol and the port that names the service: the lower one.
fn service(f: &Flow) -> (u8, u16, [u8; 16], [u8; 16], u64) {
    let wide = |a: [u8; 4]| {
        let mut wide = [0; 16];
        wide[..4].copy_from_slice(&a);
        wide
    };
    let (src, dst) = match f.addresses {
        Addresses::V4(src, dst) => (wide(src), wide(dst)),
        Addresses::V6(src, dst) => (src, dst),
    };
    (f.meta.proto, f.meta.sport.min(f.meta.dport), dst, src, f.totals.first_ns)
}

fn properties(info: &ObjectInfo, balance: &Balance, profile: Profile) -> Result<WriterProperties, ParquetError> {
    let compression = match profile.zstd_level {
        0 => Compression::UNCOMPRESSED,
        level => Compression::ZSTD(ZstdLevel::try_new(level)?),
    };
    let mut builder = WriterProperties::builder()
        .set_compression(compression)
        .set_dictionary_page_size_limit(profile.dictionary_bytes)
        .set_max_row_group_row_count(Some(profile.row_group_rows))
        .set_created_by(concat!("flowlog ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_key_value_metadata(Some(metadata(info, balance)));
    if profile.delta_times {
        for column in ["start", "end", "start_ns", "end_ns"] {
            builder = builder
                .set_column_dictionary_enabled(ColumnPath::from(column), false)
                .set_column_encoding(ColumnPath::from(column), Encoding::DELTA_BINARY_PACKED);
        }
    }
    Ok(builder.build())
}

/// Key of a balance entry in the object's metadata.
pub const BALANCE_KEY: &str = "flowlog.balance";

fn metadata(info: &ObjectInfo, balance: &Balance) -> Vec<KeyValue> {
    let pair = |key: &str, value: String| KeyValue::new(format!("flowlog.{key}"), value);
    vec![
        pair("schema_version", schema::SCHEMA_VERSION.to_owned()),
        pair("rule", info.rule.name.as_str().to_owned()),
        pair("node", info.node_id.clone()),
        pair("interface", info.interface_id.clone()),
        pair("window_start", info.span.start_secs.to_string()),
        pair("window_end", info.span.end_secs.to_string()),
        pair("sequence", info.span.sequence.to_string()),
        pair("marks", info.marks().unwrap_or_default()),
        KeyValue::new(BALANCE_KEY.to_owned(), balance.to_string()),
    ]
}
