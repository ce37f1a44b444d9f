//! `cargo xtask bench soak`: half an hour at the highest rate that one CPU of this machine sends, forwards and counts. What the agent holds
//! is looked at in each part of it; at the end, what landed is compared with the interface's own counters.
//!
//! One CPU makes, forwards and counts the packets, and does nothing else; the agent has the others. Windows are a minute long, so that objects
//! are encoded and delivered all the time.
#![allow(clippy::cast_precision_loss, reason = "counts that are printed")]

use std::time::{Duration, Instant};

use anyhow::ensure;
use integration::agent::Agent;

use crate::{
    frames::Kind,
    lane::{Lane, Load, Traffic, node},
    live::leave_first_cpu,
    report::{Figure, Report, Table},
    wire::{landed, usage},
};

/// Frames that are sent at a time: some tenths of a second.
const FRAMES: u32 = 500_000;
/// Different flows of what is sent, in turn: all in the cache, and more than it holds.
const FLOWS: [u32; 2] = [8_192, 131_072];
/// Packets in each turn that are new flows each: a million or so in a window. With more than `flows_max`, windows would be written early, which is
/// what [`crate::floods`] looks at.
const NEW_FLOWS: u32 = 20_000;

/// What to do.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Options {
    /// Minutes of traffic
    #[arg(long, default_value_t = 30)]
    minutes: u32,
    /// Parts of it that are looked at
    #[arg(long, default_value_t = 10)]
    parts: u32,
}

impl Options {
    /// Little of it, to see that everything runs.
    pub(crate) fn quick(self) -> Self {
        Self { minutes: self.minutes.min(1), parts: self.parts.min(3) }
    }
}

/// What went out in a part, and what the agent had meanwhile.
#[derive(Default)]
struct Part {
    sent: u64,
    ns: f64,
    /// At most, at the ends of turns.
    rss_mib: f64,
    /// At its end.
    descriptors: usize,
}

/// Sends; adds a table and targets to the report.
pub(crate) fn run(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let node = node()?;
    let lane = Lane::new(&node, 0)?;
    let mut traffic = Traffic::new()?;
    let counted = || node.statistic(&lane.interface(), "rx_packets");
    let before = counted()?;
    let mut agent = Agent::start(&node, &[&lane.interface()], &["--window", "1m"])?;
    leave_first_cpu(agent.pid())?;
    let mut table = Table::new(
        format!("Soak: {} minutes at the highest rate", options.minutes),
        "one CPU sends, forwards and counts; the agent has the others",
        format!(
            "IPv4 and IPv6, UDP and TCP in turns, 64 bytes; of {FRAMES} packets {} flows, of as many {}, of {NEW_FLOWS} each a new one.",
            FLOWS[0], FLOWS[1]
        ),
        &["M packets/s", "agent CPU %", "RSS MiB at most", "descriptors"],
    );
    table.decimals = 2;
    let length = Duration::from_secs(u64::from(options.minutes) * 60) / options.parts;
    let mut parts = Vec::new();
    for number in 1..=options.parts {
        let (start, used) = (Instant::now(), usage(agent.pid())?.cpu_secs);
        let part = send(&lane, &mut traffic, (agent.pid(), number), start + length)?;
        let cpu = (usage(agent.pid())?.cpu_secs - used) / start.elapsed().as_secs_f64() * 100.0;
        let row = [part.sent as f64 * 1e3 / part.ns, cpu, part.rss_mib, part.descriptors as f64];
        table.row(format!("part {number}"), row.map(|v| Some(Figure::once(v))).to_vec());
        parts.push(part);
    }
    agent.end()?;
    let received = counted()? - before;
    let (all, lost) = landed(&agent.objects(), "ingress")?;
    report.table(table);
    println!("P1, soak: {received} packets came in, {all} are in rows and counted losses ({lost} lost)\n");
    ensure!(received == all, "{received} packets came in, {all} are accounted for");
    // The first parts fill tables and pools, which stay.
    let most = |parts: &[Part]| parts.iter().map(|part| part.rss_mib).fold(0.0, f64::max);
    let (first, second) = parts.split_at(parts.len().div_ceil(2));
    report.target("soak: packets lost", lost as f64 / all as f64 * 100.0, "%", 0.0, true);
    report.target(
        "soak: most RSS of the second half, of that of the first",
        most(second) / most(first) * 100.0,
        "%",
        110.0,
        true,
    );
    let more = parts[parts.len() - 1].descriptors as f64 - first[first.len() - 1].descriptors as f64;
    report.target("soak: descriptors at the end, more than half way", more, "descriptors", 2.0, true);
    Ok(())
}

/// Sends until then, in turns.
fn send(lane: &Lane, traffic: &mut Traffic, (pid, number): (u32, u32), until: Instant) -> anyhow::Result<Part> {
    let mut part = Part::default();
    let mut turn = 0;
    while Instant::now() < until {
        let new = (u64::from(number) << 24) + turn * u64::from(NEW_FLOWS);
        for kind in Kind::ALL {
            let one = |flows, frames| Load { kind, bytes: 64, flows, frames };
            for (load, first) in
                [(one(1 << 27, NEW_FLOWS), new), (one(FLOWS[0], FRAMES), 0), (one(FLOWS[1], FRAMES), 0)]
            {
                part.ns += lane.send_from(traffic, load, first)? * f64::from(load.frames);
                part.sent += u64::from(load.frames);
            }
            part.rss_mib = part.rss_mib.max(usage(pid)?.rss_mib);
        }
        turn += 1;
    }
    part.descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    Ok(part)
}
