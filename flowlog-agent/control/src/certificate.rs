//! Certificates of the API: read again when their files change, and what is in them for people.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use flowlog_host::trust::{self, Kind, Stamp, stamp};
use tokio_rustls::rustls::{
    ServerConfig, crypto,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _};

/// Certificate and key as they were when they were read.
type Changed = [Option<Stamp>; 2];
/// Largest key that is read: one of 16384 bits takes 13 KiB.
const KEY_BYTES_MAX: u64 = 64 << 10;

/// A certificate, read again when its files change.
pub(crate) struct Certificate {
    chain: PathBuf,
    key: PathBuf,
    used: Mutex<(Changed, Arc<ServerConfig>)>,
}

impl Certificate {
    pub(crate) fn open(certificate: &Path, key: &Path) -> Result<Self, String> {
        let (config, _) = read(certificate, key)?;
        let used = Mutex::new((changed(certificate, key), Arc::new(config)));
        Ok(Self { chain: certificate.to_owned(), key: key.to_owned(), used })
    }

    /// As of now; the last good one if the files are wrong.
    pub(crate) fn current(&self) -> Arc<ServerConfig> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let now = changed(&self.chain, &self.key);
        if used.0 != now {
            match read(&self.chain, &self.key) {
                Ok((config, _)) => used.1 = Arc::new(config),
                Err(problem) => tracing::error!(problem, "the new TLS certificate cannot be used; the old one is"),
            }
            used.0 = now;
        }
        used.1.clone()
    }
}

/// What a certificate says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Names and addresses that it is for.
    pub names: Vec<String>,
    /// From when on it is good, seconds since 1970.
    pub from_secs: i64,
    /// Until when.
    pub until_secs: i64,
}

/// Reads a certificate and its key.
///
/// # Errors
/// If one of them cannot be read, or they do not fit together.
pub fn facts(certificate: &Path, key: &Path) -> Result<CertificateFacts, String> {
    let (_, first) = read(certificate, key)?;
    let (_, parsed) = X509Certificate::from_der(&first).map_err(|e| format!("certificate: {e}"))?;
    let alternative = parsed.subject_alternative_name().ok().flatten();
    let names = alternative.into_iter().flat_map(|e| &e.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => address(bytes),
        _ => None,
    });
    let validity = parsed.validity();
    let [from_secs, until_secs] = [validity.not_before, validity.not_after].map(|at| at.timestamp());
    Ok(CertificateFacts { names: names.collect(), from_secs, until_secs })
}

fn address(bytes: &[u8]) -> Option<String> {
    let four = <[u8; 4]>::try_from(bytes).map(|b| std::net::Ipv4Addr::from(b).to_string());
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(|b| std::net::Ipv6Addr::from(b).to_string())).ok()
}

fn changed(certificate: &Path, key: &Path) -> Changed {
    [certificate, key].map(|p| stamp(p).ok())
}

/// What to serve with, and the server's own certificate.
fn read(certificate: &Path, key: &Path) -> Result<(ServerConfig, CertificateDer<'static>), String> {
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(certificate).map_err(|e| format!("certificate: {e}"))?.collect();
    let chain = chain.map_err(|e| format!("certificate: {e}"))?;
    let first = chain.first().cloned().ok_or("certificate: there is none in the file")?;
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
    Ok((config, first))
}
