//! Where etcd is, and how it is reached. Files are read whenever a connection is made, so that they can be renewed.

use std::path::{Path, PathBuf};

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};
use flowlog_host::trust::{self, Kind};

use super::connection::{ATTEMPT, EtcdError};

/// Largest file that is read: a bundle with all public authorities has a quarter of that.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// What keys begin with where nothing is said.
pub const PREFIX_DEFAULT: &str = "/flowlog/v1";

/// See the module's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdOptions {
    /// URLs of the members.
    pub endpoints: Vec<String>,
    /// Authorities in PEM form that sign the members' certificates; `None`: the system's.
    pub ca: Option<PathBuf>,
    /// Our certificate and its key in PEM form.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// A file with `user:password`.
    pub credentials: Option<PathBuf>,
    /// What keys begin with.
    pub prefix: String,
}

impl EtcdOptions {
    /// Whether the members are reached over TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.endpoints.iter().any(|url| url.starts_with("https://"))
    }

    /// Reads the files.
    pub(super) fn connect_options(&self) -> Result<ConnectOptions, EtcdError> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(ATTEMPT)
            .with_keep_alive(ATTEMPT * 2, ATTEMPT)
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if self.is_tls() {
            let mut tls = match &self.ca {
                Some(ca) => TlsOptions::new().ca_certificate(Certificate::from_pem(read(ca, Kind::Orders)?)),
                None => TlsOptions::new().with_native_roots(),
            };
            if let Some((certificate, key)) = &self.identity {
                tls = tls.identity(Identity::from_pem(read(certificate, Kind::Orders)?, read(key, Kind::Secret)?));
            }
            options = options.with_tls(tls);
        }
        if let Some(file) = &self.credentials {
            let text = read(file, Kind::Secret)?;
            let named = text.trim_end().split_once(':');
            let (user, password) = named.ok_or_else(|| unusable(file, &"write `user:password` into it"))?;
            options = options.with_user(user, password);
        }
        Ok(options)
    }
}

fn read(path: &Path, kind: Kind) -> Result<String, EtcdError> {
    trust::read(path, kind, FILE_BYTES_MAX).map_err(|e| unusable(path, &e))
}

fn unusable(path: &Path, problem: &dyn std::fmt::Display) -> EtcdError {
    EtcdError::Options(format!("`{}`: {problem}", path.display()))
}
