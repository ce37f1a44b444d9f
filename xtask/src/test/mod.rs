//! `cargo xtask test`: everything, on the real kernel.

mod service;

use std::{path::PathBuf, process::Command};

use anyhow::Context as _;

use crate::{
    build, setup,
    util::{cargo, output, run as run_command, step},
};

/// Named places at which tests kill the agent: in no other build.
pub(crate) const FAULTS: &str = "integration/faults";
/// Packages with unit tests besides `xtask`.
const LIBRARIES: [&str; 8] = [
    "flowlog-ebpf",
    "flowlog-model",
    "flowlog-host",
    "flowlog-kernel",
    "flowlog-pipeline",
    "flowlog-control",
    "flowlog-agent",
    "flowlog-lab",
];

/// Tests of what an agent does that its unit runs: hooks, verdicts, restarts, managed flow logs.
const AS_SERVICE: [&str; 10] = [
    "credentials_that_a_service_manager_hands_over",
    "fragments::",
    "hooks::",
    "identity::",
    "lost::",
    "numbers::",
    "rules::",
    "verdicts::",
    "windows::",
    "killed_at_any_step",
];
/// Tests of what takes one of the drop-ins of the package, by that: each is run with the capabilities that it adds.
const WITH_DROP_INS: [(&str, &[&str]); 4] = [
    ("libvirt.conf", &["libvirt::"]),
    ("namespaces.conf", &["namespaces::"]),
    ("symbols.conf", &["generic_xdp_drops_are_rejected", "what_has_no_route_is_lost"]),
    ("xdp.conf", &["wrapped_xdp::"]),
];
/// Not among them: what takes a drop-in ([`WITH_DROP_INS`]), a file of the test's store that is root's, and what is long.
const NOT_AS_SERVICE: [&str; 4] = [
    "generic_xdp_drops_are_rejected",
    "what_has_no_route_is_lost",
    "server_that_the_inventory_names",
    "killed_between_any_two_transitions",
];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run the agent as its systemd unit does: a user of its own, three capabilities, a filter of system calls. Without NAME, the
    /// tests of hooks, verdicts, accounting, restarts, stores and managed flow logs that take no more than that
    #[arg(long)]
    pub as_service: bool,
    /// Only tests whose names contain one of these; options go to the test runner (`--nocapture`)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "NAME")]
    pub filter: Vec<String>,
}

/// Sets up, builds, and runs unit tests, then everything that needs the kernel.
pub(crate) fn run(Args { filter, as_service }: &Args) -> anyhow::Result<()> {
    setup::require_root("test")?;
    setup::network_tools()?;
    setup::python_packages()?;
    setup::servers()?;
    build::ensure_fresh()?;
    step("building the agent and the tests (minutes the first time)");
    run_command(cargo().args(["build", "--locked", "--package", "flowlog-agent", "--features", "faults"]))?;
    if *as_service {
        return as_service_runs(filter);
    }
    step("unit tests");
    run_command(cargo().args(["test", "--locked", "-p", "xtask", "--"]).args(filter))?;
    let packages = LIBRARIES.iter().flat_map(|package| ["-p", package]);
    run_command(cargo().args(["test", "--locked"]).args(packages).args(["--lib", "--"]).args(filter))?;
    step("tests on the real kernel (about five minutes)");
    run_command(on_the_kernel().args(filter))
}

fn on_the_kernel() -> Command {
    let mut command = cargo();
    command.args(["test", "--locked", "-p", "integration", "--features", FAULTS, "--test", "all", "--"]);
    command
}

/// With the unit's own means; and then, of everything, with each drop-in's.
fn as_service_runs(filter: &[String]) -> anyhow::Result<()> {
    setup::containers()?;
    let with = |drop_in: Option<&str>| -> anyhow::Result<Command> {
        let mut command = on_the_kernel();
        command.env("FLOWLOG_AS_SERVICE", service::script(drop_in)?);
        Ok(command)
    };
    step("tests of the agent as its unit runs it");
    if !filter.is_empty() {
        return run_command(with(None)?.args(filter));
    }
    let skipped = NOT_AS_SERVICE.iter().flat_map(|name| ["--skip", name]);
    run_command(with(None)?.args(AS_SERVICE).args(skipped))?;
    for (drop_in, tests) in WITH_DROP_INS {
        step(&format!("the same with {drop_in}"));
        run_command(with(Some(drop_in))?.args(tests))?;
    }
    Ok(())
}

/// What tests are made of.
pub(crate) struct Programs {
    /// The agent, which dies at named places if it is told to.
    pub agent: PathBuf,
    pub tests: PathBuf,
}

/// Builds both, and says where they are.
pub(crate) fn programs() -> anyhow::Result<Programs> {
    step("building the agent and the tests");
    programs_for(None, &[])
}

/// As [`programs`], for another machine.
pub(crate) fn programs_for(target: Option<&str>, environment: &[(&str, &str)]) -> anyhow::Result<Programs> {
    let target = target.map_or_else(Vec::new, |t| vec!["--target", t]);
    let cargo = |args: &[&str]| {
        let mut command = cargo();
        command.args(args).args(&target).envs(environment.iter().copied());
        command
    };
    run_command(&mut cargo(&["build", "--locked", "--package", "flowlog-agent", "--features", "faults"]))?;
    let build = ["test", "--locked", "-p", "integration", "--features", FAULTS, "--test", "all", "--no-run"];
    let messages = output(cargo(&build).arg("--message-format=json"))?;
    // One JSON object a line. Programs that the tests call have a path as well, in any order.
    let of_tests = messages.lines().filter(|line| line.contains("\"kind\":[\"test\"]"));
    let tests = of_tests.filter_map(|l| l.split_once("\"executable\":\"")?.1.split('"').next()).next_back();
    let tests = PathBuf::from(tests.context("cargo named no test binary")?);
    let agent = tests.ancestors().nth(2).context("a folder for the agent")?.join("flowlog");
    Ok(Programs { agent, tests })
}
