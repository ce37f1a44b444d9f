//! `cargo xtask check`: format, lints ([`lints`]), the checked-in eBPF objects, dependencies ([`layers`], [`cycles`], [`deny`]), the ABI
//! ([`abi`]), what files name ([`text`], [`promises`]), types of one name ([`names`]), what is others' work
//! ([`vendored`]), and symbols.

mod abi;
mod cycles;
mod deny;
mod layers;
mod lints;
mod names;
mod promises;
mod text;
mod vendored;

use std::fs;

use anyhow::ensure;

use crate::{
    build, mutants, setup,
    util::{agent_binary, cargo, root, run as run_command, step},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only write version and hash of the kernel/user ABI to flowlog-ebpf/abi.lock, after raising its version
    #[arg(long)]
    record_abi: bool,
}

/// Map and crate of the log library, as an object that uses it names them.
const LOGGING: [&[u8]; 2] = [b"AYA_LOGS", b"aya_log_ebpf"];

/// Runs all checks; the first that fails ends it.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if args.record_abi {
        return abi::record();
    }
    step("format");
    run_command(cargo().args(["fmt", "--all", "--check"]))?;
    layers::check()?;
    cycles::check()?;
    abi::check()?;
    text::check()?;
    names::check()?;
    vendored::check()?;
    mutants::check()?;
    deny::check()?;
    reproduce()?;
    logs()?;
    lints::check()?;
    symbols()?;
    step("all checks passed");
    Ok(())
}

/// The checked-in objects are what the sources build to, bit for bit.
fn reproduce() -> anyhow::Result<()> {
    build::ensure_fresh()?;
    setup::bpf()?;
    let rebuilt = root().join("target/bpf-check");
    build::objects(&rebuilt)?;
    for (name, _) in build::OBJECTS {
        let file = format!("{name}.bpf.o");
        ensure!(
            fs::read(rebuilt.join(&file))? == fs::read(build::prebuilt().join(&file))?,
            "{file} is not what the sources build to; run `cargo xtask build-ebpf` and commit the result"
        );
    }
    step("the checked-in eBPF objects reproduce");
    Ok(())
}

/// The one object that logs is the tracer's: a line costs more than all that a hook does.
fn logs() -> anyhow::Result<()> {
    step("which eBPF object logs");
    for (name, _) in build::OBJECTS {
        let file = format!("{name}.bpf.o");
        let object = fs::read(build::prebuilt().join(&file))?;
        let does = LOGGING.iter().any(|word| object.windows(word.len()).any(|w| w == *word));
        ensure!(
            does == (name == "trace"),
            "{file}: {}",
            if does { "it logs, and must not" } else { "it does not log" }
        );
    }
    Ok(())
}

/// The linked agent holds no symbol of the kernel half's runtime.
fn symbols() -> anyhow::Result<()> {
    step("symbols of the agent");
    run_command(cargo().args(["build", "--quiet", "--locked", "--package", "flowlog-agent"]))?;
    let binary = fs::read(agent_binary())?;
    let needle = b"aya_ebpf";
    // The embedded eBPF object names its own crates; only mangled Rust symbols of the host build count.
    let linked = binary.windows(needle.len() + 2).any(|w| w.starts_with(b"8aya_ebpf"));
    ensure!(!linked, "the agent contains symbols of aya-ebpf");
    Ok(())
}
