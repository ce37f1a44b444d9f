//! What the programs have counted: the witness of every window.
#![allow(unsafe_code, reason = "a plain-old-data marker for the shared struct")]

use std::sync::atomic::Ordering;

use aya::{
    Ebpf, Pod,
    maps::{MapData, MapError, PerCpuArray, PerCpuValues},
};
use flowlog_ebpf::abi::{Count, EPOCHS, Hooked, Judged, Taken, Truth};
use flowlog_model::{Epoch, IfaceId, xdp::XdpTaken};

use super::{KernelError, cpus::CpuCount, mapping::MappedArray, programs::take};

/// [`Hooked`] in words: packets and bytes in turns.
const HOOKED_WORDS: usize = size_of::<Hooked>() / 8;

/// [`Judged`], marked as plain old data for the loader.
#[repr(transparent)]
#[derive(Clone, Copy, Default)]
pub(crate) struct JudgedPod(pub Judged);
// SAFETY: `Judged` is `repr(C)`, all `u64`, without padding (its size is asserted in `abi`).
unsafe impl Pod for JudgedPod {}

/// [`Taken`], likewise.
#[repr(transparent)]
#[derive(Clone, Copy, Default)]
pub(crate) struct TakenPod(pub Taken);
// SAFETY: `Taken` is `repr(C)`, two `u64`, without padding (its size is asserted in `abi`).
unsafe impl Pod for TakenPod {}

/// See the module's head.
pub struct TruthTable {
    /// What hooks have counted: mapped, so that no counter is read half written.
    hooked: MappedArray,
    judged: PerCpuArray<MapData, JudgedPod>,
    taken: PerCpuArray<MapData, TakenPod>,
    cpus: CpuCount,
    interfaces_max: u16,
}

impl TruthTable {
    pub(super) fn open(ebpf: &mut Ebpf, cpus: CpuCount, interfaces_max: u16) -> Result<Self, KernelError> {
        let hooked = MappedArray::new(ebpf, "HOOKED")?;
        let judged = take(ebpf, "JUDGED")?.try_into();
        let judged = judged.map_err(|e: MapError| KernelError::from_chain("open map JUDGED", &e))?;
        let taken = take(ebpf, "TAKEN")?.try_into();
        let taken = taken.map_err(|e: MapError| KernelError::from_chain("open map TAKEN", &e))?;
        Ok(Self { hooked, judged, taken, cpus, interfaces_max })
    }

    /// Witness counters of an interface and epoch, summed over all CPUs.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn get(&self, id: IfaceId, epoch: Epoch) -> Result<Truth, KernelError> {
        let values = self
            .judged
            .get(&truth_index(id, epoch), 0)
            .map_err(|e| KernelError::from_chain("read the truth counters", &e))?;
        let mut sum = Truth::default();
        for JudgedPod(Judged { verdict, untold }) in values.iter() {
            let one = Truth { hook: Default::default(), verdict: *verdict, untold: *untold };
            sum.add(one.counts());
        }
        for element in self.hooked_elements(id, epoch) {
            let word = |at| self.hooked.word64(element, at).map_or(0, |w| w.load(Ordering::Relaxed));
            // Hooks come first among the counts.
            sum.add((0..HOOKED_WORDS).step_by(2).map(|at| Count { packets: word(at), bytes: word(at + 1) }));
        }
        Ok(sum)
    }

    /// Where what hooks have counted is, on each CPU.
    fn hooked_elements(&self, id: IfaceId, epoch: Epoch) -> impl Iterator<Item = u32> {
        let of_a_cpu = (u32::from(self.interfaces_max) + 1) * EPOCHS;
        (0..self.cpus.numbers).map(move |cpu| cpu * of_a_cpu + truth_index(id, epoch))
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
        let zero =
            PerCpuValues::try_from(vec![JudgedPod::default(); self.cpus.values as usize]).map_err(|e| refused(&e))?;
        self.judged.set(truth_index(id, epoch), zero, 0).map_err(|e| refused(&e))?;
        for element in self.hooked_elements(id, epoch) {
            for word in (0..HOOKED_WORDS).filter_map(|at| self.hooked.word64(element, at)) {
                word.store(0, Ordering::Relaxed);
            }
        }
        Ok(())
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
