//! What the command shows, and to whom: others' words do nothing to a terminal, a reader may go, and what cannot be served is said
//! in a sentence before anything is attached.

use std::{
    fs,
    net::TcpListener,
    process::{Command, Stdio},
};

use integration::{
    agent::{binary, run_to_end},
    managed::{LISTEN, Managed, NIC},
    terminal::Terminal,
};
use rustix::process::Signal;
use serde_json::json;

#[test]
fn what_the_api_cannot_be_served_on_is_a_sentence_before_anything_is_attached() {
    let managed = Managed::new("").unwrap();
    let config = fs::read_to_string(managed.path("flowlog.toml")).unwrap();
    let socket = managed.path("agent.sock").display().to_string();
    let _taken = managed.node.run(|| {
        managed.node.exec("ip link set lo up").unwrap();
        TcpListener::bind(LISTEN).unwrap()
    });
    fs::create_dir(managed.path("a-directory")).unwrap();
    managed.write("tls.crt", "no certificate").unwrap();
    let tls = format!("tls_certificate = '{0}/tls.crt'\ntls_key = '{0}/tls.crt'\n", managed.dir.path().display());
    for (text, expected) in [
        (config.clone(), "api.listen `127.0.0.1:8443`: Address already in use"),
        (config.replace(&socket, &managed.path("a-directory").display().to_string()), "a-directory`: "),
        (config.replace(&socket, "/proc/no/such.sock"), "api.socket `/proc/no/such.sock`: "),
        (config.clone() + &tls, "api.tls_certificate `"),
    ] {
        managed.write("other.toml", &text).unwrap();
        let path = managed.path("other.toml");
        let (status, _, stderr) =
            run_to_end(&managed.node, &["run", "--config", path.to_str().unwrap()], managed.dir.path()).unwrap();
        assert_eq!(status, Some(78), "{stderr}");
        assert!(stderr.contains(expected) && stderr.lines().count() == 1, "{expected}: {stderr}");
        assert!(!managed.path("bpf/flowlog").exists(), "pins are left");
    }
    assert_eq!(managed.hooked().unwrap(), Vec::<String>::new());
}

/// Runs a command whose standard output and error nobody reads; returns its exit code.
fn unread(managed: &Managed, args: &[&str]) -> Option<i32> {
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    let mut command = Command::new(binary());
    command.args(args).env("FLOWLOG_SOCKET", managed.path("agent.sock")).stdin(Stdio::null());
    command.stdout(closed()).stderr(closed()).status().unwrap().code()
}

#[test]
fn a_reader_that_goes_away_is_no_reason_to_panic() {
    let managed = Managed::new("").unwrap();
    let mut agent = managed.start().unwrap();
    let _draft = managed.draft(NIC, "web", "flows");
    let state = managed.path("state").display().to_string();
    for args in [
        &["check"][..],
        &["completions", "bash"],
        &["credential", "token"],
        &["status", "--state-dir", &state],
        &["status", "--output", "json", "--state-dir", &state],
        &["rule", "list"],
        &["rule", "--output", "json", "list"],
        &["rule", "show", "web"],
        &["rule", "audit"],
        &["inventory", "list"],
        &["read", &managed.path("buckets").display().to_string()],
        &["stop", "--state-dir", &managed.path("none").display().to_string()],
    ] {
        assert_eq!(unread(&managed, args), Some(0), "{args:?}");
    }
    assert_eq!(unread(&managed, &["rule", "show", "nobody"]), Some(66), "an error is an error");
    assert_eq!(unread(&managed, &["rule", "--nonsense"]), Some(64));
    // An agent whose log nobody reads goes on.
    agent.end().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = managed.node.command(binary());
    let mut child = command.args(["run", "--config"]).arg(managed.path("flowlog.toml")).stderr(writer).spawn().unwrap();
    drop((reader, command));
    while unread(&managed, &["rule", "list"]) != Some(0) {
        assert!(child.try_wait().unwrap().is_none(), "it has ended");
        std::thread::yield_now();
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn tables_with_long_ids_fit_a_terminal_of_eighty_columns_are_folded_on_a_narrow_one_and_are_whole_on_a_pipe() {
    let managed = Managed::new("no_pin = true").unwrap();
    let mut agent = managed.start().unwrap();
    let id = managed.draft(NIC, "a-flow-log-with-a-name-that-is-rather-long", "flows");
    let provisioned = managed.ask("POST", "/flowlog/v1/provision", Some(&json!({"flow_logs": [id]})));
    assert_eq!(managed.finish(&provisioned).0, "DONE");
    let state = managed.path("state").display().to_string();
    for (args, heading, whole) in [
        (&["inventory", "list"][..], "INTERFACES", NIC),
        (&["rule", "list"], "MARK", id.as_str()),
        (&["status", "--state-dir", &state], "ACCEPTED", "a-flow-log-with-a-name-that-is-rather-long"),
    ] {
        let on = |columns: u16| {
            let mut command = managed.node.command(binary());
            command.args(args).env("FLOWLOG_SOCKET", managed.path("agent.sock"));
            Terminal::run_on(command, columns.try_into().unwrap()).unwrap().shown_at_end().unwrap()
        };
        let eighty = on(80);
        let table: Vec<&str> = eighty.lines().skip_while(|l| !l.contains(heading)).collect();
        let rows = table.iter().take_while(|l| !l.contains(" on tap0: ")).filter(|l| l.chars().count() > 80);
        assert_eq!(rows.count(), 0, "{eighty}");
        // Headings are in front, and nothing is cut.
        let narrow = on(40);
        assert!(narrow.lines().filter(|l| l.starts_with(heading)).count() > 0, "{narrow}");
        let (_, piped, _) = managed.command(args).unwrap();
        assert!(piped.contains(whole) && !piped.contains('…'), "{piped}");
        assert!(narrow.contains(whole) || args[0] == "inventory", "{narrow}");
    }
    agent.end().unwrap();
}

#[test]
fn names_that_would_act_on_a_terminal_are_shown_and_do_nothing() {
    let managed = Managed::new("").unwrap();
    let mut agent = managed.start().unwrap();
    let name = "a\u{1b}[31m\r\nFAKE line\u{202e}gpj";
    let id = managed.draft(NIC, name, "flows\u{1b}]0;title\u{7}");
    let _ = managed.ask("POST", &format!("/flowlog/v1/flowlogs/{id}/validate"), None);
    for args in [&["rule", "list"][..], &["rule", "show", &id], &["rule", "audit"], &["inventory", "list"]] {
        let (status, out, stderr) = managed.command(args).unwrap();
        assert_eq!(status, Some(0), "{stderr}");
        assert!(!out.contains(['\u{1b}', '\r', '\u{7}', '\u{202e}']), "{args:?}: {out:?}");
        assert!(!out.lines().any(|l| l.starts_with("FAKE")), "{args:?}: {out}");
    }
    let (_, out, _) = managed.command(&["rule", "list"]).unwrap();
    assert!(out.contains("a\\u{1b}[31m\\r\\nFAKE"), "{out}");
    let (_, _, stderr) = managed.command(&["rule", "show", name]).unwrap();
    assert!(!stderr.contains('\u{1b}') && stderr.lines().count() <= 1, "{stderr:?}");
    agent.end().unwrap();
    let log = agent.log();
    assert!(!log.contains(['\u{1b}', '\u{202e}']) && !log.lines().any(|l| l.starts_with("FAKE")), "{log:?}");
}

#[test]
fn a_hangup_ends_nothing() {
    let managed = Managed::new("").unwrap();
    let mut agent = managed.start().unwrap();
    agent.signal(Signal::HUP);
    agent.wait_for("SIGHUP").unwrap();
    agent.end().unwrap();
}
