//! Delivery of spooled objects, oldest first, with retries that never give up.
//!
//! Objects of one rule and store form a *route*. Every route is delivered by itself, in order: one that is slow,
//! refused or retrying holds back no other.
//!
//! * [`bucket`]: one object store; `directory`: a local directory as one;
//! * [`reader`]: a bucket to read from, for the command `read`;
//! * `s3`: how a bucket is opened, and with which `credentials`; `http`: how requests to it travel, and what a store may not do; `acl`:
//!   its owner may read what lands;
//! * this file: routes, pauses, what there is to say about them.
#![allow(clippy::disallowed_methods, reason = "pauses are in the runtime's time, which tests can stop")]

mod acl;
pub(crate) mod bucket;
mod credentials;
mod directory;
mod http;
pub mod reader;
mod s3;
#[cfg(test)]
pub(crate) mod scripted;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

pub use bucket::{Bucket, BucketError, Outcome};
use flowlog_host::{clock, fault};
use flowlog_model::{
    S3Options,
    figures::Latencies,
    rule::{Location, Rule},
    status::{DeliveredObject, RouteState, RouteStatus},
};
pub use reader::Reader;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::Instant,
};

use crate::{
    encode::key::stem_of,
    spool::{Entry, Spool},
};

/// Back-off: the first pause after a failure. Each further one is twice as long.
const RETRY_MIN: Duration = Duration::from_millis(500);
/// Back-off: the longest pause. A store that comes back is used again within a minute.
const RETRY_MAX: Duration = Duration::from_mins(1);
/// Objects of a route that its store may refuse one after the other before the route waits.
const REFUSED_IN_A_ROW_MAX: usize = 8;
/// So often an object is refused, each time beside others of its route that the store took, before it is put aside.
const REFUSALS_MAX: u32 = 5;
/// A route that has been retrying for so long needs a person.
const DEGRADED_AFTER_SECS: i64 = 300;
/// What is in front of the name in the folder of a flow log whose layout is `hive-named`.
const NAMED_FOLDER: &str = "flow_log=";
/// Routes that deliver at the same time to one store: more only compete for its bandwidth, and each holds an object in
/// memory. Another store has its own.
const DELIVERIES_PER_STORE: usize = 4;

/// One rule at one store: where it goes, and what its keys begin with.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Route {
    /// Bucket or directory, as in a target: `s3://bucket`, `file:///dir`.
    pub store: String,
    /// What its keys begin with: `[prefix/]name`.
    pub folder: String,
}

impl Route {
    /// The flow log's name, for logs: in a layout of one table for all, its folder is called after that as well.
    #[must_use]
    pub fn flow_log(&self) -> &str {
        let last = self.folder.rsplit('/').next().unwrap_or_default();
        last.strip_prefix(NAMED_FOLDER).unwrap_or(last)
    }
}

/// What the uploader has to say about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub routes: BTreeMap<Route, RouteStatus>,
    /// By route and interface, as its keys name it: all but the state, which is the route's.
    pub interfaces: BTreeMap<(Route, String), RouteStatus>,
    /// How long uploads took, by store.
    pub uploads: BTreeMap<String, Latencies>,
    /// Rounds through the spool so far: changes even when nothing else does.
    pub rounds: u64,
}

impl Progress {
    /// The words of any route that is not delivering.
    #[must_use]
    pub fn trouble(&self) -> Option<&str> {
        self.routes.values().find_map(|r| r.state.error())
    }
}

/// The route of an object: everything in front of its date folders or its file name.
pub(crate) fn route(entry: &Entry) -> Route {
    let folder = entry.key.split_once("/year=").or_else(|| entry.key.rsplit_once('/')).map_or("", |(folder, _)| folder);
    Route { store: entry.location.to_string(), folder: folder.to_owned() }
}

pub(crate) type Opener = dyn Fn(&Location) -> Result<Arc<Bucket>, BucketError> + Send + Sync;

/// How a location's store is reached; `None`: it is a bucket of a contract that has no such bucket.
type Options = dyn Fn(&Location) -> Option<S3Options> + Send + Sync;

/// Buckets that are open. One whose options have changed is opened again.
pub struct Buckets {
    options: Box<Options>,
    open: Mutex<HashMap<Location, (S3Options, Arc<Bucket>)>>,
}

impl Buckets {
    /// `options` is asked at every use, since the options can change.
    #[must_use]
    pub fn new(options: Box<Options>) -> Self {
        Self { options, open: Mutex::default() }
    }

    /// A store, opened if it is not open yet.
    ///
    /// # Errors
    /// If there is no such bucket, or the options do not make a store.
    pub fn open(&self, location: &Location) -> Result<Arc<Bucket>, BucketError> {
        let options = (self.options)(location).ok_or_else(|| BucketError::NoBucket(bucket::name(location)))?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, store)) = open.get(location).filter(|(with, _)| *with == options) {
            return Ok(store.clone());
        }
        let store = Arc::new(Bucket::open(location, &options)?);
        open.insert(location.clone(), (options, store.clone()));
        Ok(store)
    }
}

/// Delivers what is in the spool.
pub struct Uploader {
    spool: Spool,
    open: Arc<Opener>,
    /// Routes that are not to be tried before this time, and the last pause.
    pauses: HashMap<Route, (Instant, Duration)>,
    /// Routes that are being delivered.
    busy: HashMap<Route, Location>,
    /// Routes whose store has not been tried yet, or not with success, and that may have nothing to deliver.
    unproven: BTreeMap<Route, Location>,
    /// How often a store has refused an object while it took others of its route.
    refusals: HashMap<(Location, String), u32>,
    progress: watch::Sender<Progress>,
    /// From 0 to 1: the nodes of a region must not come back all at once.
    jitter: Box<dyn FnMut() -> f64 + Send>,
}

/// The result of delivering one route.
struct Fared {
    route: Route,
    /// Why not all of it was delivered.
    error: Option<BucketError>,
    /// Objects that the store refused, and then took others.
    unwanted: Vec<Entry>,
    /// Nothing was delivered: the store was only tried.
    is_probe: bool,
}

impl Uploader {
    /// `open` opens a store when it is first needed.
    #[must_use]
    pub fn new(spool: Spool, open: Arc<Opener>) -> Self {
        let pauses = HashMap::new();
        let busy = HashMap::new();
        let refusals = HashMap::new();
        let progress = watch::Sender::default();
        let jitter = Box::new(random);
        Self { spool, open, pauses, busy, unproven: BTreeMap::new(), refusals, progress, jitter }
    }

    /// Has the store of a rule tried before there is anything to deliver, so that trouble shows at once.
    pub fn probe(&mut self, rule: &Rule) {
        let location = rule.target.location.clone();
        let store = location.to_string();
        self.unproven.insert(Route { store, folder: rule.folder() }, location);
    }

    /// The same, with numbers from 0 to 1 that can be had again.
    #[must_use]
    #[cfg(test)]
    pub(crate) fn with_jitter(self, jitter: Box<dyn FnMut() -> f64 + Send>) -> Self {
        Self { jitter, ..self }
    }

    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Runs for ever: one round for each `wake`, and again when a pause is over or a route has ended.
    pub async fn run(mut self, wake: Arc<Notify>) {
        let mut running = JoinSet::new();
        loop {
            self.round(&mut running);
            // A pause that is over without the route being delivered waits for another route to end.
            let now = Instant::now();
            let next = self.pauses.values().map(|(until, _)| *until).filter(|until| *until > now).min();
            let pause = next.map_or(Duration::from_hours(1), |at| at - now);
            tokio::select! {
                () = wake.notified() => {}
                () = tokio::time::sleep(pause) => {}
                Some(ended) = running.join_next() => self.ended(ended),
            }
        }
    }

    /// Starts the delivery of every route that has something waiting, is not being delivered and not in a pause.
    fn round(&mut self, running: &mut JoinSet<Fared>) {
        let entries = self.spool.entries().unwrap_or_else(|error| {
            tracing::error!(%error, "cannot list the spool");
            Vec::new()
        });
        // What has been delivered after all is forgotten.
        self.refusals.retain(|(location, key), _| entries.iter().any(|e| e.location == *location && e.key == *key));
        let mut routes: BTreeMap<Route, Vec<Entry>> = BTreeMap::new();
        for entry in entries {
            routes.entry(route(&entry)).or_default().push(entry);
        }
        self.progress.send_modify(|p| {
            p.rounds += 1;
            for status in p.routes.values_mut().chain(p.interfaces.values_mut()) {
                status.waiting = 0;
                status.waiting_bytes = 0;
                status.oldest_secs = None;
            }
            for (route, entries) in &routes {
                let status = p.routes.entry(route.clone()).or_default();
                status.waiting = entries.len();
                status.waiting_bytes = entries.iter().map(|e| e.bytes).sum();
                status.oldest_secs = entries.first().map(|e| e.made_ns / 1_000_000_000);
                for entry in entries {
                    let status = p.interfaces.entry((route.clone(), stem_of(&entry.key).to_owned())).or_default();
                    status.waiting += 1;
                    status.waiting_bytes += entry.bytes;
                    // The oldest is the first.
                    status.oldest_secs.get_or_insert(entry.made_ns / 1_000_000_000);
                }
            }
        });
        let now = Instant::now();
        self.pauses.retain(|route, _| routes.contains_key(route) || self.unproven.contains_key(route));
        let unproven: Vec<(Route, Location)> = self
            .unproven
            .iter()
            .filter(|(r, _)| !routes.contains_key(r))
            .map(|(r, l)| (r.clone(), l.clone()))
            .collect();
        // The one whose oldest object has waited longest first.
        let mut ready: Vec<(Route, Vec<Entry>)> = routes
            .into_iter()
            .filter(|(route, _)| !self.busy.contains_key(route))
            .filter(|(route, _)| self.pauses.get(route).is_none_or(|(until, _)| *until <= now))
            .collect();
        ready.sort_by_key(|(_, entries)| entries.first().map_or(0, |e| e.made_ns));
        for (route, entries) in ready {
            let Some(location) = entries.first().map(|e| e.location.clone()) else { continue };
            if self.busy.values().filter(|l| **l == location).count() < DELIVERIES_PER_STORE {
                self.busy.insert(route.clone(), location);
                running.spawn(self.delivery(route, entries));
            }
        }
        // One at a time for each store, and none while it has something to deliver.
        for (route, location) in unproven {
            let paused = self.pauses.get(&route).is_some_and(|(until, _)| *until > now);
            if !paused && !self.busy.values().any(|l| *l == location) {
                self.busy.insert(route.clone(), location.clone());
                let open = self.open.clone();
                running.spawn(async move {
                    let error = match open(&location) {
                        Ok(store) => store.probe(&route.folder).await.err(),
                        Err(error) => Some(error),
                    };
                    Fared { route, error, unwanted: Vec::new(), is_probe: true }
                });
            }
        }
    }

    /// Delivers one route's objects, oldest first, up to the first failure. An object that the store does not want holds back no
    /// other.
    fn delivery(&self, route: Route, entries: Vec<Entry>) -> impl Future<Output = Fared> + Send + use<> {
        let spool = self.spool.clone();
        let open = self.open.clone();
        let progress = self.progress.clone();
        async move {
            let mut fared = Fared { route, error: None, unwanted: Vec::new(), is_probe: false };
            let mut refused = Vec::new();
            for entry in entries {
                let since = Instant::now();
                let delivered = match open(&entry.location) {
                    Ok(store) => deliver(&spool, &store, &entry).await,
                    Err(error) => Err(error),
                };
                match delivered {
                    Ok(outcome) => {
                        fared.unwanted.append(&mut refused);
                        let at_secs = clock::now().wall.secs();
                        let took = since.elapsed();
                        progress.send_modify(|p| {
                            p.uploads.entry(fared.route.store.clone()).or_default().note(took);
                            p.note(&fared.route, &entry, outcome, at_secs);
                        });
                    }
                    Err(error @ BucketError::Refused { .. }) if refused.len() < REFUSED_IN_A_ROW_MAX => {
                        tracing::warn!(flow_log = fared.route.flow_log(), key = entry.key, %error, "will try again");
                        refused.push(entry);
                        fared.error.get_or_insert(error);
                    }
                    Err(error) => {
                        fared.error = Some(error);
                        return fared;
                    }
                }
            }
            fared
        }
    }

    /// Counts refusals of objects; puts those aside that the store will not take.
    fn put_aside(&mut self, route: &Route, unwanted: Vec<Entry>) {
        for entry in unwanted {
            let refusals = self.refusals.entry((entry.location.clone(), entry.key.clone())).or_default();
            *refusals += 1;
            if *refusals < REFUSALS_MAX {
                continue;
            }
            self.refusals.remove(&(entry.location.clone(), entry.key.clone()));
            match self.spool.quarantine(&entry) {
                Ok(file) => {
                    tracing::error!(
                        flow_log = route.flow_log(),
                        key = entry.key,
                        file,
                        "the store takes other objects and not this one; put aside"
                    );
                    let at_secs = clock::now().wall.secs();
                    self.progress.send_modify(|p| p.note(route, &entry, Outcome::Conflict, at_secs));
                }
                Err(error) => {
                    tracing::error!(flow_log = route.flow_log(), key = entry.key, %error, "cannot put this object aside");
                }
            }
        }
    }

    fn ended(&mut self, ended: Result<Fared, tokio::task::JoinError>) {
        let Fared { route, error, unwanted, is_probe } = match ended {
            Ok(fared) => fared,
            Err(error) => {
                // A bug of ours; whatever it was delivering is tried again with everything else.
                tracing::error!(%error, "a delivery ended by itself");
                self.busy.clear();
                return;
            }
        };
        self.busy.remove(&route);
        self.put_aside(&route, unwanted);
        let Some(error) = error else {
            self.pauses.remove(&route);
            self.unproven.remove(&route);
            if is_probe {
                tracing::info!(flow_log = route.flow_log(), store = route.store, "the target takes objects");
            }
            self.progress.send_modify(|p| p.routes.entry(route).or_default().state = RouteState::Delivering);
            return;
        };
        let last = self.pauses.get(&route).map_or(RETRY_MIN, |(_, pause)| (*pause * 2).min(RETRY_MAX));
        let pause = last.mul_f64(0.5 + (self.jitter)() / 2.0);
        self.pauses.insert(route.clone(), (Instant::now() + pause, last));
        let what = if is_probe { "the target cannot be used" } else { "cannot deliver" };
        tracing::warn!(flow_log = route.flow_log(), store = route.store, %error, retry_in_ms = pause.as_millis(), "{what}");
        let now_secs = clock::now().wall.secs();
        self.progress.send_modify(|p| {
            let status = p.routes.entry(route).or_default();
            status.failures += 1;
            let (since_secs, tries) = match status.state {
                RouteState::Idle | RouteState::Delivering => (now_secs, 1),
                RouteState::Retrying { since_secs, tries, .. }
                | RouteState::Degraded { since_secs, tries, .. }
                | RouteState::Blocked { since_secs, tries, .. } => (since_secs, tries + 1),
            };
            let lasting = now_secs.saturating_sub(since_secs) >= DEGRADED_AFTER_SECS;
            let words = error.to_string();
            status.state = if error.needs_a_person() {
                RouteState::Blocked { since_secs, tries, error: words }
            } else if lasting {
                RouteState::Degraded { since_secs, tries, error: words }
            } else {
                RouteState::Retrying { since_secs, tries, error: words }
            };
        });
    }
}

impl Progress {
    /// One object of a route is not waiting any more.
    fn note(&mut self, route: &Route, entry: &Entry, outcome: Outcome, at_secs: i64) {
        let interface = self.interfaces.entry((route.clone(), stem_of(&entry.key).to_owned())).or_default();
        for status in [self.routes.entry(route.clone()).or_default(), interface] {
            status.state = RouteState::Delivering;
            status.waiting = status.waiting.saturating_sub(1);
            status.waiting_bytes = status.waiting_bytes.saturating_sub(entry.bytes);
            if outcome == Outcome::Conflict {
                status.quarantined += 1;
            } else {
                status.delivered += 1;
                status.last_object = Some(DeliveredObject { key: entry.key.clone(), bytes: entry.bytes, at_secs });
            }
        }
    }
}

fn random() -> f64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    f64::from(u16::try_from(random & 0xffff).unwrap_or(0)) / 65_536.0
}

async fn deliver(spool: &Spool, store: &Bucket, entry: &Entry) -> Result<Outcome, BucketError> {
    let spooled = |e: crate::spool::SpoolError| BucketError::Spool(e.to_string());
    let bytes = spool.read(entry).map_err(spooled)?;
    fault::point("put_sent");
    let outcome = store.deliver(&entry.key, bytes).await?;
    fault::point("reply_lost");
    if outcome == Outcome::Conflict {
        let path = spool.quarantine(entry).map_err(spooled)?;
        tracing::error!(
            flow_log = route(entry).flow_log(),
            key = entry.key,
            file = path,
            "the store holds other bytes under this key; put aside"
        );
    } else {
        // The log comes first: an agent that only waits for an empty spool ends as soon as the file is removed.
        tracing::info!(key = entry.key, ?outcome, flow_log = route(entry).flow_log(), "delivered");
        spool.remove(entry).map_err(spooled)?;
    }
    Ok(outcome)
}

#[cfg(test)]
mod tests;
