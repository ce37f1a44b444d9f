//! flowlog's development commands: `cargo xtask VERB`. One file per verb; CI and the README call only these.
#![allow(clippy::disallowed_methods, reason = "tests and tools read clocks to measure and to wait")]

mod bench;
mod browser;
mod build;
mod check;
mod demo;
mod engines;
mod fuzz;
mod mutants;
mod package;
mod setup;
mod test;
#[cfg(test)]
mod usage;
mod util;
mod vm;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

/// flowlog's development commands
#[derive(Parser)]
#[command(name = "xtask", bin_name = "cargo xtask", subcommand_value_name = "VERB", subcommand_help_heading = "Verbs")]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// The comments are the usage: there is no other.
#[derive(Subcommand)]
enum Verb {
    /// Build, make a small network, run the agent on it, show what landed (root)
    Demo,
    /// Everything: unit, parser, kernel, network and object store tests (root)
    Test(test::Args),
    /// The console in a real browser (root, about two minutes)
    Browser(browser::Args),
    /// What lands, in the SQL engines that take long to install or to start (root, five minutes)
    Engines,
    /// The tests on Debian's kernels 6.1, 6.12 and the newest, in guests (root)
    Vm(vm::Args),
    /// Measure packets, wire, agent and rules; `cargo xtask bench --help` lists the options (root)
    Bench(bench::Args),
    /// Random networks, rules and traffic against the firewall's own counters (root)
    Fuzz(fuzz::Args),
    /// Format, clippy, reproducible eBPF objects, dependency, ABI and symbol checks
    Check(check::Args),
    /// Break the sources on purpose, in a copy: does a test notice? (root, half an hour)
    Mutants(mutants::Args),
    /// Rebuild the eBPF objects from source, then the release agent
    Build,
    /// Packages: .deb, .rpm, .tar.zst; `cargo xtask package test` installs one in a Debian that boots (root)
    Package(package::Args),
    /// Only the objects, flowlog-ebpf/prebuilt/*.bpf.o
    BuildEbpf,
    /// Install what the verbs above need (each verb does it by itself)
    Setup,
}

/// An error is one line, whatever the environment says about backtraces: what failed has just said why (a test runner, in its
/// summary), and this program's own frames would push that out of sight.
fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let verb = Cli::parse().verb;
    if !matches!(verb, None | Some(Verb::Setup | Verb::BuildEbpf)) {
        setup::protocols()?;
    }
    match verb {
        None => Ok(Cli::command().print_help()?),
        Some(Verb::Demo) => demo::run(),
        Some(Verb::Test(args)) => test::run(&args),
        Some(Verb::Browser(args)) => browser::run(&args),
        Some(Verb::Engines) => engines::run(),
        Some(Verb::Vm(args)) => vm::run(&args),
        Some(Verb::Bench(args)) => bench::run(&args),
        Some(Verb::Fuzz(args)) => fuzz::run(&args),
        Some(Verb::Check(args)) => check::run(&args),
        Some(Verb::Mutants(args)) => mutants::run(&args),
        Some(Verb::Build) => build::run(),
        Some(Verb::Package(args)) => package::run(&args),
        Some(Verb::BuildEbpf) => build::ebpf(),
        Some(Verb::Setup) => setup::run(),
    }
}
