//! Delivery of spooled objects, oldest first, with retries that never give up.
//!
//! Objects of one rule and store form a *route*. Every route is delivered by itself, in order: one that is slow,
//! refused or retrying holds back no other.
//!
//! * [`bucket`]: one object store; `directory`: a local directory as one;
//! * this file: routes, pauses, what there is to say about them.
#![allow(clippy::disallowed_methods, reason = "pauses are in the runtime's time, which tests can stop")]

pub(crate) mod bucket;
mod directory;
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
    rule::{Location, Target},
    status::{RouteState, RouteStatus},
};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::Instant,
};

use crate::spool::{Entry, Spool};

/// Back-off: the first pause after a failure. Each further one is twice as long.
const RETRY_MIN: Duration = Duration::from_millis(500);
/// Back-off: the longest pause. A store that comes back is used again within a minute.
const RETRY_MAX: Duration = Duration::from_mins(1);
/// A route that has been retrying for so long needs a person.
const DEGRADED_AFTER_SECS: i64 = 300;
/// Routes that deliver at the same time to one store: more only compete for its bandwidth, and each holds an object in
/// memory. Another store has its own.
const DELIVERIES_PER_STORE: usize = 4;

/// One rule at one store: where it goes, and what its keys begin with.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Route {
    /// As in `target`.
    pub store: String,
    /// `[prefix/]name`.
    pub folder: String,
}

/// What the uploader has to say about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// By route.
    pub routes: BTreeMap<Route, RouteStatus>,
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
fn route(entry: &Entry) -> Route {
    let folder = entry.key.split_once("/year=").or_else(|| entry.key.rsplit_once('/')).map_or("", |(folder, _)| folder);
    let store = Target { location: entry.location.clone(), prefix: None }.to_string();
    Route { store, folder: folder.to_owned() }
}

pub(crate) type Opener = dyn Fn(&Location) -> Result<Arc<Bucket>, BucketError> + Send + Sync;

/// Buckets that are open. One whose options have changed is opened again.
pub struct Buckets {
    options: Box<dyn Fn() -> S3Options + Send + Sync>,
    open: Mutex<HashMap<Location, (S3Options, Arc<Bucket>)>>,
}

impl Buckets {
    /// `options` is asked at every use, since the options can change.
    #[must_use]
    pub fn new(options: Box<dyn Fn() -> S3Options + Send + Sync>) -> Self {
        Self { options, open: Mutex::default() }
    }

    /// A store, opened if it is not open yet.
    ///
    /// # Errors
    /// If the options do not make a store.
    pub fn open(&self, location: &Location) -> Result<Arc<Bucket>, BucketError> {
        let options = (self.options)();
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
    progress: watch::Sender<Progress>,
    /// From 0 to 1: the nodes of a region must not come back all at once.
    jitter: Box<dyn FnMut() -> f64 + Send>,
}

/// The result of delivering one route: `None` if all of it was delivered.
type Fared = (Route, Option<BucketError>);

impl Uploader {
    /// `open` opens a store when it is first needed.
    #[must_use]
    pub fn new(spool: Spool, open: Arc<Opener>) -> Self {
        let (pauses, busy) = (HashMap::new(), HashMap::new());
        let (progress, jitter) = (watch::Sender::default(), Box::new(random));
        Self { spool, open, pauses, busy, progress, jitter }
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
        let mut routes: BTreeMap<Route, Vec<Entry>> = BTreeMap::new();
        for entry in entries {
            routes.entry(route(&entry)).or_default().push(entry);
        }
        self.progress.send_modify(|p| {
            p.rounds += 1;
            for status in p.routes.values_mut() {
                (status.waiting, status.waiting_bytes, status.oldest_secs) = (0, 0, None);
            }
            for (route, entries) in &routes {
                let status = p.routes.entry(route.clone()).or_default();
                status.waiting = entries.len();
                status.waiting_bytes = entries.iter().map(|e| e.bytes).sum();
                status.oldest_secs = entries.first().map(|e| e.made_ns / 1_000_000_000);
            }
        });
        let now = Instant::now();
        self.pauses.retain(|route, _| routes.contains_key(route));
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
    }

    /// Delivers one route's objects, oldest first, up to the first failure.
    fn delivery(&self, route: Route, entries: Vec<Entry>) -> impl Future<Output = Fared> + Send + use<> {
        let (spool, open, progress) = (self.spool.clone(), self.open.clone(), self.progress.clone());
        async move {
            for entry in entries {
                let store = match open(&entry.location) {
                    Ok(store) => store,
                    Err(error) => return (route, Some(error)),
                };
                match deliver(&spool, &store, &entry).await {
                    Ok(outcome) => progress.send_modify(|p| {
                        let status = p.routes.entry(route.clone()).or_default();
                        status.state = RouteState::Delivering;
                        status.waiting = status.waiting.saturating_sub(1);
                        status.waiting_bytes = status.waiting_bytes.saturating_sub(entry.bytes);
                        if outcome == Outcome::Conflict {
                            status.quarantined += 1;
                        } else {
                            status.delivered += 1;
                            status.last_key = Some(entry.key.clone());
                        }
                    }),
                    Err(error) => return (route, Some(error)),
                }
            }
            (route, None)
        }
    }

    fn ended(&mut self, ended: Result<Fared, tokio::task::JoinError>) {
        let (route, error) = match ended {
            Ok(fared) => fared,
            Err(error) => {
                // A bug of ours; whatever it was delivering is tried again with everything else.
                tracing::error!(%error, "a delivery ended by itself");
                self.busy.clear();
                return;
            }
        };
        self.busy.remove(&route);
        let Some(error) = error else {
            self.pauses.remove(&route);
            return;
        };
        let last = self.pauses.get(&route).map_or(RETRY_MIN, |(_, pause)| (*pause * 2).min(RETRY_MAX));
        let pause = last.mul_f64(0.5 + (self.jitter)() / 2.0);
        self.pauses.insert(route.clone(), (Instant::now() + pause, last));
        tracing::warn!(rule = route.folder, %error, retry_in_ms = pause.as_millis(), "cannot deliver");
        let now_secs = clock::now().wall.secs();
        self.progress.send_modify(|p| {
            let status = p.routes.entry(route).or_default();
            let (since_secs, tries) = match status.state {
                RouteState::Delivering => (now_secs, 1),
                RouteState::Retrying { since_secs, tries, .. } | RouteState::Degraded { since_secs, tries, .. } => {
                    (since_secs, tries + 1)
                }
            };
            let lasting = now_secs.saturating_sub(since_secs) >= DEGRADED_AFTER_SECS;
            let error_words = error.to_string();
            status.state = if lasting || error.needs_a_person() {
                RouteState::Degraded { since_secs, tries, error: error_words }
            } else {
                RouteState::Retrying { since_secs, tries, error: error_words }
            };
        });
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
        tracing::error!(key = entry.key, file = path, "the store holds other bytes under this key; put aside");
    } else {
        // The log comes first: an agent that only waits for an empty spool ends as soon as the file is removed.
        tracing::info!(key = entry.key, ?outcome, "delivered");
        spool.remove(entry).map_err(spooled)?;
    }
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_opened_once_and_again_when_its_options_change() {
        let endpoint = Arc::new(Mutex::new("https://a.example.com"));
        let now = endpoint.clone();
        let stores = Buckets::new(Box::new(move || {
            let endpoint = now.lock().expect("no panic").to_owned();
            S3Options { endpoint: Some(endpoint), region: Some("r".to_owned()), ..S3Options::default() }
        }));
        let bucket = Location::Bucket("flows".to_owned());
        let open = || stores.open(&bucket).expect("opens");
        let first = open();
        assert!(Arc::ptr_eq(&first, &open()));
        *endpoint.lock().expect("no panic") = "https://b.example.com";
        assert!(!Arc::ptr_eq(&first, &open()));
    }

    #[test]
    fn a_route_is_a_rule_at_a_store() {
        let of = |key: &str| {
            let entry = Entry { location: Location::Bucket("b".to_owned()), key: key.to_owned(), bytes: 0, made_ns: 0 };
            route(&entry).folder
        };
        assert_eq!(of("team/web/year=2026/month=01/day=01/hour=00/x.parquet"), "team/web");
        assert_eq!(of("web/x.parquet"), "web");
        assert_eq!(of("team/web/x.parquet"), "team/web");
    }
}
