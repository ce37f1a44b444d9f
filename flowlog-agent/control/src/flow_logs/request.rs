//! Requests: changes that take time, and how far they are. A client asks until one is done.

use flowlog_model::FlowLogId;
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
}
