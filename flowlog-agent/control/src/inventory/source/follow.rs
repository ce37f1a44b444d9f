//! Looking again: each source on a thread of its own, which ends with the process. What fails is tried again, after longer and longer pauses.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{
    Look, Source,
    board::Board,
    last_said::LastSaid,
    libvirt::StatusFiles,
    names::{self, NamePattern},
    ovsdb::Database,
    spec::{SourcePlace, SourceSpec},
};
use crate::inventory::watch::Nudge;

/// Pause before a look that failed is tried again; twice as long after each failure, up to the longest. A VM that starts meanwhile is
/// captured so much later.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Pauses that grow.
struct Backoff(Duration);

impl Backoff {
    fn new() -> Self {
        Self(PAUSE_MIN)
    }

    fn next(&mut self) -> Duration {
        let now = self.0;
        self.0 = (now * 2).min(PAUSE_MAX);
        now
    }
}

/// All sources of a node: they have looked once.
pub struct Sources {
    specs: Vec<SourceSpec>,
    board: Board,
    /// Those that look by themselves, with their places on the board.
    looking: Vec<(usize, Box<dyn Source>)>,
    interfaces: Interfaces,
}

impl Sources {
    /// Has each look once, so that an agent that begins knows what the last one knew; where one does not answer, what it said last holds.
    /// `names` are those of the interfaces there are.
    #[must_use]
    pub fn open(specs: Vec<SourceSpec>, names: Vec<String>, last_said: Option<LastSaid>) -> Self {
        if let Some(last_said) = &last_said {
            last_said.keep_only(&specs);
        }
        let board = Board::of(&specs, last_said);
        let mut looking: Vec<(usize, Box<dyn Source>)> = Vec::new();
        let mut patterns = Vec::new();
        for (n, spec) in specs.iter().enumerate() {
            match &spec.place {
                SourcePlace::Names(all) => patterns.push((n, all.clone())),
                SourcePlace::Libvirt(dir) => looking.push((n, Box::new(StatusFiles::new(dir.clone())))),
                SourcePlace::Ovsdb(socket) => looking.push((n, Box::new(Database::new(socket.clone())))),
            }
        }
        for (n, source) in &mut looking {
            look(&mut **source, *n, &board);
        }
        board.silent().iter().for_each(|words| tracing::warn!("{words}"));
        let by_name = ByName { board: board.clone(), patterns, names: Vec::new(), nudge: None };
        let interfaces = Interfaces(Arc::new(Mutex::new(by_name)));
        interfaces.are(names);
        Self { specs, board, looking, interfaces }
    }

    /// What they are, in the order of the board.
    #[must_use]
    pub fn specs(&self) -> &[SourceSpec] {
        &self.specs
    }

    /// What they have found, now and later.
    #[must_use]
    pub fn board(&self) -> Board {
        self.board.clone()
    }

    /// Where to tell which interfaces there are.
    #[must_use]
    pub fn interfaces(&self) -> Interfaces {
        self.interfaces.clone()
    }

    /// Goes on looking; `nudge` has the inventory read again.
    ///
    /// # Errors
    /// If there can be no thread.
    pub fn follow(self, nudge: &Arc<Nudge>) -> io::Result<()> {
        self.interfaces.by_name().nudge = Some(nudge.clone());
        for (n, source) in self.looking {
            let (board, nudge) = (self.board.clone(), nudge.clone());
            let name = format!("source-{n}");
            std::thread::Builder::new().name(name).spawn(move || follow(source, n, &board, &nudge))?;
        }
        // What has changed between the first look and this one.
        nudge.nudge();
        Ok(())
    }
}

/// Whether the look was one, and whether it has found everything.
fn look(source: &mut dyn Source, n: usize, board: &Board) -> (Option<bool>, bool) {
    match source.look() {
        Ok(found) => {
            let is_whole = found.problems.is_empty();
            (Some(is_whole), board.found(n, found))
        }
        Err(error) => (None, board.failed(n, &error.to_string())),
    }
}

fn follow(mut source: Box<dyn Source>, n: usize, board: &Board, nudge: &Nudge) {
    let mut pause = Backoff::new();
    loop {
        let (looked, is_news) = look(&mut *source, n, board);
        if is_news {
            nudge.nudge();
        }
        let at_most = match looked {
            Some(true) => {
                pause = Backoff::new();
                None
            }
            Some(false) => Some(pause.next()),
            None => {
                std::thread::sleep(pause.next());
                continue;
            }
        };
        if let Err(error) = source.wait(at_most) {
            if board.failed(n, &error.to_string()) {
                nudge.nudge();
            }
            std::thread::sleep(pause.next());
        }
    }
}

/// Interfaces that sources know by their names.
struct ByName {
    board: Board,
    patterns: Vec<(usize, Vec<NamePattern>)>,
    /// Those that were there the last time.
    names: Vec<String>,
    nudge: Option<Arc<Nudge>>,
}

/// Where whoever captures tells which interfaces there are: it hears of each change anyway.
#[derive(Clone)]
pub struct Interfaces(Arc<Mutex<ByName>>);

impl Interfaces {
    fn by_name(&self) -> std::sync::MutexGuard<'_, ByName> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anybody wants to know.
    #[must_use]
    pub fn are_wanted(&self) -> bool {
        !self.by_name().patterns.is_empty()
    }

    /// These are there, and no others.
    pub fn are(&self, mut names: Vec<String>) {
        let mut by_name = self.by_name();
        names.sort_unstable();
        if by_name.names == names {
            return;
        }
        let mut is_news = false;
        for (n, patterns) in &by_name.patterns {
            let found: Look = names::find(patterns, names.iter().map(String::as_str));
            is_news |= by_name.board.found(*n, found);
        }
        by_name.names = names;
        if let Some(nudge) = by_name.nudge.as_ref().filter(|_| is_news) {
            nudge.nudge();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::source::spec::{RawSource, SourceKind};

    #[test]
    fn pauses_grow_up_to_the_longest() {
        let mut pause = Backoff::new();
        let pauses: Vec<Duration> = (0..8).map(|_| pause.next()).collect();
        assert_eq!((pauses[0], pauses[1], pauses[7]), (PAUSE_MIN, PAUSE_MIN * 2, PAUSE_MAX));
    }

    #[test]
    fn interfaces_that_come_and_go_are_found_and_not_found_any_more() {
        let mut raw = RawSource::of(SourceKind::Names);
        raw.patterns = vec![r"^tap(?<vm>\d+)i(?<nic>\d+)$".to_owned()];
        let sources = Sources::open(vec![raw.check().expect("a source")], vec!["lo".into(), "tap1i0".into()], None);
        let (board, interfaces) = (sources.board(), sources.interfaces());
        let found = || -> Vec<String> { board.get(0).0.iter().map(|n| n.interface.clone()).collect() };
        assert!(interfaces.are_wanted());
        assert_eq!(found(), ["tap1i0"]);
        interfaces.are(vec!["tap2i0".into(), "tap1i0".into(), "lo".into()]);
        assert_eq!(found(), ["tap1i0", "tap2i0"]);
        interfaces.are(vec!["lo".into()]);
        assert_eq!(found(), Vec::<String>::new());
    }
}
