//! From a settled window to the bytes and the key of one Parquet object.
//!
//! * [`schema`]: the columns, their types, and what they mean;
//! * [`rows`]: building them; [`order`]: what comes first;
//! * [`labels`]: column chunks of those with few different values;
//! * [`parquet`]: the file; encodings, chosen by measurement;
//! * [`key`]: where the object goes.
//!
//! Pure: bytes in memory, no I/O, no clock.

pub(crate) mod key;
mod labels;
mod order;
pub mod parquet;
pub mod rows;
pub mod schema;

pub use crate::window::ObjectInfo;
use crate::window::Settled;

/// An object ready to be stored.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its key below the target.
    pub key: String,
    pub bytes: Vec<u8>,
    /// Rows by status and action.
    pub rows: RowCounts,
}

/// How many rows an object holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowCounts {
    pub accepted: usize,
    pub rejected: usize,
    /// Rows with `log_status` SKIPDATA.
    pub skipped: usize,
}

/// What can go wrong: the Parquet writer's own errors.
#[derive(Debug, thiserror::Error)]
#[error("cannot encode window {key}: {source}")]
pub struct EncodeError {
    key: String,
    source: ::parquet::errors::ParquetError,
}

/// Encodes a window; `None` if there is nothing to say (no rows, and the rule wants no NODATA rows).
///
/// `reason_name` gives the name of a drop reason.
pub fn encode(
    info: &ObjectInfo,
    settled: &Settled,
    reason_name: &dyn Fn(u16) -> Option<String>,
) -> Result<Option<Object>, EncodeError> {
    let rows = rows::Rows::select(info, settled, rows::CHOSEN);
    if rows.is_empty() && !info.rule.nodata {
        return Ok(None);
    }
    let key = key::object_key(info);
    let counts = rows.counts();
    match parquet::write(info, &rows, reason_name, parquet::CHOSEN) {
        Ok(bytes) => Ok(Some(Object { key, bytes, rows: counts })),
        Err(source) => Err(EncodeError { key, source }),
    }
}
