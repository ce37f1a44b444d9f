//! What is found again after a restart, what is full, what is left alone.

use std::{os::unix::fs::symlink, path::PathBuf};

use flowlog_host::clock;

use super::*;
use crate::{disk::real::Disk, encode::RowCounts};

fn object(key: &str) -> Object {
    Object { key: key.to_owned(), bytes: b"parquet".to_vec(), rows: RowCounts::default() }
}

fn open(dir: &std::path::Path, limits: Limits) -> (Spool, Leftovers) {
    Spool::open(Arc::new(Disk::open(dir).expect("disk")), limits).expect("open")
}

#[test]
fn a_restarted_agent_finds_every_complete_file_and_no_partial_one() {
    let dir = tempfile::tempdir().expect("tempdir");
    let bucket = Location::Bucket("flows".to_owned());
    let local = Location::Directory(PathBuf::from("/var/flow%logs"));
    let (spool, _) = open(dir.path(), Limits::default());
    spool.hold(&bucket, &object("web/year=2026/a_1.parquet")).expect("hold");
    spool.hold(&local, &object("web/b_2.parquet")).expect("hold");
    std::fs::write(dir.path().join("spool/s3:%2F%2Fflows/web%2Fc.parquet.partial"), b"torn").expect("write");
    assert!(spool.entries().expect("entries").is_empty(), "held ones are not delivered");
    spool.release(&local, &["web/b_2.parquet".to_owned(), "web/gone.parquet".to_owned()]).expect("release");
    assert_eq!(spool.entries().expect("entries").len(), 1);

    let (again, left) = open(dir.path(), Limits::default());
    assert_eq!(left, Leftovers { partial: 1, foreign: Vec::new() });
    assert!(again.has(&bucket, "web/year=2026/a_1.parquet").expect("list"));
    assert!(!again.has(&bucket, "web/c.parquet").expect("list"));
    again.release_all().expect("release");
    let found = again.entries().expect("entries");
    assert_eq!((found.len(), again.bytes()), (2, 14));
    assert_eq!(again.read(&found[0]).expect("read"), b"parquet");
    again.remove(&found[0]).expect("remove");
    let aside = again.quarantine(&found[1]).expect("quarantine");
    assert!(dir.path().join(aside).is_file() && again.is_empty());
    assert_eq!(again.bytes(), 7, "what is put aside still takes room");
}

#[test]
fn a_full_or_old_spool_says_so_and_keeps_a_reserve_for_totals() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (spool, _) = open(dir.path(), Limits { bytes_max: 10, age_secs_max: 100 });
    let bucket = Location::Bucket("flows".to_owned());
    let now = clock::now().wall.secs();
    assert_eq!(spool.is_full(now), None);
    for key in ["a/1", "a/2"] {
        spool.hold(&bucket, &object(key)).expect("the reserve takes it");
    }
    assert!(spool.is_full(now).expect("full").contains("14 bytes of at most 10"));
    let huge = Object { bytes: vec![0; 17 << 20], ..object("a/3") };
    assert!(spool.hold(&bucket, &huge).expect_err("full").to_string().contains("the spool is full"));
    let (spool, _) = open(dir.path(), Limits { bytes_max: 1 << 30, age_secs_max: 100 });
    spool.release_all().expect("release");
    spool.entries().expect("entries");
    assert_eq!(spool.is_full(now), None);
    assert!(spool.is_full(now + 200).expect("old").contains("of at most 100"));
}

#[test]
fn links_and_strange_files_are_reported_and_left_alone() {
    let dir = tempfile::tempdir().expect("tempdir");
    open(dir.path(), Limits::default());
    let at = |name: &str| dir.path().join("spool").join(name);
    symlink("/etc", at("file:%2F%2F%2Fvar%2Fa")).expect("link");
    std::fs::create_dir(at("file:%2F%2F%2Fvar%2Fb")).expect("make");
    symlink("/etc/passwd", at("file:%2F%2F%2Fvar%2Fb/x.parquet")).expect("link");
    std::fs::write(at("notes"), b"?").expect("write");
    let (spool, left) = open(dir.path(), Limits::default());
    assert_eq!(left.foreign.len(), 3, "{left:?}");
    assert!(spool.entries().expect("entries").is_empty());
    assert!(at("notes").is_file() && at("file:%2F%2F%2Fvar%2Fb/x.parquet").is_symlink());
}

#[test]
fn names_of_any_length_are_held_found_again_and_delivered() {
    let dir = tempfile::tempdir().expect("tempdir");
    let deep = Location::Directory(PathBuf::from(format!("/{}", "deep/".repeat(200))));
    let bucket = Location::Bucket("b".repeat(63));
    let (spool, _) = open(dir.path(), Limits::default());
    let long = format!("{}/{}/x.parquet", "p".repeat(63), "k".repeat(250));
    let all = [(&bucket, long.as_str()), (&deep, long.as_str()), (&deep, "web/a.parquet"), (&bucket, "web/a.parquet")];
    for (location, key) in all {
        spool.hold(location, &object(key)).expect("hold");
    }
    let (again, left) = open(dir.path(), Limits::default());
    assert_eq!(left, Leftovers::default());
    assert!(all.iter().all(|(location, key)| again.has(location, key).expect("list")));
    again.release_all().expect("release");
    for _ in 0..2 {
        let mut found: Vec<_> = again.entries().expect("entries").into_iter().map(|e| (e.location, e.key)).collect();
        let mut expected: Vec<_> = all.iter().map(|(l, k)| ((*l).clone(), (*k).to_owned())).collect();
        let by_text = |a: &(Location, String), b: &(Location, String)| format!("{a:?}").cmp(&format!("{b:?}"));
        found.sort_by(by_text);
        expected.sort_by(by_text);
        assert_eq!(found, expected);
    }
    for entry in again.entries().expect("entries") {
        assert_eq!(again.read(&entry).expect("read"), b"parquet", "the first line is not the object's");
        again.remove(&entry).expect("remove");
    }
    assert!(again.is_empty() && again.bytes() == 0);
}

#[test]
fn what_stands_in_one_targets_way_is_no_reason_for_others_to_wait() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (spool, _) = open(dir.path(), Limits::default());
    let blocked = Location::Bucket("blocked".to_owned());
    let free = Location::Bucket("free".to_owned());
    std::fs::write(dir.path().join("spool/s3:%2F%2Fblocked"), b"in the way").expect("write");
    let error = spool.hold(&blocked, &object("web/a")).expect_err("in the way");
    assert!(error.is_of_one_object(), "{error}");
    assert!(!spool.has(&blocked, "web/a").expect("no directory, no object"));
    spool.hold(&free, &object("web/a")).expect("hold");
    let aside = spool.put_aside(&blocked, &object("web/a")).expect("put aside");
    assert_eq!(std::fs::read(dir.path().join(aside)).expect("durable"), b"parquet");
    assert!(spool.has(&blocked, "web/a").expect("put aside"), "it is not made again");
    let (again, _) = open(dir.path(), Limits::default());
    again.release_all().expect("release");
    assert_eq!(again.entries().expect("entries").len(), 1);
}
