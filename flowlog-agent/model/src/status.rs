//! What there is to say about the agent and every rule (promise P8). Data only: the pipeline's reporter fills it in, the API and the
//! command line show it.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    FlowLogId,
    amount::count,
    hiding::Hiding,
    xdp::{XdpProgram, XdpView},
};

/// What an agent says about itself and its rules: `status.json` has this form.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// As of when, Unix seconds.
    pub written_secs: i64,
    /// Process id of the agent.
    pub pid: u32,
    /// Every rule on every interface.
    pub rules: Vec<RuleStatus>,
    /// Bytes in the spool.
    pub spool_bytes: u64,
    /// Why windows leave their totals only, if they do.
    pub spool_full: Option<String>,
    /// Trouble with the state directory.
    pub trouble: Option<String>,
    /// What is still to be delivered of captures that have ended.
    #[serde(default)]
    pub leaving: Vec<Leaving>,
    /// Objects in `quarantine` of the state directory: a person must look at them.
    #[serde(default)]
    pub quarantined: usize,
    /// Sources of the inventory that do not answer, each in a sentence: what they said last holds.
    #[serde(default)]
    pub sources: Vec<String>,
    /// What it does before it ends, and how that is cut short, if it has been asked to end.
    #[serde(default)]
    pub stopping: Option<String>,
    /// SIGUSR1 makes this agent write `live.json`; an older one would end by it.
    #[serde(default)]
    pub looks_when_asked: bool,
}

impl Status {
    /// How the delivery of everything is doing, of what has ended too.
    pub fn deliveries(&self) -> impl Iterator<Item = &RouteStatus> {
        self.rules.iter().map(|r| &r.delivery).chain(self.leaving.iter().map(|l| &l.delivery))
    }
}

/// Objects of a capture that has ended: its flow log was deleted, or is not configured any more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaving {
    /// Bucket or directory they go to.
    pub store: String,
    /// What their keys begin with: `[prefix/]name`.
    pub folder: String,
    /// Id of the interface, as in records and keys.
    pub interface_id: String,
    /// How the delivery of these objects is doing.
    pub delivery: RouteStatus,
}

/// One rule on one interface.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RuleStatus {
    /// Name of the rule, as it is called now.
    pub rule: String,
    /// Id of the flow log in the flow-log store, if it is from there.
    #[schema(value_type = Option<uuid::Uuid>)]
    pub rule_id: Option<FlowLogId>,
    /// The node that says this, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Other nodes that have its NIC as well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also_on: Vec<String>,
    /// Why the node does not understand what its region says of it now, if it does not: it goes on with what it understood last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_understood: Option<String>,
    /// Directions that are captured.
    #[serde(default)]
    pub direction: String,
    /// Packets that are captured, by what became of them.
    #[serde(default)]
    pub action: String,
    /// Interface, as it is called now; empty if there is none.
    pub interface: String,
    /// Id of the interface, as in records and keys.
    pub interface_id: String,
    /// Whether it is being captured.
    pub capture: CaptureState,
    /// How it is hooked: `tc`, `tcx`, `clsact` or `xdp`.
    #[serde(default)]
    pub hook: String,
    /// Since when it is being captured without a break, Unix seconds: an agent that stops or is replaced is none, as its hooks go on.
    #[serde(default)]
    pub since_secs: Option<i64>,
    /// Where its objects go: location and prefix.
    pub target: String,
    /// Start of the open window, Unix seconds.
    pub window_start: i64,
    /// Flows in the open window so far.
    pub flows: usize,
    /// Since the start of the agent.
    #[serde(flatten)]
    pub counts: Counts,
    /// Books of the last window that was closed, also by an earlier agent.
    #[serde(default)]
    pub last_window: Option<WindowBooks>,
    /// How the delivery of its objects is doing.
    pub delivery: RouteStatus,
    /// Other people's XDP programs on it.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub xdp: XdpStatus,
    /// What else may keep packets from its hooks.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub hiding: Hiding,
}

/// Other people's XDP programs on an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct XdpStatus {
    /// Which there are.
    pub programs: Vec<XdpProgram>,
    /// Why it is not known how many packets they drop or forward, if it is not.
    pub uncounted: Option<String>,
    /// How closely it is looked at what they do.
    #[serde(default)]
    pub view: XdpView,
}

/// Whether an interface is being captured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum CaptureState {
    /// It is being captured.
    Attached {
        /// Name of the interface now.
        interface: String,
        /// Index of the interface, in the namespace it is in.
        ifindex: u32,
        /// The network namespace it is in, if that is not the agent's own.
        netns: Option<String>,
    },
    /// Its interface is not there (yet, or any more).
    Waiting {
        /// What is waited for.
        why: String,
    },
    /// Its interface cannot be hooked, or there is no room.
    Trouble {
        /// Why it is not being captured.
        why: String,
    },
    /// Nobody has looked yet.
    #[default]
    Unknown,
}

/// Sums over windows that are closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Counts {
    /// Windows that were closed.
    pub windows: u64,
    /// Packets in ACCEPT rows.
    pub accepted_packets: u64,
    /// Packets in REJECT rows.
    pub rejected_packets: u64,
    /// Packets that are in no row.
    pub lost_packets: u64,
    /// Windows whose object could not be held for delivery: it is in `quarantine` of the state directory.
    #[serde(default)]
    pub windows_put_aside: u64,
    /// Windows of which not even the totals could be written.
    #[serde(default)]
    pub windows_without_object: u64,
    /// Of the packets that are in no row, and of those that are in a row that may be wrong: why.
    #[serde(default)]
    pub losses: Losses,
    /// ACCEPT rows.
    #[serde(default)]
    pub accepted_rows: u64,
    /// REJECT rows.
    #[serde(default)]
    pub rejected_rows: u64,
    /// SKIPDATA rows.
    #[serde(default)]
    pub skipped_rows: u64,
    /// Packets by which the books of windows did not balance, one way or the other: anything but 0 is a bug.
    #[serde(default)]
    pub difference_packets: u64,
    /// Packets that somebody else's XDP program dropped before any hook.
    #[serde(default)]
    pub xdp_dropped_packets: u64,
    /// Packets that it sent back or redirected.
    #[serde(default)]
    pub xdp_forwarded_packets: u64,
}

/// Packets by why they are in no row; the names are those of the column `skip_reason`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Losses {
    /// The ring was full.
    pub ring_full: u64,
    /// IP that cannot be parsed.
    pub malformed: u64,
    /// In ACCEPT rows, and perhaps refused.
    pub verdict_unknown: u64,
    /// The spool had no room for their flows.
    pub spool_full: u64,
    /// Their flows could not be made into rows.
    pub not_encoded: u64,
}

impl Losses {
    /// Each with its name.
    #[must_use]
    pub fn named(&self) -> [(&'static str, u64); 5] {
        let Self { ring_full, malformed, verdict_unknown, spool_full, not_encoded } = *self;
        [
            ("ring_full", ring_full),
            ("malformed", malformed),
            ("verdict_unknown", verdict_unknown),
            ("spool_full", spool_full),
            ("not_encoded", not_encoded),
        ]
    }
}

/// The books of one window, in packets, both directions together: what the hooks saw is in rows, or lost, or no IP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WindowBooks {
    /// Where it begins, Unix seconds.
    pub start_secs: i64,
    /// Where it ends, Unix seconds.
    pub end_secs: i64,
    /// What the hooks saw.
    pub seen_packets: u64,
    /// Refused packets that no hook had counted in this window.
    pub refused_unseen_packets: u64,
    /// In ACCEPT rows.
    pub accepted_packets: u64,
    /// In REJECT rows.
    pub rejected_packets: u64,
    /// In no row.
    pub lost_packets: u64,
    /// Not IP: in no row.
    pub non_ip_packets: u64,
    /// Rows and losses, less what was seen: 0, or a bug of ours. `null`: the host went down, and there is nothing to compare with.
    pub difference_packets: Option<i64>,
    /// The same in bytes.
    pub difference_bytes: Option<i64>,
}

/// `512,031 seen = 511,100 accepted + 900 rejected + 31 lost, difference 0`; what is 0 and mostly is so is left out.
impl fmt::Display for WindowBooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} seen", count(self.seen_packets))?;
        if self.refused_unseen_packets > 0 {
            write!(f, " + {} refused before any hook", count(self.refused_unseen_packets))?;
        }
        let [accepted, rejected, lost] = [self.accepted_packets, self.rejected_packets, self.lost_packets].map(count);
        write!(f, " = {accepted} accepted + {rejected} rejected + {lost} lost")?;
        if self.non_ip_packets > 0 {
            write!(f, " + {} not IP", count(self.non_ip_packets))?;
        }
        match (self.difference_packets, self.difference_bytes) {
            (Some(packets), None | Some(0)) => write!(f, ", difference {packets}"),
            (Some(packets), Some(bytes)) => write!(f, ", difference {packets} packets, {bytes} bytes"),
            (None, _) => f.write_str(", difference unknown, as the host went down"),
        }
    }
}

/// How a route is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum RouteState {
    /// Nothing has been delivered yet, and nothing has failed.
    #[default]
    Idle,
    /// The last delivery succeeded.
    Delivering,
    /// It failed, and is being tried again.
    Retrying {
        /// First failure, Unix seconds.
        since_secs: i64,
        /// Tries since the first failure.
        tries: u64,
        /// What the store said last.
        error: String,
    },
    /// It has been failing for long, and is being tried again.
    Degraded {
        /// First failure, Unix seconds.
        since_secs: i64,
        /// Tries since the first failure.
        tries: u64,
        /// What the store said last.
        error: String,
    },
    /// It fails for a reason that does not pass by itself: no such bucket, wrong credentials, a redirect, options that make no
    /// store. It is tried again all the same.
    Blocked {
        /// First failure, Unix seconds.
        since_secs: i64,
        /// Tries since the first failure.
        tries: u64,
        /// What the store said last.
        error: String,
    },
}

impl CaptureState {
    /// Why it is not being captured, where that is known.
    #[must_use]
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::Waiting { why } | Self::Trouble { why } => Some(why),
            Self::Attached { .. } | Self::Unknown => None,
        }
    }
}

impl RuleStatus {
    /// Since when its oldest object waits for delivery, in seconds; 0: none waits.
    #[must_use]
    pub fn lag_secs(&self, now_secs: i64) -> i64 {
        self.delivery.oldest_secs.map_or(0, |secs| now_secs.saturating_sub(secs).max(0))
    }
}

impl RouteState {
    /// The store's words, if it is not delivering.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        match self {
            Self::Idle | Self::Delivering => None,
            Self::Retrying { error, .. } | Self::Degraded { error, .. } | Self::Blocked { error, .. } => Some(error),
        }
    }
}

/// An object that a store has taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeliveredObject {
    /// Its key.
    pub key: String,
    /// How large it is.
    pub bytes: u64,
    /// When it was delivered, Unix seconds.
    pub at_secs: i64,
}

/// What there is to say about a route, or about what goes there of one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RouteStatus {
    /// How it is doing.
    #[serde(flatten)]
    pub state: RouteState,
    /// Objects that wait for delivery.
    pub waiting: usize,
    /// Bytes of these objects.
    pub waiting_bytes: u64,
    /// When the oldest of them was made, Unix seconds.
    pub oldest_secs: Option<i64>,
    /// Objects delivered since start.
    pub delivered: u64,
    /// Tries that failed since start; of a route only.
    #[serde(default)]
    pub failures: u64,
    /// Objects put aside, because they could not be held or the store would not have them. Of an interface: all that are there, of a
    /// route: those since start.
    pub quarantined: u64,
    /// The last one delivered, also by an earlier agent.
    #[serde(default)]
    pub last_object: Option<DeliveredObject>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn books_are_a_sum_and_what_is_unknown_is_said() {
        let books = WindowBooks {
            seen_packets: 512_031,
            accepted_packets: 511_100,
            rejected_packets: 900,
            lost_packets: 31,
            difference_packets: Some(0),
            difference_bytes: Some(0),
            ..WindowBooks::default()
        };
        let words = "512,031 seen = 511,100 accepted + 900 rejected + 31 lost, difference 0";
        assert_eq!(books.to_string(), words);
        assert!(
            WindowBooks { difference_bytes: Some(-9), ..books }
                .to_string()
                .ends_with(", difference 0 packets, -9 bytes")
        );
        let odd = WindowBooks { refused_unseen_packets: 5, non_ip_packets: 7, difference_packets: None, ..books };
        assert_eq!(
            odd.to_string(),
            "512,031 seen + 5 refused before any hook = 511,100 accepted + 900 rejected + 31 lost + 7 not IP, \
             difference unknown, as the host went down"
        );
    }
}
