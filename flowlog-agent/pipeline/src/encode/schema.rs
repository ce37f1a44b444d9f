//! The columns. AWS VPC flow log names and types first, then ours. README.md documents the same list for users.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};

/// Version of this schema, in the object's metadata. A new column raises it; a column never changes its meaning.
pub const SCHEMA_VERSION: &str = "1";

/// Version of the record format, as in the first column: 2 is AWS's default format, whose names and meanings the
/// first 14 columns have.
pub const RECORD_VERSION: i32 = 2;

/// One column: name, type, nullable, meaning (the README's table is checked against this).
pub type ColumnSpec = (&'static str, DataType, bool, &'static str);

/// All columns in order.
pub const COLUMNS: &[ColumnSpec] = &[
    ("version", DataType::Int32, false, "format of the first 14 columns: 2"),
    ("account_id", DataType::Utf8, true, "contract of the interface's owner"),
    ("interface_id", DataType::Utf8, false, "id of the interface; NODE-INTERFACE without an inventory"),
    ("srcaddr", DataType::Utf8, true, "source address as seen on the interface"),
    ("dstaddr", DataType::Utf8, true, "destination address as seen on the interface"),
    ("srcport", DataType::Int32, true, "source port; 0 for ICMP, later fragments and protocols without ports"),
    ("dstport", DataType::Int32, true, "destination port; 0 likewise"),
    ("protocol", DataType::Int32, true, "IANA protocol number, behind IPv6 extension headers"),
    ("packets", DataType::Int64, true, "packets as on the wire (GSO segments count each)"),
    ("bytes", DataType::Int64, true, "layer-3 bytes as on the wire"),
    ("start", DataType::Int64, false, "time of the first packet, Unix seconds; window start for SKIPDATA and NODATA"),
    ("end", DataType::Int64, false, "time of the last packet, Unix seconds; window end for SKIPDATA and NODATA"),
    ("action", DataType::Utf8, true, "ACCEPT or REJECT; null if not known"),
    ("log_status", DataType::Utf8, false, "OK: a flow; SKIPDATA: packets without a row; NODATA: no traffic"),
    ("flow_direction", DataType::Utf8, true, "ingress or egress, as the interface's owner sees it"),
    ("tcp_flags", DataType::Int32, true, "OR of all TCP flag octets; null if not TCP, or not known"),
    ("icmp_type", DataType::Int32, true, "ICMP or ICMPv6 type; null if not ICMP, or in a later fragment"),
    ("icmp_code", DataType::Int32, true, "ICMP or ICMPv6 code; likewise"),
    ("type", DataType::Utf8, true, "IPv4 or IPv6"),
    ("vlan_id", DataType::Int32, true, "outermost VLAN id; null if untagged"),
    (
        "start_ns",
        DataType::Int64,
        true,
        "with `--subsecond`: time of the first packet, Unix ns, to the kernel's timer tick",
    ),
    (
        "end_ns",
        DataType::Int64,
        true,
        "with `--subsecond`: time of the last packet, Unix ns, to the kernel's timer tick",
    ),
    ("reject_reason", DataType::Utf8, true, "the kernel's drop reason, such as NETFILTER_DROP"),
    ("rule_id", DataType::Utf8, false, "id of the flow log; its name without a rule store"),
    ("node_id", DataType::Utf8, false, "node that captured it"),
    ("window_start", DataType::Int64, false, "start of the window, Unix seconds"),
    ("sequence", DataType::Int64, false, "part of the window: 0, or the millisecond it began at"),
    (
        "window_marks",
        DataType::Utf8,
        true,
        "begins_late, ends_early, ends_late, flushed_early, late (holds packets of an earlier window), gap; null: a whole window",
    ),
    (
        "skip_reason",
        DataType::Utf8,
        true,
        "why packets are in no row: ring_full, malformed, spool_full; verdict_unknown: they are in ACCEPT rows, and it is not known whether they were refused; gap: capture stood still",
    ),
];

/// The Arrow schema of [`COLUMNS`].
#[must_use]
pub fn schema() -> Arc<Schema> {
    let field = |(name, of, nullable, _): &ColumnSpec| Field::new(*name, of.clone(), *nullable);
    Arc::new(Schema::new(COLUMNS.iter().map(field).collect::<Vec<_>>()))
}
