//! P6 inside tunnels: what the kernel carries as one large packet inside a tunnel's counts as its segments, each with all its
//! headers.

use std::net::{TcpListener, TcpStream, UdpSocket};

use integration::{
    agent::Agent,
    claims::{NONE, assert_exact, into, out_of},
    features,
    net::{Netns, Pair, address},
    rows::Sum,
    sockets::{self, Offload},
    stacks::Routed,
};

/// UDP port of VXLAN.
const VXLAN: i64 = 4_789;
/// What VXLAN puts in front of a packet, but for the outer IP header: UDP, its own header, Ethernet.
const VXLAN_BYTES: u64 = 8 + 8 + 14;

/// Counts what comes for the tunnel, as it comes.
const COUNT: &str = "table inet w {\n counter got { }\n chain c { type filter hook prerouting priority -300; udp dport 4789 counter name got; }\n}\n";

/// A tunnel between two hosts, `vx0` on each: 10.9.0.1 and `fd09::1` at the first, 10.9.0.2 and `fd09::2` at the second. `false`: this kernel
/// has none.
fn tunnel(hosts: [(&Netns, &str); 2]) -> bool {
    for (at, n) in [(0, 1), (1, 2)] {
        let (ns, local) = hosts[at];
        let remote = hosts[1 - at].1;
        let add = format!("ip link add vx0 type vxlan id 5 dstport {VXLAN} local {local} remote {remote} dev eth0");
        if ns.exec(&add).is_err() {
            features::skipped("this kernel has no vxlan");
            return false;
        }
        ns.sysctl("net.ipv6.conf.vx0.disable_ipv6", "0").unwrap();
        ns.exec(&format!("ip link set vx0 address 02:00:00:00:09:0{n} up")).unwrap();
        for (own, peer) in [(format!("10.9.0.{n}/24"), "10.9.0."), (format!("fd09::{n}/64"), "fd09::")] {
            address(ns, "vx0", &own).unwrap();
            let peer = format!("{peer}{}", 3 - n);
            ns.exec(&format!("ip neigh replace {peer} lladdr 02:00:00:00:09:0{} dev vx0 nud permanent", 3 - n))
                .unwrap();
        }
    }
    true
}

/// Sends a stream from the first host to the second, through the tunnel.
fn stream(from: &Netns, to: &Netns, address: &str) {
    const BYTES: usize = 8 << 20;
    let listener = to.run(|| TcpListener::bind(address).unwrap());
    std::thread::scope(|s| {
        let reader = s.spawn(|| std::io::copy(&mut listener.accept().unwrap().0, &mut std::io::sink()).unwrap());
        from.run(|| {
            let mut stream = TcpStream::connect(address).unwrap();
            std::io::Write::write_all(&mut stream, &vec![0; BYTES]).unwrap();
        });
        assert_eq!(reader.join().unwrap(), BYTES as u64);
    });
}

/// Has what leaves through an interface cut into segments as it leaves, behind all hooks.
fn cut(ns: &Netns, interface: &str) {
    ns.run(|| sockets::offload(interface, Offload::Segmentation, false)).unwrap();
}

fn assert_was_large(ns: &Netns, interface: &str, segments: u64) {
    let buffers = ns.statistic(interface, "tx_packets").unwrap();
    assert!(segments > 3 * buffers, "{segments} segments were {buffers} buffers on {interface}");
}

#[test]
fn every_segment_of_a_stream_in_a_tunnel_counts_all_its_headers() {
    let hosts = [("10.1.0.1", "10.1.0.2"), ("fd01::1", "fd01::2")];
    for (outer, inner) in hosts.into_iter().flat_map(|o| ["10.9.0.2:5001", "[fd09::2]:5001"].map(|i| (o, i))) {
        let pair = Pair::new().unwrap();
        if !tunnel([(&pair.a, outer.0), (&pair.b, outer.1)]) {
            return;
        }
        cut(&pair.a, "eth0");
        let agent = Agent::start(&pair.a, &["eth0"], &[]).unwrap();
        pair.b.nft(COUNT).unwrap();
        stream(&pair.a, &pair.b, inner);
        let landed = agent.stop().unwrap();
        let got = pair.b.nft_counter("inet w", "got").unwrap();
        assert_was_large(&pair.a, "vx0", got.0);
        assert_eq!(landed.on("eth0").udp(VXLAN, "egress", "ACCEPT"), got, "{inner} in {outer:?}");
    }
}

/// On its way in it is one large packet as well, with the headers of whoever made it.
#[test]
fn a_router_counts_the_segments_of_other_peoples_tunnels_on_their_way_in_and_out() {
    let net = Routed::new().unwrap();
    if !tunnel([(&net.client, "10.2.0.2"), (&net.server, "10.3.0.2")]) {
        return;
    }
    cut(&net.router, "out0");
    let agent = Agent::start(&net.router, &["in0", "out0"], &[]).unwrap();
    net.server.nft(COUNT).unwrap();
    stream(&net.client, &net.server, "10.9.0.2:5001");
    let landed = agent.stop().unwrap();
    let got = net.server.nft_counter("inet w", "got").unwrap();
    assert_was_large(&net.client, "eth0", got.0);
    assert_exact(&landed, into("in0"), VXLAN, NONE, got);
    assert_exact(&landed, out_of("out0"), VXLAN, NONE, got);
}

/// Datagrams that a process hands over as one buffer: so many each time, with so much in each.
const DATAGRAMS: usize = 10;
const DATAGRAM_BYTES: u16 = 1_000;
const TIMES: usize = 20;

/// Sends them; `arrived` is called after each time.
fn send_datagrams(from: &Netns, arrived: impl Fn()) {
    let socket = from.run(|| UdpSocket::bind("10.9.0.1:0").unwrap());
    sockets::segmented(&socket, DATAGRAM_BYTES).unwrap();
    for _ in 0..TIMES {
        // A refusal may be an error of the sender.
        let _ = socket.send_to(&vec![0; DATAGRAMS * usize::from(DATAGRAM_BYTES)], "10.9.0.2:7");
        arrived();
    }
}

/// What they are outside the tunnel.
fn outside() -> Sum {
    let datagrams = (TIMES * DATAGRAMS) as u64;
    (datagrams, datagrams * (20 + VXLAN_BYTES + 20 + 8 + u64::from(DATAGRAM_BYTES)))
}

#[test]
fn datagrams_in_a_tunnel_that_are_cut_later_count_as_they_arrive() {
    let pair = Pair::new().unwrap();
    if !tunnel([(&pair.a, "10.1.0.1"), (&pair.b, "10.1.0.2")]) {
        return;
    }
    let receiver = pair.b.run(|| UdpSocket::bind("10.9.0.2:7").unwrap());
    receiver.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
    let agent = Agent::start(&pair.a, &["eth0"], &[]).unwrap();
    send_datagrams(&pair.a, || {
        for _ in 0..DATAGRAMS {
            assert_eq!(receiver.recv(&mut [0; 2_000]).unwrap(), usize::from(DATAGRAM_BYTES));
        }
    });
    let landed = agent.stop().unwrap();
    assert_exact(&landed, out_of("eth0"), VXLAN, NONE, outside());
}

/// Refused before any hook of ours has seen it, it counts as the segments that would have left.
#[test]
fn what_a_firewall_refuses_of_a_tunnel_counts_as_the_segments_that_would_have_left() {
    let pair = Pair::new().unwrap();
    if !tunnel([(&pair.a, "10.1.0.1"), (&pair.b, "10.1.0.2")]) {
        return;
    }
    pair.a
        .nft("table inet t {\n counter refused { }\n chain c { type filter hook output priority 0; udp dport 4789 udp length > 5000 counter name refused drop; }\n}\n")
        .unwrap();
    let agent = Agent::start(&pair.a, &["eth0"], &[]).unwrap();
    send_datagrams(&pair.a, || ());
    let landed = agent.stop().unwrap();
    let refused = pair.a.nft_counter("inet t", "refused").unwrap();
    assert_eq!(refused.0, TIMES as u64, "the firewall saw buffers");
    assert_eq!(landed.on("eth0").udp(VXLAN, "egress", "REJECT"), outside(), "{:#?}", landed.rows);
}
