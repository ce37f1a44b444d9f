//! The programs' clock: the time of the kernel's last timer tick.
//!
//! It says the same until the next tick, and asking the kernel is dear where returning from a function is made slow on purpose
//! (`spec_rstack_overflow`): 12 of a hit's 29 ns (docs/performance.md). So each CPU keeps what it was told. Whether that is still so, the
//! kernel's count of ticks says: the verifier makes a load of that call (`bpf_jiffies64`, since Linux 5.6).

use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns};
use flowlog_ebpf::abi::Cpu;

use crate::maps::TICK_NS;

/// `CLOCK_MONOTONIC_COARSE` in ns, for hooks.
#[inline(always)]
pub fn now_ns(cpu: *mut Cpu) -> u64 {
    // SAFETY: takes no arguments.
    let tick = unsafe { bpf_jiffies64() };
    // SAFETY: a map value of this CPU; hooks do not interrupt hooks.
    unsafe { if (*cpu).tick == tick { (*cpu).tick_ns } else { ask(cpu, tick) } }
}

/// The first packet in a tick.
///
/// # Safety
/// As in [`now_ns`].
#[inline(always)]
unsafe fn ask(cpu: *mut Cpu, tick: u64) -> u64 {
    // SAFETY: takes no arguments.
    let now_ns = unsafe { bpf_ktime_get_coarse_ns() };
    // SAFETY: by the contract.
    unsafe {
        // The kernel counts the tick, and then brings the clock forward: while that has not been done, the next packet asks again.
        if (*cpu).tick_ns != now_ns {
            // Volatile, and so in this order: whoever interrupts us finds no tick with a time of long ago.
            (&raw mut (*cpu).tick_ns).write_volatile(now_ns);
            (&raw mut (*cpu).tick).write_volatile(tick);
        }
    }
    now_ns
}

/// The same for tracing programs, which may not ask that clock: what a hook was told in this tick, else the exact time less a tick.
#[inline(always)]
pub fn traced_ns(cpu: *mut Cpu) -> u64 {
    // SAFETY: takes no arguments.
    let tick = unsafe { bpf_jiffies64() };
    // SAFETY: a map value of this CPU. A hook that was interrupted has written the time before the tick that it is of. The helper takes no
    // arguments.
    unsafe { if (*cpu).tick == tick { (*cpu).tick_ns } else { bpf_ktime_get_ns().saturating_sub(TICK_NS.load()) } }
}
