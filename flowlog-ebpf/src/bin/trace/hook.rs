//! Packets at the hooks of an interface: behind ours where the kernel has tcx, and else where the kernel itself says that it has them.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, TC_ACT_UNSPEC},
    helpers::generated::bpf_skb_load_bytes,
    macros::{btf_tracepoint, classifier},
    programs::{BtfTracePointContext, TcContext},
};
use flowlog_ebpf::{
    packet::Frame,
    sighting::{AT_EGRESS, AT_INGRESS, BEFORE_INGRESS, FOUND_FLOW, HEAD_BYTES},
};

use crate::{
    frame::{Direct, Fragmented, LINEAR_ENOUGH, is_headless, opaque},
    kernel::{Dropped, Linear, member},
    look::{self, AT_HOOK, HEADERS, Position},
    maps::{LINK_HEADER, OFFSETS},
    steps,
};

#[classifier]
pub fn flowlog_see_ingress(ctx: TcContext) -> i32 {
    behind_hook(&ctx, AT_INGRESS);
    TC_ACT_UNSPEC
}

#[classifier]
pub fn flowlog_see_egress(ctx: TcContext) -> i32 {
    behind_hook(&ctx, AT_EGRESS);
    TC_ACT_UNSPEC
}

#[inline(always)]
fn behind_hook(ctx: &TcContext, at: u32) {
    let skb = ctx.as_ptr().cast::<__sk_buff>();
    let Some(look) = look::look(AT_HOOK) else { return };
    // SAFETY: the context pointer; the verifier rewrites these loads to the real members. And a map value of this CPU: hooks do not
    // interrupt hooks.
    unsafe {
        look::begin(look, skb as u64, Position { at, place: 0, reason: 0 });
        let s = &raw mut (*look).sighting;
        (*s).dev = (*skb).ifindex;
        (*s).iif = (*skb).ingress_ifindex;
        (*s).dst = 0;
        (*s).frame_bytes = (*skb).len;
        (*s).number = (*skb).tc_index;
        (*look).subjects[HEADERS].ethertype = ((*skb).protocol as u16).swap_bytes();
        parse(skb);
        keep_head(skb);
        steps::run(look, AT_HOOK, steps::NOTE);
    }
}

/// Parses the frame as the hooks do.
#[inline(never)]
fn parse(skb: *mut __sk_buff) -> u32 {
    // SAFETY: the context pointer; the verifier rewrites these loads to the real members.
    let (len, vlan_tci, data, end) =
        unsafe { ((*skb).len, (*skb).vlan_tci as u16, (*skb).data as usize, (*skb).data_end as usize) };
    let link_header = LINK_HEADER.load() != 0 && !is_headless(skb);
    let frame = Frame { len, vlan_tci, link_header };
    if data + LINEAR_ENOUGH > end && ((end - data) as u32) < len {
        look::parse(&Fragmented { skb }, &frame, AT_HOOK)
    } else {
        look::parse(&Direct { data, end }, &frame, AT_HOOK)
    }
}

/// Keeps how the frame begins, if nothing else is known of it.
#[inline(never)]
fn keep_head(skb: *mut __sk_buff) -> u32 {
    let Some(look) = look::look(AT_HOOK) else { return 0 };
    // SAFETY: the context pointer, and a map value of this CPU; the helper writes as many bytes as there is room for at most.
    unsafe {
        let s = &raw mut (*look).sighting;
        let len = (*skb).len;
        if (*s).found == FOUND_FLOW || len == 0 {
            return 0;
        }
        let bytes = if len > HEAD_BYTES as u32 { HEAD_BYTES as u32 } else { len };
        let bytes = opaque(bytes);
        if bytes == 0 || bytes > HEAD_BYTES as u32 {
            return 0;
        }
        if bpf_skb_load_bytes(skb.cast(), 0, (&raw mut (*s).head).cast(), bytes) == 0 {
            (*s).head_bytes = bytes;
        }
    }
    1
}

/// Of a kernel without tcx: a packet on its way in, in front of all hooks.
#[btf_tracepoint(function = "netif_receive_skb")]
pub fn flowlog_see_received(ctx: BtfTracePointContext) -> i32 {
    without_tcx(&ctx, BEFORE_INGRESS);
    0
}

/// Of a kernel without tcx: a packet on its way out, behind all hooks.
#[btf_tracepoint(function = "net_dev_queue")]
pub fn flowlog_see_queued(ctx: BtfTracePointContext) -> i32 {
    without_tcx(&ctx, AT_EGRESS);
    0
}

#[inline(always)]
fn without_tcx(ctx: &BtfTracePointContext, at: u32) {
    let skb: *const u8 = ctx.arg(0);
    let Some(look) = look::look(AT_HOOK) else { return };
    // SAFETY: a map value of this CPU; a tracing program does not interrupt itself, and on a kernel where these two run no hook is
    // behind them. `skb` is the tracepoint's first argument.
    unsafe {
        look::begin(look, skb as u64, Position { at, place: 0, reason: 0 });
        Dropped::read(skb, &raw mut (*look).dropped);
        if at == BEFORE_INGRESS {
            begin_at_data(skb, &raw mut (*look).dropped);
        }
        steps::run(look, AT_HOOK, steps::BUFFER);
    }
}

/// Where a packet has just been received, nobody has said yet where its network header is: it is where the data begins.
///
/// # Safety
/// `skb` must be the `struct sk_buff *` argument of the tracepoint, and `d` a place in a map value.
#[inline(never)]
unsafe fn begin_at_data(skb: *const u8, d: *mut Dropped) {
    let o = &OFFSETS.load();
    // SAFETY: offsets come from this kernel's BTF for exactly these members; the verifier checks the loads.
    unsafe {
        let data: u64 = member(skb, o.skb_data);
        let len: u32 = member(skb, o.skb_len);
        let elsewhere: u32 = member(skb, o.skb_data_len);
        (*d).headers = Linear::at(data, len.wrapping_sub(elsewhere) as usize);
        (*d).l3_available = len;
    }
}
