//! What a node knows of all flow logs of its region, on its disk: `rules-fleet.redb` in the state directory. It is what holds while etcd
//! is away, also over a restart, and for a NIC that comes meanwhile. In memory are only those of the node's own resources.
//!
//! A value that is not understood does not take the place of one that was: it is kept beside it, for a later version of this program.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use flowlog_model::FlowLogId;
use redb::{
    Database, ReadOnlyTable, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _, TableDefinition,
};
use uuid::Uuid;

use crate::{
    database,
    etcd::{
        feed::{Entry, KeyChange, News, Position},
        keys::RuleKey,
    },
    flow_logs::{
        flow_log::FlowLog,
        store::{
            FlowLogStoreError,
            understood::{NotUnderstood, understood},
        },
    },
};

/// Name of the file.
const FILE: &str = "rules-fleet.redb";

/// Values by parent and id, as they were understood last; each begins with the revision of its last change.
const FLOW_LOGS: TableDefinition<(u128, u128), &[u8]> = TableDefinition::new("flow_logs");
/// In the same form: values that are newer, and not understood.
const NOT_UNDERSTOOD: TableDefinition<(u128, u128), &[u8]> = TableDefinition::new("not_understood");
/// Where the feed was, as JSON.
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const POSITION: &str = "position";
/// The id of this state directory.
const INSTANCE: &str = "instance";

/// What is known of a flow log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Mirrored {
    /// As it was understood last, and when that was written; `None`: it never was.
    pub flow_log: Option<(FlowLog, i64)>,
    /// What is there now, if that is not understood.
    pub not_understood: Option<NotUnderstood>,
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
            txn.open_table(NOT_UNDERSTOOD)?;
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

    /// The id of this state directory, made when it is asked for first.
    ///
    /// # Errors
    /// If it cannot be read or written.
    pub(super) fn instance(&self) -> Result<Uuid, FlowLogStoreError> {
        let read = || -> Result<Uuid, redb::Error> {
            let txn = self.db.begin_write()?;
            let instance = {
                let mut table = txn.open_table(META)?;
                let found = table.get(INSTANCE)?.and_then(|value| Uuid::from_slice(value.value()).ok());
                let instance = found.unwrap_or_else(Uuid::new_v4);
                table.insert(INSTANCE, instance.as_bytes().as_slice())?;
                instance
            };
            txn.commit()?;
            Ok(instance)
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
                let mut tables = Tables::of(&txn, None)?;
                for flow_log in flow_logs {
                    let name = RuleKey::FlowLog { parent: flow_log.parent.id, id: flow_log.id }.name();
                    let value = serde_json::to_vec(flow_log).map_err(|e| redb::Error::Io(e.into()))?;
                    tables.put(&Entry { name, value, revision: 0 })?;
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
            let (flow_logs, not_understood) = (txn.open_table(FLOW_LOGS)?, txn.open_table(NOT_UNDERSTOOD)?);
            let mut all: BTreeMap<FlowLogId, Mirrored> = BTreeMap::new();
            for parent in parents {
                let of = parent.as_u128();
                // What an earlier version did not understand is newer, and may be understood now.
                for table in [&flow_logs, &not_understood] {
                    for entry in table.range((of, 0)..=(of, u128::MAX))? {
                        let (key, value) = entry?;
                        let id = FlowLogId(Uuid::from_u128(key.value().1));
                        let Some((revision, json)) = split(value.value()) else { continue };
                        let known = all.entry(id).or_default();
                        match understood((parent, id), json, revision) {
                            Ok(flow_log) => {
                                *known = Mirrored { flow_log: Some((flow_log, revision)), not_understood: None };
                            }
                            Err(not) => known.not_understood = Some(not),
                        }
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
            let mut tables = Tables::of(&txn, None)?;
            for change in changes {
                match change {
                    KeyChange::Put(entry) => tables.put(entry)?,
                    KeyChange::Delete(name) => tables.remove(name)?,
                }
            }
            write_position(&txn, at)?;
        }
        txn.commit()?;
        Ok(())
    }
}

/// What was understood before all of it came anew.
type Before = ReadOnlyTable<(u128, u128), &'static [u8]>;

/// The tables of a transaction.
struct Tables<'a> {
    flow_logs: redb::Table<'a, (u128, u128), &'static [u8]>,
    not_understood: redb::Table<'a, (u128, u128), &'static [u8]>,
    /// What was understood before all of it came anew.
    before: Option<&'a Before>,
}

impl<'a> Tables<'a> {
    fn of(txn: &'a redb::WriteTransaction, before: Option<&'a Before>) -> Result<Self, redb::Error> {
        let (flow_logs, not_understood) = (txn.open_table(FLOW_LOGS)?, txn.open_table(NOT_UNDERSTOOD)?);
        Ok(Self { flow_logs, not_understood, before })
    }

    fn put(&mut self, entry: &Entry) -> Result<(), redb::Error> {
        let Some(RuleKey::FlowLog { parent, id }) = RuleKey::of(&entry.name) else { return Ok(()) };
        let key = (parent.as_u128(), id.0.as_u128());
        let value = [&entry.revision.to_be_bytes()[..], &entry.value].concat();
        if understood((parent, id), &entry.value, entry.revision).is_ok() {
            self.flow_logs.insert(key, value.as_slice())?;
            self.not_understood.remove(key)?;
            return Ok(());
        }
        self.not_understood.insert(key, value.as_slice())?;
        if let Some(known) = self.before.map(|before| before.get(key)).transpose()?.flatten() {
            self.flow_logs.insert(key, known.value())?;
        }
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<(), redb::Error> {
        if let Some(RuleKey::FlowLog { parent, id }) = RuleKey::of(name) {
            let key = (parent.as_u128(), id.0.as_u128());
            self.flow_logs.remove(key)?;
            self.not_understood.remove(key)?;
        }
        Ok(())
    }
}

/// The revision of a value, and the value.
fn split(value: &[u8]) -> Option<(i64, &[u8])> {
    let (revision, json) = value.split_first_chunk::<8>()?;
    Some((i64::from_be_bytes(*revision), json))
}

fn write_position(txn: &redb::WriteTransaction, at: &Position) -> Result<(), redb::Error> {
    let json = serde_json::to_vec(at).map_err(|e| redb::Error::Io(e.into()))?;
    txn.open_table(META)?.insert(POSITION, json.as_slice())?;
    Ok(())
}

/// Keeps what a feed says in a mirror. All of it that comes anew is in one transaction: until its end, what was known holds.
pub(super) struct Writing {
    mirror: Mirror,
    /// With what was understood before.
    anew: Option<(redb::WriteTransaction, Before)>,
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
                let before = self.mirror.db.begin_read()?.open_table(FLOW_LOGS)?;
                let txn = self.mirror.db.begin_write()?;
                for table in [FLOW_LOGS, NOT_UNDERSTOOD] {
                    txn.delete_table(table)?;
                    txn.open_table(table)?;
                }
                self.anew = Some((txn, before));
                Ok(false)
            }
            News::Page(entries) => {
                if let Some((txn, before)) = &self.anew {
                    let mut tables = Tables::of(txn, Some(before))?;
                    for entry in &entries {
                        tables.put(entry)?;
                    }
                }
                Ok(false)
            }
            News::End(at) => {
                if let Some((txn, _)) = self.anew.take() {
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
        all.into_iter().filter_map(|(id, k)| Some((id.0.as_u128(), k.flow_log?.1))).collect()
    }

    /// A value that a later version may write.
    fn later(parent: u128, id: u128, revision: i64) -> Entry {
        let mut entry = entry(parent, id, revision);
        entry.value = String::from_utf8(entry.value).expect("text").replace("\"draft\"", "\"paused\"").into_bytes();
        entry
    }

    /// The same as [`known`], and whether what is there is not understood.
    fn puzzles(mirror: &Mirror, parent: u128) -> Vec<(Option<i64>, Option<i64>)> {
        let all = mirror.of([Uuid::from_u128(parent)].into_iter()).expect("readable");
        all.into_values().map(|k| (k.flow_log.map(|f| f.1), k.not_understood.map(|n| n.revision))).collect()
    }

    #[test]
    fn a_value_that_is_not_understood_leaves_what_was_understood_until_one_is_or_it_is_gone() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mirror = Mirror::open(dir.path()).expect("new");
        let mut writing = Writing::new(mirror.clone());
        let mut take = |news| writing.take(news).expect("kept");
        take(News::Begin("new"));
        take(News::Page(vec![entry(1, 10, 5), later(2, 20, 6)]));
        take(News::End(at(7)));
        assert_eq!((puzzles(&mirror, 1), puzzles(&mirror, 2)), (vec![(Some(5), None)], vec![(None, Some(6))]));
        assert!(take(News::Changes(vec![KeyChange::Put(later(1, 10, 8))], at(8))));
        assert_eq!(puzzles(&mirror, 1), [(Some(5), Some(8))]);
        // Also where all of it comes anew, and over a restart.
        take(News::Begin("compacted"));
        take(News::Page(vec![later(1, 10, 8), later(2, 20, 6)]));
        take(News::End(at(9)));
        drop(writing);
        drop(mirror);
        let mirror = Mirror::open(dir.path()).expect("again");
        assert_eq!((puzzles(&mirror, 1), puzzles(&mirror, 2)), (vec![(Some(5), Some(8))], vec![(None, Some(6))]));
        let mut writing = Writing::new(mirror.clone());
        let gone = KeyChange::Delete(later(2, 20, 0).name);
        writing.take(News::Changes(vec![KeyChange::Put(entry(1, 10, 10)), gone], at(10))).expect("kept");
        assert_eq!((puzzles(&mirror, 1), puzzles(&mirror, 2)), (vec![(Some(10), None)], vec![]));
    }

    #[test]
    fn what_an_earlier_version_did_not_understand_is_known_to_one_that_does() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mirror = Mirror::open(dir.path()).expect("new");
        mirror.change(&[KeyChange::Put(entry(1, 10, 5))], &at(5)).expect("kept");
        let newer = entry(1, 10, 8);
        let value = [&8_i64.to_be_bytes()[..], &newer.value].concat();
        let txn = mirror.db.begin_write().expect("a transaction");
        txn.open_table(NOT_UNDERSTOOD).expect("a table").insert((1, 10), value.as_slice()).expect("kept");
        txn.commit().expect("durable");
        assert_eq!(puzzles(&mirror, 1), [(Some(8), None)]);
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
