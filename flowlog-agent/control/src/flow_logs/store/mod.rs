//! The flow-log store: flow logs, requests and the audit log. Every change is one transaction with its entry in the audit log; it is
//! durable before anybody acts on it.
//!
//! ```text
//!   editor, validator, worker --- SharedStore::change(plan) ---> FlowLogStore (memory): what is known; the plan reads it
//!                                        |                              ^
//!                                        v                              | applied, or told by the backend's feed
//!                                 Backend::commit (durable: one transaction, compared with what the plan has read)
//! ```
//!
//! * [`memory`]: what is known, and which changes are allowed;
//! * [`redb`]: the backend of one node, a file; [`etcd`]: that of a region;
//! * `understood`: what a value in etcd says, or why it is not understood;
//! * [`export`]: from one backend to another;
//! * `suite`: what every backend promises, as tests.
//!
//! A plan is a function of what is known. Where somebody else was faster, it is asked again with what they have made of it.

pub(crate) mod etcd;
pub mod export;
mod memory;
mod redb;
#[cfg(test)]
mod suite;
pub(crate) mod understood;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use flowlog_host::fault;
use flowlog_model::FlowLogId;
pub use memory::FlowLogStore;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    Refused,
    flow_log::{FlowLog, Stamp, State},
    request::Request,
};
use crate::{etcd::keys::RuleKey, inventory::Contract};

/// Entries of the audit log that are kept, of a node or of a region: a change a minute for two months.
pub(crate) const AUDIT_KEPT_MAX: usize = 100_000;
/// Parts of a transaction: etcd takes 128 by default, two of which are ours.
pub(crate) const PARTS_MAX: usize = 120;
/// How often a change is planned anew because somebody else was faster: whoever loses so often is told to try again.
const PLANS_MAX: usize = 16;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum FlowLogStoreError {
    /// The file cannot be used.
    #[error("flow-log store `{}`: {problem}", path.display())]
    Unusable { path: PathBuf, problem: String },
    /// A later version wrote it.
    #[error("flow-log store `{}` has format {found}, this is format {known}; use the version of flowlog that wrote it", path.display())]
    Format { path: PathBuf, found: u64, known: u64 },
    /// A change of state that is not allowed. Only a bug of ours asks for one.
    #[error("flow log {id} cannot go from {from:?} to {to:?}: a bug; nothing was changed")]
    Leap {
        id: FlowLogId,
        /// Its state; `None`: it is not in the store.
        from: Option<State>,
        /// The state that was asked for; `None`: it was to be removed.
        to: Option<State>,
    },
    /// Others have changed the same again and again.
    #[error("somebody else keeps changing the same flow logs; nothing was changed, try again")]
    Contended,
    /// More than one transaction takes.
    #[error(
        "{parts} changes at once: etcd takes {PARTS_MAX} in one transaction; nothing was changed, take fewer flow logs"
    )]
    TooMany { parts: usize },
    /// Nothing was changed.
    #[error("nothing was changed: {0}")]
    Refused(String),
    /// The change may have been made, or may still be.
    #[error(
        "it is not known whether the change was made, look again when etcd answers; what is shown is what was known before: {0}"
    )]
    Unknown(String),
    /// It cannot be asked.
    #[error("{0}")]
    Away(String),
}

/// An entry of the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    pub stamp: Stamp,
    pub contract: Contract,
    pub flow_log: FlowLogId,
    /// What happened, in words.
    pub what: String,
}

/// A part of a transaction.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// A flow log as it is from now on.
    Put(Box<FlowLog>),
    /// A flow log of another store, in whatever state it was there.
    Import(Box<FlowLog>),
    /// A flow log that is gone.
    Remove(FlowLogId),
    /// A request as it is from now on.
    Request(Box<Request>),
    /// A request that nobody will ask for any more.
    Forget(Uuid),
    Audit(Box<AuditEntry>),
}

/// What became of a transaction.
#[derive(Debug)]
pub(crate) enum CommitError {
    /// Somebody else has changed what it was compared with: nothing was changed, and the plan is made anew.
    Conflict,
    /// Nothing was changed, or it is not known.
    Failed(FlowLogStoreError),
}

/// What a plan was made from: a key, and when it was last changed; 0: it was not there.
pub(crate) type Compared = Vec<(RuleKey, i64)>;

/// What is durable now.
#[derive(Debug)]
pub(crate) enum Committed {
    /// It is to be known from now on.
    Apply,
    /// It is known already: the backend's feed has told.
    Told,
}

/// The durable side. Whoever commits holds its turn: no two transactions of one process are under way.
#[async_trait]
pub(crate) trait Backend: Send + Sync {
    /// Makes changes durable, all or none, if what they were planned from is still so.
    ///
    /// # Errors
    /// See [`CommitError`].
    async fn commit(&self, changes: &[Change], compared: Compared) -> Result<Committed, CommitError>;

    /// The last `most` entries of the audit log, of one contract or of all, newest first.
    ///
    /// # Errors
    /// If it cannot be read.
    async fn audit(&self, most: usize, contract: Option<&Contract>) -> Result<Vec<AuditEntry>, FlowLogStoreError>;
}

/// The store, shared by those who read it and those who change it.
#[derive(Clone)]
pub struct SharedStore {
    memory: Arc<Mutex<FlowLogStore>>,
    backend: Arc<dyn Backend>,
    /// Whose turn it is to change something.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl FlowLogStore {
    /// Opens the store of a state directory, or makes it. What a crash interrupted is as if it had not begun.
    ///
    /// # Errors
    /// If it cannot be used.
    pub fn open(state_dir: &Path) -> Result<Self, FlowLogStoreError> {
        Self::open_with(state_dir, AUDIT_KEPT_MAX)
    }

    /// The same, with so many entries of the audit log.
    fn open_with(state_dir: &Path, audit_max: usize) -> Result<Self, FlowLogStoreError> {
        let (backend, flow_logs, requests) = redb::RedbBackend::open(state_dir, audit_max)?;
        Ok(Self::of(Arc::new(backend), flow_logs, requests))
    }
}

/// Flow logs in the file of a state directory; none, if there is no file.
///
/// # Errors
/// If it cannot be used.
pub(crate) fn of_file(state_dir: &Path) -> Result<Vec<FlowLog>, FlowLogStoreError> {
    if !state_dir.join(redb::FILE).is_file() {
        return Ok(Vec::new());
    }
    let (_, flow_logs, _) = redb::RedbBackend::open(state_dir, AUDIT_KEPT_MAX)?;
    Ok(flow_logs.into_values().collect())
}

impl SharedStore {
    #[must_use]
    pub fn new(store: FlowLogStore) -> Self {
        let backend = store.backend();
        Self { memory: Arc::new(Mutex::new(store)), backend, turn: Arc::default() }
    }

    /// What is known, for this caller alone until the guard is dropped. Never held while somebody is waited for.
    pub(crate) fn lock(&self) -> MutexGuard<'_, FlowLogStore> {
        // A change is applied as a whole: whoever panicked has left it so.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the changes of a plan, all or none, durable before they are seen. A plan that has no changes is done.
    ///
    /// # Errors
    /// What the plan says; and if they cannot be made durable: then nothing has changed.
    pub(crate) async fn change<T>(
        &self,
        mut plan: impl FnMut(&FlowLogStore) -> Result<(T, Vec<Change>), Refused>,
    ) -> Result<T, Refused> {
        let _turn = self.turn.lock().await;
        for _ in 0..PLANS_MAX {
            let (value, changes, compared) = {
                let known = self.lock();
                let (value, changes) = plan(&known)?;
                if changes.is_empty() {
                    return Ok(value);
                }
                known.refuse_leaps(&changes)?;
                let compared = known.compared(&changes);
                (value, changes, compared)
            };
            fault::point("rules_commit");
            match self.backend.commit(&changes, compared).await {
                Ok(committed) => {
                    fault::point("rules_committed");
                    log(&changes);
                    if matches!(committed, Committed::Apply) {
                        self.lock().apply(changes);
                    }
                    return Ok(value);
                }
                Err(CommitError::Conflict) => {}
                Err(CommitError::Failed(error)) => return Err(error.into()),
            }
        }
        Err(FlowLogStoreError::Contended.into())
    }

    /// As [`change`](Self::change), of a plan that refuses nothing.
    ///
    /// # Errors
    /// If the changes cannot be made durable.
    pub(crate) async fn write(
        &self,
        mut plan: impl FnMut(&FlowLogStore) -> Vec<Change>,
    ) -> Result<(), FlowLogStoreError> {
        match self.change(|known| Ok(((), plan(known)))).await {
            Ok(()) => Ok(()),
            Err(Refused::FlowLogStore(error)) => Err(error),
            // Such a plan refuses nothing.
            Err(_) => Err(FlowLogStoreError::Contended),
        }
    }

    /// The last `most` entries of the audit log, of one contract or of all, newest first.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) async fn audit(
        &self,
        most: usize,
        contract: Option<&Contract>,
    ) -> Result<Vec<AuditEntry>, FlowLogStoreError> {
        self.backend.audit(most, contract).await
    }
}

/// Says who did what.
fn log(changes: &[Change]) {
    for AuditEntry { stamp, contract, flow_log, what } in audits(changes) {
        tracing::info!(by = stamp.by, %contract, %flow_log, "{what}");
    }
}

/// The entries of the audit log among changes.
fn audits(changes: &[Change]) -> impl Iterator<Item = &AuditEntry> {
    changes.iter().filter_map(|change| if let Change::Audit(entry) = change { Some(&**entry) } else { None })
}
