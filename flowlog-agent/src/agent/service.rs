//! What the service manager is told: `sd_notify(3)`. Where there is none, nothing is said.
//!
//! [`Service::alive`] is called by the main loop alone, so that a loop that hangs is seen, whatever other threads do.

use std::{borrow::Cow, time::Duration};

use flowlog_model::{MonoNs, Now, status::Status, text::printable};
use sd_notify::NotifyState;

/// Time between two signs of life: the main loop's own tick. A `WatchdogSec=` is to be several times as long.
const SIGN_EVERY_NS: u64 = 2_000_000_000;
/// So much longer a start may take, from each time on that it says why it waits.
const START_LONGER: Duration = Duration::from_secs(30);
/// What READY says; the main loop has more to say a moment later.
const CAPTURING: &str = "capturing";

/// See the module's head.
pub(super) struct Service {
    /// There is one that wants signs of life.
    is_watched: bool,
    last_sign: MonoNs,
    /// The status that was said last.
    said: String,
    /// Why the last reload was refused, if it was.
    refused: Option<String>,
}

#[allow(clippy::unused_self, reason = "only who has the service may speak for the agent")]
impl Service {
    pub(super) fn new() -> Self {
        Self {
            is_watched: sd_notify::watchdog_enabled().is_some(),
            last_sign: MonoNs(0),
            said: String::new(),
            refused: None,
        }
    }

    /// The start waits for something; it does not hang.
    pub(super) fn start_waits(&self, why: &str) {
        let longer = u32::try_from(START_LONGER.as_micros()).unwrap_or(u32::MAX);
        tell(&[NotifyState::ExtendTimeoutUsec(longer), NotifyState::Status(why)]);
    }

    /// The capture stands.
    pub(super) fn ready(&self) {
        tell(&[NotifyState::Ready, NotifyState::Status(CAPTURING)]);
    }

    /// A region's API is served.
    pub(super) fn serving(&self) {
        tracing::info!("serving the region");
        tell(&[NotifyState::Ready, NotifyState::Status("serving the region")]);
    }

    /// The main loop has come here.
    pub(super) fn alive(&mut self, now: Now) {
        if self.is_watched && now.mono.0 >= self.last_sign.0 + SIGN_EVERY_NS {
            self.last_sign = now.mono;
            tell(&[NotifyState::Watchdog]);
        }
    }

    /// How everything is doing, if that is anything new.
    pub(super) fn status(&mut self, status: &Status, now: Now) {
        let mut words = words(status, now.wall.secs());
        if let Some(why) = &self.refused {
            words = format!("{words}; the last reload was refused: {why}");
        }
        if words != self.said {
            tell(&[NotifyState::Status(&words)]);
            self.said = words;
        }
    }

    /// Files are being read again.
    pub(super) fn reloading(&self, now: Now) {
        tell(&[NotifyState::Reloading, NotifyState::MonotonicUsec(i128::from(now.mono.0 / 1_000))]);
    }

    /// They have been; what has changed, or why nothing has.
    pub(super) fn reloaded(&mut self, outcome: Result<String, &str>) {
        let words = match &outcome {
            Ok(changed) if changed.is_empty() => "reloaded: nothing has changed".to_owned(),
            Ok(changed) => format!("reloaded: {changed}"),
            Err(why) => format!("the reload was refused: {why}"),
        };
        self.refused = outcome.err().map(|why| one_line(why).into_owned());
        tell(&[NotifyState::Ready, NotifyState::Status(&one_line(&words))]);
    }

    pub(super) fn stopping(&self, words: &str) {
        tell(&[NotifyState::Stopping, NotifyState::Status(words)]);
    }
}

fn one_line(words: &str) -> Cow<'_, str> {
    printable(words)
}

/// Sends it. That nobody takes it is no reason to stop.
fn tell(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "cannot tell the service manager");
    }
}

/// A status in one line.
fn words(status: &Status, now_secs: i64) -> String {
    let of = |n: usize, one: &str| if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") };
    let captured = status.rules.iter().filter(|r| r.capture.why().is_none()).count();
    let mut names: Vec<_> = status.rules.iter().map(|r| (&r.rule, r.rule_id)).collect();
    names.sort_unstable();
    names.dedup();
    let mut parts = vec![format!("{} on {}", of(names.len(), "flow log"), of(captured, "interface"))];
    if captured < status.rules.len() {
        parts[0] = format!("{}, {} not captured", parts[0], status.rules.len() - captured);
    }
    let waiting: usize = status.deliveries().map(|d| d.waiting).sum();
    parts.push(match status.deliveries().filter_map(|d| d.oldest_secs).min() {
        Some(oldest) if waiting > 0 => {
            format!("{}, the oldest for {} s", of(waiting, "undelivered object"), (now_secs - oldest).max(0))
        }
        _ => "all is delivered".to_owned(),
    });
    parts.extend(status.trouble.iter().chain(&status.spool_full).cloned());
    if status.quarantined > 0 {
        parts.push(format!("{} in quarantine", of(status.quarantined, "object")));
    }
    parts.join("; ")
}

/// For the test that shows that a hung main loop is seen.
#[cfg(feature = "faults")]
pub(super) fn try_to_hang() {
    if flowlog_host::fault::io("hang").is_err() {
        tracing::info!("the main loop hangs");
        loop {
            std::thread::park();
        }
    }
}

#[cfg(test)]
mod tests {
    use flowlog_model::status::{CaptureState, RouteStatus, RuleStatus};

    use super::*;

    #[test]
    fn a_status_is_one_line_with_flow_logs_interfaces_and_lag() {
        let rule = |rule: &str, waiting, oldest_secs| RuleStatus {
            rule: rule.to_owned(),
            delivery: RouteStatus { waiting, oldest_secs, ..RouteStatus::default() },
            ..RuleStatus::default()
        };
        let mut status = Status { rules: vec![rule("web", 0, None)], ..Status::default() };
        assert_eq!(words(&status, 100), "1 flow log on 1 interface; all is delivered");
        status.rules.push(rule("web", 2, Some(70)));
        status.rules.push(rule("db", 1, Some(88)));
        status.rules[2].capture = CaptureState::Waiting { why: "there is no eth9".to_owned() };
        assert_eq!(
            words(&status, 100),
            "2 flow logs on 2 interfaces, 1 not captured; 3 undelivered objects, the oldest for 30 s"
        );
        status.trouble = Some("no room".to_owned());
        status.quarantined = 1;
        assert!(words(&status, 60).ends_with("the oldest for 0 s; no room; 1 object in quarantine"));
    }
}
