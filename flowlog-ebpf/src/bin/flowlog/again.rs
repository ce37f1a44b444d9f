//! What is in a hook's place while the hook itself is put in front of other people's programs: it hands the hook what that has not seen.
//!
//! A program's place among others is given when it is attached, and no program can be attached twice. So the link that is there is given
//! one of these, then the hook is attached in front, and then the old link goes. A packet that passes both has been noted by the hook, and
//! is not counted again. One that was past the front already is counted here. An agent that is killed in between leaves this
//! program where the hook was, and nothing in front, so that all packets are counted here until the next agent puts its hook in its place.
//!
//! It takes numbers to tell: while packets are not numbered, hooks stay where they are. What hooks do not note would be counted twice: frames that are not IP, or cannot be parsed, in the ten milliseconds that it takes.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};
use flowlog_ebpf::abi::{EGRESS, ELSEWHERE_EGRESS, ELSEWHERE_INGRESS, INGRESS, OWN_EGRESS, OWN_INGRESS};

use crate::{
    account::{self, OtherNetns, OwnNetns, Where},
    cpu::{self, cpu},
    maps::ELSEWHERE_TC,
    note,
};

#[classifier]
pub fn flowlog_again_ingress(ctx: TcContext) -> i32 {
    again::<OwnNetns>(&ctx, INGRESS, OWN_INGRESS)
}

#[classifier]
pub fn flowlog_again_egress(ctx: TcContext) -> i32 {
    again::<OwnNetns>(&ctx, EGRESS, OWN_EGRESS)
}

/// What entries jump to in place of the hook.
#[classifier]
pub fn flowlog_elsewhere_again_ingress(ctx: TcContext) -> i32 {
    again::<OtherNetns>(&ctx, INGRESS, ELSEWHERE_INGRESS)
}

/// The same for packets on their way out.
#[classifier]
pub fn flowlog_elsewhere_again_egress(ctx: TcContext) -> i32 {
    again::<OtherNetns>(&ctx, EGRESS, ELSEWHERE_EGRESS)
}

#[inline(always)]
fn again<W: Where>(ctx: &TcContext, direction: u8, hook: u32) -> i32 {
    let skb = ctx.as_ptr().cast::<__sk_buff>();
    // SAFETY: the context pointer; the verifier rewrites these loads to the real members.
    let (ifindex, number) = unsafe { ((*skb).ifindex, (*skb).tc_index as u16) };
    let (Some(cpu), Some(iface)) = (cpu(), account::iface(W::spot(ifindex))) else { return TC_ACT_UNSPEC };
    // SAFETY: a map value of this CPU, in which nothing is kept from one hook to the next.
    let address = unsafe { cpu::address((&raw mut (*cpu).parsed).cast::<u64>(), skb as u64) };
    if !note::is_noted(cpu, number, address, iface.id, direction) {
        // SAFETY: nothing here needs to be dropped.
        unsafe { ELSEWHERE_TC.tail_call(ctx, hook) };
    }
    TC_ACT_UNSPEC
}
