//! `flowlog stop`.

use std::{io::ErrorKind, os::fd::OwnedFd, path::Path, process::ExitCode, time::Duration};

use anyhow::Context as _;
use flowlog_host::lock;
use rustix::process::{Pid, Signal};

use super::{exit::Failure, out::say};

/// How long an agent may take to write its last records down.
const PATIENCE: Duration = Duration::from_mins(1);

pub(super) fn run(state_dir: &Path) -> anyhow::Result<ExitCode> {
    if stop(state_dir)? {
        say!("stopped; the capture goes on in the kernel unless it was run with --no-pin")?;
    } else {
        say!("no agent is running on `{}`", state_dir.display())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The agent that holds a state directory, and its process id; `None`: there is none.
pub(super) fn find(state_dir: &Path) -> anyhow::Result<Option<(OwnedFd, u32)>> {
    // Whether there is an agent cannot be told of a directory that may not be looked at.
    match std::fs::metadata(state_dir) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return Err(error).with_context(|| format!("cannot look at `{}`", state_dir.display()));
        }
        _ => {}
    }
    let Some(pid) = lock::holder(state_dir) else { return Ok(None) };
    let pid = Pid::from_raw(pid).context("the lock is held by no process")?;
    // A handle first: should the agent end by itself, its process id may become somebody else's.
    let handle = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
        .with_context(|| format!("cannot reach the agent (process {pid:?})"))?;
    let number = pid.as_raw_nonzero().get();
    if lock::holder(state_dir) == Some(number) { Ok(Some((handle, number.unsigned_abs()))) } else { find(state_dir) }
}

/// Ends the agent that holds a state directory and waits until it has; `false` if there is none.
pub(super) fn stop(state_dir: &Path) -> anyhow::Result<bool> {
    let Some((handle, _)) = find(state_dir)? else { return Ok(false) };
    rustix::process::pidfd_send_signal(&handle, Signal::TERM).context("cannot signal the agent")?;
    let mut ended = [rustix::event::PollFd::new(&handle, rustix::event::PollFlags::IN)];
    let patience = rustix::event::Timespec { tv_sec: i64::try_from(PATIENCE.as_secs())?, tv_nsec: 0 };
    if rustix::event::poll(&mut ended, Some(&patience)).context("cannot wait for the agent")? == 0 {
        let words = format!("the agent has not ended after {} s; see its log", PATIENCE.as_secs());
        return Err(Failure::NotNow(words).into());
    }
    Ok(true)
}
