//! Rows have the addresses on the wire, whatever translates them, whichever hook counts, and however long ago the
//! packet was seen when it is refused.
//!
//! Every test ends with [`Agent::stop`], which fails if the books of a window do not balance.

use std::net::Ipv4Addr;

use integration::{
    agent::Agent,
    claims::{NONE, assert_exact, into, out_of, until},
    net::{Netns, Pair},
    rows::{Objects, Row, Sum},
    sockets::{self, Offload},
    stacks::Routed,
    traffic,
};

const PACKETS: usize = 40;
/// Payload, and what an IPv4 packet with it has.
const PAYLOAD: usize = 22;
const BYTES: u64 = 50;
/// Distinct 5-tuples of a burst.
const FLOWS: usize = 50_000;
/// Frames at a time: the queue of a veth holds 256.
const BURST: usize = 250;

fn sum(packets: usize) -> Sum {
    (packets as u64, packets as u64 * BYTES)
}

/// Port 70 of the router is port 7 of the server; what the client may not reach there is refused in forward.
const DNAT: &str = "table ip n {
 chain p { type nat hook prerouting priority -100; udp dport 70 dnat to 10.3.0.2:7; }
}
table inet t {
 counter refused { }
 chain c { type filter hook forward priority 0; udp dport 7 counter name refused drop; }
}
";

/// One packet for each of `flows` connections to port 70 of the router.
fn connections(net: &Routed, flows: usize) -> Vec<Vec<u8>> {
    let macs = (net.client.mac("eth0").unwrap(), net.router.mac("in0").unwrap());
    let from = |i: usize| (Ipv4Addr::from(0x0a02_0010 + (i / 250) as u32), 1_024 + (i % 250) as u16);
    (0..flows).map(|i| traffic::udp4(macs, from(i), ([10, 2, 0, 1].into(), 70), PAYLOAD)).collect()
}

/// Makes one end of a cable receive in NAPI batches, on a thread of its own.
fn threaded_napi(from: (&Netns, &str), to: (&Netns, &str)) {
    let (ns, name) = to;
    ns.run(|| sockets::offload(name, Offload::Receive, true)).unwrap();
    // What the sender could have sent as one large packet is not worth a batch to a veth.
    from.0.run(|| sockets::offload(from.1, Offload::Segmentation, false)).unwrap();
    write_for(ns, "1", &format!("{name}/threaded"));
}

/// Writes to a file below `/sys/class/net`, which shows the devices of the namespace that mounted it: `ip netns exec`
/// mounts one.
fn write_for(ns: &Netns, value: &str, file: &str) {
    let write = format!("echo {value} > /sys/class/net/{file}");
    let status = std::process::Command::new("ip").args(["netns", "exec", ns.name(), "sh", "-c", &write]).status();
    assert!(status.unwrap().success(), "{write}");
}

/// Sums of UDP that came in, by action and by whether the address is the wire's.
fn by_wire(landed: &Objects) -> [Sum; 3] {
    let wire = |r: &Row| r.dst == "10.2.0.1" && r.dport == 70;
    let of = |keep: &dyn Fn(&Row) -> bool| landed.sum(|r| r.protocol == 17 && r.direction == "ingress" && keep(r));
    [of(&|r| r.action == "REJECT" && wire(r)), of(&|r| r.action == "ACCEPT"), of(&|r| r.action == "REJECT" && !wire(r))]
}

/// Sends a burst of connections that are refused after their translation; checks rows and books.
fn refused_after_translation(threaded: bool, args: &[&str], flows: usize) {
    let net = Routed::new().unwrap();
    net.router.nft(DNAT).unwrap();
    if threaded {
        threaded_napi((&net.client, "eth0"), (&net.router, "in0"));
    }
    let frames = connections(&net, flows);
    let agent = Agent::start(&net.router, &["in0"], args).unwrap();
    let seen = || net.router.nft_counter("inet t", "refused").unwrap();
    net.client.run(|| {
        let raw = traffic::Raw::open("eth0").unwrap();
        for (n, some) in (1..).zip(frames.chunks(BURST)) {
            raw.send(some).unwrap();
            until("all refusals", || seen().0 >= flows.min(n * BURST) as u64);
        }
    });
    assert_eq!(seen(), sum(flows));
    let landed = agent.stop().unwrap();
    assert_eq!(
        by_wire(&landed),
        [sum(flows), NONE, NONE],
        "{args:?}, threaded {threaded}: REJECT on the wire, ACCEPT, REJECT translated"
    );
}

/// In a batch, other packets evict the slot of a flow before its packet is refused.
#[test]
fn refused_after_translation_in_napi_batches() {
    refused_after_translation(true, &[], FLOWS);
}

/// The same with a cache that is too small for a batch.
#[test]
fn refused_after_translation_with_a_slot_long_evicted() {
    refused_after_translation(true, &["--cache-slots", "16"], 2_000);
}

/// The XDP hook sees packets before there are buffers.
#[test]
fn refused_after_translation_with_the_xdp_hook() {
    refused_after_translation(false, &["--hook", "xdp"], 3_000);
}

/// Answers to a masqueraded host come to the router's address, and are refused on their way on.
fn refused_answers(args: &[&str]) {
    let net = Routed::new().unwrap();
    net.router
        .nft(
            "table ip n {
 chain p { type nat hook postrouting priority 100; oifname \"out0\" masquerade; }
}
table inet t {
 counter refused { }
 chain c { type filter hook forward priority 0; iifname \"out0\" udp sport 7 counter name refused drop; }
}
",
        )
        .unwrap();
    let agent = Agent::start(&net.router, &["out0"], args).unwrap();
    let answered = net.server.run(|| {
        let server = std::net::UdpSocket::bind("10.3.0.2:7").unwrap();
        server.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        net.client.run(|| {
            for _ in 0..PACKETS {
                traffic::udp("10.3.0.2:7", 1, PAYLOAD).unwrap();
            }
        });
        let mut answered = 0;
        while answered < PACKETS {
            let (_, from) = server.recv_from(&mut [0; 64]).unwrap();
            assert!(from.to_string().starts_with("10.3.0.1:"), "masqueraded: {from}");
            server.send_to(&[0; PAYLOAD], from).unwrap();
            answered += 1;
        }
        answered
    });
    let landed = agent.stop().unwrap();
    assert_eq!(net.router.nft_counter("inet t", "refused").unwrap(), sum(answered));
    let of = |action: &str, dst: &str| {
        landed.sum(|r| r.sport == 7 && r.direction == "ingress" && r.action == action && r.dst == dst)
    };
    assert_eq!(
        [of("REJECT", "10.3.0.1"), of("ACCEPT", "10.3.0.1"), of("REJECT", "10.2.0.2")],
        [sum(answered), NONE, NONE],
        "{args:?}: REJECT on the wire, ACCEPT, REJECT translated {:#?}",
        landed.rows.iter().filter(|r| r.sport == 7).take(4).collect::<Vec<_>>()
    );
}

#[test]
fn refused_answers_to_a_masqueraded_host() {
    refused_answers(&[]);
}

#[test]
fn refused_answers_to_a_masqueraded_host_with_the_xdp_hook() {
    refused_answers(&["--hook", "xdp"]);
}

/// A flow log that wants refusals only has the wire's addresses, too.
#[test]
fn refused_after_translation_when_only_refusals_are_wanted() {
    for args in [&["--action", "rejected"][..], &["--action", "rejected", "--hook", "xdp"]] {
        refused_after_translation(false, args, 500);
    }
}

/// On the way out, the wire's addresses are those after the translation: refused by the interface itself.
#[test]
fn refused_on_the_way_out_after_masquerade() {
    let net = Routed::new().unwrap();
    net.router
        .nft(
            "table ip n {
 chain p { type nat hook postrouting priority 100; oifname \"out0\" masquerade; }
}
table netdev t {
 counter refused { }
 chain c { type filter hook egress device out0 priority 0; ip protocol udp udp dport 7 counter name refused drop; }
}
",
        )
        .unwrap();
    let agent = Agent::start(&net.router, &["in0", "out0"], &[]).unwrap();
    net.client.run(|| traffic::udp("10.3.0.2:7", PACKETS, PAYLOAD)).unwrap();
    let landed = agent.stop().unwrap();
    assert_eq!(net.router.nft_counter("netdev t", "refused").unwrap().0, PACKETS as u64);
    assert_exact(&landed, into("in0"), 7, sum(PACKETS), NONE);
    assert_exact(&landed, out_of("out0"), 7, sum(PACKETS), NONE);
    let from = |name: &str| landed.on(name).rows.iter().find(|r| r.dport == 7).unwrap().src.clone();
    assert_eq!([from("in0"), from("out0")], ["10.2.0.2", "10.3.0.1"]);
}

/// A packet that the XDP hook saw in one window is refused in the next: receive offload holds it that long.
#[test]
fn refusals_across_the_turn_of_a_window_with_the_xdp_hook() {
    let pair = Pair::new().unwrap();
    pair.a
        .nft(
            "table inet t {
 counter refused { }
 chain c { type filter hook input priority 0; tcp dport 7 counter name refused drop; }
}
",
        )
        .unwrap();
    threaded_napi((&pair.b, "eth0"), (&pair.a, "eth0"));
    write_for(&pair.a, "800000000", "eth0/gro_flush_timeout");
    let agent = Agent::start(&pair.a, &["eth0"], &["--hook", "xdp", "--window", "1"]).unwrap();
    let macs = (pair.b.mac("eth0").unwrap(), pair.a.mac("eth0").unwrap());
    let segment = |port| traffic::tcp4(macs, ([10, 1, 0, 2].into(), port), ([10, 1, 0, 1].into(), 7), 0x10, 10);
    let burst: Vec<_> = (1_000..1_010).map(segment).collect();
    pair.b.run(|| {
        let raw = traffic::Raw::open("eth0").unwrap();
        for _ in 0..4 {
            raw.send(&burst).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(1_100));
        }
    });
    let landed = agent.stop().unwrap();
    let refused = pair.a.nft_counter("inet t", "refused").unwrap();
    assert_eq!(refused, (40, 40 * 50), "after 0.8 s each");
    let of = |action: &str| landed.sum(|r| r.dport == 7 && r.direction == "ingress" && r.action == action);
    let shown = of("REJECT");
    let unknown = landed.unknown("ingress");
    assert_eq!((shown.0 + unknown.0, shown.1 + unknown.1), refused, "shown {shown:?}, unknown {unknown:?}");
    // A window that was written before the refusal has it as ACCEPT: the next one says that it holds late ones.
    let late = |r: &Row| r.marks.split(',').any(|mark| mark == "late");
    let said = landed.rows.iter().any(late) || unknown != NONE;
    assert!(of("ACCEPT") == NONE || said, "ACCEPT {:?}", of("ACCEPT"));
}
