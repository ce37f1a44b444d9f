//! The live capture: the books of the kernel's programs and hooks, and which interfaces they watch. Everything here runs on one
//! thread.
//!
//! * [`resolution`]: which interface each capture means;
//! * [`interfaces`]: following them as they come, go and move;
//! * [`numbering`]: what the programs must know to tell packets apart;
//! * [`hook_check`]: does an attached hook run?

mod hook_check;
mod interfaces;
mod numbering;
pub(crate) mod resolution;

use std::collections::BTreeMap;

use flowlog_model::{CaptureSpec, IfaceId, Now, WatchSpec, interface::NetDev, status::CaptureState, sweep::Scope};
use hook_check::HookCheck;
use resolution::Absent;

pub use crate::books::Inherited;
use crate::{
    books::{Books, Spans},
    error::CaptureError,
    journal::{JournalError, replay::Pending},
    source::{Node, NumberUsers, SourceError},
    window::{Closed, Event, Ledger},
};

/// What a capture is told at its start.
#[derive(Clone, Debug)]
pub struct Setup {
    /// What is to be captured.
    pub captures: Vec<CaptureSpec>,
    pub node_id: String,
    /// Flows in the open windows of all interfaces before the largest is written early.
    pub flows_max: usize,
}

/// What the next look at the interfaces waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    /// For a change: the kernel tells.
    Change,
    /// For the ring to have had its turn: there is more to hook.
    Turn,
    /// The last look could not do all there was to do.
    Trouble,
    /// An interface has just gone: it may be on its way to another namespace.
    Move,
    /// An interface is captured in another namespace: nobody tells when it changes.
    Elsewhere,
    /// One may be in another namespace.
    Sought,
}

impl Waiting {
    /// For how long at most; `None`: for ever.
    fn pause_ns(self) -> Option<u64> {
        match self {
            Self::Change => None,
            Self::Turn => Some(0),
            Self::Trouble | Self::Move => Some(200_000_000),
            Self::Elsewhere => Some(500_000_000),
            Self::Sought => Some(10_000_000_000),
        }
    }
}

/// An interface that was watched, and is not there any more.
struct Gone {
    since_secs: i64,
    spec: WatchSpec,
}

/// Interfaces whose hooks are checked at the same time: each costs a few system calls.
const CHECKED_PER_TICK: usize = 16;

/// See the module's head.
pub struct Capture<N> {
    books: Books<N>,
    checks: BTreeMap<IfaceId, Vec<HookCheck>>,
    flows_max: usize,
    /// What is to be captured, whether its interface is there or not.
    captures: Vec<CaptureSpec>,
    node_id: String,
    /// Interfaces that were watched and are gone, by id.
    gone: BTreeMap<String, Gone>,
    /// Last windows of earlier watches, by interface id: new ones must come after them.
    spans: Spans,
    /// What the next look at the interfaces waits for.
    waiting: Waiting,
    /// When the last one was.
    looked: Now,
    /// The interface whose hooks were checked last.
    checked: IfaceId,
    /// Pairs of stacked interfaces that the programs have no room for.
    unstacked: usize,
    /// Who else uses `skb->tc_index`.
    users: Option<NumberUsers>,
    /// Captures without an interface, and why, by interface id.
    absent: BTreeMap<String, Absent>,
    /// Captures whose interface is there and cannot be hooked, and why.
    troubles: BTreeMap<String, String>,
    /// The last windows are closed.
    is_closed: bool,
}

impl<N: Node> Capture<N> {
    /// Goes on where an earlier agent stopped, and watches what is configured.
    ///
    /// # Errors
    /// On the first thing that is not as configured; a capture that was not there before is not there afterwards.
    pub fn start(node: N, setup: Setup, inherited: Inherited) -> Result<(Self, Vec<Pending>), CaptureError> {
        let devices = node.interfaces()?;
        let (mut capture, pending, spans) = Self::open(node, setup, inherited)?;
        let first = capture.books.ledger.watched().next().is_none();
        capture.spans.extend(spans);
        let (found, sought) = capture.resolve(devices);
        capture.stack(&found)?;
        capture.number(&found);
        for why in found.absent.values() {
            match why {
                Absent::Waiting(why) => tracing::info!("{why}"),
                Absent::Taken(why) => tracing::warn!("{why}"),
            }
        }
        let strict = capture.captures.iter().filter(|c| !c.wait).map(|c| capture.id(c));
        let strict: Vec<String> = strict.collect();
        let looked = loop {
            match capture.watch_all(&found) {
                Ok(mut looked) => match strict.iter().find_map(|id| looked.troubles.remove(id)) {
                    Some(error) => break Err(error),
                    None if !looked.is_more || strict.is_empty() => break Ok(looked),
                    None => {}
                },
                Err(error) => break Err(error),
            }
        };
        match looked {
            Ok(looked) => capture.note_look(looked, found, sought),
            Err(error) => {
                if first {
                    // A capture that fails half-way is taken back: its pins would keep it. What it counted is in the journal.
                    let now = capture.books.source.now();
                    let _ = capture.finish(now);
                }
                return Err(error);
            }
        }
        Ok((capture, pending))
    }

    /// Takes over what an earlier agent left in the kernel and in the journal, only to end it.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn take_over(node: N, setup: Setup, inherited: Inherited) -> Result<(Self, Vec<Pending>), CaptureError> {
        let (mut capture, pending, _) = Self::open(node, setup, inherited)?;
        let node = &mut capture.books.source;
        // Only links that we hold can be taken away in the right order.
        node.attach_verdict()?;
        let devices = node.interfaces()?;
        for (_, w) in capture.books.ledger.watched() {
            if let Some(dev) = still_there(&devices, &w.spec) {
                take_over(node, &w.spec, dev)?;
            }
        }
        Ok((capture, pending))
    }

    /// Everything up to, and without, deciding what is watched.
    fn open(node: N, setup: Setup, inherited: Inherited) -> Result<(Self, Vec<Pending>, Spans), CaptureError> {
        let Setup { captures, node_id, flows_max } = setup;
        let now = node.now();
        let (books, pending, spans) = Books::open(node, inherited, now)?;
        let capture = Self {
            books,
            checks: BTreeMap::new(),
            flows_max,
            captures,
            node_id,
            gone: BTreeMap::new(),
            spans: Spans::new(),
            waiting: Waiting::Change,
            looked: now,
            checked: IfaceId(0),
            unstacked: 0,
            users: None,
            absent: BTreeMap::new(),
            troubles: BTreeMap::new(),
            is_closed: false,
        };
        Ok((capture, pending, spans))
    }

    /// The kernel's side, to look at.
    #[must_use]
    pub fn node(&self) -> &N {
        &self.books.source
    }

    /// Time until the next window must be closed.
    #[must_use]
    pub fn due_in_ns(&self, now: Now) -> u64 {
        self.books.ledger.watched().map(|(_, w)| w.clock.due_in_ns(now)).min().unwrap_or(u64::MAX)
    }

    /// Takes up to `most` blocks from the ring into their windows; returns how many.
    pub fn drain(&mut self, most: usize) -> usize {
        self.books.drain(most)
    }

    /// Makes what was drained durable.
    ///
    /// # Errors
    /// If it cannot be; see [`Books::commit`].
    pub fn commit(&mut self) -> Result<(), JournalError> {
        self.books.commit()
    }

    /// Says in the journal that the host is up, if it has not for `every_ns`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn beat(&mut self, now: Now, every_ns: u64) -> Result<(), JournalError> {
        if self.books.since_beat_ns(now) < every_ns { Ok(()) } else { self.books.beat(now) }
    }

    /// Objects are durable in the spool.
    ///
    /// # Errors
    /// If the journal cannot say so.
    pub fn done(&mut self, keys: &[String]) -> Result<(), JournalError> {
        self.books.done(keys)
    }

    /// Closes every window that is due; if all together hold too many flows, the largest as well.
    ///
    /// # Errors
    /// If the kernel or the journal refuses.
    pub fn turn_due(&mut self, now: Now) -> Result<(), CaptureError> {
        let ledger = &self.books.ledger;
        let crowded = ledger.flows() > self.flows_max;
        let largest = ledger.watched().max_by_key(|(_, w)| w.flows()).filter(|_| crowded).map(|(id, _)| id);
        let due: Vec<(IfaceId, bool)> = ledger
            .watched()
            .filter(|(id, w)| w.clock.is_due(now) || largest == Some(*id))
            .map(|(id, w)| (id, !w.clock.is_due(now)))
            .collect();
        let unfinished = ledger.watched().any(|(_, w)| w.closing_epoch().is_some());
        if due.is_empty() && !unfinished { Ok(()) } else { self.books.turn(&due, now, Scope::Closed) }
    }

    /// Windows closed since the last call.
    pub fn take_closed(&mut self) -> Vec<Closed> {
        let closed = self.books.take_closed();
        for window in &closed {
            self.check_window(window);
        }
        closed
    }

    /// At the end of a window: was a hook by-passed all the time?
    fn check_window(&mut self, window: &Closed) {
        let Some(truth) = &window.truth else { return };
        let of = |w: &crate::window::ledger::Watched| w.spec.interface_id == window.info.interface_id;
        let Some((id, w)) = self.books.ledger.watched().find(|(_, w)| of(w)) else { return };
        for check in self.checks.get_mut(&id).into_iter().flatten() {
            check.window_closed(&self.books.source, &w.spec, truth);
        }
    }

    /// Takes the hooks away and closes all windows; nothing of us stays in the kernel.
    ///
    /// # Errors
    /// If the kernel or the journal refuses; another call goes on with what was not done.
    pub fn finish(&mut self, now: Now) -> Result<(), CaptureError> {
        let ids: Vec<IfaceId> = self.books.ledger.watched().map(|(id, _)| id).collect();
        if !self.is_closed {
            let devices = self.devices()?;
            self.end_accounting(&ids, &devices);
            self.books.source.detach_all()?;
            let all: Vec<(IfaceId, bool)> = ids.iter().map(|id| (*id, false)).collect();
            self.books.turn(&all, now, Scope::All)?;
            self.is_closed = true;
        }
        let events: Vec<Event> = ids.iter().map(|id| Event::Unwatch { id: *id }).collect();
        self.books.record(&events)?;
        Ok(self.books.source.remove_pins()?)
    }

    /// After [`finish`](Self::finish), when all objects are delivered: removes the journal.
    pub fn end(&mut self) {
        self.books.end();
    }

    /// Whether hooks and maps outlive this process.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.books.source.is_pinned()
    }

    /// Looks whether hooks that have not been seen running yet are.
    pub fn check_hooks(&mut self) {
        // Some at a time, in turns: on most of many interfaces nothing happens for long.
        let open = |p: &(&IfaceId, &mut Vec<HookCheck>)| !p.1.iter().all(HookCheck::is_settled);
        let last = self.checked;
        let in_turn = |id: &IfaceId| (*id <= last, *id);
        let mut waiting: Vec<(&IfaceId, &mut Vec<HookCheck>)> = self.checks.iter_mut().filter(open).collect();
        waiting.sort_by_key(|(id, _)| in_turn(id));
        for (id, checks) in waiting.into_iter().take(CHECKED_PER_TICK) {
            self.checked = *id;
            let Some(w) = self.books.ledger.get(*id) else { continue };
            if let Ok(truth) = self.books.source.truth(*id, w.epoch) {
                for check in checks {
                    check.look(&self.books.source, &w.spec, &truth);
                }
            }
        }
    }

    /// How every capture is doing, by interface id.
    #[must_use]
    pub fn states(&self) -> BTreeMap<String, CaptureState> {
        let mut states: BTreeMap<String, CaptureState> = BTreeMap::new();
        for (id, why) in &self.absent {
            states.insert(id.clone(), why.state());
        }
        for (_, w) in self.books.ledger.watched() {
            states.insert(w.spec.interface_id.clone(), attached(&w.spec));
        }
        for (id, why) in &self.troubles {
            states.insert(id.clone(), CaptureState::Trouble { why: why.clone() });
        }
        states
    }

    /// Id of a capture's interface, as in records and keys.
    #[must_use]
    pub(crate) fn id(&self, capture: &CaptureSpec) -> String {
        capture.id(&self.node_id)
    }

    #[must_use]
    pub(crate) fn node_id(&self) -> &str {
        &self.node_id
    }

    /// What is to be captured.
    #[must_use]
    pub(crate) fn captures(&self) -> &[CaptureSpec] {
        &self.captures
    }

    /// The books, to look at.
    #[must_use]
    pub(crate) fn ledger(&self) -> &Ledger {
        &self.books.ledger
    }
}

/// Takes an earlier agent's hooks over, to take them away. Where that cannot be, somebody else is in their place, and there are none.
fn take_over<N: Node>(node: &mut N, spec: &WatchSpec, dev: &NetDev) -> Result<(), SourceError> {
    match node.hook(spec, dev) {
        Err(SourceError::Interface(error)) => {
            tracing::warn!(interface = spec.interface, %error, "has no hooks of ours to take away");
            Ok(())
        }
        other => other.map(drop),
    }
}

/// The state of a spec that is watched.
fn attached(spec: &WatchSpec) -> CaptureState {
    let WatchSpec { interface, ifindex, netns, .. } = spec;
    CaptureState::Attached { interface: interface.clone(), ifindex: *ifindex, netns: netns.clone() }
}

/// The interface of a spec, if it is still the same one. One that is gone has taken its hooks along.
fn still_there<'a>(devices: &'a [NetDev], spec: &WatchSpec) -> Option<&'a NetDev> {
    devices.iter().find(|dev| dev.index == spec.ifindex && dev.netns.inum == spec.netns_inum)
}
