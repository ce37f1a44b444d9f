//! `flowlog run`.

use std::process::ExitCode;

use anyhow::Context as _;
use flowlog_kernel::{
    confine::{self, Keep},
    heap,
};

use super::args::RunArgs;
use crate::agent::{self, AgentError, Plan, memory};

pub(super) fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    heap::return_large_blocks();
    confine::no_core_files().map_err(AgentError::from)?;
    args.log.start()?;
    // Before anything is loaded: what does not fit is ended by the kernel without a word.
    let layers = args.layers()?;
    let merged = layers.read()?;
    let (config, _) = memory::checked(merged.raw.clone()).map_err(|error| merged.blame(error))?;
    // Before there are threads: each would keep what it was made with.
    let confined = confine::enter(Keep {
        enters_namespaces: config.enters_namespaces,
        asks_for_programs: config.xdp.asks_for_programs(),
        reads_others_files: config.reads_others_files(),
    })
    .map_err(AgentError::from)?;
    runtime()?.block_on(agent::run(Plan { layers, merged, config }, &confined))?;
    Ok(ExitCode::SUCCESS)
}

/// One thread drains; uploads and encoding have their own. More would wake each other up all day.
pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")
}
