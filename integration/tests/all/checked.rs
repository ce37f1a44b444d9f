//! P8: what `flowlog check --config` says of a configuration is what a start would find, and it changes nothing.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use integration::{
    agent::binary,
    managed::{LISTEN, Managed},
};
use serde_json::Value;

/// A node whose configuration is changed and checked; its own is sound.
struct Checked {
    node: Managed,
    config: String,
}

impl Checked {
    fn new() -> Self {
        let node = Managed::new("no_pin = true").unwrap();
        node.with_tls().unwrap();
        let config = fs::read_to_string(node.path("flowlog.toml")).unwrap();
        Self { node, config }
    }

    /// Exit code and answer, of the node's configuration with this behind it.
    fn check(&self, more: &str, flags: &[&str]) -> (Option<i32>, Value) {
        self.node.write("flowlog.toml", &format!("{}{more}", self.config)).unwrap();
        let mut command = self.node.node.command(binary());
        let out = command.args(["check", "-o", "json", "--config"]).arg(self.file()).args(flags).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        let answer =
            serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&out.stderr)));
        (out.status.code(), answer)
    }

    fn file(&self) -> PathBuf {
        self.node.path("flowlog.toml")
    }

    /// State and words of what begins so.
    fn finding(answer: &Value, what: &str) -> (String, String) {
        let all = answer["findings"].as_array().unwrap();
        let found = all.iter().find(|f| f["what"].as_str().unwrap().starts_with(what));
        let found = found.unwrap_or_else(|| panic!("no {what} in {all:#?}"));
        (found["state"].as_str().unwrap().to_owned(), found["detail"].as_str().unwrap().to_owned())
    }

    fn expect(answer: &Value, what: &str, state: &str, words: &str) {
        let (is, says) = Self::finding(answer, what);
        assert!(is == state && says.contains(words), "{what}: {is}, {says}");
    }
}

#[test]
fn everything_that_a_configuration_names_is_looked_at_before_a_start() {
    let node = Checked::new();
    let (code, answer) = node.check("", &[]);
    assert_eq!((code, &answer["ok"]), (Some(0), &Value::Bool(true)), "{answer:#}");
    Checked::expect(&answer, "TLS certificate", "ok", "for 127.0.0.1");
    Checked::expect(&answer, "principals", "ok", "principals.toml");
    Checked::expect(&answer, "inventory", "ok", "5 NICs, gateways and balancers");
    Checked::expect(&answer, &format!("api.listen {LISTEN}"), "ok", "free");
    Checked::expect(&answer, "api.socket", "ok", "free");
    Checked::expect(&answer, "room for the spool", "ok", "free in");
    assert!(!node.node.path("state").exists() && !node.node.path("agent.sock").exists(), "nothing is made");
    let own = node.node.path("own");
    let log = |interface: &str, more: &str| {
        format!("[[flow_log]]\ninterfaces = ['{interface}']\ntarget = '{}'\n{more}\n", own.display())
    };
    let (code, answer) = node.check(&(log("tap0", "") + &log("tap7", "wait = true")), &[]);
    assert_eq!(code, Some(0), "{answer:#}");
    Checked::expect(&answer, "flow log flowlog on tap0", "ok", "in this network namespace");
    Checked::expect(&answer, "flow log flowlog on tap7", "limited", "waits for it");
    Checked::expect(&answer, "target", "ok", "can be made");
    assert!(!own.exists(), "nothing is made");
    let (code, answer) = node.check(&log("tap7", ""), &[]);
    assert_eq!(code, Some(1));
    Checked::expect(&answer, "flow log flowlog on tap7", "missing", "no such interface");
    let store = "[[flow_log]]\ninterfaces = ['tap0']\ntarget = 's3://flows'\n[s3]\nallow_http = true\n\
                 endpoint = 'http://me:secret@127.0.0.1:1'\n";
    let (code, answer) = node.check(store, &[]);
    assert_eq!(code, Some(1));
    Checked::expect(&answer, "target s3://flows", "missing", "");
    assert!(!answer.to_string().contains("secret"), "{answer:#}");
    let selecting = format!(
        "[[inventory.source]]\nkind = 'libvirt'\ndirectory = '{}'\n\
         [[flow_log]]\nname = 'all'\nselect = {{ }}\ntarget = 's3://selected'\n\
         [s3]\nallow_http = true\nendpoint = 'http://127.0.0.1:1'\n",
        node.node.path("absent").display()
    );
    let (code, answer) = node.check(&selecting, &[]);
    assert_eq!(code, Some(1));
    Checked::expect(&answer, "target s3://selected", "missing", "");
    Checked::expect(&answer, "inventory", "limited", "absent");
    let pinned = |dir: PathBuf| node.check("", &["--no-pin=false", "--pin-dir", dir.to_str().unwrap()]);
    let (code, answer) = pinned(node.node.path("nowhere"));
    assert_eq!(code, Some(1), "as `run` would");
    Checked::expect(&answer, "pinning", "missing", "or run with `--no-pin`");
    assert_eq!(pinned(node.node.path("bpf/flowlog")).0, Some(0));
}

#[test]
fn a_certificate_that_will_not_do_is_said_before_clients_say_it() {
    let node = Checked::new();
    let good = fs::read_to_string(node.node.path("tls.key")).unwrap();
    let key = |text: &str| {
        node.node.write("tls.key", text).unwrap();
        fs::set_permissions(node.node.path("tls.key"), fs::Permissions::from_mode(0o600)).unwrap();
    };
    key(&rcgen::KeyPair::generate().unwrap().serialize_pem());
    let (code, answer) = node.check("", &[]);
    assert_eq!(code, Some(1));
    Checked::expect(&answer, "TLS certificate", "missing", "");
    key(&good);
    fs::set_permissions(node.node.path("tls.key"), fs::Permissions::from_mode(0o644)).unwrap();
    Checked::expect(&node.check("", &[]).1, "TLS certificate", "missing", "key: ");
    let mut expired = rcgen::CertificateParams::new(vec!["node.example".to_owned()]).unwrap();
    expired.not_before = rcgen::date_time_ymd(2019, 1, 1);
    expired.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let pair = rcgen::KeyPair::generate().unwrap();
    node.node.write("tls.crt", &expired.self_signed(&pair).unwrap().pem()).unwrap();
    key(&pair.serialize_pem());
    let (code, answer) = node.check("", &[]);
    assert_eq!(code, Some(1));
    Checked::expect(&answer, "TLS certificate", "missing", "for node.example; expired");
}

#[test]
fn beside_a_running_agent_its_own_addresses_are_no_trouble_and_values_say_where_they_come_from() {
    let node = Checked::new();
    let mut agent = node.node.start().unwrap();
    let (code, answer) =
        node.check("[spool]\nage_secs_max = 60\n", &["--spool-bytes-max", "1GiB", "--node-id", "other"]);
    assert_eq!(code, Some(0), "{answer:#}");
    let held = format!("held by the running agent, process {}", agent.pid());
    Checked::expect(&answer, &format!("api.listen {LISTEN}"), "ok", &held);
    Checked::expect(&answer, "api.socket", "ok", &held);
    let of = |key: &str| {
        let all = answer["effective"].as_array().unwrap();
        let found = all.iter().find(|s| s["key"] == key).unwrap_or_else(|| panic!("no {key}"));
        (found["value"].as_str().unwrap().to_owned(), found["origin"].as_str().unwrap().to_owned())
    };
    let is = |value: &str, origin: &str| (value.to_owned(), origin.to_owned());
    assert_eq!(of("spool.bytes_max"), is("\"1GiB\"", "flag"));
    assert_eq!(of("spool.age_max"), is("60", "file"));
    // As large as is chosen for this machine.
    let (ring, from) = of("kernel.ring_bytes");
    assert!(ring.ends_with("MiB") && from == "default", "{ring} {from}");
    assert_eq!(of("node_id"), is("\"other\"", "flag"));
    agent.end().unwrap();
}
