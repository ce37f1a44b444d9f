//! Durable files on their way to the store. File names alone tell their state; there is no second ledger.
//!
//! ```text
//! spool/<target>/<key>          complete and durable; deliver, then unlink
//! spool/<target>/<key>.partial  being written; a leftover is of a crash, and its records are still in the kernel
//! quarantine/<target>/<key>     the store holds other bytes under this key: needs a person
//! ```
//!
//! `<target>` and `<key>` have `/` and `%` percent-encoded. A file is written, synced, renamed, and its directory
//! synced: after that it survives a power cut.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::FlockOperation;

use crate::{
    encode::Object,
    rule::{Location, Target},
};

const PARTIAL: &str = ".partial";
/// Held by the agent that uses the state directory.
const LOCK: &str = "lock";
/// Longest file name that Linux file systems take.
const NAME_BYTES_MAX: usize = 255;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The file system refused.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another agent has the directory.
    #[error("state directory `{}` is in use by another agent; stop it, or give this one its own with `--state-dir`", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
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

/// A file waiting for delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Bucket or directory it goes to.
    pub location: Location,
    /// Object key.
    pub key: String,
    /// The file.
    pub path: PathBuf,
}

/// The spool directory.
#[derive(Clone, Debug)]
pub struct Spool {
    root: PathBuf,
    quarantine: PathBuf,
    /// Locked as long as anybody holds the spool: two agents would deliver each other's files.
    _lock: Arc<fs::File>,
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SpoolError {
    let path = path.to_owned();
    move |source| SpoolError::Io { action, path, source }
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

fn make_dir(path: &Path) -> Result<(), SpoolError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error("create directory", path))
}

fn sync_dir(path: &Path) -> Result<(), SpoolError> {
    fs::File::open(path).and_then(|d| d.sync_all()).map_err(io_error("sync directory", path))
}

impl Spool {
    /// Opens (and makes, mode 0700) the spool below `state_dir`.
    ///
    /// # Errors
    /// If the directories cannot be made, or another agent has them.
    pub fn open(state_dir: &Path) -> Result<Self, SpoolError> {
        let root = state_dir.join("spool");
        make_dir(&root)?;
        let path = state_dir.join(LOCK);
        let lock = fs::File::create(&path).map_err(io_error("create", &path))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { root, quarantine: state_dir.join("quarantine"), _lock: Arc::new(lock) }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(SpoolError::InUse { path: state_dir.to_owned() }),
            Err(error) => Err(io_error("lock", &path)(error.into())),
        }
    }

    /// Checks that objects for a target have a place here.
    ///
    /// # Errors
    /// [`SpoolError::TooLong`].
    pub fn check(target: &Target) -> Result<(), SpoolError> {
        escape(&location_name(&target.location)).map(drop)
    }

    /// Makes an object durable.
    ///
    /// # Errors
    /// If it could not be made durable; then nothing is left behind under its name.
    pub fn store(&self, location: &Location, object: &Object) -> Result<Entry, SpoolError> {
        let dir = self.root.join(escape(&location_name(location))?);
        if !dir.is_dir() {
            make_dir(&dir)?;
            sync_dir(&self.root)?;
        }
        let name = escape(&object.key)?;
        let (path, partial) = (dir.join(&name), dir.join(format!("{name}{PARTIAL}")));
        let write = || {
            let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
            file.write_all(&object.bytes)?;
            // An error here means the bytes may be lost: the file must not get its final name.
            file.sync_all()
        };
        write().map_err(io_error("write", &partial))?;
        fs::rename(&partial, &path).map_err(io_error("rename", &partial))?;
        sync_dir(&dir)?;
        Ok(Entry { location: location.clone(), key: object.key.clone(), path })
    }

    /// All files waiting, oldest first.
    ///
    /// # Errors
    /// If a directory cannot be listed.
    pub fn entries(&self) -> Result<Vec<Entry>, SpoolError> {
        let mut entries = Vec::new();
        for dir in list(&self.root)? {
            let Some(location) = dir.file_name().and_then(|n| n.to_str()).and_then(location_of) else { continue };
            for path in list(&dir)? {
                let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
                if name.ends_with(PARTIAL) || !path.is_file() {
                    continue;
                }
                let modified = path.metadata().and_then(|m| m.modified()).map_err(io_error("read", &path))?;
                entries.push((modified, Entry { location: location.clone(), key: unescape(name), path }));
            }
        }
        entries.sort_by(|a, b| (a.0, &a.1.key).cmp(&(b.0, &b.1.key)));
        Ok(entries.into_iter().map(|(_, entry)| entry).collect())
    }

    /// The bytes of an entry.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read(&self, entry: &Entry) -> Result<Vec<u8>, SpoolError> {
        fs::read(&entry.path).map_err(io_error("read", &entry.path))
    }

    /// Forgets a delivered entry.
    ///
    /// # Errors
    /// If the file cannot be removed.
    pub fn remove(&self, entry: &Entry) -> Result<(), SpoolError> {
        fs::remove_file(&entry.path).map_err(io_error("remove", &entry.path))
    }

    /// Puts an entry aside that the store will not take; returns where it is now.
    ///
    /// # Errors
    /// If it cannot be moved.
    pub fn quarantine(&self, entry: &Entry) -> Result<PathBuf, SpoolError> {
        let dir = self.quarantine.join(escape(&location_name(&entry.location))?);
        make_dir(&dir)?;
        let path = dir.join(escape(&entry.key)?);
        fs::rename(&entry.path, &path).map_err(io_error("move to quarantine", &entry.path))?;
        sync_dir(&dir)?;
        Ok(path)
    }
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, SpoolError> {
    let entries = fs::read_dir(dir).map_err(io_error("list", dir))?;
    let paths: io::Result<Vec<_>> = entries.map(|e| e.map(|e| e.path())).collect();
    let mut paths = paths.map_err(io_error("list", dir))?;
    paths.sort();
    Ok(paths)
}

fn location_name(location: &Location) -> String {
    Target { location: location.clone(), prefix: None }.to_string()
}

fn location_of(name: &str) -> Option<Location> {
    unescape(name).parse::<Target>().ok().filter(|t| t.prefix.is_none()).map(|t| t.location)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::RowCounts;

    fn object(key: &str) -> Object {
        Object { key: key.to_owned(), bytes: b"parquet".to_vec(), rows: RowCounts::default() }
    }

    #[test]
    fn a_restarted_agent_finds_every_complete_file_and_no_partial_one() {
        let dir = tempfile::tempdir().expect("tempdir");
        let bucket = Location::Bucket("flows".to_owned());
        let local = Location::Directory(PathBuf::from("/var/flow%logs"));
        let spool = Spool::open(dir.path()).expect("open");
        let stored = [
            spool.store(&bucket, &object("web/year=2026/a_1.parquet")).expect("store"),
            spool.store(&local, &object("web/b_2.parquet")).expect("store"),
        ];
        fs::write(stored[0].path.with_extension("parquet.partial"), b"torn").expect("write");

        let second = Spool::open(dir.path()).expect_err("one agent at a time").to_string();
        assert!(second.contains("is in use by another agent"), "{second}");
        drop(spool);
        let again = Spool::open(dir.path()).expect("open again");
        let mut found = again.entries().expect("entries");
        found.sort_by_key(|e| e.key.len());
        assert_eq!(found, [stored[1].clone(), stored[0].clone()]);
        assert_eq!(again.read(&found[0]).expect("read"), b"parquet");
        again.remove(&found[0]).expect("remove");
        let aside = again.quarantine(&found[1]).expect("quarantine");
        assert!(aside.is_file() && again.entries().expect("entries").is_empty());
    }

    #[test]
    fn a_target_too_long_for_a_file_name_is_refused_before_anything_is_captured() {
        let long = format!("/{}", "d/".repeat(100)).parse::<Target>().expect("target");
        assert!(Spool::check(&long).expect_err("too long").to_string().contains("too long"));
    }
}
