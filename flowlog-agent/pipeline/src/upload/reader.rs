//! A bucket to read from: what `flowlog read` and `flowlog-catalog` list and open. The agent itself reads no objects.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use flowlog_model::{S3Options, rule::Location};
use futures_util::TryStreamExt as _;
use object_store::{ObjectStore, ObjectStoreExt as _, PutPayload, path::Path};

use super::{
    bucket::{BucketError, name},
    s3,
};

/// Most bytes that are asked for at once. A page of a listing has a thousand keys of a kilobyte at most.
pub const PIECE_BYTES_MAX: usize = 8 << 20;

/// An object as a listing has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub key: String,
    pub bytes: u64,
}

/// See the module's head. Tables lie in the same buckets, so that it writes their files as well.
pub struct Reader {
    store: Arc<dyn ObjectStore>,
    name: String,
}

impl Reader {
    /// Opens a bucket; does not reach out to it yet.
    ///
    /// # Errors
    /// [`BucketError::Options`].
    pub fn open(bucket: &str, options: &S3Options) -> Result<Self, BucketError> {
        let name = name(&Location::Bucket(bucket.to_owned()));
        let store = s3::open_to_read(bucket, options, PIECE_BYTES_MAX);
        let store = store.map_err(|words| BucketError::Options(format!("{name}: {words}")))?;
        Ok(Self { store, name })
    }

    /// All objects below a folder, in the order of their keys.
    ///
    /// # Errors
    /// What the store says.
    pub async fn list(&self, folder: Option<&str>) -> Result<Vec<Listed>, BucketError> {
        let folder = folder.map(Path::from);
        let found =
            self.store.list(folder.as_ref()).map_ok(|meta| Listed { key: meta.location.into(), bytes: meta.size });
        let mut found: Vec<Listed> = found.try_collect().await.map_err(|e| BucketError::of(&self.name, &e))?;
        found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    /// Some bytes of an object: [`PIECE_BYTES_MAX`] at most.
    ///
    /// # Errors
    /// What the store says.
    pub async fn read(&self, key: &str, range: Range<u64>) -> Result<Bytes, BucketError> {
        let wrong = |e: &object_store::Error| BucketError::of(&self.name, e);
        let path = Path::parse(key).map_err(|e| wrong(&e.into()))?;
        self.store.get_range(&path, range).await.map_err(|e| wrong(&e))
    }

    /// How many bytes an object has; `None`: there is none.
    ///
    /// # Errors
    /// What the store says.
    pub async fn size(&self, key: &str) -> Result<Option<u64>, BucketError> {
        let wrong = |e: &object_store::Error| BucketError::of(&self.name, e);
        let path = Path::parse(key).map_err(|e| wrong(&e.into()))?;
        match self.store.head(&path).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(wrong(&e)),
        }
    }

    /// Puts a file of a table, whatever is there: who makes tables gives each file a name of its own.
    ///
    /// # Errors
    /// What the store says.
    pub async fn write(&self, key: &str, bytes: Bytes) -> Result<(), BucketError> {
        let wrong = |e: &object_store::Error| BucketError::of(&self.name, e);
        let path = Path::parse(key).map_err(|e| wrong(&e.into()))?;
        self.store.put(&path, PutPayload::from(bytes)).await.map(drop).map_err(|e| wrong(&e))
    }
}
