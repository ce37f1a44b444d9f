//! `flowlog reload`.

use std::{io::ErrorKind, mem::MaybeUninit, os::fd::OwnedFd, path::Path, process::ExitCode, time::Duration};

use anyhow::Context as _;
use flowlog_host::clock;
use flowlog_model::MonoNs;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify,
    process::Signal,
};

use super::{exit::Failure, out::say, stop};
use crate::agent::reload::{FILE, Reloaded};

/// How long an agent may take: hooks of many new interfaces take seconds.
const PATIENCE: Duration = Duration::from_mins(1);

/// How it is used, below its flags.
pub(super) const EXAMPLES: &str = "\
Flow logs, limits, listeners, TLS files and the way to the buckets change without a packet being missed; captures that stay as they are are \
not touched. What takes a restart, or could not be done without missing packets, is refused with the reason, and then nothing changes. Flags that `run` was given still win over the file. \
docs/configuration.md says of every key which it is. `systemctl reload flowlog` is the same.

Examples:
  flowlog reload
  flowlog reload --state-dir ./state";

/// Has the agent reload, and waits until it says what came of it.
///
/// It is asked by a signal, which every agent hears, also one without a socket; and answers in its state directory.
pub(super) fn run(state_dir: &Path) -> anyhow::Result<ExitCode> {
    let Some((agent, pid)) = stop::find(state_dir)? else {
        return Err(Failure::NoAgent(format!("no agent is running on `{}`", state_dir.display())).into());
    };
    refuse_stopping(state_dir, pid)?;
    let since = clock::now().mono;
    let changes = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
        .and_then(|changes| {
            inotify::add_watch(&changes, state_dir, inotify::WatchFlags::MOVED_TO).map(|_watch| changes)
        })
        .with_context(|| format!("cannot look at `{}`", state_dir.display()))?;
    rustix::process::pidfd_send_signal(&agent, Signal::HUP).context("cannot signal the agent")?;
    match answer(state_dir, (pid, since), (&agent, &changes))? {
        Ok(words) if words.is_empty() => say!("reloaded; nothing has changed")?,
        Ok(words) => {
            say!("reloaded")?;
            for line in &words {
                say!("  {}", flowlog_model::text::printable(line))?;
            }
        }
        Err(why) => return Err(Failure::Wrong(format!("the agent goes on as before: {why}")).into()),
    }
    Ok(ExitCode::SUCCESS)
}

/// An agent that is about to end reads nothing again.
fn refuse_stopping(state_dir: &Path, pid: u32) -> anyhow::Result<()> {
    match stop::doing(state_dir, pid) {
        Some(words) => Err(Failure::NotNow(format!("the agent is stopping: {words}")).into()),
        None => Ok(()),
    }
}

/// Waits for the answer of this process to whoever has asked since then.
fn answer(
    state_dir: &Path,
    (pid, since): (u32, MonoNs),
    (agent, changes): (&OwnedFd, &OwnedFd),
) -> anyhow::Result<Result<Vec<String>, String>> {
    let path = state_dir.join(FILE);
    loop {
        match std::fs::read(&path) {
            Ok(json) => {
                let reloaded = serde_json::from_slice(&json).ok();
                if let Some(Reloaded { outcome, .. }) = reloaded.filter(|r: &Reloaded| r.pid == pid && r.begun >= since)
                {
                    return Ok(outcome);
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        }
        let Some(left) = PATIENCE.checked_sub(Duration::from_nanos(clock::now().mono.0.saturating_sub(since.0))) else {
            let words = format!("the agent has not reloaded after {} s; see its log", PATIENCE.as_secs());
            return Err(Failure::NotNow(words).into());
        };
        let left = Timespec { tv_sec: i64::try_from(left.as_secs())?, tv_nsec: i64::from(left.subsec_nanos()) };
        let mut ready = [PollFd::new(changes, PollFlags::IN), PollFd::new(agent, PollFlags::IN)];
        poll(&mut ready, Some(&left)).context("cannot wait for the agent")?;
        if !ready[1].revents().is_empty() {
            return Err(Failure::NoAgent("the agent has ended".to_owned()).into());
        }
        refuse_stopping(state_dir, pid)?;
        let mut buffer = [MaybeUninit::uninit(); 4 << 10];
        let mut reader = inotify::Reader::new(changes, &mut buffer);
        while reader.next().is_ok() {}
    }
}
