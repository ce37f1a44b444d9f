//! Hooks as clsact filters: tc-bpf(8), `include/uapi/linux/pkt_cls.h`; and how one of the two kinds of TC hook makes way for the other.
//!
//! tcx runs before clsact. So that no packet passes uncounted both are there for a moment, and so that none is counted twice the filter has a
//! program for that moment which leaves alone what the one in front has noted (`flowlog-ebpf/src/bin/flowlog/again.rs`):
//!
//! ```text
//! to clsact:  filter with that program -> link taken away -> filter has the hook
//! to tcx:     filter is given that program -> link with the hook in front -> filter taken away
//! ```
//!
//! The kernel waits at each change of the list in front, until every packet has passed that had begun to. An agent that is killed in
//! between leaves both: what it leaves counts each packet once, and the next agent goes on.

use std::{
    io,
    mem::ManuallyDrop,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::PathBuf,
};

use aya::programs::tc::{TcError, TcHandle, qdisc_add_clsact};
use flowlog_host::fault;
use flowlog_model::{
    interface::{NetDev, Netns},
    rule::Direction,
};
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcMessage, TcOption},
};

use super::{Held, HookPlace, Hooks, attach_error, elsewhere::pin_name, tc_program};
use crate::{
    KernelError, bpf,
    entry::{self, Way},
    netdev::{netns, rtnetlink, traffic_control},
    pins,
    programs::Programs,
};

/// Priority of our clsact filters: the first there is.
const CLSACT_PRIORITY: u16 = 1;
/// Handle of our clsact filters, so that they can be told from others at the same priority.
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 0xf10e);
/// All protocols: `ETH_P_ALL` of `include/uapi/linux/if_ether.h`.
const ETH_P_ALL: u16 = 3;

impl Hooks {
    /// Hooks one direction of an interface of the namespace we are in by a tcx link, in the place of a filter of ours if there is one.
    pub(super) fn attach_tcx(
        &mut self,
        programs: &mut Programs,
        (dev, base): (&NetDev, Option<u32>),
        direction: Direction,
    ) -> Result<(), KernelError> {
        let what = format!("tcx {direction}");
        let failed = |e: &io::Error| attach_error(&dev.name, &what, e);
        let (program, name) = hook_program(programs, (dev, base), direction)?;
        let earlier = self.take_filter(dev, direction);
        if let Some(filter) = &earlier {
            let again = stand_in(programs, (dev, base), direction)?;
            let stands_in = filter.set(&again, name);
            if let Err(error) = stands_in {
                self.hold_filter(dev, direction, earlier);
                return Err(failed(&error));
            }
            fault::point("filter_stands_in");
        }
        let program_again = earlier.as_ref().map(|_| program.try_clone()).transpose().map_err(|e| failed(&e))?;
        if let Err(error) = self.link_tcx(dev, direction, program) {
            if let Some((filter, program)) = earlier.as_ref().zip(program_again) {
                filter.set(&program, name).map_err(|e| failed(&e))?;
            }
            self.hold_filter(dev, direction, earlier);
            return Err(failed(&error));
        }
        fault::point("hook_is_before_filter");
        // The filter is taken away: all that had passed the list in front before the hook was there has passed here as well.
        drop(earlier);
        Ok(())
    }

    /// Hooks one direction of an interface of the namespace we are in by a filter, in the place of a tcx link of ours if there is one.
    pub(super) fn attach_clsact(
        &mut self,
        programs: &mut Programs,
        (dev, base): (&NetDev, Option<u32>),
        direction: Direction,
    ) -> Result<(), KernelError> {
        add_clsact(dev, direction)?;
        let what = format!("clsact {direction}");
        let failed = |e: &io::Error| attach_error(&dev.name, &what, e);
        let (program, name) = hook_program(programs, (dev, base), direction)?;
        let filter = Filter::of(dev, direction);
        if let Some((link, pin)) = self.tcx_link(dev, direction).map_err(|e| failed(&e))? {
            filter.set(&stand_in(programs, (dev, base), direction)?, name).map_err(|e| failed(&e))?;
            fault::point("filter_stands_behind");
            // One whose interface was gone for a while is away already.
            bpf::detach(link.as_fd()).map_err(|e| failed(&e))?;
            fault::point("hook_before_filter_is_gone");
            if let Some(held) = self.at(dev.key(), HookPlace::Tcx(direction)) {
                self.held.swap_remove(held);
            }
            pin.as_deref().map_or(Ok(()), pins::remove)?;
        }
        filter.set(&program, name).map_err(|e| failed(&e))?;
        self.hold_filter(dev, direction, Some(filter));
        Ok(())
    }

    fn hold_filter(&mut self, dev: &NetDev, direction: Direction, filter: Option<Filter>) {
        if let Some(filter) = filter {
            self.hold(Some((dev, HookPlace::Clsact(direction))), Held::Filter(filter), None);
        }
    }

    /// A filter of ours, which is not held any more; that of an earlier agent as well.
    fn take_filter(&mut self, dev: &NetDev, direction: Direction) -> Option<Filter> {
        let held = self.at(dev.key(), HookPlace::Clsact(direction)).map(|at| self.held.swap_remove(at).link);
        match held {
            Some(Held::Filter(filter)) => Some(filter),
            // Without pins no agent has left anything.
            _ => self.pins.as_ref().and_then(|_| Filter::there(dev, direction)),
        }
    }

    /// A tcx link of ours, and where it is pinned; that of an earlier agent as well.
    fn tcx_link(&self, dev: &NetDev, direction: Direction) -> io::Result<Option<(OwnedFd, Option<PathBuf>)>> {
        let held = self.at(dev.key(), HookPlace::Tcx(direction)).and_then(|at| self.held.get(at));
        if let Some(hook) = held
            && let Held::Tcx(tcx) = &hook.link
        {
            return Ok(Some((tcx.link()?, hook.pin.clone())));
        }
        let pin = self.pins.as_ref().map(|p| p.link(&format!("{}-{direction}", pin_name(dev))));
        Ok(pin.and_then(|pin| Some((bpf::pinned(&pin).ok()?, Some(pin)))))
    }
}

/// What an interface is hooked with, and what filters with it are called.
fn hook_program(
    programs: &mut Programs,
    (dev, base): (&NetDev, Option<u32>),
    direction: Direction,
) -> Result<(OwnedFd, &'static str), KernelError> {
    let Some(base) = base else { return Ok((programs.descriptor(tc_program(direction))?, tc_program(direction))) };
    let way = Way::Tc(direction);
    let entry = entry::load(way, base, programs.elsewhere(way)?);
    Ok((entry.map_err(|e| attach_error(&dev.name, &format!("a hook for {direction}"), &e))?, way.name()))
}

/// What leaves alone what another hook has noted.
pub(super) fn stand_in(
    programs: &mut Programs,
    (dev, base): (&NetDev, Option<u32>),
    direction: Direction,
) -> Result<OwnedFd, KernelError> {
    let Some(base) = base else { return programs.again(direction) };
    let way = Way::Again(direction);
    entry::load(way, base, programs.elsewhere(way)?)
        .map_err(|e| attach_error(&dev.name, &format!("a hook for {direction}"), &e))
}

/// Makes the qdisc that clsact filters hang on, if it is not there.
fn add_clsact(dev: &NetDev, direction: Direction) -> Result<(), KernelError> {
    match qdisc_add_clsact(dev.index) {
        Ok(()) => Ok(()),
        Err(e) if is_there(&e) => Ok(()),
        Err(e) => Err(attach_error(&dev.name, &format!("the qdisc for clsact {direction}"), &e)),
    }
}

/// Whether a qdisc could not be added because it is there already. What else is in the way must be told: the filter would
/// only fail for lack of the qdisc.
fn is_there(error: &TcError) -> bool {
    match error {
        TcError::NetlinkError(e) => e.raw_os_error() == Some(libc::EEXIST),
        TcError::AlreadyAttached => true,
        _ => false,
    }
}

/// A filter of ours. It is taken away when dropped.
pub(super) struct Filter {
    netns: Netns,
    index: u32,
    direction: Direction,
}

impl Filter {
    fn of(dev: &NetDev, direction: Direction) -> Self {
        Self { netns: dev.netns.clone(), index: dev.index, direction }
    }

    /// The one that an interface has, whoever has put it there.
    pub(super) fn there(dev: &NetDev, direction: Direction) -> Option<Self> {
        let filter = Self::of(dev, direction);
        // Where there is no qdisc for filters, or none at this place, the kernel says so.
        let found = netns::enter(&dev.netns, || {
            rtnetlink::talk(RouteNetlinkMessage::GetTrafficFilter(filter.message()), 0).is_ok()
        });
        if found.unwrap_or(false) {
            return Some(filter);
        }
        filter.leave();
        None
    }

    /// It stays when we are gone.
    pub(super) fn leave(self) {
        let _ = ManuallyDrop::new(self);
    }

    fn message(&self) -> TcMessage {
        let mut message = TcMessage::default();
        message.header.index = self.index.cast_signed();
        message.header.parent = traffic_control::hook(self.direction);
        message.header.handle = u32::from(CLSACT_HANDLE).into();
        message.header.info = u32::from(CLSACT_PRIORITY) << 16 | u32::from(ETH_P_ALL.to_be());
        message.attributes.push(TcAttribute::Kind(TcFilterBpf::KIND.to_owned()));
        message
    }

    /// Puts a program there, in the place of the one that is: in one step, if there is one.
    fn set(&self, program: &OwnedFd, name: &str) -> io::Result<()> {
        let mut message = self.message();
        let options = [
            TcFilterBpfOption::ProgFd(program.as_raw_fd().cast_unsigned()),
            TcFilterBpfOption::ProgName(name.to_owned()),
            TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
        ];
        message.attributes.push(TcAttribute::Options(options.into_iter().map(TcOption::Bpf).collect()));
        rtnetlink::talk(RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_ACK | NLM_F_CREATE).map(drop)
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        let delete = || rtnetlink::talk(RouteNetlinkMessage::DelTrafficFilter(self.message()), NLM_F_ACK);
        // A namespace that is gone has taken it along, and so has an interface.
        if let Ok(Err(error)) = netns::enter(&self.netns, delete)
            && !matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT | libc::EINVAL))
        {
            tracing::warn!(%error, index = self.index, "cannot take a filter away");
        }
    }
}
