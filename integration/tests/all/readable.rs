//! Every packet that can be refused can be read: with its headers in page fragments, from a tap or a ring, refused
//! before it has a device of its own, by a policy, or on its way back where it came from.
//!
//! Every test ends with [`Agent::stop`], which fails if the books of a window do not balance.

use integration::{
    agent::Agent,
    claims::{BYTES, NONE, PACKETS, PAYLOAD, assert_exact, into, out_of, rules, sum},
    net::{Netns, Pair, address},
    rows::Sum,
    sockets,
    stacks::{Bridged, Routed, neighbour},
    taps::Tap,
    traffic,
};

/// A jumbo frame's payload: larger than a page, so that a tap's buffer has page fragments.
const JUMBO: usize = 8_000;
/// Ethernet header; the same and an IPv4 header.
const LINEAR: [u16; 2] = [14, 34];

fn jumbo(packets: usize) -> Sum {
    (packets as u64, packets as u64 * (28 + JUMBO as u64))
}

/// A host with a guest on `tap0`; both speak jumbo frames.
fn with_tap() -> (Netns, Tap) {
    let host = Netns::new("host").unwrap();
    host.sysctl("net.ipv6.conf.default.disable_ipv6", "1").unwrap();
    let tap = Tap::new(&host, "tap0", 9_000).unwrap();
    (host, tap)
}

/// Where to refuse: the stack pulls a header into the linear part only when it needs it.
const HOOKS: [(&str, &str); 3] = [("inet", "input"), ("inet", "prerouting"), ("netdev", "ingress device tap0")];

const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A guest says how much of a frame is linear; its headers are in page fragments then.
#[test]
fn a_guest_cannot_hide_its_headers_from_the_firewall_of_the_host() {
    for linear in LINEAR {
        for (family, hook) in HOOKS {
            eprintln!("{linear} bytes are linear, {family} {hook}");
            let (host, mut tap) = with_tap();
            address(&host, "tap0", "10.7.0.1/24").unwrap();
            neighbour(&host, "tap0", "10.7.0.2", GUEST).unwrap();
            host.nft(&rules(family, hook, "drop")).unwrap();
            let agent = Agent::start(&host, &["tap0"], &[]).unwrap();
            let mac = host.mac("tap0").unwrap();
            for port in [7, 9] {
                let f = traffic::udp4((GUEST, mac), ([10, 7, 0, 2].into(), 999), ([10, 7, 0, 1].into(), port), JUMBO);
                for _ in 0..20 {
                    tap.send(&f, linear).unwrap();
                }
            }
            let landed = agent.stop().unwrap();
            assert_eq!(host.nft_counter(&format!("{family} t"), "refused").unwrap().0, 20);
            assert_exact(&landed, into("tap0"), 7, jumbo(20), NONE);
            assert_exact(&landed, into("tap0"), 9, NONE, jumbo(20));
        }
    }
}

/// The same through a bridge to another guest: refused on both ports.
#[test]
fn a_guest_cannot_hide_its_headers_from_the_bridge() {
    for linear in LINEAR {
        let net = Bridged::new(1).unwrap();
        let mut tap = Tap::new(&net.host, "tap0", 9_000).unwrap();
        for (ns, name) in [(&net.guests[0], "eth0"), (&net.host, "tap1"), (&net.host, "br0")] {
            ns.exec(&format!("ip link set {name} mtu 9000")).unwrap();
        }
        net.host.exec("ip link set tap0 master br0").unwrap();
        net.host.nft(&rules("bridge", "forward", "drop")).unwrap();
        let agent = Agent::start(&net.host, &["tap0", "tap1"], &[]).unwrap();
        let mac = net.guests[0].mac("eth0").unwrap();
        for port in [7, 9] {
            let f = traffic::udp4((GUEST, mac), ([10, 4, 0, 9].into(), 999), ([10, 4, 0, 1].into(), port), JUMBO);
            for _ in 0..20 {
                tap.send(&f, linear).unwrap();
            }
        }
        let landed = agent.stop().unwrap();
        assert_eq!(net.host.nft_counter("bridge t", "refused").unwrap().0, 20);
        for place in [into("tap0"), out_of("tap1")] {
            assert_exact(&landed, place, 7, jumbo(20), NONE);
            assert_exact(&landed, place, 9, NONE, jumbo(20));
        }
    }
}

/// A ring's frames stay in its pages, all but the Ethernet header.
#[test]
fn frames_from_a_ring_are_read_when_they_are_refused() {
    for (family, hook) in HOOKS {
        eprintln!("{family} {hook}");
        let pair = Pair::new().unwrap();
        pair.a.nft(&rules(family, &hook.replace("tap0", "eth0"), "drop")).unwrap();
        let macs = (pair.b.mac("eth0").unwrap(), pair.a.mac("eth0").unwrap());
        let frame = |port| traffic::udp4(macs, ([10, 1, 0, 2].into(), 999), ([10, 1, 0, 1].into(), port), PAYLOAD);
        let frames: Vec<_> = (0..PACKETS).flat_map(|_| [frame(7), frame(9)]).collect();
        let agent = Agent::start(&pair.a, &["eth0"], &[]).unwrap();
        pair.b.run(|| sockets::send_by_ring("eth0", &frames)).unwrap();
        let landed = agent.stop().unwrap();
        assert_eq!(pair.a.nft_counter(&format!("{family} t"), "refused").unwrap().0, PACKETS as u64);
        assert_exact(&landed, into("eth0"), 7, sum(PACKETS), NONE);
        assert_exact(&landed, into("eth0"), 9, NONE, sum(PACKETS));
    }
}

/// `reject` makes an answer first, and for that the kernel gives the packet another device.
#[test]
fn ipv6_rejected_in_output_is_refused_on_the_way_out() {
    for what in ["drop", "reject"] {
        let pair = Pair::new().unwrap();
        pair.a.nft(&rules("inet", "output", what)).unwrap();
        let agent = Agent::start(&pair.a, &["eth0"], &[]).unwrap();
        pair.a.run(|| traffic::udp("[fd01::2]:7", PACKETS, PAYLOAD)).unwrap();
        pair.a.run(|| traffic::udp("10.1.0.2:7", PACKETS, PAYLOAD)).unwrap();
        let landed = agent.stop().unwrap();
        let refused = pair.a.nft_counter("inet t", "refused").unwrap();
        assert_eq!(
            refused,
            (2 * PACKETS as u64, PACKETS as u64 * (2 * BYTES + 20)),
            "{what}: a header more of 20 bytes"
        );
        assert_exact(&landed, out_of("eth0"), 7, refused, NONE);
    }
}

/// `lo` is an interface as any other: what never reaches it was refused on the way out.
#[test]
fn output_drops_on_a_watched_loopback_are_refused() {
    let host = Netns::new("host").unwrap();
    for what in ["drop", "reject"] {
        host.nft(&format!("flush ruleset\n{}", rules("inet", "output", what))).unwrap();
        let agent = Agent::start(&host, &["lo"], &[]).unwrap();
        host.run(|| {
            traffic::udp("127.0.0.1:7", PACKETS, PAYLOAD).unwrap();
            traffic::udp("127.0.0.1:9", PACKETS, PAYLOAD).unwrap();
        });
        let landed = agent.stop().unwrap();
        assert_eq!(host.nft_counter("inet t", "refused").unwrap(), sum(PACKETS), "{what}");
        assert_exact(&landed, out_of("lo"), 7, sum(PACKETS), NONE);
        assert_exact(&landed, out_of("lo"), 9, NONE, sum(PACKETS));
        assert_exact(&landed, into("lo"), 7, NONE, NONE);
        assert_exact(&landed, into("lo"), 9, NONE, sum(PACKETS));
    }
}

/// A policy that blocks what would go out refuses it where it came in. The kernel has taken its route away by then, so
/// where it would have gone there is no row: README says so.
#[test]
fn a_policy_that_blocks_the_way_out_refuses_on_the_way_in() {
    let net = Routed::new().unwrap();
    let policy = "ip xfrm policy add dir out src 10.2.0.2/32 dst 10.3.0.2/32 proto udp dport 7 action block";
    net.router.exec(policy).unwrap();
    let agent = Agent::start(&net.router, &["in0", "out0"], &[]).unwrap();
    for to in ["10.3.0.2:7", "10.3.0.2:9"] {
        net.client.run(|| traffic::udp(to, PACKETS, PAYLOAD)).unwrap();
    }
    let landed = agent.stop().unwrap();
    // What came in did not go out: the answers to the closed port 9 did.
    assert_eq!(net.server.snmp("Udp", "NoPorts").unwrap(), PACKETS as u64, "only what may pass arrived");
    for (place, refused) in [(into("in0"), sum(PACKETS)), (out_of("out0"), NONE)] {
        assert_exact(&landed, place, 7, refused, NONE);
        assert_exact(&landed, place, 9, NONE, sum(PACKETS));
    }
}

/// In and out by the same interface: refused in both directions.
#[test]
fn a_hairpin_that_is_refused_is_refused_both_ways() {
    let net = Routed::new().unwrap();
    net.router.sysctl("net.ipv4.conf.in0.send_redirects", "0").unwrap();
    net.router.sysctl("net.ipv4.conf.all.send_redirects", "0").unwrap();
    net.router.exec("ip route add 10.9.0.0/24 via 10.2.0.2").unwrap();
    net.router.nft(&rules("inet", "forward", "drop")).unwrap();
    let agent = Agent::start(&net.router, &["in0"], &[]).unwrap();
    // A raw frame: the client itself would not send to a network that it leads to.
    let macs = (net.client.mac("eth0").unwrap(), net.router.mac("in0").unwrap());
    let frame = |port| traffic::udp4(macs, ([10, 2, 0, 2].into(), 999), ([10, 9, 0, 1].into(), port), PAYLOAD);
    net.client.run(|| {
        for port in [7, 9] {
            traffic::Raw::open("eth0").unwrap().send(&vec![frame(port); PACKETS]).unwrap();
        }
    });
    let landed = agent.stop().unwrap();
    assert_eq!(net.router.nft_counter("inet t", "refused").unwrap(), sum(PACKETS));
    for place in [into("in0"), out_of("in0")] {
        assert_exact(&landed, place, 7, sum(PACKETS), NONE);
    }
    assert_exact(&landed, into("in0"), 9, NONE, sum(PACKETS));
}

/// A route is not a firewall: what `prohibit`, `blackhole` and `unreachable` routes lead to was let through.
#[test]
fn routes_to_nowhere_refuse_nothing() {
    for kind in ["prohibit", "blackhole", "unreachable"] {
        let net = Routed::new().unwrap();
        net.router.exec(&format!("ip route add {kind} 10.8.0.0/24")).unwrap();
        let agent = Agent::start(&net.router, &["in0", "out0"], &[]).unwrap();
        net.client.run(|| traffic::udp("10.8.0.1:9", PACKETS, PAYLOAD)).unwrap();
        let landed = agent.stop().unwrap();
        assert_exact(&landed, into("in0"), 9, NONE, sum(PACKETS));
        assert_exact(&landed, out_of("out0"), 9, NONE, NONE);
        assert_eq!(landed.flows("REJECT"), NONE, "{kind}");
    }
}
