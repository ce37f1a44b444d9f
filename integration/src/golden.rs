//! Byte-exact packets with the key and counts they must give: one or more for every class of packet that promise P6
//! names. The frames are put together here by hand, from the RFCs, not by any code of the parser.

use flowlog_ebpf::{
    abi::{Ip4, Ip6},
    packet::{Flow, Fragment, Frame, NOT_THERE, Packet, ip4, ip6},
};

/// One packet and what must come of it.
#[derive(Clone, Debug)]
pub struct Golden {
    pub name: &'static str,
    /// The frame, from the Ethernet header on.
    pub frame: Vec<u8>,
    /// GSO segment size; 0: not GSO.
    pub gso_size: u32,
    /// GSO segments as the kernel says; 0: not known.
    pub gso_segs: u32,
    /// What parsing must give.
    pub packet: Packet,
    /// Packets on the wire: GSO segments count one by one.
    pub packets: u32,
    /// Bytes on the wire, from the IP header on.
    pub bytes: u32,
}

impl Golden {
    /// The frame as the parser is told about it.
    #[must_use]
    pub fn frame_info(&self) -> Frame {
        Frame { len: len(&self.frame), vlan_tci: 0, link_header: true }
    }
}

const SRC4: [u8; 4] = [10, 1, 2, 3];
const DST4: [u8; 4] = [192, 0, 2, 7];
const SRC6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const DST6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 2];

/// As the shortest Ethernet frame, with padding that looks like flags and ports.
fn pad(mut frame: Vec<u8>) -> Vec<u8> {
    frame.resize(frame.len().max(60), 0xaa);
    frame
}

fn len(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("small")
}

fn eth(tags: &[(u16, u16)], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut f = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    for (tpid, tci) in tags {
        f.extend_from_slice(&tpid.to_be_bytes());
        f.extend_from_slice(&tci.to_be_bytes());
    }
    f.extend_from_slice(&ethertype.to_be_bytes());
    f.extend_from_slice(payload);
    f
}

/// IPv4 header with `options` (a multiple of 4), fragment field and payload.
fn packet4(proto: u8, options: &[u8], fragment: u16, payload: &[u8]) -> Vec<u8> {
    let header = 20 + options.len();
    let total = u16::try_from(header + payload.len()).expect("small");
    let mut p = vec![0x40 | u8::try_from(header / 4).expect("small"), 0];
    p.extend_from_slice(&total.to_be_bytes());
    p.extend_from_slice(&[0x12, 0x34]);
    p.extend_from_slice(&fragment.to_be_bytes());
    p.extend_from_slice(&[64, proto, 0, 0]);
    p.extend_from_slice(&SRC4);
    p.extend_from_slice(&DST4);
    p.extend_from_slice(options);
    p.extend_from_slice(payload);
    p
}

fn packet6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut p = vec![0x60, 0, 0, 0];
    p.extend_from_slice(&u16::try_from(payload.len()).expect("small").to_be_bytes());
    p.extend_from_slice(&[next, 64]);
    p.extend_from_slice(&SRC6);
    p.extend_from_slice(&DST6);
    p.extend_from_slice(payload);
    p
}

/// An extension header of `units` 8-byte units beyond the first.
fn ext(next: u8, units: u8, payload: &[u8]) -> Vec<u8> {
    let mut p = vec![next, units];
    p.resize(8 + usize::from(units) * 8, 0);
    p.extend_from_slice(payload);
    p
}

fn tcp(flags: u8, options: usize, payload: usize) -> Vec<u8> {
    let mut p = vec![0x1f, 0x90, 0x01, 0xbb, 0, 0, 0, 1, 0, 0, 0, 2];
    p.extend_from_slice(&[u8::try_from((20 + options) / 4).expect("small") << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    p.resize(20 + options + payload, 1);
    p
}

fn udp(payload: usize) -> Vec<u8> {
    let mut p = vec![0xc0, 0, 0, 53];
    p.extend_from_slice(&u16::try_from(8 + payload).expect("small").to_be_bytes());
    p.resize(8 + payload, 0);
    p
}

fn flow<A>(ends: [A; 2], proto: u8, ports: (u16, u16), tcp_flags: u8, l3_len: u32, headers: u32) -> Flow<A> {
    let [src, dst] = ends;
    Flow {
        src,
        dst,
        sport: ports.0,
        dport: ports.1,
        vlan: 0,
        proto,
        tcp_flags,
        l3_len,
        headers,
        ip_header: 0,
        fragment: Fragment::NONE,
    }
}

fn flow4(proto: u8, ports: (u16, u16), tcp_flags: u8, l3_len: u32, headers: u32) -> Flow<Ip4> {
    flow([ip4(SRC4), ip4(DST4)], proto, ports, tcp_flags, l3_len, headers)
}

fn flow6(proto: u8, ports: (u16, u16), tcp_flags: u8, l3_len: u32, headers: u32) -> Flow<Ip6> {
    flow([ip6(SRC6), ip6(DST6)], proto, ports, tcp_flags, l3_len, headers)
}

fn plain(name: &'static str, frame: Vec<u8>, packet: Packet) -> Golden {
    let bytes = match &packet {
        Packet::V4(f) => f.l3_len,
        Packet::V6(f) => f.l3_len,
        Packet::NonIp(n) | Packet::Malformed(n) => *n,
    };
    Golden { name, frame, gso_size: 0, gso_segs: 0, packet, packets: 1, bytes }
}

const WEB: (u16, u16) = (8080, 443);
const DNS: (u16, u16) = (0xc000, 53);
const NONE: (u16, u16) = (0, 0);
const NO_ICMP: (u16, u16) = (NOT_THERE, NOT_THERE);
/// The jumbo payload option, of 70,000 bytes.
const JUMBO: [u8; 6] = [0xc2, 4, 0, 1, 0x11, 0x70];
const IP: u16 = 0x0800;
const IP6: u16 = 0x86dd;

fn ipv4() -> Vec<Golden> {
    let v4 = |proto, ports, flags, len, headers| Packet::V4(flow4(proto, ports, flags, len, headers));
    let mut all = vec![
        plain("tcp over ipv4", eth(&[], IP, &packet4(6, &[], 0, &tcp(0x18, 0, 10))), v4(6, WEB, 0x18, 50, 40)),
        plain("udp over ipv4", eth(&[], IP, &packet4(17, &[], 0, &udp(4))), v4(17, DNS, 0, 32, 28)),
        plain(
            "ethernet padding is not counted",
            pad(eth(&[], IP, &packet4(17, &[], 0, &udp(1)))),
            v4(17, DNS, 0, 29, 28),
        ),
        plain(
            "icmp echo request",
            eth(&[], IP, &packet4(1, &[], 0, &[8, 0, 0, 0, 0, 1, 0, 1])),
            v4(1, (8, 0), 0, 28, 20),
        ),
        plain("icmp port unreachable", eth(&[], IP, &packet4(1, &[], 0, &[3, 3, 0, 0])), v4(1, (3, 3), 0, 24, 20)),
        plain("ipv4 options", eth(&[], IP, &packet4(6, &[1; 8], 0, &tcp(0x02, 4, 0))), v4(6, WEB, 0x02, 52, 52)),
        plain("most ipv4 options", eth(&[], IP, &packet4(17, &[1; 40], 0, &udp(0))), v4(17, DNS, 0, 68, 68)),
        plain("first fragment", eth(&[], IP, &packet4(17, &[], 0x2000, &udp(8))), v4(17, DNS, 0, 36, 28)),
        plain(
            "later fragment has no ports",
            eth(&[], IP, &packet4(17, &[], 0x2001, &[9; 16])),
            v4(17, NONE, 0, 36, 20),
        ),
        plain("last fragment has no ports", eth(&[], IP, &packet4(6, &[], 0x00b9, &[9; 4])), v4(6, NONE, 0, 24, 20)),
        plain(
            "don't fragment is no fragment",
            eth(&[], IP, &packet4(17, &[], 0x4000, &udp(0))),
            v4(17, DNS, 0, 28, 28),
        ),
        plain("gre has no ports", eth(&[], IP, &packet4(47, &[], 0, &[0; 4])), v4(47, NONE, 0, 24, 20)),
        plain("sctp", eth(&[], IP, &packet4(132, &[], 0, &udp(4))), v4(132, DNS, 0, 32, 32)),
        plain("udp-lite", eth(&[], IP, &packet4(136, &[], 0, &udp(4))), v4(136, DNS, 0, 32, 28)),
        plain("dccp", eth(&[], IP, &packet4(33, &[], 0, &udp(8))), v4(33, DNS, 0, 36, 28)),
        plain(
            "later fragment has no icmp type",
            eth(&[], IP, &packet4(1, &[], 0x0010, &[8, 0, 0, 0])),
            v4(1, NO_ICMP, 0, 24, 20),
        ),
        plain(
            "a first fragment of 8 bytes has ports and no flags",
            pad(eth(&[], IP, &packet4(6, &[], 0x2000, &tcp(0x02, 0, 0)[..8]))),
            v4(6, WEB, 0, 28, 28),
        ),
        plain("a sliver of a fragment", eth(&[], IP, &packet4(17, &[], 0x2000, &[1, 2])), v4(17, NONE, 0, 22, 20)),
    ];
    for bit in 0..8 {
        let frame = eth(&[], IP, &packet4(6, &[], 0, &tcp(1 << bit, 0, 0)));
        all.push(plain("each tcp flag", frame, v4(6, WEB, 1 << bit, 40, 40)));
    }
    all
}

fn ipv6() -> Vec<Golden> {
    let v6 = |proto, ports, flags, len, headers| Packet::V6(flow6(proto, ports, flags, len, headers));
    let fragment = |next: u8, offset: u16, payload: &[u8]| {
        let mut p = vec![next, 0];
        p.extend_from_slice(&offset.to_be_bytes());
        p.extend_from_slice(&[0, 0, 0, 7]);
        p.extend_from_slice(payload);
        p
    };
    let long = ext(43, 1, &ext(60, 0, &ext(44, 2, &fragment(51, 1, &[6, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2]))));
    let mut long = [long, vec![0; 12]].concat();
    long.extend_from_slice(&tcp(0x10, 0, 0));
    let nine = (0..9).fold(udp(0), |p, i| ext(if i == 0 { 17 } else { 60 }, 0, &p));
    let far = (0..2).fold(udp(0), |p, i| ext(if i == 0 { 17 } else { 60 }, 255, &p));
    let eight = (0..8).fold(udp(0), |p, i| ext(if i == 0 { 17 } else { 60 }, 0, &p));
    let long_len = 40 + len(&long);
    vec![
        plain("tcp over ipv6", eth(&[], IP6, &packet6(6, &tcp(0x12, 0, 3))), v6(6, WEB, 0x12, 63, 60)),
        plain("udp over ipv6", eth(&[], IP6, &packet6(17, &udp(0))), v6(17, DNS, 0, 48, 48)),
        plain(
            "icmpv6 neighbour solicitation",
            eth(&[], IP6, &packet6(58, &[135, 0, 0, 0])),
            v6(58, (135, 0), 0, 44, 40),
        ),
        plain("hop-by-hop options", eth(&[], IP6, &packet6(0, &ext(17, 0, &udp(0)))), v6(17, DNS, 0, 56, 56)),
        plain("routing header", eth(&[], IP6, &packet6(43, &ext(6, 2, &tcp(2, 0, 0)))), v6(6, WEB, 2, 84, 84)),
        plain("chain of six kinds", eth(&[], IP6, &packet6(0, &long)), v6(6, WEB, 0x10, long_len, long_len)),
        plain("eight extension headers", eth(&[], IP6, &packet6(60, &eight)), v6(17, DNS, 0, 112, 112)),
        plain("behind nine extension headers", eth(&[], IP6, &packet6(60, &nine)), v6(60, NONE, 0, 120, 104)),
        plain("behind 4 KiB of extension headers", eth(&[], IP6, &packet6(60, &far)), v6(60, NONE, 0, 4_144, 2_088)),
        plain("first fragment v6", eth(&[], IP6, &packet6(44, &fragment(17, 1, &udp(0)))), v6(17, DNS, 0, 56, 56)),
        plain("later fragment v6", eth(&[], IP6, &packet6(44, &fragment(17, 8, &[7; 8]))), v6(17, NONE, 0, 56, 48)),
        plain(
            "later fragment v6 has no icmp type",
            eth(&[], IP6, &packet6(44, &fragment(58, 8, &[128, 0]))),
            v6(58, NO_ICMP, 0, 50, 48),
        ),
        plain(
            "first fragment v6 of 8 bytes has ports and no flags",
            pad(eth(&[], IP6, &packet6(44, &fragment(6, 1, &tcp(0x02, 0, 0)[..8])))),
            v6(6, WEB, 0, 56, 56),
        ),
        plain(
            "first fragment without its upper header (rfc 7112)",
            pad(eth(&[], IP6, &packet6(44, &fragment(60, 1, &[])))),
            v6(60, NONE, 0, 48, 48),
        ),
        plain(
            "first fragment that ends in an extension header",
            eth(&[], IP6, &packet6(44, &fragment(60, 1, &[6, 2, 1, 4, 0, 0, 0, 0]))),
            v6(6, NONE, 0, 56, 72),
        ),
        plain("atomic fragment", eth(&[], IP6, &packet6(44, &fragment(17, 0, &udp(0)))), v6(17, DNS, 0, 56, 56)),
        plain("sctp over ipv6", eth(&[], IP6, &packet6(132, &udp(4))), v6(132, DNS, 0, 52, 52)),
        plain("no next header", eth(&[], IP6, &packet6(59, &[])), v6(59, NONE, 0, 40, 40)),
        plain(
            "payload length 0 is a packet of 40 bytes",
            pad(eth(&[], IP6, &packet6(59, &[]))),
            v6(59, NONE, 0, 40, 40),
        ),
        plain(
            "a jumbo option beside a payload length",
            eth(&[], IP6, &packet6(0, &[&[17, 0][..], &JUMBO, &udp(0)].concat())),
            v6(17, DNS, 0, 56, 56),
        ),
        plain("esp hides the ports", eth(&[], IP6, &packet6(50, &[0; 16])), v6(50, NONE, 0, 56, 40)),
    ]
}

fn links() -> Vec<Golden> {
    let inner = packet4(17, &[], 0, &udp(0));
    let vlan = |vlan| Packet::V4(Flow { vlan, ..flow4(17, DNS, 0, 28, 28) });
    vec![
        plain("vlan", eth(&[(0x8100, 0x6064)], IP, &inner), vlan(100)),
        plain("priority tag is untagged", eth(&[(0x8100, 0xe000)], IP, &inner), vlan(0)),
        plain("qinq keeps the outer id", eth(&[(0x88a8, 200), (0x8100, 100)], IP, &inner), vlan(200)),
        plain(
            "vlan over ipv6",
            eth(&[(0x8100, 4094)], IP6, &packet6(17, &udp(0))),
            Packet::V6(Flow { vlan: 4094, ..flow6(17, DNS, 0, 48, 48) }),
        ),
        plain("three tags", eth(&[(0x88a8, 1), (0x8100, 2), (0x8100, 3)], IP, &inner), vlan(1)),
        plain(
            "four tags",
            eth(&[(0x88a8, 1), (0x8100, 2), (0x8100, 3), (0x8100, 4)], IP, &inner),
            Packet::Malformed(32),
        ),
        plain("arp is not ip", eth(&[], 0x0806, &[0; 28]), Packet::NonIp(28)),
        plain("lldp is not ip", eth(&[], 0x88cc, &[0; 46]), Packet::NonIp(46)),
        plain("802.3 length field is not ip", eth(&[], 40, &[0x42; 40]), Packet::NonIp(40)),
        plain("mpls is not ip", eth(&[], 0x8847, &[0; 32]), Packet::NonIp(32)),
        plain("arp in a vlan", eth(&[(0x8100, 5)], 0x0806, &[0; 28]), Packet::NonIp(28)),
    ]
}

fn malformed() -> Vec<Golden> {
    let cut = |frame: Vec<u8>, at: usize| frame[..at].to_vec();
    let whole = eth(&[], IP, &packet4(6, &[], 0, &tcp(2, 0, 0)));
    let mut short_header = whole.clone();
    short_header[14] = 0x44;
    let mut wrong_version = whole.clone();
    wrong_version[14] = 0x65;
    let mut tiny_total = whole.clone();
    tiny_total[16..18].copy_from_slice(&19u16.to_be_bytes());
    // The IP header's length ends the packet within its upper header; the frame goes on.
    let ends = |proto: u8, upper: usize| pad(eth(&[], IP, &packet4(proto, &[], 0, &vec![0; upper])));
    let ends6 = |next: u8, upper: usize| pad(eth(&[], IP6, &packet6(next, &vec![0; upper])));
    let tagged = eth(&[(0x8100, 7)], IP, &packet4(6, &[], 0, &[0; 13]));
    let mut jumbo = eth(&[], IP6, &packet6(0, &[&[6, 0][..], &JUMBO, &tcp(2, 0, 10)].concat()));
    jumbo[18..20].fill(0);
    let whole6 = eth(&[], IP6, &packet6(6, &tcp(2, 0, 0)));
    let mut wrong_version6 = whole6.clone();
    wrong_version6[14] = 0x45;
    let bad = |name, frame: Vec<u8>| {
        let n = len(&frame) - 14;
        plain(name, frame, Packet::Malformed(n))
    };
    vec![
        bad("ipv4 header cut short", cut(whole.clone(), 14 + 19)),
        bad("tcp header cut short", cut(whole.clone(), 14 + 20 + 13)),
        bad("no payload at all", cut(whole, 14 + 20)),
        bad("ipv4 header length below 20", short_header),
        bad("ipv4 ethertype, version 6", wrong_version),
        bad("ipv4 total length below its header", tiny_total),
        bad("ipv6 header cut short", cut(whole6.clone(), 14 + 39)),
        bad("ipv6 ethertype, version 4", wrong_version6),
        bad("udp over ipv6 cut short", cut(eth(&[], IP6, &packet6(17, &udp(0))), 14 + 43)),
        bad("extension header cut short", cut(eth(&[], IP6, &packet6(0, &ext(17, 0, &udp(0)))), 14 + 41)),
        bad("tcp header ends in padding", ends(6, 13)),
        bad("udp ports end in padding", ends(17, 3)),
        bad("sctp ports end in padding", ends(132, 2)),
        bad("icmp code ends in padding", ends(1, 1)),
        bad("tcp is all padding", ends(6, 0)),
        bad("tcp over ipv6 ends in padding", ends6(6, 5)),
        bad("udp over ipv6 ends in padding", ends6(17, 3)),
        bad("icmpv6 code ends in padding", ends6(58, 1)),
        bad("tcp over ipv6 is all padding", ends6(6, 0)),
        bad("extension header is all padding", ends6(60, 0)),
        bad("extension header goes on in padding", pad(eth(&[], IP6, &packet6(60, &[59, 1, 1, 4, 0, 0, 0, 0])))),
        bad("jumbo option of a small packet", jumbo),
        plain("tcp in a vlan ends in padding", pad(tagged), Packet::Malformed(42)),
        plain("vlan tag cut short", cut(eth(&[(0x8100, 5)], IP, &[]), 16), Packet::Malformed(2)),
    ]
}

fn gso() -> Vec<Golden> {
    let big4 = eth(&[], IP, &packet4(6, &[], 0, &tcp(0x10, 12, 3_000)));
    let big6 = eth(&[], IP6, &packet6(6, &tcp(0x10, 12, 3_000)));
    let usegs = eth(&[], IP, &packet4(17, &[], 0, &udp(2_500)));
    let packet4 = Packet::V4(flow4(6, WEB, 0x10, 3_052, 52));
    // BIG TCP: the length does not fit; with a header that no segment has, or (later kernels) without.
    let mut jumbo = [&[6, 0][..], &JUMBO, &tcp(0x10, 12, 70_000 - 40)].concat();
    let mut bare = packet6(6, &[]);
    bare.extend_from_slice(&jumbo[8..]);
    let mut internal = packet6(0, &[]);
    internal.append(&mut jumbo);
    let bare = eth(&[], IP6, &bare);
    let internal = eth(&[], IP6, &internal);
    let big = Packet::V6(flow6(6, WEB, 0x10, 70_032, 72));
    let with = |name, frame: Vec<u8>, packet, gso_size, gso_segs, packets, bytes| Golden {
        name,
        frame,
        gso_size,
        gso_segs,
        packet,
        packets,
        bytes,
    };
    vec![
        with("tcp gso counts segments and their headers", big4.clone(), packet4, 1_000, 3, 3, 3_052 + 2 * 52),
        with("a guest's gso has no segment count", big4, packet4, 1_448, 0, 3, 3_052 + 2 * 52),
        with("tcp gso over ipv6", big6, Packet::V6(flow6(6, WEB, 0x10, 3_072, 72)), 1_428, 3, 3, 3_072 + 2 * 72),
        with("big tcp over ipv6", internal, big, 1_428, 49, 49, 70_032 + 48 * 72),
        with("big tcp over ipv6 without a header of its own", bare, big, 1_428, 49, 49, 70_032 + 48 * 72),
        with("udp gso", usegs, Packet::V4(flow4(17, DNS, 0, 2_528, 28)), 1_000, 3, 3, 2_528 + 2 * 28),
    ]
}

#[must_use]
pub fn table() -> Vec<Golden> {
    [ipv4(), ipv6(), links(), malformed(), gso()].concat()
}
