//! Sockets, TLS, and limits on connections and time: whoever is slow or many is cut, and nobody else notices.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{Router, body::Body};
use flowlog_host::{
    clock,
    trust::{self, Kind, Stamp, stamp},
};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig, crypto,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    },
};
use tower::ServiceExt as _;

use crate::{
    api::{
        App, Peer, RefusedLogins,
        auth::Limits,
        room::{Busy, Owner, Room, Seat},
        routes,
    },
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
    let unix = socket(&options.socket).map_err(|source| ServeError::Socket { path: options.socket.clone(), source })?;
    let tls = match &options.tls {
        Some((certificate, key)) => Some(Certificate::open(certificate, key)?),
        None => None,
    };
    let tcp = match options.listen {
        Some(address) => {
            let failed = |source| ServeError::Address { address, source };
            let listener = std::net::TcpListener::bind(address).map_err(failed)?;
            listener.set_nonblocking(true).map_err(failed)?;
            let bound = listener.local_addr().map_err(failed)?;
            tracing::info!(address = %bound, tls = tls.is_some(), "serving the API");
            Some((listener, tls))
        }
        None => None,
    };
    let node = Arc::from(options.node.as_str());
    Ok(Listening { unix, tcp, node, public_url: options.public_url.as_deref().map(Arc::from) })
}

/// Makes the node's own socket. Every user may connect to it; the kernel tells which user it is.
pub(crate) fn socket(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        fs::create_dir_all(dir)?;
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
    /// Serves for ever. `give_back` returns freed memory to the system; logins that are refused are counted in `refused`.
    ///
    /// # Errors
    /// If the runtime takes no more descriptors, or there can be no more threads.
    pub async fn run(self, control: Arc<Control>, give_back: fn(), refused: RefusedLogins) -> io::Result<()> {
        let unix = UnixListener::from_std(self.unix)?;
        let tcp = match self.tcp {
            Some((listener, tls)) => Some((TcpListener::from_std(listener)?, tls)),
            None => None,
        };
        let keeping = control.clone();
        let limits = Arc::new(Limits::new(give_back, refused)?);
        let app = App { control, limits, public_url: self.public_url };
        let router = routes::router(app.clone()).merge(console::routes(Console::new(app, self.node)));
        let tcp = async {
            match tcp {
                Some((listener, tls)) => serve_tcp(listener, tls, router.clone()).await,
                None => std::future::pending().await,
            }
        };
        tokio::join!(serve_unix(unix, router.clone()), tcp, keeping.reader.keep_history());
        Ok(())
    }
}

async fn serve_unix(listener: UnixListener, router: Router) {
    let room = Room::default();
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

async fn serve_tcp(listener: TcpListener, tls: Option<Certificate>, router: Router) {
    let room = Room::default();
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
        match &tls {
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

/// Certificate and key as they were when they were read.
type Changed = [Option<Stamp>; 2];
/// Largest key that is read: one of 16384 bits takes 13 KiB.
const KEY_BYTES_MAX: u64 = 64 << 10;

/// A certificate, read again when its files change.
struct Certificate {
    chain: PathBuf,
    key: PathBuf,
    used: Mutex<(Changed, Arc<ServerConfig>)>,
}

impl Certificate {
    fn open(certificate: &Path, key: &Path) -> Result<Self, ServeError> {
        let config = config(certificate, key).map_err(|problem| ServeError::Tls {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            problem,
        })?;
        let used = Mutex::new((changed(certificate, key), Arc::new(config)));
        Ok(Self { chain: certificate.to_owned(), key: key.to_owned(), used })
    }

    /// As of now; the last good one if the files are wrong.
    fn current(&self) -> Arc<ServerConfig> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let now = changed(&self.chain, &self.key);
        if used.0 != now {
            match config(&self.chain, &self.key) {
                Ok(config) => used.1 = Arc::new(config),
                Err(problem) => tracing::error!(problem, "the new TLS certificate cannot be used; the old one is"),
            }
            used.0 = now;
        }
        used.1.clone()
    }
}

fn changed(certificate: &Path, key: &Path) -> Changed {
    [certificate, key].map(|p| stamp(p).ok())
}

fn config(certificate: &Path, key: &Path) -> Result<ServerConfig, String> {
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(certificate).map_err(|e| format!("certificate: {e}"))?.collect();
    let chain = chain.map_err(|e| format!("certificate: {e}"))?;
    let key = trust::read(key, Kind::Secret, KEY_BYTES_MAX).map_err(|e| format!("key: {e}"))?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|e| format!("key: {e}"))?;
    let provider = Arc::new(crypto::aws_lc_rs::default_provider());
    let versions = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = versions
        .map_err(|e| e.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|e| e.to_string())?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
