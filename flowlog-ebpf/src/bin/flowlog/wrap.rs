//! What stands in the place of a foreign XDP program on an interface, runs it by a tail call, and returns what it has returned.
//!
//! The tail call is made in a function of its own: the foreign program then returns to whoever called that function. A program array takes
//! only programs that treat frames in several buffers as its owner does, so there are two of each.
//!
//! The packet is parsed before the foreign program runs: that one may change it, and move its head. An array's place is filled before this
//! is attached, and emptied after it is gone. Should it be empty all the same, the packet is aborted: a firewall that cannot be run lets
//! nothing through.

use aya_ebpf::{
    EbpfContext as _,
    bindings::xdp_action::{XDP_ABORTED, XDP_PASS},
    helpers::generated::bpf_ktime_get_coarse_ns,
    macros::xdp,
    programs::XdpContext,
};
use flowlog_ebpf::abi::{self, NOT_RUN};

use crate::{
    account::OwnNetns,
    cpu::cpu,
    foreign,
    maps::{WRAPPED, WRAPPED_FRAGS},
    xdp,
};

#[xdp]
pub fn flowlog_wrap(ctx: XdpContext) -> u32 {
    wrap(&ctx, run)
}

#[xdp(frags)]
pub fn flowlog_wrap_frags(ctx: XdpContext) -> u32 {
    wrap(&ctx, run_frags)
}

#[inline(always)]
fn wrap(ctx: &XdpContext, run: fn(&XdpContext) -> u32) -> u32 {
    let found = xdp::parse::<OwnNetns>(ctx.ctx);
    let action = run(ctx);
    if action == XDP_PASS {
        return action;
    }
    let action = if action == NOT_RUN { XDP_ABORTED } else { action };
    let Some(cpu) = cpu() else { return action };
    // SAFETY: the context pointer; a map value of this CPU, in which the parser has put what it found: hooks do not interrupt us. The helper
    // takes no arguments.
    unsafe {
        let now_ns = bpf_ktime_get_coarse_ns();
        foreign::took((*ctx.ctx).ingress_ifindex, action, found, (&raw const (*cpu).parsed).cast(), now_ns);
    }
    action
}

/// Runs what is in the place of the frame's interface.
#[inline(never)]
fn run(ctx: &XdpContext) -> u32 {
    let nothing = nothing();
    // SAFETY: nothing here needs to be dropped.
    unsafe { WRAPPED.tail_call(ctx, place(ctx)) };
    returned(nothing)
}

/// The same for programs that take frames in several buffers.
#[inline(never)]
fn run_frags(ctx: &XdpContext) -> u32 {
    let nothing = nothing();
    // SAFETY: nothing here needs to be dropped.
    unsafe { WRAPPED_FRAGS.tail_call(ctx, place(ctx)) };
    returned(nothing)
}

#[inline(always)]
fn place(ctx: &XdpContext) -> u32 {
    // SAFETY: the context pointer.
    unsafe { (*ctx.as_ptr().cast::<aya_ebpf::bindings::xdp_md>()).ingress_ifindex % abi::WRAPPED }
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
