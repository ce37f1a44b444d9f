//! What can go wrong while capturing.

use crate::{journal::JournalError, source::SourceError, spool::SpoolError};

/// See the module's head.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// No room in the kernel's maps.
    #[error(
        "all {max} places for interfaces are taken; raise `kernel.interfaces_max` and start again with `detach`, then `run`"
    )]
    NoRoom {
        /// How many there are.
        max: u16,
    },
    /// A thread of ours ended by itself.
    #[error("the {0} ended by itself: a bug; what it had is in the state directory")]
    Ended(&'static str),
    /// There can be no thread.
    #[error("cannot start the {thread}: {source}")]
    Thread {
        /// What it is for.
        thread: &'static str,
        source: std::io::Error,
    },
}
