//! `cargo xtask bench live`: what somebody who looks costs. The same agent and the same new flows a second, with nobody
//! looking and with each kind of view; the views take turns.
#![allow(clippy::cast_precision_loss, reason = "counts that are printed")]

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use integration::{
    agent::{Agent, binary},
    net::Netns,
};
use rustix::{
    process::{Pid, Signal, kill_process},
    thread::{CpuSet, sched_setaffinity},
};

use crate::{
    frames::Kind,
    lane::{Lane, Load, Traffic, node},
    report::{Figure, Report, Table},
    wire::{landed, usage},
};

/// Bursts in a second: the generator cannot send packet by packet, and takes 25 ms to set each up and down.
const BURSTS: u32 = 20;

/// What to measure.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Options {
    /// New flows a second, of one packet each
    #[arg(long, default_value_t = 100_000)]
    flows: u32,
    /// Seconds of traffic in a round
    #[arg(long, default_value_t = 10)]
    secs: u32,
    /// Rounds of each view; the figure is their median, the best is in brackets
    #[arg(long, default_value_t = 5)]
    rounds: u32,
}

impl Options {
    /// Little of it, to see that everything runs.
    pub(crate) fn quick(self) -> Self {
        Self { secs: self.secs.min(2), rounds: 1, ..self }
    }
}

/// Who looks, and how.
const VIEWS: [(&str, &[&str]); 4] = [
    ("nobody looks", &[]),
    ("`observe -f`, none of these flows", &["observe", "-f", "--port", "1"]),
    ("`observe -f`, all of them", &["observe", "-f", "-o", "json"]),
    ("`top`", &["top", "-o", "json"]),
];

/// What came out of a round.
struct Round {
    cpu_percent: f64,
    packet_ns: f64,
    rss_mib: f64,
    lost_percent: f64,
    lost_lines_percent: f64,
}

/// Measures; adds a table and targets to the report.
pub(crate) fn run(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let node = node()?;
    let lane = Lane::new(&node, 0)?;
    let mut traffic = Traffic::new()?;
    let mut rounds: [Vec<Round>; VIEWS.len()] = Default::default();
    for turn in 0..options.rounds as usize {
        for i in 0..VIEWS.len() {
            let view = (turn + i) % VIEWS.len();
            rounds[view].push(round(options, &node, &lane, &mut traffic, VIEWS[view].1)?);
        }
    }
    let mut table = Table::new(
        format!("Live flows: {} new flows a second, seen by somebody", options.flows),
        "the agent alone: not the command that looks; both off the generator's CPU",
        "CPU of one core. A packet is measured from the generator to the sink. Lost packets are losses in the rows; lost \
         lines are those the view was told of, of one line a packet.",
        &["agent CPU %", "ns a packet", "RSS MiB at most", "packets lost %", "lines lost %"],
    );
    table.decimals = 2;
    for ((name, _), rounds) in VIEWS.iter().zip(&rounds) {
        let of = |what: fn(&Round) -> f64| Some(Figure::least(&rounds.iter().map(what).collect::<Vec<_>>()));
        table.row(
            *name,
            vec![
                of(|r| r.cpu_percent),
                of(|r| r.packet_ns),
                of(|r| r.rss_mib),
                of(|r| r.lost_percent),
                of(|r| r.lost_lines_percent),
            ],
        );
    }
    let median = |view: usize, column: usize| table.rows[view].1[column].map_or(f64::NAN, |f| f.median);
    for (view, (name, _)) in VIEWS.iter().enumerate().skip(1) {
        let slower = (median(view, 1) / median(0, 1) - 1.0) * 100.0;
        report.target(format!("live: a packet is slower while {name} looks"), slower, "%", 2.0, true);
        report.target(format!("live: packets lost while {name} looks"), median(view, 3), "%", 0.0, true);
    }
    report.table(table);
    Ok(())
}

/// One agent, one view, so many seconds of traffic.
fn round(options: &Options, node: &Netns, lane: &Lane, traffic: &mut Traffic, view: &[&str]) -> anyhow::Result<Round> {
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("flowlog.sock");
    let socket = socket.to_str().context("a path")?;
    let counted = || node.statistic(&lane.interface(), "rx_packets");
    let before = counted()?;
    let mut agent = Agent::start(node, &[&lane.interface()], &["--socket", socket])?;
    let viewer = if view.is_empty() { None } else { Some(Viewer::start(view, socket)?) };
    // The generator has CPU 0. Where they took turns on it, time would be measured that is nobody's doing but the scheduler's.
    for pid in viewer.iter().map(|v| v.child.id()).chain([agent.pid()]) {
        leave_first_cpu(pid)?;
    }
    let start = (usage(agent.pid())?, Instant::now());
    let packet_ns = send(options, lane, traffic)?;
    let after = usage(agent.pid())?;
    let cpu_percent = (after.cpu_secs - start.0.cpu_secs) / start.1.elapsed().as_secs_f64() * 100.0;
    let sent = f64::from(options.flows) * f64::from(options.secs);
    let lost_lines_percent = viewer.map_or(Ok(0), Viewer::end)? as f64 / sent * 100.0;
    agent.end()?;
    let received = counted()? - before;
    let (all, lost) = landed(&agent.objects(), "ingress")?;
    ensure!(all == received, "{received} packets came in, {all} are accounted for");
    let lost_percent = lost as f64 / all as f64 * 100.0;
    Ok(Round { cpu_percent, packet_ns, rss_mib: after.peak_mib, lost_percent, lost_lines_percent })
}

/// Sends each flow's packet in its time; returns ns a packet.
fn send(options: &Options, lane: &Lane, traffic: &mut Traffic) -> anyhow::Result<f64> {
    let load = Load { kind: Kind::ALL[0], bytes: 64, flows: 1 << 27, frames: options.flows / BURSTS };
    let start = Instant::now();
    let bursts = BURSTS * options.secs;
    let mut ns = 0.0;
    for burst in 0..bursts {
        ns += lane.send_from(traffic, load, u64::from(burst) * u64::from(load.frames))?;
        let due = Duration::from_secs_f64(f64::from(burst + 1) / f64::from(BURSTS));
        std::thread::sleep(due.saturating_sub(start.elapsed()));
    }
    let stretched = start.elapsed().as_secs_f64() / f64::from(options.secs);
    ensure!(
        stretched < 1.05,
        "this machine does not send {} packets a second: it took {stretched:.2} times as long",
        options.flows
    );
    Ok(ns / f64::from(bursts))
}

/// Has all threads of a process run on any CPU but the first, where there is another.
pub(crate) fn leave_first_cpu(pid: u32) -> anyhow::Result<()> {
    let mut others = CpuSet::new();
    (1..std::thread::available_parallelism()?.get()).for_each(|cpu| others.set(cpu));
    if others.count() == 0 {
        return Ok(());
    }
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let id: i32 = thread?.file_name().to_string_lossy().parse()?;
        sched_setaffinity(Pid::from_raw(id), &others)?;
    }
    Ok(())
}

/// The command that looks.
struct Viewer {
    child: Child,
    notes: std::fs::File,
}

impl Viewer {
    fn start(view: &[&str], socket: &str) -> anyhow::Result<Self> {
        let notes = tempfile::tempfile()?;
        let mut command = Command::new(binary());
        command.args(view).args(["--socket", socket]);
        let child = command.stdout(Stdio::null()).stderr(notes.try_clone()?).spawn()?;
        // It takes its place in a few ms, and there is nothing that it would say.
        std::thread::sleep(Duration::from_millis(500));
        Ok(Self { child, notes })
    }

    /// Ends it; returns the lines it has lost.
    fn end(mut self) -> anyhow::Result<u64> {
        use std::io::{Read as _, Seek as _};
        // The last sweep's lines are on their way.
        std::thread::sleep(Duration::from_secs(2));
        ensure!(self.child.try_wait()?.is_none(), "the view ended by itself");
        kill_process(Pid::from_child(&self.child), Signal::INT)?;
        self.child.wait()?;
        let mut text = String::new();
        self.notes.rewind()?;
        self.notes.read_to_string(&mut text)?;
        let lost = text.lines().find_map(|line| line.split_once(" lines were lost"));
        Ok(lost.and_then(|(before, _)| before.rsplit(' ').next()?.parse().ok()).unwrap_or(0))
    }
}
