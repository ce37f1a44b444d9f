//! `cargo xtask bench`: measures, on this machine.

use std::{ffi::OsString, path::PathBuf};

use anyhow::Context as _;

use crate::{
    build, setup,
    util::{cargo, output, run as run_command, step},
};

/// The suite has options of its own, and a `--help` for them.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// For integration/benches/suite: what to measure (default: everything), and options
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
    pub suite: Vec<OsString>,
}

/// Sets up, builds for release, and runs `integration/benches/suite`.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    setup::require_root("bench")?;
    setup::network_tools()?;
    if args.suite.iter().any(|word| word == "fleet") {
        setup::etcd()?;
    }
    build::ensure_fresh()?;
    step("building for release (minutes the first time)");
    run_command(cargo().args(["build", "--release", "--locked", "--package", "flowlog-agent"]))?;
    run_command(
        cargo().args(["bench", "--locked", "--package", "integration", "--bench", "suite", "--"]).args(&args.suite),
    )
}

/// Builds the suite for release, and says where it is.
pub(crate) fn suite() -> anyhow::Result<PathBuf> {
    step("building the benchmark for release (minutes the first time)");
    let build =
        ["bench", "--locked", "--package", "integration", "--bench", "suite", "--no-run", "--message-format=json"];
    let messages = output(cargo().args(build))?;
    let of_suite = messages.lines().filter(|line| line.contains("\"kind\":[\"bench\"]"));
    let path = of_suite.filter_map(|l| l.split_once("\"executable\":\"")?.1.split('"').next()).next_back();
    Ok(PathBuf::from(path.context("cargo named no benchmark")?))
}
