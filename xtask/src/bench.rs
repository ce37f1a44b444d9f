//! `cargo xtask bench`: measures, on this machine.

use std::ffi::OsString;

use crate::{
    build, setup,
    util::{cargo, run as run_command, step},
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
    build::ensure_fresh()?;
    step("building for release (minutes the first time)");
    run_command(cargo().args(["build", "--release", "--locked", "--package", "flowlog-agent"]))?;
    run_command(
        cargo().args(["bench", "--locked", "--package", "integration", "--bench", "suite", "--"]).args(&args.suite),
    )
}
