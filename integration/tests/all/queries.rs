//! What `flowlog sql` prints is understood by the engines that it is for, and all of them say the same of the same objects: of the sample of
//! the documents, and of what an agent has captured. `cargo xtask test` has the engines that start at once, `cargo xtask engines` all.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use flowlog_pipeline::encode::schema::COLUMNS;
use integration::{
    agent::{Agent, binary},
    net::Pair,
    traffic,
};
use serde_json::Value;

/// Engines, with the script that each takes; one of them has no dialect of its own.
const AT_ONCE: [(&str, &str); 2] = [("duckdb", "duckdb"), ("datafusion", "duckdb")];
const ALL: [(&str, &str); 4] =
    [("duckdb", "duckdb"), ("datafusion", "duckdb"), ("clickhouse", "clickhouse"), ("spark", "spark")];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn sample() -> PathBuf {
    repository().join("integration/objects/sample")
}

/// What an engine says of the objects below a directory: the types of the columns, and an answer to each query.
fn ask(python: &str, (engine, script): (&str, &str), root: &Path, more: &[&str]) -> Value {
    let printed = Command::new(binary()).args(["sql", script, "--target"]).arg(root).args(more).output().unwrap();
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &printed.stdout).unwrap();
    // A table is below the flow log's own folder where it has one.
    let root = more.last().map_or_else(|| root.to_owned(), |name| root.join(name));
    let python = repository().join(python).join("bin/python");
    let asked = Command::new(python)
        .arg(repository().join("integration/engines/ask.py"))
        .args([engine, file.path().to_str().unwrap()])
        .arg(root)
        .current_dir(tempfile::tempdir().unwrap().path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&asked.stdout);
    let last = said.lines().last().unwrap_or_default();
    let error = String::from_utf8_lossy(&asked.stderr);
    serde_json::from_str(last).unwrap_or_else(|e| panic!("{engine}: {e}\n{said}\n{error}"))
}

/// Every engine knows our columns, and by their types.
fn assert_types(engine: &str, said: &Value, partitions: &[&str]) {
    let types: BTreeMap<String, String> = serde_json::from_value(said["types"].clone()).unwrap();
    for column in COLUMNS {
        assert_eq!(types[column.name], column.of.to_string(), "{engine}: {}", column.name);
    }
    for partition in partitions {
        assert!(types.contains_key(*partition), "{engine}: {partition} of {types:?}");
    }
}

/// The rows of a query, as the documents have them.
fn lines(rows: &Value) -> String {
    let cell = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let line = |row: &Value| row.as_array().unwrap().iter().map(cell).collect::<Vec<_>>().join(" | ");
    rows.as_array().unwrap().iter().map(|row| line(row) + "\n").collect()
}

fn the_sample_is_understood(python: &str, engines: &[(&str, &str)]) {
    let document = fs::read_to_string(repository().join("docs/queries.md")).unwrap();
    for (engine, script) in engines {
        let said = ask(python, (engine, script), &sample(), &[]);
        assert_types(engine, &said, &["flow_log", "year", "month", "day", "hour"]);
        let answers = said["answers"].as_object().unwrap();
        assert_eq!(answers.len(), 8, "{engine}: {answers:?}");
        for (name, rows) in answers {
            let (_, section) =
                document.split_once(&format!("\n### {name}\n")).unwrap_or_else(|| panic!("{name} is missing"));
            let block = section.split("```text\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
            let (_, shown) = block.split_once('\n').expect("a heading");
            assert_eq!(lines(rows), shown, "{engine}: {name}, as the document shows it");
        }
    }
}

/// Traffic of both verdicts, with a witness of its own, and two flow logs under one root, wide and narrow; every engine sums up what was sent.
fn what_was_sent_is_summed_up(python: &str, engines: &[(&str, &str)]) {
    let pair = Pair::new().unwrap();
    pair.a
        .nft("table inet t {\n counter refused { }\n chain c { type filter hook input priority 0; udp dport 7 counter name refused drop; }\n}")
        .unwrap();
    // Two flow logs under one root, the second with narrow objects.
    let [web, db] = [("web", "parquet"), ("db", "parquet-narrow")].map(|(name, format)| {
        let objects = ["--layout", "hive-named", "--name", name, "--format", format];
        let mut agent = Agent::start(&pair.a, &["eth0"], &objects).unwrap();
        pair.b.run(|| {
            traffic::udp("10.1.0.1:7", 30, 100).unwrap();
            traffic::udp("[fd01::1]:8", 20, 200).unwrap();
        });
        agent.end().unwrap();
        agent
    });
    let refused = pair.a.nft_counter("inet t", "refused").unwrap();
    assert_eq!(refused.0, 60);
    let [from, to] = [&db, &web].map(|agent| agent.objects().join("flow_log=db"));
    assert!(Command::new("cp").arg("-r").args([from, to]).status().unwrap().success());
    let mut first: Option<Value> = None;
    for (engine, script) in engines {
        let said = ask(python, (engine, script), &web.objects(), &[]);
        assert_types(engine, &said, &["flow_log"]);
        let rejects = &said["answers"]["rejects"][0];
        assert_eq!((&rejects[2], &rejects[4]), (&"10.1.0.2".into(), &60.into()), "{engine}: {rejects}");
        let balance = said["answers"]["balance"].as_array().unwrap();
        let sum = |at: usize| balance.iter().map(|row| row[at].as_u64().unwrap()).sum::<u64>();
        assert!(sum(2) >= 40 && sum(3) == refused.0, "{engine}: {balance:?}");
        let answers = said["answers"].clone();
        assert_eq!(first.get_or_insert_with(|| answers.clone()), &answers, "{engine}");
    }
}

/// Files of every version that there has been.
fn old_objects_are_read(python: &str, program: &str, readers: usize) {
    let objects = repository().join("integration/objects");
    // Of narrow ones a reader has to be told the columns.
    let is_object = |f: &PathBuf| {
        let name = f.file_name().unwrap().to_string_lossy();
        name.starts_with('v') && name.ends_with(".parquet")
    };
    let files: Vec<_> = fs::read_dir(&objects).unwrap().map(|f| f.unwrap().path()).filter(is_object).collect();
    assert_eq!(files.len(), 12, "three of each version");
    let python = repository().join(python).join("bin/python");
    let out = Command::new(python).args(["-c", program]).args(&files).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert_eq!(said.trim(), format!("{} read", readers * files.len()));
}

/// Each reader says of a file: its rows, the packets by verdict, and when its window was.
const AT_ONCE_READERS: &str = r#"
import sys, duckdb, datafusion, pyarrow.parquet as pq, datetime
duck = duckdb.connect()
duck.sql("set timezone = 'UTC'")
begin = 1800000000
def secs(v):
    return int(v.timestamp()) if isinstance(v, datetime.datetime) else v
def by_arrow(f):
    return [(r["action"], r["packets"], secs(r["window_start"])) for r in pq.read_table(f).to_pylist()]
def by_duckdb(f):
    return [(a, p, secs(w)) for a, p, w in duck.sql(f"select action, packets, window_start from '{f}'").fetchall()]
def by_datafusion(f):
    c = datafusion.SessionContext()
    c.register_parquet("t", f)
    return [(r["action"], r["packets"], secs(r["window_start"])) for r in c.sql("select * from t").to_arrow_table().to_pylist()]
read = 0
for f in sys.argv[1:]:
    wanted = [(None, None, begin)] if "nodata" in f else [("ACCEPT", 7, begin), ("REJECT", 3, begin)]
    for reader in (by_arrow, by_duckdb, by_datafusion):
        found = reader(f)
        if found != wanted:
            print(f, reader.__name__, found)
        read += 1
print(read, "read")
"#;

/// The same of readers that take long to install, or to start.
const SLOW_READERS: &str = r#"
import sys, json, fastparquet, pandas
from chdb import session
click = session.Session()
read = 0
for f in sys.argv[1:]:
    wanted = [None] if "nodata" in f else [7, 3]
    frame = fastparquet.ParquetFile(f).to_pandas()
    found = [None if pandas.isna(v) else int(v) for v in frame["packets"].tolist()]
    if found != wanted or len(frame.columns) < 29:
        print(f, "fastparquet", found)
    rows = json.loads(str(click.query(f"select packets from file('{f}', Parquet)", "JSONCompact")))["data"]
    found = [None if p is None else int(p) for p, in rows]
    if found != wanted:
        print(f, "clickhouse", found)
    read += 2
print(read, "read")
"#;

#[test]
fn objects_of_every_version_are_read() {
    old_objects_are_read(".tools/python", AT_ONCE_READERS, 3);
}

#[test]
fn flowlog_itself_reads_objects_of_every_version() {
    let objects = repository().join("integration/objects");
    for version in 1..=4 {
        for (kind, packets) in [("plain", 10), ("subsecond", 10), ("nodata", 0)] {
            let file = objects.join(format!("v{version}-{kind}.parquet"));
            let read = |more: &[&str]| {
                let out = Command::new(binary()).arg("read").args(more).arg(&file).output().unwrap();
                assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
                String::from_utf8(out.stdout).unwrap()
            };
            let rows: Vec<Value> = read(&["-o", "json"]).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
            let sum: u64 = rows.iter().filter_map(|row| row["packets"].as_u64()).sum();
            assert_eq!(sum, packets, "{}", file.display());
            assert!(rows.iter().all(|row| row["window_start"] == "2027-01-15T08:00:00Z"), "{rows:?}");
            assert!(read(&[]).contains("(difference 0)"), "{}", file.display());
        }
    }
}

#[test]
fn the_documents_show_what_engines_that_start_at_once_say() {
    the_sample_is_understood(".tools/python", &AT_ONCE);
}

#[test]
fn engines_that_start_at_once_sum_up_what_was_sent() {
    what_was_sent_is_summed_up(".tools/python", &AT_ONCE);
}

#[test]
#[ignore = "takes an engine that `cargo xtask engines` installs"]
fn every_engine_says_what_the_documents_show() {
    the_sample_is_understood(".tools/engines", &ALL);
}

#[test]
#[ignore = "takes an engine that `cargo xtask engines` installs"]
fn every_engine_sums_up_what_was_sent() {
    what_was_sent_is_summed_up(".tools/engines", &ALL);
}

#[test]
#[ignore = "takes readers that `cargo xtask engines` installs"]
fn every_reader_reads_objects_of_every_version() {
    old_objects_are_read(".tools/engines", SLOW_READERS, 2);
}

#[test]
#[ignore = "takes a parser that `cargo xtask engines` installs"]
fn what_is_printed_for_engines_that_are_not_here_is_of_their_language_and_names_columns_of_the_table() {
    for dialect in ["athena", "trino"] {
        let args = ["sql", dialect, "--target", "s3://flows/a"];
        let printed = Command::new(binary()).args(args).output().unwrap();
        assert!(printed.status.success());
        let script = tempfile::NamedTempFile::new().unwrap();
        fs::write(script.path(), &printed.stdout).unwrap();
        let parsed = Command::new(repository().join(".tools/engines/bin/python"))
            .arg(repository().join("integration/engines/parse.py"))
            .args([dialect.as_ref(), script.path().as_os_str()])
            .output()
            .unwrap();
        assert!(parsed.status.success(), "{dialect}: {}", String::from_utf8_lossy(&parsed.stderr));
        let said: Value = serde_json::from_slice(&parsed.stdout).unwrap();
        let partitions = ["flow_log", "year", "month", "day", "hour"];
        let columns: Vec<&str> = COLUMNS.iter().map(|c| c.name).chain(partitions).collect();
        assert_eq!(said["columns"], serde_json::json!(columns), "{dialect}");
        assert_eq!(said["queries"], 8, "{dialect}");
    }
}
