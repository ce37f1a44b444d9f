//! A node of a fleet: it carries out what the region's flow logs say of its own resources.
//!
//! While etcd is away everything goes on with what was known last, which is on disk. What differs then is ordered once: an order is all that
//! is to be captured, and the agent changes what is not so yet.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use flowlog_model::{
    FlowLogId,
    status::{CaptureState, Status},
};
use tokio::sync::{Notify, watch};

use super::{
    claim::{Claim, Holder},
    mirror::{Mirror, Mirrored, Writing},
    publisher::Publisher,
    said::{self, NodeStatus, Puzzle, Puzzles},
};
use crate::{
    etcd::{
        EtcdHealth, EtcdOptions, Named,
        connection::Etcd,
        feed::{Fed, Feed, KeyChange, News, Position},
        keys::{self, RuleKey},
    },
    flow_logs::{
        Control, Parts, captures, control_plane,
        flow_log::{FlowLog, State},
        store::{
            Change, FlowLogStore, FlowLogStoreError, SharedStore,
            etcd::{Held, Writer},
            of_file,
        },
        worker::Worker,
    },
    inventory::{Inventory, load::Loaded},
};

/// What a node has of its region, opened before anything is captured.
pub struct FleetNode {
    etcd: Arc<Etcd>,
    node: String,
    known: Known,
    told: watch::Sender<i64>,
    claim: Claim,
    named: watch::Receiver<Named>,
}

/// Opens what is known of the region's flow logs: those of the inventory are in the store.
///
/// # Errors
/// If the file in the state directory cannot be used.
pub fn open(
    options: EtcdOptions,
    node: &str,
    state_dir: &Path,
    inventory: &Inventory,
) -> Result<(FlowLogStore, FleetNode), FlowLogStoreError> {
    let etcd = Etcd::new(options);
    let mirror = Mirror::open(state_dir)?;
    if mirror.position()?.is_none() {
        // A node that joins its region captures what it captured by itself until it has heard of the region.
        mirror.seed(&of_file(state_dir)?)?;
    }
    let (told, heard) = watch::channel(0);
    let who = Holder::this(Some(mirror.instance()?));
    let (naming, named) = watch::channel(Named::default());
    let what = format!("agent with the `node_id` `{node}`");
    let holder_of = |value: &[u8]| said::read::<NodeStatus>(value)?.holder;
    let claim = Claim::new(etcd.clone(), keys::status(node), what, who, holder_of, naming);
    let writer = Writer { name: format!("node-{node}"), plans_contracts: false, named: named.clone() };
    let mut store = FlowLogStore::in_etcd(&etcd, writer, heard);
    let known = Known { mirror, not_understood: watch::Sender::default() };
    known.hold(inventory, &mut store)?;
    let (all, own) = (known.mirror.len()?, store.flow_logs().len());
    tracing::info!(known = all, own, "flow logs of the region, as they were known last");
    Ok((store, FleetNode { etcd, node: node.to_owned(), known, told, claim, named }))
}

/// What is known of the region's flow logs.
#[derive(Clone)]
struct Known {
    mirror: Mirror,
    /// Those of the node's own resources that are not understood.
    not_understood: watch::Sender<Puzzles>,
}

impl Known {
    /// Has the store hold what is known of the inventory's resources; whether that is anything else than before. One that is not understood is
    /// held as it was understood last, if it ever was.
    fn hold(&self, inventory: &Inventory, store: &mut FlowLogStore) -> Result<bool, FlowLogStoreError> {
        let own = self.mirror.of(inventory.resources.keys().copied())?;
        let mut puzzles = Puzzles::new();
        let mut held = Vec::new();
        for (id, Mirrored { flow_log, not_understood }) in own {
            if let Some(why) = &not_understood {
                puzzles.insert(id, Puzzle { why: why.clone(), is_known: flow_log.is_some() });
            }
            held.extend(flow_log.map(|(flow_log, revision)| Held { flow_log, revision, not_understood }));
        }
        self.not_understood.send_if_modified(|before| {
            say(before, &puzzles);
            let is_new = *before != puzzles;
            *before = puzzles;
            is_new
        });
        Ok(store.hold(held))
    }
}

/// Says what is not understood from now on, and what is again.
fn say(before: &Puzzles, now: &Puzzles) {
    for (id, puzzle) in now.iter().filter(|(id, puzzle)| before.get(id) != Some(puzzle)) {
        tracing::error!(flow_log = %id, "{}", puzzle.words("this node"));
    }
    for id in before.keys().filter(|id| !now.contains_key(id)) {
        tracing::info!(flow_log = %id, "its value in etcd is understood again, or gone");
    }
}

/// The node's control plane: what callers see, and who carries out what the region says.
#[must_use]
pub fn plane(parts: Parts, fleet: FleetNode) -> (Control, NodeWorker) {
    let (inventory, status) = (parts.inventory.clone(), parts.status.clone());
    let (control, worker) = control_plane(Parts { is_elsewhere: true, ..parts });
    (control, NodeWorker { worker: Arc::new(worker), fleet, inventory, status, changed: Arc::default() })
}

/// How a node is doing in its region.
#[derive(Clone)]
pub struct NodeHealth {
    etcd: watch::Receiver<EtcdHealth>,
    named: watch::Receiver<Named>,
    not_understood: watch::Receiver<Puzzles>,
}

impl NodeHealth {
    /// What is not as it should be, each in a sentence.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        let away = self.etcd.borrow().words();
        let is_away = away.is_some();
        let mut all = Vec::from_iter(away.map(|why| format!("what is known of the region's flow logs holds: {why}")));
        match &*self.named.borrow() {
            // While etcd is away nobody can say.
            Named::Taken(words) if !is_away => all.push(words.clone()),
            Named::Unknown | Named::Ours | Named::Taken(_) => {}
        }
        all.extend(self.not_understood.borrow().values().map(|puzzle| puzzle.words("this node")));
        all
    }
}

/// See the module's head.
pub struct NodeWorker {
    worker: Arc<Worker>,
    fleet: FleetNode,
    inventory: watch::Receiver<Arc<Loaded>>,
    status: watch::Receiver<Arc<Status>>,
    /// The store holds something else.
    changed: Arc<Notify>,
}

impl NodeWorker {
    /// How the node is doing in its region, now and later.
    #[must_use]
    pub fn health(&self) -> NodeHealth {
        let FleetNode { etcd, known, named, .. } = &self.fleet;
        NodeHealth { etcd: etcd.health(), named: named.clone(), not_understood: known.not_understood.subscribe() }
    }

    /// For ever.
    pub async fn run(self) {
        let FleetNode { etcd, node, known, told, claim, named } = self.fleet;
        let position = known.mirror.position().unwrap_or_default();
        let feed = Feed::new(etcd, keys::FLOW_LOGS, position);
        let keeper = Keeper {
            writing: Writing::new(known.mirror.clone()),
            known: known.clone(),
            store: self.worker.store().clone(),
            inventory: self.inventory.clone(),
            changed: self.changed.clone(),
            told,
        };
        let not_understood = known.not_understood.subscribe();
        let publisher =
            Publisher { claim, node, inventory: self.inventory.clone(), status: self.status, not_understood };
        let carrying = Carrying { worker: self.worker, known, inventory: self.inventory, changed: self.changed, named };
        // Each on a task of its own: none waits for another.
        let feeding = tokio::spawn(feed.run(keeper));
        let publishing = tokio::spawn(publisher.run());
        carrying.run().await;
        feeding.abort();
        publishing.abort();
    }
}

/// Takes what the feed says over: onto the disk, and what concerns this node into memory.
struct Keeper {
    writing: Writing,
    known: Known,
    store: SharedStore,
    inventory: watch::Receiver<Arc<Loaded>>,
    changed: Arc<Notify>,
    told: watch::Sender<i64>,
}

impl Fed for Keeper {
    fn take(&mut self, news: News) -> Result<(), String> {
        let loaded = self.inventory.borrow().clone();
        let is_own = |name: &str| match RuleKey::of(name) {
            Some(RuleKey::FlowLog { parent, .. }) => loaded.inventory.resources.contains_key(&parent),
            _ => false,
        };
        let (concerns_us, at) = match &news {
            News::Begin(_) | News::Page(_) => (false, None),
            News::End(Position { revision, .. }) => (true, Some(*revision)),
            News::Changes(changes, Position { revision, .. }) => {
                let names = changes.iter().map(|change| match change {
                    KeyChange::Put(entry) => &entry.name,
                    KeyChange::Delete(name) => name,
                });
                (names.into_iter().any(|name| is_own(name)), Some(*revision))
            }
        };
        self.writing.take(news).map_err(|e| e.to_string())?;
        if concerns_us {
            let held = self.known.hold(&loaded.inventory, &mut self.store.lock());
            if held.map_err(|e| e.to_string())? {
                self.changed.notify_one();
            }
        }
        if let Some(revision) = at {
            self.told.send_replace(revision);
        }
        Ok(())
    }
}

/// Carries out what the store says.
struct Carrying {
    worker: Arc<Worker>,
    known: Known,
    inventory: watch::Receiver<Arc<Loaded>>,
    changed: Arc<Notify>,
    /// Whether the node's id is ours: else nothing is said in etcd.
    named: watch::Receiver<Named>,
}

impl Carrying {
    async fn run(mut self) {
        let mut templates = self.worker.templates();
        // The inventory may have changed while no agent ran.
        self.inventory.mark_changed();
        loop {
            tokio::select! {
                () = self.changed.notified() => {}
                Ok(()) = self.inventory.changed() => self.follow_inventory(),
                Ok(()) = templates.changed() => {}
                Ok(()) = self.named.changed() => {}
            }
            let states = self.worker.order().await;
            if *self.named.borrow() == Named::Ours {
                self.drive(&states).await;
            }
        }
    }

    /// Other resources have other flow logs.
    fn follow_inventory(&self) {
        let loaded = self.inventory.borrow().clone();
        if let Err(error) = self.known.hold(&loaded.inventory, &mut self.worker.store().lock()) {
            tracing::error!(%error, "flow logs of what is new on this node are not known");
        }
    }

    /// Says in etcd what has been carried out: what was to be provisioned is active or cannot be, what was to be deleted is gone.
    async fn drive(&self, states: &BTreeMap<String, CaptureState>) {
        let store = self.worker.store();
        let moving = |f: &&FlowLog| match f.state {
            State::Provisioning => f.problems.is_empty(),
            State::Deleting => true,
            State::Draft | State::Validated | State::Active => false,
        };
        let ids: Vec<FlowLogId> = {
            let known = store.lock();
            // What is there now is not what would be said to have been carried out.
            let is_clear = |f: &&FlowLog| known.not_understood(f.id).is_none();
            known.flow_logs().values().filter(moving).filter(is_clear).map(|f| f.id).collect()
        };
        let loaded = self.inventory.borrow().clone();
        for id in ids {
            let plan = |known: &FlowLogStore| {
                let carried = known.flow_logs().get(&id).filter(moving);
                carried.map(|f| carried_out(f, &loaded.inventory, states)).into_iter().collect()
            };
            match store.write(plan).await {
                Ok(()) => {}
                // It is in the store still, and is said again when etcd has said anything.
                Err(error) => {
                    tracing::warn!(%error, flow_log = %id, "what was carried out is not in etcd yet; will try again");
                    let changed = self.changed.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(AGAIN).await;
                        changed.notify_one();
                    });
                }
            }
        }
    }
}

/// Pause before it is tried again.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(2);

fn carried_out(flow_log: &FlowLog, inventory: &Inventory, states: &BTreeMap<String, CaptureState>) -> Change {
    if flow_log.state == State::Deleting {
        return Change::Remove(flow_log.id);
    }
    // Its interfaces are those that this node has.
    let (interfaces, _) = captures::interfaces(flow_log, inventory);
    let mut next = FlowLog { interfaces, version: flow_log.version.saturating_add(1), ..flow_log.clone() };
    match next.trouble(states) {
        Some(problem) => next.problems = vec![problem],
        None => next.state = State::Active,
    }
    Change::Put(Box::new(next))
}
