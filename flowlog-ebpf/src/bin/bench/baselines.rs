//! What flowlog is compared with: the floor, and the usual ways to keep flows in BPF maps.
//!
//! Written for this purpose. Except for [`tc_hash_peer`], they use flowlog's parser, key and clock, so that only the
//! table differs; they know no rules, no truth counters, no verdicts and one direction, all of which would cost more.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        __sk_buff, BPF_NOEXIST, BPF_RB_NO_WAKEUP, TC_ACT_UNSPEC, bpf_spin_lock as SpinLock,
        xdp_action::{XDP_DROP, XDP_PASS},
    },
    btf_maps::{HashMap, LruHashMap, PerCpuArray, RingBuf},
    helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns, bpf_spin_lock, bpf_spin_unlock},
    macros::{btf_map, btf_tracepoint, classifier, xdp},
    programs::{BtfTracePointContext, TcContext, XdpContext},
};
use flowlog_ebpf::{
    abi::{Ip4, Key, Record4, Stats},
    bench::TABLE_ENTRIES,
    packet::{self, Flow, Frame, Packet},
};

use crate::{atomic::atomic_add, frame::Direct};

/// As peers have it: one table for both families, IPv4 mapped into IPv6.
#[repr(C)]
#[derive(Clone, Copy)]
struct MappedKey {
    src: [u32; 4],
    dst: [u32; 4],
    ports: u32,
    proto: u32,
    ifindex: u32,
}

#[repr(C)]
struct Locked {
    lock: SpinLock,
    pad: u32,
    stats: Stats,
}

#[btf_map]
static HASH: HashMap<Key<Ip4>, Stats, TABLE_ENTRIES> = HashMap::new();
#[btf_map]
static HASH_PEER: HashMap<MappedKey, Stats, TABLE_ENTRIES> = HashMap::new();
#[btf_map]
static HASH_LOCKED: HashMap<Key<Ip4>, Locked, TABLE_ENTRIES> = HashMap::new();
#[btf_map]
static LRU: LruHashMap<Key<Ip4>, Stats, TABLE_ENTRIES> = LruHashMap::new();
#[btf_map]
static RECORDS: RingBuf<Record4, { 8 << 20 }> = RingBuf::new();

/// The cheapest possible program.
#[classifier]
pub fn tc_empty(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// The cheapest possible program.
#[xdp(frags)]
pub fn xdp_empty(_ctx: XdpContext) -> u32 {
    XDP_PASS
}

/// The cheapest firewall.
#[xdp(frags)]
pub fn xdp_drop(_ctx: XdpContext) -> u32 {
    XDP_DROP
}

/// The cheapest possible program.
#[btf_tracepoint(function = "kfree_skb")]
pub fn verdict_empty(_ctx: BtfTracePointContext) -> i32 {
    0
}

/// Parses an IPv4 packet as flowlog does.
#[inline(always)]
pub fn parse(ctx: &TcContext) -> Option<Flow<Ip4>> {
    // SAFETY: the context pointer.
    let (len, vlan_tci) =
        unsafe { ((*ctx.as_ptr().cast::<__sk_buff>()).len, (*ctx.as_ptr().cast::<__sk_buff>()).vlan_tci as u16) };
    let direct = Direct { data: ctx.data(), end: ctx.data_end() };
    match packet::parse(&direct, Frame { len, vlan_tci, link_header: true }) {
        Packet::V4(f) => Some(f),
        _ => None,
    }
}

/// The key, put together in words: with constants among its members, LLVM would merge stores across word boundaries,
/// which the verifier refuses on the stack. (No upstream issue is known as of 2026-11.)
#[inline(always)]
pub fn key(f: &Flow<Ip4>) -> Key<Ip4> {
    let words = [
        u64::from(f.src) | u64::from(f.dst) << 32,
        u64::from(f.sport) | u64::from(f.dport) << 16 | u64::from(f.vlan) << 32 | 1 << 48,
        u64::from(f.proto) << 16 | 1 << 32,
    ];
    // SAFETY: a key is three words without padding; any bits are valid.
    unsafe { core::mem::transmute::<[u64; 3], Key<Ip4>>(words) }
}

#[inline(always)]
pub fn stats(f: &Flow<Ip4>, now_ns: u64) -> Stats {
    Stats {
        first_ns: now_ns,
        last_ns: now_ns,
        bytes: u64::from(f.l3_len),
        packets: 1,
        tcp_flags: u32::from(f.tcp_flags),
        tag: 0,
    }
}

/// The tick that a time is of, and the time: see `clock.rs` of flowlog's programs.
#[btf_map]
static CLOCK: PerCpuArray<[u64; 2], 1> = PerCpuArray::new();

/// flowlog's clock, so that only the tables differ.
#[inline(always)]
pub fn coarse_ns() -> u64 {
    let Some(clock) = CLOCK.get_ptr_mut(0) else { return 0 };
    // SAFETY: takes no arguments.
    let tick = unsafe { bpf_jiffies64() };
    // SAFETY: a map value of this CPU; the helper takes no arguments.
    unsafe {
        if (*clock)[0] != tick {
            *clock = [tick, bpf_ktime_get_coarse_ns()];
        }
        (*clock)[1]
    }
}

/// Adds one packet to a shared value.
///
/// # Safety
/// `s` must point to a map value.
#[inline(always)]
unsafe fn add_shared(s: *mut Stats, f: &Flow<Ip4>, now_ns: u64) {
    // SAFETY: by the contract above.
    unsafe {
        atomic_add(&raw mut (*s).packets, 1);
        atomic_add(&raw mut (*s).bytes, u64::from(f.l3_len));
        (*s).last_ns = now_ns;
        (*s).tcp_flags |= u32::from(f.tcp_flags);
    }
}

/// Parses, but counts nothing: what the parser alone costs.
#[classifier]
pub fn tc_parse(ctx: TcContext) -> i32 {
    if let Some(f) = parse(&ctx) {
        // Keeps the compiler from leaving the parser out.
        core::hint::black_box(key(&f));
    }
    TC_ACT_UNSPEC
}

/// Preallocated hash table, atomic additions.
#[classifier]
pub fn tc_hash(ctx: TcContext) -> i32 {
    if let Some(f) = parse(&ctx) {
        let key = key(&f);
        let now = coarse_ns();
        match HASH.get_ptr_mut(&key) {
            // SAFETY: a map value.
            Some(s) => unsafe { add_shared(s, &f, now) },
            None => HASH.insert(&key, &stats(&f, now), u64::from(BPF_NOEXIST)).unwrap_or(()),
        }
    }
    TC_ACT_UNSPEC
}

/// As peers do it: preallocated hash table, mapped addresses, the exact clock, a parser for plain IPv4 and UDP.
#[classifier]
pub fn tc_hash_peer(ctx: TcContext) -> i32 {
    let data = ctx.data();
    let end = ctx.data_end();
    if data + 42 > end {
        return TC_ACT_UNSPEC;
    }
    // SAFETY: within the packet; the context pointer; takes no arguments.
    let (word, half, ifindex, len, now) = unsafe {
        (
            |at: usize| ((data + at) as *const u32).read_unaligned(),
            |at: usize| ((data + at) as *const u16).read_unaligned(),
            (*ctx.as_ptr().cast::<__sk_buff>()).ifindex,
            (*ctx.as_ptr().cast::<__sk_buff>()).len,
            bpf_ktime_get_ns(),
        )
    };
    if half(12) != 0x0800u16.to_be() {
        return TC_ACT_UNSPEC;
    }
    let mapped = |address: u32| [0, 0, 0xffff_0000, address];
    let proto = u32::from(half(22).to_be() & 0xff);
    let key = MappedKey { src: mapped(word(26)), dst: mapped(word(30)), ports: word(34), proto, ifindex };
    match HASH_PEER.get_ptr_mut(&key) {
        // SAFETY: a map value.
        Some(s) => unsafe {
            atomic_add(&raw mut (*s).packets, 1);
            atomic_add(&raw mut (*s).bytes, u64::from(len));
            (*s).last_ns = now;
        },
        None => {
            let first = Stats { first_ns: now, last_ns: now, bytes: u64::from(len), packets: 1, ..NOTHING };
            HASH_PEER.insert(&key, &first, u64::from(BPF_NOEXIST)).unwrap_or(());
        }
    }
    TC_ACT_UNSPEC
}

const NOTHING: Stats = Stats { first_ns: 0, last_ns: 0, bytes: 0, packets: 0, tcp_flags: 0, tag: 0 };

/// Preallocated hash table, a spin lock in each value.
#[classifier]
pub fn tc_hash_locked(ctx: TcContext) -> i32 {
    if let Some(f) = parse(&ctx) {
        let key = key(&f);
        let now = coarse_ns();
        match HASH_LOCKED.get_ptr_mut(&key) {
            // SAFETY: a map value with its lock.
            Some(value) => unsafe {
                let s = &raw mut (*value).stats;
                bpf_spin_lock(&raw mut (*value).lock);
                (*s).packets += 1;
                (*s).bytes += u64::from(f.l3_len);
                (*s).last_ns = now;
                (*s).tcp_flags |= u32::from(f.tcp_flags);
                bpf_spin_unlock(&raw mut (*value).lock);
            },
            None => {
                let first = Locked { lock: SpinLock { val: 0 }, pad: 0, stats: stats(&f, now) };
                HASH_LOCKED.insert(&key, &first, u64::from(BPF_NOEXIST)).unwrap_or(());
            }
        }
    }
    TC_ACT_UNSPEC
}

/// LRU hash table: bounded, and silently forgetful.
#[classifier]
pub fn tc_lru(ctx: TcContext) -> i32 {
    if let Some(f) = parse(&ctx) {
        let key = key(&f);
        let now = coarse_ns();
        match LRU.get_ptr_mut(&key) {
            // SAFETY: a map value.
            Some(s) => unsafe { add_shared(s, &f, now) },
            None => LRU.insert(&key, &stats(&f, now), u64::from(BPF_NOEXIST)).unwrap_or(()),
        }
    }
    TC_ACT_UNSPEC
}

/// No table: a ring record for each packet.
#[classifier]
pub fn tc_ring(ctx: TcContext) -> i32 {
    if let Some(f) = parse(&ctx) {
        let now = coarse_ns();
        if let Some(mut entry) = RECORDS.reserve_untyped::<Record4>(0) {
            let record = entry.as_mut_ptr();
            // SAFETY: the reserved bytes are ours.
            unsafe {
                (*record).key = key(&f);
                (*record).stats = stats(&f, now);
            }
            entry.submit(u64::from(BPF_RB_NO_WAKEUP));
        }
    }
    TC_ACT_UNSPEC
}
