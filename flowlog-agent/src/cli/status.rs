//! `flowlog status`: how every rule is doing, from what the agent writes into its state directory.
//!
//! * [`look`]: what is counted at this moment, which the agent is asked for;
//! * [`people`]: all of it as a table;
//! * this file: the command, and its other forms.

mod look;
mod people;

use std::{path::Path, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::ValueEnum;
use flowlog_control::metrics;
use flowlog_host::{clock, lock};
use flowlog_model::{
    amount::parse_duration,
    figures::{Figures, Look},
    status::Status,
};
use flowlog_pipeline::reporter::FILE;
use people::Shown;
pub(super) use people::{hiding_words, progress_words, xdp_words};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::{args::StateArgs, exit::Failure, out, run::runtime};

/// Form of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// The forms of `flowlog status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StatusForm {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// For a collector that reads text files; what only a running agent knows is not in it.
    Prometheus,
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  flowlog status
  flowlog status --watch
  flowlog status --long
  flowlog status -o json
  flowlog status -o prometheus > /var/lib/node_exporter/flowlog.prom

Exit code 3: no agent is running; what is shown is as of its end.")]
pub(super) struct StatusArgs {
    #[command(flatten)]
    state: StateArgs,
    /// Form of the answer.
    #[arg(long, short, value_name = "FORM", default_value = "table")]
    output: StatusForm,
    /// Say all that is known of each: since when, the key of the last object, the books of the last window.
    #[arg(long, short)]
    long: bool,
    /// Show it again and again, until Ctrl-C.
    #[arg(long, short, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "2s", value_parser = pause)]
    watch: Option<Duration>,
}

/// Not more often: each look reads the counters of every interface.
const PAUSE_MIN: Duration = Duration::from_millis(200);

fn pause(text: &str) -> Result<Duration, String> {
    let pause = parse_duration(text).map_err(|how| how.to_string())?;
    if pause >= PAUSE_MIN { Ok(pause) } else { Err("use 200ms at least".to_owned()) }
}

pub(super) fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let StatusArgs { state: StateArgs { state_dir }, output, long, watch } = args;
    let mut before = None;
    let Some(pause) = *watch else { return say(state_dir, *output, *long, &mut before) };
    runtime()?.block_on(async {
        let [mut interrupt, mut terminate] = [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?];
        loop {
            if *output == StatusForm::Table {
                out::clear()?;
            }
            let code = say(state_dir, *output, *long, &mut before)?;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = interrupt.recv() => return Ok(code),
                _ = terminate.recv() => return Ok(code),
            }
        }
    })
}

/// Says it once. What was counted before is replaced by what is counted now.
fn say(state_dir: &Path, form: StatusForm, is_long: bool, before: &mut Option<Look>) -> anyhow::Result<ExitCode> {
    let is_running = lock::holder(state_dir).is_some();
    let mut status = read(state_dir)?;
    let look = if is_running && status.looks_when_asked && form != StatusForm::Prometheus {
        look::ask(state_dir)
    } else {
        None
    };
    if look.is_some() {
        // Whoever is asked brings it up to date.
        status = read(state_dir)?;
    }
    match form {
        StatusForm::Table => {
            let now_secs = clock::now().wall.secs();
            let (look, before) = (look.as_ref(), before.as_ref());
            out::text(&Shown { status: &status, is_running, look, before, now_secs, is_long }.text())?;
        }
        StatusForm::Json => out::json(&All { status, running: is_running, live: look.as_ref() })?,
        StatusForm::Prometheus => out::text(&metrics::classic_text(Figures { status, is_running, live: None }))?,
    }
    *before = look;
    // 3 is what service managers expect of a status command when nothing runs.
    Ok(if is_running { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

fn read(state_dir: &Path) -> anyhow::Result<Status> {
    let path = state_dir.join(FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).with_context(|| path.display().to_string()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            if let Some(pid) = lock::holder(state_dir) {
                let words = format!(
                    "an agent is starting on `{}` (process {pid}), and has not said anything yet",
                    state_dir.display()
                );
                return Err(Failure::NotNow(words).into());
            }
            Err(Failure::NotThere(format!("no agent has run on `{}`", state_dir.display())).into())
        }
        Err(e) => Err(e).with_context(|| path.display().to_string()),
    }
}

/// The agent's status, whether it is still there, and what it counts at this moment.
#[derive(Serialize)]
struct All<'a> {
    #[serde(flatten)]
    status: Status,
    running: bool,
    live: Option<&'a Look>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_is_starting_is_not_said_to_have_never_run() {
        let dir = tempfile::tempdir().expect("room");
        let words = || read(dir.path()).map(|_| ()).expect_err("nothing is written").to_string();
        assert!(words().starts_with("no agent has run"), "{}", words());
        let _lock = lock::take(dir.path()).expect("it is free");
        assert!(words().contains(&format!("is starting on `{}` (process ", dir.path().display())), "{}", words());
    }

    #[test]
    fn it_is_not_looked_more_often_than_is_good() {
        assert_eq!((pause("1"), pause("200ms")), (Ok(Duration::from_secs(1)), Ok(PAUSE_MIN)));
        assert!(pause("199ms").is_err() && pause("often").is_err());
    }
}
