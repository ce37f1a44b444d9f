//! `cargo xtask bench packet`: ns per packet of each program, by `BPF_PROG_TEST_RUN`, less that of an empty program of the same
//! type.
//!
//! Rounds of all programs are interleaved, so that whatever else the machine does hits them alike.

use flowlog_ebpf::bench::ORDER_ENTRIES;

use crate::{
    frames::Kind,
    lab::{BATCH, Hook, Lab, Subject},
    peer::{Counter, Peer},
    records::Random,
    report::{Figure, Report, Table},
};

const UDP4: Kind = Kind::ALL[0];
const FLOWS: [u32; 6] = [1, 1_000, 10_000, 100_000, 500_000, 1_000_000];
const FLOW_NAMES: [&str; 6] = ["1", "1k", "10k", "100k", "500k", "1M"];

/// What to measure.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Options {
    /// Rounds of every program; the figure is their median, the best is in brackets
    #[arg(long, default_value_t = 9)]
    rounds: u32,
    /// Only some tables
    #[arg(long, value_enum)]
    only: Vec<Part>,
    #[command(flatten)]
    peer: Peer,
}

/// A group of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// New flows and a full ring
    New,
    /// Against the baselines
    Compared,
    /// What was tried for the cache
    Explored,
    /// Hooks, families, protocols
    Kinds,
    /// Two CPUs at once
    Cpus,
    /// One flow, and a new one each packet: what `cargo xtask vm --instructions` counts
    Hits,
}

impl Options {
    fn wants(&self, part: Part) -> bool {
        // `Kinds` has these figures, and more.
        (self.only.is_empty() && part != Part::Hits) || self.only.contains(&part)
    }

    /// Few rounds, to see that everything runs.
    pub(crate) fn quick(self) -> Self {
        Self { rounds: self.rounds.min(3), ..self }
    }
}

/// Order in which flows come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// All alike: the worst case for any cache.
    Uniform,
    /// The n-th flow 1/n as often as the first: how traffic is.
    Zipf,
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the number of flows")]
fn set_order(lab: &mut Lab, order: Order, flows: u32) -> anyhow::Result<()> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let n = f64::from(flows);
    match order {
        Order::Uniform => lab.set_order(|_| (random.unit() * n) as u32),
        Order::Zipf => {
            // Inverse of the sum of 1/i.
            let mut sum = 0.0;
            let cumulative: Vec<f64> = (1..=flows)
                .map(|i| {
                    sum += 1.0 / f64::from(i);
                    sum
                })
                .collect();
            lab.set_order(|_| {
                // One number a packet, not one for each comparison.
                let at = random.unit() * sum;
                cumulative.partition_point(|c| *c < at).min(flows as usize - 1) as u32
            })
        }
    }
}

struct Programs {
    empty: Subject,
    all: Vec<Subject>,
}

/// ns per packet of each program above the empty one.
fn rounds(
    lab: &mut Lab,
    programs: &Programs,
    rounds: u32,
    mut once: impl FnMut(&mut Lab, &Subject) -> anyhow::Result<f64>,
) -> anyhow::Result<Vec<Figure>> {
    let mut ns = vec![Vec::new(); programs.all.len()];
    let mut floor = Vec::new();
    for _ in 0..rounds {
        floor.push(once(lab, &programs.empty)?);
        for (subject, ns) in programs.all.iter().zip(&mut ns) {
            ns.push(once(lab, subject)?);
        }
    }
    let floor = Figure::least(&floor);
    Ok(ns.iter().map(|ns| Figure::least(ns).minus(floor)).collect())
}

/// One timed batch with the ring emptied before it.
fn batch(lab: &mut Lab, subject: &Subject, kind: Kind, new_flows: bool) -> anyhow::Result<f64> {
    lab.drain();
    lab.run(subject, kind, BATCH, new_flows)
}

/// A table with a column for each number of flows.
fn by_flows(
    lab: &mut Lab,
    programs: &Programs,
    kind: Kind,
    order: Order,
    n: u32,
) -> anyhow::Result<Vec<Vec<Option<Figure>>>> {
    let mut rows = vec![Vec::new(); programs.all.len()];
    for flows in FLOWS {
        set_order(lab, order, flows)?;
        // Once through the whole order, so that tables hold every flow before anything is timed.
        for subject in &programs.all {
            for _ in 0..ORDER_ENTRIES / BATCH {
                batch(lab, subject, kind, false)?;
            }
        }
        let figures = rounds(lab, programs, n, |lab, subject| {
            // One batch to bring the program's own memory back into the CPU's caches, then some that count.
            batch(lab, subject, kind, false)?;
            let ns = (0..4).map(|_| batch(lab, subject, kind, false)).collect::<anyhow::Result<Vec<_>>>()?;
            Ok(ns.iter().sum::<f64>() / 4.0)
        })?;
        rows.iter_mut().zip(figures).for_each(|(row, figure)| row.push(Some(figure)));
    }
    Ok(rows)
}

/// Measures; adds tables and targets to the report.
pub(crate) fn run(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    integration::traffic::pin_to_cpu(0);
    let lab = &mut Lab::new()?;
    let tc_empty = lab.baseline("empty", "tc_empty")?;
    let flowlog = lab.ours("flowlog", "flowlog_tc_ingress", Hook::Tc)?;
    let mut compared = vec![flowlog.clone()];
    for (name, program) in [
        ("parse only", "tc_parse"),
        ("HASH, atomics", "tc_hash"),
        ("HASH, as peers have it", "tc_hash_peer"),
        ("HASH, spin lock", "tc_hash_locked"),
        ("LRU hash", "tc_lru"),
        ("a ring record each", "tc_ring"),
    ] {
        compared.push(lab.baseline(name, program)?);
    }
    if let (Some(object), Some(program)) = (&options.peer.object, &options.peer.program) {
        compared.push(lab.other(object, program, &options.peer.maps)?);
    }
    let compared = Programs { empty: tc_empty.clone(), all: compared };
    // New flows first, while the hash tables still have room.
    if options.wants(Part::New) {
        special(lab, &compared, options.rounds, report)?;
    }
    if options.wants(Part::Compared) {
        if let (Some(counter), Some(peer)) = (&options.peer.counted, compared.all.last()) {
            counted(lab, peer, counter, report)?;
        }
        let uniform = tables(lab, &compared, options.rounds, report)?;
        targets(&uniform, report);
    }
    if options.wants(Part::Explored) {
        explored(lab, &tc_empty, &flowlog, options.rounds, report)?;
    }
    if options.wants(Part::Kinds) {
        kinds(lab, &tc_empty, options.rounds, report)?;
    }
    if options.wants(Part::Cpus) {
        two_cpus(lab, &compared, options.rounds, report)?;
    }
    if options.wants(Part::Hits) {
        hits(lab, &tc_empty, options.rounds, report)?;
    }
    Ok(())
}

/// What share of its packets a peer has in its map afterwards: one whose map is full is quick, and counts nothing.
fn counted(lab: &mut Lab, peer: &Subject, counter: &Counter, report: &mut Report) -> anyhow::Result<()> {
    const BATCHES: u32 = ORDER_ENTRIES / BATCH;
    let title = format!("What `{}` counted", peer.name);
    let note = "Packets more in its map than before, of those it was given; what it forgets or hands on by a ring is not there.";
    let mut table = Table::new(title, "% of the packets", note, &FLOW_NAMES);
    let mut row = Vec::new();
    for flows in FLOWS {
        set_order(lab, Order::Uniform, flows)?;
        let before = lab.counted(counter)?;
        for _ in 0..BATCHES {
            batch(lab, peer, UDP4, false)?;
        }
        #[allow(clippy::cast_precision_loss, reason = "a share")]
        let more = lab.counted(counter)?.saturating_sub(before) as f64;
        row.push(Some(Figure::once(more / f64::from(BATCHES * BATCH) * 100.0)));
    }
    table.row(&peer.name, row);
    report.table(table);
    Ok(())
}

/// New flows and a full ring.
fn special(lab: &mut Lab, programs: &Programs, n: u32, report: &mut Report) -> anyhow::Result<()> {
    let with_translations = programs.all[0].with_translations();
    let all = [programs.all.clone(), vec![with_translations]].concat();
    let programs = &Programs { empty: programs.empty.clone(), all };
    let new = rounds(lab, programs, n.min(9), |lab, s| batch(lab, s, UDP4, true))?;
    let ours = Programs { empty: programs.empty.clone(), all: vec![programs.all[0].clone()] };
    // Fill the ring, and leave it full.
    lab.drain();
    for _ in 0..4 {
        lab.run(&ours.all[0], UDP4, BATCH, true)?;
    }
    let lost = lab.lost_packets()?;
    let full = rounds(lab, &ours, n, |lab, s| lab.run(s, UDP4, BATCH, true))?;
    anyhow::ensure!(lab.lost_packets()? > lost, "the ring was not full");
    lab.drain();
    let mut table = Table::new(
        "Every packet a new flow",
        "ns per packet over an empty program",
        "A hash table without room refuses the flow; flowlog counts it. Packets here have no connection: where translations are wanted, \
         this is what looking for one costs.",
        &["new flows", "new flows, ring full"],
    );
    for (i, (subject, new)) in programs.all.iter().zip(&new).enumerate() {
        table.row(&subject.name, vec![Some(*new), (i == 0).then(|| full[0])]);
    }
    report.target("packet: a new flow on every packet", new[0].median, "ns", 45.0, true);
    report.table(table);
    Ok(())
}

fn tables(lab: &mut Lab, programs: &Programs, n: u32, report: &mut Report) -> anyhow::Result<Table> {
    let mut first = None;
    for (order, name) in [(Order::Uniform, "uniform"), (Order::Zipf, "Zipf")] {
        let title = format!("TC ingress, IPv4 UDP, flows in {name} order");
        let mut table = Table::new(title, "ns per packet over an empty program", "", &FLOW_NAMES);
        table.chart = true;
        for (subject, figures) in programs.all.iter().zip(by_flows(lab, programs, UDP4, order, n)?) {
            table.row(&subject.name, figures);
        }
        if first.is_none() {
            first = Some(Table { rows: table.rows.clone(), ..Table::new("", "", "", &FLOW_NAMES) });
        }
        report.table(table);
    }
    Ok(first.expect("two orders"))
}

fn targets(uniform: &Table, report: &mut Report) {
    let cell = |row: &str, flows: &str| {
        let column = FLOW_NAMES.iter().position(|f| *f == flows)?;
        uniform.rows.iter().find(|(name, _)| name == row)?.1[column].map(|f| f.median)
    };
    for (flows, limit) in [("1", 12.0), ("10k", 20.0), ("500k", 35.0)] {
        let Some(ours) = cell("flowlog", flows) else { continue };
        report.target(format!("packet: hit, {flows} flows"), ours, "ns", limit, true);
        for peer in ["HASH, atomics", "HASH, as peers have it"] {
            let times = cell(peer, flows).unwrap_or(0.0) / ours;
            report.target(format!("packet: cheaper than `{peer}`, {flows} flows"), times, "times", 4.0, false);
        }
    }
}

/// What was tried for the cache.
fn explored(lab: &mut Lab, empty: &Subject, ours: &Subject, n: u32, report: &mut Report) -> anyhow::Result<()> {
    let mut all = vec![ours.clone()];
    for (name, program) in [
        ("cache alone, direct-mapped", "tc_cache1"),
        ("2 ways", "tc_cache2"),
        ("4 ways", "tc_cache4"),
        ("slots of 88 bytes", "tc_cache1_wide"),
        ("rule from an array", "tc_cache1_rule_array"),
        ("rule from a hash table", "tc_cache1_rule_hash"),
        ("exact clock", "tc_cache1_exact_clock"),
        ("no clock", "tc_cache1_no_clock"),
        ("`skb->hash`", "tc_cache1_skb_hash"),
    ] {
        all.push(lab.baseline(name, program)?);
    }
    let programs = Programs { empty: empty.clone(), all };
    for (order, name) in [(Order::Uniform, "uniform"), (Order::Zipf, "Zipf")] {
        let mut table = Table::new(
            format!("What was tried for the cache, {name} order"),
            "ns per packet over an empty program",
            "`flowlog` has rules, truth counters, lock and verdict notes as well; the others only parser, cache and ring. \
             The packet of a test run keeps its first `skb->hash`: that row means something for one flow only.",
            &FLOW_NAMES,
        );
        for (subject, figures) in programs.all.iter().zip(by_flows(lab, &programs, UDP4, order, n)?) {
            table.row(&subject.name, figures);
        }
        report.table(table);
    }
    records_per_packet(lab, &programs.all[..4], report)
}

/// How often a cache evicts: what the agent has to drain and merge.
fn records_per_packet(lab: &mut Lab, subjects: &[Subject], report: &mut Report) -> anyhow::Result<()> {
    for (order, name) in [(Order::Uniform, "uniform"), (Order::Zipf, "Zipf")] {
        let title = format!("Records per packet, {name} order");
        let mut table = Table::new(title, "evictions per packet", "16,384 slots each.", &FLOW_NAMES);
        table.decimals = 3;
        let mut rows = vec![Vec::new(); subjects.len()];
        for flows in FLOWS {
            set_order(lab, order, flows)?;
            for (subject, row) in subjects.iter().zip(&mut rows) {
                for _ in 0..4 {
                    batch(lab, subject, UDP4, false)?;
                }
                let evicted = u32::try_from(lab.drain())?;
                row.push(Some(Figure::once(f64::from(evicted) / f64::from(BATCH))));
            }
        }
        subjects.iter().zip(rows).for_each(|(subject, row)| table.row(&subject.name, row));
        report.table(table);
    }
    Ok(())
}

/// Our hooks: those of TC, those of XDP.
fn hooks(lab: &mut Lab, tc_empty: &Subject) -> anyhow::Result<[Programs; 2]> {
    let xdp_empty = lab.baseline("empty XDP", "xdp_empty")?;
    let ingress = lab.ours("TC ingress", "flowlog_tc_ingress", Hook::Tc)?;
    let egress = lab.ours("TC egress", "flowlog_tc_egress", Hook::Tc)?;
    let elsewhere = lab.elsewhere("TC ingress, another namespace")?;
    let xdp = lab.ours("XDP", "flowlog_xdp", Hook::Xdp)?;
    let wanted = [ingress.with_translations(), egress.with_translations()];
    let tc = Programs { empty: tc_empty.clone(), all: [vec![ingress, egress, elsewhere], wanted.into()].concat() };
    let passes = lab.wrapping("XDP wrapped, it passes", "xdp_empty")?;
    let drops = lab.wrapping("XDP wrapped, it drops", "xdp_drop")?;
    let xdp = Programs { empty: xdp_empty, all: vec![xdp, passes, drops] };
    Ok([tc, xdp])
}

/// The least that shows each way through the programs: in an emulator a packet takes a hundred times as long.
fn hits(lab: &mut Lab, tc_empty: &Subject, n: u32, report: &mut Report) -> anyhow::Result<()> {
    let columns = ["one flow", "a new flow each packet"];
    let mut table = Table::new("Hits and misses", "ns per packet over an empty program of the same type", "", &columns);
    let hooks = hooks(lab, tc_empty)?;
    set_order(lab, Order::Uniform, 1)?;
    for kind in Kind::ALL {
        for programs in &hooks {
            let hit = rounds(lab, programs, n, |lab, subject| batch(lab, subject, kind, false))?;
            let miss = rounds(lab, programs, n, |lab, subject| batch(lab, subject, kind, true))?;
            for (subject, (hit, miss)) in programs.all.iter().zip(hit.into_iter().zip(miss)) {
                table.row(format!("{}, {}", subject.name, kind.name()), vec![Some(hit), Some(miss)]);
            }
        }
    }
    report.table(table);
    Ok(())
}

fn kinds(lab: &mut Lab, tc_empty: &Subject, n: u32, report: &mut Report) -> anyhow::Result<()> {
    let mut table = Table::new(
        "Hooks, families and protocols, uniform order",
        "ns per packet over an empty program of the same type",
        "",
        &FLOW_NAMES,
    );
    let hooks = hooks(lab, tc_empty)?;
    let mut of_udp4 = Vec::new();
    for kind in Kind::ALL {
        let mut medians = Vec::new();
        for programs in &hooks {
            for (subject, figures) in programs.all.iter().zip(by_flows(lab, programs, kind, Order::Uniform, n)?) {
                medians.push(figures.iter().flatten().map(|f| f.median).collect::<Vec<_>>());
                table.row(format!("{}, {}", subject.name, kind.name()), figures);
            }
        }
        if kind == UDP4 {
            for (flows, ns) in FLOW_NAMES.iter().zip(&medians[5]).step_by(2) {
                let limit = [9.0, 20.0, 35.0][usize::from(*flows != "1") + usize::from(*flows == "500k")];
                report.target(format!("packet: XDP hit, {flows} flows"), *ns, "ns", limit, true);
            }
            of_udp4.clone_from(&medians[0]);
        } else if kind.v6 && !kind.tcp {
            for (i, flows) in FLOW_NAMES.iter().enumerate().step_by(2) {
                let more = medians[0][i] - of_udp4[i];
                report.target(format!("packet: IPv6 over IPv4, TC ingress, {flows} flows"), more, "ns", 3.0, true);
            }
        }
    }
    report.table(table);
    Ok(())
}

fn two_cpus(lab: &mut Lab, programs: &Programs, n: u32, report: &mut Report) -> anyhow::Result<()> {
    let mut table = Table::new(
        "Two CPUs at once",
        "ns per packet and CPU over an empty program",
        "",
        &["one CPU, one flow", "two CPUs, the same flow", "two CPUs, a flow each", "two CPUs, 10k flows each"],
    );
    set_order(lab, Order::Uniform, 1)?;
    let long = BATCH * 8;
    let one = rounds(lab, programs, n, |lab, s| lab.run(s, UDP4, long, false))?;
    let same = rounds(lab, programs, n, |lab, s| lab.run_on_two(s, UDP4, long, true))?;
    let apart = rounds(lab, programs, n, |lab, s| lab.run_on_two(s, UDP4, long, false))?;
    set_order(lab, Order::Uniform, 10_000)?;
    let many = rounds(lab, programs, n, |lab, s| {
        lab.drain();
        lab.run_on_two(s, UDP4, BATCH / 2, false)
    })?;
    for (i, subject) in programs.all.iter().enumerate() {
        table.row(&subject.name, [one[i], same[i], apart[i], many[i]].map(Some).to_vec());
    }
    report.target("packet: two CPUs on one flow, against one", same[0].median / one[0].median, "times", 1.2, true);
    report.table(table);
    Ok(())
}
