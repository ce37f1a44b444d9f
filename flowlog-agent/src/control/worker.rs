//! Carries requests out: one at a time for each contract, in the order they came. Whatever a crash interrupts is done
//! again from the store, so a step is written down before it is taken:
//!
//! ```text
//! provision: all checks pass -> PROVISIONING durable -> order -> ACTIVE durable    (or undone: VALIDATED durable -> order)
//! delete:    DELETING durable -> order -> gone, durable
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt as _, StreamExt as _, stream};
use tokio::{sync::oneshot, task::JoinSet};
use uuid::Uuid;

use super::{
    Control, Want,
    access::Caller,
    captures,
    change::audit,
    flow_log::{FlowLog, State},
    join,
    request::{Progress, Request, Work},
    store::{Change, RulesError},
};
use crate::{fault, inventory::Contract, rule::InvalidField, status::CaptureState};

/// Pause before an order that the agent could not carry out, or a transaction that failed, is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Flow logs of one request that are checked at the same time: a bucket that does not answer holds its place for a while.
const CHECKS_MAX: usize = 32;

/// Runs for ever.
pub async fn run(control: Arc<Control>) {
    let (mut busy, mut tasks) = (BTreeSet::new(), JoinSet::new());
    let mut inventory = control.inventory.clone();
    // What the store says may not be what the inventory says any more.
    inventory.mark_changed();
    loop {
        for request in control.waiting(&busy) {
            busy.insert(request.contract.clone());
            tasks.spawn(carry_out(control.clone(), request));
        }
        tokio::select! {
            () = control.work.notified() => {}
            Ok(()) = inventory.changed() => {
                control.follow_inventory().await;
            }
            Some(ended) = tasks.join_next() => match ended {
                Ok(contract) => drop(busy.remove(&contract)),
                Err(error) => {
                    // A bug of ours; what it was doing is in the store, and is done again.
                    tracing::error!(%error, "a request ended by itself");
                    busy.clear();
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

/// Carries one request out; returns its contract.
async fn carry_out(control: Arc<Control>, request: Request) -> Contract {
    loop {
        let result = match &request.work {
            Work::Provision(_) => control.carry_out_provision(&request).await,
            Work::Delete(id) => control.carry_out_delete(&request, *id).await,
            Work::Changed(_) => control.over(&request, Progress::Done, DONE.to_owned(), Vec::new()),
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

/// The cloud API's words for it.
const DONE: &str = "Request has been successfully executed";

impl Control {
    /// The next request of every contract that has none under way.
    fn waiting(&self, busy: &BTreeSet<Contract>) -> Vec<Request> {
        let store = self.store();
        let mut waiting: Vec<&Request> = store.requests().values().filter(|r| !r.progress.is_over()).collect();
        waiting.sort_by_key(|r| r.number);
        let mut next: BTreeMap<&Contract, &Request> = BTreeMap::new();
        for request in waiting.into_iter().filter(|r| !busy.contains(&r.contract)) {
            next.entry(&request.contract).or_insert(request);
        }
        next.into_values().cloned().collect()
    }

    fn commit(&self, changes: Vec<Change>) -> Result<(), RulesError> {
        self.store().commit(changes)
    }

    fn running(&self, request: &Request) -> Result<(), RulesError> {
        let running = Request { progress: Progress::Running, ..request.clone() };
        self.commit(vec![Change::Request(Box::new(running))])
    }

    fn over(
        &self,
        request: &Request,
        progress: Progress,
        message: String,
        mut with: Vec<Change>,
    ) -> Result<(), RulesError> {
        with.push(Change::Request(Box::new(Request { progress, message, ..request.clone() })));
        self.commit(with)
    }

    /// Who asked, with the privileges of today; nobody if they are gone.
    fn asker(&self, request: &Request) -> Option<Caller> {
        if request.asked.by_id == Uuid::nil() {
            return Some(Caller::Operator);
        }
        self.principals().get(request.asked.by_id).map(Caller::Principal)
    }

    async fn carry_out_provision(&self, request: &Request) -> Result<(), RulesError> {
        self.running(request)?;
        let named: Vec<FlowLog> = {
            let store = self.store();
            request.work.flow_logs().iter().filter_map(|id| store.flow_logs().get(id).cloned()).collect()
        };
        let Some(caller) = self.asker(request) else {
            let message = format!("`{}`, who asked for this, is not known any more", request.asked.by);
            return self.over(request, Progress::Failed, message, Vec::new());
        };
        // One that was provisioning when the agent ended had passed its checks.
        let (mut batch, pending): (Vec<FlowLog>, Vec<FlowLog>) =
            named.into_iter().filter(|f| f.state != State::Active).partition(|f| f.state == State::Provisioning);
        let checks: Vec<_> = pending.iter().map(|f| self.problems(&caller, f, &pending).boxed()).collect();
        let checked: Vec<Vec<InvalidField>> = stream::iter(checks).buffered(CHECKS_MAX).collect().await;
        if checked.iter().any(|problems| !problems.is_empty()) {
            let (message, changes) = refused(&caller, pending, checked);
            return self.over(request, Progress::Failed, message, changes);
        }
        batch.extend(pending);
        let mut changes = Vec::new();
        for flow_log in &mut batch {
            if flow_log.state == State::Draft {
                flow_log.state = State::Validated;
                changes.push(Change::Put(Box::new(flow_log.clone())));
            }
            flow_log.state = State::Provisioning;
            flow_log.key_name = flow_log.properties.name.parse().ok();
            flow_log.problems.clear();
            changes.push(Change::Put(Box::new(flow_log.clone())));
        }
        self.commit(changes)?;
        fault::point("rules_provisioning");
        let states = self.order().await;
        fault::point("rules_ordered");
        let troubles: Vec<Option<InvalidField>> = batch.iter().map(|f| trouble(f, &states)).collect();
        if troubles.iter().any(Option::is_some) {
            return self.undo(request, &caller, batch, troubles).await;
        }
        let mut changes = Vec::new();
        for mut flow_log in batch {
            flow_log.state = State::Active;
            flow_log.version += 1;
            changes.push(audit(&caller, &flow_log, "active"));
            changes.push(Change::Put(Box::new(flow_log)));
        }
        self.over(request, Progress::Done, DONE.to_owned(), changes)
    }

    /// One of them cannot be captured, so none is.
    async fn undo(
        &self,
        request: &Request,
        caller: &Caller,
        batch: Vec<FlowLog>,
        troubles: Vec<Option<InvalidField>>,
    ) -> Result<(), RulesError> {
        let mut problems = Vec::new();
        let mut changes = Vec::new();
        for (mut flow_log, trouble) in batch.into_iter().zip(troubles) {
            flow_log.state = State::Validated;
            flow_log.key_name = None;
            flow_log.problems = trouble.into_iter().collect();
            problems.extend(flow_log.problems.clone());
            changes.push(audit(caller, &flow_log, "provisioning undone"));
            changes.push(Change::Put(Box::new(flow_log)));
        }
        self.commit(changes)?;
        fault::point("rules_undone");
        self.order().await;
        self.over(request, Progress::Failed, join(&problems), Vec::new())
    }

    async fn carry_out_delete(&self, request: &Request, id: crate::types::FlowLogId) -> Result<(), RulesError> {
        self.running(request)?;
        let Some(mut flow_log) = self.store().flow_logs().get(&id).cloned() else {
            return self.over(request, Progress::Done, DONE.to_owned(), Vec::new());
        };
        // Who asked may be gone; the deletion was granted.
        let caller = self.asker(request).unwrap_or(Caller::Operator);
        if matches!(flow_log.state, State::Active | State::Deleting) {
            flow_log.state = State::Deleting;
            self.commit(vec![Change::Put(Box::new(flow_log.clone()))])?;
            fault::point("rules_deleting");
            self.order().await;
            fault::point("rules_ended");
        }
        let changes = vec![audit(&caller, &flow_log, "deleted"), Change::Remove(id)];
        self.over(request, Progress::Done, DONE.to_owned(), changes)
    }

    /// Makes the agent capture what store and inventory say; returns how every capture is doing.
    async fn order(&self) -> BTreeMap<String, CaptureState> {
        let _one = self.ordering.lock().await;
        loop {
            let loaded = self.inventory();
            let captures = captures::captures(self.store().flow_logs(), &loaded.inventory);
            let (done, answer) = oneshot::channel();
            let sent = self.orders.send(Want { captures, done }).await;
            match answer.await {
                Ok(Ok(states)) => return states,
                Ok(Err(words)) => tracing::warn!(words, "will order again"),
                Err(_) if sent.is_err() => tracing::debug!("the agent is ending"),
                Err(_) => {}
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// The inventory has changed: flow logs remember their interfaces, and the agent captures them where they are now.
    async fn follow_inventory(&self) {
        let loaded = self.inventory();
        loaded.problems.iter().for_each(|words| tracing::error!("inventory: {words}"));
        let mut changes = Vec::new();
        for flow_log in self.store().flow_logs().values() {
            let (interfaces, _) = captures::interfaces(flow_log, &loaded.inventory);
            let absent = interfaces.iter().all(|i| i.selector == crate::netdev::Selector::Absent);
            if !absent && interfaces != flow_log.interfaces {
                changes.push(Change::Put(Box::new(FlowLog { interfaces, ..flow_log.clone() })));
            }
        }
        if !changes.is_empty()
            && let Err(error) = self.commit(changes)
        {
            tracing::error!(%error, "cannot remember interfaces");
        }
        self.order().await;
    }
}

/// What checks have found, for the request and for each flow log.
fn refused(caller: &Caller, pending: Vec<FlowLog>, checked: Vec<Vec<InvalidField>>) -> (String, Vec<Change>) {
    let (mut words, mut changes) = (Vec::new(), Vec::new());
    for (mut flow_log, problems) in pending.into_iter().zip(checked) {
        if !problems.is_empty() {
            words.push(format!("flow log `{}`: {}", flow_log.properties.name.escape_debug(), join(&problems)));
        }
        flow_log.state = if problems.is_empty() { State::Validated } else { State::Draft };
        flow_log.problems = problems;
        changes.push(audit(caller, &flow_log, "provisioning refused"));
        changes.push(Change::Put(Box::new(flow_log)));
    }
    (words.join("; "), changes)
}

/// Why a flow log cannot be captured, if it cannot. An interface that is not there yet is no trouble: it is waited for.
fn trouble(flow_log: &FlowLog, states: &BTreeMap<String, CaptureState>) -> Option<InvalidField> {
    flow_log.interfaces.iter().find_map(|i| match states.get(&i.id) {
        Some(CaptureState::Trouble { why: words }) => {
            Some(InvalidField::new("interface", i.selector.to_string(), words.clone()))
        }
        _ => None,
    })
}
