//! Rules from the store: the files around it, the thread that serves the API, and the orders that come from there.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use flowlog_control::{
    api::RefusedLogins,
    fleet::node::{self, FleetNode, NodeHealth},
    flow_logs::{
        Answer, BucketProbe, CaptureOrder, Parts, ProbeError, captures, control_plane,
        flow_log::Settings,
        principals::Principals,
        store::{FlowLogStore, SharedStore},
        templates::{self, Templates},
    },
    inventory::{
        BucketRegistry, Inventory,
        load::{Loaded, Loader, Places},
        source::{
            board::Board,
            follow::{Interfaces, Sources},
            last_said::LastSaid,
        },
        watch::{self as changes, Again, Folders},
    },
    serve::{Listening, Relisten, listen},
};
use flowlog_host::trust::{self, Kind, Stamp, TrustError, stamp};
use flowlog_kernel::{heap, netdev};
use flowlog_model::{CaptureSpec, S3Options, rule::Location, status::Status};
use flowlog_pipeline::upload::{BucketError, Buckets};
use tokio::sync::{mpsc, watch};

use super::{
    Capture,
    error::{AgentError, system},
    live::LiveFlows,
    thread,
};
use crate::config::{Config, Manage};

/// Orders that wait at most: the control plane sends one at a time.
const ORDERS_MAX: usize = 4;
/// Changes of addresses that wait at most: a reload is over before the next one begins.
pub(super) const CHANGES_MAX: usize = 4;

/// Everything that is read from files, now and when they change.
#[derive(Clone)]
pub(crate) struct Files {
    pub inventory: watch::Receiver<Arc<Loaded>>,
    pub principals: watch::Receiver<Arc<Principals>>,
    /// How the sources of the inventory are doing.
    pub board: Board,
    /// Whom to tell which interfaces there are.
    pub interfaces: Interfaces,
}

impl Files {
    /// Reads them; whoever is to go on doing so is the second part. What sources say is written down below the state directory, and known
    /// from there where one does not answer.
    ///
    /// # Errors
    /// If the principals are wrong, or a place does not exist or can be written by others. A drop-in that can is left out.
    pub(crate) fn open(manage: &Manage, state_dir: Option<&Path>) -> Result<(Self, Watching), AgentError> {
        let Place { places, principals: path } = Place::of(manage)?;
        let names = netdev::all().unwrap_or_default().into_iter().map(|dev| dev.name).collect();
        let sources = Sources::open(manage.sources.clone(), names, state_dir.map(LastSaid::below));
        let mut loader = Loader::new(places.clone()).with(&sources);
        let first = loader.load();
        say(&first, &[]);
        let read = path.as_deref().and_then(|p| stamp(p).ok());
        let known = principals(path.as_deref())?;
        let inventory = watch::Sender::new(Arc::new(first));
        let sender = watch::Sender::new(Arc::new(known));
        let opened = Self {
            inventory: inventory.subscribe(),
            principals: sender.subscribe(),
            board: sources.board(),
            interfaces: sources.interfaces(),
        };
        let reading = Reading { loader, inventory, path, read, principals: sender };
        Ok((opened, Watching { places, sources, reading }))
    }

    /// How buckets are reached: as the inventory says, else as configured, which a reload may change.
    #[must_use]
    pub(crate) fn buckets(
        inventory: Option<watch::Receiver<Arc<Loaded>>>,
        configured: watch::Receiver<S3Options>,
    ) -> Buckets {
        Buckets::new(Box::new(move |location| match &inventory {
            Some(inventory) => inventory.borrow().inventory.buckets.options(location, &configured.borrow()),
            None => BucketRegistry::default().options(location, &configured.borrow()),
        }))
    }
}

/// Where the files are that are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    places: Places,
    /// File of the principals.
    principals: Option<PathBuf>,
}

impl Place {
    /// As a configuration says.
    ///
    /// # Errors
    /// If one does not exist, or can be written by others.
    pub(crate) fn of(manage: &Manage) -> Result<Self, AgentError> {
        let Manage { places, principals, .. } = manage;
        for path in places.file.iter().chain(&places.dir).chain(principals) {
            let unusable = |e: TrustError| AgentError::File { path: path.clone(), problem: e.to_string() };
            trust::check(path, Kind::Orders).map_err(unusable)?;
        }
        Ok(Self { places: places.clone(), principals: principals.clone() })
    }

    /// Looks whether they can be read from there, and watches them; nothing has changed yet.
    ///
    /// # Errors
    /// If the principals are wrong, or the kernel refuses.
    pub(crate) fn prepare(&self) -> Result<Folders, AgentError> {
        principals(self.principals.as_deref())?;
        let Self { places, principals } = self;
        let files: Vec<PathBuf> = places.file.iter().chain(principals).cloned().collect();
        Folders::of(&files, &Vec::from_iter(places.dir.clone())).map_err(system("watch the inventory"))
    }
}

fn principals(path: Option<&Path>) -> Result<Principals, AgentError> {
    let Some(path) = path else { return Ok(Principals::default()) };
    Principals::read(path).map_err(|problem| AgentError::File { path: path.to_owned(), problem })
}

/// What reads the files again when they change.
pub(crate) struct Watching {
    places: Places,
    sources: Sources,
    reading: Reading,
}

impl Watching {
    /// Starts to, on a thread that ends with the process; what has changed meanwhile is read first. Returns who has it done once more.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn start(self) -> Result<Again<Place>, AgentError> {
        let Self { places, sources, mut reading } = self;
        let folders = Place { places, principals: reading.path.clone() }.prepare()?;
        let again = changes::watch(folders, move |place| reading.read_again(place));
        let again = again.map_err(system("watch the inventory"))?;
        let nudge = again.nudge().map_err(system("watch the inventory"))?;
        sources.follow(&Arc::new(nudge)).map_err(system("start a thread"))?;
        Ok(again)
    }
}

/// The part of it that the thread has.
struct Reading {
    loader: Loader,
    inventory: watch::Sender<Arc<Loaded>>,
    /// File of the principals.
    path: Option<PathBuf>,
    /// The principals as they were read last.
    read: Option<Stamp>,
    principals: watch::Sender<Arc<Principals>>,
}

impl Reading {
    fn read_again(&mut self, place: Option<Place>) {
        if let Some(Place { places, principals }) = place {
            self.loader.move_to(places);
            if self.path != principals {
                (self.path, self.read) = (principals, None);
                // What another file said holds no more, whatever becomes of this one.
                drop(self.principals.send_replace(Arc::default()));
            }
        }
        let loaded = self.loader.load();
        self.inventory.send_if_modified(|now| {
            let changed = **now != loaded;
            say(&loaded, &now.problems);
            *now = Arc::new(loaded);
            changed
        });
        // Reading the principals again forgets which passwords were right: only if the file has changed.
        let now = self.path.as_deref().and_then(|p| stamp(p).ok());
        if now == self.read {
            return;
        }
        self.read = now;
        match self.path.as_deref().map(Principals::read) {
            Some(Ok(known)) => drop(self.principals.send_replace(Arc::new(known))),
            Some(Err(words)) => tracing::error!("principals: {words}; those from before still hold"),
            None => {}
        }
    }
}

/// Says what is wrong with an inventory, but for what has been said.
fn say(loaded: &Loaded, said: &[String]) {
    for words in loaded.problems.iter().filter(|words| !said.contains(words)) {
        tracing::error!("inventory: {words}");
    }
}

/// The store, opened before anything is captured.
pub(crate) struct Managed {
    settings: Settings,
    templates: Templates,
    files: Files,
    store: FlowLogStore,
    /// The region whose flow logs these are; `None`: they are the node's own.
    fleet: Option<FleetNode>,
    listening: Listening,
    wanted: Wanted,
}

/// What the main loop has of the thread that serves.
pub(crate) struct Served {
    pub orders: Orders,
    /// Where the API is to be served.
    pub api: mpsc::Sender<Relisten>,
    /// How the node is doing in its region, if it is in one.
    pub region: Option<NodeHealth>,
}

/// What is to be captured, and who says so.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    /// By the configuration.
    pub fixed: Vec<CaptureSpec>,
    /// By the store, as it ordered last.
    pub managed: Vec<CaptureSpec>,
    /// Interfaces that there is room for.
    interfaces_max: usize,
    /// Those that the store may have.
    places_max: Arc<AtomicUsize>,
}

impl Wanted {
    pub(crate) fn new(config: &Config) -> Self {
        let mut wanted = Self { interfaces_max: usize::from(config.sizes.interfaces_max), ..Self::default() };
        wanted.fix(config.captures.clone());
        wanted
    }

    /// What the configuration says from now on.
    pub(crate) fn fix(&mut self, fixed: Vec<CaptureSpec>) {
        self.places_max.store(self.interfaces_max.saturating_sub(fixed.len()), Ordering::Relaxed);
        self.fixed = fixed;
    }

    /// All of it, if the configuration said this.
    #[must_use]
    pub(crate) fn with(&self, fixed: &[CaptureSpec]) -> Vec<CaptureSpec> {
        // What is first has an interface that both want.
        [fixed, &self.managed[..]].concat()
    }

    /// What flow logs by selection would capture, beside what the API has provisioned.
    #[must_use]
    pub(crate) fn selected_by(&self, templates: &Templates, inventory: &Inventory, node_id: &str) -> Vec<CaptureSpec> {
        let provisioned = self.managed.iter().filter(|c| c.rule.id.is_some());
        let ids: BTreeSet<String> = provisioned.map(|c| c.id(node_id)).collect();
        let taken = inventory.resources.values().filter(|r| r.interfaces.iter().any(|i| ids.contains(&i.id)));
        templates.captures(inventory, &taken.map(|r| r.id).collect())
    }

    #[must_use]
    pub(crate) fn all(&self) -> Vec<CaptureSpec> {
        self.with(&self.fixed)
    }
}

impl Managed {
    /// Opens the store and listens; `config` captures what it says from now on.
    ///
    /// # Errors
    /// If a file, the store, an address or a certificate cannot be used.
    pub(crate) fn open(manage: &Manage, files: Files, config: &mut Config) -> Result<Self, AgentError> {
        let loaded = files.inventory.borrow().clone();
        let (store, fleet) = match &manage.etcd {
            None => (FlowLogStore::open(&config.state_dir)?, None),
            Some(etcd) => {
                let (store, fleet) = node::open(etcd.clone(), &config.node_id, &config.state_dir, &loaded.inventory)?;
                (store, Some(fleet))
            }
        };
        let mut wanted = Wanted::new(config);
        wanted.managed = captures::captures(store.flow_logs(), &loaded.inventory);
        wanted.managed.extend(manage.templates.captures(&loaded.inventory, &templates::taken(&store)));
        config.captures = wanted.all();
        let listening = listen(&manage.api)?;
        let (settings, templates) = (manage.settings.clone(), manage.templates.clone());
        Ok(Self { settings, templates, files, store, fleet, listening, wanted })
    }

    /// What is read from files, and found by sources.
    #[must_use]
    pub(crate) fn files(&self) -> &Files {
        &self.files
    }

    /// The inventory, now and later.
    #[must_use]
    pub(crate) fn inventory(&self) -> watch::Receiver<Arc<Loaded>> {
        self.files.inventory.clone()
    }

    /// Starts to serve, on a thread that ends with the process.
    ///
    /// # Errors
    /// If there can be no thread.
    pub(crate) fn serve(
        self,
        buckets: Arc<Buckets>,
        status: watch::Receiver<Arc<Status>>,
        live: LiveFlows,
        refused: RefusedLogins,
    ) -> Result<Served, AgentError> {
        let Self { settings, templates, files, store, fleet, listening, wanted } = self;
        let Files { inventory, principals, .. } = files;
        let (changing, templates) = watch::channel(Arc::new(templates));
        let (settling, settings) = watch::channel(settings);
        let (orders, ordered) = mpsc::channel(ORDERS_MAX);
        let (change, changes) = mpsc::channel(CHANGES_MAX);
        let places_max = wanted.places_max.clone();
        let buckets = Arc::new(Probe(buckets));
        let parts = Parts {
            store: SharedStore::new(store),
            inventory,
            principals,
            buckets,
            settings,
            templates,
            places_max,
            orders,
            status,
            live: Arc::new(live),
            is_elsewhere: false,
            elsewhere: None,
        };
        let (control, worker, region): (_, Pin<Box<dyn Future<Output = ()> + Send>>, _) = match fleet {
            None => {
                let (control, worker) = control_plane(parts);
                (control, Box::pin(worker.run()), None)
            }
            Some(fleet) => {
                let (control, worker) = node::plane(parts, fleet);
                let health = worker.health();
                (control, Box::pin(worker.run()), Some(health))
            }
        };
        thread::with_a_runtime("api", || async {
            let serving = listening.run(Arc::new(control), heap::give_back, refused, changes);
            let ((), served) = tokio::join!(worker, serving);
            if let Err(error) = served {
                tracing::error!(%error, "the API is not served");
            }
        })?;
        let orders = Orders { ordered: Some(ordered), wanted, follows: Some((changing, settling)), waiting: None };
        Ok(Served { orders, api: change, region })
    }
}

/// The adapter behind the control plane's port: tries a bucket through the stores that objects are delivered to.
pub(super) struct Probe(pub(super) Arc<Buckets>);

#[async_trait]
impl BucketProbe for Probe {
    async fn probe(&self, location: &Location, folder: &str) -> Result<(), ProbeError> {
        let told = |error: BucketError| match error {
            BucketError::NoBucket(_) | BucketError::Denied { .. } => ProbeError::Closed(error.to_string()),
            _ => ProbeError::Other(error.to_string()),
        };
        self.0.open(location).map_err(told)?.probe(folder).await.map_err(told)
    }
}

/// What is to be captured, and orders from the control plane.
pub(crate) struct Orders {
    /// `None`: nobody can order.
    ordered: Option<mpsc::Receiver<CaptureOrder>>,
    pub wanted: Wanted,
    /// Flow logs by selection, and what holds for new ones of the API: who changes them is followed.
    follows: Option<(watch::Sender<Arc<Templates>>, watch::Sender<Settings>)>,
    /// Where to answer when the last order has been carried out.
    waiting: Option<Answer>,
}

impl Orders {
    /// What the configuration says, and nobody else can.
    #[must_use]
    pub(crate) fn fixed(wanted: Wanted) -> Self {
        Self { ordered: None, wanted, follows: None, waiting: None }
    }

    /// Flow logs by selection are these from now on; the control plane orders what comes of that.
    pub(crate) fn select(&self, templates: &Templates) {
        if let Some((sender, _)) = &self.follows {
            sender.send_if_modified(|now| {
                let changed = **now != *templates;
                if changed {
                    *now = Arc::new(templates.clone());
                }
                changed
            });
        }
    }

    /// Flow logs that are made from now on have these.
    pub(crate) fn settle(&self, settings: &Settings) {
        if let Some((_, sender)) = &self.follows {
            sender.send_replace(settings.clone());
        }
    }

    /// The next one; waits for ever if nobody can order.
    pub(crate) async fn next(&mut self) -> CaptureOrder {
        let next = match &mut self.ordered {
            Some(ordered) => ordered.recv().await,
            None => None,
        };
        match next {
            Some(want) => want,
            None => std::future::pending().await,
        }
    }

    /// Begins to carry one out.
    ///
    /// # Errors
    /// If the kernel or the journal refuses; whoever ordered is told, and orders again.
    pub(crate) fn begin(&mut self, want: CaptureOrder, capture: &mut Capture) -> Result<(), AgentError> {
        if want.is_trial {
            let captures = Wanted { managed: want.captures, ..self.wanted.clone() }.all();
            let _ = want.done.send(capture.would_be(&captures).map_err(|e| e.to_string()));
            return Ok(());
        }
        self.wanted.managed = want.captures;
        let result = capture.want(self.wanted.all()).map_err(AgentError::from);
        match &result {
            Ok(()) => self.waiting = Some(want.done),
            // Nobody listens: the agent is ending.
            Err(error) => drop(want.done.send(Err(error.to_string()))),
        }
        result
    }

    /// Whether the last order has been carried out and not been answered yet.
    #[must_use]
    pub(crate) fn is_carried_out(&self, capture: &Capture) -> bool {
        self.waiting.is_some() && capture.is_complete()
    }

    /// Answers the last order.
    pub(crate) fn answer(&mut self, capture: &Capture) {
        if let Some(done) = self.waiting.take() {
            let _ = done.send(Ok(capture.states()));
        }
    }
}
