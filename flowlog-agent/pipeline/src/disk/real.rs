//! The real file system, reached through a handle of the state directory: whatever is renamed or replaced around it,
//! and whatever links somebody plants in it, we never leave it.

use std::{
    fs,
    io::{self, Read, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::DirBuilderExt as _,
    },
    path::Path,
    thread,
};

use flowlog_host::lock;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};

use super::{File, Filesystem, Item, Kind};

#[derive(Debug)]
pub struct Disk {
    root: OwnedFd,
}

const PRIVATE_DIR: Mode = Mode::RWXU;
/// From this size on giving back what a file takes is left to another thread: a segment of the journal, of hundreds of MiB, takes a tenth of a
/// second, in which nobody would empty the ring.
const LARGE_BYTES: i64 = 16 << 20;

impl Disk {
    /// Opens a state directory, and makes it if need be (mode 0700).
    ///
    /// # Errors
    /// If it is not a directory, or not ours.
    pub fn open(path: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        lock::private_dir(path)?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        Ok(Self { root: rustix::fs::open(path, flags, Mode::empty())? })
    }

    /// A directory below the state directory. No part of it may be a link.
    fn dir(&self, dir: &str) -> io::Result<OwnedFd> {
        let path = if dir.is_empty() { "." } else { dir };
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        Ok(rustix::fs::openat2(&self.root, path, flags, Mode::empty(), within)?)
    }
}

/// A file on it.
struct Written(fs::File);

impl File for Written {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }
}

impl Filesystem for Disk {
    fn make_dir(&self, dir: &str) -> io::Result<()> {
        let (up, name) = dir.rsplit_once('/').unwrap_or(("", dir));
        match rustix::fs::mkdirat(self.dir(up)?, name, PRIVATE_DIR) {
            // The name of one that exists may not be durable yet either.
            Ok(()) | Err(rustix::io::Errno::EXIST) => self.sync_dir(up)?,
            Err(e) => return Err(e.into()),
        }
        self.dir(dir).map(drop)
    }

    fn list(&self, dir: &str) -> io::Result<Vec<Item>> {
        let handle = self.dir(dir)?;
        let mut items = Vec::new();
        for entry in Dir::read_from(&handle)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if name == "." || name == ".." {
                continue;
            }
            let stat = match rustix::fs::statat(&handle, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(rustix::io::Errno::NOENT) => continue, // removed meanwhile
                Err(e) => return Err(e.into()),
            };
            let kind = match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => Kind::File,
                FileType::Directory => Kind::Directory,
                _ => Kind::Foreign,
            };
            let modified_ns = stat
                .st_mtime
                .saturating_mul(1_000_000_000)
                .saturating_add(i64::try_from(stat.st_mtime_nsec).unwrap_or(0));
            items.push(Item {
                name: name.to_owned(),
                kind,
                bytes: u64::try_from(stat.st_size).unwrap_or(0),
                modified_ns,
            });
        }
        items.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(items)
    }

    fn create(&self, dir: &str, name: &str) -> io::Result<Box<dyn File>> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(self.dir(dir)?, name, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(Box::new(Written(file.into())))
    }

    fn open(&self, dir: &str, name: &str) -> io::Result<Box<dyn Read>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file: fs::File = rustix::fs::openat(self.dir(dir)?, name, flags, Mode::empty())?.into();
        Ok(Box::new(file))
    }

    fn rename(&self, from: (&str, &str), to: (&str, &str)) -> io::Result<()> {
        let old = self.dir(from.0)?;
        let new = self.dir(to.0)?;
        Ok(rustix::fs::renameat(old.as_fd(), from.1, new.as_fd(), to.1)?)
    }

    fn remove(&self, dir: &str, name: &str) -> io::Result<()> {
        let dir = self.dir(dir)?;
        // What is open when its name goes gives its room back when it is closed.
        let bytes = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).map_or(0, |stat| stat.st_size);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = (bytes >= LARGE_BYTES).then(|| rustix::fs::openat(&dir, name, flags, Mode::empty()));
        rustix::fs::unlinkat(dir, name, AtFlags::empty())?;
        if let Some(Ok(open)) = open {
            // Without a thread it is closed here.
            let _ = thread::Builder::new().name("give-back".to_owned()).spawn(move || drop(open));
        }
        Ok(())
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        Ok(rustix::fs::fsync(self.dir(dir)?)?)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn nothing_outside_the_state_directory_is_reached_through_links() {
        let outside = tempfile::tempdir().expect("tempdir");
        let inside = tempfile::tempdir().expect("tempdir");
        fs::write(outside.path().join("secret"), b"secret").expect("write");
        let disk = Disk::open(inside.path()).expect("open");
        disk.make_dir("spool").expect("make");
        symlink(outside.path(), inside.path().join("linked")).expect("link");
        symlink(outside.path().join("secret"), inside.path().join("spool/file")).expect("link");
        assert!(disk.make_dir("linked").is_err());
        assert!(disk.list("linked").is_err() && disk.open("linked", "secret").is_err());
        assert!(disk.open("spool", "file").is_err() && disk.create("spool", "file").is_err());
        assert!(disk.list("../").is_err());
        let kinds: Vec<_> = disk.list("spool").expect("list").into_iter().map(|i| i.kind).collect();
        assert_eq!(kinds, [Kind::Foreign]);
        assert_eq!(fs::read(outside.path().join("secret")).expect("read"), b"secret");
    }

    #[test]
    fn what_is_removed_is_gone_at_once_however_large() {
        let dir = tempfile::tempdir().expect("tempdir");
        let disk = Disk::open(dir.path()).expect("open");
        for (name, bytes) in [("small", 1), ("large", 2 * LARGE_BYTES.cast_unsigned())] {
            fs::File::create(dir.path().join(name)).and_then(|file| file.set_len(bytes)).expect("make");
            disk.remove("", name).expect("remove");
            assert!(disk.list("").expect("list").is_empty(), "{name}");
            assert_eq!(disk.remove("", name).expect_err("gone").kind(), io::ErrorKind::NotFound);
        }
    }

    #[test]
    fn a_state_directory_is_private_and_a_link_to_one_is_refused() {
        let dir = tempfile::tempdir().expect("tempdir");
        let state = dir.path().join("state");
        let link = dir.path().join("link");
        fs::create_dir(&state).expect("make");
        fs::set_permissions(&state, fs::Permissions::from_mode(0o777)).expect("chmod");
        Disk::open(&state).expect("open");
        assert_eq!(fs::metadata(&state).expect("stat").permissions().mode() & 0o777, 0o700);
        symlink(&state, &link).expect("link");
        assert!(Disk::open(&link).is_err());
    }
}
