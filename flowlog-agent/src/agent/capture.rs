//! The live capture: the kernel's programs and hooks behind the books, and which interfaces they watch. Everything
//! here runs on one thread.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
};

use flowlog_ebpf::abi::{self, Iface};

use super::{
    AgentError,
    books::{Books, Source as _, Spans, first_window},
    live::{Live, attach, flags},
    proof::Proof,
    wanted::{self, Absent, Found, Wanted},
};
use crate::{
    config::{self, Config},
    disk::Filesystem,
    journal::{
        self, JournalError, Recovered,
        entry::{FORMAT, Head},
        replay::Pending,
    },
    kernel::{Kernel, KernelError, Pins, layout::Reasons, ring::Wakeups, sweep::Scope},
    netdev::{self, NetDev, NetDevError},
    rule::WINDOW_SECS_MAX,
    status::CaptureState,
    types::{Epoch, IfaceId, Now},
    window::{Closed, Event, Ledger, Subject},
};

/// Pause before an interface that could not be hooked is tried again.
const LOOK_AGAIN_NS: u64 = 500_000_000;

/// See the module's head.
pub struct Capture {
    books: Books<Live>,
    proofs: BTreeMap<IfaceId, Vec<Proof>>,
    flows_max: usize,
    /// What is to be captured, whether its interface is there or not.
    captures: Vec<config::Capture>,
    node_id: String,
    /// Interfaces that were watched and are gone: by id, since when (Unix seconds).
    gone: BTreeMap<String, i64>,
    /// Last windows of earlier watches, by interface id: new ones must come after them.
    spans: Spans,
    /// The last look at the interfaces could not do all there was to do.
    unsettled: Option<Now>,
    /// Captures without an interface, and why, by interface id.
    absent: BTreeMap<String, Absent>,
    /// Captures whose interface is there and cannot be hooked, and why.
    troubles: BTreeMap<String, String>,
}

fn boot_id() -> Result<String, AgentError> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(super::system("read the boot id"))?;
    Ok(text.trim().to_owned())
}

impl Capture {
    /// Loads the programs, goes on where an earlier agent stopped, and watches what is configured.
    ///
    /// # Errors
    /// On the first thing that is not as configured; a capture that was not there before is not there afterwards.
    pub fn start(
        config: &Config,
        fs: &Arc<dyn Filesystem>,
        found: Recovered,
    ) -> Result<(Self, Vec<Pending>), AgentError> {
        let devices = netdev::all()?;
        let missing = |c: &&config::Capture| !c.wait && c.interface.find(&devices, None).is_none();
        if let Some(c) = config.captures.iter().find(missing) {
            let (name, others) = (c.interface.to_string(), netdev::names(&devices));
            return Err(NetDevError::NotFound { name, others }.into());
        }
        let (mut capture, pending, spans) = Self::open(config, fs, found)?;
        let first = capture.books.ledger.watched().next().is_none();
        capture.spans.extend(spans);
        let found = wanted::find(&capture.captures, &capture.node_id, &devices, &capture.books.ledger);
        for why in found.absent.values() {
            match why {
                Absent::Waiting(why) => tracing::info!("{why}"),
                Absent::Taken(why) => tracing::warn!("{why}"),
            }
        }
        let watched = capture.watch_all(&found);
        let strict = config.captures.iter().filter(|c| !c.wait).map(|c| c.id(&config.node_id));
        let problem = match watched {
            Ok(mut troubles) => strict.into_iter().find_map(|id| troubles.remove(&id)),
            Err(error) => Some(error),
        };
        if let Some(error) = problem {
            if first {
                // Nobody asked for half of it, and pins would keep it. What it has counted is in the journal.
                let _ = capture.finish(Now::read());
            }
            return Err(error);
        }
        capture.absent = found.absent;
        Ok((capture, pending))
    }

    /// Changes what is to be captured.
    ///
    /// # Errors
    /// As [`look_at_interfaces`](Self::look_at_interfaces).
    pub fn want(&mut self, captures: Vec<config::Capture>) -> Result<(), AgentError> {
        self.captures = captures;
        self.look_at_interfaces()
    }

    /// Looks at the interfaces again: stops watching those that are gone or not wanted any more, and watches those that
    /// have come (back).
    ///
    /// # Errors
    /// If the kernel or the journal refuses. An interface that cannot be hooked is no error: it may be gone already, and is
    /// tried again.
    pub fn look_at_interfaces(&mut self) -> Result<(), AgentError> {
        let devices = match netdev::all() {
            Ok(devices) => devices,
            Err(error) => {
                tracing::warn!(%error, "will try again");
                self.unsettled = Some(Now::read());
                return Ok(());
            }
        };
        let found = wanted::find(&self.captures, &self.node_id, &devices, &self.books.ledger);
        self.follow(&found)?;
        let settled = found.is_watched(&self.books.ledger) && self.unsettled.is_none();
        if !settled {
            let now = Now::read();
            self.note_gone(&found, now.wall.secs());
            self.unsettled = Some(now);
            let troubles = self.watch_all(&found)?;
            for (id, error) in &troubles {
                if self.troubles.get(id) != Some(&error.to_string()) {
                    tracing::warn!(interface = id, %error, "will try again");
                }
            }
            self.unsettled = (!troubles.is_empty()).then_some(now);
            self.troubles = troubles.into_iter().map(|(id, e)| (id, e.to_string())).collect();
        }
        self.absent = found.absent;
        Ok(())
    }

    /// As [`look_at_interfaces`](Self::look_at_interfaces), if the last look could not do all there was to do.
    ///
    /// # Errors
    /// As there.
    pub fn look_again(&mut self, now: Now) -> Result<(), AgentError> {
        let due = |last: Now| now.mono.0.saturating_sub(last.mono.0) > LOOK_AGAIN_NS;
        if self.unsettled.is_some_and(due) { self.look_at_interfaces() } else { Ok(()) }
    }

    /// Goes along with what has changed about interfaces that are being watched.
    fn follow(&mut self, found: &Found) -> Result<(), AgentError> {
        let mut named = Vec::new();
        for (id, w) in self.books.ledger.watched() {
            let Some(wanted) = found.wanted.get(&w.subject.interface_id).filter(|n| n.subject.is_same(&w.subject))
            else {
                continue;
            };
            self.books.source.kernel.set_upper(wanted.dev.index, wanted.dev.upper);
            if wanted.dev.name != w.subject.interface {
                tracing::info!(
                    interface = w.subject.interface,
                    now = wanted.dev.name,
                    "the interface has another name"
                );
                named.push(Event::Named { id, interface: wanted.dev.name.clone() });
            }
        }
        if named.is_empty() { Ok(()) } else { Ok(self.books.record(&named)?) }
    }

    /// Remembers since when interfaces are gone that should be watched.
    fn note_gone(&mut self, found: &Found, now_secs: i64) {
        for (_, w) in self.books.ledger.watched().filter(|(_, w)| !found.wants(&w.subject)) {
            let same = |c: &&config::Capture| c.id(&self.node_id) == w.subject.interface_id && c.rule == w.subject.rule;
            if self.captures.iter().any(|c| same(&c)) {
                tracing::warn!(interface = w.subject.interface, "the interface is gone; waiting for it to come back");
                self.gone.insert(w.subject.interface_id.clone(), now_secs);
            }
        }
        let wanted: BTreeSet<String> = self.captures.iter().map(|c| c.id(&self.node_id)).collect();
        self.gone.retain(|id, _| wanted.contains(id));
        // An earlier watch of this interface in the same window has keys already; of another day it has not.
        self.spans.retain(|_, span| span.start_secs > now_secs - 2 * i64::from(WINDOW_SECS_MAX));
    }

    /// Makes what is watched what is wanted. What cannot be watched, and why not, is in the answer.
    fn watch_all(&mut self, found: &Found) -> Result<BTreeMap<String, AgentError>, AgentError> {
        // Verdicts first: a packet that passed a hook must not die unnoticed.
        self.books.source.kernel.attach_verdict()?;
        self.retire(|s| !found.wants(s))?;
        let (mut troubles, mut new) = (BTreeMap::new(), Vec::new());
        let mut ids = self.books.ledger.free_ids();
        let max = self.books.source.kernel.sizes().interfaces_max;
        for (interface_id, wanted) in &found.wanted {
            if self.books.ledger.watched().any(|(_, w)| w.subject.is_same(&wanted.subject)) {
                continue;
            }
            if let Some(id) = ids.next().filter(|id| id.0 <= max) {
                new.push(self.beginning(id, &wanted.subject));
            } else {
                troubles.insert(interface_id.clone(), AgentError::NoRoom { max });
            }
        }
        drop(ids);
        if !new.is_empty() {
            self.books.record(&new)?;
        }
        let watched: Vec<IfaceId> = self.books.ledger.watched().map(|(id, _)| id).collect();
        for id in watched {
            match self.hook(id, found) {
                Err(error @ (AgentError::NetDev(_) | AgentError::Kernel(KernelError::Attach { .. }))) => {
                    let interface_id = self.books.ledger.get(id).map(|w| w.subject.interface_id.clone());
                    troubles.insert(interface_id.unwrap_or_default(), error);
                }
                other => other?,
            }
        }
        // Packets that had passed a hook before it counted have died or been delivered now.
        self.books.source.kernel.wait_for_programs();
        self.begin_judging(found);
        self.books.source.kernel.remove_stale_hooks()?;
        self.books.beat(Now::read())?;
        Ok(troubles)
    }

    /// From now on refusals count of packets that a hook has not noted.
    fn begin_judging(&mut self, found: &Found) {
        for (id, w) in self.books.ledger.watched().filter(|(id, _)| self.proofs.contains_key(id)) {
            let Some(Wanted { dev, .. }) = found.wanted.get(&w.subject.interface_id) else { continue };
            let kernel = &self.books.source.kernel;
            let new = kernel.flags(dev.index) & abi::ONLY_NOTED != 0;
            kernel.set_flags(id, dev.index, flags(&w.subject, dev));
            if new {
                tracing::info!(interface = dev.name, index = dev.index, "watching");
            }
            if self.gone.remove(&w.subject.interface_id).is_some() {
                tracing::info!(interface = dev.name, index = dev.index, "the interface is back");
            }
        }
    }

    /// Takes over what an earlier agent left in the kernel and in the journal, only to end it.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn take_over(
        config: &Config,
        fs: &Arc<dyn Filesystem>,
        found: Recovered,
    ) -> Result<(Self, Vec<Pending>), AgentError> {
        let (mut capture, pending, _) = Self::open(config, fs, found)?;
        let kernel = &mut capture.books.source.kernel;
        // Only links that we hold can be taken away in the right order.
        kernel.attach_verdict()?;
        let devices = netdev::all()?;
        for (_, w) in capture.books.ledger.watched() {
            if let Some(dev) = still_there(&devices, &w.subject) {
                attach(kernel, &w.subject, dev)?;
            }
        }
        Ok((capture, pending))
    }

    /// Everything up to, and without, deciding what is watched.
    fn open(
        config: &Config,
        fs: &Arc<dyn Filesystem>,
        found: Recovered,
    ) -> Result<(Self, Vec<Pending>, Spans), AgentError> {
        let boot_id = boot_id()?;
        refuse_other_pins(config, found.head.as_ref(), &boot_id)?;
        let netns = netdev::netns_inum().map_err(super::system("find the network namespace"))?;
        let mut kernel = match &config.pin_dir {
            Some(dir) => Kernel::load_pinned(config.sizes, netns, Pins::open(dir, config.sizes)?)?,
            None => Kernel::load(config.sizes, netns)?,
        };
        let ring = kernel.take_ring()?;
        let now = Now::read();
        let head = Head { format: FORMAT, boot_id, ring_id: ring.id()?, pin_dir: config.pin_dir.clone(), begun: now };
        let (books, pending, spans) = Books::open(Live { kernel, ring }, fs, found, head, now)?;
        let capture = Self {
            books,
            proofs: BTreeMap::new(),
            flows_max: config.flows_max,
            captures: config.captures.clone(),
            node_id: config.node_id.clone(),
            gone: BTreeMap::new(),
            spans: Spans::new(),
            unsettled: None,
            absent: BTreeMap::new(),
            troubles: BTreeMap::new(),
        };
        Ok((capture, pending, spans))
    }

    /// The first event of a new watch.
    fn beginning(&self, id: IfaceId, subject: &Subject) -> Event {
        let now = Now::read();
        let previous = self.spans.get(&subject.interface_id).copied();
        let span = first_window(subject.rule.window_secs, previous, now);
        let gap = self.gone.get(&subject.interface_id).map(|since| (*since, now.wall.secs()));
        Event::Watch { id, subject: subject.clone(), span, epoch: Epoch(1), gap }
    }

    /// Hooks an interface of the ledger, unless this process has already.
    fn hook(&mut self, id: IfaceId, found: &Found) -> Result<(), AgentError> {
        let Some(w) = self.books.ledger.get(id).filter(|_| !self.proofs.contains_key(&id)) else { return Ok(()) };
        let Some(Wanted { dev, .. }) = found.wanted.get(&w.subject.interface_id) else { return Ok(()) };
        let (epoch, oldest) = (w.epoch, w.closing_epoch().unwrap_or(w.epoch));
        let kernel = &mut self.books.source.kernel;
        // Packets are on their way that no hook has counted, unless an earlier agent's hooks have.
        let new = if kernel.watched(dev.index) == Some(id) { 0 } else { abi::ONLY_NOTED };
        let flags = flags(&w.subject, dev) | new;
        let iface = Iface { id: id.0, flags, epoch: epoch.0, oldest: oldest.0, upper: dev.upper };
        let before = netdev::counters(dev.index)?;
        // Hooks first: a refused packet is taken to have passed them.
        let hooks = match attach(kernel, &w.subject, dev).and_then(|hooks| Ok((hooks, kernel.watch(dev.index, iface)?)))
        {
            Ok((hooks, ())) => hooks,
            Err(error) => {
                // The next try begins from nothing.
                kernel.detach(dev.index)?;
                return Err(error);
            }
        };
        let proofs = hooks.into_iter().map(|direction| Proof::new(direction, before)).collect();
        self.proofs.insert(id, proofs);
        Ok(())
    }

    /// Stops watching what `unwanted` says.
    fn retire(&mut self, unwanted: impl Fn(&Subject) -> bool) -> Result<(), AgentError> {
        let watched = self.books.ledger.watched().filter(|(_, w)| unwanted(&w.subject));
        let gone: Vec<(IfaceId, Subject)> = watched.map(|(id, w)| (id, w.subject.clone())).collect();
        if gone.is_empty() {
            return Ok(());
        }
        let ids: Vec<IfaceId> = gone.iter().map(|(id, _)| *id).collect();
        let devices = netdev::all()?;
        self.end_accounting(&ids, &devices);
        for (id, subject) in &gone {
            let kernel = &mut self.books.source.kernel;
            // Only links that we hold can be taken away, so hooks of an earlier agent are taken over first.
            if let Some(dev) = still_there(&devices, subject).filter(|_| !self.proofs.contains_key(id)) {
                attach(kernel, subject, dev)?;
            }
            kernel.detach(subject.ifindex)?;
            self.proofs.remove(id);
        }
        let due: Vec<(IfaceId, bool)> = gone.iter().map(|(id, _)| (*id, false)).collect();
        for (id, subject) in &gone {
            if let Some(w) = self.books.ledger.get(*id) {
                self.spans.insert(subject.interface_id.clone(), *w.clock.current());
            }
        }
        self.books.turn(&due, Now::read(), Scope::Closed)?;
        let events: Vec<Event> = gone.iter().map(|(id, _)| Event::Unwatch { id: *id }).collect();
        Ok(self.books.record(&events)?)
    }

    /// From one moment on, packets of some interfaces are not counted any more; those counted before get their verdicts.
    fn end_accounting(&mut self, ids: &[IfaceId], devices: &[NetDev]) {
        let kernel = &self.books.source.kernel;
        let ending = || ids.iter().filter_map(|id| Some((*id, self.books.ledger.get(*id)?)));
        for (id, w) in ending() {
            let refused = abi::WANT_REFUSED_INGRESS | abi::WANT_REFUSED_EGRESS;
            let kept = match still_there(devices, &w.subject) {
                Some(dev) => flags(&w.subject, dev) & (refused | abi::NO_LINK_HEADER | abi::IS_BRIDGE),
                None => 0,
            };
            kernel.set_flags(id, w.subject.ifindex, kept | abi::ONLY_NOTED);
        }
        // As at the end of a window: from the hook to the verdict is one grace period.
        kernel.wait_for_programs();
        kernel.wait_for_programs();
        for (id, w) in ending() {
            if kernel.watched(w.subject.ifindex) == Some(id) {
                kernel.unwatch(w.subject.ifindex);
            }
        }
    }

    /// Names of drop reasons.
    #[must_use]
    pub fn reasons(&self) -> &Reasons {
        self.books.source.kernel.reasons()
    }

    /// Tells when the ring has filled up to its wake mark.
    pub fn wakeups(&self) -> io::Result<Wakeups> {
        self.books.source.ring.wakeups()
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
    pub fn turn_due(&mut self, now: Now) -> Result<(), AgentError> {
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
            self.prove(window);
        }
        closed
    }

    /// At the end of a window: was a hook by-passed all the time?
    fn prove(&mut self, window: &Closed) {
        let Some(truth) = &window.truth else { return };
        let of = |w: &crate::window::ledger::Watched| w.subject.interface_id == window.info.interface_id;
        let Some((id, w)) = self.books.ledger.watched().find(|(_, w)| of(w)) else { return };
        for proof in self.proofs.get_mut(&id).into_iter().flatten() {
            proof.window_closed(&w.subject, truth);
        }
    }

    /// Takes the hooks away and closes all windows; nothing of us stays in the kernel.
    ///
    /// # Errors
    /// If the kernel or the journal refuses.
    pub fn finish(&mut self, now: Now) -> Result<(), AgentError> {
        let ids: Vec<IfaceId> = self.books.ledger.watched().map(|(id, _)| id).collect();
        self.end_accounting(&ids, &netdev::all()?);
        self.books.source.kernel.detach_all()?;
        let all: Vec<(IfaceId, bool)> = ids.iter().map(|id| (*id, false)).collect();
        self.books.turn(&all, now, Scope::All)?;
        let events: Vec<Event> = ids.iter().map(|id| Event::Unwatch { id: *id }).collect();
        self.books.record(&events)?;
        Ok(self.books.source.kernel.remove_pins()?)
    }

    /// After [`finish`](Self::finish), when all objects are delivered: removes the journal.
    pub fn end(&mut self) {
        self.books.end();
    }

    /// Whether hooks and maps outlive this process.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.books.source.kernel.is_pinned()
    }

    /// Looks whether hooks that have not been seen running yet are.
    pub fn check_hooks(&mut self) {
        for (id, proofs) in &mut self.proofs {
            let Some(w) = self.books.ledger.get(*id) else { continue };
            if proofs.iter().all(Proof::is_settled) {
                continue;
            }
            if let Ok(truth) = self.books.source.truth(*id, w.epoch) {
                for proof in proofs {
                    proof.look(&w.subject, &truth);
                }
            }
        }
    }

    /// How every capture is doing, by interface id.
    #[must_use]
    pub fn states(&self) -> BTreeMap<String, CaptureState> {
        let mut states: BTreeMap<String, CaptureState> = BTreeMap::new();
        for (id, why) in &self.absent {
            let state = match why {
                Absent::Taken(why) => CaptureState::Trouble { why: why.clone() },
                Absent::Waiting(why) => CaptureState::Waiting { why: why.clone() },
            };
            states.insert(id.clone(), state);
        }
        for (_, w) in self.books.ledger.watched() {
            let (interface, ifindex) = (w.subject.interface.clone(), w.subject.ifindex);
            states.insert(w.subject.interface_id.clone(), CaptureState::Attached { interface, ifindex });
        }
        for (id, why) in &self.troubles {
            states.insert(id.clone(), CaptureState::Trouble { why: why.clone() });
        }
        states
    }

    /// Id of a capture's interface, as in records and keys.
    #[must_use]
    pub fn id(&self, capture: &config::Capture) -> String {
        capture.id(&self.node_id)
    }

    /// What is to be captured.
    #[must_use]
    pub fn captures(&self) -> &[config::Capture] {
        &self.captures
    }

    /// The books, to look at.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.books.ledger
    }
}

/// The interface of a subject, if it is still the same one. One that is gone has taken its hooks along.
fn still_there<'a>(devices: &'a [NetDev], subject: &Subject) -> Option<&'a NetDev> {
    devices.iter().find(|dev| dev.index == subject.ifindex)
}

/// A journal whose ring is pinned elsewhere must not be taken for one whose ring is gone.
fn refuse_other_pins(config: &Config, head: Option<&Head>, boot_id: &str) -> Result<(), AgentError> {
    let Some(Head { boot_id: written, pin_dir: Some(dir), .. }) = head else { return Ok(()) };
    if written != boot_id || config.pin_dir.as_ref() == Some(dir) || !dir.exists() {
        return Ok(());
    }
    Err(AgentError::OtherPins { dir: dir.clone() })
}

/// Re-reads the journal of a state directory.
///
/// # Errors
/// If it cannot be read.
pub fn recover(fs: &dyn Filesystem) -> Result<Recovered, AgentError> {
    let found = journal::recover(fs)?;
    if found.torn_bytes > 0 {
        tracing::warn!(bytes = found.torn_bytes, "the journal had a torn end: cut off");
    }
    for name in &found.foreign {
        tracing::warn!(name, "this is not the journal's: left alone");
    }
    Ok(found)
}
