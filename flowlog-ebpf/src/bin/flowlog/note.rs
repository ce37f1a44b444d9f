//! Notes: which packet passed which hook, and as what it was counted there.
//!
//! A hook writes a note into its CPU's circle and the note's number into the packet ([`flowlog_ebpf::abi::Note`] says why
//! that shows who a dying buffer is). The number that the packet carried before goes into the note: so the notes of a
//! packet that climbs from a port to a bridge form a chain, newest first.
//!
//! Where somebody on this node reads `skb->tc_index` (`abi::NO_NUMBERS`), it is left alone. A packet is then looked for by its
//! address among the latest notes of its CPU, which shows less: see `verdict.rs`.

use aya_ebpf::helpers::generated::bpf_map_lookup_percpu_elem;
use flowlog_ebpf::{
    abi::{
        Cpu, DATAGRAMS as DATAGRAM_COUNT, Datagram, EGRESS, Ip6, Key, MIXED, Meta, NO_NUMBERS, NOTES, Note, PLACE_BITS,
        PLACE_FRAGMENT,
    },
    packet::{Flow, Part},
};

use crate::{
    account::{self, At, Counted, Family},
    frame::opaque,
    maps::{CPU, DATAGRAMS, IFACES, NUMBER_BITS},
};

/// What carries a packet past a hook.
pub trait Carrier {
    /// Its address; `cell` is scratch space in a map value of this CPU.
    fn address(&self, cell: *mut u64) -> u64;
    /// The number it carries, 0 if none.
    fn number(&self) -> u16;
    /// Gives it a number.
    fn set_number(&self, number: u16);
    /// Interface through which it was received last, 0 if it was made here.
    fn iif(&self) -> u16;
}

/// Whether packets get numbers. (Hooks find the same flag at their interface.)
#[inline(always)]
pub fn numbered() -> bool {
    IFACES.get(0).is_none_or(|node| node.flags & NO_NUMBERS == 0)
}

/// Index of a note in its circle.
#[inline(always)]
fn index(number: u32) -> usize {
    (opaque(number >> NUMBER_BITS.load()) & (NOTES - 1)) as usize
}

/// Part of a number that says whose circle it is in.
#[inline(always)]
pub fn owner(number: u32) -> u32 {
    number & ((1 << NUMBER_BITS.load()) - 1)
}

/// Notes a packet.
#[inline(always)]
pub fn write<F: Family, C: Carrier>(carrier: &C, at: &At, counted: &Counted<'_, F::Addr>) {
    let cpu = at.cpu;
    // SAFETY: a map value of this CPU; hooks do not interrupt hooks.
    let (next, address) = unsafe {
        let next = (*cpu).next;
        (*cpu).next = next.wrapping_add(1 << NUMBER_BITS.load());
        (next, carrier.address(&raw mut (*cpu).pointer))
    };
    let (number, prev) = (next as u16, carrier.number());
    let mut place = counted.place;
    if counted.flow.fragment.part != Part::Whole {
        let kind = (place >> PLACE_BITS) | PLACE_FRAGMENT;
        place = kind << PLACE_BITS | fragment::<F>(at, counted, address, number);
    }
    let iif = if at.direction == EGRESS { carrier.iif() } else { at.ifindex as u16 };
    let index = index(next);
    // SAFETY: a map value of this CPU; the index is below the length of both arrays. Member by member, in place: a note on
    // the stack would be an eighth of all there is.
    unsafe {
        let note = (&raw mut (*cpu).notes).cast::<Note>().add(index);
        (*note).address = address;
        (*note).number = number;
        (*note).prev = prev;
        (*note).ifindex = at.ifindex as u16;
        (*note).iif = iif;
        (*note).place = place;
        (*note).bytes = counted.wire.bytes;
        (*note).now_ns = at.now_ns;
        (*note).packets = counted.wire.packets as u16;
        (*note).tcp_flags = counted.flow.tcp_flags;
        (*note).new_flags = counted.change.new_flags as u8;
        (*note).family = F::FAMILY as u16;
        (*note).since = counted.change.since;
        F::keep(&raw mut (*note).key, (&raw mut (*cpu).keys6).cast::<Key<Ip6>>().add(index), counted.key);
    }
    if at.iface.flags & NO_NUMBERS == 0 {
        carrier.set_number(number);
    }
}

/// Adds a fragment to its datagram; returns where that is. Two CPUs that do it at once leave sums that do not add up, which is
/// noticed.
#[inline(never)]
fn remember(check: u64, address: u64, part: Part, one: &Piece) -> u32 {
    let place = opaque(check as u32) & (DATAGRAM_COUNT - 1);
    let Some(datagram) = DATAGRAMS.get_ptr_mut(place) else { return 0 };
    // SAFETY: a map value.
    let d = unsafe { &mut *datagram };
    let first = part == Part::First;
    if d.check != check || d.refused != 0 || (first && d.first != 0) {
        *d = Datagram { check, epoch: one.epoch, ..Datagram::default() };
    }
    d.address = address;
    d.payload += one.payload;
    if d.epoch != one.epoch {
        d.epoch = MIXED;
    }
    if first {
        d.first = one.number;
    } else {
        d.later_packets += 1;
        d.later_bytes += one.bytes;
    }
    place
}

/// What [`remember`] is told about a fragment.
struct Piece {
    payload: u32,
    bytes: u32,
    epoch: u32,
    number: u32,
}

#[inline(always)]
fn fragment<F: Family>(at: &At, counted: &Counted<'_, F::Addr>, address: u64, number: u16) -> u32 {
    let Flow { l3_len, ip_header, fragment, .. } = *counted.flow;
    let meta = Meta { sport: 0, dport: 0, epoch: 0, ..counted.key.meta };
    let key = Key { meta, ..*counted.key };
    let check = F::hash(&key) ^ (u64::from(fragment.id) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let piece = Piece {
        payload: l3_len.wrapping_sub(ip_header),
        bytes: counted.wire.bytes,
        epoch: at.iface.epoch,
        number: u32::from(number),
    };
    remember(check | 1, address, fragment.part, &piece)
}

/// A copy of the note with this number, and of its key if it is IPv6. `false`: there is none (any more).
#[inline(always)]
pub fn find(number: u16, note: &mut Note, key6: &mut Key<Ip6>) -> bool {
    let number = u32::from(number);
    let Some(cpu) = circle(number) else { return false };
    let index = index(number);
    // SAFETY: a map value, of another CPU perhaps; the index is below the length of both arrays. The number is looked at
    // before and after the copy: the owner may be writing another note in its place.
    unsafe {
        let found = (&raw mut (*cpu).notes).cast::<Note>().add(index);
        if u32::from((&raw const (*found).number).read_volatile()) != number {
            return false;
        }
        copy(found, note);
        copy((&raw const (*cpu).keys6).cast::<Key<Ip6>>().add(index), key6);
        u32::from((&raw const (*found).number).read_volatile()) == number
    }
}

/// The state of the CPU that gave this number.
#[inline(always)]
fn circle(number: u32) -> Option<*mut Cpu> {
    let cpu = account::cpu()?;
    let owner = owner(number);
    // SAFETY: a map value.
    if owner == self::owner(unsafe { (*cpu).next }) {
        return Some(cpu);
    }
    if owner == 0 {
        return None;
    }
    let key = 0u32;
    // SAFETY: a per-CPU array with one element; the helper returns null for a CPU that there is not.
    let other =
        unsafe { bpf_map_lookup_percpu_elem((&raw const CPU).cast_mut().cast(), (&raw const key).cast(), owner - 1) };
    (!other.is_null()).then_some(other.cast())
}

/// Copies word by word. (A plain assignment becomes a call of `memmove`, which here is a loop over bytes.)
///
/// # Safety
/// Both must be aligned to 8, and `T` a multiple of that.
#[inline(always)]
unsafe fn copy<T>(from: *const T, to: *mut T) {
    for word in 0..size_of::<T>() / 8 {
        // SAFETY: within the value. Volatile, so that LLVM does not see the assignment through.
        unsafe { to.cast::<u64>().add(word).write_volatile(from.cast::<u64>().add(word).read_volatile()) };
    }
}

/// The datagram that a note's place names.
#[inline(always)]
pub fn datagram(place: u32) -> Option<&'static mut Datagram> {
    let found = DATAGRAMS.get_ptr_mut(opaque(place) & (DATAGRAM_COUNT - 1))?;
    // SAFETY: a map value.
    Some(unsafe { &mut *found })
}

/// Notes that [`search`] looks at: a receive batch.
const SEARCH_MAX: u32 = 64;
/// Notes that it finds at most.
const FOUND_MAX: u32 = 4;

/// What [`look`] has come to. In map memory: the verifier follows what is on the stack round after round.
#[repr(C)]
pub struct Search {
    /// The note that was looked at last.
    pub number: u32,
    /// How many were found.
    pub count: u32,
    /// Their numbers, 16 bits each, the newest in the lowest.
    pub found: u64,
}

impl Search {
    /// Begins with the latest note of this CPU. Returns how often to [`look`](Self::look).
    #[inline(always)]
    pub fn begin(&mut self) -> u32 {
        let Some(cpu) = account::cpu() else { return 0 };
        // SAFETY: a map value.
        self.number = unsafe { (*cpu).next };
        (self.count, self.found) = (0, 0);
        SEARCH_MAX
    }

    /// Looks at one more. `false`: that is enough.
    #[inline(always)]
    pub fn look(&mut self, address: u64) -> bool {
        let Some(cpu) = account::cpu() else { return false };
        self.number = self.number.wrapping_sub(1 << NUMBER_BITS.load());
        // SAFETY: a map value; the index is below the array's length.
        let note = unsafe { &*(&raw const (*cpu).notes).cast::<Note>().add(index(self.number)) };
        if note.address == address {
            self.found |= u64::from(note.number) << (16 * (self.count & (FOUND_MAX - 1)));
            self.count += 1;
        }
        self.count < FOUND_MAX
    }
}
