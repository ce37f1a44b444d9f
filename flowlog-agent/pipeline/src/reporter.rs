//! Says how every rule is doing: to whoever listens, and in `status.json` in the state directory, for when no agent runs.

use std::{collections::BTreeMap, sync::Arc};

use flowlog_host::clock;
use flowlog_model::{
    rule::Target,
    status::{Counts, RuleStatus, Status},
};
use tokio::sync::watch;

use crate::{
    capture::Capture,
    disk::Filesystem,
    encoder::Encoded,
    source::Node,
    spool::Spool,
    upload::{Progress, Route},
    window::ledger::Watched,
};

/// Name of the file.
pub const FILE: &str = "status.json";

/// Writes the file when something has changed.
pub struct Reporter {
    fs: Arc<dyn Filesystem>,
    counts: BTreeMap<String, Counts>,
    written: Status,
    said: watch::Sender<Arc<Status>>,
}

impl Reporter {
    /// Reports into a state directory.
    #[must_use]
    pub fn new(fs: Arc<dyn Filesystem>) -> Self {
        Self { fs, counts: BTreeMap::new(), written: Status::default(), said: watch::Sender::default() }
    }

    /// What was said last, and later.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Status>> {
        self.said.subscribe()
    }

    /// A window has been encoded.
    pub fn window(&mut self, encoded: &Encoded) {
        let counts = self.counts.entry(encoded.interface_id.clone()).or_default();
        counts.windows += 1;
        counts.accepted_packets += encoded.balance.accepted_rows.packets;
        counts.rejected_packets += encoded.balance.rejected_rows.packets;
        counts.lost_packets += encoded.balance.lost.packets;
        counts.windows_put_aside += u64::from(encoded.is_aside);
        counts.windows_without_object += u64::from(!encoded.is_encoded);
    }

    /// Says how things are, if that is anything new. That the file cannot be written is no reason to stop.
    pub fn report<N: Node>(&mut self, capture: &Capture<N>, progress: &Progress, spool: &Spool, trouble: Option<&str>) {
        let now_secs = clock::now().wall.secs();
        let mut captured = capture.states();
        let watched: BTreeMap<&str, &Watched> =
            capture.ledger().watched().map(|(_, w)| (w.spec.interface_id.as_str(), w)).collect();
        let rules = capture.captures().iter().map(|c| {
            let rule = &c.rule;
            let interface_id = capture.id(c);
            let w = watched.get(interface_id.as_str());
            let state = captured.remove(&interface_id).unwrap_or_default();
            let store = Target { location: rule.target.location.clone(), prefix: None }.to_string();
            let name = rule.name.as_str().to_owned();
            let folder = rule.folder();
            RuleStatus {
                rule: name,
                rule_id: rule.id,
                interface: w.map(|w| w.spec.interface.clone()).unwrap_or_default(),
                capture: state,
                target: rule.target.to_string(),
                window_start: w.map_or(0, |w| w.clock.current().start_secs),
                flows: w.map_or(0, |w| w.flows()),
                counts: self.counts.get(&interface_id).copied().unwrap_or_default(),
                delivery: progress.routes.get(&Route { store, folder }).cloned().unwrap_or_default(),
                interface_id,
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
        self.said.send_replace(Arc::new(self.written.clone()));
    }

    fn write(&self, status: &Status) -> std::io::Result<()> {
        let json = serde_json::to_vec_pretty(status).map_err(std::io::Error::other)?;
        let partial = format!("{FILE}.partial");
        // Not synced: after a power cut nobody wants to know what it said.
        self.fs.create("", &partial)?.append(&json)?;
        self.fs.rename(("", &partial), ("", FILE))
    }
}
