//! Which interfaces are watched: looking at them, following those that have changed, beginning and ending.

use std::collections::{BTreeMap, BTreeSet};

use flowlog_ebpf::abi::{self, Iface};

use super::{Capture, Gone, still_there};
use crate::{
    agent::{
        AgentError,
        books::first_window,
        live::{attach, flags},
        proof::Proof,
        wanted::{self, Found, Wanted},
    },
    config,
    kernel::{KernelError, sweep::Scope},
    netdev::{self, Bound, NetDev, NetDevError, Selector},
    rule::WINDOW_SECS_MAX,
    types::{Epoch, IfaceId, Now},
    window::{Event, Subject},
};

/// Pause before an interface that could not be hooked is tried again.
const LOOK_AGAIN_NS: u64 = 200_000_000;
/// Interfaces that are hooked before the ring gets its turn: the kernel takes 12 ms for each hook (a grace period).
const NEW_PER_LOOK: usize = 8;
/// The same for the first seconds after an interface is gone: it may be on its way to another namespace.
const GONE_RECENTLY_SECS: i64 = 5;
/// Pause between looks while an interface is captured in another namespace: nobody tells when it changes.
const LOOK_ELSEWHERE_NS: u64 = 500_000_000;
/// Pause between looks into other namespaces for interfaces that have been gone for long.
const LOOK_FOR_GONE_NS: u64 = 10_000_000_000;

impl Capture {
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
        let now = Now::read();
        self.looked = now;
        let found = match netdev::all() {
            Ok(devices) => {
                let found = self.find(devices);
                self.stack(&found)?;
                found
            }
            Err(error) => {
                tracing::warn!(%error, "will try again");
                (self.unsettled, self.more) = (true, false);
                return Ok(());
            }
        };
        self.follow(&found)?;
        self.number(&found);
        let settled = found.is_watched(&self.books.ledger) && !self.unsettled;
        if !settled {
            self.note_gone(&found, now);
            self.unsettled = true;
            let troubles = self.watch_all(&found)?;
            for (id, error) in &troubles {
                if self.troubles.get(id) != Some(&error.to_string()) {
                    tracing::warn!(interface = id, %error, "will try again");
                }
            }
            self.unsettled = !troubles.is_empty();
            self.troubles = troubles.into_iter().map(|(id, e)| (id, e.to_string())).collect();
        }
        self.absent = found.absent;
        Ok(())
    }

    /// As [`look_at_interfaces`](Self::look_at_interfaces), if it is time to do so without having been told.
    ///
    /// # Errors
    /// As there.
    pub fn look_again(&mut self, now: Now) -> Result<(), AgentError> {
        if self.look_in_ns(now) == 0 { self.look_at_interfaces() } else { Ok(()) }
    }

    /// Time until [`look_again`](Self::look_again) has something to do: the last look could not do all there was to do, or
    /// an interface is, or may be, where nobody tells us that it changes.
    #[must_use]
    pub fn look_in_ns(&self, now: Now) -> u64 {
        if self.more {
            return 0;
        }
        let recently = |g: &Gone| now.wall.secs() - g.since_secs < GONE_RECENTLY_SECS;
        let elsewhere = || self.books.ledger.watched().any(|(_, w)| w.subject.netns.is_some());
        let pause = if self.unsettled || self.gone.values().any(recently) {
            LOOK_AGAIN_NS
        } else if elsewhere() {
            LOOK_ELSEWHERE_NS
        } else if self.gone.is_empty() && !self.sought {
            return u64::MAX;
        } else {
            LOOK_FOR_GONE_NS
        };
        pause.saturating_sub(now.mono.0.saturating_sub(self.looked.mono.0))
    }

    /// Whether everything has been done that can be done for now.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        !self.more
    }

    /// Finds the interfaces of all captures; `own` are those of our own namespace.
    pub(super) fn find(&mut self, mut own: Vec<NetDev>) -> Found {
        let watched = self.books.ledger.watched().map(|(_, w)| &w.subject);
        let known: BTreeMap<&str, Bound<'_>> = self
            .gone
            .values()
            .map(|g| &g.subject)
            .chain(watched)
            .map(|s| (s.interface_id.as_str(), s.bound()))
            .collect();
        // Only what was here before, or has an address of its own, is looked for elsewhere.
        let unfound = |c: &config::Capture| {
            let bound = known.get(c.id(&self.node_id).as_str()).copied();
            let sought = bound.is_some() || matches!(c.interface, Selector::Mac(_));
            sought && c.interface.find(&own, bound).is_none()
        };
        self.sought = self.captures.iter().any(unfound);
        if self.sought {
            own.extend(netdev::elsewhere());
        }
        wanted::find(&self.captures, &self.node_id, &own, &known)
    }

    /// Goes along with what has changed about interfaces that are being watched.
    fn follow(&mut self, found: &Found) -> Result<(), AgentError> {
        let mut named = Vec::new();
        for (id, w) in self.books.ledger.watched() {
            let Some(wanted) = found.wanted.get(&w.subject.interface_id).filter(|n| n.subject.is_same(&w.subject))
            else {
                continue;
            };
            if wanted.dev.name != w.subject.interface {
                tracing::info!(
                    interface = w.subject.interface,
                    now = wanted.dev.name,
                    "the interface has another name"
                );
            }
            if (&wanted.dev.name, wanted.dev.mac) != (&w.subject.interface, w.subject.mac) {
                named.push(Event::Named { id, interface: wanted.dev.name.clone(), mac: wanted.dev.mac });
            }
        }
        if named.is_empty() { Ok(()) } else { Ok(self.books.record(&named)?) }
    }

    /// Remembers since when interfaces are gone that should be watched.
    fn note_gone(&mut self, found: &Found, now: Now) {
        let since_secs = now.wall.secs();
        for (_, w) in self.books.ledger.watched().filter(|(_, w)| !found.wants(&w.subject)) {
            let same = |c: &&config::Capture| c.id(&self.node_id) == w.subject.interface_id && c.rule == w.subject.rule;
            if self.captures.iter().any(|c| same(&c)) {
                let moved = found.wanted.get(&w.subject.interface_id).and_then(|n| n.dev.netns.name());
                let interface = &w.subject.interface;
                if let Some(netns) = moved.filter(|netns| w.subject.netns.as_ref() != Some(netns)) {
                    tracing::warn!(interface, netns, "the interface is in another namespace");
                } else {
                    tracing::warn!(interface, "the interface is gone; waiting for it to come back");
                }
                self.gone.insert(w.subject.interface_id.clone(), Gone { since_secs, subject: w.subject.clone() });
            }
        }
        let wanted: BTreeSet<String> = self.captures.iter().map(|c| c.id(&self.node_id)).collect();
        self.gone.retain(|id, _| wanted.contains(id));
        // An earlier watch of this interface in the same window has keys already; of another day it has not.
        self.spans.retain(|_, span| span.start_secs > since_secs - 2 * i64::from(WINDOW_SECS_MAX));
    }

    /// Makes what is watched what is wanted. What cannot be watched, and why not, is in the answer.
    pub(super) fn watch_all(&mut self, found: &Found) -> Result<BTreeMap<String, AgentError>, AgentError> {
        // Verdicts first: a packet that passed a hook must not die unnoticed.
        self.books.source.kernel.attach_verdict()?;
        self.retire(|s| !found.wants(s))?;
        let (mut troubles, mut new) = (BTreeMap::new(), Vec::new());
        let mut ids = self.books.ledger.free_ids();
        let max = self.books.source.kernel.sizes().interfaces_max;
        let watched: BTreeSet<&str> =
            self.books.ledger.watched().map(|(_, w)| w.subject.interface_id.as_str()).collect();
        let unwatched = found.wanted.iter().filter(|(id, _)| !watched.contains(id.as_str()));
        self.more = unwatched.clone().count() > NEW_PER_LOOK;
        for (interface_id, wanted) in unwatched.take(NEW_PER_LOOK) {
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
            kernel.set_flags(id, dev.index, flags(&w.subject, dev) | self.no_numbers());
            if new {
                tracing::info!(interface = dev.name, index = dev.index, "watching");
            }
            if self.gone.remove(&w.subject.interface_id).is_some() {
                tracing::info!(interface = dev.name, index = dev.index, "the interface is back");
            }
        }
    }

    /// The first event of a new watch.
    fn beginning(&self, id: IfaceId, subject: &Subject) -> Event {
        let now = Now::read();
        let previous = self.spans.get(&subject.interface_id).copied();
        let span = first_window(subject.rule.window_secs, previous, now);
        let gap = self.gone.get(&subject.interface_id).map(|gone| (gone.since_secs, now.wall.secs()));
        Event::Watch { id, subject: Box::new(subject.clone()), span, epoch: Epoch(1), gap }
    }

    /// Hooks an interface of the ledger, unless this process has already.
    fn hook(&mut self, id: IfaceId, found: &Found) -> Result<(), AgentError> {
        let Some(w) = self.books.ledger.get(id).filter(|_| !self.proofs.contains_key(&id)) else { return Ok(()) };
        let Some(Wanted { dev, .. }) = found.wanted.get(&w.subject.interface_id) else { return Ok(()) };
        let (epoch, oldest) = (w.epoch, w.closing_epoch().unwrap_or(w.epoch));
        let no_numbers = self.no_numbers();
        let kernel = &mut self.books.source.kernel;
        // Packets are on their way that no hook has counted, unless an earlier agent's hooks have.
        let new = if kernel.watched(dev.index) == Some(id) { 0 } else { abi::ONLY_NOTED };
        let flags = flags(&w.subject, dev) | new | no_numbers;
        let iface = Iface { id: id.0, flags, epoch: epoch.0, oldest: oldest.0, spare: 0 };
        let before = netdev::counters(&dev.netns, dev.index)?;
        // Hooks first: a refused packet is taken to have passed them.
        let hooks = match attach(kernel, &w.subject, dev)
            .and_then(|hooks| Ok((hooks, kernel.watch(dev.netns.inum, dev.index, iface)?)))
        {
            Ok((hooks, ())) => hooks,
            Err(error) => {
                // The next try begins from nothing.
                kernel.detach(dev.index)?;
                return Err(error);
            }
        };
        // Where nobody tells of changes, the witness may be another interface's by now.
        let witnessed = hooks.into_iter().filter(|_| dev.netns.name().is_none());
        let proofs = witnessed.map(|direction| Proof::new(direction, before)).collect();
        self.proofs.insert(id, proofs);
        Ok(())
    }

    /// Stops watching what `unwanted` says.
    pub(super) fn retire(&mut self, unwanted: impl Fn(&Subject) -> bool) -> Result<(), AgentError> {
        let watched = self.books.ledger.watched().filter(|(_, w)| unwanted(&w.subject));
        let gone: Vec<(IfaceId, Subject)> = watched.map(|(id, w)| (id, w.subject.clone())).collect();
        if gone.is_empty() {
            return Ok(());
        }
        let ids: Vec<IfaceId> = gone.iter().map(|(id, _)| *id).collect();
        let devices = self.devices()?;
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

    /// All interfaces that may be watched.
    pub(super) fn devices(&self) -> Result<Vec<NetDev>, NetDevError> {
        let mut devices = netdev::all()?;
        if self.books.ledger.watched().any(|(_, w)| w.subject.netns.is_some()) {
            devices.extend(netdev::elsewhere());
        }
        Ok(devices)
    }

    /// From one moment on, packets of some interfaces are not counted any more; those counted before get their verdicts.
    pub(super) fn end_accounting(&mut self, ids: &[IfaceId], devices: &[NetDev]) {
        let kernel = &self.books.source.kernel;
        let ending = || ids.iter().filter_map(|id| Some((*id, self.books.ledger.get(*id)?)));
        for (id, w) in ending() {
            let refused = abi::WANT_REFUSED_INGRESS | abi::WANT_REFUSED_EGRESS;
            let kept = match still_there(devices, &w.subject) {
                Some(dev) => flags(&w.subject, dev) & (refused | abi::NO_LINK_HEADER | abi::IS_BRIDGE),
                None => 0,
            };
            kernel.set_flags(id, w.subject.ifindex, kept | abi::ONLY_NOTED | self.no_numbers());
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
}
