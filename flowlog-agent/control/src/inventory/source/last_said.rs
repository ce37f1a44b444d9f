//! What each source said last, in the state directory: an agent that starts while a source does not answer goes on with that, and ends no capture.
//!
//! Only of sources that are asked: which interfaces there are the kernel always says. And only until the next boot of the host: no interface that
//! was meant outlives it, and another one may have its name.

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
};

use flowlog_host::trust::{self, Kind, TrustError};
use serde::{Deserialize, Serialize};

use super::{FoundNic, spec::SourceSpec};

/// Directory of the files, one for each source.
const FOLDER: &str = "sources";
/// Largest file that is read: 10,000 NICs with all the labels there can be.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Changes with each boot of the host.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A file. What was said at another place is another source's.
#[derive(Serialize, Deserialize)]
struct Page<N> {
    boot_id: String,
    place: String,
    nics: N,
}

/// See the module's head.
#[derive(Clone, Debug)]
pub struct LastSaid {
    dir: PathBuf,
    boot_id: String,
}

impl LastSaid {
    /// In this state directory.
    #[must_use]
    pub fn below(state_dir: &Path) -> Self {
        let boot_id = fs::read_to_string(BOOT_ID).unwrap_or_default();
        Self { dir: state_dir.join(FOLDER), boot_id }
    }

    fn file(&self, source: &str) -> PathBuf {
        self.dir.join(format!("{source}.json"))
    }

    /// What a source said last; nothing, if it has said nothing yet.
    pub(super) fn read(&self, source: &str, place: &str) -> Vec<FoundNic> {
        let path = self.file(source);
        let text = match trust::read(&path, Kind::Orders, FILE_BYTES_MAX) {
            Ok(text) => text,
            Err(TrustError::Unreadable(error)) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
            Err(error) => return said_nothing(&path, &error),
        };
        match serde_json::from_str::<Page<Vec<FoundNic>>>(&text) {
            Ok(page) if page.place == place && page.boot_id == self.boot_id => page.nics,
            Ok(_) => Vec::new(),
            Err(error) => said_nothing(&path, &error),
        }
    }

    /// Writes down what a source says. That it cannot be is no reason to stop: it is missed only by an agent that starts while the source does
    /// not answer.
    pub(super) fn write(&self, source: &str, place: &str, nics: &[FoundNic]) {
        let path = self.file(source);
        if let Err(error) = self.replace(&path, &Page { boot_id: self.boot_id.clone(), place: place.to_owned(), nics })
        {
            tracing::warn!(source, %error, "cannot write down what the source says: `{}`", path.display());
        }
    }

    fn replace(&self, path: &Path, page: &Page<&[FoundNic]>) -> io::Result<()> {
        if !self.dir.exists() {
            fs::create_dir(&self.dir)?;
        }
        let beside = path.with_extension("partial");
        let mut file = fs::File::create(&beside)?;
        file.write_all(&serde_json::to_vec(page)?)?;
        // A power cut leaves this one or the one before.
        file.sync_all()?;
        fs::rename(beside, path)
    }

    /// Forgets sources that are not configured any more.
    pub(super) fn keep_only(&self, specs: &[SourceSpec]) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().filter_map(Result::ok) {
            let path = entry.path();
            if !specs.iter().any(|spec| self.file(&spec.name) == path) {
                let _ = fs::remove_file(path);
            }
        }
    }
}

/// Says why nothing is known.
fn said_nothing(path: &Path, error: &dyn std::fmt::Display) -> Vec<FoundNic> {
    tracing::warn!("what the source said last is not known: `{}`: {error}", path.display());
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::source::{
        names::{self, NamePattern},
        spec::{RawSource, SourceKind},
    };

    #[test]
    fn what_a_source_said_is_known_again_of_it_at_its_place_until_the_host_boots_and_of_no_other() {
        let dir = tempfile::tempdir().expect("tempdir");
        let last_said = LastSaid::below(dir.path());
        assert!(last_said.read("libvirt", "/a").is_empty());
        let pattern = NamePattern::new(r"^(?<project>[a-z])(?<nic>\d)$").expect("a pattern");
        let mut nics = names::find(&[pattern], ["t1", "t2"].into_iter()).nics;
        nics[0].mac = Some("52:54:00:00:00:01".parse().expect("an address"));
        nics[0].labels.insert("vm".into(), "web \"1\"".to_owned());
        last_said.write("libvirt", "/a", &nics);
        assert_eq!(last_said.read("libvirt", "/a"), nics);
        assert!(last_said.read("libvirt", "/b").is_empty(), "another place");
        assert!(last_said.read("ovsdb", "/a").is_empty(), "another source");
        last_said.write("libvirt", "/a", &nics[..1]);
        assert_eq!(last_said.read("libvirt", "/a"), nics[..1]);
        let rebooted = LastSaid { boot_id: "another".to_owned(), ..last_said.clone() };
        assert!(rebooted.read("libvirt", "/a").is_empty(), "before the boot");
        fs::write(last_said.file("libvirt"), "{").expect("write");
        assert!(last_said.read("libvirt", "/a").is_empty(), "torn");
        let spec = RawSource::of(SourceKind::Ovsdb).check().expect("a source");
        last_said.write("ovsdb", "/o", &nics);
        last_said.keep_only(&[spec]);
        assert_eq!(fs::read_dir(dir.path().join(FOLDER)).expect("a list").count(), 1);
        assert_eq!(last_said.read("ovsdb", "/o"), nics);
    }
}
