//! `flowlog read` for people with data: of files and of a bucket, by time and by condition, in every form, with the sums of the books.

use std::{
    collections::BTreeSet,
    fs,
    net::TcpListener,
    path::Path,
    process::{Command, Output},
};

use flowlog_model::rule::Location;
use flowlog_pipeline::upload::Bucket;
use integration::{agent::binary, s3};
use serde_json::Value;

fn objects() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("objects")
}

fn flowlog(args: &[&str]) -> Output {
    Command::new(binary()).args(args).output().unwrap()
}

/// What `flowlog read` prints of the sample, which must be done.
fn read(args: &[&str]) -> String {
    let sample = objects().join("sample");
    let out = flowlog(&[&["read", sample.to_str().unwrap()], args].concat());
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn rows(args: &[&str]) -> Vec<Value> {
    read(&[&["-o", "json"], args].concat()).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn conditions_and_times_choose_rows_as_an_engine_does() {
    let all = rows(&[]);
    // The third hour begins at 10:00; its rows at 10:00:05.
    let of = |keep: &dyn Fn(&Value) -> bool| all.iter().filter(|row| keep(row)).cloned().collect::<Vec<_>>();
    let start = |row: &Value| row["start"].as_i64().unwrap();
    for (args, expected) in [
        (&["--where", "action = REJECT and dstport = 22"][..], of(&|r| r["action"] == "REJECT" && r["dstport"] == 22)),
        (&["--where", "dstport<=3 and srcaddr=203.0.113.0/24"], of(&|r| r["dstport"].as_i64().is_some_and(|p| p <= 3))),
        (&["--where", "lost_packets != null"], of(&|r| !r["lost_packets"].is_null())),
        (&["--where", "skip_reason = 'gap'"], of(&|r| r["skip_reason"] == "gap")),
        (&["--where", "window_start = 2027-01-15T09:00:00Z"], of(&|r| r["window_start"] == "2027-01-15T09:00:00Z")),
        (&["--since", "2027-01-15T10:00:05Z"], of(&|r| start(r) >= 1_800_007_205)),
        (&["--until", "2027-01-15T09:00"], of(&|r| start(r) < 1_800_003_600)),
        (
            &["--since", "2027-01-15T09:00", "--until", "2027-01-15T10:00"],
            of(&|r| (1_800_003_600..1_800_007_200).contains(&start(r))),
        ),
    ] {
        let found = rows(args);
        assert_eq!(found, expected, "{args:?}");
        assert!(found.len() < all.len(), "{args:?} chooses something");
    }
    let table = read(&["--where", "dstport = 22 and action = ACCEPT"]);
    assert!(table.contains("198.51.100.3:50001") && !table.contains("hour=08"), "only where there is a row: {table}");
    let wrong = flowlog(&["read", "--where", "port = 22", "/"]);
    assert_eq!(wrong.status.code(), Some(64), "{}", String::from_utf8_lossy(&wrong.stderr));
}

/// The values of a line of CSV: none of the sample has a quote in it.
fn cells(line: &str) -> Vec<String> {
    let mut is_quoted = false;
    let split = line.split(|c| {
        is_quoted ^= c == '"';
        c == ',' && !is_quoted
    });
    split.map(|cell| cell.trim_matches('"').to_owned()).collect()
}

#[test]
fn an_object_that_cannot_be_read_is_said_and_all_others_are_read_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).display().to_string();
    let versions = ["v2-plain.parquet", "v3-plain.parquet"];
    for version in versions {
        fs::copy(objects().join(version), file(version)).unwrap();
    }
    let lines = |args: &[&str]| {
        let out = flowlog(&[&["read"], args].concat());
        (out.status.code(), String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap())
    };
    let both = versions.map(file);
    let (code, alone, _) = lines(&["-o", "json", &both[0], &both[1]]);
    assert!(code == Some(0) && alone.lines().count() > 2, "{alone}");
    // Named twice, reached twice: a link to a directory that it is in, too.
    std::os::unix::fs::symlink(dir.path(), file("again")).unwrap();
    let whole = dir.path().display().to_string();
    assert_eq!(lines(&["-o", "json", &whole, &both[1], &whole]), (Some(0), alone.clone(), String::new()));
    fs::write(file("v2-broken.parquet"), "no object").unwrap();
    fs::write(file("text.log.gz"), "").unwrap();
    std::os::unix::fs::symlink("/nowhere", file("nowhere.parquet")).unwrap();
    assert!(Command::new("mkfifo").arg(file("pipe.parquet")).status().unwrap().success());
    for args in [&["--balance"][..], &["-o", "csv"], &["-o", "table"], &["-o", "json"]] {
        let (code, said, errors) = lines(&[&[whole.as_str()], args].concat());
        assert_eq!(code, Some(65), "{args:?}: {errors}");
        assert!(
            errors.contains("1 of 3 objects could not be read") && errors.contains("v2-broken.parquet"),
            "{errors}"
        );
        assert!(errors.contains("pipe.parquet` is a pipe, and no object: passed over"), "{errors}");
        assert!(errors.contains("nowhere.parquet`: No such file"), "{errors}");
        assert!(errors.contains("1 text objects (`*.log.gz`) are not shown"), "{errors}");
        assert!(!said.is_empty() && (args != ["-o", "json"] || said == alone), "{args:?}: {said}");
    }
}

#[test]
fn without_credentials_it_is_said_where_they_were_looked_for_and_an_instance_is_asked_only_if_it_may_be() {
    let service = TcpListener::bind("127.0.0.1:0").unwrap();
    let read = |disabled: &str| {
        let mut command = Command::new(binary());
        command.args(["read", "s3://flows"]).env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
        command.env("AWS_METADATA_ENDPOINT", format!("http://{}", service.local_addr().unwrap()));
        let out = command.env("AWS_EC2_METADATA_DISABLED", disabled).output().unwrap();
        (out.status.code(), String::from_utf8(out.stderr).unwrap())
    };
    let (code, said) = read("true");
    assert!(
        code == Some(78) && said.contains("AWS_EC2_METADATA_DISABLED is set, so the instance is not asked"),
        "{said}"
    );
    service.set_nonblocking(true).unwrap();
    assert!(service.accept().is_err(), "nobody has asked");
    service.set_nonblocking(false).unwrap();
    let answers = service.try_clone().unwrap();
    // Whoever asks is hung up on.
    std::thread::spawn(move || answers.incoming().for_each(drop));
    let (code, said) = read("");
    assert!(code == Some(75) && said.contains("this machine's metadata service has none either"), "{code:?} {said}");
    for words in [
        "no S3 credentials",
        "`s3.credentials` names no file",
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
}

#[test]
fn every_form_has_every_row() {
    let all = rows(&[]);
    let csv = read(&["-o", "csv"]);
    let (header, lines) = csv.split_once('\n').unwrap();
    let columns: Vec<&str> = header.split(',').collect();
    assert_eq!(lines.lines().count(), all.len());
    for (line, row) in lines.lines().zip(&all) {
        let values = cells(line);
        assert_eq!(values.len(), columns.len(), "{line}");
        for (name, value) in columns.iter().zip(values) {
            let wanted = match &row[*name] {
                Value::Null => String::new(),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            assert_eq!(value, wanted, "{name} of {line}");
        }
    }
    let text = read(&["-o", "text"]);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("version account-id interface-id srcaddr") && lines[0].ends_with(" log-status"));
    assert_eq!(lines.len(), all.len() + 1);
    assert!(lines.iter().all(|line| line.split(' ').count() == 14), "{text}");
    assert!(
        lines.contains(&"2 - n-eth0 10.0.0.1 10.0.0.9 40000 443 6 100 6000 1800000005 1800000009 ACCEPT OK"),
        "{text}"
    );
    assert!(lines.contains(&"2 - n-eth0 - - - - - - - 1800003700 1800003730 - SKIPDATA"), "{text}");
    assert_eq!(read(&["-o", "csv", "--rows", "1"]).lines().count(), 4, "one of each object");
}

#[test]
fn the_books_are_summed_up_and_a_difference_is_an_exit_code() {
    let said = read(&["--balance"]);
    let entry = |name: &str| -> Vec<u64> {
        let line =
            said.lines().find(|line| line.split_whitespace().next() == Some(name)).unwrap_or_else(|| panic!("{said}"));
        line.split_whitespace().skip(1).map(|n| n.parse().unwrap()).collect()
    };
    // 100, 200 and 300 packets of the client, 5 of somebody new, 80 an hour of the server, and 4 that are in no row.
    assert_eq!(entry("accepted_rows"), [845, 36_300 + 3 * 90_000]);
    assert_eq!(entry("rejected_rows"), [30, 1_200]);
    assert_eq!((entry("lost"), entry("seen")), (vec![4, 400], vec![849, 36_700 + 3 * 90_000]));
    assert!(said.contains("3 objects, 0 that do not balance"), "{said}");
    assert!(read(&["--balance", "--since", "2027-01-15T10:00"]).contains("1 objects, 0"), "of a time");
    // Somebody has changed a digit: nothing else notices, for the file is as long as it was.
    let dir = tempfile::tempdir().unwrap();
    let bytes = fs::read(objects().join("v4-plain.parquet")).unwrap();
    let at = bytes.windows(14).position(|w| w == b"difference=0/0").unwrap();
    let mut twisted = bytes.clone();
    twisted[at + 11] = b'7';
    fs::write(dir.path().join("a.parquet"), &bytes).unwrap();
    fs::write(dir.path().join("b.parquet"), twisted).unwrap();
    let out = flowlog(&["read", "--balance", dir.path().to_str().unwrap()]);
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(
        said.contains("2 objects, 1 that do not balance") && said.contains("b.parquet: 7 packets, 0 bytes"),
        "{said}"
    );
    // Or of a count, and the difference still says that there is none.
    let at = bytes.windows(11).position(|w| w == b"seen=7/700 ").unwrap();
    let mut twisted = bytes;
    twisted[at + 5] = b'9';
    fs::write(dir.path().join("b.parquet"), twisted).unwrap();
    let out = flowlog(&["read", "--balance", dir.path().to_str().unwrap()]);
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.code() == Some(1) && said.contains("b.parquet: -2 packets, 0 bytes"), "{said}");
    let nothing = flowlog(&["read", "--balance", "--since", "2037-01-01", dir.path().to_str().unwrap()]);
    assert_eq!(nothing.status.code(), Some(66), "nothing was compared");
}

#[test]
fn a_narrow_object_is_read_as_the_wide_one_of_the_same_rows() {
    for kind in ["plain", "subsecond", "nodata"] {
        let [wide, narrow] = [format!("v4-{kind}.parquet"), format!("narrow-{kind}.parquet")].map(|name| {
            let file = objects().join(name).display().to_string();
            move |args: &[&str]| {
                let out = flowlog(&[&["read", &file], args].concat());
                assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
                String::from_utf8(out.stdout).unwrap().replace("narrow-", "v4-")
            }
        });
        for args in [
            &["-o", "table"][..],
            &["-o", "csv"],
            &["-o", "json"],
            &["-o", "text"],
            &["--balance"],
            &["-o", "csv", "--where", "action = REJECT and srcaddr != 9.9.9.9"],
            &["-o", "json", "--where", "vlan_id = null and log_status = OK"],
            &["-o", "csv", "--where", "tcp_flags != 2"],
        ] {
            assert_eq!(narrow(args), wide(args), "{kind} {args:?}");
        }
    }
}

#[test]
fn a_bucket_is_read_as_a_directory_is() {
    let server = s3::server();
    let bucket = server.new_bucket();
    let store = Bucket::open(&Location::Bucket(bucket.clone()), &server.options()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let sample = objects().join("sample");
    let mut keys = BTreeSet::new();
    let mut todo = vec![sample.clone()];
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            todo.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let key = format!("team/{}", path.strip_prefix(&sample).unwrap().display());
        runtime.block_on(store.deliver(&key, fs::read(&path).unwrap())).unwrap();
        keys.insert(key);
    }
    // One that is read in pieces, and something that is no object of ours.
    let large = large();
    assert!(large.len() > 4 << 20, "{} bytes", large.len());
    runtime.block_on(store.deliver("large/x.parquet", large.clone())).unwrap();
    runtime.block_on(store.deliver("team/notes.txt", b"notes".to_vec())).unwrap();
    let options = server.options();
    let way = [
        "--s3-path-style",
        "--s3-allow-http",
        "--s3-region",
        "us-east-1",
        "--s3-endpoint",
        options.endpoint.as_deref().unwrap(),
        "--s3-credentials",
        options.credentials_file.as_ref().unwrap().to_str().unwrap(),
    ];
    let of = |url: String, more: &[&str]| {
        let out = flowlog(&[&["read", &url], &way[..], more].concat());
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    assert_eq!(of(format!("s3://{bucket}/team"), &["-o", "csv"]), read(&["-o", "csv"]));
    assert_eq!(of(format!("s3://{bucket}/team/flow_log=web"), &["--balance"]), read(&["--balance"]));
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("x.parquet"), &large).unwrap();
    let local = flowlog(&["read", "-o", "json", dir.path().to_str().unwrap()]);
    assert!(local.status.success() && of(format!("s3://{bucket}/large"), &["-o", "json"]).as_bytes() == local.stdout);
    let none = flowlog(&[&["read", &format!("s3://{bucket}-none")], &way[..]].concat());
    assert!(!none.status.success() && String::from_utf8_lossy(&none.stderr).contains("cannot list"), "{none:?}");
}

/// An object of several megabytes: addresses that nothing compresses.
fn large() -> Vec<u8> {
    let script = r#"
import sys, random, pyarrow as pa, pyarrow.parquet as pq
t = pq.read_table(sys.argv[1])
n = 300_000
random.seed(7)
one = t.slice(0, 1)
columns = {name: pa.concat_arrays([one[name].combine_chunks()] * 1).take(pa.array([0] * n)) for name in t.column_names}
columns["srcaddr"] = pa.array([f"fd00::{random.getrandbits(64):x}" for _ in range(n)])
columns["bytes"] = pa.array([random.getrandbits(62) for _ in range(n)], pa.int64())
pq.write_table(pa.table(columns, schema=t.schema), sys.argv[2], row_group_size=50_000, compression="zstd")
"#;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("large.parquet");
    let python = objects().join("../../.tools/python/bin/python");
    let made = Command::new(python).args(["-c", script]).arg(objects().join("v4-plain.parquet")).arg(&file).status();
    assert!(made.unwrap().success());
    fs::read(file).unwrap()
}
