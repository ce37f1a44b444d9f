//! P1 and P8 where somebody else's native XDP program is traced: what it drops and forwards has rows for each flow. Witnesses: the
//! driver's counters, and the program's own. On machines that let nobody trace programs: that is said, and the driver's count stands.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
};

use integration::{
    agent::{Agent, run_to_end},
    claims::until,
    driver, features,
    mixed::{
        ABORTED, DROPPED, PASSED, REDIRECTED, SENT_BACK, accepted, assert_balanced, mixed, peer, quiet, rejected, send,
        send_all, skipped,
    },
    net::Pair,
    node::Node,
    others::Other,
    rows::Objects,
};

const TRACE: [&str; 4] = ["--direction", "ingress", "--xdp", "trace"];
const TRACED: &str = "somebody else's XDP program is traced";
const UNTRACED: &str = "somebody else's XDP program is not traced";

/// Two hosts that are quiet, and what the other end runs.
fn pair() -> (Pair, Other) {
    let pair = Pair::new().unwrap();
    quiet(&pair);
    let peer = peer(&pair);
    (pair, peer)
}

/// Whether the agent traces the program that was there when it began; if this machine cannot, the test is skipped.
fn is_traced(agent: &mut Agent) -> bool {
    let log = agent.log();
    if log.contains(TRACED) {
        return true;
    }
    assert!(log.contains(UNTRACED), "{log}");
    assert!(!features::guest() && log.contains("lets nobody trace programs"), "{log}");
    features::skipped("this machine lets nobody trace programs");
    false
}

/// All of what `send_all` has sent is in flows, and nothing of it is left to the driver's count.
fn assert_flows_are_exact(landed: &Objects) {
    let refused = landed.rows.iter().filter(|r| r.action == "REJECT" && r.status != "SKIPDATA");
    assert!(refused.clone().all(|r| r.reason == "XDP"), "{:#?}", landed.rows);
    assert_eq!(rejected(landed, 7), DROPPED as u64, "{:#?}", landed.rows);
    assert_eq!(rejected(landed, 13), ABORTED as u64, "{:#?}", landed.rows);
    assert_eq!(accepted(landed, 9), SENT_BACK as u64, "{:#?}", landed.rows);
    assert_eq!(accepted(landed, 11), REDIRECTED as u64, "{:#?}", landed.rows);
    assert_eq!(accepted(landed, 8), PASSED as u64, "{:#?}", landed.rows);
    assert_eq!(landed.flows("REJECT").0, (DROPPED + ABORTED) as u64, "nothing else was refused: {:#?}", landed.rows);
    assert_eq!((skipped(landed, "xdp_dropped"), skipped(landed, "xdp_forwarded")), (0, 0), "{:#?}", landed.rows);
    assert_balanced(landed);
}

#[test]
fn what_a_traced_program_takes_is_in_flows_and_in_none_twice() {
    let (pair, _peer) = pair();
    let other = mixed(&pair.a);
    let before = driver::xdp_of_veth(&pair.a, "eth0").unwrap();
    let mut agent = Agent::start(&pair.a, &["eth0"], &TRACE).unwrap();
    if !is_traced(&mut agent) {
        return;
    }
    send_all(&pair);
    let landed = agent.stop().unwrap();
    let after = driver::xdp_of_veth(&pair.a, "eth0").unwrap();
    let [aborted, dropped, passed, sent_back, redirected] = other.actions().unwrap();
    assert_eq!((aborted, dropped, sent_back), (ABORTED as u64, DROPPED as u64, SENT_BACK as u64));
    assert_eq!((passed >= PASSED as u64, redirected), (true, REDIRECTED as u64));
    assert_eq!(after.0 - before.0, dropped + aborted, "the driver agrees");
    assert_eq!(after.1 - before.1, sent_back + redirected, "the driver agrees");
    assert_flows_are_exact(&landed);
}

#[test]
fn what_a_traced_dispatcher_runs_is_in_flows() {
    let (pair, _peer) = pair();
    let other = Other::attach_dispatched(&pair.a, "xdp_mixed").unwrap();
    let mut agent = Agent::start(&pair.a, &["eth0"], &TRACE).unwrap();
    if !is_traced(&mut agent) {
        return;
    }
    send_all(&pair);
    let landed = agent.stop().unwrap();
    let [aborted, dropped, ..] = other.actions().unwrap();
    assert_eq!((aborted, dropped), (ABORTED as u64, DROPPED as u64), "the program behind it has seen them");
    assert_flows_are_exact(&landed);
}

#[test]
fn a_program_that_is_replaced_under_traffic_loses_no_packet_of_the_drivers_count() {
    let (pair, _peer) = pair();
    let first = mixed(&pair.a);
    let before = driver::xdp_of_veth(&pair.a, "eth0").unwrap().0;
    let mut agent = Agent::start(&pair.a, &["eth0"], &TRACE).unwrap();
    if !is_traced(&mut agent) {
        return;
    }
    let ends = AtomicBool::new(false);
    let second = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ends.load(Ordering::Relaxed) {
                send(&pair, 7, DROPPED);
            }
        });
        drop(first);
        agent.wait_for("is not traced any more").unwrap();
        let second = mixed(&pair.a);
        agent.wait_for(TRACED).unwrap();
        ends.store(true, Ordering::Relaxed);
        second
    });
    send(&pair, 7, DROPPED);
    pair.wait_until_quiet();
    let landed = agent.stop().unwrap();
    let dropped = driver::xdp_of_veth(&pair.a, "eth0").unwrap().0 - before;
    assert!(second.actions().unwrap()[1] >= DROPPED as u64);
    let rejected = rejected(&landed, 7);
    assert_eq!(rejected + skipped(&landed, "xdp_dropped"), dropped, "{:#?}", landed.rows);
    assert!(rejected >= DROPPED as u64, "{:#?}", landed.rows);
    assert_balanced(&landed);
}

#[test]
fn a_program_stays_traced_while_no_agent_runs_and_is_traced_once_after_it() {
    let node = Node::new(&["--xdp", "trace"]).unwrap();
    let pair = &node.pair;
    let other = mixed(&pair.a);
    let mut agent = node.start().unwrap();
    if !is_traced(&mut agent) {
        return;
    }
    send(pair, 7, DROPPED);
    pair.wait_until_quiet();
    agent.kill().unwrap();
    send(pair, 7, SENT_BACK);
    pair.wait_until_quiet();
    let mut agent = node.start().unwrap();
    assert!(is_traced(&mut agent), "again");
    send(pair, 7, REDIRECTED);
    pair.wait_until_quiet();
    agent.end().unwrap();
    send(pair, 7, ABORTED);
    pair.wait_until_quiet();
    let landed = node.detach().unwrap();
    let dropped = other.actions().unwrap()[1];
    assert_eq!(dropped, (DROPPED + SENT_BACK + REDIRECTED + ABORTED) as u64);
    assert_eq!(rejected(&landed, 7), dropped, "{:#?} {:?}", landed.rows, landed.metadata);
    assert_eq!(skipped(&landed, "xdp_dropped"), 0, "{:#?} {:?}", landed.rows, landed.metadata);
    assert_balanced(&landed);
    send(pair, 7, DROPPED);
    pair.wait_until_quiet();
    assert_eq!(other.actions().unwrap()[1], dropped + DROPPED as u64, "it drops on when nobody traces it any more");
}

#[test]
fn a_machine_that_lets_nobody_trace_says_so_and_the_drivers_count_stands() {
    let (pair, _peer) = pair();
    let other = mixed(&pair.a);
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state").to_str().unwrap().to_owned();
    let mut agent = Agent::start(&pair.a, &["eth0"], &[&TRACE[..], &["--state-dir", &state]].concat()).unwrap();
    let check = run_to_end(&pair.a, &["check", "--interface", "eth0"], dir.path()).unwrap().1;
    let line = check.lines().find(|l| l.contains("tracing XDP")).expect("a line of the check").to_owned();
    if agent.log().contains(TRACED) {
        assert!(line.starts_with("ok"), "{check}");
        features::skipped("this machine lets us trace programs");
        return;
    }
    assert!(line.starts_with("limited") && line.contains("lets nobody trace programs"), "{check}");
    let status = || run_to_end(&pair.a, &["status", "--output", "table"], dir.path()).unwrap().1;
    until("the reason in the status", || status().contains("lets nobody trace programs"));
    send_all(&pair);
    let landed = agent.stop().unwrap();
    let [aborted, dropped, _, sent_back, redirected] = other.actions().unwrap();
    assert_eq!(skipped(&landed, "xdp_dropped"), dropped + aborted, "{:#?}", landed.rows);
    assert_eq!(skipped(&landed, "xdp_forwarded"), sent_back + redirected, "{:#?}", landed.rows);
    assert_eq!(landed.flows("REJECT").0, 0, "no hook has seen them");
    assert_balanced(&landed);
}

/// One of libxdp's own commands, on the node's interface; what it prints.
fn xdp_tool(pair: &Pair, program: &str, args: &[&str]) -> String {
    let mut command = std::process::Command::new("nsenter");
    // `ip netns exec` would hide the bpf file system, by which its calls find each other.
    let done = command.arg(format!("--net=/run/netns/{}", pair.a.name())).arg(program).args(args).output().unwrap();
    assert!(done.status.success(), "{program} {args:?}: {done:?}");
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// An interface with libxdp's dispatcher, and in it a filter of port 7 that is libxdp's own; `None`: this machine cannot have it.
fn dispatched() -> Option<(Pair, Other)> {
    let (pair, peer) = pair();
    if objects_of_libxdp().is_none() {
        features::skipped(
            "libxdp is for guests: where nobody may trace, its programs cannot be put into its dispatcher",
        );
        return None;
    }
    for args in [&["load", "eth0"][..], &["port", "7", "--proto", "udp"]] {
        xdp_tool(&pair, "xdp-filter", args);
    }
    Some((pair, peer))
}

/// Where libxdp's programs are.
fn objects_of_libxdp() -> Option<PathBuf> {
    std::env::var_os("LIBXDP_OBJECT_PATH").map(PathBuf::from).filter(|dir| dir.exists())
}

/// What the agent says of an interface on which libxdp's filter drops port 7 is what that filter says.
fn assert_filter_is_in_flows(pair: &Pair) {
    let mut agent = Agent::start(&pair.a, &["eth0"], &TRACE).unwrap();
    if !is_traced(&mut agent) {
        return;
    }
    let named = agent.log();
    assert!(named.contains("xdp_dispatcher"), "{named}");
    send_all(pair);
    let landed = agent.stop().unwrap();
    let status = xdp_tool(pair, "xdp-filter", &["status"]);
    // Its own count of port 7: the last number of the line.
    let line = status.lines().find(|line| line.split_whitespace().next() == Some("7")).expect("a line for port 7");
    let counted: u64 = line.split_whitespace().next_back().unwrap().parse().unwrap();
    assert_eq!(counted, DROPPED as u64, "{status}");
    assert_eq!(rejected(&landed, 7), counted, "{:#?}", landed.rows);
    assert_eq!(landed.flows("REJECT").0, counted, "nothing else was refused: {:#?}", landed.rows);
    assert_eq!(accepted(&landed, 8), PASSED as u64, "{:#?}", landed.rows);
    assert_balanced(&landed);
}

#[test]
fn what_a_program_of_libxdps_dispatcher_drops_is_in_flows() {
    let Some((pair, _peer)) = dispatched() else { return };
    assert_filter_is_in_flows(&pair);
    xdp_tool(&pair, "xdp-filter", &["unload", "eth0"]);
}

#[test]
fn what_one_of_two_programs_of_libxdps_dispatcher_drops_is_in_flows() {
    let Some((pair, _peer)) = dispatched() else { return };
    // The one that AF_XDP sockets come with: without a socket it passes all.
    let second = objects_of_libxdp().expect("its filter is from there").join("xsk_def_xdp_prog.o");
    xdp_tool(&pair, "xdp-loader", &["load", "eth0", second.to_str().unwrap()]);
    assert!(xdp_tool(&pair, "xdp-loader", &["status", "eth0"]).contains("xsk_def_prog"), "both run");
    assert_filter_is_in_flows(&pair);
    xdp_tool(&pair, "xdp-loader", &["unload", "eth0", "--all"]);
}
