//! tcx links: attaching them in front of all others, and putting them there again when others have gone in front since.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use flowlog_host::fault;
use flowlog_model::{
    interface::{IfKey, NetDev, Netns},
    rule::Direction,
};

use super::{Held, HookPlace, Hooks, On, attach_error, elsewhere::pin_name};
use crate::{
    KernelError,
    bpf::{self, ATTACH_TCX},
    entry::{self, Way},
    netdev::netns,
    pins,
    programs::Programs,
};

/// `BPF_F_BEFORE`: without another program named, before all.
const FIRST: u32 = 1 << 3;

/// A hook that is a tcx link.
pub(super) struct Tcx {
    link: OwnedFd,
    /// What it holds: a hook, or an entry that jumps to one.
    program: OwnedFd,
    /// The kernel's id of that.
    pub(super) id: u32,
    direction: Direction,
}

impl Hooks {
    /// Hooks one direction of an interface of the namespace we are in: in the place of an earlier agent, or in front of all others.
    pub(super) fn link_tcx(&mut self, dev: &NetDev, direction: Direction, program: OwnedFd) -> io::Result<()> {
        let new = || bpf::link(program.as_fd(), dev.index, ATTACH_TCX[direction.index()], FIRST);
        let (link, pin) = self.link(dev, &direction.to_string(), &program, new)?;
        let id = bpf::id(program.as_fd())?;
        let place = HookPlace::Tcx(direction);
        self.hold(Some((dev, place)), Held::Tcx(Tcx { link, program, id, direction }), pin);
        Ok(())
    }

    /// Puts a program in the place of an earlier agent's, or where `new` puts it; and where that is pinned.
    pub(super) fn link(
        &mut self,
        dev: &NetDev,
        hook: &str,
        program: &OwnedFd,
        new: impl FnOnce() -> io::Result<OwnedFd>,
    ) -> io::Result<(OwnedFd, Option<PathBuf>)> {
        let pin = self.pins.as_ref().map(|p| p.link(&format!("{}-{hook}", pin_name(dev))));
        let earlier = pin.as_ref().and_then(|path| bpf::pinned(path).ok());
        // One whose interface is gone is refused.
        let earlier = earlier.filter(|link| bpf::replace(link.as_fd(), program.as_fd()).is_ok());
        let link = match (earlier, &pin) {
            (Some(link), _) => link,
            (None, None) => new()?,
            (None, Some(path)) => {
                let link = new()?;
                // A dead one may be in the way.
                pins::remove(path).map_err(io::Error::other)?;
                bpf::pin(link.as_fd(), path)?;
                link
            }
        };
        Ok((link, pin))
    }

    /// Puts our hook on one direction of an interface in front of all others; `base` as for [`attach`](Self::attach). No packet is missed, and
    /// none is counted twice (`flowlog-ebpf/src/bin/flowlog/again.rs`). `false`: there is no tcx hook of ours.
    ///
    /// # Errors
    /// [`KernelError::Attach`] with the kernel's words; the hook is where it was.
    pub fn go_first(
        &mut self,
        programs: &mut Programs,
        (of, name): (IfKey, &str),
        base: Option<u32>,
        direction: Direction,
    ) -> Result<bool, KernelError> {
        let failed = |e: &io::Error| attach_error(name, &format!("tcx {direction}"), e);
        let held = self.at(of, HookPlace::Tcx(direction)).and_then(|at| self.held.get_mut(at));
        let Some(hook) = held else { return Ok(false) };
        let (Held::Tcx(tcx), Some(On { netns: there, .. })) = (&mut hook.link, &hook.on) else { return Ok(false) };
        let again = match base {
            None => programs.again(direction)?,
            Some(base) => {
                let way = Way::Again(direction);
                entry::load(way, base, programs.elsewhere(way)?).map_err(|e| failed(&e))?
            }
        };
        tcx.step_forward(&again, (of.index, there), hook.pin.as_ref()).map_err(|e| failed(&e))?;
        Ok(true)
    }
}

impl Tcx {
    /// Another descriptor of the link.
    pub(super) fn link(&self) -> io::Result<OwnedFd> {
        self.link.try_clone()
    }

    /// `again` takes our place, we go in front, and the old link goes.
    fn step_forward(
        &mut self,
        again: &OwnedFd,
        (index, there): (u32, &Netns),
        pin: Option<&PathBuf>,
    ) -> io::Result<()> {
        bpf::replace(self.link.as_fd(), again.as_fd())?;
        fault::point("hook_stands_aside");
        let front =
            netns::enter(there, || bpf::link(self.program.as_fd(), index, ATTACH_TCX[self.direction.index()], FIRST));
        fault::point("hook_is_in_front");
        let moved = front.flatten().and_then(|front| pin.map_or(Ok(()), |pin| take_pin(&front, pin)).map(|()| front));
        match moved {
            Ok(front) => {
                // The kernel has waited for packets that had begun to go past the list without us (`tcx_entry_sync`).
                self.link = front;
                Ok(())
            }
            Err(error) => {
                // What went in front is gone with its descriptor.
                bpf::replace(self.link.as_fd(), self.program.as_fd())?;
                Err(error)
            }
        }
    }
}

/// Has a pin stand for another link. Killed in between, the next agent finds the old link there, and takes the new one for a left-over.
fn take_pin(link: &OwnedFd, pin: &Path) -> io::Result<()> {
    let mut beside = pin.to_owned().into_os_string();
    beside.push("-front");
    let beside = PathBuf::from(beside);
    pins::remove(&beside).map_err(io::Error::other)?;
    bpf::pin(link.as_fd(), &beside)?;
    std::fs::rename(&beside, pin).inspect_err(|_| {
        // Or it would keep the link.
        let _ = pins::remove(&beside);
    })
}
