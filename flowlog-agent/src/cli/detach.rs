//! `flowlog detach`.

use std::process::ExitCode;

use flowlog_kernel::confine;

use super::{args::DetachArgs, run, stop};
use crate::agent::{self, AgentError};

pub(super) fn run(args: &DetachArgs) -> anyhow::Result<ExitCode> {
    confine::enter_with_capabilities().map_err(AgentError::from)?;
    args.log.start()?;
    let config = args.layers().read()?.raw.check_without_captures()?;
    agent::ensure_same_netns(&config)?;
    stop::stop(&config.state_dir)?;
    run::runtime()?.block_on(agent::detach(config))?;
    Ok(ExitCode::SUCCESS)
}
