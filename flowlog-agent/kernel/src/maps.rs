//! Interfaces and epochs, as the programs know them.
//!
//! `IFACES` and `WATCHED` are mapped into our memory: an epoch changes by one 4-byte store that no program can
//! see half done, which a map update (a byte copy) would not promise.
#![allow(unsafe_code, reason = "plain-old-data markers for the shared structs")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::Ordering,
};

use aya::{Ebpf, Pod};
use flowlog_ebpf::abi::{self, Iface, NextHop, SPOTS, Setup, Stacked};
use flowlog_host::fault;
use flowlog_model::{
    Epoch, IfaceId,
    interface::{IfKey, OnTop},
};

use super::{
    KernelError, behind::Behind, each_cpu, mapping::MappedArray, netdev::neighbours::NeighbourBehind, notes::Above,
    spots::Spots, sweep::wait_for_programs,
};

/// [`Setup`], marked as plain old data for the loader.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct SetupPod(pub Setup);
// SAFETY: `Setup` is `repr(C)`, all integers, without padding (its size is asserted in `abi`).
unsafe impl Pod for SetupPod {}

/// Word of [`Iface`] that holds id and flags; then epoch, oldest, CPUs that count by XDP.
const WORD_ID_FLAGS: usize = 0;
const WORD_EPOCH: usize = 1;
const WORD_OLDEST: usize = 2;
const WORD_BY_XDP: usize = 3;
/// Word of [`abi::Watched`] that holds the epoch; then namespace, spot, whether it is observed.
const WORD_WATCHED_EPOCH: usize = 0;
const WORD_NETNS: usize = 1;
const WORD_SPOT: usize = 2;
const WORD_OBSERVED: usize = 3;

/// What the programs know of interfaces: which are watched, in which namespace and window, and how they are stacked.
pub struct Interfaces {
    ifaces: MappedArray,
    watched: MappedArray,
    spots: Spots,
    above: Above,
    behind: Behind,
}

impl Interfaces {
    pub(super) fn open(ebpf: &mut Ebpf, own_netns_inum: u32) -> Result<Self, KernelError> {
        Ok(Self {
            ifaces: MappedArray::new(ebpf, "IFACES")?,
            watched: MappedArray::new(ebpf, "WATCHED")?,
            spots: Spots::open(ebpf, own_netns_inum)?,
            above: Above::open(ebpf)?,
            behind: Behind::open(ebpf)?,
        })
    }

    /// Whether an interface is in our own network namespace.
    #[must_use]
    pub fn is_here(&self, at: IfKey) -> bool {
        self.spots.is_own(at)
    }

    /// Makes room for an interface of another namespace; what its hook must add to its index. `None`: it is of our own.
    ///
    /// # Errors
    /// [`KernelError::Attach`] if there is no room.
    pub fn claim(&mut self, at: IfKey) -> Result<Option<u32>, KernelError> {
        let (_, base) = self.spots.claim(at)?;
        Ok((!self.spots.is_own(at)).then_some(base))
    }

    /// Starts accounting for an interface.
    ///
    /// # Errors
    /// As [`claim`](Self::claim).
    pub fn watch(&mut self, at: IfKey, iface: Iface) -> Result<(), KernelError> {
        let (spot, _) = self.spots.claim(at)?;
        let id = u32::from(iface.id);
        self.hand_over(at, (iface.id, iface.flags));
        self.watched.store(id, WORD_NETNS, at.netns_inum);
        self.watched.store(id, WORD_SPOT, spot);
        self.watched.store(id, WORD_OBSERVED, 0);
        self.watched.store(id, WORD_WATCHED_EPOCH, iface.epoch);
        self.ifaces.store(spot, WORD_EPOCH, iface.epoch);
        self.ifaces.store(spot, WORD_OLDEST, iface.oldest);
        // Last: a non-zero id is what makes the programs use the rest.
        self.ifaces.store(spot, WORD_ID_FLAGS, u32::from(iface.id) | u32::from(iface.flags) << 16);
        Ok(())
    }

    /// Id and flags of an interface; both 0 if it is not being accounted for.
    fn id_and_flags(&self, at: IfKey) -> (u16, u16) {
        let word = self.spots.find(at).map_or(0, |spot| self.ifaces.load(spot, WORD_ID_FLAGS)).to_le_bytes();
        (u16::from_le_bytes([word[0], word[1]]), u16::from_le_bytes([word[2], word[3]]))
    }

    /// What is wanted of an interface.
    #[must_use]
    pub fn flags(&self, at: IfKey) -> u16 {
        self.id_and_flags(at).1
    }

    /// The id under which an interface is being accounted for, if it is.
    #[must_use]
    pub fn watched(&self, at: IfKey) -> Option<IfaceId> {
        let (id, _) = self.id_and_flags(at);
        (id != 0).then_some(IfaceId(id))
    }

    /// The spot of an interface that is being accounted for under this id: it may be another one by now.
    fn spot_of(&self, id: IfaceId, at: IfKey) -> Option<u32> {
        self.spots.find(at).filter(|_| self.watched(at) == Some(id))
    }

    /// Changes what is wanted of an interface that is being accounted for, in one store; where XDP is to count what TC has counted, or TC what
    /// XDP has, one CPU after the other before that.
    pub fn set_flags(&self, id: IfaceId, at: IfKey, flags: u16) {
        if let Some(spot) = self.spot_of(id, at) {
            self.hand_over(at, (id.0, flags));
            self.ifaces.store(spot, WORD_ID_FLAGS, u32::from(id.0) | u32::from(flags) << 16);
        }
    }

    /// Has XDP count what comes in where TC does, or TC where XDP does, if that is what flags change: each packet is counted by one of the two
    /// ([`abi::HANDS_OVER`]). An agent that was killed over it leaves some CPUs with the one and some with the other; then this goes on.
    fn hand_over(&self, at: IfKey, (id, flags): (u16, u16)) {
        let (watched, before) = self.id_and_flags(at);
        let both_count = before & flags & abi::WANT_INGRESS != 0;
        let changes = (before ^ flags) & abi::XDP_INGRESS != 0 || before & abi::HANDS_OVER != 0;
        let Some(spot) = self.spots.find(at).filter(|_| watched == id && both_count && changes) else { return };
        let to_xdp = flags & abi::XDP_INGRESS != 0;
        if before & abi::HANDS_OVER == 0 {
            self.ifaces.store(spot, WORD_BY_XDP, if to_xdp { 0 } else { u32::MAX });
            // Whoever sees the flag sees the number.
            wait_for_programs();
            self.ifaces.store(spot, WORD_ID_FLAGS, u32::from(id) | u32::from(before | abi::HANDS_OVER) << 16);
        }
        fault::point("xdp_hand_over");
        let Some(by_xdp) = self.ifaces.word(spot, WORD_BY_XDP) else { return };
        let turned = each_cpu::on_each(!to_xdp, move |cpu| {
            by_xdp.store(if to_xdp { cpu + 1 } else { cpu }, Ordering::SeqCst);
            fault::point("xdp_cpu_handed_over");
        });
        if let Err(error) = turned {
            tracing::warn!(%error, ifindex = at.index, "a packet that is between XDP and TC at this moment may be missed or counted twice");
        }
    }

    /// Stops accounting for an interface.
    pub fn unwatch(&self, at: IfKey) {
        if let Some(spot) = self.spots.find(at) {
            self.ifaces.store(spot, WORD_ID_FLAGS, 0);
        }
    }

    /// Stops accounting for all interfaces.
    pub fn unwatch_all(&self) {
        (1..SPOTS).for_each(|spot| self.ifaces.store(spot, WORD_ID_FLAGS, 0));
    }

    /// Forgets where interfaces were that are not watched. Only while no hook of theirs is attached.
    pub fn release(&mut self) {
        let Self { ifaces, spots, .. } = self;
        spots.release(|spot| ifaces.load(spot, WORD_ID_FLAGS) != 0);
    }

    /// Packets from now on belong to `epoch`.
    pub fn set_epoch(&self, id: IfaceId, at: IfKey, epoch: Epoch) {
        // The index may be another interface's by now.
        if let Some(spot) = self.spot_of(id, at) {
            self.ifaces.store(spot, WORD_EPOCH, epoch.0);
        }
        self.watched.store(u32::from(id.0), WORD_WATCHED_EPOCH, epoch.0);
    }

    /// Whether somebody is looking at the flows that have this id.
    pub fn set_observed(&self, id: IfaceId, is_observed: bool) {
        self.watched.store(u32::from(id.0), WORD_OBSERVED, u32::from(is_observed));
    }

    /// Verdicts on packets counted before `oldest` are late from now on.
    pub fn set_oldest(&self, at: IfKey, oldest: Epoch) {
        if let Some(spot) = self.spots.find(at) {
            self.ifaces.store(spot, WORD_OLDEST, oldest.0);
        }
    }

    /// Which interfaces are stacked on which, as far as there is room; returns how many pairs there is none for.
    pub fn set_above(&mut self, pairs: &BTreeSet<Stacked>) -> Result<usize, KernelError> {
        self.above.set(pairs)
    }

    /// Makes the programs know which next hops are behind which ports of bridges, by the number of the namespace, and what is below stacked
    /// devices. Returns how many there is no room for.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_behind(
        &mut self,
        found: &BTreeMap<u32, Vec<NeighbourBehind>>,
        on_top: &[OnTop],
    ) -> Result<usize, KernelError> {
        let mut wanted = BTreeMap::new();
        let mut want = |bridge, address, IfKey { netns_inum, index }, vlan: u16| {
            let Some(spot) = self.spots.find(IfKey { netns_inum, index }) else { return };
            let of = |address| NextHop { address, bridge, netns_inum };
            wanted.insert(of([0; 4]), 0);
            wanted.insert(of(address), u32::from(vlan) << abi::SPOT_BITS | spot);
        };
        for (netns_inum, neighbours) in found {
            for n in neighbours {
                want(n.bridge, n.address, IfKey { netns_inum: *netns_inum, index: n.port }, 0);
            }
        }
        for OnTop { netns_inum, upper, below } in on_top {
            want(*upper, abi::ANY_NEXT_HOP, IfKey { netns_inum: *netns_inum, index: below.index }, below.vlan);
        }
        self.behind.set(&wanted)
    }

    /// Whether the numbers that hooks write into packets may be missing when the packets die: see [`abi::NO_NUMBERS`].
    pub fn set_numbers_missing(&self, missing: bool) {
        let flags = if missing { abi::NO_NUMBERS } else { 0 };
        // Spot 0 is no interface: its id stays 0.
        self.ifaces.store(0, WORD_ID_FLAGS, u32::from(flags) << 16);
    }
}
