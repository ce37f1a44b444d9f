//! `flowlog detach`.

use std::process::ExitCode;

use anyhow::Context as _;
use flowlog_kernel::{confine, pins};
use rustix::process::{Pid, test_kill_process};

use super::{args::DetachArgs, run, stop};
use crate::agent::{self, AgentError};

pub(super) fn run(args: &DetachArgs) -> anyhow::Result<ExitCode> {
    confine::enter_with_capabilities().map_err(AgentError::from)?;
    args.log.start()?;
    let config = args.layers().read()?.raw.check_without_captures()?;
    agent::ensure_same_netns(&config)?;
    if let Some((_, pid)) = stop::find(&config.state_dir)? {
        // Whoever may not end it is told that. It is not ended for a directory in which nothing can be.
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("a process has no such id")?;
        test_kill_process(pid).context("cannot signal the agent")?;
        config.pin_dir.as_deref().map_or(Ok(()), pins::ensure_pinnable)?;
    }
    stop::stop(&config.state_dir)?;
    run::runtime()?.block_on(agent::detach(config))?;
    Ok(ExitCode::SUCCESS)
}
