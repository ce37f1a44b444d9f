//! The TC hooks (tcx link or clsact filter), one for each direction; and those for interfaces of other network namespaces,
//! which what is attached there jumps to (`kernel/src/entry.rs` of the agent).

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};
use flowlog_ebpf::{
    abi::{
        EGRESS, HANDS_OVER, INGRESS, Key, NO_LINK_HEADER, WANT_EGRESS, WANT_INGRESS, WANT_REFUSED_EGRESS,
        WANT_REFUSED_INGRESS, WANT_TRANSLATIONS, XDP_INGRESS,
    },
    packet::{self, Flow, Frame, common4, common6},
};

use crate::{
    account::{self, At, FOUND_V4, FOUND_V6, Hook, OtherNetns, OwnNetns, Seen, Want, Where},
    cache::Before,
    family::{Family, V4, V6},
    frame::{Direct, Fragmented, LINEAR_ENOUGH, is_headless},
    kernel,
    note::{self, Carrier},
    told,
    wire::Wire,
};

#[classifier]
pub fn flowlog_tc_ingress(ctx: TcContext) -> i32 {
    hook::<OwnNetns>(&ctx, INGRESS);
    TC_ACT_UNSPEC
}

#[classifier]
pub fn flowlog_tc_egress(ctx: TcContext) -> i32 {
    hook::<OwnNetns>(&ctx, EGRESS);
    TC_ACT_UNSPEC
}

#[classifier]
pub fn flowlog_elsewhere_ingress(ctx: TcContext) -> i32 {
    hook::<OtherNetns>(&ctx, INGRESS);
    TC_ACT_UNSPEC
}

#[classifier]
pub fn flowlog_elsewhere_egress(ctx: TcContext) -> i32 {
    hook::<OtherNetns>(&ctx, EGRESS);
    TC_ACT_UNSPEC
}

/// What an interface must want for a packet to be counted, and to be noted.
#[inline(always)]
const fn want(direction: u8) -> Want {
    if direction == INGRESS {
        Want { counts: WANT_INGRESS, notes: WANT_REFUSED_INGRESS, elsewhere: XDP_INGRESS | HANDS_OVER }
    } else {
        Want { counts: WANT_EGRESS, notes: WANT_REFUSED_EGRESS, elsewhere: 0 }
    }
}

/// A frame in an `sk_buff`.
struct Skb(*mut __sk_buff);

impl Hook for Skb {
    type Begun = note::Begun;

    #[inline(always)]
    fn note<F: Family>(&self, at: &At, packet: &Seen<'_, F::Addr>) -> note::Begun {
        note::begin::<F, Self>(self, at, packet)
    }

    #[inline(always)]
    unsafe fn tell<F: Family>(begun: &note::Begun, key: *const Key<F::Addr>, is_new: bool) -> u32 {
        // SAFETY: by the contract.
        unsafe { told::tell::<F>(key, begun.address(), u32::from(is_new)) }
    }

    #[inline(always)]
    fn not_told(at: &At) {
        if at.iface.flags & WANT_TRANSLATIONS != 0 {
            told::not_told(u32::from(at.iface.id), at.iface.epoch);
        }
    }

    #[inline(always)]
    fn complete<F: Family>(begun: note::Begun, place: u32, before: Before) {
        note::complete::<F>(begun, place, before);
    }

    #[inline(always)]
    fn wire<A>(&self, f: &Flow<A>) -> Wire {
        // SAFETY: the context pointer; the verifier rewrites the loads to the real members.
        let gso_size = unsafe { (*self.0).gso_size };
        if gso_size == 0 {
            return Wire { packets: 1, bytes: f.l3_len };
        }
        // No tunnel's packets are TCP, which most GSO packets are.
        let headers = if f.proto == packet::TCP { f.headers } else { tunnelled(self.0, f.headers) };
        // SAFETY: as above.
        let (packets, bytes) = packet::wire(f.l3_len, headers, gso_size, unsafe { (*self.0).gso_segs });
        Wire { packets, bytes }
    }
}

/// What each segment of a GSO packet repeats: `headers`, if it is not inside a tunnel's packet.
#[inline(always)]
fn tunnelled(skb: *mut __sk_buff, headers: u32) -> u32 {
    // To the kernel the context is the buffer itself.
    match kernel::tunnel_headers(skb as u64) {
        0 => headers,
        tunnel => tunnel,
    }
}

impl Carrier for Skb {
    #[inline(always)]
    fn address(&self, cell: *mut u64) {
        // SAFETY: the caller's cell lies in a map value.
        unsafe { cell.write_volatile(self.0 as u64) }
    }

    #[inline(always)]
    fn number(&self) -> u16 {
        // SAFETY: the context pointer; the verifier rewrites the load to the real member.
        unsafe { (*self.0).tc_index as u16 }
    }

    #[inline(always)]
    fn set_number(&self, number: u16) {
        // SAFETY: as above, for a store.
        unsafe { (*self.0).tc_index = u32::from(number) };
    }

    #[inline(always)]
    fn iif(&self) -> u16 {
        // SAFETY: the context pointer; the verifier rewrites the load to `skb_iif`.
        unsafe { (*self.0).ingress_ifindex as u16 }
    }
}

#[inline(always)]
fn hook<W: Where>(ctx: &TcContext, direction: u8) {
    let skb = ctx.as_ptr().cast::<__sk_buff>();
    // SAFETY: the context pointer; the verifier rewrites these loads to the real members.
    let ifindex = unsafe { (*skb).ifindex };
    let done = match account::counting::<W>(ifindex, direction, want(direction)) {
        Some(at) => common(skb, &at),
        None => only_noted::<W>(skb, u32::from(direction)) != 0,
    };
    if !done {
        uncommon::<W>(skb, u32::from(direction));
    }
}

/// Packets that are not counted here. In a function of its own, so that those that are need not ask. Returns 0 if there is more
/// to be done.
#[inline(never)]
fn only_noted<W: Where>(skb: *mut __sk_buff, direction: u32) -> u32 {
    // SAFETY: the context pointer; the verifier rewrites the load to the real member.
    let ifindex = unsafe { (*skb).ifindex };
    if direction == u32::from(INGRESS) && account::is_handed_over::<W>(ifindex) {
        // For a moment only: what finds out who counts is not worth having twice.
        return 0;
    }
    match account::noting::<W>(ifindex, direction as u8, want(direction as u8)) {
        Some(at) => u32::from(common(skb, &at)),
        None => 1,
    }
}

/// Accounts for a frame of the common kind; `false`: it is of another.
#[inline(always)]
fn common(skb: *mut __sk_buff, at: &At) -> bool {
    // SAFETY: the context pointer; the verifier rewrites these loads to the real members.
    let (len, vlan_tci, data, end) =
        unsafe { ((*skb).len, (*skb).vlan_tci as u16, (*skb).data as usize, (*skb).data_end as usize) };
    let link_header = at.iface.flags & NO_LINK_HEADER == 0;
    let frame = Frame { len, vlan_tci, link_header };
    let direct = Direct { data, end };
    if link_header {
        if let Some(f) = direct.head().and_then(|h| common4(h, frame)) {
            account::flow::<V4, Skb, true>(&Skb(skb), at, &f);
            return true;
        }
        if let Some(f) = direct.head().and_then(|h| common6(h, frame)) {
            account::flow::<V6, Skb, true>(&Skb(skb), at, &f);
            return true;
        }
    }
    false
}

/// Any other frame. In functions of their own, so that its variables do not crowd registers and stack of the common case.
#[inline(always)]
fn uncommon<W: Where>(skb: *mut __sk_buff, direction: u32) {
    let found = parse::<W>(skb);
    match found as u32 {
        FOUND_V4 => parsed::<V4, W>(skb, direction),
        FOUND_V6 => parsed::<V6, W>(skb, direction),
        _ => no_flow::<W>(skb, direction, found),
    }
}

#[inline(never)]
fn parse<W: Where>(skb: *mut __sk_buff) -> u64 {
    // SAFETY: the context pointer; the verifier rewrites these loads to the real members.
    let (ifindex, len, vlan_tci, data, end) =
        unsafe { ((*skb).ifindex, (*skb).len, (*skb).vlan_tci as u16, (*skb).data as usize, (*skb).data_end as usize) };
    let link_header =
        account::iface(W::spot(ifindex)).is_none_or(|i| i.flags & NO_LINK_HEADER == 0) && !is_headless(skb);
    let frame = Frame { len, vlan_tci, link_header };
    if data + LINEAR_ENOUGH > end && ((end - data) as u32) < len {
        account::parse(&Fragmented { skb }, &frame)
    } else {
        account::parse(&Direct { data, end }, &frame)
    }
}

#[inline(always)]
fn at<W: Where>(skb: *mut __sk_buff, direction: u32) -> Option<At> {
    // SAFETY: the context pointer; the verifier rewrites the load to the real member.
    account::at::<W>(unsafe { (*skb).ifindex }, direction as u8, want(direction as u8))
}

#[inline(never)]
fn parsed<F: Family, W: Where>(skb: *mut __sk_buff, direction: u32) {
    if let Some(at) = at::<W>(skb, direction) {
        account::parsed::<F, Skb>(&Skb(skb), &at);
    }
}

#[inline(never)]
fn no_flow<W: Where>(skb: *mut __sk_buff, direction: u32, found: u64) {
    if let Some(at) = at::<W>(skb, direction) {
        account::no_flow(&at, found);
    }
}
