//! Merging records by flow.

use flowlog_ebpf::abi::{Ip4, Ip6, Key, Record, Record4, Record6, Stats};
use hashbrown::HashMap;

/// Counters of one flow in one window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// First packet, monotonic ns.
    pub first_ns: u64,
    /// Last packet, monotonic ns.
    pub last_ns: u64,
    /// Wire layer-3 bytes.
    pub bytes: u64,
    /// Wire packets.
    pub packets: u64,
    /// OR of all TCP flags.
    pub tcp_flags: u8,
}

impl Totals {
    fn of(s: &Stats) -> Self {
        Self {
            first_ns: s.first_ns,
            last_ns: s.last_ns,
            bytes: s.bytes,
            packets: s.packets,
            tcp_flags: s.tcp_flags.to_le_bytes()[0],
        }
    }

    /// Adds another record of the same flow; records arrive in any order.
    pub fn merge(&mut self, other: &Self) {
        self.first_ns = self.first_ns.min(other.first_ns);
        self.last_ns = self.last_ns.max(other.last_ns);
        self.bytes += other.bytes;
        self.packets += other.packets;
        self.tcp_flags |= other.tcp_flags;
    }
}

/// Addresses of a flow, by family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// Source and destination.
    V4([u8; 4], [u8; 4]),
    /// Source and destination.
    V6([u8; 16], [u8; 16]),
}

/// One flow of a settled window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Source and destination.
    pub addresses: Addresses,
    /// Ports (or ICMP type and code), protocol, direction, class, reason.
    pub meta: flowlog_ebpf::abi::Meta,
    /// Counters.
    pub totals: Totals,
}

/// The flows of one interface and window. A key still carries class and reason: verdicts are settled later.
#[derive(Debug, Default)]
pub struct FlowTable {
    pub(super) v4: HashMap<Key<Ip4>, Totals>,
    pub(super) v6: HashMap<Key<Ip6>, Totals>,
}

impl FlowTable {
    /// Adds an IPv4 record.
    pub fn add4(&mut self, record: &Record4) {
        add(&mut self.v4, record);
    }

    /// Adds an IPv6 record.
    pub fn add6(&mut self, record: &Record6) {
        add(&mut self.v6, record);
    }

    /// Number of different flows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn add<A: Copy + Eq + std::hash::Hash>(map: &mut HashMap<Key<A>, Totals>, record: &Record<A>) {
    let totals = Totals::of(&record.stats);
    map.entry(record.key).and_modify(|t| t.merge(&totals)).or_insert(totals);
}
