//! Flow caches that were tried. One skeleton, so that each differs from `cache1` in one thing: ways, clock, hash, rule, or
//! size of the record. Each evicted record goes into the ring by itself. No rules, truth counters, lock or verdicts: what differs is the cache.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_RB_NO_WAKEUP, TC_ACT_UNSPEC},
    btf_maps::{Array, HashMap, PerCpuArray, RingBuf},
    helpers::generated::{bpf_get_hash_recalc, bpf_ktime_get_ns},
    macros::{btf_map, classifier},
    programs::TcContext,
};
use flowlog_ebpf::{
    abi::{IFINDEX_MAX, Ip4, Key, Record4},
    bench::CACHE_SLOTS,
    hash,
    packet::Flow,
};

use crate::baselines::{coarse_ns, key, parse, stats};

#[btf_map]
static CACHE: PerCpuArray<Record4, CACHE_SLOTS> = PerCpuArray::new();
/// Two records side by side: two cache lines, of which the second is prefetched with the first.
#[btf_map]
static CACHE2: PerCpuArray<[Record4; 2], { CACHE_SLOTS / 2 }> = PerCpuArray::new();
#[btf_map]
static CACHE4: PerCpuArray<[Record4; 4], { CACHE_SLOTS / 4 }> = PerCpuArray::new();
/// 88 bytes, as if one table held both families.
#[btf_map]
static CACHE_WIDE: PerCpuArray<Wide, CACHE_SLOTS> = PerCpuArray::new();
#[btf_map]
static RULE_ARRAY: Array<u64, { IFINDEX_MAX as usize }> = Array::new();
/// Filled by the benchmark.
#[btf_map]
static RULE_HASH: HashMap<u32, u64, 1_024> = HashMap::new();
#[btf_map]
static EVICTED: RingBuf<Record4, { 8 << 20 }> = RingBuf::new();

#[repr(C)]
struct Wide {
    record: Record4,
    rest: [u64; 3],
}

#[inline(always)]
unsafe fn same(a: *const Key<Ip4>, b: &Key<Ip4>) -> bool {
    // SAFETY: 24-byte keys without padding, aligned to 8.
    let (a, b) = unsafe { (&*a.cast::<[u64; 3]>(), &*core::ptr::from_ref(b).cast::<[u64; 3]>()) };
    ((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2])) == 0
}

#[inline(always)]
fn index(key: &Key<Ip4>) -> u32 {
    // SAFETY: as in `same`.
    let w = unsafe { &*core::ptr::from_ref(key).cast::<[u64; 3]>() };
    hash::words2(7, w[0], w[1] ^ (w[2] << 32)) as u32
}

#[inline(always)]
unsafe fn hit(slot: *mut Record4, f: &Flow<Ip4>, now: u64) {
    // SAFETY: the caller's map value of this CPU.
    unsafe {
        (*slot).stats.packets += 1;
        (*slot).stats.bytes += u64::from(f.l3_len);
        (*slot).stats.last_ns = now;
        (*slot).stats.tcp_flags |= u32::from(f.tcp_flags);
    }
}

#[inline(always)]
unsafe fn miss(slot: *mut Record4, key: &Key<Ip4>, f: &Flow<Ip4>, now: u64) {
    // SAFETY: the caller's map value of this CPU; the reserved bytes are ours.
    unsafe {
        if (*slot).stats.packets != 0 {
            let Some(mut entry) = EVICTED.reserve_untyped::<Record4>(0) else { return };
            *entry.as_mut_ptr() = *slot;
            entry.submit(u64::from(BPF_RB_NO_WAKEUP));
        }
        (*slot).key = *key;
        (*slot).stats = stats(f, now);
    }
}

#[inline(always)]
fn direct_mapped(slot: Option<*mut Record4>, key: &Key<Ip4>, f: &Flow<Ip4>, now: u64) {
    let Some(slot) = slot else { return };
    // SAFETY: a map value of this CPU.
    unsafe { if same(&raw const (*slot).key, key) { hit(slot, f, now) } else { miss(slot, key, f, now) } }
}

/// Direct-mapped: what flowlog used until it had pairs of slots.
#[classifier]
pub fn tc_cache1(ctx: TcContext) -> i32 {
    tc_cache1_body(&ctx)
}

/// Direct-mapped, with the exact clock (`bpf_ktime_get_ns`) instead of the coarse one.
#[classifier]
pub fn tc_cache1_exact_clock(ctx: TcContext) -> i32 {
    if let Some(f) = parse(&ctx) {
        let key = key(&f);
        // SAFETY: takes no arguments.
        let now = unsafe { bpf_ktime_get_ns() };
        direct_mapped(CACHE.get_ptr_mut(index(&key) & (CACHE_SLOTS as u32 - 1)), &key, &f, now);
    }
    TC_ACT_UNSPEC
}

/// No clock at all: what reading it costs.
#[classifier]
pub fn tc_cache1_no_clock(ctx: TcContext) -> i32 {
    if let Some(f) = parse(&ctx) {
        let key = key(&f);
        direct_mapped(CACHE.get_ptr_mut(index(&key) & (CACHE_SLOTS as u32 - 1)), &key, &f, 1);
    }
    TC_ACT_UNSPEC
}

/// `skb->hash`, computed by the kernel where the NIC has not. (The packet of a test run keeps the first one it got, so
/// this shows the cost for one flow only.)
#[classifier]
pub fn tc_cache1_skb_hash(ctx: TcContext) -> i32 {
    if let Some(f) = parse(&ctx) {
        let key = key(&f);
        // SAFETY: the context pointer.
        let hash = unsafe { bpf_get_hash_recalc(ctx.as_ptr().cast::<__sk_buff>()) };
        direct_mapped(CACHE.get_ptr_mut(hash & (CACHE_SLOTS as u32 - 1)), &key, &f, coarse_ns());
    }
    TC_ACT_UNSPEC
}

/// Slots that are not cache lines.
#[classifier]
pub fn tc_cache1_wide(ctx: TcContext) -> i32 {
    if let Some(f) = parse(&ctx) {
        let key = key(&f);
        let slot = CACHE_WIDE.get_ptr_mut(index(&key) & (CACHE_SLOTS as u32 - 1));
        direct_mapped(slot.map(<*mut Wide>::cast), &key, &f, coarse_ns());
    }
    TC_ACT_UNSPEC
}

/// A rule looked up by ifindex in an array.
#[classifier]
pub fn tc_cache1_rule_array(ctx: TcContext) -> i32 {
    // SAFETY: the context pointer.
    let ifindex = unsafe { (*ctx.as_ptr().cast::<__sk_buff>()).ifindex };
    if RULE_ARRAY.get(ifindex).is_some_and(|rule| *rule == 0) {
        return tc_cache1_body(&ctx);
    }
    TC_ACT_UNSPEC
}

/// A rule looked up by ifindex in a hash table.
#[classifier]
pub fn tc_cache1_rule_hash(ctx: TcContext) -> i32 {
    // SAFETY: the context pointer.
    let ifindex = unsafe { (*ctx.as_ptr().cast::<__sk_buff>()).ifindex };
    if RULE_HASH.get_ptr(&ifindex).is_some() {
        return tc_cache1_body(&ctx);
    }
    TC_ACT_UNSPEC
}

#[inline(always)]
fn tc_cache1_body(ctx: &TcContext) -> i32 {
    if let Some(f) = parse(ctx) {
        let key = key(&f);
        direct_mapped(CACHE.get_ptr_mut(index(&key) & (CACHE_SLOTS as u32 - 1)), &key, &f, coarse_ns());
    }
    TC_ACT_UNSPEC
}

/// Looks in `WAYS` slots; a miss takes the one with the fewest packets.
#[inline(always)]
unsafe fn ways<const WAYS: usize>(set: *mut Record4, key: &Key<Ip4>, f: &Flow<Ip4>, now: u64) {
    // SAFETY: the caller's map value of this CPU, WAYS records long.
    unsafe {
        let mut victim = set;
        let mut fewest = u64::MAX;
        for way in 0..WAYS {
            let slot = set.add(way);
            if same(&raw const (*slot).key, key) {
                return hit(slot, f, now);
            }
            if (*slot).stats.packets < fewest {
                fewest = (*slot).stats.packets;
                victim = slot;
            }
        }
        miss(victim, key, f, now);
    }
}

/// Two slots for each hash: a miss evicts the record with fewer packets. What flowlog uses, whose flows look into the slot of their own first,
/// and which lets go of what has had no packet for a second.
#[classifier]
pub fn tc_cache2(ctx: TcContext) -> i32 {
    if let Some(f) = parse(&ctx) {
        let key = key(&f);
        if let Some(set) = CACHE2.get_ptr_mut(index(&key) & (CACHE_SLOTS as u32 / 2 - 1)) {
            // SAFETY: a map value of two records.
            unsafe { ways::<2>(set.cast(), &key, &f, coarse_ns()) };
        }
    }
    TC_ACT_UNSPEC
}

/// Four slots for each hash: a miss evicts the record with the fewest packets.
#[classifier]
pub fn tc_cache4(ctx: TcContext) -> i32 {
    if let Some(f) = parse(&ctx) {
        let key = key(&f);
        if let Some(set) = CACHE4.get_ptr_mut(index(&key) & (CACHE_SLOTS as u32 / 4 - 1)) {
            // SAFETY: a map value of four records.
            unsafe { ways::<4>(set.cast(), &key, &f, coarse_ns()) };
        }
    }
    TC_ACT_UNSPEC
}
