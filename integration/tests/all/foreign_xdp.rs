//! P1 and P8 where somebody else's XDP program takes packets before any hook sees them: they are counted, their program is named,
//! and where nobody counts them that is said. Witnesses: the program's own counters, the sender's list, the interface's counter.

use aya::programs::TcAttachType;
use integration::{
    agent::{Agent, run_to_end},
    claims::until,
    mixed::{ABORTED, DROPPED, PASSED, REDIRECTED, SENT_BACK, mixed, peer, quiet, send, send_all, skipped},
    net::{Netns, Pair, address},
    node::Node,
    others::{Other, Place},
    rows::Objects,
    taps::Cable,
};

/// An entry of the books, over all objects.
fn booked(landed: &Objects, entry: &str) -> u64 {
    let of = |books: &String| {
        let pair = books.split(' ').find_map(|pair| pair.strip_prefix(entry)?.strip_prefix('='));
        // What is not there is 0.
        pair.map_or(0, |p| p.split('/').next().unwrap().parse::<u64>().unwrap())
    };
    landed.metadata.iter().map(|m| of(&m["flowlog.balance"])).sum()
}

fn metadata<'a>(landed: &'a Objects, key: &str) -> Vec<&'a str> {
    landed.metadata.iter().filter_map(|m| m.get(key)).map(String::as_str).collect()
}

#[test]
fn what_a_native_program_drops_and_forwards_is_counted_and_the_books_close() {
    let pair = Pair::new().unwrap();
    quiet(&pair);
    let _peer = peer(&pair);
    let other = mixed(&pair.a);
    let before = pair.a.statistic("eth0", "rx_packets").unwrap();
    let agent = Agent::start(&pair.a, &["eth0"], &["--direction", "ingress"]).unwrap();
    send_all(&pair);
    let landed = agent.stop().unwrap();
    let received = pair.a.statistic("eth0", "rx_packets").unwrap() - before;
    let [aborted, dropped, passed, sent_back, redirected] = other.actions().unwrap();
    assert_eq!((dropped, sent_back), (DROPPED as u64, SENT_BACK as u64), "the program has seen what was sent");
    assert_eq!((redirected, aborted), (REDIRECTED as u64, ABORTED as u64));
    assert_eq!(skipped(&landed, "xdp_dropped"), dropped + aborted, "{:#?}", landed.rows);
    assert_eq!(skipped(&landed, "xdp_forwarded"), sent_back + redirected, "{:#?}", landed.rows);
    assert_eq!(landed.flows("ACCEPT").0, passed);
    assert_eq!(landed.flows("REJECT").0, 0, "no hook has seen them");
    let xdp = booked(&landed, "xdp_dropped") + booked(&landed, "xdp_forwarded");
    assert_eq!(booked(&landed, "seen") + xdp, received, "what the interface counted");
    let rows: Vec<(&str, &str, u64)> = landed
        .rows
        .iter()
        .filter(|r| r.skip.starts_with("xdp_"))
        .map(|r| (r.action.as_str(), r.direction.as_str(), r.bytes))
        .collect();
    assert_eq!(rows, [("REJECT", "ingress", 0), ("ACCEPT", "ingress", 0)]);
    assert!(landed.metadata.iter().all(|m| m["flowlog.balance"].ends_with("difference=0/0")), "{:?}", landed.metadata);
    let id = other.id("xdp_mixed").unwrap();
    assert!(metadata(&landed, "flowlog.xdp")[0].starts_with(&format!("driver id={id}")), "{:?}", landed.metadata);
    assert_eq!(metadata(&landed, "flowlog.xdp_packets"), ["dropped=28 forwarded=28 driver=veth"]);
}

#[test]
fn what_cannot_be_sent_back_is_dropped_and_the_books_close() {
    let pair = Pair::new().unwrap();
    quiet(&pair);
    // The other end runs no XDP, so it takes nothing that is sent back.
    let other = mixed(&pair.a);
    let before = pair.a.statistic("eth0", "rx_packets").unwrap();
    let agent = Agent::start(&pair.a, &["eth0"], &["--direction", "ingress"]).unwrap();
    send(&pair, 9, SENT_BACK);
    send(&pair, 8, PASSED);
    pair.wait_until_quiet();
    let landed = agent.stop().unwrap();
    let received = pair.a.statistic("eth0", "rx_packets").unwrap() - before;
    assert_eq!(other.actions().unwrap()[3], SENT_BACK as u64, "the program has tried to send them back");
    assert_eq!((skipped(&landed, "xdp_dropped"), skipped(&landed, "xdp_forwarded")), (SENT_BACK as u64, 0));
    assert_eq!(booked(&landed, "seen") + booked(&landed, "xdp_dropped"), received, "what the interface counted");
}

#[test]
fn programs_that_come_change_and_go_are_said_and_all_they_drop_is_counted() {
    let pair = Pair::new().unwrap();
    quiet(&pair);
    let mut agent = Agent::start(&pair.a, &["eth0"], &[]).unwrap();
    assert!(!agent.log().contains("XDP program"), "{}", agent.log());
    let first = mixed(&pair.a);
    let first_id = first.id("xdp_mixed").unwrap();
    let line = agent.wait_for("somebody else's XDP program runs before every hook").unwrap();
    assert!(line.contains(&format!("driver id={first_id}")) && line.contains("WARN"), "{line}");
    send(&pair, 7, DROPPED);
    pair.wait_until_quiet();
    drop(first);
    agent.wait_for("somebody else's XDP program is gone").unwrap();
    send(&pair, 7, PASSED);
    let second = mixed(&pair.a);
    let second_id = second.id("xdp_mixed").unwrap();
    agent.wait_for(&format!("driver id={second_id}")).unwrap();
    send(&pair, 7, REDIRECTED);
    pair.wait_until_quiet();
    let dropped = DROPPED as u64 + second.actions().unwrap()[1];
    let landed = agent.stop().unwrap();
    assert_eq!(skipped(&landed, "xdp_dropped"), dropped, "{:#?}", landed.rows);
    assert_eq!(dropped, (DROPPED + REDIRECTED) as u64);
    assert_eq!(landed.sum(|r| r.dport == 7).0, PASSED as u64, "while nobody dropped them");
    let all = metadata(&landed, "flowlog.xdp").join(" ");
    assert!(all.contains(&format!("id={first_id}")) && all.contains(&format!("id={second_id}")), "{all}");
}

#[test]
fn a_program_that_comes_and_goes_while_no_agent_runs_is_counted_once() {
    let node = Node::new(&[]).unwrap();
    let pair = &node.pair;
    let mut agent = node.start().unwrap();
    let other = mixed(&pair.a);
    agent.wait_for("somebody else's XDP program").unwrap();
    send(pair, 7, DROPPED);
    pair.wait_until_quiet();
    agent.kill().unwrap();
    send(pair, 7, SENT_BACK);
    pair.wait_until_quiet();
    let mut agent = node.start().unwrap();
    assert!(!agent.log().contains("XDP program runs before"), "it is said once: {}", agent.log());
    send(pair, 7, REDIRECTED);
    pair.wait_until_quiet();
    agent.kill().unwrap();
    let dropped = other.actions().unwrap()[1];
    drop(other);
    let mut agent = node.start().unwrap();
    assert!(agent.log().contains("somebody else's XDP program is gone"), "{}", agent.log());
    agent.end().unwrap();
    let landed = node.detach().unwrap();
    assert_eq!(dropped, (DROPPED + SENT_BACK + REDIRECTED) as u64);
    assert_eq!(skipped(&landed, "xdp_dropped"), dropped, "{:#?} {:?}", landed.rows, landed.metadata);
}

#[test]
fn every_window_has_its_own_share_of_what_is_dropped() {
    let pair = Pair::new().unwrap();
    quiet(&pair);
    let other = mixed(&pair.a);
    let agent = Agent::start(&pair.a, &["eth0"], &["--window", "1"]).unwrap();
    for _ in 0..8 {
        send(&pair, 7, DROPPED);
        std::thread::sleep(std::time::Duration::from_millis(400));
    }
    pair.wait_until_quiet();
    let landed = agent.stop().unwrap();
    let dropped = other.actions().unwrap()[1];
    assert_eq!(skipped(&landed, "xdp_dropped"), dropped, "{:#?}", landed.rows);
    assert!(landed.rows.iter().filter(|r| r.skip == "xdp_dropped").count() > 1, "{:#?}", landed.rows);
    assert!(metadata(&landed, "flowlog.xdp").len() > 1, "each object names the program");
}

#[test]
fn what_a_generic_program_drops_is_still_rejected_and_counted_once() {
    let pair = Pair::new().unwrap();
    quiet(&pair);
    let other = Other::attach(&pair.a, "xdp_mixed", TcAttachType::Ingress, Place::XdpGeneric).unwrap();
    let agent = Agent::start(&pair.a, &["eth0"], &["--direction", "ingress"]).unwrap();
    send(&pair, 7, DROPPED);
    send(&pair, 8, PASSED);
    pair.wait_until_quiet();
    let landed = agent.stop().unwrap();
    let dropped = other.actions().unwrap()[1];
    assert_eq!(landed.sum(|r| r.action == "REJECT" && r.reason == "XDP").0, dropped, "{:#?}", landed.rows);
    assert_eq!(skipped(&landed, "xdp_dropped"), 0, "{:#?}", landed.rows);
    assert!(metadata(&landed, "flowlog.xdp")[0].starts_with("generic id="), "{:?}", landed.metadata);
    assert_eq!(metadata(&landed, "flowlog.xdp_packets"), ["dropped=0 forwarded=unknown driver=veth"]);
}

#[test]
fn a_driver_that_does_not_count_is_named_and_nothing_is_made_up() {
    let a = Netns::new("a").unwrap();
    let b = Netns::new("b").unwrap();
    let _cable = Cable::new((&a, "tap0"), (&b, "tap0")).unwrap();
    for (ns, n) in [(&a, 1), (&b, 2)] {
        ns.exec("ip link set tap0 up").unwrap();
        address(ns, "tap0", &format!("10.1.0.{n}/16")).unwrap();
    }
    let other = Other::attach_to(&a, c"tap0", "xdp_mixed", TcAttachType::Ingress, Place::XdpNative).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state").to_str().unwrap().to_owned();
    let agent = Agent::start(&a, &["tap0"], &["--state-dir", &state]).unwrap();
    let id = other.id("xdp_mixed").unwrap();
    let status = |output| run_to_end(&a, &["status", "--output", output], dir.path()).unwrap().1;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !status("table").contains(&format!("driver id={id}")) {
        assert!(std::time::Instant::now() < deadline, "{}", status("table"));
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    assert!(status("table").contains("tun does not count"), "{}", status("table"));
    let json: serde_json::Value = serde_json::from_str(&status("json")).unwrap();
    let xdp = &json["rules"][0]["xdp"];
    assert_eq!((&xdp["programs"][0]["id"], &xdp["programs"][0]["mode"]), (&id.into(), &"driver".into()), "{json:#}");
    assert!(xdp["uncounted"].as_str().is_some_and(|words| words.contains("tun")), "{json:#}");
    let landed = agent.stop().unwrap();
    assert_eq!(skipped(&landed, "xdp_dropped"), 0);
    assert_eq!(metadata(&landed, "flowlog.xdp_packets"), ["dropped=unknown forwarded=unknown driver=tun"]);
}

#[test]
fn a_check_names_the_program_and_says_what_it_hides() {
    let pair = Pair::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let check = || run_to_end(&pair.a, &["check", "--interface", "eth0"], dir.path()).unwrap().1;
    assert!(!check().contains("somebody else's XDP"), "{}", check());
    let other = mixed(&pair.a);
    let said = check();
    let line = said.lines().find(|l| l.contains("interface eth0")).unwrap();
    let id = other.id("xdp_mixed").unwrap();
    assert!(line.contains(&format!("driver id={id} name=xdp_mixed")) && line.starts_with("limited"), "{said}");
    assert!(line.contains("counted by the driver"), "{said}");
}

/// What XDP sends back is in the interface's counter of what it has sent, and no hook's.
#[test]
fn a_hook_that_sees_nothing_of_what_xdp_sends_back_is_not_called_dead() {
    let pair = Pair::new().unwrap();
    quiet(&pair);
    let _peer = peer(&pair);
    let _other = mixed(&pair.a);
    let before = pair.a.statistic("eth0", "tx_packets").unwrap();
    let mut agent = Agent::start(&pair.a, &["eth0"], &["--window", "1"]).unwrap();
    send(&pair, 9, 100);
    until("all sent back", || pair.a.statistic("eth0", "tx_packets").unwrap() - before >= 100);
    // The hooks are looked at when a window ends.
    agent.wait_for("skipped=1").unwrap();
    assert!(!agent.log().contains("sees nothing"), "{}", agent.log());
    agent.stop().unwrap();
}

#[test]
fn our_own_program_is_nobody_elses() {
    let pair = Pair::new().unwrap();
    quiet(&pair);
    let mut agent = Agent::start(&pair.a, &["eth0"], &["--hook", "xdp"]).unwrap();
    send(&pair, 8, PASSED);
    agent.wait_for("hook runs").unwrap();
    assert!(!agent.log().contains("XDP program"), "{}", agent.log());
    let landed = agent.stop().unwrap();
    assert_eq!(landed.sum(|r| r.dport == 8).0, PASSED as u64);
    assert!(metadata(&landed, "flowlog.xdp").is_empty(), "{:?}", landed.metadata);
}
