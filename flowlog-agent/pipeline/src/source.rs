//! The kernel's side, as far as the pipeline needs it: a port. The command plugs the real kernel in, the simulation its own.

use std::{
    collections::BTreeSet,
    error::Error,
    thread::{self, JoinHandle},
};

use flowlog_ebpf::abi::{Stacked, Truth};
use flowlog_model::{
    Epoch, IfaceId, Now, WatchSpec,
    hiding::Hiding,
    interface::{Counters, Elsewhere, IfKey, NetDev, Netns, NetnsName, OnTop},
    rule::Direction,
    sweep::{Cursor, Scope, Swept},
    translation::{Services, Tuple},
    xdp::{XdpMode, XdpReading},
};

use crate::window::Foreign;

/// Errors of the kernel's side.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// An operation on one interface failed. The interface may be gone already: it is tried again.
    #[error(transparent)]
    Interface(Box<dyn Error + Send + Sync>),
    #[error(transparent)]
    Kernel(Box<dyn Error + Send + Sync>),
}

/// A wait for programs that goes on beside whoever began it, who has a ring to empty meanwhile.
#[derive(Debug)]
pub struct GracePeriod(Option<JoinHandle<()>>);

impl GracePeriod {
    /// One that is over.
    #[must_use]
    pub fn over() -> Self {
        Self(None)
    }

    /// Waits on a thread of its own, which unparks ours at the end; without a thread, at once.
    #[must_use]
    pub fn begin(wait: fn()) -> Self {
        let whoever = thread::current();
        let waited = move || {
            wait();
            whoever.unpark();
        };
        let thread = thread::Builder::new().name("grace-period".to_owned()).spawn(waited);
        Self(thread.map_err(|_none| wait()).ok())
    }

    pub(crate) fn is_over(&self) -> bool {
        self.0.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

/// The ring, the epochs and the counters: what the [books](crate::books) need.
pub trait Source {
    /// The next block of the ring, which keeps its place, and the ring position behind it.
    fn read(&mut self) -> Option<(&[u8], u64)>;
    /// Ring position behind the last block read.
    fn position(&self) -> u64;
    /// Ring position behind the last block written, complete or not.
    fn produced(&self) -> u64;
    /// Gives the room up to a position back.
    fn release(&mut self, position: u64);
    /// Packets from now on belong to `epoch`.
    fn set_epoch(&mut self, id: IfaceId, at: IfKey, epoch: Epoch);
    /// Verdicts on packets of earlier epochs are late from now on.
    fn set_oldest(&mut self, spec: &WatchSpec, oldest: Epoch);
    /// Waits until no program is running that began before.
    fn wait_for_programs(&mut self);
    /// The same, beside the caller.
    fn begin_wait(&mut self) -> GracePeriod {
        self.wait_for_programs();
        GracePeriod::over()
    }
    /// Whether somebody is looking at the flows of an interface: what [`Scope::Observed`] is about.
    fn set_observed(&mut self, id: IfaceId, is_observed: bool);
    /// Evicts records from the caches into the ring.
    fn sweep(&mut self, scope: Scope, from: Cursor) -> Result<Swept, SourceError>;
    /// The programs' own count of an epoch.
    fn truth(&self, id: IfaceId, epoch: Epoch) -> Result<Truth, SourceError>;
    /// Makes an epoch's counters ready for reuse.
    fn clear_truth(&mut self, id: IfaceId, epoch: Epoch) -> Result<(), SourceError>;
    /// Other people's XDP programs on an interface, and what its driver has counted; `None`: it is gone.
    fn xdp(&self, id: IfaceId, spec: &WatchSpec) -> Option<XdpReading>;
    /// What connection tracking, where this interface is, has on the other side of packets with these tuples: an answer to each
    /// question, which is the same tuple if nothing is translated. `None`: it does not know.
    fn connections(&self, _spec: &WatchSpec, questions: &[Tuple]) -> Vec<Option<Tuple>> {
        vec![None; questions.len()]
    }
    /// Which addresses the kernel's own load balancer serves where this interface is.
    fn services(&self, _spec: &WatchSpec) -> Services {
        Services::default()
    }
    /// Whom it has chosen for packets of clients with these tuples: an answer to each question. `None`: it does not know.
    fn targets(&self, _spec: &WatchSpec, questions: &[Tuple]) -> Vec<Option<Tuple>> {
        vec![None; questions.len()]
    }
    /// Goes on reading at a position; `false`: the ring does not have it.
    fn seek(&mut self, position: u64) -> bool;
    /// Drops everything that is in the kernel: nobody knows what it belongs to.
    fn forget(&mut self) -> Result<(), SourceError>;
}

/// A watch on an interface, as the programs know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    pub id: IfaceId,
    /// What is wanted of it: `abi::WANT_*` and the like.
    pub flags: u16,
    pub epoch: Epoch,
    /// The oldest window whose packets can still be judged.
    pub oldest: Epoch,
}

/// Who else on this node uses `skb->tc_index`, in which packets are numbered: kind, and name of the interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NumberUsers {
    /// Somebody reads it: packets must not be numbered.
    pub reader: Option<(String, String)>,
    /// Somebody writes it: numbers may be gone when packets die.
    pub writer: Option<(String, String)>,
}

/// The XDP of a watched interface whose hooks are attached.
pub struct XdpPlace {
    pub id: IfaceId,
    pub spec: WatchSpec,
    /// Who runs each program that is attached, and its id.
    pub programs: Vec<(XdpMode, u32)>,
}

/// Interfaces and hooks: what the [capture](crate::capture) needs besides.
pub trait Node: Source {
    fn now(&self) -> Now;
    /// All interfaces of our own namespace.
    fn interfaces(&self) -> Result<Vec<NetDev>, SourceError>;
    /// Those of the `named` other namespaces, and if `all` those of every other one that may be looked into.
    fn interfaces_elsewhere(&self, named: &BTreeSet<NetnsName>, all: bool) -> Elsewhere;
    /// Whether a change in a namespace that has been looked into brings the next look.
    fn hears_elsewhere(&self) -> bool;
    /// What an interface of this index has counted by itself.
    fn counters(&self, netns: &Netns, index: u32) -> Result<Counters, SourceError>;
    /// Interfaces that there is room for.
    fn interfaces_max(&self) -> u16;
    /// Attaches the verdict programs, if they are not.
    fn attach_verdict(&mut self) -> Result<(), SourceError>;
    /// Attaches the hooks that a rule needs and that are not there, or takes over an earlier agent's; returns the directions whose packets are
    /// counted, once the programs know of the watch. One that takes the place of another neither misses a packet nor counts one again. What has
    /// been attached before an error stays: [`unhook`](Self::unhook) takes it away.
    fn hook(&mut self, spec: &WatchSpec, dev: &NetDev) -> Result<Vec<Direction>, SourceError>;
    /// Whether what comes in through an interface can be counted by XDP from one packet to the next where TC has counted it, and the other way:
    /// else why not.
    fn hands_over_xdp(&self, _spec: &WatchSpec) -> Result<(), SourceError> {
        Ok(())
    }
    /// Whether a TC hook makes way for one of the other kind, where a rule follows another one.
    fn swaps_tc(&self, before: &WatchSpec, after: &WatchSpec) -> bool {
        before.tc_hook() != after.tc_hook()
    }
    /// Takes the hooks of an interface away.
    fn unhook(&mut self, of: IfKey) -> Result<(), SourceError>;
    /// Takes those hooks of an interface away that a rule does not need.
    fn unhook_rest(&mut self, spec: &WatchSpec, dev: &NetDev) -> Result<(), SourceError>;
    /// Takes hooks away whose interface is gone, and forgets where that was.
    fn remove_stale_hooks(&mut self) -> Result<(), SourceError>;
    /// Tells the programs of an interface.
    fn watch(&mut self, dev: &NetDev, watch: Watch) -> Result<(), SourceError>;
    /// Which watch an interface has.
    fn watched(&self, at: IfKey) -> Option<IfaceId>;
    fn unwatch(&mut self, at: IfKey);
    /// The flags of a watch.
    fn flags(&self, at: IfKey) -> u16;
    /// Changes them, if the interface has this watch.
    fn set_flags(&mut self, id: IfaceId, at: IfKey, flags: u16);
    /// Which interfaces are stacked on which; returns how many pairs had no room.
    fn set_stacked(&mut self, stacked: &BTreeSet<Stacked>) -> Result<usize, SourceError>;
    /// Who else uses the field that packets are numbered in, at and around these interfaces.
    fn number_users(&self, devs: &[&NetDev]) -> NumberUsers;
    /// Who else is at the hooks of an interface.
    fn foreign(&self, _ifindex: u32, _netns: &Netns) -> Foreign {
        Foreign::default()
    }
    /// What may keep packets from the hooks of a watched interface; `None`: it cannot be looked at.
    fn hiding(&self, _spec: &WatchSpec) -> Option<Hiding> {
        Some(Hiding::default())
    }
    /// Sees to it that what foreign XDP programs do is looked at as closely as is wanted, on these interfaces and on no others; returns those
    /// where that has changed.
    fn see_xdp(&mut self, _places: &[XdpPlace]) -> Vec<IfaceId> {
        Vec::new()
    }
    /// The agent ends, and the capture goes on without it: foreign XDP programs are put back in their places.
    fn leave_xdp(&mut self) {}
    /// Puts the hook of one direction of a watched interface in front of others, if that is wanted; whether it is there now.
    fn go_first(&mut self, _spec: &WatchSpec, _direction: Direction) -> Result<bool, SourceError> {
        Ok(false)
    }
    /// Tells the programs which neighbours are behind these interfaces, as far as they are ports of bridges, and which devices are on top of
    /// them; returns how many had no room.
    fn set_behind(&mut self, _specs: &[WatchSpec], _on_top: &[OnTop]) -> Result<usize, SourceError> {
        Ok(0)
    }
    /// Packets may die without the number that they were given.
    fn set_numbers_missing(&mut self, missing: bool);
    /// Whether hooks and maps outlive this process.
    fn is_pinned(&self) -> bool;
    /// Takes all hooks away.
    fn detach_all(&mut self) -> Result<(), SourceError>;
    fn remove_pins(&mut self) -> Result<(), SourceError>;
}
