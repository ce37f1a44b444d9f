//! The TC hooks (tcx link or clsact filter), one for each direction.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};
use flowlog_ebpf::{
    abi::{Cpu, EGRESS, INGRESS, NO_LINK_HEADER, ONLY_NOTED, WANT_EGRESS, WANT_INGRESS},
    packet::{self, Frame, common4, common6},
};

use crate::{
    account::{self, Hook, V4, V6, Wire},
    frame::{Direct, Fragmented},
};

/// Link + two VLAN tags + IPv6 + TCP: with this much in the linear part, direct access sees all headers but
/// those behind long option or extension header chains.
const LINEAR_ENOUGH: usize = 14 + 8 + 40 + 20;

#[classifier]
pub fn flowlog_tc_ingress(ctx: TcContext) -> i32 {
    hook(&ctx, INGRESS, WANT_INGRESS);
    TC_ACT_UNSPEC
}

#[classifier]
pub fn flowlog_tc_egress(ctx: TcContext) -> i32 {
    hook(&ctx, EGRESS, WANT_EGRESS);
    TC_ACT_UNSPEC
}

/// A frame in an `sk_buff`.
struct Skb(*mut __sk_buff);

impl Hook for Skb {
    #[inline(always)]
    fn buffer(&self, cpu: *mut Cpu) -> Option<(u32, u64)> {
        // SAFETY: the context pointer; the verifier rewrites the load to the real member. Hooks do not interrupt hooks.
        unsafe { Some(((*self.0).ifindex, account::address(&raw mut (*cpu).pointer, self.0 as u64))) }
    }

    #[inline(always)]
    fn wire(&self, l3_len: u32, headers: u32) -> Wire {
        // SAFETY: the context pointer; the verifier rewrites the loads to the real members.
        let gso_size = unsafe { (*self.0).gso_size };
        if gso_size == 0 {
            return Wire { packets: 1, bytes: l3_len };
        }
        // SAFETY: as above.
        let (packets, bytes) = packet::wire(l3_len, headers, gso_size, unsafe { (*self.0).gso_segs });
        Wire { packets, bytes }
    }
}

#[inline(always)]
fn hook(ctx: &TcContext, direction: u8, want: u16) {
    let skb = ctx.skb.skb;
    // SAFETY: the context pointer; the verifier rewrites these loads to the real members.
    let (ifindex, len, vlan_tci) = unsafe { ((*skb).ifindex, (*skb).len, (*skb).vlan_tci as u16) };
    let Some(at) = account::at(ifindex, direction, want) else {
        return uncounted(skb, u32::from(direction));
    };
    let link_header = at.iface.flags & NO_LINK_HEADER == 0;
    let frame = Frame { len, vlan_tci, link_header };
    let direct = Direct { data: ctx.data(), end: ctx.data_end() };
    if link_header {
        if let Some(f) = direct.head().and_then(|h| common4(h, frame)) {
            return account::flow::<V4, Skb>(&Skb(skb), &at, &f);
        }
        if let Some(f) = direct.head().and_then(|h| common6(h, frame)) {
            return account::flow::<V6, Skb>(&Skb(skb), &at, &f);
        }
    }
    uncommon(skb, u32::from(direction), u32::from(want));
}

/// A frame that nobody wants to be counted (any more): the note of an earlier packet in the same buffer must not be
/// taken for its own.
#[inline(never)]
fn uncounted(skb: *mut __sk_buff, direction: u32) {
    // SAFETY: the context pointer; the verifier rewrites the load to the real member.
    let ifindex = unsafe { (*skb).ifindex };
    if account::iface(ifindex).is_some_and(|i| i.flags & ONLY_NOTED != 0) {
        account::forget_note(&Skb(skb), direction as u8);
    }
}

/// Any other frame. A function of its own, so that its variables do not crowd the registers of the common case.
#[inline(never)]
fn uncommon(skb: *mut __sk_buff, direction: u32, want: u32) {
    // SAFETY: the context pointer; the verifier rewrites these loads to the real members.
    let (ifindex, len, vlan_tci, data, end) =
        unsafe { ((*skb).ifindex, (*skb).len, (*skb).vlan_tci as u16, (*skb).data as usize, (*skb).data_end as usize) };
    let Some(at) = account::at(ifindex, direction as u8, want as u16) else { return };
    let frame = Frame { len, vlan_tci, link_header: at.iface.flags & NO_LINK_HEADER == 0 };
    if data + LINEAR_ENOUGH > end && ((end - data) as u32) < len {
        account::frame(&Skb(skb), &at, &Fragmented { skb }, frame);
    } else {
        account::frame(&Skb(skb), &at, &Direct { data, end }, frame);
    }
}
