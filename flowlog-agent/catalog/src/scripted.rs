//! A catalog that does not do what it is asked for, or not when, or says something else; and what must hold all the same.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use flowlog_model::S3Options;
use iceberg::{
    Catalog, CatalogBuilder as _, Error, ErrorKind, Namespace, NamespaceIdent, Result, TableCommit, TableCreation,
    TableIdent,
    memory::{MEMORY_CATALOG_WAREHOUSE, MemoryCatalog, MemoryCatalogBuilder},
    table::Table,
    transaction::{ApplyTransactionAction as _, Transaction},
};
use proptest::prelude::*;

use crate::{
    commit::roll_of,
    list::Source,
    roll::PROPERTY,
    round::Feed,
    storage::{Stores, TableFiles},
};

/// What becomes of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Fine,
    /// A conflict is said, and true.
    Refused,
    /// A conflict is said, and the commit is carried out.
    RefusedAndDone,
    /// An error is said; carried out or not.
    Lost,
    Broken,
    /// "Done" is said, and it is not.
    Lie,
    /// An error is said; carried out after the table has been read once more.
    Late,
    /// A second `flowlog-catalog` takes all there is first.
    Overtaken,
}

const FAULTS: [Fault; 8] = [
    Fault::Fine,
    Fault::Refused,
    Fault::RefusedAndDone,
    Fault::Lost,
    Fault::Broken,
    Fault::Lie,
    Fault::Late,
    Fault::Overtaken,
];

#[derive(Debug)]
struct Scripted {
    real: MemoryCatalog,
    objects: PathBuf,
    script: Mutex<VecDeque<Fault>>,
    late: Mutex<Vec<TableCommit>>,
}

fn conflict() -> Error {
    Error::new(ErrorKind::CatalogCommitConflicts, "scripted").with_retryable(true)
}

fn unknown() -> Error {
    Error::new(ErrorKind::Unexpected, "scripted")
}

#[async_trait]
impl Catalog for Scripted {
    async fn load_table(&self, table: &TableIdent) -> Result<Table> {
        let loaded = self.real.load_table(table).await;
        let late = std::mem::take(&mut *self.late.lock().expect("late"));
        for commit in late {
            // It may meet another one: that is its end.
            let _ = self.real.update_table(commit).await;
        }
        loaded
    }

    async fn update_table(&self, commit: TableCommit) -> Result<Table> {
        let name = commit.identifier().clone();
        let fault = self.script.lock().expect("script").pop_front().unwrap_or(Fault::Fine);
        match fault {
            Fault::Fine => self.real.update_table(commit).await,
            Fault::Refused => Err(conflict()),
            Fault::RefusedAndDone => self.real.update_table(commit).await.and_then(|_| Err(conflict())),
            Fault::Lost => self.real.update_table(commit).await.and_then(|_| Err(unknown())),
            Fault::Broken => Err(unknown()),
            Fault::Lie => self.real.load_table(&name).await,
            Fault::Late => {
                self.late.lock().expect("late").push(commit);
                Err(unknown())
            }
            Fault::Overtaken => {
                let mut other = feed(&self.objects);
                other.round(&self.real, &Arc::new(Stores::new(S3Options::default()))).await.1.expect("the other one");
                self.real.update_table(commit).await
            }
        }
    }

    async fn create_namespace(&self, name: &NamespaceIdent, p: HashMap<String, String>) -> Result<Namespace> {
        self.real.create_namespace(name, p).await
    }

    async fn namespace_exists(&self, name: &NamespaceIdent) -> Result<bool> {
        self.real.namespace_exists(name).await
    }

    async fn create_table(&self, name: &NamespaceIdent, creation: TableCreation) -> Result<Table> {
        self.real.create_table(name, creation).await
    }

    async fn list_namespaces(&self, _: Option<&NamespaceIdent>) -> Result<Vec<NamespaceIdent>> {
        unreachable!()
    }

    async fn get_namespace(&self, _: &NamespaceIdent) -> Result<Namespace> {
        unreachable!()
    }

    async fn update_namespace(&self, _: &NamespaceIdent, _: HashMap<String, String>) -> Result<()> {
        unreachable!()
    }

    async fn drop_namespace(&self, _: &NamespaceIdent) -> Result<()> {
        unreachable!()
    }

    async fn list_tables(&self, _: &NamespaceIdent) -> Result<Vec<TableIdent>> {
        unreachable!()
    }

    async fn drop_table(&self, _: &TableIdent) -> Result<()> {
        unreachable!()
    }

    async fn purge_table(&self, _: &TableIdent) -> Result<()> {
        unreachable!()
    }

    async fn table_exists(&self, _: &TableIdent) -> Result<bool> {
        unreachable!()
    }

    async fn rename_table(&self, _: &TableIdent, _: &TableIdent) -> Result<()> {
        unreachable!()
    }

    async fn register_table(&self, _: &TableIdent, _: String) -> Result<Table> {
        unreachable!()
    }
}

fn name() -> TableIdent {
    TableIdent::from_strs(["flowlog", "flows"]).expect("a name")
}

fn feed(objects: &Path) -> Feed {
    Feed::new(name(), vec![Source::Directory(objects.to_owned())])
}

/// A directory with objects, a catalog, and who commits.
struct World {
    dir: tempfile::TempDir,
    catalog: Scripted,
    stores: Arc<Stores>,
    feed: Feed,
    objects: usize,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("folder");
        let objects = dir.path().join("objects");
        fs::create_dir(&objects).expect("folder");
        let stores = Arc::new(Stores::new(S3Options::default()));
        let warehouse = format!("file://{}/warehouse", dir.path().display());
        let real = MemoryCatalogBuilder::default()
            .with_storage_factory(Arc::new(TableFiles::new(stores.clone())))
            .load("test", HashMap::from([(MEMORY_CATALOG_WAREHOUSE.to_owned(), warehouse)]))
            .await
            .expect("a catalog");
        let catalog = Scripted { real, objects: objects.clone(), script: Mutex::default(), late: Mutex::default() };
        Self { dir, catalog, stores, feed: feed(&objects), objects: 0 }
    }

    /// Windows of interfaces that have not had one yet; of three hours, as they come.
    fn deliver(&mut self, number: usize) {
        for _ in 0..number {
            let hour = ["08", "09", "10"][self.objects % 3];
            let sample =
                Path::new(env!("CARGO_MANIFEST_DIR")).join("../../integration/objects/sample/flow_log=web/year=2027");
            let time = format!("20270115T{hour}0000Z_0.parquet");
            let from = sample.join(format!("month=01/day=15/hour={hour}/n-eth0_{time}"));
            fs::copy(from, self.dir.path().join(format!("objects/n-eth{}_{time}", self.objects))).expect("copied");
            self.objects += 1;
        }
    }

    async fn round(&mut self, faults: &[Fault]) -> bool {
        *self.catalog.script.lock().expect("script") = faults.iter().copied().collect();
        self.feed.round(&self.catalog, &self.stores).await.1.is_ok()
    }

    /// As an engine does, with files and all: what is known of them then is in the roll alone.
    async fn expire(&self) {
        let table = self.catalog.real.load_table(&name()).await.expect("table");
        let transaction = Transaction::new(&table);
        let action = transaction.expire_snapshots().expire_older_than_ms(i64::MAX).retain_last(1);
        let expired = action.apply(transaction).expect("action").commit(&self.catalog.real).await;
        expired.expect("expired");
    }

    /// Data files of the table, by path.
    async fn files(&self) -> Vec<String> {
        let table = self.catalog.real.load_table(&name()).await.expect("table");
        let Some(snapshot) = table.metadata().current_snapshot() else { return Vec::new() };
        let list = table.manifest_list_reader(snapshot).load().await.expect("list");
        let mut files = Vec::new();
        for manifest in list.entries() {
            let manifest = manifest.load_manifest(table.file_io()).await.expect("manifest");
            files.extend(manifest.entries().iter().map(|entry| entry.file_path().to_owned()));
        }
        files
    }

    async fn assert_each_object_is_in_the_table_once(&self) {
        let files = self.files().await;
        let different: BTreeSet<&String> = files.iter().collect();
        assert_eq!(
            (files.len(), different.len()),
            (self.objects, self.objects),
            "files of the table, and different ones"
        );
        let table = self.catalog.real.load_table(&name()).await.expect("table");
        let roll = roll_of(&table).expect("a roll").map_or(0, |roll| roll.objects());
        assert_eq!(roll, self.objects as u64, "objects in the roll");
    }
}

/// New objects, what becomes of the commits of a round, whether the program begins anew after it, and whether snapshots are expired.
type Step = (usize, Vec<Fault>, bool, bool);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let faults = proptest::collection::vec(proptest::sample::select(&FAULTS[..]), 0..4);
    proptest::collection::vec((0_usize..4, faults, any::<bool>(), any::<bool>()), 1..8)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 64, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_catalog_does_and_says_each_object_is_in_the_table_once(steps in steps()) {
        runtime().block_on(async {
            let mut world = World::new().await;
            for (new, faults, is_anew, is_expired) in steps {
                world.deliver(new);
                world.round(&faults).await;
                if is_anew {
                    world.feed = feed(&world.catalog.objects);
                }
                if is_expired {
                    world.expire().await;
                }
            }
            // One that comes late may still be on its way into the last round.
            world.round(&[]).await;
            assert!(world.round(&[]).await, "a round without faults");
            world.assert_each_object_is_in_the_table_once().await;
        });
    }
}

#[test]
fn objects_that_somebody_has_added_by_hand_are_not_added_again() {
    runtime().block_on(async {
        let mut world = World::new().await;
        world.deliver(3);
        assert!(world.round(&[]).await);
        let table = world.catalog.real.load_table(&name()).await.expect("table");
        let snapshot = table.metadata().current_snapshot().expect("snapshot");
        let list = table.manifest_list_reader(snapshot).load().await.expect("list");
        let manifest = list.entries()[0].load_manifest(table.file_io()).await.expect("manifest");
        let first = manifest.entries()[0].data_file().clone();
        // As if it were the first that has the object: a table like it, where it is added by hand.
        world.catalog.real.drop_table(&name()).await.expect("dropped");
        world.feed = feed(&world.catalog.objects);
        let empty = world.dir.path().join("empty");
        fs::create_dir(&empty).expect("folder");
        feed(&empty).round(&world.catalog, &world.stores).await.1.expect("a table");
        let table = world.catalog.real.load_table(&name()).await.expect("table");
        let transaction = Transaction::new(&table);
        let append = transaction.fast_append().add_data_files([first]);
        append.apply(transaction).expect("action").commit(&world.catalog.real).await.expect("added");
        assert!(world.round(&[]).await);
        world.assert_each_object_is_in_the_table_once().await;
        // Its snapshot is expired: it is in the roll by then.
        world.expire().await;
        world.feed = feed(&world.catalog.objects);
        assert!(world.round(&[]).await);
        world.assert_each_object_is_in_the_table_once().await;
    });
}

#[test]
fn without_its_roll_nothing_is_taken() {
    runtime().block_on(async {
        let mut world = World::new().await;
        world.deliver(2);
        assert!(world.round(&[]).await);
        let change = async |value: Option<&str>| {
            let table = world.catalog.real.load_table(&name()).await.expect("table");
            let transaction = Transaction::new(&table);
            let action = transaction.update_table_properties();
            let action = match value {
                Some(value) => action.set(PROPERTY.to_owned(), value.to_owned()),
                None => action.remove(PROPERTY.to_owned()),
            };
            action.apply(transaction).expect("action").commit(&world.catalog.real).await.expect("changed");
            table.metadata().properties().get(PROPERTY).cloned()
        };
        let was = change(None).await;
        let mut anew = feed(&world.catalog.objects);
        assert!(anew.round(&world.catalog, &world.stores).await.1.is_err(), "it is gone");
        change(Some("nonsense")).await;
        assert!(anew.round(&world.catalog, &world.stores).await.1.is_err(), "it is no roll");
        change(was.as_deref()).await;
        world.deliver(1);
        assert!(world.round(&[]).await);
        world.assert_each_object_is_in_the_table_once().await;
    });
}

#[test]
fn without_a_sheet_nothing_is_taken() {
    runtime().block_on(async {
        let mut world = World::new().await;
        world.deliver(2);
        assert!(world.round(&[]).await);
        let table = world.catalog.real.load_table(&name()).await.expect("table");
        let folder = format!("{}/_flowlog", table.metadata().location().trim_start_matches("file://"));
        let aside = world.dir.path().join("aside");
        fs::rename(&folder, &aside).expect("moved");
        world.deliver(1);
        world.feed = feed(&world.catalog.objects);
        assert!(!world.round(&[]).await, "it is not known what the table has");
        assert_eq!(world.files().await.len(), 2);
        fs::rename(&aside, &folder).expect("moved back");
        assert!(world.round(&[]).await);
        world.assert_each_object_is_in_the_table_once().await;
    });
}
