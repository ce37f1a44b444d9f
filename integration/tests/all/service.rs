//! What a service manager is told (`sd_notify(3)`), by a socket that stands in for its own: when the capture stands, that the main loop
//! runs, when files have been read again, and that the agent is about to end.

use std::{fs, os::unix::net::UnixDatagram, path::PathBuf, time::Duration};

use integration::{
    agent::Agent,
    managed::{Managed, NIC},
    net::Pair,
    traffic,
};
use rustix::process::Signal;

/// Longer than anything that is waited for takes.
const PATIENCE: Duration = Duration::from_mins(1);
/// A loop that has shown no sign of life for so long hangs: they come every two seconds.
const HANGS_AFTER: Duration = Duration::from_secs(8);
/// `WATCHDOG_USEC`: only whether it is there matters to the agent.
const WATCHDOG: (&str, &str) = ("WATCHDOG_USEC", "60000000");

struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, path, _dir: dir }
    }

    fn variables(&self) -> [(&str, &str); 2] {
        [("NOTIFY_SOCKET", self.path.to_str().unwrap()), WATCHDOG]
    }

    /// The next message, if there is one in time.
    fn next(&self) -> Option<String> {
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8(buffer[..length].to_vec()).unwrap())
    }

    /// Waits for a message that says `what`; returns it.
    fn wait_for(&self, what: &str) -> String {
        loop {
            let message = self.next().unwrap_or_else(|| panic!("nobody says {what}"));
            if message.lines().any(|line| line.starts_with(what)) {
                return message;
            }
        }
    }
}

#[test]
fn a_service_manager_is_told_when_the_capture_stands_how_it_is_doing_and_that_it_ends() {
    let manager = Manager::new();
    let pair = Pair::new().unwrap();
    let agent = Agent::spawn_env(&pair.a, &["eth0"], &[], &manager.variables()).unwrap();
    assert!(manager.wait_for("READY=1").contains("STATUS="));
    // What comes from now on is captured.
    pair.b.run(|| traffic::udp("10.1.0.1:9", 20, 50)).unwrap();
    pair.wait_until_quiet();
    let status = manager.wait_for("STATUS=1 flow log");
    assert_eq!(status.trim_end(), "STATUS=1 flow log on 1 interface; all is delivered");
    for _ in 0..2 {
        manager.wait_for("WATCHDOG=1");
    }
    let landed = agent.stop().unwrap();
    assert_eq!(landed.sum(|r| r.dport == 9).0, 20);
    manager.wait_for("STOPPING=1");
}

#[test]
fn a_main_loop_that_hangs_gives_no_sign_of_life() {
    let manager = Manager::new();
    let pair = Pair::new().unwrap();
    let mut variables = manager.variables().to_vec();
    // Whatever other threads do: the third time that the loop comes there.
    variables.push(("FLOWLOG_FAULT", "hang:3:5"));
    let mut agent = Agent::spawn_env(&pair.a, &["eth0"], &[], &variables).unwrap();
    manager.wait_for("WATCHDOG=1");
    agent.wait_for("the main loop hangs").unwrap();
    manager.socket.set_read_timeout(Some(HANGS_AFTER)).unwrap();
    let said: Vec<String> = std::iter::from_fn(|| manager.next()).collect();
    assert!(said.len() <= 3, "only what had been sent before: {said:?}");
    agent.kill().unwrap();
}

#[test]
fn a_hangup_has_files_read_again_and_says_when_they_have_been() {
    let manager = Manager::new();
    let node = Managed::new("").unwrap();
    // A link into a folder that nobody watches: what changes there is not noticed by itself.
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join("inventory.toml");
    fs::rename(node.path("inventory.toml"), &file).unwrap();
    std::os::unix::fs::symlink(&file, node.path("inventory.toml")).unwrap();
    let mut agent = node.spawn(&manager.variables()).unwrap();
    manager.wait_for("READY=1");
    let inventory = node.inventory();
    let another = "00000000-0000-4000-8000-000000000077";
    let nic = inventory.split("[[nic]]").nth(1).unwrap().replace(NIC, another).replace("tap0", "tap77");
    fs::write(&file, format!("{inventory}[[nic]]{nic}")).unwrap();
    let known = || node.ask("GET", "/flowlog/v1/inventory", None).body.to_string().contains(another);
    assert!(!known(), "it is noticed by itself, and this shows nothing");
    agent.signal(Signal::HUP);
    let since = manager.wait_for("RELOADING=1");
    let since = since.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).unwrap();
    assert!(since.parse::<u64>().unwrap() > 0);
    manager.wait_for("READY=1");
    assert!(known());
    agent.wait_for("SIGHUP: inventory and principals were read again").unwrap();
    agent.end().unwrap();
}

#[test]
fn a_reload_that_is_refused_is_in_the_status_until_one_succeeds() {
    let manager = Manager::new();
    let node = Managed::new("").unwrap();
    let mut agent = node.spawn(&manager.variables()).unwrap();
    manager.wait_for("READY=1");
    let good = fs::read_to_string(node.path("flowlog.toml")).unwrap();
    node.write("flowlog.toml", &format!("colour = 1\n{good}")).unwrap();
    agent.signal(Signal::HUP);
    manager.wait_for("RELOADING=1");
    assert!(manager.wait_for("READY=1").contains("STATUS=the reload was refused: "));
    assert!(manager.wait_for("STATUS=0 flow logs").contains("the last reload was refused: "));
    node.write("flowlog.toml", &format!("flows_max = 5000\n{good}")).unwrap();
    agent.signal(Signal::HUP);
    manager.wait_for("RELOADING=1");
    assert!(manager.wait_for("READY=1").contains("STATUS=reloaded: flows_max"));
    assert!(!manager.wait_for("STATUS=0 flow logs").contains("refused"));
    // What was refused is in the log as an error.
    agent.signal(Signal::TERM);
    assert_eq!(agent.wait().unwrap(), Some(0));
}
