//! P1, P4 and P8 where flowlog runs somebody else's XDP program (`xdp = "wrap"`): each flow is counted as that program says, nobody's
//! firewall is off for an instant, and whoever cannot be wrapped is told so. Witnesses: the program's own counters, the interface's, the
//! driver's (what it has beyond ours is in SKIPDATA rows), the sender's list, and a socket that must receive nothing.

use std::{
    net::UdpSocket,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use aya::programs::TcAttachType;
use integration::{
    agent::Agent,
    claims::until,
    driver,
    mixed::{
        ABORTED, DROPPED, PASSED, REDIRECTED, SENT_BACK, accepted, assert_balanced, peer, rejected, send, send_all,
        skipped,
    },
    net::{Netns, Pair, address},
    node::Node,
    others::{Other, Place, xdp_id, xdp_off},
};

const WRAPPED: &str = "is run by flowlog's from now on";

fn node(level: &str) -> Node {
    Node::new(&["--xdp", level, "--direction", "ingress"]).unwrap()
}

fn each_flow_is_counted_as_the_program_says(program: &str) {
    let node = node("wrap");
    let pair = &node.pair;
    let _peer = peer(pair);
    let other = Other::put(&pair.a, node.bpffs(), program).unwrap();
    let id = other.id(program).unwrap();
    let mut agent = node.start().unwrap();
    assert!(agent.log().contains(WRAPPED), "{}", agent.log());
    assert_ne!(xdp_id(&pair.a).unwrap(), Some(id), "ours is in its place");
    let counted = || driver::xdp_of_veth(&pair.a, "eth0").unwrap();
    let (before, at_first) = (pair.a.statistic("eth0", "rx_packets").unwrap(), counted());
    send_all(pair);
    let at_last = counted();
    assert_eq!(at_last.0 - at_first.0, (DROPPED + ABORTED) as u64, "the driver agrees");
    assert_eq!(at_last.1 - at_first.1, (SENT_BACK + REDIRECTED) as u64, "the driver agrees");
    let [aborted, dropped, passed, sent_back, redirected] = other.actions().unwrap();
    let received = pair.a.statistic("eth0", "rx_packets").unwrap() - before;
    agent.end().unwrap();
    assert_eq!(xdp_id(&pair.a).unwrap(), Some(id), "the owner's is back");
    let landed = node.detach().unwrap();
    assert_eq!((dropped, aborted, passed), (DROPPED as u64, ABORTED as u64, PASSED as u64));
    assert_eq!((sent_back, redirected), (SENT_BACK as u64, REDIRECTED as u64));
    assert_eq!(received, landed.sum(|_| true).0, "what the interface has counted");
    assert_eq!((rejected(&landed, 7), rejected(&landed, 13)), (dropped, aborted), "{:#?}", landed.rows);
    assert!(landed.rows.iter().all(|r| r.reason != "XDP" || r.rule == format!("xdp:{id}")), "{:#?}", landed.rows);
    assert_eq!((accepted(&landed, 9), accepted(&landed, 11)), (sent_back, redirected), "{:#?}", landed.rows);
    assert_eq!(accepted(&landed, 8), passed, "counted once");
    assert_eq!((skipped(&landed, "xdp_dropped"), skipped(&landed, "xdp_forwarded")), (0, 0), "{:#?}", landed.rows);
    assert_balanced(&landed);
}

#[test]
fn each_flow_of_a_wrapped_program_is_counted_as_that_program_says() {
    each_flow_is_counted_as_the_program_says("xdp_mixed");
}

#[test]
fn a_program_that_takes_frames_in_several_buffers_is_wrapped_as_well() {
    each_flow_is_counted_as_the_program_says("xdp_mixed_frags");
}

/// Sends what must be dropped until it is told to stop; returns how many packets.
fn hammer(pair: &Pair, stop: &AtomicBool) -> u64 {
    pair.b
        .run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            let mut sent = 0;
            while !stop.load(Ordering::Relaxed) {
                // A burst, and room for the agent: there are two CPUs.
                for _ in 0..20 {
                    sent += u64::from(socket.send_to(&[0; 64], "10.1.0.1:7").is_ok());
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok::<u64, std::io::Error>(sent)
        })
        .unwrap()
}

#[test]
fn the_owners_program_is_in_force_at_every_instant_whatever_kills_the_agent() {
    let node = node("wrap");
    let pair = &node.pair;
    let other = Other::put(&pair.a, node.bpffs(), "xdp_mixed").unwrap();
    let id = other.id("xdp_mixed").unwrap();
    let socket = pair.a.run(|| UdpSocket::bind("10.1.0.1:7")).unwrap();
    socket.set_nonblocking(true).unwrap();
    // One that only begins: what is dropped from now on is in the books.
    let mut agent = node.start().unwrap();
    agent.kill().unwrap();
    let stop = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        let hammering = scope.spawn(|| hammer(pair, &stop));
        // The one that is killed at its end comes to that when it is asked to stop.
        for (point, is_at_end) in [
            ("wrap_taken_over", false),
            ("wrap_restores", true),
            ("wrap_restored", true),
            ("wrap_attaches", false),
            ("wrap_attached", false),
        ] {
            let mut agent = node.spawn(&[("FLOWLOG_FAULT", &format!("{point}:1"))]).unwrap();
            if is_at_end {
                agent.wait_for("capturing").unwrap();
                agent.signal(rustix::process::Signal::TERM);
            }
            agent.ended().unwrap();
            assert!(agent.log().contains(&format!("killed at {point}")), "{point}: {}", agent.log());
        }
        let mut agent = node.start().unwrap();
        agent.kill().unwrap();
        let mut agent = node.start().unwrap();
        agent.end().unwrap();
        stop.store(true, Ordering::Relaxed);
        hammering.join().unwrap()
    });
    pair.wait_until_quiet();
    let mut bytes = [0; 128];
    assert!(socket.recv(&mut bytes).is_err(), "a packet has got through");
    assert_eq!(xdp_id(&pair.a).unwrap(), Some(id), "the owner's is back");
    let landed = node.detach().unwrap();
    let dropped = other.actions().unwrap()[1];
    assert_eq!(dropped, sent, "the program has seen each packet");
    assert_eq!(rejected(&landed, 7) + skipped(&landed, "xdp_dropped"), dropped, "{:#?}", landed.rows);
    assert!(rejected(&landed, 7) > 0 && accepted(&landed, 7) == 0, "{:#?}", landed.rows);
    assert_balanced(&landed);
}

#[test]
fn what_its_owner_replaces_is_said_and_not_wrapped_again_before_the_next_start() {
    let node = node("wrap");
    let pair = &node.pair;
    let first = Other::put(&pair.a, node.bpffs(), "xdp_mixed").unwrap();
    let mut agent = node.start().unwrap();
    assert!(agent.log().contains(WRAPPED), "{}", agent.log());
    send(pair, 7, DROPPED);
    pair.wait_until_quiet();
    let second = Other::put(&pair.a, node.bpffs(), "xdp_mixed_frags").unwrap();
    let id = second.id("xdp_mixed_frags").unwrap();
    agent.wait_for(&format!("driver id={id}")).unwrap();
    agent.wait_for("is not wrapped again before the next start").unwrap();
    send(pair, 7, SENT_BACK);
    pair.wait_until_quiet();
    assert_eq!(xdp_id(&pair.a).unwrap(), Some(id), "left alone");
    agent.end().unwrap();
    assert_eq!(xdp_id(&pair.a).unwrap(), Some(id));
    let mut agent = node.start().unwrap();
    assert!(agent.log().contains(WRAPPED), "{}", agent.log());
    send(pair, 7, REDIRECTED);
    pair.wait_until_quiet();
    // It may be taken away as well.
    xdp_off(&pair.a).unwrap();
    agent.wait_for("is not wrapped again before the next start").unwrap();
    send(pair, 7, PASSED);
    pair.wait_until_quiet();
    agent.end().unwrap();
    assert_eq!(xdp_id(&pair.a).unwrap(), None, "what was taken away does not come back");
    let landed = node.detach().unwrap();
    assert_eq!(first.actions().unwrap()[1], DROPPED as u64);
    assert_eq!(second.actions().unwrap()[1], (SENT_BACK + REDIRECTED) as u64);
    assert_eq!(rejected(&landed, 7), (DROPPED + REDIRECTED) as u64, "{:#?}", landed.rows);
    assert_eq!(skipped(&landed, "xdp_dropped"), SENT_BACK as u64, "{:#?}", landed.rows);
    assert_eq!(accepted(&landed, 7), PASSED as u64, "{:#?}", landed.rows);
    assert_balanced(&landed);
}

#[test]
fn an_agent_that_was_killed_leaves_the_program_wrapped_and_detach_puts_it_back() {
    let node = node("wrap");
    let pair = &node.pair;
    let other = Other::put(&pair.a, node.bpffs(), "xdp_mixed").unwrap();
    let mut agent = node.start().unwrap();
    assert!(agent.log().contains(WRAPPED), "{}", agent.log());
    agent.kill().unwrap();
    send(pair, 7, DROPPED);
    pair.wait_until_quiet();
    let landed = node.detach().unwrap();
    assert_eq!(xdp_id(&pair.a).unwrap(), Some(other.id("xdp_mixed").unwrap()));
    assert_eq!(other.actions().unwrap()[1], DROPPED as u64);
    assert_eq!((rejected(&landed, 7), skipped(&landed, "xdp_dropped")), (DROPPED as u64, 0), "{:#?}", landed.rows);
    assert_balanced(&landed);
}

/// Runs an agent beside a program that cannot be wrapped, for the reason `why`.
fn refused(other: impl Fn(&Node) -> Other, why: &str) {
    let node = node("wrap");
    let other = other(&node);
    let id = xdp_id(&node.pair.a).unwrap();
    let mut agent = node.start().unwrap();
    let log = agent.log();
    assert!(log.lines().any(|l| l.contains("is not wrapped") && l.contains(why)), "{log}");
    assert_eq!(xdp_id(&node.pair.a).unwrap(), id, "left alone");
    send(&node.pair, 7, DROPPED);
    node.pair.wait_until_quiet();
    until("the reason in the status", || {
        let said = node.command(&["status"]).unwrap().1;
        said.contains("seen by `counters` only: not wrapped") && said.contains(why)
    });
    agent.end().unwrap();
    assert_eq!(xdp_id(&node.pair.a).unwrap(), id, "left alone");
    let (_, dropped) = other.counters().unwrap();
    let landed = node.detach().unwrap();
    assert_eq!(skipped(&landed, "xdp_dropped"), dropped, "{:#?}", landed.rows);
    assert_balanced(&landed);
}

#[test]
fn a_program_on_a_link_is_not_wrapped_and_that_is_said() {
    refused(
        |node| Other::attach(&node.pair.a, "xdp_drop", TcAttachType::Ingress, Place::XdpNative).unwrap(),
        "BPF link",
    );
}

#[test]
fn a_dispatcher_is_not_wrapped_and_that_is_said() {
    refused(|node| Other::put(&node.pair.a, node.bpffs(), "xdp_dispatcher").unwrap(), "dispatcher");
}

#[test]
fn nothing_is_wrapped_without_pins() {
    let pair = Pair::new().unwrap();
    let mut agent = Agent::spawn(&pair.a, &["eth0"], &["--xdp", "wrap", "--no-pin"]).unwrap();
    assert!(!agent.ended().unwrap().success());
    assert!(agent.log().contains("needs pins"), "{}", agent.log());
}

/// Whether what must be dropped comes through `eth0` of the namespace, and what is let through does.
fn is_guarded(pair: &Pair, at: &Netns) -> bool {
    let [dropped, passed] = [7, 8].map(|port| at.run(|| UdpSocket::bind(("10.1.0.1", port))).unwrap());
    send(pair, 7, DROPPED);
    send(pair, 8, 1);
    passed.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let has_come = passed.recv(&mut [0; 256]).is_ok();
    // They are received in the order in which they were sent.
    dropped.set_nonblocking(true).unwrap();
    has_come && dropped.recv(&mut [0; 256]).is_err()
}

/// Moves `eth0` as it is from one namespace into another.
fn move_eth0(from: &Netns, to: &Netns) {
    from.exec(&format!("ip link set eth0 netns {}", to.name())).unwrap();
    to.exec("ip link set eth0 up").unwrap();
    address(to, "eth0", "10.1.0.1/24").unwrap();
}

/// It keeps its index there, and another one comes in its place here, with an owner of its own who drops nothing.
#[test]
fn an_interface_that_is_moved_keeps_its_owners_program_whatever_comes_in_its_place() {
    for is_alive in [true, false] {
        eprintln!("alive: {is_alive}");
        let node = node("wrap");
        let pair = &node.pair;
        let away = Netns::new("away").unwrap();
        let _peer = peer(pair);
        let _first = Other::put(&pair.a, node.bpffs(), "xdp_mixed").unwrap();
        let mut agent = node.start().unwrap();
        assert!(agent.log().contains(WRAPPED), "{}", agent.log());
        let link: serde_json::Value = serde_json::from_str(&pair.a.exec("ip -j link show eth0").unwrap()).unwrap();
        let index = &link[0]["ifindex"];
        if !is_alive {
            agent.kill().unwrap();
        }
        move_eth0(&pair.a, &away);
        assert!(is_guarded(pair, &away), "on its own");
        pair.a.exec(&format!("ip link add eth0 index {index} type veth peer name other")).unwrap();
        pair.a.exec("ip link set eth0 up").unwrap();
        let second = Other::put(&pair.a, node.bpffs(), "xdp_pass").unwrap();
        if !is_alive {
            agent = node.start().unwrap();
        }
        let owner = second.id("xdp_pass").unwrap();
        until("the other program wrapped", || xdp_id(&pair.a).unwrap() != Some(owner));
        assert!(is_guarded(pair, &away), "beside another");
        agent.end().unwrap();
        assert_eq!(xdp_id(&pair.a).unwrap(), Some(owner));
        assert!(is_guarded(pair, &away), "after a stop");
        let left = node.detach().unwrap_err().to_string();
        assert!(left.contains("pins are left") && left.contains("/xdp\""), "what runs elsewhere needs them: {left}");
        assert!(is_guarded(pair, &away), "after a detach");
    }
}

#[test]
fn an_interface_that_is_moved_away_and_back_is_wrapped_again_and_its_owners_program_put_back() {
    let node = node("wrap");
    let pair = &node.pair;
    let away = Netns::new("away").unwrap();
    let _peer = peer(pair);
    let other = Other::put(&pair.a, node.bpffs(), "xdp_mixed").unwrap();
    let id = other.id("xdp_mixed").unwrap();
    let mut agent = node.start().unwrap();
    let ours = xdp_id(&pair.a).unwrap();
    move_eth0(&pair.a, &away);
    agent.wait_for("the interface has gone").unwrap();
    assert!(is_guarded(pair, &away));
    move_eth0(&away, &pair.a);
    agent.wait_for("is on an interface again").unwrap();
    assert_eq!(xdp_id(&pair.a).unwrap(), ours);
    assert!(is_guarded(pair, &pair.a));
    agent.end().unwrap();
    assert_eq!(xdp_id(&pair.a).unwrap(), Some(id), "the owner's is back");
    node.detach().unwrap();
}
