//! Notes: which packet passed which hook, and as what it was counted there.
//!
//! A hook writes a note into its CPU's circle and the note's number into the packet ([`flowlog_ebpf::abi::Note`] says why
//! that shows who a dying buffer is). The number that the packet carried before goes into the note: so the notes of a
//! packet that climbs from a port to a bridge form a chain, newest first.
//!
//! Where somebody on this node reads `skb->tc_index` (`abi::NO_NUMBERS`), it is left alone. A packet is then looked for by its
//! address among the latest notes of its CPU, which shows less: see `verdict.rs`.

use flowlog_ebpf::{
    abi::{
        Cpu, DATAGRAMS as DATAGRAM_COUNT, Datagram, EGRESS, Ends6, FAMILY_V4, Key, LAST_SHIFT, Meta, NO_NUMBERS, Note,
        PLACE_BITS, PLACE_FRAGMENT,
    },
    packet::{Flow, Part},
};

use crate::{
    account::{At, Seen},
    cache::Before,
    circle::{index, is_own},
    cpu,
    family::Family,
    frame::opaque,
    maps::{DATAGRAMS, IFACES},
};

/// What carries a packet past a hook.
pub trait Carrier {
    /// Writes its address into a map value.
    fn address(&self, cell: *mut u64);
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

/// A note of a packet that is not counted yet.
pub struct Begun {
    note: *mut Note,
    /// Of a fragment: where its datagram is.
    datagram: Option<u32>,
}

impl Begun {
    /// The address of the packet's buffer.
    #[inline(always)]
    pub fn address(&self) -> u64 {
        // Volatile: what was written there is a pointer to the compiler, and must be read as a number.
        // SAFETY: what `begin` has found.
        unsafe { (&raw const (*self.note).address).read_volatile() }
    }
}

/// Notes a packet, but for where it is counted.
#[inline(always)]
pub fn begin<F: Family, C: Carrier>(carrier: &C, at: &At, packet: &Seen<'_, F::Addr>) -> Begun {
    let cpu = at.cpu;
    // SAFETY: a map value of this CPU; hooks do not interrupt hooks.
    let (sequence, owner) = unsafe {
        let next = (*cpu).next;
        (*cpu).next = next.wrapping_add(1);
        (next & u32::from((*cpu).sequence), (*cpu).owner)
    };
    let number = sequence as u16 | owner;
    let prev = carrier.number();
    if at.iface.flags & NO_NUMBERS == 0 {
        carrier.set_number(number);
    }
    let iif = if at.direction == EGRESS { carrier.iif() } else { at.ifindex as u16 };
    let index = index(sequence);
    // SAFETY: a map value of this CPU; the index is below the length of both arrays. Member by member, in place: a note on
    // the stack would be an eighth of all there is.
    unsafe {
        let note = (&raw mut (*cpu).notes).cast::<Note>().add(index);
        carrier.address(&raw mut (*note).address);
        (*note).number = number;
        (*note).prev = prev;
        (*note).ifindex = at.ifindex as u16;
        (*note).iif = iif;
        (*note).bytes = packet.wire.bytes;
        (*note).now_ns = at.now_ns;
        (*note).packets = packet.wire.packets as u16;
        (*note).tcp_flags = packet.flow.tcp_flags;
        F::keep(&raw mut (*note).key, (&raw mut (*cpu).ends6).cast::<Ends6>().add(index), packet.key);
        let is_fragment = packet.flow.fragment.part != Part::Whole;
        Begun { note, datagram: is_fragment.then(|| fragment::<F>(at, packet, &*note)) }
    }
}

/// Notes where it was counted, and what was there before.
#[inline(always)]
pub fn complete<F: Family>(begun: Begun, place: u32, before: Before) {
    let place = place | F::PLACE;
    let place = match begun.datagram {
        None => place,
        Some(datagram) => ((place >> PLACE_BITS) | PLACE_FRAGMENT) << PLACE_BITS | datagram,
    };
    // SAFETY: what `begin` has found.
    unsafe {
        (*begun.note).place = place;
        (*begun.note).flags_before = before.tcp_flags as u8;
        (*begun.note).last_before = (before.last_ns >> LAST_SHIFT) as u32;
    }
}

/// Whether the packet at `address` with this number has just been noted, at a hook on this CPU, as one of the watch `id`. (An address alone says
/// nothing: the next packet may be in the same buffer.)
#[inline(always)]
pub fn is_noted(cpu: *mut Cpu, number: u16, address: u64, id: u16, direction: u8) -> bool {
    if number == 0 || !is_own(number, cpu) {
        return false;
    }
    // SAFETY: a map value of this CPU; hooks do not interrupt hooks.
    let sequence = u32::from(number & unsafe { (*cpu).sequence });
    // SAFETY: as above; the index is below the array's length.
    let note = unsafe { &*(&raw const (*cpu).notes).cast::<Note>().add(index(sequence)) };
    let is_its = note.number == number && note.address == address;
    is_its && note.key.meta.iface == id && note.key.meta.direction() == direction
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
    if d.epoch != one.epoch || (!first && d.later_packets != 0 && d.later_proto != one.proto) {
        d.mixed = 1;
    }
    if first {
        d.first = one.number;
    } else {
        d.later_proto = one.proto;
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
    proto: u8,
}

#[inline(always)]
fn fragment<F: Family>(at: &At, packet: &Seen<'_, F::Addr>, note: &Note) -> u32 {
    let Flow { l3_len, ip_header, fragment, .. } = *packet.flow;
    // Fragments of one IPv6 datagram may name two protocols: see `Datagram::later_proto`.
    let proto = if F::FAMILY == FAMILY_V4 { packet.key.meta.proto } else { 0 };
    let meta = Meta { sport: 0, dport: 0, epoch: 0, proto, ..packet.key.meta };
    let key = Key { meta, ..*packet.key };
    // SAFETY: a map value of this CPU.
    let check =
        F::hash(unsafe { (*at.cpu).seed }, &key) ^ (u64::from(fragment.id) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let piece = Piece {
        payload: l3_len.wrapping_sub(ip_header),
        bytes: packet.wire.bytes,
        epoch: at.iface.epoch,
        number: u32::from(note.number),
        proto: packet.key.meta.proto,
    };
    // Volatile: what was written there is a pointer to the compiler, and must be read as a number.
    // SAFETY: a member of a reference.
    let address = unsafe { (&raw const note.address).read_volatile() };
    remember(check | 1, address, fragment.part, &piece)
}

/// The datagram that a note's place names.
#[inline(always)]
pub fn datagram(place: u32) -> Option<&'static mut Datagram> {
    let found = DATAGRAMS.get_ptr_mut(opaque(place) & (DATAGRAM_COUNT - 1))?;
    // SAFETY: a map value.
    Some(unsafe { &mut *found })
}

/// Notes that a search looks at: a receive batch.
const SEARCH_MAX: u32 = 64;
/// Notes that it finds at most.
const FOUND_MAX: u32 = 4;

/// State of a search for notes by address. In map memory: the verifier would follow a stack variable round after round.
#[repr(C)]
pub struct Search {
    /// Which note of this CPU was looked at last.
    pub sequence: u32,
    /// How many were found.
    pub count: u32,
    /// Their numbers, 16 bits each, the newest in the lowest.
    pub found: u64,
}

impl Search {
    /// Begins with the latest note of this CPU. Returns how often to [`look`](Self::look).
    #[inline(always)]
    pub fn begin(&mut self) -> u32 {
        let Some(cpu) = cpu::cpu() else { return 0 };
        // SAFETY: a map value.
        self.sequence = unsafe { (*cpu).next };
        self.count = 0;
        self.found = 0;
        SEARCH_MAX
    }

    /// Looks at one more. `false`: that is enough.
    #[inline(always)]
    pub fn look(&mut self, address: u64) -> bool {
        let Some(cpu) = cpu::cpu() else { return false };
        self.sequence = self.sequence.wrapping_sub(1);
        // SAFETY: a map value; the index is below the array's length.
        let note = unsafe {
            let index = index(self.sequence & u32::from((*cpu).sequence));
            &*(&raw const (*cpu).notes).cast::<Note>().add(index)
        };
        if note.address == address {
            self.found |= u64::from(note.number) << (16 * (self.count & (FOUND_MAX - 1)));
            self.count += 1;
        }
        self.count < FOUND_MAX
    }
}
