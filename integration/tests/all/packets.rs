//! P6, right about packets: the golden table, on the host and in the kernel; GSO; non-linear buffers; non-IP.

use flowlog_ebpf::{
    abi::{self, Count, Iface, Truth},
    packet::{self, Packet},
};
use flowlog_kernel::{Kernel, Ring, Sizes};
use flowlog_model::{
    Epoch, IfaceId,
    interface::IfKey,
    sweep::{Cursor, Scope, Swept},
};
use flowlog_pipeline::window::block::Record;
use integration::{
    agent::Agent,
    golden::{self, Golden},
    net::Pair,
    traffic,
};

#[test]
fn every_golden_packet_parses_as_expected_on_the_host() {
    for g in golden::table() {
        let parsed = packet::parse(g.frame.as_slice(), g.frame_info());
        assert_eq!(without_place(parsed), g.packet, "{}", g.name);
        assert_eq!(wire(&g, &parsed), (g.packets, g.bytes), "{}", g.name);
    }
}

/// The table says nothing of where headers end and of which datagram a fragment is.
fn without_place(packet: Packet) -> Packet {
    let fragment = packet::Fragment::NONE;
    match packet {
        Packet::V4(f) => Packet::V4(packet::Flow { ip_header: 0, fragment, ..f }),
        Packet::V6(f) => Packet::V6(packet::Flow { ip_header: 0, fragment, ..f }),
        other => other,
    }
}

fn wire(g: &Golden, parsed: &Packet) -> (u32, u32) {
    match parsed {
        Packet::V4(f) => packet::wire(f.l3_len, f.headers, g.gso_size, g.gso_segs),
        Packet::V6(f) => packet::wire(f.l3_len, f.headers, g.gso_size, g.gso_segs),
        Packet::NonIp(n) | Packet::Malformed(n) => (1, *n),
    }
}

/// Every hook, and the direction that it counts; those for other namespaces find the loopback where nothing is added to its index.
const PROGRAMS: [(&str, u8); 6] = [
    ("flowlog_tc_ingress", 0),
    ("flowlog_tc_egress", 1),
    ("flowlog_xdp", 0),
    ("flowlog_elsewhere_ingress", 0),
    ("flowlog_elsewhere_egress", 1),
    ("flowlog_elsewhere_xdp", 0),
];

fn is_xdp(program: &str) -> bool {
    program.ends_with("_xdp")
}

/// The programs, with the loopback device watched: `BPF_PROG_TEST_RUN` pretends that packets come from it.
struct Bench {
    kernel: Kernel,
    ring: Ring,
}

const ID: IfaceId = IfaceId(1);
const EPOCH: Epoch = Epoch(1);
const LOOPBACK: IfKey = IfKey { netns_inum: 1, index: 1 };

impl Bench {
    fn new() -> Self {
        Self::with(Sizes::default())
    }

    fn with(sizes: Sizes) -> Self {
        let mut kernel = Kernel::load(sizes, 1).unwrap();
        kernel.programs.load_all().unwrap();
        let ring = kernel.take_ring().unwrap();
        Self { kernel, ring }
    }

    /// What has left the caches, and what is in them.
    fn sweep(&mut self) -> Vec<Record> {
        let swept = self.kernel.sweeper.sweep(&self.kernel.programs, Scope::All, Cursor::default(), || false);
        assert_eq!(swept.unwrap(), Swept::Done);
        integration::ring::take(&mut self.ring)
    }

    /// Runs one program on one packet; returns its records and its counters.
    fn run(&mut self, program: &str, g: &Golden) -> (Vec<Record>, Truth) {
        // `struct __sk_buff` (include/uapi/linux/bpf.h): gso_segs at 164, gso_size at 176.
        let mut sk_buff = [0u8; 192];
        sk_buff[164..168].copy_from_slice(&g.gso_segs.to_ne_bytes());
        sk_buff[176..180].copy_from_slice(&g.gso_size.to_ne_bytes());
        let context = (!is_xdp(program)).then_some(sk_buff.as_slice());
        let by_xdp = if is_xdp(program) { abi::XDP_INGRESS } else { 0 };
        let flags = abi::WANT_INGRESS | abi::WANT_EGRESS | by_xdp;
        let iface = Iface { id: ID.0, flags, epoch: EPOCH.0, oldest: EPOCH.0, by_xdp: 0 };
        self.kernel.interfaces.unwatch(LOOPBACK);
        self.kernel.interfaces.watch(LOOPBACK, iface).unwrap();
        let verdict =
            self.kernel.programs.test_run(program, &g.frame, context).unwrap_or_else(|e| panic!("{}: {e}", g.name));
        let pass = if is_xdp(program) { 2 } else { u32::MAX };
        assert_eq!(verdict, pass, "{}: never anything but XDP_PASS and TCX_NEXT", g.name);
        let records = self.sweep();
        let truth = self.kernel.truth.get(ID, EPOCH).unwrap();
        self.kernel.truth.clear(ID, EPOCH).unwrap();
        (records, truth)
    }
}

/// Source, destination, the rest of the key, TCP flags, packets, bytes.
type Flat = (Vec<u64>, Vec<u64>, abi::Meta, u32, u64, u64);

fn words4(address: abi::Ip4) -> Vec<u64> {
    vec![u64::from(address)]
}

fn flat(record: &Record) -> Flat {
    match record {
        Record::V4(r) => {
            (words4(r.key.src), words4(r.key.dst), r.key.meta, r.stats.tcp_flags, r.stats.packets, r.stats.bytes)
        }
        Record::V6(r) => {
            (r.key.src.to_vec(), r.key.dst.to_vec(), r.key.meta, r.stats.tcp_flags, r.stats.packets, r.stats.bytes)
        }
    }
}

fn expected(g: &Golden, direction: u8) -> Option<Flat> {
    let of = |src: Vec<u64>, dst, (sport, dport, vlan, proto), flags| {
        let meta = abi::Meta { sport, dport, vlan, iface: ID.0, reason: 0, proto, flags: direction, epoch: EPOCH.0 };
        Some((src, dst, meta, u32::from(flags) | abi::handshake(flags), u64::from(g.packets), u64::from(g.bytes)))
    };
    match &g.packet {
        Packet::V4(f) => of(words4(f.src), words4(f.dst), (f.sport, f.dport, f.vlan, f.proto), f.tcp_flags),
        Packet::V6(f) => of(f.src.to_vec(), f.dst.to_vec(), (f.sport, f.dport, f.vlan, f.proto), f.tcp_flags),
        Packet::NonIp(_) | Packet::Malformed(_) => None,
    }
}

/// Bytes that `BPF_PROG_TEST_RUN` takes: a page less head and tail room.
const TEST_RUN_MAX: usize = 3_000 + 200;

/// `BPF_PROG_TEST_RUN` refuses to build a buffer whose IP header is cut short; XDP takes such frames.
fn can_be_run(program: &str, g: &Golden) -> bool {
    let header = match g.frame[12..14] {
        [0x08, 0x00] => 20,
        [0x86, 0xdd] => 40,
        _ => 0,
    };
    if g.frame.len() > TEST_RUN_MAX {
        return false;
    }
    // XDP sees frames as on the wire, never GSO.
    if is_xdp(program) { g.gso_size == 0 } else { g.frame.len() >= 14 + header }
}

#[test]
fn every_golden_packet_counts_the_same_in_the_kernel_tc_and_xdp() {
    let mut bench = Bench::new();
    for (program, direction) in PROGRAMS {
        for g in golden::table().into_iter().filter(|g| can_be_run(program, g)) {
            let what = format!("{program}: {}", g.name);
            let (records, truth) = bench.run(program, &g);
            let records: Vec<_> = records.iter().map(flat).collect();
            assert_eq!(records, expected(&g, direction).into_iter().collect::<Vec<_>>(), "{what}");
            let hook = truth.hook[usize::from(direction)];
            let count = Count { packets: u64::from(g.packets), bytes: u64::from(g.bytes) };
            assert_eq!(hook.seen, count, "{what}");
            let of = |yes| if yes { count } else { Count::default() };
            assert_eq!(hook.non_ip, of(matches!(g.packet, Packet::NonIp(_))), "{what}");
            assert_eq!(hook.malformed, of(matches!(g.packet, Packet::Malformed(_))), "{what}");
        }
    }
}

/// Of 300 flows in 1,024 slots, 76 have the same slot as another one, and 35 the same pair of slots as two others or more.
#[test]
fn two_flows_with_the_same_home_are_both_kept_in_the_cache() {
    const FLOWS: u16 = 300;
    const ROUNDS: u64 = 20;
    let mut bench = Bench::with(Sizes { passed_slots: 1_024, ..Sizes::default() });
    let flags = abi::WANT_INGRESS;
    let iface = Iface { id: ID.0, flags, epoch: EPOCH.0, oldest: EPOCH.0, by_xdp: 0 };
    bench.kernel.interfaces.watch(LOOPBACK, iface).unwrap();
    let records = std::thread::scope(|scope| {
        let records = scope.spawn(|| {
            traffic::pin_to_cpu(0);
            for _ in 0..ROUNDS {
                for flow in 0..FLOWS {
                    let from = ([10, 0, 0, 1].into(), 1_000 + flow);
                    let frame = traffic::udp4(([2; 6], [4; 6]), from, ([10, 0, 0, 2].into(), 7), 8);
                    bench.kernel.programs.test_run("flowlog_tc_ingress", &frame, None).unwrap();
                }
            }
            bench.sweep()
        });
        records.join().unwrap()
    });
    let mut packets = std::collections::BTreeMap::<u16, u64>::new();
    for record in &records {
        let Record::V4(record) = record else { panic!("{record:?}") };
        *packets.entry(record.key.meta.sport).or_default() += record.stats.packets;
    }
    assert_eq!(packets, (0..FLOWS).map(|flow| (1_000 + flow, ROUNDS)).collect());
    // One record of each flow is left at the end.
    let evicted = records.len() - usize::from(FLOWS);
    // By itself each of the 76 would be evicted in each round: 1,520 times. So many times chance brings together in a pair.
    assert!(evicted < 1_000, "{evicted} records have left the cache before the end");
}

/// `CLOCK_MONOTONIC_COARSE` in ns.
fn coarse_ns() -> u64 {
    let at = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    u64::try_from(at.tv_sec * 1_000_000_000 + at.tv_nsec).unwrap()
}

/// The programs ask the kernel's clock once in a tick: what they were told must not outlive it.
#[test]
fn a_packets_time_is_that_of_the_last_tick_on_every_hook_in_every_tick() {
    let mut bench = Bench::new();
    let g = golden::table().into_iter().find(|g| matches!(g.packet, Packet::V4(_)) && g.gso_size == 0).unwrap();
    for _ in 0..100 {
        let last = coarse_ns();
        while coarse_ns() == last {}
        for (program, _) in PROGRAMS.into_iter().filter(|(p, _)| can_be_run(p, &g)) {
            let before = coarse_ns();
            let (records, _) = bench.run(program, &g);
            let after = coarse_ns();
            let Record::V4(record) = records[0] else { panic!("{program}: {records:?}") };
            let told = record.stats.first_ns;
            assert!((before..=after).contains(&told), "{program}: {told} is not between {before} and {after}");
        }
    }
}

#[test]
fn every_cut_of_every_golden_packet_is_counted_in_the_kernel_as_on_the_host() {
    let mut bench = Bench::new();
    for g in golden::table().into_iter().filter(|g| g.gso_size == 0) {
        for cut in (14..g.frame.len()).step_by(3) {
            let mut g = g.clone();
            g.frame.truncate(cut);
            g.packet = packet::parse(g.frame.as_slice(), g.frame_info());
            (g.packets, g.bytes) = wire(&g, &g.packet);
            for program in ["flowlog_tc_ingress", "flowlog_xdp"].into_iter().filter(|p| can_be_run(p, &g)) {
                let (records, truth) = bench.run(program, &g);
                let records: Vec<_> = records.iter().map(flat).collect();
                assert_eq!(
                    records,
                    expected(&g, 0).into_iter().collect::<Vec<_>>(),
                    "{program} {} cut at {cut}",
                    g.name
                );
                assert_eq!(truth.hook[0].seen.packets, 1);
            }
        }
    }
}

#[test]
fn a_gso_stream_counts_the_packets_and_bytes_of_the_wire() {
    let (segments, frames) = stream(&Pair::new().unwrap(), "10.1.0.1:5001", 20);
    assert!(segments > frames * 2, "the stream was sent as GSO buffers: {segments} segments in {frames} frames");
}

#[test]
fn a_big_tcp_stream_over_ipv6_counts_the_packets_and_bytes_of_the_wire() {
    let pair = Pair::new().unwrap();
    for ns in [&pair.a, &pair.b] {
        ns.exec("ip link set eth0 gso_max_size 200000 gro_max_size 200000").unwrap();
    }
    let (segments, frames) = stream(&pair, "[fd01::1]:5001", 40);
    assert!(segments > frames * 50, "sent in buffers of more than 64 KiB: {segments} segments in {frames} frames");
}

/// Sends a long stream from an address of `a` to `b`; every segment has an IP header of `ip` bytes. Returns the segments, and
/// the frames that they were carried in.
fn stream(pair: &Pair, address: &str, ip: u64) -> (u64, u64) {
    let agent = Agent::start(&pair.a, &["eth0"], &[]).unwrap();
    let before = (pair.a.snmp("Tcp", "OutSegs").unwrap(), pair.a.snmp("Tcp", "InSegs").unwrap());
    let payload = 64 << 20;
    pair.a.run(|| {
        let listener = std::net::TcpListener::bind(address).unwrap();
        let client = std::thread::scope(|s| {
            let reader = s.spawn(|| {
                pair.b.run(|| std::io::copy(&mut std::net::TcpStream::connect(address).unwrap(), &mut std::io::sink()))
            });
            let (mut stream, _) = listener.accept().unwrap();
            let block = vec![0u8; 1 << 20];
            for _ in 0..payload >> 20 {
                std::io::Write::write_all(&mut stream, &block).unwrap();
            }
            drop(stream);
            reader.join().unwrap().unwrap()
        });
        assert_eq!(client, payload);
    });
    let frames = pair.a.statistic("eth0", "tx_packets").unwrap();
    let landed = agent.stop().unwrap();
    let out = landed.sum(|r| r.direction == "egress" && r.sport == 5001);
    let back = landed.sum(|r| r.direction == "ingress" && r.dport == 5001);
    // The TCP stack counts segments, not buffers: the witness. It counts those sent again apart (RFC 4022).
    let retransmitted = pair.a.snmp("Tcp", "RetransSegs").unwrap();
    let segments = pair.a.snmp("Tcp", "OutSegs").unwrap() - before.0 + retransmitted;
    assert_eq!(out.0, segments);
    assert_eq!(back.0, pair.a.snmp("Tcp", "InSegs").unwrap() - before.1);
    // Each segment repeats the IP header and 32 bytes of TCP (timestamps); SYN-ACK has 8 bytes more.
    let headers = ip + 32;
    let low = payload + segments * headers;
    let high = low + 16;
    assert!(retransmitted > 0 || (low..=high).contains(&out.1), "{} not in {low}..={high}", out.1);
    (segments, frames)
}

#[test]
fn what_a_fragment_does_not_have_is_null_in_its_row() {
    let pair = Pair::new().unwrap();
    let agent = Agent::start(&pair.a, &["eth0"], &[]).unwrap();
    let names = ["last fragment has no ports", "later fragment has no icmp type", "icmp echo request"];
    let frames: Vec<_> = golden::table().into_iter().filter(|g| names.contains(&g.name)).map(|g| g.frame).collect();
    assert_eq!(frames.len(), 3);
    pair.b.run(|| traffic::Raw::open("eth0").unwrap().send(&frames)).unwrap();
    let landed = agent.stop().unwrap();
    let mut rows: Vec<_> = landed
        .rows
        .iter()
        .filter(|r| r.dst == "192.0.2.7")
        .map(|r| (r.protocol, r.sport, r.dport, r.tcp_flags, r.icmp_type, r.packets))
        .collect();
    rows.sort_unstable();
    assert_eq!(rows, [(1, 0, 0, -1, -1, 1), (1, 0, 0, -1, 8, 1), (6, 0, 0, -1, -1, 1)]);
}

#[test]
fn headers_outside_the_linear_part_are_parsed() {
    let pair = Pair::new().unwrap();
    for ns in [&pair.a, &pair.b] {
        ns.exec("ip link set eth0 mtu 9000").unwrap();
    }
    let agent = Agent::start(&pair.a, &["eth0"], &[]).unwrap();
    let macs = (pair.b.mac("eth0").unwrap(), pair.a.mac("eth0").unwrap());
    let frame = traffic::udp4(macs, ([10, 1, 0, 2].into(), 4000), ([10, 1, 0, 1].into(), 4001), 6_000);
    pair.b.run(|| traffic::Raw::open("eth0").unwrap().send_non_linear(&frame, 14)).unwrap();
    let landed = agent.stop().unwrap();
    assert_eq!(landed.sum(|r| (r.sport, r.dport) == (4000, 4001)), (1, 6_028), "{:?}", landed.rows);
}

#[test]
fn non_ip_frames_are_counted_as_such_and_never_as_flows() {
    let pair = Pair::new().unwrap();
    let mut agent = Agent::start(&pair.a, &["eth0"], &[]).unwrap();
    let mut arp = vec![0xff; 6];
    arp.extend_from_slice(&pair.b.mac("eth0").unwrap());
    arp.extend_from_slice(&[8, 6]);
    arp.resize(60, 0);
    pair.b.run(|| traffic::Raw::open("eth0").unwrap().send(&vec![arp; 25])).unwrap();
    agent.signal(rustix::process::Signal::TERM);
    let line = agent.wait_for("window closed").unwrap();
    assert!(line.contains("non_ip=25/1150") && line.contains("difference=0/0"), "{line}");
}
