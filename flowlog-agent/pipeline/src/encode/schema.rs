//! The columns. AWS VPC flow log names and types first, then ours. docs/records.md has the same list for users.

use std::{collections::HashMap, fmt, ops::RangeInclusive, sync::Arc};

use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;

/// Version of this schema, in the object's metadata. A new column raises it; a column never changes its meaning. The tests have files of
/// every version. 4: columns have field ids, and `window_start` is a timestamp (before, it was int64: Unix seconds).
pub const SCHEMA_VERSION: &str = "4";

/// Field ids of the columns that every version has had.
pub const FIRST_FIELD_IDS: RangeInclusive<i32> = 1..=29;

/// Version of the record format, as in the first column: 2 is AWS's default format, whose names and meanings the
/// first 14 columns have.
pub(crate) const RECORD_VERSION: i32 = 2;

/// Type of a column's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueType {
    Boolean,
    Int32,
    Int64,
    Utf8,
    /// Microseconds since 1970, UTC.
    Timestamp,
}

impl ValueType {
    fn arrow(self) -> DataType {
        match self {
            Self::Boolean => DataType::Boolean,
            Self::Int32 => DataType::Int32,
            Self::Int64 => DataType::Int64,
            Self::Utf8 => DataType::Utf8,
            Self::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Boolean => "boolean",
            Self::Int32 => "int32",
            Self::Int64 => "int64",
            Self::Utf8 => "utf8",
            Self::Timestamp => "timestamp",
        })
    }
}

#[derive(Clone, Debug)]
pub struct ColumnSpec {
    pub id: ColumnId,
    /// Parquet's `field_id`, by which tables of Iceberg know a column. `columns.lock` fixes name, number and type for ever.
    pub field_id: i32,
    pub name: &'static str,
    /// Type of its values.
    pub of: ValueType,
    /// Whether it has rows without a value.
    pub nullable: bool,
    /// What it means; the README's table is checked against this.
    pub meaning: &'static str,
}

/// Makes [`ColumnId`] and [`COLUMNS`] of one table, in the order of the columns.
macro_rules! columns {
    ($($id:ident = $field_id:literal: $name:literal, $of:ident, $nullable:literal, $meaning:literal;)*) => {
        /// A column. The builder of rows has a value for each, which the compiler sees to.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum ColumnId {
            $($id,)*
        }

        impl ColumnId {
            /// As in the schema.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$id => $name,)*
                }
            }
        }

        /// All columns in order.
        pub const COLUMNS: &[ColumnSpec] = &[$(ColumnSpec {
            id: ColumnId::$id,
            field_id: $field_id,
            name: $name,
            of: ValueType::$of,
            nullable: $nullable,
            meaning: $meaning,
        },)*];
    };
}

columns! {
    Version = 1: "version", Int32, false, "format of the first 14 columns: 2";
    AccountId = 2: "account_id", Utf8, true, "contract of the interface's owner";
    InterfaceId = 3: "interface_id", Utf8, false, "id of the interface; NODE-INTERFACE or NODE-NETNS-INTERFACE without an inventory";
    SrcAddr = 4: "srcaddr", Utf8, true, "source address as seen on the interface";
    DstAddr = 5: "dstaddr", Utf8, true, "destination address as seen on the interface";
    SrcPort = 6: "srcport", Int32, true, "source port; 0 for ICMP, later fragments and protocols without ports";
    DstPort = 7: "dstport", Int32, true, "destination port; 0 likewise";
    Protocol = 8: "protocol", Int32, true, "IANA protocol number, behind IPv6 extension headers";
    Packets = 9: "packets", Int64, true, "packets as on the wire (GSO segments count each)";
    Bytes = 10: "bytes", Int64, true, "layer-3 bytes as on the wire";
    Start = 11: "start", Int64, false, "time of the first packet, Unix seconds; window start for SKIPDATA and NODATA";
    End = 12: "end", Int64, false, "time of the last packet, Unix seconds; window end for SKIPDATA and NODATA";
    Action = 13: "action", Utf8, true, "ACCEPT or REJECT; null if not known";
    LogStatus = 14: "log_status", Utf8, false, "OK: a flow; SKIPDATA: packets without a row; NODATA: no traffic";
    FlowDirection = 15: "flow_direction", Utf8, true, "ingress or egress, as the interface's owner sees it";
    TcpFlags = 16: "tcp_flags", Int32, true, "OR of all TCP flag octets; null if not TCP, or not known";
    IcmpType = 17: "icmp_type", Int32, true, "ICMP or ICMPv6 type; null if not ICMP, or in a later fragment";
    IcmpCode = 18: "icmp_code", Int32, true, "ICMP or ICMPv6 code; likewise";
    Family = 19: "type", Utf8, true, "IPv4 or IPv6";
    VlanId = 20: "vlan_id", Int32, true, "outermost VLAN id; null if untagged";
    StartNs = 21: "start_ns", Int64, true, "with `--subsecond`: time of the first packet, Unix ns, to the kernel's timer tick";
    EndNs = 22: "end_ns", Int64, true, "with `--subsecond`: time of the last packet, Unix ns, to the kernel's timer tick";
    RejectReason = 23: "reject_reason", Utf8, true, "the kernel's drop reason, such as NETFILTER_DROP";
    RuleId = 24: "rule_id", Utf8, false, "id of the flow log; its name without a rule store";
    NodeId = 25: "node_id", Utf8, false, "node that captured it";
    WindowStart = 26: "window_start", Timestamp, false, "start of the window, UTC, microseconds; before version 4 int64, Unix seconds";
    Sequence = 27: "sequence", Int64, false, "part of the window: 0, or the millisecond it began at";
    WindowMarks = 28: "window_marks", Utf8, true, "begins_late, ends_early, ends_late, flushed_early, late (holds packets of an earlier window), gap; null: a whole window";
    SkipReason = 29: "skip_reason", Utf8, true, "why packets are in no row: ring_full, malformed, spool_full, not_encoded; verdict_unknown: they are in ACCEPT rows, and it is not known whether they were refused; gap: capture stood still; xdp_dropped, xdp_forwarded: somebody else's XDP program took them before any hook, by the driver's count, which has no bytes";
    LostPackets = 30: "lost_packets", Int64, true, "of an ACCEPT row's packets, those that died on their way after the firewall had let them through; null if none is known";
    LostBytes = 31: "lost_bytes", Int64, true, "layer-3 bytes of those";
    LostReason = 32: "lost_reason", Utf8, true, "the kernel's drop reason that most of those died for, such as QDISC_DROP";
    RuleMark = 33: "rule_mark", Int64, true, "the mark that the firewall had given a refused packet or its connection; null if none";
    VerdictRule = 34: "verdict_rule", Utf8, true, "what refused it: the name that `verdict_marks` has for the mark, else the part of the kernel, such as netfilter, with the program where it can be known";
    PktSrcAddr = 35: "pkt_srcaddr", Utf8, true, "with `--translations`: source address on the other side of an address translation; null if there is none, or it is not known";
    PktDstAddr = 36: "pkt_dstaddr", Utf8, true, "destination address on that side; likewise";
    PktSrcPort = 37: "pkt_srcport", Int32, true, "source port on that side; likewise, and 0 as in srcport";
    PktDstPort = 38: "pkt_dstport", Int32, true, "destination port on that side; likewise";
    Initiator = 39: "initiator", Boolean, true, "whether the row's source opened the connection: by TCP's handshake, else by connection tracking where translations are wanted; null if neither shows it";
    FlowState = 40: "flow_state", Utf8, true, "of an ACCEPT row: begin, end, whole (both) or continue (neither), as far as the window shows it";
    EndCause = 41: "end_cause", Utf8, true, "how the end showed: fin, rst, or idle (no TCP, and two minutes without a packet)";
    RttUs = 42: "rtt_us", Int64, true, "time of the TCP handshake from SYN to SYN-ACK at this interface, microseconds; in the rows of both directions";
}

/// The Arrow schema of these columns.
#[must_use]
pub(crate) fn schema<'a>(columns: impl IntoIterator<Item = &'a ColumnSpec>) -> Arc<Schema> {
    let numbered = |id: i32| HashMap::from([(PARQUET_FIELD_ID_META_KEY.to_owned(), id.to_string())]);
    let field = |c: &ColumnSpec| Field::new(c.name, c.of.arrow(), c.nullable).with_metadata(numbered(c.field_id));
    Arc::new(Schema::new(columns.into_iter().map(field).collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What tables out there know of our columns.
    const LOCK: &str = include_str!("../../columns.lock");

    #[test]
    fn a_columns_name_number_and_type_never_change_and_no_number_is_used_twice() {
        let locked: Vec<&str> = LOCK.lines().filter(|line| !line.starts_with('#')).collect();
        let ours: Vec<String> = COLUMNS.iter().map(|c| format!("{} {} {}", c.field_id, c.name, c.of)).collect();
        assert_eq!(ours, locked, "columns.lock: lines are added at its end, and never changed");
        let ids: BTreeSet<i32> = COLUMNS.iter().map(|c| c.field_id).collect();
        let names: BTreeSet<&str> = COLUMNS.iter().map(|c| c.name).collect();
        assert_eq!((ids.len(), names.len()), (COLUMNS.len(), COLUMNS.len()));
        assert!(ids.iter().all(|id| *id > 0), "Iceberg keeps the others for itself");
    }
}
