//! How large cache and ring are made where nobody says it: a function of CPUs and memory.
//!
//! The model behind the rule is in docs/performance.md ("Many CPUs, many interfaces"): each CPU leaves records to one thread of the agent, so
//! with more CPUs each has to leave fewer, and the ring has to last for as long as that thread is busy elsewhere.

use flowlog_ebpf::abi::{self, CACHE_SLOTS_DEFAULT, RING_BYTES_DEFAULT};

/// Slots of each CPU's cache for each CPU there is: the usual ones are enough for 16.
const SLOTS_FOR_EACH_CPU: u64 = 1_024;
/// Past it a sweep looks at more empty slots than it evicts, and a CPU's cache is larger than what processors cache of it.
const SLOTS_MAX: u32 = 65_536;
/// Fewer evict with every packet; who has so little memory lowers something else.
const SLOTS_MIN: u32 = 1_024;
/// What slots and ring may be larger than usual for: this part of the memory each.
const SHARE_TO_GROW: u64 = 128;
/// The usual cache is made smaller where it would take more than this part of the memory.
const SHARE_MAX: u64 = 4;

/// Packets that a busy CPU sees in a second: 20 million on 128 CPUs.
const PACKETS_A_CPU_SEC: u64 = 160_000;
/// One of so many leaves a record: some 100,000 flows on each CPU, the n-th 1/n as busy as the first (docs/performance.md).
const PACKETS_A_RECORD: u64 = 4;
/// What one CPU leaves by itself at most, if each of its packets leaves a record: this many in a second (docs/performance.md, "Soak").
const RECORDS_A_BUSY_CPU_SEC: u64 = 1_000_000;
/// What more than the agent drains fills any ring: records a second.
const DRAINED_SEC: u64 = 3_000_000;
/// How long the agent does not drain at worst: all flows go into a new segment of the journal (150 ms), and a window ends.
const PAUSE_MS: u64 = 200;
/// Past it a second of the agent's work lies in the ring, and `flowlog detach` takes as long.
const RING_BYTES_MAX: u64 = 64 << 20;

/// A slot costs this on each CPU: there is a cache for each address family.
const SLOT_BYTES: u64 = (size_of::<abi::Record4>() + size_of::<abi::Record6>()) as u64;

/// What is chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// CPUs that see packets.
    pub cpus: u64,
    /// CPUs that there could be: each has a cache.
    pub cpus_possible: u64,
    /// What there is, or what the tightest control group allows.
    pub memory_bytes: u64,
}

/// Why a size is what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The usual one is enough for so many CPUs.
    Usual,
    /// More, for so many CPUs.
    Cpus,
    /// Less than `wanted`, for want of memory.
    Memory { wanted: u32 },
}

/// A size, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    pub is: u32,
    pub why: Why,
}

impl Chosen {
    fn new(wanted: u32, usual: u32, is: u32) -> Self {
        let why = match is {
            _ if is < wanted => Why::Memory { wanted },
            _ if is > usual => Why::Cpus,
            _ => Why::Usual,
        };
        Self { is, why }
    }
}

impl Machine {
    /// Slots of the flow cache, for each CPU and address family: a power of two.
    #[must_use]
    pub fn cache_slots(&self) -> Chosen {
        let usual = CACHE_SLOTS_DEFAULT;
        let wanted = power(self.cpus.saturating_mul(SLOTS_FOR_EACH_CPU), usual, SLOTS_MAX);
        let takes = |slots: u32| u64::from(slots).saturating_mul(SLOT_BYTES).saturating_mul(self.cpus_possible);
        let mut is = wanted;
        while is > usual && takes(is) > self.memory_bytes / SHARE_TO_GROW {
            is /= 2;
        }
        while is > SLOTS_MIN && takes(is) > self.memory_bytes / SHARE_MAX {
            is /= 2;
        }
        Chosen::new(wanted, usual, is)
    }

    /// Bytes of the ring: a power of two. The agent is woken when a quarter is full, so three quarters have to last.
    #[must_use]
    pub fn ring_bytes(&self) -> Chosen {
        let usual = RING_BYTES_DEFAULT;
        let of_all = self.cpus.saturating_mul(PACKETS_A_CPU_SEC / PACKETS_A_RECORD).min(DRAINED_SEC);
        let records = of_all.max(RECORDS_A_BUSY_CPU_SEC);
        let bytes = records * PAUSE_MS / 1_000 * size_of::<abi::Record4>() as u64;
        let wanted = power(bytes * 4 / 3, usual, u32::try_from(RING_BYTES_MAX).unwrap_or(u32::MAX));
        let mut is = wanted;
        while is > usual && u64::from(is) > self.memory_bytes / SHARE_TO_GROW {
            is /= 2;
        }
        Chosen::new(wanted, usual, is)
    }
}

/// The power of two at or above it, within these.
fn power(n: u64, least: u32, most: u32) -> u32 {
    u32::try_from(n.min(u64::from(most)).next_power_of_two()).unwrap_or(most).clamp(least, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn sizes_follow_cpus_and_memory() {
        use Why::{Cpus, Usual};
        let less = |wanted| Why::Memory { wanted };
        for (cpus, possible, memory, slots, ring_mib) in [
            (1, 1, 64 * MIB, (16_384, Usual), (8, less(32 << 20))),
            (2, 2, 64 * MIB, (16_384, Usual), (8, less(32 << 20))),
            (4, 4, 2 * GIB, (16_384, Usual), (16, less(32 << 20))),
            (8, 8, 64 * MIB, (8_192, less(16_384)), (8, less(32 << 20))),
            (2, 2, 24 * GIB, (16_384, Usual), (32, Cpus)),
            (12, 12, 16 * GIB, (16_384, Usual), (32, Cpus)),
            (16, 16, 32 * GIB, (16_384, Usual), (32, Cpus)),
            // Of the CPUs that there could be each costs, and only those that are there count.
            (2, 240, 8 * GIB, (16_384, Usual), (32, Cpus)),
            (2, 240, GIB, (4_096, less(16_384)), (8, less(32 << 20))),
            (32, 32, 64 * GIB, (32_768, Cpus), (32, Cpus)),
            (64, 64, 128 * GIB, (65_536, Cpus), (64, Cpus)),
            (64, 64, 64 * GIB, (32_768, less(65_536)), (64, Cpus)),
            (128, 128, 512 * GIB, (65_536, Cpus), (64, Cpus)),
            (128, 128, 64 * GIB, (16_384, less(65_536)), (64, Cpus)),
            (128, 128, GIB, (8_192, less(65_536)), (8, less(64 << 20))),
            (128, 128, 64 * MIB, (1_024, less(65_536)), (8, less(64 << 20))),
            (1_024, 1_024, 4_096 * GIB, (65_536, Cpus), (64, Cpus)),
            (u64::MAX, u64::MAX, 0, (1_024, less(65_536)), (8, less(64 << 20))),
        ] {
            let machine = Machine { cpus, cpus_possible: possible, memory_bytes: memory };
            let case = format!("{machine:?}");
            assert_eq!(machine.cache_slots(), Chosen { is: slots.0, why: slots.1 }, "{case}");
            assert_eq!(machine.ring_bytes(), Chosen { is: ring_mib.0 << 20, why: ring_mib.1 }, "{case}");
        }
    }

    #[test]
    fn more_cpus_or_memory_never_mean_less_and_the_cache_keeps_to_its_share() {
        for cpus in 1..=256 {
            let mut before = (0, 0);
            for shift in 26..45 {
                let machine = Machine { cpus, cpus_possible: cpus, memory_bytes: 1 << shift };
                let is = (machine.cache_slots().is, machine.ring_bytes().is);
                assert!(is.0 >= before.0 && is.1 >= before.1, "{machine:?}: {is:?} after {before:?}");
                let takes = u64::from(is.0) * cpus * SLOT_BYTES;
                assert!(is.0 == SLOTS_MIN || takes <= machine.memory_bytes / SHARE_MAX, "{machine:?}: {takes}");
                let grown = [(takes, is.0 > 16_384), (is.1.into(), is.1 > 8 << 20)];
                assert!(grown.iter().all(|(bytes, has)| !has || *bytes <= machine.memory_bytes / 128), "{machine:?}");
                assert!(is.0.is_power_of_two() && is.1.is_power_of_two(), "{is:?}");
                before = is;
            }
        }
    }
}
