//! Files that are read while they are written.

use std::{fs, path::Path};

/// Writes a file as tools should: beside it, and then in its place. Whoever reads it finds all of the old one or all of the new one.
///
/// # Errors
/// If it cannot be written.
pub fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let partial = path.with_added_extension("partial");
    fs::write(&partial, text)?;
    Ok(fs::rename(partial, path)?)
}
