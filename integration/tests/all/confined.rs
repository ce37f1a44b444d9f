//! What an agent gives up once its capture has begun, and that it works all the same.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{Child, Command},
};

use integration::{
    agent::{Agent, binary},
    features,
    managed::{Managed, NIC, plug_in},
    net::{Netns, Pair, sh},
};
use rustix::process::{Resource, Rlimit, Signal, setrlimit};
use serde_json::json;

const PACKETS: usize = 20;
/// `CAP_NET_ADMIN`, `CAP_PERFMON`, `CAP_BPF` (`include/uapi/linux/capability.h`).
const KEPT: u64 = 1 << 12 | 1 << 38 | 1 << 39;
/// `CAP_SYS_PTRACE` and `CAP_SYS_ADMIN`, of the same header.
const TO_FOLLOW: u64 = 1 << 11 | 1 << 19 | 1 << 21;
/// `SECCOMP_MODE_FILTER`, as `/proc/PID/status` has it.
const FILTERED: &str = "2";

/// What the kernel says of each thread of a process, by the thread's number and name.
fn threads(pid: u32) -> BTreeMap<String, BTreeMap<String, String>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|entry| entry.unwrap().path());
    let status = |path: &std::path::Path| -> BTreeMap<String, String> {
        let text = fs::read_to_string(path.join("status")).unwrap();
        let pairs = text.lines().filter_map(|line| line.split_once(":\t"));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    tasks.map(|path| status(&path)).map(|s| (format!("{} {}", s["Pid"], s["Name"]), s)).collect()
}

/// Every thread has exactly these capabilities, can get no others, and is filtered.
fn assert_confined(agent: &Agent, kept: u64) {
    let threads = threads(agent.pid());
    let kept = format!("{kept:016x}");
    let none = format!("{:016x}", 0);
    for (thread, status) in &threads {
        for (field, expected) in [
            ("CapEff", kept.as_str()),
            ("CapPrm", &kept),
            ("CapBnd", &kept),
            ("CapInh", &none),
            ("CapAmb", &none),
            ("NoNewPrivs", "1"),
            ("Seccomp", FILTERED),
        ] {
            assert_eq!(status[field], expected, "{field} of thread {thread}");
        }
    }
    assert!(threads.len() > 2, "the first thread and those for encoding and delivery: {:?}", threads.keys());
}

#[test]
fn every_thread_keeps_three_capabilities_and_captures_an_interface_that_comes_later() {
    let node = Managed::new("").unwrap();
    let ca = node.with_tls().unwrap();
    let mut agent = node.start().unwrap();
    assert_confined(&agent, KEPT);
    // A certificate is served, a draft provisioned, and a password hashed: on threads that are made now.
    let url = format!("https://{}/flowlog/v1/flowlogs", integration::managed::LISTEN);
    let line = format!("curl -sS --cacert {} -u ann:{} {url}", ca.display(), "wrong-but-hashed");
    let answer = node.node.exec(&line).unwrap();
    assert!(answer.contains("401"), "{answer}");
    node.write("inventory.toml", &node.inventory().replace("name = 'tap0'", "name = 'tap20'")).unwrap();
    plug_in(&node.node, &node.far, "tap20", 20).unwrap();
    let id = node.draft(NIC, "late", "flows");
    let provisioned = node.ask("POST", "/flowlog/v1/provision", Some(&json!({"flow_logs": [id]})));
    assert_eq!(node.finish(&provisioned).0, "DONE");
    agent.wait_for("watching interface=\"tap20\"").unwrap();
    node.send(20, "tap20", PACKETS).unwrap();
    assert_confined(&agent, KEPT);
    agent.end().unwrap();
    // What is pinned is another agent's, and then nobody's.
    let mut agent = node.start().unwrap();
    assert_confined(&agent, KEPT);
    agent.end().unwrap();
    let config = node.path("flowlog.toml");
    let detached = node.node.command(binary()).args(["detach", "--config"]).arg(config).output().unwrap();
    assert!(detached.status.success(), "{}", String::from_utf8_lossy(&detached.stderr));
    let landed = node.landed("flows").unwrap();
    assert_eq!(landed.sum(|r| r.dport == 9).0, PACKETS as u64);
}

#[test]
fn every_hook_is_attached_and_taken_away_with_three_capabilities() {
    for hook in ["tc", "clsact", "xdp"] {
        let pair = Pair::new().unwrap();
        let mut agent = Agent::start(&pair.a, &["eth0", "eth1"], &["--hook", hook, "--wait"]).unwrap();
        pair.a.exec("ip link add eth1 type veth peer name eth2").unwrap();
        agent.wait_for("watching interface=\"eth1\"").unwrap();
        assert_confined(&agent, KEPT);
        agent.stop().unwrap();
        assert_eq!(pair.a.exec("tc filter show dev eth1 ingress").unwrap().trim(), "", "{hook}");
    }
}

/// A process that is all that holds a network namespace: nothing has given that a name.
struct Nameless(Child);

impl Nameless {
    fn new() -> Self {
        Self(Command::new("unshare").args(["--net", "sleep", "600"]).spawn().unwrap())
    }

    /// Moves an interface of `from` there; again until `unshare` has made the namespace.
    fn take(&self, from: &Netns, interface: &str) {
        let own = fs::read_link("/proc/self/ns/net").unwrap();
        let there = format!("/proc/{}/ns/net", self.0.id());
        while fs::read_link(&there).unwrap() == own {
            std::thread::yield_now();
        }
        from.exec(&format!("ip link set {interface} netns {}", self.0.id())).unwrap();
    }

    fn give_back(&self, to: &Netns, interface: &str) {
        let pid = self.0.id();
        sh(&format!("nsenter --net=/proc/{pid}/ns/net ip link set {interface} netns {}", to.name())).unwrap();
    }
}

impl Drop for Nameless {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn only_an_agent_that_is_told_to_follow_interfaces_keeps_what_that_takes_and_does() {
    for (more, kept) in [(&["--follow-namespaces"][..], KEPT | TO_FOLLOW), (&[], KEPT)] {
        let pair = Pair::new().unwrap();
        let nameless = Nameless::new();
        let mut agent = Agent::start(&pair.a, &["eth0"], more).unwrap();
        nameless.take(&pair.a, "eth0");
        if kept == KEPT {
            agent.wait_for("the interface is gone").unwrap();
            nameless.give_back(&pair.a, "eth0");
        }
        agent.wait_for("the interface is back").unwrap();
        assert_confined(&agent, kept);
        let log = agent.log();
        assert_eq!(log.contains("is in another namespace"), kept != KEPT, "{log}");
        drop(agent);
    }
}

#[test]
fn following_without_what_it_takes_is_refused_with_the_remedy() {
    let pair = Pair::new().unwrap();
    let mut command = pair.a.command("capsh");
    command.args(["--drop=cap_sys_admin", "--shell=/bin/sh", "--", "-c"]).arg(format!(
        "exec {} run -i eth0 --no-pin --follow-namespaces --state-dir /nonexistent --target /nonexistent",
        binary().display()
    ));
    let out = command.output().unwrap();
    let words = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(77), "{words}");
    assert!(words.contains("`follow_namespaces` and `netns` need CAP_SYS_ADMIN"), "{words}");
}

#[test]
fn a_running_agent_cannot_run_another_program() {
    let pair = Pair::new().unwrap();
    // The fault point `execute` has it try.
    let mut agent = Agent::spawn_env(&pair.a, &["eth0"], &[], &[("FLOWLOG_FAULT", "execute:1:1")]).unwrap();
    let tried = agent.wait_for("tried to run another program").unwrap();
    assert!(tried.contains("Err(Os { code: 1, kind: PermissionDenied"), "{tried}");
    agent.wait_for("capturing").unwrap();
    agent.stop().unwrap();
}

/// Lets a command leave a core file, whatever the limit of the tests is.
fn may_dump(command: &mut Command, dir: &std::path::Path) {
    let unlimited = Rlimit { current: None, maximum: None };
    // SAFETY: one system call between fork and exec.
    #[allow(unsafe_code, reason = "`pre_exec`")]
    unsafe {
        command.pre_exec(move || Ok(setrlimit(Resource::Core, unlimited)?));
    }
    command.current_dir(dir);
}

#[test]
fn an_agent_that_is_aborted_leaves_no_core_file() {
    let pair = Pair::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    // The witness: somebody else leaves one here. (Not SIGQUIT, which whatever a shell starts in the background ignores.)
    let mut other = Command::new("sleep");
    may_dump(other.arg("600"), dir.path());
    let mut other = other.spawn().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_child(&other), Signal::ABORT).unwrap();
    if !other.wait().unwrap().core_dumped() {
        return features::skipped("core files are not written here");
    }
    let mut command = pair.a.command(binary());
    let [state, target] = ["state", "objects"].map(|name| dir.path().join(name));
    command.args(["run", "--no-pin", "--interface", "eth0", "--state-dir"]).arg(state).arg("--target").arg(target);
    may_dump(&mut command, dir.path());
    let mut agent = Agent::attend(command, tempfile::tempdir().unwrap()).unwrap();
    agent.wait_for("capturing").unwrap();
    agent.signal(Signal::ABORT);
    let ended = agent.ended().unwrap();
    assert_eq!((ended.signal(), ended.core_dumped()), (Some(Signal::ABORT.as_raw()), false));
}
