//! Figures: what is counted at this moment, for monitoring. Data only: the pipeline and the agent fill it in, the control plane writes
//! it down for Prometheus.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    rule::Direction,
    status::{RuleStatus, Status},
};

/// Packets and layer-3 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// Packets as on the wire.
    pub packets: u64,
    /// Their bytes, without link header.
    pub bytes: u64,
}

/// What the programs have counted of one direction since the agent knows of the watch, open windows and all. Each only grows: a packet
/// that was refused after its hook had counted it takes nothing back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Frames that the hooks saw.
    pub seen: Volume,
    /// Of these: not IP.
    pub non_ip: Volume,
    /// Of these: IP, and not refused so far. It stands still while packets that are in it are refused.
    pub accepted: Volume,
    /// Refused packets, whether a hook had seen them or not.
    pub rejected: Volume,
    /// Of the accepted ones: died on their way.
    pub died: Volume,
}

/// One watched interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaptureFigures {
    /// Id of the interface, as in [`RuleStatus`](crate::status::RuleStatus).
    pub interface_id: String,
    /// By direction, as rows have it: those that are captured.
    pub traffic: Vec<(Direction, Traffic)>,
    /// By how much the window that ended last, and has not been closed yet, is overdue.
    pub overdue: Duration,
    /// What the hooks have seen in the open window, both directions together.
    pub in_window: Volume,
    /// When the open window was opened, Unix seconds: its start, or later.
    pub opened_secs: i64,
    /// When it ends, Unix seconds.
    pub end_secs: i64,
}

/// Figures of every capture at one moment, for people who look again and again: `live.json` has this form.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// When, Unix milliseconds.
    pub at_ms: i64,
    /// Each watched interface.
    pub captures: Vec<CaptureLook>,
}

/// One of them: packets, both directions together, as in [`Traffic`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureLook {
    /// Id of the interface, as in [`RuleStatus`].
    pub interface_id: String,
    /// Frames that the hooks saw.
    pub seen_packets: u64,
    /// IP, and not refused so far.
    pub accepted_packets: u64,
    /// Refused, whether a hook had seen them or not.
    pub rejected_packets: u64,
    /// Accepted, and died on their way.
    pub died_packets: u64,
    /// Frames seen in the open window.
    pub window_packets: u64,
    /// When the open window was opened, Unix seconds.
    pub window_opened_secs: i64,
    /// When it ends, Unix seconds.
    pub window_end_secs: i64,
}

impl Look {
    /// What there is to show of these figures.
    #[must_use]
    pub fn of(at_ms: i64, figures: &[CaptureFigures]) -> Self {
        let captures = figures.iter().map(|of| {
            let sum = |volume: fn(&Traffic) -> Volume| of.traffic.iter().map(|(_, t)| volume(t).packets).sum();
            CaptureLook {
                interface_id: of.interface_id.clone(),
                seen_packets: sum(|t| t.seen),
                accepted_packets: sum(|t| t.accepted),
                rejected_packets: sum(|t| t.rejected),
                died_packets: sum(|t| t.died),
                window_packets: of.in_window.packets,
                window_opened_secs: of.opened_secs,
                window_end_secs: of.end_secs,
            }
        });
        Self { at_ms, captures: captures.collect() }
    }

    /// What it says of a rule's interface.
    #[must_use]
    pub fn find(&self, rule: &RuleStatus) -> Option<&CaptureLook> {
        self.captures.iter().find(|c| c.interface_id == rule.interface_id)
    }
}

/// One of our programs, where the kernel keeps statistics (`kernel.bpf_stats_enabled`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgramFigures {
    /// Its name, of which the kernel keeps 15 bytes.
    pub name: String,
    /// How often it has run.
    pub runs: u64,
    /// For how long, all runs together.
    pub run_time: Duration,
}

/// How long uploads took: as many as took so long at most, by the bounds of [`Latencies::BOUNDS_MS`], and longer ones in the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latencies {
    /// Uploads by their time, not summed up.
    pub counts: [u64; Self::BOUNDS_MS.len() + 1],
    /// All of them together.
    pub sum: Duration,
}

impl Latencies {
    /// Upper bounds: from a directory on the same disk to the longest upload there may be.
    pub const BOUNDS_MS: [u64; 10] = [5, 20, 50, 100, 250, 500, 1_000, 2_500, 10_000, 60_000];

    /// Adds one.
    pub fn note(&mut self, took: Duration) {
        let place = Self::BOUNDS_MS.iter().position(|bound| took <= Duration::from_millis(*bound));
        if let Some(count) = self.counts.get_mut(place.unwrap_or(Self::BOUNDS_MS.len())) {
            *count += 1;
        }
        self.sum += took;
    }
}

/// A source of the inventory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceFigures {
    /// What it is called.
    pub name: String,
    /// `names`, `libvirt`, `ovsdb`.
    pub kind: &'static str,
    /// Its last look found all there is.
    pub is_up: bool,
    /// NICs that it knows of, whoever they belong to.
    pub nics: usize,
    /// Looks that failed, or left something out.
    pub failures: u64,
}

/// What the node's part of the agent has to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFigures {
    /// Size of the ring.
    pub ring_bytes: u64,
    /// The most that was found in it since it was asked last.
    pub ring_used_bytes: u64,
    /// Records that have come through the ring: what left the kernel's caches.
    pub records: u64,
    /// Size of the journal.
    pub journal_bytes: u64,
    /// Logins that were refused.
    pub logins_refused: u64,
    /// Our programs.
    pub programs: Vec<ProgramFigures>,
    /// Uploads by store.
    pub uploads: BTreeMap<String, Latencies>,
    /// Sources of the inventory.
    pub sources: Vec<SourceFigures>,
}

/// Everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// How every rule is doing.
    pub status: Status,
    /// Whether an agent is running.
    pub is_running: bool,
    /// What only a running agent knows, if it was asked.
    pub live: Option<LiveFigures>,
}

/// What only a running agent knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LiveFigures {
    /// Every watched interface.
    pub captures: Vec<CaptureFigures>,
    /// The node.
    pub node: NodeFigures,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_counts_where_its_time_ends_and_the_longest_behind_all_bounds() {
        let mut latencies = Latencies::default();
        for ms in [5, 6, 60_000, 60_001] {
            latencies.note(Duration::from_millis(ms));
        }
        assert_eq!(latencies.counts, [1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(latencies.sum, Duration::from_millis(120_012));
    }
}
