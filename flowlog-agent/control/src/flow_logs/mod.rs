//! Flow logs as customers manage them: who may do what, what is checked, what is written down, and how that becomes
//! captures. One direction: a caller's wish -> checks -> the store (durable) -> an order to the agent -> the store.
//!
//! * [`access`], [`principals`]: who is asking, and what they may do;
//! * [`flow_log`], [`request`]: the things that are kept, and their states;
//! * [`store`]: keeping them, transactionally; `shares`: what is forgotten first;
//! * [`captures`]: what the kernel is to do, as a function of the store and the inventory; [`templates`]: and of the configuration, by
//!   selection;
//! * [`reader`]: what callers see; [`history`]: of the last hours;
//! * [`editor`]: what callers can wish for; all of it is quick; [`expected`]: and of which version;
//! * [`validator`]: the checks behind the green light;
//! * [`summary`]: what a person wants to know about one;
//! * [`worker`]: carries requests out, and goes on with them after a restart.
//!
//! The reader, the editor, the validator and the worker share the store and nothing else. The editor wakes the worker.
//!
//! How a wish is spelled on the wire does not belong here ([`crate::api`]), nor how packets are captured (the crate of the pipeline).

pub(crate) mod access;
pub mod captures;
pub mod editor;
pub(crate) mod expected;
pub mod flow_log;
pub(crate) mod history;
pub mod principals;
pub(crate) mod reader;
pub mod request;
mod shares;
pub mod store;
pub mod summary;
pub mod templates;
pub(crate) mod validator;
pub(crate) mod worker;

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicUsize},
};

use access::{Access, Caller, Operation};
use async_trait::async_trait;
use editor::Editor;
use flow_log::{Settings, Stamp};
use flowlog_host::clock;
use flowlog_model::{
    CaptureSpec, FlowLogId,
    rule::{InvalidField, Location},
    status::{CaptureState, Status},
};
use principals::Principals;
use reader::Reader;
use store::{FlowLogStoreError, SharedStore};
use templates::Templates;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use validator::Validator;
use worker::Worker;

use crate::{
    inventory::{Contract, load::Loaded},
    live::LiveSource,
};

/// An order to the agent: capture this, and nothing else.
pub struct CaptureOrder {
    pub captures: Vec<CaptureSpec>,
    /// It is not to be carried out: only how that would go is to be said.
    pub is_trial: bool,
    /// Where to answer when it has been carried out.
    pub done: Answer,
}

/// How each capture is doing after an order, by interface id; or why the order has to wait.
pub type Answer = oneshot::Sender<Result<BTreeMap<String, CaptureState>, String>>;

/// The way to buckets: the control plane's port to whatever delivers objects.
#[async_trait]
pub trait BucketProbe: Send + Sync {
    /// Finds out whether objects can be made in a folder of a bucket. Leaves nothing there.
    ///
    /// # Errors
    /// See [`ProbeError`].
    async fn probe(&self, location: &Location, folder: &str) -> Result<(), ProbeError>;
}

/// Why no objects can be made in a bucket.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It is not there, or not for this node: a customer is not told which. The words are for the log.
    #[error("{0}")]
    Closed(String),
    /// Anything else, in the store's words.
    #[error("{0}")]
    Other(String),
}

/// Why a wish is not granted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// It is not there, or not for this caller.
    #[error("{0} does not exist")]
    NotFound(String),
    /// It is there, but this caller may not do that.
    #[error("{0}")]
    Forbidden(String),
    #[error("{}", join(.0))]
    Invalid(Vec<InvalidField>),
    /// It conflicts with the state that things are in.
    #[error("{0}")]
    Conflict(String),
    /// It is not what the caller has seen any more.
    #[error("{0}")]
    Stale(String),
    /// A limit is reached.
    #[error("{0}")]
    TooMany(String),
    #[error(transparent)]
    FlowLogStore(#[from] FlowLogStoreError),
}

/// Problems on one line.
#[must_use]
pub(crate) fn join(problems: &[InvalidField]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// The dependencies of the control plane.
pub struct Parts {
    /// The flow logs, requests and the audit log.
    pub store: SharedStore,
    /// The inventory, as of now and later.
    pub inventory: watch::Receiver<Arc<Loaded>>,
    pub principals: watch::Receiver<Arc<Principals>>,
    /// The way to buckets.
    pub buckets: Arc<dyn BucketProbe>,
    /// For new flow logs, as of now and later.
    pub settings: watch::Receiver<Settings>,
    /// Flow logs by selection, as of now and later.
    pub templates: watch::Receiver<Arc<Templates>>,
    /// Interfaces that there is room for in the kernel's maps; a reload may change what others take.
    pub places_max: Arc<AtomicUsize>,
    /// The way to the agent.
    pub orders: mpsc::Sender<CaptureOrder>,
    /// How every capture is doing.
    pub status: watch::Receiver<Arc<Status>>,
    /// Where live flows come from.
    pub live: Arc<dyn LiveSource>,
    /// Callers change flow logs elsewhere: here they only read.
    pub is_elsewhere: bool,
    /// Who captures, if not the agent of this process.
    pub elsewhere: Option<Arc<dyn Elsewhere>>,
}

/// Who captures what flow logs say, where it is not the agent of this process: a port.
#[async_trait]
pub trait Elsewhere: Send + Sync {
    /// Waits until these are captured that are being provisioned, or cannot be: then why not. One that nobody could capture now is as good as
    /// captured: whoever can some day will.
    async fn provisioned(&self, ids: &[FlowLogId]) -> BTreeMap<FlowLogId, InvalidField>;

    /// Waits until the capture of one that is being deleted has ended.
    async fn ended(&self, id: FlowLogId);
}

/// What the API calls.
pub struct Control {
    pub reader: Reader,
    /// What callers wish for.
    pub editor: Editor,
    /// The checks behind the green light.
    pub validator: Arc<Validator>,
    /// Where live flows come from.
    pub live: Arc<dyn LiveSource>,
}

/// What captures are a function of.
#[derive(Clone)]
pub(crate) struct Wanted {
    pub store: SharedStore,
    pub inventory: watch::Receiver<Arc<Loaded>>,
    pub templates: watch::Receiver<Arc<Templates>>,
}

/// Takes over the store. The worker must run for requests to be carried out.
#[must_use]
pub fn control_plane(parts: Parts) -> (Control, Worker) {
    let Parts { store, inventory, principals, buckets, settings, templates, places_max, orders, status, live, .. } =
        parts;
    let (is_elsewhere, elsewhere) = (parts.is_elsewhere, parts.elsewhere);
    let work = Arc::new(Notify::new());
    let wanted = Wanted { store: store.clone(), inventory: inventory.clone(), templates: templates.clone() };
    let validator = Arc::new(Validator::new(wanted.clone(), buckets, orders.clone(), places_max));
    let worker = Worker::new(wanted, principals.clone(), validator.clone(), (orders, elsewhere), work.clone());
    let editor = Editor::new(store.clone(), settings, work, is_elsewhere);
    let reader = Reader::new(store, inventory, templates, principals, status);
    (Control { reader, editor, validator, live }, worker)
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
