//! The green light: everything that must hold before a flow log may capture. All problems are found at once, each with
//! field, value and remedy.

use std::{sync::Arc, time::Duration};

use flowlog_model::{FlowLogId, rule::InvalidField};

use tokio::sync::watch;

use super::{
    BucketProbe, ProbeError, Refused,
    access::{Access, Caller, Operation},
    allowed,
    captures::{interfaces, target},
    editor::{audit, touch},
    flow_log::{Checked, FlowLog, State},
    reader::visible,
    stamp,
    store::{Change, FlowLogStore, SharedStore},
};
use crate::inventory::{Inventory, load::Loaded};

/// How long a bucket may take to answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);

/// See the module's head.
pub struct Validator {
    store: SharedStore,
    inventory: watch::Receiver<Arc<Loaded>>,
    buckets: Arc<dyn BucketProbe>,
    /// Interfaces that there is room for in the kernel's maps.
    places_max: usize,
}

impl Validator {
    pub(super) fn new(
        store: SharedStore,
        inventory: watch::Receiver<Arc<Loaded>>,
        buckets: Arc<dyn BucketProbe>,
        places_max: usize,
    ) -> Self {
        Self { store, inventory, buckets, places_max }
    }

    /// Checks a draft; it becomes validated if nothing is wrong, and a draft again if something is.
    ///
    /// # Errors
    /// If the caller may not, or it is not a draft.
    pub(crate) async fn validate(&self, caller: &Caller, id: FlowLogId) -> Result<FlowLog, Refused> {
        let flow_log = {
            let store = self.store.lock();
            let flow_log = visible(&store, caller, id)?.clone();
            allowed(caller, Operation::Validate, &flow_log.contract, &format!("flow log {id}"))?;
            flow_log
        };
        if !matches!(flow_log.state, State::Draft | State::Validated) {
            return Err(Refused::Conflict(format!("flow log {id} has been provisioned; it was validated for that")));
        }
        let problems = self.problems(caller, &flow_log, std::slice::from_ref(&flow_log)).await;
        let mut store = self.store.lock();
        // It may have changed meanwhile.
        let now = visible(&store, caller, id)?;
        if now.version != flow_log.version || store.is_busy(id) {
            return Err(Refused::Conflict(format!("flow log {id} was changed meanwhile; validate it again")));
        }
        let mut new = now.clone();
        new.state = if problems.is_empty() { State::Validated } else { State::Draft };
        new.problems = problems;
        touch(&mut new, caller);
        let what = if new.problems.is_empty() { "validated: all checks passed" } else { "validated: not ready" };
        store.commit(vec![Change::Put(Box::new(new.clone())), audit(&stamp(caller), &new, what)])?;
        Ok(new)
    }

    /// Everything that is wrong with a flow log which is to be activated together with all of `batch`.
    pub(super) async fn problems(&self, caller: &Caller, flow_log: &FlowLog, batch: &[FlowLog]) -> Vec<InvalidField> {
        let loaded = self.inventory.borrow().clone();
        let (checked, mut problems) = match flow_log.properties.check() {
            Ok(checked) => (Some(checked), Vec::new()),
            Err(problems) => (None, problems),
        };
        problems.extend(parent_problem(flow_log, &loaded.inventory));
        problems.extend(permission_problem(caller, flow_log));
        {
            let store = self.store.lock();
            problems.extend(only_one(&store, flow_log, batch));
            problems.extend(self.room_problem(&store, batch, &loaded.inventory));
        }
        if let Some(checked) = checked {
            problems.extend(self.bucket_problem(&checked, flow_log, &loaded.inventory).await);
        }
        problems
    }

    /// Each interface is a place in maps whose memory was taken when the agent started.
    fn room_problem(&self, store: &FlowLogStore, batch: &[FlowLog], inventory: &Inventory) -> Option<InvalidField> {
        let places = |f: &FlowLog| interfaces(f, inventory).0.len();
        let holds = |f: &&FlowLog| f.state.captures() || f.state == State::Deleting;
        let taken: usize = store.flow_logs().values().filter(holds).map(places).sum();
        let wanted: usize = batch.iter().map(places).sum();
        let free = self.places_max.saturating_sub(taken);
        (wanted > free).then(|| {
            let rule = format!(
                "the kernel's maps on this node have room for {free} more interfaces, and {wanted} are asked for; raise \
                 `kernel.interfaces_max`, or delete flow logs"
            );
            InvalidField::new("memory", wanted.to_string(), rule)
        })
    }

    /// Whether an object can be made in the bucket: one is, and removed again.
    async fn bucket_problem(
        &self,
        checked: &Checked,
        flow_log: &FlowLog,
        inventory: &Inventory,
    ) -> Option<InvalidField> {
        let contract = &flow_log.contract;
        let target = target(checked, contract, &inventory.buckets);
        let value = flow_log.properties.bucket.clone();
        let problem = |words: String| Some(InvalidField::new("bucket", value.clone(), words));
        // The same words for all that is closed: nobody learns which buckets there are.
        let closed = || {
            problem(format!(
                "bucket `{}` does not exist, is not contract {contract}'s, or does not let this node write; create it, or \
                 name another",
                checked.bucket
            ))
        };
        if !inventory.buckets.has(contract, &checked.bucket) {
            return closed();
        }
        let folder = target
            .prefix
            .as_ref()
            .map_or_else(|| checked.name.as_str().to_owned(), |prefix| format!("{prefix}/{}", checked.name.as_str()));
        match tokio::time::timeout(PROBE_TIMEOUT, self.buckets.probe(&target.location, &folder)).await {
            Ok(Ok(())) => None,
            Ok(Err(ProbeError::Closed(words))) => {
                tracing::info!(%contract, bucket = checked.bucket, words, "a bucket is closed to its flow log");
                closed()
            }
            Ok(Err(ProbeError::Other(words))) => problem(words),
            Err(_) => problem(format!("no answer from its store in {} s; try again later", PROBE_TIMEOUT.as_secs())),
        }
    }
}

fn parent_problem(flow_log: &FlowLog, inventory: &Inventory) -> Option<InvalidField> {
    let parent = flow_log.parent;
    let known = inventory.resources.get(&parent.id);
    if known.is_some_and(|r| r.kind == parent.kind && r.contract == flow_log.contract) {
        return None;
    }
    let rule =
        format!("no {} of contract {} has this id on this node; see `inventory list`", parent.kind, flow_log.contract);
    Some(InvalidField::new("interface", parent.id.to_string(), rule))
}

fn permission_problem(caller: &Caller, flow_log: &FlowLog) -> Option<InvalidField> {
    let needs = match caller.may(Operation::Provision, &flow_log.contract) {
        Access::Granted => return None,
        Access::Needs(privilege) => privilege.words(),
        Access::Hidden | Access::NeedsAdministrator => "act in this contract",
    };
    let rule = format!("needs the privilege to {needs}; an owner or administrator of the contract can grant it");
    Some(InvalidField::new("permission", caller.name(), rule))
}

/// A NIC, gateway or balancer takes one flow log.
fn only_one(store: &FlowLogStore, flow_log: &FlowLog, batch: &[FlowLog]) -> Option<InvalidField> {
    let stored = store.flow_logs().values().filter(|f| f.state != State::Draft);
    let other = stored.chain(batch).find(|f| f.id != flow_log.id && f.parent.id == flow_log.parent.id)?;
    let rule = format!(
        "it has the flow log `{}` ({}) already, and takes one; delete one of the two",
        other.properties.name.escape_debug(),
        other.id
    );
    Some(InvalidField::new("interface", flow_log.parent.id.to_string(), rule))
}
