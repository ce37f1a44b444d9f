//! Durable files on their way to the store. File names alone tell their state; there is no second ledger.
//!
//! ```text
//! spool/<target>/<key>.partial  being written; a leftover is of a crash, and its records are in the journal
//! spool/<target>/<key>.held     complete and durable; the journal does not know yet
//! spool/<target>/<key>          deliver, then unlink
//! quarantine/<target>/<key>     cannot be delivered or held: needs a person
//! ```
//!
//! `<target>` and `<key>` are called as in [`name`]. A file is written, synced, renamed, and its directory
//! synced: after that it survives a power cut. It is held until the journal says that it is there; so no object can be
//! delivered, forgotten, and made again.

mod name;

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use flowlog_host::fault;
use flowlog_model::rule::Location;

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
        /// Bytes that are in the spool.
        bytes: u64,
        /// Most that may be.
        max: u64,
    },
}

impl SpoolError {
    /// Whether another object would fare better: waiting helps nobody else then.
    #[must_use]
    pub(crate) fn is_of_one_object(&self) -> bool {
        matches!(self, Self::Io { source, .. } if !is_everybodys(source))
    }
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
    limits: Arc<Mutex<Limits>>,
    usage: Arc<Usage>,
    /// What files are whose names are digests: each is opened once.
    heads: Arc<Mutex<HashMap<String, name::FileHead>>>,
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

fn dir_of(base: &str, location: &Location) -> String {
    format!("{base}/{}", name::of_location(location))
}

/// Whether every other object would fare the same: the disk is full or failing, or the process is out of something.
fn is_everybodys(error: &io::Error) -> bool {
    use libc::{EDQUOT, EIO, EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOSPC, EROFS};
    error.raw_os_error().is_some_and(|e| [EDQUOT, EIO, EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOSPC, EROFS].contains(&e))
}

impl Spool {
    /// What it may hold.
    #[must_use]
    pub fn limits(&self) -> Limits {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it may hold from now on.
    pub fn limit(&self, limits: Limits) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// Opens (and makes) the spool in a state directory; removes what was being written when the last agent ended.
    ///
    /// # Errors
    /// If the directory cannot be made or read.
    pub fn open(fs: Arc<dyn Filesystem>, limits: Limits) -> Result<(Self, Leftovers), SpoolError> {
        let limits = Arc::new(Mutex::new(limits));
        let spool = Self { fs, limits, usage: Arc::default(), heads: Arc::default() };
        spool.fs.make_dir(DIR).map_err(failed("make the directory", DIR))?;
        spool.fs.make_dir(QUARANTINE).map_err(failed("make the directory", QUARANTINE))?;
        let mut partial = 0;
        let mut bytes = 0;
        let mut foreign = Vec::new();
        for base in [DIR, QUARANTINE] {
            spool.each(base, &mut foreign, |dir, item| {
                if item.name.ends_with(PARTIAL) {
                    spool.fs.remove(dir, &item.name).map_err(failed("remove", &item.name))?;
                    partial += 1;
                } else {
                    bytes += item.bytes;
                }
                Ok(())
            })?;
        }
        let left = Leftovers { partial, foreign };
        spool.usage.bytes.store(bytes, Ordering::Relaxed);
        Ok((spool, left))
    }

    /// Bytes of all files in the spool.
    #[must_use]
    pub(crate) fn bytes(&self) -> u64 {
        self.usage.bytes.load(Ordering::Relaxed)
    }

    /// Whether a window may leave only its totals here; says why.
    #[must_use]
    pub(crate) fn is_full(&self, now_secs: i64) -> Option<String> {
        let Limits { bytes_max, age_secs_max } = self.limits();
        let bytes = self.bytes();
        let oldest_ns = self.usage.oldest_ns.load(Ordering::Relaxed);
        if bytes >= bytes_max {
            return Some(format!("it holds {bytes} bytes of at most {bytes_max}"));
        }
        let age_secs = now_secs.saturating_sub(oldest_ns / 1_000_000_000);
        let old = oldest_ns > 0 && u64::try_from(age_secs).is_ok_and(|age| age > age_secs_max);
        old.then(|| format!("its oldest object is {age_secs} s old, of at most {age_secs_max}"))
    }

    /// Why an object of so many bytes has no place, as far as it is more than totals.
    #[must_use]
    pub(crate) fn no_room(&self, bytes: u64, now_secs: i64) -> Option<String> {
        self.is_full(now_secs).or_else(|| {
            let there = self.bytes();
            let max = self.limits().bytes_max;
            let too_many = there.saturating_add(bytes) > max.saturating_add(RESERVE_BYTES);
            too_many.then(|| format!("it holds {there} bytes of at most {max}, and this window has {bytes}"))
        })
    }

    /// Makes an object durable. It is not delivered before [`release`](Self::release).
    ///
    /// # Errors
    /// If it could not be made durable: then it does not count as stored.
    pub fn hold(&self, location: &Location, object: &Object) -> Result<(), SpoolError> {
        let bytes = self.bytes();
        let max = self.limits().bytes_max.saturating_add(RESERVE_BYTES);
        if bytes + object.bytes.len() as u64 > max {
            return Err(SpoolError::Full { bytes, max });
        }
        self.make_durable(&dir_of(DIR, location), HELD, location, object).map(drop)
    }

    /// Puts an object aside that cannot be held, and is no reason to hold up others; returns where it is, in the state
    /// directory. It is durable when this returns, and never delivered.
    ///
    /// # Errors
    /// As [`hold`](Self::hold).
    pub(crate) fn put_aside(&self, location: &Location, object: &Object) -> Result<String, SpoolError> {
        self.make_durable(&dir_of(QUARANTINE, location), "", location, object)
    }

    /// Writes an object into a directory, whole and durable or not at all; `suffix` comes behind its name.
    fn make_durable(
        &self,
        dir: &str,
        suffix: &str,
        location: &Location,
        object: &Object,
    ) -> Result<String, SpoolError> {
        self.fs.make_dir(dir).map_err(failed("make the directory", dir))?;
        let name = name::name(&object.key);
        let partial = format!("{name}{PARTIAL}");
        let whole = format!("{name}{suffix}");
        let head = name::head(location, &object.key);
        if let Err(error) = self.write(dir, &partial, &[&head, &object.bytes]) {
            // Its bytes may be lost even if a later sync succeeds: it must not get its name. Removing it gives the room back.
            let _ = self.fs.remove(dir, &partial);
            return Err(failed("write", &partial)(error));
        }
        fault::point("spool_rename");
        self.fs.rename((dir, &partial), (dir, &whole)).map_err(failed("rename", &partial))?;
        fault::point("spool_dir_sync");
        self.fs.sync_dir(dir).map_err(failed("sync the directory of", &whole))?;
        self.usage.bytes.fetch_add((head.len() + object.bytes.len()) as u64, Ordering::Relaxed);
        Ok(format!("{dir}/{whole}"))
    }

    fn write(&self, dir: &str, name: &str, parts: &[&[u8]]) -> io::Result<()> {
        fault::io("spool_write")?;
        let mut file = self.fs.create(dir, name)?;
        for part in parts {
            file.append(part)?;
        }
        fault::io("spool_sync")?;
        file.sync()
    }

    /// Whether an object is here: held, waiting, or put aside.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn has(&self, location: &Location, key: &str) -> Result<bool, SpoolError> {
        let name = name::name(key);
        let held = format!("{name}{HELD}");
        for base in [DIR, QUARANTINE] {
            let dir = dir_of(base, location);
            match self.fs.list(&dir) {
                Ok(items) if items.iter().any(|i| i.name == name || i.name == held) => return Ok(true),
                Err(e) if is_everybodys(&e) => return Err(failed("list", &dir)(e)),
                // Where there is no directory, there is no object.
                _ => {}
            }
        }
        Ok(false)
    }

    /// Lets held objects be delivered: the journal has them. One that is not here any more is fine.
    ///
    /// # Errors
    /// If one cannot be renamed.
    pub fn release(&self, location: &Location, keys: &[String]) -> Result<(), SpoolError> {
        let dir = dir_of(DIR, location);
        keys.iter().try_for_each(|key| self.release_name(&dir, &name::name(key)))
    }

    fn release_name(&self, dir: &str, name: &str) -> Result<(), SpoolError> {
        fault::point("spool_release");
        // Not synced: held or not, the bytes are durable, and a start releases all that are held.
        match self.fs.rename((dir, &format!("{name}{HELD}")), (dir, name)) {
            Err(e) if is_everybodys(&e) => Err(failed("rename", name)(e)),
            _ => Ok(()),
        }
    }

    /// Releases everything that is held: at a start, when the journal has been read.
    ///
    /// # Errors
    /// If one cannot be renamed.
    pub fn release_all(&self) -> Result<(), SpoolError> {
        self.each(DIR, &mut Vec::new(), |dir, item| match item.name.strip_suffix(HELD) {
            Some(name) => self.release_name(dir, name),
            None => Ok(()),
        })
    }

    /// All files waiting for delivery, oldest first.
    ///
    /// # Errors
    /// If a directory cannot be listed.
    pub fn entries(&self) -> Result<Vec<Entry>, SpoolError> {
        let entries = self.list(DIR)?;
        self.usage.oldest_ns.store(entries.first().map_or(0, |e| e.made_ns), Ordering::Relaxed);
        Ok(entries)
    }

    /// All files that were put aside, by an earlier agent as well, oldest first.
    ///
    /// # Errors
    /// If a directory cannot be listed.
    pub(crate) fn aside(&self) -> Result<Vec<Entry>, SpoolError> {
        self.list(QUARANTINE)
    }

    fn list(&self, base: &str) -> Result<Vec<Entry>, SpoolError> {
        let mut entries = Vec::new();
        self.each(base, &mut Vec::new(), |dir, item| {
            if !item.name.ends_with(PARTIAL)
                && !item.name.ends_with(HELD)
                && let Some((location, key)) = self.meant(dir, &item.name)
            {
                entries.push(Entry { location, key, bytes: item.bytes, made_ns: item.modified_ns });
            }
            Ok(())
        })?;
        entries.sort_by(|a, b| (a.made_ns, &a.key).cmp(&(b.made_ns, &b.key)));
        Ok(entries)
    }

    fn forget_head(&self, dir: &str, name: &str) {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner).remove(&format!("{dir}/{name}"));
    }

    /// What a file is: by its names, or by its first line where one of them is a digest.
    fn meant(&self, dir: &str, file: &str) -> Option<(Location, String)> {
        let target = dir.rsplit_once('/').map_or(dir, |(_, target)| target);
        if let (Some(target), Some(key)) = (name::meant(target), name::meant(file)) {
            return Some((name::location(&target)?, key));
        }
        let mut heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        let path = format!("{dir}/{file}");
        if !heads.contains_key(&path) {
            match self.fs.open(dir, file).and_then(|mut f| name::read_head(&mut *f)) {
                Ok(head) => drop(heads.insert(path.clone(), head)),
                Err(error) => tracing::error!(path, %error, "this file does not say what it is: left alone"),
            }
        }
        let head = heads.get(&path)?;
        Some((name::location(&head.location)?, head.key.clone()))
    }

    /// Whether nothing is waiting, held or not.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let mut any = false;
        let listed = self.each(DIR, &mut Vec::new(), |_, _| {
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
        let dir = dir_of(DIR, &entry.location);
        let name = name::name(&entry.key);
        let mut bytes = disk::read(&*self.fs, &dir, &name).map_err(failed("read", &entry.key))?;
        let head = name::head(&entry.location, &entry.key);
        if !bytes.starts_with(&head) {
            let other = io::Error::new(io::ErrorKind::InvalidData, "its first line is of another object");
            return Err(failed("read", &entry.key)(other));
        }
        bytes.drain(..head.len());
        Ok(bytes)
    }

    /// Forgets a delivered entry.
    ///
    /// # Errors
    /// If the file cannot be removed.
    pub(crate) fn remove(&self, entry: &Entry) -> Result<(), SpoolError> {
        fault::point("spool_unlink");
        let dir = dir_of(DIR, &entry.location);
        let name = name::name(&entry.key);
        self.fs.remove(&dir, &name).map_err(failed("remove", &entry.key))?;
        self.forget_head(&dir, &name);
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
        let from = dir_of(DIR, &entry.location);
        let to = dir_of(QUARANTINE, &entry.location);
        let name = name::name(&entry.key);
        self.fs.make_dir(&to).map_err(failed("make the directory", &to))?;
        self.fs.rename((&from, &name), (&to, &name)).map_err(failed("move to quarantine", &name))?;
        self.forget_head(&from, &name);
        self.fs.sync_dir(&to).map_err(failed("sync the directory of", &name))?;
        Ok(format!("{to}/{name}"))
    }

    /// Visits every regular file; collects names of what is not ours.
    fn each(
        &self,
        base: &str,
        foreign: &mut Vec<String>,
        mut visit: impl FnMut(&str, &Item) -> Result<(), SpoolError>,
    ) -> Result<(), SpoolError> {
        for target in self.fs.list(base).map_err(failed("list", base))? {
            let dir = format!("{base}/{}", target.name);
            // Where the name is a digest, each file says its location.
            let ours = name::meant(&target.name).is_none_or(|text| name::location(&text).is_some());
            if !ours || target.kind != Kind::Directory {
                foreign.push(dir);
                continue;
            }
            for item in self.fs.list(&dir).map_err(failed("list", &dir))? {
                if item.kind == Kind::File {
                    visit(&dir, &item)?;
                } else {
                    foreign.push(format!("{dir}/{}", item.name));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
