//! `cargo xtask engines`: tables and queries of `flowlog sql` in engines that take long to install or to start.

use crate::{
    build, setup,
    test::FAULTS,
    util::{cargo, run as run_command, step},
};

/// Sets up, builds, and asks them all.
pub(crate) fn run() -> anyhow::Result<()> {
    setup::require_root("engines")?;
    setup::network_tools()?;
    setup::engines()?;
    build::ensure_fresh()?;
    step("building the agent and the tests (minutes the first time)");
    run_command(cargo().args(["build", "--locked", "--package", "flowlog-agent", "--features", "faults"]))?;
    step("DuckDB, DataFusion, ClickHouse and Spark on the same objects (a minute)");
    let tests = ["test", "--locked", "-p", "integration", "--features", FAULTS, "--test", "all", "--"];
    // One at a time: Spark takes both cores, and a gigabyte.
    run_command(cargo().args(tests).args(["--ignored", "--test-threads=1", "queries::"]))
}
