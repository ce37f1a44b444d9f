//! What outlives the agent: taken over in place, refused when it is not ours, removed when asked.

use std::time::Duration;

use aya::programs::{SchedClassifier, TcAttachType};
use integration::{
    agent::run_to_end,
    features,
    node::Node,
    oracle::{Difference, Oracle},
    others::{Other, Place},
};

/// Ids of the programs on both tcx hooks of the watched interface.
fn tcx_programs(node: &Node) -> Vec<u32> {
    if !features::tcx() {
        return Vec::new();
    }
    node.pair.a.run(|| {
        [TcAttachType::Ingress, TcAttachType::Egress]
            .into_iter()
            .flat_map(|at| SchedClassifier::query_tcx(c"eth0", at).unwrap().1)
            .map(|p| p.id())
            .collect()
    })
}

/// Everything on the interface that could be ours, in the words of `tc` and `ip`.
fn traces(node: &Node) -> String {
    let mut all = format!("{:?}", tcx_programs(node));
    for side in ["ingress", "egress"] {
        all += node.pair.a.exec(&format!("tc filter show dev eth0 {side}")).unwrap().trim();
    }
    let link = node.pair.a.exec("ip -d link show eth0").unwrap();
    all + if link.contains("xdp") { "xdp" } else { "" }
}

#[test]
fn a_restart_replaces_the_programs_in_place_and_misses_no_packet() {
    // An emulated processor takes ten seconds for each.
    let restarts = if features::guest() { 1 } else { 3 };
    for hook in ["tc", "clsact", "xdp"] {
        let node = Node::new(&["--window", "1", "--hook", hook]).unwrap();
        let mut agent = node.start().unwrap();
        let mut before = tcx_programs(&node);
        let counted = node.pair.a.statistic("eth0", "rx_packets").unwrap();
        let oracle = Oracle::watch(&node.pair, 500, Duration::from_millis(2), |_| {
            for _ in 0..restarts {
                agent.end()?;
                agent = node.start()?;
                let now = tcx_programs(&node);
                anyhow::ensure!(now.len() == before.len() && (now.is_empty() || now != before), "{before:?} {now:?}");
                before = now;
            }
            Ok(())
        })
        .unwrap();
        drop(agent);
        let landed = node.detach().unwrap();
        let received = node.pair.a.statistic("eth0", "rx_packets").unwrap() - counted;
        assert_eq!(oracle.compare(&landed), Difference::default(), "{hook}");
        assert_eq!(landed.sum(|r| r.direction == "ingress").0, received, "{hook}");
        assert_eq!(traces(&node), "[]", "{hook}");
    }
}

#[test]
fn what_overflows_while_no_agent_runs_is_a_counted_loss() {
    let node = Node::new(&["--cache-slots", "16", "--refused-slots", "16", "--ring-bytes", "16384"]).unwrap();
    node.start().unwrap().end().unwrap();
    let before = node.pair.a.statistic("eth0", "rx_packets").unwrap();
    let oracle = Oracle::watch(&node.pair, 5_000, Duration::from_micros(200), |_| {
        std::thread::sleep(Duration::from_secs(1));
        Ok(())
    })
    .unwrap();
    node.start().unwrap().end().unwrap();
    let landed = node.detach().unwrap();
    let verdict = oracle.compare(&landed);
    let received = node.pair.a.statistic("eth0", "rx_packets").unwrap() - before;
    assert_eq!(landed.total().0, received, "{verdict:?}");
    assert!(verdict.skipped > 0 && verdict.duplicated == 0, "{verdict:?}");
    assert!(landed.rows.iter().any(|r| r.status == "SKIPDATA" && r.skip == "ring_full"));
}

#[test]
fn stop_leaves_the_capture_running_and_detach_removes_every_trace() {
    let node = Node::new(&[]).unwrap();
    let untouched = traces(&node);
    let mut agent = node.start().unwrap();
    let (status, out, _) = node.command(&["stop"]).unwrap();
    assert_eq!(status, Some(0));
    assert!(out.contains("goes on in the kernel"), "{out}");
    assert_eq!(agent.wait().unwrap(), Some(0));
    assert!(node.pins().exists() && traces(&node) != untouched);
    let (status, out, _) = node.command(&["status"]).unwrap();
    assert!(status == Some(3) && out.contains("not running"), "{status:?} {out}");
    let (_, out, _) = node.command(&["stop"]).unwrap();
    assert!(out.contains("no agent is running"), "{out}");

    // Detach ends a running agent first; but not for a directory in which nothing can be pinned.
    let mut agent = node.start().unwrap();
    let elsewhere = node.dir.path().join("elsewhere/flowlog");
    let (status, _, error) = node.command(&["detach", "--pin-dir", elsewhere.to_str().unwrap()]).unwrap();
    assert!(status == Some(78) && error.contains("is no bpf file system"), "{status:?} {error}");
    assert_eq!(node.command(&["status"]).unwrap().0, Some(0), "it still runs");
    let oracle = Oracle::watch(&node.pair, 100, Duration::from_millis(2), |_| Ok(())).unwrap();
    let landed = node.detach().unwrap();
    assert_eq!(agent.wait().unwrap(), Some(0));
    assert_eq!(oracle.compare(&landed), Difference::default());
    assert_eq!(traces(&node), untouched);
    let left: Vec<_> = std::fs::read_dir(node.state().join("journal")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    // There is nothing left to end, and that is fine.
    node.detach().unwrap();
}

#[test]
fn without_pins_nothing_is_left_behind() {
    let node = Node::new(&[]).unwrap();
    let untouched = traces(&node);
    let mut agent = node.spawn_with(&["--no-pin"], &[]).unwrap();
    agent.wait_for("capturing").unwrap();
    assert_ne!(traces(&node), untouched);
    agent.end().unwrap();
    assert_eq!(traces(&node), untouched);
    // Killed, its hooks go with it, and the next one says what that means.
    let mut agent = node.spawn_with(&["--no-pin"], &[]).unwrap();
    agent.wait_for("capturing").unwrap();
    let oracle = Oracle::watch(&node.pair, 100, Duration::from_millis(2), |_| {
        agent.kill()?;
        agent = node.spawn_with(&["--no-pin"], &[])?;
        agent.wait_for("capturing").map(drop)
    })
    .unwrap();
    agent.end().unwrap();
    assert!(!node.pins().exists());
    let landed = integration::rows::Objects::below(&node.objects()).unwrap();
    assert!(landed.rows.iter().any(|r| r.skip == "gap" && r.marks.contains("gap")), "{:?}", oracle.compare(&landed));
    assert_eq!(oracle.compare(&landed).duplicated, 0);
}

#[test]
fn a_second_agent_is_refused_and_told_who_is_there() {
    let node = Node::new(&[]).unwrap();
    let agent = node.start().unwrap();
    let pins = node.pins();
    let other = node.dir.path().join("other");
    let refused = |state: &str, pins: &str| {
        let args = ["run", "-i", "eth0", "-t", "./f", "--state-dir", state, "--pin-dir", pins];
        let (status, _, stderr) = run_to_end(&node.pair.a, &args, node.dir.path()).unwrap();
        assert_ne!(status, Some(0));
        assert!(stderr.contains(&format!("process {} ", agent.pid())), "{stderr}");
        assert!(stderr.contains("flowlog run"), "{stderr}");
    };
    refused(node.state().to_str().unwrap(), "/nowhere");
    refused(other.to_str().unwrap(), pins.to_str().unwrap());
}

#[test]
fn pins_that_do_not_fit_are_refused_with_the_remedy_and_left_alone() {
    let node = Node::new(&[]).unwrap();
    node.start().unwrap().end().unwrap();
    let refused = |more: &[&str], words: &[&str]| {
        let mut agent = node.spawn_with(more, &[]).unwrap();
        assert_ne!(agent.wait().unwrap(), Some(0));
        let log = agent.log();
        assert!(words.iter().all(|w| log.contains(w)), "{more:?}: {log}");
    };
    refused(&["--cache-slots", "1024"], &["PASSED4", "flowlog detach"]);
    refused(&["--ring-bytes", "65536"], &["RING", "flowlog detach"]);
    // The same number of banks, and still not the same.
    refused(&["--refused-slots", "2048"], &["REFUSED4"]);
    // A capture without pins would take the journal for one whose kernel state is gone.
    refused(&["--no-pin"], &["pinned at", "flowlog detach"]);

    let strange = node.pins().join("v99");
    std::fs::create_dir(&strange).unwrap();
    refused(&[], &["v99", "ABI 99", "detach"]);
    assert!(strange.exists());
    std::fs::remove_dir(&strange).unwrap();
    let strange = node.pins().join("somebody");
    std::fs::create_dir(&strange).unwrap();
    refused(&[], &["somebody", "not flowlog's"]);
    std::fs::remove_dir(&strange).unwrap();

    let set = std::fs::read_dir(node.pins()).unwrap().next().unwrap().unwrap().path();
    std::fs::rename(set.join("BLOCK4"), node.pins().parent().unwrap().join("aside")).unwrap();
    refused(&[], &["BLOCK4", "missing"]);
    std::fs::rename(set.join("BLOCK6"), set.join("BLOCK4")).unwrap();
    refused(&[], &["BLOCK4", "4056 bytes", "detach"]);
    std::fs::rename(set.join("BLOCK4"), set.join("BLOCK6")).unwrap();
    std::fs::rename(node.pins().parent().unwrap().join("aside"), set.join("BLOCK4")).unwrap();
    // A link in the place of a pin, even to the same map.
    std::fs::rename(set.join("BLOCK4"), node.pins().parent().unwrap().join("aside")).unwrap();
    std::os::unix::fs::symlink(node.pins().parent().unwrap().join("aside"), set.join("BLOCK4")).unwrap();
    refused(&[], &["BLOCK4", "symbolic link"]);
    std::fs::remove_file(set.join("BLOCK4")).unwrap();
    std::fs::rename(node.pins().parent().unwrap().join("aside"), set.join("BLOCK4")).unwrap();
    // What was refused is as it was.
    node.start().unwrap().end().unwrap();
    node.detach().unwrap();
}

#[test]
fn a_set_of_pins_that_was_never_finished_is_made_again() {
    let node = Node::new(&[]).unwrap();
    node.start().unwrap().end().unwrap();
    let set = std::fs::read_dir(node.pins()).unwrap().next().unwrap().unwrap().path();
    let unfinished = set.with_file_name(format!("{}-new", set.file_name().unwrap().to_str().unwrap()));
    std::fs::rename(&set, &unfinished).unwrap();
    let mut agent = node.start().unwrap();
    assert!(set.exists() && !unfinished.exists());
    let oracle = Oracle::watch(&node.pair, 100, Duration::from_millis(2), |_| Ok(())).unwrap();
    agent.end().unwrap();
    assert_eq!(oracle.compare(&node.detach().unwrap()), Difference::default());
}

#[test]
fn pins_without_their_journal_start_anew_and_say_what_is_dropped() {
    let node = Node::new(&[]).unwrap();
    node.start().unwrap().end().unwrap();
    let _ = Oracle::watch(&node.pair, 100, Duration::from_millis(2), |_| Ok(())).unwrap();
    std::fs::remove_dir_all(node.state()).unwrap();
    node.pair.a.nft("delete table inet oracle").unwrap();
    let mut agent = node.spawn(&[]).unwrap();
    agent.wait_for("no journal of them: dropped").unwrap();
    agent.wait_for("capturing").unwrap();
    let oracle = Oracle::watch(&node.pair, 100, Duration::from_millis(2), |_| Ok(())).unwrap();
    agent.signal(rustix::process::Signal::TERM);
    assert_eq!(agent.wait().unwrap(), Some(0));
    assert_eq!(oracle.compare(&node.detach().unwrap()), Difference::default());
}

#[test]
fn a_first_start_that_fails_leaves_nothing_behind() {
    let node = Node::new(&["--hook", "xdp"]).unwrap();
    let other = Other::attach(&node.pair.a, "xdp_drop", TcAttachType::Ingress, Place::XdpNative).unwrap();
    let mut agent = node.spawn(&[]).unwrap();
    assert_ne!(agent.wait().unwrap(), Some(0));
    assert!(agent.log().contains("an interface takes one XDP program"), "{}", agent.log());
    assert!(!node.pins().exists());
    drop(other);
    assert_eq!(traces(&node), "[]");
    node.start().unwrap().end().unwrap();
    node.detach().unwrap();
}

#[test]
fn rules_that_are_no_longer_wanted_are_ended_at_the_next_start() {
    let node = Node::new(&[]).unwrap();
    node.start().unwrap().end().unwrap();
    let oracle = Oracle::watch(&node.pair, 100, Duration::from_millis(2), |_| Ok(())).unwrap();
    // The same interface under another name: the old rule's window is delivered, the new one begins.
    let mut agent = node.spawn_with(&["--name", "other"], &[]).unwrap();
    agent.wait_for("capturing").unwrap();
    agent.wait_for("delivered").unwrap();
    agent.end().unwrap();
    let landed = node.detach().unwrap();
    assert_eq!(oracle.compare(&landed), Difference::default());
    assert!(landed.keys.iter().any(|k| k.starts_with("flowlog/")), "{:?}", landed.keys);
    assert!(landed.keys.iter().any(|k| k.starts_with("other/")), "{:?}", landed.keys);
}

#[test]
fn a_capture_that_begins_and_ends_under_traffic_balances() {
    for hook in ["tc", "clsact"] {
        let node = Node::new(&["--hook", hook]).unwrap();
        Oracle::watch(&node.pair, 100, Duration::from_millis(2), |_| {
            let mut agent = node.spawn_with(&["--no-pin"], &[])?;
            agent.wait_for("hook runs")?;
            // Its end compares rows with truth counters, and reports a difference as an error.
            agent.end()
        })
        .unwrap();
        assert_eq!(traces(&node), "[]");
    }
}
