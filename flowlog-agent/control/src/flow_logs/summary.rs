//! What a person wants to know about a flow log: what it is, how it is doing, and whether that is good.

use flowlog_model::status::{CaptureState, Counts, DeliveredObject, RouteState, RuleStatus, Status};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::flow_log::{FlowLog, State};

/// Good, not good yet, or bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// As it should be.
    Green,
    /// Waits for something, or something was lost.
    Yellow,
    /// Somebody must do something.
    Red,
}

/// See the module's head.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = FlowLogSummary)]
pub struct Summary {
    #[serde(flatten)]
    pub flow_log: FlowLog,
    pub mark: Mark,
    /// Why, if it is not green.
    pub why: Vec<String>,
    /// What is captured of each of its interfaces, and delivered.
    pub captures: Vec<RuleStatus>,
    /// Seconds since the oldest object was made that is not delivered; 0 if there is none.
    pub lag_secs: i64,
}

impl Summary {
    /// Since when all of it is being captured, if it is; Unix seconds.
    #[must_use]
    pub fn since_secs(&self) -> Option<i64> {
        let all: Option<Vec<i64>> = self.captures.iter().map(|c| c.since_secs).collect();
        all.and_then(|all| all.into_iter().max())
    }

    /// How many of its interfaces are being captured.
    #[must_use]
    pub fn attached(&self) -> usize {
        self.captures.iter().filter(|c| matches!(c.capture, CaptureState::Attached { .. })).count()
    }

    /// The object that was delivered last.
    #[must_use]
    pub fn last_object(&self) -> Option<&DeliveredObject> {
        self.captures.iter().filter_map(|c| c.delivery.last_object.as_ref()).max_by_key(|o| o.at_secs)
    }

    /// Sums a flow log up, as it is doing at this time. `is_there`: the inventory has its parent.
    #[must_use]
    pub(crate) fn with(flow_log: FlowLog, captures: Vec<RuleStatus>, is_there: bool, now_secs: i64) -> Self {
        summarise(flow_log, captures, is_there, now_secs)
    }

    /// As [`with`](Self::with), of a status with the captures of all.
    #[must_use]
    pub(crate) fn of(flow_log: FlowLog, status: &Status, is_there: bool, now_secs: i64) -> Self {
        let captures = status.rules.iter().filter(|r| r.rule_id == Some(flow_log.id)).cloned().collect();
        summarise(flow_log, captures, is_there, now_secs)
    }
}

fn summarise(flow_log: FlowLog, captures: Vec<RuleStatus>, is_there: bool, now_secs: i64) -> Summary {
    let mut why: Vec<(Mark, String)> = flow_log.problems.iter().map(|p| (Mark::Red, p.to_string())).collect();
    match flow_log.state {
        State::Draft if why.is_empty() => why.push((Mark::Yellow, "not validated yet".to_owned())),
        State::Provisioning => why.push((Mark::Yellow, "being activated".to_owned())),
        State::Deleting => why.push((Mark::Yellow, "being ended".to_owned())),
        State::Draft | State::Validated | State::Active => {}
    }
    if flow_log.state.captures() && !is_there {
        let words = format!("{} {} is not in the inventory any more", flow_log.parent.kind, flow_log.parent.id);
        why.push((Mark::Red, words));
    }
    if flow_log.state.captures() {
        why.extend(captures.iter().flat_map(complaints));
    }
    Summary {
        mark: why.iter().map(|(mark, _)| *mark).max().unwrap_or(Mark::Green),
        why: why.into_iter().map(|(_, words)| words).collect(),
        lag_secs: captures.iter().map(|c| c.lag_secs(now_secs)).max().unwrap_or(0),
        flow_log,
        captures,
    }
}

/// What is not as it should be with one interface.
fn complaints(c: &RuleStatus) -> Vec<(Mark, String)> {
    let mut all = Vec::new();
    if !c.also_on.is_empty() {
        let node = c.node.as_deref().unwrap_or_default();
        let words = format!(
            "its NIC is on node {node}, and on {} as well: each captures what passes there",
            c.also_on.join(" and ")
        );
        all.push((Mark::Yellow, words));
    }
    all.extend(c.not_understood.iter().map(|why| (Mark::Red, why.clone())));
    match &c.capture {
        CaptureState::Attached { .. } => {}
        CaptureState::Waiting { why } => all.push((Mark::Yellow, why.clone())),
        CaptureState::Trouble { why } => all.push((Mark::Red, why.clone())),
        CaptureState::Unknown => all.push((Mark::Yellow, "not looked for yet".to_owned())),
    }
    match &c.delivery.state {
        RouteState::Idle | RouteState::Delivering => {}
        RouteState::Retrying { error, tries, .. } => all.push((Mark::Yellow, format!("{error} ({tries} tries)"))),
        RouteState::Degraded { error, tries, .. } | RouteState::Blocked { error, tries, .. } => {
            all.push((Mark::Red, format!("{error} ({tries} tries)")));
        }
    }
    if c.delivery.quarantined > 0 {
        let words = "put aside, and will not be delivered: see `quarantine` in the state directory";
        all.push((Mark::Yellow, format!("{} objects were {words}", c.delivery.quarantined)));
    }
    let Counts { windows_put_aside: aside, windows_without_object: without, .. } = c.counts;
    if aside > 0 {
        all.push((Mark::Red, format!("{aside} windows could not be spooled; see `quarantine` in the state directory")));
    }
    if without > 0 {
        all.push((
            Mark::Red,
            format!("{without} windows could not be encoded, and left no object; see the agent's log"),
        ));
    }
    if c.counts.lost_packets > 0 {
        let words = "are in no row (SKIPDATA rows say why)";
        all.push((Mark::Yellow, format!("{} packets {words}", c.counts.lost_packets)));
    }
    all
}

#[cfg(test)]
mod tests {
    use flowlog_model::rule::InvalidField;

    use super::*;
    use crate::flow_logs::flow_log::tests::sample;

    #[test]
    fn the_mark_is_that_of_the_worst_there_is() {
        let attached = CaptureState::Attached { interface: "tap0".to_owned(), ifindex: 5, netns: None };
        let capture = |capture| RuleStatus { capture, ..RuleStatus::default() };
        let mark = |state, captures: Vec<RuleStatus>| {
            let summary = summarise(FlowLog { state, ..sample() }, captures, true, 100);
            (summary.mark, summary.why.len())
        };
        assert_eq!(mark(State::Draft, vec![]), (Mark::Yellow, 1));
        assert_eq!(mark(State::Validated, vec![]), (Mark::Green, 0));
        assert_eq!(mark(State::Active, vec![capture(attached.clone())]), (Mark::Green, 0));
        let waiting = capture(CaptureState::Waiting { why: "waiting".to_owned() });
        assert_eq!(mark(State::Active, vec![capture(attached.clone()), waiting.clone()]), (Mark::Yellow, 1));
        let mut degraded = capture(attached);
        degraded.delivery.state = RouteState::Degraded { since_secs: 1, tries: 3, error: "no bucket".to_owned() };
        degraded.delivery.oldest_secs = Some(40);
        assert_eq!(mark(State::Active, vec![waiting, degraded.clone()]), (Mark::Red, 2));
        assert_eq!(summarise(sample(), vec![degraded], true, 100).lag_secs, 60);
        let problems = vec![InvalidField::new("name", "a/b", "may not")];
        let active = FlowLog { state: State::Active, ..sample() };
        assert_eq!(summarise(active, vec![], false, 0).mark, Mark::Red, "its NIC has left the inventory");
        assert_eq!(summarise(FlowLog { problems, ..sample() }, vec![], true, 0).mark, Mark::Red);
    }
}
