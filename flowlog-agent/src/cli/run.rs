//! `flowlog run`.

use std::process::ExitCode;

use anyhow::Context as _;
use flowlog_kernel::{
    confine::{self, Keep},
    heap,
};
use flowlog_model::text::printable;
use tracing_subscriber::{EnvFilter, field::MakeExt as _, fmt::format::debug_fn};

use super::args::RunArgs;
use crate::agent::{self, AgentError, memory};

pub(super) fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    heap::return_large_blocks();
    confine::no_core_files().map_err(AgentError::from)?;
    log_to_stderr();
    // Before anything is loaded: what does not fit is ended by the kernel without a word.
    let (config, _) = memory::checked(args.into_raw()?)?;
    // Before there are threads: each would keep what it was made with.
    let confined = confine::enter(Keep {
        enters_namespaces: config.enters_namespaces,
        asks_for_programs: config.xdp.asks_for_programs(),
    })
    .map_err(AgentError::from)?;
    runtime()?.block_on(agent::run(config, &confined))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("FLOWLOG_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // What others say (names, stores) can do nothing to a terminal, and no line can be made to look like two.
    let fields = debug_fn(|writer, field, value| {
        let words = format!("{value:?}");
        let words = printable(&words);
        if field.name() == "message" { write!(writer, "{words}") } else { write!(writer, "{}={words}", field.name()) }
    });
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .fmt_fields(fields.delimited(" "))
        // It would say on standard error that standard error is closed, and panic.
        .log_internal_errors(false)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .init();
}

/// One thread drains; uploads and encoding have their own. More would wake each other up all day.
pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")
}
