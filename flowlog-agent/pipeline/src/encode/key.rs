//! Object keys: a function of node, rule, interface, window start and sequence alone (promise P2), so that a retry or a
//! restart writes the same key again.

use jiff::{Timestamp, tz::TimeZone};

use super::ObjectInfo;

/// `[prefix/]name/year=…/month=…/day=…/hour=…/INTERFACE_NODE_STARTTIME_SEQUENCE.parquet`; INTERFACE without `_NODE` where it
/// begins with the node; without the folders of the date if the rule wants a flat layout. Times are UTC. The folder names are what Hive, Spark, `DuckDB` and the like
/// take as partition columns.
#[must_use]
pub(crate) fn object_key(info: &ObjectInfo) -> String {
    let start = Timestamp::from_second(info.span.start_secs).unwrap_or(Timestamp::UNIX_EPOCH).to_zoned(TimeZone::UTC);
    // An inventory's id says nothing of the node, and during a live migration two nodes have the interface.
    let node = match info.interface_id.strip_prefix(&info.node_id) {
        Some(rest) if rest.starts_with('-') => String::new(),
        _ => format!("_{}", info.node_id),
    };
    let file = format!(
        "{}{node}_{:04}{:02}{:02}T{:02}{:02}{:02}Z_{}.parquet",
        info.interface_id,
        start.year(),
        start.month(),
        start.day(),
        start.hour(),
        start.minute(),
        start.second(),
        info.span.sequence
    );
    let mut parts = Vec::with_capacity(6);
    parts.push(info.rule.folder());
    if info.rule.hive_layout {
        parts.push(format!("year={:04}", start.year()));
        parts.push(format!("month={:02}", start.month()));
        parts.push(format!("day={:02}", start.day()));
        parts.push(format!("hour={:02}", start.hour()));
    }
    parts.push(file);
    parts.join("/")
}
