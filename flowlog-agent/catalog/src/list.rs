//! Which objects there are: below directories, and below prefixes of buckets.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use flowlog_model::rule::{Location, Target};
use flowlog_pipeline::upload::BucketError;

use crate::{
    object_name::{self, ENDING},
    storage::{Stores, blocking},
};

/// Where objects are looked for: `s3://BUCKET[/FOLDER…]`, `file:///DIR` or a local path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Directory(PathBuf),
    Bucket { bucket: String, folder: String },
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ListError {
    #[error("{0}")]
    Wrong(String),
    #[error("cannot list `{path}`: {source}")]
    Local { path: String, source: io::Error },
    #[error("cannot list `{place}`: {source}")]
    Remote { place: String, source: BucketError },
}

impl FromStr for Source {
    type Err = ListError;

    fn from_str(text: &str) -> Result<Self, ListError> {
        let wrong = |e: &dyn fmt::Display| ListError::Wrong(e.to_string());
        if let Some(rest) = text.strip_prefix("s3://") {
            let (name, folder) = rest.split_once('/').unwrap_or((rest, ""));
            let target = format!("s3://{name}").parse::<Target>().map_err(|e| wrong(&e))?;
            let Location::Bucket(bucket) = target.location else {
                return Err(wrong(&format!("`{text}`: write `s3://BUCKET[/FOLDER]`")));
            };
            return Ok(Self::Bucket { bucket, folder: folder.trim_matches('/').to_owned() });
        }
        match text.parse::<Target>().map_err(|e| wrong(&e))?.location {
            Location::Directory(path) => Ok(Self::Directory(path)),
            _ => Err(wrong(&format!("`{text}`: write `s3://BUCKET[/FOLDER]` or a directory"))),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            Self::Bucket { bucket, folder } if folder.is_empty() => write!(f, "s3://{bucket}"),
            Self::Bucket { bucket, folder } => write!(f, "s3://{bucket}/{folder}"),
        }
    }
}

/// An object, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// What it is called in tables, for ever.
    pub(crate) uri: String,
    pub(crate) bytes: u64,
    /// The same, shorter.
    pub(crate) hash: u128,
    /// Begin of its window, Unix seconds.
    pub(crate) window_start: i64,
}

/// All there is, as far as it can be listed.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// In the order of their windows.
    pub(crate) objects: Vec<Found>,
    /// Parquet files whose names are not those of objects.
    pub(crate) others: u64,
    /// Folders and buckets that cannot be listed: what is in them waits, and nothing else does.
    pub(crate) failed: Vec<ListError>,
}

impl Listing {
    fn add(&mut self, uri: String, bytes: u64) {
        if !uri.ends_with(ENDING) {
            return;
        }
        match object_name::window_start(&uri) {
            Some(window_start) => {
                let hash = object_name::hash(&uri);
                self.objects.push(Found { uri, bytes, hash, window_start });
            }
            None => self.others += 1,
        }
    }
}

/// Lists the objects of all sources; one that two of them have is there once. Which are taken is known of each object for itself, so that
/// those that are found can be taken without the others.
pub(crate) async fn list(sources: &[Source], stores: &Stores) -> Listing {
    let mut all = Listing::default();
    for source in sources {
        match source {
            Source::Directory(path) => {
                let owned = path.clone();
                let listed = blocking(move || {
                    let mut walked = Walked::default();
                    walked.below(&owned.canonicalize()?)?;
                    Ok(walked)
                });
                let walked = listed.await.unwrap_or_else(|error| Walked::failed_at(path, error));
                for (path, bytes) in walked.found {
                    // Names of objects are text; another one is not of ours.
                    if let Some(path) = path.to_str() {
                        all.add(format!("file://{path}"), bytes);
                    }
                }
                all.failed.extend(walked.failed);
            }
            Source::Bucket { bucket, folder } => match in_bucket(bucket, folder, stores).await {
                Ok(listed) => listed.into_iter().for_each(|(uri, bytes)| all.add(uri, bytes)),
                Err(error) => all.failed.push(ListError::Remote { place: source.to_string(), source: error }),
            },
        }
    }
    all.objects.sort_unstable_by(|a, b| (a.window_start, &a.uri).cmp(&(b.window_start, &b.uri)));
    all.objects.dedup();
    all
}

/// Objects of a bucket, with their sizes.
async fn in_bucket(bucket: &str, folder: &str, stores: &Stores) -> Result<Vec<(String, u64)>, BucketError> {
    let listed = stores.bucket(bucket)?.list((!folder.is_empty()).then_some(folder)).await?;
    Ok(listed.into_iter().map(|object| (format!("s3://{bucket}/{}", object.key), object.bytes)).collect())
}

/// What a directory has.
#[derive(Default)]
struct Walked {
    found: Vec<(PathBuf, u64)>,
    failed: Vec<ListError>,
}

impl Walked {
    fn failed_at(folder: &Path, source: io::Error) -> Self {
        let mut walked = Self::default();
        walked.fail(folder, source);
        walked
    }

    fn fail(&mut self, folder: &Path, source: io::Error) {
        self.failed.push(ListError::Local { path: folder.display().to_string(), source });
    }

    /// Links are not followed: what they point to has a name of its own. A folder below that cannot be read leaves the others.
    fn below(&mut self, folder: &Path) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                match self.below(&entry.path()) {
                    // An engine's expiry may be at work.
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => self.fail(&entry.path(), e),
                    Ok(()) => {}
                }
            } else if kind.is_file() {
                match entry.metadata() {
                    Ok(meta) => self.found.push((entry.path(), meta.len())),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use flowlog_model::S3Options;

    use super::*;

    #[tokio::test]
    async fn objects_are_found_in_the_order_of_their_windows_each_once() {
        let dir = tempfile::tempdir().expect("folder");
        let put = |path: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().expect("folder")).expect("folders");
            fs::write(path, "12345").expect("file");
        };
        put("web/hour=09/n-eth0_20270115T090000Z_0.parquet");
        put("web/hour=08/n-eth0_20270115T080000Z_0.parquet");
        put("web/hour=08/n-eth0_20270115T080000Z_0.log.gz");
        put("db/00000-0-uuid.parquet");
        std::os::unix::fs::symlink(dir.path(), dir.path().join("web/again")).expect("link");
        let sources = [Source::Directory(dir.path().into()), Source::Directory(dir.path().join("web"))];
        let stores = Stores::new(S3Options::default());
        let listing = list(&sources, &stores).await;
        let starts: Vec<_> = listing.objects.iter().map(|o| (o.window_start, o.bytes)).collect();
        assert_eq!((starts, listing.others), (vec![(1_800_000_000, 5), (1_800_003_600, 5)], 1));
        assert!(listing.objects[0].uri.starts_with("file:///"), "{listing:?}");
        assert!(listing.failed.is_empty(), "{listing:?}");
        // Nothing there is not the same as none; and is no reason to leave the others.
        let gone = [Source::Directory(dir.path().join("gone")), Source::Directory(dir.path().into())];
        let listing = list(&gone, &stores).await;
        assert_eq!((listing.objects.len(), listing.failed.len()), (2, 1));
        assert!(listing.failed[0].to_string().contains("/gone`"), "{listing:?}");
    }

    #[test]
    fn a_folder_that_cannot_be_read_is_named_and_leaves_the_others() {
        // Whoever runs this may be root, who may read every folder: the first one is said to have refused.
        let mut walked = Walked::failed_at(Path::new("/flows/web"), io::ErrorKind::PermissionDenied.into());
        let dir = tempfile::tempdir().expect("folder");
        fs::write(dir.path().join("x.parquet"), "1").expect("file");
        walked.below(dir.path()).expect("readable");
        assert_eq!((walked.found.len(), walked.failed.len()), (1, 1));
        assert!(walked.failed[0].to_string().contains("`/flows/web`"));
    }

    #[test]
    fn sources_are_written_as_targets_are() {
        let of = |text: &str| text.parse::<Source>().map(|s| s.to_string()).map_err(|e| e.to_string());
        assert_eq!(of("s3://flows/team-a/web/"), Ok("s3://flows/team-a/web".to_owned()));
        assert_eq!(of("s3://flows"), Ok("s3://flows".to_owned()));
        assert_eq!(of("file:///var/flows"), Ok("/var/flows".to_owned()));
        for bad in ["s3://1@flows", "s3://F", "gs://x", ""] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
