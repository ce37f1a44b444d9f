//! Keeping the books: the ring, the ledger and the journal, and the order in which they change.
//!
//! ```text
//! block:   read from the ring -> ledger, journal buffer -> journal durable -> ring position advances
//! window:  Turn durable -> epoch switches -> grace periods, sweep -> all blocks durable -> Close durable -> counters cleared
//! object:  durable in the spool as "held" -> Done durable -> released for delivery
//! ```
//!
//! Whatever is interrupted between two of these steps is done again from the one in front; each can be.

use std::{collections::BTreeMap, sync::Arc, thread, time::Duration};

use flowlog_host::fault;
use flowlog_model::{
    Epoch, IfaceId, Now,
    sweep::{Cursor, Scope, Swept},
    translation::Tuple,
};

use crate::{
    disk::Filesystem,
    encode::key::object_key,
    error::CaptureError,
    journal::{Journal, JournalError, Recovered, entry::Head, replay::Pending},
    live::tap::Tap,
    source::Source,
    window::{
        Closed, Event, Ledger, Span, WindowClock,
        ledger::{Watched, truth_words},
        table::told::{Questions, answered},
    },
    xdp,
};

/// Blocks taken before a grace period: all that the largest ring holds that is chosen (64 MiB), and an end in any flood.
const BLOCKS_BEFORE_WAIT: usize = 16_384;
/// How often the ring is emptied while a grace period lasts: the smallest that is chosen holds 130,000 records, which take 20 ms at the least.
const EMPTIED_EVERY: Duration = Duration::from_millis(2);
/// Epochs whose counters exist, besides the open and the closing one: cleared at a start.
const OTHER_EPOCHS: [u32; 2] = [1, 2];

/// Last windows of an earlier watch, by interface id.
pub(crate) type Spans = BTreeMap<String, Span>;

/// The first window of a watch, after the last one of an earlier watch.
#[must_use]
pub(crate) fn first_window(secs: u32, previous: Option<Span>, now: Now) -> Span {
    match previous {
        None => *WindowClock::new(secs, now).current(),
        Some(span) => {
            let mut clock = WindowClock::resume(secs, span);
            clock.turn(now);
            *clock.current()
        }
    }
}

/// What books begin with: an earlier agent's journal, and the kernel state that there is now.
pub struct Inherited {
    /// The state directory, with the journal in it.
    pub fs: Arc<dyn Filesystem>,
    /// What its journal says.
    pub found: Recovered,
    /// The kernel state that the journal belongs to from now on.
    pub head: Head,
}

/// See the module's head.
pub(crate) struct Books<S> {
    pub source: S,
    pub ledger: Ledger,
    /// Through which live flows are seen.
    pub tap: Tap,
    journal: Journal,
    /// When the journal last said that the host is up.
    beat: Option<Now>,
    /// Windows on their way to the encoder. Kept here, so that an error on the way loses none.
    closed: Vec<Closed>,
    /// The most bytes that were in the ring when it was looked into, since somebody asked.
    ring_used_bytes: u64,
}

/// How much there is of what has limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// The most bytes that were found in the ring since the last look.
    pub ring_used_bytes: u64,
    /// Records that have come through the ring.
    pub records: u64,
    pub journal_bytes: u64,
}

impl<S: Source> Books<S> {
    /// Goes on with the books of an earlier agent, if its ring is still in the kernel, else begins new ones. Returns them
    /// with the closed windows whose objects are not known to be durable, and with the last windows of watches that were lost:
    /// new windows must come after these.
    ///
    /// # Errors
    /// If the journal cannot be written, or the kernel refuses.
    pub(crate) fn open(
        mut source: S,
        inherited: Inherited,
        now: Now,
    ) -> Result<(Self, Vec<Pending>, Spans), CaptureError> {
        let Inherited { fs, mut found, head } = inherited;
        let same = found.head.as_ref().is_some_and(|h| h.boot_id == head.boot_id && h.ring_id == head.ring_id);
        let goes_on = same && source.seek(found.position);
        if !goes_on {
            source.forget()?;
        }
        let position = source.position();
        let last_seen = found.last_seen.unwrap_or(now);
        // If the old ring is gone, the old head stays until the windows that were open are closed: this start may fail before.
        let (first_head, first_position) = match &found.head {
            Some(old) if !goes_on => (old.clone(), found.position),
            _ => (head.clone(), position),
        };
        let ledger = std::mem::take(&mut found.ledger);
        let journal = Journal::start(fs, first_head, &found, &ledger, first_position)?;
        let tap = Tap::closed();
        let mut books = Self { source, ledger, tap, journal, beat: None, closed: Vec::new(), ring_used_bytes: 0 };
        let mut spans = Spans::new();
        if goes_on {
            books.reconcile()?;
        } else {
            let last = |w: &Watched| (w.spec.interface_id.clone(), *w.clock.current());
            spans.extend(books.ledger.watched().map(|(_, w)| last(w)));
            books.close_lost(last_seen, now)?;
            books.journal.begin_anew(head, position, &books.ledger)?;
        }
        Ok((books, found.pending, spans))
    }

    /// Takes up to `most` blocks from the ring; returns how many there were.
    pub(crate) fn drain(&mut self, most: usize) -> usize {
        let used = self.source.produced().saturating_sub(self.source.position());
        self.ring_used_bytes = self.ring_used_bytes.max(used);
        for taken in 0..most {
            fault::point("ring_read");
            let Self { source, ledger, journal, tap, .. } = self;
            let Some((block, end)) = source.read() else { return taken };
            ledger.block(block);
            tap.block(block, ledger);
            fault::point("merge");
            journal.block(block, end);
        }
        most
    }

    /// See [`Load`].
    pub(crate) fn take_load(&mut self) -> Load {
        let ring_used_bytes = std::mem::take(&mut self.ring_used_bytes);
        Load { ring_used_bytes, records: self.ledger.records(), journal_bytes: self.journal.bytes() }
    }

    /// Makes everything that was drained durable, then gives its room in the ring back.
    ///
    /// # Errors
    /// If it cannot be made durable. Nothing is lost before the ring is full.
    pub(crate) fn commit(&mut self) -> Result<(), JournalError> {
        let position = self.journal.commit(&self.ledger)?;
        fault::point("position_advance");
        self.source.release(position);
        Ok(())
    }

    /// Notes that the host is up: what a gap is measured from after it was not.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub(crate) fn beat(&mut self, now: Now) -> Result<(), JournalError> {
        self.journal.record(&[Event::Beat { now }], &self.ledger)?;
        self.beat = Some(now);
        Ok(())
    }

    /// Monotonic ns since the last [`beat`](Self::beat).
    #[must_use]
    pub(crate) fn since_beat_ns(&self, now: Now) -> u64 {
        self.beat.map_or(u64::MAX, |b| now.mono.0.saturating_sub(b.mono.0))
    }

    /// Makes events durable and applies them.
    ///
    /// # Errors
    /// As [`commit`](Self::commit); then nothing has happened.
    pub(crate) fn record(&mut self, events: &[Event]) -> Result<(), JournalError> {
        self.journal.record(events, &self.ledger)?;
        for event in events {
            self.tap.note(event);
            if let Some(window) = self.ledger.apply(event.clone()) {
                self.journal.closed(object_key(&window.info));
                self.closed.push(window);
            }
        }
        Ok(())
    }

    /// Objects of closed windows are durable elsewhere.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub(crate) fn done(&mut self, keys: &[String]) -> Result<(), JournalError> {
        let events: Vec<Event> = keys.iter().map(|key| Event::Done { key: key.clone() }).collect();
        self.record(&events)?;
        self.journal.done(keys);
        Ok(())
    }

    /// After a start: makes the kernel agree with the ledger, whatever was interrupted.
    fn reconcile(&mut self) -> Result<(), CaptureError> {
        for (id, w) in self.ledger.watched() {
            self.source.set_epoch(id, w.spec.key(), w.epoch);
            let closed = w.closing_epoch().is_none().then(|| w.epoch.previous());
            let others = OTHER_EPOCHS.iter().map(|n| Epoch(w.epoch.0.wrapping_add(*n)));
            for epoch in others.chain(closed) {
                self.source.clear_truth(id, epoch)?;
            }
        }
        Ok(())
    }

    /// Ends the open windows of some interfaces and closes them, after all that an earlier agent had begun to close.
    /// `true` marks one that is flushed for its size. [`take_closed`](Self::take_closed) has them.
    ///
    /// # Errors
    /// If the journal or the kernel refuses. Windows that have ended are closed by the next call.
    pub(crate) fn turn(&mut self, due: &[(IfaceId, bool)], now: Now, scope: Scope) -> Result<(), CaptureError> {
        self.close_ended(scope)?;
        let mut turns = Vec::with_capacity(due.len());
        for &(id, flushed_early) in due {
            let Some(w) = self.ledger.get(id) else { continue };
            turns.extend(xdp::look(&self.source, id, w));
            let mut clock = w.clock.clone();
            let closed = clock.turn(now);
            turns.push(Event::Turn { id, closed, next: *clock.current(), flushed_early });
        }
        if !turns.is_empty() {
            self.record(&turns)?;
        }
        fault::point("turn_recorded");
        self.close_ended(scope)
    }

    /// Closes the windows that have ended.
    fn close_ended(&mut self, scope: Scope) -> Result<(), CaptureError> {
        let ended = |ledger: &Ledger| -> Vec<(IfaceId, Epoch)> {
            ledger.watched().filter_map(|(id, w)| Some((id, w.closing_epoch()?))).collect()
        };
        let closing = ended(&self.ledger);
        if closing.is_empty() {
            return Ok(());
        }
        self.settle_epochs(&closing, scope)?;
        let not_asked = self.ask_connections(&closing);
        let mut events = Vec::with_capacity(closing.len());
        for (&(id, epoch), not_asked) in closing.iter().zip(not_asked) {
            let mut truth = self.source.truth(id, epoch)?;
            truth.untold[0].packets += not_asked;
            let truth = Some(truth_words(&truth));
            events.push(Event::Close { id, truth, gap: None });
        }
        fault::point("window_close");
        self.record(&events)?;
        Ok(closing.iter().try_for_each(|(id, epoch)| self.source.clear_truth(*id, *epoch))?)
    }

    /// Asks for the other side of flows that have come in, where no word of their answers has gone out: the load balancer, for flows to
    /// its addresses, then connection tracking. What they say is in the journal as if it had come through the ring.
    ///
    /// Returns of how many flows of each window nothing is known because there were more than can be asked about.
    fn ask_connections(&mut self, closing: &[(IfaceId, Epoch)]) -> Vec<u64> {
        closing.iter().map(|&(id, epoch)| self.ask_of(id, epoch).unwrap_or(0)).collect()
    }

    /// See [`ask_connections`](Self::ask_connections); `None`: there is nothing to be asked of this interface.
    fn ask_of(&mut self, id: IfaceId, epoch: Epoch) -> Option<u64> {
        let w = self.ledger.get(id).filter(|w| w.spec.translations)?;
        let served = w.served(&self.source.services(&w.spec));
        let targets = self.source.targets(&w.spec, &served.tuples);
        self.note_answers((id, epoch), &served, &targets);
        let w = self.ledger.get(id)?;
        let questions = w.questions();
        if !questions.tuples.is_empty() {
            let answers = self.source.connections(&w.spec, &questions.tuples);
            self.note_answers((id, epoch), &questions, &answers);
        }
        Some(served.left_out)
    }

    fn note_answers(&mut self, (id, epoch): (IfaceId, Epoch), questions: &Questions, answers: &[Option<Tuple>]) {
        for block in answered((id.0, epoch.0), questions, answers) {
            self.ledger.block(&block);
            self.journal.block(&block, self.source.position());
        }
    }

    /// Windows closed since the last call.
    #[must_use]
    pub(crate) fn take_closed(&mut self) -> Vec<Closed> {
        std::mem::take(&mut self.closed)
    }

    /// Gets every record of the epochs that have ended out of the kernel and into the journal.
    fn settle_epochs(&mut self, closing: &[(IfaceId, Epoch)], scope: Scope) -> Result<(), CaptureError> {
        for &(id, _) in closing {
            if let Some(w) = self.ledger.get(id) {
                self.source.set_epoch(id, w.spec.key(), w.epoch);
                fault::point("epoch_switch");
            }
        }
        // Packets between a hook and their verdict get one grace period to be taken back from the old window.
        self.wait_for_programs()?;
        for &(id, _) in closing {
            if let Some(w) = self.ledger.get(id) {
                self.source.set_oldest(&w.spec, w.epoch);
            }
        }
        self.wait_for_programs()?;
        let mut at = Cursor::default();
        while let Swept::RingFull(cursor) = self.source.sweep(scope, at)? {
            at = cursor;
            self.make_room(usize::MAX)?;
        }
        fault::point("sweep");
        // Just emptying the ring is not enough: it looks empty while another CPU is writing a record in front of ours.
        let end = self.source.produced();
        while self.source.position() < end {
            self.make_room(BLOCKS_BEFORE_WAIT)?;
        }
        Ok(())
    }

    /// Waits for a grace period. It takes tens of ms, and hundreds where a CPU has no end of packets: longer than the ring lasts in a flood.
    fn wait_for_programs(&mut self) -> Result<(), JournalError> {
        self.make_room(BLOCKS_BEFORE_WAIT)?;
        let period = self.source.begin_wait();
        while !period.is_over() {
            thread::park_timeout(EMPTIED_EVERY);
            self.make_room(BLOCKS_BEFORE_WAIT)?;
        }
        Ok(())
    }

    /// Looks at other people's XDP programs on some interfaces, between the windows' ends.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub(crate) fn look_at_xdp(&mut self, ids: &[IfaceId]) -> Result<(), JournalError> {
        let watched = ids.iter().filter_map(|id| Some((*id, self.ledger.get(*id)?)));
        let news: Vec<Event> = watched.filter_map(|(id, w)| xdp::look(&self.source, id, w)).collect();
        if news.is_empty() { Ok(()) } else { self.record(&news) }
    }

    fn make_room(&mut self, most: usize) -> Result<(), JournalError> {
        self.drain(most);
        self.commit()
    }

    /// Closes all windows of a kernel state that is gone, as they are: what the programs had not handed over is lost
    /// with it, and the time since is a gap.
    fn close_lost(&mut self, last_seen: Now, now: Now) -> Result<(), JournalError> {
        let ids: Vec<IfaceId> = self.ledger.watched().map(|(id, _)| id).collect();
        let gap = Some((last_seen.wall.secs(), now.wall.secs().max(last_seen.wall.secs())));
        let mut events = Vec::new();
        for &id in &ids {
            let Some(w) = self.ledger.get(id) else { continue };
            if w.closing_epoch().is_some() {
                events.push(Event::Close { id, truth: None, gap: None });
            }
            let mut clock = w.clock.clone();
            // It ended when the host did, as far as anybody knows.
            let mut closed = clock.turn(last_seen);
            closed.ends_early = true;
            events.push(Event::Turn { id, closed, next: *clock.current(), flushed_early: false });
            events.push(Event::Close { id, truth: None, gap });
            events.push(Event::Unwatch { id });
        }
        if events.is_empty() { Ok(()) } else { self.record(&events) }
    }

    /// Removes the journal: there is nothing left to keep in it.
    pub(crate) fn end(&mut self) {
        self.journal.end(&self.ledger);
    }
}
