//! What a node knows of all flow logs of its region, on its disk: `rules-fleet.redb` in the state directory. It is what holds while etcd
//! is away, also over a restart, and for a NIC that comes meanwhile. In memory are only those of the node's own resources.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use flowlog_model::FlowLogId;
use redb::{Database, ReadableDatabase as _, ReadableTableMetadata as _, TableDefinition};
use uuid::Uuid;

use crate::{
    database,
    etcd::{
        feed::{Entry, KeyChange, News, Position},
        keys::RuleKey,
    },
    flow_logs::{flow_log::FlowLog, store::FlowLogStoreError},
};

/// Name of the file.
const FILE: &str = "rules-fleet.redb";

/// Values by parent and id; each begins with the revision of its last change.
const FLOW_LOGS: TableDefinition<(u128, u128), &[u8]> = TableDefinition::new("flow_logs");
/// Where the feed was, as JSON.
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const POSITION: &str = "position";

/// A flow log, and when it was last changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mirrored {
    pub flow_log: FlowLog,
    pub revision: i64,
}

/// See the module's head.
#[derive(Clone)]
pub(super) struct Mirror {
    db: Arc<Database>,
    path: PathBuf,
}

impl Mirror {
    /// Opens it, or makes it. One that cannot be used is made anew: etcd has what was in it.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(super) fn open(state_dir: &Path) -> Result<Self, FlowLogStoreError> {
        let path = state_dir.join(FILE);
        let unusable = |error: &dyn std::error::Error| FlowLogStoreError::Unusable {
            path: path.clone(),
            problem: error.to_string(),
        };
        let made = || -> Result<Database, redb::Error> {
            let db = database::open(&path)?;
            let txn = db.begin_write()?;
            txn.open_table(FLOW_LOGS)?;
            txn.open_table(META)?;
            txn.commit()?;
            Ok(db)
        };
        let db = match made() {
            Ok(db) => db,
            Err(redb::Error::Corrupted(words)) => {
                tracing::error!("`{}` is not what it was ({words}): made anew, from etcd", path.display());
                std::fs::remove_file(&path).map_err(|e| unusable(&e))?;
                made().map_err(|e| unusable(&e))?
            }
            Err(error) => return Err(unusable(&error)),
        };
        Ok(Self { db: Arc::new(db), path })
    }

    fn tried<T>(&self, result: Result<T, redb::Error>) -> Result<T, FlowLogStoreError> {
        result.map_err(|e| FlowLogStoreError::Unusable { path: self.path.clone(), problem: e.to_string() })
    }

    /// Where the feed was; `None`: nothing was ever read.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn position(&self) -> Result<Option<Position>, FlowLogStoreError> {
        let read = || -> Result<Option<Position>, redb::Error> {
            let txn = self.db.begin_read()?;
            let found = txn.open_table(META)?.get(POSITION)?;
            Ok(found.and_then(|value| serde_json::from_slice(value.value()).ok()))
        };
        self.tried(read())
    }

    /// What is to hold until all of it comes.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn seed(&self, flow_logs: &[FlowLog]) -> Result<(), FlowLogStoreError> {
        let write = || -> Result<(), redb::Error> {
            let txn = self.db.begin_write()?;
            {
                let mut table = txn.open_table(FLOW_LOGS)?;
                for flow_log in flow_logs {
                    let name = RuleKey::FlowLog { parent: flow_log.parent.id, id: flow_log.id }.name();
                    let value = serde_json::to_vec(flow_log).map_err(|e| redb::Error::Io(e.into()))?;
                    put(&mut table, &Entry { name, value, revision: 0 })?;
                }
            }
            txn.commit()?;
            Ok(())
        };
        self.tried(write())
    }

    /// How many flow logs there are.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn len(&self) -> Result<u64, FlowLogStoreError> {
        let read = || -> Result<u64, redb::Error> { Ok(self.db.begin_read()?.open_table(FLOW_LOGS)?.len()?) };
        self.tried(read())
    }

    /// Those of these resources.
    ///
    /// # Errors
    /// If they cannot be read.
    pub(super) fn of(
        &self,
        parents: impl Iterator<Item = Uuid>,
    ) -> Result<BTreeMap<FlowLogId, Mirrored>, FlowLogStoreError> {
        let read = || -> Result<BTreeMap<FlowLogId, Mirrored>, redb::Error> {
            let txn = self.db.begin_read()?;
            let table = txn.open_table(FLOW_LOGS)?;
            let mut all = BTreeMap::new();
            for parent in parents {
                let parent = parent.as_u128();
                for entry in table.range((parent, 0)..=(parent, u128::MAX))? {
                    let (_, value) = entry?;
                    if let Some(known) = parsed(value.value()) {
                        all.insert(known.flow_log.id, known);
                    }
                }
            }
            Ok(all)
        };
        self.tried(read())
    }

    /// Writes changes down, with how far that is.
    fn change(&self, changes: &[KeyChange], at: &Position) -> Result<(), redb::Error> {
        let txn = self.db.begin_write()?;
        {
            let mut table = txn.open_table(FLOW_LOGS)?;
            for change in changes {
                match change {
                    KeyChange::Put(entry) => put(&mut table, entry)?,
                    KeyChange::Delete(name) => {
                        if let Some(RuleKey::FlowLog { parent, id }) = RuleKey::of(name) {
                            table.remove((parent.as_u128(), id.0.as_u128()))?;
                        }
                    }
                }
            }
            write_position(&txn, at)?;
        }
        txn.commit()?;
        Ok(())
    }
}

fn put(table: &mut redb::Table<'_, (u128, u128), &[u8]>, entry: &Entry) -> Result<(), redb::Error> {
    if let Some(RuleKey::FlowLog { parent, id }) = RuleKey::of(&entry.name) {
        let value = [&entry.revision.to_be_bytes()[..], &entry.value].concat();
        table.insert((parent.as_u128(), id.0.as_u128()), value.as_slice())?;
    }
    Ok(())
}

fn parsed(value: &[u8]) -> Option<Mirrored> {
    let (revision, json) = value.split_first_chunk::<8>()?;
    match serde_json::from_slice(json) {
        Ok(flow_log) => Some(Mirrored { flow_log, revision: i64::from_be_bytes(*revision) }),
        Err(error) => {
            tracing::error!(%error, "a flow log is not understood, and left out: is it of a later version?");
            None
        }
    }
}

fn write_position(txn: &redb::WriteTransaction, at: &Position) -> Result<(), redb::Error> {
    let json = serde_json::to_vec(at).map_err(|e| redb::Error::Io(e.into()))?;
    txn.open_table(META)?.insert(POSITION, json.as_slice())?;
    Ok(())
}

/// Keeps what a feed says in a mirror. All of it that comes anew is in one transaction: until its end, what was known holds.
pub(super) struct Writing {
    mirror: Mirror,
    anew: Option<redb::WriteTransaction>,
}

impl Writing {
    pub(super) fn new(mirror: Mirror) -> Self {
        Self { mirror, anew: None }
    }

    /// Takes the next; whether what is known has changed.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn take(&mut self, news: News) -> Result<bool, FlowLogStoreError> {
        let result = self.write(news);
        if result.is_err() {
            self.anew = None;
        }
        self.mirror.tried(result)
    }

    fn write(&mut self, news: News) -> Result<bool, redb::Error> {
        match news {
            News::Begin(_) => {
                self.anew = None;
                let txn = self.mirror.db.begin_write()?;
                txn.delete_table(FLOW_LOGS)?;
                txn.open_table(FLOW_LOGS)?;
                self.anew = Some(txn);
                Ok(false)
            }
            News::Page(entries) => {
                if let Some(txn) = &self.anew {
                    let mut table = txn.open_table(FLOW_LOGS)?;
                    for entry in &entries {
                        put(&mut table, entry)?;
                    }
                }
                Ok(false)
            }
            News::End(at) => {
                if let Some(txn) = self.anew.take() {
                    write_position(&txn, &at)?;
                    txn.commit()?;
                }
                Ok(true)
            }
            News::Changes(changes, at) => {
                self.mirror.change(&changes, &at)?;
                Ok(!changes.is_empty())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow_logs::flow_log::tests::sample;

    fn entry(parent: u128, id: u128, revision: i64) -> Entry {
        let mut flow_log = sample();
        flow_log.id = FlowLogId(Uuid::from_u128(id));
        flow_log.parent.id = Uuid::from_u128(parent);
        let name = RuleKey::FlowLog { parent: flow_log.parent.id, id: flow_log.id }.name();
        Entry { name, value: serde_json::to_vec(&flow_log).expect("json"), revision }
    }

    fn at(revision: i64) -> Position {
        Position { revision, ..Position::default() }
    }

    fn known(mirror: &Mirror, parent: u128) -> Vec<(u128, i64)> {
        let all = mirror.of([Uuid::from_u128(parent)].into_iter()).expect("readable");
        all.values().map(|k| (k.flow_log.id.0.as_u128(), k.revision)).collect()
    }

    #[test]
    fn what_was_known_holds_until_all_of_it_has_come_anew_and_over_a_restart() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mirror = Mirror::open(dir.path()).expect("new");
        assert_eq!(mirror.position().expect("readable"), None);
        let mut writing = Writing::new(mirror.clone());
        let mut take = |news| writing.take(news).expect("kept");
        assert!(!take(News::Begin("new")) && !take(News::Page(vec![entry(1, 10, 5), entry(2, 20, 6)])));
        assert_eq!(known(&mirror, 1), []);
        assert!(take(News::End(at(7))));
        assert_eq!((known(&mirror, 1), known(&mirror, 2)), (vec![(10, 5)], vec![(20, 6)]));
        let gone = KeyChange::Delete(entry(2, 20, 0).name);
        assert!(take(News::Changes(vec![KeyChange::Put(entry(1, 11, 8)), gone], at(9))));
        assert!(!take(News::Changes(Vec::new(), at(12))));
        // A reading that is cut short.
        take(News::Begin("compacted"));
        take(News::Page(vec![entry(9, 90, 1)]));
        drop(writing);
        drop(mirror);
        let mirror = Mirror::open(dir.path()).expect("again");
        assert_eq!((known(&mirror, 1), known(&mirror, 2), known(&mirror, 9)), (vec![(10, 5), (11, 8)], vec![], vec![]));
        assert_eq!((mirror.position().expect("readable"), mirror.len().expect("readable")), (Some(at(12)), 2));
    }
}
