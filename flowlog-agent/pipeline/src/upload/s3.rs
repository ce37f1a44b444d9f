//! A bucket as `object_store` opens it, from the agent's options.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use flowlog_model::S3Options;
use object_store::{
    ClientOptions, CredentialProvider, ObjectStore, RetryConfig,
    aws::{AmazonS3Builder, AwsCredential},
};

use super::{bucket::words, http::Connector};

/// Time to get a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Retries inside one delivery; the uploader's own pauses follow.
const RETRIES: usize = 1;

/// Makes a store of a bucket's name and the options; does not reach out to it yet.
///
/// # Errors
/// With the option that is wrong.
pub(super) fn open(bucket: &str, o: &S3Options) -> Result<Arc<dyn ObjectStore>, String> {
    let client = ClientOptions::new().with_connect_timeout(CONNECT_TIMEOUT);
    let retry = RetryConfig { max_retries: RETRIES, ..RetryConfig::default() };
    let mut builder = AmazonS3Builder::from_env()
        .with_http_connector(Connector)
        .with_client_options(client.with_allow_http(o.allow_http))
        .with_retry(retry)
        .with_bucket_name(bucket)
        .with_allow_http(o.allow_http)
        .with_virtual_hosted_style_request(!o.path_style);
    if let Some(endpoint) = &o.endpoint {
        if endpoint.starts_with("http://") && !o.allow_http {
            return Err(format!(
                "endpoint `{endpoint}`: plain http is off; use https, or allow it with `--s3-allow-http`"
            ));
        }
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(region) = &o.region {
        builder = builder.with_region(region);
    }
    if let Some(path) = &o.credentials_file {
        let provider = FileCredentials::new(path.clone());
        provider.current().map_err(|e| e.to_string())?;
        builder = builder.with_credentials(Arc::new(provider));
    }
    Ok(Arc::new(builder.build().map_err(|e| words(&e))?))
}

/// Credentials from a file in the AWS format, read again whenever it changes.
#[derive(Debug)]
struct FileCredentials {
    path: PathBuf,
    cached: Mutex<Option<(SystemTime, Arc<AwsCredential>)>>,
}

impl FileCredentials {
    fn new(path: PathBuf) -> Self {
        Self { path, cached: Mutex::new(None) }
    }

    fn current(&self) -> std::io::Result<Arc<AwsCredential>> {
        let named = |e: std::io::Error| {
            std::io::Error::new(e.kind(), format!("credentials file `{}`: {e}", self.path.display()))
        };
        let modified = std::fs::metadata(&self.path).and_then(|m| m.modified()).map_err(named)?;
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, credential)) = cached.as_ref()
            && *at == modified
        {
            return Ok(credential.clone());
        }
        let text = std::fs::read_to_string(&self.path).map_err(named)?;
        let credential = Arc::new(parse_credentials(&text).ok_or_else(|| {
            let problem = "holds no `aws_access_key_id` and `aws_secret_access_key`";
            named(std::io::Error::new(std::io::ErrorKind::InvalidData, problem))
        })?);
        *cached = Some((modified, credential.clone()));
        Ok(credential)
    }
}

/// The first profile's keys.
fn parse_credentials(text: &str) -> Option<AwsCredential> {
    let value = |wanted: &str| {
        let pairs = text.lines().filter_map(|l| l.split_once('='));
        pairs.map(|(k, v)| (k.trim(), v.trim())).find(|(k, _)| *k == wanted).map(|(_, v)| v.to_owned())
    };
    Some(AwsCredential {
        key_id: value("aws_access_key_id")?,
        secret_key: value("aws_secret_access_key")?,
        token: value("aws_session_token"),
    })
}

#[async_trait::async_trait]
impl CredentialProvider for FileCredentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        self.current().map_err(|e| object_store::Error::Generic { store: "S3", source: Box::new(e) })
    }
}
