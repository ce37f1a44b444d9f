//! What the agent says while it captures: how much, in which form, and to the journal with fields.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::{net::UnixDatagram, process::CommandExt as _},
    process::Stdio,
    time::Duration,
};

use integration::{
    agent::{Agent, binary, run_to_end},
    net::Pair,
    traffic,
};
use serde_json::Value;

/// The log of an agent that has counted a flow, delivered a window and stopped.
fn said(args: &[&str], variables: &[(&str, &str)]) -> String {
    let pair = Pair::new().unwrap();
    let args = [args, &["--window", "1"]].concat();
    let mut agent = Agent::spawn_env(&pair.a, &["eth0"], &args, variables).unwrap();
    // It may say nothing at all: what landed is the sign.
    while !agent.objects().join("flowlog").is_dir() {
        pair.b.run(|| traffic::udp("10.1.0.1:7", 1, 10)).ok();
        std::thread::sleep(Duration::from_millis(50));
    }
    agent.end().unwrap();
    agent.log()
}

#[test]
fn as_json_each_line_is_an_object_with_flow_log_and_interface() {
    let log = said(&["--log-format", "json"], &[]);
    let lines: Vec<Value> =
        log.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect();
    let of =
        |message: &str| lines.iter().find(|l| l["message"] == message).unwrap_or_else(|| panic!("{message}: {log}"));
    for message in ["watching", "window closed"] {
        assert_eq!(of(message)["flow_log"], "flowlog");
    }
    assert_eq!((&of("watching")["interface"], &of("watching")["level"]), (&Value::from("eth0"), &Value::from("INFO")));
    assert!(of("delivered")["key"].as_str().is_some_and(|key| key.starts_with("flowlog/")));
}

#[test]
fn what_is_said_of_a_store_has_the_flow_logs_own_name_whatever_its_folders_are_called() {
    let pair = Pair::new().unwrap();
    let named =
        ["--name", "web", "--prefix", "team", "--layout", "hive-named", "--window", "1", "--log-format", "json"];
    let json = |line: &str| serde_json::from_str::<Value>(line).unwrap();
    let mut agent = Agent::start(&pair.a, &["eth0"], &named).unwrap();
    for message in ["the target takes objects", "delivered"] {
        assert_eq!(json(&agent.wait_for(&format!("\"{message}\"")).unwrap())["flow_log"], "web", "{message}");
    }
    agent.end().unwrap();
    // A store that hangs up on whoever comes: each request is tried a second time, which is nobody's business.
    let store = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", store.local_addr().unwrap());
    drop(store);
    let to_it = ["--target", "s3://flows/team", "--s3-endpoint", &endpoint, "--s3-allow-http"];
    let mut agent = Agent::start(&pair.a, &["eth0"], &[&named[..2], &named[4..], &to_it].concat()).unwrap();
    for message in ["the target cannot be used", "cannot deliver"] {
        assert_eq!(json(&agent.wait_for(&format!("\"{message}\"")).unwrap())["flow_log"], "web", "{message}");
    }
    let log = agent.log();
    assert!(!log.contains("transport error"), "{log}");
}

#[test]
fn as_json_the_reason_why_there_is_no_start_is_an_object_too() {
    let pair = Pair::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let json = ["--target", "./o", "--no-pin", "--log-format", "json"];
    for (more, code, words) in [
        (&["--interface", "eth9"][..], 78, "eth9"),
        (&["--interface", "eth0", "--config", "none.toml"], 78, "config `none.toml`"),
        (&["--interface", "eth0", "-qq", "--window", "7"], 64, "window `7`"),
    ] {
        let (status, out, error) = run_to_end(&pair.a, &[&["run"], &json[..], more].concat(), dir.path()).unwrap();
        assert_eq!((status, out.as_str()), (Some(code), ""), "{error}");
        let lines: Vec<Value> = error.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let last = lines.last().unwrap();
        assert_eq!(last["level"], "ERROR", "{error}");
        assert!(last["message"].as_str().unwrap().contains(words) && last["timestamp"].is_string(), "{error}");
    }
    // Also where it is the log itself that is wrong.
    let mut command = pair.a.command(binary());
    command.args(["run", "--interface", "eth0"]).args(json).env("FLOWLOG_LOG", "flowlog=loud");
    let out = command.current_dir(dir.path()).output().unwrap();
    let said: Value = serde_json::from_slice(&out.stderr).unwrap();
    assert!(out.status.code() == Some(78) && said["message"].as_str().unwrap().contains("write a level"), "{said}");
}

#[test]
fn flags_and_the_environment_say_how_much_is_said() {
    let text = said(&[], &[]);
    assert!(text.contains(" INFO watching interface=\"eth0\"") && !text.contains("DEBUG"), "{text}");
    assert_eq!(said(&["-q"], &[]), "");
    assert!(said(&["-v"], &[]).contains("DEBUG"));
    assert_eq!(said(&[], &[("FLOWLOG_LOG", "error")]), "");
    let nearer = said(&["-q"], &[("FLOWLOG_LOG", "debug")]);
    assert_eq!(nearer, "", "a flag is nearer than the environment");
    let pair = Pair::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut command = pair.a.command(binary());
    command.args(["run", "--interface", "eth0", "--target", "./o", "--no-pin"]).env("FLOWLOG_LOG", "flowlog=loud");
    let out = command.current_dir(dir.path()).output().unwrap();
    let error = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(78), "{error}");
    assert!(error.contains("FLOWLOG_LOG `flowlog=loud`") && error.contains("write a level"), "{error}");
    let both = ["run", "--interface", "eth0", "--target", "./o", "-q", "-v"];
    assert_eq!(run_to_end(&pair.a, &both, dir.path()).unwrap().0, Some(64));
}

/// Fields of an entry, as the journal reads them.
fn read(mut bytes: &[u8]) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    let text = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
    while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
        let length = u64::from_le_bytes(bytes[end + 1..end + 9].try_into().unwrap()) as usize;
        fields.insert(text(&bytes[..end]), text(&bytes[end + 9..end + 9 + length]));
        bytes = &bytes[end + 9 + length + 1..];
    }
    fields
}

#[test]
fn the_journal_gets_entries_with_fields_also_from_an_agent_that_has_given_up_what_it_can() {
    let pair = Pair::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("journal")).unwrap();
    let journal = UnixDatagram::bind(dir.path().join("journal/socket")).unwrap();
    journal.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    // Where the journal listens is fixed: so it is a place of this process alone.
    let script = "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && mount --bind \"$1/journal\" /run/systemd/journal &&
                  export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) &&
                  exec \"$2\" run --interface eth0 --target \"$1/objects\" --state-dir \"$1/state\" --no-pin --window 1";
    let mut command = pair.a.command("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(dir.path()).arg(binary());
    let stderr = std::fs::File::create(dir.path().join("stderr")).unwrap();
    let mut child = command.stdout(Stdio::null()).stderr(stderr).process_group(0).spawn().unwrap();
    let mut entries = Vec::new();
    let mut bytes = vec![0; 64 << 10];
    let mut until = |message: &str| loop {
        let n = journal.recv(&mut bytes).unwrap_or_else(|e| panic!("{e}: no `{message}` in {entries:?}"));
        let entry = read(&bytes[..n]);
        entries.push(entry.clone());
        if entry["MESSAGE"].starts_with(message) {
            return entry;
        }
    };
    let watching = until("watching");
    assert_eq!((watching["FLOWLOG_INTERFACE"].as_str(), watching["FLOWLOG_FLOW_LOG"].as_str()), ("eth0", "flowlog"));
    assert_eq!((watching["PRIORITY"].as_str(), watching["SYSLOG_IDENTIFIER"].as_str()), ("6", "flowlog"));
    assert!(watching["MESSAGE"].contains("interface=eth0"), "{watching:?}");
    // By then it is confined.
    assert_eq!(until("window closed")["FLOWLOG_FLOW_LOG"], "flowlog");
    assert!(until("delivered")["FLOWLOG_KEY"].starts_with("flowlog/"));
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(std::fs::read_to_string(dir.path().join("stderr")).unwrap(), "");
}

/// The log as a terminal gets it. The terminal is `script`'s.
fn on_a_terminal(no_color: &str, term: &str) -> Vec<u8> {
    let pair = Pair::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let line = format!(
        "exec {} run --interface eth0 --target ./objects --state-dir ./state --no-pin --no-nodata --window 1d",
        binary().display()
    );
    let mut command = pair.a.command("script");
    command.args(["--quiet", "--return", "--command", &line, "/dev/null"]).env("NO_COLOR", no_color).env("TERM", term);
    let mut child = command.current_dir(&dir).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut read = BufReader::new(child.stdout.take().unwrap());
    let mut log = Vec::new();
    while !String::from_utf8_lossy(&log).contains("capturing") {
        assert!(read.read_until(b'\n', &mut log).unwrap() > 0, "{}", String::from_utf8_lossy(&log));
    }
    let stopped = run_to_end(&pair.a, &["stop", "--state-dir", "./state"], dir.path()).unwrap();
    assert_eq!(stopped.0, Some(0), "{stopped:?}");
    read.read_to_end(&mut log).unwrap();
    assert!(child.wait().unwrap().success(), "{}", String::from_utf8_lossy(&log));
    log
}

#[test]
fn a_terminal_gets_colours_unless_it_is_a_dumb_one_or_somebody_wants_none() {
    assert!(on_a_terminal("", "xterm-256color").contains(&0x1b));
    for (no_color, term) in [("1", "xterm-256color"), ("", "dumb")] {
        let plain = on_a_terminal(no_color, term);
        assert!(!plain.contains(&0x1b), "{}", String::from_utf8_lossy(&plain));
    }
}
