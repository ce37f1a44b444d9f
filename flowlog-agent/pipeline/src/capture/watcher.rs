//! Which interfaces are watched: looking at them, following those that have changed, beginning and ending, and when to look next.

use std::collections::{BTreeMap, BTreeSet};

use flowlog_model::{
    CaptureSpec, Epoch, IfaceId, MonoNs, Now, WatchSpec,
    interface::{Bound, By, Elsewhere, NetDev, NetnsName},
    rule::WINDOW_SECS_MAX,
    status::CaptureState,
    sweep::Scope,
    xdp::XdpMode,
};

use super::{
    change::Stays,
    hooks::{Hooked, devices, end_accounting, judge},
    numbering::Numbering,
    resolution::{Absent, Resolution, Resolved, resolve},
    waiting::NextLook,
};
use crate::{
    books::{Books, Spans, first_window},
    error::CaptureError,
    source::{Node, SourceError, XdpPlace},
    window::{Event, Ledger, ledger::Watched},
};

/// Interfaces that are hooked before the ring gets its turn: the kernel takes 12 ms for each hook (a grace period).
const NEW_PER_LOOK: usize = 8;
/// The kernel does not tell of XDP programs that are attached by a link: so often somebody looks. It costs one list of the interfaces.
const XDP_LOOK_NS: u64 = 4_000_000_000;
/// For so long an interface that is gone may be on its way to another namespace.
const GONE_RECENTLY_SECS: i64 = 5;

/// An interface that was watched, and is not there any more.
struct Gone {
    since_secs: i64,
    spec: WatchSpec,
}

/// The result of one round of changing the watches.
#[derive(Default)]
pub(super) struct Looked {
    /// What cannot be watched, and why not, by interface id.
    troubles: BTreeMap<String, CaptureError>,
    /// Those of them whose interface goes on under the rule that it had.
    held: BTreeSet<String>,
    /// More interfaces are to be hooked than one round does.
    is_more: bool,
}

/// What is to be captured, and what is remembered of the interfaces from one look to the next.
pub(super) struct Watcher {
    /// What is to be captured, whether its interface is there or not.
    pub(super) captures: Vec<CaptureSpec>,
    pub(super) node_id: String,
    pub(super) hooked: Hooked,
    /// Interfaces that were watched and are gone, by id.
    gone: BTreeMap<String, Gone>,
    /// Interfaces that are being hooked otherwise, by id, and since when nothing counts there.
    replaced: BTreeMap<String, i64>,
    /// Last windows of earlier watches, by interface id: new ones must come after them.
    pub(super) spans: Spans,
    /// What the next look at the interfaces waits for.
    waiting: NextLook,
    /// When the last one was.
    looked: Now,
    /// Captures without an interface, and why, by interface id.
    absent: BTreeMap<String, Absent>,
    /// Captures whose interface is there and cannot be hooked, and why.
    troubles: BTreeMap<String, String>,
    /// Those of them whose interface goes on under the rule that it had, by interface id.
    pub(super) held: BTreeSet<String>,
    /// XDP programs that were on each interface when they were looked at.
    xdp: BTreeMap<IfaceId, Vec<(XdpMode, u32)>>,
    /// When that was.
    xdp_looked: MonoNs,
    /// A capture may end where another one of its interface cannot follow without missing packets; else it stays.
    pub(super) takes_gaps: bool,
}

impl Watcher {
    /// Has not looked yet. `spans` are the last windows of watches that were lost.
    pub(super) fn new(captures: Vec<CaptureSpec>, node_id: String, spans: Spans, now: Now) -> Self {
        Self {
            captures,
            node_id,
            hooked: Hooked::new(),
            gone: BTreeMap::new(),
            replaced: BTreeMap::new(),
            spans,
            waiting: NextLook::Change,
            looked: now,
            absent: BTreeMap::new(),
            troubles: BTreeMap::new(),
            held: BTreeSet::new(),
            xdp: BTreeMap::new(),
            xdp_looked: now.mono,
            takes_gaps: true,
        }
    }

    /// Changes what is to be captured. The next look acts on it.
    pub(super) fn want(&mut self, captures: Vec<CaptureSpec>) {
        self.captures = captures;
    }

    /// A look begins; whether the last one left something to do. Until [`note_look`](Self::note_look) this one does so too: after
    /// an error the next look comes soon.
    pub(super) fn begin_look(&mut self, now: Now) -> bool {
        self.looked = now;
        let before = std::mem::replace(&mut self.waiting, NextLook::Trouble);
        matches!(before, NextLook::Trouble | NextLook::Turn)
    }

    /// Remembers how a look ended, and with it what the next one waits for.
    pub(super) fn note_look<N: Node>(&mut self, books: &Books<N>, looked: Looked, found: Resolution, sought: bool) {
        for (id, error) in &looked.troubles {
            if self.troubles.get(id) != Some(&error.to_string()) {
                tracing::warn!(interface = id, %error, "will try again");
            }
        }
        self.troubles = looked.troubles.into_iter().map(|(id, e)| (id, e.to_string())).collect();
        self.held = looked.held;
        self.absent = found.absent;
        let now = books.source.now();
        self.looked = now;
        let told = books.source.hears_elsewhere();
        self.waiting = self.waits_for(&books.ledger, (looked.is_more, sought, told), now);
    }

    /// What the next look waits for, after one at `now`. `told`: changes in other namespaces bring it.
    fn waits_for(&self, ledger: &Ledger, (is_more, sought, told): (bool, bool, bool), now: Now) -> NextLook {
        let recently = |g: &Gone| now.wall.secs() - g.since_secs < GONE_RECENTLY_SECS;
        if is_more {
            NextLook::Turn
        } else if !self.troubles.is_empty() {
            NextLook::Trouble
        } else if self.gone.values().any(recently) {
            NextLook::Move
        } else if self.is_missing_elsewhere() || (!told && ledger.watched().any(|(_, w)| w.spec.netns.is_some())) {
            NextLook::Elsewhere
        } else if sought || !self.gone.is_empty() {
            NextLook::Sought
        } else {
            NextLook::Change
        }
    }

    /// Whether a namespace is named, and it or the interface in it is not there: nobody tells when it is.
    fn is_missing_elsewhere(&self) -> bool {
        let missing = |c: &CaptureSpec| c.interface.netns.is_some() && self.absent.contains_key(&c.id(&self.node_id));
        self.captures.iter().any(missing)
    }

    /// Time until the next look; [`u64::MAX`]: when the kernel tells of a change.
    pub(super) fn look_in_ns(&self, now: Now) -> u64 {
        let since = now.mono.0.saturating_sub(self.looked.mono.0);
        self.waiting.pause_ns().map_or(u64::MAX, |pause| pause.saturating_sub(since))
    }

    /// Whether the last look has hooked all that can be.
    pub(super) fn is_complete(&self) -> bool {
        self.waiting != NextLook::Turn
    }

    /// How every capture is doing, by interface id.
    pub(super) fn states(&self, ledger: &Ledger) -> BTreeMap<String, CaptureState> {
        let absent = self.absent.iter().map(|(id, why)| (id.clone(), why.state()));
        let watched = ledger.watched().map(|(_, w)| (w.spec.interface_id.clone(), attached(&w.spec)));
        let troubles = self.troubles.iter().map(|(id, why)| (id.clone(), CaptureState::Trouble { why: why.clone() }));
        absent.chain(watched).chain(troubles).collect()
    }

    /// How `captures` would be doing, if they were wanted.
    pub(super) fn would_be<N: Node>(
        &self,
        books: &Books<N>,
        captures: &[CaptureSpec],
    ) -> Result<BTreeMap<String, CaptureState>, CaptureError> {
        let (found, _) = self.resolve_these(books, captures, books.source.interfaces()?);
        let absent = found.absent.iter().map(|(id, why)| (id.clone(), why.state()));
        let there = found.wanted.into_iter().map(|(id, Resolved { spec, .. })| (id, attached(&spec)));
        Ok(absent.chain(there).collect())
    }

    /// Finds the interfaces of all captures; `own` are those of our own namespace. The second part of the answer: some were looked
    /// for in other namespaces as well.
    pub(super) fn resolve<N: Node>(&self, books: &Books<N>, own: Vec<NetDev>) -> (Resolution, bool) {
        self.resolve_these(books, &self.captures, own)
    }

    pub(super) fn resolve_these<N: Node>(
        &self,
        books: &Books<N>,
        captures: &[CaptureSpec],
        mut own: Vec<NetDev>,
    ) -> (Resolution, bool) {
        let watched = books.ledger.watched().map(|(_, w)| &w.spec);
        let known: BTreeMap<&str, Bound<'_>> =
            self.gone.values().map(|g| &g.spec).chain(watched).map(|s| (s.interface_id.as_str(), s.bound())).collect();
        // Only what was here before, or has an address of its own, is looked for elsewhere.
        let unfound = |c: &CaptureSpec| {
            let bound = known.get(c.id(&self.node_id).as_str()).copied();
            let sought = bound.is_some() || matches!(c.interface.by, By::Mac(_));
            sought && c.interface.netns.is_none() && c.interface.find(&own, bound, &BTreeMap::new()).is_none()
        };
        let sought = captures.iter().any(unfound);
        let named: BTreeSet<NetnsName> = captures.iter().filter_map(|c| c.interface.netns.clone()).collect();
        let mut elsewhere = Elsewhere::default();
        if sought || !named.is_empty() {
            elsewhere = books.source.interfaces_elsewhere(&named, sought);
            own.append(&mut elsewhere.devices);
        }
        (resolve(captures, &self.node_id, (&own, &elsewhere.namespaces), &known), sought)
    }

    /// Remembers since when interfaces are gone that should be watched.
    pub(super) fn note_gone(&mut self, ledger: &Ledger, found: &Resolution, now: Now) {
        let since_secs = now.wall.secs();
        // One that is there, and watched otherwise from now on, is not gone.
        let is_there = |w: &Watched| found.wanted.values().any(|n| n.spec.key() == w.spec.key());
        for (_, w) in ledger.watched().filter(|(_, w)| !found.wants(&w.spec) && !is_there(w)) {
            let same = |c: &&CaptureSpec| c.id(&self.node_id) == w.spec.interface_id && c.rule == w.spec.rule;
            if self.captures.iter().any(|c| same(&c)) {
                let moved = found.wanted.get(&w.spec.interface_id).and_then(|n| n.dev.netns.name());
                let interface = &w.spec.interface;
                let flow_log = w.spec.rule.name.as_str();
                if let Some(netns) = moved.filter(|netns| w.spec.netns.as_ref() != Some(netns)) {
                    tracing::warn!(interface, netns, flow_log, "the interface is in another namespace");
                } else {
                    let netns = w.spec.netns.as_deref();
                    let index = w.spec.ifindex;
                    tracing::warn!(
                        interface,
                        netns,
                        index,
                        flow_log,
                        "the interface is gone; waiting for it to come back"
                    );
                }
                self.gone.insert(w.spec.interface_id.clone(), Gone { since_secs, spec: w.spec.clone() });
            }
        }
        let wanted: BTreeSet<String> = self.captures.iter().map(|c| c.id(&self.node_id)).collect();
        self.gone.retain(|id, _| wanted.contains(id));
        self.replaced.retain(|id, _| wanted.contains(id));
        // Only a watch of about the same time can share a window with a new one, and so its keys: older spans are forgotten.
        self.spans.retain(|_, span| span.start_secs > since_secs - 2 * i64::from(WINDOW_SECS_MAX));
    }

    /// As [`watch_all`](Self::watch_all), at a start. Where an interface must be there, all are hooked before it returns, and that
    /// one of those cannot be is an error.
    pub(super) fn watch_first<N: Node>(
        &mut self,
        books: &mut Books<N>,
        found: &Resolution,
        numbering: &Numbering,
    ) -> Result<Looked, CaptureError> {
        let strict = self.captures.iter().filter(|c| !c.wait).map(|c| c.id(&self.node_id));
        let strict: Vec<String> = strict.collect();
        loop {
            let mut looked = self.watch_all(books, found, numbering)?;
            match strict.iter().find_map(|id| looked.troubles.remove(id)) {
                Some(error) => return Err(error),
                None if !looked.is_more || strict.is_empty() => return Ok(looked),
                None => {}
            }
        }
    }

    /// Makes the watches what `found` wants, as many as one round does.
    pub(super) fn watch_all<N: Node>(
        &mut self,
        books: &mut Books<N>,
        found: &Resolution,
        numbering: &Numbering,
    ) -> Result<Looked, CaptureError> {
        // Verdicts first: a packet that passed a hook must not die unnoticed.
        books.source.attach_verdict()?;
        let no_numbers = numbering.no_numbers();
        let stays = self.change(books, found, numbering)?;
        self.retire(books, found, (&stays, no_numbers))?;
        let mut looked = self.begin(books, found, &stays)?;
        looked.held = stays.values().map(|(id, _)| id.clone()).collect();
        looked.troubles.extend(stays.into_values().map(|(id, error)| (id, error.into())));
        let watched: Vec<IfaceId> = books.ledger.watched().map(|(id, _)| id).collect();
        for id in watched {
            match self.hooked.attach(books, id, found, no_numbers) {
                Err(error @ SourceError::Interface(_)) => {
                    let interface_id = books.ledger.get(id).map(|w| w.spec.interface_id.clone());
                    looked.troubles.insert(interface_id.unwrap_or_default(), error.into());
                }
                other => other?,
            }
        }
        // Packets that had passed a hook before it counted have died or been delivered now.
        books.source.wait_for_programs();
        self.begin_judging(books, found, no_numbers);
        books.source.remove_stale_hooks()?;
        let now = books.source.now();
        books.beat(now)?;
        Ok(looked)
    }

    /// Looks at other people's XDP where programs have come, changed or gone, and where nobody has looked yet. `device` finds the
    /// interface of a watch.
    pub(super) fn look_at_xdp<'a, N: Node>(
        &mut self,
        books: &mut Books<N>,
        device: impl Fn(&WatchSpec) -> Option<&'a NetDev>,
    ) -> Result<(), CaptureError> {
        let mut changed = Vec::new();
        let mut now = BTreeMap::new();
        for (id, w) in books.ledger.watched().filter(|(id, _)| self.hooked.has(*id)) {
            let before = self.xdp.remove(&id);
            let found = device(&w.spec).map(|dev| dev.xdp.clone());
            if found.is_some() && (w.xdp.is_unread() || found != before) {
                changed.push(id);
            }
            now.extend(found.or(before).map(|programs| (id, programs)));
        }
        self.xdp = now;
        self.xdp_looked = books.source.now().mono;
        // First: what the driver has counted so far is what nobody of ours has seen.
        books.look_at_xdp(&changed)?;
        let places: Vec<XdpPlace> = books
            .ledger
            .watched()
            .filter_map(|(id, w)| Some(XdpPlace { id, spec: w.spec.clone(), programs: self.xdp.get(&id)?.clone() }))
            .collect();
        let changed = books.source.see_xdp(&places);
        Ok(books.look_at_xdp(&changed)?)
    }

    /// Whether it is time to look at XDP without having been told.
    pub(super) fn is_xdp_due(&self, now: Now) -> bool {
        now.mono.0.saturating_sub(self.xdp_looked.0) >= XDP_LOOK_NS
    }

    /// Stops watching what is not wanted.
    fn retire<N: Node>(
        &mut self,
        books: &mut Books<N>,
        found: &Resolution,
        (stays, no_numbers): (&Stays, u16),
    ) -> Result<(), CaptureError> {
        let unwanted = books.ledger.watched().filter(|(id, w)| !found.wants(&w.spec) && !stays.contains_key(id));
        let gone: Vec<(IfaceId, WatchSpec)> = unwanted.map(|(id, w)| (id, w.spec.clone())).collect();
        if gone.is_empty() {
            return Ok(());
        }
        let ids: Vec<IfaceId> = gone.iter().map(|(id, _)| *id).collect();
        let devices = devices(books)?;
        let now = books.source.now();
        for (_, spec) in &gone {
            // The same id on another interface, or the same interface with another id.
            let next = found.wanted.iter().filter(|(id, n)| **id == spec.interface_id || n.spec.is_on_same(spec));
            self.replaced.extend(next.map(|(id, _)| (id.clone(), now.wall.secs())));
        }
        end_accounting(books, &ids, &devices, no_numbers);
        for (id, spec) in &gone {
            self.hooked.take_away(&mut books.source, (*id, spec), &devices)?;
        }
        let due: Vec<(IfaceId, bool)> = gone.iter().map(|(id, _)| (*id, false)).collect();
        for (id, spec) in &gone {
            if let Some(w) = books.ledger.get(*id) {
                self.spans.insert(spec.interface_id.clone(), *w.clock.current());
            }
        }
        let now = books.source.now();
        books.turn(&due, now, Scope::Closed)?;
        let events: Vec<Event> = gone.iter().map(|(id, _)| Event::Unwatch { id: *id }).collect();
        Ok(books.record(&events)?)
    }

    /// Begins the watches that are wanted and are not in the ledger yet.
    fn begin<N: Node>(
        &mut self,
        books: &mut Books<N>,
        found: &Resolution,
        stays: &Stays,
    ) -> Result<Looked, CaptureError> {
        let mut troubles = BTreeMap::new();
        let mut new = Vec::new();
        let mut ids = books.ledger.free_ids();
        let max = books.source.interfaces_max();
        let watched: BTreeSet<&str> = books.ledger.watched().map(|(_, w)| w.spec.interface_id.as_str()).collect();
        // What an interface stays with keeps its place.
        let stays = |id: &String| stays.values().any(|(next, _)| next == id);
        let unwatched = found.wanted.iter().filter(|(id, _)| !watched.contains(id.as_str()) && !stays(id));
        let is_more = unwatched.clone().count() > NEW_PER_LOOK;
        for (interface_id, wanted) in unwatched.take(NEW_PER_LOOK) {
            if let Some(id) = ids.next().filter(|id| id.0 <= max) {
                new.push(self.beginning(id, &wanted.spec, books.source.now()));
            } else {
                troubles.insert(interface_id.clone(), CaptureError::NoRoom { max });
            }
        }
        drop(ids);
        if !new.is_empty() {
            books.record(&new)?;
            for event in &new {
                if let Event::Watch { spec, .. } = event {
                    self.replaced.remove(&spec.interface_id);
                }
            }
        }
        Ok(Looked { troubles, is_more, ..Looked::default() })
    }

    /// The first event of a new watch.
    fn beginning(&self, id: IfaceId, spec: &WatchSpec, now: Now) -> Event {
        let previous = self.spans.get(&spec.interface_id).copied();
        let span = first_window(spec.rule.window_secs, previous, now);
        let gone = self.gone.get(&spec.interface_id).map(|gone| gone.since_secs);
        let since = gone.or_else(|| self.replaced.get(&spec.interface_id).copied());
        let gap = since.map(|since_secs| (since_secs, now.wall.secs()));
        let since_secs = Some(now.wall.secs());
        Event::Watch { id, spec: Box::new(spec.clone()), span, epoch: Epoch(1), gap, since_secs }
    }

    /// From now on refused packets without a note count as well; an interface that was gone is back.
    fn begin_judging<N: Node>(&mut self, books: &mut Books<N>, found: &Resolution, no_numbers: u16) {
        let Books { source, ledger, .. } = books;
        for (id, w) in ledger.watched().filter(|(id, _)| self.hooked.has(*id)) {
            let Some(Resolved { dev, .. }) = found.wanted.get(&w.spec.interface_id) else { continue };
            judge(source, (id, &w.spec), dev, no_numbers);
            if self.gone.remove(&w.spec.interface_id).is_some() {
                let netns = dev.netns.name();
                let flow_log = w.spec.rule.name.as_str();
                tracing::info!(interface = dev.name, netns, index = dev.index, flow_log, "the interface is back");
            }
        }
    }
}

/// Goes along with what has changed about interfaces that are being watched.
pub(super) fn follow<N: Node>(books: &mut Books<N>, found: &Resolution) -> Result<(), CaptureError> {
    let mut named = Vec::new();
    for (id, w) in books.ledger.watched() {
        let Some(wanted) = found.wanted.get(&w.spec.interface_id).filter(|n| n.spec.is_same(&w.spec)) else {
            continue;
        };
        if wanted.dev.name != w.spec.interface {
            tracing::info!(interface = w.spec.interface, now = wanted.dev.name, "the interface has another name");
        }
        let labels = &wanted.spec.labels;
        if (&wanted.dev.name, wanted.dev.mac, labels) != (&w.spec.interface, w.spec.mac, &w.spec.labels) {
            let (interface, mac) = (wanted.dev.name.clone(), wanted.dev.mac);
            named.push(Event::Named { id, interface, mac, labels: labels.clone() });
        }
    }
    if named.is_empty() { Ok(()) } else { Ok(books.record(&named)?) }
}

/// The state of a spec that is watched.
fn attached(spec: &WatchSpec) -> CaptureState {
    let WatchSpec { interface, ifindex, netns, .. } = spec;
    CaptureState::Attached { interface: interface.clone(), ifindex: *ifindex, netns: netns.clone() }
}
