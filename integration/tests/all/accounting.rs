//! P1, conservation: rows + counted losses == packets sent == interface counters, exactly, packets and bytes,
//! accepted and refused, whatever is too small or stalled.

use std::{net::Ipv4Addr, time::Duration};

use flowlog_ebpf::abi::{RING_BYTES_DEFAULT, Record4};
use integration::{agent::Agent, net::Pair, rows::Objects, traffic};
use rustix::process::Signal;

/// One way to make life hard.
struct Case<'a> {
    name: &'a str,
    args: &'a [&'a str],
    /// How many 5-tuples are sent.
    flows: u32,
    /// Packets sent for each, from each CPU.
    rounds: u32,
    /// Stop the agent's process while packets are sent.
    stalled: bool,
    /// The firewall refuses every packet to an even port.
    firewall: bool,
    /// Pause after each 100 frames: the rate. None: as fast as it goes.
    pause: Option<Duration>,
    /// Whether losses must occur: otherwise the case does not test what it says.
    must_lose: bool,
}

const CPUS: u32 = 2;
const RING: &str = "--ring-bytes";
/// What guests of `cargo xtask vm` can spare: a sixth of their memory.
const RING_BYTES_MAX: u64 = 256 << 20;
const PAYLOAD: usize = 22;
const L3_BYTES: u64 = 28 + PAYLOAD as u64;

fn frames(pair: &Pair, flows: u32) -> Vec<Vec<u8>> {
    let macs = (pair.b.mac("eth0").unwrap(), pair.a.mac("eth0").unwrap());
    (0..flows)
        .map(|i| {
            // No route leads back to these sources: nothing is answered, and all counted packets are ours.
            let source = Ipv4Addr::from(0x0ac8_0000 + (i >> 10));
            traffic::udp4(
                macs,
                (source, 1_024 + (i & 0x3ff) as u16),
                ([10, 1, 0, 1].into(), 20_000 + (i & 1) as u16),
                PAYLOAD,
            )
        })
        .collect()
}

/// A ring for every record that a case can make, each packet one of its own and one more when it is refused: senders that take both CPUs
/// may keep the agent from reading, and what that loses says nothing about the agent.
fn ring_bytes(case: &Case<'_>) -> u64 {
    let packets = u64::from(CPUS * case.flows * case.rounds);
    let records = 2 * packets * size_of::<Record4>() as u64;
    records.next_power_of_two().clamp(u64::from(RING_BYTES_DEFAULT), RING_BYTES_MAX)
}

/// Frames and bytes, received and sent, by the interface's own count.
fn interface_counters(pair: &Pair) -> [(u64, u64); 2] {
    ["rx", "tx"].map(|side| {
        let of = |what: &str| pair.a.statistic("eth0", &format!("{side}_{what}")).unwrap();
        (of("packets"), of("bytes"))
    })
}

/// Sends all frames of a case, from every CPU at once.
fn send(pair: &Pair, case: &Case<'_>) {
    pair.b.run(|| {
        std::thread::scope(|scope| {
            for cpu in 0..CPUS {
                scope.spawn(move || {
                    let frames = frames(pair, case.flows);
                    pair.b.run(|| {
                        traffic::pin_to_cpu(cpu as usize);
                        let raw = traffic::Raw::open("eth0").unwrap();
                        for _ in 0..case.rounds {
                            let burst = if case.pause.is_some() { 100 } else { frames.len() };
                            for some in frames.chunks(burst) {
                                raw.send(some).unwrap();
                                if let Some(pause) = case.pause {
                                    std::thread::sleep(pause);
                                }
                            }
                        }
                    });
                });
            }
        });
    });
}

fn check(case: &Case<'_>) -> Objects {
    let name = case.name;
    let pair = Pair::new().unwrap();
    for ns in [&pair.a, &pair.b] {
        ns.sysctl("net.ipv6.conf.eth0.disable_ipv6", "1").unwrap();
    }
    let before = interface_counters(&pair);
    if case.firewall {
        pair.a
            .nft("table inet t {\n counter refused { }\n chain c { type filter hook input priority 0; udp dport 20000 counter name refused drop; }\n}")
            .unwrap();
    }
    let ring_bytes = ring_bytes(case).to_string();
    let mut args = case.args.to_vec();
    if !args.contains(&RING) {
        args.extend([RING, &ring_bytes]);
    }
    let agent = Agent::start(&pair.a, &["eth0"], &args).unwrap();
    if case.stalled {
        agent.signal(Signal::STOP);
    }
    send(&pair, case);
    if case.stalled {
        agent.signal(Signal::CONT);
    }
    pair.wait_until_quiet();
    let landed = agent.stop().unwrap();
    let after = interface_counters(&pair);
    let [rx, tx] = [0, 1].map(|i| (after[i].0 - before[i].0, after[i].1 - before[i].1));
    let by = |direction: &str| landed.sum(|r| r.direction == direction && r.skip != "verdict_unknown");
    let unknown = landed.sum(|r| r.skip == "verdict_unknown");
    let rejected = landed.flows("REJECT");
    let lost = landed.lost();
    let report = format!(
        "{name}: rx {rx:?} rows+losses {:?} rejected {rejected:?} lost {lost:?} unknown {unknown:?}",
        by("ingress")
    );
    eprintln!("{report}");
    assert_eq!(by("ingress"), (rx.0, rx.1 - 14 * rx.0), "{report}");
    assert_eq!(by("egress"), (tx.0, tx.1 - 14 * tx.0), "{report}");
    assert!(rx.0 > 0 && rx.0 <= u64::from(CPUS * case.flows * case.rounds));
    assert_eq!(lost.0 > 0, case.must_lose, "{report}");
    if case.firewall {
        let refused = pair.a.nft_counter("inet t", "refused").unwrap();
        assert_eq!(refused.0, refused.1 / L3_BYTES);
        let refused_lost = landed.sum(|r| r.status == "SKIPDATA" && r.action == "REJECT");
        assert_eq!((rejected.0 + refused_lost.0, rejected.1 + refused_lost.1), refused, "{report}");
        if unknown.0 == 0 && lost.0 == 0 {
            assert_eq!(landed.sum(|r| r.dport == 20_000 && r.action == "ACCEPT"), (0, 0), "{report}");
        }
    }
    for row in landed.rows.iter().filter(|r| r.status == "SKIPDATA") {
        assert!(row.packets > 0 && row.bytes > 0 && !row.skip.is_empty(), "{row:?}");
    }
    landed
}

const EASY: Case<'_> = Case {
    name: "",
    args: &[],
    flows: 1_000,
    rounds: 20,
    stalled: false,
    firewall: true,
    pause: None,
    must_lose: false,
};

#[test]
fn nothing_is_missing_when_all_is_well() {
    check(&Case { name: "easy", ..EASY });
    check(&Case { name: "no firewall", firewall: false, ..EASY });
    check(&Case { name: "10,000 a second", rounds: 2, pause: Some(Duration::from_millis(10)), ..EASY });
    check(&Case { name: "50,000 a second", rounds: 10, pause: Some(Duration::from_millis(2)), ..EASY });
    check(&Case { name: "one flow", flows: 1, rounds: 20_000, ..EASY });
}

#[test]
fn nothing_is_missing_with_a_cache_far_too_small() {
    let args = ["--cache-slots", "16", "--refused-slots", "16"];
    check(&Case { name: "tiny cache", args: &args, ..EASY });
    check(&Case { name: "tiny cache, many flows", args: &args, flows: 100_000, rounds: 1, ..EASY });
}

#[test]
fn nothing_is_missing_with_a_ring_far_too_small() {
    let args = ["--cache-slots", "16", "--refused-slots", "16", "--ring-bytes", "16384"];
    check(&Case { name: "tiny ring", args: &args, must_lose: true, ..EASY });
}

#[test]
fn nothing_is_missing_with_a_stalled_reader() {
    let args = ["--cache-slots", "1024", "--refused-slots", "256", "--ring-bytes", "262144"];
    check(&Case { name: "stalled", args: &args, flows: 50_000, rounds: 2, stalled: true, must_lose: true, ..EASY });
    check(&Case {
        name: "stalled, no firewall",
        args: &args,
        flows: 50_000,
        stalled: true,
        firewall: false,
        must_lose: true,
        ..EASY
    });
}

#[test]
fn nothing_is_missing_with_a_million_distinct_flows() {
    check(&Case { name: "million", flows: 1_000_000, rounds: 1, ..EASY });
}

#[test]
fn nothing_is_missing_when_windows_are_written_early_for_their_size() {
    let args = ["--flows-max", "5000"];
    let landed = check(&Case { name: "memory cap", args: &args, flows: 50_000, rounds: 2, ..EASY });
    assert!(landed.keys.len() > 1, "{:?}", landed.keys);
    assert!(landed.rows.iter().any(|r| r.marks.contains("flushed_early")));
}

#[test]
fn nothing_is_missing_when_windows_turn_under_load() {
    check(&Case { name: "one-second windows", args: &["--window", "1"], flows: 20_000, rounds: 30, ..EASY });
}
