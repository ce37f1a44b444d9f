//! Files that the agent relies on: who else may read what is secret, or write what it obeys.
//!
//! The mode is asked of the opened file, so that what was looked at is what is read.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// What a file is to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A private key, or credentials. A group may read it, as with the keys of a certificate that several services share.
    Secret,
    /// What to do, or who may have it done: a configuration, an inventory, principals; or the directory of such files.
    Orders,
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error(transparent)]
    Unreadable(#[from] io::Error),
    #[error("is {bytes} bytes; at most {bytes_max} are read")]
    TooLarge { bytes: u64, bytes_max: u64 },
    /// A pipe, a device, a directory: whoever reads it may wait for ever.
    #[error("is no regular file")]
    NoFile,
    /// Others may do what they must not.
    #[error("mode {mode:04o} lets {others}; make it `{remedy} {}`", path.display())]
    Open {
        path: PathBuf,
        mode: u32,
        /// Who may do what, for the sentence: "others read it".
        others: &'static str,
        /// A command, without the path.
        remedy: &'static str,
    },
}

/// Checks what others may do with a file or directory.
///
/// # Errors
/// See [`TrustError`].
pub fn check(path: &Path, kind: Kind) -> Result<(), TrustError> {
    judge(path, kind, fs::metadata(path)?.mode())
}

/// Reads a text out of a regular file, if it can be relied on and is not too large. It never waits for anybody.
///
/// # Errors
/// See [`TrustError`].
pub fn read(path: &Path, kind: Kind, bytes_max: u64) -> Result<String, TrustError> {
    // Opening a pipe waits for somebody to write to it, unless this is said; for a file it means nothing.
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(TrustError::NoFile);
    }
    text(path, &file, kind, bytes_max)
}

/// As [`read`], of what somebody has named to a command: that may be a pipe (`--config <(make-config)`), and is waited for.
///
/// # Errors
/// See [`TrustError`].
pub fn read_named(path: &Path, kind: Kind, bytes_max: u64) -> Result<String, TrustError> {
    text(path, &fs::File::open(path)?, kind, bytes_max)
}

fn text(path: &Path, mut file: &fs::File, kind: Kind, bytes_max: u64) -> Result<String, TrustError> {
    let meta = file.metadata()?;
    judge(path, kind, meta.mode())?;
    let mut text = String::new();
    // A pipe has no size.
    let bytes = file.by_ref().take(bytes_max + 1).read_to_string(&mut text)? as u64;
    if bytes > bytes_max {
        return Err(TrustError::TooLarge { bytes: bytes.max(meta.len()), bytes_max });
    }
    Ok(text)
}

/// Who has write permission besides the owner: group and others.
const WRITE: u32 = 0o022;
/// Read permission of others.
const READ: u32 = 0o004;

fn judge(path: &Path, kind: Kind, mode: u32) -> Result<(), TrustError> {
    let (others, remedy) = match kind {
        Kind::Secret if mode & READ != 0 => ("others read it", "chmod 600"),
        Kind::Secret if mode & WRITE != 0 => ("others than its owner write to it", "chmod 600"),
        Kind::Orders if mode & WRITE != 0 => ("others than its owner write to it", "chmod go-w"),
        _ => return Ok(()),
    };
    Err(TrustError::Open { path: path.to_owned(), mode: mode & 0o7777, others, remedy })
}

/// What tells whether a file has changed, or who may do what with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    mode: u32,
}

/// A file's stamp, now.
///
/// # Errors
/// If there is no such file.
pub fn stamp(path: &Path) -> io::Result<Stamp> {
    let meta = fs::metadata(path)?;
    let modified = (meta.mtime(), meta.mtime_nsec());
    Ok(Stamp { inode: meta.ino(), bytes: meta.size(), modified, mode: meta.mode() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_others_may_read_or_write_is_refused_with_mode_and_remedy() {
        use Kind::{Orders, Secret};
        for (kind, mode, expected) in [
            (Secret, 0o600, None),
            (Secret, 0o400, None),
            (Secret, 0o640, None),
            (Secret, 0o644, Some("mode 0644 lets others read it; make it `chmod 600 /x`")),
            (Secret, 0o604, Some("mode 0604 lets others read it; make it `chmod 600 /x`")),
            (Secret, 0o660, Some("mode 0660 lets others than its owner write to it; make it `chmod 600 /x`")),
            (Secret, 0o602, Some("mode 0602 lets others than its owner write to it; make it `chmod 600 /x`")),
            (Orders, 0o600, None),
            (Orders, 0o644, None),
            (Orders, 0o755, None),
            (Orders, 0o664, Some("mode 0664 lets others than its owner write to it; make it `chmod go-w /x`")),
            (Orders, 0o646, Some("mode 0646 lets others than its owner write to it; make it `chmod go-w /x`")),
            // Others cannot remove files there, but they can add some.
            (Orders, 0o1777, Some("mode 1777 lets others than its owner write to it; make it `chmod go-w /x`")),
        ] {
            // As the kernel gives it: with the file's type.
            let said = judge(Path::new("/x"), kind, 0o100_000 | mode).err().map(|e| e.to_string());
            assert_eq!(said.as_deref(), expected, "{kind:?} {mode:o}");
        }
    }

    #[test]
    fn a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for() {
        let dir = tempfile::tempdir().expect("tempdir");
        let pipe = dir.path().join("pipe.toml");
        let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, kind, mode, 0).expect("a pipe");
        for kind in [Kind::Orders, Kind::Secret] {
            for path in [&*pipe, dir.path()] {
                assert!(matches!(read(path, kind, 5), Err(TrustError::NoFile)), "{}", path.display());
            }
        }
    }

    #[test]
    fn a_file_is_read_up_to_its_limit_and_its_stamp_has_its_mode() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), "12345").expect("write");
        assert_eq!(read(file.path(), Kind::Secret, 5).expect("private").as_str(), "12345");
        let long = read(file.path(), Kind::Orders, 4).expect_err("long").to_string();
        assert_eq!(long, "is 5 bytes; at most 4 are read");
        let before = stamp(file.path()).expect("there");
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o666)).expect("chmod");
        assert_ne!(stamp(file.path()).expect("there"), before);
        for kind in [Kind::Secret, Kind::Orders] {
            assert!(matches!(read(file.path(), kind, 5), Err(TrustError::Open { mode: 0o666, .. })), "{kind:?}");
        }
    }
}
