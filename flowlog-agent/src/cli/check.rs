//! `flowlog check`.

use std::{fs, path::PathBuf, process::ExitCode};

use flowlog_kernel::probe::{self, Finding, State, finding};

use super::out::say;
use crate::{
    agent::memory::{self, Here},
    config::{RawConfig, RawFlowLog},
};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  flowlog check --interface eth0
  flowlog check --config /etc/flowlog/flowlog.toml")]
pub(super) struct CheckArgs {
    /// Also check this configuration, and whether it fits into memory.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Also look at these interfaces.
    #[arg(long = "interface", value_name = "NAME", add = super::complete::interfaces())]
    interfaces: Vec<String>,
}

pub(super) fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let raw = match &args.config {
        Some(path) => RawConfig::from_file(path)?,
        None => defaults(),
    };
    // First, because the programs are loaded to see whether they are accepted.
    let (config, here) = memory::checked(raw)?;
    let (_, cpus) = config.sizes.memory_bytes_here();
    let mut findings = probe::machine(&args.interfaces, &config.reasons);
    findings.push(fitting(&here, cpus));
    for Finding { what, state, detail } in &findings {
        say!("{:<7} {what:<28} {detail}", state.to_string())?;
    }
    let missing = findings.iter().filter(|f| f.state == State::Missing).count();
    if missing == 0 {
        say!("\nflowlog can run here")?;
        return Ok(ExitCode::SUCCESS);
    }
    say!("\nflowlog cannot run here: {missing} missing")?;
    Ok(ExitCode::FAILURE)
}

/// A configuration that says nothing but what it has to.
fn defaults() -> RawConfig {
    let log = RawFlowLog { interfaces: vec!["lo".to_owned()], target: "/".to_owned(), ..RawFlowLog::default() };
    RawConfig { flow_logs: vec![log], ..RawConfig::default() }
}

/// What is needed, beside what is allowed; without a limit, beside what is free.
fn fitting(here: &Here, cpus: u64) -> Finding {
    let Here { need, limit } = here;
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
