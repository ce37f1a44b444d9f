//! A refusal counts for the packet that the hook saw, or not at all: neither a clone's death nor a copy's is the
//! packet's, and what cannot be told is never guessed.
//!
//! Every test ends with [`Agent::stop`], which fails if the books of a window do not balance.

use std::net::Ipv4Addr;

use aya::programs::{CgroupSkbAttachType, TcAttachType};
use integration::{
    agent::Agent,
    cgroups::Refusing,
    claims::{NONE, PACKETS, PAYLOAD, assert_exact, assert_not_guessed, into, out_of, rules, sum, until},
    net::Pair,
    others::{Other, Place},
    rows::{Objects, Sum},
    sockets,
    stacks::Routed,
    traffic,
};

/// Two hosts without IPv6, so that nothing but what a test sends is on the cable.
fn pair() -> Pair {
    let pair = Pair::new().unwrap();
    for ns in [&pair.a, &pair.b] {
        ns.sysctl("net.ipv6.conf.eth0.disable_ipv6", "1").unwrap();
    }
    pair
}

fn no_refusals(landed: &Objects) {
    let refused: Vec<_> = landed.rows.iter().filter(|r| r.action == "REJECT").collect();
    assert!(refused.is_empty(), "{} packets: {refused:#?}", landed.flows("REJECT").0);
}

/// Each `ping` has a raw socket; each socket gets a clone of every answer, and its filter kills what is another's.
#[test]
fn pings_do_not_turn_accepted_packets_into_refused_ones() {
    const EACH: usize = 200;
    let pair = pair();
    let agent = Agent::start(&pair.a, &["eth0"], &[]).unwrap();
    let ping = |_| {
        std::process::Command::new("ip")
            .args(["netns", "exec", pair.a.name(), "ping", "-q", "-i", "0.005", "-c", &EACH.to_string(), "10.1.0.2"])
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut pings: Vec<_> = (0..4).map(ping).collect();
    let mut sent = 0;
    pair.b.run(|| {
        let socket = std::net::UdpSocket::bind("10.1.0.2:900").unwrap();
        while pings.iter_mut().any(|p| p.try_wait().unwrap().is_none()) {
            // A few at a time, so that they share buffers with the answers.
            for _ in 0..8 {
                sent += usize::from(socket.send_to(&[0; PAYLOAD], "10.1.0.1:9").is_ok());
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    });
    let landed = agent.stop().unwrap();
    assert_exact(&landed, into("eth0"), 9, NONE, sum(sent));
    no_refusals(&landed);
    let answers = landed.sum(|r| r.protocol == 1 && r.direction == "ingress" && r.icmp_type == 0);
    assert_eq!(answers.0, 4 * EACH as u64);
}

/// Raw sockets that drop everything: the packet itself is answered.
#[test]
fn raw_sockets_that_filter_everything_refuse_nothing() {
    for count in [1, 3] {
        let pair = pair();
        let _deaf: Vec<_> = pair.a.run(|| (0..count).map(|_| sockets::filtered_icmp().unwrap()).collect());
        let agent = Agent::start(&pair.a, &["eth0"], &[]).unwrap();
        let answered = pair.b.exec("ping -q -i 0.01 -c 20 10.1.0.1").unwrap();
        assert!(answered.contains("20 received"), "{answered}");
        let landed = agent.stop().unwrap();
        for (direction, kind) in [("ingress", 8), ("egress", 0)] {
            let by =
                |action: &str| landed.sum(|r| r.direction == direction && r.icmp_type == kind && r.action == action).0;
            assert_eq!([by("REJECT"), by("ACCEPT")], [0, 20], "{count} sockets, {direction}: REJECT, ACCEPT");
        }
        no_refusals(&landed);
    }
}

/// Each socket of a multicast group gets a clone, but the last, or only one, gets the packet: its filter is not a firewall.
#[test]
fn multicast_sockets_with_filters_refuse_nothing() {
    for filters in [&[true, false, true, false][..], &[true, true, true], &[true]] {
        let pair = pair();
        let group = Ipv4Addr::new(239, 1, 1, 1);
        let local = Ipv4Addr::new(10, 1, 0, 1);
        let _members: Vec<_> = pair
            .a
            .run(|| filters.iter().map(|filtered| sockets::multicast(group, local, 9, *filtered).unwrap()).collect());
        pair.b.exec("ip route add 239.0.0.0/8 dev eth0").unwrap();
        let agent = Agent::start(&pair.a, &["eth0"], &[]).unwrap();
        pair.b.run(|| {
            for _ in 0..PACKETS {
                traffic::udp("239.1.1.1:9", 1, PAYLOAD).unwrap();
                traffic::udp("10.1.0.1:10", 1, PAYLOAD).unwrap();
            }
        });
        let landed = agent.stop().unwrap();
        no_refusals(&landed);
        assert_exact(&landed, into("eth0"), 9, NONE, sum(PACKETS));
        assert_exact(&landed, into("eth0"), 10, NONE, sum(PACKETS));
    }
}

/// A copy of each packet goes another way and is refused there; the packet itself is accepted.
#[test]
fn only_the_copy_of_a_packet_is_refused() {
    let net = Routed::new().unwrap();
    net.router
        .nft(
            "table ip t {
 counter refused { }
 chain p { type filter hook prerouting priority 0; udp dport 7 dup to 10.3.0.2 device \"out0\"; }
 chain o { type filter hook output priority 0; udp dport 7 counter name refused drop; }
}",
        )
        .unwrap();
    let agent = Agent::start(&net.router, &["in0"], &[]).unwrap();
    net.client.run(|| traffic::udp("10.2.0.1:7", PACKETS, PAYLOAD)).unwrap();
    let landed = agent.stop().unwrap();
    assert_eq!(net.router.nft_counter("ip t", "refused").unwrap(), sum(PACKETS), "copies");
    assert_exact(&landed, into("in0"), 7, NONE, sum(PACKETS));
}

/// What a filter in front of ours refuses never reaches our hook; what it lets through does.
#[test]
fn a_filter_in_front_refuses_every_second_packet_of_a_flow() {
    for (side, place) in [(TcAttachType::Ingress, into("eth0")), (TcAttachType::Egress, out_of("eth0"))] {
        let pair = pair();
        let agent = Agent::start(&pair.a, &["eth0"], &[]).unwrap();
        let other = Other::attach(&pair.a, "tc_drop_half", side, Place::TcxFirst).unwrap();
        let (from, to) = if place.direction == "ingress" { (&pair.b, "10.1.0.1:7") } else { (&pair.a, "10.1.0.2:7") };
        from.run(|| {
            // The filter takes every second packet of each CPU.
            traffic::pin_to_cpu(0);
            traffic::udp(to, 100, PAYLOAD).unwrap();
        });
        let landed = agent.stop().unwrap();
        assert_eq!(other.counters().unwrap(), (100, 50));
        assert_exact(&landed, place, 7, sum(50), sum(50));
    }
}

/// Who else has a packet socket on the interface.
fn beside(listen: impl Fn() -> Vec<std::os::fd::OwnedFd> + Send + Sync) -> (Objects, Sum) {
    let pair = pair();
    pair.a.nft(&rules("inet", "input", "drop")).unwrap();
    let _sockets = pair.a.run(&listen);
    let agent = Agent::start(&pair.a, &["eth0"], &[]).unwrap();
    pair.b.run(|| {
        for _ in 0..PACKETS {
            traffic::udp("10.1.0.1:7", 1, PAYLOAD).unwrap();
            traffic::udp("10.1.0.1:9", 1, PAYLOAD).unwrap();
        }
    });
    let landed = agent.stop().unwrap();
    (landed, pair.a.nft_counter("inet t", "refused").unwrap())
}

/// tcpdump gets a clone before our hook: the packet stays what it is.
#[test]
fn packet_sockets_for_every_protocol_do_not_hide_refusals() {
    for filtered in [false, true] {
        let (landed, refused) = beside(|| {
            let open = |on| sockets::packets(on, sockets::EVERY_PROTOCOL, filtered).unwrap();
            vec![open(Some("eth0")), open(None)]
        });
        assert_eq!(refused, sum(PACKETS));
        assert_exact(&landed, into("eth0"), 7, refused, NONE);
        assert_exact(&landed, into("eth0"), 9, NONE, sum(PACKETS));
    }
}

/// A socket for IPv4 on the interface shares the buffer with the stack, which goes on with a clone: what the firewall
/// refuses has another address. It is shown, or said to be unknown, but never guessed.
#[test]
fn packet_sockets_for_ipv4_beside_refusals_are_never_guessed() {
    for (filtered, on) in [(false, Some("eth0")), (true, Some("eth0")), (false, None), (true, None)] {
        let (landed, refused) = beside(|| vec![sockets::packets(on, sockets::IPV4, filtered).unwrap()]);
        assert_eq!(refused, sum(PACKETS));
        assert_not_guessed(&landed, into("eth0"), 7, refused, sum(PACKETS));
        assert_exact(&landed, into("eth0"), 9, NONE, sum(PACKETS));
    }
}

/// Over a cable between namespaces the buffer itself travels: what the guest's own firewall refuses was delivered to it.
#[test]
fn what_a_guest_refuses_itself_was_delivered() {
    let pair = pair();
    pair.b.nft(&rules("inet", "input", "drop")).unwrap();
    let agent = Agent::start(&pair.a, &["eth0"], &[]).unwrap();
    pair.a.run(|| {
        for _ in 0..PACKETS {
            traffic::udp("10.1.0.2:7", 1, PAYLOAD).unwrap();
            traffic::udp("10.1.0.2:9", 1, PAYLOAD).unwrap();
        }
    });
    let landed = agent.stop().unwrap();
    assert_eq!(pair.b.nft_counter("inet t", "refused").unwrap(), sum(PACKETS));
    for port in [7, 9] {
        assert_exact(&landed, out_of("eth0"), port, NONE, sum(PACKETS));
    }
    no_refusals(&landed);
}

/// A cgroup's program is a firewall: the socket's own reason (`SOCKET_FILTER`) is a refusal when it did it.
#[test]
fn a_cgroup_refuses_what_its_process_would_receive() {
    let pair = pair();
    let mut cgroup = Refusing::new(CgroupSkbAttachType::Ingress).unwrap();
    cgroup.socket(&pair.a, "10.1.0.1:7", "", 0, 0).unwrap();
    cgroup.socket(&pair.a, "10.1.0.1:9", "", 0, 0).unwrap();
    let agent = Agent::start(&pair.a, &["eth0"], &[]).unwrap();
    pair.b.run(|| {
        for _ in 0..PACKETS {
            traffic::udp("10.1.0.1:7", 1, PAYLOAD).unwrap();
            traffic::udp("10.1.0.1:9", 1, PAYLOAD).unwrap();
        }
    });
    let landed = agent.stop().unwrap();
    assert_eq!(cgroup.refused().unwrap(), PACKETS as u64);
    assert_exact(&landed, into("eth0"), 7, sum(PACKETS), NONE);
    assert_exact(&landed, into("eth0"), 9, NONE, sum(PACKETS));
}

/// Its program on the way out refuses before any hook.
#[test]
fn a_cgroup_refuses_what_its_process_sends() {
    let pair = pair();
    let mut cgroup = Refusing::new(CgroupSkbAttachType::Egress).unwrap();
    let agent = Agent::start(&pair.a, &["eth0"], &[]).unwrap();
    cgroup.socket(&pair.a, "10.1.0.1:900", "10.1.0.2:7", PACKETS, PAYLOAD).unwrap();
    cgroup.socket(&pair.a, "10.1.0.1:901", "10.1.0.2:9", PACKETS, PAYLOAD).unwrap();
    let landed = agent.stop().unwrap();
    assert_eq!(cgroup.refused().unwrap(), PACKETS as u64);
    assert_exact(&landed, out_of("eth0"), 7, sum(PACKETS), NONE);
    assert_exact(&landed, out_of("eth0"), 9, NONE, sum(PACKETS));
}

/// The row of the accepted packets holds flags and times of accepted packets only.
#[test]
fn an_accepted_row_keeps_nothing_of_refused_packets() {
    const FIN_PSH_URG: u8 = 0x29;
    const SYN: u8 = 0x02;
    let pair = pair();
    pair.a
        .nft("table inet t {
 counter refused { }
 counter passed { }
 chain c { type filter hook input priority 0; tcp dport 7 tcp flags & fin == fin counter name refused drop; tcp dport 7 counter name passed; }
}")
        .unwrap();
    let witness = |name: &str| pair.a.nft_counter("inet t", name).unwrap().0;
    let agent = Agent::start(&pair.a, &["eth0"], &["--subsecond"]).unwrap();
    let macs = (pair.b.mac("eth0").unwrap(), pair.a.mac("eth0").unwrap());
    let segment = |flags| traffic::tcp4(macs, ([10, 1, 0, 2].into(), 999), ([10, 1, 0, 1].into(), 7), flags, 0);
    let send = |flags| pair.b.run(|| traffic::Raw::open("eth0").unwrap().send(&vec![segment(flags); 5])).unwrap();
    let now = || {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        i64::try_from(since.as_nanos()).unwrap()
    };
    // More than two timer ticks, to which times are true.
    let pause = || std::thread::sleep(std::time::Duration::from_millis(12));
    let mut between = Vec::new();
    for (flags, name, count) in [(FIN_PSH_URG, "refused", 5), (SYN, "passed", 5), (FIN_PSH_URG, "refused", 10)] {
        pause();
        between.push(now());
        pause();
        send(flags);
        until(name, || witness(name) == count);
    }
    let landed = agent.stop().unwrap();
    let row = |action: &str| landed.rows.iter().find(|r| r.dport == 7 && r.action == action).unwrap().clone();
    let refused = row("REJECT");
    let passed = row("ACCEPT");
    assert_eq!((refused.packets, passed.packets), (10, 5));
    assert_eq!(refused.tcp_flags, i64::from(FIN_PSH_URG));
    assert!([i64::from(SYN), -1].contains(&passed.tcp_flags), "flags {:#04x} of what was accepted", passed.tcp_flags);
    let off = [between[1] - passed.start_ns, passed.end_ns - between[2]].map(|ns| ns / 1_000_000);
    assert!(passed.start_ns > between[1] && passed.end_ns < between[2], "ms too early, too late: {off:?}");
}
