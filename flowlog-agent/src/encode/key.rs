//! Object keys: a function of rule, interface, window start and sequence alone (promise P2), so that a retry or a
//! restart writes the same key again.

use jiff::{Timestamp, tz::TimeZone};

use super::ObjectInfo;

/// `[prefix/]name/year=…/month=…/day=…/hour=…/INTERFACE_STARTTIME_SEQUENCE.parquet`, or without the folders of the
/// date if the rule wants a flat layout. Times are UTC. The folder names are what Hive, Spark, `DuckDB` and the like
/// take as partition columns.
#[must_use]
pub fn object_key(info: &ObjectInfo) -> String {
    let start = Timestamp::from_second(info.span.start_secs).unwrap_or(Timestamp::UNIX_EPOCH).to_zoned(TimeZone::UTC);
    let file = format!(
        "{}_{:04}{:02}{:02}T{:02}{:02}{:02}Z_{}.parquet",
        info.interface_id,
        start.year(),
        start.month(),
        start.day(),
        start.hour(),
        start.minute(),
        start.second(),
        info.span.sequence
    );
    let mut parts = Vec::with_capacity(7);
    parts.extend(info.rule.target.prefix.clone());
    parts.push(info.rule.name.as_str().to_owned());
    if info.rule.hive_layout {
        parts.push(format!("year={:04}", start.year()));
        parts.push(format!("month={:02}", start.month()));
        parts.push(format!("day={:02}", start.day()));
        parts.push(format!("hour={:02}", start.hour()));
    }
    parts.push(file);
    parts.join("/")
}
