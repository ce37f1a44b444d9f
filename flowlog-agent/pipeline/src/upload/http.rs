//! How requests to a bucket travel. A store may be broken, slow, or not the one it says it is: its replies are read up to a limit,
//! it cannot send the agent elsewhere, and a request that is slower than a floor is cut.

use std::{
    error::Error,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use object_store::{
    ClientConfigKey, ClientOptions,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpService,
    },
};
use tokio::time::{Instant, sleep_until};

/// Time for an answer, besides that for the bytes: a store that says nothing holds up its route for so long.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Slowest way to a store that is used: bytes a second.
const BYTES_PER_SEC_MIN: u64 = 250_000;
/// Longest reply that the agent reads. It reads no objects; an error document has hundreds of bytes, fresh credentials thousands.
pub(super) const REPLY_BYTES_MAX: usize = 64 << 10;
/// What the client and the kernel (`net.ipv4.tcp_wmem`) may hold of an upload that has left the agent and not the machine.
const BUFFERED_BYTES_MAX: u64 = 5 << 20;

/// What a store does that is not put up with.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error(
        "the reply has more than {0} bytes, which no reply of an object store to what was asked has; check `endpoint`"
    )]
    TooLong(usize),
    #[error("redirects are not followed; if the store has moved, set `endpoint` to where it points: {0}")]
    Redirect(String),
    #[error(
        "no answer in {} s, or less than {BYTES_PER_SEC_MIN} bytes a second: cut",
        ANSWER_TIMEOUT.as_secs()
    )]
    TooSlow,
}

impl Refusal {
    /// The refusal that an error is about, if it is.
    pub(super) fn of<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        causes(error).find_map(|e| e.downcast_ref())
    }
}

impl From<Refusal> for HttpError {
    fn from(refusal: Refusal) -> Self {
        // Of a kind that is not tried again at once: it would be refused again.
        Self::new(HttpErrorKind::Unknown, refusal)
    }
}

/// An error, what caused it, and so on.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |e| (*e).source())
}

/// The time that bytes may take.
pub(super) fn time_for(bytes: u64) -> Duration {
    Duration::from_millis(bytes.saturating_mul(1000) / BYTES_PER_SEC_MIN)
}

/// How long a request may still take. Each byte that moves, there or back, gives it as much more as a byte may take.
struct Pace(Mutex<Instant>);

impl Pace {
    fn new() -> Self {
        Self(Mutex::new(Instant::now() + ANSWER_TIMEOUT))
    }

    fn deadline(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn moved(&self, bytes: usize) {
        // What was fast at first may not be silent for the longer.
        let latest = Instant::now() + ANSWER_TIMEOUT + time_for(BUFFERED_BYTES_MAX);
        let later = self.deadline() + time_for(bytes as u64);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = later.min(latest);
    }

    /// The result of some work, unless it falls behind.
    async fn keep<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = std::pin::pin!(work);
        loop {
            let deadline = self.deadline();
            tokio::select! {
                biased;
                done = &mut work => return Some(done),
                () = sleep_until(deadline) => {
                    if self.deadline() <= deadline {
                        return None;
                    }
                }
            }
        }
    }
}

/// Makes [`Client`]s for `object_store`: for buckets, and for what gives out credentials.
#[derive(Debug)]
pub(super) struct Connector {
    /// Longest reply that is read.
    pub(super) reply_bytes_max: usize,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let option = |key| options.get_config_value(&key);
        let mut client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .http1_only()
            .user_agent(concat!("flowlog/", env!("CARGO_PKG_VERSION")))
            .https_only(option(ClientConfigKey::AllowHttp).is_none_or(|allowed| allowed != "true"));
        // It is one second where a node is asked for its own credentials, and such options are only told as text: `1s`.
        let connect = option(ClientConfigKey::ConnectTimeout).and_then(|t| t.strip_suffix('s')?.parse().ok());
        if let Some(secs) = connect {
            client = client.connect_timeout(Duration::from_secs(secs));
        }
        let client = client.build().map_err(|e| object_store::Error::Generic { store: "S3", source: Box::new(e) })?;
        Ok(HttpClient::new(Client { inner: client, reply_bytes_max: self.reply_bytes_max }))
    }
}

/// See the module's head.
#[derive(Debug)]
struct Client {
    inner: reqwest::Client,
    reply_bytes_max: usize,
}

#[async_trait::async_trait]
impl HttpService for Client {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let pace = Arc::new(Pace::new());
        pace.keep(self.exchange(request, &pace)).await.unwrap_or_else(|| Err(Refusal::TooSlow.into()))
    }
}

impl Client {
    /// Sends a request, and reads the whole reply.
    async fn exchange(&self, request: HttpRequest, pace: &Arc<Pace>) -> Result<HttpResponse, HttpError> {
        let request = reqwest::Request::try_from(request.map(|body| counted(body, pace))).map_err(http_error)?;
        let mut reply = self.inner.execute(request).await.map_err(http_error)?;
        if reply.status().is_redirection()
            && let Some(to) = reply.headers().get("location")
        {
            return Err(Refusal::Redirect(String::from_utf8_lossy(to.as_bytes()).into_owned()).into());
        }
        let mut body = Vec::new();
        while let Some(part) = reply.chunk().await.map_err(http_error)? {
            if body.len() + part.len() > self.reply_bytes_max {
                return Err(Refusal::TooLong(self.reply_bytes_max).into());
            }
            pace.moved(part.len());
            body.extend_from_slice(&part);
        }
        let mut read = HttpResponse::new(body.into());
        *read.status_mut() = reply.status();
        *read.headers_mut() = std::mem::take(reply.headers_mut());
        Ok(read)
    }
}

/// A request's body, whose bytes count when they leave.
fn counted(body: HttpRequestBody, pace: &Arc<Pace>) -> reqwest::Body {
    let pace = pace.clone();
    match body.as_bytes() {
        // Short, and its length must be known beforehand.
        Some(bytes) => bytes.clone().into(),
        None => reqwest::Body::wrap(body.map_frame(move |frame| {
            pace.moved(frame.data_ref().map_or(0, Bytes::len));
            frame
        })),
    }
}

/// An error in the terms of `object_store`: from these it knows whether to try again at once. Its own translation is private
/// (apache/arrow-rs-object-store#642).
fn http_error(error: reqwest::Error) -> HttpError {
    let is_unsent = |e: &hyper::Error| e.is_closed() || e.is_incomplete_message() || e.is_body_write_aborted();
    let kind = if error.is_timeout() {
        HttpErrorKind::Timeout
    } else if error.is_connect() {
        HttpErrorKind::Connect
    } else if causes(&error).filter_map(|e| e.downcast_ref()).any(is_unsent) {
        HttpErrorKind::Request
    } else {
        HttpErrorKind::Interrupted
    };
    HttpError::new(kind, error.without_url())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long a request lasts that moves so many bytes each second, a minute at most.
    fn lasts(first: usize, each_second: usize) -> Option<Duration> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.expect("a runtime").block_on(async {
            let pace = Pace::new();
            let since = Instant::now();
            pace.moved(first);
            let work = async {
                for _ in 0..60 {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    pace.moved(each_second);
                }
            };
            pace.keep(work).await.is_none().then(|| since.elapsed())
        })
    }

    #[test]
    fn a_request_lasts_as_long_as_it_keeps_the_pace() {
        let floor = usize::try_from(BYTES_PER_SEC_MIN).expect("fits");
        assert_eq!(lasts(0, floor), None);
        assert_eq!(lasts(0, 0), Some(ANSWER_TIMEOUT));
        // A byte a second puts it off by next to nothing.
        assert!(lasts(0, 1).is_some_and(|time| time < ANSWER_TIMEOUT + Duration::from_secs(1)));
        assert!(lasts(0, floor / 2).is_some_and(|time| time > ANSWER_TIMEOUT * 3 / 2));
        // What was fast is not believed for the longer.
        assert!(lasts(1 << 30, 1).is_some_and(|time| time < ANSWER_TIMEOUT * 5 / 2));
    }
}
