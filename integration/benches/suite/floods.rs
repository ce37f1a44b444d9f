//! `cargo xtask bench wire`, its last part: floods of new flows, and what a refused packet costs.
#![allow(clippy::cast_precision_loss, reason = "counts that are printed")]

use std::time::Instant;

use anyhow::Context as _;
use aya::programs::{BtfTracePoint, loaded_programs};

use crate::{
    lab,
    lane::Load,
    report::{Figure, Report, Table},
    wire::{Options, TCP4, Wire, exact, landed, usage},
};

/// Floods of new flows, let through and refused.
pub(crate) fn run(wire: &mut Wire, options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let load = Load { kind: TCP4, bytes: 64, flows: 1 << 27, frames: options.flood };
    let mut table = Table::new(
        format!("Floods: {} SYNs, each a flow of its own", options.flood),
        "one CPU sends and forwards, the agent has the other",
        "`no agent` is the same lane before the agent started.",
        &["M packets/s", "no agent", "agent CPU %", "RSS MiB at most", "packets lost %"],
    );
    table.decimals = 2;
    for refused in [false, true] {
        if refused {
            wire.node.nft(
                "table inet flood {\n chain c { type filter hook prerouting priority raw; tcp flags syn counter drop; }\n}",
            )?;
        }
        let Wire { traffic, lanes, .. } = &mut *wire;
        let off = lanes[0].send(traffic, load)?;
        let before = wire.counters()?;
        let mut agent = wire.agent(&[])?;
        let start = (usage(agent.pid())?, Instant::now());
        let Wire { traffic, lanes, .. } = &mut *wire;
        let on = lanes[0].send(traffic, load)?;
        let after = usage(agent.pid())?;
        let cpu = (after.cpu_secs - start.0.cpu_secs) / start.1.elapsed().as_secs_f64() * 100.0;
        agent.end()?;
        let what = if refused { "refused" } else { "let through" };
        exact(wire, &agent, before, &format!("flood, {what}"))?;
        let (all, lost) = landed(&agent.objects(), "ingress")?;
        let row = [1e3 / on, 1e3 / off, cpu, after.peak_mib, lost as f64 / all as f64 * 100.0];
        table.row(what, row.map(|v| Some(Figure::once(v))).to_vec());
    }
    report.table(table);
    verdict(wire, options.rounds, report)
}

/// ns of the verdict programs per dropped packet, by the kernel's own statistics, less those of an empty program on the
/// same tracepoint.
fn verdict(wire: &mut Wire, rounds: u32, report: &mut Report) -> anyhow::Result<()> {
    let mut table = Table::new(
        "Verdict programs",
        "ns per refused packet over an empty program on the same tracepoint",
        "By the kernel's run-time statistics. Both programs run for each packet; the second finds it handled.",
        &["1 flow", "8k flows", "128k flows", "every packet a new flow"],
    );
    let mut bench = lab::load_bench()?;
    let empty: &mut BtfTracePoint = bench.program_mut("verdict_empty").context("verdict_empty")?.try_into()?;
    empty.attach()?;
    let mut agent = wire.agent(&[])?;
    let _statistics = aya::sys::enable_stats(aya::sys::Stats::RunTime)?;
    let mut row = Vec::new();
    for flows in [1, 8_192, 131_072, 1 << 27] {
        let load = Load { kind: TCP4, bytes: 64, flows, frames: 100_000 };
        let mut ns = Vec::new();
        for _ in 0..=rounds {
            let before = runs()?;
            let Wire { traffic, lanes, .. } = &mut *wire;
            lanes[0].send(traffic, load)?;
            let after = runs()?;
            let mean = |i: usize| (after[i].0 - before[i].0) as f64 / (after[i].1 - before[i].1).max(1) as f64;
            ns.push(mean(0) + mean(1) - 2.0 * mean(2));
        }
        // The first round fills the caches.
        row.push(Some(Figure::least(&ns[1..])));
    }
    agent.end()?;
    for (flows, figure) in ["1 flow", "8k flows"].iter().zip(row.iter().flatten()) {
        report.target(format!("packet: verdict, {flows}"), figure.median, "ns", 70.0, true);
    }
    table.row("both programs", row);
    report.table(table);
    Ok(())
}

/// Run time in ns and number of runs of the first, the second and the empty verdict program.
fn runs() -> anyhow::Result<[(u128, u64); 3]> {
    let mut runs = [(0, 0); 3];
    for info in loaded_programs() {
        let info = info?;
        // The kernel keeps 15 characters. What is attached is charged with what it jumps to.
        let place = match info.name() {
            b"flowlog_drop" => 0,
            b"flowlog_drop_ne" => 1,
            b"verdict_empty" if info.run_count() > 0 => 2,
            _ => continue,
        };
        runs[place] = (info.run_time().as_nanos(), info.run_count().max(1));
    }
    Ok(runs)
}
