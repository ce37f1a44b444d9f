//! Live flows: which are asked for ([`filter`]), and what is shown of them.
//!
//! Names of fields are those of the columns of objects, where there is such a column.

pub mod filter;

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use self::filter::{FlowFilter, InterfaceFacts};
use crate::rule::{InvalidField, words};

/// What became of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Let through.
    Accepted,
    /// A firewall refused them.
    Rejected,
    /// Let through, and died on their way: they are in an accepted line as well.
    Lost,
}

impl Verdict {
    const ALL: [Self; 3] = [Self::Accepted, Self::Rejected, Self::Lost];

    /// As in queries.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Rejected => "rejected",
            Self::Lost => "lost",
        }
    }
}

impl FromStr for Verdict {
    type Err = InvalidField;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let named = Self::ALL.into_iter().find(|verdict| verdict.as_str() == s);
        named.ok_or_else(|| InvalidField::new("verdict", s, words(&Self::ALL.map(Self::as_str))))
    }
}

/// Observers at the same time: each compares every record with its filter.
pub const OBSERVERS_MAX: usize = 16;
/// Of these, of one contract: others have their share.
pub const OBSERVERS_EACH: usize = 4;
/// Most flows of open windows that are shown to one observer.
pub const RECENT_MAX: usize = 10_000;

/// What an observer may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sight {
    /// All of the node.
    Node,
    /// Interfaces of one contract.
    Contract(String),
}

impl Sight {
    /// Whether interfaces of a contract may be seen.
    #[must_use]
    pub fn sees(&self, account_id: Option<&str>) -> bool {
        match self {
            Self::Node => true,
            Self::Contract(contract) => account_id == Some(contract),
        }
    }
}

/// What is asked for of the open windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecentAsk {
    /// So many flows at most, those with the latest packets.
    pub last: usize,
    /// Only flows with a packet in so much time; `None`: since their window began.
    pub within: Option<Duration>,
}

/// What an observer asks for.
#[derive(Clone, Debug)]
pub struct Ask {
    /// What it may see.
    pub sight: Sight,
    /// Which flows.
    pub filter: FlowFilter,
    /// What of them.
    pub what: What,
}

/// What is wanted of the flows.
#[derive(Clone, Copy, Debug)]
pub enum What {
    /// Themselves: those of the open windows first, then those that come.
    Flows {
        /// Those of the open windows.
        recent: Option<RecentAsk>,
        /// Those that come.
        follow: bool,
    },
    /// Sums.
    Top {
        /// Of each stretch of this length; `None`: once, of the open windows.
        every: Option<Duration>,
        /// So many of each kind at most.
        entries: usize,
    },
}

/// What an observer gets.
#[derive(Clone, Debug, PartialEq)]
pub enum Batch {
    /// Flows.
    Flows(Vec<FlowLine>),
    /// Sums of a stretch of time.
    Top(Box<TopReport>),
}

/// Why nobody may look now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LiveError {
    /// Too many look.
    #[error("{OBSERVERS_MAX} observers are looking at live flows of this node already; try again when one has gone")]
    Full,
    /// Too many of one contract look.
    #[error("{OBSERVERS_EACH} observers of this contract are looking at live flows already; end one of them")]
    FullForContract,
    /// Whoever is asked has no kernel.
    #[error("live flows are on their nodes: ask the one that has the NIC, with `flowlog observe` there")]
    Elsewhere,
}

impl Ask {
    /// Whether flows of an interface may be shown, and can be among what is asked for.
    #[must_use]
    pub fn takes(&self, account_id: Option<&str>, of: &InterfaceFacts<'_>) -> bool {
        self.sight.sees(account_id) && self.filter.takes_interface(of)
    }
}

/// The beginning of a stream.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Begun {
    /// What was asked for of the open windows.
    pub batch: Option<Batch>,
    /// Lines that there would have been as well.
    pub left_out: u64,
    /// Since when the open windows count, at the latest; Unix seconds.
    pub since_secs: Option<i64>,
    /// What was asked for by a name that nothing has now, in words.
    pub unknown: Vec<String>,
}

/// What is shown of a flow: one record, as it has left the kernel, or a flow of an open window.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowLine {
    /// Its last packet, in RFC 3339, UTC.
    pub time: String,
    /// What its flow log is called.
    pub flow_log: String,
    /// Id of its interface, as in objects.
    pub interface_id: String,
    /// Name of the interface on the node.
    pub interface: String,
    /// `ACCEPT` or `REJECT`.
    pub action: String,
    /// `ingress` or `egress`, as the interface's owner sees it.
    pub flow_direction: String,
    /// Number of the IP protocol.
    pub protocol: u8,
    /// Source address.
    pub srcaddr: String,
    /// Source port, if the protocol has ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub srcport: Option<u16>,
    /// Destination address.
    pub dstaddr: String,
    /// Destination port, if the protocol has ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dstport: Option<u16>,
    /// ICMP type, if it is ICMP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u16>,
    /// ICMP code, if it is ICMP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u16>,
    /// Packets of this line; 0 if it says that packets of another one were lost.
    pub packets: u64,
    /// Their bytes, from the IP header on.
    pub bytes: u64,
    /// OR of the TCP flags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_flags: Option<u8>,
    /// VLAN id, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan_id: Option<u16>,
    /// The kernel's name for why they were refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reject_reason: Option<String>,
    /// Which rule refused them, by the firewall's mark, else which part of the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict_rule: Option<String>,
    /// Accepted packets that died on their way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_packets: Option<u64>,
    /// Their bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_bytes: Option<u64>,
    /// The kernel's name for why they died.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_reason: Option<String>,
}

/// What a stream of flows says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FlowEvent {
    /// At the beginning, if flows of the open windows were asked for.
    Windows {
        /// Since when all of them count, in RFC 3339; what was before is in objects.
        windows_since: Option<String>,
        /// Flows that there were as well.
        left_out: u64,
    },
    /// A flow.
    Flow(Box<FlowLine>),
    /// The stream is over before whoever reads it wanted that.
    Ended {
        /// Why, in words.
        ended: String,
    },
    /// At the beginning: what was asked for by a name that nothing has now. It may come.
    Note {
        /// In words.
        note: String,
    },
    /// How many lines could not be shown since the stream began: whoever reads was too slow, or the agent busy.
    Lost {
        /// So many.
        lost_lines: u64,
    },
}

/// Packets and bytes by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopCounts {
    /// Packets that were let through.
    pub accepted_packets: u64,
    /// Their bytes.
    pub accepted_bytes: u64,
    /// Packets that were refused.
    pub rejected_packets: u64,
    /// Their bytes.
    pub rejected_bytes: u64,
    /// Of the accepted ones, those that died on their way.
    pub lost_packets: u64,
}

impl TopCounts {
    /// All packets, whatever became of them.
    #[must_use]
    pub fn packets(&self) -> u64 {
        self.accepted_packets + self.rejected_packets
    }

    /// All bytes, whatever became of them.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.accepted_bytes + self.rejected_bytes
    }
}

/// One of the largest of its kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopEntry {
    /// What it is: an interface's id, an address, a flow, a drop reason.
    pub name: String,
    /// What people call it, if that is something else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Its counts.
    #[serde(flatten)]
    pub counts: TopCounts,
}

/// The largest of each kind, in a stretch of time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopReport {
    /// Where that ends, in RFC 3339, UTC.
    pub time: String,
    /// How long it is, in ms.
    pub interval_ms: u64,
    /// All that was seen.
    pub total: TopCounts,
    /// Interfaces by packets.
    pub interfaces: Vec<TopEntry>,
    /// Flows by packets.
    pub flows: Vec<TopEntry>,
    /// Source addresses by packets.
    pub talkers: Vec<TopEntry>,
    /// Reasons for which packets were refused, or lost, by packets.
    pub reasons: Vec<TopEntry>,
    /// Packets of small flows and talkers that had to make room for others: what a shown one may have too few.
    pub not_told_apart_packets: u64,
    /// Records that could not be looked at since the stream began: sums are too small by what they held.
    pub lost_records: u64,
}

/// Name of a protocol, as people write it; else its number.
#[must_use]
pub fn protocol_name(number: u8) -> String {
    filter::PROTOCOLS
        .iter()
        .find(|(_, n)| *n == number)
        .map_or_else(|| number.to_string(), |(name, _)| (*name).to_owned())
}

impl FlowLine {
    /// One end of the flow: an address, and a port if there is one.
    fn end(f: &mut fmt::Formatter<'_>, address: &str, port: Option<u16>) -> fmt::Result {
        match port {
            Some(port) if address.contains(':') => write!(f, "[{address}]:{port}"),
            Some(port) => write!(f, "{address}:{port}"),
            None => f.write_str(address),
        }
    }
}

/// The flow itself, as one word of each end: `tcp 10.0.0.2:443 > 10.0.0.9:40112`.
impl fmt::Display for FlowLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&protocol_name(self.protocol))?;
        if let (Some(kind), Some(code)) = (self.icmp_type, self.icmp_code) {
            write!(f, "/{kind}.{code}")?;
        }
        f.write_str(" ")?;
        Self::end(f, &self.srcaddr, self.srcport)?;
        f.write_str(" > ")?;
        Self::end(f, &self.dstaddr, self.dstport)
    }
}
