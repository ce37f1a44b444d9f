//! The hooks on the interfaces: attaching them, taking them away, and the moment from which packets count and until which.

use std::collections::{BTreeMap, BTreeSet};

use flowlog_ebpf::abi;
use flowlog_host::fault;
use flowlog_model::{
    HookKind, IfaceId, WatchSpec,
    interface::{NetDev, NetnsName},
    rule::{Action, Direction},
};

use super::{
    hook_check::HookCheck,
    resolution::{Resolution, Resolved},
};
use crate::{
    books::Books,
    source::{Node, SourceError, Watch},
    window::{Closed, ledger::Watched},
};

/// Interfaces whose hooks are checked at the same time: each costs a few system calls.
const CHECKED_PER_TICK: usize = 16;

/// The interfaces that this process has hooked, and whether their hooks run.
pub(super) struct Hooked {
    /// What is known about the hooks of each. A watch of the ledger that is not here has at most an earlier agent's.
    checks: BTreeMap<IfaceId, Vec<HookCheck>>,
    /// The interface whose hooks were checked last.
    checked: IfaceId,
}

impl Hooked {
    pub(super) fn new() -> Self {
        Self { checks: BTreeMap::new(), checked: IfaceId(0) }
    }

    /// Whether this process has hooked an interface.
    pub(super) fn has(&self, id: IfaceId) -> bool {
        self.checks.contains_key(&id)
    }

    /// Hooks an interface of the ledger, unless this process has already.
    pub(super) fn attach<N: Node>(
        &mut self,
        books: &mut Books<N>,
        id: IfaceId,
        found: &Resolution,
        no_numbers: u16,
    ) -> Result<(), SourceError> {
        let Some(w) = books.ledger.get(id).filter(|_| !self.has(id)) else { return Ok(()) };
        let Some(Resolved { dev, .. }) = found.wanted.get(&w.spec.interface_id) else { return Ok(()) };
        let node = &mut books.source;
        // Packets are on their way that no hook has counted, unless an earlier agent's hooks have.
        let new = if node.watched(dev.key()) == Some(id) { 0 } else { abi::ONLY_NOTED };
        let flags = flags(&w.spec, dev) | new | no_numbers;
        let watch = Watch { id, flags, epoch: w.epoch, oldest: w.closing_epoch().unwrap_or(w.epoch) };
        let before = node.counters(&dev.netns, dev.index)?;
        // Hooks first: a refused packet is taken to have passed them.
        let hooked = node.hook(&w.spec, dev).and_then(|counted| node.watch(dev, watch).map(|()| counted));
        let counted = match hooked {
            Ok(counted) => counted,
            Err(error) => {
                // What has been attached is taken away, so that the next try begins anew.
                node.unhook(dev.key())?;
                return Err(error);
            }
        };
        if new == 0 {
            // An earlier agent may have hooked it for a rule that has changed since.
            node.unhook_rest(&w.spec, dev)?;
        }
        let checks = counted.into_iter().map(|direction| HookCheck::new(direction, before)).collect();
        self.checks.insert(id, checks);
        Ok(())
    }

    /// Attaches what another rule on an interface needs besides the hooks that there are; until the programs are told, nothing is counted by
    /// it. Where that cannot be all is as it was.
    pub(super) fn extend<N: Node>(
        &self,
        books: &mut Books<N>,
        id: IfaceId,
        Resolved { spec, dev }: &Resolved,
    ) -> Result<(), SourceError> {
        // One that this process has not hooked yet is hooked with all others.
        let Some(w) = books.ledger.get(id).filter(|_| self.has(id)) else { return Ok(()) };
        let node = &mut books.source;
        let Err(error) = node.hook(spec, dev) else { return Ok(()) };
        node.hook(&w.spec, dev)?;
        node.unhook_rest(&w.spec, dev)?;
        Err(error)
    }

    /// From now on packets count as another rule wants, whose hooks are there; those that it does not need are taken away.
    pub(super) fn reduce<N: Node>(
        &mut self,
        books: &mut Books<N>,
        id: IfaceId,
        Resolved { spec, dev }: &Resolved,
        no_numbers: u16,
    ) -> Result<(), SourceError> {
        if !self.has(id) {
            return Ok(());
        }
        books.source.set_flags(id, dev.key(), flags(spec, dev) | no_numbers);
        fault::point("change_told");
        books.source.unhook_rest(spec, dev)?;
        self.expect_anew(books, id, dev);
        Ok(())
    }

    /// The hooks of an interface count for another rule: what is expected of them changes.
    fn expect_anew<N: Node>(&mut self, books: &Books<N>, id: IfaceId, dev: &NetDev) {
        let (Some(checks), Some(w)) = (self.checks.get_mut(&id), books.ledger.get(id)) else { return };
        // Without them it is looked at later.
        let Ok(before) = books.source.counters(&dev.netns, dev.index) else { return };
        let counts = w.spec.rule.action != Action::Rejected;
        let counted = Direction::BOTH.into_iter().filter(|direction| counts && w.spec.captures(*direction));
        *checks = counted.map(|direction| HookCheck::new(direction, before)).collect();
    }

    /// Takes the hooks of an interface away.
    pub(super) fn take_away<N: Node>(
        &mut self,
        node: &mut N,
        (id, spec): (IfaceId, &WatchSpec),
        devices: &[NetDev],
    ) -> Result<(), SourceError> {
        // Only links that we hold can be taken away, so hooks of an earlier agent are taken over first.
        if let Some(dev) = still_there(devices, spec).filter(|_| !self.has(id)) {
            take_over(node, spec, dev)?;
        }
        node.unhook(spec.key())?;
        self.checks.remove(&id);
        Ok(())
    }

    /// Looks whether hooks that have not been seen running yet are.
    pub(super) fn check<N: Node>(&mut self, books: &Books<N>) {
        // Some at a time, in turns: on most of many interfaces nothing happens for long.
        let open = |p: &(&IfaceId, &mut Vec<HookCheck>)| !p.1.iter().all(HookCheck::is_settled);
        let last = self.checked;
        let in_turn = |id: &IfaceId| (*id <= last, *id);
        let mut waiting: Vec<(&IfaceId, &mut Vec<HookCheck>)> = self.checks.iter_mut().filter(open).collect();
        waiting.sort_by_key(|(id, _)| in_turn(id));
        for (id, checks) in waiting.into_iter().take(CHECKED_PER_TICK) {
            self.checked = *id;
            let Some(w) = books.ledger.get(*id) else { continue };
            if let Ok(truth) = books.source.truth(*id, w.epoch) {
                for check in checks {
                    check.look(&books.source, w, &truth);
                }
            }
        }
    }

    /// At the end of a window: was a hook by-passed all the time?
    pub(super) fn window_closed<N: Node>(&mut self, books: &Books<N>, window: &Closed) {
        let Some(truth) = &window.truth else { return };
        let of = |w: &Watched| w.spec.interface_id == window.info.interface_id;
        let Some((id, w)) = books.ledger.watched().find(|(_, w)| of(w)) else { return };
        for check in self.checks.get_mut(&id).into_iter().flatten() {
            check.window_closed(&books.source, w, truth);
        }
    }
}

/// From now on refused packets of an interface without a note count as well.
pub(super) fn judge<N: Node>(node: &mut N, (id, spec): (IfaceId, &WatchSpec), dev: &NetDev, no_numbers: u16) {
    let new = node.flags(dev.key()) & abi::ONLY_NOTED != 0;
    node.set_flags(id, dev.key(), flags(spec, dev) | no_numbers);
    if new {
        let flow_log = spec.rule.name.as_str();
        tracing::info!(interface = dev.name, netns = dev.netns.name(), index = dev.index, flow_log, "watching");
    }
}

/// From one moment on, packets of some interfaces are not counted any more; those counted before get their verdicts.
pub(super) fn end_accounting<N: Node>(books: &mut Books<N>, ids: &[IfaceId], devices: &[NetDev], no_numbers: u16) {
    let Books { source: node, ledger, .. } = books;
    let ending = || ids.iter().filter_map(|id| Some((*id, ledger.get(*id)?)));
    for (id, w) in ending() {
        let refused = abi::WANT_REFUSED_INGRESS | abi::WANT_REFUSED_EGRESS;
        let kept = match still_there(devices, &w.spec) {
            Some(dev) => {
                flags(&w.spec, dev) & (refused | abi::NO_LINK_HEADER | abi::IS_BRIDGE | abi::WANT_TRANSLATIONS)
            }
            None => 0,
        };
        node.set_flags(id, w.spec.key(), kept | abi::ONLY_NOTED | no_numbers);
    }
    // As at the end of a window: from the hook to the verdict is one grace period.
    node.wait_for_programs();
    node.wait_for_programs();
    for (id, w) in ending() {
        if node.watched(w.spec.key()) == Some(id) {
            node.unwatch(w.spec.key());
        }
    }
}

/// All interfaces that may be watched.
pub(super) fn devices<N: Node>(books: &Books<N>) -> Result<Vec<NetDev>, SourceError> {
    let mut devices = books.source.interfaces()?;
    let elsewhere = books.ledger.watched().filter_map(|(_, w)| w.spec.netns.as_ref());
    let named: BTreeSet<NetnsName> = elsewhere.filter_map(|netns| netns.parse().ok()).collect();
    if !named.is_empty() {
        devices.extend(books.source.interfaces_elsewhere(&named, true).devices);
    }
    Ok(devices)
}

/// Takes an earlier agent's hooks over, to take them away. Where that cannot be, somebody else is in their place, and there are none.
pub(super) fn take_over<N: Node>(node: &mut N, spec: &WatchSpec, dev: &NetDev) -> Result<(), SourceError> {
    match node.hook(spec, dev) {
        Err(SourceError::Interface(error)) => {
            tracing::warn!(interface = spec.interface, %error, "has no hooks of ours to take away");
            Ok(())
        }
        other => other.map(drop),
    }
}

/// The interface of a spec, if it is still the same one. One that is gone has taken its hooks along.
pub(super) fn still_there<'a>(devices: &'a [NetDev], spec: &WatchSpec) -> Option<&'a NetDev> {
    devices.iter().find(|dev| dev.key() == spec.key())
}

/// Flags of an interface for the programs.
fn flags(spec: &WatchSpec, dev: &NetDev) -> u16 {
    let rule = &spec.rule;
    let want = |direction, hook, refused| {
        if !spec.captures(direction) {
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
        | if spec.translations { abi::WANT_TRANSLATIONS } else { 0 }
}
