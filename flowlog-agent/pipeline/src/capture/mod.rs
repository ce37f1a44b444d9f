//! The live capture: the books of the kernel's programs, and who keeps them in step with the interfaces. Everything here runs on one
//! thread.
//!
//! * [`watcher`]: which interfaces are watched, as they come, go and move; [`waiting`]: when it looks again;
//! * [`hooks`]: the hooks on them, and the moment from which packets count;
//! * [`hook_check`]: does an attached hook run? [`hidden`]: what keeps packets from it;
//! * [`resolution`]: which interface each capture means;
//! * [`behind`]: which neighbours are behind which ports;
//! * [`shown`]: what those see who look at live flows; [`figures`]: what programs have counted so far;
//! * [`numbering`]: what the programs must know to tell packets apart.
//!
//! Each part owns what it remembers, and is handed the books when it needs them. [`Capture`] says in which order they act.

mod behind;
mod change;
mod figures;
mod hidden;
mod hook_check;
mod hooks;
mod numbering;
pub(crate) mod resolution;
mod shown;
mod waiting;
mod watcher;

use std::collections::BTreeMap;

use behind::Behind;
use flowlog_model::{
    CaptureSpec, IfaceId, Now, figures::CaptureFigures, hiding::Hiding, status::CaptureState, sweep::Scope,
};
use hidden::Hidden;
use hooks::{devices, end_accounting, still_there, take_over};
use numbering::Numbering;
use resolution::Absent;
use watcher::{Looked, Watcher, follow};

pub use crate::books::{Inherited, Load};
use crate::{
    books::Books,
    error::CaptureError,
    journal::{JournalError, replay::Pending},
    live::tap::Tap,
    source::Node,
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

/// See the module's head.
pub struct Capture<N> {
    books: Books<N>,
    watcher: Watcher,
    numbering: Numbering,
    hidden: Hidden,
    behind: Behind,
    flows_max: usize,
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
        let (mut capture, pending) = Self::open(node, setup, inherited)?;
        let Self { books, watcher, numbering, behind, .. } = &mut capture;
        let first = books.ledger.watched().next().is_none();
        let (found, sought) = watcher.resolve(books, devices);
        numbering.stack(&mut books.source, &found)?;
        numbering.number(books, &found);
        behind.stack(&found);
        for why in found.absent.values() {
            match why {
                Absent::Waiting(why) => tracing::info!("{why}"),
                Absent::Taken(why) => tracing::warn!("{why}"),
            }
        }
        match watcher.watch_first(books, &found, numbering) {
            Ok(looked) => {
                watcher.look_at_xdp(books, |spec| found.device(spec))?;
                watcher.note_look(books, looked, found, sought);
                capture.look_at_hidden();
                capture.look_behind(capture.books.source.now())?;
            }
            Err(error) => {
                if first {
                    // A capture that fails half-way is taken back: its pins would keep it. What it counted is in the journal.
                    let now = books.source.now();
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
        let (mut capture, pending) = Self::open(node, setup, inherited)?;
        // Only links that we hold can be taken away in the right order.
        capture.books.source.attach_verdict()?;
        let devices = devices(&capture.books)?;
        let Books { source, ledger, .. } = &mut capture.books;
        for (_, w) in ledger.watched() {
            if let Some(dev) = still_there(&devices, &w.spec) {
                take_over(source, &w.spec, dev)?;
            }
        }
        Ok((capture, pending))
    }

    /// Everything up to, and without, deciding what is watched.
    fn open(node: N, setup: Setup, inherited: Inherited) -> Result<(Self, Vec<Pending>), CaptureError> {
        let Setup { captures, node_id, flows_max } = setup;
        let now = node.now();
        let (books, pending, spans) = Books::open(node, inherited, now)?;
        let watcher = Watcher::new(captures, node_id, spans, now);
        let hidden = Hidden::new(now);
        let (numbering, behind) = (Numbering::default(), Behind::default());
        Ok((Self { books, watcher, numbering, hidden, behind, flows_max, is_closed: false }, pending))
    }

    /// Flows in open windows before the largest is written early: so many from now on.
    pub fn limit_flows(&mut self, flows_max: usize) {
        self.flows_max = flows_max;
    }

    /// The kernel's side, to look at.
    #[must_use]
    pub fn node(&self) -> &N {
        &self.books.source
    }

    /// The same, to be told what a reload has changed of it.
    pub fn node_mut(&mut self) -> &mut N {
        &mut self.books.source
    }

    /// Shows live flows through this from now on.
    pub fn show(&mut self, mut tap: Tap) {
        tap.name(self.captures(), self.node_id());
        self.books.tap = tap;
    }

    /// Does what is due for those who look at live flows.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub fn look_live(&mut self, now: Now) -> Result<(), CaptureError> {
        shown::look(&mut self.books, now)
    }

    /// Time until [`look_live`](Self::look_live) has something to do, if nobody comes.
    #[must_use]
    pub fn look_live_in_ns(&self, now: Now) -> u64 {
        self.books.tap.due_in_ns(now)
    }

    /// Time until the next window must be closed.
    #[must_use]
    pub fn due_in_ns(&self, now: Now) -> u64 {
        self.books.ledger.watched().map(|(_, w)| w.clock.due_in_ns(now)).min().unwrap_or(u64::MAX)
    }

    /// When the first of the open windows ends, Unix seconds; `None`: nothing is watched.
    #[must_use]
    pub fn first_end_secs(&self) -> Option<i64> {
        self.books.ledger.watched().map(|(_, w)| w.clock.current().end_secs).min()
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
        let ids: Vec<IfaceId> = due.iter().map(|(id, _)| *id).filter(|id| self.watcher.hooked.has(*id)).collect();
        self.hidden.look_at(&mut self.books, &ids);
        if due.is_empty() && !unfinished { Ok(()) } else { self.books.turn(&due, now, Scope::Closed) }
    }

    /// Windows closed since the last call.
    pub fn take_closed(&mut self) -> Vec<Closed> {
        let mut closed = self.books.take_closed();
        for window in &mut closed {
            if window.truth.is_some_and(|t| t.verdict.iter().flatten().any(|v| v.refused.packets > 0)) {
                let (ifindex, netns) = &window.place;
                window.info.foreign = self.books.source.foreign(*ifindex, netns);
            }
            window.info.hiding = self.hidden.turn(&window.info.interface_id);
            self.watcher.hooked.window_closed(&self.books, window);
        }
        closed
    }

    /// Takes the hooks away and closes all windows; nothing of us stays in the kernel.
    ///
    /// # Errors
    /// If the kernel or the journal refuses; another call goes on with what was not done.
    pub fn finish(&mut self, now: Now) -> Result<(), CaptureError> {
        let ids: Vec<IfaceId> = self.books.ledger.watched().map(|(id, _)| id).collect();
        if !self.is_closed {
            self.look_at_hidden();
            let devices = devices(&self.books)?;
            end_accounting(&mut self.books, &ids, &devices, self.numbering.no_numbers());
            self.books.source.detach_all()?;
            let all: Vec<(IfaceId, bool)> = ids.iter().map(|id| (*id, false)).collect();
            self.books.turn(&all, now, Scope::All)?;
            self.is_closed = true;
        }
        let events: Vec<Event> = ids.iter().map(|id| Event::Unwatch { id: *id }).collect();
        self.books.record(&events)?;
        Ok(self.books.source.remove_pins()?)
    }

    /// The agent ends, and the capture goes on in the kernel.
    pub fn leave(&mut self) {
        self.books.source.leave_xdp();
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

    /// Changes what is to be captured.
    ///
    /// # Errors
    /// As [`look_at_interfaces`](Self::look_at_interfaces).
    pub fn want(&mut self, captures: Vec<CaptureSpec>) -> Result<(), CaptureError> {
        self.watcher.want(captures);
        self.books.tap.name(&self.watcher.captures, &self.watcher.node_id);
        self.look_at_interfaces()
    }

    /// Looks at the interfaces again: stops watching those that are gone or not wanted any more, and watches those that
    /// have come (back).
    ///
    /// # Errors
    /// If the kernel or the journal refuses. An interface that cannot be hooked is no error: it may be gone already, and is
    /// tried again.
    pub fn look_at_interfaces(&mut self) -> Result<(), CaptureError> {
        let Self { books, watcher, numbering, behind, .. } = self;
        let now = books.source.now();
        let unfinished = watcher.begin_look(now);
        let devices = match books.source.interfaces() {
            Ok(devices) => devices,
            Err(error) => {
                tracing::warn!(%error, "will try again");
                return Ok(());
            }
        };
        let (found, sought) = watcher.resolve(books, devices);
        numbering.stack(&mut books.source, &found)?;
        follow(books, &found)?;
        numbering.number(books, &found);
        behind.stack(&found);
        let looked = if found.is_watched(&books.ledger) && !unfinished {
            Looked::default()
        } else {
            watcher.note_gone(&books.ledger, &found, now);
            watcher.watch_all(books, &found, numbering)?
        };
        watcher.look_at_xdp(books, |spec| found.device(spec))?;
        watcher.note_look(books, looked, found, sought);
        self.look_behind(now)
    }

    /// Neighbours have come, gone or moved: they are looked at soon.
    pub fn neighbours_changed(&mut self) {
        self.behind.expect();
    }

    /// Looks which neighbours are behind which ports, if that may have changed.
    ///
    /// # Errors
    /// If the kernel does not take it.
    pub fn look_behind(&mut self, now: Now) -> Result<(), CaptureError> {
        Ok(self.behind.look(&mut self.books, now)?)
    }

    /// Looks whether other people's XDP programs have come or gone, if it is time to do so without having been told.
    ///
    /// # Errors
    /// If the journal cannot say so. Interfaces that cannot be looked at are no error: they are looked at again.
    pub fn look_at_xdp(&mut self, now: Now) -> Result<(), CaptureError> {
        let Self { books, watcher, .. } = self;
        if !watcher.is_xdp_due(now) {
            return Ok(());
        }
        let Ok(devices) = books.source.interfaces() else { return Ok(()) };
        watcher.look_at_xdp(books, |spec| still_there(&devices, spec))
    }

    /// Looks what may keep packets from the hooks, if it is time to.
    pub fn look_at_hiding(&mut self, now: Now) {
        if self.hidden.is_due(now) {
            self.look_at_hidden();
        }
    }

    fn look_at_hidden(&mut self) {
        let Self { books, watcher, hidden, .. } = self;
        hidden.look(books, |id| watcher.hooked.has(id));
    }

    /// What may keep packets from the hooks of an interface.
    #[must_use]
    pub(crate) fn hiding(&self, interface_id: &str) -> Hiding {
        self.hidden.now(interface_id)
    }

    /// As [`look_at_interfaces`](Self::look_at_interfaces), if it is time to do so without having been told.
    ///
    /// # Errors
    /// As there.
    pub fn look_again(&mut self, now: Now) -> Result<(), CaptureError> {
        if self.look_in_ns(now) == 0 { self.look_at_interfaces() } else { Ok(()) }
    }

    /// Time until [`look_again`](Self::look_again) has something to do: the last look could not do all there was to do, or
    /// an interface is, or may be, where nobody tells us that it changes.
    #[must_use]
    pub fn look_in_ns(&self, now: Now) -> u64 {
        self.watcher.look_in_ns(now)
    }

    /// Time until [`look_behind`](Self::look_behind) has something to do.
    #[must_use]
    pub fn look_behind_in_ns(&self, now: Now) -> u64 {
        self.behind.look_in_ns(now)
    }

    /// Whether the wanted watches stand, as far as their interfaces are there and can be hooked.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.watcher.is_complete()
    }

    /// How captures would be doing if these, and no others, were wanted. Looks as [`want`](Self::want) does, and changes nothing.
    ///
    /// # Errors
    /// If the kernel does not say which interfaces there are.
    pub fn would_be(&self, captures: &[CaptureSpec]) -> Result<BTreeMap<String, CaptureState>, CaptureError> {
        self.watcher.would_be(&self.books, captures)
    }

    /// Whether, from now on, a capture ends where the next one of its interface cannot follow without missing packets, and that one begins anew with
    /// a gap; else it goes on, and the change waits. It does end, until this is said.
    pub fn take_gaps(&mut self, takes: bool) {
        self.watcher.takes_gaps = takes;
    }

    /// Whether the interface of a capture goes on under the rule that it had, as the next one could not follow.
    #[must_use]
    pub fn is_held(&self, id: &str) -> bool {
        self.watcher.held.contains(id)
    }

    /// Where a capture would have to end before the next one of its interface could begin, if these, and no others, were wanted: in words, with
    /// the flow log, the interface, and why. [`want`](Self::want) would leave those as they are.
    ///
    /// # Errors
    /// If the kernel does not say which interfaces there are.
    pub fn would_part(&self, captures: &[CaptureSpec]) -> Result<Vec<String>, CaptureError> {
        self.watcher.would_part(&self.books, captures)
    }

    /// Looks whether hooks that have not been seen running yet are.
    pub fn check_hooks(&mut self) {
        self.watcher.hooked.check(&self.books);
    }

    /// What every watched interface's programs have counted so far.
    ///
    /// # Errors
    /// If the kernel does not say so.
    pub fn figures(&mut self, now: Now) -> Result<Vec<CaptureFigures>, CaptureError> {
        figures::look(&mut self.books, now)
    }

    /// The most bytes that were found in the ring since the last call, the records that have come through it, and the bytes of the
    /// journal.
    pub fn take_load(&mut self) -> Load {
        self.books.take_load()
    }

    /// How every capture is doing, by interface id.
    #[must_use]
    pub fn states(&self) -> BTreeMap<String, CaptureState> {
        self.watcher.states(&self.books.ledger)
    }

    /// Id of a capture's interface, as in records and keys.
    #[must_use]
    pub(crate) fn id(&self, capture: &CaptureSpec) -> String {
        capture.id(self.node_id())
    }

    #[must_use]
    pub(crate) fn node_id(&self) -> &str {
        &self.watcher.node_id
    }

    /// What is to be captured.
    #[must_use]
    pub(crate) fn captures(&self) -> &[CaptureSpec] {
        &self.watcher.captures
    }

    /// The books, to look at.
    #[must_use]
    pub(crate) fn ledger(&self) -> &Ledger {
        &self.books.ledger
    }
}
