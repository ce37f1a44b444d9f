//! `cargo xtask bench wire`: real interfaces, real packets, the real agent.
//!
//! Three lanes lead through one node: the agent watches the first, the second is bare, the third has empty TC programs. A fourth has
//! whatever a command attaches there (`--beside`).
//! Rounds on all are interleaved, so that what the watch costs is the difference of two figures of the same moment.
#![allow(clippy::cast_precision_loss, reason = "counts that are printed")]

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use arrow::{
    array::{Array as _, AsArray as _},
    datatypes::Int64Type,
};
use integration::{agent::Agent, net::Netns};
use parquet::arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder};

use crate::{
    beside::Beside,
    frames::Kind,
    lane::{Lane, Load, Traffic, node},
    report::{Figure, Report, Table},
};

const UDP4: Kind = Kind::ALL[0];
pub(crate) const TCP4: Kind = Kind::ALL[1];
const UDP6: Kind = Kind::ALL[2];
const LANES: [&str; 4] = ["watched", "bare", "empty TC program", "beside"];

/// What to measure.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Options {
    /// Rounds on each lane; the figure is their median, the best is in brackets
    #[arg(long, default_value_t = 15)]
    pub rounds: u32,
    /// Different flows in the floods
    #[arg(long, default_value_t = 5_000_000)]
    pub flood: u32,
    /// A command that attaches programs or a packet socket to the interface `$INTERFACE`, to be measured on a lane of its own: another
    /// agent, say. Run by `sh -c` in the node's namespace, and ended with all it has started
    #[arg(long, value_name = "COMMAND")]
    beside: Option<String>,
    /// Only what the node forwards: for two builds in turns
    #[arg(long)]
    pub only_forwarded: bool,
}

impl Options {
    /// Few rounds, to see that everything runs.
    pub(crate) fn quick(self) -> Self {
        Self { rounds: self.rounds.min(3), flood: self.flood.min(500_000), ..self }
    }
}

/// The node, the lanes and the generator.
pub(crate) struct Wire {
    pub traffic: Traffic,
    pub lanes: Vec<Lane>,
    pub node: Netns,
}

/// Measures all but what [`crate::floods`] does, for which it returns the network; adds tables and targets to the report.
pub(crate) fn run(options: &Options, report: &mut Report) -> anyhow::Result<Wire> {
    let node = node()?;
    let lanes = if options.beside.is_some() { 4 } else { 3 };
    let lanes = (0..lanes).map(|number| Lane::new(&node, number)).collect::<anyhow::Result<Vec<_>>>()?;
    let _empty = lanes[2].with_empty_programs(&node)?;
    let beside = options.beside.as_ref().map(|command| Beside::start(command, &node, &lanes[3].interface()));
    let mut beside = beside.transpose()?;
    let mut network = Wire { traffic: Traffic::new()?, lanes, node };
    let wire = &mut network;
    let before = wire.counters()?;
    let mut agent = wire.agent(&[])?;
    if !options.only_forwarded {
        idle(&agent, report)?;
    }
    let mut agents = vec![("flowlog", vec![agent.pid()])];
    if let Some(beside) = &beside {
        agents.push((LANES[3], beside.processes()?));
    }
    let meanwhile = Meanwhile::of(agents);
    forwarded(wire, options.rounds, report)?;
    meanwhile.tell(report);
    if let Some(beside) = &mut beside {
        beside.check(&wire.node, &wire.lanes[3].interface())?;
    }
    agent.end()?;
    exact(wire, &agent, before, "rates")?;
    drop(agent);
    if options.only_forwarded {
        return Ok(network);
    }
    // The interface counts a large segment once, flowlog as what it becomes on the wire: not compared.
    let mut agent = wire.agent(&[])?;
    streams(wire, options.rounds, report)?;
    latency(wire, options.rounds, report)?;
    if let Some(beside) = &mut beside {
        beside.check(&wire.node, &wire.lanes[3].interface())?;
    }
    agent.end()?;
    drop(agent);
    resident(wire, report)?;
    Ok(network)
}

impl Wire {
    pub(crate) fn agent(&self, args: &[&str]) -> anyhow::Result<Agent> {
        Agent::start(&self.node, &[&self.lanes[0].interface()], args)
    }

    /// Packets and layer-3 bytes, received and sent, of the watched interface.
    pub(crate) fn counters(&self) -> anyhow::Result<[(u64, u64); 2]> {
        let of = |side: &str| -> anyhow::Result<(u64, u64)> {
            let packets = self.node.statistic("in0", &format!("{side}_packets"))?;
            Ok((packets, self.node.statistic("in0", &format!("{side}_bytes"))? - 14 * packets))
        };
        Ok([of("rx")?, of("tx")?])
    }
}

/// P1: rows and losses are what the interface itself has counted, packets and (GSO aside) bytes.
pub(crate) fn exact(wire: &Wire, agent: &Agent, before: [(u64, u64); 2], what: &str) -> anyhow::Result<()> {
    let after = wire.counters()?;
    let received = after[0].0 - before[0].0;
    let landed = landed(&agent.objects(), "ingress")?;
    println!(
        "P1, {what}: {received} packets came in, {} are in rows and counted losses ({} lost)\n",
        landed.0, landed.1
    );
    ensure!(received == landed.0, "{what}: {received} packets came in, {} are accounted for", landed.0);
    Ok(())
}

/// Packets in all rows of a direction, and those of them that are losses.
pub(crate) fn landed(dir: &Path, direction: &str) -> anyhow::Result<(u64, u64)> {
    let mut all = 0;
    let mut lost = 0;
    let mut todo = vec![dir.to_owned()];
    while let Some(at) = todo.pop() {
        for entry in std::fs::read_dir(&at)? {
            let path = entry?.path();
            if path.is_dir() {
                todo.push(path);
                continue;
            }
            let builder = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(&path)?)?;
            let columns = ["packets", "log_status", "flow_direction", "skip_reason"];
            let mask = ProjectionMask::columns(builder.parquet_schema(), columns);
            for batch in builder.with_projection(mask).build()? {
                let batch = batch?;
                let column = |name: &str| batch.column_by_name(name).context("column of the schema");
                let packets = column("packets")?.as_primitive::<Int64Type>().clone();
                let status = column("log_status")?.as_string::<i32>();
                let way = column("flow_direction")?.as_string::<i32>();
                let skip = column("skip_reason")?.as_string::<i32>();
                for row in 0..batch.num_rows() {
                    // Those stand in an ACCEPT row already.
                    let counted_twice = skip.is_valid(row) && skip.value(row) == "verdict_unknown";
                    if way.value(row) == direction && !counted_twice {
                        let n = u64::try_from(packets.value(row))?;
                        all += n;
                        lost += if status.value(row) == "SKIPDATA" { n } else { 0 };
                    }
                }
            }
        }
    }
    Ok((all, lost))
}

/// CPU seconds and context switches of a process so far, and its resident MiB now and at most: without the maps that it has in its memory. They are
/// the kernel's, and the ring counts twice.
pub(crate) struct Usage {
    pub cpu_secs: f64,
    switches: u64,
    pub rss_mib: f64,
    pub peak_mib: f64,
}

pub(crate) fn usage(pid: u32) -> anyhow::Result<Usage> {
    let kib = |text: &str, name: &str| -> f64 {
        let line = text.lines().find(|l| l.starts_with(name)).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0.0)
    };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mut switches = 0;
    let mut cpu_ns = 0.0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        let text = std::fs::read_to_string(task.join("status")).unwrap_or_default();
        // To the ns. `stat` counts timer ticks, which whoever is woken by a timer meets too often or never.
        let on_cpu = std::fs::read_to_string(task.join("schedstat")).unwrap_or_default();
        cpu_ns += on_cpu.split_whitespace().next().and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        let n = kib(&text, "voluntary_ctxt_switches") as u64;
        switches += n;
    }
    let maps_kib = maps_kib(pid);
    let rss_mib = (kib(&status, "VmRSS") - maps_kib) / 1024.0;
    let peak_mib = (kib(&status, "VmHWM") - maps_kib) / 1024.0;
    Ok(Usage { cpu_secs: cpu_ns / 1e9, switches, rss_mib, peak_mib })
}

/// How much of a process's resident memory is maps of the kernel.
fn maps_kib(pid: u32) -> f64 {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let mut is_map = false;
    let mut kib = 0.0;
    for line in smaps.lines() {
        if let Some(rss) = line.strip_prefix("Rss:") {
            let rss = rss.trim().trim_end_matches(" kB").parse().unwrap_or(0.0);
            kib += if is_map { rss } else { 0.0 };
        } else if line.contains(" rw-s ") || line.contains(" r--s ") {
            is_map = line.contains("bpf-map");
        } else if line.contains("-p ") {
            is_map = false;
        }
    }
    kib
}

/// What agents use while packets are forwarded.
struct Meanwhile {
    agents: Vec<(&'static str, Vec<u32>)>,
    before: Vec<f64>,
    since: Instant,
}

impl Meanwhile {
    fn of(agents: Vec<(&'static str, Vec<u32>)>) -> Self {
        let before = agents.iter().map(|(_, pids)| together(pids)[0]).collect();
        Self { agents, before, since: Instant::now() }
    }

    fn tell(self, report: &mut Report) {
        let secs = self.since.elapsed().as_secs_f64();
        let note = "CPU in user space and system calls; what programs take in the packets' path is in the rates. The last window or \
                    eviction is not in it. Maps are not in RSS.";
        let mut table =
            Table::new("Agents", "while packets are forwarded", note, &["CPU % of a core", "RSS MiB", "at most"]);
        for ((name, pids), before) in self.agents.iter().zip(self.before) {
            let [cpu_secs, rss_mib, peak_mib] = together(pids);
            let figures = [(cpu_secs - before) / secs * 100.0, rss_mib, peak_mib];
            table.row(*name, figures.map(|v| Some(Figure::once(v))).to_vec());
        }
        report.table(table);
    }
}

/// CPU seconds, resident MiB and peak MiB of processes together.
fn together(pids: &[u32]) -> [f64; 3] {
    let mut sums = [0.0; 3];
    for pid in pids {
        // A process that has ended meanwhile: what it used is not known.
        let Ok(one) = usage(*pid) else { continue };
        for (sum, value) in sums.iter_mut().zip([one.cpu_secs, one.rss_mib, one.peak_mib]) {
            *sum += value;
        }
    }
    sums
}

fn idle(agent: &Agent, report: &mut Report) -> anyhow::Result<()> {
    const SECS: u64 = 10;
    // Start-up is over when the uploader has looked into the empty spool.
    std::thread::sleep(Duration::from_secs(1));
    let before = usage(agent.pid())?;
    std::thread::sleep(Duration::from_secs(SECS));
    let after = usage(agent.pid())?;
    let cpu = (after.cpu_secs - before.cpu_secs) / SECS as f64 * 100.0;
    let wakeups = (after.switches - before.switches) as f64 / SECS as f64;
    let mut table = Table::new("Idle agent", "over 10 s", "", &["CPU %", "wake-ups/s", "RSS MiB"]);
    table.row("no traffic", [cpu, wakeups, after.rss_mib].map(|v| Some(Figure::once(v))).to_vec());
    report.target("agent: CPU when idle", cpu, "%", 0.1, true);
    report.target("agent: wake-ups when idle", wakeups, "per s", 2.0, true);
    report.target("agent: RSS without flows", after.rss_mib, "MiB", 40.0, true);
    report.table(table);
    Ok(())
}

/// Order of the lanes in a round: each is in each place as often as the others.
fn turns(round: usize, lanes: usize) -> impl Iterator<Item = usize> {
    (0..lanes).map(move |i| (round + i) % lanes)
}

/// ns per frame on all lanes.
fn all(wire: &mut Wire, load: Load, rounds: u32) -> anyhow::Result<Vec<Vec<f64>>> {
    let Wire { traffic, lanes, .. } = wire;
    let mut ns = vec![Vec::new(); lanes.len()];
    for lane in &*lanes {
        lane.send(traffic, load)?;
    }
    for round in 0..rounds as usize {
        for i in turns(round, lanes.len()) {
            ns[i].push(lanes[i].send(traffic, load)?);
        }
    }
    Ok(ns)
}

/// Median of the ratios of the rounds: of one moment each.
fn ratio(less: &[f64], more: &[f64]) -> f64 {
    let mut ratios: Vec<f64> = less.iter().zip(more).map(|(a, b)| a / b).collect();
    ratios.sort_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}

fn forwarded(wire: &mut Wire, rounds: u32, report: &mut Report) -> anyhow::Result<()> {
    let mut table = Table::new(
        "Forwarded by the node, one CPU",
        "M packets/s, from the generator to the sink",
        "`kept`: medians over rounds of the rate on the watched lane / that on another.",
        &[
            &LANES[..wire.lanes.len()],
            &["kept of bare", "kept of empty"],
            &["beside kept of bare"][..wire.lanes.len() - 3],
        ]
        .concat(),
    );
    table.decimals = 3;
    let load = |kind, bytes, flows| Load { kind, bytes, flows, frames: 200_000 };
    for (name, load) in [
        ("UDP, IPv4, 64 bytes, 1 flow", load(UDP4, 64, 1)),
        ("UDP, IPv4, 64 bytes, 8k flows", load(UDP4, 64, 8_192)),
        ("UDP, IPv4, 64 bytes, 16k flows", load(UDP4, 64, 16_384)),
        ("UDP, IPv4, 64 bytes, 128k flows", load(UDP4, 64, 131_072)),
        ("UDP, IPv4, 1,400 bytes, 8k flows", load(UDP4, 1_400, 8_192)),
        ("UDP, IPv6, 74 bytes, 8k flows", load(UDP6, 74, 8_192)),
        ("TCP SYN, IPv4, every packet a new flow", Load { frames: 500_000, ..load(TCP4, 64, 1 << 27) }),
    ] {
        let ns = all(wire, load, rounds)?;
        let kept = ratio(&ns[1], &ns[0]);
        let kept_of_empty = ratio(&ns[2], &ns[0]);
        let rate = |ns: &[f64]| Figure::most(&ns.iter().map(|n| 1e3 / n).collect::<Vec<_>>());
        let mut row: Vec<_> = ns.iter().map(|ns| Some(rate(ns))).collect();
        row.extend([kept, kept_of_empty].map(|kept| Some(Figure::once(kept))));
        row.extend(ns.get(3).map(|beside| Some(Figure::once(ratio(&ns[1], beside)))));
        table.row(name, row);
        if name.contains("k flows") && load.bytes == 64 && load.flows < 100_000 {
            report.target(
                format!("wire: rate kept of an empty program's, {name}"),
                kept_of_empty * 100.0,
                "%",
                95.0,
                false,
            );
        }
    }
    report.table(table);
    Ok(())
}

/// A TCP connection over a lane, ending in the node: what `server` and `client` do with it.
fn connection<T: Send>(
    wire: &Wire,
    lane: usize,
    server: impl FnOnce(TcpStream) -> anyhow::Result<()> + Send,
    client: impl FnOnce(TcpStream) -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    let address = format!("{}:5001", wire.lanes[lane].node_address());
    let listener = wire.node.run(|| TcpListener::bind(&address))?;
    std::thread::scope(|scope| {
        let serving = scope.spawn(move || {
            integration::traffic::pin_to_cpu(1);
            server(listener.accept()?.0)
        });
        let out = wire.lanes[lane].generator.run(|| {
            integration::traffic::pin_to_cpu(0);
            let stream = TcpStream::connect(&address)?;
            stream.set_nodelay(true)?;
            client(stream)
        })?;
        serving.join().expect("the server's thread")?;
        Ok(out)
    })
}

fn streams(wire: &Wire, rounds: u32, report: &mut Report) -> anyhow::Result<()> {
    const BYTES: usize = 1 << 30;
    let mut rates = vec![Vec::new(); wire.lanes.len()];
    for round in 0..rounds as usize {
        for lane in turns(round, wire.lanes.len()) {
            let start = Instant::now();
            connection(
                wire,
                lane,
                |mut stream| {
                    let mut buffer = vec![0; 1 << 20];
                    while stream.read(&mut buffer)? > 0 {}
                    Ok(())
                },
                |mut stream| {
                    let block = vec![0; 1 << 20];
                    (0..BYTES >> 20).try_for_each(|_| stream.write_all(&block))?;
                    Ok(())
                },
            )?;
            rates[lane].push(BYTES as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9);
        }
    }
    let kept = ratio(&rates[0], &rates[1]);
    let mut table = Table::new(
        "TCP stream to the node",
        "Gbit/s",
        "1 GiB on one connection.",
        &[&LANES[..wire.lanes.len()], &["kept of bare"]].concat(),
    );
    table.decimals = 2;
    let mut row: Vec<_> = rates.iter().map(|r| Some(Figure::most(r))).collect();
    row.push(Some(Figure::once(kept)));
    table.row("stream", row);
    report.target("wire: TCP throughput kept", kept * 100.0, "%", 99.0, false);
    report.table(table);
    Ok(())
}

fn latency(wire: &Wire, rounds: u32, report: &mut Report) -> anyhow::Result<()> {
    const REQUESTS: usize = 5_000;
    let mut us = vec![[Vec::new(), Vec::new()]; wire.lanes.len()];
    for round in 0..rounds as usize {
        for lane in turns(round, wire.lanes.len()) {
            let mut times = connection(
                wire,
                lane,
                |mut stream| {
                    stream.set_nodelay(true)?;
                    let mut byte = [0];
                    while stream.read(&mut byte)? > 0 {
                        stream.write_all(&byte)?;
                    }
                    Ok(())
                },
                |mut stream| {
                    let mut byte = [0];
                    let mut once = || {
                        let start = Instant::now();
                        stream.write_all(&byte)?;
                        stream.read_exact(&mut byte)?;
                        Ok(start.elapsed().as_secs_f64() * 1e6)
                    };
                    (0..REQUESTS).map(|_| once()).collect::<anyhow::Result<Vec<f64>>>()
                },
            )?;
            times.sort_by(f64::total_cmp);
            us[lane][0].push(times[REQUESTS / 2]);
            us[lane][1].push(times[REQUESTS * 99 / 100]);
        }
    }
    let mut table = Table::new("Requests of one byte to the node", "us", "", &["p50", "p99"]);
    for (name, rounds) in LANES.iter().zip(&us) {
        table.row(*name, rounds.iter().map(|rounds| Some(Figure::least(rounds))).collect());
    }
    report.table(table);
    Ok(())
}

/// Memory of the agent by number of flows in a window.
fn resident(wire: &mut Wire, report: &mut Report) -> anyhow::Result<()> {
    let mut table = Table::new(
        "Resident memory of the agent",
        "MiB",
        "Flows in one window, IPv4.",
        &["10k", "100k", "1M", "1M, written"],
    );
    let before = wire.counters()?;
    let mut agent = wire.agent(&[])?;
    let base = usage(agent.pid())?.rss_mib;
    let mut row = Vec::new();
    let mut over = 0.0f64;
    for flows in [10_000u32, 100_000, 1_000_000] {
        let Wire { traffic, lanes, .. } = wire;
        let load = Load { kind: UDP4, bytes: 64, flows: flows.next_power_of_two(), frames: flows };
        lanes[0].send(traffic, load)?;
        // Two ticks of the agent: the ring is empty then.
        std::thread::sleep(Duration::from_millis(4_500));
        let rss = usage(agent.pid())?.rss_mib;
        over = over.max((rss - base) * f64::from(1 << 20) / f64::from(flows));
        row.push(Some(Figure::once(rss)));
    }
    agent.signal(rustix::process::Signal::TERM);
    let mut peak = 0.0f64;
    while let Ok(u) = usage(agent.pid()) {
        if u.peak_mib == 0.0 {
            break; // gone, and not yet waited for
        }
        peak = peak.max(u.peak_mib);
        std::thread::sleep(Duration::from_millis(2));
    }
    row.push(Some(Figure::once(peak)));
    agent.end()?;
    exact(wire, &agent, before, "a million flows in one window")?;
    table.row("RSS", row);
    report.table(table);
    Ok(())
}
