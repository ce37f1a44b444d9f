//! `flowlog stop`.

use std::{io::ErrorKind, os::fd::OwnedFd, path::Path, process::ExitCode, time::Duration};

use anyhow::Context as _;
use flowlog_host::lock;
use flowlog_model::{amount::bytes, status::Status};
use flowlog_pipeline::reporter::FILE;
use rustix::process::{Pid, Signal};

use super::{
    exit::Failure,
    out::{self, say},
};

/// How long an agent may take to write its last records down.
const PATIENCE: Duration = Duration::from_mins(1);
/// After so long without a word it is said what the agent is doing.
const SILENCE: Duration = Duration::from_secs(3);

pub(super) fn run(state_dir: &Path) -> anyhow::Result<ExitCode> {
    if stop(state_dir)? {
        say!("stopped; {}", rest(state_dir))?;
    } else {
        say!("no agent is running on `{}`", state_dir.display())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What becomes of the capture, and what of its objects is not delivered: as the agent has said last.
fn rest(state_dir: &Path) -> String {
    let said = std::fs::read(state_dir.join(FILE)).ok().and_then(|json| serde_json::from_slice::<Status>(&json).ok());
    let Some(status) = said else {
        return "what it has captured is not known: it had not said anything yet".to_owned();
    };
    let waiting: usize = status.deliveries().map(|d| d.waiting).sum();
    let capture = if status.stopping.is_some() {
        "the capture has ended with it"
    } else {
        "the capture goes on in the kernel (`flowlog detach` ends it)"
    };
    let left = match waiting {
        0 => "all objects are delivered".to_owned(),
        n => format!(
            "{n} undelivered objects ({}) stay in the spool: the next `flowlog run` delivers them",
            bytes(status.spool_bytes)
        ),
    };
    format!("{capture}; {left}")
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
    let Some((handle, pid)) = find(state_dir)? else { return Ok(false) };
    rustix::process::pidfd_send_signal(&handle, Signal::TERM).context("cannot signal the agent")?;
    if has_ended(&handle, SILENCE)? {
        return Ok(true);
    }
    if let Some(words) = doing(state_dir, pid) {
        out::note(&format!("waiting for the agent: {words}"));
    }
    if has_ended(&handle, PATIENCE.saturating_sub(SILENCE))? {
        return Ok(true);
    }
    let doing = doing(state_dir, pid).unwrap_or_else(|| "see its log".to_owned());
    Err(Failure::NotNow(format!("the agent has not ended after {} s: {doing}", PATIENCE.as_secs())).into())
}

/// Waits for the end of a process, and no longer than that.
fn has_ended(handle: &OwnedFd, patience: Duration) -> anyhow::Result<bool> {
    let mut ended = [rustix::event::PollFd::new(handle, rustix::event::PollFlags::IN)];
    let patience = rustix::event::Timespec { tv_sec: i64::try_from(patience.as_secs())?, tv_nsec: 0 };
    Ok(rustix::event::poll(&mut ended, Some(&patience)).context("cannot wait for the agent")? > 0)
}

/// What an agent does before it ends, if it says so.
pub(super) fn doing(state_dir: &Path, pid: u32) -> Option<String> {
    let status = std::fs::read(state_dir.join(FILE)).ok()?;
    let status: Status = serde_json::from_slice(&status).ok()?;
    let waiting: usize = status.deliveries().map(|d| d.waiting).sum();
    let words = status.stopping.filter(|_| status.pid == pid)?;
    Some(format!("{waiting} undelivered objects; {words}"))
}
