//! One agent at a time: locks on directories, and who holds them.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use rustix::fs::FlockOperation;

/// Locks a directory until the result is dropped.
///
/// # Errors
/// If somebody else has it: says who.
pub fn take(dir: &Path) -> io::Result<fs::File> {
    let handle = fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(dir)?;
    match rustix::fs::flock(&handle, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(handle),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let who = holder(dir).map_or_else(|| "another process".to_owned(), describe);
            Err(io::Error::new(io::ErrorKind::ResourceBusy, format!("in use by {who}")))
        }
        Err(error) => Err(error.into()),
    }
}

/// The process that holds the lock of a directory, from `/proc/locks` (`fs/locks.c`:
/// `1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF`).
#[must_use]
pub fn holder(dir: &Path) -> Option<i32> {
    let meta = fs::metadata(dir).ok()?;
    let device = meta.dev();
    let inode = meta.ino();
    let place = format!("{:02x}:{:02x}:{inode}", rustix::fs::major(device), rustix::fs::minor(device));
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let of = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.iter().position(|w| *w == place)?;
        (words.contains(&"FLOCK") && !words.contains(&"->")).then(|| words.get(at - 1)?.parse().ok())?
    };
    locks.lines().find_map(of)
}

/// A process in words.
fn describe(pid: i32) -> String {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<String> =
        command.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).take(2).collect();
    match words.join(" ").trim() {
        "" => format!("process {pid}"),
        words => format!("process {pid} ({words})"),
    }
}

/// Checks that a directory is ours and nobody else can write to it or look inside.
///
/// # Errors
/// If it belongs to somebody else, is a link, or cannot be made private.
pub fn private_dir(dir: &Path) -> io::Result<()> {
    let meta = fs::symlink_metadata(dir)?;
    if !meta.is_dir() {
        return Err(io::Error::other("it is not a directory (or a symbolic link to one)"));
    }
    if meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other(format!("it belongs to user {}; change its owner or use another", meta.uid())));
    }
    if meta.mode() & 0o077 != 0 {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}
