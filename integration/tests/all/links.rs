//! Interfaces come and go: captured when they appear, whatever index they have, with a gap row for the time between.

use std::time::{Duration, Instant};

use integration::{
    agent::Agent,
    net::{Netns, address, veth},
    traffic,
};

/// Times an interface is deleted and made again.
const CYCLES: usize = 100;
const PACKETS: usize = 10;

/// A cable between two namespaces, as at the first time.
fn plug_in(a: &Netns, b: &Netns) {
    veth((a, "eth0"), (b, "eth0")).unwrap();
    for ns in [a, b] {
        ns.sysctl("net.ipv6.conf.eth0.disable_ipv6", "1").unwrap();
    }
    address(a, "eth0", "10.1.0.1/16").unwrap();
    address(b, "eth0", "10.1.0.2/16").unwrap();
    let mac = a.mac("eth0").unwrap().map(|b| format!("{b:02x}")).join(":");
    b.exec(&format!("ip neigh replace 10.1.0.1 lladdr {mac} dev eth0 nud permanent")).unwrap();
}

#[test]
fn an_interface_that_is_deleted_and_made_again_a_hundred_times_is_captured_every_time() {
    let a = Netns::new("a").unwrap();
    let b = Netns::new("b").unwrap();
    let mut agent = Agent::start(&a, &["eth0"], &["--wait"]).unwrap();
    assert!(agent.log().contains("waiting for interface eth0"), "{}", agent.log());
    let mut slowest = Duration::ZERO;
    for cycle in 0..CYCLES {
        plug_in(&a, &b);
        let made = Instant::now();
        agent.wait_for("watching").unwrap();
        slowest = slowest.max(made.elapsed());
        b.run(|| traffic::udp("10.1.0.1:9", PACKETS, 50)).unwrap();
        // Deleting it empties its queues, so they must be empty before.
        while a.statistic("eth0", "rx_packets").unwrap() < PACKETS as u64 {
            std::thread::yield_now();
        }
        a.exec("ip link del eth0").unwrap();
        let line = agent.wait_for("the interface is gone");
        assert!(line.is_ok(), "cycle {cycle}: {line:?}");
    }
    let landed = agent.stop().unwrap();
    assert_eq!(landed.sum(|r| r.dport == 9 && r.direction == "ingress").0, (CYCLES * PACKETS) as u64);
    let gaps: Vec<_> = landed.rows.iter().filter(|r| r.skip == "gap").collect();
    assert_eq!(gaps.len(), CYCLES - 1);
    assert!(gaps.iter().all(|r| r.interface == "node-eth0" && r.status == "SKIPDATA"));
    let mut keys = landed.keys.clone();
    keys.dedup();
    assert_eq!(keys.len(), CYCLES);
    // A second, the promise says; a busy machine with two CPUs gets some more.
    eprintln!("slowest: {slowest:?}");
}

#[test]
fn a_capture_goes_on_when_another_interface_goes_away() {
    let a = Netns::new("a").unwrap();
    let b = Netns::new("b").unwrap();
    let c = Netns::new("c").unwrap();
    plug_in(&a, &b);
    veth((&a, "eth1"), (&c, "eth0")).unwrap();
    let mut agent = Agent::start(&a, &["eth0", "eth1"], &[]).unwrap();
    a.exec("ip link del eth1").unwrap();
    agent.wait_for("the interface is gone").unwrap();
    b.run(|| traffic::udp("10.1.0.1:9", PACKETS, 50)).unwrap();
    while a.statistic("eth0", "rx_packets").unwrap() < PACKETS as u64 {
        std::thread::yield_now();
    }
    // Under a name of its own it is another one; back under ours it is captured again.
    veth((&a, "eth7"), (&c, "eth0")).unwrap();
    a.exec("ip link set eth7 down").unwrap();
    a.exec("ip link set eth7 name eth1").unwrap();
    agent.wait_for("the interface is back").unwrap();
    let landed = agent.stop().unwrap();
    assert_eq!(landed.sum(|r| r.dport == 9 && r.direction == "ingress").0, PACKETS as u64);
    assert!(landed.rows.iter().any(|r| r.skip == "gap" && r.interface == "node-eth1"));
    assert!(!landed.rows.iter().any(|r| r.skip == "gap" && r.interface == "node-eth0"));
}

#[test]
fn an_interface_that_is_renamed_is_captured_without_a_gap_and_refusals_count_once_after_it_was_away() {
    let a = Netns::new("a").unwrap();
    let b = Netns::new("b").unwrap();
    plug_in(&a, &b);
    let mut agent = Agent::start(&a, &["eth0"], &[]).unwrap();
    a.exec("ip link set eth0 down").unwrap();
    a.exec("ip link set eth0 name vm7").unwrap();
    a.exec("ip link set vm7 up").unwrap();
    agent.wait_for("the interface has another name").unwrap();
    let mac = a.mac("vm7").unwrap().map(|b| format!("{b:02x}")).join(":");
    b.exec(&format!("ip neigh replace 10.1.0.1 lladdr {mac} dev eth0 nud permanent")).unwrap();
    b.run(|| traffic::udp("10.1.0.1:9", PACKETS, 50)).unwrap();
    while a.statistic("vm7", "rx_packets").unwrap() < PACKETS as u64 {
        std::thread::yield_now();
    }
    // Away for good, and back: another watch, whose verdicts must not be counted twice.
    a.exec("ip link del vm7").unwrap();
    agent.wait_for("the interface is gone").unwrap();
    plug_in(&a, &b);
    agent.wait_for("the interface is back").unwrap();
    let rules = "table inet t {\n counter c { }\n chain i { type filter hook input priority 0; udp dport 7 counter name c drop; }\n}";
    a.nft(rules).unwrap();
    b.run(|| traffic::udp("10.1.0.1:7", PACKETS, 50)).unwrap();
    while a.nft_counter("inet t", "c").unwrap().0 < PACKETS as u64 {
        std::thread::yield_now();
    }
    let landed = agent.stop().unwrap();
    assert_eq!(landed.sum(|r| r.dport == 9 && r.direction == "ingress").0, PACKETS as u64);
    assert_eq!(landed.sum(|r| r.dport == 7 && r.action == "REJECT").0, PACKETS as u64);
    assert_eq!(landed.sum(|r| r.dport == 7 && r.action == "ACCEPT").0, 0);
    assert_eq!(landed.rows.iter().filter(|r| r.skip == "gap").count(), 1);
}

#[test]
fn an_interface_that_is_moved_to_another_namespace_and_back_is_captured_there_with_gap_rows_in_between() {
    let a = Netns::new("a").unwrap();
    let b = Netns::new("b").unwrap();
    let c = Netns::new("c").unwrap();
    plug_in(&a, &b);
    let mut agent = Agent::start(&a, &["eth0"], &["--follow-namespaces"]).unwrap();
    let refuse = "table inet t {\n counter c { }\n chain i { type filter hook input priority 0; udp dport 7 counter name c drop; }\n}";
    let mut refused = 0;
    for (from, to) in [(&a, &c), (&c, &a)] {
        from.exec(&format!("ip link set eth0 netns {}", to.name())).unwrap();
        to.sysctl("net.ipv6.conf.eth0.disable_ipv6", "1").unwrap();
        to.exec("ip link set eth0 up").unwrap();
        address(to, "eth0", "10.1.0.1/16").unwrap();
        to.nft(refuse).unwrap();
        agent.wait_for("the interface is back").unwrap();
        let before = to.statistic("eth0", "rx_packets").unwrap();
        b.run(|| traffic::udp("10.1.0.1:9", PACKETS, 50)).unwrap();
        b.run(|| traffic::udp("10.1.0.1:7", PACKETS, 50)).unwrap();
        while to.statistic("eth0", "rx_packets").unwrap() < before + 2 * PACKETS as u64 {
            std::thread::yield_now();
        }
        refused += to.nft_counter("inet t", "c").unwrap().0;
        let since = Instant::now();
        // Its status says where it is: the file is written within two seconds.
        let place =
            if to.name() == c.name() { format!("\"netns\": \"{}\"", c.name()) } else { "\"netns\": null".to_owned() };
        while !std::fs::read_to_string(agent.state().join("status.json")).unwrap_or_default().contains(&place) {
            assert!(since.elapsed() < Duration::from_secs(30), "no {place} in the status");
            std::thread::yield_now();
        }
    }
    assert!(
        agent
            .log()
            .contains(&format!("the interface is in another namespace interface=\"eth0\" netns=\"{}\"", c.name()))
    );
    let landed = agent.stop().unwrap();
    assert_eq!(landed.sum(|r| r.dport == 9 && r.direction == "ingress").0, 2 * PACKETS as u64);
    assert_eq!(landed.sum(|r| r.action == "REJECT").0, refused);
    assert_eq!(landed.sum(|r| r.dport == 7 && r.action == "ACCEPT").0, 0);
    assert_eq!(landed.rows.iter().filter(|r| r.skip == "gap").count(), 2);
}
