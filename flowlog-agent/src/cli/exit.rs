//! Exit codes, and the words of an error, for every command.

use std::{error::Error, io::ErrorKind, process::ExitCode};

use arrow::error::ArrowError;
use flowlog_kernel::{KernelError, confine::ConfineError, tracer::TracerError};
use flowlog_pipeline::upload::BucketError;
use hyper::StatusCode;
use parquet::errors::ParquetError;
use rustix::io::Errno;

use super::client::ClientError;
use crate::{agent::AgentError, config::ConfigError, log::LogError};

/// Exit codes: those of `sysexits.h`, but for the first three.
pub(super) const EX_USAGE: u8 = 64;
const EX_DATAERR: u8 = 65;
const EX_NOINPUT: u8 = 66;
const EX_UNAVAILABLE: u8 = 69;
const EX_SOFTWARE: u8 = 70;
const EX_TEMPFAIL: u8 = 75;
const EX_NOPERM: u8 = 77;
const EX_CONFIG: u8 = 78;

/// What each says: in every help, and in docs/command-line.md.
const MEANINGS: [(u8, &str); 11] = [
    (0, "done"),
    (1, "`check` has found something missing, `rule validate` something wrong, or `read --balance` a difference"),
    (3, "`status`: no agent is running; what it says is as of its end"),
    (EX_USAGE, "the command line is wrong"),
    (EX_DATAERR, "refused: what is asked for is wrong, or could not be done; a file is none of flowlog's"),
    (EX_NOINPUT, "what is named is not there"),
    (EX_UNAVAILABLE, "no agent answers, or its stream has ended"),
    (EX_SOFTWARE, "the system refused, or flowlog is wrong"),
    (EX_TEMPFAIL, "not now: try again; or another agent has the state directory, or the pins"),
    (EX_NOPERM, "a permission is missing"),
    (EX_CONFIG, "the configuration is wrong, or does not fit this machine"),
];

/// The table of exit codes, for `--help`.
pub(super) fn help() -> String {
    let lines = MEANINGS.map(|(code, meaning)| format!("  {code:<3} {meaning}"));
    format!("Exit codes:\n{}", lines.join("\n"))
}

/// Why a command was not carried out, where no layer below says so.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// Something that was named is not there.
    #[error("{0}")]
    NotThere(String),
    /// What was given is wrong.
    #[error("{0}")]
    Wrong(String),
    /// A word of the command line is wrong.
    #[error("{0}")]
    Usage(String),
    /// No agent runs that could do it.
    #[error("{0}")]
    NoAgent(String),
    /// It may be otherwise later.
    #[error("{0}")]
    NotNow(String),
}

/// What went wrong, each cause once: some say the words of theirs themselves.
pub(super) fn words(error: &anyhow::Error) -> String {
    let mut all = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !all.contains(&cause) {
            all = if all.is_empty() { cause } else { format!("{all}: {cause}") };
        }
    }
    all
}

/// The system's word for a cause, if it is the system's: of the standard library, or of a system call.
fn kind(cause: &(dyn Error + 'static)) -> Option<ErrorKind> {
    let of_call = |errno: &Errno| std::io::Error::from(*errno).kind();
    let by_library = cause.downcast_ref().map(std::io::Error::kind);
    by_library.or_else(|| cause.downcast_ref().map(of_call))
}

pub(super) fn code(error: &anyhow::Error) -> ExitCode {
    // A missing permission is one wherever it shows.
    if error.chain().any(|c| kind(c) == Some(ErrorKind::PermissionDenied)) {
        return EX_NOPERM.into();
    }
    let known = error.chain().find_map(|c| {
        let by_type = [
            c.downcast_ref().map(of_agent),
            c.downcast_ref().map(of_kernel),
            c.downcast_ref().map(of_client),
            c.downcast_ref().map(of_tracer),
            c.downcast_ref().map(of_config),
            c.downcast_ref().map(|_: &LogError| EX_CONFIG),
            c.downcast_ref().map(of_command),
            c.downcast_ref().map(|_: &ParquetError| EX_DATAERR),
            c.downcast_ref().map(|_: &ArrowError| EX_DATAERR),
            c.downcast_ref().map(of_bucket),
        ];
        by_type.into_iter().flatten().next()
    });
    let by_kind = match error.chain().find_map(kind) {
        Some(ErrorKind::NotFound) => EX_NOINPUT,
        Some(ErrorKind::InvalidData) => EX_DATAERR,
        _ => EX_SOFTWARE,
    };
    known.unwrap_or(by_kind).into()
}

fn of_config(error: &ConfigError) -> u8 {
    match error {
        ConfigError::Flag(_) => EX_USAGE,
        ConfigError::Field(_) | ConfigError::Unreadable { .. } | ConfigError::File { .. } => EX_CONFIG,
    }
}

fn of_bucket(error: &BucketError) -> u8 {
    match error {
        BucketError::Denied { .. } => EX_NOPERM,
        BucketError::NoBucket(_) => EX_NOINPUT,
        // The configuration, or a flag in its place: as at a start.
        BucketError::Options(_) => EX_CONFIG,
        BucketError::Redirected { .. } | BucketError::Refused { .. } => EX_DATAERR,
        BucketError::Other { .. } => EX_TEMPFAIL,
        BucketError::Spool(_) => EX_SOFTWARE,
    }
}

fn of_command(error: &Failure) -> u8 {
    match error {
        Failure::NotThere(_) => EX_NOINPUT,
        Failure::Wrong(_) => EX_DATAERR,
        Failure::Usage(_) => EX_USAGE,
        Failure::NoAgent(_) => EX_UNAVAILABLE,
        Failure::NotNow(_) => EX_TEMPFAIL,
    }
}

fn of_client(error: &ClientError) -> u8 {
    match error {
        ClientError::Unreachable { .. } | ClientError::NoAnswer(_) | ClientError::Ended(_) => EX_UNAVAILABLE,
        ClientError::Refused { status, .. } => match *status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => EX_NOPERM,
            StatusCode::NOT_FOUND => EX_NOINPUT,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT | StatusCode::SERVICE_UNAVAILABLE => {
                EX_TEMPFAIL
            }
            status if status.is_client_error() => EX_DATAERR,
            _ => EX_SOFTWARE,
        },
        ClientError::Failed(_) => EX_DATAERR,
        ClientError::Late { .. } => EX_TEMPFAIL,
    }
}

fn of_tracer(error: &TracerError) -> u8 {
    match error {
        TracerError::Kernel(KernelError::Permission { .. }) => EX_NOPERM,
        TracerError::Expression(_) | TracerError::TooMany(_) | TracerError::Mixed => EX_USAGE,
        TracerError::NetDev(_) => EX_NOINPUT,
        TracerError::InUse { .. } => EX_TEMPFAIL,
        TracerError::Kernel(_) => EX_SOFTWARE,
    }
}

fn of_kernel(error: &KernelError) -> u8 {
    match error {
        KernelError::Permission { .. } => EX_NOPERM,
        KernelError::InUse { .. } => EX_TEMPFAIL,
        KernelError::Setting(_) => EX_CONFIG,
        KernelError::NoBtf { .. }
        | KernelError::MissingType { .. }
        | KernelError::Refused { .. }
        | KernelError::Attach { .. } => EX_SOFTWARE,
    }
}

fn of_agent(error: &AgentError) -> u8 {
    match error {
        AgentError::Kernel(error) => of_kernel(error),
        AgentError::Confine(ConfineError::CannotFollow { .. } | ConfineError::CannotAsk { .. })
        | AgentError::Target { source: BucketError::Denied { .. }, .. } => EX_NOPERM,
        AgentError::LeftBehind { .. } => EX_TEMPFAIL,
        AgentError::StateDir { source, .. } if source.kind() == ErrorKind::ResourceBusy => EX_TEMPFAIL,
        AgentError::NetDev(_)
        | AgentError::Target { .. }
        | AgentError::Memory(_)
        | AgentError::Spool(_)
        | AgentError::StateDir { .. }
        | AgentError::FlowLogStore(_)
        | AgentError::Api(_)
        | AgentError::File { .. }
        | AgentError::NoRegion
        | AgentError::OtherPins { .. }
        | AgentError::OtherNetns { .. } => EX_CONFIG,
        AgentError::Confine(_) | AgentError::Journal(_) | AgentError::Capture(_) | AgentError::System { .. } => {
            EX_SOFTWARE
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn a_missing_permission_is_one_whichever_library_says_so() {
        let of = |error: anyhow::Error| format!("{:?}", code(&error.context("cannot")));
        let denied = format!("{:?}", ExitCode::from(EX_NOPERM));
        assert_eq!(of(Errno::PERM.into()), denied);
        assert_eq!(of(Errno::ACCESS.into()), denied);
        assert_eq!(of(std::io::Error::from(ErrorKind::PermissionDenied).into()), denied);
        assert_eq!(of(Errno::SRCH.into()), format!("{:?}", ExitCode::from(EX_SOFTWARE)));
        assert_eq!(of(Failure::NotNow(String::new()).into()), format!("{:?}", ExitCode::from(EX_TEMPFAIL)));
    }

    #[test]
    fn the_table_of_exit_codes_in_the_documents_is_this_one() {
        let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/command-line.md");
        let text = std::fs::read_to_string(document).expect("the document");
        let rows: Vec<String> = MEANINGS.iter().map(|(code, meaning)| format!("| {code} | {meaning} |")).collect();
        assert!(text.contains(&rows.join("\n")), "docs/command-line.md must have these rows:\n{}", rows.join("\n"));
    }

    #[test]
    fn each_cause_is_said_once() {
        let refused = || std::io::Error::from(ErrorKind::ConnectionRefused);
        let words_of = |error: anyhow::Error| words(&error);
        assert_eq!(
            words_of(anyhow::Error::from(refused()).context("cannot reach it")),
            "cannot reach it: connection refused"
        );
        let said: anyhow::Result<()> = Err(refused()).with_context(|| format!("cannot reach it: {}", refused()));
        assert_eq!(words_of(said.expect_err("refused")), "cannot reach it: connection refused");
    }
}
