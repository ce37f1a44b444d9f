//! The protocol of Open vSwitch's database (RFC 7047, section 4): JSON values after each other on a socket, requests of both sides. As much of
//! it as whoever watches a table needs.

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use serde::Deserialize;
use serde_json::{Value, json};

/// Largest message that is taken. The first one has all interfaces: 10,000 of them take 4 MiB.
const MESSAGE_BYTES_MAX: usize = 32 << 20;
/// Bytes taken at once.
const READ_BYTES: usize = 64 << 10;
/// How long the database may take to answer, or to take what we say.
const ANSWER: Duration = Duration::from_secs(2);

/// What can go wrong on the socket: all of it ends the connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum RpcError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it has closed the connection")]
    Closed,
    #[error("a message of more than {MESSAGE_BYTES_MAX} bytes")]
    TooLarge,
    #[error("not what RFC 7047 says: {0}")]
    Malformed(String),
    #[error("it refuses: {0}")]
    Refused(String),
    #[error("no answer within {} s", ANSWER.as_secs())]
    Silent,
}

/// A message of either side.
#[derive(Debug, Deserialize)]
struct Message {
    #[serde(default)]
    method: Option<String>,
    #[serde(default)]
    params: Value,
    #[serde(default)]
    result: Value,
    #[serde(default)]
    error: Value,
    #[serde(default)]
    id: Value,
}

/// A row, by column: what it is now, or was before; and by the row's id.
type Row = BTreeMap<String, Value>;
pub(super) type Updates = BTreeMap<String, RowUpdate>;

/// What has become of a row: without `new` it is gone.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(super) struct RowUpdate {
    #[serde(default)]
    pub new: Option<Row>,
}

/// A connection that watches one table.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    table: &'static str,
    pieces: Pieces,
    /// We have asked whether it is still there.
    is_asked: bool,
}

impl Connection {
    /// Connects, and has columns of a table watched; returns the rows there are.
    pub(super) fn open(
        socket: &Path,
        database: &str,
        table: &'static str,
        columns: &[&str],
    ) -> Result<(Self, Updates), RpcError> {
        let stream = UnixStream::connect(socket)?;
        stream.set_write_timeout(Some(ANSWER))?;
        let mut connection = Self { stream, table, pieces: Pieces::default(), is_asked: false };
        connection.send(&json!({
            "method": "monitor", "id": "watch",
            "params": [database, Value::Null, { table: { "columns": columns } }],
        }))?;
        loop {
            let message = connection.receive(ANSWER)?.ok_or(RpcError::Silent)?;
            if message.method.is_some() {
                connection.answer(&message)?;
            } else if message.id == "watch" {
                if !message.error.is_null() {
                    return Err(RpcError::Refused(message.error.to_string().chars().take(200).collect()));
                }
                let rows = connection.rows(message.result)?;
                return Ok((connection, rows));
            }
        }
    }

    /// The next change, within this time. If there is none, `asks` has the other side asked whether it is still there; the next time it must
    /// have answered.
    pub(super) fn next(&mut self, within: Duration, asks: bool) -> Result<Option<Updates>, RpcError> {
        loop {
            let Some(message) = self.receive(within)? else {
                if !asks {
                    return Ok(None);
                }
                if std::mem::replace(&mut self.is_asked, true) {
                    return Err(RpcError::Silent);
                }
                self.send(&json!({ "method": "echo", "params": [], "id": "echo" }))?;
                return Ok(None);
            };
            self.is_asked = false;
            match message.method.as_deref() {
                Some("update") => {
                    let Value::Array(mut params) = message.params else {
                        return Err(RpcError::Malformed("an update without parameters".to_owned()));
                    };
                    let tables = params.get_mut(1).map(Value::take).unwrap_or_default();
                    return self.rows(tables).map(Some);
                }
                Some(_) => self.answer(&message)?,
                // To our echo.
                None => {}
            }
        }
    }

    /// Of all tables ours.
    fn rows(&self, mut tables: Value) -> Result<Updates, RpcError> {
        let rows = tables.get_mut(self.table).map_or_else(|| json!({}), Value::take);
        serde_json::from_value(rows).map_err(|e| RpcError::Malformed(e.to_string()))
    }

    /// Answers what the other side asks: whether we are still there.
    fn answer(&mut self, asked: &Message) -> Result<(), RpcError> {
        if asked.id.is_null() {
            return Ok(());
        }
        let answer = match asked.method.as_deref() {
            Some("echo") => json!({ "result": asked.params, "error": null, "id": asked.id }),
            _ => json!({ "result": null, "error": "unknown method", "id": asked.id }),
        };
        self.send(&answer)
    }

    fn send(&mut self, message: &Value) -> Result<(), RpcError> {
        Ok(self.stream.write_all(message.to_string().as_bytes())?)
    }

    /// The next message; `None`: none has begun within this time.
    fn receive(&mut self, within: Duration) -> Result<Option<Message>, RpcError> {
        let mut chunk = vec![0; READ_BYTES];
        loop {
            if let Some(message) = self.pieces.message()? {
                return Ok(Some(message));
            }
            if self.pieces.bytes.len() > MESSAGE_BYTES_MAX {
                return Err(RpcError::TooLarge);
            }
            let is_partial = !self.pieces.bytes.is_empty();
            self.stream.set_read_timeout(Some(if is_partial { ANSWER } else { within }))?;
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(RpcError::Closed),
                Ok(n) => self.pieces.bytes.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return if is_partial { Err(RpcError::Silent) } else { Ok(None) };
                }
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// What has come and is no whole message yet. Nothing stands between messages: one ends where its brackets do.
#[derive(Debug, Default)]
struct Pieces {
    bytes: Vec<u8>,
    /// So many of them have been looked at.
    seen: usize,
    /// Brackets that are open there.
    depth: usize,
    in_text: bool,
    is_escaped: bool,
}

impl Pieces {
    /// The first message, if it is there as a whole.
    fn message(&mut self) -> Result<Option<Message>, RpcError> {
        let malformed = |words: String| RpcError::Malformed(words);
        while let Some(byte) = self.bytes.get(self.seen).copied() {
            self.seen += 1;
            match byte {
                _ if std::mem::take(&mut self.is_escaped) => {}
                b'\\' if self.in_text => self.is_escaped = true,
                b'"' if self.depth > 0 => self.in_text = !self.in_text,
                _ if self.in_text => {}
                b'{' | b'[' if self.depth > 0 || byte == b'{' => self.depth += 1,
                b'}' | b']' if self.depth > 0 => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        let message = serde_json::from_slice(&self.bytes[..self.seen]);
                        self.bytes.drain(..std::mem::take(&mut self.seen));
                        return message.map(Some).map_err(|e| malformed(e.to_string()));
                    }
                }
                _ if self.depth > 0 || byte.is_ascii_whitespace() => {}
                _ => return Err(malformed("a message begins with `{`".to_owned())),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_end_where_their_brackets_do_however_they_are_cut() {
        let all = r#"{"id":"a}\\\"{","result":{"x":[1,{}]}} {"id":2}{"method":"echo","params":["]"]}"#;
        for cut in 1..all.len() {
            let mut pieces = Pieces::default();
            let mut ids = Vec::new();
            for part in all.as_bytes().chunks(cut) {
                pieces.bytes.extend_from_slice(part);
                while let Some(message) = pieces.message().expect("messages") {
                    ids.push(message.id);
                }
            }
            assert_eq!(ids, [json!("a}\\\"{"), json!(2), Value::Null], "in pieces of {cut}");
            assert!(pieces.bytes.is_empty());
        }
        for bad in ["x", "[1]", "}", r#"{"id":}"#, r#"{"method":7}"#] {
            let mut pieces = Pieces { bytes: bad.as_bytes().to_vec(), ..Pieces::default() };
            assert!(pieces.message().is_err(), "{bad}");
        }
        let deep = format!("{}{}", "{\"a\":".repeat(200), "}".repeat(200));
        let mut pieces = Pieces { bytes: deep.into_bytes(), ..Pieces::default() };
        assert!(pieces.message().is_err(), "deep");
    }
}
