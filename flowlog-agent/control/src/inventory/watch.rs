//! Reading files again when they change: inotify(7) on the folders they are in, so that a file that is replaced, as
//! editors and VM tooling do, is seen as well.

use std::{
    collections::BTreeSet,
    io,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::mpsc,
    time::Duration,
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    fs::inotify,
    io::Errno,
};
use tokio::sync::oneshot;

/// Files change in bursts: how long it must be quiet before they are read. Well within the second in which a new VM's
/// interface must be captured.
const QUIET: Duration = Duration::from_millis(50);
/// Bursts that are waited for at most before reading all the same.
const BURSTS_MAX: u32 = 5;

/// Folders in which it is noticed when something changes.
pub struct Folders(OwnedFd);

impl Folders {
    /// Those that `files` are in, and `dirs`. One that does not exist is left out.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn of(files: &[PathBuf], dirs: &[PathBuf]) -> io::Result<Self> {
        let folders = inotify::init(inotify::CreateFlags::CLOEXEC)?;
        watch_folders(&folders, files, dirs)?;
        Ok(Self(folders))
    }
}

/// Calls `changed` on a thread of its own whenever something in the folders changes, and whenever it is asked to, if so with where it is from then
/// on to read. The thread ends with the process.
///
/// # Errors
/// If the kernel refuses.
pub fn watch<M: Send + 'static>(
    folders: Folders,
    mut changed: impl FnMut(Option<M>) + Send + 'static,
) -> io::Result<Again<M>> {
    let woken = eventfd(0, EventfdFlags::CLOEXEC)?;
    let (ask, asked) = mpsc::channel();
    let again = Again { wake: woken.try_clone()?, ask };
    let mut watch = Watch { folders, woken, asked };
    std::thread::Builder::new().name("files".to_owned()).spawn(move || {
        // What has changed since the caller looked.
        changed(None);
        loop {
            if let Err(error) = watch.wait() {
                tracing::error!(%error, "files are not watched any more");
                return;
            }
            // Whoever asks from here on is asking for one more time.
            let asked: Vec<_> = watch.asked.try_iter().collect();
            let (mut place, mut answers) = (None, Vec::with_capacity(asked.len()));
            for Asked { moved, answer } in asked {
                if let Some((folders, to)) = moved {
                    watch.folders = folders;
                    place = Some(to);
                }
                answers.push(answer);
            }
            changed(place);
            for answer in answers {
                let _ = answer.send(());
            }
        }
    })?;
    Ok(again)
}

/// Has the files read again that are watched, though nobody has seen a change.
pub struct Again<M> {
    wake: OwnedFd,
    ask: mpsc::Sender<Asked<M>>,
}

struct Asked<M> {
    /// They are elsewhere from now on.
    moved: Option<(Folders, M)>,
    answer: oneshot::Sender<()>,
}

/// Has the inventory read again, because a source has found something else.
#[derive(Debug)]
pub struct Nudge(OwnedFd);

impl Nudge {
    /// Has it done soon; nobody waits for it.
    pub(super) fn nudge(&self) {
        // It fails where the counter is at its end: then the thread is about to be woken.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

impl<M> Again<M> {
    /// For those who find what is not in the files.
    ///
    /// # Errors
    /// If there is no room for a descriptor.
    pub fn nudge(&self) -> io::Result<Nudge> {
        self.wake.try_clone().map(Nudge)
    }

    /// Asks for it. The answer comes when they have been read; none, if nobody reads them any more.
    #[must_use]
    pub fn ask(&self) -> oneshot::Receiver<()> {
        self.send(None)
    }

    /// From now on they are elsewhere; they are read there soon.
    pub fn move_to(&self, folders: Folders, place: M) {
        drop(self.send(Some((folders, place))));
    }

    fn send(&self, moved: Option<(Folders, M)>) -> oneshot::Receiver<()> {
        let (answer, answered) = oneshot::channel();
        let _ = self.ask.send(Asked { moved, answer });
        // It fails where the counter is at its end: then the thread is about to be woken.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        answered
    }
}

/// What the thread waits for.
struct Watch<M> {
    folders: Folders,
    woken: OwnedFd,
    asked: mpsc::Receiver<Asked<M>>,
}

impl<M> Watch<M> {
    /// Waits for a change, until its burst is over; or for somebody who asks.
    fn wait(&self) -> Result<(), Errno> {
        let mut ready = [PollFd::new(&self.folders.0, PollFlags::IN), PollFd::new(&self.woken, PollFlags::IN)];
        match poll(&mut ready, None) {
            Err(Errno::INTR) => return Ok(()),
            other => drop(other?),
        }
        let [changed, woken] = ready.map(|fd| !fd.revents().is_empty());
        if woken {
            rustix::io::read(&self.woken, &mut [0; size_of::<u64>()])?;
        }
        if changed { take_burst(&self.folders.0).map(drop) } else { Ok(()) }
    }
}

/// Takes what has changed, until it is quiet for a moment; whether a folder itself is gone.
fn take_burst(folders: &OwnedFd) -> Result<bool, Errno> {
    let mut buffer = [MaybeUninit::uninit(); 16 << 10];
    let mut reader = inotify::Reader::new(folders, &mut buffer);
    let mut is_gone = false;
    let gone = inotify::ReadFlags::IGNORED | inotify::ReadFlags::DELETE_SELF | inotify::ReadFlags::MOVE_SELF;
    match reader.next() {
        Ok(event) => is_gone |= event.events().intersects(gone),
        Err(Errno::INTR) => {}
        Err(error) => return Err(error),
    }
    for _ in 0..BURSTS_MAX {
        // What is in the buffer already is no reason to wait.
        while !reader.is_buffer_empty() {
            match reader.next() {
                Ok(event) => is_gone |= event.events().intersects(gone),
                Err(_) => break,
            }
        }
        if !again(folders) {
            break;
        }
        // One more read takes what has come since.
        if let Ok(event) = reader.next() {
            is_gone |= event.events().intersects(gone);
        }
    }
    Ok(is_gone)
}

/// Watches one folder, for whoever asks by [`wait_for_change`].
pub(super) fn folder(dir: &Path) -> io::Result<OwnedFd> {
    let handle = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    let itself = inotify::WatchFlags::DELETE_SELF | inotify::WatchFlags::MOVE_SELF | inotify::WatchFlags::ONLYDIR;
    inotify::add_watch(&handle, dir, EVENTS.union(itself))?;
    Ok(handle)
}

/// Waits until something in the folder has changed and it is quiet again, or so much time has passed; whether the folder is gone.
pub(super) fn wait_for_change(folder: &OwnedFd, at_most: Option<Duration>) -> Result<bool, Errno> {
    let timeout = at_most.map(|time| Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    });
    match poll(&mut [PollFd::new(folder, PollFlags::IN)], timeout.as_ref()) {
        Ok(0) | Err(Errno::INTR) => Ok(false),
        Ok(_) => take_burst(folder),
        Err(error) => Err(error),
    }
}

/// What happens to files when they are written, replaced, removed, or others may do something else with them.
const EVENTS: inotify::WatchFlags = inotify::WatchFlags::CLOSE_WRITE
    .union(inotify::WatchFlags::MOVED_TO)
    .union(inotify::WatchFlags::MOVED_FROM)
    .union(inotify::WatchFlags::DELETE)
    .union(inotify::WatchFlags::ATTRIB);

fn watch_folders(handle: &OwnedFd, files: &[PathBuf], dirs: &[PathBuf]) -> io::Result<()> {
    let parents = files.iter().filter_map(|f| f.parent().map(PathBuf::from));
    let folders: BTreeSet<PathBuf> = parents
        .map(|p| if p.as_os_str().is_empty() { PathBuf::from(".") } else { p })
        .chain(dirs.iter().cloned())
        .collect();
    for folder in folders {
        match inotify::add_watch(handle, &folder, EVENTS) {
            Err(Errno::NOENT) => {
                tracing::warn!(folder = %folder.display(), "does not exist, so changes in it are not noticed");
            }
            other => drop(other?),
        }
    }
    Ok(())
}

/// Whether something more has happened within [`QUIET`].
fn again(handle: &OwnedFd) -> bool {
    let quiet = Timespec { tv_sec: 0, tv_nsec: i64::from(QUIET.subsec_nanos()) };
    poll(&mut [PollFd::new(handle, PollFlags::IN)], Some(&quiet)).is_ok_and(|n| n > 0)
}
