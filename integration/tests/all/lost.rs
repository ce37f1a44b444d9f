//! P1: what the firewall let through and what died on its way is in its ACCEPT row, and the row says how much and why.
//!
//! Every test compares with the kernel's own counter of such deaths, and ends with [`Agent::stop`], which fails if the books of a
//! window do not balance, lost packets included.

use std::{
    io::Read as _,
    net::{TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::Command,
};

use integration::{
    agent::{Agent, binary},
    claims::{BYTES, NONE, PACKETS, PAYLOAD, sum, until},
    net::Netns,
    node::Node,
    rows::{self, Objects, Sum},
    sockets,
    stacks::Routed,
    traffic,
};

const PORT: i64 = 9;

/// The lost packets and bytes of UDP to the port on an interface and way, with the reason; and what its ACCEPT rows hold.
fn lost(landed: &Objects, interface: &str, direction: &str) -> (Sum, String, Sum) {
    let landed = landed.on(interface);
    let of = |r: &&rows::Row| r.dport == PORT && r.protocol == 17 && r.direction == direction;
    let mut reasons: Vec<String> = landed.rows.iter().filter(of).map(|r| r.lost_reason.clone()).collect();
    reasons.sort();
    reasons.dedup();
    let lost = landed.rows.iter().filter(of).fold((0, 0), |(p, b), r| (p + r.lost.0, b + r.lost.1));
    (lost, reasons.join(","), landed.udp(PORT, direction, "ACCEPT"))
}

/// `in0` has let all packets through and says that all of them were lost, for this reason; nothing was refused.
fn assert_all_lost(landed: &Objects, reason: &str) {
    assert_eq!(lost(landed, "in0", "ingress"), (sum(PACKETS), reason.to_owned(), sum(PACKETS)), "{:#?}", landed.rows);
    assert_eq!(lost(landed, "out0", "egress"), (NONE, String::new(), NONE));
    assert_eq!(landed.flows("REJECT"), NONE);
}

/// A socket of the client's.
fn socket(net: &Routed, set_up: impl FnOnce(&UdpSocket) + Send) -> UdpSocket {
    net.client.run(|| {
        let socket = UdpSocket::bind("10.2.0.2:0").unwrap();
        set_up(&socket);
        socket
    })
}

fn send(socket: &UdpSocket, to: &str, payload: usize) {
    for _ in 0..PACKETS {
        // An error is the answer to an earlier one.
        let _ = socket.send_to(&vec![0; payload], to);
    }
}

/// Packets that a namespace has found no route for (`InNoRoutes` of `/proc/net/netstat`).
fn no_routes(ns: &Netns) -> u64 {
    let text = ns.exec("cat /proc/net/netstat").unwrap();
    let mut lines = text.lines().filter(|l| l.starts_with("IpExt:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.split_whitespace().position(|n| n == "InNoRoutes").unwrap();
    values.split_whitespace().nth(at).unwrap().parse().unwrap()
}

#[test]
fn what_has_no_route_is_lost() {
    // Without a route; and with one of each kind that says where packets must not go.
    for kind in ["", "unreachable", "prohibit", "blackhole"] {
        let net = Routed::new().unwrap();
        if !kind.is_empty() {
            net.router.exec(&format!("ip route add {kind} 10.8.0.0/24")).unwrap();
        }
        let chain = |hook: &str| {
            format!(" chain {hook} {{ type filter hook {hook} priority 0; udp dport {PORT} counter name {hook}; }}\n")
        };
        let counters = " counter prerouting { }\n counter forward { }\n counter input { }\n";
        let rules = ["prerouting", "forward", "input"].map(chain).concat();
        net.router.nft(&format!("table ip t {{\n{counters}{rules}}}\n")).unwrap();
        let agent = Agent::start(&net.router, &["in0", "out0"], &[]).unwrap();
        net.client.run(|| traffic::udp("10.8.0.1:9", PACKETS, PAYLOAD)).unwrap();
        let landed = agent.stop().unwrap();
        let seen = |hook: &str| net.router.nft_counter("ip t", hook).unwrap();
        assert_eq!([seen("prerouting"), seen("forward"), seen("input")], [sum(PACKETS), NONE, NONE], "{kind}");
        let (all, reason, accepted) = lost(&landed, "in0", "ingress");
        assert_eq!((all, accepted), (sum(PACKETS), sum(PACKETS)), "{kind}: {reason} {:#?}", landed.rows);
        assert_eq!(reason, "IP_INNOROUTES", "{kind}");
        assert_eq!(landed.flows("REJECT"), NONE, "{kind}");
    }
}

#[test]
fn what_has_no_hops_left_is_lost() {
    let net = Routed::new().unwrap();
    let agent = Agent::start(&net.router, &["in0", "out0"], &[]).unwrap();
    let before = net.router.snmp("Ip", "InHdrErrors").unwrap();
    send(&socket(&net, |s| s.set_ttl(1).unwrap()), "10.3.0.2:9", PAYLOAD);
    let landed = agent.stop().unwrap();
    assert_eq!(net.router.snmp("Ip", "InHdrErrors").unwrap() - before, PACKETS as u64);
    assert_all_lost(&landed, "IP_INHDR");
}

#[test]
fn what_is_too_large_for_the_way_out_and_must_not_be_cut_is_lost() {
    const LARGE: usize = 1_200;
    let net = Routed::new().unwrap();
    net.router.exec("ip link set out0 mtu 1000").unwrap();
    let agent = Agent::start(&net.router, &["in0", "out0"], &[]).unwrap();
    let before = net.router.snmp("Ip", "FragFails").unwrap();
    send(&socket(&net, |s| sockets::never_fragment(s).unwrap()), "10.3.0.2:9", LARGE);
    let landed = agent.stop().unwrap();
    assert_eq!(net.router.snmp("Ip", "FragFails").unwrap() - before, PACKETS as u64);
    let all = (PACKETS as u64, PACKETS as u64 * (28 + LARGE as u64));
    assert_eq!(lost(&landed, "in0", "ingress"), (all, "PKT_TOO_BIG".to_owned(), all), "{:#?}", landed.rows);
}

#[test]
fn what_a_full_queue_drops_is_lost_on_both_ways() {
    let net = Routed::new().unwrap();
    // Room for a few packets, which leave one after the other in minutes.
    net.router.exec("tc qdisc add dev out0 root tbf rate 8bit burst 200 limit 1000").unwrap();
    let agent = Agent::start(&net.router, &["in0", "out0"], &[]).unwrap();
    net.client.run(|| traffic::udp("10.3.0.2:9", PACKETS, PAYLOAD)).unwrap();
    let queue = || -> serde_json::Value {
        serde_json::from_str(&net.router.exec("tc -s -j qdisc show dev out0").unwrap()).unwrap()
    };
    let counted = |what: &str| queue()[0][what].as_u64().unwrap();
    until("all packets", || counted("drops") + counted("qlen") + counted("packets") >= PACKETS as u64);
    let landed = agent.stop().unwrap();
    let dropped = counted("drops");
    assert!(dropped > 20 && dropped < PACKETS as u64, "{dropped} dropped");
    for (interface, direction) in [("in0", "ingress"), ("out0", "egress")] {
        let (all, reason, accepted) = lost(&landed, interface, direction);
        assert_eq!((all, accepted), ((dropped, dropped * BYTES), sum(PACKETS)), "{interface}: {:#?}", landed.rows);
        assert!(reason.starts_with("QDISC_"), "{reason}");
    }
}

#[test]
fn what_finds_the_socket_full_is_lost() {
    let net = Routed::new().unwrap();
    let agent = Agent::start(&net.router, &["in0"], &[]).unwrap();
    let _full = net.router.run(|| sockets::small("10.2.0.1:9").unwrap());
    net.client.run(|| traffic::udp("10.2.0.1:9", PACKETS, PAYLOAD)).unwrap();
    let landed = agent.stop().unwrap();
    let full = net.router.snmp("Udp", "RcvbufErrors").unwrap();
    assert!(full > 0 && full < PACKETS as u64, "{full} did not fit");
    let expected = ((full, full * BYTES), "SOCKET_RCVBUFF".to_owned(), sum(PACKETS));
    assert_eq!(lost(&landed, "in0", "ingress"), expected, "{:#?}", landed.rows);
}

#[test]
fn what_was_damaged_is_lost() {
    let net = Routed::new().unwrap();
    let agent = Agent::start(&net.router, &["in0", "out0"], &[]).unwrap();
    let macs = (net.client.mac("eth0").unwrap(), net.router.mac("in0").unwrap());
    let mut frame = traffic::udp4(macs, ([10, 2, 0, 2].into(), 999), ([10, 2, 0, 1].into(), 9), PAYLOAD);
    frame[40..42].copy_from_slice(&[1, 2]);
    net.client.run(|| traffic::Raw::open("eth0").unwrap().send(&vec![frame; PACKETS])).unwrap();
    let landed = agent.stop().unwrap();
    assert_eq!(net.router.snmp("Udp", "InCsumErrors").unwrap(), PACKETS as u64);
    assert_all_lost(&landed, "UDP_CSUM");
}

#[test]
fn what_waits_for_a_neighbour_that_does_not_answer_is_lost() {
    let net = Routed::new().unwrap();
    net.router.nft(&format!("table ip t {{\n counter forward {{ }}\n chain c {{ type filter hook forward priority 0; udp dport {PORT} counter name forward; }}\n}}\n")).unwrap();
    let agent = Agent::start(&net.router, &["in0", "out0"], &[]).unwrap();
    net.client.run(|| traffic::udp("10.3.0.77:9", PACKETS, PAYLOAD)).unwrap();
    until("giving up", || net.router.exec("ip neigh show 10.3.0.77").unwrap().contains("FAILED"));
    let landed = agent.stop().unwrap();
    assert_eq!(net.router.nft_counter("ip t", "forward").unwrap(), sum(PACKETS));
    assert_all_lost(&landed, "NEIGH_FAILED");
}

#[test]
fn a_copy_that_dies_and_a_packet_that_has_arrived_are_not_lost() {
    let net = Routed::new().unwrap();
    let agent = Agent::start(&net.router, &["in0", "out0"], &[]).unwrap();
    // Nobody reads from it: its copies die when it is full, and what they are copies of goes on.
    let _tap = net.router.run(|| sockets::packets(Some("in0"), 0x0003, false).unwrap());
    let received = net.server.run(|| UdpSocket::bind("10.3.0.2:9").unwrap());
    net.client.run(|| traffic::udp("10.3.0.2:9", 4_000, PAYLOAD)).unwrap();
    drop(received);
    // Nobody listens: it has arrived, and its sender is told.
    net.client.run(|| traffic::udp("10.2.0.1:9", PACKETS, PAYLOAD)).unwrap();
    let landed = agent.stop().unwrap();
    assert_eq!(net.router.snmp("Udp", "NoPorts").unwrap(), PACKETS as u64);
    assert_eq!(lost(&landed, "in0", "ingress"), (NONE, String::new(), sum(4_000 + PACKETS)), "{:#?}", landed.rows);
    assert_eq!(lost(&landed, "out0", "egress"), (NONE, String::new(), sum(4_000)));
}

/// A packet keeps its number on its way into another namespace of the node. What a socket there throws away has neither device nor route
/// any more, and came in through an interface whose index may be that of one here.
#[test]
fn what_a_socket_of_another_namespace_throws_away_was_not_lost_here() {
    let net = Routed::new().unwrap();
    let index = |ns: &Netns, name: &str| ns.exec(&format!("cat /sys/class/net/{name}/ifindex")).unwrap();
    assert_eq!(index(&net.router, "in0"), index(&net.server, "eth0"), "the first interfaces of two namespaces");
    let agent = Agent::start(&net.router, &["in0", "out0"], &[]).unwrap();
    let listener = net.server.run(|| TcpListener::bind("10.3.0.2:80").unwrap());
    for _ in 0..PACKETS {
        let mut stream = net.client.run(|| TcpStream::connect("10.3.0.2:80").unwrap());
        drop(net.server.run(|| listener.accept().unwrap()));
        // The server's socket is nobody's any more when the client's end comes: it is queued, and goes with the socket.
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        drop(stream);
    }
    until("no connection is left at the server", || {
        let open = net.server.exec("cat /proc/net/tcp").unwrap();
        open.lines().skip(1).all(|l| matches!(l.split_whitespace().nth(3), Some("0A" | "06")))
    });
    let landed = agent.stop().unwrap();
    let tcp = |r: &rows::Row| r.protocol == 6;
    assert!(landed.sum(tcp).0 >= 4 * PACKETS as u64, "{:#?}", landed.rows);
    let lost: Vec<_> = landed.rows.iter().filter(|r| tcp(r) && r.lost != NONE).collect();
    assert!(lost.is_empty(), "{lost:#?}");
}

/// Starts the agent on `in0` with a configuration that says this of reasons.
fn with_reasons(net: &Routed, dir: &Path, reasons: &str) -> anyhow::Result<Agent> {
    let file = dir.join("flowlog.toml");
    let (state, objects) = (dir.join("state"), dir.join("objects"));
    let text = format!(
        "node_id = 'node'\nno_pin = true\nstate_dir = '{}'\n[reasons]\n{reasons}\n[[flow_log]]\ninterfaces = ['in0']\ntarget = '{}'\n",
        state.display(),
        objects.display()
    );
    std::fs::write(&file, text)?;
    let mut command: Command = net.router.command(binary());
    command.args(["run", "--config"]).arg(file);
    Agent::attend(command, tempfile::tempdir()?)
}

#[test]
fn a_reason_counts_as_what_the_operator_says() {
    for (reasons, expected, refused) in [
        ("lost = ['NO_SOCKET']", (sum(PACKETS), "NO_SOCKET", sum(PACKETS)), NONE),
        ("rejected = ['NO_SOCKET']", (NONE, "", NONE), sum(PACKETS)),
        ("ignored = ['SKB_DROP_REASON_IP_CSUM']", (NONE, "", sum(PACKETS)), NONE),
    ] {
        let net = Routed::new().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut agent = with_reasons(&net, dir.path(), reasons).unwrap();
        agent.wait_for("capturing").unwrap();
        net.client.run(|| traffic::udp("10.2.0.1:9", PACKETS, PAYLOAD)).unwrap();
        agent.end().unwrap();
        assert_eq!(net.router.snmp("Udp", "NoPorts").unwrap(), PACKETS as u64);
        let landed = Objects::below(&dir.path().join("objects")).unwrap();
        let found = lost(&landed, "in0", "ingress");
        assert_eq!((found.0, found.1.as_str(), found.2), expected, "{reasons}: {:#?}", landed.rows);
        assert_eq!(landed.flows("REJECT"), refused, "{reasons}");
        let words = rows::metadata(&dir.path().join("objects"), "flowlog.lost").unwrap();
        let (packets, bytes) = found.0;
        let all = if packets == 0 { String::new() } else { format!("NO_SOCKET={packets}/{bytes}") };
        assert_eq!(words, [all], "{reasons}");
    }
}

#[test]
fn a_reason_that_no_kernel_has_is_refused_and_one_of_another_kernel_is_named() {
    let net = Routed::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut agent = with_reasons(&net, dir.path(), "lost = ['NO_SOKET']").unwrap();
    assert_eq!(agent.wait().unwrap(), Some(78));
    let log = agent.log();
    assert!(log.contains("reasons `NO_SOKET`: no kernel has") && log.contains("`NO_SOCKET`"), "{log}");
    // Two kernels have these, and none has both.
    let mut agent = with_reasons(&net, dir.path(), "lost = ['QDISC_BURST_DROP', 'QDISC_CONGESTED']").unwrap();
    agent.wait_for("this kernel has no drop reasons").unwrap();
    agent.wait_for("capturing").unwrap();
    agent.end().unwrap();
}

#[test]
fn what_was_lost_is_told_by_an_agent_that_was_killed_and_came_back() {
    let node = Node::new(&["--refused-slots", "16"]).unwrap();
    node.pair.b.exec("ip route add 10.8.0.0/24 via 10.1.0.1").unwrap();
    node.pair.a.sysctl("net.ipv4.ip_forward", "1").unwrap();
    for _ in 0..3 {
        let mut agent = node.start().unwrap();
        node.pair.b.run(|| traffic::udp("10.8.0.1:9", PACKETS, PAYLOAD)).unwrap();
        agent.kill().unwrap();
        node.pair.b.run(|| traffic::udp("10.8.0.1:9", PACKETS, PAYLOAD)).unwrap();
    }
    let landed = node.detach().unwrap();
    assert_eq!(no_routes(&node.pair.a), 6 * PACKETS as u64);
    let (all, reason, accepted) = lost(&landed, "eth0", "ingress");
    let expected = (sum(6 * PACKETS), "IP_INNOROUTES", sum(6 * PACKETS));
    assert_eq!((all, reason.as_str(), accepted), expected, "{:#?}", landed.rows);
}
