//! What the programs have counted: the witness of every window.
#![allow(unsafe_code, reason = "a plain-old-data marker for the shared struct")]

use aya::{
    Ebpf, Pod,
    maps::{MapData, MapError, PerCpuArray, PerCpuValues},
};
use flowlog_ebpf::abi::{EPOCHS, Taken, Truth};
use flowlog_model::{Epoch, IfaceId, xdp::XdpTaken};

use super::{KernelError, programs::take};

/// [`Truth`], marked as plain old data for the loader.
#[repr(transparent)]
#[derive(Clone, Copy, Default)]
pub(crate) struct TruthPod(pub Truth);
// SAFETY: `Truth` is `repr(C)`, all `u64`, without padding (its size is asserted in `abi`).
unsafe impl Pod for TruthPod {}

/// [`Taken`], likewise.
#[repr(transparent)]
#[derive(Clone, Copy, Default)]
pub(crate) struct TakenPod(pub Taken);
// SAFETY: `Taken` is `repr(C)`, two `u64`, without padding (its size is asserted in `abi`).
unsafe impl Pod for TakenPod {}

/// See the module's head.
pub struct TruthTable {
    map: PerCpuArray<MapData, TruthPod>,
    taken: PerCpuArray<MapData, TakenPod>,
    interfaces_max: u16,
}

impl TruthTable {
    pub(super) fn open(ebpf: &mut Ebpf, interfaces_max: u16) -> Result<Self, KernelError> {
        let map = take(ebpf, "TRUTH")?.try_into();
        let map = map.map_err(|e: MapError| KernelError::from_chain("open map TRUTH", &e))?;
        let taken = take(ebpf, "TAKEN")?.try_into();
        let taken = taken.map_err(|e: MapError| KernelError::from_chain("open map TAKEN", &e))?;
        Ok(Self { map, taken, interfaces_max })
    }

    /// Witness counters of an interface and epoch, summed over all CPUs.
    pub fn get(&self, id: IfaceId, epoch: Epoch) -> Result<Truth, KernelError> {
        let values = self
            .map
            .get(&truth_index(id, epoch), 0)
            .map_err(|e| KernelError::from_chain("read the truth counters", &e))?;
        Ok(values.iter().fold(Truth::default(), |sum, cpu| add(sum, &cpu.0)))
    }

    /// Packets that we have seen foreign XDP programs take on an interface, summed over all CPUs, whatever the epoch.
    pub fn taken(&self, id: IfaceId) -> Result<XdpTaken, KernelError> {
        let values = self
            .taken
            .get(&u32::from(id.0), 0)
            .map_err(|e| KernelError::from_chain("read what XDP programs took", &e))?;
        let mut sum = XdpTaken::default();
        for TakenPod(Taken { dropped, forwarded }) in values.iter() {
            sum.dropped += dropped;
            sum.forwarded += forwarded;
        }
        Ok(sum)
    }

    /// Makes an epoch's counters ready for reuse. Only after no program can write to them.
    pub fn clear(&mut self, id: IfaceId, epoch: Epoch) -> Result<(), KernelError> {
        let refused = |e: &(dyn std::error::Error + 'static)| KernelError::from_chain("clear the truth counters", e);
        let cpus = aya::util::nr_cpus().map_err(|(_, e)| refused(&e))?.get() as usize;
        let zero = PerCpuValues::try_from(vec![TruthPod::default(); cpus]).map_err(|e| refused(&e))?;
        self.map.set(truth_index(id, epoch), zero, 0).map_err(|e| refused(&e))
    }
    /// Makes all counters ready for use. Only while nothing is watched.
    pub fn clear_all(&mut self) -> Result<(), KernelError> {
        for id in 1..=self.interfaces_max {
            (0..EPOCHS).try_for_each(|epoch| self.clear(IfaceId(id), Epoch(epoch)))?;
        }
        Ok(())
    }
}

fn truth_index(id: IfaceId, epoch: Epoch) -> u32 {
    u32::from(id.0) * EPOCHS + epoch.0 % EPOCHS
}

fn add(mut sum: Truth, cpu: &Truth) -> Truth {
    sum.add(cpu.counts());
    sum
}
