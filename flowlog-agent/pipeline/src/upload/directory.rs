//! A local directory as a store: create-only, durable, and without leftovers that a reader of the directory could take
//! for objects. (`object_store`'s own leaves `KEY#1` beside `KEY` when it is killed at the wrong moment, and data set
//! readers take both.)

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, RenameFlags};

/// A directory that objects are put into.
#[derive(Clone, Debug)]
pub(super) struct Directory(PathBuf);

impl Directory {
    /// Opens it; made if its parent exists.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        match fs::create_dir(path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        if !fs::metadata(path)?.is_dir() {
            return Err(io::Error::from(io::ErrorKind::NotADirectory));
        }
        Ok(Self(path.to_owned()))
    }

    /// Stores an object that must not exist yet; it is durable when this returns.
    pub(crate) fn create(&self, key: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.0.join(key);
        let (parent, name) = path.parent().zip(path.file_name()).ok_or(io::ErrorKind::InvalidInput)?;
        self.make(parent)?;
        // Readers skip names that begin with a dot. The next try writes to the same one.
        let partial = parent.join(format!(".{}.partial", name.to_string_lossy()));
        let mut file = fs::File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        if let Err(e) = rustix::fs::renameat_with(CWD, &partial, CWD, &path, RenameFlags::NOREPLACE) {
            let _ = fs::remove_file(&partial);
            return Err(e.into());
        }
        sync(parent)
    }

    /// Shows that files can be written below `folder`, by one that never has a name: a kill leaves nothing.
    pub(crate) fn probe(&self, folder: &str, bytes: &[u8]) -> io::Result<()> {
        let dir = self.0.join(folder);
        self.make(&dir)?;
        let mut file = tempfile::tempfile_in(&dir)?;
        file.write_all(bytes)?;
        file.sync_all()
    }

    /// Makes a directory and what is missing above it; durable when this returns.
    fn make(&self, dir: &Path) -> io::Result<()> {
        let mut made = dir;
        let mut missing = Vec::new();
        while !made.exists() {
            missing.push(made);
            made = made.parent().ok_or(io::ErrorKind::NotFound)?;
        }
        for dir in missing.iter().rev() {
            match fs::create_dir(dir) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => sync(dir.parent().unwrap_or(&self.0))?,
            }
        }
        Ok(())
    }

    /// The bytes of an object.
    pub(crate) fn read(&self, key: &str) -> io::Result<Vec<u8>> {
        fs::read(self.0.join(key))
    }
}

fn sync(dir: &Path) -> io::Result<()> {
    fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_leaves_nothing_and_fails_where_nothing_can_be_written() {
        let dir = tempfile::tempdir().expect("tempdir");
        let store = Directory::open(&dir.path().join("objects")).expect("open");
        store.probe("p/web", b"probe").expect("probe");
        assert_eq!(fs::read_dir(dir.path().join("objects/p/web")).expect("list").count(), 0);
        fs::write(dir.path().join("objects/file"), b"in the way").expect("write");
        store.probe("file/web", b"probe").expect_err("a file where a directory is needed");
    }

    #[test]
    fn an_object_is_created_once_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().expect("tempdir");
        let store = Directory::open(&dir.path().join("objects")).expect("open");
        store.create("a/b/c.parquet", b"one").expect("create");
        let again = store.create("a/b/c.parquet", b"two").expect_err("exists");
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(store.read("a/b/c.parquet").expect("read"), b"one");
        assert_eq!(fs::read_dir(dir.path().join("objects/a/b")).expect("list").count(), 1);
        fs::write(dir.path().join("objects/a/b/.d.parquet.partial"), b"torn").expect("write");
        store.create("a/b/d.parquet", b"whole").expect("create");
        assert_eq!(fs::read_dir(dir.path().join("objects/a/b")).expect("list").count(), 2);
    }
}
