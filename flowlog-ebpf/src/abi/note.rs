//! Notes: which packet passed which hook; and the scratch state of each CPU, in which they are.

use super::{FAMILY_V4, FAMILY_V6, Ip4, Ip6, Key};

/// Notes that each CPU keeps of the packets that passed its hooks, in a circle. A receive batch is at most 64 packets
/// (`NAPI_POLL_WEIGHT`), and one packet passes a few hooks before it is delivered or dies.
pub const NOTES: u32 = 256;

/// Notes of one packet that are followed: an interface, and what is stacked on it (port, bond, VLAN, bridge, macvlan).
pub const CHAIN_MAX: u32 = 6;

/// Datagrams in fragments that are remembered at the same time, for all CPUs. Must be a power of two. As many as wait for
/// their last fragments; two that meet in one place have their verdicts counted as unknown.
pub const DATAGRAMS: u32 = 1_024;

/// A packet that passed a hook: who it was, where it was counted, and as what. One cache line.
///
/// The packet carries the note's number in `skb->tc_index`, a field that is zero in every new buffer and that clones and copies take
/// over. Between here and a firewall's verdict only other traffic control writes it; where there is any, packets have no number. A dying buffer with this number *and* this
/// address is the very packet: a copy of it has another address, a packet that never passed a hook has no number.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Note {
    /// Address of its `sk_buff`; 0 once its verdict has been counted.
    pub address: u64,
    /// Its number: the upper bits say which CPU's circle it is in ([`Cpu::owner`]), the lower ones where
    /// ([`Cpu::sequence`]).
    pub number: u16,
    /// Number that the packet carried before, from another hook; 0 if none.
    pub prev: u16,
    /// Interface whose hook this is ([`IFINDEX_MAX`](super::IFINDEX_MAX) fits).
    pub ifindex: u16,
    /// Interface through which it had been received then (`skb->skb_iif`); 0 if it was made here.
    pub iif: u16,
    /// Where it was counted: `PLACE_*` in the upper 5 bits, the cache slot or the datagram in the lower 27.
    pub place: u32,
    /// Layer-3 bytes as on the wire (segments of a GSO packet each count their headers).
    pub bytes: u32,
    /// Time at the hook, `CLOCK_MONOTONIC_COARSE` ns.
    pub now_ns: u64,
    /// Wire packets (the kernel keeps the segments of a buffer in 16 bits).
    pub packets: u16,
    /// Its TCP flag octet.
    pub tcp_flags: u8,
    /// Those that earlier packets had set in its slot.
    pub flags_before: u8,
    /// When the latest packet before it in its slot was, in units of `1 << `[`LAST_SHIFT`] ns: the lower 32 bits.
    pub last_before: u32,
    /// Its key: the tuple on the wire. For IPv6 only `meta`; the addresses are in [`Cpu::ends6`].
    pub key: Key<Ip4>,
}

impl Note {
    /// Where it was counted: a `PLACE_*` without the marks.
    #[must_use]
    #[inline(always)]
    pub const fn kind(&self) -> u32 {
        (self.place >> PLACE_BITS) & (PLACE_FRAGMENT - 1)
    }

    /// Whether it is a fragment.
    #[must_use]
    #[inline(always)]
    pub const fn is_fragment(&self) -> bool {
        (self.place >> PLACE_BITS) & PLACE_FRAGMENT != 0
    }

    /// Address family of the packet: [`FAMILY_V4`] or [`FAMILY_V6`].
    #[must_use]
    #[inline(always)]
    pub const fn family(&self) -> u32 {
        if (self.place >> PLACE_BITS) & PLACE_V6 == 0 { FAMILY_V4 } else { FAMILY_V6 }
    }

    /// When the latest packet before it in its slot was, to a unit of [`LAST_SHIFT`] (a window is shorter than what 32 bits of
    /// them hold).
    #[must_use]
    #[inline(always)]
    pub const fn last_before_ns(&self) -> u64 {
        let since = ((self.now_ns >> LAST_SHIFT) as u32).wrapping_sub(self.last_before);
        self.now_ns - ((since as u64) << LAST_SHIFT)
    }
}

/// Unit of [`Note::last_before`]: 33 us. 39 hours fit: the longest window is a day.
pub const LAST_SHIFT: u32 = 15;

/// Bits of [`Note::place`] that hold the slot or the datagram.
pub const PLACE_BITS: u32 = 27;
/// [`Note::place`]: noted, not counted: accepted packets are not wanted.
pub const PLACE_NOWHERE: u32 = 0;
/// [`Note::place`]: in a slot of the cache of its family.
pub const PLACE_SLOT: u32 = 1;
/// [`Note::place`]: in a record that was sent.
pub const PLACE_RECORD: u32 = 2;
/// [`Note::place`]: in the `lost` counter.
pub const PLACE_LOST: u32 = 3;
/// [`Note::place`]: counted by the XDP program, nobody knows where.
pub const PLACE_XDP: u32 = 4;
/// [`Note::place`]: set for a fragment: the lower bits name its [`Datagram`], wherever it was counted.
pub const PLACE_FRAGMENT: u32 = 8;
/// [`Note::place`]: set for IPv6.
pub const PLACE_V6: u32 = 16;

/// A datagram in fragments. The kernel puts them together before most firewalls see them; what dies then is one buffer, with
/// the contents of the first fragment and the address of the one that came last.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Datagram {
    /// Hash of addresses, identification, interface, and for IPv4 the protocol; 0: free.
    pub check: u64,
    /// Address of the `sk_buff` that came last.
    pub address: u64,
    /// Payload bytes behind the IP headers, of all fragments.
    pub payload: u32,
    /// Wire layer-3 bytes of all but the first fragment.
    pub later_bytes: u32,
    /// How many those are.
    pub later_packets: u32,
    /// Epoch of the one that came first.
    pub epoch: u32,
    /// [`Note::number`] of the first fragment, 0 if it has not come.
    pub first: u32,
    /// It was refused as a whole.
    pub refused: u16,
    /// Protocol that the later fragments name. Options behind an IPv6 fragment header are in the first fragment only: then it is not
    /// the protocol of the datagram.
    pub later_proto: u8,
    /// The fragments do not agree: on the window, or the later ones on their protocol.
    pub mixed: u8,
}

/// Where an IPv6 packet came from and goes to: how a [`Key`] begins.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends6 {
    /// Source address as seen on the interface, in network order.
    pub src: Ip6,
    /// Destination address as seen on the interface, in network order.
    pub dst: Ip6,
}

/// Words of [`Cpu::parsed`]: a `packet::Flow` of either family.
pub const PARSED_WORDS: usize = 10;

/// Words of a `struct nf_conntrack_tuple`.
pub const TUPLE_WORDS: usize = 10;

/// Words of [`Cpu::side`].
pub const SIDE_WORDS: usize = 5;

/// Entries of [`Cpu::told`]: flows without ports that come in turns. Must be a power of two.
pub const TOLD: usize = 64;

/// Who has a CPU's caches: values of [`Cpu::busy`].
pub mod busy {
    /// Nobody.
    pub const FREE: u64 = 0;
    /// A program of ours, on that CPU.
    pub const PROGRAM: u64 = 1;
    /// The agent: the CPU is off. It may come back meanwhile.
    pub const AGENT: u64 = 2;
}

/// Scratch state of one CPU, at its number in the `CPU` array. In one map value, since every look-up costs a nanosecond; in an array that could
/// be mapped, since its memory begins with a page, and so each value with a cache line.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Who is changing this CPU's caches right now: see [`busy`].
    pub busy: u64,
    /// Notes written so far.
    pub next: u32,
    /// What all its numbers have in common, in the upper bits: the CPU's number plus one. So no packet has the number 0, and
    /// each CPU has its own. The agent sets it once.
    pub owner: u16,
    /// The lower bits of a number, which count: as many as are left of 16. The agent sets it once.
    pub sequence: u16,
    /// What is added to the ifindex of the frame that a hook of another namespace looks at ([`Range`](super::Range)). The program that is
    /// attached there writes it and jumps to the hook.
    pub base: u32,
    /// What a foreign XDP program is taken to have returned until it has: see [`NOT_RUN`](super::NOT_RUN). In map memory, of which the
    /// verifier knows nothing.
    pub action: u32,
    /// The tick that [`tick_ns`](Self::tick_ns) is the time of, as the kernel counts them (`jiffies`).
    pub tick: u64,
    /// The hooks' clock: `CLOCK_MONOTONIC_COARSE` ns, asked for once in a tick.
    pub tick_ns: u64,
    /// The hash seed, as in [`Setup`](super::Setup). This and what follows the agent sets once: constants, but here they are in the line that
    /// each packet needs anyway.
    pub seed: u64,
    /// Slots of this CPU's flow cache less one.
    pub passed_mask: u32,
    /// Where this CPU's counters begin in `HOOKED`.
    pub hooked: u32,
    /// Explicit padding, always 0: what each packet needs is one cache line, and so is each note.
    pub spare: u64,
    /// Notes, at the lower bits of their numbers, modulo how many there are.
    pub notes: [Note; NOTES as usize],
    /// Addresses of noted IPv6 packets, at the same index as the notes.
    pub ends6: [Ends6; NOTES as usize],
    /// What the parser found, for hooks. The verifier forgets what lies in a map: it then walks what follows once, and not
    /// once for every kind of packet.
    pub parsed: [u64; PARSED_WORDS],
    /// The two tuples of a packet's connection, as the kernel has them (`struct nf_conntrack_tuple`): that of packets like it before
    /// any translation, then that of the answers to it.
    pub tuples: [[u32; TUPLE_WORDS]; 2],
    /// What the packet has on the other side of a translation: as in [`Side`](super::Side), in its order.
    pub side: [u64; SIDE_WORDS],
    /// What was told last of translations, by hash, so that it need not be told again and again.
    pub told: [u64; TOLD],
    /// Explicit padding, always 0: the next CPU's begins with a cache line.
    pub end: [u64; 7],
}

/// Entries of [`Dying::handled`]: events can nest three deep (process, softirq, hardirq); the rest is for collisions.
pub const HANDLED: usize = 64;

/// Words of [`Dying::scratch`] for each program: what would not fit on the stack (512 bytes for all frames together before
/// Linux 6.13).
pub const SCRATCH_WORDS: usize = 80;

/// Scratch state of the verdict programs on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dying {
    /// A pointer on its way to becoming a number (the verifier refuses arithmetic on it before): one for each of the two
    /// programs, since they can interrupt each other.
    pub pointers: [u64; 2],
    /// Buffers the first verdict program has handled and the second has not yet seen.
    pub handled: [u64; HANDLED],
    /// The event that each of them is looking at.
    pub scratch: [[u64; SCRATCH_WORDS]; 2],
}

const _: () = {
    assert!(size_of::<Note>() == 64);
    assert!(core::mem::offset_of!(Note, place) == 16);
    assert!(core::mem::offset_of!(Note, now_ns) == 24);
    assert!(core::mem::offset_of!(Note, key) == 40);
    assert!(size_of::<Datagram>() == 40);
    assert!(
        size_of::<Cpu>() == 64 + 8 * (PARSED_WORDS + TUPLE_WORDS + SIDE_WORDS + TOLD + 7) + NOTES as usize * (32 + 64)
            && size_of::<Cpu>().is_multiple_of(64)
    );
    assert!(core::mem::offset_of!(Cpu, seed) == 40 && core::mem::offset_of!(Cpu, spare) == 56);
    assert!(core::mem::offset_of!(Cpu, next) == 8);
    assert!(core::mem::offset_of!(Cpu, base) == 16);
    assert!(core::mem::offset_of!(Cpu, notes) == 64);
    assert!(size_of::<Ends6>() == 32 && core::mem::offset_of!(Key<Ip6>, meta) == 32);
    assert!(NOTES.is_power_of_two() && DATAGRAMS.is_power_of_two() && DATAGRAMS < 1 << PLACE_BITS);
};
