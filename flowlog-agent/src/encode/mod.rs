//! From a settled window to the bytes and the key of one Parquet object.
//!
//! * [`schema`]: the columns, their types, and what they mean;
//! * [`rows`]: building them;
//! * [`labels`]: column chunks of those with few different values;
//! * [`parquet`]: the file; encodings, chosen by measurement;
//! * [`key`]: where the object goes.
//!
//! Pure: bytes in memory, no I/O, no clock.

pub mod key;
mod labels;
pub mod parquet;
pub mod rows;
pub mod schema;

use crate::{
    rule::Rule,
    window::{Settled, Span},
};

/// Everything an object says besides its rows.
#[derive(Clone, Debug)]
pub struct ObjectInfo {
    /// The rule.
    pub rule: Rule,
    /// Node it was captured on.
    pub node_id: String,
    /// Contract or account of the customer, if known.
    pub account_id: Option<String>,
    /// Id of the interface in the cloud's inventory; `NODE-INTERFACE` if there is none.
    pub interface_id: String,
    /// The window.
    pub span: Span,
    /// The memory cap was reached, so the window comes in several objects.
    pub flushed_early: bool,
    /// It holds packets of an earlier window: refused, or recorded, only after that one was closed.
    pub late: bool,
}

impl ObjectInfo {
    /// What is unusual about the window, as in the column `window_marks`; `None` if it is whole.
    #[must_use]
    pub fn marks(&self) -> Option<String> {
        let marks = [
            (self.span.begins_late, "begins_late"),
            (self.span.ends_early, "ends_early"),
            (self.flushed_early, "flushed_early"),
            (self.late, "late"),
        ];
        let set: Vec<&str> = marks.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
        (!set.is_empty()).then(|| set.join(","))
    }
}

/// An object ready to be stored.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its key below the target.
    pub key: String,
    /// The Parquet file.
    pub bytes: Vec<u8>,
    /// Rows by status and action.
    pub rows: RowCounts,
}

/// How many rows an object holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowCounts {
    /// ACCEPT.
    pub accepted: usize,
    /// REJECT.
    pub rejected: usize,
    /// SKIPDATA.
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
    settled: Settled,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        rule::{Action, Directions},
        types::{MonoNs, Now, WallNs},
        window::WindowClock,
    };

    #[test]
    fn everything_unusual_about_a_window_is_marked_and_a_whole_window_is_not() {
        let rule = Rule {
            name: "web".parse().expect("name"),
            directions: Directions::Bidirectional,
            action: Action::Any,
            target: "/tmp".parse().expect("target"),
            window_secs: 60,
            nodata: true,
            subsecond: false,
            hive_layout: true,
        };
        let mut span = *WindowClock::new(60, Now { mono: MonoNs(0), wall: WallNs(0) }).current();
        span.begins_late = false;
        let (node_id, interface_id) = ("n".to_owned(), "n-eth0".to_owned());
        let whole =
            ObjectInfo { rule, node_id, account_id: None, interface_id, span, flushed_early: false, late: false };
        assert_eq!(whole.marks(), None);
        span.begins_late = true;
        span.ends_early = true;
        let odd = ObjectInfo { span, flushed_early: true, late: true, ..whole };
        assert_eq!(odd.marks().as_deref(), Some("begins_late,ends_early,flushed_early,late"));
    }
}
