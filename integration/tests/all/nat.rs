//! Rows of a NAT gateway have both sides of a translation, as connection tracking has them.
//!
//! The witness is `/proc/net/nf_conntrack` of the gateway's namespace. The router of [`Routed`] is the gateway: `in0` is its inside,
//! `out0` its public interface.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    time::Duration,
};

use integration::{
    agent::Agent,
    claims::until,
    net::{Netns, address},
    node::Node,
    rows::{Objects, Row},
    stacks::Routed,
};

/// Source and destination, each as `ADDRESS PORT`.
type Tuple = [String; 2];

const MASQUERADE: &str = "table inet n {
 chain p { type nat hook postrouting priority 100; oifname \"out0\" masquerade; }
}
";
/// Port 70 of the public interface is port 7 of the inside host.
const DNAT: &str = "table ip n {
 chain p { type nat hook prerouting priority -100; iifname \"out0\" udp dport 70 dnat to 10.2.0.2:7; }
}
";
/// The gateway forwards nothing to port 7.
const REFUSED: &str = "table inet t {
 counter refused { }
 chain c { type filter hook forward priority 0; udp dport 7 counter name refused drop; }
}
";
/// How long a host waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
const TRANSLATIONS: &[&str] = &["--translations"];

fn end(address: impl Display + Copy, port: impl Display + Copy) -> String {
    format!("{address} {port}")
}

fn reversed([src, dst]: Tuple) -> Tuple {
    [dst, src]
}

/// All connections that a namespace tracks: the tuple of the packets that began each, and of the answers to them.
fn connections(ns: &Netns) -> Vec<(Tuple, Tuple)> {
    let text = ns.exec("cat /proc/net/nf_conntrack").unwrap();
    let of = |line: &str| {
        let values = |key: &str| -> Vec<String> {
            line.split_whitespace().filter_map(|w| w.strip_prefix(key)).map(str::to_owned).collect()
        };
        let [src, dst, sport, dport] = ["src=", "dst=", "sport=", "dport="].map(values);
        let address = |a: &String| a.parse::<IpAddr>().unwrap();
        let tuple = |n: usize| [end(address(&src[n]), &sport[n]), end(address(&dst[n]), &dport[n])];
        (sport.len() == 2).then(|| (tuple(0), tuple(1)))
    };
    text.lines().filter_map(of).collect()
}

/// What each tuple on the wire has on the other side, by what connection tracking says; only where that is another one.
fn other_sides(connections: &[(Tuple, Tuple)]) -> BTreeMap<Tuple, Tuple> {
    let mut all = BTreeMap::new();
    for (original, reply) in connections.iter().filter(|(original, reply)| *original != reversed(reply.clone())) {
        all.insert(original.clone(), reversed(reply.clone()));
        all.insert(reversed(reply.clone()), original.clone());
        all.insert(reply.clone(), reversed(original.clone()));
        all.insert(reversed(original.clone()), reply.clone());
    }
    all
}

fn wire(row: &Row) -> Tuple {
    [end(&row.src, row.sport), end(&row.dst, row.dport)]
}

/// The rows of flows with ports on one interface.
fn flows<'a>(landed: &'a Objects, interface: &str) -> Vec<&'a Row> {
    let id = format!("node-{interface}");
    landed.rows.iter().filter(|r| r.status == "OK" && [6, 17].contains(&r.protocol) && r.interface == id).collect()
}

/// Each row has the other side that connection tracking has, and who opened the connection; and there are rows of so many tuples.
fn assert_as_tracked(landed: &Objects, interface: &str, connections: &[(Tuple, Tuple)], tuples: usize) {
    let expected = other_sides(connections);
    let opened: BTreeSet<Tuple> =
        connections.iter().flat_map(|(o, reply)| [o.clone(), reversed(reply.clone())]).collect();
    let rows = flows(landed, interface);
    // What comes in says nothing itself, and of what is refused it is not asked.
    let is_known = |row: &Row| row.direction == "egress" || rows.iter().any(|r| wire(r) == reversed(wire(row)));
    for row in &rows {
        let initiator = is_known(row).then(|| opened.contains(&wire(row)));
        assert!(row.action == "REJECT" || row.initiator == initiator, "{row:#?}\n{connections:#?}");
        let other = expected.get(&wire(row)).cloned().unwrap_or_default();
        assert_eq!(row.other_side, other, "{row:#?}\n{connections:#?}");
    }
    let seen: BTreeSet<Tuple> = rows.iter().map(|r| wire(r)).collect();
    assert_eq!(seen.len(), tuples, "{interface}: {rows:#?}");
}

/// The word of the metadata of the objects of an interface.
fn said(landed: &Objects, interface: &str, word: &str) -> u64 {
    let id = format!("node-{interface}");
    let of = landed.metadata.iter().filter(|m| m["flowlog.interface"] == id);
    let words = of.filter_map(|m| m.get("flowlog.translations"));
    words.flat_map(|w| w.split(' ')).filter_map(|w| w.strip_prefix(word)?.strip_prefix('=')?.parse::<u64>().ok()).sum()
}

/// Each of these hosts sends a datagram to `to`, where each is answered.
fn udp(client: &Netns, from: &[SocketAddr], server: &Netns, (at, to): (SocketAddr, SocketAddr)) {
    server.run(|| {
        let server = UdpSocket::bind(at).unwrap();
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        client.run(|| {
            let sockets: Vec<UdpSocket> = from.iter().map(|from| UdpSocket::bind(from).unwrap()).collect();
            for socket in &sockets {
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                socket.send_to(&[0; 10], to).unwrap();
                let (_, came_from) = server.recv_from(&mut [0; 64]).unwrap();
                server.send_to(&[0; 20], came_from).unwrap();
                assert_eq!(socket.recv_from(&mut [0; 64]).unwrap(), (20, to));
            }
        });
    });
}

fn socket(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    (address.into(), port).into()
}

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 3, 0, 2);
const PUBLIC: Ipv4Addr = Ipv4Addr::new(10, 3, 0, 1);

/// Inside hosts: 10.2.0.2, 10.2.0.3 and so on, all in the client's namespace.
fn hosts(net: &Routed, hosts: u8) -> Vec<Ipv4Addr> {
    let all: Vec<Ipv4Addr> = (2..2 + hosts).map(|n| Ipv4Addr::new(10, 2, 0, n)).collect();
    for host in &all[1..] {
        address(&net.client, "eth0", &format!("{host}/24")).unwrap();
    }
    all
}

fn gateway(rules: &str) -> Routed {
    let net = Routed::new().unwrap();
    net.router.nft(rules).unwrap();
    net
}

#[test]
fn three_inside_hosts_from_one_port_to_one_outside_port_are_told_apart_and_found_back() {
    let net = gateway(MASQUERADE);
    let inside = hosts(&net, 3);
    let from: Vec<SocketAddr> = inside.iter().map(|host| socket(*host, 5_000)).collect();
    let agent = Agent::start(&net.router, &["in0", "out0"], TRANSLATIONS).unwrap();
    udp(&net.client, &from, &net.server, (socket(SERVER, 7), socket(SERVER, 7)));
    let tracked = connections(&net.router);
    let landed = agent.stop().unwrap();
    for interface in ["out0", "in0"] {
        assert_as_tracked(&landed, interface, &tracked, 6);
        assert_eq!(said(&landed, interface, "unknown"), 0);
        assert_eq!(said(&landed, interface, "known"), 6);
    }
    let outside = flows(&landed, "out0");
    let leads_to: BTreeSet<&String> =
        outside.iter().filter(|r| r.direction == "egress").map(|r| &r.other_side[0]).collect();
    let back: BTreeSet<&String> =
        outside.iter().filter(|r| r.direction == "ingress").map(|r| &r.other_side[1]).collect();
    let all: Vec<String> = inside.iter().map(|host| end(host, 5_000)).collect();
    assert!(leads_to.iter().copied().eq(&all) && back.iter().copied().eq(&all), "{outside:#?}");
}

#[test]
fn ports_out_of_a_range_lead_to_their_inside_hosts() {
    const RANGE: std::ops::RangeInclusive<u16> = 4_000..=4_003;
    let (first, last) = (RANGE.start(), RANGE.end());
    let net = gateway(&format!(
        "table inet n {{\n chain p {{ type nat hook postrouting priority 100; meta nfproto ipv4 oifname \"out0\" meta l4proto udp \
         masquerade to :{first}-{last}; }}\n}}"
    ));
    let from: Vec<SocketAddr> = hosts(&net, 3).iter().map(|host| socket(*host, 5_000)).collect();
    let agent = Agent::start(&net.router, &["in0", "out0"], TRANSLATIONS).unwrap();
    udp(&net.client, &from, &net.server, (socket(SERVER, 7), socket(SERVER, 7)));
    let tracked = connections(&net.router);
    let landed = agent.stop().unwrap();
    assert_as_tracked(&landed, "out0", &tracked, 6);
    assert_as_tracked(&landed, "in0", &tracked, 6);
    let outside = flows(&landed, "out0");
    assert!(
        outside
            .iter()
            .filter(|r| r.direction == "egress")
            .all(|r| r.sport >= i64::from(*RANGE.start()) && r.sport <= i64::from(*RANGE.end())),
        "{outside:#?}"
    );
}

#[test]
fn connections_of_tcp_are_told_as_well() {
    let net = gateway(MASQUERADE);
    let agent = Agent::start(&net.router, &["in0", "out0"], TRANSLATIONS).unwrap();
    net.server.run(|| {
        let listener = TcpListener::bind((SERVER, 7)).unwrap();
        net.client.run(|| {
            for _ in 0..3 {
                let mut client = std::net::TcpStream::connect((SERVER, 7)).unwrap();
                let (mut server, _) = listener.accept().unwrap();
                client.write_all(&[0; 1_000]).unwrap();
                server.read_exact(&mut [0; 1_000]).unwrap();
            }
        });
    });
    let tracked = connections(&net.router);
    let landed = agent.stop().unwrap();
    assert_as_tracked(&landed, "out0", &tracked, 6);
    assert_as_tracked(&landed, "in0", &tracked, 6);
}

#[test]
fn a_forwarded_port_leads_to_the_inside_host() {
    let net = gateway(DNAT);
    let agent = Agent::start(&net.router, &["in0", "out0"], TRANSLATIONS).unwrap();
    udp(&net.server, &[socket(SERVER, 6_000)], &net.client, (socket([10, 2, 0, 2], 7), socket(PUBLIC, 70)));
    let tracked = connections(&net.router);
    let landed = agent.stop().unwrap();
    assert_as_tracked(&landed, "out0", &tracked, 2);
    assert_as_tracked(&landed, "in0", &tracked, 2);
    let came = flows(&landed, "out0").into_iter().find(|r| r.direction == "ingress").cloned().unwrap();
    assert_eq!(came.other_side, [end(SERVER, 6_000), end("10.2.0.2", 7)]);
}

/// Nobody answers, so nothing goes out that says what came in.
#[test]
fn what_comes_in_and_is_never_answered_is_looked_up() {
    let net = gateway(DNAT);
    let agent = Agent::start(&net.router, &["out0"], TRANSLATIONS).unwrap();
    net.client.run(|| {
        let host = UdpSocket::bind("10.2.0.2:7").unwrap();
        host.set_read_timeout(Some(PATIENCE)).unwrap();
        net.server.run(|| UdpSocket::bind((SERVER, 6_000)).unwrap().send_to(&[0; 10], (PUBLIC, 70)).unwrap());
        host.recv_from(&mut [0; 64]).unwrap();
    });
    let tracked = connections(&net.router);
    let landed = agent.stop().unwrap();
    assert_as_tracked(&landed, "out0", &tracked, 1);
    assert_eq!((said(&landed, "out0", "known"), said(&landed, "out0", "unknown")), (1, 0));
}

#[test]
fn connections_older_than_the_agent_are_known_in_both_directions() {
    let net = gateway(MASQUERADE);
    net.server.run(|| {
        let server = UdpSocket::bind((SERVER, 7)).unwrap();
        net.client.run(|| {
            let client = UdpSocket::bind("10.2.0.2:5000").unwrap();
            client.send_to(&[0; 10], (SERVER, 7)).unwrap();
            let (_, from) = server.recv_from(&mut [0; 64]).unwrap();
            let agent = Agent::start(&net.router, &["out0", "in0"], TRANSLATIONS).unwrap();
            // Only answers: what is on the other side of them on `out0` is not told by any packet.
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            for _ in 0..3 {
                server.send_to(&[0; 20], from).unwrap();
                client.recv_from(&mut [0; 64]).unwrap();
            }
            let tracked = connections(&net.router);
            let landed = agent.stop().unwrap();
            assert_as_tracked(&landed, "out0", &tracked, 1);
            assert_as_tracked(&landed, "in0", &tracked, 1);
        });
    });
}

#[test]
fn refused_packets_of_a_translated_connection_have_both_sides_on_the_public_interface() {
    let net = gateway(MASQUERADE);
    let (from, to) = (socket([10, 2, 0, 2], 5_000), (socket(SERVER, 7), socket(SERVER, 7)));
    udp(&net.client, &[from], &net.server, to);
    net.router.nft(REFUSED).unwrap();
    let agent = Agent::start(&net.router, &["in0", "out0"], TRANSLATIONS).unwrap();
    net.client.run(|| UdpSocket::bind(from).unwrap().send_to(&[0; 10], (SERVER, 7)).unwrap());
    until("the refusal", || net.router.nft_counter("inet t", "refused").unwrap().0 == 1);
    let tracked = connections(&net.router);
    let landed = agent.stop().unwrap();
    assert_as_tracked(&landed, "out0", &tracked, 1);
    assert_as_tracked(&landed, "in0", &tracked, 1);
    let row = flows(&landed, "out0")[0].clone();
    assert_eq!((row.action.as_str(), row.direction.as_str()), ("REJECT", "egress"));
    assert_eq!(row.other_side, [end(PUBLIC, 5_000), end(SERVER, 7)]);
}

#[test]
fn what_is_refused_behind_a_forwarded_port_has_the_inside_host() {
    let net = gateway(DNAT);
    net.router.nft(REFUSED).unwrap();
    let agent = Agent::start(&net.router, &["out0"], TRANSLATIONS).unwrap();
    net.server.run(|| UdpSocket::bind((SERVER, 6_000)).unwrap().send_to(&[0; 10], (PUBLIC, 70)).unwrap());
    until("the refusal", || net.router.nft_counter("inet t", "refused").unwrap().0 == 1);
    let landed = agent.stop().unwrap();
    let rows = flows(&landed, "out0");
    assert!(rows.len() == 1 && rows[0].action == "REJECT" && rows[0].direction == "ingress", "{rows:#?}");
    assert_eq!(wire(rows[0]), [end(SERVER, 6_000), end(PUBLIC, 70)]);
    assert_eq!(rows[0].other_side, [end(SERVER, 6_000), end("10.2.0.2", 7)]);
    assert_eq!(said(&landed, "out0", "unknown"), 0);
}

#[test]
fn masquerading_of_ipv6_has_both_sides() {
    let net = gateway(MASQUERADE);
    for (ns, interface, own) in [
        (&net.client, "eth0", "fd02::2/64"),
        (&net.router, "in0", "fd02::1/64"),
        (&net.router, "out0", "fd03::1/64"),
        (&net.server, "eth0", "fd03::2/64"),
    ] {
        ns.sysctl(&format!("net.ipv6.conf.{interface}.disable_ipv6"), "0").unwrap();
        address(ns, interface, own).unwrap();
    }
    net.client.exec("ip -6 route add default via fd02::1").unwrap();
    net.server.exec("ip -6 route add default via fd03::1").unwrap();
    net.router.sysctl("net.ipv6.conf.all.forwarding", "1").unwrap();
    net.client.exec("ping -c 1 -W 5 fd03::2").unwrap();
    let agent = Agent::start(&net.router, &["in0", "out0"], TRANSLATIONS).unwrap();
    let host = |address: &str, port| socket(address.parse::<IpAddr>().unwrap(), port);
    let server = host("fd03::2", 7);
    udp(&net.client, &[host("fd02::2", 5_000)], &net.server, (server, server));
    let tracked = connections(&net.router);
    let landed = agent.stop().unwrap();
    assert_as_tracked(&landed, "out0", &tracked, 2);
    assert_as_tracked(&landed, "in0", &tracked, 2);
}

/// Rows of ICMP on `out0`.
fn icmp(landed: &Objects) -> Vec<Row> {
    let on = landed.on("out0");
    on.rows.into_iter().filter(|r| r.protocol == 1).collect()
}

#[test]
fn a_host_that_pings_is_known_and_two_that_ping_the_same_host_are_not_taken_for_one() {
    for hosts_pinging in [1, 2] {
        let net = gateway(MASQUERADE);
        let inside = hosts(&net, hosts_pinging);
        let agent = Agent::start(&net.router, &["out0"], TRANSLATIONS).unwrap();
        for host in &inside {
            net.client.exec(&format!("ping -c 2 -i 0.2 -W 5 -I {host} {SERVER}")).unwrap();
        }
        let landed = agent.stop().unwrap();
        let rows = icmp(&landed);
        assert_eq!(rows.iter().map(|r| r.packets).collect::<Vec<_>>(), [2 * u64::from(hosts_pinging); 2], "{rows:#?}");
        for row in &rows {
            let other = match (hosts_pinging, row.direction.as_str()) {
                (1, "egress") => [end("10.2.0.2", 0), end(SERVER, 0)],
                (1, _) => [end(SERVER, 0), end("10.2.0.2", 0)],
                _ => Tuple::default(),
            };
            assert_eq!(row.other_side, other, "{row:#?}");
        }
        assert_eq!(said(&landed, "out0", "several"), if hosts_pinging == 1 { 0 } else { 2 });
    }
}

#[test]
fn who_pings_is_the_one_who_opened_also_where_both_ping_each_other() {
    let net = gateway(MASQUERADE);
    let agent = Agent::start(&net.router, &["out0"], TRANSLATIONS).unwrap();
    net.router.exec(&format!("ping -c 2 -i 0.2 -W 5 {SERVER}")).unwrap();
    net.server.exec("ping -c 2 -i 0.2 -W 5 10.3.0.1").unwrap();
    let rows = icmp(&agent.stop().unwrap());
    // Type 8 asks, type 0 answers (RFC 792).
    let said: BTreeSet<(&str, i64, Option<bool>)> =
        rows.iter().map(|r| (r.direction.as_str(), r.icmp_type, r.initiator)).collect();
    let wanted = ["ingress", "egress"].into_iter().flat_map(|d| [(d, 8, Some(true)), (d, 0, Some(false))]);
    assert_eq!(said, wanted.collect(), "{rows:#?}");
}

/// An inside host reaches another one by the public address: both sides of it pass one interface.
#[test]
fn a_hairpin_has_both_sides_on_its_one_interface() {
    let net = gateway(
        "table ip n {
 chain p { type nat hook prerouting priority -100; ip daddr 10.3.0.1 udp dport 70 dnat to 10.2.0.2:7; }
 chain q { type nat hook postrouting priority 100; oifname \"in0\" masquerade; }
}
",
    );
    // A host of its own, so that nothing between the two stays inside one namespace.
    let other = Netns::new("other").unwrap();
    other.sysctl("net.ipv6.conf.default.disable_ipv6", "1").unwrap();
    net.client.exec("ip addr del 10.2.0.2/24 dev eth0").unwrap();
    net.client.exec("ip link add br0 type bridge").unwrap();
    integration::net::veth((&other, "eth0"), (&net.client, "port")).unwrap();
    for port in ["eth0", "port"] {
        net.client.exec(&format!("ip link set {port} master br0")).unwrap();
    }
    net.client.exec("ip link set br0 up").unwrap();
    address(&net.client, "br0", "10.2.0.2/24").unwrap();
    address(&other, "eth0", "10.2.0.3/24").unwrap();
    net.client.exec("ip route replace default via 10.2.0.1").unwrap();
    other.exec("ip route add default via 10.2.0.1").unwrap();
    other.exec("ping -c 1 -W 5 10.2.0.1").unwrap();
    let agent = Agent::start(&net.router, &["in0"], TRANSLATIONS).unwrap();
    udp(&other, &[socket([10, 2, 0, 3], 5_000)], &net.client, (socket([10, 2, 0, 2], 7), socket(PUBLIC, 70)));
    let tracked = connections(&net.router);
    let landed = agent.stop().unwrap();
    assert_as_tracked(&landed, "in0", &tracked, 4);
    assert_eq!(said(&landed, "in0", "known"), 4);
}

/// Two inside networks with the same addresses, told apart by zones.
#[test]
fn connections_in_zones_are_told_like_any_other() {
    let net = gateway(
        "table ip n {
 chain z { type filter hook prerouting priority -300; iifname \"in0\" ct original zone set 5; }
 chain p { type nat hook postrouting priority 100; oifname \"out0\" masquerade; }
}
",
    );
    let agent = Agent::start(&net.router, &["out0"], TRANSLATIONS).unwrap();
    let server = socket(SERVER, 7);
    udp(&net.client, &[socket([10, 2, 0, 2], 5_000)], &net.server, (server, server));
    let tracked = connections(&net.router);
    assert_eq!(tracked.len(), 1, "{tracked:?}");
    let landed = agent.stop().unwrap();
    assert_as_tracked(&landed, "out0", &tracked, 2);
}

#[test]
fn a_gateway_in_a_namespace_of_its_own_has_both_sides() {
    let net = gateway(MASQUERADE);
    net.router.nft(DNAT).unwrap();
    let args = ["--translations", "--netns", net.router.name()];
    let mut agent = Agent::spawn_here(&["out0"], &args).unwrap();
    agent.wait_for("capturing").unwrap();
    let server = socket(SERVER, 7);
    udp(&net.client, &[socket([10, 2, 0, 2], 5_000)], &net.server, (server, server));
    // Comes in and is not answered by anybody: connection tracking is asked in that namespace.
    net.server.run(|| UdpSocket::bind((SERVER, 6_000)).unwrap().send_to(&[0; 10], (PUBLIC, 70)).unwrap());
    until("the connection", || connections(&net.router).len() == 2);
    let tracked = connections(&net.router);
    let landed = agent.stop().unwrap();
    let interface = format!("{}-out0", net.router.name());
    // The host has nobody at that port, and says so.
    let rows = flows(&landed, &interface);
    assert_as_tracked(&landed, &interface, &tracked, 3);
    assert!(rows.iter().any(|r| r.other_side[1] == end("10.2.0.2", 7)), "{rows:#?}");
}

#[test]
fn without_translations_the_columns_are_empty_and_nothing_is_said() {
    let net = gateway(MASQUERADE);
    let agent = Agent::start(&net.router, &["out0"], &[]).unwrap();
    let server = socket(SERVER, 7);
    udp(&net.client, &[socket([10, 2, 0, 2], 5_000)], &net.server, (server, server));
    let landed = agent.stop().unwrap();
    let rows = flows(&landed, "out0");
    assert!(rows.len() == 2 && rows.iter().all(|r| r.other_side == Tuple::default()), "{rows:#?}");
    assert!(landed.metadata.iter().all(|m| !m.contains_key("flowlog.translations")));
}

/// With the XDP hook the way in is counted before there is a buffer.
#[test]
fn with_the_xdp_hook_both_directions_are_known() {
    let net = gateway(MASQUERADE);
    let agent = Agent::start(&net.router, &["out0"], &["--translations", "--hook", "xdp"]).unwrap();
    let server = socket(SERVER, 7);
    udp(&net.client, &[socket([10, 2, 0, 2], 5_000)], &net.server, (server, server));
    let tracked = connections(&net.router);
    let landed = agent.stop().unwrap();
    assert_as_tracked(&landed, "out0", &tracked, 2);
}

/// What an agent that was killed had been told is in its journal.
#[test]
fn an_agent_that_is_killed_takes_what_it_was_told_along() {
    let node = Node::new(&["--translations", "--window", "86400"]).unwrap();
    let rules = "table ip n {
 chain p { type nat hook postrouting priority 100; udp sport 5000 snat to 10.1.0.1:6000; }
}
";
    node.pair.a.nft(rules).unwrap();
    let mut agent = node.start().unwrap();
    let server = socket([10, 1, 0, 2], 7);
    udp(&node.pair.a, &[socket([10, 1, 0, 1], 5_000)], &node.pair.b, (server, server));
    let tracked = connections(&node.pair.a);
    agent.kill().unwrap();
    // Takes over, reads the ring into its journal, and is killed in its turn.
    let mut agent = node.spawn(&[("FLOWLOG_FAULT", "position_advance:1")]).unwrap();
    agent.wait_for("killed at position_advance").unwrap();
    agent.wait().unwrap();
    let landed = node.detach().unwrap();
    assert_as_tracked(&landed, "eth0", &tracked, 2);
    assert_eq!((said(&landed, "eth0", "known"), said(&landed, "eth0", "unknown")), (2, 0));
}
