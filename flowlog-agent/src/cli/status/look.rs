//! Asks the running agent what is counted at this moment: by a signal, because it serves nothing by default, and its answer is a file.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path, time::Duration};

use flowlog_host::{clock, lock};
use flowlog_model::figures::Look;
use flowlog_pipeline::reporter::LOOK_FILE;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

/// How long an agent may take: it answers between two looks into its ring.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the agent of a state directory says; `None`: there is none, it may not be asked by this user, or it does not answer.
pub(super) fn ask(state_dir: &Path) -> Option<Look> {
    let path = state_dir.join(LOOK_FILE);
    let read = || serde_json::from_slice(&fs::read(&path).ok()?).ok();
    match wait_for_another(&path, state_dir, || signal(state_dir)) {
        Ok(true) => read(),
        Ok(false) | Err(_) => None,
    }
}

/// Asks; `false`: there is nobody.
fn signal(state_dir: &Path) -> io::Result<bool> {
    let Some(pid) = lock::holder(state_dir) else { return Ok(false) };
    let Some(raw) = Pid::from_raw(pid) else { return Ok(false) };
    // A handle first: should the agent end by itself, its process id may become somebody else's.
    let handle = pidfd_open(raw, PidfdFlags::empty())?;
    if lock::holder(state_dir) != Some(pid) {
        return Ok(false);
    }
    pidfd_send_signal(&handle, Signal::USR1)?;
    Ok(true)
}

/// Waits until a file is another one than it was before asking.
fn wait_for_another(path: &Path, dir: &Path, ask: impl FnOnce() -> io::Result<bool>) -> io::Result<bool> {
    let which = || fs::metadata(path).ok().map(|meta| (meta.ino(), meta.mtime_nsec(), meta.mtime()));
    let changes = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(&changes, dir, inotify::WatchFlags::MOVED_TO)?;
    let before = which();
    if !ask()? {
        return Ok(false);
    }
    let asked = clock::now().mono;
    let mut events = [std::mem::MaybeUninit::uninit(); 4_096];
    loop {
        let now = which();
        if now.is_some() && now != before {
            return Ok(true);
        }
        let waited = Duration::from_nanos(clock::now().mono.0.saturating_sub(asked.0));
        let left = PATIENCE.saturating_sub(waited);
        if left.is_zero() {
            return Ok(false);
        }
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&changes, PollFlags::IN)], Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        // What they are does not matter: it is looked at the file.
        let _ = inotify::Reader::new(&changes, &mut events).next();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_waited_for_and_an_old_one_is_none() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join(LOOK_FILE);
        let answer = |at_ms| {
            let partial = dir.path().join("partial");
            let look = Look { at_ms, ..Look::default() };
            fs::write(&partial, serde_json::to_vec(&look).expect("json")).expect("write");
            fs::rename(&partial, &path).expect("rename");
            Ok(true)
        };
        assert!(ask(dir.path()).is_none(), "nobody runs");
        answer(1).expect("an old answer");
        assert!(!wait_for_another(&path, dir.path(), || Ok(false)).expect("waited"), "nobody is asked");
        assert!(wait_for_another(&path, dir.path(), || answer(2)).expect("waited"));
        let late = std::thread::scope(|scope| {
            let (sender, asked) = std::sync::mpsc::channel();
            let waiting = scope.spawn(|| {
                wait_for_another(&path, dir.path(), move || sender.send(()).map(|()| true).map_err(io::Error::other))
            });
            asked.recv().expect("asked");
            answer(3).expect("answer");
            waiting.join().expect("joined").expect("waited")
        });
        assert!(late, "it came while it was waited for");
    }
}
