//! The live capture: the kernel's programs and hooks behind the books, and which interfaces they watch. Everything
//! here runs on one thread.

use std::{collections::BTreeMap, io, sync::Arc};

use flowlog_ebpf::abi::{self, Iface, Truth};

use super::{
    AgentError,
    books::{Books, Source, Spans, first_window},
    proof::Proof,
};
use crate::{
    config::{self, Config},
    disk::Filesystem,
    fault,
    journal::{
        self, JournalError, Recovered,
        entry::{FORMAT, Head},
        replay::Pending,
    },
    kernel::{
        Kernel, KernelError, Pins, Ring,
        layout::Reasons,
        ring::Wakeups,
        sweep::{Cursor, Scope, Swept},
    },
    netdev::{self, NetDev},
    rule::{Action, Direction, Rule},
    types::{Epoch, IfaceId, Now},
    window::{Closed, Event, Ledger, Span, Subject},
};

/// The real kernel.
pub struct Live {
    kernel: Kernel,
    ring: Ring,
}

/// See the module's head.
pub struct Capture {
    books: Books<Live>,
    proofs: BTreeMap<IfaceId, Vec<Proof>>,
    flows_max: usize,
    /// What is to be captured, whether its interface is there or not.
    captures: Vec<config::Capture>,
    node_id: String,
    /// Interfaces that were watched and are gone: by id, since when (Unix seconds), and their last window.
    gone: BTreeMap<String, (i64, Span)>,
    /// The last look at the interfaces could not do all there was to do.
    unsettled: bool,
}

/// Flags of an interface for the programs.
fn flags(rule: &Rule, dev: &NetDev) -> u16 {
    let want = |direction, hook, refused| {
        if !rule.directions.includes(direction) {
            return 0;
        }
        // Accepted is seen less refused, so it needs both; rejected alone needs no hook.
        if rule.action == Action::Rejected { refused } else { hook | refused }
    };
    want(Direction::Ingress, abi::WANT_INGRESS, abi::WANT_REFUSED_INGRESS)
        | want(Direction::Egress, abi::WANT_EGRESS, abi::WANT_REFUSED_EGRESS)
        | if dev.link_header { 0 } else { abi::NO_LINK_HEADER }
        | if dev.bridge { abi::IS_BRIDGE } else { 0 }
}

fn subject(node_id: &str, capture: &config::Capture, dev: &NetDev) -> Subject {
    Subject {
        interface: dev.name.clone(),
        ifindex: dev.index,
        hook: capture.hook,
        rule: capture.rule.clone(),
        node_id: node_id.to_owned(),
        account_id: capture.account_id.clone(),
        interface_id: capture.interface_id.clone().unwrap_or_else(|| format!("{node_id}-{}", dev.name)),
    }
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
        for c in config.captures.iter().filter(|c| !c.wait) {
            netdev::find(&c.interface)?;
        }
        let (mut capture, pending, spans) = Self::open(config, fs, found)?;
        let first = capture.books.ledger.watched().next().is_none();
        let wanted = capture.present();
        for c in capture.captures.iter().filter(|c| !wanted.iter().any(|(s, _)| s.interface == c.interface)) {
            tracing::info!(interface = c.interface, "waiting for the interface");
        }
        if let Err(error) = capture.watch_all(&wanted, &spans) {
            if first {
                // Nobody asked for half of it, and pins would keep it. What it has counted is in the journal.
                let _ = capture.finish(Now::read());
            }
            return Err(error);
        }
        Ok((capture, pending))
    }

    /// What is wanted of interfaces that are there.
    fn present(&self) -> Vec<(Subject, NetDev)> {
        let found = self.captures.iter().filter_map(|c| Some((c, netdev::find(&c.interface).ok()?)));
        found.map(|(c, dev)| (subject(&self.node_id, c, &dev), dev)).collect()
    }

    /// Looks at the interfaces again: stops watching those that are gone, and watches those that have come (back).
    ///
    /// # Errors
    /// If the kernel or the journal refuses. An interface that cannot be hooked is no error: it may be gone already, and is
    /// tried again.
    pub fn look_at_interfaces(&mut self) -> Result<(), AgentError> {
        let wanted = self.present();
        let watched: Vec<&Subject> = self.books.ledger.watched().map(|(_, w)| &w.subject).collect();
        let same = watched.len() == wanted.len() && wanted.iter().all(|(s, _)| watched.contains(&s));
        if same && !self.unsettled {
            return Ok(());
        }
        let now_secs = Now::read().wall.secs();
        for (_, w) in self.books.ledger.watched() {
            if !wanted.iter().any(|(s, _)| *s == w.subject) {
                tracing::warn!(interface = w.subject.interface, "the interface is gone; waiting for it to come back");
                self.gone.insert(w.subject.interface_id.clone(), (now_secs, *w.clock.current()));
            }
        }
        let spans = self.gone.iter().map(|(id, (_, span))| (id.clone(), *span)).collect();
        self.unsettled = true;
        match self.watch_all(&wanted, &spans) {
            Err(error @ (AgentError::NetDev(_) | AgentError::Kernel(KernelError::Attach { .. }))) => {
                tracing::warn!(%error, "will try again");
                Ok(())
            }
            other => {
                self.unsettled = other.is_err();
                other
            }
        }
    }

    /// As [`look_at_interfaces`](Self::look_at_interfaces), if the last look could not do all there was to do.
    ///
    /// # Errors
    /// As there.
    pub fn look_again(&mut self) -> Result<(), AgentError> {
        if self.unsettled { self.look_at_interfaces() } else { Ok(()) }
    }

    /// Makes what is watched what is wanted.
    fn watch_all(&mut self, wanted: &[(Subject, NetDev)], spans: &Spans) -> Result<(), AgentError> {
        // Verdicts first: a packet that passed a hook must not die unnoticed.
        self.books.source.kernel.attach_verdict()?;
        self.retire(|s| !wanted.iter().any(|(w, _)| w == s))?;
        for (subject, dev) in wanted {
            let previous = spans.get(&subject.interface_id).copied();
            self.watch(subject, dev, previous)?;
        }
        // Packets that had passed a hook before it counted have died or been delivered now.
        self.books.source.kernel.wait_for_programs();
        for (id, w) in self.books.ledger.watched() {
            if let Some((_, dev)) = wanted.iter().find(|(s, _)| *s == w.subject) {
                let kernel = &self.books.source.kernel;
                let new = kernel.flags(dev.index) & abi::ONLY_NOTED != 0;
                kernel.set_flags(id, dev.index, flags(&w.subject.rule, dev));
                if new {
                    tracing::info!(interface = dev.name, index = dev.index, "watching");
                }
                if self.gone.remove(&w.subject.interface_id).is_some() {
                    tracing::info!(interface = dev.name, index = dev.index, "the interface is back");
                }
            }
        }
        self.books.source.kernel.remove_stale_hooks()?;
        Ok(self.books.beat(Now::read())?)
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
        for (_, w) in capture.books.ledger.watched() {
            if let Some(dev) = still_there(&w.subject) {
                attach(kernel, &w.subject, &dev)?;
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
            unsettled: false,
        };
        Ok((capture, pending, spans))
    }

    /// Starts watching, or goes on with it.
    fn watch(&mut self, subject: &Subject, dev: &NetDev, previous: Option<Span>) -> Result<(), AgentError> {
        let known = self.books.ledger.watched().find(|(_, w)| w.subject == *subject).map(|(id, _)| id);
        if known.is_some_and(|id| self.proofs.contains_key(&id)) {
            return Ok(()); // by this process already
        }
        let id = known.unwrap_or_else(|| self.books.ledger.free_id());
        if known.is_none() {
            let now = Now::read();
            let span = first_window(subject.rule.window_secs, previous, now);
            let gap = self.gone.get(&subject.interface_id).map(|(since, _)| (*since, now.wall.secs()));
            let event = Event::Watch { id, subject: subject.clone(), span, epoch: Epoch(1), gap };
            self.books.record(&[event])?;
        }
        let Some(w) = self.books.ledger.get(id) else { return Ok(()) };
        let (epoch, oldest) = (w.epoch, w.closing_epoch().unwrap_or(w.epoch));
        let kernel = &mut self.books.source.kernel;
        // Packets are on their way that no hook has counted, unless an earlier agent's hooks have.
        let new = if kernel.watched(dev.index) == Some(id) { 0 } else { abi::ONLY_NOTED };
        let flags = flags(&subject.rule, dev) | new;
        let iface = Iface { id: id.0, flags, epoch: epoch.0, oldest: oldest.0, upper: dev.upper };
        let before = netdev::counters(&dev.name)?;
        // Hooks first: a refused packet is taken to have passed them.
        let hooks = match attach(kernel, subject, dev).and_then(|hooks| Ok((hooks, kernel.watch(dev.index, iface)?))) {
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
        self.end_accounting(&ids);
        for (id, subject) in &gone {
            let kernel = &mut self.books.source.kernel;
            // Only links that we hold can be taken away, so hooks of an earlier agent are taken over first.
            if let Some(dev) = still_there(subject) {
                attach(kernel, subject, &dev)?;
            }
            kernel.detach(subject.ifindex)?;
            self.proofs.remove(id);
        }
        let due: Vec<(IfaceId, bool)> = gone.iter().map(|(id, _)| (*id, false)).collect();
        self.books.turn(&due, Now::read(), Scope::Closed)?;
        let events: Vec<Event> = gone.iter().map(|(id, _)| Event::Unwatch { id: *id }).collect();
        Ok(self.books.record(&events)?)
    }

    /// From one moment on, packets of some interfaces are not counted any more; those counted before get their verdicts.
    fn end_accounting(&mut self, ids: &[IfaceId]) {
        let kernel = &self.books.source.kernel;
        let ending = || ids.iter().filter_map(|id| Some((*id, self.books.ledger.get(*id)?)));
        for (id, w) in ending() {
            let refused = abi::WANT_REFUSED_INGRESS | abi::WANT_REFUSED_EGRESS;
            let kept = match still_there(&w.subject) {
                Some(dev) => flags(&w.subject.rule, &dev) & (refused | abi::NO_LINK_HEADER | abi::IS_BRIDGE),
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
            proof.window_closed(&w.subject.interface, truth);
        }
    }

    /// Takes the hooks away and closes all windows; nothing of us stays in the kernel.
    ///
    /// # Errors
    /// If the kernel or the journal refuses.
    pub fn finish(&mut self, now: Now) -> Result<(), AgentError> {
        let ids: Vec<IfaceId> = self.books.ledger.watched().map(|(id, _)| id).collect();
        self.end_accounting(&ids);
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
                    proof.look(&w.subject.interface, &truth);
                }
            }
        }
    }

    /// The books, to look at.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.books.ledger
    }
}

/// Attaches what a rule needs; returns the directions hooked.
fn attach(kernel: &mut Kernel, subject: &Subject, dev: &NetDev) -> Result<Vec<Direction>, AgentError> {
    let mut hooked = Vec::new();
    for direction in Direction::BOTH {
        if subject.rule.directions.includes(direction) && subject.rule.action != Action::Rejected {
            let hook = kernel.attach(dev, direction, subject.hook)?;
            tracing::info!(interface = dev.name, %direction, %hook, "attached");
            hooked.push(direction);
        }
    }
    Ok(hooked)
}

/// The interface of a subject, if it is still the same one. One that is gone has taken its hooks along.
fn still_there(subject: &Subject) -> Option<NetDev> {
    netdev::find(&subject.interface).ok().filter(|dev| dev.index == subject.ifindex)
}

/// A journal whose ring is pinned elsewhere must not be taken for one whose ring is gone.
fn refuse_other_pins(config: &Config, head: Option<&Head>, boot_id: &str) -> Result<(), AgentError> {
    let Some(Head { boot_id: written, pin_dir: Some(dir), .. }) = head else { return Ok(()) };
    if written != boot_id || config.pin_dir.as_ref() == Some(dir) || !dir.exists() {
        return Ok(());
    }
    Err(AgentError::OtherPins { dir: dir.clone() })
}

impl Live {
    fn empty(&mut self) -> Result<(), AgentError> {
        if !self.kernel.is_pinned() {
            return Ok(());
        }
        self.kernel.unwatch_all();
        self.kernel.wait_for_programs();
        let (mut at, mut dropped) = (Cursor::default(), 0u64);
        loop {
            let swept = self.kernel.sweep(Scope::All, at)?;
            while self.ring.pop().is_some() {
                dropped += 1;
            }
            match swept {
                Swept::RingFull(cursor) => at = cursor,
                Swept::Done => break,
            }
        }
        self.kernel.clear_all_truth()?;
        if dropped > 0 {
            tracing::error!(
                records = dropped,
                "the pinned maps held records, but the state directory has no journal of them: dropped"
            );
        }
        Ok(())
    }
}

impl Source for Live {
    fn read(&mut self) -> Option<(&[u8], u64)> {
        self.ring.read()
    }

    fn position(&self) -> u64 {
        self.ring.position()
    }

    fn produced(&self) -> u64 {
        self.ring.produced()
    }

    fn release(&mut self, position: u64) {
        self.ring.release(position);
    }

    fn set_epoch(&mut self, id: IfaceId, ifindex: u32, epoch: Epoch) {
        self.kernel.set_epoch(id, ifindex, epoch);
    }

    fn set_oldest(&mut self, subject: &Subject, oldest: Epoch) {
        self.kernel.set_oldest(subject.ifindex, oldest);
        self.kernel.set_upper(subject.ifindex, netdev::upper(&subject.interface));
    }

    fn wait_for_programs(&mut self) {
        self.kernel.wait_for_programs();
    }

    fn sweep(&mut self, scope: Scope, from: Cursor) -> Result<Swept, AgentError> {
        fault::point("sweep_begins");
        Ok(self.kernel.sweep(scope, from)?)
    }

    fn truth(&self, id: IfaceId, epoch: Epoch) -> Result<Truth, AgentError> {
        Ok(self.kernel.truth(id, epoch)?)
    }

    fn clear_truth(&mut self, id: IfaceId, epoch: Epoch) -> Result<(), AgentError> {
        Ok(self.kernel.clear_truth(id, epoch)?)
    }

    fn seek(&mut self, position: u64) -> bool {
        self.ring.seek(position)
    }

    fn forget(&mut self) -> Result<(), AgentError> {
        self.empty()
    }
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
