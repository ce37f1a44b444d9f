//! Loops of the kernel's.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;

/// A step of a loop: gets a pointer to the program's number; returns [`GO_ON`] or [`STOP`].
pub type Step = unsafe extern "C" fn(u32, *mut c_void) -> i64;
/// Result of a [`Step`]: `bpf_loop` goes on with the next round.
pub const GO_ON: i64 = 0;
/// Result of a [`Step`]: `bpf_loop` ends.
pub const STOP: i64 = 1;

/// A loop of the kernel's: the verifier walks it once. Its steps find what they work on by themselves, and change it: whoever begins one
/// must hold a pointer to that and no reference, which would promise LLVM that nobody does.
#[inline(always)]
pub fn repeat(rounds: u32, step: Step, which: usize) {
    let mut context = which as u64;
    // SAFETY: the callback takes exactly these arguments; `context` outlives the loop.
    unsafe { bpf_loop(rounds, step as *mut c_void, core::ptr::from_mut(&mut context).cast(), 0) };
}
