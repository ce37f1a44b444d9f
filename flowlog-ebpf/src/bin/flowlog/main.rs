//! flowlog's eBPF programs. One file per job:
//!
//! * [`maps`]: every map and load-time constant;
//! * [`tc`], [`xdp`]: the hooks. Parse a frame, hand it to [`account`];
//! * [`again`]: what is in a hook's place while the hook is put in front of other people's programs;
//! * [`wrap`]: what runs a foreign XDP program and sees what it returns; [`foreign`]: counts what such a program took;
//! * [`trace`]: what watches such a program from outside;
//! * [`account`]: truth counters, and what becomes of a packet; [`wire`]: how much it is; [`family`]: what differs between IPv4 and
//!   IPv6;
//! * [`cache`], [`cpu`]: the flow cache, and who may change it; [`clock`]: the time of the last tick;
//! * [`note`]: which packet passed which hook, told again when it dies; [`circle`]: finding its note;
//! * [`block`]: evicted records on their way into the ring;
//! * [`verdict`]: learns from `kfree_skb` which packets the node's firewall refused;
//! * [`chain`]: what the notes of a dying packet say; [`unnoted`]: what is known where there are none;
//! * [`event`], [`devices`], [`datagram`]: what is known of a dying packet; the devices it was between; fragments; [`behind`]: the port that a bridge
//!   would have picked;
//! * [`refuse`]: counts a refusal, and takes it out of what had passed;
//! * [`lost`]: counts what was let through and died on its way;
//! * [`told`]: says what translated packets have on the other side;
//! * [`sweep`]: evicts what is left of a closed window, run by the agent;
//! * [`frame`]: reading a frame's bytes; [`repeat`]: loops;
//! * [`kernel`], and of XDP's frames [`xdp_frame`]: reading kernel memory. The only files that know kernel struct offsets.
//!
//! No program ever changes a verdict, nor anything of a packet that somebody else reads: hooks return `TCX_NEXT` or `XDP_PASS` on every
//! path, what wraps a foreign program what that one has returned, and write `skb->tc_index` only where the agent has found that nobody else uses it.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// For asm statements that hide from LLVM what it would draw conclusions from; this build sets RUSTC_BOOTSTRAP anyway.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![allow(unreachable_pub, reason = "aya's macros export what the kernel loads")]
#![allow(
    unsafe_code,
    reason = "everything here is the kernel edge: helpers and packet pointers; each block says why it holds"
)]

#[cfg(target_arch = "bpf")]
mod account;
#[cfg(target_arch = "bpf")]
mod again;
#[cfg(target_arch = "bpf")]
mod behind;
#[cfg(target_arch = "bpf")]
mod block;
#[cfg(target_arch = "bpf")]
mod cache;
#[cfg(target_arch = "bpf")]
mod chain;
#[cfg(target_arch = "bpf")]
mod circle;
#[cfg(target_arch = "bpf")]
mod clock;
#[cfg(target_arch = "bpf")]
mod cpu;
#[cfg(target_arch = "bpf")]
mod datagram;
#[cfg(target_arch = "bpf")]
mod devices;
#[cfg(target_arch = "bpf")]
mod event;
#[cfg(target_arch = "bpf")]
#[allow(clippy::unnecessary_wraps, reason = "`slot` is the end of a chain of options")]
mod family;
#[cfg(target_arch = "bpf")]
mod foreign;
#[cfg(target_arch = "bpf")]
#[allow(clippy::pointers_in_nomem_asm_block, reason = "`computed` moves a pointer and follows it nowhere")]
mod frame;
#[cfg(target_arch = "bpf")]
#[allow(clippy::struct_excessive_bools, reason = "what `Dropped` says of a packet is true or not, each for itself")]
mod kernel;
#[cfg(target_arch = "bpf")]
mod lost;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod note;
#[cfg(target_arch = "bpf")]
mod refuse;
#[cfg(target_arch = "bpf")]
mod repeat;
#[cfg(target_arch = "bpf")]
mod sweep;
#[cfg(target_arch = "bpf")]
mod tc;
#[cfg(target_arch = "bpf")]
mod told;
#[cfg(target_arch = "bpf")]
mod trace;
#[cfg(target_arch = "bpf")]
mod unnoted;
#[cfg(target_arch = "bpf")]
mod verdict;
#[cfg(target_arch = "bpf")]
mod wire;
#[cfg(target_arch = "bpf")]
mod wrap;
#[cfg(target_arch = "bpf")]
mod xdp;
#[cfg(target_arch = "bpf")]
mod xdp_frame;

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Never linked in: xtask refuses an object in which a panic path survived optimisation.
    loop {}
}

/// The host build of this binary exists only so that `cargo clippy --workspace` accepts the package.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
