//! `cargo xtask browser`: the console in a real browser, on a node that captures real traffic.

use crate::{
    build, setup,
    test::FAULTS,
    util::{cargo, run as run_command, step},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only tests whose names contain one of these; options go to the test runner (`--nocapture`)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "NAME")]
    filter: Vec<String>,
}

/// Sets up, builds and runs them; pictures of what was seen stay in the target folder.
pub(crate) fn run(Args { filter }: &Args) -> anyhow::Result<()> {
    setup::require_root("browser")?;
    setup::network_tools()?;
    setup::browser()?;
    build::ensure_fresh()?;
    step("building the agent and the tests (minutes the first time)");
    run_command(cargo().args(["build", "--locked", "--package", "flowlog-agent", "--features", "faults"]))?;
    step("the console in Chromium (about two minutes); pictures are in target/console");
    run_command(
        cargo()
            .args(["test", "--locked", "-p", "flowlog-browser", "--features", FAULTS, "--test", "console", "--"])
            // One driver listens on one port, and two cores are enough for one browser.
            .arg("--test-threads=1")
            .args(filter),
    )
}
