//! Names that a shell completes. The witness is bash itself.

use std::process::Command;

use integration::{
    agent::binary,
    managed::{Managed, NIC},
    net::Netns,
};

/// What bash offers for the last of these words, in a network namespace.
fn offered(ns: &Netns, socket: &str, words: &[&str]) -> Vec<String> {
    let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    let (last, at) = (words.last().unwrap(), words.len() - 1);
    let script = format!(
        "source <(flowlog completions bash); COMP_WORDS=({}); COMP_CWORD={at}; COMP_TYPE=9; \
         f=$(complete -p flowlog | sed 's/.*-F \\([^ ]*\\).*/\\1/'); $f flowlog '{last}' x; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        quoted.join(" ")
    );
    let path = format!("{}:{}", binary().parent().unwrap().display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("bash");
    command.args(["--norc", "-c", &script]).env("PATH", path).env("FLOWLOG_SOCKET", socket);
    let out = ns.run(|| command.output()).unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn interfaces_flow_logs_and_resources_are_completed_as_they_are_on_this_node() {
    let managed = Managed::new("no_pin = true").unwrap();
    let agent = managed.start().unwrap();
    let id = managed.draft(NIC, "web-shop", "flows");
    let socket = managed.path("agent.sock").display().to_string();
    let offered = |words: &[&str]| offered(&managed.node, &socket, words);
    assert!(offered(&["flowlog", "ob"]).contains(&"observe".to_owned()));
    assert_eq!(offered(&["flowlog", "run", "--dire"]), ["--direction"]);
    assert_eq!(
        offered(&["flowlog", "observe", "--interface", "tap"]),
        offered(&["flowlog", "check", "--interface", "tap"])
    );
    assert!(offered(&["flowlog", "observe", "-i", "tap"]).contains(&"tap0".to_owned()));
    assert_eq!(offered(&["flowlog", "rule", "show", "we"]), ["web-shop"]);
    // A draft has no flows.
    assert!(offered(&["flowlog", "observe", "--flow-log", "we"]).iter().all(String::is_empty));
    let provisioned = managed.ask("POST", "/flowlog/v1/provision", Some(&serde_json::json!({"flow_logs": [id]})));
    assert_eq!(managed.finish(&provisioned).0, "DONE");
    assert_eq!(offered(&["flowlog", "observe", "--flow-log", "we"]), ["web-shop"]);
    assert_eq!(offered(&["flowlog", "rule", "add", "--resource", NIC]), [NIC]);
    assert_eq!(offered(&["flowlog", "rule", "add", "--action", "a"]), ["accepted", "any"]);
    drop(agent);
    // Without an agent there are fewer words, and no others.
    assert!(offered(&["flowlog", "rule", "show", "we"]).iter().all(String::is_empty));
}
