//! NICs that the database of Open vSwitch tells of: the real `ovsdb-server`.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use integration::{agent::binary, managed::plug_in, sourced::Sourced};
use serde_json::{Value, json};

const PACKETS: usize = 20;
/// Where figures are served, in the node's namespace.
const ADDRESS: &str = "127.0.0.1:9469";
const PORT: &str = "5c1b7c1e-0a55-4e1c-9d2f-0f6f0c5ad101";
const VM: &str = "7d2b0d3a-4f5e-4a60-8f57-3a1f2f3c0101";

/// The columns that are looked at, as `vswitch.ovsschema` 8.3.1 has them; rows stay without a port that refers to them.
fn schema() -> Value {
    let one = |key: Value| json!({ "type": { "key": key, "min": 0, "max": 1 }, "ephemeral": true });
    let pairs = json!({ "type": { "key": "string", "value": "string", "min": 0, "max": "unlimited" } });
    let columns = json!({
        "name": { "type": "string", "mutable": false },
        "ifindex": one(json!({ "type": "integer", "minInteger": 0, "maxInteger": 4_294_967_295_u32 })),
        "external_ids": pairs,
        "mac_in_use": one(json!({ "type": "string" })),
        "type": { "type": "string" },
    });
    json!({
        "name": "Open_vSwitch", "version": "8.3.1",
        "tables": { "Interface": { "columns": columns, "indexes": [["name"]], "isRoot": true } },
    })
}

/// The database, which ends with its guard.
struct Ovsdb {
    dir: PathBuf,
    server: Option<Child>,
}

impl Ovsdb {
    fn new(dir: &Path) -> Self {
        let dir = dir.join("ovs");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("schema"), schema().to_string()).unwrap();
        let made =
            Command::new("ovsdb-tool").arg("create").args([dir.join("conf.db"), dir.join("schema")]).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        let mut database = Self { dir, server: None };
        database.start();
        database
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("db.sock")
    }

    fn start(&mut self) {
        let mut command = Command::new("ovsdb-server");
        command.arg(format!("--remote=punix:{}", self.socket().display())).arg("--unixctl=none");
        command.arg("--no-chdir").arg(self.dir.join("conf.db")).stdout(Stdio::null()).stderr(Stdio::null());
        self.server = Some(command.spawn().unwrap());
        let since = Instant::now();
        while std::os::unix::net::UnixStream::connect(self.socket()).is_err() {
            assert!(since.elapsed() < Duration::from_secs(30), "ovsdb-server does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    /// What `ovsdb-client` says to a transaction.
    fn transact(&self, operation: &Value) {
        let transaction = json!(["Open_vSwitch", operation]).to_string();
        let remote = format!("unix:{}", self.socket().display());
        let done = Command::new("ovsdb-client").args(["transact", &remote, &transaction]).output().unwrap();
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success() && !said.contains("error"), "{transaction}: {said}");
    }

    fn plug(&self, name: &str, ids: &[(&str, &str)]) {
        self.transact(
            &json!({ "op": "insert", "table": "Interface", "row": { "name": name, "external_ids": ["map", ids] } }),
        );
    }

    fn change(&self, name: &str, ids: &[(&str, &str)]) {
        let row = json!({ "external_ids": ["map", ids], "ifindex": 7 });
        self.transact(&json!({ "op": "update", "table": "Interface", "where": [["name", "==", name]], "row": row }));
    }

    fn unplug(&self, name: &str) {
        self.transact(&json!({ "op": "delete", "table": "Interface", "where": [["name", "==", name]] }));
    }
}

impl Drop for Ovsdb {
    fn drop(&mut self) {
        self.kill();
    }
}

#[test]
fn ports_of_the_switch_are_captured_as_they_come_change_and_go_and_while_the_database_is_down() {
    let dir = tempfile::tempdir().unwrap();
    let mut database = Ovsdb::new(dir.path());
    let source =
        format!("[[inventory.source]]\nkind = 'ovsdb'\nsocket = '{}'\ncontract = '7'\n", database.socket().display());
    let more = format!("no_pin = true\n[metrics]\nlisten = '{ADDRESS}'");
    let node = Sourced::new(&more, &source, "{ contract = '7' }").unwrap();
    let (ns, far) = (&node.managed.node, &node.managed.far);
    for (n, name) in [(20, "tap20"), (21, "tap21")] {
        plug_in(ns, far, name, n).unwrap();
    }
    database.plug("br-int", &[]);
    let whole = [("iface-id", PORT), ("attached-mac", "52:54:00:00:00:01"), ("vm-id", VM), ("iface-status", "active")];
    database.plug("tap20", &whole);
    let mut agent = node.managed.start().unwrap();
    let nic = node.found("tap20");
    assert_eq!((&nic["id"], &nic["server"]), (&json!(PORT), &json!(VM)));
    assert!(node.nic("br-int").is_none());
    // One is added that has no port's id; it is its VM's, by its address.
    let by_mac = [("attached-mac", "52:54:00:00:00:02"), ("vm-uuid", VM)];
    database.plug("tap21", &by_mac);
    agent.wait_for("watching interface=\"tap21\"").unwrap();
    let second = node.found("tap21");
    node.managed.send(20, "tap20", PACKETS).unwrap();
    node.managed.send(21, "tap21", PACKETS).unwrap();
    // It becomes another port's.
    database.change("tap21", &[("iface-id", "5c1b7c1e-0a55-4e1c-9d2f-0f6f0c5ad102")]);
    node.until("another id", |s| (s.nic("tap21")?["id"] != second["id"]).then_some(()));
    agent.wait_for("a new window begins interface=\"tap21\"").unwrap();
    node.managed.send(21, "tap21", PACKETS).unwrap();
    // The database dies: what it said holds.
    database.kill();
    node.problem(Some("what it said before still holds"));
    assert_eq!(node.found("tap20")["id"], json!(PORT));
    let figure = |name: &str, value: &str| {
        let line = format!("flowlog_inventory_source_{name}{{kind=\"ovsdb\",source=\"ovsdb\"}} {value}\n");
        let figures = node.figures(ADDRESS);
        assert!(figures.contains(&line), "no {line} in {figures}");
    };
    figure("up", "0.0");
    figure("nics", "2.0");
    node.managed.send(20, "tap20", PACKETS).unwrap();
    // It is back, and something has gone that nobody told of.
    database.start();
    database.unplug("tap21");
    node.problem(None);
    node.lost("tap21");
    figure("up", "1.0");
    figure("nics", "1.0");
    node.managed.send(21, "tap21", PACKETS).unwrap();
    agent.signal(rustix::process::Signal::TERM);
    assert_eq!(agent.wait().unwrap(), Some(0));
    let landed = node.landed().unwrap();
    let of = |id: &str| landed.sum(|r| r.dport == 9 && r.direction == "egress" && r.interface == id).0;
    assert_eq!(of(PORT), 2 * PACKETS as u64, "{:#?}", landed.rows);
    assert_eq!(of(second["id"].as_str().unwrap()), PACKETS as u64);
    assert_eq!(of("5c1b7c1e-0a55-4e1c-9d2f-0f6f0c5ad102"), PACKETS as u64);
}

#[test]
fn an_agent_that_starts_while_the_database_is_down_goes_on_with_what_it_said_last_until_it_answers() {
    let dir = tempfile::tempdir().unwrap();
    let mut database = Ovsdb::new(dir.path());
    let source =
        format!("[[inventory.source]]\nkind = 'ovsdb'\nsocket = '{}'\ncontract = '7'\n", database.socket().display());
    let node = Sourced::new("", &source, "{ contract = '7' }").unwrap();
    let (ns, far) = (&node.managed.node, &node.managed.far);
    for (n, name) in [(20, "tap20"), (21, "tap21")] {
        plug_in(ns, far, name, n).unwrap();
    }
    let state = node.managed.path("state");
    let command = |what: &str| {
        let mut command = ns.command(binary());
        let out = command.args([what, "--state-dir", state.to_str().unwrap()]).output().unwrap();
        String::from_utf8(out.stdout).unwrap()
    };
    let send = |n, name| node.managed.send(n, name, PACKETS).unwrap();
    database.plug("tap20", &[("iface-id", PORT)]);
    let mut agent = node.managed.start().unwrap();
    assert_eq!(node.found("tap20")["id"], json!(PORT));
    send(20, "tap20");
    agent.signal(rustix::process::Signal::TERM);
    assert_eq!(agent.wait().unwrap(), Some(0));
    database.kill();
    // The kernel goes on counting, and so does the next agent.
    send(20, "tap20");
    let mut next = node.managed.start().unwrap();
    assert_eq!(node.found("tap20")["id"], json!(PORT));
    node.problem(Some("what it said before still holds"));
    let silent = "the source `ovsdb` of the inventory does not answer (1 NICs)";
    node.until("the status says so", |_| command("status").contains(silent).then_some(()));
    send(20, "tap20");
    // It is back, and takes over: one has gone that nobody told of, another has come.
    database.start();
    database.unplug("tap20");
    database.plug("tap21", &[("iface-id", "5c1b7c1e-0a55-4e1c-9d2f-0f6f0c5ad102")]);
    next.wait_for("watching interface=\"tap21\"").unwrap();
    node.lost("tap20");
    node.problem(None);
    node.until("the status says no more of it", |_| (!command("status").contains(silent)).then_some(()));
    send(20, "tap20");
    send(21, "tap21");
    next.signal(rustix::process::Signal::TERM);
    assert_eq!(next.wait().unwrap(), Some(0));
    assert!(next.log().contains(silent), "{}", next.log());
    let config = node.managed.path("flowlog.toml");
    let ended = ns.command(binary()).args(["detach", "--config", config.to_str().unwrap()]).output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let landed = node.landed().unwrap();
    let of = |id: &str| landed.sum(|r| r.dport == 9 && r.direction == "egress" && r.interface == id).0;
    assert_eq!(of(PORT), 3 * PACKETS as u64, "{:#?}", landed.rows);
    assert_eq!(of("5c1b7c1e-0a55-4e1c-9d2f-0f6f0c5ad102"), PACKETS as u64);
    assert!(landed.rows.iter().all(|r| r.skip != "gap"), "{:#?}", landed.rows);
}

#[test]
fn an_import_asks_the_database_without_an_agent_and_says_when_there_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let mut database = Ovsdb::new(dir.path());
    database.plug("tap20", &[("iface-id", PORT)]);
    let node = Sourced::new("no_pin = true", "", "{}").unwrap();
    let socket = database.socket();
    let args = ["ovsdb", "--database", socket.to_str().unwrap(), "--contract", "7", "--dry-run"];
    let (code, shown, words) = node.import(&args);
    assert!(code == Some(0) && shown.contains(PORT) && shown.contains("tap20"), "{shown}{words}");
    database.kill();
    let (code, shown, words) = node.import(&args);
    assert!(code == Some(75) && shown.is_empty() && words.contains("db.sock"), "{shown}{words}");
}
