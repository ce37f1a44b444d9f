//! Standard output and standard error, for all commands. What is shown here of others' words can do nothing to a terminal, and whoever
//! reads it may stop reading.

use std::{
    fmt,
    io::{self, IsTerminal as _, Write as _},
};

use flowlog_model::text::printable;
use serde::Serialize;
use serde_json::Value;

/// Nobody reads any more (`flowlog rule list | head`): there is nothing left to do, and nothing wrong.
#[derive(Debug, thiserror::Error)]
#[error("standard output is closed")]
pub(super) struct Closed;

/// Prints lines of ours.
pub(super) fn text(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Closed.into()),
        done => Ok(done?),
    }
}

/// Prints one line; see [`say`].
pub(super) fn line(words: fmt::Arguments<'_>) -> anyhow::Result<()> {
    text(&format!("{words}\n"))
}

/// As `println!`, for a reader who may go.
macro_rules! say {
    ($($words:tt)*) => { $crate::cli::out::line(format_args!($($words)*)) };
}
pub(super) use say;

/// Prints JSON for programs, as it is.
pub(super) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    text(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// Begins a screen anew, where there is one; elsewhere an empty line is between what is said again and again.
pub(super) fn clear() -> anyhow::Result<()> {
    // ECMA-48: erase the page, and go to its beginning.
    text(if io::stdout().is_terminal() { "\x1b[2J\x1b[H" } else { "\n" })
}

/// An answer for people: every string in it can be printed.
pub(super) fn for_people(value: Value) -> Value {
    match value {
        Value::String(s) => Value::String(printable(&s).into_owned()),
        Value::Array(all) => all.into_iter().map(for_people).collect(),
        Value::Object(all) => all.into_iter().map(|(key, value)| (key, for_people(value))).collect(),
        other => other,
    }
}

/// Says something beside what was asked for, on one line of standard error.
pub(super) fn note(words: &str) {
    // If nobody listens, nobody misses it.
    let _ = writeln!(io::stderr(), "flowlog: {}", printable(words));
}

/// Says what went wrong, on one line of standard error.
pub(super) fn error(words: &str) {
    // If nobody listens, the exit code says it.
    let _ = writeln!(io::stderr(), "flowlog: {}", printable(words));
}
