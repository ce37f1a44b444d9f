//! Sockets, TLS, and limits on connections and time: whoever is slow or many is cut, and nobody else notices.

use std::{
    convert::Infallible,
    fs, io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{Router, body::Body};
use flowlog_host::clock;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::mpsc,
};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use crate::{
    api::{
        App, Peer, PublicUrl, RefusedLogins,
        auth::Limits,
        room::{Busy, Owner, Room, Seat},
        routes,
    },
    certificate::Certificate,
    console::{self, Console},
    flow_logs::{Control, principals::is_operator},
};

/// Where the API is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiOptions {
    /// The node's own socket.
    pub socket: PathBuf,
    pub listen: Option<SocketAddr>,
    /// Certificate and key in PEM form.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// What the node is called, for the console.
    pub node: String,
    /// URL under which clients reach the API; without it links begin with the address they have reached.
    pub public_url: Option<String>,
}

/// Time for a request's head to come, or for the next one on a connection.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest life of a connection: whoever takes answers byte by byte is cut then. A stream that goes on lives on if it is read from.
pub(crate) const CONNECTION_MAX: Duration = Duration::from_mins(5);
/// Largest head of a request.
const HEAD_BYTES_MAX: usize = 32 << 10;
/// Pause after a connection could not be accepted: there are no descriptors left.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket cannot be made.
    #[error("api.socket `{}`: {source}", path.display())]
    Socket { path: PathBuf, source: io::Error },
    /// The address cannot be used.
    #[error("api.listen `{address}`: {source}")]
    Address { address: SocketAddr, source: io::Error },
    /// The place for metrics cannot be used.
    #[error("metrics.listen `{endpoint}`: {source}")]
    Metrics { endpoint: String, source: io::Error },
    /// Certificate or key cannot be used.
    #[error("api.tls_certificate `{}`, api.tls_key `{}`: {problem}", certificate.display(), key.display())]
    Tls { certificate: PathBuf, key: PathBuf, problem: String },
}

/// Listening, but not serving yet.
pub struct Listening {
    unix: std::os::unix::net::UnixListener,
    tcp: Option<(std::net::TcpListener, Option<Certificate>)>,
    node: Arc<str>,
    public_url: Option<Arc<str>>,
}

/// Listens; who connects waits until it is served.
///
/// # Errors
/// If an address or a certificate cannot be used.
pub fn listen(options: &ApiOptions) -> Result<Listening, ServeError> {
    let unix = own_socket(&options.socket)?;
    let tls = certificate(options)?;
    let tcp = match options.listen {
        Some(address) => Some((address_of(address, tls.is_some())?, tls)),
        None => None,
    };
    let node = Arc::from(options.node.as_str());
    Ok(Listening { unix, tcp, node, public_url: public_url(options) })
}

/// Its directory is made if that alone is missing: nobody but this agent needs `/run/flowlog`.
fn own_socket(path: &Path) -> Result<std::os::unix::net::UnixListener, ServeError> {
    let made = match path.parent().filter(|dir| !dir.as_os_str().is_empty() && !dir.exists()) {
        Some(dir) if dir.parent().is_some_and(Path::exists) => fs::create_dir(dir),
        _ => Ok(()),
    };
    made.and_then(|()| socket(path)).map_err(|source| ServeError::Socket { path: path.to_owned(), source })
}

fn certificate(options: &ApiOptions) -> Result<Option<Certificate>, ServeError> {
    let Some((certificate, key)) = &options.tls else { return Ok(None) };
    let tls = |problem| ServeError::Tls { certificate: certificate.clone(), key: key.clone(), problem };
    Certificate::open(certificate, key).map(Some).map_err(tls)
}

fn address_of(address: SocketAddr, tls: bool) -> Result<std::net::TcpListener, ServeError> {
    let failed = |source| ServeError::Address { address, source };
    let listener = std::net::TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    tracing::info!(address = %bound, tls, "serving the API");
    Ok(listener)
}

fn public_url(options: &ApiOptions) -> Option<Arc<str>> {
    options.public_url.as_deref().map(Arc::from)
}

/// Where the API is to be served from now on. It listens there already, so that what cannot be is known before anything has changed.
pub struct Relisten {
    /// `None`: where it is.
    unix: Option<std::os::unix::net::UnixListener>,
    tcp: Tcp,
    public_url: Option<Arc<str>>,
    /// The sockets of before and after.
    paths: (PathBuf, PathBuf),
}

/// What becomes of the address.
enum Tcp {
    /// It stays, with this certificate.
    Stays(Option<Certificate>),
    /// It is this one, or none.
    Is(Option<(std::net::TcpListener, Option<Certificate>)>),
}

impl Relisten {
    /// Begins to listen where `new` says, as far as it does not say what `old` said.
    ///
    /// # Errors
    /// As [`listen`]; then nothing has changed.
    pub fn prepare(old: &ApiOptions, new: &ApiOptions) -> Result<Self, ServeError> {
        let tls = certificate(new)?;
        let tcp = match new.listen {
            Some(_) if new.listen == old.listen => Tcp::Stays(tls),
            Some(address) => Tcp::Is(Some((address_of(address, tls.is_some())?, tls))),
            None => Tcp::Is(None),
        };
        // Last: it leaves a file behind.
        let unix = if new.socket == old.socket { None } else { Some(own_socket(&new.socket)?) };
        Ok(Self { unix, tcp, public_url: public_url(new), paths: (old.socket.clone(), new.socket.clone()) })
    }

    /// It stays as it was.
    pub fn abandon(self) {
        if self.unix.is_some() {
            let _ = fs::remove_file(&self.paths.1);
        }
    }
}

/// What is served on, and whoever has a connection there.
struct Served {
    unix: UnixListener,
    tcp: Option<(TcpListener, Option<Certificate>)>,
    rooms: [Room; 2],
}

impl Served {
    /// Accepts connections for ever.
    async fn accept(&self, router: &Router) -> Infallible {
        let [of_socket, of_address] = &self.rooms;
        tokio::select! {
            never = serve_unix(&self.unix, of_socket, router) => never,
            never = async {
                match &self.tcp {
                    Some((listener, tls)) => serve_tcp(listener, tls.as_ref(), of_address, router).await,
                    None => std::future::pending().await,
                }
            } => never,
        }
    }

    /// Connections that there are stay.
    fn change(&mut self, change: Relisten, url: &PublicUrl) -> io::Result<()> {
        let Relisten { unix, tcp, public_url, paths } = change;
        if let Some(unix) = unix {
            self.unix = UnixListener::from_std(unix)?;
            let _ = fs::remove_file(&paths.0);
        }
        match tcp {
            Tcp::Stays(tls) => self.tcp = self.tcp.take().map(|(listener, _)| (listener, tls)),
            Tcp::Is(Some((listener, tls))) => self.tcp = Some((TcpListener::from_std(listener)?, tls)),
            Tcp::Is(None) => self.tcp = None,
        }
        url.set(public_url);
        Ok(())
    }
}

/// Makes a socket, in a directory that is there. Every user may connect to it; the kernel tells which user it is.
pub(crate) fn socket(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty() && !dir.exists()) {
        let words = format!("there is no directory `{}`: make it first, or name another socket", dir.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, words));
    }
    // A socket that nobody serves is a leftover of an agent that has ended, and is replaced. Any other file is left alone.
    if fs::symlink_metadata(path).is_ok_and(|m| std::os::unix::fs::FileTypeExt::is_socket(&m.file_type())) {
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process serves it; name another socket"));
            }
            Err(_) => fs::remove_file(path)?,
        }
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Listening {
    /// Serves for ever, elsewhere where `changes` say so. `give_back` returns freed memory to the system; logins that are refused are
    /// counted in `refused`.
    ///
    /// # Errors
    /// If the runtime takes no more descriptors, or there can be no more threads.
    pub async fn run(
        self,
        control: Arc<Control>,
        give_back: fn(),
        refused: RefusedLogins,
        mut changes: mpsc::Receiver<Relisten>,
    ) -> io::Result<()> {
        let unix = UnixListener::from_std(self.unix)?;
        let tcp = match self.tcp {
            Some((listener, tls)) => Some((TcpListener::from_std(listener)?, tls)),
            None => None,
        };
        let mut served = Served { unix, tcp, rooms: Default::default() };
        let keeping = control.clone();
        let limits = Arc::new(Limits::new(give_back, refused)?);
        let public_url = PublicUrl::default();
        public_url.set(self.public_url);
        let app = App { control, limits, public_url: public_url.clone() };
        let router = routes::router(app.clone()).merge(console::routes(Console::new(app, self.node)));
        let serving = async {
            loop {
                let change = tokio::select! {
                    never = served.accept(&router) => match never {},
                    Some(change) = changes.recv() => change,
                };
                if let Err(error) = served.change(change, &public_url) {
                    tracing::error!(%error, "the API is served as before");
                }
            }
        };
        tokio::join!(serving, keeping.reader.keep_history());
        Ok(())
    }
}

async fn serve_unix(listener: &UnixListener, room: &Room, router: &Router) -> Infallible {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // A peer without credentials is nobody.
                let uid = stream.peer_cred().map_or(u32::MAX, |c| c.uid());
                let owner = if is_operator(uid) { Owner::Operator } else { Owner::User(uid) };
                if let Some(seat) = room.take(owner, clock::now().mono) {
                    tokio::spawn(connection(stream, router.clone(), Peer::Unix { uid }, seat));
                }
            }
            Err(error) => refused(&error).await,
        }
    }
}

async fn serve_tcp(listener: &TcpListener, tls: Option<&Certificate>, room: &Room, router: &Router) -> Infallible {
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                refused(&error).await;
                continue;
            }
        };
        let router = router.clone();
        let address = from.ip();
        // Somebody who has gone already has reached nothing.
        let Ok(local) = stream.local_addr() else { continue };
        let Some(seat) = room.take(Owner::at(address), clock::now().mono) else { continue };
        match tls {
            None => drop(tokio::spawn(connection(stream, router, Peer::Tcp { address, local, tls: false }, seat))),
            Some(certificate) => {
                let acceptor = TlsAcceptor::from(certificate.current());
                tokio::spawn(async move {
                    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream));
                    let shaken = tokio::select! {
                        shaken = handshake => shaken,
                        () = seat.needed() => return,
                    };
                    match shaken {
                        Ok(Ok(stream)) => {
                            connection(stream, router, Peer::Tcp { address, local, tls: true }, seat).await;
                        }
                        Ok(Err(error)) => tracing::debug!(%address, %error, "no TLS"),
                        Err(_) => tracing::debug!(%address, "no TLS in time"),
                    }
                });
            }
        }
    }
}

/// Somebody cannot be let in: said, and not tried again at once.
pub(crate) async fn refused(error: &io::Error) {
    tracing::warn!(%error, "cannot accept a connection");
    tokio::time::sleep(ACCEPT_RETRY).await;
}

/// Serves one connection, until somebody needs its seat more; the seat is free again afterwards.
async fn connection<S>(stream: S, router: Router, peer: Peer, seat: Seat)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let seat = Arc::new(seat);
    let held = seat.clone();
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer.clone());
        request.extensions_mut().insert(held.clone());
        let router = router.clone();
        let held = held.clone();
        async move {
            let _busy = Busy::new(held);
            router.oneshot(request).await
        }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_BYTES_MAX);
    // Whoever has said all there is to ask for (`nc -N`) still wants the answer.
    http.half_close(true);
    let in_time = async {
        loop {
            tokio::time::sleep(CONNECTION_MAX).await;
            if !seat.is_streaming(u64::try_from(CONNECTION_MAX.as_nanos()).unwrap_or(u64::MAX), clock::now().mono) {
                break;
            }
        }
    };
    tokio::select! {
        served = http.serve_connection(TokioIo::new(stream), service) => {
            if let Err(error) = served {
                tracing::debug!(%error, "a connection ended");
            }
        }
        () = in_time => tracing::debug!("a connection was cut after its time"),
        () = seat.needed() => tracing::debug!("a connection was cut: somebody with fewer needs the seat"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_directory_is_made_for_a_socket_but_the_last_one_for_the_agents_own() {
        let dir = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| dir.path().join(name);
        let error = socket(&at("run/metrics.sock")).expect_err("no directory").to_string();
        assert!(error.contains("there is no directory `") && error.contains("run`"), "{error}");
        assert!(own_socket(&at("typo/run/agent.sock")).is_err());
        assert_eq!(fs::read_dir(dir.path()).expect("a list").count(), 0, "something was made");
        assert!(own_socket(&at("run/agent.sock")).is_ok() && socket(&at("run/metrics.sock")).is_ok());
    }
}
