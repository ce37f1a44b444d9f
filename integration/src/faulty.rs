//! A faulty way to the real S3 server: a small HTTP proxy that refuses, cuts, delays and lies on demand. What arrives
//! behind it is the real server's business, signatures and all.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// What goes wrong with puts. (Down and redirects: with everything. No ACL: with whatever asks for one.)
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    #[default]
    None,
    /// Every connection is closed at once.
    Down,
    /// The connection is cut after so many bytes of the body.
    CutAfter(usize),
    /// So many bytes a second.
    Slow(usize),
    /// The server is never asked: status, error code, message.
    Reply(u16, &'static str, &'static str),
    /// The server stores the object, and the connection is cut before its reply.
    LoseReply,
    /// The server is never asked: an error whose body does not end, with more lines for its head.
    Endless(&'static str),
    /// The server is never asked: an error whose body has a byte a second.
    Drip,
    /// The server is never asked: it is to be found elsewhere. (Of all redirects, 303 is the one that clients follow whatever the request.)
    Redirect(String),
    /// The server is never asked, by whoever wants an ACL put as well: the store has none.
    NoAcl,
}

impl Fault {
    /// Whether it happens to a request with this head.
    fn hits(&self, head: &str) -> bool {
        match self {
            Self::Redirect(_) => true,
            Self::NoAcl => header(head, "x-amz-acl").is_some(),
            _ => head.starts_with("PUT "),
        }
    }
}

/// A body without end has no more than this: the client that reads it all must not take the machine with it.
const ENDLESS_BYTES: usize = 512 << 20;

#[derive(Default)]
struct State {
    fault: Fault,
    /// Only for keys that contain this.
    only: String,
    /// Puts that were hit.
    hits: usize,
}

/// A running proxy; it ends with the process.
pub struct Proxy {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Proxy {
    /// Starts one in front of `upstream` (`host:port`).
    ///
    /// # Errors
    /// If no port is free.
    pub fn start(upstream: &str) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let state = Arc::new(Mutex::new(State::default()));
        let upstream = upstream.to_owned();
        let shared = state.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let upstream = upstream.clone();
                let state = shared.clone();
                // A client that is cut off is an error here, and the point of it all.
                std::thread::spawn(move || serve(&client, &upstream, &state));
            }
        });
        Ok(Self { address, state })
    }

    /// Its URL, for `--s3-endpoint`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// From now on this goes wrong, with keys that contain `only`.
    pub fn fail(&self, fault: Fault, only: &str) {
        *self.state() = State { fault, only: only.to_owned(), hits: 0 };
    }

    /// Puts hit since the last [`fail`](Self::fail).
    #[must_use]
    pub fn hits(&self) -> usize {
        self.state().hits
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().filter_map(|l| l.split_once(':'));
    lines.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim())
}

fn serve(mut client: &TcpStream, upstream: &str, state: &Mutex<State>) -> io::Result<()> {
    if lock(state).fault == Fault::Down {
        return client.shutdown(Shutdown::Both);
    }
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let length: usize = header(&head, "content-length").and_then(|v| v.parse().ok()).unwrap_or(0);
    let fault = {
        let mut state = lock(state);
        let hit = state.fault.hits(&head) && head.lines().next().is_some_and(|l| l.contains(&state.only));
        state.hits += usize::from(hit && state.fault != Fault::None);
        if hit { state.fault.clone() } else { Fault::None }
    };
    let body = match fault {
        Fault::CutAfter(bytes) if bytes < length => {
            client.read_exact(&mut vec![0; bytes])?;
            return client.shutdown(Shutdown::Both);
        }
        Fault::Slow(rate) => {
            let mut body = vec![0; length];
            for part in body.chunks_mut(rate / 10) {
                client.read_exact(part)?;
                std::thread::sleep(Duration::from_millis(100));
            }
            body
        }
        _ => {
            let mut body = vec![0; length];
            client.read_exact(&mut body)?;
            body
        }
    };
    if !matches!(fault, Fault::None | Fault::Slow(_) | Fault::LoseReply) {
        return lie(client, &fault);
    }
    let mut server = TcpStream::connect(upstream)?;
    // One request for each connection: nothing of a reply has to be understood.
    let kept: String = head
        .lines()
        .filter(|l| !l.is_empty() && !l.to_ascii_lowercase().starts_with("connection:"))
        .fold(String::new(), |all, line| all + line + "\r\n");
    server.write_all(format!("{kept}Connection: close\r\n\r\n").as_bytes())?;
    server.write_all(&body)?;
    let mut reply = Vec::new();
    server.read_to_end(&mut reply)?;
    if fault != Fault::LoseReply {
        client.write_all(&reply)?;
    }
    client.shutdown(Shutdown::Both)
}

fn head(status: &str, more: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Type: application/xml\r\n{more}\r\n")
}

/// An error as S3 has it.
fn refusal(status: u16, code: &str, message: &str) -> String {
    let xml = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>");
    let more = format!("Connection: close\r\nContent-Length: {}\r\n", xml.len());
    head(&format!("{status} Scripted"), &more) + &xml
}

/// Answers in the server's place.
fn lie(mut client: &TcpStream, fault: &Fault) -> io::Result<()> {
    match fault {
        Fault::Reply(status, code, message) => {
            client.write_all(refusal(*status, code, message).as_bytes())?;
        }
        Fault::NoAcl => {
            let words = "The bucket does not allow ACLs";
            client.write_all(refusal(400, "AccessControlListNotSupported", words).as_bytes())?;
        }
        Fault::Endless(more) => {
            client.write_all(head("400 Bad Request", more).as_bytes())?;
            let part = vec![b'x'; 1 << 20];
            for _ in 0..ENDLESS_BYTES / part.len() {
                client.write_all(&part)?;
            }
        }
        Fault::Drip => {
            client.write_all(head("400 Bad Request", "").as_bytes())?;
            loop {
                client.write_all(b"x")?;
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        Fault::Redirect(to) => {
            let more = format!("Location: {to}\r\nConnection: close\r\nContent-Length: 0\r\n");
            client.write_all(head("303 See Other", &more).as_bytes())?;
        }
        Fault::None | Fault::Down | Fault::CutAfter(_) | Fault::Slow(_) | Fault::LoseReply => {}
    }
    client.shutdown(Shutdown::Write)
}
