//! P3 and P2: whatever happens to the agent while the host is up, every packet is in the delivered objects once. The
//! oracle knows every packet sent; the interface's and the firewall's own counters are further witnesses.

use std::time::Duration;

use flowlog_host::fault;
use integration::{
    node::Node,
    oracle::{Difference, L3_BYTES, Oracle},
};

const PAUSE: Duration = Duration::from_millis(4);
const FLOWS: u32 = 3_000;
/// Caches small enough that records leave them all the time, and windows that end all the time.
const ARGS: [&str; 6] = ["--window", "1", "--cache-slots", "1024", "--refused-slots", "256"];

/// Runs `script` on a node under constant traffic and ends the capture; nothing may be missing or twice.
fn check(args: &[&str], script: impl FnOnce(&Node) -> anyhow::Result<()>) -> Oracle {
    let node = Node::new(args).unwrap();
    // Before the first packet, so that the hook sees them all.
    node.start().unwrap().kill().unwrap();
    let before = node.pair.a.statistic("eth0", "rx_packets").unwrap();
    let oracle = Oracle::watch(&node.pair, FLOWS, PAUSE, |_| script(&node)).unwrap();
    let landed = node.detach().unwrap();
    let received = node.pair.a.statistic("eth0", "rx_packets").unwrap() - before;
    let refused = node.pair.a.nft_counter("inet oracle", "refused").unwrap();
    eprintln!("{} packets, {} objects", oracle.total, landed.keys.len());
    assert_eq!(oracle.compare(&landed), Difference::default());
    assert_eq!(received, oracle.total, "what the interface counted");
    assert_eq!(refused, (oracle.refused, oracle.refused * L3_BYTES), "what the firewall counted");
    assert_eq!(landed.flows("REJECT"), refused);
    oracle
}

#[test]
fn nothing_is_lost_or_doubled_when_the_agent_is_killed_at_any_step() {
    check(&ARGS, |node| {
        for point in fault::POINTS {
            // In the middle of things rather than at the start: steps of every record, of every window.
            let nth = match point {
                "ring_read" | "merge" => 200,
                "journal_append" | "journal_sync" | "position_advance" => 12,
                _ => 2,
            };
            let mut agent = node.spawn(&[("FLOWLOG_FAULT", &format!("{point}:{nth}"))])?;
            agent.wait_for(&format!("killed at {point}"))?;
            agent.wait()?;
        }
        Ok(())
    });
}

/// The same of objects that are text, at the steps that a window takes once it has ended.
#[test]
fn nothing_is_lost_or_doubled_in_text_when_the_agent_is_killed_on_the_way_to_the_store() {
    let args = [&ARGS[..], &["--format", "text"]].concat();
    check(&args, |node| {
        let of_windows = ["encode", "spool_rename", "spool_dir_sync", "spool_release", "put_sent", "spool_unlink"];
        assert!(of_windows.iter().all(|point| fault::POINTS.contains(point)), "{:?}", fault::POINTS);
        for point in of_windows {
            let mut agent = node.spawn(&[("FLOWLOG_FAULT", &format!("{point}:2"))])?;
            agent.wait_for(&format!("killed at {point}"))?;
            agent.wait()?;
        }
        Ok(())
    });
}

#[test]
fn nothing_is_lost_or_doubled_when_the_agent_is_killed_fifty_times_at_random() {
    // The same times every run: a failure can be repeated, as far as threads allow.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    check(&ARGS, |node| {
        for kill in 0..50 {
            let mut agent = node.spawn(&[])?;
            // Every third while it is still starting.
            if kill % 3 != 0 {
                agent.wait_for("capturing")?;
            }
            std::thread::sleep(Duration::from_millis(random() % 1_500));
            agent.kill()?;
        }
        Ok(())
    });
}
