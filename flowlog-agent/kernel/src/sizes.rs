//! How large the kernel's maps are: one table, for loading and for what they cost.

use std::num::NonZero;

use flowlog_ebpf::abi::{self, EPOCHS, Iface};

/// A preallocated element of a hash map with key and value of 8 bytes (`struct htab_elem`), and its share of the buckets.
const HASH_ELEMENT_BYTES: u64 = 80;

/// Sizes of the kernel's side. All powers of two but the number of interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Slots of the flow cache, for each CPU and address family.
    pub passed_slots: u32,
    /// Slots of the refused cache, for each CPU and address family.
    pub refused_slots: u32,
    /// Bytes of the ring buffer.
    pub ring_bytes: u32,
    /// Watched interfaces at most.
    pub interfaces_max: u16,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            passed_slots: abi::CACHE_SLOTS_DEFAULT,
            refused_slots: abi::REFUSED_SLOTS_DEFAULT,
            ring_bytes: abi::RING_BYTES_DEFAULT,
            interfaces_max: 512,
        }
    }
}

impl Sizes {
    /// Elements of the maps whose size is not fixed in the eBPF object.
    #[must_use]
    pub(super) fn elements(&self) -> [(&'static str, u32); 7] {
        let interfaces = u32::from(self.interfaces_max) + 1;
        let passed = banks(self.passed_slots);
        let refused = banks(self.refused_slots);
        [
            ("PASSED4", passed),
            ("PASSED6", passed),
            ("REFUSED4", refused),
            ("REFUSED6", refused),
            ("RING", self.ring_bytes),
            ("TRUTH", interfaces * EPOCHS),
            ("EPOCH_OF", interfaces),
        ]
    }

    /// Kernel memory these sizes cost on this machine, in bytes, and for how many possible CPUs.
    #[must_use]
    pub fn memory_bytes_here(&self) -> (u64, u64) {
        let cpus = u64::from(aya::util::nr_cpus().map_or(1, NonZero::get));
        (self.memory_bytes(cpus), cpus)
    }

    /// Kernel memory these sizes cost on a machine with `cpus` possible CPUs, in bytes.
    #[must_use]
    fn memory_bytes(&self, cpus: u64) -> u64 {
        let records = (size_of::<abi::Record4>() + size_of::<abi::Record6>()) as u64;
        let slots = u64::from(banks(self.passed_slots) + banks(self.refused_slots)) * u64::from(abi::BANK_SLOTS);
        let truth = (u64::from(self.interfaces_max) + 1) * u64::from(EPOCHS) * size_of::<abi::Truth>() as u64;
        let scratch = (size_of::<abi::Cpu>() + size_of::<abi::Dying>()) as u64;
        let datagrams = u64::from(abi::DATAGRAMS) * size_of::<abi::Datagram>() as u64;
        let above = u64::from(abi::ABOVE_MAX) * HASH_ELEMENT_BYTES;
        let blocks = (size_of::<abi::Block4>() + size_of::<abi::Block6>()) as u64;
        let shared = u64::from(self.ring_bytes) + u64::from(abi::IFINDEX_MAX) * (size_of::<Iface>() as u64 + 8);
        cpus * (slots * records + truth + scratch + blocks) + shared + datagrams + above
    }
}

/// Map elements for so many slots.
pub(super) fn banks(slots: u32) -> u32 {
    slots.div_ceil(abi::BANK_SLOTS)
}
