//! Durable files on their way to the store. File names alone tell their state; there is no second ledger.
//!
//! ```text
//! spool/<target>/<key>.partial  being written; a leftover is of a crash, and its records are in the journal
//! spool/<target>/<key>.held     complete and durable; the journal does not know yet
//! spool/<target>/<key>          deliver, then unlink
//! quarantine/<target>/<key>     the store holds other bytes under this key: needs a person
//! ```
//!
//! `<target>` and `<key>` have `/` and `%` percent-encoded. A file is written, synced, renamed, and its directory
//! synced: after that it survives a power cut. It is held until the journal says that it is there; so no object can be
//! delivered, forgotten, and made again.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use flowlog_host::fault;
use flowlog_model::rule::{Location, Target};

use crate::{
    disk::{self, Filesystem, Item, Kind},
    encode::Object,
};

/// Directory of waiting files in the state directory.
const DIR: &str = "spool";
/// Directory of files that the store will not take.
const QUARANTINE: &str = "quarantine";
const PARTIAL: &str = ".partial";
const HELD: &str = ".held";
/// Longest file name that Linux file systems take.
const NAME_BYTES_MAX: usize = 255;
/// Room beyond the cap for objects that hold totals only: at 10 KiB each, those of 1,600 windows.
const RESERVE_BYTES: u64 = 16 << 20;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The file system refused.
    #[error("cannot {action} `{name}` in the spool: {source}")]
    Io {
        action: &'static str,
        name: String,
        #[source]
        source: io::Error,
    },
    /// The cap on bytes is reached, and the room for totals as well.
    #[error(
        "the spool is full: {bytes} bytes, and {max} with their reserve are allowed; deliver or raise `spool.bytes_max`"
    )]
    Full {
        /// Bytes in it.
        bytes: u64,
        /// Most that may be.
        max: u64,
    },
    /// A target or key does not fit into a file name.
    #[error(
        "`{name}` is too long for the spool: at most {NAME_BYTES_MAX} bytes with `/` counted as three; use a shorter target path"
    )]
    TooLong {
        /// What is too long.
        name: String,
    },
}

/// What the spool may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes in it before windows are spooled as totals only.
    pub bytes_max: u64,
    /// Age in seconds of the oldest file before windows are spooled as totals only.
    pub age_secs_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        // Ten minutes of a busy node are some 10 MiB: days of outage. Older than a week nobody waits for more detail.
        Self { bytes_max: 4 << 30, age_secs_max: 7 * 86_400 }
    }
}

/// A file waiting for delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Bucket or directory it goes to.
    pub location: Location,
    pub key: String,
    pub bytes: u64,
    /// When it was made, ns since 1970.
    pub made_ns: i64,
}

#[derive(Clone)]
pub struct Spool {
    fs: Arc<dyn Filesystem>,
    limits: Limits,
    usage: Arc<Usage>,
}

/// Kept up to date by every operation, so that nobody has to list thousands of files to know it.
#[derive(Debug, Default)]
struct Usage {
    bytes: AtomicU64,
    /// Age of the oldest file when the spool was listed last: ns since 1970; 0 if it was empty.
    oldest_ns: AtomicI64,
}

/// What an earlier agent left behind.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Files that were being written: removed.
    pub partial: usize,
    /// Things that are not ours: left alone.
    pub foreign: Vec<String>,
}

fn failed(action: &'static str, name: &str) -> impl FnOnce(io::Error) -> SpoolError {
    let name = name.to_owned();
    move |source| SpoolError::Io { action, name, source }
}

fn escape(name: &str) -> Result<String, SpoolError> {
    let escaped = name.replace('%', "%25").replace('/', "%2F");
    if escaped.len() + PARTIAL.len() > NAME_BYTES_MAX {
        return Err(SpoolError::TooLong { name: name.to_owned() });
    }
    Ok(escaped)
}

fn unescape(name: &str) -> String {
    name.replace("%2F", "/").replace("%25", "%")
}

fn dir_of(base: &str, location: &Location) -> Result<String, SpoolError> {
    Ok(format!("{base}/{}", escape(&location_name(location))?))
}

impl Spool {
    /// Opens (and makes) the spool in a state directory; removes what was being written when the last agent ended.
    ///
    /// # Errors
    /// If the directory cannot be made or read.
    pub fn open(fs: Arc<dyn Filesystem>, limits: Limits) -> Result<(Self, Leftovers), SpoolError> {
        let spool = Self { fs, limits, usage: Arc::default() };
        spool.fs.make_dir(DIR).map_err(failed("make the directory", DIR))?;
        spool.fs.make_dir(QUARANTINE).map_err(failed("make the directory", QUARANTINE))?;
        let mut left = Leftovers::default();
        let mut bytes = 0;
        spool.each(DIR, &mut left.foreign, |_, dir, item| {
            if item.name.ends_with(PARTIAL) {
                spool.fs.remove(dir, &item.name).map_err(failed("remove", &item.name))?;
                left.partial += 1;
            } else {
                bytes += item.bytes;
            }
            Ok(())
        })?;
        spool.each(QUARANTINE, &mut Vec::new(), |_, _, item| {
            bytes += item.bytes;
            Ok(())
        })?;
        spool.usage.bytes.store(bytes, Ordering::Relaxed);
        Ok((spool, left))
    }

    /// Checks that objects for a target have a place here.
    ///
    /// # Errors
    /// [`SpoolError::TooLong`].
    pub fn check(target: &Target) -> Result<(), SpoolError> {
        escape(&location_name(&target.location)).map(drop)
    }

    /// Bytes in it.
    #[must_use]
    pub(crate) fn bytes(&self) -> u64 {
        self.usage.bytes.load(Ordering::Relaxed)
    }

    /// Whether a window may leave only its totals here; says why.
    #[must_use]
    pub(crate) fn is_full(&self, now_secs: i64) -> Option<String> {
        let Limits { bytes_max, age_secs_max } = self.limits;
        let (bytes, oldest_ns) = (self.bytes(), self.usage.oldest_ns.load(Ordering::Relaxed));
        if bytes >= bytes_max {
            return Some(format!("it holds {bytes} bytes of at most {bytes_max}"));
        }
        let age_secs = now_secs.saturating_sub(oldest_ns / 1_000_000_000);
        let old = oldest_ns > 0 && u64::try_from(age_secs).is_ok_and(|age| age > age_secs_max);
        old.then(|| format!("its oldest object is {age_secs} s old, of at most {age_secs_max}"))
    }

    /// Makes an object durable. It is not delivered before [`release`](Self::release).
    ///
    /// # Errors
    /// If it could not be made durable: then it does not count as stored.
    pub fn hold(&self, location: &Location, object: &Object) -> Result<(), SpoolError> {
        let (bytes, max) = (self.bytes(), self.limits.bytes_max.saturating_add(RESERVE_BYTES));
        if bytes + object.bytes.len() as u64 > max && bytes > 0 {
            return Err(SpoolError::Full { bytes, max });
        }
        let dir = dir_of(DIR, location)?;
        self.fs.make_dir(&dir).map_err(failed("make the directory", &dir))?;
        let name = escape(&object.key)?;
        let (partial, held) = (format!("{name}{PARTIAL}"), format!("{name}{HELD}"));
        if let Err(error) = self.write(&dir, &partial, &object.bytes) {
            // Its bytes may be lost even if a later sync succeeds: it must not get its name. Removing it gives the room back.
            let _ = self.fs.remove(&dir, &partial);
            return Err(failed("write", &partial)(error));
        }
        fault::point("spool_rename");
        self.fs.rename((&dir, &partial), (&dir, &held)).map_err(failed("rename", &partial))?;
        fault::point("spool_dir_sync");
        self.fs.sync_dir(&dir).map_err(failed("sync the directory of", &held))?;
        self.usage.bytes.fetch_add(object.bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn write(&self, dir: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
        fault::io("spool_write")?;
        let mut file = self.fs.create(dir, name)?;
        file.append(bytes)?;
        fault::io("spool_sync")?;
        file.sync()
    }

    /// Whether an object is here, held or not.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn has(&self, location: &Location, key: &str) -> Result<bool, SpoolError> {
        let (dir, name) = (dir_of(DIR, location)?, escape(key)?);
        let held = format!("{name}{HELD}");
        match self.fs.list(&dir) {
            Ok(items) => Ok(items.iter().any(|i| i.name == name || i.name == held)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(failed("list", &dir)(e)),
        }
    }

    /// Lets held objects be delivered: the journal has them. One that is not here any more is fine.
    ///
    /// # Errors
    /// If one cannot be renamed.
    pub fn release(&self, location: &Location, keys: &[String]) -> Result<(), SpoolError> {
        let dir = dir_of(DIR, location)?;
        for key in keys {
            fault::point("spool_release");
            let name = escape(key)?;
            match self.fs.rename((&dir, &format!("{name}{HELD}")), (&dir, &name)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("rename", &name)(e)),
                _ => {}
            }
        }
        // Not synced: held or not, the bytes are durable, and a start releases all that are held.
        Ok(())
    }

    /// Releases everything that is held: at a start, when the journal has been read.
    ///
    /// # Errors
    /// If one cannot be renamed.
    pub fn release_all(&self) -> Result<(), SpoolError> {
        self.each(DIR, &mut Vec::new(), |location, _, item| match item.name.strip_suffix(HELD) {
            Some(name) => self.release(location, &[unescape(name)]),
            None => Ok(()),
        })
    }

    /// All files waiting for delivery, oldest first.
    ///
    /// # Errors
    /// If a directory cannot be listed.
    pub fn entries(&self) -> Result<Vec<Entry>, SpoolError> {
        let mut entries = Vec::new();
        self.each(DIR, &mut Vec::new(), |location, _, item| {
            if !item.name.ends_with(PARTIAL) && !item.name.ends_with(HELD) {
                let (location, key) = (location.clone(), unescape(&item.name));
                entries.push(Entry { location, key, bytes: item.bytes, made_ns: item.modified_ns });
            }
            Ok(())
        })?;
        entries.sort_by(|a, b| (a.made_ns, &a.key).cmp(&(b.made_ns, &b.key)));
        self.usage.oldest_ns.store(entries.first().map_or(0, |e| e.made_ns), Ordering::Relaxed);
        Ok(entries)
    }

    /// Whether nothing is waiting, held or not.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let mut any = false;
        let listed = self.each(DIR, &mut Vec::new(), |_, _, _| {
            any = true;
            Ok(())
        });
        listed.is_ok() && !any
    }

    /// The bytes of an entry.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(crate) fn read(&self, entry: &Entry) -> Result<Vec<u8>, SpoolError> {
        let dir = dir_of(DIR, &entry.location)?;
        disk::read(&*self.fs, &dir, &escape(&entry.key)?).map_err(failed("read", &entry.key))
    }

    /// Forgets a delivered entry.
    ///
    /// # Errors
    /// If the file cannot be removed.
    pub(crate) fn remove(&self, entry: &Entry) -> Result<(), SpoolError> {
        fault::point("spool_unlink");
        self.fs.remove(&dir_of(DIR, &entry.location)?, &escape(&entry.key)?).map_err(failed("remove", &entry.key))?;
        let taken =
            self.usage.bytes.try_update(Ordering::Relaxed, Ordering::Relaxed, |b| Some(b.saturating_sub(entry.bytes)));
        debug_assert!(taken.is_ok());
        Ok(())
    }

    /// Puts an entry aside that the store will not take; returns where it is now, in the state directory.
    ///
    /// # Errors
    /// If it cannot be moved.
    pub(crate) fn quarantine(&self, entry: &Entry) -> Result<String, SpoolError> {
        let (from, to) = (dir_of(DIR, &entry.location)?, dir_of(QUARANTINE, &entry.location)?);
        let name = escape(&entry.key)?;
        self.fs.make_dir(&to).map_err(failed("make the directory", &to))?;
        self.fs.rename((&from, &name), (&to, &name)).map_err(failed("move to quarantine", &name))?;
        self.fs.sync_dir(&to).map_err(failed("sync the directory of", &name))?;
        Ok(format!("{to}/{name}"))
    }

    /// Visits every regular file; collects names of what is not ours.
    fn each(
        &self,
        base: &str,
        foreign: &mut Vec<String>,
        mut visit: impl FnMut(&Location, &str, &Item) -> Result<(), SpoolError>,
    ) -> Result<(), SpoolError> {
        for target in self.fs.list(base).map_err(failed("list", base))? {
            let dir = format!("{base}/{}", target.name);
            let Some(location) = location_of(&target.name).filter(|_| target.kind == Kind::Directory) else {
                foreign.push(dir);
                continue;
            };
            for item in self.fs.list(&dir).map_err(failed("list", &dir))? {
                if item.kind == Kind::File {
                    visit(&location, &dir, &item)?;
                } else {
                    foreign.push(format!("{dir}/{}", item.name));
                }
            }
        }
        Ok(())
    }
}

fn location_name(location: &Location) -> String {
    Target { location: location.clone(), prefix: None }.to_string()
}

fn location_of(name: &str) -> Option<Location> {
    unescape(name).parse::<Target>().ok().filter(|t| t.prefix.is_none()).map(|t| t.location)
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::symlink, path::PathBuf};

    use flowlog_host::clock;

    use super::*;
    use crate::{disk::real::Disk, encode::RowCounts};

    fn object(key: &str) -> Object {
        Object { key: key.to_owned(), bytes: b"parquet".to_vec(), rows: RowCounts::default() }
    }

    fn open(dir: &std::path::Path, limits: Limits) -> (Spool, Leftovers) {
        Spool::open(Arc::new(Disk::open(dir).expect("disk")), limits).expect("open")
    }

    #[test]
    fn a_restarted_agent_finds_every_complete_file_and_no_partial_one() {
        let dir = tempfile::tempdir().expect("tempdir");
        let bucket = Location::Bucket("flows".to_owned());
        let local = Location::Directory(PathBuf::from("/var/flow%logs"));
        let (spool, _) = open(dir.path(), Limits::default());
        spool.hold(&bucket, &object("web/year=2026/a_1.parquet")).expect("hold");
        spool.hold(&local, &object("web/b_2.parquet")).expect("hold");
        std::fs::write(dir.path().join("spool/s3:%2F%2Fflows/web%2Fc.parquet.partial"), b"torn").expect("write");
        assert!(spool.entries().expect("entries").is_empty(), "held ones are not delivered");
        spool.release(&local, &["web/b_2.parquet".to_owned(), "web/gone.parquet".to_owned()]).expect("release");
        assert_eq!(spool.entries().expect("entries").len(), 1);

        let (again, left) = open(dir.path(), Limits::default());
        assert_eq!(left, Leftovers { partial: 1, foreign: Vec::new() });
        assert!(again.has(&bucket, "web/year=2026/a_1.parquet").expect("list"));
        assert!(!again.has(&bucket, "web/c.parquet").expect("list"));
        again.release_all().expect("release");
        let found = again.entries().expect("entries");
        assert_eq!((found.len(), again.bytes()), (2, 14));
        assert_eq!(again.read(&found[0]).expect("read"), b"parquet");
        again.remove(&found[0]).expect("remove");
        let aside = again.quarantine(&found[1]).expect("quarantine");
        assert!(dir.path().join(aside).is_file() && again.is_empty());
        assert_eq!(again.bytes(), 7, "what is put aside still takes room");
    }

    #[test]
    fn a_full_or_old_spool_says_so_and_keeps_a_reserve_for_totals() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (spool, _) = open(dir.path(), Limits { bytes_max: 10, age_secs_max: 100 });
        let bucket = Location::Bucket("flows".to_owned());
        let now = clock::now().wall.secs();
        assert_eq!(spool.is_full(now), None);
        for key in ["a/1", "a/2"] {
            spool.hold(&bucket, &object(key)).expect("the reserve takes it");
        }
        assert!(spool.is_full(now).expect("full").contains("14 bytes of at most 10"));
        let huge = Object { bytes: vec![0; 17 << 20], ..object("a/3") };
        assert!(spool.hold(&bucket, &huge).expect_err("full").to_string().contains("the spool is full"));
        let (spool, _) = open(dir.path(), Limits { bytes_max: 1 << 30, age_secs_max: 100 });
        spool.release_all().expect("release");
        spool.entries().expect("entries");
        assert_eq!(spool.is_full(now), None);
        assert!(spool.is_full(now + 200).expect("old").contains("of at most 100"));
    }

    #[test]
    fn links_and_strange_files_are_reported_and_left_alone() {
        let dir = tempfile::tempdir().expect("tempdir");
        open(dir.path(), Limits::default());
        let at = |name: &str| dir.path().join("spool").join(name);
        symlink("/etc", at("file:%2F%2F%2Fvar%2Fa")).expect("link");
        std::fs::create_dir(at("file:%2F%2F%2Fvar%2Fb")).expect("make");
        symlink("/etc/passwd", at("file:%2F%2F%2Fvar%2Fb/x.parquet")).expect("link");
        std::fs::write(at("notes"), b"?").expect("write");
        let (spool, left) = open(dir.path(), Limits::default());
        assert_eq!(left.foreign.len(), 3, "{left:?}");
        assert!(spool.entries().expect("entries").is_empty());
        assert!(at("notes").is_file() && at("file:%2F%2F%2Fvar%2Fb/x.parquet").is_symlink());
    }

    #[test]
    fn a_target_too_long_for_a_file_name_is_refused_before_anything_is_captured() {
        let long = format!("/{}", "d/".repeat(100)).parse::<Target>().expect("target");
        assert!(Spool::check(&long).expect_err("too long").to_string().contains("too long"));
    }
}
