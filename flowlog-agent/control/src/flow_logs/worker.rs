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
    CaptureOrder, Wanted,
    access::Caller,
    captures,
    editor::audit,
    flow_log::{FlowLog, Stamp, State},
    join,
    principals::Principals,
    request::{Ended, Progress, Request, Work},
    store::{Change, FlowLogStoreError, SharedStore},
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
        orders: mpsc::Sender<CaptureOrder>,
        work: Arc<Notify>,
    ) -> Self {
        let Wanted { store, inventory, templates } = wanted;
        let (said, ordering) = Default::default();
        Self { store, inventory, templates, principals, validator, said, orders, ordering, work }
    }

    pub async fn run(self) {
        let worker = Arc::new(self);
        let mut busy = BTreeSet::new();
        let mut tasks = JoinSet::new();
        let mut inventory = worker.inventory.clone();
        let mut templates = worker.templates.clone();
        // The inventory may have changed while no agent ran: the first round compares the store with it.
        inventory.mark_changed();
        loop {
            for request in worker.waiting(&busy) {
                busy.insert(request.contract.clone());
                let worker = worker.clone();
                tasks.spawn(async move { worker.carry_out(request).await });
            }
            tokio::select! {
                () = worker.work.notified() => worker.follow_names().await,
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
                Work::Changed(_) => self.rewrite(&request, &[], Some((Progress::Done, DONE.to_owned())), |_| None),
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

    fn running(&self, request: &Request) -> Result<(), FlowLogStoreError> {
        let running = Request { progress: Progress::Running, ..request.clone() };
        self.store.lock().commit(vec![Change::Request(Box::new(running))])
    }

    /// Changes flow logs as they are now, all in one transaction, which ends the request if it says how.
    fn rewrite(
        &self,
        request: &Request,
        ids: &[FlowLogId],
        end: Option<(Progress, String)>,
        mut change: impl FnMut(&mut FlowLog) -> Option<&'static str>,
    ) -> Result<(), FlowLogStoreError> {
        let mut store = self.store.lock();
        let mut changes = Vec::new();
        let by = Stamp { at_secs: clock::now().wall.secs(), ..request.asked.clone() };
        for old in ids.iter().filter_map(|id| store.flow_logs().get(id)) {
            let mut flow_log = old.clone();
            let what = change(&mut flow_log);
            flow_log.version += u64::from(flow_log != *old);
            if let Some(what) = what {
                changes.push(audit(&by, &flow_log, what));
            }
            changes.push(Change::Put(Box::new(flow_log)));
        }
        if let Some((progress, message)) = end {
            changes.push(Change::Request(Box::new(Request { progress, message, ..request.clone() })));
        }
        store.commit(changes)
    }

    async fn carry_out_provision(&self, request: &Request) -> Result<(), FlowLogStoreError> {
        self.running(request)?;
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
        })?;
        self.rewrite(request, &ids, None, |f| {
            f.state = State::Provisioning;
            f.key_name = f.properties.name.parse().ok();
            f.problems.clear();
            None
        })?;
        fault::point("rules_provisioning");
        let states = self.order().await;
        fault::point("rules_ordered");
        let troubles: BTreeMap<FlowLogId, InvalidField> = {
            let store = self.store.lock();
            let batch = ids.iter().filter_map(|id| store.flow_logs().get(id));
            batch.filter_map(|f| Some((f.id, f.trouble(&states)?))).collect()
        };
        if !troubles.is_empty() {
            return self.undo(request, &ids, &troubles).await;
        }
        self.rewrite(request, &ids, Some((Progress::Done, DONE.to_owned())), |f| {
            f.state = State::Active;
            Some("active")
        })
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
            self.rewrite(request, &[], Some((Progress::Failed, message)), |_| None)?;
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
        })?;
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
        })?;
        fault::point("rules_undone");
        self.order().await;
        let problems: Vec<InvalidField> = troubles.values().cloned().collect();
        self.rewrite(request, &[], Some((Progress::Failed, join(&problems))), |_| None)
    }

    async fn carry_out_delete(&self, request: &Request, id: FlowLogId) -> Result<(), FlowLogStoreError> {
        self.running(request)?;
        let state = self.store.lock().flow_logs().get(&id).map(|f| f.state);
        if matches!(state, Some(State::Active | State::Deleting)) {
            self.rewrite(request, &[id], None, |f| {
                f.state = State::Deleting;
                None
            })?;
            fault::point("rules_deleting");
            self.order().await;
            fault::point("rules_ended");
        }
        let loaded = self.inventory.borrow().clone();
        let mut store = self.store.lock();
        let by = Stamp { at_secs: clock::now().wall.secs(), ..request.asked.clone() };
        let mut done = Request { progress: Progress::Done, message: DONE.to_owned(), ..request.clone() };
        if let Some(flow_log) = store.flow_logs().get(&id).filter(|f| f.state == State::Deleting) {
            done.ended = captures::captures_of(flow_log, &loaded.inventory).iter().map(Ended::of).collect();
        }
        let mut changes = vec![Change::Request(Box::new(done))];
        if let Some(flow_log) = store.flow_logs().get(&id) {
            changes.push(audit(&by, flow_log, "deleted"));
            changes.push(Change::Remove(id));
        }
        store.commit(changes)
    }

    /// Makes the agent capture what store and inventory say; returns how every capture is doing.
    async fn order(&self) -> BTreeMap<String, CaptureState> {
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
                Ok(Ok(_)) if self.is_renamed(&called) => continue,
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

    /// A name may have changed: the agent says in its status what flow logs are called now.
    async fn follow_names(&self) {
        // An order that is under way looks at the names again before it is over.
        if self.ordering.try_lock().is_ok_and(|called| self.is_renamed(&called)) {
            self.order().await;
        }
    }

    fn is_renamed(&self, called: &BTreeMap<FlowLogId, String>) -> bool {
        self.names().iter().any(|(id, name)| called.get(id).is_some_and(|before| before != name))
    }

    fn remember_interfaces(&self, inventory: &Inventory) {
        let mut store = self.store.lock();
        let mut changes = Vec::new();
        for flow_log in store.flow_logs().values() {
            let (interfaces, _) = captures::interfaces(flow_log, inventory);
            let absent = interfaces.iter().all(|i| i.selector == Selector::absent());
            if !absent && interfaces != flow_log.interfaces {
                changes.push(Change::Put(Box::new(FlowLog { interfaces, ..flow_log.clone() })));
            }
        }
        if !changes.is_empty()
            && let Err(error) = store.commit(changes)
        {
            tracing::error!(%error, "cannot remember interfaces");
        }
    }

    /// The inventory has changed: flow logs remember their interfaces, and the agent captures them where they are now.
    async fn follow_inventory(&self) {
        let loaded = self.inventory.borrow().clone();
        loaded.problems.iter().for_each(|words| tracing::error!("inventory: {words}"));
        self.remember_interfaces(&loaded.inventory);
        self.order().await;
    }
}
