//! Interfaces and epochs, as the programs know them.
//!
//! `IFACES` and `EPOCH_OF` are mapped into our memory: an epoch changes by one 4-byte store that no program can
//! see half done, which a map update (a byte copy) would not promise.
#![allow(unsafe_code, reason = "plain-old-data markers for the shared structs")]

use std::{
    collections::BTreeSet,
    os::fd::AsFd as _,
    sync::atomic::{AtomicU32, Ordering},
};

use aya::{Ebpf, Pod};
use flowlog_ebpf::abi::{self, IFINDEX_MAX, Iface, Setup, Stacked};
use flowlog_model::{Epoch, IfaceId};

use super::{KernelError, mapping::Mapping, notes::Above};

/// [`Setup`], marked as plain old data for the loader.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct SetupPod(pub Setup);
// SAFETY: `Setup` is `repr(C)`, all integers, without padding (its size is asserted in `abi`).
unsafe impl Pod for SetupPod {}

/// A memory-mapped array map, accessed as 32-bit words.
struct Mapped {
    mapping: Mapping,
    /// Bytes from one element to the next; the kernel rounds element sizes up to 8.
    stride: usize,
}

impl Mapped {
    fn new(ebpf: &Ebpf, name: &str) -> Result<Self, KernelError> {
        let refused = |problem: String| KernelError::Refused { action: format!("map `{name}` into memory"), problem };
        let Some(aya::maps::Map::Array(data)) = ebpf.map(name) else {
            return Err(refused("it is not an array in the embedded object".to_owned()));
        };
        let info = data.info().map_err(|e| KernelError::from_chain(format!("read the size of map `{name}`"), &e))?;
        let elements = info.max_entries() as usize;
        let stride = info.value_size().next_multiple_of(8) as usize;
        let bytes = (elements * stride).next_multiple_of(rustix::param::page_size());
        let mapping = Mapping::new(data.fd().as_fd(), bytes, 0, true).map_err(|e| refused(e.to_string()))?;
        Ok(Self { mapping, stride })
    }

    fn word(&self, element: u32, word: usize) -> Option<&AtomicU32> {
        self.mapping.word32(element as usize * self.stride + 4 * word)
    }

    fn store(&self, element: u32, word: usize, value: u32) {
        if let Some(w) = self.word(element, word) {
            w.store(value, Ordering::SeqCst);
        }
    }

    fn load(&self, element: u32, word: usize) -> u32 {
        self.word(element, word).map_or(0, |w| w.load(Ordering::SeqCst))
    }
}

/// Word of [`Iface`] that holds id and flags; then epoch, oldest.
const WORD_ID_FLAGS: usize = 0;
const WORD_EPOCH: usize = 1;
const WORD_OLDEST: usize = 2;

/// What the programs know of interfaces: which are watched, in which namespace and window, and how they are stacked.
pub struct Interfaces {
    ifaces: Mapped,
    netns: Mapped,
    epochs: Mapped,
    above: Above,
}

impl Interfaces {
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            ifaces: Mapped::new(ebpf, "IFACES")?,
            netns: Mapped::new(ebpf, "NETNS_OF")?,
            epochs: Mapped::new(ebpf, "EPOCH_OF")?,
            above: Above::open(ebpf)?,
        })
    }

    /// Starts (or, with all zero, stops) accounting for an interface.
    pub fn watch(&mut self, netns_inum: u32, ifindex: u32, iface: Iface) -> Result<(), KernelError> {
        if ifindex >= IFINDEX_MAX {
            return Err(KernelError::Attach {
                interface: format!("index {ifindex}"),
                hook: "accounting".to_owned(),
                problem: format!("this build watches indexes below {IFINDEX_MAX}; reboot to start again from 1"),
            });
        }
        self.epochs.store(u32::from(iface.id), 0, iface.epoch);
        self.ifaces.store(ifindex, WORD_EPOCH, iface.epoch);
        self.ifaces.store(ifindex, WORD_OLDEST, iface.oldest);
        self.netns.store(ifindex, 0, netns_inum);
        // Last: a non-zero id is what makes the programs use the rest.
        self.ifaces.store(ifindex, WORD_ID_FLAGS, u32::from(iface.id) | u32::from(iface.flags) << 16);
        Ok(())
    }

    /// What is wanted of an interface.
    #[must_use]
    pub fn flags(&self, ifindex: u32) -> u16 {
        let word = self.ifaces.load(ifindex, WORD_ID_FLAGS).to_le_bytes();
        u16::from_le_bytes([word[2], word[3]])
    }

    /// Changes what is wanted of an interface that is being accounted for, in one store.
    pub fn set_flags(&self, id: IfaceId, ifindex: u32, flags: u16) {
        if self.watched(ifindex) == Some(id) {
            self.ifaces.store(ifindex, WORD_ID_FLAGS, u32::from(id.0) | u32::from(flags) << 16);
        }
    }

    /// Stops accounting for an interface.
    pub fn unwatch(&self, ifindex: u32) {
        self.ifaces.store(ifindex, WORD_ID_FLAGS, 0);
    }

    /// The id under which an interface is being accounted for, if it is.
    #[must_use]
    pub fn watched(&self, ifindex: u32) -> Option<IfaceId> {
        let id = self.ifaces.load(ifindex, WORD_ID_FLAGS).to_le_bytes();
        let id = u16::from_le_bytes([id[0], id[1]]);
        (id != 0).then_some(IfaceId(id))
    }

    /// Stops accounting for all interfaces.
    pub fn unwatch_all(&self) {
        (1..IFINDEX_MAX).for_each(|ifindex| self.unwatch(ifindex));
    }

    /// Packets from now on belong to `epoch`.
    pub fn set_epoch(&self, id: IfaceId, ifindex: u32, epoch: Epoch) {
        // The index may be another interface's by now.
        if self.watched(ifindex) == Some(id) {
            self.ifaces.store(ifindex, WORD_EPOCH, epoch.0);
        }
        self.epochs.store(u32::from(id.0), 0, epoch.0);
    }

    /// Verdicts on packets counted before `oldest` are late from now on.
    pub fn set_oldest(&self, ifindex: u32, oldest: Epoch) {
        self.ifaces.store(ifindex, WORD_OLDEST, oldest.0);
    }

    /// Which interfaces are stacked on which, as far as there is room; returns how many pairs there is none for.
    pub fn set_above(&mut self, pairs: &BTreeSet<Stacked>) -> Result<usize, KernelError> {
        self.above.set(pairs)
    }

    /// Whether the numbers that hooks write into packets may be missing when the packets die: see [`abi::NO_NUMBERS`].
    pub fn set_numbers_missing(&self, missing: bool) {
        let flags = if missing { abi::NO_NUMBERS } else { 0 };
        // Index 0 is no interface: its id stays 0.
        self.ifaces.store(0, WORD_ID_FLAGS, u32::from(flags) << 16);
    }
}
