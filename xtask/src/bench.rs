//! `cargo xtask bench [packet|wire|agent|rules] [OPTIONS]`: measures, on this machine. `--help` lists the options.

use crate::{
    build, setup,
    util::{cargo, run as run_command, step},
};

/// Sets up, builds for release, and runs `integration/benches/suite`.
pub fn run(args: &[String]) -> anyhow::Result<()> {
    setup::require_root("bench")?;
    setup::network_tools()?;
    build::ensure_fresh()?;
    step("building for release (minutes the first time)");
    run_command(cargo().args(["build", "--release", "--locked", "--package", "flowlog-agent"]))?;
    run_command(cargo().args(["bench", "--locked", "--package", "integration", "--bench", "suite", "--"]).args(args))
}
