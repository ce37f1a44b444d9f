//! Reading files again when they change: inotify(7) on the folders they are in, so that a file that is replaced, as
//! editors and VM tooling do, is seen as well.

use std::{collections::BTreeSet, io, mem::MaybeUninit, path::PathBuf, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify,
};

/// Files change in bursts: how long it must be quiet before they are read. Well within the second in which a new VM's
/// interface must be captured.
const QUIET: Duration = Duration::from_millis(50);
/// Bursts that are waited for at most before reading all the same.
const BURSTS_MAX: u32 = 5;

/// Calls `changed` on a thread of its own whenever something in the folders of `files` or in `dirs` changes. The thread ends
/// with the process. A folder that does not exist is not watched.
///
/// # Errors
/// If the kernel refuses.
pub fn watch(files: &[PathBuf], dirs: &[PathBuf], mut changed: impl FnMut() + Send + 'static) -> io::Result<()> {
    let handle = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    let parents = files.iter().filter_map(|f| f.parent().map(PathBuf::from));
    let folders: BTreeSet<PathBuf> = parents
        .map(|p| if p.as_os_str().is_empty() { PathBuf::from(".") } else { p })
        .chain(dirs.iter().cloned())
        .collect();
    let events = inotify::WatchFlags::CLOSE_WRITE
        | inotify::WatchFlags::MOVED_TO
        | inotify::WatchFlags::MOVED_FROM
        | inotify::WatchFlags::DELETE
        | inotify::WatchFlags::ATTRIB;
    for folder in folders {
        match inotify::add_watch(&handle, &folder, events) {
            Err(rustix::io::Errno::NOENT) => {
                tracing::warn!(folder = %folder.display(), "does not exist, so changes in it are not noticed");
            }
            other => drop(other?),
        }
    }
    std::thread::Builder::new().name("files".to_owned()).spawn(move || {
        // What has changed since the caller looked.
        changed();
        let mut buffer = [MaybeUninit::uninit(); 16 << 10];
        loop {
            let mut reader = inotify::Reader::new(&handle, &mut buffer);
            match reader.next() {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "files are not watched any more");
                    return;
                }
            }
            for _ in 0..BURSTS_MAX {
                if !again(&handle) {
                    break;
                }
                while !reader.is_buffer_empty() {
                    if reader.next().is_err() {
                        break;
                    }
                }
                // One more read takes what has come since.
                let _ = reader.next();
            }
            changed();
        }
    })?;
    Ok(())
}

/// Whether something more has happened within [`QUIET`].
fn again(handle: &std::os::fd::OwnedFd) -> bool {
    let quiet = Timespec { tv_sec: 0, tv_nsec: i64::from(QUIET.subsec_nanos()) };
    poll(&mut [PollFd::new(handle, PollFlags::IN)], Some(&quiet)).is_ok_and(|n| n > 0)
}
