//! Programs of the command `flowlog trace`: they look at packets beside flowlog's hooks and verdicts, and log what they see.
//!
//! * [`maps`]: maps and load-time constants; [`look`]: the packet that is being looked at;
//! * [`hook`]: packets behind our hooks; [`death`]: packets that die;
//! * [`steps`]: what is done with either; [`buffer`]: what the kernel knows of it; [`meant`]: whether it is one that was asked for;
//!   [`say`]: logs it, unless that is too much;
//! * the rest is what flowlog's own programs read with.
//!
//! Loaded while somebody traces, and never by the agent. They change nothing of a packet. Where they read what the hooks have written down
//! (`CPU`), they do not write.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// As for the programs that this shares files with.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![allow(unreachable_pub, reason = "aya's macros export what the kernel loads")]
#![allow(unsafe_code, reason = "helpers, packet and map pointers; each block says why it holds")]

#[cfg(target_arch = "bpf")]
#[path = "../bench/atomic.rs"]
mod atomic;
#[cfg(target_arch = "bpf")]
mod buffer;
#[cfg(target_arch = "bpf")]
#[path = "../flowlog/circle.rs"]
mod circle;
#[cfg(target_arch = "bpf")]
#[path = "../flowlog/cpu.rs"]
#[allow(dead_code, reason = "nothing is changed here, so nothing is locked")]
mod cpu;
#[cfg(target_arch = "bpf")]
mod death;
#[cfg(target_arch = "bpf")]
#[path = "../flowlog/frame.rs"]
#[allow(clippy::pointers_in_nomem_asm_block, reason = "`computed` moves a pointer and follows it nowhere")]
#[allow(dead_code, reason = "what only the hooks need")]
mod frame;
#[cfg(target_arch = "bpf")]
mod hook;
#[cfg(target_arch = "bpf")]
#[path = "../flowlog/kernel.rs"]
#[allow(clippy::struct_excessive_bools, reason = "what `Dropped` says of a packet is true or not, each for itself")]
#[allow(dead_code, reason = "what only a verdict needs")]
mod kernel;
#[cfg(target_arch = "bpf")]
mod look;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod meant;
#[cfg(target_arch = "bpf")]
#[path = "../flowlog/repeat.rs"]
mod repeat;
#[cfg(target_arch = "bpf")]
mod say;
#[cfg(target_arch = "bpf")]
mod steps;

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
