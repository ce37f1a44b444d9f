//! Logs, of the commands that capture: how much is said, in which form, and how often the same.
//!
//! * [`journal`]: as entries of the system's journal, with fields;
//! * [`repeats`]: the same message again and again is said a few times, and then counted;
//! * this file: which of it is wanted.
//!
//! What commands print for people does not belong here (`cli/out.rs`).

mod journal;
mod repeats;

use std::{
    ffi::OsString,
    io::{IsTerminal, stderr},
    sync::OnceLock,
};

use clap::{ArgAction, Args, ValueEnum};
use flowlog_model::text::printable;
use journal::Journal;
pub(crate) use repeats::tell as tell_repeats;
use tracing_subscriber::{
    EnvFilter, Layer, Registry, field::MakeExt as _, filter::LevelFilter, fmt::format::debug_fn,
    layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

/// What has directives for parts of the agent.
const VARIABLE: &str = "FLOWLOG_LOG";

/// What is said if nobody says how much. What the library says of a request that it tries again names neither flow log nor store; if the second
/// try fails as well, the uploader says why, with both.
const LEVELS_DEFAULT: &str = "info,object_store=warn";

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[error("{VARIABLE} `{value}`: {problem}; write a level (`debug`), or levels of parts (`info,flowlog_pipeline=debug`)")]
pub(crate) struct LogError {
    value: String,
    problem: String,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum LogForm {
    /// The journal's where standard error is the journal, else text.
    #[default]
    Auto,
    /// A line for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Logs go to standard error.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Logs")]
pub(crate) struct LogArgs {
    /// Form of the log on standard error.
    #[arg(long, value_name = "FORM", default_value = "auto")]
    log_format: LogForm,
    /// Say more: -v debug, -vv everything. `FLOWLOG_LOG` chooses levels for parts: `info,flowlog_pipeline=debug`.
    #[arg(long, short, action = ArgAction::Count)]
    verbose: u8,
    /// Say less: -q warnings and errors, -qq errors.
    #[arg(long, short, action = ArgAction::Count, conflicts_with = "verbose")]
    quiet: u8,
}

impl LogArgs {
    /// The level that flags say; `None`: they say nothing.
    fn level(&self) -> Option<&'static str> {
        match (self.verbose, self.quiet) {
            (0, 0) => None,
            (1, _) => Some("debug"),
            (2.., _) => Some("trace"),
            (0, 1) => Some("warn"),
            (0, _) => Some("error"),
        }
    }

    fn filter(&self) -> Result<EnvFilter, LogError> {
        let said = std::env::var(VARIABLE).ok().filter(|value| !value.trim().is_empty());
        match (self.level(), said) {
            // A flag is nearer than the environment.
            (Some(level), _) => Ok(EnvFilter::new(level)),
            (None, None) => Ok(EnvFilter::new(LEVELS_DEFAULT)),
            (None, Some(value)) => directives(&value).map_err(|problem| LogError { value, problem }),
        }
    }

    /// Logs from now on.
    ///
    /// # Errors
    /// If the environment's levels cannot be understood.
    pub(crate) fn start(&self) -> Result<(), LogError> {
        let _ = FORM.set(self.log_format);
        let filter = self.filter()?;
        let journal = (self.log_format == LogForm::Auto).then(Journal::of_stderr).flatten();
        let output: Box<dyn Layer<Registry> + Send + Sync> = match (self.log_format, journal) {
            (LogForm::Json, _) => Box::new(json()),
            (_, Some(journal)) => {
                let _ = JOURNALED.set(());
                Box::new(journal)
            }
            (_, None) => Box::new(text()),
        };
        tracing_subscriber::registry().with(repeats::Few(output).with_filter(filter)).init();
        Ok(())
    }
}

/// The form of this process's log, once it has one.
static FORM: OnceLock<LogForm> = OnceLock::new();

/// Says why a command ends, where whoever reads its log reads entries: there it is one. `false`: it is to be said as everywhere else.
pub(crate) fn last_words(words: &str) -> bool {
    match FORM.get() {
        // Whatever the levels are: that nothing is said of it would be no answer.
        Some(LogForm::Json) => {
            tracing::subscriber::with_default(Registry::default().with(json()), || tracing::error!("{words}"));
            true
        }
        Some(LogForm::Auto) if JOURNALED.get().is_some() && tracing::enabled!(tracing::Level::ERROR) => {
            tracing::error!("{words}");
            true
        }
        _ => false,
    }
}

/// Set where the log is the system's journal.
static JOURNALED: OnceLock<()> = OnceLock::new();

/// Levels, alone or of parts. A word alone that is no level would be a part's name to the library: nothing but that part would be heard.
fn directives(value: &str) -> Result<EnvFilter, String> {
    let words = value.split(',').map(str::trim).filter(|word| !word.is_empty());
    let mut alone = words.filter(|word| !word.contains(['=', '[']));
    if let Some(word) = alone.find(|word| word.parse::<LevelFilter>().is_err()) {
        return Err(format!("`{word}` is no level"));
    }
    EnvFilter::try_new(value).map_err(|error| error.to_string())
}

/// Whether a stream takes colours, and nobody asked for none (no-color.org); a dumb terminal would show their codes (terminfo(5)).
pub(crate) fn takes_colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && wants_colours(std::env::var_os("NO_COLOR"), std::env::var_os("TERM"))
}

fn wants_colours(no_color: Option<OsString>, term: Option<OsString>) -> bool {
    no_color.is_none_or(|value| value.is_empty()) && term.is_none_or(|name| name != "dumb")
}

/// Lines for people.
fn text() -> impl Layer<Registry> + Send + Sync {
    // What others say (names, stores) can do nothing to a terminal, and no line can be made to look like two.
    let fields = debug_fn(|writer, field, value| {
        let words = format!("{value:?}");
        let words = printable(&words);
        if field.name() == "message" { write!(writer, "{words}") } else { write!(writer, "{}={words}", field.name()) }
    });
    tracing_subscriber::fmt::layer()
        .fmt_fields(fields.delimited(" "))
        // It would say on standard error that standard error is closed, and panic.
        .log_internal_errors(false)
        .with_writer(stderr)
        .with_ansi(takes_colours(&stderr()))
        .with_target(false)
}

/// Lines for programs: fields are members, in which nothing is left to escape.
fn json() -> impl Layer<Registry> + Send + Sync {
    tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .log_internal_errors(false)
        .with_writer(stderr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_alone_is_a_level_or_refused() {
        for good in ["debug", "WARN", "off", "info,flowlog_pipeline=debug", "flowlog_kernel=trace,error"] {
            assert!(directives(good).is_ok(), "{good}");
        }
        for bad in ["bogus", "info,flowlog_pipeline", "flowlog=loud"] {
            assert!(directives(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nobody_gets_colours_who_cannot_show_them_or_wants_none() {
        let wants = |no_color: Option<&str>, term: Option<&str>| {
            wants_colours(no_color.map(OsString::from), term.map(OsString::from))
        };
        assert!(wants(None, Some("xterm-256color")) && wants(Some(""), Some("xterm")) && wants(None, None));
        assert!(!wants(Some("1"), Some("xterm")) && !wants(None, Some("dumb")));
    }

    #[test]
    fn flags_are_nearer_than_the_default() {
        let level = |verbose, quiet| LogArgs { verbose, quiet, ..LogArgs::default() }.level();
        assert_eq!(
            (level(0, 0), level(1, 0), level(2, 0), level(9, 0)),
            (None, Some("debug"), Some("trace"), Some("trace"))
        );
        assert_eq!((level(0, 1), level(0, 2), level(0, 9)), (Some("warn"), Some("error"), Some("error")));
    }
}
