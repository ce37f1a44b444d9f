//! A load balancer's rows have the client, the public address, and the served target wherever the kernel knows it.
//!
//! The router of [`Routed`] is the balancer: clients are behind its public interface `out0`, targets behind `in0`.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::{Child, Stdio},
};

use integration::{
    agent::Agent,
    claims::until,
    features,
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

/// Whether this kernel has the load balancer that these commands make.
fn balances(ns: &Netns, commands: &[&str]) -> bool {
    let has = ns.exec("test -e /proc/net/ip_vs").is_ok();
    if !has {
        features::skipped("this kernel has no IPVS");
        return false;
    }
    for command in commands {
        ns.exec(&format!("ipvsadm {command}")).unwrap();
    }
    true
}

/// The witness is the targets: each says which address of its own a client has reached.
#[test]
fn ipvs_with_translation_shows_the_target_of_each_connection_both_ways() {
    let net = balancer();
    let [a, b] = TARGETS;
    let service = format!("-A -t {PUBLIC} -s rr");
    let targets = [a, b].map(|t| format!("-a -t {PUBLIC} -r {t} -m"));
    if !balances(&net.router, &[&service, &targets[0], &targets[1]]) {
        return;
    }
    let agent = Agent::start(&net.router, &["out0"], TRANSLATIONS).unwrap();
    let served = serve(&net);
    let landed = agent.stop().unwrap();
    let shown = |direction, side: usize| -> BTreeSet<(Ends, String)> {
        rows(&landed, "out0", direction).into_iter().map(|r| (ends(r), r.other_side[side].clone())).collect()
    };
    let target = |t: &SocketAddr| format!("{} {}", t.ip(), t.port());
    let forth = served.iter().map(|(client, t)| ((client.to_string(), PUBLIC.to_owned()), target(t)));
    let back = served.iter().map(|(client, t)| ((PUBLIC.to_owned(), client.to_string()), target(t)));
    assert_eq!(shown("ingress", 1), forth.collect(), "{:#?}", landed.rows);
    assert_eq!(shown("egress", 0), back.collect(), "{:#?}", landed.rows);
    assert_eq!(served.iter().map(|(_, t)| t.to_string()).collect::<BTreeSet<_>>(), TARGETS.map(str::to_owned).into());
}

/// The target answers the client itself, by another way: no answer passes here.
#[test]
fn ipvs_that_only_passes_on_shows_the_target_and_what_it_has_forgotten_is_counted() {
    let net = balancer();
    let commands = ["-A -u 10.3.0.1:53 -s rr", "-a -u 10.3.0.1:53 -r 10.2.0.3 -g"];
    if !balances(&net.router, &commands) {
        return;
    }
    let agent = Agent::start(&net.router, &["out0"], TRANSLATIONS).unwrap();
    let send = || {
        net.server.run(|| {
            let client = UdpSocket::bind("10.3.0.2:0").unwrap();
            client.send_to(&[0; 8], "10.3.0.1:53").unwrap();
            client.local_addr().unwrap().port()
        })
    };
    let known = send();
    let connections = || net.router.exec("cat /proc/net/ip_vs_conn").unwrap();
    until("a connection", || connections().contains(&format!("{known:04X}")));
    let landed = agent.stop().unwrap();
    let row = landed.rows.iter().find(|r| r.sport == i64::from(known)).unwrap();
    assert_eq!((row.dst.as_str(), row.other_side[1].as_str()), ("10.3.0.1", "10.2.0.3 53"), "{row:#?}");
    // What begins from now on is forgotten after a second without a packet.
    let agent = Agent::start(&net.router, &["out0"], TRANSLATIONS).unwrap();
    let forgotten = send();
    until("a connection", || connections().contains(&format!("{forgotten:04X}")));
    net.router.exec("ipvsadm --set 0 0 1").unwrap();
    let third = send();
    until("no connection", || !connections().contains(&format!("{third:04X}")));
    let landed = agent.stop().unwrap();
    let row = landed.rows.iter().find(|r| r.sport == i64::from(third)).unwrap();
    assert_eq!(row.other_side.concat(), "", "{row:#?}");
    let said = landed.metadata.iter().find_map(|m| m.get("flowlog.translations")).unwrap();
    assert!(said.contains("unknown=1"), "{said}");
}

/// Every kind of service and every way to its target, IPv6 as well. The target is asked for by the kernel's own list.
#[test]
fn ipvs_shows_the_target_however_it_is_chosen_and_reached() {
    let net = balancer();
    if !balances(&net.router, &[]) {
        return;
    }
    for (ns, interface, at) in [
        (&net.client, "eth0", "fd02::2/64"),
        (&net.router, "in0", "fd02::1/64"),
        (&net.router, "out0", "fd03::1/64"),
        (&net.server, "eth0", "fd03::2/64"),
    ] {
        ns.sysctl(&format!("net.ipv6.conf.{interface}.disable_ipv6"), "0").unwrap();
        address(ns, interface, at).unwrap();
    }
    net.router
        .nft("table ip m {\n chain p { type filter hook prerouting priority -150; udp dport 55 meta mark set 7; }\n}\n")
        .unwrap();
    // What is said to IPVS of service and target, where the client sends to, and the target.
    let cases = [
        ("-A -u [fd03::1]:53 -s rr", "-a -u [fd03::1]:53 -r [fd02::2]:54 -m", "[fd03::1]:53", "fd02::2 54"),
        ("-A -u 10.3.0.1:54 -s rr", "-a -u 10.3.0.1:54 -r 10.2.0.3 -i", "10.3.0.1:54", "10.2.0.3 54"),
        ("-A -f 7 -s rr", "-a -f 7 -r 10.2.0.3 -g", "10.3.0.1:55", "10.2.0.3 55"),
        ("-A -u 10.3.0.1:0 -s rr -p 60", "-a -u 10.3.0.1:0 -r 10.2.0.2 -g", "10.3.0.1:56", "10.2.0.2 56"),
    ];
    for (service, target, ..) in cases {
        assert!(balances(&net.router, &[service, target]));
    }
    let agent = Agent::start(&net.router, &["out0"], TRANSLATIONS).unwrap();
    let wanted = cases.map(|(_, _, public, target)| {
        let public: SocketAddr = public.parse().unwrap();
        let from = if public.is_ipv6() { "[fd03::2]:0" } else { "10.3.0.2:0" };
        let port = net.server.run(|| {
            let client = UdpSocket::bind(from).unwrap();
            client.send_to(&[0; 8], public).unwrap();
            client.local_addr().unwrap().port()
        });
        let listed = || net.router.exec("cat /proc/net/ip_vs_conn").unwrap().contains(&format!(" {port:04X} "));
        until("a connection", listed);
        (i64::from(port), target)
    });
    let landed = agent.stop().unwrap();
    for (port, target) in wanted {
        let row = landed.rows.iter().find(|r| r.sport == port && r.direction == "ingress").unwrap();
        assert_eq!(row.other_side[1], target, "{row:#?}");
    }
}
