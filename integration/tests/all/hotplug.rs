//! CPUs are switched off and on: what one has counted is in the window that it was counted in, once, whether it still runs or not.
//!
//! Only in guests, where nobody else loses a CPU.

use std::{
    ops::RangeInclusive,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use integration::{
    features,
    node::Node,
    rows::{Objects, Row},
    skip_unless, traffic,
};

/// The CPU that comes and goes.
const CPU: usize = 1;
/// The one that stays.
const OTHER: usize = 0;
const PACKETS: usize = 40;
const WINDOW_SECS: i64 = 10;

fn switch() -> PathBuf {
    format!("/sys/devices/system/cpu/cpu{CPU}/online").into()
}

/// While it lives, the CPU is off.
struct Off;

impl Off {
    fn new() -> Self {
        std::fs::write(switch(), "0").unwrap();
        Self
    }
}

impl Drop for Off {
    fn drop(&mut self) {
        std::fs::write(switch(), "1").unwrap();
    }
}

/// Packets that were sent to a port of the node.
struct Sent {
    port: i64,
    /// When, in Unix seconds.
    at: RangeInclusive<i64>,
}

/// Sends packets that are received on the CPU that they are sent from.
fn send(node: &Node, cpu: usize, port: i64) -> Sent {
    let now = || i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap();
    let begin = now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            node.pair.b.run(|| {
                traffic::pin_to_cpu(cpu);
                traffic::udp(&format!("10.1.0.1:{port}"), PACKETS, 10).unwrap();
            });
        });
    });
    node.pair.wait_until_quiet();
    Sent { port, at: begin..=now() }
}

/// Every packet that the interface has received is in a row, in the window that it came in.
fn check(node: &Node, landed: &Objects, received_before: u64, sent: &[Sent]) {
    for Sent { port, at } in sent {
        assert_eq!(landed.sum(|r| r.dport == *port).0, PACKETS as u64, "port {port}: {:#?}", landed.rows);
        // A window that ended while no agent ran says that it is longer.
        let is_its = |r: &Row| {
            let end = r.window_start + WINDOW_SECS;
            r.window_start <= *at.end() && (end >= *at.start() || r.marks.contains("ends_late"))
        };
        assert!(
            landed.rows.iter().filter(|r| r.dport == *port).all(is_its),
            "port {port}, sent {at:?}: {:#?}",
            landed.rows
        );
    }
    let received = node.pair.a.statistic("eth0", "rx_packets").unwrap() - received_before;
    let ingress = landed.sum(|r| r.direction == "ingress").0;
    assert_eq!((ingress, landed.lost().0), (received, 0), "{:#?}", landed.rows);
}

/// A node with windows of [`WINDOW_SECS`], and what its interface has received.
fn node() -> (Node, u64) {
    let node = Node::new(&["--window", &WINDOW_SECS.to_string()]).unwrap();
    let received = node.pair.a.statistic("eth0", "rx_packets").unwrap();
    (node, received)
}

#[test]
fn what_a_cpu_has_counted_before_it_is_switched_off_is_in_its_window() {
    skip_unless!(features::guest() && switch().exists(), "it would switch off a CPU of other people");
    let (node, before) = node();
    let mut agent = node.start().unwrap();
    let mut sent = vec![send(&node, CPU, 5_001)];
    {
        let _off = Off::new();
        sent.push(send(&node, OTHER, 5_002));
        agent.wait_for("window closed").unwrap();
        agent.wait_for("window closed").unwrap();
        sent.push(send(&node, OTHER, 5_003));
    }
    sent.push(send(&node, CPU, 5_004));
    let off = Off::new();
    agent.end().unwrap();
    let landed = node.detach().unwrap();
    drop(off);
    check(&node, &landed, before, &sent);
}

#[test]
fn a_cpu_that_comes_while_the_agent_runs_is_one_like_the_others() {
    skip_unless!(features::guest() && switch().exists(), "it would switch off a CPU of other people");
    let (node, before) = node();
    let off = Off::new();
    let mut agent = node.start().unwrap();
    drop(off);
    let sent = [send(&node, CPU, 5_001)];
    agent.wait_for("window closed").unwrap();
    agent.wait_for("window closed").unwrap();
    agent.end().unwrap();
    let landed = node.detach().unwrap();
    check(&node, &landed, before, &sent);
}

#[test]
fn what_a_cpu_has_counted_is_not_forgotten_with_the_agent_that_saw_it_run() {
    skip_unless!(features::guest() && switch().exists(), "it would switch off a CPU of other people");
    let (node, before) = node();
    let mut agent = node.start().unwrap();
    let mut sent = vec![send(&node, CPU, 5_001)];
    agent.kill().unwrap();
    let off = Off::new();
    let mut agent = node.start().unwrap();
    sent.push(send(&node, OTHER, 5_002));
    agent.end().unwrap();
    let landed = node.detach().unwrap();
    drop(off);
    check(&node, &landed, before, &sent);
}
