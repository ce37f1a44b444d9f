//! What all sources have found, and how they are doing. Sources write it on threads of their own, whoever reads the inventory reads it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flowlog_model::figures::SourceFigures;

use super::{FoundNic, Look, last_said::LastSaid, spec::SourceSpec};

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
    /// Where it is asked, if it is.
    asked_at: Option<String>,
    /// NICs that it has named to an earlier agent, and not to this one: it has not said all there is yet.
    said_before: Vec<FoundNic>,
}

impl Entry {
    /// What there is once a look has found this: what was said to an earlier agent holds until a look finds everything.
    fn with_said_before(&mut self, mut look: Look) -> Look {
        if look.problems.is_empty() {
            self.said_before.clear();
        } else {
            let is_found = |nic: &FoundNic| look.nics.iter().any(|other| other.identity == nic.identity);
            let kept: Vec<FoundNic> = self.said_before.iter().filter(|nic| !is_found(nic)).cloned().collect();
            look.nics.extend(kept);
        }
        look
    }
}

/// See the module's head.
#[derive(Clone, Debug, Default)]
pub struct Board {
    entries: Arc<Mutex<Vec<Entry>>>,
    /// Where it is written down what sources say; nowhere, if nobody starts with it.
    last_said: Option<LastSaid>,
}

impl Board {
    /// With a place for each source, in which is what it said last.
    pub(super) fn of(specs: &[SourceSpec], last_said: Option<LastSaid>) -> Self {
        let entry = |s: &SourceSpec| {
            let asked_at = s.asked_at();
            let read = last_said.as_ref().zip(asked_at.as_deref()).map(|(l, place)| l.read(&s.name, place));
            let said_before = read.unwrap_or_default();
            let nics = Arc::new(said_before.clone());
            let (name, kind) = (s.name.clone(), s.kind().as_str());
            Entry { name, kind, nics, asked_at, said_before, ..Entry::default() }
        };
        let entries = Arc::new(Mutex::new(specs.iter().map(entry).collect()));
        Self { entries, last_said }
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        // Whoever panicked has written an entry or not; each is whole.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts down what a look has found; whether that is something else than before.
    pub(super) fn found(&self, n: usize, look: Look) -> bool {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(n) else { return false };
        let look = entry.with_said_before(look);
        let is_news_of_nics = *entry.nics != look.nics;
        let changed = *entry.nics != look.nics || entry.problems != look.problems;
        entry.failures += u64::from(look.problems.iter().any(|p| !entry.problems.contains(p)));
        if std::mem::take(&mut entry.is_down) {
            tracing::info!(source = entry.name, nics = look.nics.len(), "the source of the inventory answers again");
        }
        entry.nics = Arc::new(look.nics);
        entry.problems = look.problems;
        let written =
            entry.asked_at.clone().filter(|_| is_news_of_nics).map(|at| (entry.name.clone(), at, entry.nics.clone()));
        drop(entries);
        // Each source writes its own, one look after the other.
        if let Some((last_said, (name, at, nics))) = self.last_said.as_ref().zip(written) {
            last_said.write(&name, &at, &nics);
        }
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

    /// Sources that do not answer, each in a sentence.
    #[must_use]
    pub fn silent(&self) -> Vec<String> {
        let words = |e: &Entry| {
            let Entry { name, nics, problems, .. } = e;
            format!(
                "the source `{name}` of the inventory does not answer ({} NICs): {}",
                nics.len(),
                problems.join("; ")
            )
        };
        self.entries().iter().filter(|e| e.is_down).map(words).collect()
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
        let board = Board::of(&[spec], None);
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

    #[test]
    fn what_a_source_said_to_an_earlier_agent_holds_until_it_has_said_all_there_is() {
        let dir = tempfile::tempdir().expect("tempdir");
        let spec = RawSource::of(SourceKind::Libvirt).check().expect("a source");
        let board = || Board::of(std::slice::from_ref(&spec), Some(LastSaid::below(dir.path())));
        let pattern = NamePattern::new(r"^t(?<nic>\d)$").expect("a pattern");
        let look = |names: &[&str]| names::find(std::slice::from_ref(&pattern), names.iter().copied());
        let found = |board: &Board| -> Vec<String> { board.get(0).0.iter().map(|n| n.interface.clone()).collect() };
        assert!(board().found(0, look(&["t1", "t2"])));
        // It does not answer.
        let next = board();
        assert!(next.failed(0, "gone"));
        assert_eq!(
            (found(&next), next.get(0).1),
            (vec!["t1".to_owned(), "t2".to_owned()], vec!["gone; what it said before still holds".to_owned()])
        );
        assert!(next.silent()[0].contains("does not answer (2 NICs): gone"), "{:?}", next.silent());
        // It answers, and a part of it cannot be read.
        assert!(next.found(0, Look { problems: vec!["torn".to_owned()], ..look(&["t3", "t2"]) }));
        assert_eq!(found(&next), ["t3", "t2", "t1"]);
        assert!(next.found(0, look(&["t3"])) && next.silent().is_empty());
        assert_eq!(found(&next), ["t3"]);
        assert!(next.found(0, Look { problems: vec!["torn".to_owned()], ..look(&[]) }), "it has said all once");
        assert!(found(&next).is_empty());
    }
}
