//! What encodings, order and row groups cost and save: the measurement behind `encode::parquet::CHOSEN`.
//!
//! Synthetic records: one NIC, 10 minutes, Zipf-like peers, 20 % IPv6, 7 % REJECT, log-normal-like sizes. Ratios
//! between lines are meaningful, absolute sizes only roughly.
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "made-up numbers and printed ratios"
)]

use std::time::Instant;

use flowlog_agent::{
    encode::{
        ObjectInfo,
        parquet::{CHOSEN, Order, Profile, write},
        rows::Rows,
    },
    rule::{Action, Directions, Rule},
    types::{MonoNs, Now, WallNs},
    window::{Addresses, Balance, Flow, Settled, Totals, WindowClock},
};
use flowlog_ebpf::abi::{Meta, class};

/// xorshift: the same records every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// Small numbers often, large ones seldom.
    fn skewed(&mut self, n: u64) -> u64 {
        let unit = (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        ((n as f64).powf(unit) - 1.0) as u64
    }
}

fn flow(r: &mut Random) -> Flow {
    const TICK_NS: u64 = 4_000_000;
    let peer = r.skewed(200_000);
    let outgoing = r.below(2) == 0;
    let addresses = if r.below(5) == 0 {
        let remote = (0x2001_0db8_u128 << 96) | u128::from(peer.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (a, b) = (0x2001_0db8_00ff_u128 << 80 | 7, remote);
        let (a, b) = if outgoing { (a, b) } else { (b, a) };
        Addresses::V6(a.to_be_bytes(), b.to_be_bytes())
    } else {
        let (a, b) = (0x0a00_0007_u32, (peer as u32).wrapping_mul(2_654_435_761));
        let (a, b) = if outgoing { (a, b) } else { (b, a) };
        Addresses::V4(a.to_be_bytes(), b.to_be_bytes())
    };
    let service = [443, 80, 53, 22, 5432, 8080][r.skewed(6) as usize];
    let client = 32_768 + r.below(28_000) as u16;
    let (sport, dport) = if outgoing { (client, service) } else { (service, client) };
    let refused = r.below(100) < 7;
    let proto = if service == 53 { 17 } else { 6 };
    let meta = Meta {
        sport,
        dport,
        iface: 1,
        reason: if refused { 12 } else { 0 },
        proto,
        flags: Meta::pack(u8::from(outgoing), if refused { class::REFUSED } else { class::PASSED }),
        ..Meta::default()
    };
    let packets = if refused { 1 + r.below(3) } else { 1 + r.skewed(50_000) };
    let first_ns = r.below(150_000) * TICK_NS;
    let last_ns = first_ns + r.skewed(600_000_000_000 / TICK_NS) * TICK_NS;
    let bytes = packets * (40 + r.skewed(1_460));
    let tcp_flags = if proto == 6 { [0x1b, 0x1a, 0x02, 0x1f][r.skewed(4) as usize] } else { 0 };
    Flow { addresses, meta, totals: Totals { first_ns, last_ns, bytes, packets, tcp_flags } }
}

fn info() -> ObjectInfo {
    let now = Now { mono: MonoNs(0), wall: WallNs(1_795_440_000_123_456_789) };
    let rule = Rule {
        name: "measure".parse().expect("name"),
        directions: Directions::Bidirectional,
        action: Action::Any,
        target: "/tmp".parse().expect("target"),
        window_secs: 600,
        nodata: true,
        hive_layout: true,
    };
    let span = *WindowClock::new(600, now).current();
    let interface_id = "5c1b7c1e-0a55-4e1c-9d2f-0f6f0c5ad001".to_owned();
    ObjectInfo {
        rule,
        node_id: "node-17".into(),
        account_id: None,
        interface_id,
        span,
        flushed_early: false,
        late: false,
    }
}

fn main() {
    let info = info();
    let mut random = Random(0x1234_5678_9abc_def1);
    let flows: Vec<Flow> = (0..500_000).map(|_| flow(&mut random)).collect();
    let name = |_: u16| Some("NETFILTER_DROP".to_owned());
    let measure = |what: &str, rows: usize, profile: Profile| {
        let settled = Settled { flows: flows[..rows].to_vec(), losses: Vec::new(), balance: Balance::default() };
        let rows_built = Rows::select(&info, settled);
        let start = Instant::now();
        let bytes = write(&info, rows_built, &name, profile).expect("encodes").len();
        let seconds = start.elapsed().as_secs_f64();
        println!("| {what} | {:.2} | {:.2} |", bytes as f64 / rows as f64, rows as f64 / seconds / 1e6);
    };
    println!("| variant | B/row | M rows/s |\n|---|---|---|");
    let n = flows.len();
    measure("chosen", n, CHOSEN);
    measure("sorted by service", n, Profile { order: Order::Service, ..CHOSEN });
    measure("zstd 3", n, Profile { zstd_level: 3, ..CHOSEN });
    measure("zstd 6", n, Profile { zstd_level: 6, ..CHOSEN });
    measure("uncompressed", n, Profile { zstd_level: 0, ..CHOSEN });
    measure("dictionary 1 MiB", n, Profile { dictionary_bytes: 1 << 20, ..CHOSEN });
    measure("dictionary 8 MiB", n, Profile { dictionary_bytes: 8 << 20, ..CHOSEN });
    measure("times not delta-coded", n, Profile { delta_times: false, ..CHOSEN });
    measure("row groups of 128 Ki", n, Profile { row_group_rows: 128 << 10, ..CHOSEN });
    for small in [1, 100, 1_000, 10_000, 100_000] {
        measure(&format!("chosen, {small} rows"), small, CHOSEN);
    }
}
