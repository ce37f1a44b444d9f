//! XDP on interfaces of other network namespaces: entries, attached as the hooks of our own namespace are.

use std::{io, os::fd::AsFd as _};

use flowlog_model::interface::NetDev;

use super::{Attached, Held, HookPlace, Hooks, attach_error};
use crate::{
    KernelError, bpf,
    entry::{self, Way},
    programs::Programs,
};

/// `XDP_FLAGS_DRV_MODE` and `XDP_FLAGS_SKB_MODE` of `include/uapi/linux/if_link.h`.
const XDP_MODES: [(u32, Attached); 2] = [(1 << 2, Attached::XdpNative), (1 << 1, Attached::XdpGeneric)];

impl Hooks {
    /// Hooks an interface of the namespace we are in, which is not the agent's own, by XDP. `base` is what its hook must add to the index.
    pub(super) fn attach_xdp_entry(
        &mut self,
        programs: &mut Programs,
        (dev, base): (&NetDev, u32),
    ) -> Result<Attached, KernelError> {
        let program = entry::load(Way::Xdp, base, programs.elsewhere(Way::Xdp)?);
        let program = program.map_err(|e| attach_error(&dev.name, "xdp", &e))?;
        let mut problem = None;
        for (mode, attached) in XDP_MODES {
            let new = || bpf::link(program.as_fd(), dev.index, entry::ATTACH_XDP, mode);
            match self.link(dev, "xdp", &program, new) {
                Ok((link, pin)) => {
                    let id = bpf::id(program.as_fd()).map_err(|e| attach_error(&dev.name, "xdp", &e))?;
                    self.hold(Some((dev, HookPlace::Xdp)), Held::Entry { _link: link, id }, pin);
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

/// The beginning of `struct bpf_link_info`.
#[repr(C)]
#[derive(Default)]
struct HeldInfo {
    link_type: u32,
    id: u32,
    program: u32,
}

impl Hooks {
    /// The kernel's id of the XDP program that a pinned hook of ours has on an interface of our own namespace: this process', or an earlier
    /// agent's.
    #[must_use]
    pub fn pinned_xdp(&self, index: u32) -> Option<u32> {
        let link = bpf::pinned(&self.pins.as_ref()?.link(&format!("{index}-xdp"))).ok()?;
        let mut found = HeldInfo::default();
        bpf::info(link.as_fd(), &mut found).ok()?;
        Some(found.program)
    }
}

/// How pins of an interface's hooks begin: by its index, and in another namespace by that as well. (Dots are not allowed in names there.)
pub(super) fn pin_name(dev: &NetDev) -> String {
    if dev.netns.path.is_none() { dev.index.to_string() } else { format!("{}_{}", dev.netns.inum, dev.index) }
}
