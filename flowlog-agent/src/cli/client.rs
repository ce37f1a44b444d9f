//! Asks the running agent, over its socket.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use flowlog_control::api::{NODE, error::ErrorBody};
use flowlog_model::live::FlowEvent;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, StatusCode, body::Incoming};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use super::{out, run::runtime, status::Output};
use crate::config::SOCKET_DEFAULT;

/// Why there is no good answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error("cannot reach the agent at `{}`: is it running, with `[inventory]` or `api.socket` in its configuration, or with `--socket`?", socket.display())]
    Unreachable { socket: PathBuf, source: std::io::Error },
    #[error("the agent did not answer")]
    NoAnswer(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// An answer that was to go on has ended, for this reason.
    #[error("the stream has ended: {0}")]
    Ended(String),
    /// The agent refused, with these words.
    #[error("{words}")]
    Refused { status: StatusCode, words: String },
    /// What was asked for has been tried.
    #[error("{0}")]
    Failed(String),
    /// There was no answer in the time that somebody waits.
    #[error("no answer in {} s{}", patience.as_secs_f64(), if *may_be_done { MAY_BE_DONE } else { "" })]
    Late { patience: Duration, may_be_done: bool },
}

/// What there is to say of a change that nobody has answered.
const MAY_BE_DONE: &str =
    ": it may be done all the same, or be later; look with `flowlog rule list`, and `rule audit` says who did what";

/// Which agent is meant.
#[derive(clap::Args)]
pub(super) struct SocketArgs {
    /// The agent's socket.
    #[arg(long, value_name = "FILE", default_value = SOCKET_DEFAULT, env = "FLOWLOG_SOCKET", global = true)]
    socket: PathBuf,
}

/// Which agent is meant, and what form its answer is to have.
#[derive(clap::Args)]
pub(super) struct ClientArgs {
    #[command(flatten)]
    socket: SocketArgs,
    /// Form of the answer.
    #[arg(long, short, value_name = "FORM", default_value = "table", global = true)]
    pub(super) output: Output,
}

/// A way to the agent.
pub(super) struct Client {
    socket: PathBuf,
    /// How long one answer is waited for; `None`: for ever.
    patience: Option<Duration>,
}

impl SocketArgs {
    pub(super) fn client(self) -> Client {
        Client { socket: self.socket, patience: None }
    }
}

impl ClientArgs {
    pub(super) fn client(self) -> Client {
        self.socket.client()
    }
}

impl Client {
    /// Where the agent listens.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Waits so long for an answer, and no longer.
    pub(super) fn with_patience(self, patience: Duration) -> Self {
        Self { patience: Some(patience), ..self }
    }

    /// Asks for a path below the agent's own base; the answer, or the agent's words.
    pub(super) fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        self.ask_within(self.patience, method, path, body)
    }

    fn ask_within(
        &self,
        patience: Option<Duration>,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Value> {
        let may_be_done = method != Method::GET;
        let answer = runtime()?.block_on(async {
            let asked = ask(&self.socket, method, path, body);
            let Some(patience) = patience else { return asked.await };
            let answer = tokio::time::timeout(patience, asked).await;
            answer.unwrap_or_else(|_| Err(ClientError::Late { patience, may_be_done }.into()))
        });
        let (status, answer) = answer?;
        if status.is_success() { Ok(answer) } else { Err(refused(status, answer).into()) }
    }

    /// Hands out the lines of an answer as they come, until it ends, there is nobody who wants more, or a signal. Empty lines say nothing.
    ///
    /// An answer that was to go on, and says why it does not, is [`ClientError::Ended`]. What it notes goes to standard error.
    pub(super) fn stream(
        &self,
        path: &str,
        mut each: impl FnMut(&str) -> anyhow::Result<ControlFlow<()>>,
    ) -> anyhow::Result<()> {
        runtime()?.block_on(async {
            let [mut interrupt, mut terminate, mut hangup] =
                [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?];
            tokio::select! {
                ended = stream(&self.socket, path, &mut each) => ended,
                _ = interrupt.recv() => Ok(()),
                _ = terminate.recv() => Ok(()),
                _ = hangup.recv() => Ok(()),
            }
        })
    }

    pub(super) fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.ask(Method::GET, path, None)
    }

    /// The same, if there is an answer in so much time.
    pub(super) fn get_within(&self, patience: Duration, path: &str) -> anyhow::Result<Value> {
        self.ask_within(Some(patience), Method::GET, path, None)
    }

    pub(super) fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.ask(Method::POST, path, Some(body))
    }
}

/// Why the agent refused, in its own words.
fn refused(status: StatusCode, answer: Value) -> ClientError {
    // Whatever else is listening there says it in another form: then its status is all there is to say.
    let words = serde_json::from_value(answer).map_or_else(
        |_| status.to_string(),
        |ErrorBody { messages, .. }| messages.into_iter().map(|m| m.message).collect::<Vec<_>>().join("; "),
    );
    ClientError::Refused { status, words }
}

async fn ask(socket: &Path, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<(StatusCode, Value)> {
    let (status, body) = send(socket, method, path, body).await?;
    let bytes = body.collect().await.map_err(silent)?.to_bytes();
    let answer = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes)? };
    Ok((status, answer))
}

/// What the agent at a socket says of a path below its own base.
pub(super) async fn get(socket: &Path, path: &str) -> anyhow::Result<Value> {
    let (status, answer) = ask(socket, Method::GET, path, None).await?;
    if status.is_success() { Ok(answer) } else { Err(refused(status, answer).into()) }
}

async fn stream(
    socket: &Path,
    path: &str,
    each: &mut impl FnMut(&str) -> anyhow::Result<ControlFlow<()>>,
) -> anyhow::Result<()> {
    let (status, mut body) = send(socket, Method::GET, path, None).await?;
    if !status.is_success() {
        let bytes = body.collect().await.map_err(silent)?.to_bytes();
        return Err(refused(status, serde_json::from_slice(&bytes).unwrap_or_default()).into());
    }
    let mut unfinished = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(silent)?.into_data() else { continue };
        unfinished.extend_from_slice(&data);
        let Some(end) = unfinished.iter().rposition(|b| *b == b'\n') else { continue };
        let rest = unfinished.split_off(end + 1);
        for line in std::mem::replace(&mut unfinished, rest).split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
            let line = String::from_utf8_lossy(line);
            match serde_json::from_str(&line) {
                Ok(FlowEvent::Ended { ended }) => return Err(ClientError::Ended(ended).into()),
                Ok(FlowEvent::Note { note }) => {
                    out::note(&note);
                    continue;
                }
                _ => {}
            }
            if each(&line)?.is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn silent(error: hyper::Error) -> ClientError {
    ClientError::NoAnswer(error.into())
}

async fn send(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> anyhow::Result<(StatusCode, Incoming)> {
    let unreachable = |source| ClientError::Unreachable { socket: socket.to_owned(), source };
    let stream = tokio::net::UnixStream::connect(socket).await.map_err(unreachable)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(silent)?;
    tokio::spawn(connection);
    let base = if path.starts_with('/') { "" } else { NODE };
    let slash = if base.is_empty() { "" } else { "/" };
    let bytes = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(format!("{base}{slash}{path}"))
        .header(hyper::header::HOST, "localhost")
        .header(hyper::header::CONTENT_TYPE, "application/json")
        .body(Full::new(bytes::Bytes::from(bytes)))?;
    let response = sender.send_request(request).await.map_err(silent)?;
    let status = response.status();
    Ok((status, response.into_body()))
}

/// An answer of the agent in the type that it was written from.
pub(super) fn read<T: DeserializeOwned>(answer: Value) -> anyhow::Result<T> {
    serde_json::from_value(answer).context("the agent's answer is not understood: is it of another version?")
}

/// A value as it is called on the wire.
pub(super) fn word(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
