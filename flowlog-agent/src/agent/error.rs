//! What can go wrong before or while capturing.

use std::path::PathBuf;

use flowlog_control::{api::serve::ServeError, flow_logs::store::RulesError};
use flowlog_kernel::{KernelError, netdev::NetDevError};
use flowlog_pipeline::{
    error::CaptureError, journal::JournalError, source::SourceError, spool::SpoolError, upload::BucketError,
};

/// See the module's head.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    NetDev(#[from] NetDevError),
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
    Rules(#[from] RulesError),
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

impl From<CaptureError> for AgentError {
    /// Unwraps errors that came through the port, so that an error of the kernel's side is shown as what it is.
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
