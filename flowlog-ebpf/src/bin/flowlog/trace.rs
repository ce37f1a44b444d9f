//! What watches somebody else's XDP program from outside: at its entry the frame is parsed, as it is then; at its exit there is what it
//! returned. Attached to that program, not to an interface: several may run it, so the frame's device says where it is.
//!
//! Both are called by one trampoline of the kernel, one after the other on one CPU. Where there is an entry without an exit, or the other
//! way round (while they are attached or detached, or because the kernel skips a program that would interrupt itself), nothing is
//! counted: the driver's count has it.

use aya_ebpf::{
    macros::{fentry, fexit},
    programs::{FEntryContext, FExitContext},
};
use flowlog_ebpf::{abi::NO_LINK_HEADER, packet::Frame};

use crate::{
    account::{self, FOUND_V4, FOUND_V6},
    clock, cpu, devices, foreign,
    maps::TRACED,
    xdp_frame::XdpFrame,
};

/// More bytes than any IP packet has with its link header: what a frame in several buffers is taken for, whose IP header says how much it is.
const IN_PARTS_LEN: u32 = 1 << 17;

/// Before the foreign program runs.
#[fentry]
pub fn flowlog_entry(ctx: FEntryContext) -> i32 {
    let Some(traced) = TRACED.get_ptr_mut(0) else { return 0 };
    // SAFETY: a map value of this CPU; XDP programs do not interrupt each other.
    unsafe {
        let buffer = cpu::address(&raw mut (*traced).pointer, ctx.arg(0));
        (*traced).buffer = 0;
        let frame = XdpFrame::read(buffer);
        let spot = devices::spot(frame.ifindex, frame.netns);
        let Some(iface) = account::iface(spot) else { return 0 };
        let link_header = iface.flags & NO_LINK_HEADER == 0;
        let found = parse(&frame, link_header);
        let is_flow = found as u32 == FOUND_V4 || found as u32 == FOUND_V6;
        if frame.is_in_parts && !is_flow {
            // How long it is, only the driver knows.
            return 0;
        }
        (*traced).found = found;
        (*traced).spot = spot;
        (*traced).buffer = buffer;
    }
    0
}

/// Parses it into [`flowlog_ebpf::abi::Cpu::parsed`].
#[inline(always)]
fn parse(frame: &XdpFrame, link_header: bool) -> u64 {
    let len = if frame.is_in_parts { IN_PARTS_LEN } else { frame.headers.available() };
    account::parse(&frame.headers, &Frame { len, vlan_tci: 0, link_header })
}

/// After it.
#[fexit]
pub fn flowlog_exit(ctx: FExitContext) -> i32 {
    let Some(traced) = TRACED.get_ptr_mut(0) else { return 0 };
    let Some(cpu) = cpu::cpu() else { return 0 };
    // SAFETY: map values of this CPU; XDP programs do not interrupt each other, so there is what `flowlog_entry` has parsed. An
    // XDP program has one argument, and behind it is what it returned.
    unsafe {
        let buffer = cpu::address(&raw mut (*traced).pointer, ctx.arg(0));
        let entered = (*traced).buffer;
        (*traced).buffer = 0;
        if entered == 0 || entered != buffer {
            return 0;
        }
        let now_ns = clock::traced_ns(cpu);
        let headers = (&raw const (*cpu).parsed).cast();
        foreign::took((*traced).spot, ctx.arg(1), (*traced).found, headers, now_ns);
    }
    0
}
