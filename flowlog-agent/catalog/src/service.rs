//! Rounds: one, or again and again until somebody stops it.

use std::{sync::Arc, time::Duration};

use flowlog_host::clock;
use iceberg::Catalog;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    metrics::Metrics,
    round::{Feed, Outcome, RoundError},
    storage::Stores,
};

/// What rounds need.
pub(crate) struct Rounds {
    pub(crate) catalog: Arc<dyn Catalog>,
    pub(crate) stores: Arc<Stores>,
    pub(crate) feeds: Vec<Feed>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Rounds {
    /// One round for each table: what came of each.
    pub(crate) async fn all(&mut self) -> Vec<(String, Outcome, Result<(), RoundError>)> {
        let mut all = Vec::new();
        for feed in &mut self.feeds {
            let begin = clock::now();
            let name = feed.name.to_string();
            let (outcome, result) = feed.round(self.catalog.as_ref(), &self.stores).await;
            let end = clock::now();
            let took = Duration::from_nanos(end.mono.0.saturating_sub(begin.mono.0));
            self.metrics.round(&name, &outcome, result.is_ok(), end.wall.secs(), took);
            log(&name, &outcome, &result, took);
            all.push((name, outcome, result));
        }
        all
    }

    /// Until SIGTERM or SIGINT. A round that has begun is left at once: whatever it has not committed, the next start does.
    pub(crate) async fn until_stopped(&mut self, every: Duration) -> std::io::Result<()> {
        let mut stops = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let _ = sd_notify::notify(&[NotifyState::Ready]);
        let mut ticks = tokio::time::interval(every);
        // A long round is not made up for.
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stopped(&mut stops) => break,
                _ = ticks.tick() => {}
            }
            tokio::select! {
                () = stopped(&mut stops) => break,
                done = self.all() => {
                    let words = words(&done);
                    let _ = sd_notify::notify(&[NotifyState::Status(&words)]);
                }
            }
        }
        let _ = sd_notify::notify(&[NotifyState::Stopping]);
        Ok(())
    }
}

async fn stopped((term, int): &mut (Signal, Signal)) {
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

fn log(table: &str, outcome: &Outcome, result: &Result<(), RoundError>, took: Duration) {
    let Outcome { taken, in_table, waiting, commits, conflicts, .. } = outcome;
    let refused: u64 = outcome.refused.values().sum();
    let millis = took.as_millis();
    match result {
        Err(error) => tracing::error!(table, %error, taken, waiting, "the round did not do all"),
        Ok(()) if *taken > 0 => {
            tracing::info!(table, taken, commits, conflicts, in_table, refused, millis, "objects are in the table");
        }
        Ok(()) => tracing::debug!(table, in_table, refused, millis, "nothing new"),
    }
}

fn words(done: &[(String, Outcome, Result<(), RoundError>)]) -> String {
    let one = |(table, outcome, result): &(String, Outcome, Result<(), RoundError>)| match result {
        Ok(()) => format!("{table}: {} objects", outcome.in_table),
        Err(error) => format!("{table}: {error}"),
    };
    done.iter().map(one).collect::<Vec<_>>().join("; ")
}
