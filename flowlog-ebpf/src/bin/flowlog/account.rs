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
        BANK_SLOTS, BLOCK4 as SIZE4, BLOCK6 as SIZE6, BlockHeader, Count, Cpu, EPOCHS, FAMILY_V4, FAMILY_V6, HookTruth,
        Iface, Ip4, Ip6, Key, Meta, Record, SEEN_ENTRIES, SEEN_LOST, SEEN_RECORD, SEEN_SLOT_BITS, SEEN_V4, SEEN_V6,
        Seen, Stats, Truth, class,
    },
    hash,
    packet::{self, Bytes, Flow, Frame, Packet},
};

use crate::{
    block,
    maps::{BLOCK4, BLOCK6, Bank, CPU, IFACES, PASSED_MASK, PASSED4, PASSED6, REFUSED4, REFUSED6, SEED, TRUTH},
};

/// What differs between the IPv4 and the IPv6 tables.
pub trait Family {
    /// Address type of the key.
    type Addr: Copy + 'static;
    /// `SEEN_V4` or `SEEN_V6`.
    const PLACE: u32;
    /// `FAMILY_V4` or `FAMILY_V6`.
    const FAMILY: u32;
    /// Records in a full block.
    const BLOCK: u32;
    /// Slot of the flow cache.
    fn passed(index: u32) -> Option<*mut Record<Self::Addr>>;
    /// Slot of the refused cache.
    fn refused(index: u32) -> Option<*mut Record<Self::Addr>>;
    /// Head of the block that is being filled.
    fn block() -> Option<*mut BlockHeader>;
    /// Flow hash, without the epoch: a flow keeps its slot across windows.
    fn hash(key: &Key<Self::Addr>) -> u64;
    /// Key comparison by words.
    ///
    /// # Safety
    /// `slot` must point to a key.
    unsafe fn same(slot: *const Key<Self::Addr>, key: &Key<Self::Addr>) -> bool;
}

/// A slot in its bank.
#[inline(always)]
fn slot<R>(bank: *mut Bank<R>, index: u32) -> Option<*mut R> {
    // SAFETY: a map value; the index is below the length of a bank.
    Some(unsafe { bank.cast::<R>().add((index & (BANK_SLOTS - 1)) as usize) })
}

/// IPv4 tables.
pub enum V4 {}
/// IPv6 tables.
pub enum V6 {}

impl Family for V4 {
    type Addr = Ip4;
    const PLACE: u32 = SEEN_V4;
    const FAMILY: u32 = FAMILY_V4;
    const BLOCK: u32 = SIZE4 as u32;
    #[inline(always)]
    fn passed(index: u32) -> Option<*mut Record<Ip4>> {
        slot(PASSED4.get_ptr_mut(index / BANK_SLOTS)?, index)
    }
    #[inline(always)]
    fn refused(index: u32) -> Option<*mut Record<Ip4>> {
        slot(REFUSED4.get_ptr_mut(index / BANK_SLOTS)?, index)
    }
    #[inline(always)]
    fn block() -> Option<*mut BlockHeader> {
        BLOCK4.get_ptr_mut(0).map(<*mut _>::cast)
    }
    #[inline(always)]
    fn hash(key: &Key<Ip4>) -> u64 {
        // SAFETY: the key is 24 bytes with no padding, aligned to 8.
        let w = unsafe { &*core::ptr::from_ref(key).cast::<[u64; 3]>() };
        // The third word holds reason, protocol, flags and the epoch; keep the part below the epoch.
        hash::words2(SEED.load(), w[0], w[1] ^ (w[2] << 32))
    }
    #[inline(always)]
    unsafe fn same(slot: *const Key<Ip4>, key: &Key<Ip4>) -> bool {
        // SAFETY: both are 24-byte keys without padding, aligned to 8.
        let (a, b) = unsafe { (&*slot.cast::<[u64; 3]>(), &*core::ptr::from_ref(key).cast::<[u64; 3]>()) };
        ((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2])) == 0
    }
}

impl Family for V6 {
    type Addr = Ip6;
    const PLACE: u32 = SEEN_V6;
    const FAMILY: u32 = FAMILY_V6;
    const BLOCK: u32 = SIZE6 as u32;
    #[inline(always)]
    fn passed(index: u32) -> Option<*mut Record<Ip6>> {
        slot(PASSED6.get_ptr_mut(index / BANK_SLOTS)?, index)
    }
    #[inline(always)]
    fn refused(index: u32) -> Option<*mut Record<Ip6>> {
        slot(REFUSED6.get_ptr_mut(index / BANK_SLOTS)?, index)
    }
    #[inline(always)]
    fn block() -> Option<*mut BlockHeader> {
        BLOCK6.get_ptr_mut(0).map(<*mut _>::cast)
    }
    #[inline(always)]
    fn hash(key: &Key<Ip6>) -> u64 {
        // SAFETY: the key is 48 bytes with no padding, aligned to 8.
        let w = unsafe { &*core::ptr::from_ref(key).cast::<[u64; 6]>() };
        hash::words5(SEED.load(), w[0], w[1], w[2], w[3], w[4] ^ (w[5] << 32))
    }
    #[inline(always)]
    unsafe fn same(slot: *const Key<Ip6>, key: &Key<Ip6>) -> bool {
        // SAFETY: both are 48-byte keys without padding, aligned to 8.
        let (a, b) = unsafe { (&*slot.cast::<[u64; 6]>(), &*core::ptr::from_ref(key).cast::<[u64; 6]>()) };
        ((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) | (a[4] ^ b[4]) | (a[5] ^ b[5])) == 0
    }
}

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

/// Counts one packet in a slot, evicting another flow's record first. `false`: the ring is full, nothing counted.
///
/// # Safety
/// As [`evict`].
#[inline(always)]
pub unsafe fn count<F: Family>(slot: *mut Record<F::Addr>, key: &Key<F::Addr>, p: &One) -> bool {
    // SAFETY: by the contract above.
    unsafe {
        if F::same(&raw const (*slot).key, key) {
            let s = &mut (*slot).stats;
            s.packets += u64::from(p.wire.packets);
            s.bytes += u64::from(p.wire.bytes);
            s.last_ns = p.now_ns;
            s.tcp_flags |= u32::from(p.tcp_flags);
            return true;
        }
        if !evict::<F>(slot) {
            return false;
        }
        (*slot).key = *key;
        (*slot).stats = p.stats();
    }
    true
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

/// Index into [`Cpu::skbs`] and [`Cpu::seen`] for a buffer address. Buffers come from a slab, so the low bits carry nothing.
#[inline(always)]
pub const fn seen_index(skb: u64, direction: u8) -> u32 {
    let h = (skb >> 6).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - SEEN_ENTRIES.trailing_zeros());
    h as u32 + direction as u32 * SEEN_ENTRIES
}

/// A frame at a hook.
pub trait Hook {
    /// Ifindex and address of the buffer; `None` if there is none (XDP).
    fn buffer(&self, cpu: *mut Cpu) -> Option<(u32, u64)>;
    /// Wire packets and bytes of a packet with these lengths.
    fn wire(&self, l3_len: u32, headers: u32) -> Wire;
}

/// What a hook knows before it looks at the packet. Gathered first: every helper call and look-up clobbers half of the
/// registers, and what the packet brings would have to be kept on the stack meanwhile.
pub struct At {
    pub iface: Iface,
    pub direction: u8,
    truth: *mut HookTruth,
    cpu: *mut Cpu,
    now_ns: u64,
}

/// Looks up a frame's interface and its witness counters. `None`: nobody wants this direction of this interface.
#[inline(always)]
pub fn at(ifindex: u32, direction: u8, want: u16) -> Option<At> {
    // Coarse: the time of the last timer tick, good to a few ms, at a third of the cost of the exact clock.
    // SAFETY: takes no arguments.
    let now_ns = unsafe { bpf_ktime_get_coarse_ns() };
    let iface = *IFACES.get(ifindex)?;
    if iface.flags & want == 0 {
        return None;
    }
    let truth = truth(iface.id, iface.epoch)?;
    let cpu = cpu()?;
    // SAFETY: a map value; the direction is 0 or 1.
    let truth = unsafe { (&raw mut (*truth).hook).cast::<HookTruth>().add(usize::from(direction & 1)) };
    Some(At { iface, direction, truth, cpu, now_ns })
}

/// Accounts for one frame of any kind. Every frame of a watched interface and direction ends in `HookTruth::seen`, and
/// in one of: a slot, a record, `non_ip`, `malformed`, `lost`.
#[inline(always)]
pub fn frame<H: Hook, B: Bytes>(hook: &H, at: &At, bytes: &B, frame: Frame) {
    match packet::parse(bytes, frame) {
        Packet::V4(f) => flow::<V4, H>(hook, at, &f),
        Packet::V6(f) => flow::<V6, H>(hook, at, &f),
        // SAFETY: pointers into the map value.
        Packet::NonIp(len) => unsafe {
            bump(&raw mut (*at.truth).seen, Wire { packets: 1, bytes: len });
            bump(&raw mut (*at.truth).non_ip, Wire { packets: 1, bytes: len });
        },
        // SAFETY: pointers into the map value.
        Packet::Malformed(len) => unsafe {
            bump(&raw mut (*at.truth).seen, Wire { packets: 1, bytes: len });
            bump(&raw mut (*at.truth).malformed, Wire { packets: 1, bytes: len });
        },
    }
}

/// The key of a parsed packet.
#[inline(always)]
pub fn key_of<A: Copy>(f: &Flow<A>, iface: u16, flags: u8, reason: u16, epoch: u32) -> Key<A> {
    let meta = Meta { sport: f.sport, dport: f.dport, vlan: f.vlan, iface, reason, proto: f.proto, flags, epoch };
    Key { src: f.src, dst: f.dst, meta }
}

/// Forgets what was noted about the buffer that a hook sees.
#[inline(always)]
pub fn forget_note<H: Hook>(hook: &H, direction: u8) {
    let Some(cpu) = cpu() else { return };
    let Some((_, skb)) = hook.buffer(cpu) else { return };
    let index = seen_index(skb, direction) as usize & (2 * SEEN_ENTRIES as usize - 1);
    // SAFETY: a map value of this CPU; the index is below the array's length.
    unsafe { (&raw mut (*cpu).skbs).cast::<u64>().add(index).write(0) };
}

/// Accounts for one IP packet.
#[inline(always)]
pub fn flow<F: Family, H: Hook>(hook: &H, at: &At, f: &Flow<F::Addr>) {
    let (cpu, w) = (at.cpu, hook.wire(f.l3_len, f.headers));
    // SAFETY: a pointer into the map value.
    unsafe { bump(&raw mut (*at.truth).seen, w) };
    let key = key_of(f, at.iface.id, Meta::pack(at.direction, class::PASSED), 0, at.iface.epoch);
    let (index, tag) = split(F::hash(&key), PASSED_MASK.load());
    let one = One { wire: w, tcp_flags: f.tcp_flags, tag, now_ns: at.now_ns };
    let (counted, place) = match F::passed(index) {
        Some(slot) if lock(cpu) => {
            // SAFETY: a slot of this CPU, and we hold the flag.
            let counted = unsafe { count::<F>(slot, &key, &one) };
            unlock(cpu);
            (counted, F::PLACE << SEEN_SLOT_BITS | index)
        }
        _ => (emit_alone::<F>(&key, &one), SEEN_RECORD << SEEN_SLOT_BITS),
    };
    if !counted {
        // SAFETY: a pointer into the map value.
        unsafe { bump(&raw mut (*at.truth).lost, w) };
    }
    if let Some((ifindex, skb)) = hook.buffer(cpu) {
        let place = if counted { place } else { SEEN_LOST << SEEN_SLOT_BITS };
        let (packets, ifindex) = (w.packets as u16, ifindex as u16);
        let note = Seen { place, tag, bytes: w.bytes, epoch: at.iface.epoch, packets, ifindex };
        let index = seen_index(skb, at.direction) as usize & (2 * SEEN_ENTRIES as usize - 1);
        // SAFETY: a map value of this CPU; the index is below the length of both arrays.
        unsafe {
            (*cpu).now_ns = at.now_ns;
            (&raw mut (*cpu).skbs).cast::<u64>().add(index).write(skb);
            (&raw mut (*cpu).seen).cast::<Seen>().add(index).write(note);
        }
    }
}
