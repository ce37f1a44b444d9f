//! Each fragment of a refused datagram is refused, in packets and bytes as on the wire, although connection tracking
//! has put them together before the firewall sees them.
//!
//! Every test ends with [`Agent::stop`], which fails if the books of a window do not balance.

use std::net::{Ipv4Addr, Ipv6Addr};

use integration::{
    agent::Agent,
    claims::{NONE, Passage, into, out_of},
    net::{Netns, Pair, address},
    rows::{Objects, Sum},
    stacks::Routed,
    traffic::{self, Raw, checksum},
};

const DATAGRAMS: usize = 20;
/// Payload that takes three fragments with an MTU of 1,500.
const PAYLOAD: usize = 4_000;
/// Layer-3 bytes of the three fragments: UDP header and payload, and three headers.
const BYTES_4: u64 = 8 + PAYLOAD as u64 + 3 * 20;
/// IPv6 headers are longer, and each has a fragment header.
const BYTES_6: u64 = 8 + PAYLOAD as u64 + 3 * 48;

fn all(v6: bool) -> Sum {
    let datagrams = DATAGRAMS as u64;
    (3 * datagrams, datagrams * if v6 { BYTES_6 } else { BYTES_4 })
}

/// Refuses UDP to port 7 once connection tracking has seen it.
fn tracked(hook: &str) -> String {
    format!(
        "table inet t {{
 counter refused {{ }}
 chain c {{ type filter hook {hook} priority 0; ct state new,established udp dport 7 counter name refused drop; }}
}}
"
    )
}

/// Fragments have ports only in the first of them: all UDP of one place counts.
fn assert_all(landed: &Objects, place: Passage<'_>, v6: bool, refused: Sum, passed: Sum) {
    let on = landed.on(place.interface);
    let kind =
        |r: &integration::rows::Row| r.protocol == 17 && r.direction == place.direction && r.dst.contains(':') == v6;
    let found = ["REJECT", "ACCEPT"].map(|a| on.sum(|r| kind(r) && r.action == a));
    assert_eq!(found, [refused, passed], "{place:?} IPv6 {v6}: REJECT, ACCEPT");
}

/// On the way in.
#[test]
fn three_fragments_are_refused_on_the_way_in() {
    for v6 in [false, true] {
        let pair = Pair::new().unwrap();
        pair.a.nft(&tracked("input")).unwrap();
        let agent = Agent::start(&pair.a, &["eth0"], &[]).unwrap();
        let to = if v6 { "[fd01::1]:7" } else { "10.1.0.1:7" };
        pair.b.run(|| traffic::udp(to, DATAGRAMS, PAYLOAD)).unwrap();
        let landed = agent.stop().unwrap();
        assert_eq!(
            pair.a.nft_counter("inet t", "refused").unwrap().0,
            DATAGRAMS as u64,
            "the firewall sees whole ones"
        );
        assert_all(&landed, into("eth0"), v6, all(v6), NONE);
    }
}

/// On the way out, from a process: the wire would have carried three.
#[test]
fn three_fragments_are_refused_on_the_way_out() {
    for v6 in [false, true] {
        let pair = Pair::new().unwrap();
        pair.a.nft(&tracked("output")).unwrap();
        let agent = Agent::start(&pair.a, &["eth0"], &[]).unwrap();
        let to = if v6 { "[fd01::2]:7" } else { "10.1.0.2:7" };
        pair.a.run(|| traffic::udp(to, DATAGRAMS, PAYLOAD)).unwrap();
        let landed = agent.stop().unwrap();
        let firewall = pair.a.nft_counter("inet t", "refused").unwrap().0;
        assert!(firewall >= DATAGRAMS as u64, "{firewall}");
        assert_all(&landed, out_of("eth0"), v6, all(v6), NONE);
    }
}

fn routed_v6(net: &Routed) {
    for (ns, interface, ip) in [
        (&net.client, "eth0", "fd02::2/64"),
        (&net.router, "in0", "fd02::1/64"),
        (&net.router, "out0", "fd03::1/64"),
        (&net.server, "eth0", "fd03::2/64"),
    ] {
        ns.sysctl(&format!("net.ipv6.conf.{interface}.disable_ipv6"), "0").unwrap();
        address(ns, interface, ip).unwrap();
    }
    let route = |ns: &Netns, via: &str| ns.exec(&format!("ip -6 route add default via {via}")).map(drop).unwrap();
    route(&net.client, "fd02::1");
    route(&net.server, "fd03::1");
    net.router.sysctl("net.ipv6.conf.all.forwarding", "1").unwrap();
    // Without link-local addresses a router cannot ask for a neighbour on somebody else's behalf.
    for (ns, interface, ip) in [(&net.client, "in0", "fd02::2"), (&net.server, "out0", "fd03::2")] {
        let mac = ns.mac("eth0").unwrap().map(|b| format!("{b:02x}")).join(":");
        net.router.exec(&format!("ip -6 neigh replace {ip} lladdr {mac} dev {interface} nud permanent")).unwrap();
    }
    net.client.exec("ping -6 -c 1 -W 5 fd03::2").unwrap();
}

/// On the way through: three came in, three would have gone out.
#[test]
fn three_fragments_are_refused_on_the_way_through() {
    for v6 in [false, true] {
        let net = Routed::new().unwrap();
        if v6 {
            routed_v6(&net);
        }
        net.router.nft(&tracked("forward")).unwrap();
        let agent = Agent::start(&net.router, &["in0", "out0"], &[]).unwrap();
        let to = if v6 { "[fd03::2]:7" } else { "10.3.0.2:7" };
        net.client.run(|| traffic::udp(to, DATAGRAMS, PAYLOAD)).unwrap();
        let landed = agent.stop().unwrap();
        assert_eq!(net.router.nft_counter("inet t", "refused").unwrap().0, DATAGRAMS as u64);
        assert_all(&landed, into("in0"), v6, all(v6), NONE);
        assert_all(&landed, out_of("out0"), v6, all(v6), NONE);
    }
}

/// Beside them, whole and fragmented datagrams that are accepted stay so.
#[test]
fn accepted_fragments_beside_refused_ones() {
    let pair = Pair::new().unwrap();
    pair.a.nft(&tracked("input")).unwrap();
    let agent = Agent::start(&pair.a, &["eth0"], &[]).unwrap();
    pair.b.run(|| {
        for _ in 0..DATAGRAMS {
            traffic::udp("10.1.0.1:7", 1, PAYLOAD).unwrap();
            traffic::udp("10.1.0.1:9", 1, PAYLOAD).unwrap();
        }
    });
    let landed = agent.stop().unwrap();
    assert_eq!(pair.a.nft_counter("inet t", "refused").unwrap().0, DATAGRAMS as u64);
    assert_all(&landed, into("eth0"), false, all(false), all(false));
}

/// Where a frame goes and where it comes from.
type Macs = ([u8; 6], [u8; 6]);

/// The three fragments of a UDP datagram over IPv4, from 10.1.0.2 to port 7 of 10.1.0.1.
fn three4((to, from): Macs, id: u16) -> Vec<Vec<u8>> {
    let whole =
        &traffic::udp4((to, from), (Ipv4Addr::new(10, 1, 0, 2), 7), (Ipv4Addr::new(10, 1, 0, 1), 7), PAYLOAD)[14..];
    let payload = &whole[20..];
    let cut = |(at, piece): (usize, &[u8])| {
        let offset = at * 1_480;
        let more = offset + piece.len() < payload.len();
        let mut header = whole[..20].to_vec();
        header[2..4].copy_from_slice(&u16::try_from(20 + piece.len()).unwrap().to_be_bytes());
        header[4..6].copy_from_slice(&id.to_be_bytes());
        header[6..8].copy_from_slice(&(u16::try_from(offset / 8).unwrap() | u16::from(more) << 13).to_be_bytes());
        header[10..12].fill(0);
        let sum = checksum(&[&header]);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        [&to[..], &from, &[8, 0], &header, piece].concat()
    };
    payload.chunks(1_480).enumerate().map(cut).collect()
}

/// Bytes of a destination options header with nothing but padding (RFC 8200, 4.6).
const OPTIONS: usize = 8;

/// The three fragments of a UDP datagram over IPv6, from `fd01::2` to port 7 of `fd01::1`, with options behind the fragment header.
fn three6((to, from): Macs, id: u32) -> Vec<Vec<u8>> {
    let ends = ["fd01::2", "fd01::1"].map(|ip| ip.parse::<Ipv6Addr>().unwrap().octets()).concat();
    let length = u16::try_from(8 + PAYLOAD).unwrap().to_be_bytes();
    let mut udp = [&[0, 7, 0, 7, length[0], length[1], 0, 0], &[0; PAYLOAD][..]].concat();
    let sum = checksum(&[&ends, &[0, 17], &length, &udp]);
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    let payload = [&[17, 0, 1, 4, 0, 0, 0, 0], &udp[..]].concat();
    let cut = |(at, piece): (usize, &[u8])| {
        let offset = at * 1_448;
        let more = offset + piece.len() < payload.len();
        let field = (u16::try_from(offset).unwrap() | u16::from(more)).to_be_bytes();
        let fragment = [&[60, 0, field[0], field[1]], &id.to_be_bytes()[..]].concat();
        let length = u16::try_from(8 + piece.len()).unwrap().to_be_bytes();
        let header = [&[0x60, 0, 0, 0, length[0], length[1], 44, 64], &ends[..]].concat();
        [&to[..], &from, &[0x86, 0xdd], &header, &fragment, piece].concat()
    };
    payload.chunks(1_448).enumerate().map(cut).collect()
}

/// What lands of datagrams that are refused once they are whole, from the frames of each.
fn refused_in_input(frames_of: impl Fn(Macs, u32) -> Vec<Vec<u8>>) -> Objects {
    let pair = Pair::new().unwrap();
    pair.a.nft(&tracked("input")).unwrap();
    let agent = Agent::start(&pair.a, &["eth0"], &[]).unwrap();
    let macs = (pair.a.mac("eth0").unwrap(), pair.b.mac("eth0").unwrap());
    let frames: Vec<_> = (0..DATAGRAMS as u32).flat_map(|id| frames_of(macs, id)).collect();
    pair.b.run(|| Raw::open("eth0").unwrap().send(&frames)).unwrap();
    let landed = agent.stop().unwrap();
    assert_eq!(pair.a.nft_counter("inet t", "refused").unwrap().0, DATAGRAMS as u64);
    landed
}

/// Only the first fragment has the options, and so the protocol. The others say what comes behind their header.
#[test]
fn fragments_with_options_behind_their_header_are_refused_under_the_protocol_that_each_names() {
    let landed = refused_in_input(three6);
    let of =
        |protocol, action| landed.sum(|r| r.protocol == protocol && r.direction == "ingress" && r.action == action);
    let datagrams = DATAGRAMS as u64;
    let first = datagrams * 1_496;
    let all = datagrams * (BYTES_6 + OPTIONS as u64);
    assert_eq!([of(17, "REJECT"), of(60, "REJECT")], [(datagrams, first), (2 * datagrams, all - first)]);
    assert_eq!([of(17, "ACCEPT"), of(60, "ACCEPT")], [NONE, NONE]);
    assert_eq!(landed.unknown("ingress"), NONE);
}

/// Which of the two was in the datagram is not known, nor what else does not agree: all that came stays accepted, and is said to be unknown.
#[test]
fn a_fragment_that_came_twice_makes_all_fragments_of_its_datagram_unknown() {
    let landed = refused_in_input(|macs, id| {
        let [first, second, third] = <[Vec<u8>; 3]>::try_from(three4(macs, id as u16)).unwrap();
        vec![first, second.clone(), second, third]
    });
    let came = (4 * DATAGRAMS as u64, DATAGRAMS as u64 * (BYTES_4 + 1_500));
    assert_all(&landed, into("eth0"), false, NONE, came);
    assert_eq!(landed.unknown("ingress"), came);
}
