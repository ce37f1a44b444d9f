//! Which objects are meant: files, what is below directories, what is below a prefix of a bucket.

use std::{
    collections::BTreeSet,
    fmt, fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use flowlog_model::{
    S3Options,
    rule::{Location, Target, WINDOW_SECS_MAX},
};
use flowlog_pipeline::upload::Reader;
use jiff::{Timestamp, civil::DateTime, tz::TimeZone};
use tokio::runtime::{self, Runtime};

use super::{
    super::{exit::Failure, out},
    filter::Span,
};

/// Threads that wait for stores.
const WAITERS: usize = 2;
/// How the keys of objects end that are read.
const ENDING: &str = "parquet";
/// And of those that are text.
const TEXT_ENDING: &str = ".log.gz";

/// An object that may hold what is asked for.
pub(super) struct Found {
    pub(super) at: At,
    pub(super) bytes: u64,
}

pub(super) enum At {
    File(PathBuf),
    Bucket { bucket: Arc<Opened>, key: String },
}

/// A bucket that is read from.
pub(super) struct Opened {
    name: String,
    pub(super) reader: Reader,
    pub(super) runtime: Arc<Runtime>,
}

impl Found {
    pub(super) fn is_remote(&self) -> bool {
        matches!(self.at, At::Bucket { .. })
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.at {
            At::File(path) => write!(f, "{}", path.display()),
            At::Bucket { bucket, key } => write!(f, "s3://{}/{key}", bucket.name),
        }
    }
}

/// Finds objects.
pub(super) struct Places {
    options: S3Options,
    runtime: Arc<Runtime>,
}

impl Places {
    pub(super) fn new(options: S3Options) -> anyhow::Result<Self> {
        let runtime = runtime::Builder::new_multi_thread().worker_threads(WAITERS).enable_all().build()?;
        Ok(Self { options, runtime: Arc::new(runtime) })
    }

    /// All objects there, in order; without those whose name says that they are of another time.
    pub(super) fn find(&self, paths: &[PathBuf], span: Span) -> anyhow::Result<Vec<Found>> {
        let mut search = Search::default();
        for path in paths {
            match path.to_str().filter(|text| text.starts_with("s3:")) {
                Some(url) => self.list(url, &mut search)?,
                None => search.walk(path, true)?,
            }
        }
        let Search { mut all, texts, .. } = search;
        if texts > 0 {
            out::note(&format!("{texts} text objects (`*{TEXT_ENDING}`) are not shown: `zcat` shows them"));
        }
        all.retain(|found| may_hold(&found.to_string(), span));
        all.sort_by_cached_key(ToString::to_string);
        Ok(all)
    }

    fn list(&self, url: &str, search: &mut Search) -> anyhow::Result<()> {
        // A prefix of several parts is a folder here, not the one part that keys of a flow log begin with.
        let rest = url.strip_prefix("s3://").unwrap_or_default();
        let (bucket, folder) = rest.split_once('/').unwrap_or((rest, ""));
        let wrong = |e: &str| Failure::Usage(format!("`{url}`: {e}"));
        let target = format!("s3://{bucket}").parse::<Target>().map_err(|e| wrong(&e.to_string()))?;
        let Location::Bucket(name) = target.location else { return Err(wrong("use s3://bucket[/prefix]").into()) };
        let reader = Reader::open(&name, &self.options)?;
        let opened = Arc::new(Opened { name, reader, runtime: self.runtime.clone() });
        let folder = folder.trim_matches('/');
        let listed = self.runtime.block_on(opened.reader.list((!folder.is_empty()).then_some(folder)));
        let listed = listed.with_context(|| format!("cannot list `{url}`"))?;
        // A key that is named whole is no folder: it is not listed below itself.
        for object in listed {
            let found =
                Found { at: At::Bucket { bucket: opened.clone(), key: object.key.clone() }, bytes: object.bytes };
            if !search.keys.insert(found.to_string()) {
                continue;
            }
            search.texts += usize::from(is_text(Path::new(&object.key)));
            search.all.extend(is_ours(Path::new(&object.key)).then_some(found));
        }
        Ok(())
    }
}

fn is_ours(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == ENDING)
}

fn is_text(path: &Path) -> bool {
    path.to_str().is_some_and(|name| name.ends_with(TEXT_ENDING))
}

/// What has been found so far.
#[derive(Default)]
struct Search {
    all: Vec<Found>,
    /// Files and directories that have been seen, by device and number: what is named twice, or reached by two ways, counts once.
    seen: BTreeSet<(u64, u64)>,
    /// The same of objects in buckets.
    keys: BTreeSet<String>,
    /// Objects that are text.
    texts: usize,
}

impl Search {
    /// A file, or what is below a directory; `is_named`: by somebody, and not by its place.
    fn walk(&mut self, path: &Path, is_named: bool) -> anyhow::Result<()> {
        let meta = match fs::metadata(path) {
            Ok(meta) => meta,
            // A link that leads nowhere, or in a circle.
            Err(error) if !is_named => {
                out::note(&format!("`{}`: {error}: passed over", path.display()));
                return Ok(());
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read `{}`", path.display())),
        };
        if !self.seen.insert((meta.dev(), meta.ino())) {
            return Ok(());
        }
        if meta.is_file() && is_text(path) {
            if is_named {
                let words = format!("`{}` is a text object: `zcat` shows it", path.display());
                return Err(Failure::Wrong(words).into());
            }
            self.texts += 1;
            return Ok(());
        }
        if meta.is_file() {
            self.all.push(Found { at: At::File(path.to_owned()), bytes: meta.len() });
            return Ok(());
        }
        if !meta.is_dir() {
            // To open a pipe waits for whoever is at its other end.
            let what = of_type(meta.file_type());
            let words = format!("`{}` is {what}, and no object", path.display());
            if is_named {
                return Err(Failure::Wrong(words).into());
            }
            out::note(&format!("{words}: passed over"));
            return Ok(());
        }
        for entry in fs::read_dir(path).with_context(|| format!("cannot list `{}`", path.display()))? {
            let entry = entry?.path();
            if entry.is_dir() || is_ours(&entry) || is_text(&entry) {
                self.walk(&entry, false)?;
            }
        }
        Ok(())
    }
}

/// What is neither a file nor a directory, in words.
fn of_type(of: fs::FileType) -> &'static str {
    if of.is_fifo() {
        "a pipe"
    } else if of.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

/// Whether an object may have rows of a time, by its name: `…_20261123T141000Z_0.parquet` begins then, and no window is longer than a day.
fn may_hold(name: &str, span: Span) -> bool {
    let time = name.rsplit('_').nth(1).unwrap_or_default();
    let Ok(begin) = DateTime::strptime("%Y%m%dT%H%M%SZ", time) else { return true };
    let Ok(begin) = TimeZone::UTC.to_timestamp(begin).map(Timestamp::as_second) else { return true };
    begin < span.until && begin.saturating_add(i64::from(WINDOW_SECS_MAX)) > span.since
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_left_out_only_if_its_name_shows_that_it_is_of_another_time() {
        let day = 86_400;
        let of = |name: &str, since, until| may_hold(name, Span { since, until });
        let name = "/x/web/year=1970/month=01/day=03/hour=00/n_1-eth0_19700103T000000Z_0.parquet";
        assert!(of(name, 2 * day, 2 * day + 1) && of(name, i64::MIN, i64::MAX) && of(name, 3 * day - 1, 9 * day));
        assert!(!of(name, 0, 2 * day) && !of(name, 3 * day, 9 * day));
        assert!(of("/x/compacted.parquet", 0, 1), "somebody else's name says nothing");
    }
}
