//! How large the kernel's maps are: one table, for loading and for what they cost.

use aya::maps::MapType;
use flowlog_ebpf::abi::{self, EPOCHS};

use super::cpus::CpuCount;

/// A preallocated element of a hash map with key and value of 16 bytes at most (`struct htab_elem`), and its share of the buckets.
const HASH_ELEMENT_BYTES: u64 = 88;
/// What an array of programs holds.
const POINTER_BYTES: u64 = 8;

/// A map as it must be.
pub(super) struct MapSpec {
    pub(super) name: &'static str,
    pub(super) kind: MapType,
    /// Bytes of a value.
    pub(super) value: usize,
    pub(super) entries: u32,
}

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
    /// Every map of the eBPF object, as these sizes make it on a machine with so many possible CPUs.
    #[must_use]
    pub(super) fn maps(&self, cpus: CpuCount) -> Vec<MapSpec> {
        use MapType::{Array, Hash, PerCpuArray, ProgramArray, RingBuf};
        let interfaces = u32::from(self.interfaces_max) + 1;
        let bank = |record: usize| record * abi::BANK_SLOTS as usize;
        let bank4 = bank(size_of::<abi::Record4>());
        let bank6 = bank(size_of::<abi::Record6>());
        let spec = |name, kind, value, entries| MapSpec { name, kind, value, entries };
        vec![
            spec("IFACES", Array, size_of::<abi::Iface>(), abi::SPOTS),
            spec("BASES", Hash, 4, abi::RANGES_MAX),
            spec("ELSEWHERE_TC", ProgramArray, 4, abi::ELSEWHERE_TC),
            spec("ELSEWHERE_XDP", ProgramArray, 4, abi::ELSEWHERE_XDP),
            spec("WRAPPED", ProgramArray, 4, 1),
            spec("TRACED", PerCpuArray, size_of::<abi::Traced>(), 1),
            spec("TAKEN", PerCpuArray, size_of::<abi::Taken>(), interfaces),
            spec("ABOVE", Hash, 4, abi::ABOVE_MAX),
            spec("BEHIND", Hash, 4, abi::BEHIND_MAX),
            spec("DATAGRAMS", Array, size_of::<abi::Datagram>(), abi::DATAGRAMS),
            spec("WATCHED", Array, size_of::<abi::Watched>(), interfaces),
            spec("HOOKED", Array, size_of::<abi::Hooked>(), cpus.numbers * interfaces * EPOCHS),
            spec("JUDGED", PerCpuArray, size_of::<abi::Judged>(), interfaces * EPOCHS),
            spec("CPU", Array, size_of::<abi::Cpu>(), cpus.numbers),
            spec("DYING", PerCpuArray, size_of::<abi::Dying>(), 1),
            spec("PASSED4", PerCpuArray, bank4, banks(self.passed_slots)),
            spec("PASSED6", PerCpuArray, bank6, banks(self.passed_slots)),
            spec("REFUSED4", PerCpuArray, bank4, banks(self.refused_slots)),
            spec("REFUSED6", PerCpuArray, bank6, banks(self.refused_slots)),
            spec("BLOCK4", PerCpuArray, size_of::<abi::Block4>(), 1),
            spec("BLOCK6", PerCpuArray, size_of::<abi::Block6>(), 1),
            spec("REASONS", Array, 1, abi::REASONS),
            spec("RING", RingBuf, 0, self.ring_bytes),
            spec("VERDICTS", ProgramArray, 4, abi::VERDICTS),
            spec("SETUP", Array, size_of::<abi::Setup>(), 1),
        ]
    }

    /// Kernel memory these sizes cost on this machine, in bytes, and for how many possible CPUs.
    #[must_use]
    pub fn memory_bytes_here(&self) -> (u64, u64) {
        let cpus = CpuCount::here().unwrap_or(CpuCount::without_gaps(1));
        (self.memory_by_map(cpus).map(|(_, bytes)| bytes).sum(), u64::from(cpus.values))
    }

    /// The same of each map, on a machine with so many possible CPUs.
    pub fn memory_by_map(&self, cpus: CpuCount) -> impl Iterator<Item = (&'static str, u64)> {
        self.maps(cpus).into_iter().map(move |map| (map.name, map.memory_bytes(cpus.values)))
    }
}

/// The key of the configuration that a map's size follows from, if one does.
pub(super) fn key_of(map: &str) -> Option<&'static str> {
    match map {
        "PASSED4" | "PASSED6" => Some("kernel.cache_slots"),
        "REFUSED4" | "REFUSED6" => Some("kernel.refused_slots"),
        "RING" => Some("kernel.ring_bytes"),
        "TAKEN" | "WATCHED" | "HOOKED" | "JUDGED" => Some("kernel.interfaces_max"),
        _ => None,
    }
}

impl MapSpec {
    /// Arrays keep their elements at multiples of 8 bytes (`kernel/bpf/arraymap.c`), and ours are made with all they may hold.
    fn memory_bytes(&self, cpus: u32) -> u64 {
        let element = match self.kind {
            MapType::Hash => HASH_ELEMENT_BYTES,
            MapType::RingBuf => 1,
            MapType::ProgramArray => POINTER_BYTES,
            _ => (self.value as u64).next_multiple_of(8),
        };
        let copies = if self.kind == MapType::PerCpuArray { cpus } else { 1 };
        element * u64::from(self.entries) * u64::from(copies)
    }
}

/// Map elements for so many slots.
fn banks(slots: u32) -> u32 {
    slots.div_ceil(abi::BANK_SLOTS)
}
