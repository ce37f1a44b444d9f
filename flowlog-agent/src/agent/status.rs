//! What there is to say about every rule: kept in `status.json` in the state directory, for `flowlog-agent status`.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::encoder::Encoded;
use crate::{
    disk::Filesystem,
    rule::Target,
    spool::Spool,
    types::Now,
    upload::{Progress, Route, RouteStatus},
    window::Ledger,
};

/// Name of the file.
pub const FILE: &str = "status.json";

/// The file's content.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Status {
    /// When it was written, Unix seconds.
    pub written_secs: i64,
    /// Process that wrote it.
    pub pid: u32,
    /// Every rule on every interface.
    pub rules: Vec<RuleStatus>,
    /// Bytes in the spool.
    pub spool_bytes: u64,
    /// Why windows leave their totals only, if they do.
    pub spool_full: Option<String>,
    /// Trouble with the state directory.
    pub trouble: Option<String>,
}

/// One rule on one interface.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RuleStatus {
    /// Name of the rule.
    pub rule: String,
    /// Interface.
    pub interface: String,
    /// Target.
    pub target: String,
    /// Start of the open window, Unix seconds.
    pub window_start: i64,
    /// Flows in the open window so far.
    pub flows: usize,
    /// Since the start of the agent.
    #[serde(flatten)]
    pub counts: Counts,
    /// Delivery.
    pub delivery: RouteStatus,
}

/// Sums over windows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Windows closed.
    pub windows: u64,
    /// Packets in ACCEPT rows.
    pub accepted_packets: u64,
    /// Packets in REJECT rows.
    pub rejected_packets: u64,
    /// Packets that are in no row.
    pub lost_packets: u64,
}

/// Writes the file when something has changed.
pub struct Reporter {
    fs: Arc<dyn Filesystem>,
    counts: BTreeMap<String, Counts>,
    written: Status,
}

impl Reporter {
    /// Reports into a state directory.
    #[must_use]
    pub fn new(fs: Arc<dyn Filesystem>) -> Self {
        Self { fs, counts: BTreeMap::new(), written: Status::default() }
    }

    /// A window has been encoded.
    pub fn window(&mut self, encoded: &Encoded) {
        let counts = self.counts.entry(encoded.interface_id.clone()).or_default();
        counts.windows += 1;
        counts.accepted_packets += encoded.balance.accepted_rows.packets;
        counts.rejected_packets += encoded.balance.rejected_rows.packets;
        counts.lost_packets += encoded.balance.lost.packets;
    }

    /// Writes the file, if it would say anything new. That it cannot be written is no reason to stop.
    pub fn report(&mut self, ledger: &Ledger, progress: &Progress, spool: &Spool, trouble: Option<&str>) {
        let now_secs = Now::read().wall.secs();
        let rules = ledger.watched().map(|(_, w)| {
            let rule = &w.subject.rule;
            let store = Target { location: rule.target.location.clone(), prefix: None }.to_string();
            let name = rule.name.as_str().to_owned();
            let folder = rule.target.prefix.as_ref().map_or_else(|| name.clone(), |p| format!("{p}/{name}"));
            RuleStatus {
                rule: name,
                interface: w.subject.interface.clone(),
                target: rule.target.to_string(),
                window_start: w.clock.current().start_secs,
                flows: w.flows(),
                counts: self.counts.get(&w.subject.interface_id).copied().unwrap_or_default(),
                delivery: progress.routes.get(&Route { store, folder }).cloned().unwrap_or_default(),
            }
        });
        let mut status = Status {
            written_secs: self.written.written_secs,
            pid: std::process::id(),
            rules: rules.collect(),
            spool_bytes: spool.bytes(),
            spool_full: spool.is_full(now_secs),
            trouble: trouble.map(str::to_owned),
        };
        if status == self.written {
            return;
        }
        status.written_secs = now_secs;
        if let Err(error) = self.write(&status) {
            tracing::debug!(%error, "cannot write the status file");
        }
        self.written = status;
    }

    fn write(&self, status: &Status) -> std::io::Result<()> {
        let json = serde_json::to_vec_pretty(status).map_err(std::io::Error::other)?;
        let partial = format!("{FILE}.partial");
        // Not synced: after a power cut nobody wants to know what it said.
        self.fs.create("", &partial)?.append(&json)?;
        self.fs.rename(("", &partial), ("", FILE))
    }
}
