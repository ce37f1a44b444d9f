//! Every map and load-time constant. Sizes given here are defaults that the loader overrides.

use aya_ebpf::{
    Global,
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, HashMap, PerCpuArray, ProgramArray, RingBuf},
    helpers::generated::bpf_map_lookup_percpu_elem,
    macros::btf_map,
};
use flowlog_ebpf::abi::{
    ABOVE_MAX, BANK_SLOTS, BEHIND_MAX, Block4, Block6, CACHE_SLOTS_DEFAULT, ConnectionPlace, Cpu,
    DATAGRAMS as DATAGRAM_COUNT, Datagram, Dying, ELSEWHERE_TC as TC_COUNT, ELSEWHERE_XDP as XDP_COUNT, EPOCHS, Hooked,
    Iface, Judged, KernelOffsets, MarkPlace, NextHop, RANGES_MAX, REASONS as REASON_COUNT, REFUSED_SLOTS_DEFAULT,
    RING_BYTES_DEFAULT, Range, Record4, Record6, SPOTS, Setup, Stacked, Taken, Traced, VERDICTS as VERDICT_COUNT,
    Watched,
};

/// Memory-mapped by the agent, so that an epoch changes in one store and never by a byte-wise copy.
const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

/// Watched interfaces, each at its spot: see [`flowlog_ebpf::abi::Range`].
#[btf_map]
pub static IFACES: Array<Iface, { SPOTS as usize }, MMAPABLE> = Array::new();

/// Where the interfaces of other network namespaces are in [`IFACES`]: what is added to their ifindexes.
#[btf_map]
pub static BASES: HashMap<Range, u32, { RANGES_MAX as usize }> = HashMap::new();

/// The hooks that run on interfaces of other network namespaces: what is attached there jumps to them. And what is jumped to while a hook is
/// put in front of other people's programs ([`crate::again`]).
#[btf_map]
pub static ELSEWHERE_TC: ProgramArray<{ TC_COUNT as usize }> = ProgramArray::new();

/// The same for XDP.
#[btf_map]
pub static ELSEWHERE_XDP: ProgramArray<{ XDP_COUNT as usize }> = ProgramArray::new();

/// The foreign XDP program that ours runs: each of ours has an array of its own, made by hand, in the place of this one.
#[btf_map]
pub static WRAPPED: ProgramArray<1> = ProgramArray::new();

/// The frame that a foreign XDP program has on this CPU, while it is traced.
#[btf_map]
pub static TRACED: PerCpuArray<Traced, 1> = PerCpuArray::new();

/// What foreign XDP programs took, by interface id.
#[btf_map]
pub static TAKEN: PerCpuArray<Taken, 2> = PerCpuArray::new();

/// Which interfaces are stacked on which, directly or through others. The stack re-labels a packet when it climbs.
#[btf_map]
pub static ABOVE: HashMap<Stacked, u32, { ABOVE_MAX as usize }> = HashMap::new();

/// Which next hops are behind which watched ports of bridges.
#[btf_map]
pub static BEHIND: HashMap<NextHop, u32, { BEHIND_MAX as usize }> = HashMap::new();

/// Datagrams in fragments, at their hash.
#[btf_map]
pub static DATAGRAMS: Array<Datagram, { DATAGRAM_COUNT as usize }> = Array::new();

/// Where watched interfaces are, and their current epochs, by id. Same size as [`JUDGED`] / [`EPOCHS`].
#[btf_map]
pub static WATCHED: Array<Watched, 2, MMAPABLE> = Array::new();

/// Witness counters of hooks: see [`Hooked`].
#[btf_map]
pub static HOOKED: Array<Hooked, { 2 * EPOCHS as usize }, MMAPABLE> = Array::new();

/// Witness counters of verdicts: see [`Judged`].
#[btf_map]
pub static JUDGED: PerCpuArray<Judged, { 2 * EPOCHS as usize }> = PerCpuArray::new();

/// Scratch state of each CPU, at its number.
#[btf_map]
pub static CPU: Array<Cpu, 1, MMAPABLE> = Array::new();

/// Scratch state of the verdict programs on this CPU.
#[btf_map]
pub static DYING: PerCpuArray<Dying, 1> = PerCpuArray::new();

/// Slots of a cache, as many as one map element holds.
pub type Bank<R> = [R; BANK_SLOTS as usize];

/// Flow cache of IPv4, one per CPU; an element is a bank of slots. Per CPU: its memory is near the CPU then, which an array's is not.
#[btf_map]
pub static PASSED4: PerCpuArray<Bank<Record4>, { (CACHE_SLOTS_DEFAULT / BANK_SLOTS) as usize }> = PerCpuArray::new();
/// Flow cache of IPv6, likewise.
#[btf_map]
pub static PASSED6: PerCpuArray<Bank<Record6>, { (CACHE_SLOTS_DEFAULT / BANK_SLOTS) as usize }> = PerCpuArray::new();
/// Cache of refused flows, IPv4.
#[btf_map]
pub static REFUSED4: PerCpuArray<Bank<Record4>, { (REFUSED_SLOTS_DEFAULT / BANK_SLOTS) as usize }> = PerCpuArray::new();
/// Cache of refused flows, IPv6.
#[btf_map]
pub static REFUSED6: PerCpuArray<Bank<Record6>, { (REFUSED_SLOTS_DEFAULT / BANK_SLOTS) as usize }> = PerCpuArray::new();

/// IPv4 records of this CPU on their way to the ring.
#[btf_map]
pub static BLOCK4: PerCpuArray<Block4, 1> = PerCpuArray::new();
/// IPv6 records of this CPU on their way to the ring.
#[btf_map]
pub static BLOCK6: PerCpuArray<Block6, 1> = PerCpuArray::new();

/// An element of a per-CPU array as another CPU has it.
#[inline(always)]
pub fn of_cpu<T, const N: usize>(map: *const PerCpuArray<T, N>, index: u32, cpu: u32) -> Option<*mut T> {
    // SAFETY: a map of ours, and a key of its type.
    let element = unsafe { bpf_map_lookup_percpu_elem(map.cast_mut().cast(), (&raw const index).cast(), cpu) };
    (!element.is_null()).then_some(element.cast())
}

/// What kind of drop a reason is: 0 (not a firewall's) or `REASON_*`.
#[btf_map]
pub static REASONS: Array<u8, { REASON_COUNT as usize }> = Array::new();

/// Blocks of evicted records, for the agent.
#[btf_map]
pub static RING: RingBuf<Block4, { RING_BYTES_DEFAULT as usize }> = RingBuf::new();

/// The verdict programs that are in use: see `verdict.rs`.
#[btf_map]
pub static VERDICTS: ProgramArray<{ VERDICT_COUNT as usize }> = ProgramArray::new();

/// What this set of maps was made for. Only the agent reads it: to tell whether it can go on with a set it finds.
#[btf_map]
pub static SETUP: Array<Setup, 1> = Array::new();

/// Where members of kernel structs are. The loader sets it from the running kernel's BTF.
#[unsafe(no_mangle)]
pub static OFFSETS: Global<KernelOffsets> = Global::new(KernelOffsets::ZERO);

/// Inode number of the agent's own network namespace.
#[unsafe(no_mangle)]
pub static OWN_NETNS: Global<u32> = Global::new(0);

/// Arguments of the tracepoint `kfree_skb`: the fourth (Linux 6.11) is the socket that the packet was for.
#[unsafe(no_mangle)]
pub static DROP_ARGUMENTS: Global<u32> = Global::new(3);

/// Bits of a packet's number that count: those above tell the CPUs apart (`abi::Cpu::owner`).
#[unsafe(no_mangle)]
pub static SEQUENCE_BITS: Global<u32> = Global::new(8);

/// Kernel text of generic XDP: first address, last address, and the drop reason to record. Its drops carry no
/// reason of their own.
#[unsafe(no_mangle)]
pub static XDP_PLACE: Global<[u64; 3]> = Global::new([0; 3]);

/// Kernel text of IPv4's routes to nowhere, likewise.
#[unsafe(no_mangle)]
pub static ROUTE_PLACE: Global<[u64; 3]> = Global::new([1, 0, 0]);

/// Where a refused packet's mark is.
#[unsafe(no_mangle)]
pub static MARK: Global<MarkPlace> = Global::new(MarkPlace { mask: 0, skb: 0, is_connection: 0, connection: 0 });

/// Where connection tracking keeps what it knows of a packet.
#[unsafe(no_mangle)]
pub static CONNECTION: Global<ConnectionPlace> =
    Global::new(ConnectionPlace { skb: 0, status: 0, tuples: 0, stride: 0 });

/// Length of the kernel's timer tick in ns.
#[unsafe(no_mangle)]
pub static TICK_NS: Global<u64> = Global::new(0);

/// Slots of the refused cache less one.
#[unsafe(no_mangle)]
pub static REFUSED_MASK: Global<u32> = Global::new(REFUSED_SLOTS_DEFAULT - 1);

/// Ring fill in bytes at which the agent is woken; below it, the agent's timer comes first.
#[unsafe(no_mangle)]
pub static RING_WAKE_BYTES: Global<u64> = Global::new(RING_BYTES_DEFAULT as u64 / 4);

/// Ring fill in bytes from which on it is no longer woken: it has been.
#[unsafe(no_mangle)]
pub static RING_WAKE_END_BYTES: Global<u64> = Global::new(RING_BYTES_DEFAULT as u64 / 2);
