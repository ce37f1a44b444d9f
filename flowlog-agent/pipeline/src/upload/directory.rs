//! A local directory as a store: create-only, durable, and without leftovers that a reader of the directory could take
//! for objects. (`object_store`'s own leaves `KEY#1` beside `KEY` when it is killed at the wrong moment, and data set
//! readers take both; no upstream issue is known as of 2026-11.)
//!
//! The directory may belong to somebody else, and the agent may be root. So every step is relative to a handle and follows no
//! link, and nothing has a name that could be guessed before it is whole: a file without a name (`O_TMPFILE`) is written, synced, and
//! linked to its name, which must be free. Where the file system has no such files, one with a random name takes its place.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
    path::{Component, Components, Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, RenameFlags},
    io::Errno,
};
use uuid::Uuid;

/// Mode of directories and files, less the umask: what lands is for others to read.
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o777);
const FILE_MODE: Mode = Mode::from_raw_mode(0o666);

/// A directory that objects are put into.
#[derive(Clone, Debug)]
pub(super) struct Directory(PathBuf);

/// A file that is whole, and has no name, or one that nobody knows.
struct Written {
    file: File,
    name: Option<String>,
}

impl Directory {
    /// Opens it; made if its parent exists.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        match fs::create_dir(path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        let dir = Self(path.to_owned());
        dir.root()?;
        Ok(dir)
    }

    /// Stores an object that must not exist yet; it is durable when this returns.
    pub(crate) fn create(&self, key: &str, bytes: &[u8]) -> io::Result<()> {
        let (folder, name) = split(key)?;
        let dir = self.folder(folder, true)?;
        let Written { file, name: partial } = write(&dir, bytes)?;
        match partial {
            None => {
                let proc = format!("/proc/self/fd/{}", file.as_raw_fd());
                rustix::fs::linkat(CWD, proc, &dir, name, AtFlags::SYMLINK_FOLLOW)?;
            }
            Some(partial) => {
                if let Err(e) = rustix::fs::renameat_with(&dir, &partial, &dir, name, RenameFlags::NOREPLACE) {
                    let _ = rustix::fs::unlinkat(&dir, &partial, AtFlags::empty());
                    return Err(e.into());
                }
            }
        }
        Ok(rustix::fs::fsync(&dir)?)
    }

    /// Shows that files can be written below `folder`, or where it would be made, by one that never has a name: a kill leaves nothing.
    pub(crate) fn probe(&self, folder: &str, bytes: &[u8]) -> io::Result<()> {
        let (dir, _) = self.deepest(Path::new(folder).components())?;
        match write(&dir, bytes)?.name {
            Some(partial) => Ok(rustix::fs::unlinkat(&dir, &partial, AtFlags::empty())?),
            None => Ok(()),
        }
    }

    /// The bytes of an object.
    pub(crate) fn read(&self, key: &str) -> io::Result<Vec<u8>> {
        let (folder, name) = split(key)?;
        let dir = self.folder(folder, false)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut bytes = Vec::new();
        File::from(rustix::fs::openat(&dir, name, flags, Mode::empty())?).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// The directory as it is now: it may have been mounted, or moved away, since the last time.
    fn root(&self) -> io::Result<OwnedFd> {
        Ok(rustix::fs::open(&self.0, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// The last directory of these steps that is there, and the steps that are not.
    fn deepest<'a>(&self, mut steps: Components<'a>) -> io::Result<(OwnedFd, Components<'a>)> {
        let mut dir = self.root()?;
        loop {
            let rest = steps.clone();
            let Some(step) = steps.next() else { return Ok((dir, rest)) };
            match enter(&dir, step) {
                Ok(next) => dir = next,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((dir, rest)),
                Err(e) => return Err(e),
            }
        }
    }

    /// A directory below it, step by step; what is missing is made, and durable, if `make` says so.
    fn folder(&self, folder: &Path, make: bool) -> io::Result<OwnedFd> {
        let (mut dir, missing) = self.deepest(folder.components())?;
        for step in missing {
            if make {
                match rustix::fs::mkdirat(&dir, normal(step)?, DIRECTORY_MODE) {
                    Ok(()) | Err(Errno::EXIST) => rustix::fs::fsync(&dir)?,
                    Err(e) => return Err(e.into()),
                }
            }
            dir = enter(&dir, step)?;
        }
        Ok(dir)
    }
}

/// A directory in another one; links are not followed.
fn enter(dir: impl AsFd, step: Component<'_>) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, normal(step)?, flags, Mode::empty())?)
}

/// A step that goes down, and nowhere else.
fn normal(step: Component<'_>) -> io::Result<&OsStr> {
    if let Component::Normal(step) = step { Ok(step) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// Folder and name of a key.
fn split(key: &str) -> io::Result<(&Path, &str)> {
    let (folder, name) = key.rsplit_once('/').unwrap_or(("", key));
    if name.is_empty() || name == "." || name == ".." {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok((Path::new(folder), name))
}

/// Writes bytes into a new file of a directory; they are durable when this returns, its name is not.
fn write(dir: impl AsFd, bytes: &[u8]) -> io::Result<Written> {
    let dir = dir.as_fd();
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let (file, name) = match rustix::fs::openat(dir, ".", flags | OFlags::TMPFILE, FILE_MODE) {
        // What file systems without such files say: some do not know the flag, and see a directory to be written to.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
            // Readers skip names that begin with a dot.
            let name = format!(".{}.partial", Uuid::new_v4());
            let exclusive = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
            (rustix::fs::openat(dir, name.as_str(), exclusive, FILE_MODE)?, Some(name))
        }
        opened => (opened?, None),
    };
    let mut file = File::from(file);
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if let (Err(_), Some(name)) = (&written, &name) {
        let _ = rustix::fs::unlinkat(dir, name.as_str(), AtFlags::empty());
    }
    written.map(|()| Written { file, name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_leaves_nothing_and_fails_where_nothing_can_be_written() {
        let dir = tempfile::tempdir().expect("tempdir");
        let store = Directory::open(&dir.path().join("objects")).expect("open");
        store.probe("p/web", b"probe").expect("probe");
        assert_eq!(fs::read_dir(dir.path().join("objects")).expect("list").count(), 0, "no folder, either");
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
    }

    #[test]
    fn links_that_somebody_has_put_there_are_not_followed() {
        let dir = tempfile::tempdir().expect("tempdir");
        let store = Directory::open(&dir.path().join("objects")).expect("open");
        let at = |name: &str| dir.path().join("objects").join(name);
        let secret = dir.path().join("secret");
        fs::write(&secret, b"root's").expect("write");
        fs::create_dir_all(at("a")).expect("make");
        std::os::unix::fs::symlink(&secret, at("a/x.parquet")).expect("link");
        std::os::unix::fs::symlink(&secret, at("a/.x.parquet.partial")).expect("link");
        std::os::unix::fs::symlink(dir.path(), at("b")).expect("link");
        // The name is taken, by whatever it is.
        let taken = store.create("a/x.parquet", b"ours").expect_err("taken");
        assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
        store.read("a/x.parquet").expect_err("a link");
        store.create("b/y.parquet", b"ours").expect_err("a link");
        store.probe("b", b"probe").expect_err("a link");
        store.create("../y.parquet", b"ours").expect_err("outside");
        store.create("a/z.parquet", b"ours").expect("create");
        assert_eq!(fs::read(&secret).expect("read"), b"root's");
        assert!(!dir.path().join("y.parquet").exists());
    }
}
