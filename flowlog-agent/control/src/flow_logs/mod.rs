//! Flow logs as customers manage them: who may do what, what is checked, what is written down, and how that becomes
//! captures. One direction: a caller's wish -> checks -> the store (durable) -> an order to the agent -> the store.
//!
//! * [`access`], [`principals`]: who is asking, and what they may do;
//! * [`flow_log`], [`request`]: the things that are kept, and their states;
//! * [`store`]: keeping them, transactionally;
//! * [`captures`]: what the kernel is to do, as a function of the store and the inventory;
//! * [`change`]: what callers can wish for; all of it is quick;
//! * [`validate`]: the checks behind the green light;
//! * [`summary`]: what a person wants to know about one;
//! * [`worker`]: carries requests out, and goes on with them after a restart.
//!
//! How a wish is spelled on the wire does not belong here ([`crate::api`]), nor how packets are captured (the crate of the pipeline).

pub mod access;
pub mod captures;
pub mod change;
pub mod flow_log;
pub mod principals;
pub mod request;
pub mod store;
pub mod summary;
pub mod validate;
pub mod worker;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use access::{Access, Caller, Operation};
use async_trait::async_trait;
use flow_log::{FlowLog, Settings, Stamp};
use flowlog_host::clock;
use flowlog_model::{
    CaptureSpec, FlowLogId,
    rule::{InvalidField, Location},
    status::{CaptureState, Status},
};
use principals::Principals;
use request::Request;
use store::{AuditEntry, FlowLogStore, RulesError};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use uuid::Uuid;

use crate::inventory::{Contract, Resource, load::Loaded};

/// How long somebody may wait for a request with one question.
pub const LONG_POLL: Duration = Duration::from_secs(20);

/// An order to the agent: capture this, and nothing else.
pub struct CaptureOrder {
    /// The captures.
    pub captures: Vec<CaptureSpec>,
    /// Where to answer when it has been carried out.
    pub done: Answer,
}

/// How each capture is doing after an order, by interface id; or why the order has to wait.
pub type Answer = oneshot::Sender<Result<BTreeMap<String, CaptureState>, String>>;

/// The way to buckets: a port to whatever delivers objects.
#[async_trait]
pub trait BucketProbe: Send + Sync {
    /// Makes an object in a folder of a bucket, and removes it again.
    ///
    /// # Errors
    /// The store's words.
    async fn probe(&self, location: &Location, folder: &str) -> Result<(), String>;
}

/// Why a wish is not granted.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It is not there, or not for this caller.
    #[error("{0} does not exist")]
    NotFound(String),
    /// It is there, but this caller may not do that.
    #[error("{0}")]
    Forbidden(String),
    /// Fields break rules.
    #[error("{}", join(.0))]
    Invalid(Vec<InvalidField>),
    /// It conflicts with the state that things are in.
    #[error("{0}")]
    Conflict(String),
    /// A limit is reached.
    #[error("{0}")]
    TooMany(String),
    /// The store failed.
    #[error(transparent)]
    FlowLogStore(#[from] RulesError),
}

/// Problems on one line.
#[must_use]
pub fn join(problems: &[InvalidField]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// The dependencies of [`Control`].
pub struct Parts {
    /// The rule store.
    pub store: FlowLogStore,
    /// The inventory, as of now and later.
    pub inventory: watch::Receiver<Arc<Loaded>>,
    /// The principals, likewise.
    pub principals: watch::Receiver<Arc<Principals>>,
    /// The way to buckets.
    pub buckets: Arc<dyn BucketProbe>,
    /// For new flow logs.
    pub settings: Settings,
    /// Interfaces that there is room for in the kernel's maps.
    pub places_max: usize,
    /// The way to the agent.
    pub orders: mpsc::Sender<CaptureOrder>,
    /// How every capture is doing.
    pub status: watch::Receiver<Arc<Status>>,
}

/// See the module's head.
pub struct Control {
    store: Mutex<FlowLogStore>,
    inventory: watch::Receiver<Arc<Loaded>>,
    principals: watch::Receiver<Arc<Principals>>,
    buckets: Arc<dyn BucketProbe>,
    settings: Settings,
    places_max: usize,
    orders: mpsc::Sender<CaptureOrder>,
    status: watch::Receiver<Arc<Status>>,
    /// There is something to do.
    work: Notify,
    /// One order at a time.
    ordering: tokio::sync::Mutex<()>,
}

impl Control {
    /// Takes over the store. [`worker`] must run for requests to be carried out.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts { store, inventory, principals, buckets, settings, places_max, orders, status } = parts;
        Self {
            store: Mutex::new(store),
            inventory,
            principals,
            buckets,
            settings,
            places_max,
            orders,
            status,
            work: Notify::new(),
            ordering: tokio::sync::Mutex::new(()),
        }
    }

    fn store(&self) -> MutexGuard<'_, FlowLogStore> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The inventory as of now.
    #[must_use]
    pub fn inventory(&self) -> Arc<Loaded> {
        self.inventory.borrow().clone()
    }

    /// The principals as of now.
    #[must_use]
    pub fn principals(&self) -> Arc<Principals> {
        self.principals.borrow().clone()
    }

    /// How every capture is doing.
    #[must_use]
    pub fn status(&self) -> Arc<Status> {
        self.status.borrow().clone()
    }

    /// A resource that a caller sees.
    ///
    /// # Errors
    /// [`Refused::NotFound`].
    pub fn resource(&self, caller: &Caller, id: Uuid) -> Result<Resource, Refused> {
        let loaded = self.inventory();
        let resource = loaded.inventory.resources.get(&id).filter(|r| caller.sees(&r.contract));
        resource.cloned().ok_or_else(|| Refused::NotFound(format!("resource {id}")))
    }

    /// Flow logs that a caller sees, the oldest first.
    #[must_use]
    pub fn flow_logs(&self, caller: &Caller, wanted: impl Fn(&FlowLog) -> bool) -> Vec<FlowLog> {
        let store = self.store();
        let seen = store.flow_logs().values().filter(|f| caller.sees(&f.contract) && wanted(f));
        let mut all: Vec<FlowLog> = seen.cloned().collect();
        all.sort_by_key(|f| (f.created.at_secs, f.id));
        all
    }

    /// A flow log that a caller sees.
    ///
    /// # Errors
    /// [`Refused::NotFound`].
    pub fn flow_log(&self, caller: &Caller, id: FlowLogId) -> Result<FlowLog, Refused> {
        visible(&self.store(), caller, id).cloned()
    }

    /// A request that a caller sees.
    ///
    /// # Errors
    /// [`Refused::NotFound`].
    pub fn request(&self, caller: &Caller, id: Uuid) -> Result<Request, Refused> {
        let store = self.store();
        let request = store.requests().get(&id).filter(|r| caller.sees(&r.contract));
        request.cloned().ok_or_else(|| Refused::NotFound(format!("request {id}")))
    }

    /// A request that a caller sees, when it is over, or as it is after [`LONG_POLL`].
    ///
    /// # Errors
    /// [`Refused::NotFound`].
    pub async fn finished(&self, caller: &Caller, id: Uuid) -> Result<Request, Refused> {
        let mut changes = self.store().changes();
        let over = async {
            while !self.request(caller, id)?.progress.is_over() && changes.changed().await.is_ok() {}
            self.request(caller, id)
        };
        tokio::time::timeout(LONG_POLL, over).await.unwrap_or_else(|_| self.request(caller, id))
    }

    /// Requests that a caller sees, the newest first.
    #[must_use]
    pub fn requests(&self, caller: &Caller) -> Vec<Request> {
        let store = self.store();
        let mut all: Vec<Request> = store.requests().values().filter(|r| caller.sees(&r.contract)).cloned().collect();
        all.sort_by_key(|r| std::cmp::Reverse(r.number));
        all
    }

    /// Whether a flow log has a request that is not over.
    #[must_use]
    pub fn is_busy(&self, id: FlowLogId) -> bool {
        busy(&self.store(), id)
    }

    /// The last `most` entries of the audit log that a caller may read, newest first.
    ///
    /// # Errors
    /// [`Refused::Forbidden`].
    pub fn audit(&self, caller: &Caller, most: usize) -> Result<Vec<AuditEntry>, Refused> {
        if let Some(contract) = caller.contract() {
            allowed(caller, Operation::Audit, contract, "the audit log")?;
        }
        let may = |contract: &Contract| caller.may(Operation::Audit, contract) == Access::Granted;
        Ok(self.store().audit(most, |entry| may(&entry.contract))?)
    }
}

fn visible<'a>(store: &'a FlowLogStore, caller: &Caller, id: FlowLogId) -> Result<&'a FlowLog, Refused> {
    let found = store.flow_logs().get(&id).filter(|f| caller.sees(&f.contract));
    found.ok_or_else(|| Refused::NotFound(format!("flow log {id}")))
}

fn busy(store: &FlowLogStore, id: FlowLogId) -> bool {
    store.requests().values().any(|r| !r.progress.is_over() && r.work.flow_logs().contains(&id))
}

/// Refuses what a caller may not do.
fn allowed(caller: &Caller, operation: Operation, contract: &Contract, what: &str) -> Result<(), Refused> {
    match caller.may(operation, contract) {
        Access::Granted => Ok(()),
        Access::Hidden => Err(Refused::NotFound(what.to_owned())),
        Access::Needs(privilege) => {
            let name = caller.name();
            Err(Refused::Forbidden(format!(
                "`{name}` needs the privilege to {}; an owner or administrator of the contract can grant it",
                privilege.words()
            )))
        }
        Access::NeedsAdministrator => {
            Err(Refused::Forbidden("only owners and administrators of the contract may do that".to_owned()))
        }
    }
}

fn stamp(caller: &Caller) -> Stamp {
    Stamp { by: caller.name().to_owned(), by_id: caller.id(), at_secs: clock::now().wall.secs() }
}
