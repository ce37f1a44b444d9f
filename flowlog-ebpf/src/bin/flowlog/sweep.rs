//! The sweeper: evicts the records of closed epochs from one CPU's caches, a chunk at a time.
//!
//! The agent runs it on every CPU through `BPF_PROG_TEST_RUN` (a raw tracepoint program is the one type that can be
//! told the CPU). On another CPU it runs in an interrupt, on the agent's own in process context; either way
//! `busy` keeps it and the hooks apart.
//!
//! A CPU that is off runs nothing. Its caches are swept on another one, into whose block the records go, while the agent has set `busy` of the
//! CPU that is off: if that comes back, its hooks send records of their own until the agent has given it back.

use core::ffi::c_void;

use aya_ebpf::{helpers::generated::bpf_loop, programs::RawTracePointContext};
use flowlog_ebpf::abi::{BlockHeader, Record, SWEEP_CHUNK, sweep};

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
    /// Whose caches they are: `sweep::HERE`, or a CPU's number plus one.
    of: u32,
}

/// Arguments: 0 first slot, 1 cache (`sweep::*`), 2 which records (`sweep::CLOSED`, `ALL`, `OBSERVED`), 3 whose (`sweep::HERE`, or a CPU's
/// number plus one).
///
/// Not made with `#[raw_tracepoint]`: that macro returns 0 whatever the function says.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp/flowlog_sweep")]
pub extern "C" fn flowlog_sweep(ctx: *mut c_void) -> i32 {
    let ctx = RawTracePointContext::new(ctx);
    let (first, scope, of) = (ctx.arg::<u64>(0) as u32, ctx.arg::<u64>(2) as u32, ctx.arg::<u64>(3) as u32);
    let mut chunk = Chunk { first, scope, full: 0, of };
    let which: u64 = ctx.arg(1);
    let Some(cpu) = cpu::cpu().filter(|cpu| lock(*cpu)) else { return sweep::BUSY as i32 };
    if which == sweep::BLOCKS {
        send(&mut chunk, of);
    } else {
        let step: unsafe extern "C" fn(u32, *mut c_void) -> i64 = match which {
            sweep::PASSED4 => passed4,
            sweep::PASSED6 => passed6,
            sweep::REFUSED4 => refused4,
            _ => refused6,
        };
        run(step, &mut chunk);
        if of != sweep::HERE as u32 {
            // What another CPU had is in this one's block now, whose turn may have been before.
            send(&mut chunk, sweep::HERE as u32);
        }
    }
    unlock(cpu);
    if chunk.full != 0 { sweep::RING_FULL as i32 } else { sweep::DONE as i32 }
}

/// Sends a CPU's blocks.
#[inline(always)]
fn send(chunk: &mut Chunk, of: u32) {
    // SAFETY: we hold the flag, or the agent holds that of the CPU that is off.
    let sent = unsafe { block::flush::<V4>(block_of::<V4>(of)) && block::flush::<V6>(block_of::<V6>(of)) };
    if !sent {
        chunk.full = 1;
    }
}

#[inline(always)]
fn run(step: unsafe extern "C" fn(u32, *mut c_void) -> i64, chunk: &mut Chunk) {
    // SAFETY: the callback takes exactly these arguments; `chunk` outlives the loop.
    unsafe { bpf_loop(SWEEP_CHUNK, step as *mut c_void, core::ptr::from_mut(chunk).cast(), 0) };
}

#[inline(always)]
fn block_of<F: Family>(of: u32) -> Option<*mut BlockHeader> {
    if of == sweep::HERE as u32 { F::block() } else { F::block_of(of - 1) }
}

unsafe extern "C" fn passed4(i: u32, chunk: *mut c_void) -> i64 {
    visit::<V4>(i, chunk, V4::passed, V4::passed_of)
}
unsafe extern "C" fn passed6(i: u32, chunk: *mut c_void) -> i64 {
    visit::<V6>(i, chunk, V6::passed, V6::passed_of)
}
unsafe extern "C" fn refused4(i: u32, chunk: *mut c_void) -> i64 {
    visit::<V4>(i, chunk, V4::refused, V4::refused_of)
}
unsafe extern "C" fn refused6(i: u32, chunk: *mut c_void) -> i64 {
    visit::<V6>(i, chunk, V6::refused, V6::refused_of)
}

/// Returns 0 to go on, 1 to stop.
#[inline(always)]
fn visit<F: Family>(
    i: u32,
    chunk: *mut c_void,
    here: impl Fn(u32) -> Option<*mut Bank<Record<F::Addr>>>,
    there: impl Fn(u32, u32) -> Option<*mut Bank<Record<F::Addr>>>,
) -> i64 {
    // SAFETY: `bpf_loop` hands back the pointer it was given.
    let chunk = unsafe { &mut *chunk.cast::<Chunk>() };
    let index = chunk.first + i;
    let bank = if chunk.of == sweep::HERE as u32 { here(index) } else { there(chunk.of - 1, index) };
    let Some(bank) = bank else { return 1 };
    // SAFETY: a bank of this CPU, of which the caller holds `busy`, or of one that is off, of which the agent does.
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
