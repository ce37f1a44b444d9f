//! `flowlog status`.

use std::{fmt::Write as _, path::Path, process::ExitCode};

use anyhow::Context as _;
use clap::ValueEnum;
use flowlog_control::{api::model::date, metrics};
use flowlog_host::{clock, lock};
use flowlog_model::{
    amount::{bytes, duration},
    figures::Figures,
    hiding::Hiding,
    status::{CaptureState, Counts, Leaving, RouteState, RuleStatus, Status, XdpStatus},
    xdp::{XdpLevel, XdpView, words},
};
use flowlog_pipeline::reporter::FILE;
use serde::Serialize;

use super::{exit::Failure, out};

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
pub(super) enum StatusForm {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// For a collector that reads text files; what only a running agent knows is not in it.
    Prometheus,
}

pub(super) fn run(state_dir: &Path, form: StatusForm) -> anyhow::Result<ExitCode> {
    let path = state_dir.join(FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Failure::NotThere(format!("no agent has run on `{}`", state_dir.display())).into());
        }
        Err(e) => return Err(e).with_context(|| path.display().to_string()),
    };
    let status: Status = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    let running = lock::holder(state_dir).is_some();
    match form {
        StatusForm::Table => out::text(&table(&status, running, clock::now().wall.secs()))?,
        StatusForm::Json => out::json(&Shown { status, running })?,
        StatusForm::Prometheus => out::text(&metrics::text(Figures { status, is_running: running, live: None }))?,
    }
    // 3 is what service managers expect of a status command when nothing runs.
    Ok(if running { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

/// The agent's status, and whether it is still there.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    status: Status,
    running: bool,
}

fn table(status: &Status, running: bool, now_secs: i64) -> String {
    let mut out = if running {
        format!("running (process {})\n", status.pid)
    } else {
        "not running; as of its end:\n".to_owned()
    };
    // Writing to a String cannot fail.
    for (what, words) in [("trouble", &status.trouble), ("spool is full", &status.spool_full)] {
        if let Some(words) = words {
            let _ = writeln!(out, "{what}: {words}");
        }
    }
    let sum = |count: fn(&RuleStatus) -> u64| status.rules.iter().map(count).sum::<u64>();
    for (what, windows) in [
        ("windows put aside in `quarantine`, because they could not be spooled", sum(|r| r.counts.windows_put_aside)),
        ("windows that could not be encoded", sum(|r| r.counts.windows_without_object)),
        ("objects are in `quarantine` of the state directory: somebody must look at them", status.quarantined as u64),
    ] {
        if windows > 0 {
            let _ = writeln!(out, "{windows} {what}");
        }
    }
    let _ = writeln!(
        out,
        "{:<20} {:<14} {:<10} {:>12} {:>12} {:>8} {:>8}  LAST OBJECT, OR ERROR",
        "RULE", "INTERFACE", "STATE", "ACCEPTED", "REJECTED", "LOST", "WAITING"
    );
    for of in &status.rules {
        let RuleStatus { rule, interface, capture, counts, delivery, xdp, hiding, .. } = of;
        let attached = matches!(capture, CaptureState::Attached { .. });
        let (state, trouble) = match &delivery.state {
            RouteState::Idle if attached => ("capturing".to_owned(), None),
            route if attached => (tag(route), route.error()),
            _ => (tag(capture), capture.why()),
        };
        let last = trouble.or(delivery.last_object.as_ref().map(|o| o.key.as_str())).unwrap_or("-");
        let Counts { accepted_packets, rejected_packets, lost_packets, .. } = counts;
        let _ = writeln!(
            out,
            "{rule:<20} {interface:<14} {state:<10} {accepted_packets:>12} {rejected_packets:>12} {lost_packets:>8} {:>8}  {last}",
            delivery.waiting,
        );
        for words in progress_words(of, now_secs) {
            let _ = writeln!(out, "{:<20} {words}", "");
        }
        if let Some(words) = xdp_words(xdp, counts) {
            let _ = writeln!(out, "{:<20} {words}", "");
        }
        for words in hiding_words(hiding) {
            let _ = writeln!(out, "{:<20} {words}", "");
        }
    }
    for Leaving { folder, interface_id, delivery, .. } in &status.leaving {
        let last = delivery.state.error().unwrap_or("has ended; the rest is being delivered");
        let _ = writeln!(
            out,
            "{folder:<20} {interface_id:<14} {:<10} {:>12} {:>12} {:>8} {:>8}  {last}",
            "leaving", "-", "-", "-", delivery.waiting,
        );
    }
    out
}

/// Since when it is captured, what was delivered last, what waits, and what the last window came to.
pub(super) fn progress_words(of: &RuleStatus, now_secs: i64) -> Vec<String> {
    let mut parts: Vec<String> =
        of.since_secs.map(|secs| format!("capturing since {}", date(secs))).into_iter().collect();
    parts.push(match &of.delivery.last_object {
        Some(last) => {
            let ago = duration(now_secs.saturating_sub(last.at_secs).max(0));
            format!("last object {ago} ago, {}", bytes(last.bytes))
        }
        None => "no object yet".to_owned(),
    });
    match of.lag_secs(now_secs) {
        0 => {}
        lag => parts.push(format!("the oldest object waits for {}", duration(lag))),
    }
    let window = of.last_window.map(|books| {
        let [start, end] = [books.start_secs, books.end_secs].map(date);
        format!("window {start} to {end}: {books}")
    });
    [Some(parts.join("; ")), window].into_iter().flatten().collect()
}

/// What there is to say about other people's XDP programs; `None`: there are none.
pub(super) fn xdp_words(xdp: &XdpStatus, counts: &Counts) -> Option<String> {
    let Counts { xdp_dropped_packets: dropped, xdp_forwarded_packets: forwarded, .. } = counts;
    if xdp.programs.is_empty() && (*dropped, *forwarded) == (0, 0) {
        return None;
    }
    let programs = match words(&xdp.programs) {
        none if none.is_empty() => "gone".to_owned(),
        programs => programs,
    };
    let uncounted = xdp.uncounted.as_ref().map(|why| format!("; {why}")).unwrap_or_default();
    let view = match &xdp.view {
        XdpView { level: XdpLevel::Counters, why: None } => String::new(),
        XdpView { level, why: None } => format!("; seen by `{}`", level.as_str()),
        XdpView { level, why: Some(why) } => format!("; seen by `{}` only: {why}", level.as_str()),
    };
    Some(format!("xdp of somebody else: {programs}; {dropped} packets dropped, {forwarded} forwarded{uncounted}{view}"))
}

/// What there is to say about what else may keep packets from the hooks.
pub(super) fn hiding_words(hiding: &Hiding) -> Vec<String> {
    let (front, offload) = (hiding.front_words(), hiding.offload_words());
    let mut all = Vec::new();
    if !front.is_empty() {
        all.push(format!("in front of our hooks: {front}"));
    }
    if !offload.is_empty() {
        all.push(format!("past our hooks: {offload}"));
    }
    all
}

/// The word for a state, as it is in JSON.
fn tag(state: &impl Serialize) -> String {
    let json = serde_json::to_value(state).unwrap_or_default();
    json["state"].as_str().unwrap_or_default().to_owned()
}
