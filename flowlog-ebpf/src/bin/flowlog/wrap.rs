//! What stands in the place of a foreign XDP program on an interface, runs it by a tail call, and returns what it has returned.
//!
//! The tail call is made in a function of its own: the foreign program then returns to whoever called that function. Each foreign program has
//! one of ours, loaded for it with an array of its own: so it runs wherever ours is attached.
//!
//! The packet is parsed before the foreign program runs: that one may change it, and move its head. The array is filled before this is
//! attached, and emptied after it is gone. Should it be empty all the same, the packet is aborted: a firewall that cannot be run lets
//! nothing through.

use aya_ebpf::{
    bindings::xdp_action::{XDP_ABORTED, XDP_PASS},
    macros::xdp,
    programs::XdpContext,
};
use flowlog_ebpf::abi::NOT_RUN;

use crate::{
    account::OwnNetns,
    clock,
    cpu::{self, cpu},
    devices, foreign,
    maps::{TRACED, WRAPPED},
    xdp,
    xdp_frame::XdpFrame,
};

#[xdp(frags)]
pub fn flowlog_wrap(ctx: XdpContext) -> u32 {
    let found = xdp::parse::<OwnNetns>(ctx.ctx);
    let action = run(&ctx);
    if action == XDP_PASS {
        return action;
    }
    let action = if action == NOT_RUN { XDP_ABORTED } else { action };
    let (Some(cpu), Some(scratch)) = (cpu(), TRACED.get_ptr_mut(0)) else { return action };
    // SAFETY: map values of this CPU, in one of which the parser has put what it found: hooks do not interrupt us.
    unsafe {
        // To the kernel the context is the buffer itself. Where the interface is now, only its device says.
        let buffer = cpu::address(&raw mut (*scratch).pointer, ctx.ctx as u64);
        let (ifindex, netns) = XdpFrame::place(buffer);
        let now_ns = clock::now_ns(cpu);
        let headers = (&raw const (*cpu).parsed).cast();
        foreign::took(devices::spot(ifindex, netns), action, found, headers, now_ns);
    }
    action
}

/// Runs the foreign program.
#[inline(never)]
fn run(ctx: &XdpContext) -> u32 {
    let nothing = nothing();
    // SAFETY: nothing here needs to be dropped.
    unsafe { WRAPPED.tail_call(ctx, 0) };
    returned(nothing)
}

/// Where it is written that nothing has run.
#[inline(always)]
fn nothing() -> *mut u32 {
    let Some(cpu) = cpu() else { return core::ptr::null_mut() };
    // SAFETY: a map value of this CPU.
    unsafe { &raw mut (*cpu).action }
}

/// What is returned if nothing has run. The verifier takes the tail call for one that never succeeds: were this a constant to it, it would
/// take out whatever is done with any other action.
#[inline(always)]
fn returned(nothing: *mut u32) -> u32 {
    if nothing.is_null() {
        return NOT_RUN;
    }
    // SAFETY: into a map value of this CPU; volatile, so that it is read and not known.
    unsafe {
        nothing.write_volatile(NOT_RUN);
        nothing.read_volatile()
    }
}
