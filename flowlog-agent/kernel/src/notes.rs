//! What the programs' notes need from us: numbers that tell the CPUs apart, and which interfaces are stacked on which.
#![allow(unsafe_code, reason = "plain-old-data markers for the shared structs")]

use std::collections::BTreeSet;

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, MapData, MapError},
};
use flowlog_ebpf::abi::{ABOVE_MAX, Cpu, EPOCHS, NOTES, Setup, Stacked};

use super::{
    KernelError,
    programs::{missing, take},
    sizes::Sizes,
};

/// [`Stacked`], marked as plain old data for the loader.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct StackedPod(Stacked);
// SAFETY: `Stacked` is `repr(C)`, three `u32` (its size is asserted in `abi`).
unsafe impl Pod for StackedPod {}

/// [`Cpu`] as the words it consists of.
type CpuWords = [u64; size_of::<Cpu>() / 8];
/// Word that holds [`Cpu::next`], [`Cpu::owner`] and [`Cpu::sequence`].
const WORD_NEXT: usize = core::mem::offset_of!(Cpu, next) / 8;
/// Word that holds [`Cpu::seed`]; then one with [`Cpu::passed_mask`] and [`Cpu::hooked`].
const WORD_SEED: usize = core::mem::offset_of!(Cpu, seed) / 8;

/// Bits of a packet's number that count; those above say which CPU gave it: room for the CPU's number plus one, since none
/// is 0.
pub(super) fn sequence_bits(cpus: usize) -> u32 {
    u16::BITS.saturating_sub(cpus.bit_width())
}

/// That word, of a CPU that has noted nothing.
fn share(cpu: u16, sequence_bits: u32) -> u64 {
    let owner = u64::from(cpu + 1) << sequence_bits;
    let sequence = (1u64 << sequence_bits) - 1;
    sequence << 48 | owner << 32
}

/// Gives each CPU its share of the numbers and of the maps, unless it has them from an earlier agent.
pub(super) fn begin(ebpf: &mut Ebpf, cpus: u32, setup: &Setup, sizes: Sizes) -> Result<(), KernelError> {
    let refused = |e: &(dyn std::error::Error + 'static)| KernelError::from_chain("fill map CPU", e);
    // What is left of the 16 bits of a number must tell the notes of a CPU apart; with fewer, a note is found for less long.
    let bits = sequence_bits(cpus as usize);
    if bits < NOTES.trailing_zeros() {
        tracing::debug!(cpus, "many CPUs: a packet is known for fewer packets after it");
    }
    // It stays in the object: entries need it.
    let map = ebpf.map_mut("CPU").ok_or_else(|| missing("CPU"))?;
    let mut map: Array<_, CpuWords> = map.try_into().map_err(|e: MapError| refused(&e))?;
    for (index, cpu) in (0..cpus).zip(0u16..) {
        let mut value = map.get(&index, 0).map_err(|e| refused(&e))?;
        if value[WORD_NEXT] == 0 {
            let hooked = index * (u32::from(sizes.interfaces_max) + 1) * EPOCHS;
            value[WORD_NEXT] = share(cpu, bits);
            value[WORD_SEED] = setup.seed;
            value[WORD_SEED + 1] = u64::from(hooked) << 32 | u64::from(sizes.passed_slots - 1);
            map.set(index, &value, 0).map_err(|e| refused(&e))?;
        }
    }
    Ok(())
}

/// The `ABOVE` map, and what is in it.
pub(super) struct Above {
    map: HashMap<MapData, StackedPod, u32>,
    pairs: BTreeSet<Stacked>,
}

impl Above {
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let map: HashMap<_, StackedPod, u32> = take(ebpf, "ABOVE")?.try_into().map_err(|e: MapError| refused(&e))?;
        let pairs = map.keys().map(|k| Ok(k.map_err(|e: MapError| refused(&e))?.0));
        let pairs = pairs.collect::<Result<_, KernelError>>()?;
        Ok(Self { map, pairs })
    }

    /// Makes it say what is stacked on what; returns how many pairs it has no room for.
    pub(super) fn set(&mut self, wanted: &BTreeSet<Stacked>) -> Result<usize, KernelError> {
        for gone in self.pairs.difference(wanted) {
            // It may have gone by itself with a map that was made anew.
            let _ = self.map.remove(&StackedPod(*gone));
        }
        self.pairs.retain(|p| wanted.contains(p));
        for new in wanted {
            if self.pairs.len() < ABOVE_MAX as usize && self.pairs.insert(*new) {
                self.map.insert(&StackedPod(*new), &1, 0).map_err(|e| refused(&e))?;
            }
        }
        Ok(wanted.len() - self.pairs.len())
    }
}

fn refused(e: &MapError) -> KernelError {
    KernelError::from_chain("fill map ABOVE", e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cpu_has_numbers_of_its_own_and_none_is_zero() {
        for cpus in [1u16, 2, 3, 4, 7, 8, 127, 128, 255, 256, 511, 512, 4_096] {
            let bits = sequence_bits(usize::from(cpus));
            let mut owners = BTreeSet::new();
            for cpu in 0..cpus {
                let word = share(cpu, bits);
                let next = word & 0xffff_ffff;
                let owner = word >> 32 & 0xffff;
                let sequence = word >> 48;
                assert!(next == 0 && owner != 0 && owner & sequence == 0 && owner | sequence <= 0xffff, "{cpus}");
                assert!(owners.insert(owner), "{cpus}");
            }
        }
    }
}
