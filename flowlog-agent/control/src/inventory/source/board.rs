//! What all sources have found, and how they are doing. Sources write it on threads of their own, whoever reads the inventory reads it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flowlog_model::figures::SourceFigures;

use super::{FoundNic, Look, spec::SourceSpec};

/// What one source has found so far.
#[derive(Clone, Debug, Default)]
struct Entry {
    name: String,
    kind: &'static str,
    nics: Arc<Vec<FoundNic>>,
    /// What is wrong, each on one line.
    problems: Vec<String>,
    /// The last look found nothing, for a reason that is among the problems.
    is_down: bool,
    failures: u64,
}

/// See the module's head.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Mutex<Vec<Entry>>>);

impl Board {
    /// With a place for each source, in which nothing is yet.
    pub(super) fn of(specs: &[SourceSpec]) -> Self {
        let entry = |s: &SourceSpec| Entry { name: s.name.clone(), kind: s.kind().as_str(), ..Entry::default() };
        Self(Arc::new(Mutex::new(specs.iter().map(entry).collect())))
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        // Whoever panicked has written an entry or not; each is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts down what a look has found; whether that is something else than before.
    pub(super) fn found(&self, n: usize, look: Look) -> bool {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(n) else { return false };
        let changed = *entry.nics != look.nics || entry.problems != look.problems;
        entry.failures += u64::from(look.problems.iter().any(|p| !entry.problems.contains(p)));
        if std::mem::take(&mut entry.is_down) {
            tracing::info!(source = entry.name, nics = look.nics.len(), "the source of the inventory answers again");
        }
        entry.nics = Arc::new(look.nics);
        entry.problems = look.problems;
        changed
    }

    /// Puts down that a look has failed; what was found before still holds. Whether that is news.
    pub(super) fn failed(&self, n: usize, words: &str) -> bool {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(n) else { return false };
        entry.failures += 1;
        let kept = if entry.nics.is_empty() { "" } else { "; what it said before still holds" };
        let problems = vec![format!("{words}{kept}")];
        let is_news = !std::mem::replace(&mut entry.is_down, true) || entry.problems != problems;
        entry.problems = problems;
        is_news
    }

    /// What a source has found, and what is wrong with it.
    pub(in crate::inventory) fn get(&self, n: usize) -> (Arc<Vec<FoundNic>>, Vec<String>) {
        self.entries().get(n).map(|e| (e.nics.clone(), e.problems.clone())).unwrap_or_default()
    }

    /// How each source is doing, for monitoring.
    #[must_use]
    pub fn figures(&self) -> Vec<SourceFigures> {
        let figures = |e: &Entry| SourceFigures {
            name: e.name.clone(),
            kind: e.kind,
            is_up: !e.is_down && e.problems.is_empty(),
            nics: e.nics.len(),
            failures: e.failures,
        };
        self.entries().iter().map(figures).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::source::{
        names::{self, NamePattern},
        spec::{RawSource, SourceKind},
    };

    #[test]
    fn a_source_that_fails_keeps_what_it_has_found_and_says_so_once() {
        let spec = RawSource::of(SourceKind::Libvirt).check().expect("a source");
        let board = Board::of(&[spec]);
        assert!(board.failed(0, "gone") && !board.failed(0, "gone"), "news once");
        assert_eq!(board.get(0).1, ["gone"]);
        let look = || names::find(&[NamePattern::new(r"^t(?<nic>\d)$").expect("a pattern")], ["t1"].into_iter());
        assert!(board.found(0, look()) && !board.found(0, look()));
        assert!(board.failed(0, "gone"));
        let (nics, problems) = board.get(0);
        assert_eq!((nics.len(), problems[0].as_str()), (1, "gone; what it said before still holds"));
        let [SourceFigures { is_up: false, nics: 1, failures: 3, kind: "libvirt", .. }] = &board.figures()[..] else {
            panic!("{:?}", board.figures())
        };
        assert!(board.found(0, look()) && board.figures()[0].is_up);
    }
}
