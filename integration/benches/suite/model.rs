//! `cargo xtask bench model`: what a machine with many CPUs, interfaces and packets would need, by formulae; and the same formulae beside what is
//! measured on this machine.
//!
//! * [`cache`]: records a packet, simulated and by formula; [`costs`]: what follows from them; [`measured`]: this machine.
#![allow(clippy::cast_precision_loss, reason = "counts that are printed")]

mod cache;
mod costs;
mod measured;

use cache::{Mix, Shares, by_pairs, simulated, uniform};
use costs::{Costs, ring_bytes, wakeups};
use flowlog_kernel::{CpuCount, Sizes, chosen::Machine};
use measured::LAB_PACKET_NS;

use crate::report::{Figure, Report, Table};

/// The machine that is asked about.
const CPUS: u32 = 128;
const PACKETS_SEC: f64 = 20e6;
const INTERFACES: u16 = 500;
const MEMORY_BYTES: u64 = 512 << 30;
const WINDOW_SECS: f64 = 600.0;
/// One of so many CPUs is simulated.
const CPUS_A_SAMPLE: usize = 8;
const MIB: f64 = 1_048_576.0;

/// What to measure.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Options {
    /// Rounds of every sweep; the best counts
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Windows that end while interfaces without traffic are looked at
    #[arg(long, default_value_t = 3)]
    windows: u64,
    /// Flows of the large machine, in millions
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 50])]
    millions: Vec<u32>,
    /// Only what is computed: the costs are those of the run in docs/performance.md
    #[arg(long)]
    computed: bool,
}

impl Options {
    /// A little of each, to see that everything runs.
    pub(crate) fn quick(self) -> Self {
        Self { rounds: 1, windows: 1, millions: vec![1], ..self }
    }
}

/// What each step took in the run that docs/performance.md shows.
const SHOWN: Costs = Costs {
    chunk_ns: 17_500.0,
    own_chunk_ns: 7_600.0,
    swept_ns: 18.0,
    record_ns: 411.0,
    // By the table "Formats".
    row_ns: 455.0,
    window_ns: 1.12e6,
    idle_ns: 0.71e6,
};

/// Measures and computes; adds tables to the report.
pub(crate) fn run(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let costs = if options.computed {
        SHOWN
    } else {
        integration::traffic::pin_to_cpu(0);
        records(report)?;
        memory_here(report)?;
        let mut costs = Costs::default();
        sweeps(options, &mut costs, report)?;
        agent(options, &mut costs, report)?;
        println!("{costs:?}\n");
        costs
    };
    memory_there(report);
    there(options, &costs, report);
    Ok(())
}

/// A row of what is measured, what the model says, and the one by the other.
fn beside(table: &mut Table, name: impl Into<String>, measured: f64, model: f64) {
    table.row(name, [measured, model, measured / model].map(|v| Some(Figure::once(v))).to_vec());
}

/// Records a packet: the real program, the simulation, the formula.
fn records(report: &mut Report) -> anyhow::Result<()> {
    let mut table = Table::new(
        "Model: records a packet",
        "evictions per packet",
        "The real program in test runs, the cache simulated packet by packet, and the formulae: pair by pair, and of numbers alone where all flows are alike.",
        &["measured", "simulated", "by pairs", "by numbers", "measured / simulated"],
    );
    table.decimals = 4;
    for (mix, name) in Mix::ALL {
        for (slots, flows, cpus) in [
            (16_384, 10_000, 1),
            (16_384, 10_000, 2),
            (16_384, 100_000, 1),
            (16_384, 100_000, 2),
            (16_384, 500_000, 1),
            (4_096, 100_000, 1),
            (65_536, 100_000, 1),
            (65_536, 500_000, 1),
        ] {
            let measured = measured::records_a_packet(slots, mix, flows, cpus)?;
            let shares = Shares::of(mix, flows, 1).remove(0).0;
            let simulated = simulated(&shares, slots, LAB_PACKET_NS, 1 << 20);
            let numbers = (mix == Mix::Uniform).then(|| uniform(f64::from(flows), slots));
            let row = [Some(measured), Some(simulated), Some(by_pairs(&shares, slots, LAB_PACKET_NS)), numbers];
            let row = row.into_iter().chain([Some(measured / simulated)]).map(|v| v.map(Figure::once)).collect();
            table.row(format!("{name}, {flows} flows on each of {cpus} CPUs, {slots} slots"), row);
        }
    }
    report.table(table);
    Ok(())
}

/// What the kernel counts for our maps, beside what `Sizes` says.
fn memory_here(report: &mut Report) -> anyhow::Result<()> {
    let cpus = flowlog_kernel::limits::machine().cpus_possible;
    let title = format!("Model: memory of the maps on {cpus} CPUs");
    let note = "What the kernel counts for them (`memlock` in fdinfo), and what a start is checked against.";
    let mut table = Table::new(title, "MiB", note, &["measured", "model", "ratio"]);
    table.decimals = 2;
    let usual = Sizes::default();
    for (name, sizes) in [
        ("1 interface", Sizes { interfaces_max: 1, ..usual }),
        ("50 interfaces", Sizes { interfaces_max: 50, ..usual }),
        ("512 interfaces, as usual", usual),
        ("65,536 slots, ring of 64 MiB", Sizes { passed_slots: 65_536, ring_bytes: 64 << 20, ..usual }),
    ] {
        let model: u64 =
            sizes.memory_by_map(CpuCount::without_gaps(u32::try_from(cpus)?)).map(|(_, bytes)| bytes).sum();
        beside(&mut table, name, measured::memory(sizes)? / MIB, model as f64 / MIB);
    }
    report.table(table);
    Ok(())
}

/// How long sweeps take.
fn sweeps(options: &Options, costs: &mut Costs, report: &mut Report) -> anyhow::Result<()> {
    const USUAL: u32 = 16_384;
    let of = |slots, cpus, flows| measured::sweep_secs(slots, cpus, flows, options.rounds);
    let sizes = |slots| Sizes { passed_slots: slots, ..Sizes::default() };
    // Two CPUs, less the other one: a look at our own takes no interrupt.
    let (other, _) = of(USUAL, 1, 0)?;
    let (both, _) = of(USUAL, 2, 0)?;
    let (other_ns, both_ns) = (other * 1e9, both * 1e9);
    costs.chunk_ns = other_ns / costs::sweep_calls(&sizes(USUAL));
    costs.own_chunk_ns = (both_ns - other_ns) / costs::sweep_calls(&sizes(USUAL));
    let (full, found) = of(USUAL, 1, 8_192)?;
    costs.swept_ns = (full - other) * 1e9 / found;
    let mut table = Table::new(
        "Model: a sweep",
        "ms",
        "The costs of a look, here and on another CPU, and of a record are those of the first three rows; the others follow.",
        &["measured", "model", "ratio"],
    );
    table.decimals = 3;
    for (slots, cpus, flows) in [
        (USUAL, 1, 0),
        (USUAL, 2, 0),
        (USUAL, 1, 8_192),
        (USUAL, 2, 8_192),
        (4_096, 2, 2_048),
        (65_536, 1, 0),
        (65_536, 2, 0),
        (65_536, 2, 32_768),
    ] {
        let (secs, found) = of(slots, cpus, flows)?;
        // The one of one is the other one.
        let cpus = u32::try_from(cpus)?;
        let model = costs.sweep_secs(&sizes(slots), (cpus - 1, 1), found);
        beside(&mut table, format!("{cpus} CPUs, {slots} slots, {found} records"), secs * 1e3, model * 1e3);
    }
    report.table(table);
    Ok(())
}

/// What the agent takes.
fn agent(options: &Options, costs: &mut Costs, report: &mut Report) -> anyhow::Result<()> {
    // What is in the cache when it is looked at has not come through the ring.
    let left = f64::from(Sizes::default().passed_slots);
    let of = |flows: u32| f64::from(flows) - left;
    let few =
        (0..options.rounds.min(3)).map(|_| measured::agent_secs(500_000, false)).collect::<Result<Vec<_>, _>>()?;
    let few = few.into_iter().fold(f64::MAX, f64::min);
    costs.record_ns = few * 1e9 / of(500_000);
    let closed = measured::agent_secs(300_000, true)?;
    costs.row_ns = closed * 1e9 / 300_000.0 - costs.record_ns;
    let (one, rss) = measured::idle_secs(1, options.windows)?;
    let (many, rss_many) = measured::idle_secs(500, options.windows)?;
    let (some, rss_some) = measured::idle_secs(50, options.windows)?;
    let windows = options.windows as f64;
    costs.window_ns = (many - one) / 499.0 / windows * 1e9;
    costs.idle_ns = (one * 1e9 / windows - costs.window_ns) / 10.0;
    let mut table = Table::new(
        "Model: the agent",
        "CPU seconds",
        "Costs are those of the rows in italics; the others follow. Windows of ten seconds, without traffic.",
        &["measured", "model", "ratio"],
    );
    table.decimals = 3;
    let idle = |n: f64| costs.agent_share(0.0, n, 10.0) * 10.0 * windows;
    beside(&mut table, "*500,000 new flows*", few, few);
    let more = measured::agent_secs(1_500_000, false)?;
    beside(&mut table, "1,500,000 new flows", more, of(1_500_000) * costs.record_ns / 1e9);
    beside(&mut table, "*300,000 new flows, and their object*", closed, closed);
    let closed = measured::agent_secs(900_000, true)?;
    beside(
        &mut table,
        "900,000 new flows, and their object",
        closed,
        900_000.0 * (costs.record_ns + costs.row_ns) / 1e9,
    );
    beside(&mut table, "*1 interface*", one, idle(1.0));
    beside(&mut table, "50 interfaces", some, idle(50.0));
    beside(&mut table, "*500 interfaces*", many, idle(500.0));
    println!("resident with 1, 50 and 500 interfaces: {rss:.0}, {rss_some:.0} and {rss_many:.0} MiB\n");
    report.table(table);
    Ok(())
}

fn large() -> Machine {
    Machine { cpus: u64::from(CPUS), cpus_possible: u64::from(CPUS), memory_bytes: MEMORY_BYTES }
}

/// As small ones have it, and as is chosen for the large one.
fn both() -> [Sizes; 2] {
    let usual = Sizes::default();
    let chosen = Sizes { passed_slots: large().cache_slots().is, ring_bytes: large().ring_bytes().is, ..usual };
    [usual, chosen]
}

/// Memory of the large machine, map by map.
fn memory_there(report: &mut Report) {
    let wide = Sizes { interfaces_max: 1_024, ..both()[1] };
    let all = [both()[0], both()[1], wide].map(|s| s.memory_by_map(CpuCount::without_gaps(CPUS)).collect::<Vec<_>>());
    let mut table = Table::new(
        format!("Model: memory of the maps on {CPUS} CPUs"),
        "MiB",
        "Maps of less than 1 MiB are left out.",
        &["as on small machines", "as chosen for 512 GiB", "the same, 1,024 interfaces"],
    );
    for (n, (name, _)) in all[0].iter().enumerate() {
        let row = [0, 1, 2].map(|i| all[i][n].1 as f64 / MIB);
        if row[0] >= 1.0 {
            table.row(*name, row.map(|v| Some(Figure::once(v))).to_vec());
        }
    }
    let sum = |of: &[(&str, u64)]| of.iter().map(|(_, bytes)| *bytes as f64 / MIB).sum::<f64>();
    table.row("all", all.each_ref().map(|of| sum(of)).map(|v| Some(Figure::once(v))).to_vec());
    report.table(table);
}

/// What follows for the large machine.
fn there(options: &Options, costs: &Costs, report: &mut Report) {
    let mut table = Table::new(
        format!("Model: {CPUS} CPUs, {INTERFACES} interfaces, 20 M packets a second, windows of 10 minutes"),
        "computed",
        format!(
            "Flows are spread by a card's hash. Records a packet: {} of the CPUs simulated, and by pairs for all; what follows is of the latter. \
             `busiest CPU` is its share of the packets, times {CPUS}.",
            CPUS as usize / CPUS_A_SAMPLE
        ),
        &[
            "simulated",
            "by pairs, same CPUs",
            "by pairs, all",
            "busiest CPU",
            "M records/s",
            "ring MB/s",
            "wake-ups/s",
            "agent, cores",
            "ring lasts ms",
            "sweep ms",
            "M records swept",
            "window's end, agent s",
        ],
    );
    table.decimals = 3;
    for (mix, name) in Mix::ALL {
        for millions in &options.millions {
            let flows = millions * 1_000_000;
            let of_cpus = Shares::of(mix, flows, CPUS);
            for sizes in both() {
                let row = at(&of_cpus, &sizes, f64::from(flows), costs);
                let name =
                    format!("{name}, {millions} M flows, {} slots, {} MiB", sizes.passed_slots, sizes.ring_bytes >> 20);
                table.row(name, row.map(|v| Some(Figure::once(v))).to_vec());
            }
        }
    }
    report.table(table);
}

/// A row of the last table.
fn at(of_cpus: &[(Shares, f64)], sizes: &Sizes, flows: f64, costs: &Costs) -> [f64; 12] {
    let slots = sizes.passed_slots;
    let packet_ns = |part: f64| 1e9 / (part * PACKETS_SEC);
    let mean =
        |of: &[(f64, f64)]| of.iter().map(|(r, part)| r * part).sum::<f64>() / of.iter().map(|(_, p)| p).sum::<f64>();
    let sample: Vec<_> = of_cpus.iter().step_by(CPUS_A_SAMPLE).collect();
    let seen: Vec<_> = sample.iter().map(|(s, part)| (simulated(s, slots, packet_ns(*part), 1 << 19), *part)).collect();
    let same: Vec<_> = sample.iter().map(|(s, part)| (by_pairs(s, slots, packet_ns(*part)), *part)).collect();
    let all: Vec<_> = of_cpus.iter().map(|(s, part)| (by_pairs(s, slots, packet_ns(*part)), *part)).collect();
    let busiest = of_cpus.iter().map(|(_, part)| *part).fold(0.0, f64::max) * f64::from(CPUS);
    let records_sec = mean(&all) * PACKETS_SEC;
    let swept: f64 = of_cpus.iter().map(|(s, _)| s.held(slots)).sum();
    let ring_sec = ring_bytes(records_sec);
    [
        mean(&seen),
        mean(&same),
        mean(&all),
        busiest,
        records_sec / 1e6,
        ring_sec / 1e6,
        wakeups(records_sec, sizes),
        costs.agent_share(
            records_sec + (swept + flows * costs.row_ns / costs.record_ns) / WINDOW_SECS,
            INTERFACES.into(),
            WINDOW_SECS,
        ),
        0.75 * f64::from(sizes.ring_bytes) / ring_sec * 1e3,
        costs.sweep_secs(sizes, (1, CPUS - 1), swept) * 1e3,
        swept / 1e6,
        (swept * costs.record_ns + flows * costs.row_ns) / 1e9,
    ]
}
