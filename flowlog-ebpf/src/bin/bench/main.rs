//! Programs of the benchmark (`cargo xtask bench`). Never loaded by the agent.
//!
//! * [`drive`]: varies the packet of `BPF_PROG_TEST_RUN`, then tail-calls the program under test;
//! * [`baselines`]: the cheapest possible programs, and how flow agents usually do it;
//! * [`atomic`]: adding to what all CPUs share;
//! * [`explore`]: caches that were tried and were not chosen;
//! * [`generate`]: the traffic generator, live XDP frames.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// For the atomic addition, which `core::sync::atomic` does not offer on this target.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![allow(unreachable_pub, reason = "aya's macros export what the kernel loads")]
#![allow(unsafe_code, reason = "packet and map pointers; each block says why it holds")]

#[cfg(target_arch = "bpf")]
mod atomic;
#[cfg(target_arch = "bpf")]
#[allow(clippy::single_match_else, reason = "a flow that is known and one that is not, side by side")]
mod baselines;
#[cfg(target_arch = "bpf")]
mod drive;
#[cfg(target_arch = "bpf")]
mod explore;
#[cfg(target_arch = "bpf")]
#[path = "../flowlog/frame.rs"]
#[allow(clippy::pointers_in_nomem_asm_block, reason = "`computed` moves a pointer and follows it nowhere")]
#[allow(dead_code, reason = "the benchmark's packets are linear and fit")]
mod frame;
#[cfg(target_arch = "bpf")]
mod generate;

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
