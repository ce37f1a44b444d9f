//! Interfaces, epochs and truth counters.
//!
//! `IFACES` and `EPOCH_OF` are mapped into our memory: an epoch changes by one 4-byte store that no program can
//! see half done, which a map update (a byte copy) would not promise.
#![allow(unsafe_code)] // mmap, and plain-old-data markers for the shared structs

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    ptr::NonNull,
    sync::atomic::{AtomicU32, Ordering},
};

use aya::{Ebpf, Pod, maps::PerCpuValues};
use flowlog_ebpf::abi::{Count, EPOCHS, IFINDEX_MAX, Iface, Truth};

use super::{KernelError, load::Kernel};
use crate::types::{Epoch, IfaceId};

/// [`Truth`], marked as plain old data for the loader.
#[repr(transparent)]
#[derive(Clone, Copy, Default)]
pub struct TruthPod(pub Truth);
// SAFETY: `Truth` is `repr(C)`, all `u64`, without padding (its size is asserted in `abi`).
unsafe impl Pod for TruthPod {}

/// A memory-mapped array map, accessed as 32-bit words.
pub struct Mapped {
    base: NonNull<AtomicU32>,
    bytes: usize,
    /// Words from one element to the next; the kernel rounds element sizes up to 8 bytes.
    stride: usize,
    elements: usize,
}
// SAFETY: all access is through atomics.
unsafe impl Send for Mapped {}

impl Mapped {
    pub(super) fn new(ebpf: &Ebpf, name: &str) -> Result<Self, KernelError> {
        let refused = |problem: String| KernelError::Refused { action: format!("map `{name}` into memory"), problem };
        let Some(aya::maps::Map::Array(data)) = ebpf.map(name) else {
            return Err(refused("it is not an array in the embedded object".to_owned()));
        };
        let info = data.info().map_err(|e| KernelError::from_chain(format!("read the size of map `{name}`"), &e))?;
        let (elements, size) = (info.max_entries() as usize, info.value_size().next_multiple_of(8) as usize);
        let bytes = (elements * size).next_multiple_of(rustix::param::page_size());
        // SAFETY: a fresh shared mapping of a map made with BPF_F_MMAPABLE; the kernel checks the length.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                data.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        match NonNull::new(base.cast::<AtomicU32>()) {
            Some(base) if base.as_ptr().cast::<libc::c_void>() != libc::MAP_FAILED => {
                Ok(Self { base, bytes, stride: size / 4, elements })
            }
            _ => Err(refused(io::Error::last_os_error().to_string())),
        }
    }

    fn word(&self, element: u32, word: usize) -> Option<&AtomicU32> {
        let element = element as usize;
        if element >= self.elements || word >= self.stride {
            return None;
        }
        // SAFETY: within the mapping (checked above), aligned, and only ever accessed atomically by us; programs
        // read it with plain loads of at most 8 bytes.
        Some(unsafe { self.base.add(element * self.stride + word).as_ref() })
    }

    fn store(&self, element: u32, word: usize, value: u32) {
        if let Some(w) = self.word(element, word) {
            w.store(value, Ordering::SeqCst);
        }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, no reference to which outlives self.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// Word of [`Iface`] that holds id and flags; then epoch, oldest, upper.
const WORD_ID_FLAGS: usize = 0;
const WORD_EPOCH: usize = 1;
const WORD_OLDEST: usize = 2;
const WORD_UPPER: usize = 3;

impl Kernel {
    /// Starts (or, with all zero, stops) accounting for an interface.
    pub fn watch(&mut self, ifindex: u32, iface: Iface) -> Result<(), KernelError> {
        if ifindex >= IFINDEX_MAX {
            return Err(KernelError::Refused {
                action: format!("watch the interface with index {ifindex}"),
                problem: format!("this build watches indexes below {IFINDEX_MAX}; re-create the interface or reboot"),
            });
        }
        self.epochs.store(u32::from(iface.id), 0, iface.epoch);
        self.ifaces.store(ifindex, WORD_EPOCH, iface.epoch);
        self.ifaces.store(ifindex, WORD_OLDEST, iface.oldest);
        self.ifaces.store(ifindex, WORD_UPPER, iface.upper);
        // Last: a non-zero id is what makes the programs use the rest.
        self.ifaces.store(ifindex, WORD_ID_FLAGS, u32::from(iface.id) | u32::from(iface.flags) << 16);
        Ok(())
    }

    /// Packets from now on belong to `epoch`.
    pub fn set_epoch(&self, id: IfaceId, ifindex: u32, epoch: Epoch) {
        self.ifaces.store(ifindex, WORD_EPOCH, epoch.0);
        self.epochs.store(u32::from(id.0), 0, epoch.0);
    }

    /// Verdicts on packets counted before `oldest` are late from now on.
    pub fn set_oldest(&self, ifindex: u32, oldest: Epoch) {
        self.ifaces.store(ifindex, WORD_OLDEST, oldest.0);
    }

    /// The device stacked on an interface changed.
    pub fn set_upper(&self, ifindex: u32, upper: u32) {
        self.ifaces.store(ifindex, WORD_UPPER, upper);
    }

    /// Witness counters of an interface and epoch, summed over all CPUs.
    pub fn truth(&self, id: IfaceId, epoch: Epoch) -> Result<Truth, KernelError> {
        let values = self
            .truth
            .get(&truth_index(id, epoch), 0)
            .map_err(|e| KernelError::from_chain("read the truth counters", &e))?;
        Ok(values.iter().fold(Truth::default(), |sum, cpu| add(sum, &cpu.0)))
    }

    /// Makes an epoch's counters ready for reuse. Only after no program can write to them.
    pub fn clear_truth(&mut self, id: IfaceId, epoch: Epoch) -> Result<(), KernelError> {
        let refused = |e: &(dyn std::error::Error + 'static)| KernelError::from_chain("clear the truth counters", e);
        let cpus = aya::util::nr_cpus().map_err(|(_, e)| refused(&e))?;
        let zero = PerCpuValues::try_from(vec![TruthPod::default(); cpus]).map_err(|e| refused(&e))?;
        self.truth.set(truth_index(id, epoch), zero, 0).map_err(|e| refused(&e))
    }
}

fn truth_index(id: IfaceId, epoch: Epoch) -> u32 {
    u32::from(id.0) * EPOCHS + epoch.0 % EPOCHS
}

fn add(mut sum: Truth, cpu: &Truth) -> Truth {
    let plus = |a: &mut Count, b: &Count| {
        a.packets += b.packets;
        a.bytes += b.bytes;
    };
    for (s, c) in sum.hook.iter_mut().zip(&cpu.hook) {
        plus(&mut s.seen, &c.seen);
        plus(&mut s.non_ip, &c.non_ip);
        plus(&mut s.malformed, &c.malformed);
        plus(&mut s.lost, &c.lost);
    }
    for (s, c) in sum.verdict.iter_mut().flatten().zip(cpu.verdict.iter().flatten()) {
        plus(&mut s.refused, &c.refused);
        plus(&mut s.seen, &c.seen);
        plus(&mut s.lost, &c.lost);
        plus(&mut s.lost_counted, &c.lost_counted);
        plus(&mut s.late, &c.late);
    }
    sum
}
