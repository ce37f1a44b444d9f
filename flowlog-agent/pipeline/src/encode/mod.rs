//! From a settled window to the bytes and the key of one Parquet object.
//!
//! * [`schema`]: the columns, their types, and what they mean;
//! * [`rows`]: which ones; [`order`]: what comes first; [`batch`]: fetching them; [`builder`], [`ends`]: making columns of them; [`values`], [`address`]: what
//!   those are built of;
//! * [`labels`]: column chunks of those with few different values; [`numbers`]: which numbers have; [`sparse`]: of those that few rows have a value in;
//!   [`longs`]: of numbers that differ from row to row; [`chunk`], [`pack`]: what both are written with;
//! * [`crew`]: the threads that make row groups; [`parquet`]: the file; encodings, chosen by measurement; [`text`]: the same rows as clouds write them;
//! * [`key`]: where the object goes.
//!
//! Pure: bytes in memory, no I/O, no clock.

mod address;
mod batch;
mod builder;
mod chunk;
mod crew;
mod ends;
pub(crate) mod key;
mod labels;
mod longs;
mod numbers;
mod order;
mod pack;
pub mod parquet;
pub mod rows;
pub mod schema;
mod sparse;
pub mod text;
mod values;

use flowlog_model::rule::Format;

pub use crate::window::ObjectInfo;
use crate::window::{Flow, Settled};

/// Names what refused a flow.
pub type RuleName = dyn Fn(&ObjectInfo, &Flow) -> Option<String> + Send + Sync;

/// What there is to know of the node that wrote the records.
pub struct Names {
    /// The name of a drop reason.
    pub reason: Box<dyn Fn(u16) -> Option<String> + Send + Sync>,
    /// What refused a flow: for the column `verdict_rule`.
    pub rule: Box<RuleName>,
}

impl Names {
    /// Nothing is known.
    #[must_use]
    pub fn none() -> Self {
        Self { reason: Box::new(|_| None), rule: Box::new(|_, _| None) }
    }
}

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

/// What can go wrong: the writers' own errors.
#[derive(Debug, thiserror::Error)]
#[error("cannot encode window {key}: {source}")]
pub struct EncodeError {
    key: String,
    source: WriteError,
}

#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error(transparent)]
    Parquet(#[from] ::parquet::errors::ParquetError),
    #[error(transparent)]
    Text(#[from] std::io::Error),
}

/// Encodes a window; `None` if there is nothing to say (no rows, and the rule wants no NODATA rows).
pub fn encode(info: &ObjectInfo, settled: &Settled, names: &Names) -> Result<Option<Object>, EncodeError> {
    let rows = rows::Rows::select(info, settled, rows::CHOSEN);
    if rows.is_empty() && !info.rule.nodata {
        return Ok(None);
    }
    let key = key::object_key(info);
    let counts = rows.counts();
    let written = match info.rule.format {
        Format::Parquet | Format::ParquetNarrow => {
            parquet::write(info, &rows, names, parquet::CHOSEN).map_err(WriteError::from)
        }
        Format::Text => text::write(info, &rows).map_err(WriteError::from),
    };
    match written {
        Ok(bytes) => Ok(Some(Object { key, bytes, rows: counts })),
        Err(source) => Err(EncodeError { key, source }),
    }
}
