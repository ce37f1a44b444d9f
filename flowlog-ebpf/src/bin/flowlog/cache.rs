//! The flow cache: a per-CPU array of pairs of slots.
//!
//! A flow's hash says which slot is its home; if that is another flow's, it may be in the one beside it, which is in the next cache line. A hit
//! adds to its slot; a miss first moves the record of one of the two into the CPU's block ([`crate::block`]), then takes that slot. If the
//! ring is full the slot keeps its flow and the packet is counted as lost: a packet is always in exactly one of {a slot, a block,
//! the ring, a loss counter}.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use flowlog_ebpf::abi::{BANK_SLOTS, Key, Record, SYN, Stats, handshake};

use crate::{block, family::Family, frame::opaque, maps::Bank, wire::Wire};

const NS_PER_US: u64 = 1_000;

/// A record that has had no packet for so long may be another connection's by now: half of what connection tracking keeps one that
/// has ended at least (10 s, `nf_conntrack_tcp_timeout_close`).
pub const IDLE_NS: u64 = 5_000_000_000;

/// A record that has had no packet for so long has no claim to its slot, however many it had before: a second, in which a flow that goes on
/// has sent something.
const QUIET_NS: u64 = 1_000_000_000;

/// One packet as the cache takes it.
pub struct One {
    pub wire: Wire,
    pub tcp_flags: u8,
    /// Of a refused packet, the firewall's mark: see [`Stats::tag`].
    pub mark: u32,
    pub now_ns: u64,
}

impl One {
    /// What a record that begins with this packet has counted. Only these ask the exact clock, which costs as much as all the rest of
    /// a packet: those of a handshake, once a connection.
    #[inline(always)]
    fn stats<const MARKED: bool>(&self) -> Stats {
        let tag = if MARKED {
            self.mark
        } else if self.tcp_flags & SYN != 0 {
            // SAFETY: takes no arguments.
            (unsafe { bpf_ktime_get_ns() } / NS_PER_US) as u32
        } else {
            0
        };
        Stats {
            first_ns: self.now_ns,
            last_ns: self.now_ns,
            bytes: u64::from(self.wire.bytes),
            packets: u64::from(self.wire.packets),
            tcp_flags: u32::from(self.tcp_flags) | handshake(self.tcp_flags),
            tag,
        }
    }
}

/// Copies a record, or a part of one, word by word. (A plain assignment becomes a call of `memmove`, which here is a loop over bytes.)
///
/// # Safety
/// Both must be aligned to 8, and `T` a multiple of that.
#[inline(always)]
pub unsafe fn copy<T>(from: *const T, to: *mut T) {
    for word in 0..size_of::<T>() / 8 {
        // SAFETY: within the value. Volatile, so that LLVM does not see the assignment through.
        unsafe { to.cast::<u64>().add(word).write_volatile(from.cast::<u64>().add(word).read_volatile()) };
    }
}

/// Moves a slot's record into the CPU's block and empties the slot. `false`: the ring is full, the slot is unchanged.
///
/// # Safety
/// `slot` must be a cache slot of this CPU, and the caller must hold `busy`; or that of a CPU that is off, whose `busy` is held as well.
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
    /// `Stats::tcp_flags` of the slot; 0 if the packet is the first in it.
    pub tcp_flags: u64,
    /// Time of the latest packet.
    pub last_ns: u64,
}

/// What is to be done when a slot has a new record, or one that may be another connection's by now: it has had no packet for [`IDLE_NS`], or
/// has one that opens a TCP connection. (Address translation gives the port of a closed connection away at once.)
pub trait News<F: Family> {
    /// Whether it is to be done for each packet, if it is one of a record that is not new.
    fn always(&self) -> bool;
    /// Does it. Returns bits for [`Stats::tcp_flags`] of a new record.
    ///
    /// # Safety
    /// As [`evict`], with the key of the slot.
    unsafe fn tell(self, key: *const Key<F::Addr>, is_new: bool) -> u32;
}

/// Nothing.
pub struct Nothing;

impl<F: Family> News<F> for Nothing {
    #[inline(always)]
    fn always(&self) -> bool {
        false
    }

    #[inline(always)]
    unsafe fn tell(self, _key: *const Key<F::Addr>, _is_new: bool) -> u32 {
        0
    }
}

/// How much is kept if a record stays where it is: its packets, or next to nothing if it has had none for a while. An empty slot keeps nothing.
///
/// # Safety
/// `slot` must be a cache slot.
#[inline(always)]
unsafe fn worth<A>(slot: *const Record<A>, now_ns: u64) -> u64 {
    // SAFETY: by the contract.
    let (packets, last_ns) = unsafe { ((*slot).stats.packets, (*slot).stats.last_ns) };
    // All ones, or none. No branch, like the choice between the two: nobody could foretell it, and the verifier would walk each way.
    let is_recent = (now_ns.wrapping_sub(last_ns).wrapping_sub(QUIET_NS).cast_signed() >> 63).cast_unsigned();
    packets & (is_recent | 1)
}

/// Counts one packet in the slot that is its home, or, of packets that passed, in the one beside it; if neither is its flow's, it evicts the
/// record of one of them first. With `REFUSED` there is no slot beside it, which would make a program that is long already too long for
/// the verifier's memory, and a record with another mark is another flow's. Returns what was there before, and which slot it is. `None`: the
/// ring is full, nothing counted.
///
/// # Safety
/// `bank` must be one of a cache of this CPU, and the caller must hold `busy`.
#[inline(always)]
pub unsafe fn count<F: Family, const REFUSED: bool>(
    bank: *mut Bank<Record<F::Addr>>,
    home: u32,
    key: &Key<F::Addr>,
    p: &One,
    news: impl News<F>,
) -> Option<(Before, u32)> {
    // SAFETY: by the contract above.
    unsafe {
        let is_its = |slot: *mut Record<F::Addr>| {
            F::same(&raw const (*slot).key, key) && (!REFUSED || (*slot).stats.tag == p.mark)
        };
        let (mut slot, mut index) = (slot_in(bank, home), home);
        let mut is_hit = is_its(slot);
        if !REFUSED && !is_hit {
            let beside = slot_in(bank, home ^ 1);
            is_hit = is_its(beside);
            // The sign of the difference.
            let is_less = (worth(beside, p.now_ns).wrapping_sub(worth(slot, p.now_ns)) >> 63) as u32;
            index = home ^ (u32::from(is_hit) | is_less);
            slot = slot_in(bank, index);
        }
        if is_hit {
            let s = &mut (*slot).stats;
            s.packets += u64::from(p.wire.packets);
            s.bytes += u64::from(p.wire.bytes);
            let before = Before { tcp_flags: u64::from(s.tcp_flags), last_ns: s.last_ns };
            s.last_ns = p.now_ns;
            s.tcp_flags = before.tcp_flags as u32 | u32::from(p.tcp_flags);
            if news.always() || p.tcp_flags & SYN != 0 || p.now_ns.wrapping_sub(before.last_ns) > IDLE_NS {
                news.tell(&raw const (*slot).key, false);
            }
            return Some((before, index));
        }
        if !evict::<F>(slot) {
            return None;
        }
        (*slot).key = *key;
        (*slot).stats = p.stats::<REFUSED>();
        (*slot).stats.tcp_flags |= news.tell(&raw const (*slot).key, true);
        Some((Before { tcp_flags: 0, last_ns: p.now_ns }, index))
    }
}

/// A slot in its bank.
///
/// # Safety
/// `bank` must be a bank of a cache.
#[inline(always)]
pub unsafe fn slot_in<R>(bank: *mut Bank<R>, index: u32) -> *mut R {
    // SAFETY: by the contract; the index is below the length of a bank.
    unsafe { bank.cast::<R>().add((opaque(index) & (BANK_SLOTS - 1)) as usize) }
}

/// Sends one packet as a record of its own. `false`: the ring is full.
#[inline(always)]
pub fn emit_alone<F: Family, const MARKED: bool>(key: &Key<F::Addr>, p: &One) -> bool {
    block::send_one(F::FAMILY, key, &p.stats::<MARKED>())
}

/// The slot of a hash: its home.
#[inline(always)]
pub const fn slot_index(hash: u64, mask: u32) -> u32 {
    hash as u32 & mask
}
