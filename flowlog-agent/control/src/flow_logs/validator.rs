//! The green light: everything that must hold before a flow log may capture. All problems are found at once, each with
//! field, value and remedy.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use flowlog_model::{
    FlowLogId,
    rule::{InvalidField, Name},
    status::CaptureState,
};
use futures_util::{FutureExt as _, StreamExt as _, stream};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    BucketProbe, CaptureOrder, ProbeError, Refused, Wanted,
    access::{Access, Caller, Operation},
    allowed,
    captures::{captures_with, interfaces},
    editor::{audit, touch},
    flow_log::{Destination, FlowLog, State},
    reader::visible,
    stamp,
    store::{Change, FlowLogStore, SharedStore},
    templates::{self, Templates},
};
use crate::inventory::{Inventory, load::Loaded};

/// Flow logs of one request that are checked at the same time: a bucket that does not answer holds its place for a while.
const CHECKS_MAX: usize = 32;
/// How long a bucket may take to answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);

/// See the module's head.
pub struct Validator {
    store: SharedStore,
    inventory: watch::Receiver<Arc<Loaded>>,
    templates: watch::Receiver<Arc<Templates>>,
    buckets: Arc<dyn BucketProbe>,
    /// The way to the agent, who knows the interfaces.
    orders: mpsc::Sender<CaptureOrder>,
    /// Interfaces that there is room for in the kernel's maps.
    places_max: Arc<AtomicUsize>,
}

impl Validator {
    pub(super) fn new(
        wanted: Wanted,
        buckets: Arc<dyn BucketProbe>,
        orders: mpsc::Sender<CaptureOrder>,
        places_max: Arc<AtomicUsize>,
    ) -> Self {
        let Wanted { store, inventory, templates } = wanted;
        Self { store, inventory, templates, buckets, orders, places_max }
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
            store.refuse_not_understood(id)?;
            flow_log
        };
        if !matches!(flow_log.state, State::Draft | State::Validated) {
            return Err(Refused::Conflict(format!("flow log {id} has been provisioned; it was validated for that")));
        }
        let found = self.problems(caller, std::slice::from_ref(&flow_log)).await;
        let problems: Vec<InvalidField> = found.into_iter().flatten().collect();
        let plan = |store: &FlowLogStore| {
            // It may have changed meanwhile.
            let old = visible(store, caller, id)?;
            store.refuse_not_understood(id)?;
            if old.version != flow_log.version || store.is_busy(id) {
                return Err(Refused::Conflict(format!("flow log {id} was changed meanwhile; validate it again")));
            }
            let mut new = old.clone();
            new.state = if problems.is_empty() { State::Validated } else { State::Draft };
            new.problems.clone_from(&problems);
            if new == *old {
                return Ok((new, Vec::new()));
            }
            touch(&mut new, caller);
            let what = if new.problems.is_empty() { "validated: all checks passed" } else { "validated: not ready" };
            let changes = vec![Change::Put(Box::new(new.clone())), audit(&stamp(caller), &new, what)];
            Ok((new, changes))
        };
        self.store.change(plan).await
    }

    /// Everything that is wrong with flow logs that are to be activated together, for each of them. What one of them takes, the next
    /// one cannot have; what is wrong with one is not held against another.
    pub(super) async fn problems(&self, caller: &Caller, batch: &[FlowLog]) -> Vec<Vec<InvalidField>> {
        let loaded = self.inventory.borrow().clone();
        let inventory = &loaded.inventory;
        let checks: Vec<_> = batch.iter().map(|f| self.own_problems(caller, f, inventory).boxed()).collect();
        let mut all: Vec<Vec<InvalidField>> = stream::iter(checks).buffered(CHECKS_MAX).collect().await;
        let mut good: Vec<&FlowLog> = Vec::new();
        for (flow_log, problems) in batch.iter().zip(&mut all) {
            problems.extend(only_one(&self.store.lock(), flow_log, &good));
            if problems.is_empty() {
                good.push(flow_log);
            }
        }
        let tried = self.tried(&good, inventory).await;
        let mut room = self.room(inventory, batch);
        for (flow_log, problems) in batch.iter().zip(&mut all) {
            let is_good = problems.is_empty();
            match &tried {
                Ok(states) if is_good => problems.extend(flow_log.trouble(states)),
                Err(words) if is_good => problems.push(unknown_interface(flow_log, words)),
                _ => {}
            }
            let wanted = interfaces(flow_log, inventory).0.len();
            match room.checked_sub(wanted) {
                Some(left) if problems.is_empty() => room = left,
                Some(_) => {}
                None => problems.push(no_room(wanted, room)),
            }
        }
        all
    }

    /// Everything that is wrong with a flow log by itself.
    async fn own_problems(&self, caller: &Caller, flow_log: &FlowLog, inventory: &Inventory) -> Vec<InvalidField> {
        let mut problems = flow_log.properties.check().err().unwrap_or_default();
        problems.extend(parent_problem(flow_log, inventory));
        problems.extend(permission_problem(caller, flow_log));
        // A bucket is tried whatever else is wrong: nobody is to correct one field to learn of the next.
        if let Ok(destination) = flow_log.properties.destination() {
            problems.extend(self.bucket_problem(&destination, flow_log, inventory).await);
        }
        problems
    }

    /// How every capture would be doing if these were activated: the agent finds their interfaces as it would then.
    async fn tried(&self, new: &[&FlowLog], inventory: &Inventory) -> Result<BTreeMap<String, CaptureState>, String> {
        if new.is_empty() {
            return Ok(BTreeMap::new());
        }
        let captures = {
            let store = self.store.lock();
            // What they take is not covered by selection any more.
            let mut taken = templates::taken(&store);
            taken.extend(new.iter().map(|f| f.parent.id));
            let by_selection = self.templates.borrow().captures(inventory, &taken);
            captures_with(store.flow_logs(), inventory, new).into_iter().chain(by_selection).collect()
        };
        let (done, answer) = oneshot::channel();
        let is_ending = || "the agent is ending".to_owned();
        let order = CaptureOrder { captures, is_trial: true, done };
        self.orders.send(order).await.map_err(|_gone| is_ending())?;
        answer.await.unwrap_or_else(|_| Err(is_ending()))
    }

    /// Interfaces that there is still room for: each is a place in maps whose memory was taken when the agent started.
    fn room(&self, inventory: &Inventory, batch: &[FlowLog]) -> usize {
        let store = self.store.lock();
        let holds = |f: &&FlowLog| f.state.captures() || f.state == State::Deleting;
        let taken: usize = store.flow_logs().values().filter(holds).map(|f| interfaces(f, inventory).0.len()).sum();
        let mut parents = templates::taken(&store);
        parents.extend(batch.iter().map(|f| f.parent.id));
        let by_selection = self.templates.borrow().captures(inventory, &parents).len();
        self.places_max.load(Ordering::Relaxed).saturating_sub(taken + by_selection)
    }

    /// Whether an object can be made in the bucket: one is, and removed again.
    async fn bucket_problem(
        &self,
        destination: &Destination,
        flow_log: &FlowLog,
        inventory: &Inventory,
    ) -> Option<InvalidField> {
        let contract = &flow_log.contract;
        let value = flow_log.properties.bucket.clone();
        let problem = |words: String| Some(InvalidField::new("bucket", value.clone(), words));
        // The same words for all that is closed: nobody learns which buckets there are.
        let closed = || {
            problem(format!(
                "does not exist, is not contract {contract}'s, or does not let this node write; create it, or name another"
            ))
        };
        if !inventory.buckets.has(contract, &destination.bucket) {
            return closed();
        }
        let location = inventory.buckets.location(contract, &destination.bucket);
        let name: Option<Name> = flow_log.properties.name.parse().ok();
        let steps = [destination.prefix.as_deref(), name.as_ref().map(Name::as_str)];
        let folder = steps.into_iter().flatten().collect::<Vec<_>>().join("/");
        match tokio::time::timeout(PROBE_TIMEOUT, self.buckets.probe(&location, &folder)).await {
            Ok(Ok(())) => None,
            Ok(Err(ProbeError::Closed(words))) => {
                tracing::info!(%contract, bucket = destination.bucket, words, "a bucket is closed to its flow log");
                closed()
            }
            Ok(Err(ProbeError::Other(words))) => problem(words),
            Err(_) => problem(format!("no answer from its store in {} s; try again later", PROBE_TIMEOUT.as_secs())),
        }
    }
}

fn parent_problem(flow_log: &FlowLog, inventory: &Inventory) -> Option<InvalidField> {
    let parent = flow_log.parent;
    if flow_log.has_its_parent(inventory) {
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

fn no_room(wanted: usize, free: usize) -> InvalidField {
    let rule = format!(
        "the kernel's maps on this node have room for {free} more interfaces, and {wanted} are asked for; raise \
         `kernel.interfaces_max`, or delete flow logs"
    );
    InvalidField::new("memory", wanted.to_string(), rule)
}

fn unknown_interface(flow_log: &FlowLog, words: &str) -> InvalidField {
    let rule = format!("its interface could not be looked for ({words}); try again");
    InvalidField::new("interface", flow_log.parent.id.to_string(), rule)
}

/// A NIC, gateway or balancer takes one flow log. `before` are those that are activated with it, and come first.
fn only_one(store: &FlowLogStore, flow_log: &FlowLog, before: &[&FlowLog]) -> Option<InvalidField> {
    let stored = store.flow_logs().values().filter(|f| f.state != State::Draft && f.holds_its_parent());
    let mut others = stored.chain(before.iter().copied()).filter(|f| f.id != flow_log.id);
    let other = others.find(|f| f.parent.id == flow_log.parent.id)?;
    let rule = format!(
        "it has the flow log `{}` ({}) already, and takes one; delete one of the two",
        other.shown_name(),
        other.id
    );
    Some(InvalidField::new("interface", flow_log.parent.id.to_string(), rule))
}
