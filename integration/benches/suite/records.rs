//! A realistic window of one NIC, made up: ten minutes, Zipf-like peers, a fifth IPv6, 7 % refused, log-normal-like sizes.
//! The same records every time. Ratios between ways to store them mean something; absolute sizes only roughly.
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "made-up numbers"
)]

use flowlog_ebpf::{
    abi::{self, Key, Meta, Stats, class},
    packet::ip6,
};
use flowlog_model::{
    MonoNs, Now, WallNs,
    rule::{Action, Directions, Format, Layout, Rule},
};
use flowlog_pipeline::{
    encode::ObjectInfo,
    window::{FlowTable, WindowClock, block::Record},
};

/// Length of the window.
pub(crate) const WINDOW_SECS: u32 = 600;
const TICK_NS: u64 = 4_000_000;

pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Small numbers often, large ones seldom.
    pub(crate) fn skewed(&mut self, n: u64) -> u64 {
        ((n as f64).powf(self.unit()) - 1.0) as u64
    }
}

pub(crate) fn record(r: &mut Random) -> Record {
    let peer = r.skewed(200_000);
    let outgoing = r.below(2) == 0;
    let v6 = r.below(5) == 0;
    let service = [443, 80, 53, 22, 5432, 8080][r.skewed(6) as usize];
    let client = 32_768 + r.below(28_000) as u16;
    let (sport, dport) = if outgoing { (client, service) } else { (service, client) };
    let refused = r.below(100) < 7;
    let proto = if service == 53 { 17 } else { 6 };
    let flags = Meta::pack(u8::from(outgoing), if refused { class::REFUSED } else { class::PASSED });
    let reason = if refused { 12 } else { 0 };
    let meta = Meta { sport, dport, vlan: 0, iface: 1, reason, proto, flags, epoch: 1 };
    let packets = if refused { 1 + r.below(3) } else { 1 + r.skewed(50_000) };
    let first_ns = r.below(150_000) * TICK_NS;
    let last_ns =
        (first_ns + r.skewed(600_000_000_000 / TICK_NS) * TICK_NS).min(u64::from(WINDOW_SECS) * 1_000_000_000);
    let bytes = packets * (40 + r.skewed(1_460));
    let tcp_flags = if proto == 6 { [0x1b, 0x1a, 0x02, 0x1f][r.skewed(4) as usize] } else { 0 };
    let stats = Stats { first_ns, last_ns, bytes, packets, tcp_flags, tag: 0 };
    if v6 {
        let remote = (0x2001_0db8_u128 << 96) | u128::from(peer.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let local = 0x2001_0db8_00ff_u128 << 80 | 7;
        let (a, b) = if outgoing { (local, remote) } else { (remote, local) };
        Record::V6(abi::Record { key: Key { src: ip6(a.to_be_bytes()), dst: ip6(b.to_be_bytes()), meta }, stats })
    } else {
        let remote = (peer as u32).wrapping_mul(2_654_435_761);
        let local = 0x0a00_0007_u32;
        let (a, b) = if outgoing { (local, remote) } else { (remote, local) };
        Record::V4(abi::Record { key: Key { src: a.to_be(), dst: b.to_be(), meta }, stats })
    }
}

/// The same `n` records each time: they are made from a fixed seed.
pub(crate) fn records(n: usize) -> Vec<Record> {
    let mut random = Random(0x1234_5678_9abc_def1);
    (0..n).map(|_| record(&mut random)).collect()
}

/// Adds a record to a table.
pub(crate) fn add(table: &mut FlowTable, record: &Record) {
    match record {
        Record::V4(r) => table.add4(r),
        Record::V6(r) => table.add6(r),
    }
}

/// All of them as a table.
pub(crate) fn table(records: &[Record]) -> FlowTable {
    let mut table = FlowTable::default();
    for record in records {
        add(&mut table, record);
    }
    table
}

/// What an object says besides its rows.
pub(crate) fn info() -> ObjectInfo {
    let now = Now { mono: MonoNs(0), wall: WallNs(1_795_440_000_123_456_789) };
    let rule = Rule {
        id: None,
        name: "measure".parse().expect("a name"),
        directions: Directions::Bidirectional,
        action: Action::Any,
        target: "/tmp".parse().expect("a target"),
        window_secs: WINDOW_SECS,
        nodata: true,
        subsecond: false,
        layout: Layout::Hive,
        format: Format::Parquet,
    };
    let span = *WindowClock::new(WINDOW_SECS, now).current();
    ObjectInfo::sample(rule, "node-17", "5c1b7c1e-0a55-4e1c-9d2f-0f6f0c5ad001", span)
}
