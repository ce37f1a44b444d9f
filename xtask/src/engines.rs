//! `cargo xtask engines`: tables and queries of `flowlog sql`, and tables of `flowlog-catalog`, in engines that take long to install or to
//! start.

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
    setup::servers()?;
    build::ensure_fresh()?;
    step("building the agent and the tests (minutes the first time)");
    for package in ["flowlog-agent", "flowlog-catalog"] {
        run_command(cargo().args(["build", "--locked", "--package", package, "--features", "faults"]))?;
    }
    step("flowlog-catalog by itself");
    run_command(cargo().args(["test", "--locked", "--package", "flowlog-catalog", "--features", "faults"]))?;
    step("DuckDB, DataFusion, ClickHouse and Spark on the same objects and tables (three minutes)");
    let tests = ["test", "--locked", "-p", "integration", "--features", FAULTS, "--test", "all", "--"];
    // One at a time: Spark takes both cores, and a gigabyte.
    run_command(cargo().args(tests).args(["--ignored", "--test-threads=1", "queries::", "tables::"]))
}
