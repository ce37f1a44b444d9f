//! The interfaces of Open vSwitch, from its database: it tells of each change.
//!
//! Whoever plugs a VM into the switch says whose interface it is, in `external_ids`: `iface-id` (the cloud's port), `attached-mac`, `vm-id`
//! (libvirt) or `vm-uuid` (Nova).

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde_json::Value;
use uuid::Uuid;

use super::{
    FoundNic, Identity, Look, NICS_MAX, Source, SourceError,
    rpc::{Connection, RowUpdate, RpcError, Updates},
};

/// What is watched. `ifindex` is not needed to find an interface; that it changes says that it is another one.
const COLUMNS: [&str; 4] = ["name", "ifindex", "external_ids", "mac_in_use"];
/// After so long without a word the database is asked whether it is still there, and after as much again it is not.
const QUIET: Duration = Duration::from_secs(15);
/// Changes come in bursts, one for each step of plugging in: how long it must be quiet before somebody looks.
const BURST: Duration = Duration::from_millis(20);
/// Changes of one burst that are waited for at most.
const BURSTS_MAX: usize = 64;

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Database {
    socket: PathBuf,
    connection: Option<Connection>,
    /// Rows that are NICs, by their ids.
    rows: BTreeMap<String, FoundNic>,
    /// Rows of interfaces that are nobody's, or of too many.
    left_out: usize,
}

impl Database {
    /// The one that listens here.
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket, connection: None, rows: BTreeMap::new(), left_out: 0 }
    }

    fn failed(&mut self, error: &RpcError) -> SourceError {
        self.connection = None;
        SourceError::Answer { path: self.socket.clone(), words: error.to_string() }
    }

    fn connect(&mut self) -> Result<(), RpcError> {
        let (connection, rows) = Connection::open(&self.socket, "Open_vSwitch", "Interface", &COLUMNS)?;
        self.connection = Some(connection);
        // Whatever happened while nobody told us.
        self.rows.clear();
        self.left_out = 0;
        self.apply(rows);
        Ok(())
    }

    fn apply(&mut self, updates: Updates) {
        for (id, RowUpdate { new }) in updates {
            match new.as_ref().and_then(nic) {
                Some(_) if self.rows.len() == NICS_MAX && !self.rows.contains_key(&id) => self.left_out += 1,
                Some(nic) => drop(self.rows.insert(id, nic)),
                None => drop(self.rows.remove(&id)),
            }
        }
    }

    /// Takes changes until it is quiet for a moment.
    fn changes(&mut self) -> Result<(), RpcError> {
        for n in 0..BURSTS_MAX {
            let Some(connection) = &mut self.connection else { return Ok(()) };
            let is_first = n == 0;
            match connection.next(if is_first { QUIET } else { BURST }, is_first)? {
                Some(updates) => self.apply(updates),
                None => return Ok(()),
            }
        }
        Ok(())
    }
}

impl Source for Database {
    fn look(&mut self) -> Result<Look, SourceError> {
        if self.connection.is_none() {
            self.connect().map_err(|e| self.failed(&e))?;
        }
        let mut nics: Vec<FoundNic> = self.rows.values().cloned().collect();
        // Rows have random ids: whoever compares two looks wants one order.
        nics.sort_by(|a, b| a.interface.cmp(&b.interface));
        let problem = (self.left_out > 0)
            .then(|| format!("{}: interfaces past the first {NICS_MAX} are left out", self.socket.display()));
        Ok(Look { nics, problems: problem.into_iter().collect() })
    }

    /// That there are too many gets no better by asking again: it is told when it does.
    fn wait(&mut self, _at_most: Option<Duration>) -> Result<(), SourceError> {
        self.changes().map_err(|e| self.failed(&e))
    }
}

/// The NIC of a row; `None`: nobody has said whose interface it is.
fn nic(row: &BTreeMap<String, Value>) -> Option<FoundNic> {
    let interface = row.get("name")?.as_str().filter(|name| !name.is_empty())?.to_owned();
    let known = map(row.get("external_ids")?);
    let get = |name: &str| known.get(name).copied().filter(|value| !value.is_empty());
    let mac = get("attached-mac").and_then(|text| text.parse().ok());
    let vm: Option<Uuid> = get("vm-id").or(get("vm-uuid")).and_then(|text| text.parse().ok());
    let identity = match (get("iface-id"), vm, mac) {
        (Some(port), ..) => Identity::of_port(port),
        (None, Some(vm), Some(mac)) => Identity::VmAndMac(vm, mac),
        _ => return None,
    };
    Some(FoundNic {
        identity,
        interface,
        mac,
        server: vm,
        name: String::new(),
        project: None,
        labels: BTreeMap::new(),
        groups: BTreeMap::new(),
        side: None,
    })
}

/// `["map", [[key, value], …]]`; what is no text is left out.
fn map(value: &Value) -> BTreeMap<&str, &str> {
    let pairs = value.as_array().filter(|all| all.first().is_some_and(|tag| tag == "map"));
    let pairs = pairs.and_then(|all| all.get(1)?.as_array()).into_iter().flatten();
    pairs.filter_map(|pair| Some((pair.get(0)?.as_str()?, pair.get(1)?.as_str()?))).collect()
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        os::unix::net::{UnixListener, UnixStream},
        thread::JoinHandle,
    };

    use serde_json::json;

    use super::*;

    const PORT: &str = "5c1b7c1e-0a55-4e1c-9d2f-0f6f0c5ad001";

    fn row(name: &str, ids: &[(&str, &str)]) -> Value {
        json!({ "new": { "name": name, "ifindex": ["set", []], "external_ids": ["map", ids], "mac_in_use": ["set", []] } })
    }

    #[test]
    fn an_interface_is_a_nic_if_somebody_has_said_whose_it_is() {
        let of = |value: Value| {
            let update: RowUpdate = serde_json::from_value(value).expect("a row");
            update.new.as_ref().and_then(nic)
        };
        let vm = "7d2b0d3a-4f5e-4a60-8f57-3a1f2f3c0001";
        let whole =
            [("iface-id", PORT), ("attached-mac", "52:54:00:00:00:01"), ("vm-id", vm), ("iface-status", "active")];
        let nic = of(row("tap1", &whole)).expect("a NIC");
        assert_eq!((nic.identity.id().to_string(), nic.interface.as_str()), (PORT.to_owned(), "tap1"));
        assert_eq!(nic.server.map(|s| s.to_string()).as_deref(), Some(vm));
        assert!(of(row("tap1", &whole[1..])).is_some_and(|n| matches!(n.identity, Identity::VmAndMac(..))));
        assert!(
            of(row("lsp", &[("iface-id", "ovn-lsp-1")])).is_some_and(|n| matches!(n.identity, Identity::PortName(_)))
        );
        assert_eq!(of(row("br-int", &[])), None);
        assert_eq!(of(row("tap1", &whole[1..2])), None, "an address alone is another one's on another network");
        assert_eq!(of(json!({ "new": { "name": 7, "external_ids": "x" } })), None);
    }

    /// A database that says this to whoever connects, and then does that.
    fn server(dir: &std::path::Path, then: impl FnOnce(UnixStream) + Send + 'static) -> (PathBuf, JoinHandle<()>) {
        let path = dir.join("db.sock");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).expect("a socket");
        (path, std::thread::spawn(move || then(listener.accept().expect("a client").0)))
    }

    fn said(stream: &mut UnixStream, words: &str) {
        let mut all = String::new();
        let mut bytes = [0; 512];
        while !all.contains(words) {
            let n = stream.read(&mut bytes).expect("bytes");
            assert!(n > 0, "no `{words}` in `{all}`");
            all.push_str(&String::from_utf8_lossy(&bytes[..n]));
        }
    }

    fn reply(rows: &Value) -> String {
        json!({ "id": "watch", "error": null, "result": { "Interface": rows } }).to_string()
    }

    #[test]
    fn echoes_are_answered_changes_are_told_and_a_database_that_goes_is_an_error_until_it_is_back() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (path, serving) = server(dir.path(), |mut stream| {
            said(&mut stream, "monitor");
            // In pieces, and two after each other in one.
            let rows = reply(&json!({ "r1": row("tap1", &[("iface-id", PORT)]), "r0": row("br", &[]) }));
            let (a, b) = rows.split_at(20);
            stream.write_all(a.as_bytes()).expect("sent");
            stream
                .write_all(format!("{b}{}", json!({ "method": "echo", "params": ["x"], "id": "e" })).as_bytes())
                .expect("sent");
            said(&mut stream, "\"result\":[\"x\"]");
            let changed = json!({ "Interface": { "r1": { "old": {} }, "r2": row("tap2", &[("iface-id", "two")]) } });
            let update = json!({ "method": "update", "params": [null, changed], "id": null });
            stream.write_all(update.to_string().as_bytes()).expect("sent");
        });
        let mut database = Database::new(path);
        let names = |look: &Look| look.nics.iter().map(|n| n.interface.clone()).collect::<Vec<_>>();
        assert_eq!(names(&database.look().expect("rows")), ["tap1"]);
        // Its end, and perhaps the change before it, in one wait.
        while database.wait(None).is_ok() && names(&database.look().expect("rows")) != ["tap2"] {}
        serving.join().expect("served");
        let gone = loop {
            match database.wait(None) {
                Ok(()) => {}
                Err(error) => break error.to_string(),
            }
            if database.connection.is_none() {
                break "closed".to_owned();
            }
        };
        assert!(gone.contains("closed"), "{gone}");
        let (_, serving) = server(dir.path(), |mut stream| {
            said(&mut stream, "monitor");
            stream.write_all(reply(&json!({ "r3": row("tap3", &[("iface-id", PORT)]) })).as_bytes()).expect("sent");
        });
        assert_eq!(names(&database.look().expect("rows")), ["tap3"], "what was there before is forgotten");
        serving.join().expect("served");
    }

    #[test]
    fn what_is_no_answer_ends_the_connection_with_a_reason() {
        for (answer, words) in [
            ("[1]".to_owned(), "not what RFC 7047 says"),
            ("}".to_owned(), "not what RFC 7047 says"),
            (
                json!({ "id": "watch", "error": "no database", "result": null }).to_string(),
                "it refuses: \"no database\"",
            ),
            (
                json!({ "id": "watch", "error": null, "result": { "Interface": 7 } }).to_string(),
                "not what RFC 7047 says",
            ),
            (String::new(), "it has closed the connection"),
        ] {
            let dir = tempfile::tempdir().expect("tempdir");
            let (path, serving) = server(dir.path(), move |mut stream| {
                said(&mut stream, "monitor");
                stream.write_all(answer.as_bytes()).expect("sent");
            });
            let error = Database::new(path).look().expect_err(words).to_string();
            assert!(error.contains(words) && !error.contains('\n'), "{error}");
            serving.join().expect("served");
        }
        let nobody = Database::new("/nowhere/db.sock".into()).look().expect_err("nobody").to_string();
        assert!(nobody.starts_with("/nowhere/db.sock: "), "{nobody}");
    }
}
