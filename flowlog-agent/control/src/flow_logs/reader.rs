//! What callers see: nothing of contracts that are not theirs.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use flowlog_host::clock;
use flowlog_model::{
    FlowLogId,
    status::{RuleStatus, Status},
};
use tokio::sync::watch;
use uuid::Uuid;

use super::{
    Refused,
    access::{Caller, Operation},
    allowed,
    flow_log::FlowLog,
    history::{History, Traffic},
    principals::Principals,
    request::Request,
    store::{AuditEntry, FlowLogStore, SharedStore},
    summary::Summary,
    templates::{self, Templates},
};
use crate::inventory::{Resource, load::Loaded};

/// How long somebody may wait for a request with one question.
pub(crate) const LONG_POLL: Duration = Duration::from_secs(20);

/// See the module's head.
pub struct Reader {
    store: SharedStore,
    inventory: watch::Receiver<Arc<Loaded>>,
    templates: watch::Receiver<Arc<Templates>>,
    principals: watch::Receiver<Arc<Principals>>,
    status: watch::Receiver<Arc<Status>>,
    history: History,
}

impl Reader {
    pub(super) fn new(
        store: SharedStore,
        inventory: watch::Receiver<Arc<Loaded>>,
        templates: watch::Receiver<Arc<Templates>>,
        principals: watch::Receiver<Arc<Principals>>,
        status: watch::Receiver<Arc<Status>>,
    ) -> Self {
        Self { store, inventory, templates, principals, status, history: History::default() }
    }

    /// The inventory as of now.
    #[must_use]
    pub(crate) fn inventory(&self) -> Arc<Loaded> {
        self.inventory.borrow().clone()
    }

    /// By which flow log of the configuration each resource is covered that a caller sees.
    #[must_use]
    pub(crate) fn covered(&self, caller: &Caller) -> BTreeMap<Uuid, String> {
        let (loaded, templates) = (self.inventory(), self.templates.borrow().clone());
        let taken = templates::taken(&self.store.lock());
        let seen = loaded.inventory.resources.values().filter(|r| caller.sees(&r.contract));
        seen.filter_map(|r| Some((r.id, templates.of(r, &taken)?.name().to_owned()))).collect()
    }

    /// The principals as of now.
    #[must_use]
    pub(crate) fn principals(&self) -> Arc<Principals> {
        self.principals.borrow().clone()
    }

    /// How everything is doing now.
    #[must_use]
    pub(crate) fn status(&self) -> Arc<Status> {
        self.status.borrow().clone()
    }

    /// Writes down what each flow log counts, for ever.
    pub(crate) async fn keep_history(&self) {
        let mut status = self.status.clone();
        while status.changed().await.is_ok() {
            let now = status.borrow_and_update().clone();
            self.history.observe(&now, clock::now().wall.secs());
        }
    }

    /// What a flow log has counted in the last hours.
    #[must_use]
    pub(crate) fn traffic(&self, flow_log: &FlowLog) -> Traffic {
        self.history.traffic(flow_log.id, flow_log.settings.window_secs, clock::now().wall.secs())
    }

    /// The principals, now and later.
    #[must_use]
    pub(crate) fn watch_principals(&self) -> watch::Receiver<Arc<Principals>> {
        let mut principals = self.principals.clone();
        principals.mark_unchanged();
        principals
    }

    /// Sums a flow log up.
    #[must_use]
    pub(crate) fn summary(&self, flow_log: FlowLog) -> Summary {
        let is_there = flow_log.has_its_parent(&self.inventory.borrow().inventory);
        Summary::of(flow_log, &self.status.borrow(), is_there, clock::now().wall.secs())
    }

    /// Sums many up: what is being done is looked through once.
    #[must_use]
    pub(crate) fn summaries(&self, flow_logs: Vec<FlowLog>) -> Vec<Summary> {
        let (loaded, status) = (self.inventory(), self.status());
        let now_secs = clock::now().wall.secs();
        let mut captures: BTreeMap<FlowLogId, Vec<RuleStatus>> = BTreeMap::new();
        for rule in &status.rules {
            if let Some(id) = rule.rule_id {
                captures.entry(id).or_default().push(rule.clone());
            }
        }
        let sum_up = |f: FlowLog| {
            let is_there = f.has_its_parent(&loaded.inventory);
            let captures = captures.remove(&f.id).unwrap_or_default();
            Summary::with(f, captures, is_there, now_secs)
        };
        flow_logs.into_iter().map(sum_up).collect()
    }

    /// What there is to say about a request now.
    #[must_use]
    pub(crate) fn message(&self, request: &Request) -> String {
        request.message(&self.status.borrow())
    }

    /// A resource that a caller sees.
    ///
    /// # Errors
    /// [`Refused::NotFound`].
    pub(crate) fn resource(&self, caller: &Caller, id: Uuid) -> Result<Resource, Refused> {
        let loaded = self.inventory();
        let resource = loaded.inventory.resources.get(&id).filter(|r| caller.sees(&r.contract));
        resource.cloned().ok_or_else(|| Refused::NotFound(format!("resource {id}")))
    }

    /// Flow logs that a caller sees, the oldest first.
    #[must_use]
    pub(crate) fn flow_logs(&self, caller: &Caller, wanted: impl Fn(&FlowLog) -> bool) -> Vec<FlowLog> {
        let store = self.store.lock();
        let seen = store.flow_logs().values().filter(|f| caller.sees(&f.contract) && wanted(f));
        let mut all: Vec<FlowLog> = seen.cloned().collect();
        all.sort_by_key(|f| (f.created.at_secs, f.id));
        all
    }

    /// A flow log that a caller sees.
    ///
    /// # Errors
    /// [`Refused::NotFound`].
    pub(crate) fn flow_log(&self, caller: &Caller, id: FlowLogId) -> Result<FlowLog, Refused> {
        visible(&self.store.lock(), caller, id).cloned()
    }

    /// A request that a caller sees.
    ///
    /// # Errors
    /// [`Refused::NotFound`].
    pub(crate) fn request(&self, caller: &Caller, id: Uuid) -> Result<Request, Refused> {
        let store = self.store.lock();
        let request = store.requests().get(&id).filter(|r| caller.sees(&r.contract));
        request.cloned().ok_or_else(|| Refused::NotFound(format!("request {id}")))
    }

    /// A request that a caller sees, when it is over, or as it is after [`LONG_POLL`].
    ///
    /// # Errors
    /// [`Refused::NotFound`].
    pub(crate) async fn finished(&self, caller: &Caller, id: Uuid) -> Result<Request, Refused> {
        let mut changes = self.store.lock().changes();
        let over = async {
            while !self.request(caller, id)?.progress.is_over() && changes.changed().await.is_ok() {}
            self.request(caller, id)
        };
        tokio::time::timeout(LONG_POLL, over).await.unwrap_or_else(|_| self.request(caller, id))
    }

    /// Requests that a caller sees, the newest first.
    #[must_use]
    pub(crate) fn requests(&self, caller: &Caller) -> Vec<Request> {
        let store = self.store.lock();
        let mut all: Vec<Request> = store.requests().values().filter(|r| caller.sees(&r.contract)).cloned().collect();
        all.sort_by_key(|r| std::cmp::Reverse(r.number));
        all
    }

    /// Whether a flow log has a request that is not over.
    #[must_use]
    pub(crate) fn is_busy(&self, id: FlowLogId) -> bool {
        self.store.lock().is_busy(id)
    }

    /// The last `most` entries of the audit log that a caller may read, newest first.
    ///
    /// # Errors
    /// [`Refused::Forbidden`].
    pub(crate) async fn audit(&self, caller: &Caller, most: usize) -> Result<Vec<AuditEntry>, Refused> {
        let contract = caller.contract();
        if let Some(contract) = contract {
            allowed(caller, Operation::Audit, contract, "the audit log")?;
        }
        Ok(self.store.audit(most, contract).await?)
    }
}

/// A flow log that a caller sees.
pub(super) fn visible<'a>(store: &'a FlowLogStore, caller: &Caller, id: FlowLogId) -> Result<&'a FlowLog, Refused> {
    let found = store.flow_logs().get(&id).filter(|f| caller.sees(&f.contract));
    found.ok_or_else(|| Refused::NotFound(format!("flow log {id}")))
}
