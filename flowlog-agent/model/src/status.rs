//! What there is to say about the agent and every rule (promise P8). Data only: the pipeline's reporter fills it in, the API and the
//! command line show it.

use serde::{Deserialize, Serialize};

use crate::{
    FlowLogId,
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
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RuleStatus {
    /// Name of the rule, as it is called now.
    pub rule: String,
    /// Id of the flow log in the flow-log store, if it is from there.
    pub rule_id: Option<FlowLogId>,
    /// Interface, as it is called now; empty if there is none.
    pub interface: String,
    /// Id of the interface, as in records and keys.
    pub interface_id: String,
    /// Whether it is being captured.
    pub capture: CaptureState,
    /// Where its objects go: location and prefix.
    pub target: String,
    /// Start of the open window, Unix seconds.
    pub window_start: i64,
    /// Flows in the open window so far.
    pub flows: usize,
    /// Since the start of the agent.
    #[serde(flatten)]
    pub counts: Counts,
    /// How the delivery of its objects is doing.
    pub delivery: RouteStatus,
    /// Other people's XDP programs on it.
    #[serde(default)]
    pub xdp: XdpStatus,
    /// What else may keep packets from its hooks.
    #[serde(default)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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

/// How a route is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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

/// What there is to say about a route, or about what goes there of one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Key of the last one delivered.
    pub last_key: Option<String>,
}
