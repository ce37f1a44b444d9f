//! Delivery of spooled objects, oldest first, with retries that never give up and never hold back another target.

pub mod store;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{Notify, watch};

pub use store::{Outcome, S3Options, Store, StoreError};

use crate::{
    rule::Location,
    spool::{Entry, Spool},
};

/// First pause after a failure.
const RETRY_MIN: Duration = Duration::from_millis(500);
/// Longest pause between tries: a store that comes back is used again within a minute.
const RETRY_MAX: Duration = Duration::from_mins(1);

/// What the uploader has to say about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Objects delivered since start.
    pub delivered: u64,
    /// Objects waiting in the spool.
    pub waiting: usize,
    /// Objects put aside because the store holds other bytes under their key.
    pub quarantined: u64,
    /// The last error, in the store's words; `None` after a success.
    pub last_error: Option<String>,
    /// Rounds through the spool so far: changes even when nothing else does.
    pub rounds: u64,
}

/// Delivers what is in the spool.
pub struct Uploader {
    spool: Spool,
    options: S3Options,
    stores: HashMap<Location, Store>,
    pauses: HashMap<Location, (Instant, Duration)>,
    progress: watch::Sender<Progress>,
}

impl Uploader {
    /// `options` apply to every bucket.
    #[must_use]
    pub fn new(spool: Spool, options: S3Options) -> Self {
        Self { spool, options, stores: HashMap::new(), pauses: HashMap::new(), progress: watch::Sender::default() }
    }

    /// Watch the progress.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Runs for ever: one round for each `wake`, and again when a pause is over.
    pub async fn run(mut self, wake: Arc<Notify>) {
        loop {
            let next = self.round().await;
            let pause = next.map_or(Duration::from_hours(1), |at| at.saturating_duration_since(Instant::now()));
            tokio::select! {
                () = wake.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Tries everything that is not in a pause; returns when the next pause ends.
    async fn round(&mut self) -> Option<Instant> {
        let entries = self.spool.entries().unwrap_or_else(|error| {
            tracing::error!(%error, "cannot list the spool");
            Vec::new()
        });
        let mut waiting = entries.len();
        for entry in &entries {
            if self.pauses.get(&entry.location).is_some_and(|(until, _)| *until > Instant::now()) {
                continue;
            }
            let result = self.deliver(entry).await;
            if result.is_ok() {
                waiting -= 1;
            }
            self.note(entry, result, waiting);
        }
        self.progress.send_modify(|p| {
            p.waiting = waiting;
            p.rounds += 1;
        });
        self.pauses.retain(|_, (until, _)| *until > Instant::now() || waiting > 0);
        self.pauses.values().map(|(until, _)| *until).min()
    }

    async fn deliver(&mut self, entry: &Entry) -> Result<Outcome, StoreError> {
        let spooled = |e: crate::spool::SpoolError| StoreError::Spool(e.to_string());
        if !self.stores.contains_key(&entry.location) {
            let store = Store::open(&entry.location, &self.options)?;
            self.stores.insert(entry.location.clone(), store);
        }
        let store = &self.stores[&entry.location];
        let bytes = self.spool.read(entry).map_err(spooled)?;
        let outcome = store.deliver(&entry.key, bytes).await?;
        if outcome == Outcome::Conflict {
            let path = self.spool.quarantine(entry).map_err(spooled)?;
            tracing::error!(key = entry.key, file = %path.display(), "the store holds other bytes under this key; put aside");
        } else {
            self.spool.remove(entry).map_err(spooled)?;
        }
        Ok(outcome)
    }

    fn note(&mut self, entry: &Entry, result: Result<Outcome, StoreError>, waiting: usize) {
        match result {
            Ok(outcome) => {
                self.pauses.remove(&entry.location);
                tracing::info!(key = entry.key, ?outcome, "delivered");
                self.progress.send_modify(|p| {
                    if outcome == Outcome::Conflict {
                        p.quarantined += 1;
                    } else {
                        p.delivered += 1;
                    }
                    p.waiting = waiting;
                    p.last_error = None;
                });
            }
            Err(error) => {
                let last = self.pauses.get(&entry.location).map_or(RETRY_MIN, |(_, pause)| (*pause * 2).min(RETRY_MAX));
                // Jitter: the nodes of a region must not come back all at once.
                let pause = last.mul_f64(
                    0.5 + 0.5 * f64::from(u16::try_from(uuid::Uuid::new_v4().as_u128() & 0xffff).unwrap_or(0))
                        / 65_536.0,
                );
                self.pauses.insert(entry.location.clone(), (Instant::now() + pause, last));
                tracing::warn!(key = entry.key, %error, retry_in_ms = pause.as_millis(), "cannot deliver; will try again");
                self.progress.send_modify(|p| p.last_error = Some(error.to_string()));
            }
        }
    }
}
