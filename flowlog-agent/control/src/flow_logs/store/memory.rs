//! What is known of the flow logs: all of it in memory, as the backend has it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use flowlog_model::FlowLogId;
use tokio::sync::watch;
use uuid::Uuid;

use super::{Backend, Change, Compared, FlowLogStoreError, understood::NotUnderstood};
use crate::{
    etcd::keys::RuleKey,
    flow_logs::{
        Refused,
        flow_log::{FlowLog, State},
        request::Request,
    },
};

/// A key of the backend as it is now.
pub(super) struct Told {
    pub key: RuleKey,
    /// `None`: it is gone.
    pub value: Option<ToldValue>,
    pub revision: i64,
}

/// What is in it.
pub(super) enum ToldValue {
    FlowLog(Box<FlowLog>),
    /// A flow log that is not understood.
    NotUnderstood {
        /// What was understood last, or else stands for it.
        instead: Box<FlowLog>,
        /// Nothing of it was ever understood.
        is_stand_in: bool,
        why: NotUnderstood,
    },
    Request(Box<Request>),
    /// Nothing that is to be known: only when it was changed matters.
    Mark,
}

/// See the module's head, and that of [`super`].
pub struct FlowLogStore {
    backend: Arc<dyn Backend>,
    flow_logs: BTreeMap<FlowLogId, FlowLog>,
    /// Those whose value is not understood: what is known is older, or only stands for it.
    not_understood: BTreeMap<FlowLogId, Puzzle>,
    requests: BTreeMap<Uuid, Request>,
    /// Those that are not over: few of many.
    open: BTreeSet<Uuid>,
    /// When each was last changed, where the backend says so.
    revisions: BTreeMap<RuleKey, i64>,
    changed: watch::Sender<()>,
}

/// A flow log whose value is not understood.
struct Puzzle {
    why: NotUnderstood,
    /// Nothing of it was ever understood.
    is_stand_in: bool,
}

impl FlowLogStore {
    /// What a backend has.
    pub(super) fn of(
        backend: Arc<dyn Backend>,
        flow_logs: BTreeMap<FlowLogId, FlowLog>,
        requests: BTreeMap<Uuid, Request>,
    ) -> Self {
        let open = requests.values().filter(|r| !r.progress.is_over()).map(|r| r.id).collect();
        let (not_understood, revisions, changed) = Default::default();
        Self { backend, flow_logs, not_understood, requests, open, revisions, changed }
    }

    pub(super) fn backend(&self) -> Arc<dyn Backend> {
        self.backend.clone()
    }

    #[must_use]
    pub fn flow_logs(&self) -> &BTreeMap<FlowLogId, FlowLog> {
        &self.flow_logs
    }

    /// Why the value of a flow log is not understood, if it is not: what is known of it is what was understood before.
    #[must_use]
    pub(crate) fn not_understood(&self, id: FlowLogId) -> Option<&NotUnderstood> {
        self.not_understood.get(&id).map(|puzzle| &puzzle.why)
    }

    /// Whether what is known of a flow log only stands for it: nothing of it was ever understood.
    #[must_use]
    pub(crate) fn is_stand_in(&self, id: FlowLogId) -> bool {
        self.not_understood.get(&id).is_some_and(|puzzle| puzzle.is_stand_in)
    }

    /// Refuses what needs to know what a flow log says now.
    pub(crate) fn refuse_not_understood(&self, id: FlowLogId) -> Result<(), Refused> {
        match self.not_understood(id) {
            None => Ok(()),
            Some(not) => Err(Refused::Conflict(format!("flow log {id}: {}", not.problem()))),
        }
    }

    #[must_use]
    pub(crate) fn requests(&self) -> &BTreeMap<Uuid, Request> {
        &self.requests
    }

    /// Whether a flow log has a request that is not over.
    #[must_use]
    pub(crate) fn is_busy(&self, id: FlowLogId) -> bool {
        self.open_requests().any(|r| r.work.flow_logs().contains(&id))
    }

    /// Requests that are not over.
    pub(crate) fn open_requests(&self) -> impl Iterator<Item = &Request> {
        self.open.iter().filter_map(|id| self.requests.get(id))
    }

    /// Tells when something has changed.
    #[must_use]
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Changes that are durable are known from now on.
    pub(super) fn apply(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Put(f) | Change::Import(f) => drop(self.flow_logs.insert(f.id, *f)),
                Change::Remove(id) => drop(self.flow_logs.remove(&id)),
                Change::Request(r) => self.put_request(*r),
                Change::Forget(id) => self.forget(id),
                Change::Audit(_) => {}
            }
        }
        self.changed.send_replace(());
    }

    fn put_request(&mut self, request: Request) {
        if request.progress.is_over() {
            self.open.remove(&request.id);
        } else {
            self.open.insert(request.id);
        }
        self.requests.insert(request.id, request);
    }

    fn forget(&mut self, id: Uuid) {
        self.open.remove(&id);
        self.requests.remove(&id);
    }

    /// What the backend has instead of what was known.
    pub(super) fn replace(&mut self, mut all: Vec<Told>) {
        for told in &mut all {
            self.recall(told);
        }
        self.flow_logs.clear();
        self.not_understood.clear();
        self.requests.clear();
        self.open.clear();
        self.revisions.clear();
        self.hear(all);
    }

    /// Whether this is not what is known.
    pub(super) fn differs(&self, all: &[Told]) -> bool {
        all.len() != self.revisions.len()
            || all.iter().any(|told| self.revisions.get(&told.key) != Some(&told.revision))
    }

    /// What was understood last is what is known of a flow log that is not understood any more.
    fn recall(&self, told: &mut Told) {
        let Told {
            key: RuleKey::FlowLog { id, .. },
            value: Some(ToldValue::NotUnderstood { instead, is_stand_in, .. }),
            ..
        } = told
        else {
            return;
        };
        if let Some(known) = self.flow_logs.get(id).filter(|_| *is_stand_in && !self.is_stand_in(*id)) {
            (**instead, *is_stand_in) = (known.clone(), false);
        }
    }

    /// What somebody has changed, in order.
    pub(super) fn hear(&mut self, told: Vec<Told>) {
        for mut told in told {
            self.recall(&mut told);
            let Told { key, value, revision } = told;
            if let RuleKey::FlowLog { id, .. } = &key {
                self.not_understood.remove(id);
            }
            match value {
                Some(_) => self.revisions.insert(key.clone(), revision),
                None => self.revisions.remove(&key),
            };
            match (key, value) {
                (RuleKey::FlowLog { id, .. }, Some(ToldValue::FlowLog(f))) => drop(self.flow_logs.insert(id, *f)),
                (RuleKey::FlowLog { id, .. }, Some(ToldValue::NotUnderstood { instead, is_stand_in, why })) => {
                    self.flow_logs.insert(id, FlowLog { problems: vec![why.problem()], ..*instead });
                    self.not_understood.insert(id, Puzzle { why, is_stand_in });
                }
                (RuleKey::FlowLog { id, .. }, _) => drop(self.flow_logs.remove(&id)),
                (RuleKey::Request(_), Some(ToldValue::Request(r))) => self.put_request(*r),
                (RuleKey::Request(id), _) => self.forget(id),
                (RuleKey::Contract(_), _) => {}
            }
        }
        self.changed.send_replace(());
    }

    /// What changes are compared with: all that they change, and what is said of their contracts.
    pub(super) fn compared(&self, changes: &[Change]) -> Compared {
        let mut keys = BTreeSet::new();
        for change in changes {
            match change {
                Change::Put(f) | Change::Import(f) => {
                    keys.insert(RuleKey::FlowLog { parent: f.parent.id, id: f.id });
                    keys.insert(RuleKey::Contract(f.contract.clone()));
                }
                Change::Remove(id) => {
                    keys.extend(self.flow_logs.get(id).map(|f| RuleKey::FlowLog { parent: f.parent.id, id: *id }));
                }
                Change::Request(r) => {
                    keys.insert(RuleKey::Request(r.id));
                    keys.insert(RuleKey::Contract(r.contract.clone()));
                }
                Change::Forget(id) => drop(keys.insert(RuleKey::Request(*id))),
                Change::Audit(_) => {}
            }
        }
        keys.into_iter().map(|key| (key.clone(), self.revisions.get(&key).copied().unwrap_or(0))).collect()
    }

    /// Refuses changes of state that are not in the drawing of [`crate::flow_logs::flow_log`].
    pub(super) fn refuse_leaps(&self, changes: &[Change]) -> Result<(), FlowLogStoreError> {
        let mut states: BTreeMap<FlowLogId, Option<State>> = BTreeMap::new();
        for change in changes {
            let (id, next, is_import) = match change {
                Change::Put(f) => (f.id, Some(f.state), false),
                Change::Import(f) => (f.id, Some(f.state), true),
                Change::Remove(id) => (*id, None, false),
                _ => continue,
            };
            let now = *states.entry(id).or_insert_with(|| self.flow_logs.get(&id).map(|f| f.state));
            let good = match (now, next) {
                (None, Some(State::Draft) | None) => true,
                // In between two of these is somebody's work, which is not here.
                (None, Some(first)) => is_import && matches!(first, State::Validated | State::Active),
                // What it is is not known: whoever says so begins anew.
                (Some(_), Some(State::Draft) | None) if self.is_stand_in(id) => true,
                (Some(now), Some(next)) => !is_import && now.may_become(next),
                (Some(now), None) => now.may_end(),
            };
            if !good {
                return Err(FlowLogStoreError::Leap { id, from: now, to: next });
            }
            states.insert(id, next);
        }
        Ok(())
    }
}
