//! P8 and P1 where somebody else goes in front of our hooks: it is said, with names; and on request our hooks go in front again, without a
//! packet missed or counted twice. Witnesses: the kernel's own list of the programs, counters of the firewall, of other programs, of sockets.

use std::sync::atomic::{AtomicBool, Ordering};

use aya::programs::TcAttachType;
use integration::{
    agent::{Agent, run_to_end},
    claims::{NONE, PACKETS, PAYLOAD, sum, until},
    features,
    net::{Netns, Pair, sh},
    node::Node,
    others::{self, Other, Place},
    rows::{Objects, Sum},
    skip_unless, traffic,
};

const NO_TCX: &str = "nobody goes in front of us without tcx links (Linux 6.6)";

fn in_front(pair: &Pair, program: &str, side: TcAttachType) -> Other {
    Other::attach(&pair.a, program, side, Place::TcxFirst).unwrap()
}

fn said(landed: &Objects) -> Vec<&str> {
    landed.metadata.iter().filter_map(|m| m.get("flowlog.in_front")).map(String::as_str).collect()
}

fn is_ours(name: &str) -> bool {
    name.starts_with("flowlog")
}

/// Waits until our hook is the first of those on the way in.
fn wait_until_first(ns: &Netns) {
    until("our hook is first", || is_ours(&others::order(ns, TcAttachType::Ingress).unwrap()[0]));
}

#[test]
fn whoever_goes_in_front_of_our_hooks_is_named_in_log_status_and_object() {
    skip_unless!(features::tcx(), NO_TCX);
    let pair = Pair::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state").to_str().unwrap().to_owned();
    // Behind us from the beginning: nothing to say.
    let _behind = Other::attach(&pair.a, "tc_count", TcAttachType::Ingress, Place::TcxLast).unwrap();
    let mut agent = Agent::start(&pair.a, &["eth0"], &["--state-dir", &state]).unwrap();
    assert!(!agent.log().contains("in front"), "{}", agent.log());
    let other = in_front(&pair, "tc_accept", TcAttachType::Ingress);
    let id = other.id("tc_accept").unwrap();
    let line = agent.wait_for("somebody else is in front of our hooks").unwrap();
    assert!(line.contains(&format!("programs=\"ingress {id}")) && line.contains("WARN"), "{line}");
    let status = |output| run_to_end(&pair.a, &["status", "--output", output], dir.path()).unwrap().1;
    until("the status says so", || status("table").contains(&format!("in front of our hooks: ingress {id}")));
    let json: serde_json::Value = serde_json::from_str(&status("json")).unwrap();
    assert!(json["rules"][0]["hiding"]["in_front"][0][0].as_str().unwrap().starts_with(&id.to_string()), "{json:#}");
    pair.b.run(|| traffic::udp("10.1.0.1:9", PACKETS, PAYLOAD)).unwrap();
    assert!(others::order(&pair.a, TcAttachType::Ingress).unwrap()[0] == "tc_accept", "left where it is");
    let (seen, _) = other.counters().unwrap();
    assert!(seen >= PACKETS as u64, "it took them for itself: {seen}");
    let egress = in_front(&pair, "tc_count", TcAttachType::Egress);
    let both = format!("programs=\"ingress {id}; egress {}", egress.id("tc_count").unwrap());
    agent.wait_for(&both).unwrap();
    drop((other, egress));
    agent.wait_for("nobody is in front of our hooks any more").unwrap();
    let landed = agent.stop().unwrap();
    assert_eq!(landed.udp(9, "ingress", "ACCEPT"), NONE, "no hook has seen them: {:#?}", landed.rows);
    let said = said(&landed);
    assert!(said.len() == 1 && said[0].contains(&format!("ingress {id}")) && said[0].contains("egress"), "{said:?}");
}

#[test]
fn a_check_names_who_is_in_front_of_a_running_agent() {
    skip_unless!(features::tcx(), NO_TCX);
    let pair = Pair::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(&pair.a, &["eth0"], &[]).unwrap();
    let check = || run_to_end(&pair.a, &["check", "--interface", "eth0"], dir.path()).unwrap().1;
    assert!(!check().contains("in front"), "{}", check());
    let other = in_front(&pair, "tc_count", TcAttachType::Ingress);
    let said = check();
    let line = said.lines().find(|l| l.contains("interface eth0")).unwrap();
    let id = other.id("tc_count").unwrap();
    assert!(line.starts_with("limited") && line.contains(&format!("ingress {id}:tc_count")), "{said}");
    drop(other);
    agent.stop().unwrap();
}

/// Sends to port 9 of `a` from `b` until `enough` is set; returns how much it was.
fn flood(pair: &Pair, enough: &AtomicBool) -> Sum {
    pair.b.run(|| {
        let socket = std::net::UdpSocket::bind("10.1.0.2:0").unwrap();
        let mut packets = 0;
        while !enough.load(Ordering::Relaxed) {
            // A queue that is full is an error of the sender.
            packets += usize::from(socket.send_to(&[0; PAYLOAD], "10.1.0.1:9").is_ok());
        }
        sum(packets)
    })
}

/// What has come in, by the firewall of `a`.
const COUNT: &str = "table inet w {\n counter got { }\n chain c { type filter hook prerouting priority -300; udp dport 9 counter name got; }\n}\n";

/// Floods `a`, whose interface an agent of `ns` captures, while somebody goes in front of its hook again and again.
fn restored_in_a_flood(pair: &Pair, ns: &Netns, args: &[&str], interface: &str) {
    pair.a.nft(COUNT).unwrap();
    let mut agent = Agent::start(ns, &["eth0"], &[&["--restore-order"][..], args].concat()).unwrap();
    let enough = AtomicBool::new(false);
    let mut others = Vec::new();
    let sent = std::thread::scope(|s| {
        let flooding = s.spawn(|| flood(pair, &enough));
        for _ in 0..3 {
            others.push(in_front(pair, "tc_count", TcAttachType::Ingress));
            wait_until_first(&pair.a);
            agent.wait_for("our hook is in front again").unwrap();
        }
        enough.store(true, Ordering::Relaxed);
        flooding.join().unwrap()
    });
    until("all have come in", || pair.a.nft_counter("inet w", "got").unwrap() == sent);
    let order = others::order(&pair.a, TcAttachType::Ingress).unwrap();
    assert_eq!(order.iter().filter(|name| is_ours(name)).count(), 1, "{order:?}");
    assert!(others.iter().all(|o| o.counters().unwrap().0 > 0), "they run behind us");
    let log = agent.log();
    let landed = agent.stop().unwrap();
    let on = landed.on(interface);
    assert_eq!(on.udp(9, "ingress", "ACCEPT"), sent, "none missed, none twice; {log}");
    assert!(!said(&landed).is_empty(), "they had been in front");
}

#[test]
fn a_hook_goes_in_front_again_in_a_flood_and_every_packet_is_counted_once() {
    skip_unless!(features::tcx(), NO_TCX);
    let pair = Pair::new().unwrap();
    restored_in_a_flood(&pair, &pair.a, &[], "eth0");
}

#[test]
fn a_hook_in_another_namespace_goes_in_front_again_and_every_packet_is_counted_once() {
    skip_unless!(features::tcx(), NO_TCX);
    let home = Netns::new("home").unwrap();
    let pair = Pair::new().unwrap();
    let netns = pair.a.name().to_owned();
    restored_in_a_flood(&pair, &home, &["--netns", &netns], &format!("{netns}-eth0"));
}

/// Whenever an agent is killed on the way, the packets that come until the next one are counted, once.
#[test]
fn a_hook_whose_agent_is_killed_on_its_way_to_the_front_counts_every_packet() {
    skip_unless!(features::tcx(), NO_TCX);
    for point in ["hook_stands_aside", "hook_is_in_front"] {
        let node = Node::new(&["--restore-order"]).unwrap();
        let pair = &node.pair;
        pair.a.nft(COUNT).unwrap();
        let mut agent = node.spawn(&[("FLOWLOG_FAULT", &format!("{point}:1"))]).unwrap();
        agent.wait_for("capturing").unwrap();
        let send = || pair.b.run(|| traffic::udp("10.1.0.1:9", PACKETS, PAYLOAD)).unwrap();
        send();
        let other = in_front(pair, "tc_count", TcAttachType::Ingress);
        agent.wait_for(&format!("killed at {point}")).unwrap();
        agent.wait().unwrap();
        send();
        let mut agent = node.start().unwrap();
        send();
        wait_until_first(&pair.a);
        send();
        until("all have come in", || pair.a.nft_counter("inet w", "got").unwrap() == sum(4 * PACKETS));
        agent.end().unwrap();
        let pins = sh(&format!("find {}", node.pins().display())).unwrap();
        assert!(!pins.contains("-front"), "{point}: no pin is left of the way: {pins}");
        let landed = node.detach().unwrap();
        assert_eq!(landed.udp(9, "ingress", "ACCEPT"), sum(4 * PACKETS), "{point}");
        assert_eq!(others::order(&pair.a, TcAttachType::Ingress).unwrap(), ["tc_count"], "{point}");
        drop(other);
    }
}
