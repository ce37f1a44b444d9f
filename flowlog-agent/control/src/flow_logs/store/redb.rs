//! The flow logs of one node, in one transactional file: `rules.redb` in the state directory. Values are JSON, so that a later version
//! can read an earlier one's. Nobody else writes there, so nothing is compared.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use flowlog_model::FlowLogId;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use super::{AuditEntry, Backend, Change, CommitError, Committed, Compared, FlowLogStoreError, audits};
use crate::{
    database,
    flow_logs::{flow_log::FlowLog, request::Request, shares::Shares},
    inventory::Contract,
};

/// Name of the file.
pub(super) const FILE: &str = "rules.redb";
/// Form of what is in it.
const FORMAT: u64 = 1;

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const FLOW_LOGS: TableDefinition<u128, &[u8]> = TableDefinition::new("flow_logs");
const REQUESTS: TableDefinition<u128, &[u8]> = TableDefinition::new("requests");
const AUDIT: TableDefinition<u64, &[u8]> = TableDefinition::new("audit");

type FlowLogs = BTreeMap<FlowLogId, FlowLog>;
type Requests = BTreeMap<Uuid, Request>;

/// As much of an entry as says whose it is.
#[derive(Deserialize)]
struct Contracted {
    contract: Contract,
}

/// Whose entries the audit log has, and the number of the next one.
#[derive(Default)]
struct AuditIndex {
    shares: Shares,
    next: u64,
}

/// See the module's head.
pub(super) struct RedbBackend {
    path: PathBuf,
    db: Database,
    index: Mutex<AuditIndex>,
    audit_max: usize,
}

impl RedbBackend {
    /// Opens the file, or makes it; with all flow logs and requests that are in it. So many entries of the audit log are kept.
    pub(super) fn open(state_dir: &Path, audit_max: usize) -> Result<(Self, FlowLogs, Requests), FlowLogStoreError> {
        let path = state_dir.join(FILE);
        let db = database::open(&path).map_err(|e| unusable(&path, &e))?;
        let store = Self { path, db, index: Mutex::default(), audit_max };
        let found = store.tried(Self::prepare)?;
        if found != FORMAT {
            return Err(FlowLogStoreError::Format { path: store.path, found, known: FORMAT });
        }
        let (flow_logs, requests) = store.tried(Self::read)?;
        *store.index() = store.tried(Self::read_audit)?;
        Ok((store, flow_logs, requests))
    }

    fn index(&self) -> MutexGuard<'_, AuditIndex> {
        // What is taken into account, and taken back, is so as a whole.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn read(&self) -> Result<(FlowLogs, Requests), redb::Error> {
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

    fn read_audit(&self) -> Result<AuditIndex, redb::Error> {
        let txn = self.db.begin_read()?;
        let mut index = AuditIndex::default();
        for entry in txn.open_table(AUDIT)?.iter()? {
            let (number, value) = entry?;
            let of: Contracted = parse(value.value())?;
            index.shares.push(&of.contract, number.value());
            index.next = number.value() + 1;
        }
        Ok(index)
    }

    fn write(&self, changes: &[Change], next: u64, forgotten: &[(Contract, u64)]) -> Result<(), redb::Error> {
        let txn = self.db.begin_write()?;
        {
            let mut flow_logs = txn.open_table(FLOW_LOGS)?;
            let mut requests = txn.open_table(REQUESTS)?;
            let mut audit = txn.open_table(AUDIT)?;
            let mut next = next;
            for change in changes {
                match change {
                    Change::Put(f) | Change::Import(f) => {
                        flow_logs.insert(f.id.0.as_u128(), json(f)?.as_slice())?;
                    }
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

    /// Those of a contract are found by their numbers: however many there are of others, they are not read.
    fn newest(&self, most: usize, contract: Option<&Contract>) -> Result<Vec<AuditEntry>, redb::Error> {
        let txn = self.db.begin_read()?;
        let table = txn.open_table(AUDIT)?;
        let Some(contract) = contract else {
            let newest = table.iter()?.rev().take(most);
            return newest.map(|entry| parse(entry?.1.value())).collect();
        };
        let numbers: Vec<u64> = self.index().shares.newest(contract).take(most).collect();
        let found = numbers.into_iter().map(|number| table.get(number));
        found.filter_map(Result::transpose).map(|entry| parse(entry?.value())).collect()
    }
}

impl AuditIndex {
    /// Takes new entries of the audit log into account; returns those that are forgotten for them.
    fn make_room(&mut self, changes: &[Change], audit_max: usize) -> Vec<(Contract, u64)> {
        for (number, entry) in (self.next..).zip(audits(changes)) {
            self.shares.push(&entry.contract, number);
        }
        self.shares.forget_past(audit_max)
    }
}

#[async_trait]
impl Backend for RedbBackend {
    async fn commit(&self, changes: &[Change], _: Compared) -> Result<Committed, CommitError> {
        let mut index = self.index();
        let forgotten = index.make_room(changes, self.audit_max);
        if let Err(error) = self.tried(|s| s.write(changes, index.next, &forgotten)) {
            forgotten.into_iter().rev().for_each(|(contract, number)| index.shares.undo_forget(contract, number));
            audits(changes).for_each(|entry| index.shares.undo_push(&entry.contract));
            return Err(CommitError::Failed(error));
        }
        index.next += audits(changes).count() as u64;
        Ok(Committed::Apply)
    }

    async fn audit(&self, most: usize, contract: Option<&Contract>) -> Result<Vec<AuditEntry>, FlowLogStoreError> {
        self.tried(|s| s.newest(most, contract))
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

#[cfg(test)]
mod tests {
    use super::super::{
        FlowLogStore, SharedStore,
        suite::{Opens, every_promise},
    };

    impl Opens for tempfile::TempDir {
        fn open_with(&self, audit_max: usize) -> impl Future<Output = SharedStore> {
            std::future::ready(SharedStore::new(FlowLogStore::open_with(self.path(), audit_max).expect("a store")))
        }
    }

    #[tokio::test]
    async fn the_file_of_one_node_keeps_every_promise_of_a_store() {
        every_promise(&tempfile::tempdir().expect("tempdir")).await;
    }
}
