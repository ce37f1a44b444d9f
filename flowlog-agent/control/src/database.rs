//! A database in a file, as stores on a node's disk have it: for its owner alone, and never through a link.

use std::{fs::OpenOptions, os::unix::fs::OpenOptionsExt as _, path::Path};

use redb::{Database, backends::FileBackend};

/// Opens the file, or makes it. What a crash interrupted is as if it had not begun.
///
/// # Errors
/// If it is no database, or cannot be opened or locked.
pub(crate) fn open(path: &Path) -> Result<Database, redb::Error> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    Ok(Database::builder().create_with_backend(FileBackend::new(file)?)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn a_file_is_its_owners_alone_and_a_link_is_refused() {
        let dir = tempfile::tempdir().expect("tempdir");
        let [file, link] = ["a.redb", "b.redb"].map(|name| dir.path().join(name));
        drop(open(&file).expect("made"));
        let mode = std::fs::metadata(&file).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        symlink(&file, &link).expect("a link");
        assert!(open(&link).is_err());
        drop(open(&file).expect("again"));
    }
}
