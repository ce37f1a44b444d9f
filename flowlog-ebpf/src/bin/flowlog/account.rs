//! Truth counters and the flow cache.
//!
//! The cache is a per-CPU, direct-mapped array. A hit adds to its slot; a miss first moves the old record into the
//! CPU's block ([`crate::block`]), then takes the slot. If the ring is full the slot keeps its flow and the packet is
//! counted as lost: a packet is always in exactly one of {a slot, a block, the ring, a loss counter}.
//!
//! Three contexts share a CPU's caches: softirq (hooks), process context (verdicts of locally made packets), and
//! the sweeper. Whoever finds [`Cpu::busy`] set sends its packet as a record of its own and touches nothing.

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use flowlog_ebpf::{
    abi::{
        Count, Cpu, EPOCHS, HookTruth, Iface, Ip4, Ip6, Key, Meta, ONLY_NOTED, PARSED_WORDS, PLACE_BITS, PLACE_LOST,
        PLACE_NOWHERE, PLACE_RECORD, PLACE_SLOT, PLACE_XDP, Record, Stats, Truth, class,
    },
    packet::{self, Bytes, Flow, Frame, Packet},
};

pub use crate::family::{Family, V4, V6};
use crate::{
    block,
    maps::{CPU, IFACES, PASSED_MASK, TRUTH},
};

/// Packets and bytes of one packet as the kernel carries it.
#[derive(Clone, Copy)]
pub struct Wire {
    pub packets: u32,
    pub bytes: u32,
}

/// One packet as the cache takes it.
pub struct One {
    pub wire: Wire,
    pub tcp_flags: u8,
    /// Upper half of the flow hash.
    pub tag: u32,
    pub now_ns: u64,
}

impl One {
    #[inline(always)]
    fn stats(&self) -> Stats {
        Stats {
            first_ns: self.now_ns,
            last_ns: self.now_ns,
            bytes: u64::from(self.wire.bytes),
            packets: u64::from(self.wire.packets),
            tcp_flags: u32::from(self.tcp_flags),
            tag: self.tag,
        }
    }
}

/// Adds to a counter. Only programs on this CPU write it, and never two at once (see the module's head).
///
/// # Safety
/// `count` must point into a map value.
#[inline(always)]
pub unsafe fn bump(count: *mut Count, wire: Wire) {
    // SAFETY: by the contract above.
    unsafe {
        (*count).packets += u64::from(wire.packets);
        (*count).bytes += u64::from(wire.bytes);
    }
}

/// Witness counters of an interface and epoch on this CPU.
#[inline(always)]
pub fn truth(id: u16, epoch: u32) -> Option<*mut Truth> {
    TRUTH.get_ptr_mut(u32::from(id) * EPOCHS + epoch % EPOCHS)
}

/// The watched interface with this ifindex.
#[inline(always)]
pub fn iface(ifindex: u32) -> Option<&'static Iface> {
    IFACES.get(ifindex).filter(|iface| iface.id != 0)
}

/// Copies a record word by word. (A plain assignment becomes a call of `memmove`, which here is a loop over bytes.)
///
/// # Safety
/// Both must point to records, aligned to 8.
#[inline(always)]
unsafe fn copy<A>(from: *const Record<A>, to: *mut Record<A>) {
    for word in 0..size_of::<Record<A>>() / 8 {
        // SAFETY: within the record. Volatile, so that LLVM does not see the assignment through.
        unsafe { to.cast::<u64>().add(word).write_volatile(from.cast::<u64>().add(word).read_volatile()) };
    }
}

/// Moves a slot's record into the CPU's block and empties the slot. `false`: the ring is full, the slot is unchanged.
///
/// # Safety
/// `slot` must be a cache slot of this CPU, and the caller must hold `busy`.
#[inline(always)]
pub unsafe fn evict<F: Family>(slot: *mut Record<F::Addr>) -> bool {
    // SAFETY: by the contract above.
    unsafe {
        // A slot whose packets were all taken back by the verdict program has nothing to tell.
        if (*slot).key.meta.iface != 0 && (*slot).stats.packets != 0 {
            let Some(room) = block::room::<F>() else { return false };
            copy(slot, room);
        }
        (*slot).key.meta.iface = 0;
        (*slot).stats.packets = 0;
    }
    true
}

/// What was in its slot before a packet, so that it can be taken back.
/// As wide as each other: the verifier refuses copies of padding.
#[derive(Clone, Copy)]
pub struct Before {
    /// TCP flags.
    pub tcp_flags: u64,
    /// Time of the latest packet.
    pub last_ns: u64,
}

/// Counts one packet in a slot, evicting another flow's record first. `None`: the ring is full, nothing counted.
///
/// # Safety
/// As [`evict`].
#[inline(always)]
pub unsafe fn count<F: Family>(slot: *mut Record<F::Addr>, key: &Key<F::Addr>, p: &One) -> Option<Before> {
    // SAFETY: by the contract above.
    unsafe {
        if F::same(&raw const (*slot).key, key) {
            let s = &mut (*slot).stats;
            s.packets += u64::from(p.wire.packets);
            s.bytes += u64::from(p.wire.bytes);
            let before = Before { tcp_flags: u64::from(s.tcp_flags), last_ns: s.last_ns };
            s.last_ns = p.now_ns;
            s.tcp_flags = before.tcp_flags as u32 | u32::from(p.tcp_flags);
            return Some(before);
        }
        if !evict::<F>(slot) {
            return None;
        }
        (*slot).key = *key;
        (*slot).stats = p.stats();
    }
    Some(Before { tcp_flags: 0, last_ns: p.now_ns })
}

/// Sends one packet as a record of its own. `false`: the ring is full.
#[inline(always)]
pub fn emit_alone<F: Family>(key: &Key<F::Addr>, p: &One) -> bool {
    block::send_one(F::FAMILY, key, &p.stats())
}

/// Keeps the compiler from moving memory accesses across: volatile orders only volatile accesses, and the slot's must
/// stay between `lock` and `unlock`. (`compiler_fence` is the portable way, but LLVM's BPF back end has none.)
#[inline(always)]
fn compiler_barrier() {
    // SAFETY: no instructions.
    unsafe { core::arch::asm!("", options(nostack, preserves_flags)) };
}

/// Scratch state of this CPU.
#[inline(always)]
pub fn cpu() -> Option<*mut Cpu> {
    CPU.get_ptr_mut(0)
}

/// Takes this CPU's caches. `false`: somebody we interrupted has them.
#[inline(always)]
pub fn lock(cpu: *mut Cpu) -> bool {
    // SAFETY: a map value. Volatile, so that the stores stay around what they guard. An interrupt between the
    // load and the store is harmless: it takes and gives back the flag before we go on.
    unsafe {
        let busy = &raw mut (*cpu).busy;
        if busy.read_volatile() != 0 {
            return false;
        }
        busy.write_volatile(1);
    }
    compiler_barrier();
    true
}

/// Gives the caches back.
#[inline(always)]
pub fn unlock(cpu: *mut Cpu) {
    compiler_barrier();
    // SAFETY: `cpu` came from `lock`.
    unsafe { (&raw mut (*cpu).busy).write_volatile(0) };
}

/// Slot and tag of a hash.
#[inline(always)]
pub const fn split(hash: u64, mask: u32) -> (u32, u32) {
    (hash as u32 & mask, (hash >> 32) as u32)
}

/// The address of an `sk_buff` as a number. It goes through a map value, because the verifier allows no arithmetic on
/// such a pointer but lets a privileged program store one.
///
/// # Safety
/// `cell` must lie in a map value of this CPU that nothing which interrupts the caller uses.
#[inline(always)]
pub unsafe fn address(cell: *mut u64, pointer: u64) -> u64 {
    // SAFETY: by the contract above.
    unsafe {
        cell.write_volatile(pointer);
        cell.read_volatile()
    }
}

/// A frame at a hook.
pub trait Hook {
    /// A note that is not complete.
    type Begun;
    /// Notes a packet for the verdict program; nothing where there is no buffer yet (XDP). Before it is counted: then the
    /// registers still hold what there is to write.
    fn note<F: Family>(&self, at: &At, packet: &Noted<'_, F::Addr>) -> Self::Begun;
    /// Notes where it was counted.
    fn complete<F: Family>(begun: Self::Begun, place: u32, before: Before);
    /// Wire packets and bytes of a packet with these lengths.
    fn wire(&self, l3_len: u32, headers: u32) -> Wire;
}

/// What a hook knows of a packet.
pub struct Noted<'a, A> {
    /// The packet.
    pub flow: &'a Flow<A>,
    /// Its key.
    pub key: &'a Key<A>,
    /// How much it is.
    pub wire: Wire,
}

/// What a hook knows before it looks at the packet. Gathered first: every helper call and look-up clobbers half of the
/// registers, and what the packet brings would have to be kept on the stack meanwhile.
pub struct At {
    pub iface: Iface,
    pub ifindex: u32,
    pub direction: u8,
    pub cpu: *mut Cpu,
    pub now_ns: u64,
    truth: *mut HookTruth,
    /// Where packets are that are only noted here: `PLACE_NOWHERE` or `PLACE_XDP`. `None`: they are counted here.
    elsewhere: Option<u32>,
}

/// What a hook does for an interface: bits of [`Iface::flags`].
#[derive(Clone, Copy)]
pub struct Want {
    /// Packets are counted.
    pub counts: u16,
    /// Packets are noted at least.
    pub notes: u16,
    /// A hook of another kind counts them: this one only notes.
    pub elsewhere: u16,
}

/// Looks up a frame's interface and its witness counters. `None`: its packets are not counted here.
#[inline(always)]
pub fn counting(ifindex: u32, direction: u8, want: Want) -> Option<At> {
    // Coarse: the time of the last timer tick, good to a few ms, at a third of the cost of the exact clock.
    // SAFETY: takes no arguments.
    let now_ns = unsafe { bpf_ktime_get_coarse_ns() };
    let iface = *IFACES.get(ifindex)?;
    if iface.flags & (want.counts | want.elsewhere) != want.counts {
        return None;
    }
    found(iface, (ifindex, direction), now_ns, None)
}

/// As [`counting`], where packets are only noted. `None`: nobody wants this direction of this interface.
#[inline(always)]
pub fn noting(ifindex: u32, direction: u8, want: Want) -> Option<At> {
    // SAFETY: takes no arguments.
    let now_ns = unsafe { bpf_ktime_get_coarse_ns() };
    let iface = *IFACES.get(ifindex)?;
    if iface.flags & (want.counts | want.notes) == 0 {
        return None;
    }
    let place = if iface.flags & want.counts != 0 { PLACE_XDP } else { PLACE_NOWHERE };
    if place == PLACE_NOWHERE && iface.flags & ONLY_NOTED != 0 {
        // The watch begins or ends: what is refused now is nobody's.
        return None;
    }
    found(iface, (ifindex, direction), now_ns, Some(place))
}

/// Either of the two.
#[inline(always)]
pub fn at(ifindex: u32, direction: u8, want: Want) -> Option<At> {
    counting(ifindex, direction, want).or_else(|| noting(ifindex, direction, want))
}

#[inline(always)]
fn found(iface: Iface, (ifindex, direction): (u32, u8), now_ns: u64, elsewhere: Option<u32>) -> Option<At> {
    let truth = truth(iface.id, iface.epoch)?;
    let cpu = cpu()?;
    // SAFETY: a map value; the direction is 0 or 1.
    let truth = unsafe { (&raw mut (*truth).hook).cast::<HookTruth>().add(usize::from(direction & 1)) };
    Some(At { iface, ifindex, direction, cpu, now_ns, truth, elsewhere })
}

/// What [`parse`] found: this kind, and above [`LENGTH_SHIFT`], of what is no flow, its bytes behind the link header.
pub const FOUND_V4: u32 = 0;
/// See [`FOUND_V4`].
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
    flow::<F, H>(hook, at, unsafe { &*(&raw const (*at.cpu).parsed).cast() });
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

/// Accounts for one IP packet.
#[inline(always)]
pub fn flow<F: Family, H: Hook>(hook: &H, at: &At, f: &Flow<F::Addr>) {
    let wire = hook.wire(f.l3_len, f.headers);
    let key = key_of(f, at.iface.id, Meta::pack(at.direction, class::PASSED), 0, at.iface.epoch);
    let begun = hook.note::<F>(at, &Noted { flow: f, key: &key, wire });
    let (place, before) = match at.elsewhere {
        None => enter::<F>(at, &key, wire, f.tcp_flags),
        Some(place) => (place << PLACE_BITS, NO_SLOT),
    };
    H::complete::<F>(begun, place, before);
}

/// Of a packet that is in no slot.
const NO_SLOT: Before = Before { tcp_flags: 0, last_ns: 0 };

/// Counts a packet; returns where (`PLACE_*` and slot, as in [`flowlog_ebpf::abi::Note::place`]), and what was there before.
#[inline(always)]
fn enter<F: Family>(at: &At, key: &Key<F::Addr>, wire: Wire, tcp_flags: u8) -> (u32, Before) {
    // SAFETY: a pointer into the map value.
    unsafe { bump(&raw mut (*at.truth).seen, wire) };
    let (index, tag) = split(F::hash(key), PASSED_MASK.load());
    let one = One { wire, tcp_flags, tag, now_ns: at.now_ns };
    let (counted, place) = match F::passed(index) {
        Some(slot) if lock(at.cpu) => {
            // SAFETY: a slot of this CPU, and we hold the flag.
            let counted = unsafe { count::<F>(slot, key, &one) };
            unlock(at.cpu);
            (counted, PLACE_SLOT << PLACE_BITS | index)
        }
        _ => (emit_alone::<F>(key, &one).then_some(NO_SLOT), PLACE_RECORD << PLACE_BITS),
    };
    let Some(before) = counted else {
        // SAFETY: a pointer into the map value.
        unsafe { bump(&raw mut (*at.truth).lost, wire) };
        return (PLACE_LOST << PLACE_BITS, NO_SLOT);
    };
    (place, before)
}
