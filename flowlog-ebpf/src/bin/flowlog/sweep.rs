//! The sweeper: evicts the records of closed epochs from one CPU's caches, a chunk at a time.
//!
//! The agent runs it on every CPU through `BPF_PROG_TEST_RUN` (a raw tracepoint program is the one type that can be
//! told the CPU). On another CPU it runs in an interrupt, on the agent's own in process context; either way
//! `busy` keeps it and the hooks apart.

use core::ffi::c_void;

use aya_ebpf::{helpers::generated::bpf_loop, programs::RawTracePointContext};
use flowlog_ebpf::abi::{Record, SWEEP_CHUNK, sweep};

use crate::{
    block,
    cache::{evict, slot_in},
    cpu::{self, lock, unlock},
    family::{Family, V4, V6},
    maps::{Bank, WATCHED},
};

/// Loop state of one chunk.
#[repr(C)]
struct Chunk {
    first: u32,
    /// `sweep::CLOSED`, `ALL` or `OBSERVED`.
    scope: u32,
    full: u32,
}

/// Arguments: 0 first slot, 1 cache (`sweep::*`), 2 which records (`sweep::CLOSED`, `ALL`, `OBSERVED`).
///
/// Not made with `#[raw_tracepoint]`: that macro returns 0 whatever the function says.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp/flowlog_sweep")]
pub extern "C" fn flowlog_sweep(ctx: *mut c_void) -> i32 {
    let ctx = RawTracePointContext::new(ctx);
    let mut chunk = Chunk { first: ctx.arg::<u64>(0) as u32, scope: ctx.arg::<u64>(2) as u32, full: 0 };
    let which: u64 = ctx.arg(1);
    let Some(cpu) = cpu::cpu().filter(|cpu| lock(*cpu)) else { return sweep::BUSY as i32 };
    if which == sweep::BLOCKS {
        // SAFETY: we hold the flag.
        let sent = unsafe { block::flush::<V4>() && block::flush::<V6>() };
        unlock(cpu);
        return if sent { sweep::DONE as i32 } else { sweep::RING_FULL as i32 };
    }
    let step: unsafe extern "C" fn(u32, *mut c_void) -> i64 = match which {
        sweep::PASSED4 => passed4,
        sweep::PASSED6 => passed6,
        sweep::REFUSED4 => refused4,
        _ => refused6,
    };
    run(step, &mut chunk);
    unlock(cpu);
    if chunk.full != 0 { sweep::RING_FULL as i32 } else { sweep::DONE as i32 }
}

#[inline(always)]
fn run(step: unsafe extern "C" fn(u32, *mut c_void) -> i64, chunk: &mut Chunk) {
    // SAFETY: the callback takes exactly these arguments; `chunk` outlives the loop.
    unsafe { bpf_loop(SWEEP_CHUNK, step as *mut c_void, core::ptr::from_mut(chunk).cast(), 0) };
}

unsafe extern "C" fn passed4(i: u32, chunk: *mut c_void) -> i64 {
    visit::<V4>(i, chunk, V4::passed)
}
unsafe extern "C" fn passed6(i: u32, chunk: *mut c_void) -> i64 {
    visit::<V6>(i, chunk, V6::passed)
}
unsafe extern "C" fn refused4(i: u32, chunk: *mut c_void) -> i64 {
    visit::<V4>(i, chunk, V4::refused)
}
unsafe extern "C" fn refused6(i: u32, chunk: *mut c_void) -> i64 {
    visit::<V6>(i, chunk, V6::refused)
}

/// Returns 0 to go on, 1 to stop.
#[inline(always)]
fn visit<F: Family>(i: u32, chunk: *mut c_void, bank: impl Fn(u32) -> Option<*mut Bank<Record<F::Addr>>>) -> i64 {
    // SAFETY: `bpf_loop` hands back the pointer it was given.
    let chunk = unsafe { &mut *chunk.cast::<Chunk>() };
    let index = chunk.first + i;
    let Some(bank) = bank(index) else { return 1 };
    // SAFETY: a bank of this CPU; the caller holds `busy`.
    unsafe {
        let slot = slot_in(bank, index);
        let meta = &(*slot).key.meta;
        if meta.iface == 0 {
            return 0;
        }
        // What is current stays, unless everything is to go, or somebody is looking at it.
        let stays = chunk.scope != sweep::ALL as u32
            && WATCHED
                .get(u32::from(meta.iface))
                .is_some_and(|w| w.epoch == meta.epoch && (chunk.scope != sweep::OBSERVED as u32 || w.observed == 0));
        if stays {
            return 0;
        }
        if !evict::<F>(slot) {
            chunk.full = 1;
            return 1;
        }
    }
    0
}
