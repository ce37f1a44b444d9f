//! A small HTTP/1.1 client that sends what it is told, right or wrong: over the agent's socket, or TCP.

use std::{
    io::{BufRead as _, BufReader, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::Context as _;
use serde_json::Value;

/// Longer than anything the agent may take.
const PATIENCE: Duration = Duration::from_mins(1);

#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    /// Head, as it came, in lower case.
    pub head: String,
    /// Body; `Null` if it is empty.
    pub body: Value,
}

impl Answer {
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':').map(str::trim))
    }

    /// All messages of an error.
    #[must_use]
    pub fn words(&self) -> String {
        let messages = self.body["messages"].as_array().into_iter().flatten();
        messages.filter_map(|m| m["message"].as_str()).collect::<Vec<_>>().join("\n")
    }
}

/// Makes a request's bytes; `more` are lines of its head.
#[must_use]
pub fn request(method: &str, path: &str, more: &str, body: Option<&Value>) -> Vec<u8> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n{more}content-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Sends bytes and reads until the other side closes.
///
/// # Errors
/// If there is no answer, or none that is HTTP with JSON.
pub fn exchange(stream: &mut (impl Read + Write), bytes: &[u8]) -> anyhow::Result<Answer> {
    let (status, head, body) = exchange_text(stream, bytes)?;
    let body = if body.is_empty() { Value::Null } else { serde_json::from_str(&body).with_context(|| body.clone())? };
    Ok(Answer { status, head: head.to_ascii_lowercase(), body })
}

/// The same for any text: status, head as it came, and body.
///
/// # Errors
/// If there is no answer, or none that is HTTP with text.
pub fn exchange_text(stream: &mut (impl Read + Write), bytes: &[u8]) -> anyhow::Result<(u16, String, String)> {
    stream.write_all(bytes)?;
    let mut answer = Vec::new();
    // A server that cuts us may reset the connection after its answer.
    let read = stream.read_to_end(&mut answer);
    let text = String::from_utf8(answer)?;
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("no answer: {read:?} {text}"))?;
    let status = head.split_whitespace().nth(1).context("status")?.parse()?;
    Ok((status, head.to_owned(), body.to_owned()))
}

/// Asks over the agent's socket.
///
/// # Errors
/// As [`exchange`].
pub fn unix(socket: &Path, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    exchange(&mut stream, &request(method, path, "", body))
}

/// Gets a text over a socket.
///
/// # Errors
/// As [`exchange_text`].
pub fn unix_text(socket: &Path, path: &str) -> anyhow::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(exchange_text(&mut stream, &request("GET", path, "", None))?.2)
}

/// Asks over TCP; `authorization` is that header's value.
///
/// # Errors
/// As [`exchange`].
pub fn tcp(
    address: &str,
    authorization: Option<&str>,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> anyhow::Result<Answer> {
    let more = authorization.map(|a| format!("authorization: {a}\r\n")).unwrap_or_default();
    send(address, &request(method, path, &more, body))
}

/// Sends a request over TCP, and reads its answer.
///
/// # Errors
/// As [`exchange`].
pub fn send(address: &str, request: &[u8]) -> anyhow::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    exchange(&mut stream, request)
}

/// An answer that goes on: JSON values, one a line.
pub struct Lines {
    pub status: u16,
    lines: BufReader<Box<dyn Read + Send>>,
}

impl Lines {
    /// Asks over the agent's socket; returns when the answer has begun.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn unix(socket: &Path, path: &str) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Self::begin(stream, path, "")
    }

    /// Asks over TCP; `authorization` is that header's value.
    ///
    /// # Errors
    /// As [`unix`](Self::unix).
    pub fn tcp(address: &str, authorization: &str, path: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Self::begin(stream, path, &format!("authorization: {authorization}\r\n"))
    }

    fn begin(mut stream: impl Read + Write + Send + 'static, path: &str, more: &str) -> anyhow::Result<Self> {
        // To 1.0 nobody answers in chunks.
        write!(stream, "GET {path} HTTP/1.0\r\n{more}\r\n")?;
        let mut lines = BufReader::new(Box::new(stream) as Box<dyn Read + Send>);
        let mut head = String::new();
        while lines.read_line(&mut head)? > "\r\n".len() {}
        let status = head.split_whitespace().nth(1).with_context(|| head.clone())?.parse()?;
        Ok(Self { status, lines })
    }
}

impl Iterator for Lines {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        loop {
            let mut line = String::new();
            let read = self.lines.read_line(&mut line).expect("in time");
            match line.trim() {
                "" if read == 0 => return None,
                "" => {}
                line => return Some(serde_json::from_str(line).expect("JSON")),
            }
        }
    }
}
