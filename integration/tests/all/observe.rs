//! Live flows: `flowlog observe`, `flowlog top`, and what the API streams. Looking changes nothing for what lands.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, UdpSocket},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::channel,
    },
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use integration::{
    agent::{Agent, binary},
    http::{self, Lines},
    managed::{self, Managed, NIC},
    net::Pair,
    terminal::Terminal,
    traffic,
};
use serde_json::{Value, json};

/// Drops UDP to port 7 of any host, and counts it.
const REFUSING: &str = "table inet t {\n counter refused { }\n chain c { type filter hook input priority 0; \
                        udp dport 7 counter name refused drop; }\n}\n";

/// Two hosts on a cable, and an agent on one of them that shows what it sees.
struct Shown {
    pair: Pair,
    dir: tempfile::TempDir,
    agent: Agent,
}

impl Shown {
    fn new(args: &[&str]) -> Self {
        let pair = Pair::new().unwrap();
        for ns in [&pair.a, &pair.b] {
            ns.sysctl("net.ipv6.conf.eth0.disable_ipv6", "1").unwrap();
        }
        pair.a.nft(REFUSING).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent.sock");
        let args = [&["--socket", socket.to_str().unwrap()], args].concat();
        let agent = Agent::start(&pair.a, &["eth0"], &args).unwrap();
        Self { pair, dir, agent }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    fn stream(&self, query: &str) -> Lines {
        let lines = Lines::unix(&self.socket(), &format!("/flowlog/v1/{query}")).unwrap();
        assert_eq!(lines.status, 200, "{query}");
        lines
    }

    /// Sends UDP from the other host to a port of this one; returns the source port.
    fn send(&self, port: u16, packets: usize) -> u16 {
        self.pair.b.run(|| traffic::udp(&format!("10.1.0.1:{port}"), packets, 50)).unwrap()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(args).env("FLOWLOG_SOCKET", self.socket());
        command
    }

    /// Runs a command to its end; returns exit code, standard output and standard error.
    fn run(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let out = self.command(args).output().unwrap();
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        (out.status.code(), text(&out.stdout), text(&out.stderr))
    }
}

/// A flow of this action to this port, and packets in it.
fn packets(line: &Value, action: &str, port: u16) -> u64 {
    let is = line["action"] == action && line["dstport"] == port;
    if is { line["packets"].as_u64().unwrap() } else { 0 }
}

#[test]
fn a_reject_is_on_the_screen_within_a_second_of_the_packet() {
    let shown = Shown::new(&[]);
    let mut child = ChildGuard(
        shown.command(&["observe", "-f", "--last", "1", "-o", "json"]).stdout(Stdio::piped()).spawn().unwrap(),
    );
    let mut lines = BufReader::new(child.0.stdout.take().unwrap())
        .lines()
        .map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    assert!(lines.next().unwrap().get("windows_since").is_some(), "the stream has begun");
    let mut took = Vec::new();
    for n in 0..3 {
        let since = Instant::now();
        let sport = shown.send(7, 1);
        let line = lines.find(|line| line["srcport"] == sport).unwrap();
        took.push(since.elapsed());
        assert_eq!(packets(&line, "REJECT", 7), 1, "{n}: {line}");
        assert_eq!(line["reject_reason"], "NETFILTER_DROP");
        assert_eq!(
            (&line["verdict_rule"], &line["interface"], &line["flow_log"]),
            (&json!("netfilter"), &json!("eth0"), &json!("flowlog"))
        );
    }
    eprintln!("on the screen after {took:?}");
    // One that a busy machine has held up proves nothing, nor does it disprove.
    assert!(took.iter().min().unwrap() < &Duration::from_secs(1), "{took:?}");
}

/// A process that ends with the test.
struct ChildGuard(Child);

impl Drop for ChildGuard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_lands_is_the_same_whoever_looks_and_what_is_shown_adds_up_to_it() {
    let shown = Shown::new(&[]);
    let mut lines = shown.stream("flows?follow=true&proto=udp");
    let _sums = shown.stream("top?every=500ms");
    let (swept, is_swept) = channel();
    let reading = std::thread::spawn(move || {
        let (mut accepted, mut rejected) = (0, 0);
        for line in &mut lines {
            assert!(line.get("lost_lines").is_none(), "{line}");
            accepted += packets(&line, "ACCEPT", 9);
            // Records that held packets which were refused later show them as accepted before.
            rejected += packets(&line, "REJECT", 7);
            if line["dstport"] == 8 {
                swept.send(()).unwrap();
            }
            if line["dstport"] == 6 {
                break;
            }
        }
        (accepted, rejected)
    });
    // Longer than several sweeps: flows are on their way in pieces.
    let since = Instant::now();
    let mut sent = 0;
    while since.elapsed() < Duration::from_secs(3) {
        shown.send(9, 100);
        shown.send(7, 100);
        sent += 100;
    }
    shown.pair.wait_until_quiet();
    // A sweep that has this one takes the others on its way, on other CPUs perhaps after it; the next one has the last line.
    shown.send(8, 1);
    is_swept.recv().unwrap();
    shown.send(6, 1);
    let (accepted, rejected) = reading.join().unwrap();
    let (refused, bytes) = shown.pair.a.nft_counter("inet t", "refused").unwrap();
    let Shown { agent, .. } = shown;
    let landed = agent.stop().unwrap();
    assert_eq!(landed.sum(|r| r.action == "REJECT" && r.dport == 7), (refused, bytes));
    assert_eq!(landed.sum(|r| r.action == "ACCEPT" && r.dport == 9).0, sent);
    assert_eq!(landed.sum(|r| r.action == "ACCEPT" && r.dport == 7).0, 0);
    assert_eq!((accepted, rejected), (sent, refused));
}

#[test]
fn conditions_choose_flows_and_not_turns_the_next_one_round() {
    let shown = Shown::new(&[]);
    let ports = [(9, "ACCEPT"), (7, "REJECT"), (8, "ACCEPT")];
    for (port, _) in ports {
        shown.send(port, 2);
    }
    shown.pair.wait_until_quiet();
    let ports_of = |args: &[&str]| -> Vec<u64> {
        let (code, out, err) = shown.run(&[&["observe", "-o", "json"], args].concat());
        assert_eq!(code, Some(0), "{err}");
        let lines = out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let mut ports: Vec<u64> =
            lines.filter(|l| l["protocol"] == 17).map(|l| l["dstport"].as_u64().unwrap()).collect();
        ports.sort_unstable();
        ports
    };
    for (args, expected) in [
        (&[][..], &[7, 8, 9][..]),
        (&["--verdict", "rejected"], &[7]),
        (&["--not", "--verdict", "rejected"], &[8, 9]),
        (&["--port", "7", "--port", "9"], &[7, 9]),
        (&["--port", "7", "--port", "9", "--not", "--reason", "netfilter_drop"], &[9]),
        (&["--src", "10.1.0.2", "--dst", "10.1.0.0/24", "--direction", "ingress"], &[7, 8, 9]),
        (&["--ip", "10.2.0.0/16"], &[]),
        (&["-i", "eth0", "--flow-log", "flowlog", "--proto", "17"], &[7, 8, 9]),
        (&["-i", "eth1"], &[]),
        (&["--since", "1h", "--port", "8"], &[8]),
        (&["--since", "3600", "--port", "8"], &[8]),
    ] {
        assert_eq!(ports_of(args), expected, "{args:?}");
    }
    // Packets of one tick of the kernel's clock have no order.
    assert_eq!(ports_of(&["--last", "1", "--proto", "udp"]).len(), 1);
    // People see the same.
    let (_, out, _) = shown.run(&["observe", "--port", "7"]);
    assert!(
        out.contains("REJECT udp 10.1.0.2:") && out.contains("> 10.1.0.1:7 2 packets 156 B NETFILTER_DROP (netfilter)"),
        "{out}"
    );
    let (_, out, _) = shown.run(&["observe", "--port", "7", "-o", "table"]);
    assert!(out.starts_with("TIME") && out.lines().count() == 2, "{out}");
}

#[test]
fn bad_conditions_and_agents_that_are_not_there_are_named() {
    let shown = Shown::new(&[]);
    for (args, code, words) in [
        (&["--ip", "10.0.0.0/40"][..], 65, "ip `10.0.0.0/40`: use an address"),
        (&["--since", "yesterday"], 64, "'yesterday' for '--since <TIME>': use a length of time"),
        (&["--last", "0"], 65, "last `0`: use 1 to 10000"),
        (&["--not"], 64, "in front of the condition"),
        (&["--socket", "/nowhere.sock"], 69, "cannot reach the agent at `/nowhere.sock`"),
    ] {
        let (found, _, err) = shown.run(&[&["observe"], args].concat());
        assert!(err.contains(words), "{args:?}: {err}");
        assert_eq!(found, Some(code), "{args:?}: {err}");
    }
    // Whoever has said all it has to say still gets the answer.
    let mut half = UnixStream::connect(shown.socket()).unwrap();
    half.write_all(b"GET /flowlog/v1/flows HTTP/1.1\r\nhost: node\r\n\r\n").unwrap();
    half.shutdown(Shutdown::Write).unwrap();
    let mut told = String::new();
    half.read_to_string(&mut told).unwrap();
    assert!(told.starts_with("HTTP/1.1 200") && told.contains("windows_since"), "{told}");
    let answer = http::unix(&shown.socket(), "GET", "/flowlog/v1/flows?colour=red", None).unwrap();
    assert_eq!(
        (answer.status, answer.words().starts_with("colour `red`: no such parameter")),
        (422, true),
        "{answer:?}"
    );
}

#[test]
fn names_that_nothing_has_are_said_beside_the_flows_and_to_a_customer_with_nothing_of_others() {
    let shown = Shown::new(&[]);
    let args = ["-i", "nosuch", "--not", "--flow-log", "gone", "--reason", "netfilter"];
    let expected = [
        "no interface with the name or id `nosuch` is captured now; there are: eth0",
        "this kernel has no drop reason `netfilter`; there are: NETFILTER_DROP",
        "no flow log with the name `gone` captures now; there are: flowlog",
    ];
    for command in [&["observe"][..], &["observe", "-o", "json"], &["top", "--once", "-o", "json"]] {
        let (code, out, err) = shown.run(&[command, &args].concat());
        let notes: Vec<&str> = err.lines().filter_map(|l| l.strip_prefix("flowlog: ")).collect();
        assert_eq!((code, notes.as_slice()), (Some(0), &expected[..]), "{command:?}: {out} {err}");
        assert!(!out.contains("nosuch"), "{out}");
    }
    let (_, _, err) = shown.run(&["observe", "-i", "eth0", "--flow-log", "flowlog", "--reason", "netfilter_drop"]);
    assert_eq!(err, "");
    // Over HTTP a line of the stream.
    let mut lines = shown.stream("flows?follow=true&interface=nosuch");
    assert_eq!(lines.next().unwrap()["note"], expected[0]);
    drop(lines);
    let node = Managed::new("no_pin = true").unwrap();
    let mut agent = node.start().unwrap();
    let id = node.draft(NIC, "web", "flows");
    assert_eq!(node.finish(&node.ask("POST", "/flowlog/v1/provision", Some(&json!({"flow_logs": [id]})))).0, "DONE");
    agent.wait_for("watching interface=\"tap0\"").unwrap();
    for (who, there) in [("ann", "there are: tap0"), ("mal", "there is none")] {
        let credentials = format!("Basic {}", STANDARD.encode(format!("{who}:{}", managed::PASSWORD)));
        let path = "/flowlog/v1/flows?follow=true&interface=tap7";
        let mut lines = node.node.run(|| Lines::tcp(managed::LISTEN, &credentials, path).unwrap());
        let said = lines.next().unwrap()["note"].as_str().unwrap().to_owned();
        assert!(said.ends_with(there), "{who}: {said}");
    }
}

#[test]
fn who_does_not_read_loses_its_own_lines_is_told_how_many_and_loses_nothing_for_others() {
    let shown = Shown::new(&[]);
    let mut slow = shown.stream("flows?follow=true");
    let socket = shown.pair.b.run(|| UdpSocket::bind("10.1.0.2:0").unwrap());
    // More flows than the socket and all channels on the way hold.
    let mut sent = 0u64;
    let mut reads = shown.stream("top?every=500ms");
    while sent < 120_000 {
        for port in 10_000..20_000u16 {
            let to = format!("10.1.0.1:{port}");
            match socket.send_to(&[0; 20], &to) {
                Ok(_) => sent += 1,
                // An answer to an earlier one.
                Err(e) if e.raw_os_error() == Some(libc::ECONNREFUSED) => {}
                Err(e) => panic!("{e}"),
            }
        }
        // A sweep has been.
        reads.next().unwrap();
    }
    shown.pair.wait_until_quiet();
    let mut seen = 0;
    let lost = loop {
        let line = slow.next().unwrap();
        if let Some(lost) = line["lost_lines"].as_u64() {
            break lost;
        }
        seen += 1;
    };
    assert!(seen > 0 && lost > 0, "{seen} {lost}");
    let Shown { agent, .. } = shown;
    let landed = agent.stop().unwrap();
    assert_eq!(landed.sum(|r| r.direction == "ingress" && (10_000..20_000).contains(&r.dport)).0, sent);
}

#[test]
fn a_customer_sees_its_own_contracts_flows_and_an_operator_those_of_all() {
    let node = Managed::new("no_pin = true").unwrap();
    let mut agent = node.start().unwrap();
    let id = node.draft(NIC, "web", "flows");
    assert_eq!(node.finish(&node.ask("POST", "/flowlog/v1/provision", Some(&json!({"flow_logs": [id]})))).0, "DONE");
    agent.wait_for("watching interface=\"tap0\"").unwrap();
    let stream = |who: &str| {
        let credentials = format!("Basic {}", STANDARD.encode(format!("{who}:{}", managed::PASSWORD)));
        node.node.run(|| Lines::tcp(managed::LISTEN, &credentials, "/flowlog/v1/flows?follow=true&proto=udp").unwrap())
    };
    let mut own = stream("ann");
    let mut others = stream("mal");
    let mut all = Lines::unix(&node.path("agent.sock"), "/flowlog/v1/flows?follow=true&proto=udp").unwrap();
    assert_eq!((own.status, others.status, all.status), (200, 200, 200));
    node.send(1, "tap0", 5).unwrap();
    for lines in [&mut own, &mut all] {
        let line = lines.next().unwrap();
        // As the guest sees it.
        assert_eq!((&line["interface_id"], &line["flow_log"]), (&json!(NIC), &json!("web")), "{line}");
        assert_eq!((&line["flow_direction"], &line["packets"]), (&json!("egress"), &json!(5)), "{line}");
    }
    // What changes who is known ends what was begun before.
    let principals = std::fs::read_to_string(node.path("principals.toml")).unwrap();
    node.write("principals.toml", &format!("{principals}\n# changed\n")).unwrap();
    for stream in [&mut own, &mut others] {
        let last = stream.next().unwrap();
        assert!(
            last["ended"].as_str().unwrap().contains("principals"),
            "nothing of another contract was in it: {last}"
        );
        assert_eq!(stream.next(), None);
    }
    let refused = node.ask_with("", "GET", "/flowlog/v1/flows?follow=maybe", None);
    assert_eq!(refused.status, 422);
    let stranger = node.node.run(|| http::tcp(managed::LISTEN, None, "GET", "/flowlog/v1/flows", None).unwrap());
    assert_eq!(stranger.status, 401);
}

#[test]
fn observers_are_limited_and_one_who_goes_makes_room() {
    let shown = Shown::new(&[]);
    let mut looking: Vec<Lines> = (0..16).map(|_| shown.stream("flows?follow=true")).collect();
    let refused = http::unix(&shown.socket(), "GET", "/flowlog/v1/flows?follow=true", None).unwrap();
    assert_eq!(refused.status, 429, "{refused:?}");
    assert!(refused.words().contains("16 observers are looking"), "{}", refused.words());
    looking.clear();
    let since = Instant::now();
    while Lines::unix(&shown.socket(), "/flowlog/v1/flows?follow=true").unwrap().status != 200 {
        assert!(since.elapsed() < Duration::from_secs(30), "nobody makes room");
        std::thread::yield_now();
    }
}

#[test]
fn top_shows_the_largest_of_each_kind_once_and_in_each_stretch_of_time() {
    let shown = Shown::new(&[]);
    let mut reports = shown.stream("top?every=1s&entries=2&direction=ingress");
    shown.send(7, 30);
    shown.send(9, 20);
    shown.send(8, 10);
    let mut sums = [0, 0];
    let mut flows = Vec::new();
    while sums != [30, 30] {
        let report = reports.next().unwrap();
        sums[0] += report["total"]["accepted_packets"].as_u64().unwrap();
        sums[1] += report["total"]["rejected_packets"].as_u64().unwrap();
        assert!(sums[0] <= 30 && sums[1] <= 30, "{report}");
        flows.extend(report["flows"].as_array().unwrap().iter().map(|f| f["name"].as_str().unwrap().to_owned()));
    }
    assert!(flows[0].starts_with("udp 10.1.0.2:") && flows[0].ends_with("> 10.1.0.1:7 ingress"), "{flows:?}");
    // Of the open windows, in one answer.
    let (code, out, err) = shown.run(&["top", "--once", "-o", "json"]);
    assert_eq!(code, Some(0), "{err}");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (&report["total"]["rejected_packets"], &report["reasons"][0]["name"]),
        (&json!(30), &json!("NETFILTER_DROP")),
        "{out}"
    );
    let (code, out, err) = shown.run(&["top", "--once", "-i", "eth0"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("NETFILTER_DROP") && out.contains("10.1.0.2"), "{out}");
}

#[test]
fn top_on_a_terminal_obeys_its_keys_and_leaves_the_terminal_as_it_was() {
    let shown = Shown::new(&[]);
    let mut terminal = Terminal::run(shown.command(&["top", "--every", "500ms", "--direction", "ingress"])).unwrap();
    // Once a report has come, traffic is in one of the next.
    terminal.wait_for("report", |screen| !screen.starts_with('-') && screen.contains("packets/s")).unwrap();
    // Bytes that no key sends, as when something is pasted, stop nothing.
    terminal.press(b"\xff\xfe\x1b[200~").unwrap();
    let traffic = Traffic::begin(&shown.pair);
    terminal.wait_for("interface", |screen| screen.contains("node-eth0  flowlog")).unwrap();
    terminal.press("4").unwrap();
    terminal.wait_for("reason", |screen| screen.contains("NETFILTER_DROP")).unwrap();
    terminal.press("/x").unwrap();
    terminal
        .wait_for("filter", |screen| screen.contains("show only: x_") && !screen.contains("NETFILTER_DROP"))
        .unwrap();
    terminal.press("\x7fdrop\r").unwrap();
    terminal.wait_for("reason", |screen| screen.contains("only `drop`") && screen.contains("NETFILTER_DROP")).unwrap();
    terminal.press("s2").unwrap();
    terminal.wait_for("no flow", |screen| screen.contains("by bytes") && !screen.contains("udp")).unwrap();
    terminal.press("\u{1b}").unwrap();
    terminal.wait_for("flow", |screen| screen.contains("> 10.1.0.1:7 ingress")).unwrap();
    drop(traffic);
    terminal.press("q").unwrap();
    assert!(terminal.end().unwrap().success());
}

/// Refused packets without end, until it is dropped.
struct Traffic {
    stop: Arc<AtomicBool>,
    sending: Option<std::thread::JoinHandle<()>>,
}

impl Traffic {
    fn begin(pair: &Pair) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let socket = pair.b.run(|| UdpSocket::bind("10.1.0.2:0").unwrap());
        let sending = std::thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                socket.send_to(&[0; 50], "10.1.0.1:7").unwrap();
                std::thread::yield_now();
            }
        });
        Self { stop, sending: Some(sending) }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(sending) = self.sending.take() {
            sending.join().unwrap();
        }
    }
}

#[test]
fn top_that_is_terminated_leaves_the_terminal_as_it_was_and_one_whose_agent_ends_says_so() {
    let shown = Shown::new(&[]);
    let begun = |screen: &str| screen.contains("packets/s") && !screen.starts_with('-');
    let start = || Terminal::run(shown.command(&["top", "--every", "500ms"])).unwrap();
    let mut terminated = start();
    terminated.wait_for("report", begun).unwrap();
    terminated.signal(rustix::process::Signal::TERM);
    assert!(terminated.end().unwrap().success());
    let mut left = start();
    left.wait_for("report", begun).unwrap();
    let observer = shown
        .command(&["observe", "-f", "--last", "1", "-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut observer = observer.unwrap();
    let mut lines = BufReader::new(observer.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("windows_since"));
    let Shown { agent, pair: _pair, dir: _dir } = shown;
    agent.stop().unwrap();
    assert_eq!(left.end().unwrap().code(), Some(69));
    let mut words = String::new();
    observer.stderr.take().unwrap().read_to_string(&mut words).unwrap();
    assert_eq!(observer.wait().unwrap().code(), Some(69), "{words}");
}
