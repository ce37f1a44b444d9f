//! `cargo xtask test [NAME]`: everything, on the real kernel.

use crate::{
    build, setup,
    util::{cargo, run as run_command, step},
};

/// Named places at which tests kill the agent: in no other build.
const FAULTS: &str = "flowlog-agent/faults";

/// Sets up, builds, and runs unit tests, then everything that needs the kernel. `filter` picks tests by name.
pub fn run(filter: &[String]) -> anyhow::Result<()> {
    setup::require_root("test")?;
    setup::network_tools()?;
    setup::python_packages()?;
    setup::object_server()?;
    build::ensure_fresh()?;
    step("building the agent and the tests (minutes the first time)");
    run_command(cargo().args(["build", "--locked", "--package", "flowlog-agent", "--features", "faults"]))?;
    step("unit tests");
    run_command(
        cargo()
            .args([
                "test",
                "--locked",
                "-p",
                "flowlog-ebpf",
                "-p",
                "flowlog-agent",
                "--features",
                FAULTS,
                "--lib",
                "--",
            ])
            .args(filter),
    )?;
    step("tests on the real kernel (about five minutes)");
    run_command(
        cargo()
            .args(["test", "--locked", "-p", "integration", "--features", FAULTS, "--test", "all", "--"])
            .args(filter),
    )
}
