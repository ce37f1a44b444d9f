//! The kernel/user ABI: every struct that crosses the boundary, with its size pinned by an assertion.
//!
//! A change to any layout or to the meaning of a field must raise [`ABI_VERSION`]; the assertions at the end of the file
//! remind whoever changes a layout.

/// Version of everything in this file. It names the pin directory, so that two ABIs never share a map.
pub const ABI_VERSION: u32 = 4;

/// Ingress: the packet enters the interface that is being watched.
pub const INGRESS: u8 = 0;
/// Egress: the packet leaves through the interface that is being watched.
pub const EGRESS: u8 = 1;

/// Epochs whose truth counters exist side by side: current, closing, and two of slack for a slow agent.
pub const EPOCHS: u32 = 4;

/// Ifindexes are looked up in a flat array of this size: a lookup is then one load. Linux hands them out
/// ascending, so a node needs 65,535 interface creations to get past it; what is past it is refused by name.
pub const IFINDEX_MAX: u32 = 65_536;

/// Packets that passed a hook that each CPU remembers, for each direction. A receive batch is at
/// most 64 packets (`NAPI_POLL_WEIGHT`); eight times that leaves room for buffers whose addresses collide.
pub const SEEN_ENTRIES: u32 = 512;

/// Default slots of the per-CPU flow cache; the loader overrides it. Must be a power of two.
pub const CACHE_SLOTS_DEFAULT: u32 = 16_384;
/// Default slots of the per-CPU cache for refused flows. Must be a power of two.
pub const REFUSED_SLOTS_DEFAULT: u32 = 4_096;
/// Default size of the ring buffer in bytes. Must be a power of two and a multiple of the page size.
pub const RING_BYTES_DEFAULT: u32 = 8 << 20;
/// Smallest ring buffer: a few blocks.
pub const RING_BYTES_MIN: u32 = 16 << 10;

/// Slots in one element of a cache map. Per-CPU elements are found through an array of pointers: with one slot each, that
/// array is an eighth as large as the cache itself, and every look-up misses twice. An element has at most 32 KiB.
pub const BANK_SLOTS: u32 = 256;

/// Slots one run of the sweeper visits: about 20 us with interrupts off.
pub const SWEEP_CHUNK: u32 = 512;

/// A hook is attached for ingress.
pub const WANT_INGRESS: u16 = 1 << 0;
/// A hook is attached for egress.
pub const WANT_EGRESS: u16 = 1 << 1;
/// Refused packets on their way in are wanted.
pub const WANT_REFUSED_INGRESS: u16 = 1 << 2;
/// Refused packets on their way out are wanted.
pub const WANT_REFUSED_EGRESS: u16 = 1 << 3;
/// The device has no link-layer header (tun, wireguard): frames start with the IP header.
pub const NO_LINK_HEADER: u16 = 1 << 4;
/// The device is a bridge: it is never the port a bridged packet was refused on.
pub const IS_BRIDGE: u16 = 1 << 5;
/// Only refusals of packets that a hook has noted count: for the moments at which hooks begin and end, when packets are
/// on their way that no hook has counted.
pub const ONLY_NOTED: u16 = 1 << 6;

/// What a record's packets are, in [`Meta::class`].
///
/// A refused packet may or may not have been counted by a hook before it died; the class says how the agent must
/// treat it so that accepted + refused + lost stays equal to what was seen (promise P1).
pub mod class {
    /// Passed a hook. Accepted unless a later record says otherwise.
    pub const PASSED: u8 = 0;
    /// Refused; in no other count (never reached a hook, or already taken out of its flow by the kernel).
    pub const REFUSED: u8 = 1;
    /// Refused, but still contained in a PASSED record of the same window: subtract it there.
    pub const REFUSED_COUNTED: u8 = 2;
    /// Refused, and its PASSED count went into the hook's `lost` counter: subtract it there.
    pub const REFUSED_LOST: u8 = 3;
    /// Refused after the window in which it passed the hook was closed: the row stands, nothing to subtract.
    pub const REFUSED_LATE: u8 = 4;
}

/// The part of a flow key that does not depend on the address family.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Meta {
    /// Source port, host order. For ICMP and `ICMPv6`: the type. 0 for later fragments.
    pub sport: u16,
    /// Destination port, host order. For ICMP and `ICMPv6`: the code. 0 for later fragments.
    pub dport: u16,
    /// Outermost VLAN id, 0 if untagged.
    pub vlan: u16,
    /// Id of the watched interface, 1-based; 0 marks an empty slot.
    pub iface: u16,
    /// `enum skb_drop_reason` of the running kernel (subsystem in the upper bits cut off); 0 if not refused.
    pub reason: u16,
    /// IP protocol number.
    pub proto: u8,
    /// Bit 0: direction ([`INGRESS`] or [`EGRESS`]); bits 1..: [`class`].
    pub flags: u8,
    /// The window the packet passed in. Part of the key, so that a packet of a new window evicts the old record.
    pub epoch: u32,
}

impl Meta {
    /// Packs direction and class into [`Meta::flags`].
    #[inline(always)]
    #[must_use]
    pub const fn pack(direction: u8, class: u8) -> u8 {
        direction | (class << 1)
    }

    /// [`INGRESS`] or [`EGRESS`].
    #[inline(always)]
    #[must_use]
    pub const fn direction(&self) -> u8 {
        self.flags & 1
    }

    /// One of [`class`].
    #[inline(always)]
    #[must_use]
    pub const fn class(&self) -> u8 {
        self.flags >> 1
    }
}

/// An IPv4 address as it lies in the packet: bytes in network order, held as one word so that it is copied and compared
/// as one.
pub type Ip4 = u32;
/// An IPv6 address, likewise.
pub type Ip6 = [u64; 2];

/// Flow key; `A` is [`Ip4`] or [`Ip6`]. Aligned so that it compares as `u64` words.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Key<A> {
    /// Source address as seen on the interface.
    pub src: A,
    /// Destination address as seen on the interface.
    pub dst: A,
    /// Everything else.
    pub meta: Meta,
}

/// Counters of one flow in one window.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// First packet, `CLOCK_MONOTONIC_COARSE` ns.
    pub first_ns: u64,
    /// Last packet, `CLOCK_MONOTONIC_COARSE` ns.
    pub last_ns: u64,
    /// Layer-3 bytes as on the wire (segments of a GSO packet each count their headers).
    pub bytes: u64,
    /// Packets as on the wire (a GSO packet counts its segments).
    pub packets: u64,
    /// OR of all TCP flag octets. As wide as everything around it: a load of eight bytes must wait for a narrower store.
    pub tcp_flags: u32,
    /// Upper half of the flow hash: recognises a slot that another flow took over.
    pub tag: u32,
}

/// One cache slot, and byte for byte one record in a [`Block`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record<A> {
    /// Whose counters.
    pub key: Key<A>,
    /// The counters.
    pub stats: Stats,
}

/// IPv4 record: exactly one cache line.
pub type Record4 = Record<Ip4>;
/// IPv6 record.
pub type Record6 = Record<Ip6>;

/// IPv4 records in a full block: 4 KiB.
pub const BLOCK4: usize = 64;
/// IPv6 records in a full block: 4 KiB, nearly.
pub const BLOCK6: usize = 46;
/// [`BlockHeader::family`] of IPv4 records.
pub const FAMILY_V4: u32 = 4;
/// [`BlockHeader::family`] of IPv6 records.
pub const FAMILY_V6: u32 = 6;

/// Head of every entry of the ring.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockHeader {
    /// Records that follow.
    pub records: u32,
    /// [`FAMILY_V4`] or [`FAMILY_V6`].
    pub family: u32,
}

/// Records on their way to the agent. Each CPU fills one of each family and sends it when it is full: one reservation
/// in the ring, one copy and one commit for all of them. A block may be sent with fewer records than `N`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block<A, const N: usize> {
    /// How many, and of which family.
    pub header: BlockHeader,
    /// The first `header.records` of them count.
    pub records: [Record<A>; N],
}

/// A full block of IPv4 records.
pub type Block4 = Block<Ip4, BLOCK4>;
/// A full block of IPv6 records.
pub type Block6 = Block<Ip6, BLOCK6>;

/// Packets and layer-3 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Wire packets.
    pub packets: u64,
    /// Wire layer-3 bytes.
    pub bytes: u64,
}

/// What a hook did with every frame it saw, for one direction. Written only by the hook programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HookTruth {
    /// Every frame, bumped before anything that can fail.
    pub seen: Count,
    /// Of these: not IP (ARP, LLDP, …); never a flow.
    pub non_ip: Count,
    /// Of these: IP that cannot be parsed (truncated, bad header length, header chain too long).
    pub malformed: Count,
    /// Of these: the ring was full, so the packet is in no record.
    pub lost: Count,
}

/// What the verdict program did with every refused packet, for one direction. Written only by that program.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerdictTruth {
    /// Every refused packet.
    pub refused: Count,
    /// Of these: a hook had counted it (in `HookTruth::seen` of the same window).
    pub seen: Count,
    /// Of these: the ring was full; no record, but taken out of its flow where it was in one.
    pub lost: Count,
    /// Of these: the ring was full and the packet is still in a PASSED record or in the hook's `lost`.
    pub lost_counted: Count,
    /// Of these: refused after the window of its hook count was closed.
    pub late: Count,
}

/// Witness counters of one interface and epoch on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Truth {
    /// By direction.
    pub hook: [HookTruth; 2],
    /// By direction, then by whether the program had the CPU's caches to itself: one that has interrupted another
    /// counts into a set of its own, so that no addition is lost.
    pub verdict: [[VerdictTruth; 2]; 2],
}

impl Truth {
    /// All counters, in the order of their declaration.
    pub fn counts(&self) -> impl Iterator<Item = Count> + '_ {
        let hooks = self.hook.iter().flat_map(|h| [h.seen, h.non_ip, h.malformed, h.lost]);
        let verdicts = self.verdict.iter().flatten().flat_map(|v| [v.refused, v.seen, v.lost, v.lost_counted, v.late]);
        hooks.chain(verdicts)
    }

    /// All counters, in the same order.
    pub fn counts_mut(&mut self) -> impl Iterator<Item = &mut Count> {
        let hooks = self.hook.iter_mut().flat_map(|h| [&mut h.seen, &mut h.non_ip, &mut h.malformed, &mut h.lost]);
        let verdicts = self
            .verdict
            .iter_mut()
            .flatten()
            .flat_map(|v| [&mut v.refused, &mut v.seen, &mut v.lost, &mut v.lost_counted, &mut v.late]);
        hooks.chain(verdicts)
    }
}

/// A watched interface, at index `ifindex` of the `IFACES` array. All zero: not watched.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Iface {
    /// Id used in keys and truth counters; 0: not watched.
    pub id: u16,
    /// `WANT_*`, [`NO_LINK_HEADER`], [`IS_BRIDGE`].
    pub flags: u16,
    /// Current epoch.
    pub epoch: u32,
    /// Oldest epoch that may still be written to.
    pub oldest: u32,
    /// Ifindex of the device stacked on this one (bridge, VLAN, bond), 0 if none: the stack re-labels a packet with it.
    pub upper: u32,
}

/// A packet that passed a hook on this CPU, kept so that the verdict program can take it back. Its buffer's address is
/// beside it, in [`Cpu::skbs`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Where it was counted: `SEEN_*` in the upper 4 bits, the cache slot in the lower 28.
    pub place: u32,
    /// [`Stats::tag`] of that slot.
    pub tag: u32,
    /// Wire layer-3 bytes the hook counted for it.
    pub bytes: u32,
    /// Epoch the hook counted it in.
    pub epoch: u32,
    /// Wire packets the hook counted for it (the kernel keeps the segments of a buffer in 16 bits).
    pub packets: u16,
    /// Interface whose hook counted it ([`IFINDEX_MAX`] fits).
    pub ifindex: u16,
}

/// Bits of [`Seen::place`] that hold the slot.
pub const SEEN_SLOT_BITS: u32 = 28;
/// [`Seen::place`]: in the IPv4 cache.
pub const SEEN_V4: u32 = 1;
/// [`Seen::place`]: in the IPv6 cache.
pub const SEEN_V6: u32 = 2;
/// [`Seen::place`]: in a record of its own.
pub const SEEN_RECORD: u32 = 3;
/// [`Seen::place`]: in the `lost` counter.
pub const SEEN_LOST: u32 = 4;

/// Scratch state of one CPU: in one map value, since every look-up costs a nanosecond. A per-CPU value has at most 32 KiB.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// A program of ours is changing this CPU's caches right now.
    pub busy: u64,
    /// A pointer on its way to becoming a number (the verifier refuses arithmetic on it before). For hooks.
    pub pointer: u64,
    /// When the last packet passed a hook.
    pub now_ns: u64,
    /// Addresses of the buffers of the packets in `seen`; one half for each direction.
    pub skbs: [u64; 2 * SEEN_ENTRIES as usize],
    /// Packets that passed a hook.
    pub seen: [Seen; 2 * SEEN_ENTRIES as usize],
}

/// Entries of [`Dying::handled`]: events can nest three deep (process, softirq, hardirq); the rest is for collisions.
pub const HANDLED: usize = 64;

/// Scratch state of the verdict programs on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dying {
    /// As [`Cpu::pointer`], one for each of the two programs: they can interrupt each other and the hooks.
    pub pointers: [u64; 2],
    /// Buffers the first verdict program has handled and the second has not yet seen.
    pub handled: [u64; HANDLED],
}

/// Offsets of kernel struct members, resolved from the running kernel's BTF at load time (bytes).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelOffsets {
    /// `sk_buff.dev`
    pub skb_dev: u32,
    /// `sk_buff.skb_iif`
    pub skb_iif: u32,
    /// `sk_buff.len`
    pub skb_len: u32,
    /// `sk_buff.data_len`
    pub skb_data_len: u32,
    /// `sk_buff.head`
    pub skb_head: u32,
    /// `sk_buff.data`
    pub skb_data: u32,
    /// `sk_buff.end`
    pub skb_end: u32,
    /// `sk_buff.network_header`
    pub skb_network_header: u32,
    /// `sk_buff.protocol`
    pub skb_protocol: u32,
    /// `sk_buff._skb_refdst`
    pub skb_refdst: u32,
    /// `sk_buff.vlan_tci`
    pub skb_vlan_tci: u32,
    /// `skb_shared_info.gso_size`
    pub shinfo_gso_size: u32,
    /// `skb_shared_info.gso_segs`
    pub shinfo_gso_segs: u32,
    /// `net_device.ifindex`
    pub dev_ifindex: u32,
    /// `net_device.nd_net`
    pub dev_net: u32,
    /// `net.ns.inum`
    pub net_inum: u32,
    /// `dst_entry.dev`
    pub dst_dev: u32,
}

/// What a set of maps was made for, written once when it is made.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Setup {
    /// The programs' hash seed: programs that share maps share it.
    pub seed: u64,
    /// Inode of the network namespace that the agent lives in.
    pub netns_inum: u32,
    /// Slots of the flow cache for each CPU.
    pub passed_slots: u32,
    /// Slots of the refused cache for each CPU.
    pub refused_slots: u32,
    /// [`ABI_VERSION`].
    pub abi_version: u32,
}

/// Index in the `VERDICTS` array of the program that runs first for every drop.
pub const VERDICT_FIRST: u32 = 0;
/// Index of the program that handles what interrupted the first.
pub const VERDICT_NESTED: u32 = 1;
/// Entries of the `VERDICTS` array.
pub const VERDICTS: u32 = 2;

/// `REASONS` value of drop reasons that count as REJECT.
pub const REASON_REFUSED: u8 = 1;
/// As [`REASON_REFUSED`], dropped by a tc program on ingress: our hook may or may not have run before it.
pub const REASON_TC_INGRESS: u8 = 2;
/// As [`REASON_REFUSED`], dropped by a tc program on egress: our hook may or may not have run before it.
pub const REASON_TC_EGRESS: u8 = 3;
/// As [`REASON_REFUSED`], dropped by generic XDP, always before the tc hook.
pub const REASON_XDP: u8 = 4;

/// The kernel drops without a reason; refused if the place it was dropped at is generic XDP (as [`REASON_XDP`]).
pub const REASON_BY_PLACE: u8 = 5;

/// Entries of the `REASONS` array (one byte each): 4 subsystems of 256 reasons.
pub const REASONS: u32 = 1_024;

/// Index into the `REASONS` array. `skb_drop_reason` keeps the subsystem in the upper 16 bits
/// (`include/net/dropreason.h`).
#[inline(always)]
#[must_use]
pub const fn reason_index(reason: u32) -> u32 {
    (((reason >> 16) & 3) << 8) | (reason & 0xff)
}

/// Result of one sweeper run.
pub mod sweep {
    /// Slots visited; nothing left in this chunk.
    pub const DONE: u32 = 0;
    /// A program of ours was interrupted on this CPU; try again.
    pub const BUSY: u32 = 1;
    /// The ring is full; drain it and try again.
    pub const RING_FULL: u32 = 2;
    /// `arg(1)` of the sweeper: which cache.
    pub const PASSED4: u64 = 0;
    /// See [`PASSED4`].
    pub const PASSED6: u64 = 1;
    /// See [`PASSED4`].
    pub const REFUSED4: u64 = 2;
    /// See [`PASSED4`].
    pub const REFUSED6: u64 = 3;
    /// No cache: sends the CPU's blocks, full or not.
    pub const BLOCKS: u64 = 4;
}

const _: () = {
    assert!(size_of::<Meta>() == 16);
    assert!(size_of::<Key<Ip4>>() == 24);
    assert!(size_of::<Key<Ip6>>() == 48);
    assert!(size_of::<Stats>() == 40);
    assert!(size_of::<Record4>() == 64);
    assert!(size_of::<Record6>() == 88);
    assert!(core::mem::offset_of!(Record4, stats) == 24);
    assert!(core::mem::offset_of!(Record6, stats) == 48);
    assert!(BANK_SLOTS as usize * size_of::<Record6>() <= 32 << 10);
    assert!(size_of::<Block4>() == 8 + 4_096);
    assert!(size_of::<Block6>() == 8 + 4_048);
    assert!(core::mem::offset_of!(Block4, records) == 8);
    assert!(size_of::<Truth>() == 2 * 64 + 4 * 80);
    assert!(size_of::<Iface>() == 16);
    assert!(core::mem::offset_of!(Iface, epoch) == 4);
    assert!(core::mem::offset_of!(Iface, oldest) == 8);
    assert!(size_of::<Seen>() == 20);
    assert!(size_of::<Cpu>() == 24 + 1_024 * 28 && size_of::<Cpu>() <= 32 << 10);
    assert!(IFINDEX_MAX - 1 <= u16::MAX as u32);
    assert!(size_of::<KernelOffsets>() == 17 * 4);
    assert!(size_of::<Setup>() == 24);
};
