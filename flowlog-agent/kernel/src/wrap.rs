//! Running other people's XDP programs ourselves (`xdp = "wrap"`): a program of ours has their place on the interface, runs them and sees
//! what they return.
//!
//! The owner's program must be in force at every instant, whatever kills us, and wherever the interface goes. So ours is attached last and
//! taken away first, each time in one step that the kernel refuses if somebody else was faster (`XDP_FLAGS_REPLACE`); what it needs is its
//! own and pinned before ([`shelf`]), and is taken away only if nobody runs it any more.
//!
//! From the pins an agent that starts knows what an earlier one was doing, and goes on or takes it back. What somebody else has put in the
//! place of ours stays: it is not wrapped again before the next start.

mod shelf;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::AsFd as _,
    path::PathBuf,
};

use aya::programs::{ProgramInfo, loaded_programs};
use flowlog_model::xdp::{XdpLevel, XdpMode, XdpView};

use self::shelf::Shelf;
use super::{KernelError, bpf, netdev::rtnetlink, outer::Parts, programs::Programs, sweep::wait_for_programs};

/// What libxdp calls the program that runs several others. It replaces its own programs behind our back.
const DISPATCHER: &str = "xdp_dispatcher";
/// Programs of flowlog's begin with this.
const FLOWLOG: &str = "flowlog_";

/// An interface whose program we run.
#[derive(Clone, Copy)]
struct Wrapped {
    /// The kernel's id of ours.
    ours: u32,
    /// Of the owner's.
    theirs: u32,
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
    shelf: Shelf,
    held: BTreeMap<u32, Wrapped>,
    refused: BTreeMap<u32, Refused>,
    /// Programs of ours that may be attached somewhere, and what each runs.
    known: BTreeMap<u32, u32>,
}

fn failed(action: &str, ifindex: u32, problem: &dyn std::fmt::Display) -> KernelError {
    KernelError::Refused { action: format!("{action} (interface {ifindex})"), problem: problem.to_string() }
}

impl Wraps {
    pub(super) fn new(dir: Option<PathBuf>) -> Self {
        Self { shelf: Shelf::new(dir), ..Self::default() }
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

    /// How many programs of owners are run by ours although they are on no interface here: in other network namespaces.
    #[must_use]
    pub fn elsewhere(&self) -> usize {
        let owners = self.shelf.owners().unwrap_or_default();
        owners.iter().filter(|theirs| !self.is_held(**theirs)).count()
    }

    fn is_held(&self, theirs: u32) -> bool {
        self.held.values().any(|w| w.theirs == theirs)
    }

    /// Looks what an earlier agent left, and goes on from there. `keep`: what is wrapped stays so; else the owners' programs are put back.
    ///
    /// # Errors
    /// If a program of an owner cannot be put back: then nothing of it is taken away.
    pub(super) fn inherit(&mut self, programs: &Programs, keep: bool) -> Result<(), KernelError> {
        let owners = self.shelf.owners()?;
        if owners.is_empty() {
            return Ok(());
        }
        for theirs in &owners {
            let ours = self.shelf.ours(*theirs)?;
            self.known.extend(ours.into_iter().map(|ours| (ours, *theirs)));
        }
        let attached = rtnetlink::driver_programs().map_err(|e| KernelError::from_chain("list the interfaces", &e))?;
        for (ifindex, ours) in attached {
            if let Some(theirs) = self.known.get(&ours) {
                self.held.insert(ifindex, Wrapped { ours, theirs: *theirs });
            }
        }
        for theirs in owners {
            if !self.is_held(theirs) {
                self.tidy(theirs)?;
            } else if keep {
                self.take_over(programs.parts(), theirs);
            }
        }
        if keep { Ok(()) } else { self.restore_all() }
    }

    /// Takes away what there is for an owner's program, unless ours still runs it somewhere.
    fn tidy(&mut self, theirs: u32) -> Result<(), KernelError> {
        if self.is_held(theirs) {
            return Ok(());
        }
        // Packets that are on their way through ours still need what is there.
        wait_for_programs();
        if self.shelf.clear(theirs)? {
            self.known.retain(|_, runs| *runs != theirs);
        }
        Ok(())
    }

    /// Sees to it that an interface is wrapped, if it can be. `true`: something has changed.
    pub fn see(&mut self, programs: &Programs, (ifindex, interface): (u32, &str), attached: &[(XdpMode, u32)]) -> bool {
        if let Some(Wrapped { ours, .. }) = self.held.get(&ifindex).copied() {
            if attached.contains(&(XdpMode::Driver, ours)) || driver_program(ifindex) == Some(ours) {
                return false;
            }
            self.lose((ifindex, interface));
            return true;
        }
        // It has come back from another network namespace.
        let back = attached.iter().find_map(|(_, id)| Some((*id, *self.known.get(id)?)));
        if let Some((ours, theirs)) = back {
            tracing::info!(interface, theirs, ours, "flowlog's program that runs the owner's is on an interface again");
            self.refused.remove(&ifindex);
            self.held.insert(ifindex, Wrapped { ours, theirs });
            return true;
        }
        let known = self.refused.get(&ifindex);
        if attached.is_empty() {
            // What was refused is gone; what somebody has put in the place of ours is remembered.
            return known.is_some_and(|r| r.programs.is_some()) && self.refused.remove(&ifindex).is_some();
        }
        if known.is_some_and(|r| r.programs.as_deref().is_none_or(|p| p == attached)) {
            return false;
        }
        match self.wrap(programs.parts(), ifindex, attached) {
            Ok(Wrapped { ours, theirs }) => {
                tracing::info!(interface, theirs, ours, "somebody else's XDP program is run by flowlog's from now on");
                self.refused.remove(&ifindex);
            }
            Err(why) => {
                tracing::warn!(interface, why, "somebody else's XDP program is not wrapped");
                self.refused.insert(ifindex, Refused { programs: Some(attached.to_vec()), why });
            }
        }
        true
    }

    /// Somebody has put something else in the place of ours.
    fn lose(&mut self, (ifindex, interface): (u32, &str)) {
        tracing::warn!(
            interface,
            "somebody has replaced or removed flowlog's XDP program, which ran the owner's: it is not wrapped again before the next start"
        );
        if let Some(lost) = self.held.remove(&ifindex)
            && let Err(error) = self.tidy(lost.theirs)
        {
            tracing::warn!(interface, %error, "what was there for it stays until the next start");
        }
        let why = "replaced or removed by somebody else; wrapped again by the next start".to_owned();
        self.refused.insert(ifindex, Refused { programs: None, why });
    }

    /// Puts our program in the place of the owner's; in words why that cannot be.
    fn wrap(&mut self, parts: Parts<'_>, ifindex: u32, attached: &[(XdpMode, u32)]) -> Result<Wrapped, String> {
        let theirs = wrappable(attached)?;
        let foreign = program(theirs)?.fd().map_err(|e| format!("the kernel does not give the program out: {e}"))?;
        let put = self.shelf.provide(parts, theirs, foreign.as_fd()).and_then(|ours| {
            flowlog_host::fault::point("wrap_attaches");
            let put = rtnetlink::replace_xdp(ifindex, foreign.as_fd(), ours.as_fd());
            flowlog_host::fault::point("wrap_attached");
            put.map_err(|e| not_replaced(&e))?;
            bpf::id(ours.as_fd()).map_err(|e| e.to_string())
        });
        drop(foreign);
        match put {
            Ok(ours) => {
                let wrapped = Wrapped { ours, theirs };
                self.known.insert(ours, theirs);
                self.held.insert(ifindex, wrapped);
                Ok(wrapped)
            }
            Err(why) => match self.tidy(theirs) {
                Ok(()) => Err(why),
                Err(error) => Err(format!("{why}; {error}")),
            },
        }
    }

    /// Puts our own program in the place of an earlier agent's, which goes on as it is where that fails.
    fn take_over(&mut self, parts: Parts<'_>, theirs: u32) {
        let mut replace = || -> Result<u32, String> {
            let program = self.shelf.renew(parts, theirs)?;
            let new = bpf::id(program.as_fd()).map_err(|e| e.to_string())?;
            self.known.insert(new, theirs);
            for (ifindex, wrapped) in self.held.iter_mut().filter(|(_, w)| w.theirs == theirs) {
                let earlier = self.shelf.program(theirs, wrapped.ours)?;
                rtnetlink::replace_xdp(*ifindex, earlier.as_fd(), program.as_fd()).map_err(|e| e.to_string())?;
                flowlog_host::fault::point("wrap_taken_over");
                wrapped.ours = new;
            }
            Ok(new)
        };
        let kept = replace();
        let kept = kept.and_then(|ours| self.shelf.leave_only(theirs, Some(ours)).map_err(|e| e.to_string()));
        if let Err(why) = kept {
            tracing::warn!(program = theirs, why, "an earlier agent's program goes on running the owner's");
        }
    }

    /// Puts the owner's program back on an interface.
    ///
    /// # Errors
    /// If that is not possible. Then ours stays, and all it needs.
    pub fn restore(&mut self, ifindex: u32) -> Result<(), KernelError> {
        self.refused.remove(&ifindex);
        let Some(Wrapped { ours, theirs }) = self.held.get(&ifindex).copied() else { return Ok(()) };
        let refused = |why: String| failed("put the owner's XDP program back", ifindex, &why);
        flowlog_host::fault::point("wrap_restores");
        let put = || -> Result<(), String> {
            let (foreign, outer) = (self.shelf.foreign(theirs)?, self.shelf.program(theirs, ours)?);
            rtnetlink::replace_xdp(ifindex, outer.as_fd(), foreign.as_fd()).map_err(|e| e.to_string())
        };
        match put() {
            Ok(()) => {
                flowlog_host::fault::point("wrap_restored");
                tracing::info!(ifindex, "the owner's XDP program is back in its place");
            }
            Err(why) if driver_program(ifindex) == Some(ours) => return Err(refused(why)),
            Err(_) => tracing::info!(
                ifindex,
                "the interface has gone whose XDP program flowlog's ran; so it does wherever it is now"
            ),
        }
        self.held.remove(&ifindex);
        self.tidy(theirs)
    }

    /// The same on all.
    ///
    /// # Errors
    /// The first one; the others are tried.
    pub fn restore_all(&mut self) -> Result<(), KernelError> {
        let all: Vec<u32> = self.held.keys().copied().collect();
        let failures: Vec<KernelError> = all.into_iter().filter_map(|ifindex| self.restore(ifindex).err()).collect();
        failures.into_iter().next().map_or(Ok(()), Err)
    }

    /// The same on those that are not among `watched`; those are forgotten, too, where nothing was wrapped.
    pub fn restore_others(&mut self, watched: &[u32]) {
        let others: BTreeSet<u32> =
            self.held.keys().chain(self.refused.keys()).copied().filter(|index| !watched.contains(index)).collect();
        for ifindex in others {
            if let Err(error) = self.restore(ifindex) {
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
    if info.name_as_str().is_some_and(|name| name.starts_with(FLOWLOG)) {
        return Err("it is a program of another flowlog".to_owned());
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
