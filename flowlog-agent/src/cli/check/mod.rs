//! `flowlog check`: what this machine can do, and whether a configuration will work here.
//!
//! * [`system`]: interfaces, room, addresses; [`stores`]: buckets, certificates, and files beside the configuration;
//! * this file: the rest, and how it is shown.

mod stores;
mod system;

use std::{fs, path::PathBuf, process::ExitCode};

use flowlog_kernel::probe::{self, Finding, State, finding};
use flowlog_model::text::printable;
use serde::Serialize;

use super::{
    out::{self, say},
    run::runtime,
    status::Output,
};
use crate::{
    agent::{
        memory::{self, Here},
        sizing::{MapSize, SizeFrom, SizeTold, Sizing},
    },
    config::{CaptureFlags, Config, Layers, RawConfig, RawFlowLog, Setting},
};

/// How it is used, below its flags.
pub(super) const EXAMPLES: &str = "\
With --config, or flags that make a flow log, everything that the configuration names is looked at: interfaces, buckets (an upload is begun \
and given up), certificates, principals, inventory, room, addresses. Exit code 1: something is missing.

Examples:
  flowlog check
  flowlog check --interface eth0
  flowlog check --config /etc/flowlog/flowlog.toml --effective
  flowlog check --config /etc/flowlog/flowlog.toml --window 1m --output json";

#[derive(clap::Args)]
pub(super) struct CheckArgs {
    /// Configuration to check, with the flags that it would be run with. An --interface without --target is only looked at.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Also show every key with its value in force, and where that comes from.
    #[arg(long)]
    effective: bool,
    /// Form of the answer; json always has the values in force.
    #[arg(long, short, value_enum, value_name = "FORM", default_value = "table")]
    output: Output,
    #[command(flatten)]
    flags: CaptureFlags,
}

/// The answer for programs.
#[derive(Serialize)]
struct Answer<'a> {
    ok: bool,
    findings: Vec<Line<'a>>,
    sizes: Vec<SizeLine>,
    effective: &'a [Setting],
}

/// How large something of the kernel's half is.
#[derive(Serialize)]
struct SizeLine {
    key: &'static str,
    value: u32,
    from: SizeFrom,
    /// What a new capture would have, if nobody said it.
    chosen: u32,
    why: String,
}

#[derive(Serialize)]
struct Line<'a> {
    what: &'a str,
    state: String,
    detail: &'a str,
}

pub(super) fn run(args: CheckArgs) -> anyhow::Result<ExitCode> {
    let CheckArgs { config, effective, output, flags } = args;
    let (given, interfaces) = flags.0.without_looks();
    let layers = Layers { file: config, given };
    let is_configured = layers.file.is_some() || layers.given.makes_a_flow_log();
    let merged = layers.read()?;
    let raw = merged.raw.clone();
    let raw = if is_configured { raw } else { RawConfig { flow_logs: vec![any_flow_log()], ..raw } };
    // First, because the programs are loaded to see whether they are accepted.
    let (config, here) = memory::checked(raw).map_err(|error| merged.blame(error))?;
    let (_, cpus) = config.sizes.memory_bytes_here();
    let mut findings = probe::machine(&interfaces, &config.reasons, (config.pin_dir.as_deref(), is_configured));
    findings.push(fitting(&here, cpus));
    findings.extend(sizes(&here.sizing));
    if is_configured {
        findings.extend(configured(&config)?);
    }
    let mut made = vec![("node_id", format!("{:?}", config.node_id)), ("flows_max", config.flows_max.to_string())];
    made.extend(here.sizing.told().into_iter().map(|told| (told.key, told.written)));
    let settings = merged.settings(&made);
    let shown = Shown { findings: &findings, sizing: &here.sizing, settings: &settings };
    show(&shown, effective, output)?;
    Ok(if missing(&findings) == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A flow log that says nothing but what it has to.
fn any_flow_log() -> RawFlowLog {
    RawFlowLog { interfaces: vec!["lo".to_owned()], target: "/".to_owned(), ..RawFlowLog::default() }
}

/// Everything that the configuration names.
fn configured(config: &Config) -> anyhow::Result<Vec<Finding>> {
    let mut all = system::interfaces(config);
    all.extend(runtime()?.block_on(stores::buckets(config)));
    all.extend(stores::files(config));
    all.push(system::room(config));
    all.extend(system::pinned(config));
    all.extend(system::listeners(config));
    Ok(all)
}

fn missing(findings: &[Finding]) -> usize {
    findings.iter().filter(|f| f.state == State::Missing).count()
}

/// What there is to show.
struct Shown<'a> {
    findings: &'a [Finding],
    sizing: &'a Sizing,
    settings: &'a [Setting],
}

fn show(shown: &Shown<'_>, effective: bool, output: Output) -> anyhow::Result<()> {
    let Shown { findings, sizing, settings } = *shown;
    let missing = missing(findings);
    if output == Output::Json {
        let line = |f: &'_ Finding| -> String { f.state.to_string().to_ascii_lowercase() };
        let lines = findings.iter().map(|f| Line { what: &f.what, state: line(f), detail: &f.detail }).collect();
        let size = |SizeTold { key, size, why, .. }| {
            let MapSize { is, from, chosen } = size;
            SizeLine { key, value: is, from, chosen: chosen.is, why }
        };
        let sizes = sizing.told().into_iter().map(size).collect();
        return out::json(&Answer { ok: missing == 0, findings: lines, sizes, effective: settings });
    }
    for Finding { what, state, detail } in findings {
        say!("{:<7} {:<28} {}", state.to_string(), printable(what), printable(detail))?;
    }
    if effective {
        say!("\n{:<36} {:<12} value", "key", "from")?;
        for Setting { key, value, origin } in settings {
            say!("{:<36} {:<12} {}", printable(key), origin.as_str(), printable(value))?;
        }
    }
    if missing == 0 { say!("\nflowlog can run here") } else { say!("\nflowlog cannot run here: {missing} missing") }
}

/// How large cache and ring are, and why.
fn sizes(sizing: &Sizing) -> impl Iterator<Item = Finding> {
    sizing.told().into_iter().map(|t| finding(t.key, State::Ok, format!("{}, {}", t.written, t.why)))
}

/// What is needed, beside what is allowed; without a limit, beside what is free.
fn fitting(here: &Here, cpus: u64) -> Finding {
    let Here { need, limit, .. } = here;
    let needed = format!("{need}, on {cpus} CPUs");
    if let Some(limit) = limit {
        return finding("memory", State::Ok, format!("{needed}; `{}` allows {limit}", limit.file.display()));
    }
    let available = fs::read_to_string("/proc/meminfo")
        .unwrap_or_default()
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok())
        .map_or(u64::MAX, |kb| kb * 1_024);
    // Flows take so much only in a flood: half of what is free leaves room for others.
    if need.total() < available / 2 {
        finding("memory", State::Ok, format!("{needed}; no control group has a limit"))
    } else {
        let remedy = "use a smaller `cache_slots` or `flows_max`";
        finding("memory", State::Limited, format!("{needed}; {} MiB are free: {remedy}", available >> 20))
    }
}
