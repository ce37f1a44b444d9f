//! P3, P8: a reload applies all of what the configuration says, or nothing with the reason; and no packet is missed or counted twice
//! meanwhile. Witnesses: what was sent, and the counters of the interface and the firewall.

use std::{fs, net::TcpStream, os::unix::net::UnixStream, path::PathBuf, time::Duration};

use integration::{
    agent::{Agent, binary},
    claims::until,
    managed::{LISTEN, Managed, NIC},
    net::{address, veth},
    node::Node,
    oracle::{Difference, Oracle},
    rows::Objects,
    traffic,
};
use rustix::process::Signal;

const PAUSE: Duration = Duration::from_millis(4);
const FLOWS: u32 = 2_000;
/// No window of this length ends in a test.
const LONG: &str = "window = '1d'";

/// A node whose agents are told by a file what to do.
struct Site {
    node: Node,
}

impl Site {
    fn new() -> Self {
        Self { node: Node::new(&[]).unwrap() }
    }

    fn file(&self) -> PathBuf {
        self.node.dir.path().join("flowlog.toml")
    }

    /// Writes the configuration: where things are, and this.
    fn write(&self, text: &str) {
        let (state, pins) = (self.node.state(), self.node.pins());
        let head = format!("node_id = 'node'\nstate_dir = '{}'\npin_dir = '{}'\n", state.display(), pins.display());
        fs::write(self.file(), head + text).unwrap();
    }

    /// A flow log of an interface, whose objects land in a folder of that name.
    fn flow_log(&self, interface: &str, name: &str, more: &str) -> String {
        let objects = self.node.objects();
        format!(
            "[[flow_log]]\ninterfaces = ['{interface}']\nname = '{name}'\ntarget = '{}'\n{more}\n",
            objects.display()
        )
    }

    fn spawn(&self, flags: &[&str], variables: &[(&str, &str)]) -> Agent {
        let mut command = self.node.pair.a.command(binary());
        command.args(["run", "--config"]).arg(self.file()).args(flags).envs(variables.iter().copied());
        Agent::attend(command, tempfile::tempdir().unwrap()).unwrap()
    }

    fn start(&self, flags: &[&str]) -> Agent {
        let mut agent = self.spawn(flags, &[]);
        agent.wait_for("capturing").unwrap();
        agent
    }

    /// Has the agent reload; what it says that has changed.
    fn reload(&self) -> String {
        let (status, out, error) = self.node.command(&["reload"]).unwrap();
        assert_eq!(status, Some(0), "{out}{error}");
        out
    }

    /// Has the agent reload, which it refuses; its reason.
    fn refused(&self) -> String {
        let (status, out, error) = self.node.command(&["reload"]).unwrap();
        assert_eq!(status, Some(65), "{out}{error}");
        assert!(error.contains("the agent goes on as before"), "{error}");
        error
    }

    /// Plugs a second cable in.
    fn second_cable(&self) {
        let pair = &self.node.pair;
        veth((&pair.a, "eth1"), (&pair.b, "eth1")).unwrap();
        for (ns, n) in [(&pair.a, 1), (&pair.b, 2)] {
            ns.sysctl("net.ipv6.conf.eth1.disable_ipv6", "1").unwrap();
            address(ns, "eth1", &format!("10.9.0.{n}/24")).unwrap();
        }
        let mac = pair.a.mac("eth1").unwrap().map(|b| format!("{b:02x}")).join(":");
        pair.b.exec(&format!("ip neigh replace 10.9.0.1 lladdr {mac} dev eth1 nud permanent")).unwrap();
    }

    /// Sends over it, and waits until all has come in.
    fn send_over_second(&self, packets: usize) {
        let received = || self.node.pair.a.statistic("eth1", "rx_packets").unwrap();
        let before = received();
        self.node.pair.b.run(|| traffic::udp("10.9.0.1:9", packets, 50)).unwrap();
        while received() < before + packets as u64 {
            std::thread::yield_now();
        }
    }

    /// Ends the capture, and compares what has landed with what was sent and with what the interface counted since `before`.
    fn judge(&self, oracle: &Oracle, before: u64) -> Objects {
        let landed = self.node.detach().unwrap();
        let received = self.node.pair.a.statistic("eth0", "rx_packets").unwrap() - before;
        assert_eq!(oracle.compare(&landed), Difference::default());
        assert_eq!(received, oracle.total, "what the interface counted");
        landed
    }
}

fn objects_of<'a>(landed: &'a Objects, name: &str) -> Vec<&'a String> {
    landed.keys.iter().filter(|key| key.starts_with(&format!("{name}/"))).collect()
}

#[test]
fn twenty_reloads_under_traffic_touch_nothing_of_a_capture_that_stays() {
    let site = Site::new();
    site.second_cable();
    let stays = site.flow_log("eth0", "web", LONG);
    site.write(&stays);
    let mut agent = site.start(&[]);
    let before = site.node.pair.a.statistic("eth0", "rx_packets").unwrap();
    let oracle = Oracle::watch(&site.node.pair, FLOWS, PAUSE, |_| {
        for round in 0..20 {
            // Another flow log comes and goes, limits change, and sometimes nothing does.
            let other = if round % 2 == 0 { site.flow_log("eth1", "other", LONG) } else { String::new() };
            site.write(&format!(
                "flows_max = {}\n{stays}{other}[spool]\nbytes_max = '{}MiB'\n",
                10_000 + round,
                100 + round / 2
            ));
            let said = site.reload();
            let words =
                if round % 2 == 0 { "flow log `other` on eth1: added" } else { "flow log `other` on eth1: removed" };
            assert!(said.contains(words) && said.contains("flows_max") && !said.contains("eth0"), "{said}");
        }
        assert_eq!(site.reload(), "reloaded; nothing has changed\n");
        Ok(())
    });
    let oracle = oracle.unwrap();
    let log = agent.log();
    assert_eq!(log.lines().filter(|l| l.contains("attached") && l.contains("eth0")).count(), 2, "{log}");
    let landed = site.judge(&oracle, before);
    assert_eq!(objects_of(&landed, "web").len(), 1, "one window from beginning to end: {:?}", landed.keys);
    drop(agent);
}

#[test]
fn a_flow_log_that_changes_goes_on_in_a_new_window_without_a_packet_between_the_two() {
    let site = Site::new();
    site.write(&site.flow_log("eth0", "first", LONG));
    let mut agent = site.start(&[]);
    let before = site.node.pair.a.statistic("eth0", "rx_packets").unwrap();
    // Name, length, and target change; each has the same hooks.
    let changes = [
        site.flow_log("eth0", "second", LONG),
        site.flow_log("eth0", "second", "window = '12h'"),
        site.flow_log("eth0", "third", "window = '12h'\nprefix = 'team'"),
        site.flow_log("eth0", "third", "window = '12h'\naccount_id = '7'\nprefix = 'team'"),
        site.flow_log("eth0", "first", LONG),
    ];
    let oracle = Oracle::watch(&site.node.pair, FLOWS, PAUSE, |_| {
        for log in &changes {
            site.write(log);
            let said = site.reload();
            assert!(said.contains("on eth0: changed"), "{said}");
        }
        Ok(())
    });
    let oracle = oracle.unwrap();
    let log = agent.log();
    assert_eq!(log.lines().filter(|l| l.contains(" INFO attached ")).count(), 2, "no hook is touched: {log}");
    let landed = site.judge(&oracle, before);
    for (name, windows) in [("first", 2), ("second", 2), ("team/third", 2)] {
        assert_eq!(objects_of(&landed, name).len(), windows, "{name}: {:?}", landed.keys);
    }
    assert_eq!(landed.keys.len(), changes.len() + 1);
    drop(agent);
}

#[test]
fn what_counts_less_or_by_other_hooks_is_in_no_row_meanwhile_and_the_books_balance() {
    let site = Site::new();
    site.second_cable();
    site.write(&site.flow_log("eth1", "web", LONG));
    let mut agent = site.start(&[]);
    site.send_over_second(10);
    for (more, packets) in [
        ("action = 'rejected'", 0),
        ("action = 'any'", 20),
        ("direction = 'egress'", 0),
        ("hook = 'clsact'", 30),
        ("translations = true\nhook = 'clsact'", 40),
        ("hook = 'clsact'", 50),
    ] {
        site.write(&site.flow_log("eth1", "web", &format!("{LONG}\n{more}")));
        assert!(site.reload().contains("flow log `web` on eth1: changed"));
        site.send_over_second(if packets == 0 { 5 } else { packets });
    }
    agent.end().unwrap();
    let landed = site.node.detach().unwrap();
    // What was accepted while only refused packets, or only the other direction, was wanted is in no row.
    assert_eq!(landed.sum(|r| r.dport == 9).0, 10 + 20 + 30 + 40 + 50);
    let gaps: Vec<_> = landed.rows.iter().filter(|r| r.skip == "gap").collect();
    assert!(gaps.is_empty(), "{gaps:#?}");
    for balance in integration::rows::metadata(&site.node.objects(), "flowlog.balance").unwrap() {
        assert!(balance.ends_with("difference=0/0"), "{balance}");
    }
}

#[test]
fn flow_logs_are_added_and_removed_while_others_capture() {
    let site = Site::new();
    site.second_cable();
    let stays = site.flow_log("eth0", "web", LONG);
    site.write(&stays);
    let mut agent = site.start(&[]);
    site.send_over_second(7);
    site.write(&(stays.clone() + &site.flow_log("eth1", "more", LONG)));
    assert!(site.reload().contains("flow log `more` on eth1: added"));
    site.send_over_second(100);
    let (_, status, _) = site.node.command(&["status"]).unwrap();
    assert!(status.contains("more") && status.contains("web"), "{status}");
    site.write(&stays);
    assert!(site.reload().contains("flow log `more` on eth1: removed"));
    site.send_over_second(9);
    agent.end().unwrap();
    let landed = site.node.detach().unwrap();
    assert_eq!(landed.sum(|r| r.dport == 9).0, 100, "from the one answer to the other, and no packet more");
    assert_eq!(objects_of(&landed, "more").len(), 1);
}

#[test]
fn what_cannot_be_is_refused_with_the_reason_and_all_goes_on_as_before() {
    let site = Site::new();
    let web = site.flow_log("eth0", "web", LONG);
    site.write(&web);
    let mut agent = site.start(&["--socket", site.node.dir.path().join("agent.sock").to_str().unwrap()]);
    let _taken = site.node.pair.a.run(|| std::net::TcpListener::bind("127.0.0.1:9469")).unwrap();
    let changed = site.flow_log("eth0", "changed", LONG);
    for (text, reason) in [
        ("colour = 'red'\n".to_owned(), "unknown field `colour`"),
        ("[[flow_log".to_owned(), "flowlog.toml"),
        (String::new(), "name at least one interface"),
        (format!("{changed}[kernel]\nring_bytes = '1MiB'\n"), "kernel.ring_bytes: `flowlog detach` ends the capture"),
        (format!("{changed}[reasons]\nlost = ['NO_SOKET']\n"), "reasons `NO_SOKET`"),
        (format!("{changed}[rule_mark]\nmask = 255\n"), "rule_mark.mask: restart to change it"),
        (format!("{changed}[api]\nprincipals = '/no/such'\n"), "`/no/such`: No such file"),
        (format!("{changed}[[inventory.source]]\nkind = 'libvirt'\ncontract = '1'\n"), "inventory.source: restart"),
        (format!("xdp = 'trace'\n{changed}"), "xdp: restart to change it"),
        (changed.clone() + &site.flow_log("eth9", "none", ""), "eth9"),
        (
            changed.clone() + &site.flow_log("tap", "far", "netns = 'elsewhere'"),
            "has given up what entering other namespaces takes",
        ),
        (format!("{changed}[metrics]\nlisten = '127.0.0.1:9469'\n"), "metrics.listen `127.0.0.1:9469`"),
        (format!("{changed}[api]\nlisten = '127.0.0.1:9469'\n"), "api.listen `127.0.0.1:9469`"),
        (format!("flows_max = 1\n{changed}"), "flows_max `1`: must be at least"),
    ] {
        site.write(&text);
        let said = site.refused();
        assert!(said.contains(reason), "{reason}: {said}");
    }
    // Another state directory is one that the command would look for in vain.
    let text = fs::read_to_string(site.file()).unwrap().replace("/state'", "/other'");
    fs::write(site.file(), text.replace("flows_max = 1\n", "")).unwrap();
    assert!(site.refused().contains("state_dir: restart to change it"));
    site.node.pair.b.run(|| traffic::udp("10.1.0.1:9", 20, 50)).unwrap();
    site.node.pair.wait_until_quiet();
    // What is in force may be written down, and taken out again.
    for text in [&format!("{web}[kernel]\ninterfaces_max = 512\n"), &web] {
        site.write(text);
        assert_eq!(site.reload(), "reloaded\n  kernel.interfaces_max\n");
    }
    assert_eq!(site.reload(), "reloaded; nothing has changed\n");
    agent.signal(Signal::TERM);
    assert_eq!(agent.wait().unwrap(), Some(0));
    let landed = site.node.detach().unwrap();
    assert_eq!(landed.sum(|r| r.dport == 9).0, 20);
    assert_eq!((landed.keys.len(), objects_of(&landed, "web").len()), (1, 1), "{:?}", landed.keys);
}

#[test]
fn drop_reasons_and_names_of_marks_hold_from_a_reload_on_and_until_it_as_before() {
    let site = Site::new();
    let firewall =
        "table ip t {\n chain c { type filter hook input priority 0; udp dport 7 meta mark set 0x12 drop; }\n}";
    site.node.pair.a.nft(firewall).unwrap();
    let of = |name: &str| format!("{}[rule_mark]\nmask = 0xff\n", site.flow_log("eth0", name, LONG));
    let web = of("web");
    site.write(&web);
    let mut agent = site.start(&[]);
    // To port 9 nobody listens.
    let send = || {
        site.node.pair.b.run(|| {
            traffic::udp("10.1.0.1:9", 20, 50).unwrap();
            traffic::udp("10.1.0.1:7", 20, 50).unwrap();
        });
        site.node.pair.wait_until_quiet();
    };
    send();
    let moved = format!("{web}[reasons]\nrejected = ['NO_SOCKET']\n[verdict_marks]\n0x12 = 'sg-echo'\n");
    site.write(&moved);
    let said = site.reload();
    assert!(said.contains("reasons.rejected") && said.contains("verdict_marks"), "{said}");
    send();
    // One that is refused changes neither.
    site.write(&format!("{web}[reasons]\nlost = ['NO_SOKET']\n"));
    assert!(site.refused().contains("NO_SOKET"));
    send();
    site.write(&moved.replace("rejected", "ignored"));
    assert!(site.reload().contains("reasons.ignored"));
    send();
    // Another name is another window: the agent writes the first one, with the names that hold now.
    site.write(&moved.replace("rejected", "ignored").replace(&web, &of("second")));
    assert!(site.reload().contains("changed"));
    until("the first window's object", || site.node.objects().join("web").exists());
    agent.signal(Signal::TERM);
    assert_eq!(agent.wait().unwrap(), Some(0));
    let landed = site.node.detach().unwrap();
    let of = |port: i64, action: &str| landed.sum(|r| r.dport == port && r.action == action).0;
    assert_eq!((of(9, "ACCEPT"), of(9, "REJECT"), of(7, "REJECT")), (40, 40, 80), "{:#?}", landed.rows);
    let named = landed.rows.iter().filter(|r| r.dport == 7 && r.rule == "sg-echo").count();
    assert!(named > 0, "names are those of when the window is written: {:#?}", landed.rows);
}

#[test]
fn a_refused_reload_of_an_agent_without_pins_does_not_promise_that_the_capture_goes_on() {
    let site = Site::new();
    let web = format!("no_pin = true\n{}", site.flow_log("eth0", "web", LONG));
    site.write(&web);
    let mut agent = site.start(&[]);
    for text in [format!("xdp = 'trace'\n{web}"), format!("{web}[kernel]\nring_bytes = '1MiB'\n")] {
        site.write(&text);
        let said = site.refused();
        assert!(said.contains("the capture ends with this agent") && !said.contains("detach"), "{said}");
    }
    agent.signal(Signal::TERM);
    assert_eq!(agent.wait().unwrap(), Some(0));
}

#[test]
fn nobody_reloads_an_agent_that_does_not_run() {
    let site = Site::new();
    fs::create_dir(site.node.state()).unwrap();
    let (status, _, error) = site.node.command(&["reload"]).unwrap();
    assert!(status == Some(69) && error.contains("no agent is running"), "{status:?} {error}");
}

#[test]
fn a_flag_goes_on_winning_over_the_file_after_a_reload() {
    let site = Site::new();
    site.write(&site.flow_log("eth0", "file", LONG));
    let mut agent = site.start(&["--name", "flag"]);
    site.write(&site.flow_log("eth0", "other", LONG));
    assert_eq!(site.reload(), "reloaded; nothing has changed\n");
    site.write(&site.flow_log("eth0", "other", "window = '6h'"));
    assert!(site.reload().contains("flow log `flag` on eth0: changed"));
    agent.end().unwrap();
    let landed = site.node.detach().unwrap();
    assert_eq!(objects_of(&landed, "flag").len(), landed.keys.len(), "{:?}", landed.keys);
}

#[test]
fn a_limit_that_is_lowered_holds_at_once() {
    let site = Site::new();
    // Nobody answers there, so objects wait.
    let log = "[[flow_log]]\ninterfaces = ['eth0']\ntarget = 's3://flows'\nwindow = 1\n[s3]\nendpoint = 'http://127.0.0.1:1'\nallow_http = true\n";
    site.write(log);
    let agent = site.start(&[]);
    let status = || -> serde_json::Value {
        let (_, out, _) = site.node.command(&["status", "--output", "json"]).unwrap();
        serde_json::from_str(&out).unwrap_or_default()
    };
    while status()["spool_bytes"].as_u64().unwrap_or(0) < 20_000 {
        std::thread::yield_now();
    }
    assert!(status()["spool_full"].is_null());
    site.write(&format!("{log}[spool]\nbytes_max = '16kB'\n"));
    assert!(site.reload().contains("spool.bytes_max"));
    while status()["spool_full"].is_null() {
        std::thread::yield_now();
    }
    drop(agent);
}

#[test]
fn listeners_move_and_connections_that_there_are_stay() {
    let node = Managed::new("").unwrap();
    let mut agent = node.start().unwrap();
    let reload =
        || node.node.command(binary()).args(["reload", "--state-dir"]).arg(node.path("state")).output().unwrap();
    let config = fs::read_to_string(node.path("flowlog.toml")).unwrap();
    let listening = |address: &str| node.node.run(|| TcpStream::connect(address).is_ok());
    let mut open = UnixStream::connect(node.path("agent.sock")).unwrap();
    let moved = config.replace("agent.sock", "moved.sock").replace(LISTEN, "127.0.0.1:8444");
    let metrics = node.path("metrics.sock");
    node.write("flowlog.toml", &format!("{moved}[metrics]\nlisten = '{}'\n", metrics.display())).unwrap();
    let out = reload();
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{out:?}");
    for key in ["api.socket", "api.listen", "metrics.listen"] {
        assert!(said.contains(key), "{said}");
    }
    assert!(metrics.exists());
    while listening(LISTEN) || !listening("127.0.0.1:8444") || node.path("agent.sock").exists() {
        std::thread::yield_now();
    }
    assert!(UnixStream::connect(node.path("moved.sock")).is_ok());
    let request = integration::http::request("GET", "/flowlog/v1/inventory", "", None);
    let (status, _, body) = integration::http::exchange_text(&mut open, &request).unwrap();
    assert!(status == 200 && body.contains(NIC), "{status} {body}");
    // With TLS from now on, and without figures.
    node.write("flowlog.toml", &moved).unwrap();
    let trusted = node.with_tls().unwrap();
    assert!(reload().status.success() && !metrics.exists());
    let greeted = |node: &Managed| {
        let out = node
            .node
            .command("curl")
            .args(["-s", "--cacert"])
            .arg(&trusted)
            .arg("https://127.0.0.1:8444/cloudapi/v6/")
            .output();
        out.unwrap().status.success()
    };
    while !greeted(&node) {
        std::thread::yield_now();
    }
    agent.end().unwrap();
}

#[test]
fn a_flow_log_of_the_file_takes_nothing_from_one_of_the_api() {
    let node = Managed::new("no_pin = true").unwrap();
    let mut agent = node.start().unwrap();
    let id = node.draft(NIC, "theirs", "flows");
    let done = node.finish(&node.ask("POST", "/flowlog/v1/provision", Some(&serde_json::json!({"flow_logs": [id]}))));
    assert_eq!(done.0, "DONE", "{done:?}");
    let config = fs::read_to_string(node.path("flowlog.toml")).unwrap();
    let log = |interface: &str| {
        format!("[[flow_log]]\ninterfaces = ['{interface}']\ntarget = '{}'\n{LONG}\n", node.path("own").display())
    };
    let reload = |text: &str| {
        node.write("flowlog.toml", text).unwrap();
        node.node.command(binary()).args(["reload", "--state-dir"]).arg(node.path("state")).output().unwrap()
    };
    let out = reload(&format!("{config}{}", log("tap0")));
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(65) && error.contains("flow log `theirs` of the API would end"), "{error}");
    let out = reload(&format!("{config}{}interface_id = '{NIC}'\n", log("natgw0")));
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(65) && error.contains("is that of flow log `theirs` of the API"), "{error}");
    assert!(reload(&format!("{config}{}", log("natgw0"))).status.success());
    node.send(1, "tap0", 10).unwrap();
    node.send(2, "natgw0", 20).unwrap();
    assert!(reload(&config).status.success());
    // What was refused is in the log as an error.
    agent.signal(Signal::TERM);
    assert_eq!(agent.wait().unwrap(), Some(0));
    assert_eq!(node.landed("flows").unwrap().sum(|r| r.dport == 9).0, 10);
    assert_eq!(Objects::below(&node.path("own")).unwrap().sum(|r| r.dport == 9).0, 20);
}

/// Where a reload is killed, in the order in which it comes there.
const POINTS: [&str; 9] = [
    "reload_prepared",
    "turn_recorded",
    "epoch_switch",
    "sweep",
    "window_close",
    "change_turned",
    "change_recorded",
    "reload_wanted",
    "reload_applied",
];

#[test]
fn nothing_is_lost_or_doubled_when_the_agent_is_killed_anywhere_in_a_reload() {
    let site = Site::new();
    let log = |n: usize| site.flow_log("eth0", ["web", "db"][n % 2], ["window = '12h'", LONG][n / 2 % 2]);
    site.write(&log(0));
    site.start(&[]).kill().unwrap();
    let before = site.node.pair.a.statistic("eth0", "rx_packets").unwrap();
    let oracle = Oracle::watch(&site.node.pair, FLOWS, PAUSE, |_| {
        for (n, point) in POINTS.into_iter().enumerate() {
            // The start finds what the last one was killed over, and does it first: the same file, so nothing of this comes twice.
            site.start(&[]).kill()?;
            let mut agent = site.spawn(&[], &[("FLOWLOG_FAULT", &format!("{point}:1"))]);
            agent.wait_for("capturing")?;
            site.write(&log(n + 1));
            agent.signal(Signal::HUP);
            agent.wait_for(&format!("killed at {point}"))?;
            agent.wait()?;
        }
        site.start(&[]).kill()
    });
    site.judge(&oracle.unwrap(), before);
}
