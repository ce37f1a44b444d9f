//! Figures for Prometheus, on a loopback address. docs/iceberg.md explains each; a test compares the names.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::{net::TcpListener, sync::Semaphore};

use crate::round::Outcome;

/// Connections at the same time. More wait.
const CONNECTIONS_MAX: usize = 16;
/// Time for a connection: a scrape is over in milliseconds.
const CONNECTION_MAX: Duration = Duration::from_secs(10);
const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfTable {
    table: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfReason {
    table: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfFate {
    table: String,
    fate: &'static str,
}

/// All figures.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    objects: Family<OfTable, Gauge>,
    waiting: Family<OfTable, Gauge>,
    refused: Family<OfReason, Gauge>,
    others: Family<OfTable, Gauge>,
    newest: Family<OfTable, Gauge>,
    taken: Family<OfTable, Counter>,
    commits: Family<OfFate, Counter>,
    failures: Family<OfTable, Counter>,
    finished: Family<OfTable, Gauge>,
    seconds: Family<OfTable, Gauge<f64, std::sync::atomic::AtomicU64>>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut all = Self {
            registry: Registry::default(),
            objects: Family::default(),
            waiting: Family::default(),
            refused: Family::default(),
            others: Family::default(),
            newest: Family::default(),
            taken: Family::default(),
            commits: Family::default(),
            failures: Family::default(),
            finished: Family::default(),
            seconds: Family::default(),
        };
        let r = &mut all.registry;
        r.register("flowlog_catalog_objects", "Objects that the table has taken, by its roll", all.objects.clone());
        r.register(
            "flowlog_catalog_waiting_objects",
            "Objects that are there, and not in the table yet",
            all.waiting.clone(),
        );
        r.register("flowlog_catalog_refused_objects", "Objects that do not fit into the table", all.refused.clone());
        r.register(
            "flowlog_catalog_other_files",
            "Parquet files that are no objects, by their names",
            all.others.clone(),
        );
        let newest = "Begin of the newest window that there is an object of, Unix seconds";
        r.register("flowlog_catalog_newest_window_timestamp_seconds", newest, all.newest.clone());
        r.register("flowlog_catalog_taken_objects", "Objects taken since the start", all.taken.clone());
        r.register("flowlog_catalog_commits", "Commits since the start, by what became of them", all.commits.clone());
        r.register("flowlog_catalog_failed_rounds", "Rounds that did not do all since the start", all.failures.clone());
        let finished = "End of the last round that did all, Unix seconds";
        r.register("flowlog_catalog_round_timestamp_seconds", finished, all.finished.clone());
        r.register("flowlog_catalog_round_seconds", "Length of the last round", all.seconds.clone());
        all
    }

    /// Writes down what came of a round.
    pub(crate) fn round(&self, table: &str, outcome: &Outcome, is_done: bool, now_secs: i64, took: Duration) {
        let of = OfTable { table: table.to_owned() };
        let figure = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.taken.get_or_create(&of).inc_by(outcome.taken);
        for (fate, n) in [("landed", outcome.commits), ("conflict", outcome.conflicts)] {
            self.commits.get_or_create(&OfFate { table: table.to_owned(), fate }).inc_by(n);
        }
        self.seconds.get_or_create(&of).set(took.as_secs_f64());
        self.failures.get_or_create(&of).inc_by(u64::from(!is_done));
        // It is there from the first round on, if only as 0: an alert is for those that never did all, too.
        drop(self.finished.get_or_create(&of));
        // A round that came to nothing has no figures of what there is.
        if let Some(newest) = outcome.newest_window {
            self.newest.get_or_create(&of).set(newest);
        }
        if is_done {
            self.finished.get_or_create(&of).set(now_secs);
        } else if outcome.refused.is_empty() {
            return;
        }
        self.objects.get_or_create(&of).set(figure(outcome.in_table));
        self.waiting.get_or_create(&of).set(figure(outcome.waiting));
        self.others.get_or_create(&of).set(figure(outcome.others));
        for (reason, n) in &outcome.refused {
            self.refused.get_or_create(&OfReason { table: table.to_owned(), reason }).set(figure(*n));
        }
    }

    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// Serves the figures for ever.
///
/// # Errors
/// If connections cannot be taken any more.
pub(crate) async fn serve(listener: TcpListener, metrics: Arc<Metrics>) -> io::Result<()> {
    let seats = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(seat) = seats.clone().acquire_owned().await else { return Ok(()) };
        let (stream, _) = listener.accept().await?;
        let metrics = metrics.clone();
        tokio::spawn(async move {
            let _seat = seat;
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer(&request, &metrics);
                async move { answer }
            });
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(CONNECTION_MAX);
            let served =
                tokio::time::timeout(CONNECTION_MAX, http.serve_connection(TokioIo::new(stream), service)).await;
            if let Ok(Err(error)) = served {
                tracing::debug!(%error, "a connection for metrics ended");
            }
        });
    }
}

fn answer(request: &Request<Incoming>, metrics: &Metrics) -> Result<Response<Full<Bytes>>, hyper::http::Error> {
    let is_asked = request.method() == Method::GET && request.uri().path() == "/metrics";
    let (status, text) =
        if is_asked { (StatusCode::OK, metrics.text()) } else { (StatusCode::NOT_FOUND, String::new()) };
    Response::builder().status(status).header(header::CONTENT_TYPE, TEXT).body(Full::new(Bytes::from(text)))
}

/// Listens on an address.
///
/// # Errors
/// If somebody else does.
pub(crate) async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address).await?;
    tracing::info!(address = %listener.local_addr()?, "serving metrics");
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_documents_have_every_metric_and_no_other() {
        let metrics = Metrics::new();
        let outcome = Outcome { refused: [("version", 1)].into(), newest_window: Some(1), ..Outcome::default() };
        metrics.round("a.b", &outcome, true, 1, Duration::from_secs(1));
        let text = metrics.text();
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let served: BTreeSet<&str> = samples.filter_map(|line| line.split('{').next()).collect();
        let document = include_str!("../../../docs/iceberg.md");
        let named: BTreeSet<&str> =
            document.lines().filter_map(|line| line.strip_prefix("| `flowlog_catalog_")?.split('`').next()).collect();
        let named: BTreeSet<String> = named.into_iter().map(|name| format!("flowlog_catalog_{name}")).collect();
        assert_eq!(served, named.iter().map(String::as_str).collect());
        assert!(text.contains("flowlog_catalog_refused_objects{table=\"a.b\",reason=\"version\"} 1"), "{text}");
    }
}
