//! A server of a region: API and console for all of its nodes, without a kernel.
//!
//! What callers read is in memory, as etcd has told it; while etcd is away that is what they go on reading, and every change is refused with
//! the reason. One of several servers carries requests out ([`super::leader`]); what takes a node is waited for.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use etcd_client::{PutOptions, TxnOp};
use flowlog_host::clock;
use flowlog_model::{FlowLogId, live::LiveError, rule::InvalidField, status::Status};
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::{
    claim::{Claim, Holder, Lease},
    leader::lead,
    merged::{self, Claims, NodeSaid, Nodes},
    said::{self},
};
use crate::{
    etcd::{
        EtcdHealth, EtcdOptions, Named,
        connection::{Etcd, EtcdError, in_time},
        feed::{Entry, Fed, Feed, KeyChange, News},
        keys,
    },
    flow_logs::{
        BucketProbe, CaptureOrder, Control, Elsewhere, Parts, control_plane,
        flow_log::{Settings, State},
        principals::Principals,
        store::{
            SharedStore,
            etcd::{StoreFeed, Writer, in_etcd},
        },
        templates::Templates,
        worker::Worker,
    },
    inventory::load::Loaded,
    live::{LiveSource, LiveStream},
};

/// Least between two times that what nodes say is put together: with a thousand nodes and 100,000 flow logs that takes a good part of it.
const MERGED_EVERY: Duration = Duration::from_millis(500);
/// How often it is looked whether a node has gone that is waited for.
const LOOKED_EVERY: Duration = Duration::from_secs(1);
/// How often a server says that it has its name, or asks for it.
const NAMED_EVERY: Duration = Duration::from_secs(3);
/// Trials that wait at most.
const TRIALS_MAX: usize = 64;

/// The dependencies of a server.
pub struct RegionParts {
    pub etcd: EtcdOptions,
    /// What this server is called: no two have one name.
    pub name: String,
    /// Whose buckets are whose, by this server's own files.
    pub inventory: watch::Receiver<Arc<Loaded>>,
    pub principals: watch::Receiver<Arc<Principals>>,
    pub buckets: Arc<dyn BucketProbe>,
    /// For new flow logs.
    pub settings: watch::Receiver<Settings>,
}

/// Figures of a region.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegionFigures {
    pub nodes: usize,
    /// Those that are not heard of.
    pub nodes_away: usize,
    pub flow_logs: usize,
    /// Resources that several nodes have.
    pub claimed_twice: usize,
    /// Whether etcd answers.
    pub etcd_answers: bool,
    /// Why this server changes nothing though it does, if so: another one has its name.
    pub taken: Option<String>,
}

/// See the module's head.
pub struct RegionWorker {
    etcd: Arc<Etcd>,
    name: String,
    claim: Claim,
    named: watch::Receiver<Named>,
    /// The lease of the name; 0: there is none yet.
    lease: Arc<AtomicI64>,
    store: SharedStore,
    feed: StoreFeed,
    nodes: Said,
    worker: Arc<Worker>,
    own: watch::Receiver<Arc<Loaded>>,
    inventory: watch::Sender<Arc<Loaded>>,
    status: watch::Sender<Arc<Status>>,
    claims: watch::Sender<Arc<Claims>>,
    trials: mpsc::Receiver<CaptureOrder>,
}

/// A server's control plane.
#[must_use]
pub fn plane(parts: RegionParts) -> (Control, RegionWorker) {
    let RegionParts { etcd, name, inventory: own, principals, buckets, settings } = parts;
    let etcd = Etcd::new(etcd);
    let (naming, named) = watch::channel(Named::default());
    let what = format!("server with the `node_id` `{name}`");
    let holder_of = |value: &[u8]| serde_json::from_slice(value).ok();
    let claim = Claim::new(etcd.clone(), keys::server(&name), what, Holder::this(None), holder_of, naming);
    let writer = Writer { name: format!("server-{name}"), plans_contracts: true, named: named.clone() };
    let (store, feed) = in_etcd(&etcd, writer);
    let inventory = watch::Sender::new(own.borrow().clone());
    let status = watch::Sender::new(Arc::new(Status::default()));
    let claims = watch::Sender::new(Arc::new(Claims::default()));
    let (_, templates) = watch::channel(Arc::new(Templates::default()));
    let (orders, trials) = mpsc::channel(TRIALS_MAX);
    let elsewhere = Arc::new(OnNodes { store: store.clone(), claims: claims.subscribe() });
    let parts = Parts {
        store: store.clone(),
        inventory: inventory.subscribe(),
        principals,
        buckets,
        settings,
        templates,
        // Each node has its own.
        places_max: Arc::new(usize::MAX.into()),
        orders,
        status: status.subscribe(),
        live: Arc::new(NotHere),
        is_elsewhere: false,
        elsewhere: Some(elsewhere),
    };
    let (control, worker) = control_plane(parts);
    let nodes = Said::default();
    let worker = RegionWorker {
        etcd,
        name,
        claim,
        named,
        lease: Arc::default(),
        store,
        feed,
        nodes,
        worker: Arc::new(worker),
        own,
        inventory,
        status,
        claims,
        trials,
    };
    (control, worker)
}

impl RegionWorker {
    /// How etcd is doing, now and later.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<EtcdHealth> {
        self.etcd.health()
    }

    /// Figures, now and later.
    pub fn figures(&self) -> impl Fn() -> RegionFigures + Send + Sync + use<> {
        let (nodes, store, claims, health) =
            (self.nodes.clone(), self.store.clone(), self.claims.subscribe(), self.etcd.health());
        let named = self.named.clone();
        move || {
            let known = nodes.lock();
            RegionFigures {
                nodes: known.len(),
                nodes_away: known.values().filter(|n| n.status.is_none()).count(),
                flow_logs: store.lock().flow_logs().len(),
                claimed_twice: claims.borrow().values().filter(|names| names.len() > 1).count(),
                etcd_answers: *health.borrow() == EtcdHealth::Fine,
                taken: if let Named::Taken(words) = &*named.borrow() { Some(words.clone()) } else { None },
            }
        }
    }

    /// Gives the name back, so that whoever is called so next has it at once.
    pub fn leave(&self) -> impl Future<Output = ()> + Send + use<> {
        let (etcd, lease) = (self.etcd.clone(), self.lease.clone());
        async move {
            let id = lease.load(Ordering::Relaxed);
            if let (true, Ok(mut client)) = (id != 0, etcd.client().await) {
                // What is not given back goes with its lease.
                let _ = in_time(async { Ok(client.lease_revoke(id).await?) }).await;
            }
        }
    }

    /// For ever. `serve` begins when all that etcd has has been read once, and it is known whose our name is.
    pub async fn run(self, serve: impl Future<Output = ()>) {
        let Self {
            etcd,
            name,
            claim,
            named,
            lease,
            store,
            feed,
            nodes,
            worker,
            own,
            inventory,
            status,
            claims,
            trials,
        } = self;
        let mut told = feed.told();
        let mut heard = nodes.read.subscribe();
        tokio::spawn(feed.run());
        tokio::spawn(Feed::new(etcd.clone(), keys::NODES, None).run(nodes.clone()));
        tokio::spawn(answer(trials));
        tokio::spawn(hold_name(claim, lease));
        let _ = told.wait_for(|revision| *revision > 0).await;
        let _ = heard.wait_for(|is_read| *is_read).await;
        let _ = named.clone().wait_for(|named| *named != Named::Unknown).await;
        tracing::info!(flow_logs = store.lock().flow_logs().len(), nodes = nodes.lock().len(), "the region is known");
        let (shape, captured) = Default::default();
        let mut merging = Merging { nodes, store, own, inventory, status, claims, shape, captured };
        merging.merge(true, true);
        tokio::spawn(merging.run());
        tokio::spawn(lead(etcd, name, worker, named));
        serve.await;
    }
}

/// Has the server's name, or asks for it, for ever.
async fn hold_name(mut claim: Claim, lease: Arc<AtomicI64>) {
    loop {
        let Err(error) = while_leased(&mut claim, &lease).await;
        tracing::debug!(%error, "the server's name is not held");
        tokio::time::sleep(NAMED_EVERY).await;
    }
}

async fn while_leased(claim: &mut Claim, id: &AtomicI64) -> Result<std::convert::Infallible, EtcdError> {
    let mut lease = Lease::grant(&claim.etcd).await?;
    id.store(lease.id, Ordering::Relaxed);
    loop {
        lease.keep_alive().await?;
        let value = serde_json::to_vec(claim.who()).unwrap_or_default();
        let put = TxnOp::put(claim.key(), value, Some(PutOptions::new().with_lease(lease.id)));
        claim.write(lease.id, vec![put]).await?;
        tokio::time::sleep(NAMED_EVERY).await;
    }
}

/// Whether an interface could be captured is known on its node: a trial finds nothing against it.
async fn answer(mut trials: mpsc::Receiver<CaptureOrder>) {
    while let Some(order) = trials.recv().await {
        let _ = order.done.send(Ok(BTreeMap::new()));
    }
}

/// What nodes have said.
#[derive(Clone, Default)]
struct Said {
    nodes: Arc<Mutex<Nodes>>,
    loading: Nodes,
    changed: watch::Sender<()>,
    /// All of it has been read once.
    read: watch::Sender<bool>,
}

impl Said {
    fn lock(&self) -> std::sync::MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fed for Said {
    fn take(&mut self, news: News) -> Result<(), String> {
        match news {
            News::Begin(_) => self.loading.clear(),
            News::Page(entries) => entries.iter().for_each(|entry| put(&mut self.loading, entry)),
            News::End(_) => {
                *self.lock() = std::mem::take(&mut self.loading);
                self.changed.send_replace(());
                self.read.send_replace(true);
            }
            News::Changes(changes, _) => {
                {
                    let mut nodes = self.lock();
                    for change in &changes {
                        match change {
                            KeyChange::Put(entry) => put(&mut nodes, entry),
                            KeyChange::Delete(name) => gone(&mut nodes, name),
                        }
                    }
                }
                if !changes.is_empty() {
                    self.changed.send_replace(());
                }
            }
        }
        Ok(())
    }
}

fn put(nodes: &mut Nodes, Entry { name, value, revision }: &Entry) {
    let Some((node, what)) = name.strip_prefix(keys::NODES).and_then(|rest| rest.split_once('/')) else { return };
    let node: &mut NodeSaid = nodes.entry(node.to_owned()).or_default();
    let is_understood = match what {
        "resources" => {
            said::read(value).map(|read| (node.resources, node.revision) = (Arc::new(read), *revision)).is_some()
        }
        // It is heard of all the same.
        "status" => {
            let read = said::read(value).map(Arc::new);
            let is_understood = read.is_some();
            node.status = read.or(node.status.take()).or_else(|| Some(Arc::default()));
            is_understood
        }
        _ => return,
    };
    if is_understood {
        node.not_understood.remove(what);
    } else {
        node.not_understood.insert(what.to_owned());
    }
}

/// A node that says neither what it has nor how it is doing is none.
fn gone(nodes: &mut Nodes, name: &str) {
    let Some((node, what)) = name.strip_prefix(keys::NODES).and_then(|rest| rest.split_once('/')) else { return };
    match (what, nodes.get_mut(node)) {
        ("status", Some(said)) => {
            said.status = None;
            said.not_understood.remove("status");
        }
        ("resources", Some(_)) => drop(nodes.remove(node)),
        _ => {}
    }
}

/// Puts together what is known. Most of what is heard is how nodes are doing: what they have is put together again only when that has changed.
struct Merging {
    nodes: Said,
    store: SharedStore,
    own: watch::Receiver<Arc<Loaded>>,
    inventory: watch::Sender<Arc<Loaded>>,
    status: watch::Sender<Arc<Status>>,
    claims: watch::Sender<Arc<Claims>>,
    /// Nodes, when each has said what it has, whether it is heard of, and whether not understood: as of the last time.
    shape: Vec<(String, (i64, bool, bool))>,
    /// What was to be captured then.
    captured: Vec<(FlowLogId, Uuid)>,
}

impl Merging {
    async fn run(mut self) {
        let mut nodes = self.nodes.changed.subscribe();
        let mut changes = self.store.lock().changes();
        loop {
            let (is_said, is_own) = tokio::select! {
                Ok(()) = nodes.changed() => (true, false),
                Ok(()) = changes.changed() => (false, false),
                Ok(()) = self.own.changed() => (false, true),
                else => return,
            };
            self.merge(is_said, is_own);
            tokio::time::sleep(MERGED_EVERY).await;
        }
    }

    fn merge(&mut self, is_said: bool, is_own: bool) {
        let nodes = self.nodes.lock().clone();
        let of = |node: &NodeSaid| (node.revision, node.status.is_some(), !node.not_understood.is_empty());
        let shape = nodes.iter().map(|(name, node)| (name.clone(), of(node))).collect();
        if shape != self.shape || is_own {
            self.shape = shape;
            self.take_stock(&nodes);
        }
        let captured: Vec<(FlowLogId, Uuid)> = {
            let store = self.store.lock();
            let active = store.flow_logs().values().filter(|f| f.state.captures());
            active.map(|f| (f.id, f.parent.id)).collect()
        };
        if captured == self.captured && !is_said {
            return;
        }
        let status = merged::status(&nodes, &self.claims.borrow(), &captured, clock::now().wall.secs());
        self.captured = captured;
        self.status.send_replace(Arc::new(status));
    }

    /// What there is, and where.
    fn take_stock(&self, nodes: &Nodes) {
        let claims = merged::claims(nodes);
        let loaded = merged::inventory(&self.own.borrow(), nodes, &claims);
        self.claims.send_replace(Arc::new(claims));
        self.inventory.send_if_modified(|now| {
            let changed = **now != loaded;
            if changed {
                // Whoever reads this server's own files has said what is wrong with them.
                let own = &self.own.borrow().problems;
                let new = loaded.problems.iter().filter(|words| !now.problems.contains(words) && !own.contains(words));
                new.for_each(|words| tracing::warn!("inventory: {words}"));
                *now = Arc::new(loaded);
            }
            changed
        });
    }
}

/// What is carried out on nodes.
struct OnNodes {
    store: SharedStore,
    claims: watch::Receiver<Arc<Claims>>,
}

impl OnNodes {
    /// Waits until nothing is left to wait for of a flow log: `is_done`, or no node that is heard of has its parent.
    async fn until(&self, id: FlowLogId, is_done: impl Fn(State, bool) -> bool) {
        let mut changes = self.store.lock().changes();
        let mut claims = self.claims.clone();
        loop {
            let now = self.store.lock().flow_logs().get(&id).map(|f| (f.state, f.problems.is_empty(), f.parent.id));
            let Some((state, is_well, parent)) = now else { return };
            if is_done(state, is_well) || !self.claims.borrow().contains_key(&parent) {
                return;
            }
            tokio::select! {
                _ = changes.changed() => {}
                _ = claims.changed() => {}
                () = tokio::time::sleep(LOOKED_EVERY) => {}
            }
        }
    }
}

#[async_trait]
impl Elsewhere for OnNodes {
    async fn provisioned(&self, ids: &[FlowLogId]) -> BTreeMap<FlowLogId, InvalidField> {
        for id in ids {
            self.until(*id, |state, is_well| state != State::Provisioning || !is_well).await;
        }
        let store = self.store.lock();
        let failed = ids.iter().filter_map(|id| store.flow_logs().get(id)).filter(|f| f.state == State::Provisioning);
        failed.filter_map(|f| Some((f.id, f.problems.first()?.clone()))).collect()
    }

    async fn ended(&self, id: FlowLogId) {
        self.until(id, |_, _| false).await;
    }
}

/// Live flows are on their nodes.
struct NotHere;

impl LiveSource for NotHere {
    fn observe(&self, _: flowlog_model::live::Ask) -> Result<Box<dyn LiveStream>, LiveError> {
        Err(LiveError::Elsewhere)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::said::{NodeResources, NodeStatus, sent};

    #[test]
    fn a_node_that_says_what_is_not_understood_is_heard_of_and_keeps_what_it_said() {
        let mut nodes = Nodes::new();
        let mut say = |what: &str, value: Vec<u8>, revision| {
            put(&mut nodes, &Entry { name: format!("nodes/n1/{what}"), value, revision });
            nodes["n1"].clone()
        };
        say("resources", sent(&NodeResources::default()).expect("small"), 3);
        let trouble = Some("no room".to_owned());
        let status = NodeStatus { trouble, ..NodeStatus::default() };
        say("status", sent(&status).expect("small"), 4);
        let puzzling = say("status", b"later".to_vec(), 5);
        assert_eq!((puzzling.status.as_deref(), puzzling.not_understood.len()), (Some(&status), 1));
        let puzzling = say("resources", b"later".to_vec(), 6);
        assert_eq!((puzzling.revision, puzzling.not_understood.len()), (3, 2));
        say("resources", sent(&NodeResources::default()).expect("small"), 7);
        assert!(say("status", sent(&status).expect("small"), 8).not_understood.is_empty());
    }
}
