//! One rule's trouble is its own, at the start as well: a store that is not there, names of any length, a full disk, the wrong
//! namespace. Whoever waits says for what, and obeys the first signal.

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt as _, path::Path, process::Command, time::Duration};

use integration::{
    agent::{Agent, binary, run_to_end},
    net::{Pair, sh},
    node::Node,
    oracle::{Difference, Oracle},
    rows::Objects,
    traffic,
};
use rustix::process::Signal;

/// `flowlog run` or `flowlog detach` with a configuration file, on the first host of a cable.
fn command(pair: &Pair, verb: &str, config: &Path) -> Agent {
    let mut command = pair.a.command(binary());
    command.arg(verb).arg("--config").arg(config);
    Agent::attend(command, tempfile::tempdir().unwrap()).unwrap()
}

/// What `flowlog status` says of a rule's delivery, as soon as it is so.
fn wait_for_delivery(state: &Path, rule: &str, is: impl Fn(&serde_json::Value) -> bool) {
    let mut seen = serde_json::Value::Null;
    for _ in 0..300 {
        if let Ok(text) = fs::read(state.join("status.json"))
            && let Ok(status) = serde_json::from_slice::<serde_json::Value>(&text)
        {
            let rules = status["rules"].as_array().unwrap();
            seen = rules.iter().find(|r| r["rule"] == rule).unwrap()["delivery"].clone();
            if is(&seen) {
                return;
            }
        }
        // The status is a file that is read: there is no event to wait for.
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("{rule}: {seen}");
}

/// A node with two rules on one interface each; the first one's store is a port that takes connections and says nothing.
struct BlackHole {
    pair: Pair,
    dir: tempfile::TempDir,
    /// Connections are never accepted, and never refused.
    _silent: TcpListener,
}

impl BlackHole {
    fn new() -> Self {
        let pair = Pair::new().unwrap();
        let dir = tempfile::tempdir().unwrap();
        pair.a.exec("ip link add dead0 type veth peer name dead1").unwrap();
        pair.a.exec("ip link set lo up").unwrap();
        let silent = pair.a.run(|| TcpListener::bind("127.0.0.1:0").unwrap());
        let path = |name: &str| dir.path().join(name).display().to_string();
        fs::create_dir(path("bpf")).unwrap();
        sh(&format!("mount -t bpf bpf {}", path("bpf"))).unwrap();
        fs::write(path("credentials"), "aws_access_key_id=K\naws_secret_access_key=S\n").unwrap();
        fs::set_permissions(path("credentials"), fs::Permissions::from_mode(0o600)).unwrap();
        let text = format!(
            "node_id = 'n'\nstate_dir = '{}'\npin_dir = '{}/flowlog'\n[s3]\nendpoint = 'http://{}'\nregion = 'r'\npath_style = true\n\
             allow_http = true\ncredentials_file = '{}'\n\
             [[flow_log]]\nname = 'dead'\ninterfaces = ['dead0']\ntarget = 's3://flows'\nwindow = 1\n\
             [[flow_log]]\nname = 'well'\ninterfaces = ['eth0']\ntarget = '{}'\nwindow = 1\nnodata = false\n",
            path("state"),
            path("bpf"),
            silent.local_addr().unwrap(),
            path("credentials"),
            path("objects"),
        );
        fs::write(path("flowlog.toml"), text).unwrap();
        Self { pair, dir, _silent: silent }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, verb: &str) -> Agent {
        command(&self.pair, verb, &self.path("flowlog.toml"))
    }

    fn landed(&self) -> u64 {
        Objects::below(&self.path("objects")).unwrap().sum(|r| r.dport == 7 && r.direction == "ingress").0
    }
}

impl Drop for BlackHole {
    fn drop(&mut self) {
        let _ = sh(&format!("umount -l {}", self.path("bpf").display()));
    }
}

#[test]
fn a_start_does_not_wait_for_a_store_and_the_other_rule_delivers() {
    let node = BlackHole::new();
    let mut sent = 0;
    let traffic = |n| node.pair.b.run(|| traffic::udp("10.1.0.1:7", n, 10)).unwrap();
    for last in [false, true] {
        let mut agent = node.command("run");
        agent.wait_for("capturing").unwrap();
        assert!(!agent.log().contains("no answer"), "it has waited for the store: {}", agent.log());
        traffic(40);
        sent += 40;
        agent.wait_for("delivered").unwrap();
        if last {
            wait_for_delivery(&node.path("state"), "dead", |d| {
                d["state"] == "retrying"
                    && d["error"].as_str().unwrap().contains("no answer")
                    && d["since_secs"].as_i64() > Some(0)
            });
        }
        agent.signal(Signal::TERM);
        assert_eq!(agent.wait().unwrap(), Some(0), "{}", agent.log());
        // The capture goes on in the kernel.
        traffic(10);
        sent += 10;
    }
    // A signal that comes before there is anything to wait for is obeyed as well.
    let mut hasty = node.command("detach");
    hasty.wait_for("attached").unwrap();
    hasty.signal(Signal::TERM);
    assert_eq!(hasty.wait().unwrap(), Some(75), "{}", hasty.log());
    // Detaching waits for the dead store, says so, and obeys the first signal.
    let mut detach = node.command("detach");
    detach.wait_for("no answer").unwrap();
    detach.wait_for("waiting for objects to be delivered").unwrap();
    let before = cpu_ticks(detach.pid());
    std::thread::sleep(Duration::from_secs(2));
    let busy = cpu_ticks(detach.pid()) - before;
    assert!(busy < 50, "{busy} of 200 ticks while nothing happens");
    detach.signal(Signal::TERM);
    assert_eq!(detach.wait().unwrap(), Some(75), "{}", detach.log());
    assert!(detach.log().contains("objects in the spool"), "{}", detach.log());
    assert_eq!(node.landed(), sent, "nothing of the other rule is lost");
    assert!(!node.path("bpf").join("flowlog").exists(), "the hooks are gone all the same");
}

/// Time that a process has computed, in hundredths of a second.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<u64> = stat.rsplit(' ').rev().skip(13).take(2).filter_map(|f| f.parse().ok()).collect();
    fields.iter().sum()
}

#[test]
fn a_target_that_is_not_there_yet_is_used_when_it_is() {
    let pair = Pair::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let objects = dir.path().join("mounted/later");
    let state = dir.path().join("state");
    let target = objects.to_str().unwrap();
    let state_dir = state.to_str().unwrap();
    let args = ["--target", target, "--state-dir", state_dir, "--window", "1"];
    let mut agent = Agent::start(&pair.a, &["eth0"], &args).unwrap();
    wait_for_delivery(&state, "flowlog", |d| d["state"] == "blocked" && d["error"].as_str().unwrap().contains("later"));
    fs::create_dir(objects.parent().unwrap()).unwrap();
    agent.wait_for("delivered").unwrap();
    wait_for_delivery(&state, "flowlog", |d| d["state"] == "delivering");
    agent.end().unwrap();
}

#[test]
fn the_longest_legal_names_are_delivered_and_so_is_everybody_else() {
    let pair = Pair::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    pair.a.exec("ip link add long0 type veth peer name long1").unwrap();
    let long = |c: char| c.to_string().repeat(63);
    let config = dir.path().join("flowlog.toml");
    let deep = dir.path().join(format!("{}/{}/{}/{}", long('d'), long('e'), long('f'), long('g')));
    fs::create_dir_all(&deep).unwrap();
    let text = format!(
        "node_id = '{}'\nno_pin = true\nstate_dir = '{}'\n\
         [[flow_log]]\nname = '{}'\nprefix = '{}'\ninterfaces = ['long0']\ntarget = '{}'\nwindow = 1\n\
         [[flow_log]]\nname = 'short'\ninterfaces = ['eth0']\ntarget = '{}'\nwindow = 1\n",
        long('n'),
        dir.path().join("state").display(),
        long('r'),
        long('p'),
        deep.display(),
        dir.path().join("objects").display(),
    );
    fs::write(&config, text).unwrap();
    for _ in 0..2 {
        let mut agent = command(&pair, "run", &config);
        agent.wait_for(&format!("delivered key=\"{}", long('p'))).or_else(|_| agent.wait_for("delivered")).unwrap();
        agent.wait_for("delivered").unwrap();
        agent.signal(Signal::TERM);
        assert_eq!(agent.wait().unwrap(), Some(0), "{}", agent.log());
        assert!(!agent.log().contains("ERROR"), "{}", agent.log());
    }
    for objects in [&deep, &dir.path().join("objects")] {
        assert!(Objects::below(objects).unwrap().keys.len() >= 2, "{}", objects.display());
    }
}

#[test]
fn a_start_and_a_detach_wait_for_a_full_disk_and_lose_nothing() {
    let node = Node::new(&["--window", "1"]).unwrap();
    fs::create_dir(node.state()).unwrap();
    sh(&format!("mount -t tmpfs -o size=24m tmpfs {}", node.state().display())).unwrap();
    let filler = node.state().join("filler");
    let fill = || {
        let out = Command::new("dd").args(["if=/dev/zero", "bs=4k"]).arg(format!("of={}", filler.display())).output();
        assert!(!out.unwrap().status.success(), "the disk is full");
    };
    node.start().unwrap().end().unwrap();
    let before = node.pair.a.statistic("eth0", "rx_packets").unwrap();
    let oracle = Oracle::watch(&node.pair, 300, Duration::from_millis(2), |_| {
        fill();
        let mut agent = node.spawn(&[])?;
        agent.wait_for("the state directory is full")?;
        // It obeys while it waits.
        agent.signal(Signal::TERM);
        anyhow::ensure!(agent.wait()? == Some(0), "{}", agent.log());
        let mut agent = node.spawn(&[])?;
        agent.wait_for("the state directory is full")?;
        fs::remove_file(&filler)?;
        agent.wait_for("capturing")?;
        agent.signal(Signal::TERM);
        anyhow::ensure!(agent.wait()? == Some(0), "{}", agent.log());
        Ok(())
    });
    let oracle = oracle.unwrap();
    fill();
    let pins = node.pins();
    let state = node.state();
    let mut detach = node.pair.a.command(binary());
    detach.args(["detach", "--pin-dir"]).arg(&pins).arg("--state-dir").arg(&state);
    let mut detach = Agent::attend(detach, tempfile::tempdir().unwrap()).unwrap();
    detach.wait_for("will try again").unwrap();
    fs::remove_file(&filler).unwrap();
    assert_eq!(detach.wait().unwrap(), Some(0), "{}", detach.log());
    let landed = Objects::below(&node.objects()).unwrap();
    let received = node.pair.a.statistic("eth0", "rx_packets").unwrap() - before;
    assert_eq!(oracle.compare(&landed), Difference::default());
    assert_eq!(landed.sum(|r| r.direction == "ingress").0, received);
    sh(&format!("umount -l {}", state.display())).unwrap();
}

#[test]
fn detach_from_another_namespace_ends_nothing_and_says_which_one_it_is() {
    let node = Node::new(&[]).unwrap();
    let agent = node.start().unwrap();
    let pins = node.pins();
    let pins = pins.to_str().unwrap();
    let state = node.state();
    let args = ["detach", "--pin-dir", pins, "--state-dir", state.to_str().unwrap()];
    let (status, _, stderr) = run_to_end(&node.pair.b, &args, node.dir.path()).unwrap();
    assert_eq!(status, Some(78), "{stderr}");
    assert!(stderr.contains("another network namespace") && stderr.contains("ip netns exec"), "{stderr}");
    let (_, out, _) = node.command(&["status"]).unwrap();
    assert!(out.contains(&format!("running (process {})", agent.pid())), "{out}");
    drop(agent);
    // Nor from there when no agent runs.
    let (status, ..) = run_to_end(&node.pair.b, &args, node.dir.path()).unwrap();
    assert_eq!(status, Some(78));
    node.detach().unwrap();
}

#[test]
fn each_interface_has_its_own_status_and_is_delivering_only_after_something_was_delivered() {
    let pair = Pair::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    pair.a.exec("ip link add quiet0 type veth peer name quiet1").unwrap();
    let config = dir.path().join("flowlog.toml");
    let text = format!(
        "node_id = 'n'\nno_pin = true\nstate_dir = '{0}/state'\n\
         [[flow_log]]\nname = 'web'\ninterfaces = ['eth0', 'quiet0']\ntarget = '{0}/objects'\nwindow = 1\nnodata = false\n",
        dir.path().display()
    );
    fs::write(&config, text).unwrap();
    let mut agent = command(&pair, "run", &config);
    agent.wait_for("the target takes objects").unwrap();
    pair.b.run(|| traffic::udp("10.1.0.1:7", 20, 10)).unwrap();
    agent.wait_for("delivered").unwrap();
    let of = |interface: &str| {
        let status = fs::read(dir.path().join("state/status.json")).unwrap_or_default();
        let status: serde_json::Value = serde_json::from_slice(&status).unwrap_or_default();
        let mut rules = status["rules"].as_array().cloned().unwrap_or_default().into_iter();
        rules.find(|r| r["interface"] == interface).unwrap_or_default()["delivery"].clone()
    };
    // The status is a file that is written every two seconds.
    while of("eth0")["delivered"].as_u64().unwrap_or_default() == 0 {
        std::thread::sleep(Duration::from_millis(100));
    }
    let busy = of("eth0");
    let quiet = of("quiet0");
    assert!(
        busy["state"] == "delivering" && busy["last_object"]["key"].as_str().unwrap().contains("n-eth0_"),
        "{busy}"
    );
    assert_eq!((&quiet["state"], &quiet["delivered"], &quiet["last_object"]), (&"idle".into(), &0.into(), &().into()));
    let state = dir.path().join("state").display().to_string();
    let (_, table, _) = run_to_end(&pair.a, &["status", "--state-dir", &state], dir.path()).unwrap();
    let line = |interface: &str| table.lines().find(|l| l.contains(interface)).unwrap_or_default().to_owned();
    assert!(line(" eth0 ").contains("delivering") && line(" quiet0 ").contains("capturing"), "{table}");
    agent.end().unwrap();
}
