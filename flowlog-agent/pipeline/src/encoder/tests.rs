use std::{collections::BTreeSet, io::Read as _};

use flate2::read::GzDecoder;
use flowlog_ebpf::abi::{Count, Key, Meta, Record4, Stats, Truth, class};
use flowlog_model::{
    HookKind, MonoNs, Now, WallNs,
    interface::Netns,
    rule::{Action, Format, Layout, Rule},
};

use parquet::{
    file::reader::{FileReader as _, SerializedFileReader},
    record::{Field, Row, RowAccessor as _},
};

use super::*;
use crate::{
    disk::real::Disk,
    encode::schema::{COLUMNS, SCHEMA_VERSION},
    spool::Limits,
    window::{ObjectInfo, WindowClock},
};

/// Largest object of a window without traffic.
const IDLE_BYTES_MAX: usize = 4_200;
/// Largest narrow object of one row.
const NARROW_BYTES_MAX: usize = 2_560;

/// A window with a flow of 7 accepted packets and one of 3 refused ones.
fn closed(rule: Rule, node_id: &str, interface_id: &str) -> Closed {
    let count = |packets| Count { packets, bytes: packets * 100 };
    let mut table = FlowTable::default();
    let mut truth = Truth::default();
    for (sport, class, packets) in [(1, class::PASSED, 7), (2, class::REFUSED, 3)] {
        let meta = Meta { sport, iface: 1, proto: 17, flags: Meta::pack(0, class), reason: 8, ..Meta::default() };
        let stats = Stats { bytes: packets * 100, packets, ..Stats::default() };
        table.add4(&Record4 { key: Key { src: 1, dst: 2, meta }, stats });
    }
    truth.hook[0].seen = count(7);
    truth.verdict[0][0].refused = count(3);
    truth.verdict[0][0].seen = count(0);
    let span = *WindowClock::new(60, Now { mono: MonoNs(0), wall: WallNs(1_800_000_000_000_000_000) }).current();
    let info = ObjectInfo::sample(rule, node_id, interface_id, span);
    Closed { info, table, truth: Some(truth), hook: HookKind::Tc, place: (1, Netns::at(1, None)) }
}

fn encode(no_room: &dyn Fn(u64) -> Option<String>, reason: fn(u16) -> Option<String>) -> (Encoded, Object) {
    let names = Names { reason: Box::new(reason), ..Names::none() };
    let (encoded, object) = encode_window(closed(Rule::sample(60), "n", "n-eth0"), no_room, &names);
    (encoded, object.expect("an object"))
}

fn skip_reasons(object: &Object) -> Vec<String> {
    let reader = SerializedFileReader::new(bytes::Bytes::from(object.bytes.clone())).expect("an object");
    let column = COLUMNS.iter().position(|c| c.name == "skip_reason").expect("a column");
    let reason = |row: Row| row.get_string(column).expect("a reason").clone();
    reader.get_row_iter(None).expect("rows").map(|row| reason(row.expect("a row"))).collect()
}

#[test]
fn a_window_that_cannot_be_encoded_leaves_its_totals_and_ends_nothing() {
    let (whole, _) = encode(&|_| None, |_| None);
    assert_eq!((whole.rows.accepted, whole.rows.rejected, whole.rows.skipped), (1, 1, 0));
    let (encoded, object) = encode(&|_| None, |_| panic!("a bug of ours"));
    assert!(encoded.is_encoded && encoded.key == whole.key && object.key == whole.key);
    assert_eq!((encoded.rows.accepted, encoded.rows.rejected, encoded.rows.skipped), (0, 0, 2));
    assert_eq!((encoded.balance.lost.packets, encoded.balance.difference()), (10, (0, 0)));
    assert_eq!(skip_reasons(&object), ["not_encoded"; 2]);
}

#[test]
fn a_window_too_large_for_the_spool_leaves_its_totals_and_does_not_wait_for_room() {
    let size = encode(&|_| None, |_| None).1.bytes.len() as u64;
    let (encoded, object) = encode(&|bytes| (bytes >= size).then(|| "full".to_owned()), |_| None);
    assert_eq!((encoded.rows.accepted, encoded.rows.skipped, encoded.balance.lost.packets), (0, 2, 10));
    assert_eq!(skip_reasons(&object), ["spool_full"; 2]);
}

#[test]
fn what_stands_in_one_targets_way_holds_up_no_other() {
    let dir = tempfile::tempdir().expect("tempdir");
    let fs = Arc::new(Disk::open(dir.path()).expect("disk"));
    let (spool, _) = Spool::open(fs, Limits::default()).expect("open");
    std::fs::write(dir.path().join("spool/s3:%2F%2Fblocked"), b"in the way").expect("write");
    let tools = Tools { names: Names::none(), give_back: || {} };
    let mut encoder = Encoder::start(spool.clone(), tools, 1_000).expect("start");
    let to = |target: &str| Rule { target: target.parse().expect("a target"), ..Rule::sample(60) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let all = async {
        let mut queue = ["s3://blocked", "s3://free"].map(|target| closed(to(target), "n", "n-eth0")).into();
        encoder.send_all(&mut queue).await.expect("sent");
        encoder.close();
        while encoder.encoded().await.is_ok() {}
        encoder.take_encoded().into_iter().map(|e| (format!("{:?}", e.location), e.is_aside)).collect::<Vec<_>>()
    };
    let in_time = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), all).await });
    let stored = in_time.expect("one waits for the other");
    let bucket = |name: &str| format!("{:?}", Location::Bucket(name.to_owned()));
    assert_eq!(stored, [(bucket("blocked"), true), (bucket("free"), false)]);
}

#[test]
fn the_longest_legal_names_make_objects_that_the_spool_takes() {
    let dir = tempfile::tempdir().expect("tempdir");
    let fs = Arc::new(Disk::open(dir.path()).expect("disk"));
    let (spool, _) = Spool::open(fs, Limits::default()).expect("open");
    let long = "n".repeat(63);
    let other = "i".repeat(63);
    for target in [format!("s3://{}/{long}", "b".repeat(63)), format!("/{}", "deep/".repeat(200))] {
        for layout in [Layout::Hive, Layout::HiveNamed, Layout::Flat] {
            let target = target.parse().expect("a target");
            let rule = Rule { name: long.parse().expect("a name"), target, layout, ..Rule::sample(60) };
            let (encoded, object) = encode_window(closed(rule, &long, &other), &|_| None, &Names::none());
            assert!(!store(&spool, &encoded.location, &object.expect("an object")));
            assert!(spool.has(&encoded.location, &encoded.key).expect("list"));
        }
    }
    spool.release_all().expect("release");
    assert_eq!(spool.entries().expect("entries").len(), 6);
}

/// As files of every version were made.
fn golden(kind: &str) -> Object {
    written(kind, Format::Parquet)
}

fn written(kind: &str, format: Format) -> Object {
    let rule = Rule { subsecond: kind == "subsecond", format, ..Rule::sample(60) };
    let mut closed = closed(rule, "n", "n-eth0");
    if kind == "nodata" {
        (closed.table, closed.truth) = (FlowTable::default(), Some(Truth::default()));
    }
    let names = Names { reason: Box::new(|_| Some("NETFILTER_DROP".to_owned())), ..Names::none() };
    encode_window(closed, &|_| None, &names).1.expect("an object")
}

/// `FLOWLOG_RECORD=1` writes those of a new version; those of earlier ones stay as they are.
#[test]
fn golden_files_of_this_version_have_what_is_written_today() {
    for kind in ["plain", "subsecond", "nodata"] {
        is_as_recorded(&format!("v{SCHEMA_VERSION}-{kind}.parquet"), &golden(kind));
        is_as_recorded(&format!("narrow-{kind}.parquet"), &written(kind, Format::ParquetNarrow));
    }
}

fn is_as_recorded(name: &str, today: &Object) {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../integration/objects").join(name);
    if std::env::var_os("FLOWLOG_RECORD").is_some() {
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("make");
        std::fs::write(&file, &today.bytes).expect("write");
    }
    let read = |bytes: Vec<u8>| SerializedFileReader::new(bytes::Bytes::from(bytes)).expect("an object");
    let [today, golden] = [today.bytes.clone(), std::fs::read(&file).expect("a golden file")].map(read);
    let rows = |r: &SerializedFileReader<bytes::Bytes>| -> Vec<Row> {
        r.get_row_iter(None).expect("rows").map(|row| row.expect("a row")).collect()
    };
    assert_eq!(rows(&today), rows(&golden), "{name}");
    let said = |r: &SerializedFileReader<bytes::Bytes>| r.metadata().file_metadata().schema().clone();
    assert_eq!(said(&today), said(&golden), "{name}: names, types and field ids are fixed");
}

/// Three hours of an interface, for the queries of the documents: a client, in the second hour a scan of ports, packets lost and a gap, in
/// the third somebody new.
fn sample(hour: u32, format: Format) -> Object {
    const CLIENT: [u8; 4] = [10, 0, 0, 1];
    const SERVER: [u8; 4] = [10, 0, 0, 9];
    let now = Now { mono: MonoNs(0), wall: WallNs(1_800_000_000_000_000_000 + i64::from(hour) * 3_600_000_000_000) };
    let mut closed = closed(Rule { layout: Layout::HiveNamed, format, ..Rule::sample(600) }, "n", "n-eth0");
    closed.info.span = *WindowClock::new(600, now).current();
    let mut table = FlowTable::default();
    let mut add = |src: [u8; 4], dst: [u8; 4], (sport, dport): (u16, u16), class, (packets, bytes): (u64, u64)| {
        let egress = u8::from(src == SERVER);
        let reason = match class {
            class::PASSED => 0,
            class::REFUSED => 8,
            _ => 9,
        };
        let meta =
            Meta { sport, dport, iface: 1, proto: 6, flags: Meta::pack(egress, class), reason, ..Meta::default() };
        let stats = Stats { bytes, packets, first_ns: 5_000_000_000, last_ns: 9_000_000_000, ..Stats::default() };
        table.add4(&Record4 { key: Key { src: u32::from_ne_bytes(src), dst: u32::from_ne_bytes(dst), meta }, stats });
    };
    let packets = 100 * u64::from(hour + 1);
    add(CLIENT, SERVER, (40_000, 443), class::PASSED, (packets, packets * 60));
    add(SERVER, CLIENT, (443, 40_000), class::PASSED, (80, 90_000));
    if hour == 1 {
        add(SERVER, CLIENT, (443, 40_000), class::LOST, (2, 2_250));
        for port in 1..=30 {
            add([203, 0, 113, 7], SERVER, (50_000, port), class::REFUSED, (1, 40));
        }
        closed.info.gap = Some((closed.info.span.start_secs + 100, closed.info.span.start_secs + 130));
    }
    if hour == 2 {
        add([198, 51, 100, 3], SERVER, (50_001, 22), class::PASSED, (5, 300));
    }
    let mut truth = Truth::default();
    let count = |packets, bytes| Count { packets, bytes };
    truth.hook[0].seen = count(packets, packets * 60);
    truth.hook[1].seen = count(80, 90_000);
    if hour == 1 {
        truth.hook[0].seen = count(packets + 4, packets * 60 + 400);
        truth.hook[0].lost = count(4, 400);
        truth.verdict[0][0].refused = count(30, 1_200);
        truth.verdict[1][0].died = count(2, 2_250);
    }
    if hour == 2 {
        truth.hook[0].seen = count(packets + 5, packets * 60 + 300);
    }
    (closed.table, closed.truth) = (table, Some(truth));
    let reason = |n| Some(if n == 8 { "NETFILTER_DROP" } else { "QDISC_DROP" }.to_owned());
    let rule = |_: &ObjectInfo, _: &crate::window::Flow| Some("netfilter".to_owned());
    let names = Names { reason: Box::new(reason), rule: Box::new(rule) };
    let (encoded, object) = encode_window(closed, &|_| None, &names);
    assert_eq!(encoded.balance.difference(), (0, 0), "{}", encoded.balance);
    object.expect("an object")
}

#[test]
fn the_sample_of_the_documents_is_what_is_written_today() {
    for hour in 0..3 {
        let object = sample(hour, Format::Parquet);
        is_as_recorded(&format!("sample/{}", object.key), &object);
    }
}

/// 42 columns have 2.4 KiB in their names alone, twice, with a number and a type each.
#[test]
fn an_idle_window_is_a_small_object_that_says_when_it_was() {
    let bytes = golden("nodata").bytes;
    assert!(bytes.len() < IDLE_BYTES_MAX, "{} bytes", bytes.len());
    let reader = SerializedFileReader::new(bytes::Bytes::from(bytes)).expect("an object");
    for (number, column) in reader.metadata().row_group(0).columns().iter().enumerate() {
        let has_bounds = column.statistics().is_some_and(|s| s.min_bytes_opt().is_some());
        assert_eq!(has_bounds, COLUMNS[number].name == "window_start", "{}", COLUMNS[number].name);
        assert_eq!((column.offset_index_offset(), column.column_index_offset()), (None, None));
    }
}

/// What each row says: names and values of its columns, without those that have none.
fn says(object: &Object) -> Vec<Vec<(String, String)>> {
    let reader = SerializedFileReader::new(bytes::Bytes::from(object.bytes.clone())).expect("an object");
    let columns = |row: &Row| {
        let all = row.get_column_iter().filter(|(_, value)| **value != Field::Null);
        all.map(|(name, value)| (name.clone(), value.to_string())).collect()
    };
    reader.get_row_iter(None).expect("rows").map(|row| columns(&row.expect("a row"))).collect()
}

#[test]
fn a_narrow_object_says_what_a_wide_one_does_in_the_columns_that_have_a_value() {
    let pairs =
        ["plain", "subsecond", "nodata"].map(|kind| [Format::Parquet, Format::ParquetNarrow].map(|f| written(kind, f)));
    let hours = [0, 1, 2].map(|hour| [Format::Parquet, Format::ParquetNarrow].map(|f| sample(hour, f)));
    for [wide, narrow] in pairs.into_iter().chain(hours) {
        assert_eq!(says(&narrow), says(&wide), "{}", wide.key);
        assert_eq!((&narrow.key, narrow.rows), (&wide.key, wide.rows));
        let reader = SerializedFileReader::new(bytes::Bytes::from(narrow.bytes.clone())).expect("an object");
        let names: BTreeSet<String> = says(&wide).concat().into_iter().map(|(name, _)| name).collect();
        let schema = reader.metadata().file_metadata().schema();
        let here: BTreeSet<String> = schema.get_fields().iter().map(|f| f.name().to_owned()).collect();
        assert_eq!(here, names, "{}", wide.key);
        for field in schema.get_fields() {
            let spec = COLUMNS.iter().find(|c| c.name == field.name()).expect("one of ours");
            assert_eq!(field.get_basic_info().id(), spec.field_id, "{}", spec.name);
        }
    }
}

#[test]
fn a_narrow_object_of_one_row_is_small() {
    let mut one =
        closed(Rule { format: Format::ParquetNarrow, action: Action::Accepted, ..Rule::sample(60) }, "n", "n-eth0");
    one.info.account_id = Some("31960002".to_owned());
    let (_, flow) = encode_window(one, &|_| None, &Names::none());
    let flow = flow.expect("an object");
    assert_eq!(flow.rows.accepted, 1);
    for object in [flow, written("nodata", Format::ParquetNarrow)] {
        assert!(object.bytes.len() < NARROW_BYTES_MAX, "{} bytes", object.bytes.len());
    }
}

#[test]
fn text_is_what_clouds_write_and_the_same_bytes_every_time() {
    let lines = |hour| {
        let object = sample(hour, Format::Text);
        assert_eq!(object.bytes, sample(hour, Format::Text).bytes, "a window that is encoded again is the same object");
        assert!(object.key.ends_with("Z_0.log.gz"), "{}", object.key);
        let mut text = String::new();
        GzDecoder::new(object.bytes.as_slice()).read_to_string(&mut text).expect("gzip");
        text
    };
    assert_eq!(lines(0) + &lines(1) + &lines(2), include_str!("../../../../integration/objects/sample.log"));
    let mut idle = closed(Rule { format: Format::Text, ..Rule::sample(60) }, "n", "n-eth0");
    (idle.table, idle.truth) = (FlowTable::default(), Some(Truth::default()));
    let object = encode_window(idle, &|_| None, &Names::none()).1.expect("an object");
    let mut text = String::new();
    GzDecoder::new(object.bytes.as_slice()).read_to_string(&mut text).expect("gzip");
    assert!(text.ends_with("\n2 - n-eth0 - - - - - - - 1800000000 1800000060 - NODATA\n"), "{text}");
}
