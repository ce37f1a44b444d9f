//! A store in memory whose replies are scripted: for the simulation.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{StreamExt as _, stream::BoxStream};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, memory::InMemory, path::Path,
};

use super::Bucket;

/// What happens to one put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// It is stored and said so.
    Stored,
    /// It is not stored, and said so.
    Refused,
    /// It is not stored, and never will be.
    Unwanted,
    /// It is stored, and the reply lost.
    Lost,
}

/// Called before each request, with its key.
pub(crate) type Script = dyn FnMut(&Path) -> Reply + Send;

#[derive(Clone, Default)]
pub(crate) struct Shelf(Arc<InMemory>);

/// See the module's head.
#[derive(Clone)]
pub(crate) struct Scripted {
    inner: Arc<InMemory>,
    script: Arc<Mutex<Box<Script>>>,
}

impl Scripted {
    /// A store with a shelf.
    #[must_use]
    pub(crate) fn new(shelf: &Shelf, script: Box<Script>) -> Self {
        Self { inner: shelf.0.clone(), script: Arc::new(Mutex::new(script)) }
    }

    /// As the uploader sees it.
    #[must_use]
    pub(crate) fn store(&self) -> Bucket {
        Bucket::from_parts(Arc::new(self.clone()), "the simulated store".to_owned())
    }

    /// From now on everything is stored and said so.
    pub(crate) fn behave(&self) {
        *self.script.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(|_| Reply::Stored);
    }

    fn reply(&self, key: &Path) -> Reply {
        (self.script.lock().unwrap_or_else(PoisonError::into_inner))(key)
    }
}

impl Shelf {
    /// Everything that is stored, by key.
    ///
    /// # Panics
    /// Never: memory does not fail.
    pub(crate) async fn contents(&self) -> Vec<(String, bytes::Bytes)> {
        let mut all = Vec::new();
        let mut listed = self.0.list(None);
        while let Some(meta) = listed.next().await {
            let location = meta.expect("in memory").location;
            let bytes = self.0.get(&location).await.expect("in memory").bytes().await.expect("in memory");
            all.push((location.to_string(), bytes));
        }
        all
    }
}

impl fmt::Debug for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scripted")
    }
}

impl fmt::Display for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("scripted")
    }
}

fn lost() -> Error {
    Error::Generic { store: "scripted", source: "the connection was cut".into() }
}

/// In the words of a real client.
fn unwanted() -> Error {
    let words =
        "Error performing PUT: Server returned non-2xx status code: 400 Bad Request: <Code>KeyTooLongError</Code>";
    Error::Generic { store: "scripted", source: words.into() }
}

#[async_trait::async_trait]
impl ObjectStore for Scripted {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        match self.reply(location) {
            Reply::Stored => self.inner.put_opts(location, payload, opts).await,
            Reply::Refused => Err(lost()),
            Reply::Unwanted => Err(unwanted()),
            Reply::Lost => {
                let _ = self.inner.put_opts(location, payload, opts).await;
                Err(lost())
            }
        }
    }

    async fn put_multipart_opts(&self, at: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        match self.reply(location) {
            Reply::Refused => return Err(lost()),
            Reply::Unwanted => return Err(unwanted()),
            Reply::Stored | Reply::Lost => {}
        }
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
