//! The XDP hook: ingress only, before the kernel has made an `sk_buff`.

use aya_ebpf::{
    bindings::xdp_action::XDP_PASS, helpers::generated::bpf_xdp_get_buff_len, macros::xdp, programs::XdpContext,
};
use flowlog_ebpf::{
    abi::{INGRESS, NO_LINK_HEADER},
    packet::Frame,
};

use crate::{
    account::{self, Hook},
    frame::Direct,
};

/// A frame in several buffers fills its first one; a shorter first buffer is all there is, and the helper call
/// for the total length can be left out.
const ONE_BUFFER_MAX: usize = 2_048;

#[xdp(frags)]
pub fn flowlog_xdp(ctx: XdpContext) -> u32 {
    hook(&ctx);
    XDP_PASS
}

#[inline(always)]
fn hook(ctx: &XdpContext) {
    // SAFETY: the context pointer.
    let ifindex = unsafe { (*ctx.ctx).ingress_ifindex };
    let Some(iface) = account::iface(ifindex).copied() else { return };
    let (data, end) = (ctx.data(), ctx.data_end());
    let linear = end - data;
    // SAFETY: the context pointer.
    let len = if linear < ONE_BUFFER_MAX { linear as u32 } else { unsafe { bpf_xdp_get_buff_len(ctx.ctx) as u32 } };
    let hook = Hook { ifindex, direction: INGRESS, skb: 0, gso_size: 0, gso_segs: 0 };
    let frame = Frame { len, vlan_tci: 0, link_header: iface.flags & NO_LINK_HEADER == 0 };
    account::frame(&hook, &iface, &Direct { data, end }, frame);
}
