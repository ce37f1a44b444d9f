//! What landed, read back from Parquet.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use flate2::read::GzDecoder;
use parquet::{
    file::reader::{FileReader as _, SerializedFileReader},
    record::{Field, Row as ParquetRow},
};

/// One row, as far as tests look at it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    pub src: String,
    pub dst: String,
    pub sport: i64,
    pub dport: i64,
    pub protocol: i64,
    /// One of `ingress`, `egress`.
    pub direction: String,
    /// `ACCEPT`, `REJECT` or empty.
    pub action: String,
    pub reason: String,
    /// One of `OK`, `SKIPDATA`, `NODATA`.
    pub status: String,
    pub skip: String,
    pub packets: u64,
    pub bytes: u64,
    /// TCP flags, -1 if null.
    pub tcp_flags: i64,
    /// ICMP type, -1 if null.
    pub icmp_type: i64,
    /// VLAN, -1 if null.
    pub vlan: i64,
    /// First packet, in ns since 1970.
    pub start_ns: i64,
    /// Last packet, in ns since 1970.
    pub end_ns: i64,
    /// Window start, Unix seconds.
    pub window_start: i64,
    /// Marks of the window.
    pub marks: String,
    pub interface: String,
    /// The node that it is of.
    pub node: String,
    /// Packets and bytes of these that were lost after they had passed, 0 if null.
    pub lost: Sum,
    /// What most of those died for.
    pub lost_reason: String,
    /// Firewall mark of what was refused, -1 if null.
    pub mark: i64,
    /// What refused it.
    pub rule: String,
    /// Source and destination on the other side of a translation, each as `ADDRESS PORT`; empty if null.
    pub other_side: [String; 2],
    /// Whether its source opened the connection.
    pub initiator: Option<bool>,
    /// `begin`, `continue`, `end`, `whole` or empty.
    pub state: String,
    /// `fin`, `rst`, `idle` or empty.
    pub end: String,
    /// Time of the handshake, -1 if null.
    pub rtt_us: i64,
}

/// Sum of packets and bytes.
pub type Sum = (u64, u64);

/// All objects below a directory.
#[derive(Debug, Default)]
pub struct Objects {
    pub keys: Vec<String>,
    /// All rows of all objects.
    pub rows: Vec<Row>,
    /// What each object says besides its rows: in the order of the keys.
    pub metadata: Vec<BTreeMap<String, String>>,
}

impl Objects {
    /// Reads everything below `dir`.
    ///
    /// # Errors
    /// If an object is not readable Parquet.
    pub fn below(dir: &Path) -> anyhow::Result<Self> {
        let files = files(dir)?;
        let mut objects = Self::default();
        for file in files {
            objects.keys.push(file.strip_prefix(dir)?.to_string_lossy().into_owned());
            if file.extension().is_some_and(|e| e == "gz") {
                objects.rows.extend(of_text(&file)?);
                objects.metadata.push(BTreeMap::new());
                continue;
            }
            let reader = SerializedFileReader::new(File::open(&file)?).with_context(|| file.display().to_string())?;
            let said = reader.metadata().file_metadata().key_value_metadata().cloned().unwrap_or_default();
            objects.metadata.push(said.into_iter().map(|kv| (kv.key, kv.value.unwrap_or_default())).collect());
            for row in reader.get_row_iter(None)? {
                objects.rows.push(convert(&row?));
            }
        }
        Ok(objects)
    }

    /// Sum over the rows that `keep` keeps.
    pub fn sum(&self, keep: impl Fn(&Row) -> bool) -> Sum {
        self.rows.iter().filter(|r| keep(r)).fold((0, 0), |(p, b), r| (p + r.packets, b + r.bytes))
    }

    /// Flows with this verdict.
    #[must_use]
    pub fn flows(&self, action: &str) -> Sum {
        self.sum(|r| r.status == "OK" && r.action == action)
    }

    /// Counted losses that add to the sum of all packets.
    #[must_use]
    pub fn lost(&self) -> Sum {
        self.sum(|r| r.status == "SKIPDATA" && r.skip != "verdict_unknown")
    }

    /// Everything that must add up to what the interface counted.
    #[must_use]
    pub fn total(&self) -> Sum {
        let a = self.flows("ACCEPT");
        let r = self.flows("REJECT");
        let l = self.lost();
        (a.0 + r.0 + l.0, a.1 + r.1 + l.1)
    }
}

/// Rows of an object that is text: 14 columns, of which the first line has the names.
fn of_text(file: &Path) -> anyhow::Result<Vec<Row>> {
    let mut text = String::new();
    GzDecoder::new(File::open(file)?).read_to_string(&mut text).with_context(|| file.display().to_string())?;
    let mut lines = text.lines();
    ensure!(lines.next().is_some_and(|names| names.starts_with("version account-id interface-id ")), "no names");
    let row = |line: &str| {
        let cells: Vec<&str> = line.split(' ').collect();
        let [_, _, interface, src, dst, sport, dport, protocol, packets, bytes, start, end, action, status] = cells[..]
        else {
            anyhow::bail!("{}: {line}", file.display());
        };
        let text = |cell: &str| if cell == "-" { String::new() } else { cell.to_owned() };
        let number = |cell: &str| if cell == "-" { Ok(-1) } else { cell.parse::<i64>() };
        let count = |cell: &str| if cell == "-" { Ok(0) } else { cell.parse::<u64>() };
        Ok(Row {
            interface: interface.to_owned(),
            src: text(src),
            dst: text(dst),
            sport: number(sport)?,
            dport: number(dport)?,
            protocol: number(protocol)?,
            packets: count(packets)?,
            bytes: count(bytes)?,
            start_ns: number(start)? * 1_000_000_000,
            end_ns: number(end)? * 1_000_000_000,
            action: text(action),
            status: status.to_owned(),
            ..Row::default()
        })
    };
    lines.map(row).collect()
}

/// All files below a directory, in order.
fn files(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::<PathBuf>::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(d) = todo.pop() {
        for entry in std::fs::read_dir(&d).with_context(|| d.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() { todo.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    Ok(files)
}

/// What the metadata of each object below `dir` say under a key.
///
/// # Errors
/// If an object is not readable Parquet, or has no such key.
pub fn metadata(dir: &Path, key: &str) -> anyhow::Result<Vec<String>> {
    let of = |file: &PathBuf| {
        let reader = SerializedFileReader::new(File::open(file)?).with_context(|| file.display().to_string())?;
        let pairs = reader.metadata().file_metadata().key_value_metadata().context("metadata")?;
        let value = pairs.iter().find(|pair| pair.key == key).and_then(|pair| pair.value.clone());
        value.with_context(|| format!("no {key} in {}", file.display()))
    };
    files(dir)?.iter().map(of).collect()
}

fn convert(row: &ParquetRow) -> Row {
    let field = |name: &str| {
        row.get_column_iter().find(|(n, _)| *n == name).map(|(_, f)| f.clone()).expect("column of the schema")
    };
    let text = |name: &str| match field(name) {
        Field::Str(s) => s,
        Field::Null => String::new(),
        other => panic!("{name}: {other:?}"),
    };
    let number = |name: &str| match field(name) {
        Field::Int(n) => i64::from(n),
        Field::Long(n) => n,
        Field::TimestampMicros(us) => us / 1_000_000,
        Field::Null => -1,
        other => panic!("{name}: {other:?}"),
    };
    let count = |name: &str| u64::try_from(number(name)).unwrap_or(0);
    Row {
        src: text("srcaddr"),
        dst: text("dstaddr"),
        sport: number("srcport"),
        dport: number("dstport"),
        protocol: number("protocol"),
        direction: text("flow_direction"),
        action: text("action"),
        reason: text("reject_reason"),
        status: text("log_status"),
        skip: text("skip_reason"),
        packets: count("packets"),
        bytes: count("bytes"),
        tcp_flags: number("tcp_flags"),
        icmp_type: number("icmp_type"),
        vlan: number("vlan_id"),
        start_ns: number("start_ns"),
        end_ns: number("end_ns"),
        window_start: number("window_start"),
        marks: text("window_marks"),
        interface: text("interface_id"),
        node: text("node_id"),
        lost: (count("lost_packets"), count("lost_bytes")),
        lost_reason: text("lost_reason"),
        mark: number("rule_mark"),
        rule: text("verdict_rule"),
        other_side: [("pkt_srcaddr", "pkt_srcport"), ("pkt_dstaddr", "pkt_dstport")].map(|(address, port)| {
            if text(address).is_empty() { String::new() } else { format!("{} {}", text(address), number(port)) }
        }),
        initiator: match field("initiator") {
            Field::Bool(is) => Some(is),
            Field::Null => None,
            other => panic!("initiator: {other:?}"),
        },
        state: text("flow_state"),
        end: text("end_cause"),
        rtt_us: number("rtt_us"),
    }
}
