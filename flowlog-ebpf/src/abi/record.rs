//! What is counted: flows, their counters, the caches they are in, and the blocks in which they go to the agent.

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
    /// Accepted, and died on its way: it is, and stays, in a PASSED record of the same window.
    pub const LOST: u8 = 5;
    /// No packets: says what the packets of the flow with this key have, or had, on the other side of an address translation
    /// ([`Side`](super::Side)). The drop reason is 0 of what passed, else 1.
    pub const TOLD: u8 = 6;
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
    /// `enum skb_drop_reason` of the running kernel (subsystem in the upper bits cut off); 0 if neither refused nor lost.
    pub reason: u16,
    /// Number of the upper-layer protocol (IANA), as in [`Flow::proto`](crate::packet::Flow::proto).
    pub proto: u8,
    /// Bit 0: direction ([`INGRESS`](super::INGRESS) or [`EGRESS`](super::EGRESS)); bits 1..: [`class`].
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

    /// Direction of the packets: [`INGRESS`](super::INGRESS) or [`EGRESS`](super::EGRESS).
    #[inline(always)]
    #[must_use]
    pub const fn direction(&self) -> u8 {
        self.flags & 1
    }

    /// What the packets are: one of the constants in [`class`].
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
    /// Ports, VLAN, interface, direction, class, drop reason, protocol and epoch.
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
    /// OR of all TCP flag octets, and the bits [`FLAGS_UNSURE`], [`OPENS`], [`ANSWERS`], [`ORIGINAL`] and [`REPLY`]. As wide as everything around it: a
    /// load of eight bytes must wait for a narrower store.
    pub tcp_flags: u32,
    /// Of refused packets: the mark that the firewall had given them, as far as it is wanted; 0: none. Packets of one flow with two
    /// marks make two records. Of what passed, with [`OPENS`] or [`ANSWERS`]: when that packet passed, `CLOCK_MONOTONIC` in
    /// microseconds, the lower 32 bits (they come again after 71 minutes). Of others it means nothing.
    pub tag: u32,
}

/// Addresses and ports on the other side of a translation: what a record of the class [`class::TOLD`] has in the place of its
/// counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Side {
    /// Source address in network order; an IPv4 address is in the first four bytes.
    pub src: Ip6,
    /// Destination address, likewise.
    pub dst: Ip6,
    /// Source port, host order; ICMP type and code are as in the key, which no translation changes.
    pub sport: u16,
    /// Destination port, host order.
    pub dport: u16,
}

impl Side {
    /// In the place of counters.
    #[inline(always)]
    #[must_use]
    pub const fn pack(&self) -> Stats {
        let Self { src, dst, sport, dport } = *self;
        let tcp_flags = (sport as u32) << 16 | dport as u32;
        Stats { first_ns: src[0], last_ns: src[1], bytes: dst[0], packets: dst[1], tcp_flags, tag: 0 }
    }

    /// What [`pack`](Self::pack) has packed.
    #[must_use]
    pub const fn unpack(stats: &Stats) -> Self {
        let Stats { first_ns, last_ns, bytes, packets, tcp_flags, tag: _ } = *stats;
        let sport = (tcp_flags >> 16) as u16;
        Self { src: [first_ns, last_ns], dst: [bytes, packets], sport, dport: tcp_flags as u16 }
    }
}

/// Bit of [`Stats::tcp_flags`]: a packet was taken back whose flags may be among these.
pub const FLAGS_UNSURE: u32 = 1 << 8;
/// Bit of [`Stats::tcp_flags`]: the record's first packet was a SYN, so the flow's source opened the connection.
pub const OPENS: u32 = 1 << 9;
/// Bit of [`Stats::tcp_flags`]: the record's first packet was a SYN with ACK, so the flow's source was asked.
pub const ANSWERS: u32 = 1 << 10;

/// Bit of [`Stats::tcp_flags`]: connection tracking says that the record's first packet went the way of the one that opened the connection.
/// Only where translations are wanted.
pub const ORIGINAL: u32 = 1 << 11;
/// Bit of [`Stats::tcp_flags`]: the same, the other way.
pub const REPLY: u32 = 1 << 12;

/// TCP's SYN and ACK, as bits of its flag octet (RFC 9293, section 3.1).
pub const SYN: u8 = 1 << 1;
const SYN_SHIFT: u32 = 1;
const ACK_SHIFT: u32 = 4;

/// [`OPENS`], [`ANSWERS`] or 0, for a record that begins with a packet of these TCP flags. Without a branch, which the verifier would
/// follow twice.
#[inline(always)]
#[must_use]
pub const fn handshake(tcp_flags: u8) -> u32 {
    let flags = tcp_flags as u32;
    let answers = flags >> ACK_SHIFT & 1;
    (flags >> SYN_SHIFT & 1) << 9 << answers
}

/// One cache slot, and byte for byte one record in a [`Block`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record<A> {
    /// Flow, class and epoch that the counters are of.
    pub key: Key<A>,
    /// What was counted for the key since the slot was last empty.
    pub stats: Stats,
}

/// IPv4 record: exactly one cache line.
pub type Record4 = Record<Ip4>;
/// IPv6 record: 88 bytes, more than one cache line.
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
    /// Number of records that follow: at most [`BLOCK4`] or [`BLOCK6`], by family.
    pub records: u32,
    /// Address family of the records: [`FAMILY_V4`] or [`FAMILY_V6`].
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

/// Result of one sweeper run.
pub mod sweep {
    /// Slots visited; nothing left in this chunk.
    pub const DONE: u32 = 0;
    /// A program of ours was interrupted on this CPU; try again.
    pub const BUSY: u32 = 1;
    /// The ring is full; drain it and try again.
    pub const RING_FULL: u32 = 2;
    /// `arg(1)` of the sweeper: the IPv4 flow cache.
    pub const PASSED4: u64 = 0;
    /// `arg(1)` of the sweeper: the IPv6 flow cache.
    pub const PASSED6: u64 = 1;
    /// `arg(1)` of the sweeper: the IPv4 cache of refused flows.
    pub const REFUSED4: u64 = 2;
    /// `arg(1)` of the sweeper: the IPv6 cache of refused flows.
    pub const REFUSED6: u64 = 3;
    /// `arg(1)` of the sweeper: no cache, it sends the CPU's blocks, full or not.
    pub const BLOCKS: u64 = 4;
    /// `arg(2)` of the sweeper: evict records of closed epochs.
    pub const CLOSED: u64 = 0;
    /// `arg(2)` of the sweeper: evict all records.
    pub const ALL: u64 = 1;
    /// `arg(2)` of the sweeper: evict records of closed epochs, and of interfaces whose flows somebody is looking at.
    pub const OBSERVED: u64 = 2;
    /// `arg(3)` of the sweeper: the caches are this CPU's. Else they are those of a CPU that is off, whose number plus one it is, and which the
    /// agent has taken ([`busy::AGENT`](super::busy::AGENT)).
    pub const HERE: u64 = 0;
}

const _: () = {
    assert!(handshake(0x02) == OPENS && handshake(0x12) == ANSWERS && handshake(0x10) == 0 && handshake(0xc2) == OPENS);
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
};
