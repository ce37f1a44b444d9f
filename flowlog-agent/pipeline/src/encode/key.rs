//! Object keys: a function of node, rule, interface, window start and sequence alone (promise P2), so that a retry or a
//! restart writes the same key again.

use flowlog_model::rule::Layout;
use jiff::{Timestamp, tz::TimeZone};

use super::ObjectInfo;

/// What the file names of an interface's objects begin with: its id and that of the node.
#[must_use]
pub(crate) fn stem(interface_id: &str, node_id: &str) -> String {
    // An inventory's id says nothing of the node, and during a live migration two nodes have the interface.
    match interface_id.strip_prefix(node_id) {
        Some(rest) if rest.starts_with('-') => interface_id.to_owned(),
        _ => format!("{interface_id}_{node_id}"),
    }
}

/// The [`stem`] of a key: what is in front of its time and sequence.
#[must_use]
pub(crate) fn stem_of(key: &str) -> &str {
    let file = key.rsplit('/').next().unwrap_or(key);
    file.rsplitn(3, '_').nth(2).unwrap_or(file)
}

/// `[prefix/]name/year=…/month=…/day=…/hour=…/INTERFACE_NODE_STARTTIME_SEQUENCE.parquet` (or `.log.gz`); INTERFACE without `_NODE` where it
/// begins with the node; without the folders of the date if the rule wants a flat layout, and with `flow_log=name` if it wants the name to be
/// a partition as well. Times are UTC. The folder names are what
/// Hive, Spark, `DuckDB` and the like take as partition columns.
#[must_use]
pub(crate) fn object_key(info: &ObjectInfo) -> String {
    let start =
        Timestamp::from_second(info.span.start_secs).unwrap_or(Timestamp::UNIX_EPOCH).to_zoned_datetime(TimeZone::UTC);
    let file = format!(
        "{}_{:04}{:02}{:02}T{:02}{:02}{:02}Z_{}.{}",
        stem(&info.interface_id, &info.node_id),
        start.year(),
        start.month(),
        start.day(),
        start.hour(),
        start.minute(),
        start.second(),
        info.span.sequence,
        info.rule.format.ending()
    );
    let mut parts = Vec::with_capacity(6);
    parts.push(info.rule.folder());
    if info.rule.layout != Layout::Flat {
        parts.push(format!("year={:04}", start.year()));
        parts.push(format!("month={:02}", start.month()));
        parts.push(format!("day={:02}", start.day()));
        parts.push(format!("hour={:02}", start.hour()));
    }
    parts.push(file);
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_of_an_object_is_in_its_key() {
        let time = "20261123T141000Z_0.parquet";
        for (interface, node) in [("5c1b-01", "node_1"), ("5c1b-01-natgw_0", "n"), ("node_1-tap0", "node_1")] {
            let stem = stem(interface, node);
            assert_eq!(stem_of(&format!("team/web/year=2026/{stem}_{time}")), stem);
        }
        assert_eq!((stem("node-tap0", "node"), stem("nodes", "node")), ("node-tap0".into(), "nodes_node".into()));
        assert_eq!(stem_of("odd"), "odd");
    }
}
