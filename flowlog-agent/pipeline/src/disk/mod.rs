//! The file system, as far as journal and spool use it: directories below a state directory.
//!
//! * [`real`]: the real one;
//! * [`sim`]: one in memory that forgets what was not synced, and fails on demand (tests).
//!
//! Bytes of a file are durable after [`File::sync`], names after [`Filesystem::sync_dir`]. Callers that forget one
//! of the two are found out by the simulation.

pub mod real;
#[cfg(test)]
pub(crate) mod sim;

use std::io::{self, Read};

/// What a directory holds under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    /// Anything else (symbolic link, device, socket): never ours.
    Foreign,
}

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub name: String,
    pub kind: Kind,
    pub bytes: u64,
    /// When it was last written to, ns since 1970.
    pub modified_ns: i64,
}

/// A file being written.
pub trait File: Send {
    /// Appends all of `bytes`. After an error, some of them may have been written.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes what was appended durable. After an error nothing is known about it, and a second call proves nothing
    /// (the kernel has dropped the pages): write the bytes to another file.
    fn sync(&mut self) -> io::Result<()>;
}

/// Operations on a state directory. `dir` is the path of a directory in it, `""` the state directory itself.
pub trait Filesystem: Send + Sync {
    /// Makes a directory, for us alone, and its name durable. One that exists is fine.
    fn make_dir(&self, dir: &str) -> io::Result<()>;
    /// Everything in a directory, sorted by name.
    fn list(&self, dir: &str) -> io::Result<Vec<Item>>;
    /// Makes a file, for us alone; an old one of that name is emptied.
    fn create(&self, dir: &str, name: &str) -> io::Result<Box<dyn File>>;
    fn open(&self, dir: &str, name: &str) -> io::Result<Box<dyn Read>>;
    /// Renames within a directory, or into another one.
    fn rename(&self, from: (&str, &str), to: (&str, &str)) -> io::Result<()>;
    fn remove(&self, dir: &str, name: &str) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;
}

/// A whole file.
///
/// # Errors
/// As [`Filesystem::open`].
pub(crate) fn read(fs: &dyn Filesystem, dir: &str, name: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs.open(dir, name)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}
