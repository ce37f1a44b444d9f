//! P8: since when something is captured, what landed last, and what the last window came to. The witnesses are the store, the interface's
//! counter, and the clock.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::Stdio,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use integration::{
    agent::{Agent, binary, run_to_end},
    claims::until,
    net::{Pair, sh},
    node::Node,
    rows::Objects,
    terminal::Terminal,
    traffic,
};
use serde_json::Value;

const FLOWS: u16 = 1_500;
/// More flows than this end a window early: so one ends without any clock.
const FLOWS_MAX: &str = "1000";

fn now_secs() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().cast_signed()
}

/// What the agent with this process id says of the one rule there is; `null`: nothing yet.
fn said(node: &Node, pid: u32) -> Value {
    let status = fs::read(node.state().join("status.json")).unwrap_or_default();
    let status: Value = serde_json::from_slice(&status).unwrap_or_default();
    if status["pid"] == pid { status["rules"][0].clone() } else { Value::Null }
}

#[test]
fn since_when_what_landed_last_and_the_books_of_the_last_window_are_true_and_outlive_the_agent() {
    let node = Node::new(&["--window", "1d", "--no-nodata", "--flows-max", FLOWS_MAX, "--cache-slots", "16"]).unwrap();
    let before = now_secs();
    let mut agent = node.start().unwrap();
    let begun = now_secs();
    let macs = (node.pair.b.mac("eth0").unwrap(), node.pair.a.mac("eth0").unwrap());
    let frames: Vec<_> = (0..FLOWS)
        .map(|p| traffic::udp4(macs, ([10, 200, 0, 1].into(), 1_000 + p), ([10, 1, 0, 1].into(), 9), 10))
        .collect();
    node.pair.b.run(|| traffic::Raw::open("eth0").unwrap().send(&frames)).unwrap();
    let pid = agent.pid();
    until("an object is said to have landed", || said(&node, pid)["delivery"]["last_object"].is_object());
    let delivered = now_secs();
    let first = said(&node, pid);
    let since = first["since_secs"].as_i64().unwrap();
    assert!((before..=begun).contains(&since), "{before} {begun}: {first}");
    let landed = Objects::below(&node.objects()).unwrap();
    let object = &first["delivery"]["last_object"];
    assert_eq!(landed.keys, [object["key"].as_str().unwrap()]);
    let file = fs::metadata(node.objects().join(&landed.keys[0])).unwrap();
    assert_eq!(object["bytes"], file.len());
    assert!((begun..=delivered).contains(&object["at_secs"].as_i64().unwrap()), "{object}");
    let books = &first["last_window"];
    let packets = |name: &str| books[format!("{name}_packets")].as_u64().unwrap();
    assert_eq!(packets("accepted"), landed.flows("ACCEPT").0, "{books}");
    assert_eq!(packets("seen"), packets("accepted") + packets("lost") + packets("non_ip"), "{books}");
    assert!(packets("seen") >= 1_000 && packets("rejected") == 0, "{books}");
    assert_eq!((&books["difference_packets"], &books["difference_bytes"]), (&0.into(), &0.into()));
    let (code, table, _) = node.command(&["status", "--long"]).unwrap();
    assert_eq!(code, Some(0));
    for words in ["capturing since 20", "; last object ", " KiB", " seen = ", ", difference 0"] {
        assert!(table.contains(words), "{words}: {table}");
    }
    // The next agent has counted nothing of its own, and knows it all the same.
    agent.kill().unwrap();
    std::thread::sleep(Duration::from_millis(1_100));
    let mut next = node.start().unwrap();
    let pid = next.pid();
    until("the next agent says something", || said(&node, pid).is_object());
    let second = said(&node, pid);
    assert_eq!((&second["windows"], &second["delivery"]["delivered"]), (&0.into(), &0.into()), "{second}");
    assert_eq!(second["since_secs"], since, "the capture went on");
    assert_eq!(second["delivery"]["last_object"], *object);
    assert_eq!(second["last_window"], *books);
    // Another capture is none of that one: it begins now.
    next.end().unwrap();
    node.detach().unwrap();
    let again = node.start().unwrap();
    let pid = again.pid();
    until("the capture has begun anew", || said(&node, pid)["since_secs"].is_i64());
    assert!(said(&node, pid)["since_secs"].as_i64().unwrap() > since);
    drop(again);
    node.detach().unwrap();
}

/// What the hooks of eth0 have seen, by the interface's own counters.
fn on_the_wire(node: &Node) -> u64 {
    ["rx_packets", "tx_packets"].iter().map(|name| node.pair.a.statistic("eth0", name).unwrap()).sum()
}

/// What `status` counts at this moment.
fn live(node: &Node) -> Value {
    let (code, json, stderr) = node.command(&["status", "-o", "json"]).unwrap();
    assert_eq!(code, Some(0), "{stderr}");
    serde_json::from_str::<Value>(&json).unwrap()["live"]["captures"][0].clone()
}

#[test]
fn an_agent_that_ends_and_cannot_deliver_says_so_and_that_a_further_signal_ends_it_at_once() {
    let pair = Pair::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    // Nobody answers there.
    let store = ["--target", "s3://flows", "--s3-endpoint", "http://127.0.0.1:1", "--s3-allow-http"];
    let metrics = dir.path().join("metrics.sock");
    let listen = ["--metrics-listen", metrics.to_str().unwrap()];
    let mut agent = Agent::start(&pair.a, &["eth0"], &[&store[..], &listen].concat()).unwrap();
    let state = agent.state();
    let state = state.to_str().unwrap();
    let ask = |what: &str| run_to_end(&pair.a, &[what, "--state-dir", state], dir.path()).unwrap();
    let (words, began) = (["delivering what is captured", "a further `flowlog stop`"], Instant::now());
    let said = |text: &str| words.iter().all(|w| text.contains(w));
    let mut first =
        pair.a.command(binary()).args(["stop", "--state-dir", state]).stderr(Stdio::piped()).spawn().unwrap();
    until("it says that it is stopping", || {
        let (code, table, _) = ask("status");
        code == Some(0) && table.starts_with("stopping (process") && said(&table)
    });
    // Nobody is asked what is counted who does not answer, and waited for.
    let (code, json, _) = run_to_end(&pair.a, &["status", "--state-dir", state, "-o", "json"], dir.path()).unwrap();
    let json: Value = serde_json::from_str(&json).unwrap();
    assert!(code == Some(0) && json["live"].is_null() && said(json["stopping"].as_str().unwrap()), "{json}");
    // Who wants it to reload is told at once that it will not, and who watches it that it is well, and does not capture.
    let asked = Instant::now();
    let (code, _, refused) = ask("reload");
    assert!(code == Some(75) && refused.contains("the agent is stopping") && said(&refused), "{code:?} {refused}");
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    let get = |path: &str| {
        let mut stream = std::os::unix::net::UnixStream::connect(&metrics).unwrap();
        let request = integration::http::request("GET", path, "", None);
        let (status, _, body) = integration::http::exchange_text(&mut stream, &request).unwrap();
        (status, body)
    };
    let (healthy, ready, figures) = (get("/healthz"), get("/readyz"), get("/metrics"));
    assert_eq!((healthy.0, ready.0, figures.0), (200, 503, 200), "{healthy:?} {ready:?}");
    assert!(ready.1.contains("stopping: delivering"), "{ready:?}");
    // Whoever waits for the end is told after a moment, and then ends it.
    agent.wait_for("waiting for objects to be delivered; a further signal leaves them in the spool").unwrap();
    let mut told = String::new();
    BufReader::new(first.stderr.take().unwrap()).read_line(&mut told).unwrap();
    assert!(told.contains("waiting for the agent: 1 undelivered objects") && said(&told), "{told}");
    let (code, last, _) = ask("stop");
    assert!(code == Some(0) && last.contains("the capture has ended with it; 1 undelivered objects ("), "{last}");
    assert!(last.contains("stay in the spool: the next `flowlog run` delivers them"), "{last}");
    assert_eq!(first.wait().unwrap().code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(45), "it was waited for in vain");
    agent.wait_for("second signal: 1 objects in the spool").unwrap();
    let (code, table, _) = ask("status");
    assert!(code == Some(3) && table.starts_with("not running"), "{table}");
}

#[test]
fn packets_are_in_the_status_while_their_window_is_open() {
    let node = Node::new(&["--window", "1d"]).unwrap();
    let firewall = "table ip t {\n chain c { type filter hook input priority 0; udp dport 7 drop; }\n}";
    node.pair.a.nft(firewall).unwrap();
    let agent = node.start().unwrap();
    node.pair.wait_until_quiet();
    let (seen, wire) = (live(&node), on_the_wire(&node));
    let before = seen["seen_packets"].as_u64().unwrap();
    for port in [7, 9] {
        node.pair.b.run(|| traffic::udp(&format!("10.1.0.1:{port}"), 500, 10)).unwrap();
    }
    node.pair.wait_until_quiet();
    let counted = live(&node);
    let more = |name: &str| counted[name].as_u64().unwrap() - seen[name].as_u64().unwrap();
    assert_eq!(counted["seen_packets"].as_u64().unwrap() - before, on_the_wire(&node) - wire, "{counted}");
    assert!(more("rejected_packets") == 500 && more("accepted_packets") >= 500, "{counted}");
    let window = |name: &str| counted[name].as_i64().unwrap();
    assert!(window("window_opened_secs") <= now_secs() && window("window_end_secs") > now_secs(), "{counted}");
    let (_, table, _) = node.command(&["status"]).unwrap();
    assert!(table.contains("PACKETS/s") && table.contains("ends in "), "{table}");
    drop(agent);
    // Nobody is asked who is not there.
    let (code, table, _) = node.command(&["status"]).unwrap();
    assert!(code == Some(3) && table.contains("not running"), "{table}");
    node.detach().unwrap();
}

#[test]
fn a_watched_status_shows_packets_a_second_as_they_come_and_ends_by_a_key() {
    let node = Node::new(&["--window", "1d", "--no-nodata"]).unwrap();
    let agent = node.start().unwrap();
    let mut command = std::process::Command::new(binary());
    command.args(["status", "--watch=300ms", "--state-dir"]).arg(node.state());
    let mut terminal = Terminal::run(command).unwrap();
    let rate = |screen: &str| {
        let row = screen.lines().find(|line| line.contains(" eth0 "))?;
        row.split_whitespace().find_map(|word| word.replace(',', "").parse::<u64>().ok())
    };
    terminal.wait_for("row", |screen| screen.contains("running (process") && rate(screen).is_some()).unwrap();
    node.pair.b.run(|| traffic::udp("10.1.0.1:9", 3_000, 10)).unwrap();
    terminal.wait_for("rate", |screen| rate(screen) > Some(500)).unwrap();
    terminal.wait_for("pause", |screen| rate(screen).is_some_and(|rate| rate < 100)).unwrap();
    terminal.signal(rustix::process::Signal::INT);
    assert!(terminal.end().unwrap().success());
    drop(agent);
    node.detach().unwrap();
}

#[test]
fn the_first_words_say_when_the_first_object_will_be_there() {
    let node = Node::new(&["--window", "1h", "--no-nodata"]).unwrap();
    let mut agent = node.start().unwrap();
    let line = agent.wait_for("the first window ends at").unwrap();
    let next_hour = (now_secs() / 3_600 + 1) * 3_600;
    let words = sh(&format!("date --utc --date @{next_hour} +%Y-%m-%dT%H:%M:%SZ")).unwrap();
    assert!(line.contains(words.trim()), "{line}: {words}");
    drop(agent);
    node.detach().unwrap();
}
