//! One object store, behind create-only puts whose outcome is always known in the end. Only this file, `reader`, `s3`, `credentials`, `http`, `acl`
//! and, for tests, `scripted` and `tests` name `object_store`.
//!
//! A put is create-only where the store honours it. Whenever the outcome is not clear (already there, time-out,
//! lost reply) the object is compared by size and by our SHA-256, which travels as object metadata.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use flowlog_model::{
    S3Options,
    ids::hex,
    rule::{Format, Location},
    text::printable,
};
use object_store::{
    Attribute, Attributes, GetOptions, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload, path::Path,
};
use sha2::{Digest as _, Sha256};

use super::{
    directory::Directory,
    http::{ANSWER_TIMEOUT, Refusal, time_for},
    s3,
};

/// Metadata key of our checksum.
const SHA256: &str = "flowlog-sha256";
/// Time for the requests of one delivery or probe, besides that for its bytes: the put, and the look at what is there then.
const REQUESTS_TIMEOUT: Duration = ANSWER_TIMEOUT.saturating_mul(2);
/// An upload goes in pieces, so that its pace shows.
const PIECE_BYTES: usize = 64 << 10;

/// Name of the upload that shows that a bucket can be written to.
const PROBE_NAME: &str = ".flowlog-probe";
/// What the file that shows it of a directory holds.
const PROBE_BODY: &[u8] = b"flowlog checks that it can write here; remove at will\n";

/// The outcome of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Stored,
    /// An earlier try had stored it.
    AlreadyThere,
    /// Other bytes are stored under this key.
    Conflict,
}

/// What can go wrong. None of these is final: the uploader tries again.
#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    /// The bucket is not there.
    #[error("{0} does not exist; create it or fix `target`")]
    NoBucket(String),
    /// Credentials are missing, wrong or not allowed to write.
    #[error("{location} refuses the credentials: {words}; check the key, its policy, and the clock")]
    Denied { location: String, words: String },
    /// The store sends us elsewhere.
    #[error("{location}: {words}")]
    Redirected { location: String, words: String },
    /// The store does not want this object: another one may fare better.
    #[error("{location} refuses this object: {words}")]
    Refused { location: String, words: String },
    /// Anything else the store or the network says.
    #[error("{location}: {words}")]
    Other { location: String, words: String },
    /// The options do not make a store.
    #[error("{0}")]
    Options(String),
    #[error("{0}")]
    Spool(String),
}

impl BucketError {
    /// Whether it will not pass by itself.
    #[must_use]
    pub(crate) fn needs_a_person(&self) -> bool {
        matches!(self, Self::NoBucket(_) | Self::Denied { .. } | Self::Redirected { .. } | Self::Options(_))
    }
}

/// A location in words.
pub(super) fn name(location: &Location) -> String {
    match location {
        Location::Directory(dir) => format!("directory `{}`", dir.display()),
        Location::Bucket(bucket) => format!("bucket `{bucket}`"),
        Location::OfContract { contract, bucket } => format!("bucket `{bucket}` of contract {contract}"),
    }
}

/// A bucket or directory.
pub struct Bucket {
    inner: Inner,
    name: String,
}

enum Inner {
    Directory(Directory),
    Objects(Arc<dyn ObjectStore>),
}

impl Bucket {
    /// Opens a store; does not reach out to it yet. A directory is made if its parent exists.
    pub fn open(location: &Location, options: &S3Options) -> Result<Self, BucketError> {
        let name = name(location);
        match location {
            Location::Directory(dir) => {
                let inner =
                    Directory::open(dir).map_err(|e| BucketError::Options(format!("{name} cannot be used: {e}")))?;
                Ok(Self { inner: Inner::Directory(inner), name })
            }
            Location::Bucket(bucket) | Location::OfContract { bucket, .. } => {
                let inner =
                    s3::open(bucket, options).map_err(|words| BucketError::Options(format!("{name}: {words}")))?;
                Ok(Self { inner: Inner::Objects(inner), name })
            }
        }
    }

    /// Whether a location and options can make a store at all, whatever that store says. A directory is made, unless what it is to be in is not
    /// there either.
    ///
    /// # Errors
    /// [`BucketError::Options`].
    pub fn check(location: &Location, options: &S3Options) -> Result<(), BucketError> {
        match location {
            Location::Bucket(_) => Self::open(location, options).map(drop),
            Location::Directory(dir) if dir.exists() && !dir.is_dir() => {
                Err(BucketError::Options(format!("`{}` is not a directory", dir.display())))
            }
            // Made now or never: what would be said of it at the first delivery is said at once.
            Location::Directory(dir) if !dir.exists() && dir.parent().is_some_and(std::path::Path::is_dir) => {
                Self::open(location, options).map(drop)
            }
            // It may be mounted later, or come into the inventory.
            Location::Directory(_) | Location::OfContract { .. } => Ok(()),
        }
    }

    /// A store that is one already, and keeps metadata.
    #[cfg(test)]
    pub(super) fn from_parts(inner: Arc<dyn ObjectStore>, name: String) -> Self {
        Self { inner: Inner::Objects(inner), name }
    }

    /// Stores an object exactly once.
    pub async fn deliver(&self, key: &str, bytes: Vec<u8>) -> Result<Outcome, BucketError> {
        let time = REQUESTS_TIMEOUT + time_for(bytes.len() as u64);
        self.in_time(time, self.deliver_now(key, bytes)).await
    }

    /// A request that is not answered in time is given up; whether it was carried out is found out by the next one.
    async fn in_time<T>(
        &self,
        time: Duration,
        work: impl Future<Output = Result<T, BucketError>>,
    ) -> Result<T, BucketError> {
        tokio::time::timeout(time, work).await.unwrap_or_else(|_| {
            let words = format!("no answer in {} s", time.as_secs());
            Err(BucketError::Other { location: self.name.clone(), words })
        })
    }

    async fn deliver_now(&self, key: &str, bytes: Vec<u8>) -> Result<Outcome, BucketError> {
        match &self.inner {
            Inner::Directory(dir) => {
                let dir = dir.clone();
                let key = key.to_owned();
                blocking(move || match dir.create(&key, &bytes) {
                    Ok(()) => Ok(Outcome::Stored),
                    Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                        let same = dir.read(&key)? == bytes;
                        Ok(if same { Outcome::AlreadyThere } else { Outcome::Conflict })
                    }
                    Err(e) => Err(e),
                })
                .await
                .map_err(|e| self.io_error(&e))
            }
            Inner::Objects(store) => {
                let size = bytes.len() as u64;
                let sha256 = hex(&Sha256::digest(&bytes));
                match put(store, key, bytes, &sha256).await {
                    Ok(()) => Ok(Outcome::Stored),
                    Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                        let same = holds(store, key, size, &sha256).await.map_err(|e| self.error(&e))?;
                        Ok(if same { Outcome::AlreadyThere } else { Outcome::Conflict })
                    }
                    // Whether it was stored is asked at the next try: this store has shown what asking it is like.
                    Err(error) if Refusal::of(&error).is_some() => Err(self.error(&error)),
                    // Perhaps only the reply was lost.
                    Err(error) => match holds(store, key, size, &sha256).await {
                        Ok(true) => Ok(Outcome::AlreadyThere),
                        _ => Err(self.error(&error)),
                    },
                }
            }
        }
    }

    /// Proves that objects can be written below `folder`, and leaves nothing there: in a directory by a file without
    /// a name, in a bucket by an upload in parts that is begun and given up. No object ever exists, not even when the agent is
    /// killed between the two: an upload without parts takes no room, and no listing shows it. Beginning one needs the same
    /// permission as an object (`s3:PutObject`). That it cannot be given up is no error: write-only credentials are good practice.
    pub async fn probe(&self, folder: &str) -> Result<(), BucketError> {
        self.in_time(REQUESTS_TIMEOUT, self.probe_now(folder)).await
    }

    async fn probe_now(&self, folder: &str) -> Result<(), BucketError> {
        let store = match &self.inner {
            Inner::Directory(dir) => {
                let dir = dir.clone();
                let folder = folder.to_owned();
                return blocking(move || dir.probe(&folder, PROBE_BODY)).await.map_err(|e| self.io_error(&e));
            }
            Inner::Objects(store) => store,
        };
        let key = if folder.is_empty() { PROBE_NAME.to_owned() } else { format!("{folder}/{PROBE_NAME}") };
        let mut upload = store.put_multipart(&Path::from(key.as_str())).await.map_err(|e| self.error(&e))?;
        if let Err(error) = upload.abort().await {
            tracing::info!(
                key,
                error = words(&error),
                "the upload that was begun to try the bucket cannot be given up"
            );
        }
        Ok(())
    }

    fn io_error(&self, error: &std::io::Error) -> BucketError {
        BucketError::Other { location: self.name.clone(), words: error.to_string() }
    }

    fn error(&self, error: &object_store::Error) -> BucketError {
        BucketError::of(&self.name, error)
    }
}

impl BucketError {
    /// What a store of this name has said.
    pub(super) fn of(name: &str, error: &object_store::Error) -> Self {
        let location = name.to_owned();
        let words = words(error);
        match error {
            // A put can only miss the bucket; object_store says so as "not found".
            object_store::Error::NotFound { .. } => Self::NoBucket(location),
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                Self::Denied { location, words }
            }
            _ if matches!(Refusal::of(error), Some(Refusal::Redirect(_))) => Self::Redirected { location, words },
            _ if is_refusal(&error.to_string()) => Self::Refused { location, words },
            _ => Self::Other { location, words },
        }
    }
}

/// Whether an error is the store's answer to this one request (4xx), and not about the moment: 408 is a time-out, 409 a race, 425
/// and 429 are too early and too many. `object_store` has the status in its words only: apache/arrow-rs-object-store#737.
fn is_refusal(words: &str) -> bool {
    let number = words.split_once("non-2xx status code: ").and_then(|(_, rest)| rest.get(..3)?.parse::<u16>().ok());
    number.is_some_and(|n| (400..500).contains(&n) && ![408, 409, 425, 429].contains(&n))
}

/// Does file work beside the runtime's thread: a file system that hangs (NFS) must not hold up other stores.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|ended| Err(std::io::Error::other(ended)))
}

/// Puts an object that must not exist, with its checksum beside it.
async fn put(store: &dyn ObjectStore, key: &str, bytes: Vec<u8>, sha256: &str) -> Result<(), object_store::Error> {
    let mut attributes = Attributes::new();
    let is_text = key.ends_with(Format::Text.ending());
    let kind = if is_text { "application/gzip" } else { "application/vnd.apache.parquet" };
    attributes.insert(Attribute::ContentType, kind.into());
    attributes.insert(Attribute::Metadata(SHA256.into()), sha256.to_owned().into());
    let options = PutOptions { mode: PutMode::Create, attributes, ..PutOptions::default() };
    store.put_opts(&Path::from(key), pieces(bytes), options).await.map(drop)
}

fn pieces(bytes: Vec<u8>) -> PutPayload {
    let mut rest = Bytes::from(bytes);
    std::iter::from_fn(|| (!rest.is_empty()).then(|| rest.split_to(rest.len().min(PIECE_BYTES)))).collect()
}

/// Whether the store holds exactly these bytes under `key`.
async fn holds(store: &dyn ObjectStore, key: &str, size: u64, sha256: &str) -> Result<bool, object_store::Error> {
    let head = GetOptions { head: true, ..GetOptions::default() };
    let found = store.get_opts(&Path::from(key), head).await?;
    let stored = found.attributes.get(&Attribute::Metadata(SHA256.into()));
    Ok(found.meta.size == size && stored.is_some_and(|s| s.as_ref() == sha256))
}

/// Longest words of a store that are kept: they go into logs, the status, and to customers.
const WORDS_CHARS_MAX: usize = 400;

/// The innermost message, on one line: the outer ones repeat it with more and more wrapping. A store may say anything: what it says
/// is cut, and can be printed.
pub(super) fn words(error: &dyn std::error::Error) -> String {
    let mut all = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(e) = cause {
        all.push(e.to_string());
        cause = e.source();
    }
    let best = all.iter().rev().find(|w| w.len() > 12).or(all.first()).cloned().unwrap_or_default();
    let line = best.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = printable(&line);
    match line.char_indices().nth(WORDS_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_store_says_is_one_line_cut_and_fit_to_be_seen() {
        let said = |words: &str| words_of(words);
        assert_eq!(said("The  bucket\r\nis \u{1b}[31mgone"), "The bucket is \\u{1b}[31mgone");
        let long = said(&"x".repeat(1 << 20));
        assert_eq!((long.chars().count(), long.ends_with('…')), (WORDS_CHARS_MAX + 1, true));
    }

    fn words_of(said: &str) -> String {
        words(&std::io::Error::other(said.to_owned()))
    }

    #[test]
    fn an_answer_about_one_request_is_told_from_one_about_the_moment() {
        let of = |status: &str| {
            is_refusal(&format!("Error performing PUT: Server returned non-2xx status code: {status}: no"))
        };
        for refusal in ["400 Bad Request", "413 Payload Too Large", "451 Unavailable"] {
            assert!(of(refusal), "{refusal}");
        }
        for other in
            ["408 Request Timeout", "409 Conflict", "429 Too Many Requests", "500 Internal Server Error", "503 x", ""]
        {
            assert!(!of(other), "{other}");
        }
        assert!(!is_refusal("connection refused"));
    }
}
