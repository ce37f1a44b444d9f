//! The scratch state of this CPU, and who may change its caches.
//!
//! Three contexts share a CPU's caches: softirq (hooks), process context (verdicts of locally made packets), and the sweeper.
//! Whoever finds [`Cpu::busy`] set sends its packet as a record of its own and touches nothing. While a CPU is off the agent may have set it, and
//! another CPU's sweeper empties its caches; if the CPU is back by then, the agent waits for all programs before it frees them, so that none goes on with
//! what it had read before.

use core::sync::atomic::{Ordering, compiler_fence};

use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;
use flowlog_ebpf::abi::{Cpu, busy};

use crate::maps::CPU;

/// Keeps the compiler from moving memory accesses across: volatile orders only volatile accesses, and the slot's must stay between `lock`
/// and `unlock`. No instruction: what interrupts us runs on this CPU.
#[inline(always)]
fn stay_inside() {
    compiler_fence(Ordering::SeqCst);
}

/// Scratch state of this CPU.
#[inline(always)]
pub fn cpu() -> Option<*mut Cpu> {
    // SAFETY: takes no arguments. The verifier makes a load of the call (since Linux 6.11).
    CPU.get_ptr_mut(unsafe { bpf_get_smp_processor_id() })
}

/// Takes this CPU's caches. `false`: somebody we interrupted has them.
#[inline(always)]
pub fn lock(cpu: *mut Cpu) -> bool {
    // SAFETY: a map value. Volatile, so that the stores stay around what they guard. An interrupt between the
    // load and the store is harmless: it takes and gives back the flag before we go on.
    unsafe {
        let holder = &raw mut (*cpu).busy;
        if holder.read_volatile() != busy::FREE {
            return false;
        }
        holder.write_volatile(busy::PROGRAM);
    }
    stay_inside();
    true
}

/// Gives the caches back.
#[inline(always)]
pub fn unlock(cpu: *mut Cpu) {
    stay_inside();
    // SAFETY: `cpu` came from `lock`.
    unsafe { (&raw mut (*cpu).busy).write_volatile(busy::FREE) };
}

/// The address of an `sk_buff` as a number. It goes through a map value, because the verifier allows no arithmetic on
/// such a pointer but lets a privileged program store one.
///
/// # Safety
/// `cell` must lie in a map value of this CPU that nothing which interrupts the caller uses.
#[inline(always)]
pub unsafe fn address(cell: *mut u64, pointer: u64) -> u64 {
    // SAFETY: by the contract above.
    unsafe {
        cell.write_volatile(pointer);
        cell.read_volatile()
    }
}
