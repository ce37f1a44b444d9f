//! Which interfaces are watched: looking at them, following those that have changed, beginning and ending.

use std::collections::{BTreeMap, BTreeSet};

use flowlog_ebpf::abi;
use flowlog_model::{
    CaptureSpec, Epoch, HookKind, IfaceId, Now, WatchSpec,
    interface::{Bound, NetDev, Selector},
    rule::{Action, Direction, WINDOW_SECS_MAX},
    status::CaptureState,
    sweep::Scope,
};

use super::{
    Capture, Gone, Waiting, attached,
    hook_check::HookCheck,
    resolution::{Resolution, Resolved, resolve},
    still_there, take_over,
};
use crate::{
    books::first_window,
    error::CaptureError,
    source::{Node, SourceError, Watch},
    window::Event,
};

/// Interfaces that are hooked before the ring gets its turn: the kernel takes 12 ms for each hook (a grace period).
const NEW_PER_LOOK: usize = 8;
/// For so long an interface that is gone may be on its way to another namespace.
const GONE_RECENTLY_SECS: i64 = 5;

/// The result of one round of changing the watches.
#[derive(Default)]
pub(super) struct Looked {
    /// What cannot be watched, and why not, by interface id.
    pub(super) troubles: BTreeMap<String, CaptureError>,
    /// More interfaces are to be hooked than one round does.
    pub(super) is_more: bool,
}

impl<N: Node> Capture<N> {
    /// Changes what is to be captured.
    ///
    /// # Errors
    /// As [`look_at_interfaces`](Self::look_at_interfaces).
    pub fn want(&mut self, captures: Vec<CaptureSpec>) -> Result<(), CaptureError> {
        self.captures = captures;
        self.look_at_interfaces()
    }

    /// Looks at the interfaces again: stops watching those that are gone or not wanted any more, and watches those that
    /// have come (back).
    ///
    /// # Errors
    /// If the kernel or the journal refuses. An interface that cannot be hooked is no error: it may be gone already, and is
    /// tried again.
    pub fn look_at_interfaces(&mut self) -> Result<(), CaptureError> {
        let now = self.books.source.now();
        self.looked = now;
        // An error below leaves this standing, so the next look comes soon.
        let before = std::mem::replace(&mut self.waiting, Waiting::Trouble);
        let devices = match self.books.source.interfaces() {
            Ok(devices) => devices,
            Err(error) => {
                tracing::warn!(%error, "will try again");
                return Ok(());
            }
        };
        let (found, sought) = self.resolve(devices);
        self.stack(&found)?;
        self.follow(&found)?;
        self.number(&found);
        let settled = found.is_watched(&self.books.ledger) && !matches!(before, Waiting::Trouble | Waiting::Turn);
        let looked = if settled {
            Looked::default()
        } else {
            self.note_gone(&found, now);
            self.watch_all(&found)?
        };
        self.note_look(looked, found, sought);
        Ok(())
    }

    /// Remembers how a look ended, and with it what the next one waits for.
    pub(super) fn note_look(&mut self, looked: Looked, found: Resolution, sought: bool) {
        for (id, error) in &looked.troubles {
            if self.troubles.get(id) != Some(&error.to_string()) {
                tracing::warn!(interface = id, %error, "will try again");
            }
        }
        self.troubles = looked.troubles.into_iter().map(|(id, e)| (id, e.to_string())).collect();
        self.absent = found.absent;
        let now = self.books.source.now();
        self.looked = now;
        self.waiting = self.waits_for(looked.is_more, sought, now);
    }

    /// What the next look waits for, after one at `now`.
    fn waits_for(&self, is_more: bool, sought: bool, now: Now) -> Waiting {
        let recently = |g: &Gone| now.wall.secs() - g.since_secs < GONE_RECENTLY_SECS;
        if is_more {
            Waiting::Turn
        } else if !self.troubles.is_empty() {
            Waiting::Trouble
        } else if self.gone.values().any(recently) {
            Waiting::Move
        } else if self.books.ledger.watched().any(|(_, w)| w.spec.netns.is_some()) {
            Waiting::Elsewhere
        } else if sought || !self.gone.is_empty() {
            Waiting::Sought
        } else {
            Waiting::Change
        }
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
        let since = now.mono.0.saturating_sub(self.looked.mono.0);
        self.waiting.pause_ns().map_or(u64::MAX, |pause| pause.saturating_sub(since))
    }

    /// Whether the wanted watches stand, as far as their interfaces are there and can be hooked.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.waiting != Waiting::Turn
    }

    /// How captures would be doing if these, and no others, were wanted. Looks as [`want`](Self::want) does, and changes nothing.
    ///
    /// # Errors
    /// If the kernel does not say which interfaces there are.
    pub fn would_be(&self, captures: &[CaptureSpec]) -> Result<BTreeMap<String, CaptureState>, CaptureError> {
        let (found, _) = self.resolve_these(captures, self.books.source.interfaces()?);
        let absent = found.absent.iter().map(|(id, why)| (id.clone(), why.state()));
        let there = found.wanted.into_iter().map(|(id, Resolved { spec, .. })| (id, attached(&spec)));
        Ok(absent.chain(there).collect())
    }

    /// Finds the interfaces of all captures; `own` are those of our own namespace. The second part of the answer: some were looked
    /// for in other namespaces as well.
    pub(super) fn resolve(&self, own: Vec<NetDev>) -> (Resolution, bool) {
        self.resolve_these(&self.captures, own)
    }

    fn resolve_these(&self, captures: &[CaptureSpec], mut own: Vec<NetDev>) -> (Resolution, bool) {
        let watched = self.books.ledger.watched().map(|(_, w)| &w.spec);
        let known: BTreeMap<&str, Bound<'_>> =
            self.gone.values().map(|g| &g.spec).chain(watched).map(|s| (s.interface_id.as_str(), s.bound())).collect();
        // Only what was here before, or has an address of its own, is looked for elsewhere.
        let unfound = |c: &CaptureSpec| {
            let bound = known.get(c.id(&self.node_id).as_str()).copied();
            let sought = bound.is_some() || matches!(c.interface, Selector::Mac(_));
            sought && c.interface.find(&own, bound).is_none()
        };
        let sought = captures.iter().any(unfound);
        if sought {
            own.extend(self.books.source.interfaces_elsewhere());
        }
        (resolve(captures, &self.node_id, &own, &known), sought)
    }

    /// Goes along with what has changed about interfaces that are being watched.
    fn follow(&mut self, found: &Resolution) -> Result<(), CaptureError> {
        let mut named = Vec::new();
        for (id, w) in self.books.ledger.watched() {
            let Some(wanted) = found.wanted.get(&w.spec.interface_id).filter(|n| n.spec.is_same(&w.spec)) else {
                continue;
            };
            if wanted.dev.name != w.spec.interface {
                tracing::info!(interface = w.spec.interface, now = wanted.dev.name, "the interface has another name");
            }
            if (&wanted.dev.name, wanted.dev.mac) != (&w.spec.interface, w.spec.mac) {
                named.push(Event::Named { id, interface: wanted.dev.name.clone(), mac: wanted.dev.mac });
            }
        }
        if named.is_empty() { Ok(()) } else { Ok(self.books.record(&named)?) }
    }

    /// Remembers since when interfaces are gone that should be watched.
    fn note_gone(&mut self, found: &Resolution, now: Now) {
        let since_secs = now.wall.secs();
        for (_, w) in self.books.ledger.watched().filter(|(_, w)| !found.wants(&w.spec)) {
            let same = |c: &&CaptureSpec| c.id(&self.node_id) == w.spec.interface_id && c.rule == w.spec.rule;
            if self.captures.iter().any(|c| same(&c)) {
                let moved = found.wanted.get(&w.spec.interface_id).and_then(|n| n.dev.netns.name());
                let interface = &w.spec.interface;
                if let Some(netns) = moved.filter(|netns| w.spec.netns.as_ref() != Some(netns)) {
                    tracing::warn!(interface, netns, "the interface is in another namespace");
                } else {
                    tracing::warn!(interface, "the interface is gone; waiting for it to come back");
                }
                self.gone.insert(w.spec.interface_id.clone(), Gone { since_secs, spec: w.spec.clone() });
            }
        }
        let wanted: BTreeSet<String> = self.captures.iter().map(|c| c.id(&self.node_id)).collect();
        self.gone.retain(|id, _| wanted.contains(id));
        // Only a watch of about the same time can share a window with a new one, and so its keys: older spans are forgotten.
        self.spans.retain(|_, span| span.start_secs > since_secs - 2 * i64::from(WINDOW_SECS_MAX));
    }

    /// Makes the watches what `found` wants, as many as one round does.
    pub(super) fn watch_all(&mut self, found: &Resolution) -> Result<Looked, CaptureError> {
        // Verdicts first: a packet that passed a hook must not die unnoticed.
        self.books.source.attach_verdict()?;
        self.retire(|s| !found.wants(s))?;
        let mut troubles = BTreeMap::new();
        let mut new = Vec::new();
        let mut ids = self.books.ledger.free_ids();
        let max = self.books.source.interfaces_max();
        let watched: BTreeSet<&str> = self.books.ledger.watched().map(|(_, w)| w.spec.interface_id.as_str()).collect();
        let unwatched = found.wanted.iter().filter(|(id, _)| !watched.contains(id.as_str()));
        let is_more = unwatched.clone().count() > NEW_PER_LOOK;
        for (interface_id, wanted) in unwatched.take(NEW_PER_LOOK) {
            if let Some(id) = ids.next().filter(|id| id.0 <= max) {
                new.push(self.beginning(id, &wanted.spec));
            } else {
                troubles.insert(interface_id.clone(), CaptureError::NoRoom { max });
            }
        }
        drop(ids);
        if !new.is_empty() {
            self.books.record(&new)?;
        }
        let watched: Vec<IfaceId> = self.books.ledger.watched().map(|(id, _)| id).collect();
        for id in watched {
            match self.hook(id, found) {
                Err(error @ CaptureError::Source(SourceError::Interface(_))) => {
                    let interface_id = self.books.ledger.get(id).map(|w| w.spec.interface_id.clone());
                    troubles.insert(interface_id.unwrap_or_default(), error);
                }
                other => other?,
            }
        }
        // Packets that had passed a hook before it counted have died or been delivered now.
        self.books.source.wait_for_programs();
        self.begin_judging(found);
        self.books.source.remove_stale_hooks()?;
        let now = self.books.source.now();
        self.books.beat(now)?;
        Ok(Looked { troubles, is_more })
    }

    /// From now on refused packets without a note count as well.
    fn begin_judging(&mut self, found: &Resolution) {
        let no_numbers = self.no_numbers();
        let node = &mut self.books.source;
        for (id, w) in self.books.ledger.watched().filter(|(id, _)| self.checks.contains_key(id)) {
            let Some(Resolved { dev, .. }) = found.wanted.get(&w.spec.interface_id) else { continue };
            let new = node.flags(dev.index) & abi::ONLY_NOTED != 0;
            node.set_flags(id, dev.index, flags(&w.spec, dev) | no_numbers);
            if new {
                tracing::info!(interface = dev.name, index = dev.index, "watching");
            }
            if self.gone.remove(&w.spec.interface_id).is_some() {
                tracing::info!(interface = dev.name, index = dev.index, "the interface is back");
            }
        }
    }

    /// The first event of a new watch.
    fn beginning(&self, id: IfaceId, spec: &WatchSpec) -> Event {
        let now = self.books.source.now();
        let previous = self.spans.get(&spec.interface_id).copied();
        let span = first_window(spec.rule.window_secs, previous, now);
        let gap = self.gone.get(&spec.interface_id).map(|gone| (gone.since_secs, now.wall.secs()));
        Event::Watch { id, spec: Box::new(spec.clone()), span, epoch: Epoch(1), gap }
    }

    /// Hooks an interface of the ledger, unless this process has already.
    fn hook(&mut self, id: IfaceId, found: &Resolution) -> Result<(), CaptureError> {
        let Some(w) = self.books.ledger.get(id).filter(|_| !self.checks.contains_key(&id)) else { return Ok(()) };
        let Some(Resolved { dev, .. }) = found.wanted.get(&w.spec.interface_id) else { return Ok(()) };
        let no_numbers = self.no_numbers();
        let node = &mut self.books.source;
        // Packets are on their way that no hook has counted, unless an earlier agent's hooks have.
        let new = if node.watched(dev.index) == Some(id) { 0 } else { abi::ONLY_NOTED };
        let flags = flags(&w.spec, dev) | new | no_numbers;
        let watch = Watch { id, flags, epoch: w.epoch, oldest: w.closing_epoch().unwrap_or(w.epoch) };
        let before = node.counters(dev)?;
        // Hooks first: a refused packet is taken to have passed them.
        let hooked = node.hook(&w.spec, dev).and_then(|counted| node.watch(dev, watch).map(|()| counted));
        let counted = match hooked {
            Ok(counted) => counted,
            Err(error) => {
                // What has been attached is taken away, so that the next try begins anew.
                node.unhook(dev.index)?;
                return Err(error.into());
            }
        };
        // In another namespace the index may belong to another interface by now, and its counter is no witness.
        let witnessed = counted.into_iter().filter(|_| dev.netns.name().is_none());
        let checks = witnessed.map(|direction| HookCheck::new(direction, before)).collect();
        self.checks.insert(id, checks);
        Ok(())
    }

    /// Stops watching what `unwanted` says.
    pub(super) fn retire(&mut self, unwanted: impl Fn(&WatchSpec) -> bool) -> Result<(), CaptureError> {
        let watched = self.books.ledger.watched().filter(|(_, w)| unwanted(&w.spec));
        let gone: Vec<(IfaceId, WatchSpec)> = watched.map(|(id, w)| (id, w.spec.clone())).collect();
        if gone.is_empty() {
            return Ok(());
        }
        let ids: Vec<IfaceId> = gone.iter().map(|(id, _)| *id).collect();
        let devices = self.devices()?;
        self.end_accounting(&ids, &devices);
        for (id, spec) in &gone {
            let node = &mut self.books.source;
            // Only links that we hold can be taken away, so hooks of an earlier agent are taken over first.
            if let Some(dev) = still_there(&devices, spec).filter(|_| !self.checks.contains_key(id)) {
                take_over(node, spec, dev)?;
            }
            node.unhook(spec.ifindex)?;
            self.checks.remove(id);
        }
        let due: Vec<(IfaceId, bool)> = gone.iter().map(|(id, _)| (*id, false)).collect();
        for (id, spec) in &gone {
            if let Some(w) = self.books.ledger.get(*id) {
                self.spans.insert(spec.interface_id.clone(), *w.clock.current());
            }
        }
        let now = self.books.source.now();
        self.books.turn(&due, now, Scope::Closed)?;
        let events: Vec<Event> = gone.iter().map(|(id, _)| Event::Unwatch { id: *id }).collect();
        Ok(self.books.record(&events)?)
    }

    /// All interfaces that may be watched.
    pub(super) fn devices(&self) -> Result<Vec<NetDev>, CaptureError> {
        let mut devices = self.books.source.interfaces()?;
        if self.books.ledger.watched().any(|(_, w)| w.spec.netns.is_some()) {
            devices.extend(self.books.source.interfaces_elsewhere());
        }
        Ok(devices)
    }

    /// From one moment on, packets of some interfaces are not counted any more; those counted before get their verdicts.
    pub(super) fn end_accounting(&mut self, ids: &[IfaceId], devices: &[NetDev]) {
        let no_numbers = self.no_numbers();
        let node = &mut self.books.source;
        let ledger = &self.books.ledger;
        let ending = || ids.iter().filter_map(|id| Some((*id, ledger.get(*id)?)));
        for (id, w) in ending() {
            let refused = abi::WANT_REFUSED_INGRESS | abi::WANT_REFUSED_EGRESS;
            let kept = match still_there(devices, &w.spec) {
                Some(dev) => flags(&w.spec, dev) & (refused | abi::NO_LINK_HEADER | abi::IS_BRIDGE),
                None => 0,
            };
            node.set_flags(id, w.spec.ifindex, kept | abi::ONLY_NOTED | no_numbers);
        }
        // As at the end of a window: from the hook to the verdict is one grace period.
        node.wait_for_programs();
        node.wait_for_programs();
        for (id, w) in ending() {
            if node.watched(w.spec.ifindex) == Some(id) {
                node.unwatch(w.spec.ifindex);
            }
        }
    }
}

/// Flags of an interface for the programs.
fn flags(spec: &WatchSpec, dev: &NetDev) -> u16 {
    let rule = &spec.rule;
    let want = |direction, hook, refused| {
        if !rule.directions.includes(spec.side.owners(direction)) {
            return 0;
        }
        // Accepted is seen less refused, so it needs both; for rejected alone packets are noted and not counted.
        if rule.action == Action::Rejected { refused } else { hook | refused }
    };
    let by_xdp = spec.hook == HookKind::Xdp && rule.action != Action::Rejected;
    want(Direction::Ingress, abi::WANT_INGRESS, abi::WANT_REFUSED_INGRESS)
        | want(Direction::Egress, abi::WANT_EGRESS, abi::WANT_REFUSED_EGRESS)
        | if by_xdp { abi::XDP_INGRESS } else { 0 }
        | if dev.link_header { 0 } else { abi::NO_LINK_HEADER }
        | if dev.bridge { abi::IS_BRIDGE } else { 0 }
}
