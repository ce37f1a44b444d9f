//! Logs a sighting, unless that is more than may be said.
//!
//! The log library keeps a piece of a line, be it only the blank between two numbers, on the stack with 24 bytes; a sighting has eighty of
//! them, and the stack 512 bytes in all. So a line is the sighting as it is, in hexadecimal digits, and the command puts it into words.

use aya_log_ebpf::info;
use flowlog_ebpf::sighting::Sighting;

use crate::{
    atomic::atomic_add,
    look::{SUBJECTS, look},
    maps::{BUDGET, RATE},
};

const NS_PER_SEC: u64 = 1_000_000_000;

#[inline(never)]
pub fn say(which: u32) -> u32 {
    let (Some(look), Some(budget)) = (look(which), BUDGET.get_ptr_mut(0)) else { return 0 };
    // SAFETY: map values, one of them shared by all CPUs. Two that begin a second at the same time may let one line more pass for each CPU.
    unsafe {
        let second = (*look).sighting.now_ns / NS_PER_SEC;
        if (&raw const (*budget).second).read_volatile() != second {
            (&raw mut (*budget).second).write_volatile(second);
            (&raw mut (*budget).used).write_volatile(0);
        }
        if (&raw const (*budget).used).read_volatile() >= RATE.load() {
            atomic_add(&raw mut (*budget).suppressed, 1);
            return 0;
        }
        atomic_add(&raw mut (*budget).used, 1);
        atomic_add(&raw mut (*budget).said, 1);
        (*look).sighting.subject = (*look).subjects[0];
        log(&raw const (*look).sighting)
    }
}

const _: () = assert!(SUBJECTS > 0);

/// # Safety
/// `sighting` must point into a map value.
#[inline(always)]
unsafe fn log(sighting: *const Sighting) -> u32 {
    // SAFETY: by the contract; a sighting has no padding.
    let bytes: &[u8] = unsafe { core::slice::from_raw_parts(sighting.cast(), size_of::<Sighting>()) };
    info!(&(), target: "flowlog", "{:x}", bytes);
    1
}
