//! What an expression means is said here a second time, on addresses and numbers as Rust has them.

use std::net::IpAddr;

use flowlog_ebpf::expression::{Subject, is_meant};
use proptest::prelude::*;

use super::*;

/// A packet as a person would write it down.
#[derive(Clone, Debug)]
struct Plain {
    src: IpAddr,
    dst: IpAddr,
    sport: u16,
    dport: u16,
    proto: u8,
    vlan: u16,
    /// No IP at all, of this Ethertype.
    other: Option<u16>,
}

fn address_words(of: IpAddr) -> [u32; 4] {
    match of {
        IpAddr::V4(v4) => [u32::from_ne_bytes(v4.octets()), 0, 0, 0],
        IpAddr::V6(v6) => {
            let o = v6.octets();
            std::array::from_fn(|n| u32::from_ne_bytes([o[4 * n], o[4 * n + 1], o[4 * n + 2], o[4 * n + 3]]))
        }
    }
}

impl Plain {
    fn subject(&self) -> Subject {
        if let Some(ethertype) = self.other {
            return Subject { ethertype, vlan: self.vlan, ..Subject::default() };
        }
        let (family, ethertype) = if self.src.is_ipv4() { (4, 0x0800) } else { (6, 0x86dd) };
        Subject {
            src: address_words(self.src),
            dst: address_words(self.dst),
            sport: self.sport,
            dport: self.dport,
            ethertype,
            vlan: self.vlan,
            family,
            proto: u16::from(self.proto),
            has_ports: u16::from(matches!(self.proto, 6 | 17 | 132)),
            spare: 0,
        }
    }
}

fn tcp(src: &str, sport: u16, dst: &str, dport: u16) -> Plain {
    let address = |text: &str| text.parse().expect("an address");
    Plain { src: address(src), dst: address(dst), sport, dport, proto: 6, vlan: 0, other: None }
}

fn means(text: &str, packet: &Plain) -> bool {
    is_meant(&parse(text).unwrap_or_else(|e| panic!("{text}: {e}")), &packet.subject())
}

#[test]
fn words_mean_what_pcap_filter_says() {
    let ssh = tcp("203.0.113.9", 4431, "10.0.0.2", 22);
    let web = Plain { vlan: 7, ..tcp("2001:db8::9", 8080, "2001:db8:1::2", 80) };
    let ping = Plain { proto: 1, sport: 8, dport: 0, ..ssh.clone() };
    let arp = Plain { other: Some(0x0806), ..ssh.clone() };
    for (text, expected) in [
        ("", [true, true, true, true]),
        ("host 10.0.0.2 and port 22", [true, false, false, false]),
        ("10.0.0.2", [true, false, true, false]),
        ("src 10.0.0.2", [false; 4]),
        ("src or dst host 10.0.0.2", [true, false, true, false]),
        ("src and dst net 10.0.0.0/8", [false; 4]),
        ("dst net 10", [true, false, true, false]),
        ("net 10.0.0.0 mask 255.0.0.0", [true, false, true, false]),
        ("ip net 203.0.113", [true, false, true, false]),
        ("net 2001:db8::/32", [false, true, false, false]),
        ("net 0.0.0.0/0", [true, false, true, false]),
        ("net ::/0", [false, true, false, false]),
        ("tcp", [true, true, false, false]),
        ("tcp dst port 80 or 22", [true, true, false, false]),
        ("udp port 22", [false; 4]),
        ("port 8", [false; 4]),
        ("portrange 20-30", [true, false, false, false]),
        ("src portrange 8000-8080", [false, true, false, false]),
        ("proto icmp", [false, false, true, false]),
        ("proto 6 and ip6", [false, true, false, false]),
        ("ip proto 1 or tcp", [true, true, true, false]),
        ("icmp or arp", [false, false, true, true]),
        ("vlan", [false, true, false, false]),
        ("vlan 7 and ip6", [false, true, false, false]),
        ("vlan 8", [false; 4]),
        ("not ip and not ip6", [false, false, false, true]),
        ("!(tcp||icmp)", [false, false, false, true]),
        // From left to right: (arp or tcp) and port 22.
        ("arp or tcp and port 22", [true, false, false, false]),
        ("arp or (tcp and port 22)", [true, false, false, true]),
        // `not` takes no more than what follows it.
        ("not host 10.0.0.2 and tcp", [false, true, false, false]),
        ("not (host 10.0.0.2 and tcp)", [false, true, true, true]),
    ] {
        for (packet, expected) in [&ssh, &web, &ping, &arp].into_iter().zip(expected) {
            assert_eq!(means(text, packet), expected, "`{text}` of {packet:?}");
        }
    }
}

#[test]
fn what_cannot_be_understood_is_said_with_its_place() {
    for (text, column, word, expected) in [
        ("hots 10.0.0.2", 1, "hots", "host, net, port"),
        ("host 10.0.0.2 port 22", 15, "port", "`and` or `or`"),
        ("host example.org", 6, "example.org", "not looked up"),
        ("tcp port ssh", 10, "ssh", "a port number"),
        ("port 70000", 6, "70000", "a port number"),
        ("portrange 30-20", 11, "30-20", "two port numbers"),
        ("net 10.0.0.1/8", 5, "10.0.0.1/8", "bits behind its first 8"),
        ("net 10.0.0.0/33", 5, "10.0.0.0/33", "a network"),
        ("net 2001:db8::/129", 5, "2001:db8::/129", "a network"),
        ("net 10.0.0.0 mask 255.0.255.0", 19, "255.0.255.0", "a mask"),
        ("proto 256", 7, "256", "up to 255"),
        ("vlan 4096", 6, "4096", "up to 4095"),
        ("icmp port 22", 11, "22", "has none"),
        ("ip port 22", 9, "22", "has none"),
        ("tcp host 10.0.0.2", 10, "10.0.0.2", "has none"),
        ("ip host fd00::1", 9, "fd00::1", "it is of IPv6, and `ip` in front of it means IPv4"),
        ("ip6 net 10.0.0.0/8", 9, "10.0.0.0/8", "it is of IPv4, and `ip6` in front of it means IPv6"),
        ("ip6 host fd00::1 or 10.0.0.1", 21, "10.0.0.1", "no packet is both"),
        ("(tcp port 22", 0, "", "`)`"),
        ("tcp)", 4, ")", "`and` or `or`"),
        ("tcp and", 0, "", "host, net, port"),
        ("host", 0, "", "ends too early: an IPv4 or IPv6 address is expected"),
        ("net 10.0.0.0 mask", 0, "", "ends too early: a mask is expected"),
        ("and tcp", 1, "and", "host, net, port"),
        ("ü\u{1b}", 1, "ü\u{1b}", "host, net, port"),
    ] {
        let error = parse(text).expect_err(text);
        match &error {
            ExpressionError::Word { column: at, word: found, .. } => {
                assert_eq!((*at, found.as_str()), (column, word), "{text}");
            }
            ExpressionError::End { .. } => assert_eq!(column, 0, "{text}: {error}"),
            ExpressionError::Long { .. } => panic!("{text}: {error}"),
        }
        let words = error.to_string();
        assert!(words.contains(expected) && words.matches("is expected").count() <= 1, "{text}: {error}");
    }
}

#[test]
fn expressions_end_somewhere() {
    let many = |n: usize| vec!["port 1"; n].join(" or ");
    assert_eq!(parse(&many(32)).expect("fits").len(), 63);
    assert!(matches!(parse(&many(33)), Err(ExpressionError::Long { column: 326 })), "{:?}", parse(&many(33)));
    let deep = |n: usize| format!("{}tcp{}", "(".repeat(n), ")".repeat(n));
    assert!(parse(&deep(NESTED_MAX - 1)).is_ok() && parse(&deep(NESTED_MAX)).is_err());
    assert!(parse(&"not ".repeat(1_000_000)).is_err());
}

/// What an expression is made of.
#[derive(Clone, Debug)]
enum Tree {
    Host(&'static str, IpAddr),
    Net(IpAddr, u32),
    Port(&'static str, u16, u16),
    Proto(u8),
    Vlan(Option<u16>),
    Not(Box<Self>),
    And(Box<Self>, Box<Self>),
    Or(Box<Self>, Box<Self>),
}

impl Tree {
    fn text(&self) -> String {
        match self {
            Self::Host(side, address) => format!("{side} host {address}"),
            Self::Net(address, bits) => format!("net {}/{bits}", first_bits(*address, *bits)),
            Self::Port(side, low, high) => format!("{side} portrange {low}-{high}"),
            Self::Proto(number) => format!("proto {number}"),
            Self::Vlan(id) => id.map_or_else(|| "vlan".to_owned(), |id| format!("vlan {id}")),
            Self::Not(a) => format!("not ({})", a.text()),
            // The left one needs no parentheses, whatever it is.
            Self::And(a, b) => format!("{} and ({})", a.text(), b.text()),
            Self::Or(a, b) => format!("{} || ({})", a.text(), b.text()),
        }
    }

    fn holds(&self, p: &Plain) -> bool {
        let ip = p.other.is_none();
        let has_ports = ip && matches!(p.proto, 6 | 17 | 132);
        let sided = |side: &str, src: bool, dst: bool| match side {
            "src" => src,
            "dst" => dst,
            "src and dst" => src && dst,
            _ => src || dst,
        };
        match self {
            Self::Host(side, a) => ip && sided(side, p.src == *a, p.dst == *a),
            Self::Net(a, bits) => {
                let within = |x: IpAddr| x.is_ipv4() == a.is_ipv4() && first_bits(x, *bits) == first_bits(*a, *bits);
                ip && (within(p.src) || within(p.dst))
            }
            Self::Port(side, low, high) => {
                let within = |port| (*low..=*high).contains(&port);
                has_ports && sided(side, within(p.sport), within(p.dport))
            }
            Self::Proto(number) => ip && p.proto == *number,
            Self::Vlan(id) => p.vlan != 0 && id.is_none_or(|id| id == p.vlan),
            Self::Not(a) => !a.holds(p),
            Self::And(a, b) => a.holds(p) && b.holds(p),
            Self::Or(a, b) => a.holds(p) || b.holds(p),
        }
    }
}

/// The address with zeros behind its first bits.
fn first_bits(address: IpAddr, bits: u32) -> IpAddr {
    match address {
        IpAddr::V4(a) => IpAddr::V4((u32::from(a) & u32::MAX.checked_shl(32 - bits.min(32)).unwrap_or(0)).into()),
        IpAddr::V6(a) => IpAddr::V6((u128::from(a) & u128::MAX.checked_shl(128 - bits).unwrap_or(0)).into()),
    }
}

/// Few, so that they meet.
fn address() -> impl Strategy<Value = IpAddr> {
    const SOME: [&str; 7] =
        ["10.0.0.1", "10.0.0.2", "10.128.0.1", "203.0.113.9", "2001:db8::1", "2001:db8:8000::1", "fe80::1"];
    prop::sample::select(&SOME[..]).prop_map(|text| text.parse().expect("an address"))
}

fn tree() -> impl Strategy<Value = Tree> {
    let side = || prop::sample::select(&["", "src", "dst", "src or dst", "src and dst"][..]);
    let port = || 0u16..6;
    let leaf = prop_oneof![
        (side(), address()).prop_map(|(side, a)| Tree::Host(side, a)),
        (address(), 0u32..=128).prop_map(|(a, bits)| Tree::Net(a, if a.is_ipv4() { bits % 33 } else { bits })),
        (side(), port(), port()).prop_map(|(side, a, b)| Tree::Port(side, a.min(b), a.max(b))),
        prop::sample::select(&[1u8, 6, 17, 58, 132, 47][..]).prop_map(Tree::Proto),
        prop::option::of(1u16..4).prop_map(Tree::Vlan),
    ];
    leaf.prop_recursive(5, 24, 2, |inner| {
        let boxed = inner.prop_map(Box::new).boxed();
        prop_oneof![
            boxed.clone().prop_map(Tree::Not),
            (boxed.clone(), boxed.clone()).prop_map(|(a, b)| Tree::And(a, b)),
            (boxed.clone(), boxed).prop_map(|(a, b)| Tree::Or(a, b)),
        ]
    })
}

fn packet() -> impl Strategy<Value = Plain> {
    let proto = prop::sample::select(&[1u8, 6, 17, 58, 132, 47][..]);
    let pair = (address(), address()).prop_filter("one family", |(a, b)| a.is_ipv4() == b.is_ipv4());
    (pair, 0u16..6, 0u16..6, proto, 0u16..4, prop::option::weighted(0.1, Just(0x88cc)))
        .prop_map(|((src, dst), sport, dport, proto, vlan, other)| Plain { src, dst, sport, dport, proto, vlan, other })
}

proptest! {
    #[test]
    fn what_the_programs_evaluate_is_what_the_words_mean(tree in tree(), packet in packet()) {
        let text = tree.text();
        match parse(&text) {
            Ok(tests) => prop_assert_eq!(is_meant(&tests, &packet.subject()), tree.holds(&packet), "{}", text),
            Err(ExpressionError::Long { .. }) => {}
            Err(other) => prop_assert!(false, "{}: {}", text, other),
        }
    }
}
