//! What a translated packet has on the other side: connection tracking knows, from prerouting on the way in until the packet has left.
//!
//! The hook on the way out finds the connection in the buffer; the one on the way in comes too early, and the agent joins its records
//! with what was told of the answers. What is refused has its connection in either direction. It is read when a record is new, and
//! when the same key may be another connection by now: a packet that others of its flow follow costs nothing.

use flowlog_ebpf::{
    abi::{Count, FAMILY_V4, Key, Meta, SIDE_WORDS, Stats, TOLD, TUPLE_WORDS, class},
    packet::has_ports,
};

use crate::{
    block,
    cache::copy,
    cpu,
    family::Family,
    kernel,
    wire::{Wire, bump, judged},
};

/// Words of a `struct nf_conntrack_tuple` at which the parts of it are: the addresses; source port and address family; destination port
/// and protocol.
const SRC: usize = 0;
const SPORT: usize = 4;
const DST: usize = 5;
const DPORT: usize = 9;

/// Address families as sockets have them (`include/linux/socket.h`).
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// Whether a record's connection can be another one from packet to packet: nothing in its key tells them apart.
#[inline(always)]
pub fn is_shared(meta: &Meta) -> bool {
    !has_ports(meta.proto) || (meta.sport | meta.dport) == 0
}

/// Where [`Truth::untold`] counts what was not told although the caches were ours, and although they were not.
const OURS: usize = 0;
const NOT_OURS: usize = 1;

#[inline(always)]
fn count_untold(id: u16, epoch: u32, set: usize) {
    let Some(truth) = judged(id, epoch) else { return };
    // SAFETY: a map value; the index is below the array's length.
    unsafe { bump((&raw mut (*truth).untold).cast::<Count>().add(set), Wire { packets: 1, bytes: 0 }) };
}

/// Nothing was told of a new record: the CPU's caches were somebody else's.
#[inline(never)]
pub fn not_told(id: u32, epoch: u32) -> u32 {
    count_untold(id as u16, epoch, NOT_OURS);
    0
}

/// Tells what the packet at the address `skb` has on the other side, in a record beside the one with this key; unless that was told
/// lately and the record is not new. Returns who opened its connection: `ORIGINAL`, `REPLY`, or 0 if that is not known. In a function of its own, and with all it needs in map memory: whoever calls it has little of
/// the stack left.
///
/// # Safety
/// `key` must be in map memory that is this CPU's, and the caller must hold `busy`.
#[inline(never)]
pub unsafe fn tell<F: Family>(key: *const Key<F::Addr>, skb: u64, is_new: u32) -> u32 {
    let Some(cpu) = cpu::cpu() else { return 0 };
    let connection = kernel::connection(skb);
    // SAFETY: a map value of this CPU, which is ours while we hold `busy`.
    unsafe {
        if kernel::translated(connection, &raw mut (*cpu).tuples) && other_side::<F>(key) != 0 {
            send::<F>(key, is_new);
        }
    }
    kernel::opener(connection)
}

/// A tuple of the connection, and how its parts are read.
#[derive(Clone, Copy)]
struct Tuple(*const u32);

impl Tuple {
    /// Where an address is.
    #[inline(always)]
    unsafe fn address(self, at: usize) -> *const u32 {
        // SAFETY: within the tuple.
        unsafe { self.0.add(at) }
    }

    #[inline(always)]
    unsafe fn word(self, at: usize) -> u32 {
        // SAFETY: as above. Volatile: one load, and none of what lies beside it.
        unsafe { self.0.add(at).read_volatile() }
    }

    /// A port, in host order.
    #[inline(always)]
    unsafe fn port(self, at: usize) -> u16 {
        // SAFETY: as above.
        let [a, b, ..] = unsafe { self.word(at) }.to_ne_bytes();
        u16::from_be_bytes([a, b])
    }

    #[inline(always)]
    unsafe fn protocol(self) -> u8 {
        // SAFETY: as above.
        let [_, _, protocol, _] = unsafe { self.word(DPORT) }.to_ne_bytes();
        protocol
    }

    #[inline(always)]
    unsafe fn family(self) -> u16 {
        // SAFETY: as above.
        let [.., a, b] = unsafe { self.word(SPORT) }.to_ne_bytes();
        u16::from_ne_bytes([a, b])
    }
}

/// Whether two addresses are the same.
#[inline(always)]
unsafe fn is<F: Family>(a: *const u32, b: *const u32) -> bool {
    let words = size_of::<F::Addr>() / 4;
    // SAFETY: by the contract of `other_side`.
    let differ = (0..words).fold(0, |all, n| unsafe { all | (a.add(n).read_volatile() ^ b.add(n).read_volatile()) });
    differ == 0
}

/// Copies an address to a place that is wide enough for either family.
#[inline(always)]
unsafe fn set<F: Family>(to: *mut u64, address: *const u32) {
    // SAFETY: by the contract of `other_side`.
    let word = |n: usize| u64::from(unsafe { address.add(n).read_volatile() });
    let wide = if F::FAMILY == FAMILY_V4 { [word(0), 0] } else { [word(0) | word(1) << 32, word(2) | word(3) << 32] };
    // SAFETY: as above.
    unsafe {
        to.write_volatile(wide[0]);
        to.add(1).write_volatile(wide[1]);
    }
}

/// Ports as in [`Cpu::side`].
#[inline(always)]
const fn ports(sport: u16, dport: u16) -> u64 {
    (sport as u64) << 16 | dport as u64
}

/// Writes what the packet has on the other side into [`Cpu::side`]. Returns 0 if its connection says nothing of it, or nothing is translated.
///
/// # Safety
/// As [`tell`], with the tuples of the packet's connection in [`Cpu::tuples`].
#[inline(never)]
unsafe fn other_side<F: Family>(key: *const Key<F::Addr>) -> u32 {
    let Some(cpu) = cpu::cpu() else { return 0 };
    // SAFETY: by the contract above.
    unsafe {
        let tuples = (&raw const (*cpu).tuples).cast::<[u32; TUPLE_WORDS]>();
        // Packets like it are `own` before any translation, and the reverse of `answers` after it.
        let own = Tuple(tuples.cast());
        let answers = Tuple(tuples.add(1).cast());
        if own.family() != if F::FAMILY == FAMILY_V4 { AF_INET } else { AF_INET6 } {
            return 0;
        }
        let to = (&raw mut (*cpu).side).cast::<u64>();
        let (to_src, to_dst, to_ports) = (to, to.add(2), to.add(4));
        let src: *const u32 = (&raw const (*key).src).cast();
        let dst: *const u32 = (&raw const (*key).dst).cast();
        let own_ports = ports((*key).meta.sport, (*key).meta.dport);
        if is_shared(&(*key).meta) {
            // Each address for itself: an ICMP error has that of whoever sent it, and the other one is translated. But whoever sent it, it
            // leaves with the source address of the connection's packets (`nf_nat_icmp_reply_translation`).
            let is_error = own.protocol() != (*key).meta.proto;
            if is_error && is::<F>(src, answers.address(DST)) && !is::<F>(src, own.address(SRC)) {
                return 0;
            }
            one::<F>(to_src, src, (answers.address(DST), own.address(SRC)));
            one::<F>(to_dst, dst, (answers.address(SRC), own.address(DST)));
            to_ports.write_volatile(own_ports);
        } else if own_ports == ports(answers.port(DPORT), answers.port(SPORT))
            && is::<F>(src, answers.address(DST))
            && is::<F>(dst, answers.address(SRC))
        {
            set::<F>(to_src, own.address(SRC));
            set::<F>(to_dst, own.address(DST));
            to_ports.write_volatile(ports(own.port(SPORT), own.port(DPORT)));
        } else if own_ports == ports(own.port(SPORT), own.port(DPORT))
            && is::<F>(src, own.address(SRC))
            && is::<F>(dst, own.address(DST))
        {
            set::<F>(to_src, answers.address(DST));
            set::<F>(to_dst, answers.address(SRC));
            to_ports.write_volatile(ports(answers.port(DPORT), answers.port(SPORT)));
        } else {
            return 0;
        }
        let is_same =
            to_ports.read_volatile() == own_ports && is::<F>(src, to_src.cast()) && is::<F>(dst, to_dst.cast());
        u32::from(!is_same)
    }
}

/// One address of packets that nothing but their addresses tells apart: after the translation it has that before it, and the other way
/// round; else it is not translated.
///
/// # Safety
/// As [`other_side`].
#[inline(always)]
unsafe fn one<F: Family>(to: *mut u64, own: *const u32, (after, before): (*const u32, *const u32)) {
    // SAFETY: by the contract above.
    unsafe {
        if is::<F>(own, after) {
            set::<F>(to, before);
        } else if is::<F>(own, before) {
            set::<F>(to, after);
        } else {
            set::<F>(to, own);
        }
    }
}

/// Sends what is in [`Cpu::side`].
///
/// # Safety
/// As [`tell`].
#[inline(never)]
unsafe fn send<F: Family>(key: *const Key<F::Addr>, is_new: u32) -> u32 {
    let Some(cpu) = cpu::cpu() else { return 0 };
    // SAFETY: by the contract above.
    unsafe {
        let side = (&raw const (*cpu).side).cast::<u64>();
        let mut hash = F::hash((*cpu).seed, &*key) ^ u64::from((*key).meta.epoch);
        for word in 0..SIDE_WORDS {
            // 2^64 divided by the golden ratio.
            hash = (hash ^ side.add(word).read_volatile()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            hash ^= hash >> 32;
        }
        let told = (&raw mut (*cpu).told).cast::<u64>().add(hash as usize & (TOLD - 1));
        if is_new == 0 && *told == hash {
            return 0;
        }
        let Some(room) = block::room::<F>() else {
            count_untold((*key).meta.iface, (*key).meta.epoch, OURS);
            return 0;
        };
        *told = hash;
        copy(key, &raw mut (*room).key);
        let meta = &raw mut (*room).key.meta;
        (*meta).flags = Meta::pack((*key).meta.flags & 1, class::TOLD);
        (*meta).reason = u16::from((*key).meta.class() != class::PASSED);
        // In the order of `Side::pack`.
        let stats = (&raw mut (*room).stats).cast::<u64>();
        for word in 0..SIDE_WORDS {
            stats.add(word).write_volatile(side.add(word).read_volatile());
        }
    }
    0
}

const _: () = {
    assert!(size_of::<Stats>() == 8 * SIDE_WORDS && core::mem::offset_of!(Stats, packets) == 24);
    assert!(core::mem::offset_of!(Stats, tcp_flags) == 32);
};
const _: () = assert!(TOLD.is_power_of_two());
