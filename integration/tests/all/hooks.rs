//! P4, traffic untouched: other programs keep working; every hook kind counts; an attach that does not run is found.

use aya::programs::TcAttachType;
use integration::{
    agent::Agent,
    features,
    net::{Pair, sh},
    others::{Other, Place},
    skip_unless, traffic,
};

const PACKETS: usize = 30;

fn ping_both_ways(pair: &Pair) {
    pair.b.run(|| traffic::udp("10.1.0.1:8", PACKETS, 100)).unwrap();
    pair.b.run(|| traffic::udp("[fd01::1]:8", PACKETS, 100)).unwrap();
}

#[test]
fn every_hook_kind_counts_the_same_and_leaves_nothing_behind() {
    let kinds = [("tcx", "tcx"), ("clsact", "clsact"), ("xdp", "xdp (native)"), ("tc", features::tc())];
    for (hook, ingress) in kinds.into_iter().filter(|(hook, _)| *hook != "tcx" || features::tcx()) {
        let pair = Pair::new().unwrap();
        let mut agent = Agent::start(&pair.a, &["eth0"], &["--hook", hook]).unwrap();
        assert!(agent.log().contains(&format!("hook={ingress}")), "{}", agent.log());
        ping_both_ways(&pair);
        for direction in ["direction=ingress", "direction=egress"] {
            let line = agent.wait_for("hook runs").unwrap();
            assert!(line.contains("direction="), "{direction} {line}");
        }
        let landed = agent.stop().unwrap();
        for version in ["10.1.0.1", "fd01::1"] {
            let sum = landed.sum(|r| r.dst == version && r.dport == 8 && r.direction == "ingress");
            assert_eq!(sum.0, PACKETS as u64, "{hook} {version}");
        }
        let left = pair.a.exec("ip -d link show eth0").unwrap();
        assert!(!left.contains("xdp"), "{left}");
        for side in ["ingress", "egress"] {
            let filters = pair.a.exec(&format!("tc filter show dev eth0 {side}")).unwrap_or_default();
            assert!(!filters.contains("flowlog"), "{filters}");
        }
    }
}

#[test]
fn a_kernel_without_tcx_says_so_and_what_to_use() {
    skip_unless!(!features::tcx(), "this kernel has tcx links");
    let pair = Pair::new().unwrap();
    let mut agent = Agent::spawn(&pair.a, &["eth0"], &["--hook", "tcx"]).unwrap();
    assert_ne!(agent.wait().unwrap(), Some(0));
    let log = agent.log();
    assert!(log.contains("has no tcx links") && log.contains("--hook clsact"), "{log}");
}

#[test]
fn a_qdisc_that_cannot_be_made_is_said_in_the_kernels_words() {
    const LOADER: &str = "/proc/sys/kernel/modprobe";
    skip_unless!(features::guest(), "it takes a module away from everybody");
    // Filters of tests before this one may still hold it.
    skip_unless!(sh("modprobe -r cls_bpf sch_ingress").is_ok(), "clsact cannot be unloaded here");
    let pair = Pair::new().unwrap();
    let loader = std::fs::read_to_string(LOADER).unwrap();
    std::fs::write(LOADER, "/bin/false").unwrap();
    let mut agent = Agent::spawn(&pair.a, &["eth0"], &["--hook", "clsact"]).unwrap();
    let status = agent.wait();
    std::fs::write(LOADER, loader.trim()).unwrap();
    assert_ne!(status.unwrap(), Some(0));
    let log = agent.log();
    assert!(log.contains("the qdisc for clsact") && log.contains("eth0"), "{log}");
}

#[test]
fn xdp_falls_back_to_generic_and_says_so() {
    let pair = Pair::new().unwrap();
    // A bridge has no XDP of its own.
    for line in [
        "ip address flush dev eth0",
        "ip link add br0 type bridge",
        "ip link set eth0 master br0",
        "ip link set br0 up",
        "ip address add 10.1.0.1/16 dev br0",
    ] {
        pair.a.exec(line).unwrap();
    }
    let mac = pair.a.mac("br0").unwrap().map(|b| format!("{b:02x}")).join(":");
    pair.b.exec(&format!("ip neigh replace 10.1.0.1 lladdr {mac} dev eth0 nud permanent")).unwrap();
    let mut agent = Agent::start(&pair.a, &["br0"], &["--hook", "xdp"]).unwrap();
    assert!(agent.log().contains("hook=xdp (generic)"), "{}", agent.log());
    pair.b.run(|| traffic::udp("10.1.0.1:8", PACKETS, 100)).unwrap();
    let landed = agent.stop().unwrap();
    assert_eq!(landed.sum(|r| r.dport == 8 && r.direction == "ingress").0, PACKETS as u64, "{:#?}", landed.rows);
}

#[test]
fn xdp_capture_tells_refused_from_accepted_too() {
    let pair = Pair::new().unwrap();
    pair.a
        .nft("table inet t {\n counter refused { }\n chain c { type filter hook input priority 0; udp dport 7 counter name refused drop; }\n}")
        .unwrap();
    let agent = Agent::start(&pair.a, &["eth0"], &["--hook", "xdp"]).unwrap();
    pair.b.run(|| {
        traffic::udp("10.1.0.1:7", PACKETS, 100).unwrap();
        traffic::udp("10.1.0.1:8", PACKETS, 100).unwrap();
    });
    let landed = agent.stop().unwrap();
    let refused = pair.a.nft_counter("inet t", "refused").unwrap();
    assert_eq!(landed.sum(|r| r.dport == 7 && r.action == "REJECT"), refused, "{:#?}", landed.rows);
    assert_eq!(landed.sum(|r| r.dport == 7 && r.action == "ACCEPT"), (0, 0));
    assert_eq!(landed.sum(|r| r.dport == 8 && r.action == "ACCEPT").0, PACKETS as u64);
}

#[test]
fn a_foreign_xdp_program_is_never_replaced() {
    let pair = Pair::new().unwrap();
    let other = Other::attach(&pair.a, "xdp_drop", TcAttachType::Ingress, Place::XdpNative).unwrap();
    let mut agent = Agent::spawn(&pair.a, &["eth0"], &["--hook", "xdp"]).unwrap();
    assert_ne!(agent.wait().unwrap(), Some(0));
    assert!(agent.log().contains("an interface takes one XDP program"), "{}", agent.log());
    ping_both_ways(&pair);
    assert!(other.counters().unwrap().0 >= 2 * PACKETS as u64, "it still runs");
}

#[test]
fn other_programs_before_and_after_ours_keep_working() {
    skip_unless!(features::tcx(), "programs before ours need tcx links (Linux 6.6)");
    let pair = Pair::new().unwrap();
    for ns in [&pair.a, &pair.b] {
        // Neighbour discovery at any moment would be counted by some and not by others.
        ns.sysctl("net.ipv6.conf.eth0.disable_ipv6", "1").unwrap();
    }
    let xdp = Other::attach(&pair.a, "xdp_drop", TcAttachType::Ingress, Place::XdpNative).unwrap();
    let before = Other::attach(&pair.a, "tc_count", TcAttachType::Ingress, Place::TcxFirst).unwrap();
    let agent = Agent::start(&pair.a, &["eth0"], &[]).unwrap();
    let after = Other::attach(&pair.a, "tc_count", TcAttachType::Ingress, Place::TcxLast).unwrap();
    let clsact = Other::attach(&pair.a, "tc_count", TcAttachType::Ingress, Place::Clsact).unwrap();
    let out = Other::attach(&pair.a, "tc_count", TcAttachType::Egress, Place::TcxLast).unwrap();
    let all = [&xdp, &before, &after, &clsact];
    let start = all.map(|o| o.counters().unwrap().0);
    pair.b.run(|| traffic::udp("10.1.0.1:8", PACKETS, 100)).unwrap();
    let seen: Vec<u64> = all.iter().zip(start).map(|(o, s)| o.counters().unwrap().0 - s).collect();
    let landed = agent.stop().unwrap();
    let ingress = landed.sum(|r| r.direction == "ingress").0;
    assert!(ingress >= PACKETS as u64);
    assert_eq!(seen, [ingress; 4], "each saw every packet");
    assert!(out.counters().unwrap().0 >= landed.sum(|r| r.direction == "egress").0);
}

#[test]
fn a_hook_that_is_attached_but_never_runs_is_found() {
    skip_unless!(features::tcx(), "programs before ours need tcx links (Linux 6.6)");
    let pair = Pair::new().unwrap();
    // Neighbour discovery would be seen before the other program is there.
    for ns in [&pair.a, &pair.b] {
        ns.sysctl("net.ipv6.conf.eth0.disable_ipv6", "1").unwrap();
    }
    let mut agent = Agent::start(&pair.a, &["eth0"], &[]).unwrap();
    // Somebody else's program goes first, and nothing runs after it.
    let _first = Other::attach(&pair.a, "tc_accept", TcAttachType::Ingress, Place::TcxFirst).unwrap();
    pair.b.run(|| traffic::udp("10.1.0.1:8", PACKETS, 100)).unwrap();
    let line = agent.wait_for("attached but sees nothing").unwrap();
    assert!(line.contains("ingress") && line.contains("WARN"), "{line}");
}
