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
/// Each of so many flows is a new one at the beginning of each part.
const NEW_FLOWS: u32 = 1_000_000;

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
        Self { minutes: 1, parts: 3 }
    }
}

/// What the agent had at the end of a part.
struct Held {
    rss_mib: f64,
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
            "IPv4 and IPv6, UDP and TCP in turns, 64 bytes; {} and {} flows in turns, and {NEW_FLOWS} new ones at the beginning of each part.",
            FLOWS[0], FLOWS[1]
        ),
        &["M packets/s", "agent CPU %", "RSS MiB", "descriptors"],
    );
    table.decimals = 2;
    let part = Duration::from_secs(u64::from(options.minutes) * 60) / options.parts;
    let mut held = Vec::new();
    for number in 1..=options.parts {
        let (start, used) = (Instant::now(), usage(agent.pid())?.cpu_secs);
        let (sent, ns) = send(&lane, &mut traffic, number, start + part)?;
        let after = usage(agent.pid())?;
        let cpu = (after.cpu_secs - used) / start.elapsed().as_secs_f64() * 100.0;
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", agent.pid()))?.count();
        let row = [sent as f64 * 1e3 / ns, cpu, after.rss_mib, descriptors as f64];
        table.row(format!("part {number}"), row.map(|v| Some(Figure::once(v))).to_vec());
        held.push(Held { rss_mib: after.rss_mib, descriptors });
    }
    agent.end()?;
    let received = counted()? - before;
    let (all, lost) = landed(&agent.objects(), "ingress")?;
    report.table(table);
    println!("P1, soak: {received} packets came in, {all} are in rows and counted losses ({lost} lost)\n");
    ensure!(received == all, "{received} packets came in, {all} are accounted for");
    // The first part fills tables and pools, which stay.
    let (first, last) = (&held[held.len() / 4], &held[held.len() - 1]);
    report.target("soak: packets lost", lost as f64 / all as f64 * 100.0, "%", 0.0, true);
    report.target(
        "soak: RSS at the end, of that after a quarter",
        last.rss_mib / first.rss_mib * 100.0,
        "%",
        110.0,
        true,
    );
    let more = last.descriptors as f64 - first.descriptors as f64;
    report.target("soak: descriptors at the end, more than after a quarter", more, "descriptors", 2.0, true);
    Ok(())
}

/// Sends until then; returns how many frames, and in how many ns.
fn send(lane: &Lane, traffic: &mut Traffic, part: u32, until: Instant) -> anyhow::Result<(u64, f64)> {
    let kind = Kind::ALL[part as usize % Kind::ALL.len()];
    let new = Load { kind, bytes: 64, flows: 1 << 27, frames: NEW_FLOWS };
    let mut ns = lane.send_from(traffic, new, u64::from(part) * u64::from(NEW_FLOWS))? * f64::from(new.frames);
    let mut sent = u64::from(new.frames);
    while Instant::now() < until {
        for flows in FLOWS {
            for kind in Kind::ALL {
                let load = Load { kind, bytes: 64, flows, frames: FRAMES };
                ns += lane.send(traffic, load)? * f64::from(load.frames);
                sent += u64::from(load.frames);
            }
        }
    }
    Ok((sent, ns))
}
