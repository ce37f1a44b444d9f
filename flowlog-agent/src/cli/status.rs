//! `flowlog status`.

use std::{fmt::Write as _, path::Path, process::ExitCode};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use flowlog_host::lock;
use flowlog_pipeline::reporter::FILE;
use serde_json::Value;

/// Form of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

pub(super) fn run(state_dir: &Path, output: Output) -> anyhow::Result<ExitCode> {
    let path = state_dir.join(FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => bail!("no agent has run on `{}`", state_dir.display()),
        Err(e) => return Err(e).with_context(|| path.display().to_string()),
    };
    let mut status: Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    let running = lock::holder(state_dir);
    status["running"] = running.is_some().into();
    if output == Output::Json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print!("{}", table(&status));
    }
    // 3 is what service managers expect of a status command when nothing runs.
    Ok(if running.is_some() { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

fn table(status: &Value) -> String {
    // Writing to a String cannot fail.
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let mut out = match status["running"].as_bool() {
        Some(true) => format!("running (process {})\n", status["pid"]),
        _ => "not running; as of its end:\n".to_owned(),
    };
    for (what, field) in [("trouble", "trouble"), ("spool is full", "spool_full")] {
        if let Some(words) = status[field].as_str() {
            let _ = writeln!(out, "{what}: {words}");
        }
    }
    let _ = writeln!(
        out,
        "{:<20} {:<14} {:<10} {:>12} {:>12} {:>8} {:>8}  LAST OBJECT, OR ERROR",
        "RULE", "INTERFACE", "STATE", "ACCEPTED", "REJECTED", "LOST", "WAITING"
    );
    for rule in status["rules"].as_array().into_iter().flatten() {
        let (delivery, capture) = (&rule["delivery"], &rule["capture"]);
        let captured = capture["state"] == "attached";
        let state = if captured { &delivery["state"] } else { &capture["state"] };
        let last = [&capture["why"], &delivery["error"], &delivery["last_key"]];
        let last = last.into_iter().find_map(Value::as_str).unwrap_or("-");
        let _ = writeln!(
            out,
            "{:<20} {:<14} {:<10} {:>12} {:>12} {:>8} {:>8}  {last}",
            text(&rule["rule"]),
            text(&rule["interface"]),
            text(state),
            rule["accepted_packets"].to_string(),
            rule["rejected_packets"].to_string(),
            rule["lost_packets"].to_string(),
            delivery["waiting"].to_string(),
        );
    }
    out
}
