//! The status files of libvirt's running domains, by inotify(7). libvirt writes them for itself, to know its domains after it has been
//! restarted: a file comes when a domain starts, is replaced when it changes, and goes when it stops. No library, no call to the daemon.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use flowlog_host::trust::{self, Kind as FileKind, Stamp, TrustError, stamp};

use super::{FoundNic, Look, NICS_MAX, Source, SourceError, domain};
use crate::inventory::watch;

/// Largest file that is read: one of a domain with two hundred devices has 200 KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Domains that are looked at: more than any node runs.
const DOMAINS_MAX: usize = 4_096;

/// What a file said the last time.
#[derive(Debug)]
struct Read {
    stamp: Stamp,
    nics: Vec<FoundNic>,
    /// Why it could not be read since.
    problem: Option<String>,
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct StatusFiles {
    dir: PathBuf,
    /// Tells of changes in the directory.
    changes: Option<OwnedFd>,
    read: BTreeMap<PathBuf, Read>,
}

impl StatusFiles {
    /// Those of this directory.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir, changes: None, read: BTreeMap::new() }
    }

    fn unreadable(&self, source: io::Error) -> SourceError {
        SourceError::Unreadable { path: self.dir.clone(), source }
    }

    /// The files there are, by name.
    fn files(&self) -> Result<Vec<PathBuf>, SourceError> {
        trust::check(&self.dir, FileKind::Orders).map_err(|source| match source {
            TrustError::Unreadable(source) => self.unreadable(source),
            source => SourceError::Open { path: self.dir.clone(), source },
        })?;
        let entries = fs::read_dir(&self.dir).map_err(|e| self.unreadable(e))?;
        let mut files: Vec<PathBuf> = Vec::new();
        for entry in entries {
            let path = entry.map_err(|e| self.unreadable(e))?.path();
            if path.extension().is_some_and(|e| e == "xml") {
                files.push(path);
            }
        }
        files.sort_unstable();
        Ok(files)
    }

    /// Reads a file if it has changed. One that is gone in between is no problem: that is another change.
    fn read_again(&mut self, path: &Path) {
        let now = match stamp(path) {
            Ok(now) => now,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.read.remove(path);
                return;
            }
            Err(error) => return self.note_problem(path, error.to_string()),
        };
        if self.read.get(path).is_some_and(|r| r.stamp == now) {
            return;
        }
        let text = trust::read(path, FileKind::Orders, FILE_BYTES_MAX).map_err(|e| e.to_string());
        match text.and_then(|text| domain::nics(&text)) {
            Ok(nics) => drop(self.read.insert(path.to_owned(), Read { stamp: now, nics, problem: None })),
            Err(words) => {
                self.note_problem(path, words);
                // It is read again when it has changed: whoever is writing it is not done.
                self.read.entry(path.to_owned()).and_modify(|r| r.stamp = now);
            }
        }
    }

    fn note_problem(&mut self, path: &Path, words: String) {
        if let Some(before) = self.read.get_mut(path) {
            before.problem = Some(words);
        } else if let Ok(stamp) = stamp(path) {
            self.read.insert(path.to_owned(), Read { stamp, nics: Vec::new(), problem: Some(words) });
        }
    }
}

impl Source for StatusFiles {
    fn look(&mut self) -> Result<Look, SourceError> {
        // Watched before it is read: what changes in between is seen by the next look.
        if self.changes.is_none() {
            self.changes = Some(watch::folder(&self.dir).map_err(|e| self.unreadable(e))?);
        }
        let files = self.files().inspect_err(|_| self.changes = None)?;
        let mut problems = Vec::new();
        if files.len() > DOMAINS_MAX {
            problems.push(format!("{}: domains past the first {DOMAINS_MAX} are left out", self.dir.display()));
        }
        let files = &files[..files.len().min(DOMAINS_MAX)];
        self.read.retain(|path, _| files.contains(path));
        for path in files {
            self.read_again(path);
        }
        let mut nics = Vec::new();
        for (path, read) in &self.read {
            nics.extend(read.nics.iter().cloned());
            if let Some(words) = &read.problem {
                let kept = if read.nics.is_empty() { "" } else { "; what it said before still holds" };
                problems.push(format!("{}: {words}{kept}", path.display()));
            }
        }
        if nics.len() > NICS_MAX {
            problems.push(format!("{}: NICs past the first {NICS_MAX} are left out", self.dir.display()));
            nics.truncate(NICS_MAX);
        }
        Ok(Look { nics, problems })
    }

    fn wait(&mut self, at_most: Option<Duration>) -> Result<(), SourceError> {
        let Some(changes) = &self.changes else { return Ok(()) };
        let is_gone = watch::wait_for_change(changes, at_most).map_err(|e| self.unreadable(e.into()))?;
        if is_gone {
            // The next look says so, or finds one that has been made in its place.
            self.changes = None;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn status(vm: u8, target: &str) -> String {
        format!(
            "<domstatus><domain><name>vm{vm}</name><uuid>7d2b0d3a-4f5e-4a60-8f57-3a1f2f3c00{vm:02}</uuid><devices>\
             <interface type='bridge'><mac address='52:54:00:00:00:{vm:02}'/><target dev='{target}'/></interface>\
             </devices></domain></domstatus>"
        )
    }

    fn interfaces(look: &Look) -> Vec<&str> {
        look.nics.iter().map(|n| n.interface.as_str()).collect()
    }

    #[test]
    fn domains_come_change_tear_and_go() {
        let dir = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| dir.path().join(name);
        let mut source = StatusFiles::new(dir.path().to_owned());
        assert_eq!(source.look().expect("empty"), Look::default());
        fs::write(at("a.xml"), status(1, "tap1")).expect("write");
        fs::write(at("a.pid"), "7").expect("write");
        fs::write(at("b.xml.new"), "half").expect("write");
        source.wait(None).expect("a change");
        assert_eq!(interfaces(&source.look().expect("a look")), ["tap1"]);
        // Torn: what it said before holds, and so does the next file.
        fs::write(at("a.xml"), &status(1, "tap1")[..80]).expect("write");
        fs::write(at("b.xml"), status(2, "tap2")).expect("write");
        source.wait(None).expect("a change");
        let torn = source.look().expect("a look");
        assert_eq!(interfaces(&torn), ["tap1", "tap2"]);
        assert!(torn.problems.len() == 1 && torn.problems[0].contains("a.xml"), "{torn:?}");
        assert!(torn.problems[0].ends_with("what it said before still holds"), "{torn:?}");
        assert_eq!(source.look().expect("a look"), torn, "it stays so while the file does");
        fs::write(at("a.xml"), status(1, "tap9")).expect("write");
        fs::remove_file(at("b.xml")).expect("remove");
        source.wait(None).expect("a change");
        let whole = source.look().expect("a look");
        assert_eq!((interfaces(&whole), whole.problems.len()), (vec!["tap9"], 0));
    }

    #[test]
    fn a_directory_that_is_not_there_or_that_others_may_write_is_an_error_until_it_is_good() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("qemu");
        let mut source = StatusFiles::new(path.clone());
        assert!(source.look().expect_err("absent").to_string().contains("No such file"));
        fs::create_dir(&path).expect("a folder");
        fs::write(path.join("a.xml"), status(1, "tap1")).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("chmod");
        assert!(source.look().expect_err("open").to_string().contains("chmod go-w"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("chmod");
        assert_eq!(interfaces(&source.look().expect("good")), ["tap1"]);
        // It goes, and another one comes.
        fs::remove_dir_all(&path).expect("remove");
        source.wait(None).expect("a change");
        assert!(source.look().is_err());
        fs::create_dir(&path).expect("a folder");
        fs::write(path.join("b.xml"), status(2, "tap2")).expect("write");
        assert_eq!(interfaces(&source.look().expect("good")), ["tap2"]);
    }
}
