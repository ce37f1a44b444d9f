//! P5: what is full, slow, stopped or forgetful is waited for within limits, and whatever a limit refuses is counted.

use std::{process::Command, time::Duration};

use integration::{
    agent::{Agent, binary},
    cgroups::Memory,
    claims::until,
    net::sh,
    node::Node,
    oracle::{Difference, Oracle},
    rows::Objects,
};
use rustix::process::Signal;

const PAUSE: Duration = Duration::from_millis(4);

/// A file system of a few MiB on the node's state directory.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn new(node: &Node) -> Self {
        std::fs::create_dir(node.state()).unwrap();
        sh(&format!("mount -t tmpfs -o size=24m tmpfs {}", node.state().display())).unwrap();
        Self(node.state())
    }

    /// Nothing fits any more.
    fn fill(&self) {
        let file = self.0.join("filler");
        let out = Command::new("dd").args(["if=/dev/zero", "bs=64k"]).arg(format!("of={}", file.display())).output();
        assert!(!out.unwrap().status.success(), "the disk is full");
    }

    fn empty(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = sh(&format!("umount -l {}", self.0.display()));
    }
}

#[test]
fn a_full_disk_is_waited_for_and_loses_nothing() {
    let node = Node::new(&["--window", "1", "--cache-slots", "256", "--ring-bytes", "33554432"]).unwrap();
    let disk = SmallDisk::new(&node);
    let mut agent = node.start().unwrap();
    // What was never written cannot be read from a full disk.
    until("a first status", || node.command(&["status"]).is_ok_and(|(_, said, _)| said.contains("running")));
    let oracle = Oracle::watch(&node.pair, 500, PAUSE, |_| {
        for _ in 0..2 {
            disk.fill();
            agent.wait_for("will try again")?;
            std::thread::sleep(Duration::from_secs(2));
            let (code, status, said) = node.command(&["status"])?;
            anyhow::ensure!(status.contains("running"), "{code:?} {status} {said}");
            disk.empty();
            agent.wait_for("can be written to again")?;
            agent.wait_for("delivered")?;
        }
        // Whatever had to be written again is there for the next agent.
        agent.kill()
    })
    .unwrap();
    let landed = node.detach().unwrap();
    assert_eq!(oracle.compare(&landed), Difference::default());
}

#[test]
fn a_write_or_sync_that_fails_counts_as_not_written() {
    let node = Node::new(&["--window", "1", "--cache-slots", "256"]).unwrap();
    node.start().unwrap().kill().unwrap();
    let eio = libc::EIO;
    let enospc = libc::ENOSPC;
    let faults = [
        format!("journal_sync_error:6:{eio}"),
        format!("journal_write:7:{enospc}"),
        format!("spool_write:1:{enospc}"),
        format!("spool_sync:1:{eio}"),
    ];
    let oracle = Oracle::watch(&node.pair, 500, PAUSE, |_| {
        for fault in &faults {
            let mut agent = node.spawn(&[("FLOWLOG_FAULT", fault)])?;
            agent.wait_for("will try again")?;
            // And killed before anybody can write it again, or after: both must do.
            agent.wait_for("window closed")?;
            agent.kill()?;
        }
        Ok(())
    })
    .unwrap();
    let landed = node.detach().unwrap();
    assert_eq!(oracle.compare(&landed), Difference::default());
}

#[test]
fn a_full_spool_keeps_the_totals_of_what_it_refuses() {
    let node = Node::new(&["--window", "1", "--spool-bytes-max", "60000"]).unwrap();
    let mut agent = node.start().unwrap();
    let before = node.pair.a.statistic("eth0", "rx_packets").unwrap();
    // The target goes away.
    let aside = node.objects().with_extension("aside");
    std::fs::rename(node.objects(), &aside).unwrap();
    std::fs::write(node.objects(), "not a directory").unwrap();
    let oracle = Oracle::watch(&node.pair, 3_000, PAUSE, |_| {
        agent.wait_for("the spool is full")?;
        agent.wait_for("window closed")?;
        agent.wait_for("window closed")?;
        std::thread::sleep(Duration::from_secs(3));
        let (_, status, _) = node.command(&["status"])?;
        anyhow::ensure!(status.contains("spool is full") && status.contains("Not a directory"), "{status}");
        Ok(())
    })
    .unwrap();
    let received = node.pair.a.statistic("eth0", "rx_packets").unwrap() - before;
    std::fs::remove_file(node.objects()).unwrap();
    std::fs::rename(&aside, node.objects()).unwrap();
    agent.signal(Signal::TERM);
    assert_eq!(agent.wait().unwrap(), Some(0));
    let landed = node.detach().unwrap();
    let verdict = oracle.compare(&landed);
    assert_eq!((verdict.duplicated, verdict.unexpected), (0, 0), "{verdict:?}");
    assert!(verdict.skipped > 0 && verdict.lost == verdict.skipped, "{verdict:?}");
    assert_eq!(landed.total().0, received);
    let refused = landed.sum(|r| r.skip == "spool_full" && r.action == "REJECT").0;
    assert_eq!(landed.flows("REJECT").0 + refused, oracle.refused);
}

#[test]
fn an_agent_that_is_stopped_for_a_minute_marks_its_late_window_and_doubles_none() {
    let node = Node::new(&["--window", "10"]).unwrap();
    let mut agent = node.start().unwrap();
    let oracle = Oracle::watch(&node.pair, 500, PAUSE, |_| {
        agent.signal(Signal::STOP);
        std::thread::sleep(Duration::from_mins(1));
        agent.signal(Signal::CONT);
        agent.wait_for("window closed").map(drop)
    })
    .unwrap();
    drop(agent);
    let landed = node.detach().unwrap();
    assert_eq!(oracle.compare(&landed), Difference::default());
    let late: Vec<_> = landed.rows.iter().filter(|r| r.marks.contains("ends_late")).collect();
    assert!(!late.is_empty() && late.iter().all(|r| r.window_start == late[0].window_start), "one window is late");
    assert!(landed.rows.iter().all(|r| r.end_ns == -1 || r.end_ns >= r.start_ns));
    let mut keys = landed.keys.clone();
    keys.dedup();
    assert_eq!(keys.len(), landed.keys.len());
}

#[test]
fn sixty_four_mebibytes_are_enough_in_a_flood() {
    let node = Node::new(&[]).unwrap();
    let group = Memory::new(64 << 20, false).unwrap();
    let before = node.pair.a.statistic("eth0", "rx_packets").unwrap();
    // `ip netns exec` hides the control groups, and so the limit that flows and ring would follow.
    let run = shell(&format!("{} --flows-max 50000 --ring-bytes 8MiB --window 86400", running(&node)));
    let mut agent = Agent::attend(group.admit(&run), tempfile::tempdir().unwrap()).unwrap();
    agent.wait_for("capturing").unwrap();
    // Every packet is a new flow.
    Oracle::watch(&node.pair, 600_000, Duration::from_micros(50), |sent| {
        while sent.load(std::sync::atomic::Ordering::Relaxed) < 600_000 {
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    })
    .unwrap();
    let received = node.pair.a.statistic("eth0", "rx_packets").unwrap() - before;
    agent.end().unwrap();
    let landed = Objects::below(&node.objects()).unwrap();
    eprintln!("{received} packets, {} objects, {:?} lost", landed.keys.len(), landed.lost());
    assert_eq!(landed.total().0, received);
    assert!(received >= 600_000);
}

#[test]
fn a_start_that_does_not_fit_into_a_group_or_one_above_it_says_so_before_it_loads() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("flowlog.toml");
    let pins = dir.path().join("pins");
    let text = format!(
        "pin_dir = '{}'\nstate_dir = '{}'\nflows_max = 50000\n[[flow_log]]\ninterfaces = ['lo']\ntarget = '{}'\n",
        pins.display(),
        dir.path().join("state").display(),
        dir.path().display()
    );
    std::fs::write(&config, text).unwrap();
    for above in [false, true] {
        let group = Memory::new(40 << 20, above).unwrap();
        for verb in ["check", "run"] {
            let mut command = Command::new(binary());
            command.args([verb, "--config"]).arg(&config);
            let mut agent = Agent::attend(group.admit(&command), tempfile::tempdir().unwrap()).unwrap();
            let line = agent.wait_for("memory: this needs ").unwrap();
            assert_eq!(agent.wait().unwrap(), Some(78), "{line}");
            let limit = group.limit().display().to_string();
            assert!(line.contains(&format!("`{limit}` allows 40: raise it, or lower `kernel.cache_slots`")), "{line}");
            assert!(line.contains(" for maps, ") && line.contains("50000 flows"), "{line}");
            assert!(!pins.exists() && !dir.path().join("state").exists(), "nothing is begun");
        }
    }
}

#[test]
fn a_limit_of_locked_memory_does_not_count_maps() {
    let node = Node::new(&[]).unwrap();
    let script = format!("ulimit -l 0; {}", running(&node));
    let mut agent = Agent::attend(shell(&script), tempfile::tempdir().unwrap()).unwrap();
    agent.wait_for("capturing").unwrap();
    agent.end().unwrap();
}

/// The end of a shell's script: it becomes the node's agent.
fn running(node: &Node) -> String {
    format!(
        "exec ip netns exec {} {} run -i eth0 --no-pin --node-id node --state-dir {} --target {}",
        node.pair.a.name(),
        binary().display(),
        node.state().display(),
        node.objects().display()
    )
}

fn shell(script: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", script]);
    shell
}
