//! Figures for Prometheus, and whether the agent is well: on an address of their own, for machines of this node.
//!
//! * [`region`]: those of a region's server;
//! * [`seats`]: who has a connection;
//! * [`text`]: figures, as they are written down; [`classic`]: the same in the older form;
//! * this file: where they are served, and from whom they come.
//!
//! Nobody is asked who they are, and names of customers' flow logs are in it: so it is a loopback address or a socket, never more.

mod classic;
mod region;
mod seats;
mod text;

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use flowlog_model::{
    figures::Figures,
    rule::InvalidField,
    status::{CaptureState, Status},
};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use seats::{Answering, Seats};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
};
use tower::ServiceExt as _;

use crate::{
    fleet::region::RegionFigures,
    serve::{CONNECTION_MAX, HEAD_TIMEOUT, ServeError, refused},
};

/// Figures in the form that collectors of text files read.
#[must_use]
pub fn classic_text(figures: Figures) -> String {
    classic::of_openmetrics(&text::text(figures))
}

/// Time for the main loop to answer. It answers between two looks into the ring: within ms, unless a disk does not take what is written.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Where figures are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A loopback address.
    Address(SocketAddr),
    /// A socket.
    Socket(PathBuf),
}

impl FromStr for Endpoint {
    type Err = InvalidField;

    fn from_str(text: &str) -> Result<Self, InvalidField> {
        if Path::new(text).is_absolute() {
            return Ok(Self::Socket(text.into()));
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Self::Address(address)),
            Ok(_) => {
                let rule = "must be a loopback address or a socket: whoever reaches it sees every flow log; let a proxy on this node ask who it is";
                Err(InvalidField::new("metrics.listen", text, rule))
            }
            Err(_) => Err(InvalidField::new(
                "metrics.listen",
                text,
                "write `127.0.0.1:PORT`, or the absolute path of a socket",
            )),
        }
    }
}

/// Where figures come from: a port. The command plugs the main loop in.
#[async_trait]
pub trait FiguresSource: Send + Sync {
    /// Those of this moment; `None`: the main loop does not say.
    async fn figures(&self) -> Option<Figures>;
}

/// Listening for those who want figures, but not serving yet.
pub enum MetricsListener {
    Address(std::net::TcpListener),
    Socket(std::os::unix::net::UnixListener),
}

/// Listens; who connects waits until it is served.
///
/// # Errors
/// If the address cannot be used.
pub fn listen(endpoint: &Endpoint) -> Result<MetricsListener, ServeError> {
    let failed = |source| ServeError::Metrics { endpoint: endpoint.to_string(), source };
    match endpoint {
        Endpoint::Address(address) => {
            let listener = std::net::TcpListener::bind(address).map_err(failed)?;
            listener.set_nonblocking(true).map_err(failed)?;
            let bound = listener.local_addr().map_err(failed)?;
            tracing::info!(address = %bound, "serving metrics");
            Ok(MetricsListener::Address(listener))
        }
        Endpoint::Socket(path) => {
            let listener = crate::serve::socket(path).map_err(failed)?;
            // The agent's user and its group: the scraper is a member of it.
            fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(failed)?;
            tracing::info!(socket = %path.display(), "serving metrics");
            Ok(MetricsListener::Socket(listener))
        }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Socket(path) => path.display().fmt(f),
        }
    }
}

impl MetricsListener {
    /// Serves for ever.
    ///
    /// # Errors
    /// If the runtime takes no more descriptors.
    pub async fn run(self, source: Arc<dyn FiguresSource>) -> io::Result<()> {
        let router = Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz", get(healthy))
            .route("/readyz", get(ready))
            .with_state(source);
        self.serve(&router).await
    }

    /// As [`run`](Self::run), of a region's server.
    ///
    /// # Errors
    /// If the runtime takes no more descriptors.
    pub async fn run_of_region(self, counted: Arc<dyn Fn() -> RegionFigures + Send + Sync>) -> io::Result<()> {
        self.serve(&region::router(counted)).await
    }

    async fn serve(self, router: &Router) -> io::Result<()> {
        let seats = Seats::default();
        match self {
            Self::Address(listener) => {
                let listener = TcpListener::from_std(listener)?;
                loop {
                    let accepted = listener.accept().await.map(|(stream, _)| stream);
                    accept(accepted, router, &seats).await;
                }
            }
            Self::Socket(listener) => {
                let listener = UnixListener::from_std(listener)?;
                loop {
                    let accepted = listener.accept().await.map(|(stream, _)| stream);
                    accept(accepted, router, &seats).await;
                }
            }
        }
    }
}

/// Serves a connection beside others, until somebody needs its seat more.
async fn accept<S>(accepted: io::Result<S>, router: &Router, seats: &Seats)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stream = match accepted {
        Ok(stream) => stream,
        Err(error) => return refused(&error).await,
    };
    let Some(seat) = seats.take().map(Arc::new) else { return };
    let (router, held) = (router.clone(), seat.clone());
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (router, busy) = (router.clone(), Answering::new(held.clone()));
        async move {
            let _busy = busy;
            router.oneshot(request.map(Body::new)).await
        }
    });
    tokio::spawn(async move {
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).half_close(true);
        tokio::select! {
            served = tokio::time::timeout(CONNECTION_MAX, http.serve_connection(TokioIo::new(stream), service)) => {
                if let Ok(Err(error)) = served {
                    tracing::debug!(%error, "a connection for metrics ended");
                }
            }
            () = seat.needed() => tracing::debug!("a connection for metrics was cut: somebody else needs the seat"),
        }
    });
}

type Source = Arc<dyn FiguresSource>;

/// Figures of this moment; `None`: the main loop does not answer.
async fn figures(source: &Source) -> Option<Figures> {
    tokio::time::timeout(ANSWER_MAX, source.figures()).await.ok().flatten()
}

/// What is said where it does not.
fn silent() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "the main loop does not answer\n").into_response()
}

async fn metrics(State(source): State<Source>, headers: HeaderMap) -> Response {
    let Some(figures) = figures(&source).await else { return silent() };
    let mut accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let (form, text) = if accepted.any(classic::takes_openmetrics) {
        (text::CONTENT_TYPE, text::text(figures))
    } else {
        (classic::CONTENT_TYPE, classic_text(figures))
    };
    ([(header::CONTENT_TYPE, form)], text).into_response()
}

/// Whether the main loop does its work: who restarts the agent asks this.
async fn healthy(State(source): State<Source>) -> Response {
    figures(&source).await.map_or_else(silent, |_| "ok\n".into_response())
}

/// Whether everything is captured that can be: who rolls out a new version asks this.
async fn ready(State(source): State<Source>) -> Response {
    match figures(&source).await.map(|f| trouble(&f.status)) {
        None => silent(),
        Some(words) if words.is_empty() => "ok\n".into_response(),
        Some(words) => (StatusCode::SERVICE_UNAVAILABLE, words).into_response(),
    }
}

/// What keeps the agent from capturing, one a line: its end as well. An interface that is waited for does not, and a store that does not answer is the
/// spool's matter.
fn trouble(status: &Status) -> String {
    let rules = status.rules.iter().filter_map(|rule| match &rule.capture {
        CaptureState::Trouble { why } => Some(format!("flow log {}: {why}\n", rule.rule)),
        CaptureState::Attached { .. } | CaptureState::Waiting { .. } | CaptureState::Unknown => None,
    });
    let stopping = status.stopping.iter().map(|words| format!("stopping: {words}\n"));
    stopping.chain(status.trouble.iter().map(|words| format!("{words}\n"))).chain(rules).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_served_on_loopback_or_a_socket_and_nowhere_else() {
        let endpoint = |text: &str| text.parse::<Endpoint>();
        assert_eq!(endpoint("/run/flowlog/metrics.sock"), Ok(Endpoint::Socket("/run/flowlog/metrics.sock".into())));
        for address in ["127.0.0.1:9469", "[::1]:9469"] {
            assert_eq!(endpoint(address), Ok(Endpoint::Address(address.parse().expect("an address"))));
        }
        for wrong in ["0.0.0.0:9469", "[::]:9469", "192.0.2.1:9469", "metrics.sock", "localhost:9469", ""] {
            let error = endpoint(wrong).expect_err(wrong);
            assert!(error.to_string().contains("metrics.listen"), "{error}");
        }
    }

    /// A main loop that hangs.
    struct Hung;

    #[async_trait]
    impl FiguresSource for Hung {
        async fn figures(&self) -> Option<Figures> {
            std::future::pending().await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_main_loop_that_hangs_is_not_well_and_nobody_waits_for_it() {
        let source: Source = Arc::new(Hung);
        assert_eq!(healthy(State(source.clone())).await.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(ready(State(source.clone())).await.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(metrics(State(source), HeaderMap::new()).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    }

    #[test]
    fn the_agent_is_ready_while_interfaces_are_waited_for_and_not_while_one_is_in_trouble() {
        let mut status = Status::default();
        status.rules.push(flowlog_model::status::RuleStatus {
            rule: "web".to_owned(),
            capture: CaptureState::Waiting { why: "there is no tap0".to_owned() },
            ..Default::default()
        });
        assert_eq!(trouble(&status), "");
        status.rules[0].capture = CaptureState::Trouble { why: "it cannot be hooked".to_owned() };
        status.trouble = Some("no room".to_owned());
        assert_eq!(trouble(&status), "no room\nflow log web: it cannot be hooked\n");
        let stopping = Status { stopping: Some("delivering".to_owned()), ..Status::default() };
        assert_eq!(trouble(&stopping), "stopping: delivering\n");
    }
}
