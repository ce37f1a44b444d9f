//! Objects: one suite for the local directory and a real S3 server; a second Parquet reader; the README's schema.

use std::{path::PathBuf, process::Command};

use flowlog_model::{S3Options, rule::Location};
use flowlog_pipeline::{
    encode::schema::{self, ColumnSpec},
    upload::{Bucket, BucketError, Outcome},
};
use integration::{
    agent::Agent,
    faulty::{Fault, Proxy},
    net::Pair,
    s3, traffic,
};

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// What must hold on every store.
async fn suite(store: &Bucket, folder: &str) {
    let key = |name: &str| format!("{folder}/year=2026/month=11/day=23/hour=06/{name}.parquet");
    store.probe(folder).await.unwrap();
    let body = b"some bytes".repeat(1_000);
    assert_eq!(store.deliver(&key("a"), body.clone()).await.unwrap(), Outcome::Stored);
    assert_eq!(
        store.deliver(&key("a"), body.clone()).await.unwrap(),
        Outcome::AlreadyThere,
        "a repeat changes nothing"
    );
    assert_eq!(store.deliver(&key("a"), b"other".to_vec()).await.unwrap(), Outcome::Conflict, "other size");
    let mut twisted = body.clone();
    twisted[5] ^= 1;
    assert_eq!(store.deliver(&key("a"), twisted).await.unwrap(), Outcome::Conflict, "same size, other bytes");
    assert_eq!(store.deliver(&key("b"), vec![7; 12 << 20]).await.unwrap(), Outcome::Stored, "large");
    // Many at once under one key: one is stored, the others find it there.
    let racers = (0..8).map(|_| store.deliver("race/one.parquet", body.clone()));
    let outcomes = futures_util::future::join_all(racers).await;
    let stored = outcomes.iter().filter(|o| matches!(o, Ok(Outcome::Stored))).count();
    assert!(stored == 1 && outcomes.iter().all(Result::is_ok), "{outcomes:?}");
}

#[test]
fn a_local_directory_keeps_the_promises_of_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let location = Location::Directory(dir.path().join("made-when-missing"));
    let store = Bucket::open(&location, &S3Options::default()).unwrap();
    block_on(suite(&store, "p/web"));
}

#[test]
fn a_real_s3_server_keeps_the_promises_of_a_store() {
    let server = s3::server();
    let bucket = server.new_bucket();
    let store = Bucket::open(&Location::Bucket(bucket), &server.options()).unwrap();
    block_on(suite(&store, "p/web"));
}

#[test]
fn wrong_credentials_and_missing_buckets_are_named() {
    let server = s3::server();
    let bucket = server.new_bucket();
    let open = |bucket: &str, options: &S3Options| Bucket::open(&Location::Bucket(bucket.to_owned()), options).unwrap();
    let error = block_on(open("no-such-bucket", &server.options()).probe("p")).unwrap_err();
    assert!(matches!(error, BucketError::NoBucket(_)), "{error:?}");
    assert_eq!(error.to_string(), "bucket `no-such-bucket` does not exist; create it or fix `target`");
    let wrong = server.options_with("AKTEST", "wrong");
    let error = block_on(open(&bucket, &wrong).probe("p")).unwrap_err();
    assert!(matches!(error, BucketError::Denied { .. }), "{error:?}");
    assert!(!error.to_string().contains("wrong\""), "no secrets in errors: {error}");
    let unknown = server.options_with("NOBODY", "SKTEST");
    let error = block_on(open(&bucket, &unknown).probe("p")).unwrap_err();
    assert!(matches!(error, BucketError::Denied { .. }), "{error:?}");
}

#[test]
fn credentials_are_read_again_when_their_file_changes() {
    let server = s3::server();
    let bucket = server.new_bucket();
    let options = server.options_with("AKTEST", "expired");
    let store = Bucket::open(&Location::Bucket(bucket), &options).unwrap();
    assert!(block_on(store.probe("p")).is_err());
    server.write_credentials(options.credentials_file.as_ref().unwrap(), "AKTEST", "SKTEST");
    block_on(store.probe("p")).unwrap();
}

#[test]
fn credentials_from_the_environment_are_used_and_wrong_ones_block_the_rule_in_the_stores_words() {
    let server = s3::server();
    let bucket = server.new_bucket();
    let cable = s3::CableToHere::new().unwrap();
    for (secret, said) in [("SKTEST", "the target takes objects"), ("not-the-secret", "refuses the credentials")] {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(integration::agent::binary());
        command
            .args(["run", "--no-pin", "-i", &cable.interface, "-t", &format!("s3://{bucket}")])
            .args(["--s3-path-style", "--s3-allow-http", "--s3-region", "us-east-1"])
            .args(["--s3-endpoint", server.options().endpoint.as_deref().unwrap()])
            .arg("--state-dir")
            .arg(dir.path())
            .envs([("AWS_ACCESS_KEY_ID", "AKTEST"), ("AWS_SECRET_ACCESS_KEY", secret)]);
        let mut agent = Agent::attend(command, dir).unwrap();
        agent.wait_for("capturing").unwrap();
        agent.wait_for(said).unwrap();
        assert!(!agent.log().contains("not-the-secret"), "no secrets in a log");
        agent.kill().unwrap();
    }
}

#[test]
fn the_agent_delivers_to_s3_end_to_end() {
    let server = s3::server();
    let bucket = server.new_bucket();
    // The server listens on the loopback of the namespace the tests run in; the agent must run there too. It watches
    // one end of a cable whose other end is in a namespace of its own.
    let pair = s3::CableToHere::new().unwrap();
    let target = format!("s3://{bucket}/team");
    let options = server.options();
    let args = [
        "--target",
        &target,
        "--s3-endpoint",
        options.endpoint.as_deref().unwrap(),
        "--s3-region",
        "us-east-1",
        "--s3-path-style",
        "--s3-allow-http",
        "--s3-credentials",
        options.credentials_file.as_ref().unwrap().to_str().unwrap(),
    ];
    let mut agent = Agent::spawn_here(&[&pair.interface], &args).unwrap();
    agent.wait_for("capturing").unwrap();
    pair.send(25).unwrap();
    agent.signal(rustix::process::Signal::TERM);
    agent.wait_for("delivered").unwrap();
    assert_eq!(agent.wait().unwrap(), Some(0));
    let keys = server.keys(&bucket);
    assert_eq!(keys.len(), 1, "the object, and no probe: {keys:?}");
    assert!(keys[0].starts_with("team/flowlog/year=20") && keys[0].contains("/hour="), "{keys:?}");
    let bytes = server.get(&bucket, &keys[0]);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("o.parquet"), bytes).unwrap();
    let landed = integration::rows::Objects::below(dir.path()).unwrap();
    assert_eq!(landed.sum(|r| r.dport == 9 && r.direction == "ingress").0, 25, "{:#?}", landed.rows);
}

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Reads all objects below a directory as one Hive dataset and prints what the test compares, as JSON.
const READER: &str = r#"
import json, sys, pyarrow.dataset as ds, pyarrow.compute as pc
d = ds.dataset(sys.argv[1], partitioning="hive", format="parquet")
t = d.to_table()
ok = t.filter(pc.equal(t["log_status"], "OK"))
by = ok.group_by(["action"]).aggregate([("packets", "sum"), ("bytes", "sum")]).to_pylist()
print(json.dumps({
  "rows": t.num_rows,
  "actions": {r["action"]: [r["packets_sum"], r["bytes_sum"]] for r in by},
  "columns": [[f.name, str(f.type)] for f in d.schema],
  "hours": sorted({str(h) for h in t["hour"].to_pylist()}),
  "ports": sorted(set(ok["dstport"].to_pylist())),
}))
"#;

/// Compares the statistics in every footer below a directory with the data, and prints every difference. Bounds may be left out of small
/// objects, but for the window's.
const STATISTICS: &str = r#"
import sys, pathlib, pyarrow.parquet as pq, pyarrow.compute as pc
compared = 0
for path in pathlib.Path(sys.argv[1]).rglob("*.parquet"):
    f = pq.ParquetFile(path)
    for g in range(f.metadata.num_row_groups):
        rows = f.read_row_group(g)
        for c in range(f.metadata.num_columns):
            column, s = f.metadata.row_group(g).column(c), f.metadata.row_group(g).column(c).statistics
            values = rows.column(column.path_in_schema).drop_null()
            said = (s.min, s.max) if s is not None and s.has_min_max else None
            true = (pc.min(values).as_py(), pc.max(values).as_py()) if len(values) else None
            compared += 1
            left_out = said is None and rows.num_rows <= 4 and column.path_in_schema != "window_start"
            if s is None and left_out:
                continue
            if (said != true and not left_out) or s.null_count != rows.num_rows - len(values):
                print(column.path_in_schema, "says", said, s.null_count, "has", true, rows.num_rows - len(values))
print(compared, "compared")
"#;

/// Asks `DataFusion`, which believes footers, and `DuckDB`, with footers and of a copy without any, for aggregates of every column under
/// filters by which row groups are left out. Prints every difference.
const ENGINES: &str = r#"
import sys, duckdb, datafusion
data = sys.argv[1]
duck = duckdb.connect()
duck.sql("set timezone = 'UTC'")
fusion = datafusion.SessionContext(datafusion.SessionConfig({"datafusion.execution.listing_table_ignore_subdirectory": "false"}))
duck.sql(f"create view footers as select * from read_parquet('{data}/**/*.parquet', hive_partitioning=false)")
duck.sql("create table rows as from footers")
fusion.register_parquet("footers", data)
kinds = {name: of for name, of, *_ in duck.sql("describe rows").fetchall()}
columns = [(name, of in ("INTEGER", "BIGINT")) for name, of in kinds.items()]
def literal(name, value):
    if kinds[name] == "VARCHAR":
        return f"'{value}'"
    if kinds[name].startswith("TIMESTAMP"):
        return f"cast('{value.strftime('%Y-%m-%dT%H:%M:%SZ')}' as timestamp with time zone)"
    return str(value)
nobodys = {"VARCHAR": ["zzz"], "INTEGER": [65536], "BIGINT": [65536]}
def aggregates(name, is_number):
    yield from (f'min("{name}")', f'max("{name}")', f'count("{name}")', f'count(distinct "{name}")')
    if is_number:
        yield f'sum(cast("{name}" as decimal(38, 0)))'
wanted = ["count(*)"] + [a for column in columns for a in aggregates(*column)]
def ask(wanted, where):
    asked = f"select {', '.join(wanted)} from {{}} where {where}"
    told = list(fusion.sql(asked.format("footers")).to_arrow_table().to_pylist()[0].values())
    return told, duck.sql(asked.format("footers")).fetchall()[0], duck.sql(asked.format("rows")).fetchall()[0]
questions = [(wanted, "true")]
for name, is_number in columns:
    values = [v for v, in duck.sql(f'select distinct "{name}" from rows where "{name}" is not null order by 1 limit 3').fetchall()]
    filters = [f'"{name}" is null', f'"{name}" is not null']
    filters += [f'"{name}" = {literal(name, v)}' for v in values + nobodys.get(kinds[name], [])]
    filters += [f'"{name}" > {literal(name, v)}' for v in values[:1]]
    questions += [(wanted, where) for where in filters]
    # Nothing else is answered from footers alone.
    questions.append((list(aggregates(name, False))[:3], "true"))
compared = 0
for wanted, where in questions:
    for asked, *told in zip(wanted, *ask(wanted, where), strict=True):
        compared += 1
        if told[0] != told[1] or told[1] != told[2]:
            print(asked, "where", where, "DataFusion, DuckDB, DuckDB without footers:", *told)
print(compared, "compared")
"#;

/// Asks `DuckDB` every query of the documents in the folder `FOLDER`; prints those that it does not understand.
const QUERIES: &str = r#"
import sys, pathlib, re, duckdb
duck = duckdb.connect()
duck.sql(f"create view flowlog as select * from read_parquet('{sys.argv[1]}/**/*.parquet', hive_partitioning=true)")
duck.sql(f"create view flows as select * from read_parquet('{sys.argv[1]}/**/*.parquet', hive_partitioning=true)")
compared = 0
for path in sorted(pathlib.Path("FOLDER").rglob("*.md")):
    for query in re.findall(r"^```sql\n(.*?)^```", path.read_text(), re.S | re.M):
        compared += 1
        try:
            duck.sql(query).fetchall()
        except Exception as error:
            print(path.name, error)
print(compared, "compared")
"#;

/// Has a program look at objects of flows of both verdicts, and of windows without anything; with and without nanoseconds. It must
/// have made so many comparisons at least, and found nothing.
fn compare(program: &str, at_least: usize) {
    let python = repository().join(".tools/python/bin/python");
    let pair = Pair::new().unwrap();
    pair.a.nft("table inet t {\n chain c {\n  type filter hook input priority 0\n  udp dport 7 drop\n }\n}").unwrap();
    for more in [&["--window", "1"][..], &["--window", "1", "--subsecond"]] {
        let mut agent = Agent::start(&pair.a, &["eth0"], more).unwrap();
        pair.b.run(|| {
            traffic::udp("10.1.0.1:7", 30, 100).unwrap();
            traffic::udp("[fd01::1]:8", 20, 200).unwrap();
            // Nobody listens: a SYN, and a reset.
            assert!(std::net::TcpStream::connect("10.1.0.1:9").is_err());
        });
        agent.wait_for("delivered").unwrap();
        agent.wait_for("delivered").unwrap();
        agent.end().unwrap();
        let out = Command::new(&python).args(["-c", program]).arg(agent.objects()).output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        let (differences, compared) = said.trim().rsplit_once('\n').unwrap_or(("", said.trim()));
        assert_eq!(differences, "");
        let number = compared.split(' ').next().and_then(|n| n.parse::<usize>().ok());
        assert!(compared.ends_with(" compared") && number >= Some(at_least), "{said}");
    }
}

#[test]
fn the_bounds_in_every_footer_are_those_of_the_rows() {
    compare(STATISTICS, 2 * schema::COLUMNS.len());
}

#[test]
fn the_queries_of_the_documents_are_understood() {
    compare(&QUERIES.replace("FOLDER", repository().join("docs").to_str().unwrap()), 1);
}

#[test]
fn engines_that_believe_footers_say_what_those_say_that_read_the_rows() {
    compare(ENGINES, 100 * schema::COLUMNS.len());
}

#[test]
fn a_second_independent_reader_reads_the_same() {
    let python = repository().join(".tools/python/bin/python");
    assert!(python.exists(), "run `cargo xtask setup`, or `cargo xtask test`");
    let pair = Pair::new().unwrap();
    pair.a
        .nft("table inet t {\n counter refused { }\n chain c { type filter hook input priority 0; udp dport 7 counter name refused drop; }\n}")
        .unwrap();
    let mut agent = Agent::start(&pair.a, &["eth0"], &[]).unwrap();
    pair.b.run(|| {
        traffic::udp("10.1.0.1:7", 30, 100).unwrap();
        traffic::udp("[fd01::1]:8", 20, 200).unwrap();
    });
    agent.signal(rustix::process::Signal::TERM);
    assert_eq!(agent.wait().unwrap(), Some(0));
    let ours = integration::rows::Objects::below(&agent.objects()).unwrap();
    let out = Command::new(python).args(["-c", READER]).arg(agent.objects()).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let theirs: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(theirs["rows"], ours.rows.len());
    for action in ["ACCEPT", "REJECT"] {
        let (packets, bytes) = ours.flows(action);
        assert_eq!(theirs["actions"][action], serde_json::json!([packets, bytes]), "{theirs}");
    }
    assert_eq!(ours.flows("REJECT"), pair.a.nft_counter("inet t", "refused").unwrap());
    let columns: Vec<String> =
        theirs["columns"].as_array().unwrap().iter().map(|c| c[0].as_str().unwrap().to_owned()).collect();
    let expected: Vec<&str> = schema::COLUMNS.iter().map(|c| c.name).chain(["year", "month", "day", "hour"]).collect();
    assert_eq!(columns, expected);
}

#[test]
fn the_documents_have_every_column() {
    let records = std::fs::read_to_string(repository().join("docs/records.md")).unwrap();
    for ColumnSpec { field_id, name, of, meaning, .. } in schema::COLUMNS {
        let line = format!("| {field_id} | `{name}` | {of} | {meaning} |");
        assert!(records.contains(&line), "docs/records.md lacks {line}");
    }
}

/// Puts an object as the agent does, with a probe before it.
fn put(options: &S3Options, bucket: &str, key: &str) {
    let bucket = Bucket::open(&Location::Bucket(bucket.to_owned()), options).unwrap();
    block_on(async {
        bucket.probe("web").await.unwrap();
        assert_eq!(bucket.deliver(key, vec![7; 1_000]).await.unwrap(), Outcome::Stored);
    });
}

/// Three users of one server: the agent's, and two who own a bucket each.
#[test]
fn the_owner_of_a_bucket_reads_what_lands_there_and_nobody_else_does() {
    let server = s3::server();
    let [owner, other] = [server.new_owner(), server.new_owner()];
    put(&server.options(), &owner.bucket, "web/a.parquet");
    assert_eq!(owner.reads(&owner.bucket, "web/a.parquet"), "1000");
    assert_eq!(other.reads(&owner.bucket, "web/a.parquet"), "AccessDenied");
    let listed = owner.asks(&format!(
        "print([o['Key'] for o in s3.list_objects_v2(Bucket='{b}')['Contents']],\n\
          s3.list_multipart_uploads(Bucket='{b}').get('Uploads', []))",
        b = owner.bucket
    ));
    assert_eq!(listed, "['web/a.parquet'] []", "the probe left nothing");
    // Without it an object is its writer's alone.
    put(&S3Options { acl: false, ..server.options() }, &owner.bucket, "web/b.parquet");
    assert_eq!(owner.reads(&owner.bucket, "web/b.parquet"), "AccessDenied");
}

/// Amazon's own buckets are of this kind since 2023, unless told otherwise.
#[test]
fn a_store_that_refuses_acls_is_asked_once_and_gets_objects_without() {
    let server = s3::server();
    let owner = server.new_owner();
    let options = server.options();
    let proxy = Proxy::start(options.endpoint.as_deref().unwrap().trim_start_matches("http://")).unwrap();
    proxy.fail(Fault::NoAcl, "");
    let through = S3Options { endpoint: Some(proxy.endpoint()), ..options };
    put(&through, &owner.bucket, "web/a.parquet");
    assert_eq!(owner.reads(&owner.bucket, "web/a.parquet"), "AccessDenied", "it is there, and its writer's");
    assert_eq!(proxy.hits(), 1, "the probe asked, and it is not asked for again");
}
