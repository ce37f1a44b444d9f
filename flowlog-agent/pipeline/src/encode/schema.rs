//! The columns. AWS VPC flow log names and types first, then ours. docs/records.md has the same list for users.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};

/// Version of this schema, in the object's metadata. A new column raises it; a column never changes its meaning.
pub(crate) const SCHEMA_VERSION: &str = "3";

/// Version of the record format, as in the first column: 2 is AWS's default format, whose names and meanings the
/// first 14 columns have.
pub(crate) const RECORD_VERSION: i32 = 2;

#[derive(Clone, Debug)]
pub struct ColumnSpec {
    pub id: ColumnId,
    pub name: &'static str,
    /// Type of its values.
    pub of: DataType,
    /// Whether it has rows without a value.
    pub nullable: bool,
    /// What it means; the README's table is checked against this.
    pub meaning: &'static str,
}

/// Makes [`ColumnId`] and [`COLUMNS`] of one table, in the order of the columns.
macro_rules! columns {
    ($($id:ident: $name:literal, $of:ident, $nullable:literal, $meaning:literal;)*) => {
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
            name: $name,
            of: DataType::$of,
            nullable: $nullable,
            meaning: $meaning,
        },)*];
    };
}

columns! {
    Version: "version", Int32, false, "format of the first 14 columns: 2";
    AccountId: "account_id", Utf8, true, "contract of the interface's owner";
    InterfaceId: "interface_id", Utf8, false, "id of the interface; NODE-INTERFACE or NODE-NETNS-INTERFACE without an inventory";
    SrcAddr: "srcaddr", Utf8, true, "source address as seen on the interface";
    DstAddr: "dstaddr", Utf8, true, "destination address as seen on the interface";
    SrcPort: "srcport", Int32, true, "source port; 0 for ICMP, later fragments and protocols without ports";
    DstPort: "dstport", Int32, true, "destination port; 0 likewise";
    Protocol: "protocol", Int32, true, "IANA protocol number, behind IPv6 extension headers";
    Packets: "packets", Int64, true, "packets as on the wire (GSO segments count each)";
    Bytes: "bytes", Int64, true, "layer-3 bytes as on the wire";
    Start: "start", Int64, false, "time of the first packet, Unix seconds; window start for SKIPDATA and NODATA";
    End: "end", Int64, false, "time of the last packet, Unix seconds; window end for SKIPDATA and NODATA";
    Action: "action", Utf8, true, "ACCEPT or REJECT; null if not known";
    LogStatus: "log_status", Utf8, false, "OK: a flow; SKIPDATA: packets without a row; NODATA: no traffic";
    FlowDirection: "flow_direction", Utf8, true, "ingress or egress, as the interface's owner sees it";
    TcpFlags: "tcp_flags", Int32, true, "OR of all TCP flag octets; null if not TCP, or not known";
    IcmpType: "icmp_type", Int32, true, "ICMP or ICMPv6 type; null if not ICMP, or in a later fragment";
    IcmpCode: "icmp_code", Int32, true, "ICMP or ICMPv6 code; likewise";
    Family: "type", Utf8, true, "IPv4 or IPv6";
    VlanId: "vlan_id", Int32, true, "outermost VLAN id; null if untagged";
    StartNs: "start_ns", Int64, true, "with `--subsecond`: time of the first packet, Unix ns, to the kernel's timer tick";
    EndNs: "end_ns", Int64, true, "with `--subsecond`: time of the last packet, Unix ns, to the kernel's timer tick";
    RejectReason: "reject_reason", Utf8, true, "the kernel's drop reason, such as NETFILTER_DROP";
    RuleId: "rule_id", Utf8, false, "id of the flow log; its name without a rule store";
    NodeId: "node_id", Utf8, false, "node that captured it";
    WindowStart: "window_start", Int64, false, "start of the window, Unix seconds";
    Sequence: "sequence", Int64, false, "part of the window: 0, or the millisecond it began at";
    WindowMarks: "window_marks", Utf8, true, "begins_late, ends_early, ends_late, flushed_early, late (holds packets of an earlier window), gap; null: a whole window";
    SkipReason: "skip_reason", Utf8, true, "why packets are in no row: ring_full, malformed, spool_full, not_encoded; verdict_unknown: they are in ACCEPT rows, and it is not known whether they were refused; gap: capture stood still; xdp_dropped, xdp_forwarded: somebody else's XDP program took them before any hook, by the driver's count, which has no bytes";
    LostPackets: "lost_packets", Int64, true, "of an ACCEPT row's packets, those that died on their way after the firewall had let them through; null if none is known";
    LostBytes: "lost_bytes", Int64, true, "layer-3 bytes of those";
    LostReason: "lost_reason", Utf8, true, "the kernel's drop reason that most of those died for, such as QDISC_DROP";
    RuleMark: "rule_mark", Int64, true, "the mark that the firewall had given a refused packet or its connection; null if none";
    VerdictRule: "verdict_rule", Utf8, true, "what refused it: the name that `verdict_marks` has for the mark, else the part of the kernel, such as netfilter, with the program where it can be known";
    PktSrcAddr: "pkt_srcaddr", Utf8, true, "with `--translations`: source address on the other side of an address translation; null if there is none, or it is not known";
    PktDstAddr: "pkt_dstaddr", Utf8, true, "destination address on that side; likewise";
    PktSrcPort: "pkt_srcport", Int32, true, "source port on that side; likewise, and 0 as in srcport";
    PktDstPort: "pkt_dstport", Int32, true, "destination port on that side; likewise";
    Initiator: "initiator", Boolean, true, "whether the row's source opened the connection: by TCP's handshake, else by connection tracking where translations are wanted; null if neither shows it";
    FlowState: "flow_state", Utf8, true, "of an ACCEPT row: begin, end, whole (both) or continue (neither), as far as the window shows it";
    EndCause: "end_cause", Utf8, true, "how the end showed: fin, rst, or idle (no TCP, and two minutes without a packet)";
    RttUs: "rtt_us", Int64, true, "time of the TCP handshake from SYN to SYN-ACK at this interface, microseconds; in the rows of both directions";
}

/// The Arrow schema of [`COLUMNS`].
#[must_use]
pub(crate) fn schema() -> Arc<Schema> {
    let field = |c: &ColumnSpec| Field::new(c.name, c.of.clone(), c.nullable);
    Arc::new(Schema::new(COLUMNS.iter().map(field).collect::<Vec<_>>()))
}
