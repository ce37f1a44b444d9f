//! What the process gives up: core files, capabilities, new privileges, system calls.
//!
//! * [`capabilities`]: which are kept, and which only until the capture has begun;
//! * [`filter`]: system calls that an agent has no use for.
//!
//! Capabilities belong to a thread, and a new thread has those of the one that made it. So they are given up by the first thread, before
//! there is another; whoever comes too late is told.

pub(crate) mod capabilities;
mod filter;

use std::{fs, io, thread, time::Duration};

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// What can go wrong. Nothing is captured then: an agent that keeps what it was to give up is not the one that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    #[error("cannot {action}: {source}")]
    Refused {
        /// What the kernel refused.
        action: &'static str,
        source: io::Error,
    },
    #[error("cannot install the filter of system calls: {0}; flowlog needs a kernel with CONFIG_SECCOMP_FILTER=y")]
    Filter(#[from] seccompiler::Error),
    /// Following interfaces takes more than the process was started with.
    #[error("`follow_namespaces` and `netns` need {missing}: run as root or grant it, or leave both out")]
    CannotFollow {
        /// The capabilities that are not held.
        missing: String,
    },
    /// Asking for other people's programs takes more than the process was started with.
    #[error("`xdp = \"trace\"` and `xdp = \"wrap\"` need {missing}: run as root or grant it, or leave `xdp` out")]
    CannotAsk {
        /// The capabilities that are not held.
        missing: String,
    },
    /// There are other threads, which would keep theirs.
    #[error("capabilities must be given up before there are threads, and there are {0}: this is a mistake in flowlog")]
    Threads(usize),
}

fn refused<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> ConfineError {
    move |source| ConfineError::Refused { action, source: source.into() }
}

/// What is in memory is written to no core file: credentials are there from the start, in the environment.
///
/// The limit alone would not do: the kernel ignores it where cores are piped into a program (`core(5)`). A process that may not be
/// dumped may not be looked into by others of its user either; it may still look at itself.
///
/// # Errors
/// If the kernel refuses.
pub fn no_core_files() -> Result<(), ConfineError> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(refused("switch core files off"))?;
    let nothing = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, nothing).map_err(refused("limit core files to nothing"))
}

/// What an agent has to keep for what it is configured to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Keep {
    /// It enters other network namespaces.
    pub enters_namespaces: bool,
    /// It asks the kernel for other people's programs.
    pub asks_for_programs: bool,
    /// It reads files that are another user's, if it may: those of libvirt.
    pub reads_others_files: bool,
}

/// A process that has given up what it does not even need to begin a capture.
#[derive(Debug)]
pub struct Confined {
    keep: Keep,
}

/// Gives up what no agent needs, and for good: core files, privileges by `execve`, system calls of the [`filter`], and all capabilities
/// but those for beginning a capture.
///
/// # Errors
/// If the kernel refuses, there are other threads already, or what is needed to enter other network namespaces is not held.
pub fn enter(keep: Keep) -> Result<Confined, ConfineError> {
    no_core_files()?;
    ensure_one_thread()?;
    // While it may still be changed.
    capabilities::limit_to_begin(keep)?;
    filter::install(keep.enters_namespaces)?;
    Ok(Confined { keep })
}

impl Confined {
    /// The capture has begun: gives up what only its beginning took.
    ///
    /// # Errors
    /// If the kernel refuses, or there are other threads that do not end.
    pub fn finish(&self) -> Result<(), ConfineError> {
        wait_for_one_thread()?;
        capabilities::limit_to_go_on(self.keep)
    }
}

/// Gives up new privileges and the system calls of the [`filter`], and keeps all capabilities: for a command that ends soon and may have
/// to take away what other versions have left, in any namespace.
///
/// # Errors
/// If the kernel refuses.
pub fn enter_with_capabilities() -> Result<(), ConfineError> {
    no_core_files()?;
    filter::install(true)
}

/// Whether this kernel has filters of system calls.
#[must_use]
pub(crate) fn has_filters() -> bool {
    fs::exists("/proc/sys/kernel/seccomp/actions_avail").unwrap_or(false)
}

fn threads() -> Result<usize, ConfineError> {
    Ok(fs::read_dir("/proc/self/task").map_err(refused("count the threads"))?.count())
}

fn ensure_one_thread() -> Result<(), ConfineError> {
    let threads = threads()?;
    if threads == 1 { Ok(()) } else { Err(ConfineError::Threads(threads)) }
}

/// Between two looks at the threads that help a capture to begin.
const LOOK: Duration = Duration::from_millis(1);
/// Looks until they must have ended, ten seconds or more: the longest gives the room of the last agent's journal back to the disk.
const LOOKS_MAX: u32 = 10_000;

/// Waits until threads that do something once have ended. Also one that has been joined is listed for a moment.
fn wait_for_one_thread() -> Result<(), ConfineError> {
    for _ in 0..LOOKS_MAX {
        if threads()? == 1 {
            break;
        }
        thread::sleep(LOOK);
    }
    ensure_one_thread()
}
