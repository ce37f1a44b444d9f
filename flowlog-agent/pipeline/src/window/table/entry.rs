//! What is kept of a flow while its records come in.

use std::hash::{Hash, Hasher};

use flowlog_ebpf::{
    abi::{ANSWERS, Count, FLAGS_UNSURE, Ip4, Ip6, Key, Meta, OPENS, ORIGINAL, REPLY, Record, Stats, class},
    packet::TCP,
};
use flowlog_model::rule::Direction;

use super::flow::{Addresses, Flow, Handshake, Totals};
use crate::window::block::Address;

/// What tells flows of one window and interface apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FlowKey<A> {
    pub(super) src: A,
    pub(super) dst: A,
    pub(super) sport: u16,
    pub(super) dport: u16,
    pub(super) vlan: u16,
    pub(super) reason: u16,
    pub(super) proto: u8,
    /// Bit 0: direction, as in [`Meta::flags`]; bits 1 and 3: what it is a count of.
    pub(super) flags: u8,
    /// The firewall's mark, of what was refused.
    pub(super) mark: u32,
}

/// In words: member by member takes twice as long.
impl<A: Address> Hash for FlowKey<A> {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self { ref src, ref dst, sport, dport, vlan, reason, proto, flags, mark } = *self;
        A::hash_both(src, dst, state);
        state.write_u64(u64::from(sport) | u64::from(dport) << 16 | u64::from(vlan) << 32 | u64::from(reason) << 48);
        state.write_u64(u64::from(proto) | u64::from(flags) << 8 | u64::from(mark) << 32);
    }
}

pub(super) const REFUSED: u8 = 1 << 1;
/// Bit of [`FlowEntry::flags`] that is no part of the key: [`Totals::flags_unsure`].
const UNSURE: u8 = 1 << 2;
/// What was lost of the accepted flow with the same key but for this bit and the reason.
pub(super) const LOST: u8 = 1 << 3;
/// Bit of [`FlowEntry::flags`] that is no part of the key: [`Handshake::opens`].
const OPENED: u8 = 1 << 4;
/// Bit of [`FlowEntry::flags`] that is no part of the key: [`Handshake::answers`].
const ANSWERED: u8 = 1 << 5;
/// Bit of [`FlowEntry::flags`] that is no part of the key: [`Totals::is_original`].
const FORTH: u8 = 1 << 6;
/// Bit of [`FlowEntry::flags`] that is no part of the key: [`Totals::is_reply`].
const BACK: u8 = 1 << 7;
/// Bits of [`FlowEntry::flags`] that are no part of the key.
const NO_KEY: u8 = UNSURE | OPENED | ANSWERED | FORTH | BACK;
/// Bits of [`FlowEntry::flags`] that are bits of a record's `tcp_flags`.
const ALSO: [(u8, u32); 5] =
    [(UNSURE, FLAGS_UNSURE), (OPENED, OPENS), (ANSWERED, ANSWERS), (FORTH, ORIGINAL), (BACK, REPLY)];

impl<A: Copy> FlowKey<A> {
    /// The entry that a record of this class and tag adds to.
    pub(super) fn of(key: &Key<A>, of_class: u8, tag: u32) -> Self {
        let Meta { sport, dport, vlan, proto, .. } = key.meta;
        let (what, reason, mark) = match of_class {
            class::PASSED => (0, 0, 0),
            class::LOST => (LOST, key.meta.reason, 0),
            _ => (REFUSED, key.meta.reason, tag),
        };
        let flags = key.meta.direction() | what;
        Self { src: key.src, dst: key.dst, sport, dport, vlan, reason, proto, flags, mark }
    }

    /// The accepted flow that this one was lost of.
    pub(super) fn accepted(self) -> Self {
        Self { reason: 0, flags: self.flags & !LOST, ..self }
    }
}

/// A flow as it is kept: its key, member by member so that no byte is lost to alignment, and its counts. These are below
/// zero while more has been taken back than has arrived.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlowEntry<A> {
    pub(super) src: A,
    pub(super) dst: A,
    pub(super) sport: u16,
    pub(super) dport: u16,
    pub(super) vlan: u16,
    pub(super) reason: u16,
    pub(super) proto: u8,
    pub(super) flags: u8,
    pub(super) tcp_flags: u8,
    /// The firewall's mark of what was refused; [`Handshake::at_us`] of what passed.
    pub(super) tag: u32,
    pub(super) first_ns: u64,
    pub(super) last_ns: u64,
    pub(super) bytes: i64,
    pub(super) packets: i64,
}

const _: () = {
    assert!(size_of::<FlowEntry<Ip4>>() == 56);
    assert!(size_of::<FlowEntry<Ip6>>() == 80);
};

/// `bit`, if `word` has `from`.
fn bits(word: u32, from: u32, bit: u8) -> u8 {
    if word & from == 0 { 0 } else { bit }
}

/// Whether one of two times of which the upper bits are missing is the earlier one.
fn is_earlier(this: u32, other: u32) -> bool {
    this.wrapping_sub(other).cast_signed() < 0
}

impl<A: Copy> FlowEntry<A> {
    pub(super) fn new(key: FlowKey<A>) -> Self {
        let FlowKey { src, dst, sport, dport, vlan, reason, proto, flags, mark } = key;
        Self {
            src,
            dst,
            sport,
            dport,
            vlan,
            reason,
            proto,
            flags,
            tcp_flags: 0,
            tag: mark,
            first_ns: u64::MAX,
            last_ns: 0,
            bytes: 0,
            packets: 0,
        }
    }

    /// What one record alone says.
    pub(super) fn of_record(record: &Record<A>) -> Self {
        let Record { key, stats } = record;
        let mut entry = Self::new(FlowKey::of(key, key.meta.class(), stats.tag));
        entry.merge(stats);
        entry
    }

    pub(super) fn key(&self) -> FlowKey<A> {
        let Self { src, dst, sport, dport, vlan, reason, proto, flags, .. } = *self;
        FlowKey { src, dst, sport, dport, vlan, reason, proto, flags: flags & !NO_KEY, mark: self.mark() }
    }

    /// Something of each cache line that it is in.
    #[inline]
    pub(super) fn ends(&self) -> u64 {
        self.first_ns ^ u64::from(self.flags)
    }

    /// Its counts are what was lost of another one.
    pub(super) fn is_lost(&self) -> bool {
        self.flags & LOST != 0
    }

    /// The firewall's mark, if it was refused; else 0.
    fn mark(&self) -> u32 {
        if self.flags & REFUSED == 0 { 0 } else { self.tag }
    }

    /// Takes over what a record says of a handshake. Its time is that of the first one, whatever order records come in.
    fn merge_handshake(&mut self, stats: &Stats) {
        let bits = bits(stats.tcp_flags, OPENS, OPENED) | bits(stats.tcp_flags, ANSWERS, ANSWERED);
        if bits == 0 {
            return;
        }
        let is_first = self.flags & (OPENED | ANSWERED) == 0 || is_earlier(stats.tag, self.tag);
        if self.flags & REFUSED == 0 && is_first {
            self.tag = stats.tag;
        }
        self.flags |= bits;
    }

    /// Whether it may be another connection than the one before of the same addresses and ports.
    pub(super) fn may_be_new(&self) -> bool {
        self.proto != TCP || self.flags & (OPENED | ANSWERED) != 0
    }

    fn handshake(&self) -> Handshake {
        let Self { flags, tag, .. } = *self;
        let at_us = if flags & REFUSED == 0 { tag } else { 0 };
        Handshake { opens: flags & OPENED != 0, answers: flags & ANSWERED != 0, at_us }
    }

    pub(super) fn merge(&mut self, stats: &Stats) {
        self.first_ns = self.first_ns.min(stats.first_ns);
        self.last_ns = self.last_ns.max(stats.last_ns);
        // A record of a snapshot may stand below zero: see `FlowEntry::record`.
        self.bytes += stats.bytes.cast_signed();
        self.packets += stats.packets.cast_signed();
        self.tcp_flags |= stats.tcp_flags.to_le_bytes()[0];
        self.flags |= bits(stats.tcp_flags, FLAGS_UNSURE, UNSURE)
            | bits(stats.tcp_flags, ORIGINAL, FORTH)
            | bits(stats.tcp_flags, REPLY, BACK);
        self.merge_handshake(stats);
    }

    /// The one record that makes this entry when it is added to an empty table.
    pub(super) fn record(&self, iface: u16, epoch: u32) -> Record<A> {
        let Self { sport, dport, vlan, reason, proto, flags, first_ns, last_ns, .. } = *self;
        let class = match flags & (REFUSED | LOST) {
            0 => class::PASSED,
            LOST => class::LOST,
            _ => class::REFUSED,
        };
        let also = ALSO.into_iter().filter(|(bit, _)| flags & bit != 0).fold(0, |all, (_, word)| all | word);
        let flags = Meta::pack(flags & 1, class);
        Record {
            key: Key {
                src: self.src,
                dst: self.dst,
                meta: Meta { sport, dport, vlan, iface, reason, proto, flags, epoch },
            },
            stats: Stats {
                first_ns,
                last_ns,
                bytes: self.bytes.cast_unsigned(),
                packets: self.packets.cast_unsigned(),
                tcp_flags: u32::from(self.tcp_flags) | also,
                tag: self.tag,
            },
        }
    }

    /// Flags of packets that were refused may be among its own.
    pub(super) fn set_unsure(&mut self) {
        self.flags |= UNSURE;
    }

    fn direction(&self) -> Direction {
        Direction::BOTH[usize::from(self.flags & 1)]
    }

    /// Whether there is a row of it: packets that were not taken back, and are not what was lost of another one.
    #[inline]
    pub(super) fn has_row(&self) -> bool {
        self.packets > 0 && !self.is_lost()
    }

    /// The flow as a row shows it.
    #[inline]
    pub(super) fn flow(&self, addresses: impl Fn(A, A) -> Addresses) -> Flow {
        let Self { sport, dport, vlan, reason, proto, flags, first_ns, last_ns, tcp_flags, .. } = *self;
        Flow {
            addresses: addresses(self.src, self.dst),
            sport,
            dport,
            vlan,
            reason,
            proto,
            direction: self.direction(),
            refused: flags & REFUSED != 0,
            mark: self.mark(),
            totals: Totals {
                first_ns,
                last_ns,
                bytes: counted(self.bytes),
                packets: counted(self.packets),
                tcp_flags,
                flags_unsure: flags & UNSURE != 0,
                handshake: self.handshake(),
                is_original: flags & FORTH != 0,
                is_reply: flags & BACK != 0,
            },
        }
    }

    /// What was taken back beyond what it had.
    #[inline]
    pub(super) fn deficit(&self) -> Count {
        Count { packets: counted(-self.packets), bytes: counted(-self.bytes) }
    }

    /// The flow as a row shows it, and its deficit.
    #[inline]
    pub(super) fn settle(&self, addresses: impl Fn(A, A) -> Addresses) -> (Flow, Count) {
        (self.flow(addresses), self.deficit())
    }
}

/// A count that may stand below zero.
fn counted(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}
