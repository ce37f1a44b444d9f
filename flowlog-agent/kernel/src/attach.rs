//! Hooks: tcx links, clsact filters, XDP; and the verdict programs.
//!
//! Our TC programs go first, so that they see what is on the wire, whatever other programs do later. They return
//! `TCX_NEXT`, so everything after them still runs.

mod elsewhere;
mod filter;
mod order;
mod traced;

use std::{fmt, os::fd::OwnedFd, path::PathBuf};

use aya::{
    programs::{
        BtfTracePoint, Xdp, XdpMode,
        links::{FdLink, LinkError, PinnedLink},
        xdp::XdpLink,
    },
    util::KernelVersion,
};
use flowlog_model::{
    HookKind,
    interface::{IfKey, NetDev, Netns},
    rule::Direction,
};

use self::{elsewhere::pin_name, filter::Filter, order::Tcx, traced::Traced};
use super::{
    KernelError,
    netdev::netns,
    pins::{self, Pins},
    programs::Programs,
};

/// How a hook is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    Tcx,
    Clsact,
    /// XDP, run by the driver.
    XdpNative,
    /// XDP, run by the stack: the driver has none.
    XdpGeneric,
}

impl fmt::Display for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
            Self::XdpNative => "xdp (native)",
            Self::XdpGeneric => "xdp (generic)",
        })
    }
}

/// Where on an interface a hook of ours can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HookPlace {
    Tcx(Direction),
    Clsact(Direction),
    Xdp,
}

impl HookPlace {
    /// Where a direction is hooked in this way, on this kernel.
    fn of(direction: Direction, kind: HookKind) -> Self {
        match kind {
            HookKind::Xdp if direction == Direction::Ingress => Self::Xdp,
            HookKind::Tcx => Self::Tcx(direction),
            // XDP has no egress: TC does it.
            HookKind::Tc | HookKind::Xdp if has_tcx() => Self::Tcx(direction),
            HookKind::Tc | HookKind::Xdp | HookKind::Clsact => Self::Clsact(direction),
        }
    }
}

/// Whether a tcx link makes way for a clsact filter on one direction, or the other way round, where hooks `after` follow those `before`.
#[must_use]
pub fn swaps_tc(before: &[(Direction, HookKind)], after: &[(Direction, HookKind)]) -> bool {
    let places = |hooks: &[(Direction, HookKind)]| -> Vec<HookPlace> {
        hooks.iter().map(|(direction, kind)| HookPlace::of(*direction, *kind)).collect()
    };
    let after = places(after);
    places(before).into_iter().any(|place| match place {
        HookPlace::Tcx(direction) => after.contains(&HookPlace::Clsact(direction)),
        HookPlace::Clsact(direction) => after.contains(&HookPlace::Tcx(direction)),
        HookPlace::Xdp => false,
    })
}

/// The place of a hook, when it was attached.
struct On {
    key: IfKey,
    netns: Netns,
    place: HookPlace,
}

/// What holds one program in place.
pub(super) struct Hook {
    /// Where that is; `None`: a verdict program.
    on: Option<On>,
    link: Held,
    /// Where it is pinned, if it is.
    pin: Option<PathBuf>,
}

/// A link; it detaches when dropped, unless it is pinned.
enum Held {
    Link {
        _link: FdLink,
    },
    /// On tcx, in any namespace.
    Tcx(Tcx),
    /// On XDP in another network namespace.
    Entry {
        _link: OwnedFd,
        /// The kernel's id of the program.
        id: u32,
    },
    /// On clsact, in any namespace.
    Filter(Filter),
}

/// Whether the running kernel is `major.minor` or newer.
#[must_use]
pub fn kernel_at_least(major: u8, minor: u8) -> bool {
    KernelVersion::current().is_ok_and(|v| v >= KernelVersion::new(major, minor, 0))
}

/// Whether this kernel has tcx links.
#[must_use]
pub fn has_tcx() -> bool {
    kernel_at_least(6, 6)
}

/// All hooks that this process holds, and where they are pinned.
pub struct Hooks {
    held: Vec<Hook>,
    /// Other people's programs that are traced.
    traced: Traced,
    pins: Option<Pins>,
}

impl Hooks {
    pub(super) fn new(pins: Option<Pins>) -> Self {
        Self { held: Vec::new(), traced: Traced::default(), pins }
    }

    /// Whether they outlive this process.
    #[must_use]
    pub(crate) fn are_pinned(&self) -> bool {
        self.pins.is_some()
    }

    /// The kernel's ids of our programs on tcx, and on XDP in other network namespaces.
    #[must_use]
    pub fn ids(&self) -> Vec<u32> {
        let id = |h: &Hook| match &h.link {
            Held::Entry { id, .. } | Held::Tcx(Tcx { id, .. }) => Some(*id),
            _ => None,
        };
        self.held.iter().filter_map(id).collect()
    }

    /// Whether one direction of an interface is hooked in this way by this process.
    #[must_use]
    pub fn has(&self, of: IfKey, direction: Direction, kind: HookKind) -> bool {
        self.at(of, HookPlace::of(direction, kind)).is_some()
    }

    /// Which of those that are held is at a place.
    fn at(&self, of: IfKey, place: HookPlace) -> Option<usize> {
        self.held.iter().position(|h| h.on.as_ref().is_some_and(|on| on.key == of && on.place == place))
    }

    /// Hooks one direction of an interface, unless it is. A hook of an earlier agent is given our program in place, and one of the other kind of
    /// TC makes way: no packet is missed, and none is counted twice. `base` is what the hook must add to the interface's index, if it is in
    /// another network namespace.
    ///
    /// # Errors
    /// [`KernelError::Attach`] with the kernel's words; what was there before stays.
    pub fn attach(
        &mut self,
        programs: &mut Programs,
        (dev, base): (&NetDev, Option<u32>),
        direction: Direction,
        kind: HookKind,
    ) -> Result<Attached, KernelError> {
        let place = HookPlace::of(direction, kind);
        let is_held = self.at(dev.key(), place).is_some();
        // The kernel finds an interface by its index in the namespace of whoever asks.
        let entered = netns::enter(&dev.netns, || match place {
            HookPlace::Tcx(_) if !has_tcx() => Err(no_tcx(dev, direction)),
            HookPlace::Tcx(_) if is_held => Ok(Attached::Tcx),
            HookPlace::Clsact(_) if is_held => Ok(Attached::Clsact),
            // It may be generic as well: the log said which when it was attached.
            HookPlace::Xdp if is_held => Ok(Attached::XdpNative),
            HookPlace::Tcx(_) => self.attach_tcx(programs, (dev, base), direction).map(|()| Attached::Tcx),
            HookPlace::Clsact(_) => self.attach_clsact(programs, (dev, base), direction).map(|()| Attached::Clsact),
            HookPlace::Xdp => match base {
                None => self.attach_xdp(programs, dev),
                Some(base) => self.attach_xdp_entry(programs, (dev, base)),
            },
        });
        entered.unwrap_or_else(|e| Err(attach_error(&dev.name, "a hook", &e)))
    }

    /// The hook an earlier agent left behind, and where it is or will be pinned.
    fn earlier(&self, hook: &str) -> (Option<PathBuf>, Option<FdLink>) {
        let pin = self.pins.as_ref().map(|p| p.link(hook));
        let link = pin.as_ref().and_then(|p| PinnedLink::from_pin(p).ok()).map(FdLink::from);
        (pin, link)
    }

    /// Keeps a new link: pinned, if there is a place for it. `on` is absent for verdicts.
    fn keep(
        &mut self,
        on: Option<(&NetDev, HookPlace)>,
        link: FdLink,
        pin: Option<PathBuf>,
    ) -> Result<(), KernelError> {
        let link = match &pin {
            Some(path) => {
                // A dead one may be in the way: its interface is gone.
                pins::remove(path)?;
                let pinned =
                    link.pin(path).map_err(|e| KernelError::from_chain(format!("pin `{}`", path.display()), &e))?;
                pinned.into()
            }
            None => link,
        };
        self.hold(on, Held::Link { _link: link }, pin);
        Ok(())
    }

    fn hold(&mut self, on: Option<(&NetDev, HookPlace)>, link: Held, pin: Option<PathBuf>) {
        let on = on.map(|(dev, place)| On { key: dev.key(), netns: dev.netns.clone(), place });
        self.held.push(Hook { on, link, pin });
    }

    fn attach_xdp(&mut self, programs: &mut Programs, dev: &NetDev) -> Result<Attached, KernelError> {
        let (pin, earlier) = self.earlier(&format!("{}-xdp", pin_name(dev)));
        let program: &mut Xdp = programs.get("flowlog_xdp")?;
        let failed = |e: &(dyn std::error::Error + 'static)| attach_error(&dev.name, "xdp", e);
        if let Some(link) = earlier.and_then(|l| XdpLink::try_from(l).ok())
            && let Ok(id) = program.attach_to_link(link)
        {
            let link = program.take_link(id).map_err(|e| failed(&e))?;
            let link = link.try_into().map_err(|e: LinkError| failed(&e))?;
            self.hold(Some((dev, HookPlace::Xdp)), Held::Link { _link: link }, pin);
            // As above: it may be generic as well.
            return Ok(Attached::XdpNative);
        }
        let mut native_problem = None;
        for (mode, attached) in [(XdpMode::Driver, Attached::XdpNative), (XdpMode::Skb, Attached::XdpGeneric)] {
            match program.attach(dev.index, mode).and_then(|id| program.take_link(id)) {
                Ok(link) => {
                    let link = link.try_into().map_err(|e: LinkError| failed(&e))?;
                    self.keep(Some((dev, HookPlace::Xdp)), link, pin)?;
                    return Ok(attached);
                }
                Err(e) => {
                    native_problem.get_or_insert(failed(&e));
                }
            }
        }
        let none = || KernelError::Refused { action: "attach xdp".to_owned(), problem: "no mode worked".to_owned() };
        Err(one_xdp_program(native_problem.unwrap_or_else(none)))
    }

    /// Attaches the verdict programs, or takes the place of an earlier agent's. The order matters: see
    /// `flowlog-ebpf/src/bin/flowlog/verdict.rs`.
    pub fn attach_verdict(&mut self, programs: &mut Programs) -> Result<(), KernelError> {
        // A second link would count everything twice.
        if self.held.iter().any(|h| h.on.is_none()) {
            return Ok(());
        }
        programs.use_verdicts()?;
        for (name, hook) in [("flowlog_drop", "drop"), ("flowlog_drop_nested", "drop-nested")] {
            let (pin, earlier) = self.earlier(hook);
            if let Some(link) = earlier {
                self.hold(None, Held::Link { _link: link }, pin);
                continue;
            }
            let program: &mut BtfTracePoint = programs.get(name)?;
            let link = program
                .attach()
                .and_then(|id| program.take_link(id))
                .map_err(|e| KernelError::from_chain("attach to the tracepoint kfree_skb", &e))?;
            self.keep(None, link.into(), pin)?;
        }
        Ok(())
    }

    /// Takes the hooks of one interface away.
    pub fn detach(&mut self, of: IfKey) -> Result<(), KernelError> {
        self.detach_where(|on| on.key == of)
    }

    fn detach_where(&mut self, is_it: impl Fn(&On) -> bool) -> Result<(), KernelError> {
        let is_it = |h: &Hook| h.on.as_ref().is_some_and(&is_it);
        let (gone, kept): (Vec<Hook>, Vec<Hook>) = std::mem::take(&mut self.held).into_iter().partition(is_it);
        self.held = kept;
        gone.into_iter().try_for_each(Hook::detach)
    }

    /// Takes the hooks of an interface away but for these; filters of an earlier agent as well. (What such an agent has pinned is
    /// [left over](Self::remove_stale_hooks).)
    pub fn keep_only(&mut self, dev: &NetDev, kept: &[(Direction, HookKind)]) -> Result<(), KernelError> {
        let places: Vec<HookPlace> = kept.iter().map(|(direction, kind)| HookPlace::of(*direction, *kind)).collect();
        self.detach_where(|on| on.key == dev.key() && !places.contains(&on.place))?;
        for direction in Direction::BOTH.into_iter().filter(|d| !places.contains(&HookPlace::Clsact(*d))) {
            // Dropped, it is taken away.
            drop(Filter::there(dev, direction));
        }
        Ok(())
    }

    /// Takes all hooks away; maps and their contents stay.
    pub fn detach_all(&mut self) -> Result<(), KernelError> {
        self.traced.end()?;
        // Hooks first: a packet that dies after its hook is gone is then merely not seen.
        let (verdicts, hooks): (Vec<Hook>, Vec<Hook>) =
            std::mem::take(&mut self.held).into_iter().partition(|h| h.on.is_none());
        hooks.into_iter().chain(verdicts).try_for_each(Hook::detach)
    }

    /// Removes pinned hooks that this process has not taken over: of interfaces that are gone or no longer wanted.
    pub fn remove_stale_hooks(&mut self) -> Result<(), KernelError> {
        let Some(pins) = &self.pins else { return Ok(()) };
        for hook in pins.links()? {
            let path = pins.link(&hook);
            if !self.held.iter().any(|h| h.pin.as_ref() == Some(&path)) && !self.traced.has(&path) {
                pins::remove(&path)?;
            }
        }
        Ok(())
    }

    /// Removes every pin: nothing of us stays in the kernel once this process has ended.
    pub fn remove_pins(&mut self) -> Result<(), KernelError> {
        self.pins.as_ref().map_or(Ok(()), Pins::remove_all)
    }
}

impl Drop for Hooks {
    fn drop(&mut self) {
        if self.pins.is_some() {
            // What is pinned stays. Filters have no pins, and would be taken away by their handles.
            for hook in self.held.drain(..) {
                match hook.link {
                    Held::Filter(filter) => filter.leave(),
                    Held::Link { .. } | Held::Tcx(_) | Held::Entry { .. } => {}
                }
            }
        }
    }
}

impl Hook {
    fn detach(self) -> Result<(), KernelError> {
        // The pin goes first. Then our link is the last reference, and closing it detaches the hook at once.
        self.pin.as_deref().map_or(Ok(()), pins::remove)
    }
}

/// Says what to do, where an interface did not take our XDP program.
fn one_xdp_program(error: KernelError) -> KernelError {
    match error {
        KernelError::Attach { interface, hook, problem } => {
            let problem = format!("{problem}; an interface takes one XDP program: remove the other one, or use tc");
            KernelError::Attach { interface, hook, problem }
        }
        other => other,
    }
}

fn no_tcx(dev: &NetDev, direction: Direction) -> KernelError {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    KernelError::Attach {
        interface: dev.name.clone(),
        hook: format!("tcx {direction}"),
        problem: format!(
            "this kernel, {}, has no tcx links (Linux 6.6 has); use `--hook tc` or `--hook clsact`",
            release.trim()
        ),
    }
}

fn tc_program(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "flowlog_tc_ingress",
        Direction::Egress => "flowlog_tc_egress",
    }
}

fn attach_error(interface: &str, hook: &str, error: &(dyn std::error::Error + 'static)) -> KernelError {
    match KernelError::from_chain(format!("attach {hook} to `{interface}`"), error) {
        KernelError::Refused { problem, .. } => {
            KernelError::Attach { interface: interface.to_owned(), hook: hook.to_owned(), problem }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_kind_of_tc_hook_makes_way_for_the_other_where_both_are_on_one_direction() {
        use Direction::{Egress, Ingress};
        use HookKind::{Clsact, Tc, Tcx, Xdp};
        let tc = if has_tcx() { Tcx } else { Clsact };
        let other = if has_tcx() { Clsact } else { Tcx };
        for (before, after, swaps) in [
            (&[(Ingress, tc), (Egress, tc)][..], &[(Ingress, other), (Egress, other)][..], true),
            (&[(Ingress, other)], &[(Ingress, tc)], true),
            (&[(Ingress, Tc)], &[(Ingress, tc)], false),
            (&[(Ingress, tc)], &[(Egress, other)], false),
            (&[(Ingress, tc)], &[(Ingress, Tc), (Ingress, Xdp)], false),
            (&[(Ingress, other)], &[(Ingress, Tc), (Ingress, Xdp)], true),
            (&[], &[(Ingress, other)], false),
        ] {
            assert_eq!(swaps_tc(before, after), swaps, "{before:?} {after:?}");
        }
    }
}
