//! P6: a row says who opened its connection, whether that began or ended in the window, and how long its handshake took.

use std::{
    collections::BTreeMap,
    net::{TcpListener, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use integration::{
    agent::Agent,
    claims::until,
    net::{Netns, Pair},
    rows::{Objects, Row},
    stacks::Routed,
    traffic::{self, Raw},
};

const PORT: u16 = 7_000;
const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;

/// One TCP connection from one host to another, both ends of it.
struct Connection {
    client: TcpStream,
    server: TcpStream,
}

impl Connection {
    fn open(client: &Netns, listener: &TcpListener) -> Self {
        let client = client.run(|| TcpStream::connect(listener.local_addr().unwrap())).unwrap();
        Self { client, server: listener.accept().unwrap().0 }
    }

    fn port(&self) -> i64 {
        i64::from(self.client.local_addr().unwrap().port())
    }

    /// A byte there and one back, both received.
    fn talk(&mut self) {
        use std::io::{Read as _, Write as _};
        self.client.write_all(&[1]).unwrap();
        self.server.read_exact(&mut [0]).unwrap();
        self.server.write_all(&[2]).unwrap();
        self.client.read_exact(&mut [0]).unwrap();
    }

    /// Both sides close, one after the other.
    fn close(self, client: &Netns) {
        use std::io::Read as _;
        let Self { client: ours, server: mut theirs } = self;
        let pair = (ours.local_addr().unwrap(), ours.peer_addr().unwrap());
        drop(ours);
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0, "the other side's FIN");
        drop(theirs);
        let (from, to) = pair;
        // The last ACK has been sent when the client waits for stray segments.
        until("the end", || {
            let waits = client.exec(&format!("ss -Htn state time-wait src {from} dst {to}")).unwrap();
            !waits.trim().is_empty()
        });
    }

    /// The client breaks it off: with data unread, a close sends a reset (RFC 2525, section 2.17).
    fn reset(self) {
        use std::io::{Read as _, Write as _};
        let Self { client, mut server } = self;
        server.write_all(&[1]).unwrap();
        until("a byte to read", || client.peek(&mut [0]).is_ok_and(|n| n == 1));
        drop(client);
        assert!(server.read(&mut [0]).is_err(), "reset");
    }
}

/// What rows of these say: initiator, state, cause.
type Said = (Option<bool>, String, String);

fn said(row: &Row) -> Said {
    (row.initiator, row.state.clone(), row.end.clone())
}

/// Of both directions of a connection: what goes in, then what comes out.
fn both(landed: &Objects, port: i64) -> [Said; 2] {
    let of = |direction: &str, is: &dyn Fn(&Row) -> bool| {
        let mut rows = landed.rows.iter().filter(|r| r.direction == direction && r.action == "ACCEPT" && is(r));
        let row = rows.next().unwrap_or_else(|| panic!("no {direction} of {port}: {:#?}", landed.rows));
        assert_eq!(rows.next(), None);
        said(row)
    };
    [of("ingress", &|r| r.sport == port), of("egress", &|r| r.dport == port)]
}

fn expected(initiator: Option<bool>, state: &str, end: &str) -> [Said; 2] {
    let of = |initiator| (initiator, state.to_owned(), end.to_owned());
    [of(initiator), of(initiator.map(|is: bool| !is))]
}

#[test]
fn rows_say_who_opened_a_connection_and_what_became_of_it() {
    let net = Routed::new().unwrap();
    let listener = net.server.run(|| TcpListener::bind(("10.3.0.2", PORT))).unwrap();
    net.router
        .nft("table ip t {\n chain f { type filter hook forward priority 0; tcp dport 7001 drop; }\n}\n")
        .unwrap();
    let open = || Connection::open(&net.client, &listener);
    let [mut older, ended_here] = [open(), open()];
    let agent = Agent::start(&net.router, &["in0"], &[]).unwrap();
    let [mut begun, whole, broken] = [open(), open(), open()];
    let ports = [&older, &ended_here, &begun, &whole, &broken].map(Connection::port);
    older.talk();
    begun.talk();
    ended_here.close(&net.client);
    whole.close(&net.client);
    broken.reset();
    net.client.run(|| {
        let refused = TcpStream::connect_timeout(&([10, 3, 0, 2], 7_001).into(), Duration::from_millis(100));
        assert!(refused.is_err());
        UdpSocket::bind("10.2.0.2:0").unwrap().send_to(&[0; 10], "10.3.0.2:9").unwrap();
    });
    let landed = agent.stop().unwrap();
    let [p_older, p_ended, p_begun, p_whole, p_broken] = ports;
    assert_eq!(both(&landed, p_older), expected(None, "continue", ""));
    assert_eq!(both(&landed, p_ended), expected(None, "end", "fin"));
    assert_eq!(both(&landed, p_begun), expected(Some(true), "begin", ""));
    assert_eq!(both(&landed, p_whole), expected(Some(true), "whole", "fin"));
    assert_eq!(both(&landed, p_broken), expected(Some(true), "whole", "rst"));
    let none = || String::new();
    let refused: Vec<_> = landed.rows.iter().filter(|r| r.dport == 7_001).map(said).collect();
    assert_eq!(refused, [(Some(true), none(), none())], "who asked is known of what was refused as well");
    let udp: Vec<_> = landed.rows.iter().filter(|r| r.protocol == 17 && r.dport == 9).map(said).collect();
    assert_eq!(udp, [(None, none(), none())], "the window is too short to show anything of it");
    let timed: BTreeMap<i64, i64> = landed.rows.iter().filter(|r| r.rtt_us >= 0).map(|r| (r.sport, r.rtt_us)).collect();
    let wanted: Vec<i64> = [p_begun, p_whole, p_broken, i64::from(PORT)].into();
    assert!(wanted.iter().all(|port| timed.contains_key(port)) && timed.len() == wanted.len(), "{timed:?}");
}

/// How long the host that is asked takes to answer.
const ANSWERS_AFTER: Duration = Duration::from_millis(5);
/// Handshakes: a clock of whole timer ticks may be right about one of them by chance.
const HANDSHAKES: u16 = 16;

#[test]
fn the_time_of_a_handshake_is_that_between_its_packets_at_the_interface() {
    let pair = Pair::new().unwrap();
    let agent = Agent::start(&pair.a, &["eth0"], &[]).unwrap();
    let [a, b] = [&pair.a, &pair.b].map(|ns| ns.mac("eth0").unwrap());
    // An address that nobody has: the test answers, and no kernel.
    let asked = ([192, 0, 2, 7].into(), 5_001);
    let [raw_a, raw_b] = [&pair.a, &pair.b].map(|ns| ns.run(|| Raw::open("eth0").unwrap()));
    let came = || pair.a.statistic("eth0", "rx_packets").unwrap();
    let mut bounds = BTreeMap::new();
    for port in 5_100..5_100 + HANDSHAKES {
        let asking = ([10, 1, 0, 2].into(), port);
        let to = |flags| traffic::tcp4((b, a), asking, asked, flags, 0);
        let [syn, answer] = [to(SYN), traffic::tcp4((a, b), asked, asking, SYN_ACK, 0)];
        let before = came();
        let asked_at = Instant::now();
        raw_b.send(&[syn]).unwrap();
        until("the SYN", || came() > before);
        let seen_at = Instant::now();
        std::thread::sleep(ANSWERS_AFTER);
        let at_least = seen_at.elapsed();
        raw_a.send(&[answer]).unwrap();
        bounds.insert(i64::from(port), (at_least, asked_at.elapsed()));
        // What comes later changes nothing.
        raw_b.send(&[to(ACK), to(SYN)]).unwrap();
        until("all packets", || came() >= before + 3);
    }
    let landed = agent.stop().unwrap();
    let rows: Vec<&Row> = landed.rows.iter().filter(|r| r.protocol == 6).collect();
    assert_eq!(rows.len(), 2 * usize::from(HANDSHAKES), "{rows:#?}");
    for row in rows {
        let rtt = Duration::from_micros(row.rtt_us.try_into().unwrap());
        let opens = row.direction == "ingress";
        let (at_least, at_most) = bounds[if opens { &row.sport } else { &row.dport }];
        // Whole microseconds.
        let one = Duration::from_micros(1);
        assert!((at_least.saturating_sub(one)..=at_most + one).contains(&rtt), "{rtt:?}: {at_least:?} to {at_most:?}");
        assert_eq!(row.initiator, Some(opens));
    }
}
