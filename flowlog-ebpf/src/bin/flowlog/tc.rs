//! The TC hooks (tcx link or clsact filter), one for each direction.

use aya_ebpf::{bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext};
use flowlog_ebpf::{
    abi::{EGRESS, INGRESS, NO_LINK_HEADER},
    packet::Frame,
};

use crate::{
    account::{self, Hook},
    frame::{Direct, Fragmented},
};

/// Link + two VLAN tags + IPv6 + TCP: with this much in the linear part, direct access sees all headers but
/// those behind long option or extension header chains.
const LINEAR_ENOUGH: usize = 14 + 8 + 40 + 20;

#[classifier]
pub fn flowlog_tc_ingress(ctx: TcContext) -> i32 {
    hook(&ctx, INGRESS);
    TC_ACT_UNSPEC
}

#[classifier]
pub fn flowlog_tc_egress(ctx: TcContext) -> i32 {
    hook(&ctx, EGRESS);
    TC_ACT_UNSPEC
}

#[inline(always)]
fn hook(ctx: &TcContext, direction: u8) {
    let skb = ctx.skb.skb;
    // SAFETY: the context pointer; the verifier rewrites these loads to the real members.
    let (ifindex, len, vlan_tci, gso_size, gso_segs) =
        unsafe { ((*skb).ifindex, (*skb).len, (*skb).vlan_tci as u16, (*skb).gso_size, (*skb).gso_segs) };
    let Some(iface) = account::iface(ifindex).copied() else { return };
    let hook = Hook { ifindex, direction, skb: account::address(skb as u64), gso_size, gso_segs };
    let frame = Frame { len, vlan_tci, link_header: iface.flags & NO_LINK_HEADER == 0 };
    let (data, end) = (ctx.data(), ctx.data_end());
    if data + LINEAR_ENOUGH > end && ((end - data) as u32) < len {
        account::frame(&hook, &iface, &Fragmented { skb }, frame);
    } else {
        account::frame(&hook, &iface, &Direct { data, end }, frame);
    }
}
