//! Credentials from a file in the AWS format, read again whenever it changes. One that cannot be used any more keeps what it said.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};

use flowlog_host::trust::{self, Kind, Stamp, stamp};
use object_store::{CredentialProvider, aws::AwsCredential};

use super::bucket::words;

/// Largest file of credentials that is read.
const CREDENTIALS_BYTES_MAX: u64 = 64 << 10;

/// See the module's head.
#[derive(Debug)]
pub(super) struct FileCredentials {
    path: PathBuf,
    cached: Mutex<Option<(Stamp, Arc<AwsCredential>)>>,
}

impl FileCredentials {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, cached: Mutex::new(None) }
    }

    pub(super) fn current(&self) -> std::io::Result<Arc<AwsCredential>> {
        let named =
            |words: String| std::io::Error::other(format!("credentials file `{}`: {words}", self.path.display()));
        let stamp = stamp(&self.path).map_err(|e| named(e.to_string()))?;
        let mut cached = self.cached.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((at, credential)) = cached.as_ref()
            && *at == stamp
        {
            return Ok(credential.clone());
        }
        let credential = match (self.read().map_err(named), cached.as_ref()) {
            (Ok(credential), _) => Arc::new(credential),
            (Err(error), None) => return Err(error),
            (Err(error), Some((_, before))) => {
                tracing::error!(%error, "the new credentials cannot be used; the old ones are");
                before.clone()
            }
        };
        *cached = Some((stamp, credential.clone()));
        Ok(credential)
    }

    fn read(&self) -> Result<AwsCredential, String> {
        let text = trust::read(&self.path, Kind::Secret, CREDENTIALS_BYTES_MAX).map_err(|e| e.to_string())?;
        parse_credentials(&text).ok_or_else(|| "holds no `aws_access_key_id` and `aws_secret_access_key`".to_owned())
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

/// Says that there are no credentials, and where they were looked for.
pub(super) fn no_credentials(of_instance: &str) -> String {
    format!(
        "no S3 credentials: `s3.credentials` names no file; AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set, nor is a web identity or a \
         container's; {of_instance}"
    )
}

/// Credentials of the instance's metadata service, which is asked last. Where it does not answer, the bucket has nothing to do with it.
#[derive(Debug)]
pub(super) struct OfInstance(pub(super) Arc<dyn CredentialProvider<Credential = AwsCredential>>);

#[async_trait::async_trait]
impl CredentialProvider for OfInstance {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        self.0.get_credential().await.map_err(|error| {
            let said = format!("this machine's metadata service has none either: {}", words(&error));
            let source = Box::new(std::io::Error::other(no_credentials(&said)));
            object_store::Error::Generic { store: "S3", source }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn credentials_that_others_can_read_are_refused_and_those_from_before_still_hold() {
        let chmod = |path: &std::path::Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
        };
        let file = tempfile::NamedTempFile::new().expect("a file");
        let write = |key: &str| {
            let text = format!("aws_access_key_id = {key}\naws_secret_access_key = S\n");
            std::fs::write(file.path(), text).expect("write");
        };
        write("first");
        chmod(file.path(), 0o644);
        let refused = FileCredentials::new(file.path().to_owned()).current().expect_err("open").to_string();
        assert!(refused.contains(&format!("make it `chmod 600 {}`", file.path().display())), "{refused}");
        chmod(file.path(), 0o600);
        let credentials = FileCredentials::new(file.path().to_owned());
        let key = || credentials.current().expect("there").key_id.clone();
        assert_eq!(key(), "first");
        chmod(file.path(), 0o644);
        write("second-by-somebody");
        assert_eq!((key(), key()), ("first".to_owned(), "first".to_owned()));
        chmod(file.path(), 0o600);
        assert_eq!(key(), "second-by-somebody");
    }
}
