//! The flow cache: a per-CPU, direct-mapped array.
//!
//! A hit adds to its slot; a miss first moves the old record into the CPU's block ([`crate::block`]), then takes the slot. If the
//! ring is full the slot keeps its flow and the packet is counted as lost: a packet is always in exactly one of {a slot, a block,
//! the ring, a loss counter}.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use flowlog_ebpf::abi::{Key, Record, SYN, Stats, handshake};

use crate::{block, family::Family, wire::Wire};

const NS_PER_US: u64 = 1_000;

/// A record that has had no packet for so long may be another connection's by now: half of what connection tracking keeps one that
/// has ended at least (10 s, `nf_conntrack_tcp_timeout_close`).
pub const IDLE_NS: u64 = 5_000_000_000;

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

/// Counts one packet in a slot, evicting another flow's record first; with `MARKED`, also one with another mark. `None`: the ring is
/// full, nothing counted.
///
/// # Safety
/// As [`evict`].
#[inline(always)]
pub unsafe fn count<F: Family, const MARKED: bool>(
    slot: *mut Record<F::Addr>,
    key: &Key<F::Addr>,
    p: &One,
    news: impl News<F>,
) -> Option<Before> {
    // SAFETY: by the contract above.
    unsafe {
        if F::same(&raw const (*slot).key, key) && (!MARKED || (*slot).stats.tag == p.mark) {
            let s = &mut (*slot).stats;
            s.packets += u64::from(p.wire.packets);
            s.bytes += u64::from(p.wire.bytes);
            let before = Before { tcp_flags: u64::from(s.tcp_flags), last_ns: s.last_ns };
            s.last_ns = p.now_ns;
            s.tcp_flags = before.tcp_flags as u32 | u32::from(p.tcp_flags);
            if news.always() || p.tcp_flags & SYN != 0 || p.now_ns.wrapping_sub(before.last_ns) > IDLE_NS {
                news.tell(&raw const (*slot).key, false);
            }
            return Some(before);
        }
        if !evict::<F>(slot) {
            return None;
        }
        (*slot).key = *key;
        (*slot).stats = p.stats::<MARKED>();
        (*slot).stats.tcp_flags |= news.tell(&raw const (*slot).key, true);
    }
    Some(Before { tcp_flags: 0, last_ns: p.now_ns })
}

/// Sends one packet as a record of its own. `false`: the ring is full.
#[inline(always)]
pub fn emit_alone<F: Family, const MARKED: bool>(key: &Key<F::Addr>, p: &One) -> bool {
    block::send_one(F::FAMILY, key, &p.stats::<MARKED>())
}

/// The slot of a hash.
#[inline(always)]
pub const fn slot_index(hash: u64, mask: u32) -> u32 {
    hash as u32 & mask
}
