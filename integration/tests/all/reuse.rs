//! A port on the wire that was one connection's and is another's within a window: its row names neither, and says so. What was refused says
//! nothing of what passed.
//!
//! The router of [`Routed`] is the gateway: two inside hosts are behind `in0`, `out0` is its public interface.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use integration::{
    agent::Agent,
    claims::until,
    net::{Netns, address},
    rows::{Objects, Row},
    stacks::Routed,
};
use rustix::net::{AddressFamily, SocketType, sockopt};

const TRANSLATIONS: &[&str] = &["--translations"];
const HOSTS: [[u8; 4]; 2] = [[10, 2, 0, 2], [10, 2, 0, 3]];
const TARGETS: [&str; 2] = ["10.2.0.2:7", "10.2.0.3:7"];
const SERVER: [u8; 4] = [10, 3, 0, 2];
const PUBLIC: [u8; 4] = [10, 3, 0, 1];

fn gateway(rules: &str) -> Routed {
    let net = Routed::new().unwrap();
    address(&net.client, "eth0", "10.2.0.3/24").unwrap();
    net.router.nft(rules).unwrap();
    net
}

/// Connects from this address and port, though another connection of theirs has just been closed.
fn connect(ns: &Netns, from: SocketAddr, to: SocketAddr) -> rustix::io::Result<TcpStream> {
    ns.run(|| {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        // Whoever closes it breaks it off: nobody waits for stray segments.
        sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(Duration::from_millis(300)))?;
        rustix::net::bind(&socket, &from)?;
        rustix::net::connect(&socket, &to)?;
        Ok(socket.into())
    })
}

fn rows<'a>(landed: &'a Objects, port: u16, action: &str) -> Vec<&'a Row> {
    let port = i64::from(port);
    landed.rows.iter().filter(|r| r.action == action && (r.sport == port || r.dport == port)).collect()
}

/// The word of the metadata of all objects.
fn said(landed: &Objects, word: &str) -> u64 {
    let words = landed.metadata.iter().filter_map(|m| m.get("flowlog.translations")).flat_map(|w| w.split(' '));
    words.filter_map(|w| w.strip_prefix(word)?.strip_prefix('=')?.parse::<u64>().ok()).sum()
}

/// Servers' ports: which of them see the outside port taken over depends on chance.
const PORTS: std::ops::Range<u16> = 7_700..7_730;

#[test]
fn an_outside_port_that_another_host_takes_over_names_neither() {
    let net = gateway(
        "table ip n {\n chain p { type nat hook postrouting priority 100; oifname \"out0\" tcp dport 7700-7799 snat to 10.3.0.1:3000; }\n}\n",
    );
    let agent = Agent::start(&net.router, &["out0"], TRANSLATIONS).unwrap();
    let mut taken_over = 0;
    let mut alone = Vec::new();
    for port in PORTS {
        let to = SocketAddr::from((SERVER, port));
        let listener = net.server.run(|| TcpListener::bind(to)).unwrap();
        let first = connect(&net.client, (HOSTS[0], 4_000).into(), to).unwrap();
        let (mut server, from) = listener.accept().unwrap();
        assert_eq!(from, (PUBLIC, 3_000).into());
        drop(first);
        assert!(server.read(&mut [0]).is_err(), "reset");
        drop(server);
        // Refused where the gateway keeps the port for the first one.
        match connect(&net.client, (HOSTS[1], 4_000).into(), to) {
            Ok(mut second) => {
                let (mut server, from) = listener.accept().unwrap();
                assert_eq!(from, (PUBLIC, 3_000).into());
                second.write_all(&[1; 100]).unwrap();
                server.read_exact(&mut [0; 100]).unwrap();
                taken_over += 1;
            }
            Err(_) => alone.push(port),
        }
    }
    let landed = agent.stop().unwrap();
    assert!(taken_over > 0, "no port was taken over");
    for port in PORTS {
        let passed = rows(&landed, port, "ACCEPT");
        assert_eq!(passed.len(), 2, "{port}: {passed:#?}");
        for row in passed {
            let host = if row.direction == "egress" { &row.other_side[0] } else { &row.other_side[1] };
            let expected = if alone.contains(&port) { "10.2.0.2 4000" } else { "" };
            assert_eq!(host, expected, "{row:#?}");
        }
    }
    assert!(said(&landed, "several") >= 2 * taken_over, "{:?}", landed.metadata);
}

#[test]
fn a_client_that_uses_its_port_again_and_gets_another_target_is_given_neither() {
    let map = "numgen inc mod 2 map { 0 : 10.2.0.2, 1 : 10.2.0.3 }:7";
    let net = gateway(&format!(
        "table ip n {{\n chain p {{ type nat hook prerouting priority -100; ip daddr 10.3.0.1 tcp dport 80 dnat to {map}; }}\n}}\n"
    ));
    let listeners = net.client.run(|| TARGETS.map(|target| TcpListener::bind(target).unwrap()));
    let agent = Agent::start(&net.router, &["out0"], TRANSLATIONS).unwrap();
    for listener in &listeners {
        let client = connect(&net.server, (SERVER, 6_090).into(), (PUBLIC, 80).into()).unwrap();
        let (mut target, _) = listener.accept().unwrap();
        drop(client);
        assert!(target.read(&mut [0]).is_err(), "reset");
    }
    let landed = agent.stop().unwrap();
    let passed = rows(&landed, 6_090, "ACCEPT");
    assert_eq!(passed.len(), 2, "{passed:#?}");
    assert!(passed.iter().all(|r| r.other_side.concat().is_empty()), "{passed:#?}");
    assert_eq!(said(&landed, "several"), 2);
}

#[test]
fn refused_packets_of_two_hosts_with_one_outside_port_name_neither() {
    let net = gateway(
        "table ip n {\n counter refused { }\n chain p { type nat hook postrouting priority 100; oifname \"out0\" masquerade; }\n chain f { type \
         filter hook postrouting priority 200; udp dport 600 counter name refused drop; }\n}\n",
    );
    let agent = Agent::start(&net.router, &["out0"], TRANSLATIONS).unwrap();
    let send = |host: [u8; 4], packets: usize| {
        let socket = net.client.run(|| UdpSocket::bind(SocketAddr::from((host, 5_001)))).unwrap();
        for _ in 0..packets {
            socket.send_to(&[0; 10], SocketAddr::from((SERVER, 600))).unwrap();
        }
    };
    let refused = || net.router.nft_counter("ip n", "refused").unwrap().0;
    send(HOSTS[0], 3);
    until("three refusals", || refused() == 3);
    send(HOSTS[1], 2);
    until("five refusals", || refused() == 5);
    let landed = agent.stop().unwrap();
    let rejected = rows(&landed, 600, "REJECT");
    assert_eq!(rejected.iter().map(|r| (r.src.as_str(), r.packets)).collect::<Vec<_>>(), [("10.3.0.1", 5)]);
    assert_eq!((rejected[0].other_side.concat(), said(&landed, "several")), (String::new(), 1));
}

#[test]
fn what_is_refused_for_want_of_a_port_takes_nothing_from_the_connection_that_has_it() {
    let net = gateway(
        "table ip n {\n chain p { type nat hook postrouting priority 100; oifname \"out0\" udp dport 600 snat to 10.3.0.1:3000; }\n}\n",
    );
    let agent = Agent::start(&net.router, &["in0", "out0"], TRANSLATIONS).unwrap();
    let server = net.server.run(|| UdpSocket::bind(SocketAddr::from((SERVER, 600)))).unwrap();
    let [first, second] =
        HOSTS.map(|host| net.client.run(|| UdpSocket::bind(SocketAddr::from((host, 5_001)))).unwrap());
    let to = SocketAddr::from((SERVER, 600));
    let exchange = || {
        first.send_to(&[0; 10], to).unwrap();
        let (_, from) = server.recv_from(&mut [0; 64]).unwrap();
        assert_eq!(from, (PUBLIC, 3_000).into());
        server.send_to(&[0; 20], from).unwrap();
        first.recv_from(&mut [0; 64]).unwrap();
    };
    exchange();
    // An error, or silence: nobody has a port for it.
    let _ = second.send_to(&[0; 10], to);
    exchange();
    let landed = agent.stop().unwrap();
    let outside = landed.on("out0");
    let passed = rows(&outside, 600, "ACCEPT");
    assert_eq!(passed.len(), 2, "{passed:#?}");
    for row in passed {
        assert!(row.other_side.contains(&"10.2.0.2 5001".to_owned()), "{row:#?}");
    }
    let refused: u64 =
        landed.on("in0").rows.iter().filter(|r| r.src == "10.2.0.3" && r.action == "REJECT").map(|r| r.packets).sum();
    assert_eq!(refused, 1, "{:#?}", landed.rows);
}
