//! A load balancer's rows have the client, the public address, and the served target wherever the kernel knows it.
//!
//! The router of [`Routed`] is the balancer: clients are behind its public interface `out0`, targets behind `in0`.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Stdio},
};

use integration::{
    agent::Agent,
    claims::until,
    net::{Netns, address},
    rows::{Objects, Row},
    stacks::Routed,
};

const TARGETS: [&str; 2] = ["10.2.0.2:7", "10.2.0.3:7"];
const PUBLIC: &str = "10.3.0.1:80";
const TRANSLATIONS: &[&str] = &["--translations"];

/// Source and destination, as `ADDRESS:PORT`.
type Ends = (String, String);

fn balancer() -> Routed {
    let net = Routed::new().unwrap();
    address(&net.client, "eth0", "10.2.0.3/24").unwrap();
    net
}

/// A client connects as often as there are targets, each of which serves one. Returns the client's and the target's view of each.
fn serve(net: &Routed) -> Vec<(SocketAddr, SocketAddr)> {
    let listeners = net.client.run(|| TARGETS.map(|target| TcpListener::bind(target).unwrap()));
    std::thread::scope(|scope| {
        let served = listeners.each_ref().map(|listener| {
            scope.spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut name = [0; 1];
                stream.read_exact(&mut name).unwrap();
                let at = stream.local_addr().unwrap().to_string();
                stream.write_all(at.as_bytes()).unwrap();
            })
        });
        let seen = net.server.run(|| {
            TARGETS.map(|_| {
                let mut client = TcpStream::connect(PUBLIC).unwrap();
                client.write_all(&[1]).unwrap();
                let mut target = String::new();
                client.read_to_string(&mut target).unwrap();
                (client.local_addr().unwrap(), target.parse().unwrap())
            })
        });
        for thread in served {
            thread.join().unwrap();
        }
        seen.to_vec()
    })
}

fn rows<'a>(landed: &'a Objects, interface: &str, direction: &str) -> Vec<&'a Row> {
    let id = format!("node-{interface}");
    landed.rows.iter().filter(|r| r.protocol == 6 && r.interface == id && r.direction == direction).collect()
}

fn ends(row: &Row) -> Ends {
    (format!("{}:{}", row.src, row.sport), format!("{}:{}", row.dst, row.dport))
}

#[test]
fn a_balancer_that_translates_shows_the_target_of_each_connection() {
    let net = balancer();
    let map = "numgen inc mod 2 map { 0 : 10.2.0.2, 1 : 10.2.0.3 }:7";
    net.router
        .nft(&format!(
            "table ip n {{\n chain p {{ type nat hook prerouting priority -100; ip daddr 10.3.0.1 tcp dport 80 dnat to {map}; }}\n}}\n"
        ))
        .unwrap();
    let agent = Agent::start(&net.router, &["out0"], TRANSLATIONS).unwrap();
    let served = serve(&net);
    let landed = agent.stop().unwrap();
    let came: BTreeSet<(Ends, String)> =
        rows(&landed, "out0", "ingress").into_iter().map(|r| (ends(r), r.other_side[1].clone())).collect();
    let wanted = served.iter().map(|(client, target)| {
        ((client.to_string(), PUBLIC.to_owned()), format!("{} {}", target.ip(), target.port()))
    });
    assert_eq!(came, wanted.collect(), "{:#?}", landed.rows);
    let targets: BTreeSet<String> = served.iter().map(|(_, target)| target.to_string()).collect();
    assert_eq!(targets, TARGETS.map(str::to_owned).into());
}

/// A haproxy that ends with its guard.
struct Haproxy(Child);

impl Haproxy {
    fn start(ns: &Netns, dir: &tempfile::TempDir) -> Self {
        let config = dir.path().join("haproxy.cfg");
        let [a, b] = TARGETS;
        let text = format!(
            "global\n log stdout format raw local0\ndefaults\n mode tcp\n log global\n log-format \"%ci:%cp %bi:%bp %si:%sp\"\n \
             timeout connect 5s\n timeout client 5s\n timeout server 5s\nlisten l\n bind {PUBLIC}\n balance roundrobin\n server a {a}\n \
             server b {b}\n"
        );
        fs::write(&config, text).unwrap();
        let child = ns.command("haproxy").arg("-db").arg("-f").arg(&config).stdout(Stdio::piped()).spawn().unwrap();
        until("a listener", || !ns.exec("ss -Hltn sport = :80").unwrap().trim().is_empty());
        Self(child)
    }

    /// What it says of so many connections: the client, its own end towards the target, the target.
    fn log(&mut self, connections: usize) -> Vec<[String; 3]> {
        let lines = BufReader::new(self.0.stdout.take().unwrap()).lines();
        let words = lines.map(|line| line.unwrap().split(' ').map(str::to_owned).collect::<Vec<_>>().try_into().ok());
        words.flatten().take(connections).collect()
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_proxys_two_connections_are_rows_of_two_interfaces_that_its_own_log_joins() {
    let net = balancer();
    let dir = tempfile::tempdir().unwrap();
    let mut proxy = Haproxy::start(&net.router, &dir);
    let agent = Agent::start(&net.router, &["in0", "out0"], TRANSLATIONS).unwrap();
    let served = serve(&net);
    let log = proxy.log(TARGETS.len());
    let landed = agent.stop().unwrap();
    let outside = rows(&landed, "out0", "ingress");
    let inside = rows(&landed, "in0", "egress");
    let clients: BTreeSet<Ends> = log.iter().map(|[client, ..]| (client.clone(), PUBLIC.to_owned())).collect();
    let targets: BTreeSet<Ends> = log.iter().map(|[_, ours, target]| (ours.clone(), target.clone())).collect();
    assert_eq!(outside.iter().map(|r| ends(r)).collect::<BTreeSet<_>>(), clients, "{log:?}");
    assert_eq!(inside.iter().map(|r| ends(r)).collect::<BTreeSet<_>>(), targets, "{log:?}");
    for row in outside.iter().chain(&inside) {
        assert_eq!((row.initiator, row.other_side.concat()), (Some(true), String::new()), "{row:#?}");
    }
    let joined: BTreeSet<_> = log.iter().map(|[client, _, target]| (client.clone(), target.clone())).collect();
    assert_eq!(joined, served.iter().map(|(client, target)| (client.to_string(), target.to_string())).collect());
}
