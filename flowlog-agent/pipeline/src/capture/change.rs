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
use flowlog_model::{CaptureSpec, HookKind, IfaceId, WatchSpec, interface::NetDev, sweep::Scope};

use super::{
    numbering::Numbering,
    resolution::{Resolution, Resolved},
    watcher::Watcher,
};
use crate::{
    books::Books,
    error::CaptureError,
    source::{Node, SourceError},
    window::Event,
};

/// Interfaces that could not be given to another rule: the id of each in it, and why.
pub(super) type Stays = BTreeMap<IfaceId, (String, SourceError)>;

/// Why one rule cannot follow another one on an interface without a packet between the two, or one that both count.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Parted {
    #[error(
        "tcx and clsact cannot take over from each other without missing packets or counting some twice: {kind} on {on} reads skb->tc_index, in \
         which packets are numbered; take that away for the moment, {RESTART}"
    )]
    Read { kind: String, on: String },
    #[error(
        "TC and XDP cannot take over from each other without missing packets or counting some twice: {0}, {RESTART}"
    )]
    Xdp(SourceError),
}

/// What is left to do.
const RESTART: &str = "or restart the agent: the capture then ends and begins anew, with a row that says from when to when nobody counted";

impl Watcher {
    /// Gives interfaces to another rule: their open windows end, and the next ones are the new rule's. No packet is between the two. Hooks that
    /// serve both are not touched; what the new rule needs besides is attached before, and what it does not need is taken away after.
    ///
    /// Returns the interfaces where that cannot be: they go on under the rule that they had. Where gaps are taken, the captures of some
    /// end instead, and begin anew.
    pub(super) fn change<N: Node>(
        &mut self,
        books: &mut Books<N>,
        found: &Resolution,
        numbering: &Numbering,
    ) -> Result<Stays, CaptureError> {
        let mut stays = Stays::new();
        let mut changed: Vec<(IfaceId, Resolved)> = Vec::new();
        for (id, w) in books.ledger.watched() {
            let Some(next) = successor(found, &w.spec) else { continue };
            let Err(parted) = can_follow(&books.source, numbering.reader(), &w.spec, &next.spec) else {
                changed.push((id, next.clone()));
                continue;
            };
            if self.takes_gaps {
                let (interface, flow_log) = (&w.spec.interface, next.spec.rule.name.as_str());
                let why = parted.to_string();
                tracing::warn!(interface, flow_log, why, "the capture ends here and begins anew, with a gap");
            } else {
                stays.insert(id, (next.spec.interface_id.clone(), SourceError::Interface(Box::new(parted))));
            }
        }
        if changed.is_empty() {
            return Ok(stays);
        }
        stays.append(&mut self.extend(books, &mut changed)?);
        if changed.is_empty() {
            return Ok(stays);
        }
        self.turn_over(books, &changed, numbering.no_numbers())?;
        Ok(stays)
    }

    /// Ends the windows of interfaces whose hooks serve both rules, and begins the other rule's.
    fn turn_over<N: Node>(
        &mut self,
        books: &mut Books<N>,
        changed: &[(IfaceId, Resolved)],
        no_numbers: u16,
    ) -> Result<(), CaptureError> {
        let due: Vec<(IfaceId, bool)> = changed.iter().map(|(id, _)| (*id, false)).collect();
        for (id, Resolved { spec, dev }) in changed {
            end_early(books, *id, spec, dev);
        }
        let now = books.source.now();
        books.turn(&due, now, Scope::Closed)?;
        let mut events = Vec::with_capacity(changed.len());
        for (id, Resolved { spec, .. }) in changed {
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
        for (id, next) in changed {
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
        Ok(())
    }

    /// What `captures` would take a gap for, if they were wanted now: each flow log and interface, and why.
    pub(super) fn would_part<N: Node>(
        &self,
        books: &Books<N>,
        captures: &[CaptureSpec],
    ) -> Result<Vec<String>, CaptureError> {
        let (found, _) = self.resolve_these(books, captures, books.source.interfaces()?);
        let devices: Vec<&NetDev> = found.wanted.values().map(|w| &w.dev).collect();
        let users = books.source.number_users(&devices);
        let parted = books.ledger.watched().filter_map(|(_, w)| {
            let Resolved { spec, dev } = successor(&found, &w.spec)?;
            let why = can_follow(&books.source, users.reader.as_ref(), &w.spec, spec).err()?;
            Some(format!("flow log `{}` on {}: {why}", spec.rule.name.as_str(), dev.name))
        });
        Ok(parted.collect())
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

/// What follows a watch on its interface, if that is another rule, or hooked in another way.
fn successor<'a>(found: &'a Resolution, old: &WatchSpec) -> Option<&'a Resolved> {
    found.wanted.values().find(|n| old.is_on_same(&n.spec) && !n.spec.is_same(old))
}

/// Whether a watch can follow another one on its interface without a packet between the two, or one that both count. `reader`: who else reads what
/// tells a packet that two TC hooks have seen, its number.
fn can_follow<N: Node>(
    node: &N,
    reader: Option<&(String, String)>,
    old: &WatchSpec,
    spec: &WatchSpec,
) -> Result<(), Parted> {
    if let Some((kind, on)) = reader.filter(|_| node.swaps_tc(old, spec)) {
        return Err(Parted::Read { kind: kind.clone(), on: on.clone() });
    }
    if old.crosses_xdp(spec) { node.hands_over_xdp(spec).map_err(Parted::Xdp) } else { Ok(()) }
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use flowlog_model::{
        Labels, MonoNs, Now, WallNs,
        interface::Selector,
        rule::{Rule, Side},
        status::CaptureState,
    };

    use super::*;
    use crate::{
        books::Inherited,
        capture::{Capture, Setup},
        disk::{
            Filesystem,
            sim::{Random, SimDisk},
        },
        journal::{
            self,
            entry::{FORMAT, Head},
        },
        simulation::{OTHER_ID, SimKernel, SimSource, name},
    };

    const SECOND_NS: u64 = 1_000_000_000;

    /// A node, on which agents come and go.
    struct Place {
        disk: SimDisk,
        kernel: SimKernel,
        now: Now,
    }

    impl Place {
        fn new() -> Self {
            let (disk, kernel) = (SimDisk::default(), SimKernel::new(Random(1)));
            disk.make_dir("").expect("a new disk");
            Self { disk, kernel, now: Now { mono: MonoNs(1_000 * SECOND_NS), wall: WallNs(1_700_000_000_000_000_000) } }
        }

        fn pass(&mut self, secs: u8) {
            self.now.mono.0 += u64::from(secs) * SECOND_NS;
            self.now.wall.0 += i64::from(secs) * 1_000_000_000;
            self.kernel.set_now(self.now);
        }

        fn start(&mut self, captures: Vec<CaptureSpec>) -> Capture<SimSource> {
            self.pass(1);
            let fs: Arc<dyn Filesystem> = Arc::new(self.disk.clone());
            let found = journal::recover(&*fs).expect("a journal");
            let head = Head { format: FORMAT, boot_id: "1".to_owned(), ring_id: 1, pin_dir: None, begun: self.now };
            let setup = Setup { captures, node_id: "n".to_owned(), flows_max: usize::MAX };
            let source = SimSource::new(self.kernel.clone(), self.disk.clone());
            Capture::start(source, setup, Inherited { fs, found, head }).expect("it starts").0
        }

        /// Ends the capture; of each window whether it has a gap.
        fn end(&mut self, mut capture: Capture<SimSource>) -> Vec<bool> {
            self.pass(1);
            capture.finish(self.now).expect("it ends");
            capture.take_closed().iter().map(|closed| closed.info.gap.is_some()).collect()
        }
    }

    fn capture(hook: HookKind, id: &str) -> CaptureSpec {
        CaptureSpec {
            interface: Selector::name(name(1)),
            interface_id: Some(id.to_owned()),
            account_id: None,
            hook,
            side: Side::Host,
            wait: true,
            translations: false,
            labels: Labels::default(),
            rule: Rule::sample(60),
            called: None,
        }
    }

    fn hooks(capture: &Capture<SimSource>) -> Vec<HookKind> {
        capture.ledger().watched().map(|(_, w)| w.spec.hook).collect()
    }

    #[test]
    fn what_cannot_follow_in_a_reload_waits_until_it_can_and_no_window_has_a_gap() {
        // Under the id that it had, and under another one.
        for id in ["nic-1", OTHER_ID] {
            let mut place = Place::new();
            let mut agent = place.start(vec![capture(HookKind::Tc, "nic-1")]);
            agent.take_gaps(false);
            place.pass(5);
            place.kernel.lock().parts = true;
            let then = [capture(HookKind::Xdp, id)];
            let parted = agent.would_part(&then).expect("an answer");
            assert!(parted.len() == 1 && parted[0].contains("packets are parted"), "{parted:?}");
            assert!(parted[0].starts_with("flow log `web` on eth1: TC and XDP cannot take over"), "{parted:?}");
            assert!(agent.would_part(&[capture(HookKind::Clsact, id)]).expect("an answer").is_empty());
            // It was otherwise when somebody looked.
            agent.want(then.to_vec()).expect("it goes on");
            assert_eq!((hooks(&agent), agent.is_held(id)), (vec![HookKind::Tc], true), "{id}");
            let state = agent.states().remove(id).expect("a state");
            assert!(matches!(&state, CaptureState::Trouble { why } if why.contains("packets are parted")), "{state:?}");
            place.pass(5);
            agent.look_at_interfaces().expect("it looks");
            assert_eq!(hooks(&agent), [HookKind::Tc], "{id}");
            place.kernel.lock().parts = false;
            agent.look_at_interfaces().expect("it looks");
            assert_eq!((hooks(&agent), agent.is_held(id)), (vec![HookKind::Xdp], false), "{id}");
            assert_eq!(place.end(agent), [false, false], "{id}");
        }
    }

    #[test]
    fn a_start_or_an_order_takes_the_gap_and_says_so_under_the_id_that_the_interface_has_from_then_on() {
        for id in ["nic-1", OTHER_ID] {
            let mut place = Place::new();
            drop(place.start(vec![capture(HookKind::Tc, "nic-1")]));
            place.kernel.lock().parts = true;
            let agent = place.start(vec![capture(HookKind::Xdp, id)]);
            assert_eq!(hooks(&agent), [HookKind::Xdp]);
            assert_eq!(place.end(agent), [false, true], "{id}");
            let mut place = Place::new();
            let mut agent = place.start(vec![capture(HookKind::Tc, "nic-1")]);
            place.kernel.lock().parts = true;
            agent.want(vec![capture(HookKind::Xdp, id)]).expect("it goes on");
            assert_eq!(place.end(agent), [false, true], "{id}");
        }
    }
}
