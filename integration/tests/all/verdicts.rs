//! P1: REJECT rows are what the node's own firewall refused, and nothing else.
//!
//! Every test compares with a witness that did the refusing: a named nftables counter in the same rule.

use aya::programs::TcAttachType;
use integration::{
    agent::Agent,
    features,
    net::{Netns, Pair, address, sh, veth},
    others::{Other, Place},
    rows::Objects,
    skip_unless, traffic,
};

/// Rules that count into `refused` and then do `what` with UDP to port 7.
fn rules(family: &str, chain: &str, what: &str) -> String {
    let udp = if family == "bridge" || family == "netdev" {
        "ip protocol udp udp dport 7"
    } else {
        "meta l4proto udp udp dport 7"
    };
    format!(
        "table {family} t {{\n counter refused {{ }}\n chain c {{ {chain}; policy accept; {udp} counter name refused {what}; }}\n}}\n"
    )
}

fn filter(hook: &str) -> String {
    format!("type filter hook {hook} priority 0")
}

/// What the rows say about UDP to port 7: packets and bytes, by action.
fn to_port_7(landed: &Objects, direction: &str, action: &str) -> (u64, u64) {
    landed.sum(|r| r.dport == 7 && r.protocol == 17 && r.direction == direction && r.action == action)
}

/// Checks that all refused packets are REJECT rows with the kernel's reason, and all others ACCEPT rows.
fn assert_refused(landed: &Objects, direction: &str, refused: (u64, u64), passed: (u64, u64)) {
    assert_eq!(to_port_7(landed, direction, "REJECT"), refused, "REJECT {:#?}", landed.rows);
    assert_eq!(to_port_7(landed, direction, "ACCEPT"), passed, "ACCEPT {:#?}", landed.rows);
    for row in landed.rows.iter().filter(|r| r.action == "REJECT") {
        assert_eq!(row.reason, "NETFILTER_DROP");
    }
}

const PACKETS: u64 = 40;

/// A router with `in0` and `out0`, and a host on each. Both interfaces are watched.
struct Routed {
    client: Netns,
    router: Netns,
    _server: Netns,
}

impl Routed {
    fn new() -> Self {
        let [client, router, server] = ["client", "router", "server"].map(|n| Netns::new(n).unwrap());
        veth((&client, "eth0"), (&router, "in0")).unwrap();
        veth((&server, "eth0"), (&router, "out0")).unwrap();
        address(&client, "eth0", "10.2.0.2/24").unwrap();
        address(&router, "in0", "10.2.0.1/24").unwrap();
        address(&router, "out0", "10.3.0.1/24").unwrap();
        address(&server, "eth0", "10.3.0.2/24").unwrap();
        client.exec("ip route add default via 10.2.0.1").unwrap();
        server.exec("ip route add default via 10.3.0.1").unwrap();
        router.sysctl("net.ipv4.ip_forward", "1").unwrap();
        // Let the neighbours find each other before anything is counted.
        client.exec("ping -c 1 -W 5 10.3.0.2").unwrap();
        Self { client, router, _server: server }
    }

    /// Sends from the client to the server through `rules`; returns rows of `in0` and `out0`, and the counter.
    fn refuse(&self, family: &str, rules: &str, to: &str) -> (Objects, Objects, (u64, u64)) {
        self.router.nft(rules).unwrap();
        let agent = Agent::start(&self.router, &["in0", "out0"], &[]).unwrap();
        self.client.run(|| traffic::udp(to, PACKETS as usize, 100)).unwrap();
        let landed = agent.stop().unwrap();
        let counter = self.router.nft_counter(&format!("{family} t"), "refused");
        let counter = counter.or_else(|_| self.router.nft_counter(family, "refused")).unwrap();
        let of = |name: &str| Objects {
            rows: landed.rows.iter().filter(|r| r.interface == format!("node-{name}")).cloned().collect(),
            ..Objects::default()
        };
        (of("in0"), of("out0"), counter)
    }
}

const ALL: (u64, u64) = (PACKETS, PACKETS * 128);
const NONE: (u64, u64) = (0, 0);

#[test]
fn input_drop_reject_and_tcp_reset_are_rejected_on_the_way_in() {
    for what in ["drop", "reject"] {
        let net = Routed::new();
        let (inside, outside, counter) = net.refuse("inet", &rules("inet", &filter("input"), what), "10.2.0.1:7");
        assert_eq!(counter, ALL);
        assert_refused(&inside, "ingress", ALL, NONE);
        assert_refused(&outside, "egress", NONE, NONE);
    }
    let net = Routed::new();
    net.router
        .nft("table inet t {\n counter refused { }\n chain c { type filter hook input priority 0; tcp dport 7 counter name refused reject with tcp reset; }\n}")
        .unwrap();
    let agent = Agent::start(&net.router, &["in0"], &[]).unwrap();
    for _ in 0..3 {
        let refused = net.client.run(|| std::net::TcpStream::connect("10.2.0.1:7"));
        assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    }
    let landed = agent.stop().unwrap();
    let (packets, bytes) = net.router.nft_counter("inet t", "refused").unwrap();
    assert_eq!(landed.sum(|r| r.dport == 7 && r.action == "REJECT"), (packets, bytes));
    assert_eq!(landed.sum(|r| r.sport == 7 && r.action == "ACCEPT").0, packets, "the resets went out");
    assert_eq!(landed.flows("REJECT"), (packets, bytes));
}

#[test]
fn forward_drop_and_reject_are_rejected_on_the_way_in_and_on_the_way_out() {
    for what in ["drop", "reject"] {
        let net = Routed::new();
        let (inside, outside, counter) = net.refuse("inet", &rules("inet", &filter("forward"), what), "10.3.0.2:7");
        assert_eq!(counter, ALL);
        assert_refused(&inside, "ingress", ALL, NONE);
        assert_refused(&outside, "egress", ALL, NONE);
    }
}

#[test]
fn postrouting_drop_is_rejected_on_both_interfaces() {
    let net = Routed::new();
    let (inside, outside, counter) = net.refuse("inet", &rules("inet", &filter("postrouting"), "drop"), "10.3.0.2:7");
    assert_eq!(counter, ALL);
    assert_refused(&inside, "ingress", ALL, NONE);
    assert_refused(&outside, "egress", ALL, NONE);
}

#[test]
fn prerouting_drop_is_rejected_on_the_way_in_only() {
    let net = Routed::new();
    let chain = "type filter hook prerouting priority -300";
    let (inside, outside, counter) = net.refuse("inet", &rules("inet", chain, "drop"), "10.3.0.2:7");
    assert_eq!(counter, ALL);
    assert_refused(&inside, "ingress", ALL, NONE);
    assert_refused(&outside, "egress", NONE, NONE);
}

#[test]
fn netdev_ingress_and_egress_drops_are_rejected_where_they_happen() {
    let net = Routed::new();
    let chain = "type filter hook ingress device in0 priority 0";
    let (inside, outside, counter) = net.refuse("netdev", &rules("netdev", chain, "drop"), "10.3.0.2:7");
    assert_eq!(counter.0, PACKETS);
    assert_refused(&inside, "ingress", ALL, NONE);
    assert_refused(&outside, "egress", NONE, NONE);

    let net = Routed::new();
    let chain = "type filter hook egress device out0 priority 0";
    let (inside, outside, counter) = net.refuse("netdev", &rules("netdev", chain, "drop"), "10.3.0.2:7");
    assert_eq!(counter.0, PACKETS);
    assert_refused(&inside, "ingress", ALL, NONE);
    assert_refused(&outside, "egress", ALL, NONE);
}

#[test]
fn output_drop_of_a_local_process_is_rejected_on_the_way_out() {
    let net = Routed::new();
    net.router.nft(&rules("inet", &filter("output"), "drop")).unwrap();
    let agent = Agent::start(&net.router, &["in0", "out0"], &[]).unwrap();
    net.router.run(|| traffic::udp("10.3.0.2:7", PACKETS as usize, 100)).unwrap();
    let landed = agent.stop().unwrap();
    assert_eq!(net.router.nft_counter("inet t", "refused").unwrap(), ALL);
    assert_refused(&landed, "egress", ALL, NONE);
    assert_refused(&landed, "ingress", NONE, NONE);
}

#[test]
fn only_a_part_of_a_flow_may_be_refused() {
    let net = Routed::new();
    let what = "limit rate over 1/hour burst 9 packets";
    net.router
        .nft(&format!(
            "table inet t {{\n counter refused {{ }}\n chain c {{ type filter hook forward priority 0; udp dport 7 {what} counter name refused drop; }}\n}}"
        ))
        .unwrap();
    let agent = Agent::start(&net.router, &["in0", "out0"], &[]).unwrap();
    net.client.run(|| traffic::udp("10.3.0.2:7", PACKETS as usize, 100)).unwrap();
    let landed = agent.stop().unwrap();
    let refused = net.router.nft_counter("inet t", "refused").unwrap();
    assert!(refused.0 > 0 && refused.0 < PACKETS, "{refused:?}");
    let passed = (ALL.0 - refused.0, ALL.1 - refused.1);
    assert_refused(&landed, "ingress", refused, passed);
    assert_refused(&landed, "egress", refused, passed);
}

#[test]
fn conntrack_invalid_is_rejected() {
    let net = Routed::new();
    net.router
        .nft("table inet t {\n counter refused { }\n chain c { type filter hook forward priority 0; ct state invalid counter name refused drop; }\n}")
        .unwrap();
    let agent = Agent::start(&net.router, &["in0"], &[]).unwrap();
    // A lone FIN-ACK belongs to no connection.
    net.router.sysctl("net.netfilter.nf_conntrack_tcp_loose", "0").unwrap();
    let macs = (net.client.mac("eth0").unwrap(), net.router.mac("in0").unwrap());
    let mut frame = traffic::udp4(macs, ([10, 2, 0, 2].into(), 999), ([10, 3, 0, 2].into(), 7), 12);
    frame[23] = 6;
    frame[24..26].fill(0);
    let sum = traffic::checksum(&[&frame[14..34]]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame[46..50].copy_from_slice(&[0x50, 0x11, 1, 0]);
    frame[50..52].fill(0);
    let sum = traffic::checksum(&[&frame[26..34], &[0, 6, 0, 20], &frame[34..54]]);
    frame[50..52].copy_from_slice(&sum.to_be_bytes());
    net.client.run(|| traffic::Raw::open("eth0").unwrap().send(&vec![frame; 5])).unwrap();
    let landed = agent.stop().unwrap();
    assert_eq!(net.router.nft_counter("inet t", "refused").unwrap(), (5, 200));
    assert_eq!(landed.sum(|r| r.dport == 7 && r.action == "REJECT"), (5, 200), "{:#?}", landed.rows);
    assert_eq!(landed.sum(|r| r.dport == 7 && r.action == "ACCEPT"), NONE);
}

/// Steered packets are handled wherever the other CPU is interrupted, in the middle of whatever runs there.
#[test]
fn what_dies_on_a_cpu_that_packets_are_steered_to_is_refused() {
    skip_unless!(
        features::guest(),
        "programs that nobody sees may trace this machine, and the kernel runs none of ours in the middle of them"
    );
    let pair = Pair::new().unwrap();
    pair.a.nft(&rules("inet", &filter("input"), "drop")).unwrap();
    let steer = "echo 2 > /sys/class/net/eth0/queues/rx-0/rps_cpus";
    assert!(pair.a.command("sh").args(["-c", steer]).status().unwrap().success());
    let agent = Agent::start(&pair.a, &["eth0"], &[]).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| pair.b.run(|| traffic::udp("10.1.0.1:7", 60_000, 64).unwrap()));
        }
    });
    let landed = agent.stop().unwrap();
    let refused = pair.a.nft_counter("inet t", "refused").unwrap();
    assert!(refused.0 > 100_000, "{refused:?}");
    assert_refused(&landed, "ingress", refused, (0, 0));
}

#[test]
fn a_refused_packet_keeps_the_addresses_it_had_on_the_wire() {
    let net = Routed::new();
    net.router
        .nft("table ip n {\n chain p { type nat hook prerouting priority -100; udp dport 70 dnat to 10.3.0.2:7; }\n}")
        .unwrap();
    let (inside, _, counter) = net.refuse("inet", &rules("inet", &filter("forward"), "drop"), "10.2.0.1:70");
    assert_eq!(counter, ALL);
    assert_eq!(inside.sum(|r| r.dport == 70 && r.dst == "10.2.0.1" && r.action == "REJECT"), ALL, "{:#?}", inside.rows);
    assert_eq!(inside.sum(|r| r.dport == 70 && r.action == "ACCEPT"), NONE);
}

#[test]
fn a_packet_that_dies_for_another_cause_is_accepted() {
    let net = Routed::new();
    let agent = Agent::start(&net.router, &["in0"], &[]).unwrap();
    let mut sent = 0;
    // No socket; and a socket whose receive queue is full.
    net.client.run(|| traffic::udp("10.2.0.1:9", 20, 100)).unwrap();
    sent += 20;
    net.router.run(|| {
        let deaf = std::net::UdpSocket::bind("10.2.0.1:10").unwrap();
        net.client.run(|| traffic::udp("10.2.0.1:10", 2_000, 1_000)).unwrap();
        drop(deaf);
    });
    sent += 2_000;
    // TTL over.
    let macs = (net.client.mac("eth0").unwrap(), net.router.mac("in0").unwrap());
    let mut frame = traffic::udp4(macs, ([10, 2, 0, 2].into(), 999), ([10, 3, 0, 2].into(), 11), 100);
    frame[22] = 1;
    frame[24..26].fill(0);
    let sum = traffic::checksum(&[&frame[14..34]]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    net.client.run(|| traffic::Raw::open("eth0").unwrap().send(&vec![frame; 10])).unwrap();
    sent += 10;
    // A closed TCP port.
    assert!(net.client.run(|| std::net::TcpStream::connect("10.2.0.1:12")).is_err());
    let landed = agent.stop().unwrap();
    assert!(net.router.snmp("Udp", "RcvbufErrors").unwrap() > 0, "the queue was full");
    assert_eq!(landed.flows("REJECT"), NONE);
    assert_eq!(landed.sum(|r| r.protocol == 17 && r.direction == "ingress").0, sent);
    assert_eq!(landed.sum(|r| r.dport == 12 && r.action == "ACCEPT").0, 1);
}

/// Two guests on a bridge; both ports are watched.
struct Bridged {
    host: Netns,
    one: Netns,
    _two: Netns,
}

impl Bridged {
    fn new() -> Self {
        let [host, one, two] = ["host", "one", "two"].map(|n| Netns::new(n).unwrap());
        host.exec("ip link add br0 type bridge").unwrap();
        for (guest, tap, n) in [(&one, "tap1", 1), (&two, "tap2", 2)] {
            veth((guest, "eth0"), (&host, tap)).unwrap();
            host.exec(&format!("ip link set {tap} master br0")).unwrap();
            address(guest, "eth0", &format!("10.4.0.{n}/24")).unwrap();
            guest.exec("ip route add default via 10.4.0.254").unwrap();
        }
        // A test beside this one may have loaded br_netfilter; it then takes bridged packets past the bridge family's chains.
        let _ = host.sysctl("net.bridge.bridge-nf-call-iptables", "0");
        host.exec("ip link set br0 up").unwrap();
        address(&host, "br0", "10.4.0.254/24").unwrap();
        one.exec("ping -c 1 -W 5 10.4.0.2").unwrap();
        one.exec("ping -c 1 -W 5 10.4.0.254").unwrap();
        Self { host, one, _two: two }
    }

    fn refuse(&self, family: &str, rules: &str, to: &str, interfaces: &[&str]) -> (Objects, u64) {
        self.host.nft(rules).unwrap();
        let agent = Agent::start(&self.host, interfaces, &[]).unwrap();
        self.one.run(|| traffic::udp(to, PACKETS as usize, 100)).unwrap();
        let landed = agent.stop().unwrap();
        (landed, self.host.nft_counter(&format!("{family} t"), "refused").unwrap().0)
    }
}

fn of<'a>(landed: &'a Objects, interface: &str) -> Objects {
    let rows = landed.rows.iter().filter(|r: &&'a _| r.interface == format!("node-{interface}")).cloned().collect();
    Objects { rows, ..Objects::default() }
}

#[test]
fn bridge_forward_drop_is_rejected_on_both_ports_and_not_on_the_bridge() {
    let net = Bridged::new();
    let rules = rules("bridge", &filter("forward"), "drop");
    let (landed, refused) = net.refuse("bridge", &rules, "10.4.0.2:7", &["tap1", "tap2", "br0"]);
    assert_eq!(refused, PACKETS);
    assert_refused(&of(&landed, "tap1"), "ingress", ALL, NONE);
    assert_refused(&of(&landed, "tap2"), "egress", ALL, NONE);
    assert_refused(&of(&landed, "br0"), "egress", NONE, NONE);
    assert_refused(&of(&landed, "br0"), "ingress", NONE, NONE);
}

#[test]
fn br_netfilter_drops_are_rejected_on_the_ports() {
    let loaded = sh("modprobe br_netfilter").is_ok() || std::path::Path::new("/proc/sys/net/bridge").exists();
    skip_unless!(loaded, "this kernel has no br_netfilter");
    for (hook, both) in [("forward", true), ("prerouting", false)] {
        let net = Bridged::new();
        net.host.sysctl("net.bridge.bridge-nf-call-iptables", "1").unwrap();
        let (landed, refused) =
            net.refuse("inet", &rules("inet", &filter(hook), "drop"), "10.4.0.2:7", &["tap1", "tap2", "br0"]);
        assert_eq!(refused, PACKETS);
        assert_refused(&of(&landed, "tap1"), "ingress", ALL, NONE);
        assert_refused(&of(&landed, "tap2"), "egress", if both { ALL } else { NONE }, NONE);
        assert_refused(&of(&landed, "br0"), "egress", NONE, NONE);
    }
}

#[test]
fn a_guest_behind_a_bridge_is_rejected_when_the_host_refuses_to_route_it() {
    let net = Bridged::new();
    let (landed, refused) =
        net.refuse("inet", &rules("inet", &filter("input"), "drop"), "10.4.0.254:7", &["tap1", "br0"]);
    assert_eq!(refused, PACKETS);
    assert_refused(&of(&landed, "br0"), "ingress", ALL, NONE);
}

#[test]
fn a_port_alone_is_rejected_when_the_host_behind_the_bridge_refuses() {
    let net = Bridged::new();
    let (landed, refused) = net.refuse("inet", &rules("inet", &filter("input"), "drop"), "10.4.0.254:7", &["tap1"]);
    assert_eq!(refused, PACKETS);
    assert_refused(&landed, "ingress", ALL, NONE);
}

#[test]
fn the_same_ifindex_in_another_namespace_is_not_mixed_up() {
    let watched = Pair::new().unwrap();
    let other = Pair::new().unwrap();
    let index = |ns: &Netns| ns.exec("cat /sys/class/net/eth0/ifindex").unwrap();
    assert_eq!(index(&watched.a), index(&other.a), "both namespaces give their first interface the same index");
    other.a.nft(&rules("inet", &filter("input"), "drop")).unwrap();
    let agent = Agent::start(&watched.a, &["eth0"], &[]).unwrap();
    other.b.run(|| traffic::udp("10.1.0.1:7", PACKETS as usize, 100)).unwrap();
    watched.b.run(|| traffic::udp("10.1.0.1:7", 3, 100)).unwrap();
    let landed = agent.stop().unwrap();
    assert_eq!(other.a.nft_counter("inet t", "refused").unwrap(), ALL);
    assert_refused(&landed, "ingress", NONE, (3, 384));
}

#[test]
fn rules_attach_and_count_only_what_they_want() {
    for (action, direction, accepted, rejected, hooks) in [
        ("rejected", "bidirectional", 0, PACKETS, 2),
        ("accepted", "bidirectional", 5, 0, 2),
        ("any", "ingress", 5, PACKETS, 1),
        ("any", "egress", 0, 0, 1),
    ] {
        let pair = Pair::new().unwrap();
        pair.a.nft(&rules("inet", &filter("input"), "drop")).unwrap();
        let args = ["--action", action, "--direction", direction];
        let mut agent = Agent::start(&pair.a, &["eth0"], &args).unwrap();
        assert_eq!(agent.log().matches("attached").count(), hooks, "{action} {direction}");
        pair.b.run(|| {
            traffic::udp("10.1.0.1:7", PACKETS as usize, 100).unwrap();
            traffic::udp("10.1.0.1:8", 5, 100).unwrap();
        });
        let landed = agent.stop().unwrap();
        let ingress = |r: &integration::rows::Row| r.direction == "ingress";
        for (verdict, packets) in [("ACCEPT", accepted), ("REJECT", rejected)] {
            let seen = landed.sum(|r| ingress(r) && r.action == verdict).0;
            assert_eq!(seen, packets, "{verdict}, {action} {direction}: {:#?}", landed.rows);
        }
        if direction == "ingress" {
            assert_eq!(landed.sum(|r| r.direction == "egress").0, 0);
        }
    }
}

#[test]
fn tc_drops_before_and_after_our_hook_are_rejected() {
    skip_unless!(features::tcx(), "programs before ours need tcx links (Linux 6.6)");
    for (side, direction) in [(TcAttachType::Ingress, "ingress"), (TcAttachType::Egress, "egress")] {
        for place in [Place::TcxFirst, Place::TcxLast, Place::Clsact] {
            let pair = Pair::new().unwrap();
            let agent = Agent::start(&pair.a, &["eth0"], &[]).unwrap();
            let other = Other::attach(&pair.a, "tc_drop", side, place).unwrap();
            let (from, to) = if direction == "ingress" { (&pair.b, "10.1.0.1") } else { (&pair.a, "10.1.0.2") };
            from.run(|| {
                traffic::udp(&format!("{to}:7"), PACKETS as usize, 100).unwrap();
                traffic::udp(&format!("{to}:8"), 3, 100).unwrap();
            });
            let landed = agent.stop().unwrap();
            assert_eq!(other.counters().unwrap().1, PACKETS, "it dropped");
            assert_eq!(to_port_7(&landed, direction, "REJECT"), ALL, "{place:?} {:#?}", landed.rows);
            assert_eq!(to_port_7(&landed, direction, "ACCEPT"), NONE, "{place:?}");
            // A packet that never reached our hook is a REJECT row all the same; others went through both.
            assert_eq!(landed.sum(|r| r.dport == 8 && r.action == "ACCEPT").0, 3);
            let reason = format!("TC_{}", direction.to_uppercase());
            assert!(landed.rows.iter().all(|r| r.action != "REJECT" || r.reason == reason));
        }
    }
}

#[test]
fn generic_xdp_drops_are_rejected_although_no_hook_saw_them() {
    let pair = Pair::new().unwrap();
    let agent = Agent::start(&pair.a, &["eth0"], &[]).unwrap();
    let other = Other::attach(&pair.a, "xdp_drop", TcAttachType::Ingress, Place::XdpGeneric).unwrap();
    pair.b.run(|| traffic::udp("10.1.0.1:7", PACKETS as usize, 100)).unwrap();
    let landed = agent.stop().unwrap();
    assert_eq!(other.counters().unwrap().1, PACKETS);
    assert_eq!(to_port_7(&landed, "ingress", "REJECT"), ALL, "{:#?}", landed.rows);
    assert_eq!(to_port_7(&landed, "ingress", "ACCEPT"), NONE);
}
