//! Accounting at a hook: the truth counters, and what becomes of a packet.

use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;
use flowlog_ebpf::{
    abi::{
        Cpu, HANDS_OVER, HookTruth, INGRESS, Iface, Ip4, Ip6, Key, Meta, ONLY_NOTED, PARSED_WORDS, PLACE_BITS,
        PLACE_LOST, PLACE_NOWHERE, PLACE_RECORD, PLACE_SLOT, PLACE_XDP, WANT_INGRESS, WANT_TRANSLATIONS, class,
    },
    packet::{self, Bytes, Flow, Frame, Packet},
};

use crate::{
    cache::{Before, News, One, count, emit_alone, slot_index},
    clock,
    cpu::{cpu, lock, unlock},
    family::Family,
    frame::{computed, opaque},
    maps::IFACES,
    told,
    wire::{Wire, bump, hooked},
};

/// The watched interface at a spot.
#[inline(always)]
pub fn iface(spot: u32) -> Option<&'static Iface> {
    IFACES.get(spot).filter(|iface| iface.id != 0)
}

/// A frame at a hook.
pub trait Hook {
    /// A note that is not complete.
    type Begun;
    /// Notes a packet for the verdict program; nothing where there is no buffer yet (XDP). Before it is counted: then the
    /// registers still hold what there is to write.
    fn note<F: Family>(&self, at: &At, packet: &Seen<'_, F::Addr>) -> Self::Begun;
    /// Tells what a packet has on the other side of a translation, beside the record with this key; nothing where there is no
    /// buffer yet.
    ///
    /// # Safety
    /// `key` must be that of a cache slot of this CPU, and the caller must hold `busy`.
    unsafe fn tell<F: Family>(begun: &Self::Begun, key: *const Key<F::Addr>, is_new: bool) -> u32;
    /// Nothing was told beside a record, although it may be wanted.
    fn not_told(at: &At);
    /// Notes where it was counted.
    fn complete<F: Family>(begun: Self::Begun, place: u32, before: Before);
    /// Wire packets and bytes of a packet.
    fn wire<A>(&self, f: &Flow<A>) -> Wire;
}

/// What a hook knows of a packet.
pub struct Seen<'a, A> {
    pub flow: &'a Flow<A>,
    pub key: &'a Key<A>,
    /// How much it is.
    pub wire: Wire,
}

/// What a hook knows before it looks at the packet. Gathered first: every helper call and look-up clobbers half of the
/// registers, and what the packet brings would have to be kept on the stack meanwhile.
pub struct At {
    pub iface: Watch,
    pub ifindex: u32,
    pub direction: u8,
    pub cpu: *mut Cpu,
    pub now_ns: u64,
    truth: *mut HookTruth,
    /// Where packets are that are only noted here: `PLACE_NOWHERE` or `PLACE_XDP`. `None`: they are counted here.
    elsewhere: Option<u32>,
}

/// What of an [`Iface`] concerns each packet. Member by member, or LLVM keeps all of it on the stack.
#[derive(Clone, Copy)]
pub struct Watch {
    pub id: u16,
    pub flags: u16,
    pub epoch: u32,
}

impl Watch {
    /// Reads each once: the agent turns epochs meanwhile.
    #[inline(always)]
    fn read(iface: &Iface) -> Self {
        // SAFETY: members of a reference. Volatile, so that they are not read again later.
        unsafe {
            Self {
                id: (&raw const iface.id).read_volatile(),
                flags: (&raw const iface.flags).read_volatile(),
                epoch: (&raw const iface.epoch).read_volatile(),
            }
        }
    }
}

/// Which network namespace a hook's interface is in.
pub trait Where {
    /// Where the programs find it: see [`flowlog_ebpf::abi::Range`].
    fn spot(ifindex: u32) -> u32;
}

/// The agent's own.
pub enum OwnNetns {}

impl Where for OwnNetns {
    #[inline(always)]
    fn spot(ifindex: u32) -> u32 {
        ifindex
    }
}

/// Another one: what is attached there says which.
pub enum OtherNetns {}

impl Where for OtherNetns {
    #[inline(always)]
    fn spot(ifindex: u32) -> u32 {
        // SAFETY: a map value of this CPU; hooks do not interrupt hooks, so it is what our caller has written.
        cpu().map_or(0, |cpu| unsafe { (*cpu).base.wrapping_add(ifindex) })
    }
}

/// What a hook does for an interface: bits of [`Iface::flags`].
#[derive(Clone, Copy)]
pub struct Want {
    /// Set: packets are counted.
    pub counts: u16,
    /// Set: packets are noted, even if they are not counted.
    pub notes: u16,
    /// Set: a hook of another kind counts them, and this one only notes; or it may, and who does has to be looked up. 0: there is no such hook.
    pub elsewhere: u16,
}

/// Looks up a frame's interface and its witness counters. `None`: its packets are not counted here.
#[inline(always)]
pub fn counting<W: Where>(ifindex: u32, direction: u8, want: Want) -> Option<At> {
    let at = IFACES.get(W::spot(ifindex))?;
    let iface = Watch::read(at);
    if iface.flags & (want.counts | want.elsewhere) != want.counts {
        return None;
    }
    found(iface, (ifindex, direction), None)
}

/// Whether it has to be looked up which kind of hook counts what comes in through an interface.
#[inline(always)]
pub fn is_handed_over<W: Where>(ifindex: u32) -> bool {
    IFACES.get(W::spot(ifindex)).is_some_and(|iface| iface.flags & HANDS_OVER != 0)
}

/// Whether XDP counts on this CPU while that is so.
#[inline(always)]
fn is_by_xdp(iface: &Iface) -> bool {
    // SAFETY: takes no arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    cpu < iface.by_xdp
}

/// As [`counting`], for XDP while that is so.
#[inline(always)]
pub fn counting_by_xdp<W: Where>(ifindex: u32) -> Option<At> {
    let at = IFACES.get(W::spot(ifindex))?;
    let iface = Watch::read(at);
    let counts = WANT_INGRESS | HANDS_OVER;
    if iface.flags & counts != counts || !is_by_xdp(at) {
        return None;
    }
    found(iface, (ifindex, INGRESS), None)
}

/// As [`counting`], of what was taken in front of the hook, by a program that knows the interface already, and the time.
#[inline(always)]
pub fn taking(iface: &Iface, direction: u8, now_ns: u64) -> Option<At> {
    let cpu = cpu()?;
    // No hook of ours has the packet, nor does anybody need its ifindex: that is for notes.
    gathered(Watch::read(iface), (0, direction), cpu, now_ns, None)
}

/// As [`counting`], where packets are only noted, or where that has to be looked up. `None`: nobody wants this direction of this interface.
#[inline(always)]
pub fn noting<W: Where>(ifindex: u32, direction: u8, want: Want) -> Option<At> {
    let at = IFACES.get(W::spot(ifindex))?;
    let iface = Watch::read(at);
    if iface.flags & (want.counts | want.notes) == 0 {
        return None;
    }
    if iface.flags & want.elsewhere & HANDS_OVER != 0 && iface.flags & want.counts != 0 && !is_by_xdp(at) {
        return found(iface, (ifindex, direction), None);
    }
    let place = if iface.flags & want.counts != 0 { PLACE_XDP } else { PLACE_NOWHERE };
    if place == PLACE_NOWHERE && iface.flags & ONLY_NOTED != 0 {
        // The watch begins or ends: what is refused now is nobody's.
        return None;
    }
    found(iface, (ifindex, direction), Some(place))
}

/// Either of the two.
#[inline(always)]
pub fn at<W: Where>(ifindex: u32, direction: u8, want: Want) -> Option<At> {
    counting::<W>(ifindex, direction, want).or_else(|| noting::<W>(ifindex, direction, want))
}

#[inline(always)]
fn found(iface: Watch, place: (u32, u8), elsewhere: Option<u32>) -> Option<At> {
    let cpu = cpu()?;
    gathered(iface, place, cpu, clock::now_ns(cpu), elsewhere)
}

#[inline(always)]
fn gathered(
    iface: Watch,
    (ifindex, direction): (u32, u8),
    cpu: *mut Cpu,
    now_ns: u64,
    elsewhere: Option<u32>,
) -> Option<At> {
    let truth = hooked(cpu, iface.id, iface.epoch)?;
    // The verifier must see that the direction is 0 or 1.
    let direction_index = (opaque(u32::from(direction)) & 1) as usize;
    // SAFETY: a map value.
    let truth = computed(unsafe { (&raw mut (*truth).hook).cast::<HookTruth>().add(direction_index) });
    Some(At { iface, ifindex, direction, cpu, now_ns, truth, elsewhere })
}

/// What [`parse`] found: this kind, and above [`LENGTH_SHIFT`], of what is no flow, its bytes behind the link header.
pub const FOUND_V4: u32 = 0;
pub const FOUND_V6: u32 = 1;
const FOUND_NON_IP: u32 = 2;
const FOUND_MALFORMED: u32 = 3;
const LENGTH_SHIFT: u32 = 32;

/// Parses a frame into map memory. A function of its own: the verifier forgets all the ways through the parser when it
/// returns.
#[inline(never)]
pub fn parse<B: Bytes>(bytes: &B, frame: &Frame) -> u64 {
    let Some(cpu) = cpu() else { return u64::from(FOUND_MALFORMED) };
    // SAFETY: a map value of this CPU, large enough for either; hooks do not interrupt hooks.
    let parsed = unsafe { &raw mut (*cpu).parsed };
    match packet::parse(bytes, *frame) {
        Packet::V4(f) => {
            // SAFETY: as above.
            unsafe { parsed.cast::<Flow<Ip4>>().write(f) };
            u64::from(FOUND_V4)
        }
        Packet::V6(f) => {
            // SAFETY: as above.
            unsafe { parsed.cast::<Flow<Ip6>>().write(f) };
            u64::from(FOUND_V6)
        }
        Packet::NonIp(len) => u64::from(len) << LENGTH_SHIFT | u64::from(FOUND_NON_IP),
        Packet::Malformed(len) => u64::from(len) << LENGTH_SHIFT | u64::from(FOUND_MALFORMED),
    }
}

const _: () = assert!(size_of::<Flow<Ip6>>() <= PARSED_WORDS * 8);

/// Accounts for the packet that [`parse`] found.
#[inline(always)]
pub fn parsed<F: Family, H: Hook>(hook: &H, at: &At) {
    // SAFETY: what the parser has just written there, for this family.
    flow::<F, H, false>(hook, at, unsafe { &*(&raw const (*at.cpu).parsed).cast() });
}

/// Accounts for a frame of which [`parse`] has `found` that it is no flow. Every frame of a watched interface and direction
/// ends in `HookTruth::seen`, and in one of: a slot, a record, `non_ip`, `malformed`, `lost`.
#[inline(always)]
pub fn no_flow(at: &At, found: u64) {
    if at.elsewhere.is_some() {
        return;
    }
    let wire = Wire { packets: 1, bytes: (found >> LENGTH_SHIFT) as u32 };
    // SAFETY: pointers into the map value.
    unsafe {
        bump(&raw mut (*at.truth).seen, wire);
        if found as u32 == FOUND_NON_IP {
            bump(&raw mut (*at.truth).non_ip, wire);
        } else {
            bump(&raw mut (*at.truth).malformed, wire);
        }
    }
}

/// The key of a parsed packet.
#[inline(always)]
pub fn key_of<A: Copy>(f: &Flow<A>, iface: u16, flags: u8, reason: u16, epoch: u32) -> Key<A> {
    let meta = Meta { sport: f.sport, dport: f.dport, vlan: f.vlan, iface, reason, proto: f.proto, flags, epoch };
    Key { src: f.src, dst: f.dst, meta }
}

/// Accounts for one IP packet; `COMMON`: it is TCP or UDP, and has ports.
#[inline(always)]
pub fn flow<F: Family, H: Hook, const COMMON: bool>(hook: &H, at: &At, f: &Flow<F::Addr>) {
    let wire = hook.wire(f);
    let key = key_of(f, at.iface.id, Meta::pack(at.direction, class::PASSED), 0, at.iface.epoch);
    let begun = hook.note::<F>(at, &Seen { flow: f, key: &key, wire });
    let (place, before) = match at.elsewhere {
        None => enter::<F, H, COMMON>(at, &key, (wire, f.tcp_flags), &begun),
        Some(place) => (place << PLACE_BITS, NO_SLOT),
    };
    H::complete::<F>(begun, place, before);
}

/// A packet whose record may be new.
struct Fresh<'a, H: Hook, const COMMON: bool> {
    at: &'a At,
    key: &'a Meta,
    begun: &'a H::Begun,
}

impl<F: Family, H: Hook, const COMMON: bool> News<F> for Fresh<'_, H, COMMON> {
    #[inline(always)]
    fn always(&self) -> bool {
        !COMMON && told::is_shared(self.key)
    }

    #[inline(always)]
    unsafe fn tell(self, key: *const Key<F::Addr>, is_new: bool) -> u32 {
        if self.at.iface.flags & WANT_TRANSLATIONS == 0 {
            return 0;
        }
        // SAFETY: by the contract.
        unsafe { H::tell::<F>(self.begun, key, is_new) }
    }
}

/// What was in the slot before, for a packet that is in no slot.
const NO_SLOT: Before = Before { tcp_flags: 0, last_ns: 0 };

/// Counts a packet; returns where (`PLACE_*` and slot, as in [`flowlog_ebpf::abi::Note::place`]), and what was there before.
#[inline(always)]
fn enter<F: Family, H: Hook, const COMMON: bool>(
    at: &At,
    key: &Key<F::Addr>,
    (wire, tcp_flags): (Wire, u8),
    begun: &H::Begun,
) -> (u32, Before) {
    // SAFETY: a pointer into the map value.
    unsafe { bump(&raw mut (*at.truth).seen, wire) };
    // SAFETY: a map value of this CPU.
    let (seed, mask) = unsafe { ((*at.cpu).seed, (*at.cpu).passed_mask) };
    let index = slot_index(F::hash(seed, key), mask);
    let one = One { wire, tcp_flags, mark: 0, now_ns: at.now_ns };
    let (counted, place) = match F::passed(index) {
        Some(bank) if lock(at.cpu) => {
            let news = Fresh::<H, COMMON> { at, key: &key.meta, begun };
            // SAFETY: a bank of this CPU, and we hold the flag.
            let counted = unsafe { count::<F, false>(bank, index, key, &one, news) };
            unlock(at.cpu);
            (counted, PLACE_SLOT << PLACE_BITS)
        }
        _ => {
            H::not_told(at);
            (emit_alone::<F, false>(key, &one).then_some((NO_SLOT, 0)), PLACE_RECORD << PLACE_BITS)
        }
    };
    let Some((before, slot)) = counted else {
        // SAFETY: a pointer into the map value.
        unsafe { bump(&raw mut (*at.truth).lost, wire) };
        return (PLACE_LOST << PLACE_BITS, NO_SLOT);
    };
    (place | slot, before)
}
