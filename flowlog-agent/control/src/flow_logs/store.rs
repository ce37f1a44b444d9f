//! The flow-log store: flow logs, requests and the audit log in one transactional file. Every change is one transaction with
//! its entry in the audit log; it is durable before anybody acts on it.
//!
//! The file is `rules.redb` in the state directory. Values are JSON, so that a later version can read an earlier one's.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::OpenOptions,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use flowlog_host::fault;
use flowlog_model::FlowLogId;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, backends::FileBackend};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::watch;
use uuid::Uuid;

use super::{
    flow_log::{FlowLog, Stamp, State},
    request::Request,
    shares::Shares,
};
use crate::inventory::Contract;

/// Name of the file.
pub(crate) const FILE: &str = "rules.redb";
/// Form of what is in it.
const FORMAT: u64 = 1;
/// Entries of the audit log that are kept: a change a minute for two months.
pub(crate) const AUDIT_KEPT_MAX: usize = 100_000;

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const FLOW_LOGS: TableDefinition<u128, &[u8]> = TableDefinition::new("flow_logs");
const REQUESTS: TableDefinition<u128, &[u8]> = TableDefinition::new("requests");
const AUDIT: TableDefinition<u64, &[u8]> = TableDefinition::new("audit");

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum FlowLogStoreError {
    /// The file cannot be used.
    #[error("flow-log store `{}`: {problem}", path.display())]
    Unusable { path: PathBuf, problem: String },
    /// A later version wrote it.
    #[error("flow-log store `{}` has format {found}, this is format {FORMAT}; use the version of flowlog that wrote it", path.display())]
    Format { path: PathBuf, found: u64 },
    /// A change of state that is not allowed. Only a bug of ours asks for one.
    #[error("flow log {id} cannot go from {from:?} to {to:?}: a bug; nothing was changed")]
    Leap {
        id: FlowLogId,
        /// Its state; `None`: it is not in the store.
        from: Option<State>,
        /// The state that was asked for; `None`: it was to be removed.
        to: Option<State>,
    },
}

/// An entry of the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    pub stamp: Stamp,
    pub contract: Contract,
    pub flow_log: FlowLogId,
    /// What happened, in words.
    pub what: String,
}

/// As much of an entry as says whose it is.
#[derive(Deserialize)]
struct Contracted {
    contract: Contract,
}

/// A part of a transaction.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// A flow log as it is from now on.
    Put(Box<FlowLog>),
    /// A flow log that is gone.
    Remove(FlowLogId),
    /// A request as it is from now on.
    Request(Box<Request>),
    /// A request that nobody will ask for any more.
    Forget(Uuid),
    Audit(Box<AuditEntry>),
}

/// The store, and all of it in memory: there are hundreds of flow logs, not millions.
pub struct FlowLogStore {
    path: PathBuf,
    db: Database,
    flow_logs: BTreeMap<FlowLogId, FlowLog>,
    requests: BTreeMap<Uuid, Request>,
    /// Those that are not over: few of many.
    open: BTreeSet<Uuid>,
    audit_next: u64,
    /// Entries of the audit log.
    audit: Shares,
    changed: watch::Sender<()>,
}

/// The store, shared by those who read it and those who change it. A change is checked and committed under one lock.
#[derive(Clone)]
pub(crate) struct SharedStore(Arc<Mutex<FlowLogStore>>);

impl SharedStore {
    #[must_use]
    pub(crate) fn new(store: FlowLogStore) -> Self {
        Self(Arc::new(Mutex::new(store)))
    }

    /// The store, for this caller alone until the guard is dropped. Never held while somebody is waited for.
    pub(crate) fn lock(&self) -> MutexGuard<'_, FlowLogStore> {
        // A commit is all or nothing: whoever panicked has left the store whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FlowLogStore {
    /// Opens the store of a state directory, or makes it. What a crash interrupted is as if it had not begun.
    ///
    /// # Errors
    /// If it cannot be used.
    pub fn open(state_dir: &Path) -> Result<Self, FlowLogStoreError> {
        let path = state_dir.join(FILE);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(|e| unusable(&path, &e))?;
        let db = FileBackend::new(file)
            .map_err(redb::Error::from)
            .and_then(|backend| Ok(Database::builder().create_with_backend(backend)?))
            .map_err(|e| unusable(&path, &e))?;
        let mut store = Self {
            path,
            db,
            flow_logs: BTreeMap::new(),
            requests: BTreeMap::new(),
            open: BTreeSet::new(),
            audit_next: 0,
            audit: Shares::default(),
            changed: watch::Sender::default(),
        };
        let found = store.tried(Self::prepare)?;
        if found != FORMAT {
            return Err(FlowLogStoreError::Format { path: store.path, found });
        }
        (store.flow_logs, store.requests) = store.tried(Self::read)?;
        store.open = store.requests.values().filter(|r| !r.progress.is_over()).map(|r| r.id).collect();
        (store.audit, store.audit_next) = store.tried(Self::read_audit)?;
        Ok(store)
    }

    fn tried<T>(&self, work: impl FnOnce(&Self) -> Result<T, redb::Error>) -> Result<T, FlowLogStoreError> {
        work(self).map_err(|e| unusable(&self.path, &e))
    }

    /// Makes the tables; returns the format.
    fn prepare(&self) -> Result<u64, redb::Error> {
        let txn = self.db.begin_write()?;
        let format = {
            let mut meta = txn.open_table(META)?;
            let found = meta.get("format")?.map(|v| v.value());
            if found.is_none() {
                meta.insert("format", FORMAT)?;
            }
            txn.open_table(FLOW_LOGS)?;
            txn.open_table(REQUESTS)?;
            txn.open_table(AUDIT)?;
            found.unwrap_or(FORMAT)
        };
        txn.commit()?;
        Ok(format)
    }

    #[allow(clippy::type_complexity, reason = "two parts of the store, once")]
    fn read(&self) -> Result<(BTreeMap<FlowLogId, FlowLog>, BTreeMap<Uuid, Request>), redb::Error> {
        let txn = self.db.begin_read()?;
        let mut flow_logs = BTreeMap::new();
        let mut requests = BTreeMap::new();
        for entry in txn.open_table(FLOW_LOGS)?.iter()? {
            let (id, value) = entry?;
            let flow_log = parse(value.value())?;
            flow_logs.insert(FlowLogId(Uuid::from_u128(id.value())), flow_log);
        }
        for entry in txn.open_table(REQUESTS)?.iter()? {
            let (id, value) = entry?;
            requests.insert(Uuid::from_u128(id.value()), parse(value.value())?);
        }
        Ok((flow_logs, requests))
    }

    /// Whose entries the audit log has, and the number of the next one.
    fn read_audit(&self) -> Result<(Shares, u64), redb::Error> {
        let txn = self.db.begin_read()?;
        let mut shares = Shares::default();
        let mut next = 0;
        for entry in txn.open_table(AUDIT)?.iter()? {
            let (number, value) = entry?;
            let of: Contracted = parse(value.value())?;
            shares.push(&of.contract, number.value());
            next = number.value() + 1;
        }
        Ok((shares, next))
    }

    #[must_use]
    pub fn flow_logs(&self) -> &BTreeMap<FlowLogId, FlowLog> {
        &self.flow_logs
    }

    #[must_use]
    pub(crate) fn requests(&self) -> &BTreeMap<Uuid, Request> {
        &self.requests
    }

    /// Whether a flow log has a request that is not over.
    #[must_use]
    pub(crate) fn is_busy(&self, id: FlowLogId) -> bool {
        self.open_requests().any(|r| r.work.flow_logs().contains(&id))
    }

    /// Requests that are not over.
    pub(crate) fn open_requests(&self) -> impl Iterator<Item = &Request> {
        self.open.iter().filter_map(|id| self.requests.get(id))
    }

    /// Tells when something has changed.
    #[must_use]
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Makes changes, all or none, durable before they are seen.
    ///
    /// # Errors
    /// If they cannot be made durable; then nothing has changed.
    pub(crate) fn commit(&mut self, changes: Vec<Change>) -> Result<(), FlowLogStoreError> {
        self.refuse_leaps(&changes)?;
        fault::point("rules_commit");
        let forgotten = self.make_room(&changes);
        if let Err(error) = self.tried(|s| s.write(&changes, &forgotten)) {
            forgotten.into_iter().rev().for_each(|(contract, number)| self.audit.undo_forget(contract, number));
            audits(&changes).for_each(|entry| self.audit.undo_push(&entry.contract));
            return Err(error);
        }
        fault::point("rules_committed");
        for change in changes {
            match change {
                Change::Put(f) => drop(self.flow_logs.insert(f.id, *f)),
                Change::Remove(id) => drop(self.flow_logs.remove(&id)),
                Change::Request(r) => {
                    if r.progress.is_over() {
                        self.open.remove(&r.id);
                    } else {
                        self.open.insert(r.id);
                    }
                    self.requests.insert(r.id, *r);
                }
                Change::Forget(id) => {
                    self.open.remove(&id);
                    self.requests.remove(&id);
                }
                Change::Audit(entry) => {
                    let AuditEntry { stamp, contract, flow_log, what } = *entry;
                    tracing::info!(by = stamp.by, %contract, %flow_log, "{what}");
                    self.audit_next += 1;
                }
            }
        }
        self.changed.send_replace(());
        Ok(())
    }

    /// Takes new entries of the audit log into account; returns those that are forgotten for them.
    fn make_room(&mut self, changes: &[Change]) -> Vec<(Contract, u64)> {
        for (number, entry) in (self.audit_next..).zip(audits(changes)) {
            self.audit.push(&entry.contract, number);
        }
        let surplus = self.audit.len().saturating_sub(AUDIT_KEPT_MAX);
        (0..surplus).filter_map(|_| self.audit.forget()).collect()
    }

    /// Refuses changes of state that are not in the drawing of [`super::flow_log`].
    fn refuse_leaps(&self, changes: &[Change]) -> Result<(), FlowLogStoreError> {
        let mut states: BTreeMap<FlowLogId, Option<State>> = BTreeMap::new();
        for change in changes {
            let (id, next) = match change {
                Change::Put(f) => (f.id, Some(f.state)),
                Change::Remove(id) => (*id, None),
                _ => continue,
            };
            let now = *states.entry(id).or_insert_with(|| self.flow_logs.get(&id).map(|f| f.state));
            let good = match (now, next) {
                (None, Some(first)) => first == State::Draft,
                (Some(now), Some(next)) => now.may_become(next),
                (Some(now), None) => now.may_end(),
                (None, None) => true,
            };
            if !good {
                return Err(FlowLogStoreError::Leap { id, from: now, to: next });
            }
            states.insert(id, next);
        }
        Ok(())
    }

    fn write(&self, changes: &[Change], forgotten: &[(Contract, u64)]) -> Result<(), redb::Error> {
        let txn = self.db.begin_write()?;
        {
            let mut flow_logs = txn.open_table(FLOW_LOGS)?;
            let mut requests = txn.open_table(REQUESTS)?;
            let mut audit = txn.open_table(AUDIT)?;
            let mut next = self.audit_next;
            for change in changes {
                match change {
                    Change::Put(f) => drop(flow_logs.insert(f.id.0.as_u128(), json(f)?.as_slice())?),
                    Change::Remove(id) => drop(flow_logs.remove(id.0.as_u128())?),
                    Change::Request(r) => drop(requests.insert(r.id.as_u128(), json(r)?.as_slice())?),
                    Change::Forget(id) => drop(requests.remove(id.as_u128())?),
                    Change::Audit(entry) => {
                        audit.insert(next, json(entry)?.as_slice())?;
                        next += 1;
                    }
                }
            }
            for (_, number) in forgotten {
                audit.remove(number)?;
            }
        }
        txn.commit()?;
        Ok(())
    }

    /// The last `most` entries of the audit log, of one contract or of all, newest first. Those of a contract are found by their
    /// numbers: however many there are of others, they are not read.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn audit(&self, most: usize, contract: Option<&Contract>) -> Result<Vec<AuditEntry>, FlowLogStoreError> {
        self.tried(|s| {
            let txn = s.db.begin_read()?;
            let table = txn.open_table(AUDIT)?;
            let Some(contract) = contract else {
                let newest = table.iter()?.rev().take(most);
                return newest.map(|entry| parse(entry?.1.value())).collect();
            };
            let found = s.audit.newest(contract).take(most).map(|number| table.get(number));
            found.filter_map(Result::transpose).map(|entry| parse(entry?.value())).collect()
        })
    }
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, redb::Error> {
    serde_json::to_vec(value).map_err(|e| redb::Error::Io(e.into()))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, redb::Error> {
    serde_json::from_slice(bytes).map_err(|e| redb::Error::Io(e.into()))
}

fn unusable(path: &Path, error: &dyn std::error::Error) -> FlowLogStoreError {
    FlowLogStoreError::Unusable { path: path.to_owned(), problem: error.to_string() }
}

/// The entries of the audit log among changes.
fn audits(changes: &[Change]) -> impl Iterator<Item = &AuditEntry> {
    changes.iter().filter_map(|change| if let Change::Audit(entry) = change { Some(&**entry) } else { None })
}
