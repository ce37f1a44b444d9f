//! Asks the running agent, over its socket.

use std::path::{Path, PathBuf};

use flowlog_control::api::NODE;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;

use super::{run::runtime, status::Output};
use crate::config::SOCKET_DEFAULT;

/// Why there is no good answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error("cannot reach the agent at `{}`: is it running, with `[inventory]` in its configuration?", socket.display())]
    Unreachable { socket: PathBuf, source: std::io::Error },
    #[error("the agent did not answer")]
    NoAnswer(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The agent refused, with these words.
    #[error("{words}")]
    Refused { status: StatusCode, words: String },
    /// What was asked for has been tried.
    #[error("{0}")]
    Failed(String),
}

/// Which agent is meant, and what form its answer is to have.
#[derive(clap::Args)]
pub(super) struct ClientArgs {
    /// The agent's socket.
    #[arg(long, value_name = "FILE", default_value = SOCKET_DEFAULT, env = "FLOWLOG_SOCKET", global = true)]
    socket: PathBuf,
    /// table or json.
    #[arg(long, default_value = "table", global = true)]
    pub(super) output: Output,
}

/// A way to the agent.
pub(super) struct Client(PathBuf);

impl ClientArgs {
    pub(super) fn client(self) -> Client {
        Client(self.socket)
    }
}

impl Client {
    /// Asks for a path below the agent's own base; the answer, or the agent's words.
    pub(super) fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let (status, answer) = runtime()?.block_on(ask(&self.0, method, path, body))?;
        if status.is_success() {
            return Ok(answer);
        }
        let messages = answer["messages"].as_array().cloned().unwrap_or_default();
        let words: Vec<&str> = messages.iter().filter_map(|m| m["message"].as_str()).collect();
        let words = if words.is_empty() { status.to_string() } else { words.join("; ") };
        Err(ClientError::Refused { status, words }.into())
    }

    pub(super) fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.ask(Method::GET, path, None)
    }

    pub(super) fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.ask(Method::POST, path, Some(body))
    }
}

async fn ask(socket: &Path, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<(StatusCode, Value)> {
    let unreachable = |source| ClientError::Unreachable { socket: socket.to_owned(), source };
    let silent = |error: hyper::Error| ClientError::NoAnswer(error.into());
    let stream = tokio::net::UnixStream::connect(socket).await.map_err(unreachable)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(silent)?;
    let serving = tokio::spawn(connection);
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
    let bytes = response.into_body().collect().await.map_err(silent)?.to_bytes();
    drop(sender);
    serving.abort();
    let answer = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes)? };
    Ok((status, answer))
}
