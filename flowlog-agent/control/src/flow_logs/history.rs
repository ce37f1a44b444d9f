//! What flow logs have counted in the last hours, minute by minute: for a chart. In memory, from what the agent says of them anyway.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use flowlog_model::{
    FlowLogId,
    status::{Counts, Status},
};
use serde::Serialize;

/// Minutes that are kept: six hours. With 16 bytes each, 512 interfaces take 3 MB at most.
const MINUTES_KEPT: u32 = 360;
/// Seconds in a minute.
const MINUTE_SECS: u32 = 60;

/// Packets that were counted in windows that ended in a minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Minute {
    /// Minutes since 1970.
    at: u32,
    accepted: u32,
    rejected: u32,
    lost: u32,
}

/// Of one flow log.
#[derive(Default)]
struct Kept {
    /// When it was first seen, in minutes since 1970.
    since: u32,
    /// What was said last of each of its interfaces.
    said: BTreeMap<String, Counts>,
    /// The oldest first; minutes without packets are left out.
    minutes: VecDeque<Minute>,
}

/// See the module's head.
#[derive(Default)]
pub(crate) struct History(Mutex<BTreeMap<FlowLogId, Kept>>);

/// Packets a second, in steps of one window, of a minute at least.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Traffic {
    /// Where each step begins, in seconds since 1970.
    pub at_secs: Vec<i64>,
    pub accepted: Vec<f64>,
    pub rejected: Vec<f64>,
    pub lost: Vec<f64>,
}

fn minute_of(now_secs: i64) -> u32 {
    u32::try_from(now_secs.div_euclid(MINUTE_SECS.into())).unwrap_or_default()
}

/// What was added to a count. One that has gone back began anew with the agent.
fn added(now: u64, before: u64) -> u32 {
    u32::try_from(now.checked_sub(before).unwrap_or(now)).unwrap_or(u32::MAX)
}

impl History {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<FlowLogId, Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what the agent says now. What it does not speak of any more is forgotten.
    pub(super) fn observe(&self, status: &Status, now_secs: i64) {
        let minute = minute_of(now_secs);
        let mut all = self.lock();
        // A region's server is told of a hundred thousand.
        let spoken_of: BTreeSet<FlowLogId> = status.rules.iter().filter_map(|r| r.rule_id).collect();
        all.retain(|id, _| spoken_of.contains(id));
        for rule in &status.rules {
            let Some(id) = rule.rule_id else { continue };
            let kept = all.entry(id).or_insert_with(|| Kept { since: minute, ..Kept::default() });
            kept.add(&rule.interface_id, rule.counts, minute);
        }
    }

    /// What a flow log has counted, up to now.
    pub(super) fn traffic(&self, id: FlowLogId, window_secs: u32, now_secs: i64) -> Traffic {
        self.lock().get(&id).map(|kept| kept.traffic(window_secs, minute_of(now_secs))).unwrap_or_default()
    }
}

impl Kept {
    fn add(&mut self, interface_id: &str, now: Counts, minute: u32) {
        let before = self.said.insert(interface_id.to_owned(), now).unwrap_or_default();
        let accepted = added(now.accepted_packets, before.accepted_packets);
        let rejected = added(now.rejected_packets, before.rejected_packets);
        let lost = added(now.lost_packets, before.lost_packets);
        if (accepted, rejected, lost) == (0, 0, 0) {
            return;
        }
        if self.minutes.back().is_none_or(|last| last.at != minute) {
            self.minutes.push_back(Minute { at: minute, ..Minute::default() });
        }
        if let Some(last) = self.minutes.back_mut() {
            last.accepted = last.accepted.saturating_add(accepted);
            last.rejected = last.rejected.saturating_add(rejected);
            last.lost = last.lost.saturating_add(lost);
        }
        while self.minutes.front().is_some_and(|first| first.at + MINUTES_KEPT <= minute) {
            self.minutes.pop_front();
        }
    }

    /// A window is told of when it is over: so what was said in a minute was counted in the window before.
    fn traffic(&self, window_secs: u32, now: u32) -> Traffic {
        let step = window_secs.div_ceil(MINUTE_SECS).max(1);
        let first = now.saturating_sub(MINUTES_KEPT).max(self.since.saturating_sub(step)) / step * step;
        let steps = now.saturating_sub(first) / step;
        let at_secs: Vec<i64> = (0..steps).map(|n| i64::from(first + n * step) * i64::from(MINUTE_SECS)).collect();
        let nothing = vec![0.0; at_secs.len()];
        let mut traffic = Traffic { at_secs, accepted: nothing.clone(), rejected: nothing.clone(), lost: nothing };
        let secs = f64::from(step * MINUTE_SECS);
        for minute in &self.minutes {
            let Some(n) = minute.at.saturating_sub(step).checked_sub(first).map(|m| (m / step) as usize) else {
                continue;
            };
            for (of, packets) in [
                (&mut traffic.accepted, minute.accepted),
                (&mut traffic.rejected, minute.rejected),
                (&mut traffic.lost, minute.lost),
            ] {
                if let Some(rate) = of.get_mut(n) {
                    *rate += f64::from(packets) / secs;
                }
            }
        }
        traffic
    }
}

#[cfg(test)]
mod tests {
    use flowlog_model::status::RuleStatus;
    use uuid::Uuid;

    use super::*;

    fn said(id: FlowLogId, accepted_packets: u64, rejected_packets: u64) -> Status {
        let counts = Counts { accepted_packets, rejected_packets, ..Counts::default() };
        let rule = RuleStatus { rule_id: Some(id), counts, ..RuleStatus::default() };
        Status { rules: vec![rule], ..Status::default() }
    }

    #[test]
    fn what_was_counted_in_a_window_is_a_rate_in_that_window_also_after_a_restart_of_the_count() {
        let history = History::default();
        let id = FlowLogId(Uuid::from_u128(1));
        for (secs, accepted, rejected) in [(600, 0, 0), (662, 60, 0), (722, 180, 60), (782, 60, 0)] {
            history.observe(&said(id, accepted, rejected), secs);
        }
        let traffic = history.traffic(id, 60, 840);
        assert_eq!(traffic.at_secs, [540, 600, 660, 720, 780]);
        assert_eq!(traffic.accepted, [0.0, 1.0, 2.0, 1.0, 0.0]);
        assert_eq!(traffic.rejected, [0.0, 0.0, 1.0, 0.0, 0.0]);
        let coarse = history.traffic(id, 120, 840);
        assert_eq!((coarse.at_secs, coarse.accepted), (vec![480, 600, 720], vec![0.5, 1.5, 0.0]));
        // It has been deleted.
        history.observe(&Status::default(), 900);
        assert_eq!(history.traffic(id, 60, 900), Traffic::default());
    }

    #[test]
    fn six_hours_are_kept_and_no_more() {
        let history = History::default();
        let id = FlowLogId(Uuid::from_u128(1));
        for n in 0..2_000_u32 {
            history.observe(&said(id, u64::from(n) * 60, 0), i64::from(n * MINUTE_SECS));
        }
        assert_eq!(history.lock()[&id].minutes.len(), MINUTES_KEPT as usize);
        let traffic = history.traffic(id, 60, i64::from(1_999 * MINUTE_SECS));
        assert_eq!(traffic.at_secs.len(), MINUTES_KEPT as usize);
        assert!(traffic.accepted.iter().filter(|r| **r > 0.0).count() >= 358);
    }
}
