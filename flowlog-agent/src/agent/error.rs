//! What can go wrong before or while capturing.

use std::path::PathBuf;

use flowlog_control::{flow_logs::store::FlowLogStoreError, serve::ServeError};
use flowlog_kernel::{KernelError, confine::ConfineError, netdev::NetDevError};
use flowlog_pipeline::{
    error::CaptureError, journal::JournalError, source::SourceError, spool::SpoolError, upload::BucketError,
};
use rustix::io::Errno;

use super::memory::MemoryError;

/// See the module's head.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    NetDev(#[from] NetDevError),
    #[error("memory: {0}")]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Confine(#[from] ConfineError),
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Capturing, for a reason that is none of these.
    #[error(transparent)]
    Capture(CaptureError),
    #[error("state directory `{}`: {source}; end what uses it, or name another with `--state-dir`", path.display())]
    StateDir {
        path: PathBuf,
        /// Why it cannot be used.
        source: std::io::Error,
    },
    #[error(transparent)]
    FlowLogStore(#[from] FlowLogStoreError),
    #[error(transparent)]
    Api(#[from] ServeError),
    /// A file of the configuration.
    #[error("`{}`: {problem}", path.display())]
    File {
        path: PathBuf,
        /// Why it cannot be used.
        problem: String,
    },
    /// The journal belongs to pins that are still there.
    #[error(
        "the state directory belongs to a capture that is pinned at `{}`: name that with `--pin-dir`, or end that \
         capture with `flowlog detach`", dir.display()
    )]
    OtherPins { dir: PathBuf },
    /// There is no region to serve.
    #[error("`flowlog control` serves what is in etcd: name it in `[rules] etcd`")]
    NoRegion,
    /// A signal came before all was done.
    #[error("interrupted: {what} are left; the next `flowlog run` or `flowlog detach` goes on with them")]
    LeftBehind { what: String },
    #[error("the capture is in another network namespace, {netns}; nothing was ended")]
    OtherNetns {
        /// Which, and how to get there.
        netns: String,
    },
    #[error("target `{target}`: {source}")]
    Target {
        target: String,
        /// Why it cannot be used.
        source: BucketError,
    },
    #[error("cannot {action}: {source}")]
    System { action: &'static str, source: std::io::Error },
}

pub(super) fn system(action: &'static str) -> impl FnOnce(std::io::Error) -> AgentError {
    move |source| AgentError::System { action, source }
}

impl AgentError {
    /// Whether there is no room on the disk: that is waited for. Some libraries give the error in words only, which end with its
    /// number.
    pub(super) fn is_full_disk(&self) -> bool {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = cause {
            let number = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
            if number.is_some_and(|n| FULL.contains(&n)) {
                return true;
            }
            cause = error.source();
        }
        let words = self.to_string();
        FULL.iter().any(|n| words.contains(&format!("(os error {n})")))
    }
}

/// No space, no quota.
const FULL: [i32; 2] = [Errno::NOSPC.raw_os_error(), Errno::DQUOT.raw_os_error()];

impl From<CaptureError> for AgentError {
    /// Unwraps errors that came through the pipeline's port, so that an error of the kernel's side is shown as what it is.
    fn from(error: CaptureError) -> Self {
        match error {
            CaptureError::Journal(error) => Self::Journal(error),
            CaptureError::Spool(error) => Self::Spool(error),
            CaptureError::Source(SourceError::Interface(error) | SourceError::Kernel(error)) => {
                let error = match error.downcast::<KernelError>() {
                    Ok(error) => return Self::Kernel(*error),
                    Err(error) => error,
                };
                match error.downcast::<NetDevError>() {
                    Ok(error) => Self::NetDev(*error),
                    Err(other) => Self::Capture(CaptureError::Source(SourceError::Kernel(other))),
                }
            }
            other => Self::Capture(other),
        }
    }
}
