//! Hooks on interfaces of other network namespaces: entries, attached as the hooks of our own namespace are.

use std::{
    io,
    mem::ManuallyDrop,
    os::fd::{AsFd as _, OwnedFd},
};

use flowlog_model::{
    HookKind,
    interface::{NetDev, Netns},
    rule::Direction,
};
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcMessage, TcOption},
};

use super::{Attached, CLSACT_HANDLE, CLSACT_PRIORITY, Held, Hooks, add_clsact, attach_error, has_tcx, no_tcx};
use crate::{
    KernelError, bpf,
    entry::{self, Way},
    netdev::{netns, rtnetlink, traffic_control},
    programs::Programs,
};

/// `XDP_FLAGS_DRV_MODE` and `XDP_FLAGS_SKB_MODE` of `include/uapi/linux/if_link.h`.
const XDP_MODES: [(u32, Attached); 2] = [(1 << 2, Attached::XdpNative), (1 << 1, Attached::XdpGeneric)];
/// All protocols: `ETH_P_ALL` of `include/uapi/linux/if_ether.h`.
const ETH_P_ALL: u16 = 3;

impl Hooks {
    /// Hooks one direction of an interface of the namespace we are in, which is not the agent's own. `base` is what its hook must add to
    /// the index.
    pub(super) fn attach_entry(
        &mut self,
        programs: &mut Programs,
        (dev, base): (&NetDev, u32),
        direction: Direction,
        kind: HookKind,
    ) -> Result<Attached, KernelError> {
        let way = match kind {
            HookKind::Xdp if direction == Direction::Ingress => Way::Xdp,
            _ => Way::Tc(direction),
        };
        let what = if way == Way::Xdp { "xdp".to_owned() } else { format!("{kind} {direction}", kind = kind.as_str()) };
        let failed = |e: &io::Error| attach_error(&dev.name, &what, e);
        let program = entry::load(way, base, programs.elsewhere(way)?).map_err(|e| failed(&e))?;
        let tcx = kind != HookKind::Clsact && has_tcx();
        match way {
            Way::Xdp | Way::Again(_) => self.link_xdp(dev, &program),
            Way::Tc(_) if kind == HookKind::Tcx && !tcx => Err(no_tcx(dev, direction)),
            Way::Tc(_) if tcx => {
                self.link_tcx(dev, direction, program).map_err(|e| failed(&e))?;
                Ok(Attached::Tcx)
            }
            Way::Tc(_) => {
                add_clsact(dev, direction)?;
                let filter = EntryFilter { netns: dev.netns.clone(), index: dev.index, direction };
                filter.set(&program, way.name()).map_err(|e| failed(&e))?;
                self.hold(Some(dev), Held::Filter(filter), None);
                Ok(Attached::Clsact)
            }
        }
    }

    fn link_xdp(&mut self, dev: &NetDev, program: &OwnedFd) -> Result<Attached, KernelError> {
        let mut problem = None;
        for (mode, attached) in XDP_MODES {
            let new = || bpf::link(program.as_fd(), dev.index, entry::ATTACH_XDP, mode);
            match self.link(dev, "xdp", program, new) {
                Ok((link, pin)) => {
                    let id = bpf::id(program.as_fd()).map_err(|e| attach_error(&dev.name, "xdp", &e))?;
                    self.hold(Some(dev), Held::Entry { _link: link, id }, pin);
                    return Ok(attached);
                }
                Err(e) => {
                    problem.get_or_insert(e);
                }
            }
        }
        let problem = problem.unwrap_or_else(|| io::ErrorKind::Unsupported.into());
        Err(super::one_xdp_program(attach_error(&dev.name, "xdp", &problem)))
    }
}

/// How pins of an interface's hooks begin: by its index, and in another namespace by that as well. (Dots are not allowed in names there.)
pub(super) fn pin_name(dev: &NetDev) -> String {
    if dev.netns.path.is_none() { dev.index.to_string() } else { format!("{}_{}", dev.netns.inum, dev.index) }
}

/// An entry as a clsact filter. It is taken away when dropped.
pub(super) struct EntryFilter {
    netns: Netns,
    index: u32,
    direction: Direction,
}

impl EntryFilter {
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

    /// Puts a program there, in the place of the one that is.
    fn set(&self, program: &OwnedFd, name: &str) -> io::Result<()> {
        use std::os::fd::AsRawFd as _;
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

impl Drop for EntryFilter {
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
