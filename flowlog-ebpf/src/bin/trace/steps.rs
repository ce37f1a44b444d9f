//! What is done with a packet, step by step, in one loop: the verifier walks each step once, and knows nothing of those before it.

use core::ffi::c_void;

use flowlog_ebpf::sighting::{AT_DEATH, AT_INGRESS, BEFORE_INGRESS, TARGETS_MAX};

use crate::{
    buffer,
    look::{self, Look},
    meant::{self, ASKED_MAX, MEANT, MORE},
    repeat::{GO_ON, STOP, repeat},
    say,
};

/// Step: what the kernel knows of the buffer is taken down.
pub const BUFFER: u32 = 0;
/// Its headers are parsed.
const HEADERS: u32 = 1;
/// Its note is found, ...
pub const NOTE: u32 = 2;
/// ... whether it is on an interface that is traced, ...
const TARGET: u32 = 3;
/// ... and its connection.
const CONNECTION: u32 = 4;
/// Whether it is meant: a step for each test.
const TEST: u32 = 5;
/// It is said.
const SAY: u32 = 6;

/// Steps at most: each of these once, but for interfaces and tests.
const STEPS_MAX: u32 = SAY + TARGETS_MAX as u32 + ASKED_MAX;

/// Begins with one of these steps.
///
/// # Safety
/// `look` must be the one with this index.
#[inline(always)]
pub unsafe fn run(look: *mut Look, which: u32, first: u32) {
    // SAFETY: by the contract, a map value of this CPU.
    unsafe { (&raw mut (*look).phase).write_volatile(first) };
    repeat(STEPS_MAX, one, which as usize);
}

unsafe extern "C" fn one(_i: u32, context: *mut c_void) -> i64 {
    // SAFETY: `bpf_loop` hands back the pointer it was given.
    let which = unsafe { *context.cast::<u64>() } as u32;
    let Some(look) = look::look(which) else { return STOP };
    // SAFETY: a map value of this CPU.
    let (phase, at) = unsafe { ((&raw const (*look).phase).read_volatile(), (*look).sighting.at) };
    let next = match phase {
        BUFFER => {
            buffer::take_down(which);
            HEADERS
        }
        HEADERS => {
            buffer::parse(which);
            NOTE
        }
        NOTE => {
            look::find_note(which);
            // A hook is attached where it is wanted, and does not ask for the namespace.
            // SAFETY: as above.
            if at != AT_DEATH && unsafe { (*look).sighting.netns_inum } == 0 { CONNECTION } else { TARGET }
        }
        TARGET => match buffer::is_at_target(which) {
            buffer::MORE => TARGET,
            buffer::AT_TARGET => CONNECTION,
            _ => return STOP,
        },
        CONNECTION => {
            // On its way in a packet has not met connection tracking yet.
            if at != AT_INGRESS && at != BEFORE_INGRESS {
                look::find_connection(which);
            }
            TEST
        }
        TEST => match meant::test(which) {
            MORE => TEST,
            MEANT => SAY,
            _ => return STOP,
        },
        _ => {
            say::say(which);
            return STOP;
        }
    };
    // SAFETY: as above.
    unsafe { (&raw mut (*look).phase).write_volatile(next) };
    GO_ON
}
