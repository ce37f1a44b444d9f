//! The files of tables, and objects: local ones and those of buckets, by the way that the agent has to buckets. Nothing here deletes.

use std::{
    collections::HashMap,
    fmt, fs,
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use flowlog_host::fault;
use flowlog_model::S3Options;
use flowlog_pipeline::upload::{BucketError, Reader, reader::PIECE_BYTES_MAX};
use futures_util::stream::BoxStream;
use iceberg::{
    Error, ErrorKind, Result,
    io::{FileMetadata, FileRead, FileWrite, InputFile, OutputFile, Storage, StorageConfig, StorageFactory},
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The place of a file or an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place<'a> {
    File(&'a Path),
    Bucket { bucket: &'a str, key: &'a str },
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum StorageError {
    #[error("`{0}` is neither `s3://BUCKET/KEY` nor `file:///PATH`")]
    Elsewhere(String),
    #[error("{path}: {source}")]
    Local { path: String, source: io::Error },
    #[error("{uri}: {source}")]
    Remote { uri: String, source: BucketError },
    #[error("{0}: it has fewer bytes than were asked for")]
    Short(String),
    #[error("there is no `{0}`")]
    NotThere(String),
}

impl From<StorageError> for Error {
    fn from(error: StorageError) -> Self {
        Self::new(ErrorKind::Unexpected, error.to_string())
    }
}

impl<'a> Place<'a> {
    pub(crate) fn of(uri: &'a str) -> std::result::Result<Self, StorageError> {
        // Engines call the same bucket `s3a`.
        if let Some(rest) = ["s3://", "s3a://", "s3n://"].iter().find_map(|scheme| uri.strip_prefix(scheme)) {
            let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
            return Ok(Self::Bucket { bucket, key });
        }
        let path = uri.strip_prefix("file://").or_else(|| uri.strip_prefix("file:")).unwrap_or(uri);
        if path.starts_with('/') {
            Ok(Self::File(Path::new(path)))
        } else {
            Err(StorageError::Elsewhere(uri.to_owned()))
        }
    }
}

/// Buckets that have been opened, by name.
#[derive(Default)]
pub(crate) struct Stores {
    options: S3Options,
    buckets: Mutex<HashMap<String, Arc<Reader>>>,
}

impl fmt::Debug for Stores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stores").finish_non_exhaustive()
    }
}

impl Stores {
    pub(crate) fn new(options: S3Options) -> Self {
        Self { options, buckets: Mutex::default() }
    }

    pub(crate) fn bucket(&self, name: &str) -> std::result::Result<Arc<Reader>, BucketError> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reader) = buckets.get(name) {
            return Ok(reader.clone());
        }
        let reader = Arc::new(Reader::open(name, &self.options)?);
        buckets.insert(name.to_owned(), reader.clone());
        Ok(reader)
    }

    /// A part of a file.
    pub(crate) async fn read(&self, uri: &str, range: Range<u64>) -> std::result::Result<Bytes, StorageError> {
        let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        match Place::of(uri)? {
            Place::File(path) => {
                let local = |source| StorageError::Local { path: path.display().to_string(), source };
                let owned = path.to_owned();
                blocking(move || read_part(&owned, range.start, length)).await.map_err(local)
            }
            Place::Bucket { bucket, key } => {
                let remote = |source| StorageError::Remote { uri: uri.to_owned(), source };
                let reader = self.bucket(bucket).map_err(remote)?;
                let mut all = BytesMut::new();
                let mut at = range.start;
                while at < range.end {
                    let piece =
                        reader.read(key, at..range.end.min(at + PIECE_BYTES_MAX as u64)).await.map_err(remote)?;
                    if piece.is_empty() {
                        return Err(StorageError::Short(uri.to_owned()));
                    }
                    at += piece.len() as u64;
                    if at >= range.end && all.is_empty() {
                        return Ok(piece);
                    }
                    all.extend_from_slice(&piece);
                }
                Ok(all.freeze())
            }
        }
    }

    async fn size(&self, uri: &str) -> std::result::Result<Option<u64>, StorageError> {
        match Place::of(uri)? {
            Place::File(path) => {
                let owned = path.to_owned();
                match blocking(move || fs::metadata(owned)).await {
                    Ok(meta) => Ok(Some(meta.len())),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(source) => Err(StorageError::Local { path: path.display().to_string(), source }),
                }
            }
            Place::Bucket { bucket, key } => {
                let remote = |source| StorageError::Remote { uri: uri.to_owned(), source };
                self.bucket(bucket).map_err(remote)?.size(key).await.map_err(remote)
            }
        }
    }

    /// Writes a file that is there, whole and durable, when this returns.
    async fn write(&self, uri: &str, bytes: Bytes) -> std::result::Result<(), StorageError> {
        fault::point("catalog_file");
        match Place::of(uri)? {
            Place::File(path) => {
                let owned = path.to_owned();
                let written = blocking(move || write_whole(&owned, &bytes)).await;
                written.map_err(|source| StorageError::Local { path: path.display().to_string(), source })
            }
            Place::Bucket { bucket, key } => {
                let remote = |source| StorageError::Remote { uri: uri.to_owned(), source };
                self.bucket(bucket).map_err(remote)?.write(key, bytes).await.map_err(remote)
            }
        }
    }
}

/// Does file work beside the runtime's threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|ended| Err(io::Error::other(ended)))
}

fn read_part(path: &Path, start: u64, length: usize) -> io::Result<Bytes> {
    let mut file = fs::File::open(path)?;
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = vec![0; length];
    file.read_exact(&mut bytes)?;
    Ok(bytes.into())
}

/// Under another name first, so that nobody sees half of it: the catalog points to it, and the machine may go down at any time.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    make_folder(folder)?;
    let partial: PathBuf = folder.join(format!(".{}.partial", Uuid::new_v4()));
    let mut file = fs::File::create_new(&partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&partial, path)?;
    fs::File::open(folder)?.sync_all()
}

/// Makes a folder and those above it, durably.
fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let Some(above) = folder.parent() else { return Ok(()) };
    make_folder(above)?;
    match fs::create_dir(folder) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    fs::File::open(above)?.sync_all()
}

/// The same as `iceberg` wants it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct TableFiles {
    #[serde(skip)]
    stores: Arc<Stores>,
}

impl TableFiles {
    pub(crate) fn new(stores: Arc<Stores>) -> Self {
        Self { stores }
    }
}

#[typetag::serde]
impl StorageFactory for TableFiles {
    /// What a catalog says of buckets is not used: the way to them is the operator's to say, as for the agent.
    fn build(&self, _: &StorageConfig) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(self.clone()))
    }
}

/// What would delete: nothing in this program may.
fn never<T>(path: &str) -> Result<T> {
    Err(Error::new(ErrorKind::FeatureUnsupported, format!("flowlog-catalog deletes nothing: {path}")))
}

#[async_trait]
#[typetag::serde]
impl Storage for TableFiles {
    async fn exists(&self, path: &str) -> Result<bool> {
        Ok(self.stores.size(path).await?.is_some())
    }

    async fn metadata(&self, path: &str) -> Result<FileMetadata> {
        let size = self.stores.size(path).await?.ok_or_else(|| StorageError::NotThere(path.to_owned()))?;
        Ok(FileMetadata { size })
    }

    async fn read(&self, path: &str) -> Result<Bytes> {
        let size = self.metadata(path).await?.size;
        Ok(self.stores.read(path, 0..size).await?)
    }

    async fn reader(&self, path: &str) -> Result<Box<dyn FileRead>> {
        Ok(Box::new(TableFile { stores: self.stores.clone(), path: path.to_owned(), written: BytesMut::new() }))
    }

    async fn write(&self, path: &str, bytes: Bytes) -> Result<()> {
        Ok(self.stores.write(path, bytes).await?)
    }

    async fn writer(&self, path: &str) -> Result<Box<dyn FileWrite>> {
        Ok(Box::new(TableFile { stores: self.stores.clone(), path: path.to_owned(), written: BytesMut::new() }))
    }

    async fn delete(&self, path: &str) -> Result<()> {
        never(path)
    }

    async fn delete_prefix(&self, path: &str) -> Result<()> {
        never(path)
    }

    async fn delete_stream(&self, _: BoxStream<'static, String>) -> Result<()> {
        never("files")
    }

    fn new_input(&self, path: &str) -> Result<InputFile> {
        Ok(InputFile::new(Arc::new(self.clone()), path.to_owned()))
    }

    fn new_output(&self, path: &str) -> Result<OutputFile> {
        Ok(OutputFile::new(Arc::new(self.clone()), path.to_owned()))
    }
}

/// A file that is read in parts, or written piece by piece and then put as a whole.
struct TableFile {
    stores: Arc<Stores>,
    path: String,
    written: BytesMut,
}

#[async_trait]
impl FileRead for TableFile {
    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        Ok(self.stores.read(&self.path, range).await?)
    }
}

#[async_trait]
impl FileWrite for TableFile {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.written.extend_from_slice(&bytes);
        Ok(())
    }

    async fn close(&mut self) -> Result<()> {
        let bytes = std::mem::take(&mut self.written).freeze();
        Ok(self.stores.write(&self.path, bytes).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_read_as_it_was_written_and_nothing_is_deleted() {
        let dir = tempfile::tempdir().expect("folder");
        let files = TableFiles::new(Arc::new(Stores::new(S3Options::default())));
        let uri = format!("file://{}/a/b/c.avro", dir.path().display());
        assert!(!files.exists(&uri).await.expect("looked"));
        let mut writer = files.writer(&uri).await.expect("writer");
        for piece in ["ab", "cd"] {
            writer.write(Bytes::from(piece)).await.expect("written");
        }
        assert!(!files.exists(&uri).await.expect("looked"), "it is there when it is whole");
        writer.close().await.expect("closed");
        assert_eq!(files.read(&uri).await.expect("read"), "abcd");
        assert_eq!(files.reader(&uri).await.expect("reader").read(1..3).await.expect("part"), "bc");
        assert!(files.delete(&uri).await.is_err() && files.delete_prefix(&uri).await.is_err());
        assert!(files.exists(&uri).await.expect("looked"));
        assert_eq!(fs::read_dir(dir.path().join("a/b")).expect("folder").count(), 1, "nothing else is left");
    }

    #[test]
    fn places_are_told_apart() {
        let file = |path| Place::File(Path::new(path));
        let of = |uri| Place::of(uri).expect("a place");
        assert_eq!((of("file:///a/b"), of("file:/a/b"), of("/a/b")), (file("/a/b"), file("/a/b"), file("/a/b")));
        assert_eq!(of("s3a://b/k/x"), Place::Bucket { bucket: "b", key: "k/x" });
        assert!(Place::of("gs://b/k").is_err() && Place::of("a/b").is_err());
    }
}
