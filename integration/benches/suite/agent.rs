//! `cargo xtask bench agent`: what the agent costs in user space. Its stages are called as the agent calls them; the running agent
//! itself is measured by [`crate::wire`].
#![allow(clippy::cast_precision_loss, reason = "counts that are printed")]

use std::{hint::black_box, io::BufWriter, net::IpAddr, sync::Arc, time::Instant};

use flate2::{Compression, write::GzEncoder};
use flowlog_ebpf::abi::Truth;
use flowlog_model::{HookKind, MonoNs};
use flowlog_pipeline::{
    disk::real::Disk,
    encode::{
        self, Names, ObjectInfo,
        parquet::{CHOSEN, Profile, TimesEncoding, write},
        rows::{CHOSEN as ORDER, Order, Rows},
    },
    spool::{Limits, Spool},
    window::{Addresses, Flow, FlowTable, Settled, block::Record, settle::settle},
};
use parquet::{
    arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder},
    basic::{Compression as ParquetCompression, ZstdLevel},
    file::properties::WriterProperties,
};

use crate::{
    frames::Kind,
    lab::{BATCH, Hook, Lab},
    memory,
    records::{self, Random, add},
    report::{Figure, Report, Table},
};

const ROWS: usize = 500_000;

/// What to measure.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Options {
    /// Rounds; the figure is their median, the best is in brackets
    #[arg(long, default_value_t = 5)]
    rounds: u32,
}

impl Options {
    /// Few rounds, to see that everything runs.
    pub(crate) fn quick(self) -> Self {
        Self { rounds: self.rounds.min(1) }
    }
}

/// Measures; adds tables and targets to the report.
pub(crate) fn run(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    // Before there is one CPU only.
    let free = close_times(options.rounds)?;
    integration::traffic::pin_to_cpu(0);
    drain(options.rounds, report)?;
    merge(options.rounds, report);
    formats(options.rounds, report)?;
    small(report)?;
    close(options.rounds, free, report)
}

/// Seconds of a piece of work.
fn seconds<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let out = work();
    (start.elapsed().as_secs_f64(), out)
}

fn millions(figures: &[f64]) -> Figure {
    Figure::most(figures)
}

/// From the kernel's ring into a table.
fn drain(rounds: u32, report: &mut Report) -> anyhow::Result<()> {
    let mut lab = Lab::new()?;
    let ours = lab.ours("flowlog", "flowlog_tc_ingress", Hook::Tc)?;
    let mut alone = Vec::new();
    let mut merged = Vec::new();
    for _ in 0..rounds.max(3) {
        for (rates, merge) in [(&mut alone, false), (&mut merged, true)] {
            let mut table = FlowTable::default();
            let mut taken = 0;
            let mut spent = 0.0;
            for _ in 0..8 {
                lab.run(&ours, Kind::ALL[0], BATCH, true)?;
                let (s, n) = seconds(|| {
                    let mut records = Vec::new();
                    let n = lab.take(|record| {
                        if merge {
                            records.push(record);
                        } else {
                            black_box(record);
                        }
                    });
                    table.add_all(&records);
                    n
                });
                taken += n;
                spent += s;
            }
            rates.push(taken as f64 / spent / 1e6);
        }
    }
    let mut table = Table::new("Drain", "M records/s of one core", "Every record a new flow.", &["rate"]);
    table.decimals = 2;
    table.row("ring to record", vec![Some(millions(&alone))]);
    table.row("ring to table", vec![Some(millions(&merged))]);
    report.target("agent: ring records merged", millions(&merged).median, "M/s per core", 3.0, false);
    report.table(table);
    Ok(())
}

/// Merging records that are in memory, by number of flows.
fn merge(rounds: u32, report: &mut Report) {
    let mut speed = Table::new(
        "Merge",
        "M records/s of one core",
        "2 M records in random order, 64 together as they come in blocks, and one by one.",
        &["10k", "100k", "1M"],
    );
    let mut bytes = Table::new("Memory of a flow", "bytes, IPv4 / IPv6 4:1", "", &["10k flows", "100k", "1M", "2M"]);
    speed.decimals = 2;
    let (mut together, mut alone) = (Vec::new(), Vec::new());
    for flows in [10_000u64, 100_000, 1_000_000] {
        let different = records::records(usize::try_from(flows).expect("small"));
        let mut random = Random(7);
        let order: Vec<Record> =
            (0..2_000_000).map(|_| different[usize::try_from(random.below(flows)).expect("small")]).collect();
        let rate = |merge: &dyn Fn(&mut FlowTable)| {
            let mut table = FlowTable::default();
            let (s, ()) = seconds(|| merge(&mut table));
            order.len() as f64 / s / 1e6
        };
        let rates: Vec<(f64, f64)> = (0..rounds)
            .map(|_| (rate(&|table| table.add_all(&order)), rate(&|table| order.iter().for_each(|r| add(table, r)))))
            .collect();
        together.push(Some(millions(&rates.iter().map(|(rate, _)| *rate).collect::<Vec<_>>())));
        alone.push(Some(millions(&rates.iter().map(|(_, rate)| *rate).collect::<Vec<_>>())));
    }
    let merged = together[1].map_or(0.0, |figure| figure.median);
    report.target("agent: records merged, 100k flows", merged, "M/s per core", 10.0, false);
    speed.row("records merged", together);
    speed.row("one by one", alone);
    let mut held = Vec::new();
    let mut peaks = Vec::new();
    let mut worst = 0.0f64;
    for flows in [10_000, 100_000, 1_000_000, 2_000_000] {
        let different = records::records(flows);
        let before = memory::live();
        let mut table = records::table(&different);
        let n = table.flow_count() as f64;
        let open = (memory::live() - before) as f64 / n;
        worst = worst.max(open);
        held.push(Some(Figure::once(open)));
        table.seal();
        peaks.push(Some(Figure::once((memory::live() - before) as f64 / n)));
        drop(table);
    }
    bytes.row("open window", held);
    bytes.row("closed window", peaks);
    report.target("agent: memory of a live flow, at worst", worst, "bytes", 96.0, true);
    report.table(speed);
    report.table(bytes);
}

fn settled(records: &[Record]) -> Settled {
    let mut table = records::table(records);
    table.seal();
    Settled { table, ..Settled::default() }
}

/// The AWS v2 text line of a flow.
fn line(out: &mut impl std::io::Write, f: &Flow) -> std::io::Result<()> {
    let v6 = |a: [u64; 2]| {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&a[0].to_ne_bytes());
        bytes[8..].copy_from_slice(&a[1].to_ne_bytes());
        IpAddr::from(bytes)
    };
    let (src, dst) = match f.addresses {
        Addresses::V4(a, b) => (IpAddr::from(a.to_ne_bytes()), IpAddr::from(b.to_ne_bytes())),
        Addresses::V6(a, b) => (v6(a), v6(b)),
    };
    let span = records::info().span;
    let start = span.wall(MonoNs(f.totals.first_ns)).secs();
    let end = span.wall(MonoNs(f.totals.last_ns)).secs();
    let action = if f.refused { "REJECT" } else { "ACCEPT" };
    let t = &f.totals;
    let id = "5c1b7c1e-0a55-4e1c-9d2f-0f6f0c5ad001";
    writeln!(
        out,
        "2 - {id} {src} {dst} {} {} {} {} {} {start} {end} {action} OK",
        f.sport, f.dport, f.proto, t.packets, t.bytes
    )
}

/// Length of these flows as gzipped text.
fn text_bytes(mut flows: impl Iterator<Item = Flow>) -> anyhow::Result<usize> {
    let mut out = BufWriter::new(GzEncoder::new(Vec::new(), Compression::new(6)));
    flows.try_for_each(|f| line(&mut out, &f))?;
    Ok(out.into_inner().map_err(std::io::IntoInnerError::into_error)?.finish()?.len())
}

fn parquet(records: &[Record], profile: Profile) -> anyhow::Result<(f64, Vec<u8>)> {
    parquet_as(&records::info(), records, ORDER, profile)
}

fn parquet_as(info: &ObjectInfo, records: &[Record], order: Order, profile: Profile) -> anyhow::Result<(f64, Vec<u8>)> {
    let settled = settled(records);
    // Choosing, sorting and encoding: everything between a settled window and an object.
    let (s, bytes) = seconds(|| write(info, &Rows::select(info, &settled, order), &Names::none(), profile));
    Ok((s, bytes?))
}

/// Bytes and time of a row, by format.
fn formats(rounds: u32, report: &mut Report) -> anyhow::Result<()> {
    let records = records::records(ROWS);
    let rows = records::table(&records).flow_count() as f64;
    let mut table = Table::new(
        "Formats",
        "500,000 flows of one NIC and window",
        "gzip text has 14 columns, Parquet 42. `default settings` are those of the arrow writer, given the same rows as \
         record batches; its speed leaves out choosing, sorting and building them.",
        &["bytes/row", "M rows/s of one core"],
    );
    table.decimals = 2;
    let mut add = |name: &str, runs: &[(f64, usize)]| {
        let rates: Vec<f64> = runs.iter().map(|(s, _)| rows / s / 1e6).collect();
        let size = Figure::once(runs[0].1 as f64 / rows);
        let speed = millions(&rates);
        table.row(name, vec![Some(size), Some(speed)]);
        (size.median, speed.median)
    };
    let profile = |p: Profile, n: u32| -> anyhow::Result<Vec<(f64, usize)>> {
        (0..n).map(|_| parquet(&records, p).map(|(s, b)| (s, b.len()))).collect()
    };
    let (bytes, speed) = add("flowlog", &profile(CHOSEN, rounds)?);
    for (name, p) in [
        ("zstd 3", Profile { zstd_level: 3, ..CHOSEN }),
        ("zstd 6", Profile { zstd_level: 6, ..CHOSEN }),
        ("uncompressed", Profile { zstd_level: 0, ..CHOSEN }),
        ("dictionaries to 1 MiB", Profile { dictionary_bytes: 1 << 20, ..CHOSEN }),
        ("dictionaries to 16 MiB", Profile { dictionary_bytes: 16 << 20, ..CHOSEN }),
        ("bytes not delta-coded", Profile { delta_bytes: !CHOSEN.delta_bytes, ..CHOSEN }),
        ("row groups of 64 Ki", Profile { row_group_rows: 64 << 10, ..CHOSEN }),
        ("row groups of 1 Mi", Profile { row_group_rows: 1 << 20, ..CHOSEN }),
    ] {
        add(name, &profile(p, rounds.min(3))?);
    }
    let mut subsecond = records::info();
    subsecond.rule.subsecond = true;
    let times = |times| Profile { times, ..CHOSEN };
    for (name, info, order, profile) in [
        ("in order of time", &records::info(), Order::Start, CHOSEN),
        ("with --subsecond", &subsecond, ORDER, CHOSEN),
        ("with --subsecond, nanoseconds delta-coded", &subsecond, ORDER, times(TimesEncoding::Delta)),
        ("with --subsecond, nanoseconds in a dictionary", &subsecond, ORDER, times(TimesEncoding::Dictionary)),
        ("with --subsecond, nanoseconds split into bytes", &subsecond, ORDER, times(TimesEncoding::Split)),
        ("with --subsecond, in order of time", &subsecond, Order::Start, CHOSEN),
    ] {
        let (s, bytes) = parquet_as(info, &records, order, profile)?;
        add(name, &[(s, bytes.len())]);
    }
    let object = parquet(&records, CHOSEN)?.1;
    let batches: Vec<_> = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(object))?
        .with_batch_size(32_768)
        .build()?
        .collect::<Result<_, _>>()?;
    for (name, compression) in [
        ("arrow writer, default settings", ParquetCompression::UNCOMPRESSED),
        ("arrow writer, zstd 1", ParquetCompression::ZSTD(ZstdLevel::try_new(1)?)),
    ] {
        let properties = WriterProperties::builder().set_compression(compression).build();
        let (s, size) = seconds(|| -> anyhow::Result<usize> {
            let mut writer = ArrowWriter::try_new(Vec::new(), batches[0].schema(), Some(properties))?;
            batches.iter().try_for_each(|b| writer.write(b))?;
            Ok(writer.into_inner()?.len())
        });
        add(name, &[(s, size?)]);
    }
    let flows = settled(&records).table;
    let (s, size) = seconds(|| -> anyhow::Result<usize> { text_bytes(flows.flows()) });
    let (text, _) = add("gzip -6 of v2 text", &[(s, size?)]);
    report.target("agent: Parquet rows", speed, "M/s per core", 4.0, false);
    report.target("agent: bytes per row against gzip text", bytes / text, "times", 0.6, true);
    report.table(table);
    Ok(())
}

/// Objects of few rows.
fn small(report: &mut Report) -> anyhow::Result<()> {
    let mut table = Table::new(
        "Small windows",
        "bytes/row",
        "One row is nearly all footer.",
        &["1 row", "100", "1k", "10k", "100k"],
    );
    let mut ours = Vec::new();
    let mut text = Vec::new();
    for n in [1, 100, 1_000, 10_000, 100_000] {
        let records = records::records(n);
        ours.push(Some(Figure::once(parquet(&records, CHOSEN)?.1.len() as f64 / n as f64)));
        text.push(Some(Figure::once(text_bytes(settled(&records).table.flows())? as f64 / n as f64)));
    }
    table.row("flowlog", ours);
    table.row("gzip -6 of v2 text", text);
    report.table(table);
    Ok(())
}

/// Sizes of windows that are closed.
const CLOSED: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];

/// From the end of a window to a durable object in the spool: milliseconds, and bytes that were allocated at most on top of the open window.
fn close_times(rounds: u32) -> anyhow::Result<(Vec<Figure>, Vec<usize>)> {
    let dir = tempfile::tempdir()?;
    let disk = Disk::open(&dir.path().join("state"))?;
    let (spool, _) = Spool::open(Arc::new(disk), Limits::default())?;
    let target: flowlog_model::rule::Target = dir.path().join("objects").display().to_string().parse()?;
    let (mut times, mut memory) = (Vec::new(), Vec::new());
    for n in CLOSED {
        let records = records::records(n);
        let mut ms = Vec::new();
        let mut most = 0;
        for _ in 0..rounds {
            let open = records::table(&records);
            memory::reset_peak();
            let before = memory::live();
            let (s, stored) = seconds(|| -> anyhow::Result<()> {
                let settled = settle(open, Some(&Truth::default()), HookKind::Tc);
                let object = encode::encode(&records::info(), &settled, &Names::none())?.expect("rows");
                spool.hold(&target.location, &object)?;
                Ok(())
            });
            stored?;
            ms.push(s * 1e3);
            most = most.max(memory::peak() - before);
        }
        times.push(Figure::least(&ms));
        memory.push(most);
    }
    Ok((times, memory))
}

/// Closing windows on one CPU; `free`: on all of them.
fn close(rounds: u32, free: (Vec<Figure>, Vec<usize>), report: &mut Report) -> anyhow::Result<()> {
    let mut table = Table::new(
        "Window close to durable object",
        "ms / MiB",
        "Settling, encoding, writing and syncing. Memory is the most that was allocated on top of the open window.",
        &["1k flows", "10k", "100k", "1M"],
    );
    let (times, memory) = close_times(rounds)?;
    let (free, free_memory) = free;
    let longest = free.last().map_or(0.0, |figure| figure.median);
    report.target("agent: close of 1M flows, on all CPUs", longest, "ms", 250.0, true);
    table.row("time (ms)", times.into_iter().map(Some).collect());
    table.row("time on all CPUs (ms)", free.into_iter().map(Some).collect());
    let mib = |bytes: usize| Some(Figure::once(bytes as f64 / f64::from(1 << 20)));
    table.row("memory (MiB)", memory.into_iter().map(mib).collect());
    table.row("memory on all CPUs (MiB)", free_memory.into_iter().map(mib).collect());
    report.table(table);
    Ok(())
}
