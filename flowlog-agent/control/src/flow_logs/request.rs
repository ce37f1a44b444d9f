//! Requests: changes that take time, and how far they are. A client asks until one is done.

use flowlog_model::{
    CaptureSpec, FlowLogId,
    status::{Leaving, Status},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::flow_log::Stamp;
use crate::inventory::Contract;

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Progress {
    /// Waits for its turn.
    Queued,
    /// Is being carried out.
    Running,
    Done,
    Failed,
}

impl Progress {
    /// Whether there is nothing more to wait for.
    #[must_use]
    pub(crate) fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Failed)
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Work {
    /// Check and activate these, all or none.
    Provision(Vec<FlowLogId>),
    Delete(FlowLogId),
    /// It has been done: renamed, or a draft changed.
    Changed(FlowLogId),
}

impl Work {
    /// What it is about.
    #[must_use]
    pub(crate) fn flow_logs(&self) -> &[FlowLogId] {
        match self {
            Self::Provision(ids) => ids,
            Self::Delete(id) | Self::Changed(id) => std::slice::from_ref(id),
        }
    }
}

/// See the module's head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Request {
    pub id: Uuid,
    pub contract: Contract,
    pub work: Work,
    pub progress: Progress,
    /// Why it failed, or that it is done.
    pub message: String,
    /// Who asked, and when.
    pub asked: Stamp,
    /// Counts requests, so that they are carried out in this order after a restart.
    pub number: u64,
    /// Of a deletion that is done: where objects of the flow log may still be on their way to.
    #[serde(default)]
    pub ended: Vec<Ended>,
}

/// A capture that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// Bucket or directory, as in a target: `s3://bucket`, `file:///dir`.
    pub store: String,
    /// What its keys begin with.
    pub folder: String,
    pub interface_id: String,
}

impl Ended {
    pub(crate) fn of(capture: &CaptureSpec) -> Self {
        let store = capture.rule.target.location.to_string();
        let interface_id = capture.interface_id.clone().unwrap_or_default();
        Self { store, folder: capture.rule.folder(), interface_id }
    }
}

impl Request {
    /// What there is to say about it now: of a deletion, also what has not been delivered yet.
    #[must_use]
    pub(crate) fn message(&self, status: &Status) -> String {
        let own = |l: &&Leaving| {
            let same = |e: &Ended| (&e.store, &e.folder, &e.interface_id) == (&l.store, &l.folder, &l.interface_id);
            self.ended.iter().any(same)
        };
        let left: Vec<&Leaving> = status.leaving.iter().filter(own).collect();
        let objects: usize = left.iter().map(|l| l.delivery.waiting).sum();
        if objects == 0 {
            return self.message.clone();
        }
        let bytes: u64 = left.iter().map(|l| l.delivery.waiting_bytes).sum();
        let why = left.iter().find_map(|l| l.delivery.state.error()).map(|e| format!(": {e}")).unwrap_or_default();
        format!("{}; {objects} objects ({bytes} bytes) are still to be delivered{why}", self.message)
    }
}

#[cfg(test)]
mod tests {
    use flowlog_model::status::{RouteState, RouteStatus};

    use super::*;

    #[test]
    fn a_deletion_says_what_is_not_delivered_yet_of_its_own() {
        let at = |folder: &str| Ended { store: "s3://flows".into(), folder: folder.into(), interface_id: "nic".into() };
        let asked = Stamp { by: String::new(), by_id: Uuid::nil(), at_secs: 0 };
        let id = Uuid::nil();
        let contract = "1".parse().expect("a contract");
        let work = Work::Delete(FlowLogId(id));
        let message = "done".to_owned();
        let ended = vec![at("web")];
        let request = Request { id, contract, work, progress: Progress::Done, message, asked, number: 0, ended };
        let state = RouteState::Blocked { since_secs: 0, tries: 1, error: "no bucket".to_owned() };
        let delivery = RouteStatus { state, waiting: 2, waiting_bytes: 10, ..RouteStatus::default() };
        let leaving = |e: Ended| Leaving {
            store: e.store,
            folder: e.folder,
            interface_id: e.interface_id,
            delivery: delivery.clone(),
        };
        let status = |folder: &str| Status { leaving: vec![leaving(at(folder))], ..Status::default() };
        assert_eq!(request.message(&status("web")), "done; 2 objects (10 bytes) are still to be delivered: no bucket");
        assert_eq!(request.message(&status("other")), "done");
    }
}
