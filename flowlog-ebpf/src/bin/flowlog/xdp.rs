//! The XDP hook: ingress only, before the kernel has made an `sk_buff`; and the one for interfaces of other network namespaces.

use aya_ebpf::{
    bindings::{xdp_action::XDP_PASS, xdp_md},
    helpers::generated::bpf_xdp_get_buff_len,
    macros::xdp,
    programs::XdpContext,
};
use flowlog_ebpf::{
    abi::{HANDS_OVER, INGRESS, Key, NO_LINK_HEADER, WANT_INGRESS, XDP_INGRESS},
    packet::{Flow, Frame, common4, common6},
};

use crate::{
    account::{self, At, FOUND_V4, FOUND_V6, Hook, OtherNetns, OwnNetns, Seen, Want, Where},
    cache::Before,
    family::{Family, V4, V6},
    frame::Direct,
    wire::Wire,
};

/// A frame in several buffers fills its first one; a shorter first buffer is all there is, and the helper call
/// for the total length can be left out.
const ONE_BUFFER_MAX: usize = 2_048;

#[xdp(frags)]
pub fn flowlog_xdp(ctx: XdpContext) -> u32 {
    hook::<OwnNetns>(&ctx);
    XDP_PASS
}

#[xdp(frags)]
pub fn flowlog_elsewhere_xdp(ctx: XdpContext) -> u32 {
    hook::<OtherNetns>(&ctx);
    XDP_PASS
}

/// Every frame is counted. The TC hook notes it, once there is a buffer.
pub const WANT: Want = Want { counts: WANT_INGRESS | XDP_INGRESS, notes: 0, elsewhere: HANDS_OVER };

/// A frame without an `sk_buff`: no buffer to remember, never GSO.
pub struct Raw;

impl Hook for Raw {
    type Begun = ();

    #[inline(always)]
    fn note<F: Family>(&self, _at: &At, _packet: &Seen<'_, F::Addr>) {}

    #[inline(always)]
    unsafe fn tell<F: Family>((): &(), _key: *const Key<F::Addr>, _is_new: bool) -> u32 {
        0
    }

    #[inline(always)]
    fn not_told(_at: &At) {}

    #[inline(always)]
    fn complete<F: Family>((): (), _place: u32, _before: Before) {}

    #[inline(always)]
    fn wire<A>(&self, f: &Flow<A>) -> Wire {
        Wire { packets: 1, bytes: f.l3_len }
    }
}

#[inline(always)]
fn hook<W: Where>(ctx: &XdpContext) {
    // SAFETY: the context pointer.
    let ifindex = unsafe { (*ctx.ctx).ingress_ifindex };
    let Some(at) = account::counting::<W>(ifindex, INGRESS, WANT) else {
        if account::is_handed_over::<W>(ifindex) {
            uncommon::<W>(ctx.ctx);
        }
        return;
    };
    let direct = Direct { data: ctx.data(), end: ctx.data_end() };
    let linear = direct.end - direct.data;
    if linear < ONE_BUFFER_MAX && at.iface.flags & NO_LINK_HEADER == 0 {
        let frame = Frame { len: linear as u32, vlan_tci: 0, link_header: true };
        if let Some(f) = direct.head().and_then(|h| common4(h, frame)) {
            return account::flow::<V4, Raw, true>(&Raw, &at, &f);
        }
        if let Some(f) = direct.head().and_then(|h| common6(h, frame)) {
            return account::flow::<V6, Raw, true>(&Raw, &at, &f);
        }
    }
    uncommon::<W>(ctx.ctx);
}

/// Any other frame. In functions of their own, so that its variables do not crowd registers and stack of the common case.
#[inline(always)]
fn uncommon<W: Where>(ctx: *mut xdp_md) {
    let found = parse::<W>(ctx);
    match found as u32 {
        FOUND_V4 => parsed::<V4, W>(ctx),
        FOUND_V6 => parsed::<V6, W>(ctx),
        _ => no_flow::<W>(ctx, found),
    }
}

/// Parses a frame into [`flowlog_ebpf::abi::Cpu::parsed`].
#[inline(never)]
pub fn parse<W: Where>(ctx: *mut xdp_md) -> u64 {
    // SAFETY: the context pointer.
    let (ifindex, data, end, len) = unsafe {
        ((*ctx).ingress_ifindex, (*ctx).data as usize, (*ctx).data_end as usize, bpf_xdp_get_buff_len(ctx) as u32)
    };
    let link_header = account::iface(W::spot(ifindex)).is_none_or(|i| i.flags & NO_LINK_HEADER == 0);
    account::parse(&Direct { data, end }, &Frame { len, vlan_tci: 0, link_header })
}

#[inline(always)]
fn at<W: Where>(ctx: *mut xdp_md) -> Option<At> {
    // SAFETY: the context pointer.
    let ifindex = unsafe { (*ctx).ingress_ifindex };
    account::counting::<W>(ifindex, INGRESS, WANT).or_else(|| account::counting_by_xdp::<W>(ifindex))
}

#[inline(never)]
fn parsed<F: Family, W: Where>(ctx: *mut xdp_md) {
    if let Some(at) = at::<W>(ctx) {
        account::parsed::<F, Raw>(&Raw, &at);
    }
}

#[inline(never)]
fn no_flow<W: Where>(ctx: *mut xdp_md, found: u64) {
    if let Some(at) = at::<W>(ctx) {
        account::no_flow(&at, found);
    }
}
