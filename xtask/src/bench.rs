//! `cargo xtask bench [packet|wire|agent] [OPTIONS]`: measures, on this machine. `--help` lists the options.

use anyhow::ensure;

use crate::{
    build, setup,
    util::{cargo, run as run_command, step},
};

/// Sets up, builds for release, and runs `integration/benches/suite`.
pub fn run(args: &[String]) -> anyhow::Result<()> {
    ensure!(
        setup::is_root(),
        "the benchmark loads eBPF programs and makes network namespaces: run as root, or `sudo -E cargo xtask bench`"
    );
    setup::network_tools()?;
    build::ensure_fresh()?;
    step("building for release (minutes the first time)");
    run_command(cargo().args(["build", "--release", "--locked", "--package", "flowlog-agent"]))?;
    run_command(cargo().args(["bench", "--locked", "--package", "integration", "--bench", "suite", "--"]).args(args))
}
