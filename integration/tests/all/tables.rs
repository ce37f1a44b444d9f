//! What `flowlog-catalog` makes of delivered objects: the same sums in every engine as in the objects, each object once, whatever dies, fails
//! or lies; and still so after an engine has compacted and expired. `cargo xtask engines` runs these.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use flowlog_model::rule::Location;
use flowlog_pipeline::{encode::schema::COLUMNS, upload::Bucket};
use integration::{http, s3};
use serde_json::Value;

const TABLE: &str = "flowlog.flows";
/// Hours that objects are of; the middle one is asked for.
const HOURS: [&str; 3] = ["08", "09", "10"];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn catalog_binary() -> PathBuf {
    let me = std::env::current_exe().unwrap();
    let path = me.ancestors().nth(2).unwrap().join("flowlog-catalog");
    assert!(path.is_file(), "{} is missing: run `cargo xtask engines`", path.display());
    path
}

/// A directory with delivered objects, and all that is made of them.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("flows")).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn flows(&self) -> PathBuf {
        self.path("flows")
    }

    /// Windows of these interfaces, one in each hour: as an agent delivers them.
    fn deliver(&self, interfaces: std::ops::Range<u32>) -> usize {
        for hour in HOURS {
            let folder = format!("year=2027/month=01/day=15/hour={hour}");
            let time = format!("20270115T{hour}0000Z_0.parquet");
            let from = repository()
                .join("integration/objects/sample")
                .join("flow_log=web")
                .join(&folder)
                .join(format!("n-eth0_{time}"));
            let to = self.flows().join("web").join(folder);
            fs::create_dir_all(&to).unwrap();
            for interface in interfaces.clone() {
                fs::copy(&from, to.join(format!("n-eth{interface}_{time}"))).unwrap();
            }
        }
        interfaces.len() * HOURS.len()
    }

    fn objects(&self) -> BTreeSet<PathBuf> {
        below(&self.flows())
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(catalog_binary());
        command.args(["--once", "--state-dir"]).arg(self.path("state")).args(more).arg(self.flows());
        command
    }

    fn once(&self, more: &[&str]) -> String {
        said(&self.command(more).output().unwrap())
    }

    fn sqlite(&self) -> String {
        format!("sqlite:///{}", self.path("state/catalog.db").display())
    }

    /// What an engine says of the objects themselves.
    fn witness(&self) -> Value {
        ask("objects", self.flows().to_str().unwrap(), &[])["sums"].clone()
    }
}

fn below(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut todo = vec![folder.to_owned()];
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            todo.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            found.insert(path);
        }
    }
    found
}

fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn ask(engine: &str, place: &str, more: &[&str]) -> Value {
    let environment = if engine == "duckdb" { "tables" } else { "engines" };
    let output = Command::new(repository().join(".tools").join(environment).join("bin/python"))
        .arg(repository().join("integration/engines/tables.py"))
        .args([engine, place, TABLE])
        .args(more)
        .current_dir(tempfile::tempdir().unwrap().path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|e| panic!("{engine}: {e}\n{}", String::from_utf8_lossy(&output.stderr)))
}

/// A REST catalog that fails as it is told.
struct Rest {
    server: Child,
    port: u16,
}

impl Rest {
    fn start(place: &Place) -> Self {
        let folder = place.path("rest");
        fs::create_dir(&folder).unwrap();
        let mut server = Command::new(repository().join(".tools/engines/bin/python"))
            .arg(repository().join("integration/engines/iceberg_catalog.py"))
            .arg(&folder)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { server, port: line.trim().parse().expect("a port") }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// A configuration that names it.
    fn config(&self, place: &Place) -> String {
        let file = place.path("catalog.toml");
        fs::write(&file, format!("catalog = '{}'\n[rest]\nallow_http = true\n", self.url())).unwrap();
        file.to_str().unwrap().to_owned()
    }

    /// What becomes of the next commits.
    fn fail(&self, words: &[&str]) {
        let address = format!("127.0.0.1:{}", self.port);
        let answer = http::tcp(&address, None, "POST", "/test/faults", Some(&words.into())).unwrap();
        assert_eq!(answer.status, 200);
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn number(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_else(|| panic!("{name} of {value}"))
}

#[test]
#[ignore = "takes engines that `cargo xtask engines` installs"]
fn engines_say_the_same_of_a_table_as_of_its_objects() {
    let place = Place::new();
    let first = place.deliver(0..10);
    assert!(place.once(&[]).contains("30 objects, 30 of them new, 0 refused"));
    let table = ask("pyiceberg", &place.sqlite(), &[]);
    let columns: Vec<Value> =
        COLUMNS.iter().map(|c| serde_json::json!([c.field_id, c.name, type_of(&c.of.to_string())])).collect();
    assert_eq!(table["columns"], Value::from(columns));
    let witness = place.witness();
    assert_eq!(
        (table["sums"].clone(), number(&table, "planned"), number(&table, "twice")),
        (witness.clone(), first as u64, 0)
    );
    // An hour is a third of the files; an address that is nowhere is in none that has bounds.
    assert_eq!(number(&table, "planned_hour"), 10);
    assert_eq!(number(&table, "planned_source"), 20, "objects of a few rows have no bounds of addresses");
    let duckdb = ask("duckdb", table["metadata"].as_str().unwrap(), &[]);
    assert_eq!((&duckdb["sums"], &duckdb["hour"]), (&witness, &table["hour"]));
    // Nothing new is no commit; what comes late is taken.
    assert!(place.once(&[]).contains("30 objects, 0 of them new"));
    assert_eq!(number(&ask("pyiceberg", &place.sqlite(), &[]), "snapshots"), 1);
    place.deliver(10..12);
    assert!(place.once(&[]).contains("36 objects, 6 of them new"));
    let table = ask("pyiceberg", &place.sqlite(), &[]);
    assert_eq!((table["sums"].clone(), number(&table, "twice")), (place.witness(), 0));
}

/// What Iceberg calls a type of ours.
fn type_of(name: &str) -> &str {
    match name {
        "int32" => "int",
        "int64" => "long",
        "utf8" => "string",
        "timestamp" => "timestamptz",
        other => other,
    }
}

#[test]
#[ignore = "takes engines that `cargo xtask engines` installs"]
fn objects_of_older_versions_are_refused_and_a_new_column_is_added() {
    let place = Place::new();
    place.deliver(0..1);
    for version in ["v1", "v2", "v3"] {
        let from = repository().join(format!("integration/objects/{version}-plain.parquet"));
        fs::copy(from, place.flows().join(format!("{version}_20270115T080000Z_0.parquet"))).unwrap();
    }
    fs::write(place.flows().join("broken_20270115T080000Z_0.parquet"), "PAR1").unwrap();
    let output = place.command(&[]).output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said(&output).contains("3 objects, 3 of them new, 4 refused"), "{log}");
    for words in ["it is of version 1", "it is of version 3", "it does not end as a Parquet file does"] {
        assert!(log.contains(words), "{words}: {log}");
    }
    let newer = "n-eth1_20270115T090000Z_0.parquet";
    let from = place.flows().join("web/year=2027/month=01/day=15/hour=09/n-eth0_20270115T090000Z_0.parquet");
    let script = "
import sys, pyarrow as pa, pyarrow.parquet as pq
t = pq.read_table(sys.argv[1], partitioning=None)
for number, name, of in [(43, 'colour', pa.string()), (44, 'weight', pa.int64())]:
    field = pa.field(name, of, metadata={'PARQUET:field_id': str(number)})
    t = t.append_column(field, pa.array([1 if of == pa.int64() else 'red'] * t.num_rows, of))
meta = pq.read_metadata(sys.argv[1]).metadata
meta[b'flowlog.schema_version'] = b'5'
writer = pq.ParquetWriter(sys.argv[2], t.schema, store_schema=False)
writer.write_table(t)
writer.add_key_value_metadata(meta)
writer.close()
";
    let python = repository().join(".tools/engines/bin/python");
    said(&Command::new(python).args(["-c", script]).arg(from).arg(place.flows().join(newer)).output().unwrap());
    assert!(place.once(&[]).contains("4 objects, 1 of them new, 4 refused"));
    let table = ask("pyiceberg", &place.sqlite(), &[]);
    let columns = table["columns"].as_array().unwrap();
    assert_eq!(columns[42..], [serde_json::json!([43, "colour", "string"]), serde_json::json!([44, "weight", "long"])]);
    assert_eq!(number(&table, "planned"), 4);
}

/// Places where it dies, and how often it comes to each in a first round: the table, the sheet, the manifest and its list, and the metadata
/// that points to them.
const KILLS: [&str; 9] = [
    "catalog_file:1",
    "catalog_sheet:1",
    "catalog_file:2",
    "catalog_manifest:1",
    "catalog_file:3",
    "catalog_file:4",
    "catalog_commit:1",
    "catalog_file:5",
    "catalog_committed:1",
];

#[test]
#[ignore = "takes engines that `cargo xtask engines` installs"]
fn killed_anywhere_each_object_is_in_the_table_once() {
    let mut landed = Vec::new();
    for kill in KILLS {
        let place = Place::new();
        place.deliver(0..2);
        let dead = place.command(&[]).env("FLOWLOG_FAULT", kill).output().unwrap();
        assert!(!dead.status.success(), "{kill} was not reached: {}", String::from_utf8_lossy(&dead.stderr));
        place.deliver(2..3);
        let after = place.once(&[]);
        landed.push((kill, after.contains("3 of them new")));
        let table = ask("pyiceberg", &place.sqlite(), &[]);
        let (planned, twice) = (number(&table, "planned"), number(&table, "twice"));
        assert_eq!((table["sums"].clone(), planned, twice), (place.witness(), 9, 0), "{kill}");
    }
    let done: Vec<_> = landed.iter().filter(|(_, is_done)| *is_done).map(|(kill, _)| *kill).collect();
    assert_eq!(done, ["catalog_committed:1"], "whose commits had landed");
}

#[test]
#[ignore = "takes engines that `cargo xtask engines` installs"]
fn whatever_a_rest_catalog_says_each_object_is_in_the_table_once() {
    let place = Place::new();
    let rest = Rest::start(&place);
    let config = rest.config(&place);
    let mut interfaces = 0;
    let faults = [
        "fine",
        "refuse",
        "refuse_done",
        "500",
        "500_done",
        "502_done",
        "504_done",
        "504",
        "cut",
        "cut_done",
        "lie",
        "late",
    ];
    for fault in faults {
        place.deliver(interfaces..interfaces + 1);
        interfaces += 1;
        rest.fail(&[fault]);
        let first = place.command(&["--config", &config]).output().unwrap();
        // What did not land at once is said so, and does at the next round.
        let must_do = ["fine", "refuse"].contains(&fault) || fault.ends_with("_done");
        assert_eq!(first.status.success(), must_do, "{fault}: {}", String::from_utf8_lossy(&first.stderr));
        if !must_do {
            assert_eq!(first.status.code(), Some(75), "{fault}");
            place.once(&["--config", &config]);
        }
    }
    let table = ask("pyiceberg", &rest.url(), &[]);
    let (planned, twice) = (number(&table, "planned"), number(&table, "twice"));
    assert_eq!((table["sums"].clone(), planned, twice), (place.witness(), u64::from(interfaces) * 3, 0));
}

#[test]
#[ignore = "takes engines that `cargo xtask engines` installs"]
fn two_at_the_same_time_take_each_object_once() {
    let place = Place::new();
    let rest = Rest::start(&place);
    let config = rest.config(&place);
    place.once(&["--config", &config]);
    for interfaces in [0..5, 5..10, 10..15] {
        place.deliver(interfaces);
        let both = [(); 2].map(|()| {
            place.command(&["--config", &config]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        });
        let said = both.map(|child| said(&child.wait_with_output().unwrap()));
        assert!(said.iter().all(|text| text.contains("objects")), "{said:?}");
    }
    let table = ask("pyiceberg", &rest.url(), &[]);
    let (planned, twice) = (number(&table, "planned"), number(&table, "twice"));
    assert_eq!((table["sums"].clone(), planned, twice), (place.witness(), 45, 0));
}

#[test]
#[ignore = "takes engines that `cargo xtask engines` installs"]
fn an_engine_compacts_and_expires_and_nothing_is_taken_twice() {
    let place = Place::new();
    for interfaces in [0..4, 4..8] {
        place.deliver(interfaces);
        place.once(&[]);
    }
    let (witness, objects) = (place.witness(), place.objects());
    let before = ask("spark", &place.sqlite(), &[]);
    assert_eq!((&before["sums"], number(&before, "planned"), number(&before, "planned_hour")), (&witness, 24, 8));
    // All files are older than what is asked for; one is nobody's.
    let table = place.path("state/warehouse/flowlog/flows");
    fs::write(table.join("metadata/orphan.avro"), "x").unwrap();
    let sheets = || below(&table.join("_flowlog"));
    let written = sheets();
    let touched = Command::new("touch").args(["-d", "2026-01-01"]).args(below(&table)).status().unwrap();
    assert!(touched.success());
    let after = ask("spark", &place.sqlite(), &["compact", "manifests", "expire", "orphans"]);
    assert_eq!((&after["sums"], &after["hour"]), (&witness, &before["hour"]));
    assert_eq!((number(&after, "files"), number(&after, "planned_hour"), number(&after, "snapshots")), (3, 1, 1));
    let orphans = after["orphans"].to_string();
    assert!(orphans.contains("orphan.avro") && !orphans.contains("_flowlog"), "{orphans}");
    assert_eq!(sheets(), written);
    // The engine has deleted the objects that it has compacted. Somebody whose engine may not do so still has them:
    assert!(place.objects().is_empty(), "{:?}", place.objects());
    place.deliver(0..8);
    assert_eq!(place.objects(), objects);
    assert!(place.once(&[]).contains("24 objects, 0 of them new"));
    place.deliver(8..9);
    assert!(place.once(&[]).contains("27 objects, 3 of them new"));
    let table = ask("pyiceberg", &place.sqlite(), &[]);
    assert_eq!((&table["sums"], number(&table, "planned")), (&place.witness(), 6));
    let duckdb = ask("duckdb", table["metadata"].as_str().unwrap(), &[]);
    assert_eq!(duckdb["sums"], place.witness());
}

#[test]
#[ignore = "takes engines that `cargo xtask engines` installs"]
fn objects_and_tables_may_be_in_buckets() {
    let server = s3::server();
    let (objects, tables) = (server.new_bucket(), server.new_bucket());
    let store = Bucket::open(&Location::Bucket(objects.clone()), &server.options()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let place = Place::new();
    let deliver = |interfaces| {
        place.deliver(interfaces);
        for path in place.objects() {
            let key = format!("team/{}", path.strip_prefix(place.flows()).unwrap().display());
            runtime.block_on(store.deliver(&key, fs::read(&path).unwrap())).unwrap();
        }
    };
    let options = server.options();
    let once = || {
        let mut command = Command::new(catalog_binary());
        command.args(["--once", "--s3-path-style", "--s3-allow-http", "--s3-region", "us-east-1", "--s3-endpoint"]);
        command.arg(options.endpoint.as_deref().unwrap()).arg("--s3-credentials");
        command.arg(options.credentials_file.as_ref().unwrap()).arg("--state-dir").arg(place.path("state"));
        command.args(["--warehouse", &format!("s3://{tables}/lake"), &format!("s3://{objects}/team")]);
        said(&command.output().unwrap())
    };
    deliver(0..3);
    assert!(once().contains("9 objects, 9 of them new, 0 refused"));
    deliver(3..4);
    assert!(once().contains("12 objects, 3 of them new"));
    let keys = server.keys(&tables);
    assert!(keys.iter().any(|key| key.starts_with("lake/flowlog/flows/_flowlog/")), "{keys:?}");
    let table = ask("pyiceberg", &place.sqlite(), &["AKTEST", "SKTEST", options.endpoint.as_deref().unwrap()]);
    let (planned, hour) = (number(&table, "planned"), number(&table, "planned_hour"));
    assert_eq!((&table["sums"], planned, hour), (&place.witness(), 12, 4));
}
