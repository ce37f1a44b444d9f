//! A rule that changes on an interface that is watched: one window ends, the next one begins, and no packet is between the two.
//!
//! ```text
//! hooks that are missing attached -> window turned -> Changed durable -> programs told -> hooks that are too many taken away
//! ```
//!
//! Killed in between, the next agent finds the rule that is wanted, attaches what that needs, and does the rest.

use std::collections::BTreeMap;

use flowlog_ebpf::abi;
use flowlog_host::fault;
use flowlog_model::{HookKind, IfaceId, WatchSpec, interface::NetDev, sweep::Scope};

use super::{
    resolution::{Resolution, Resolved},
    watcher::Watcher,
};
use crate::{
    books::Books,
    error::CaptureError,
    source::{Node, SourceError},
    window::{Event, ledger::Watched},
};

/// Interfaces that could not be given to another rule: the id of each in it, and why.
pub(super) type Stays = BTreeMap<IfaceId, (String, SourceError)>;

impl Watcher {
    /// Gives interfaces to another rule: their open windows end, and the next ones are the new rule's. No packet is between the two. Hooks that
    /// serve both are not touched; what the new rule needs besides is attached before, and what it does not need is taken away after.
    ///
    /// Returns the interfaces where that cannot be: they go on under the rule that they had.
    pub(super) fn change<N: Node>(
        &mut self,
        books: &mut Books<N>,
        found: &Resolution,
        no_numbers: u16,
    ) -> Result<Stays, CaptureError> {
        let successor = |w: &Watched| {
            let of_same = |n: &&Resolved| !n.spec.is_same(&w.spec) && can_follow(&books.source, no_numbers, &w.spec, n);
            found.wanted.values().find(of_same).cloned()
        };
        let mut changed: Vec<(IfaceId, Resolved)> =
            books.ledger.watched().filter_map(|(id, w)| Some((id, successor(w)?))).collect();
        if changed.is_empty() {
            return Ok(Stays::new());
        }
        let stays = self.extend(books, &mut changed)?;
        if changed.is_empty() {
            return Ok(stays);
        }
        let due: Vec<(IfaceId, bool)> = changed.iter().map(|(id, _)| (*id, false)).collect();
        for (id, Resolved { spec, dev }) in &changed {
            end_early(books, *id, spec, dev);
        }
        let now = books.source.now();
        books.turn(&due, now, Scope::Closed)?;
        let mut events = Vec::with_capacity(changed.len());
        for (id, Resolved { spec, .. }) in &changed {
            let Some(w) = books.ledger.get(*id) else { continue };
            if w.spec.interface_id != spec.interface_id {
                // Whoever has the id that it had must come after this.
                self.spans.insert(w.spec.interface_id.clone(), *w.clock.current());
            }
            let span = w.clock.with_length(spec.rule.window_secs);
            events.push(Event::Changed { id: *id, spec: Box::new(spec.clone()), span });
        }
        fault::point("change_turned");
        books.record(&events)?;
        fault::point("change_recorded");
        for (id, next) in &changed {
            self.hooked.reduce(books, *id, next, no_numbers)?;
            let Resolved { spec, dev } = next;
            let (interface, flow_log) = (&dev.name, spec.rule.name.as_str());
            tracing::info!(
                interface,
                netns = dev.netns.name(),
                flow_log,
                "the flow log has changed: a new window begins"
            );
        }
        Ok(stays)
    }

    /// Attaches what successors need besides the hooks that there are. Those where that cannot be are left out.
    fn extend<N: Node>(
        &self,
        books: &mut Books<N>,
        changed: &mut Vec<(IfaceId, Resolved)>,
    ) -> Result<Stays, CaptureError> {
        let mut stays = Stays::new();
        let mut extended = Vec::with_capacity(changed.len());
        for (id, next) in changed.drain(..) {
            match self.hooked.extend(books, id, &next) {
                Ok(()) => extended.push((id, next)),
                Err(error @ SourceError::Interface(_)) => {
                    stays.insert(id, (next.spec.interface_id.clone(), error));
                }
                Err(error) => return Err(error.into()),
            }
        }
        *changed = extended;
        fault::point("change_hooked");
        Ok(stays)
    }
}

/// Whether a watch can follow another one without a packet between the two, or one that both count.
fn can_follow<N: Node>(node: &N, no_numbers: u16, old: &WatchSpec, Resolved { spec, .. }: &Resolved) -> bool {
    // What tells a packet that two TC hooks have seen is its number.
    let swaps = old.tc_hook() != spec.tc_hook() && no_numbers != 0;
    old.is_on_same(spec) && !swaps && (!old.crosses_xdp(spec) || node.hands_over_xdp(spec))
}

/// What ends with the open window of a watch, or before: who does not want translations gets none, and where XDP has counted TC does. (An XDP
/// hook's packets are noted later, which its own windows allow for.)
fn end_early<N: Node>(books: &mut Books<N>, id: IfaceId, spec: &WatchSpec, dev: &NetDev) {
    let flags = books.source.flags(dev.key());
    let ends = if spec.translations { 0 } else { abi::WANT_TRANSLATIONS };
    let by_tc = spec.counts_ingress_by().is_some_and(|hook| hook != HookKind::Xdp);
    let ends = flags & (ends | if by_tc { abi::XDP_INGRESS } else { 0 });
    if ends != 0 {
        tracing::debug!(interface = spec.interface, "translations or XDP are not wanted any more");
        books.source.set_flags(id, dev.key(), flags & !ends);
    }
}
