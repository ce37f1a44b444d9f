//! The clocks of the node. Whatever works with time takes it as an argument. Besides this file only what waits or limits reads a clock of
//! its library: deliveries tokio's, the API's limiters governor's; each says so where it does.

#![allow(clippy::disallowed_methods, reason = "here they are read")]

use flowlog_model::{MonoNs, NS_PER_SEC, Now, WallNs};
use rustix::time::{ClockId, Timespec, clock_getres, clock_gettime};

#[must_use]
pub fn now() -> Now {
    let ns = |t: Timespec| t.tv_sec * NS_PER_SEC + t.tv_nsec;
    let mono = ns(clock_gettime(ClockId::Monotonic));
    let wall = ns(clock_gettime(ClockId::Realtime));
    Now { mono: MonoNs(u64::try_from(mono).unwrap_or(0)), wall: WallNs(wall) }
}

/// Length of the kernel's timer tick: what its coarse clocks go forward by.
#[must_use]
pub fn tick_ns() -> u64 {
    let tick = clock_getres(ClockId::MonotonicCoarse);
    u64::try_from(tick.tv_sec * NS_PER_SEC + tick.tv_nsec).unwrap_or(0)
}
