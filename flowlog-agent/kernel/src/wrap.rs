//! Running other people's XDP programs ourselves (`xdp = "wrap"`): a program of ours has their place on the interface, runs them and sees
//! what they return.
//!
//! The owner's program must be in force at every instant, whatever kills us. So ours is attached last and taken away first, each time in one
//! step that the kernel refuses if somebody else was faster (`XDP_FLAGS_REPLACE`); and what it needs is pinned before:
//!
//! ```text
//! xdp-INDEX-foreign    the owner's program
//! xdp-INDEX-plain      ours on that interface; xdp-INDEX-frags if it takes frames in several buffers
//! xdp-INDEX-new        ours of an agent that takes over, until it has the other one's place
//! ```
//!
//! From these an agent that starts knows what an earlier one was doing, and goes on or takes it back. What somebody else has put in the
//! place of ours stays: it is not wrapped again before the next start.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use aya::programs::{ProgramInfo, loaded_programs};
use flowlog_ebpf::abi;
use flowlog_model::xdp::{XdpLevel, XdpMode, XdpView};

use super::{
    KernelError, bpf,
    netdev::rtnetlink,
    pins::{self, WRAP},
    programs::Programs,
    sweep::wait_for_programs,
};

/// What libxdp calls the program that runs several others. It replaces its own programs behind our back.
const DISPATCHER: &str = "xdp_dispatcher";

/// An interface whose program we run.
struct Wrapped {
    /// The kernel's id of ours.
    ours: u32,
    /// Of the owner's.
    theirs: u32,
    has_frags: bool,
    /// Ours is that of an earlier agent.
    is_inherited: bool,
}

/// An interface whose program we do not run.
struct Refused {
    /// For which programs that holds; `None`: whatever comes.
    programs: Option<Vec<(XdpMode, u32)>>,
    why: String,
}

/// All interfaces of our own network namespace that are wrapped, and those that are not.
#[derive(Default)]
pub struct Wraps {
    /// Where they are pinned.
    dir: Option<PathBuf>,
    held: BTreeMap<u32, Wrapped>,
    refused: BTreeMap<u32, Refused>,
}

fn failed(action: &str, ifindex: u32, problem: &dyn std::fmt::Display) -> KernelError {
    KernelError::Refused { action: format!("{action} (interface {ifindex})"), problem: problem.to_string() }
}

impl Wraps {
    pub(super) fn new(dir: Option<PathBuf>) -> Self {
        Self { dir, ..Self::default() }
    }

    fn pin(&self, ifindex: u32, part: &str) -> PathBuf {
        self.dir.as_deref().unwrap_or(Path::new("/nonexistent")).join(format!("{WRAP}{ifindex}-{part}"))
    }

    fn pin_of_ours(&self, ifindex: u32, has_frags: bool) -> PathBuf {
        self.pin(ifindex, if has_frags { "frags" } else { "plain" })
    }

    /// Our program on an interface and the owner's, by id.
    #[must_use]
    pub fn of(&self, ifindex: u32) -> Option<(u32, u32)> {
        self.held.get(&ifindex).map(|w| (w.ours, w.theirs))
    }

    /// How closely it is looked at an interface.
    #[must_use]
    pub fn view(&self, ifindex: u32) -> XdpView {
        if self.held.contains_key(&ifindex) {
            return XdpView { level: XdpLevel::Wrap, why: None };
        }
        let why = self.refused.get(&ifindex).map(|r| format!("not wrapped: {}", r.why));
        XdpView { level: XdpLevel::Counters, why }
    }

    /// Looks what an earlier agent left, and goes on from there. `keep`: what is wrapped stays so; else the owners' programs are put back.
    ///
    /// # Errors
    /// If a program of an owner cannot be put back: then nothing of it is taken away.
    pub(super) fn inherit(&mut self, programs: &mut Programs, keep: bool) -> Result<(), KernelError> {
        let Some(dir) = self.dir.clone() else { return Ok(()) };
        let names: Vec<String> = fs::read_dir(&dir)
            .map_err(|e| KernelError::from_chain("list the pins", &e))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        let mut indexes: Vec<u32> =
            names.iter().filter_map(|n| n.strip_prefix(WRAP)?.split('-').next()?.parse().ok()).collect();
        indexes.sort_unstable();
        indexes.dedup();
        for ifindex in indexes {
            self.inherit_one(programs, ifindex)?;
        }
        if keep { Ok(()) } else { self.restore_all(programs) }
    }

    fn inherit_one(&mut self, programs: &mut Programs, ifindex: u32) -> Result<(), KernelError> {
        let id_at = |path: &Path| bpf::pinned(path).and_then(|p| bpf::id(p.as_fd())).ok();
        let attached = driver_program(ifindex);
        let (new, foreign) = (self.pin(ifindex, "new"), self.pin(ifindex, "foreign"));
        for has_frags in [false, true] {
            let pin = self.pin_of_ours(ifindex, has_frags);
            if !pin.exists() {
                continue;
            }
            if attached.is_some() && id_at(&new) == attached {
                // It had been attached, and then its agent was killed.
                fs::rename(&new, &pin).map_err(|e| failed("keep a pin", ifindex, &e))?;
            }
            if let (Some(ours), Some(theirs)) = (id_at(&pin), id_at(&foreign))
                && attached == Some(ours)
            {
                pins::remove(&new)?;
                self.held.insert(ifindex, Wrapped { ours, theirs, has_frags, is_inherited: true });
                return Ok(());
            }
        }
        self.tidy(programs, ifindex)
    }

    /// Nothing of ours is attached to an interface: takes away what was there for it.
    fn tidy(&mut self, programs: &mut Programs, ifindex: u32) -> Result<(), KernelError> {
        self.held.remove(&ifindex);
        // One that has gone may have gone to another namespace, with our program on it: that goes on finding the owner's in its place.
        if rtnetlink::programs(ifindex).is_ok() {
            // Packets that are on their way through ours still need what is there.
            wait_for_programs();
            for has_frags in [false, true] {
                programs.empty_wrapped(has_frags, ifindex % abi::WRAPPED)?;
            }
        }
        for part in ["new", "plain", "frags", "foreign"] {
            pins::remove(&self.pin(ifindex, part))?;
        }
        Ok(())
    }

    /// Sees to it that an interface is wrapped, if it can be. `true`: something has changed.
    pub fn see(
        &mut self,
        programs: &mut Programs,
        (ifindex, interface): (u32, &str),
        attached: &[(XdpMode, u32)],
    ) -> bool {
        if let Some(Wrapped { ours, is_inherited, has_frags, .. }) = self.held.get(&ifindex) {
            let (ours, is_inherited, has_frags) = (*ours, *is_inherited, *has_frags);
            if !attached.contains(&(XdpMode::Driver, ours)) && driver_program(ifindex) != Some(ours) {
                self.lose(programs, (ifindex, interface));
                return true;
            }
            if is_inherited {
                self.take_over(programs, (ifindex, interface), has_frags);
            }
            return false;
        }
        let known = self.refused.get(&ifindex);
        if attached.is_empty() {
            // What was refused is gone; what somebody has put in the place of ours is remembered.
            return known.is_some_and(|r| r.programs.is_some()) && self.refused.remove(&ifindex).is_some();
        }
        if known.is_some_and(|r| r.programs.as_deref().is_none_or(|p| p == attached)) {
            return false;
        }
        match self.wrap(programs, ifindex, attached) {
            Ok(wrapped) => {
                let Wrapped { ours, theirs, .. } = wrapped;
                tracing::info!(interface, theirs, ours, "somebody else's XDP program is run by flowlog's from now on");
                self.refused.remove(&ifindex);
                self.held.insert(ifindex, wrapped);
            }
            Err(why) => {
                tracing::warn!(interface, why, "somebody else's XDP program is not wrapped");
                self.refused.insert(ifindex, Refused { programs: Some(attached.to_vec()), why });
            }
        }
        true
    }

    /// Somebody has put something else in the place of ours.
    fn lose(&mut self, programs: &mut Programs, (ifindex, interface): (u32, &str)) {
        tracing::warn!(
            interface,
            "somebody has replaced or removed flowlog's XDP program, which ran the owner's: it is not wrapped again before the next start"
        );
        if let Err(error) = self.tidy(programs, ifindex) {
            tracing::warn!(interface, %error, "what was there for it stays until the next start");
        }
        let why = "replaced or removed by somebody else; wrapped again by the next start".to_owned();
        self.refused.insert(ifindex, Refused { programs: None, why });
    }

    /// Puts our program in the place of the owner's; in words why that cannot be.
    fn wrap(&mut self, programs: &mut Programs, ifindex: u32, attached: &[(XdpMode, u32)]) -> Result<Wrapped, String> {
        if self.dir.is_none() {
            return Err("nothing is pinned".to_owned());
        }
        let theirs = wrappable(attached)?;
        let info = program(theirs)?;
        let at = ifindex % abi::WRAPPED;
        if programs.is_wrapped_taken(at).map_err(|e| e.to_string())? {
            return Err(format!(
                "its place ({at}) has the program of another interface, or of one that has left this network namespace"
            ));
        }
        let foreign = info.fd().map_err(|e| format!("the kernel does not give the program out: {e}"))?;
        let undo = |me: &mut Self, programs: &mut Programs, why: String| match me.tidy(programs, ifindex) {
            Ok(()) => why,
            Err(error) => format!("{why}; {error}"),
        };
        let pinned = pins::remove(&self.pin(ifindex, "foreign"))
            .map_err(|e| e.to_string())
            .and_then(|()| bpf::pin(foreign.as_fd(), &self.pin(ifindex, "foreign")).map_err(|e| e.to_string()));
        let filled = pinned.and_then(|()| programs.fill_wrapped(at, &foreign));
        let (has_frags, ours) = match filled {
            Ok(filled) => filled,
            Err(why) => return Err(undo(self, programs, why)),
        };
        let pin = self.pin_of_ours(ifindex, has_frags);
        let replaced = pins::remove(&pin)
            .map_err(|e| e.to_string())
            .and_then(|()| bpf::pin(ours.as_fd(), &pin).map_err(|e| e.to_string()))
            .and_then(|()| {
                flowlog_host::fault::point("wrap_attaches");
                let put = rtnetlink::replace_xdp(ifindex, foreign.as_fd(), ours.as_fd());
                flowlog_host::fault::point("wrap_attached");
                put.map_err(|e| not_replaced(&e))
            });
        if let Err(why) = replaced {
            return Err(undo(self, programs, why));
        }
        let ours = bpf::id(ours.as_fd()).map_err(|e| e.to_string())?;
        Ok(Wrapped { ours, theirs, has_frags, is_inherited: false })
    }

    /// Puts our own program in the place of an earlier agent's, which goes on as it is where that fails.
    fn take_over(&mut self, programs: &mut Programs, (ifindex, interface): (u32, &str), has_frags: bool) {
        let pin = self.pin_of_ours(ifindex, has_frags);
        let new = self.pin(ifindex, "new");
        let mut replace = || -> Result<u32, KernelError> {
            let ours = programs.wrapper(has_frags)?;
            let earlier = bpf::pinned(&pin).map_err(|e| failed("open a pin", ifindex, &e))?;
            pins::remove(&new)?;
            bpf::pin(ours.as_fd(), &new).map_err(|e| failed("pin a program", ifindex, &e))?;
            rtnetlink::replace_xdp(ifindex, earlier.as_fd(), ours.as_fd())
                .map_err(|e| failed("replace an earlier agent's program", ifindex, &e))?;
            flowlog_host::fault::point("wrap_taken_over");
            fs::rename(&new, &pin).map_err(|e| failed("keep a pin", ifindex, &e))?;
            bpf::id(ours.as_fd()).map_err(|e| failed("read a program's id", ifindex, &e))
        };
        let replaced = replace();
        let Some(wrapped) = self.held.get_mut(&ifindex) else { return };
        // It is tried once: what is there counts as well.
        wrapped.is_inherited = false;
        match replaced {
            Ok(ours) => wrapped.ours = ours,
            Err(error) => tracing::warn!(interface, %error, "an earlier agent's program goes on running the owner's"),
        }
    }

    /// Puts the owner's program back on an interface.
    ///
    /// # Errors
    /// If that is not possible. Then ours stays, and all it needs.
    pub fn restore(&mut self, programs: &mut Programs, ifindex: u32) -> Result<(), KernelError> {
        self.refused.remove(&ifindex);
        let Some(Wrapped { ours, has_frags, .. }) = self.held.get(&ifindex) else { return Ok(()) };
        let (ours, has_frags) = (*ours, *has_frags);
        let open = |path: PathBuf| -> Result<OwnedFd, KernelError> {
            bpf::pinned(&path).map_err(|e| failed("open a pin", ifindex, &e))
        };
        let (theirs, outer) = (open(self.pin(ifindex, "foreign"))?, open(self.pin_of_ours(ifindex, has_frags))?);
        flowlog_host::fault::point("wrap_restores");
        if let Err(error) = rtnetlink::replace_xdp(ifindex, outer.as_fd(), theirs.as_fd())
            && driver_program(ifindex) == Some(ours)
        {
            return Err(failed("put the owner's XDP program back", ifindex, &error));
        }
        flowlog_host::fault::point("wrap_restored");
        tracing::info!(ifindex, "the owner's XDP program is back in its place");
        self.tidy(programs, ifindex)
    }

    /// The same on all.
    ///
    /// # Errors
    /// The first one; the others are tried.
    pub fn restore_all(&mut self, programs: &mut Programs) -> Result<(), KernelError> {
        let all: Vec<u32> = self.held.keys().copied().collect();
        let mut first = Ok(());
        for ifindex in all {
            first = first.and(self.restore(programs, ifindex));
        }
        first
    }

    /// The same on those that are not among `watched`; those are forgotten, too, where nothing was wrapped.
    pub fn restore_others(&mut self, programs: &mut Programs, watched: &[u32]) {
        let others: Vec<u32> =
            self.held.keys().chain(self.refused.keys()).copied().filter(|index| !watched.contains(index)).collect();
        for ifindex in others {
            if let Err(error) = self.restore(programs, ifindex) {
                tracing::warn!(%error, "will try again");
            }
        }
    }
}

/// The program that is wrapped; in words why there is none.
///
/// # Errors
/// Why not.
fn wrappable(attached: &[(XdpMode, u32)]) -> Result<u32, String> {
    match attached {
        [(XdpMode::Driver, id)] => Ok(*id),
        [(XdpMode::Generic, _)] => Err("the stack runs it: what it drops is REJECT as it is".to_owned()),
        [(XdpMode::Offload, _)] => Err("the card runs it".to_owned()),
        _ => Err("there are several".to_owned()),
    }
}

/// A program, if it can be wrapped as far as its own properties go; in words why not.
fn program(id: u32) -> Result<ProgramInfo, String> {
    let found = loaded_programs().filter_map(Result::ok).find(|p| p.id() == id);
    let info = found.ok_or("the kernel does not give the program out, which takes CAP_SYS_ADMIN; or it is gone")?;
    if info.name_as_str().is_some_and(|name| name == DISPATCHER) {
        return Err("it is libxdp's dispatcher, which replaces its programs by itself".to_owned());
    }
    Ok(info)
}

/// Why the kernel did not take ours in the place of the owner's.
fn not_replaced(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EBUSY) => "it is attached by a BPF link, which nobody but its owner can change".to_owned(),
        Some(libc::EEXIST) => "another program has taken its place meanwhile".to_owned(),
        _ => format!("the kernel does not take ours in its place: {error}"),
    }
}

/// Whether a program could be wrapped, in words for `flowlog check`; `None`: nothing is known against it.
#[must_use]
pub(crate) fn obstacle(attached: &[(XdpMode, u32)]) -> Option<String> {
    wrappable(attached).and_then(program).err()
}

/// The program that the driver of an interface runs.
fn driver_program(ifindex: u32) -> Option<u32> {
    let (_, attached) = rtnetlink::programs(ifindex).ok()?;
    attached.iter().find_map(|(mode, id)| (*mode == XdpMode::Driver).then_some(*id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_native_program_is_wrapped() {
        assert_eq!(wrappable(&[(XdpMode::Driver, 7)]), Ok(7));
        for other in [
            &[(XdpMode::Generic, 7)][..],
            &[(XdpMode::Offload, 7)],
            &[(XdpMode::Driver, 7), (XdpMode::Offload, 8)],
            &[],
        ] {
            assert!(wrappable(other).is_err(), "{other:?}");
        }
    }

    #[test]
    fn an_interface_that_is_not_wrapped_says_why() {
        let mut wraps = Wraps::new(None);
        assert_eq!(wraps.view(3), XdpView::default());
        wraps.refused.insert(3, Refused { programs: None, why: "so".to_owned() });
        assert_eq!(wraps.view(3).why.as_deref(), Some("not wrapped: so"));
    }
}
