//! Evicted records on their way to the agent.
//!
//! A record in the ring costs a lock, an atomic exchange and two cold cache lines, and more with more CPUs (docs/performance.md). So
//! each CPU collects records in a block and sends the block: one copy for dozens of them.
//!
//! Whoever fills a block holds the CPU's caches ([`crate::cpu::lock`]); whoever could not get them sends a block of
//! one record straight to the ring.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::generated::{bpf_ringbuf_output, bpf_ringbuf_query},
};
use flowlog_ebpf::abi::{Block, BlockHeader, Key, Record, Stats};

use crate::{
    family::Family,
    frame::opaque,
    maps::{RING, RING_WAKE_BYTES, RING_WAKE_END_BYTES},
};

/// Whether the agent is to be woken by what is sent now.
#[inline(always)]
fn wake_flags() -> u64 {
    // SAFETY: RING is a ring buffer map.
    let fill = unsafe { bpf_ringbuf_query((&raw const RING).cast_mut().cast(), u64::from(BPF_RB_AVAIL_DATA)) };
    let is_marked = fill >= RING_WAKE_BYTES.load() && fill < RING_WAKE_END_BYTES.load();
    u64::from(if is_marked { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP })
}

/// Copies `bytes` bytes of a block into the ring and empties the block. `false`: the ring is full, nothing changed.
///
/// # Safety
/// `header` must point to a block of at least `bytes` bytes, and the caller must hold `busy` of its CPU.
#[inline(always)]
unsafe fn send(header: *mut BlockHeader, bytes: u64) -> bool {
    // SAFETY: by the contract above.
    unsafe {
        if bpf_ringbuf_output((&raw const RING).cast_mut().cast(), header.cast(), bytes, wake_flags()) != 0 {
            return false;
        }
        (*header).records = 0;
    }
    true
}

/// Room for one record in this CPU's block; a full block is sent first. `None`: the ring is full.
///
/// # Safety
/// The caller must hold `busy`, and must fill the record.
#[inline(always)]
pub unsafe fn room<F: Family>() -> Option<*mut Record<F::Addr>> {
    let header = F::block()?;
    // SAFETY: a map value of this CPU; `records` is below `F::BLOCK`, checked here.
    unsafe {
        let mut n = (*header).records;
        if n >= F::BLOCK {
            if !send(
                header,
                size_of::<BlockHeader>() as u64 + u64::from(F::BLOCK) * size_of::<Record<F::Addr>>() as u64,
            ) {
                return None;
            }
            n = 0;
        }
        (*header).records = n + 1;
        (*header).family = F::FAMILY;
        // Checked where it is used: the verifier of Linux 6.1 forgets what it knew of a number that has been on the stack.
        let n = opaque(n);
        (n < F::BLOCK).then(|| header.add(1).cast::<Record<F::Addr>>().add(n as usize))
    }
}

/// Sends a CPU's block with whatever it holds. `false`: the ring is full.
///
/// # Safety
/// `header` must be a block's of this family, and the caller must hold `busy` of its CPU.
#[inline(always)]
pub unsafe fn flush<F: Family>(header: Option<*mut BlockHeader>) -> bool {
    let Some(header) = header else { return true };
    // SAFETY: a map value; the length is bounded for the verifier, too.
    unsafe {
        let n = (*header).records;
        if n == 0 || n > F::BLOCK {
            return true;
        }
        let mut bytes = u64::from(n) * size_of::<Record<F::Addr>>() as u64;
        // An addition: LLVM would make it an "or", of which the verifier does not see how large the result can be.
        core::arch::asm!("{bytes} += 8", bytes = inout(reg) bytes, options(nostack, preserves_flags));
        send(header, bytes)
    }
}

/// Sends one record as a block of its own. `false`: the ring is full.
#[inline(always)]
pub fn send_one<A: Copy + 'static>(family: u32, key: &Key<A>, stats: &Stats) -> bool {
    let flags = wake_flags();
    let Some(mut entry) = RING.reserve_untyped::<Block<A, 1>>(0) else { return false };
    let block = entry.as_mut_ptr();
    // SAFETY: the reserved bytes are ours; written in place, since a record on the stack is a sixth of all there is.
    unsafe {
        (*block).header = BlockHeader { records: 1, family };
        (*block).records[0].key = *key;
        (*block).records[0].stats = *stats;
    }
    entry.submit(flags);
    true
}

const _: () = assert!(size_of::<BlockHeader>() == 8, "`flush` adds it");
