//! Carries what a browser asks for to the agent's socket, and the answers back. Every user of this machine can connect to a port on
//! loopback, and every page in the browser can send something there: so whoever has not the secret gets nothing, and neither does who
//! comes by another name.

use std::{
    convert::Infallible,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use flowlog_control::flow_logs::principals::new_token;
use http_body_util::{Either, Full};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::Incoming,
    header::{self, HeaderName, HeaderValue},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream, UnixStream},
    sync::Semaphore,
};

/// Connections at the same time: a browser makes six.
const CONNECTIONS_MAX: usize = 32;
/// Time for a request's head to come.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of randomness in the name of the cookie: consoles of several nodes do not take each other's.
const NAME_CHARS: usize = 12;

type Answer = Response<Either<Incoming, Full<Bytes>>>;

/// See the module's head.
pub(super) struct Proxy {
    socket: PathBuf,
    /// What the link has; `None`: it has been used.
    token: Mutex<Option<String>>,
    cookie_name: String,
    /// What the browser has from then on.
    secret: String,
    /// The agent's own cookie: it stays here.
    agents: Mutex<Option<HeaderValue>>,
}

impl Proxy {
    pub(super) fn new(socket: PathBuf, token: String) -> Self {
        let ((secret, _), (name, _)) = (new_token(), new_token());
        let cookie_name = format!("flowlog-console-{}", &name[..NAME_CHARS]);
        Self { socket, token: Mutex::new(Some(token)), cookie_name, secret, agents: Mutex::default() }
    }

    /// Serves until the listener fails.
    pub(super) async fn serve(self, listener: std::net::TcpListener) -> std::io::Result<()> {
        let listener = TcpListener::from_std(listener)?;
        let proxy = Arc::new(self);
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let (stream, _) = listener.accept().await?;
            let Ok(place) = places.clone().try_acquire_owned() else { continue };
            let proxy = proxy.clone();
            tokio::spawn(async move {
                proxy.connection(stream).await;
                drop(place);
            });
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream) {
        let service = service_fn(move |request| {
            let proxy = self.clone();
            async move { Ok::<_, Infallible>(proxy.answer(request).await) }
        });
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
        // A browser that goes away is no failure.
        let _ = http.serve_connection(TokioIo::new(stream), service).await;
    }

    async fn answer(&self, request: Request<Incoming>) -> Answer {
        if !is_loopback_name(request.headers()) {
            return words(StatusCode::MISDIRECTED_REQUEST, "This console is at 127.0.0.1 or localhost.");
        }
        let given = request.uri().query().and_then(|q| q.strip_prefix("token="));
        if let Some(given) = given.filter(|_| request.uri().path() == "/") {
            return self.let_in(given);
        }
        if !self.is_known(request.headers()) {
            let told = "This console belongs to whoever started it. Open the link that `flowlog console` has printed; it works once.";
            return words(StatusCode::FORBIDDEN, told);
        }
        match self.forward(request).await {
            Ok(answer) => answer,
            Err(_unreachable) => words(StatusCode::BAD_GATEWAY, "The agent does not answer. Is it running?"),
        }
    }

    /// Takes the link's token, once, and leads on with the cookie. By a page: a redirect would still count as coming from wherever the
    /// link was, and the cookie would not be sent along.
    fn let_in(&self, given: &str) -> Answer {
        let mut token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        if token.as_deref() != Some(given) {
            return words(
                StatusCode::FORBIDDEN,
                "This link has been used, or is not this console's. Start another one.",
            );
        }
        *token = None;
        let page =
            "<!doctype html><html lang=\"en\"><title>flowlog</title><meta http-equiv=\"refresh\" content=\"0;url=/\">";
        let mut answer = words(StatusCode::OK, page);
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
        let cookie = format!("{}={}; Path=/; HttpOnly; SameSite=Strict", self.cookie_name, self.secret);
        if let Ok(cookie) = HeaderValue::from_str(&cookie) {
            headers.insert(header::SET_COOKIE, cookie);
        }
        answer
    }

    fn is_known(&self, headers: &HeaderMap) -> bool {
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(';'));
        cookies
            .filter_map(|c| c.trim().split_once('='))
            .any(|(name, value)| name == self.cookie_name && value == self.secret)
    }

    async fn forward(&self, request: Request<Incoming>) -> anyhow::Result<Answer> {
        let (mut parts, body) = request.into_parts();
        for name in [header::COOKIE, header::CONNECTION, header::UPGRADE, HeaderName::from_static("keep-alive")] {
            parts.headers.remove(name);
        }
        if let Some(cookie) = self.agents.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            parts.headers.insert(header::COOKIE, cookie);
        }
        let stream = UnixStream::connect(&self.socket).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut answer = sender.send_request(Request::from_parts(parts, body)).await?;
        let headers = answer.headers_mut();
        headers.remove(header::CONNECTION);
        if let Some(set) = headers.remove(header::SET_COOKIE) {
            let pair = set.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
            let pair = HeaderValue::from_str(pair).ok();
            *self.agents.lock().unwrap_or_else(PoisonError::into_inner) = pair;
        }
        Ok(answer.map(Either::Left))
    }
}

/// Whether the browser came by a name of loopback: a page elsewhere can have its own name lead here. The port may be another one, as
/// `ssh -L` has it.
fn is_loopback_name(headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let is_port = |port: &str| port.is_empty() || port.strip_prefix(':').is_some_and(|p| p.parse::<u16>().is_ok());
    ["127.0.0.1", "localhost", "[::1]"].iter().any(|name| host.strip_prefix(name).is_some_and(is_port))
}

fn words(status: StatusCode, words: &'static str) -> Answer {
    let mut answer = Response::new(Either::Right(Full::new(Bytes::from_static(words.as_bytes()))));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_works_once_and_its_cookie_is_the_only_way_in() {
        let proxy = Proxy::new(PathBuf::from("/nowhere"), "link".to_owned());
        assert_eq!(proxy.let_in("other").status(), StatusCode::FORBIDDEN);
        let answer = proxy.let_in("link");
        assert_eq!(proxy.let_in("link").status(), StatusCode::FORBIDDEN, "once");
        let set = answer.headers()[header::SET_COOKIE].to_str().expect("text");
        assert!(set.contains("HttpOnly") && set.contains("SameSite=Strict"), "{set}");
        let pair = set.split(';').next().expect("a pair");
        let sends = |cookies: &str| {
            proxy.is_known(&HeaderMap::from_iter([(header::COOKIE, cookies.parse().expect("a value"))]))
        };
        assert!(sends(pair) && sends(&format!("a=b; {pair}")));
        assert!(!sends("") && !sends("a=b") && !sends(&format!("{pair}0")) && !sends(&pair.replace("flowlog-", "x-")));
    }

    #[test]
    fn another_name_for_loopback_is_refused() {
        let by = |host: &str| is_loopback_name(&HeaderMap::from_iter([(header::HOST, host.parse().expect("a value"))]));
        assert!(by("127.0.0.1:80") && by("localhost:8080") && by("[::1]:1") && by("localhost"));
        assert!(
            !by("evil.example:80")
                && !by("127.0.0.1.evil.example")
                && !by("localhost.evil:80")
                && !by("127.0.0.1:x")
                && !by("")
        );
    }
}
