//! A firewall that is changed under traffic: each packet has the verdict of the rules that it met, whatever they were before and after it.

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use integration::{agent::Agent, net::Pair, traffic};

/// Each kind of change refuses packets to one of these, and to others in turns.
const PORTS: [u16; 5] = [7_000, 7_001, 7_002, 7_003, 7_004];
/// Flows to each port.
const FLOWS: u32 = 200;
const PAYLOAD: usize = 22;
const L3_BYTES: u64 = 28 + PAYLOAD as u64;
/// How often all changes are made.
const ROUNDS: usize = 6;
/// Pause of the sender after each of its flows has sent, so that whoever changes rules gets to it: taking one away waits for all CPUs.
const PAUSE: Duration = Duration::from_millis(1);
/// Frames that must have been sent between one change and the next.
const BETWEEN: u64 = 2_000;

/// Counts what all rules have let through: behind every hook that any of them is at.
fn witness() -> String {
    let counters = PORTS.map(|p| format!(" counter p{p} {{ }}\n")).concat();
    let rules = PORTS.map(|p| format!("  udp dport {p} counter name p{p}\n")).concat();
    format!("table inet witness {{\n{counters} chain c {{ type filter hook input priority 1000;\n{rules} }}\n}}\n")
}

/// A table with one rule at a hook.
fn table(hook: &str, rule: &str) -> String {
    format!("table inet changing {{\n chain c {{ type filter hook {hook};\n  {rule}\n }}\n}}\n")
}

/// Changes, one after the other. At first and at last there is no rule that refuses anything.
fn changes() -> Vec<String> {
    let [first, second, third, fourth, last] = PORTS;
    let replace = |hook: &str, rule: &str| format!("delete table inet changing\n{}", table(hook, rule));
    let netdev = |rule: &str| {
        format!(
            "table netdev changing {{\n chain c {{ type filter hook ingress device \"eth0\" priority 0;\n  {rule}\n }}\n}}\n"
        )
    };
    vec![
        table("input priority 0", &format!("udp dport {first} drop")),
        replace("input priority 0", &format!("udp dport {{ {first}, {second} }} drop")),
        replace("prerouting priority 0", &format!("udp dport {third} drop")),
        netdev(&format!("udp dport {fourth} drop")),
        replace("input priority 0", &format!("udp dport {second} reject")),
        format!("flush chain netdev changing c\nadd rule netdev changing c udp dport {first} drop\n"),
        replace("prerouting priority -300", &format!("udp dport {{ {fourth}, {last} }} drop")),
        "delete table netdev changing\n".to_owned(),
        replace("input priority 0", &format!("udp sport & 1 == 1 udp dport {first}-{last} drop")),
        "delete table inet changing\n".to_owned(),
    ]
}

/// Sends until it is over; returns how many packets to each port.
fn send(pair: &Pair, over: &AtomicBool, sent: &AtomicU64) -> u64 {
    let macs = (pair.b.mac("eth0").unwrap(), pair.a.mac("eth0").unwrap());
    // No route leads back to these sources: nothing is answered, also not by a rule that rejects.
    let flows = (0..FLOWS).map(|i| (Ipv4Addr::from(0x0ac8_0000 + (i >> 4)), 1_024 + (i & 0xf) as u16));
    let bursts: Vec<Vec<_>> = flows
        .map(|from| PORTS.map(|port| traffic::udp4(macs, from, ([10, 1, 0, 1].into(), port), PAYLOAD)).into())
        .collect();
    pair.b.run(|| {
        let raw = traffic::Raw::open("eth0").unwrap();
        let mut each = 0;
        for burst in bursts.iter().cycle() {
            raw.send(burst).unwrap();
            each += 1;
            if each % u64::from(FLOWS) == 0 {
                std::thread::sleep(PAUSE);
            }
            sent.store(each * PORTS.len() as u64, Ordering::Relaxed);
            if over.load(Ordering::Relaxed) {
                break;
            }
        }
        each
    })
}

/// Says, when it is dropped, that it is over: a change that fails ends the sender as well.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a port's rows must say: what was let through, by the witness, and the rest.
fn verdicts_of_changing_rules(hook: &str, window: &str) {
    let pair = Pair::new().unwrap();
    for ns in [&pair.a, &pair.b] {
        ns.sysctl("net.ipv6.conf.eth0.disable_ipv6", "1").unwrap();
    }
    let received = pair.a.statistic("eth0", "rx_packets").unwrap();
    let agent = Agent::start(&pair.a, &["eth0"], &["--hook", hook, "--window", window]).unwrap();
    pair.a.nft(&witness()).unwrap();
    let (over, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let each = std::thread::scope(|scope| {
        let sender = scope.spawn(|| send(&pair, &over, &sent));
        let ending = Ending(&over);
        for change in std::iter::repeat_with(changes).take(ROUNDS).flatten() {
            let begin = sent.load(Ordering::Relaxed);
            while sent.load(Ordering::Relaxed) < begin + BETWEEN {
                assert!(!sender.is_finished(), "the sender has failed");
                std::thread::sleep(PAUSE);
            }
            pair.a.nft(&change).unwrap();
        }
        drop(ending);
        sender.join().unwrap()
    });
    pair.wait_until_quiet();
    let received = pair.a.statistic("eth0", "rx_packets").unwrap() - received;
    assert_eq!(received, each * PORTS.len() as u64, "what was sent has come in");
    let landed = agent.stop().unwrap();
    for port in PORTS {
        let passed = pair.a.nft_counter("inet witness", &format!("p{port}")).unwrap();
        let of = |action: &str| {
            landed.sum(|r| {
                r.status == "OK" && r.dport == i64::from(port) && r.action == action && r.direction == "ingress"
            })
        };
        assert!(
            passed.0 > 0 && passed.0 < each,
            "{port}: no rule has refused it, or none has not: {passed:?} of {each}"
        );
        let refused = each - passed.0;
        assert_eq!((of("ACCEPT"), of("REJECT")), (passed, (refused, refused * L3_BYTES)), "port {port}, {hook}");
    }
    assert_eq!(landed.lost().0 + landed.sum(|r| r.skip == "verdict_unknown").0, 0);
}

#[test]
fn each_packet_has_the_verdict_of_the_rules_it_met_while_they_were_changed() {
    verdicts_of_changing_rules("tc", "86400");
}

#[test]
fn so_it_has_while_windows_turn_and_where_xdp_counts() {
    verdicts_of_changing_rules("tc", "1");
    verdicts_of_changing_rules("xdp", "1");
}
