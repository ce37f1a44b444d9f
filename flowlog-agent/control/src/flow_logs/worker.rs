//! Carries requests out: one at a time for each contract, in the order they came. Whatever a crash interrupts is done
//! again from the store, so a step is written down before it is taken:
//!
//! ```text
//! provision: all checks pass -> PROVISIONING durable -> order -> ACTIVE durable    (or undone: VALIDATED durable -> order)
//! delete:    DELETING durable -> order -> gone, durable
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError},
    time::Duration,
};

use flowlog_host::{clock, fault};
use flowlog_model::{FlowLogId, interface::Selector, rule::InvalidField, status::CaptureState};
use tokio::{
    sync::{Mutex, Notify, mpsc, oneshot, watch},
    task::JoinSet,
};

use super::{
    CaptureOrder, Elsewhere, Wanted,
    access::Caller,
    captures,
    editor::audit,
    flow_log::{FlowLog, Stamp, State},
    join,
    principals::Principals,
    request::{Ended, Progress, Request, Work},
    store::{Change, FlowLogStore, FlowLogStoreError, SharedStore},
    templates::{self, Templates},
    validator::Validator,
};
use crate::inventory::{Contract, Inventory, load::Loaded};

/// Pause before an order that the agent could not carry out, or a transaction that failed, is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The cloud API's words for it.
const DONE: &str = "Request has been successfully executed";

/// See the module's head.
pub struct Worker {
    store: SharedStore,
    inventory: watch::Receiver<Arc<Loaded>>,
    templates: watch::Receiver<Arc<Templates>>,
    principals: watch::Receiver<Arc<Principals>>,
    validator: Arc<Validator>,
    /// What has been said of resources that several flow logs select.
    said: std::sync::Mutex<BTreeSet<String>>,
    /// The way to the agent.
    orders: mpsc::Sender<CaptureOrder>,
    /// Who captures instead of it.
    elsewhere: Option<Arc<dyn Elsewhere>>,
    /// One order at a time; what the last one called active flow logs.
    ordering: Mutex<BTreeMap<FlowLogId, String>>,
    /// There is something to do.
    work: Arc<Notify>,
}

impl Worker {
    pub(super) fn new(
        wanted: Wanted,
        principals: watch::Receiver<Arc<Principals>>,
        validator: Arc<Validator>,
        (orders, elsewhere): (mpsc::Sender<CaptureOrder>, Option<Arc<dyn Elsewhere>>),
        work: Arc<Notify>,
    ) -> Self {
        let Wanted { store, inventory, templates } = wanted;
        let (said, ordering) = Default::default();
        Self { store, inventory, templates, principals, validator, said, orders, elsewhere, ordering, work }
    }

    /// For ever.
    pub async fn run(self) {
        Arc::new(self).carry_out_for_ever().await;
    }

    pub(crate) fn store(&self) -> &SharedStore {
        &self.store
    }

    pub(crate) fn templates(&self) -> watch::Receiver<Arc<Templates>> {
        self.templates.clone()
    }

    /// As [`run`](Self::run); what is under way ends with the future.
    pub(crate) async fn carry_out_for_ever(self: &Arc<Self>) {
        let worker = self;
        let mut busy = BTreeSet::new();
        let mut tasks = JoinSet::new();
        let mut inventory = worker.inventory.clone();
        let mut templates = worker.templates.clone();
        let mut changes = worker.store.lock().changes();
        // The inventory may have changed while no agent ran: the first round compares the store with it.
        inventory.mark_changed();
        loop {
            changes.mark_unchanged();
            for request in worker.waiting(&busy) {
                busy.insert(request.contract.clone());
                let worker = worker.clone();
                tasks.spawn(async move { worker.carry_out(request).await });
            }
            tokio::select! {
                () = worker.work.notified() => worker.follow_names().await,
                // Another server may have taken a request.
                Ok(()) = changes.changed(), if worker.elsewhere.is_some() => {}
                Ok(()) = inventory.changed() => worker.follow_inventory().await,
                Ok(()) = templates.changed() => drop(worker.order().await),
                Some(ended) = tasks.join_next() => match ended {
                    Ok(contract) => drop(busy.remove(&contract)),
                    Err(error) => {
                        // Only a bug of ours ends a task so. Its request is still in the store, and is carried out again.
                        tracing::error!(%error, "a request ended by itself");
                        busy.clear();
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
        }
    }

    /// Carries one request out; returns its contract.
    async fn carry_out(&self, request: Request) -> Contract {
        loop {
            let result = match &request.work {
                Work::Provision(_) => self.carry_out_provision(&request).await,
                Work::Delete(id) => self.carry_out_delete(&request, *id).await,
                Work::Changed(_) => {
                    self.rewrite(&request, &[], Some((Progress::Done, DONE.to_owned())), |_| None).await
                }
            };
            match result {
                Ok(()) => return request.contract,
                Err(error) => {
                    tracing::error!(%error, request = %request.id, "will try again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// The next request of every contract that has none under way.
    fn waiting(&self, busy: &BTreeSet<Contract>) -> Vec<Request> {
        let store = self.store.lock();
        let mut waiting: Vec<&Request> = store.open_requests().collect();
        waiting.sort_by_key(|r| r.number);
        let mut next: BTreeMap<&Contract, &Request> = BTreeMap::new();
        for request in waiting.into_iter().filter(|r| !busy.contains(&r.contract)) {
            next.entry(&request.contract).or_insert(request);
        }
        next.into_values().cloned().collect()
    }

    async fn running(&self, request: &Request) -> Result<(), FlowLogStoreError> {
        let running = Request { progress: Progress::Running, ..request.clone() };
        self.store.write(|_| vec![Change::Request(Box::new(running.clone()))]).await
    }

    /// Changes flow logs as they are now, all in one transaction, which ends the request if it says how.
    async fn rewrite(
        &self,
        request: &Request,
        ids: &[FlowLogId],
        end: Option<(Progress, String)>,
        mut change: impl FnMut(&mut FlowLog) -> Option<&'static str>,
    ) -> Result<(), FlowLogStoreError> {
        let plan = |store: &FlowLogStore| {
            let mut changes = Vec::new();
            let by = Stamp { at_secs: clock::now().wall.secs(), ..request.asked.clone() };
            for old in ids.iter().filter_map(|id| store.flow_logs().get(id)) {
                let mut flow_log = old.clone();
                let what = change(&mut flow_log);
                flow_log.version += u64::from(flow_log != *old);
                if let Some(what) = what {
                    changes.push(audit(&by, &flow_log, what));
                }
                if flow_log != *old {
                    changes.push(Change::Put(Box::new(flow_log)));
                }
            }
            if let Some((progress, message)) = end.clone() {
                changes.push(Change::Request(Box::new(Request { progress, message, ..request.clone() })));
            }
            changes
        };
        self.store.write(plan).await
    }

    async fn carry_out_provision(&self, request: &Request) -> Result<(), FlowLogStoreError> {
        self.running(request).await?;
        let puzzled = {
            let store = self.store.lock();
            let refused = |id: &FlowLogId| store.refuse_not_understood(*id).err();
            request.work.flow_logs().iter().find_map(refused)
        };
        if let Some(refused) = puzzled {
            return self.rewrite(request, &[], Some((Progress::Failed, refused.to_string())), |_| None).await;
        }
        let named: Vec<FlowLog> = {
            let store = self.store.lock();
            request.work.flow_logs().iter().filter_map(|id| store.flow_logs().get(id).cloned()).collect()
        };
        let waiting: Vec<FlowLog> = named.into_iter().filter(|f| f.state != State::Active).collect();
        let ids: Vec<FlowLogId> = waiting.iter().map(|f| f.id).collect();
        // Flow logs that were provisioning when an earlier agent ended have passed their checks.
        let mut pending: Vec<FlowLog> = waiting.into_iter().filter(|f| f.state != State::Provisioning).collect();
        // What has a green light keeps it; the rest comes in the order it was named.
        pending.sort_by_key(|f| f.state == State::Draft);
        if !pending.is_empty() && !self.check(request, &pending).await? {
            return Ok(());
        }
        let validated: Vec<FlowLogId> = pending.iter().filter(|f| f.state == State::Draft).map(|f| f.id).collect();
        self.rewrite(request, &validated, None, |f| {
            f.state = State::Validated;
            None
        })
        .await?;
        self.rewrite(request, &ids, None, |f| {
            f.state = State::Provisioning;
            f.key_name = f.properties.name.parse().ok();
            f.problems.clear();
            None
        })
        .await?;
        fault::point("rules_provisioning");
        let troubles = self.captured(&ids).await;
        fault::point("rules_ordered");
        if !troubles.is_empty() {
            return self.undo(request, &ids, &troubles).await;
        }
        self.rewrite(request, &ids, Some((Progress::Done, DONE.to_owned())), |f| {
            f.state = State::Active;
            Some("active")
        })
        .await
    }

    /// Has these captured; what cannot be, and why.
    async fn captured(&self, ids: &[FlowLogId]) -> BTreeMap<FlowLogId, InvalidField> {
        if let Some(elsewhere) = &self.elsewhere {
            return elsewhere.provisioned(ids).await;
        }
        let states = self.order().await;
        let store = self.store.lock();
        let batch = ids.iter().filter_map(|id| store.flow_logs().get(id));
        batch.filter_map(|f| Some((f.id, f.trouble(&states)?))).collect()
    }

    /// Checks flow logs before anything is captured; `false`: something is wrong, and has been written down.
    async fn check(&self, request: &Request, pending: &[FlowLog]) -> Result<bool, FlowLogStoreError> {
        // The checks need the caller of the request, with the privileges that it has now.
        let caller = match request.asked.by_id {
            id if id.is_nil() => Some(Caller::Operator),
            id => self.principals.borrow().get(id).map(Caller::Principal),
        };
        let Some(caller) = caller else {
            let message = format!("`{}`, who asked for this, is not known any more", request.asked.by);
            self.rewrite(request, &[], Some((Progress::Failed, message)), |_| None).await?;
            return Ok(false);
        };
        let checked = self.validator.problems(&caller, pending).await;
        if checked.iter().all(Vec::is_empty) {
            return Ok(true);
        }
        let found: BTreeMap<FlowLogId, Vec<InvalidField>> = pending.iter().map(|f| f.id).zip(checked).collect();
        let wrong = pending.iter().filter_map(|f| Some((f, found.get(&f.id).filter(|p| !p.is_empty())?)));
        let words: Vec<String> =
            wrong.map(|(f, problems)| format!("flow log `{}`: {}", f.shown_name(), join(problems))).collect();
        let ids: Vec<FlowLogId> = found.keys().copied().collect();
        self.rewrite(request, &ids, Some((Progress::Failed, words.join("; "))), |f| {
            f.problems = found.get(&f.id).cloned().unwrap_or_default();
            f.state = if f.problems.is_empty() { State::Validated } else { State::Draft };
            Some("provisioning refused")
        })
        .await?;
        Ok(false)
    }

    /// One of them cannot be captured, so none is.
    async fn undo(
        &self,
        request: &Request,
        ids: &[FlowLogId],
        troubles: &BTreeMap<FlowLogId, InvalidField>,
    ) -> Result<(), FlowLogStoreError> {
        self.rewrite(request, ids, None, |f| {
            f.state = State::Validated;
            f.key_name = None;
            f.problems = troubles.get(&f.id).cloned().into_iter().collect();
            Some("provisioning undone")
        })
        .await?;
        fault::point("rules_undone");
        self.order().await;
        let problems: Vec<InvalidField> = troubles.values().cloned().collect();
        self.rewrite(request, &[], Some((Progress::Failed, join(&problems))), |_| None).await
    }

    async fn carry_out_delete(&self, request: &Request, id: FlowLogId) -> Result<(), FlowLogStoreError> {
        self.running(request).await?;
        let before = self.store.lock().flow_logs().get(&id).cloned();
        if before.as_ref().is_some_and(|f| matches!(f.state, State::Active | State::Deleting)) {
            self.rewrite(request, &[id], None, |f| {
                f.state = State::Deleting;
                None
            })
            .await?;
            fault::point("rules_deleting");
            match &self.elsewhere {
                Some(elsewhere) => elsewhere.ended(id).await,
                None => drop(self.order().await),
            }
            fault::point("rules_ended");
        }
        let loaded = self.inventory.borrow().clone();
        let plan = |store: &FlowLogStore| {
            let by = Stamp { at_secs: clock::now().wall.secs(), ..request.asked.clone() };
            let mut done = Request { progress: Progress::Done, message: DONE.to_owned(), ..request.clone() };
            let was_captured = |f: &&FlowLog| matches!(f.state, State::Active | State::Deleting);
            if let Some(flow_log) = before.as_ref().filter(was_captured) {
                done.ended = captures::captures_of(flow_log, &loaded.inventory).iter().map(Ended::of).collect();
            }
            let mut changes = vec![Change::Request(Box::new(done))];
            // Whoever has ended it may have removed it.
            changes.extend(before.as_ref().map(|flow_log| audit(&by, flow_log, "deleted")));
            changes.extend(store.flow_logs().get(&id).map(|_| Change::Remove(id)));
            changes
        };
        self.store.write(plan).await
    }

    /// Makes the agent capture what store and inventory say; returns how every capture is doing.
    pub(crate) async fn order(&self) -> BTreeMap<String, CaptureState> {
        if self.elsewhere.is_some() {
            return BTreeMap::new();
        }
        let mut called = self.ordering.lock().await;
        loop {
            let loaded = self.inventory.borrow().clone();
            *called = self.names();
            let templates = self.templates.borrow().clone();
            let captures = {
                let store = self.store.lock();
                let by_selection = templates.captures(&loaded.inventory, &templates::taken(&store));
                captures::captures(store.flow_logs(), &loaded.inventory).into_iter().chain(by_selection).collect()
            };
            self.say_several(&templates, &loaded.inventory);
            let (done, answer) = oneshot::channel();
            let sent = self.orders.send(CaptureOrder { captures, is_trial: false, done }).await;
            match answer.await {
                Ok(Ok(_)) if self.is_behind(&called) => continue,
                Ok(Ok(states)) => return states,
                Ok(Err(words)) => tracing::warn!(words, "will order again"),
                Err(_) if sent.is_err() => tracing::debug!("the agent is ending"),
                Err(_) => {}
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Says which resources several flow logs of the configuration select, once.
    fn say_several(&self, templates: &Templates, inventory: &Inventory) {
        let now = templates.several(inventory);
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        now.difference(&said).for_each(|words| tracing::info!("{words}"));
        *said = now;
    }

    /// What flow logs that capture are called.
    fn names(&self) -> BTreeMap<FlowLogId, String> {
        let store = self.store.lock();
        let capturing = store.flow_logs().values().filter(|f| f.state.captures());
        capturing.map(|f| (f.id, f.properties.name.clone())).collect()
    }

    /// A name may have changed, or a flow log may have come from another store: the agent says in its status what flow logs are called now.
    async fn follow_names(&self) {
        // An order that is under way looks at the names again before it is over.
        if self.ordering.try_lock().is_ok_and(|called| self.is_behind(&called)) {
            self.order().await;
        }
    }

    /// Whether there are names that the last order did not have.
    fn is_behind(&self, called: &BTreeMap<FlowLogId, String>) -> bool {
        self.names().iter().any(|(id, name)| called.get(id) != Some(name))
    }

    async fn remember_interfaces(&self, inventory: &Inventory) {
        let plan = |store: &FlowLogStore| {
            let mut changes = Vec::new();
            for flow_log in store.flow_logs().values() {
                let (interfaces, _) = captures::interfaces(flow_log, inventory);
                let absent = interfaces.iter().all(|i| i.selector == Selector::absent());
                if !absent && interfaces != flow_log.interfaces {
                    changes.push(Change::Put(Box::new(FlowLog { interfaces, ..flow_log.clone() })));
                }
            }
            changes
        };
        if let Err(error) = self.store.write(plan).await {
            tracing::error!(%error, "cannot remember interfaces");
        }
    }

    /// The inventory has changed: flow logs remember their interfaces, and the agent captures them where they are now.
    async fn follow_inventory(&self) {
        let loaded = self.inventory.borrow().clone();
        // Elsewhere they are another node's tomorrow.
        if self.elsewhere.is_none() {
            self.remember_interfaces(&loaded.inventory).await;
        }
        self.order().await;
    }
}
