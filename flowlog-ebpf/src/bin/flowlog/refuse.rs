//! Counting refusals: a REJECT record, and the packet taken out of what had passed.

use flowlog_ebpf::{
    abi::{
        Cpu, EGRESS, FAMILY_V4, FLAGS_UNSURE, INGRESS, Iface, Ip4, Key, Meta, ONLY_NOTED, PLACE_BITS, Record,
        VerdictTruth, WANT_REFUSED_EGRESS, WANT_REFUSED_INGRESS, WANT_TRANSLATIONS, class, reason_index,
    },
    packet::{Flow, Fragment, absent},
    refusal::Noted,
};

use crate::{
    account::{self, key_of},
    cache::{News, One, copy, count, emit_alone, slot_in, slot_index},
    circle, clock,
    cpu::{self, lock, unlock},
    event::{Event, Telling},
    family::{Family, V4, V6},
    frame::opaque,
    maps::REFUSED_MASK,
    told,
    wire::{Wire, bump, judged},
};

/// What is known of a refused packet, but for its key.
struct Refusal {
    wire: Wire,
    tcp_flags: u8,
    now_ns: u64,
    class: u8,
    /// A hook has counted it in the same window.
    seen: bool,
    /// The firewall's mark.
    mark: u32,
    /// What it has on the other side of a translation is wanted.
    tells: bool,
}

/// A refused packet whose record may be new. What is to be told of it is told later ([`Telling`]), in one place for all records: the
/// verifier walks it once.
struct Fresh {
    /// Where it is written down; null: it is not wanted.
    telling: *mut Telling,
}

impl<F: Family> News<F> for Fresh {
    /// The connection of a packet that was refused is forgotten with it, and the next one's may be another.
    #[inline(always)]
    fn always(&self) -> bool {
        true
    }

    #[inline(always)]
    unsafe fn tell(self, key: *const Key<F::Addr>, is_new: bool) -> u32 {
        if !self.telling.is_null() {
            // SAFETY: of the event that is being judged, in map memory; by the contract for the key.
            unsafe {
                copy(key, (&raw mut (*self.telling).key).cast());
                (*self.telling).family = F::FAMILY;
                (*self.telling).is_new = u32::from(is_new);
            }
        }
        0
    }
}

/// Spreads marks over the slots (2^32 divided by the golden ratio).
const MARK_SPREAD: u32 = 0x9e37_79b9;

/// Sets of counters: two for each direction.
const SETS: u32 = 4;

/// Where refusals of an interface are counted, on this CPU.
pub struct Place {
    pub cpu: *mut Cpu,
    /// The CPU's caches are ours.
    pub locked: bool,
    /// The set of counters that is ours.
    pub truth: *mut VerdictTruth,
}

/// Takes the CPU's caches and finds the counters. What it returns must be given back by [`leave`].
#[inline(always)]
pub fn enter(id: u16, epoch: u32, direction: u8) -> Option<Place> {
    let truth = judged(id, epoch)?;
    let cpu = cpu::cpu()?;
    let locked = lock(cpu);
    let set = opaque(u32::from(direction & 1) * 2 + u32::from(!locked)) & (SETS - 1);
    // SAFETY: a map value; the index is below the array's length.
    let truth = unsafe { (&raw mut (*truth).verdict).cast::<VerdictTruth>().add(set as usize) };
    Some(Place { cpu, locked, truth })
}

#[inline(always)]
pub fn leave(place: &Place) {
    if place.locked {
        unlock(place.cpu);
    }
}

/// Whether a direction of an interface wants to know of refusals.
#[inline(always)]
fn wanted(flags: u16, direction: u8) -> bool {
    flags & if direction == INGRESS { WANT_REFUSED_INGRESS } else { WANT_REFUSED_EGRESS } != 0
}

/// The packet of `event.note` was refused; with it the rest of its datagram, if it is one.
#[inline(never)]
pub fn noted<F: Family>(event: &mut Event) {
    let note = &event.note;
    let mut key = F::noted(&note.key, &event.key6);
    let direction = key.meta.direction();
    let Some(iface) = account::iface(event.spot) else { return };
    // The note belongs to a watch that has ended, or nobody wants refusals.
    if iface.id != key.meta.iface || !wanted(iface.flags, direction) {
        return;
    }
    // A fragment is where it is like any other packet; its slot is not known.
    let is_late = (key.meta.epoch.wrapping_sub(iface.oldest) as i32) < 0;
    let counted = Noted { place: note.kind(), is_fragment: note.is_fragment(), is_late };
    if !counted.was_seen() {
        key.meta.epoch = iface.epoch;
    }
    let wire = Wire { packets: u32::from(note.packets), bytes: note.bytes };
    let id = iface.id;
    let flags = iface.flags;
    let epoch = key.meta.epoch;
    let reason = reason_index(event.cause.reason) as u16;
    let Some(place) = enter(id, epoch, direction) else { return };
    let taken_back = counted.may_be_in_slot() && place.locked && take_back::<F>(&key, event, place.cpu);
    let class = counted.class(taken_back);
    key.meta.flags = Meta::pack(direction, class);
    key.meta.reason = reason;
    let note = &event.note;
    let seen = counted.was_seen();
    let mark = event.dropped.mark;
    let tells = flags & WANT_TRANSLATIONS != 0;
    let one = Refusal { wire, tcp_flags: note.tcp_flags, now_ns: note.now_ns, class, seen, mark, tells };
    record_all::<F>(&place, &mut key, &one, event);
    leave(&place);
}

/// A packet that no hook of this interface has counted was refused. `vlan`: the VLAN id that it would have had there, 0: what it has.
///
/// # Safety
/// `event` must be the one that is being judged, and `headers` what its headers say.
#[inline(never)]
pub unsafe fn unseen<F: Family>(
    event: *mut Event,
    (spot, vlan): (u32, u32),
    direction: u8,
    headers: *const Flow<F::Addr>,
) {
    let Some(iface) = account::iface(spot) else { return };
    // SAFETY: by the contract; the reference ends before that to the event begins.
    let (mut key, tcp_flags) = unsafe {
        let f = &*headers;
        (key_of(f, iface.id, Meta::pack(direction, class::REFUSED), 0, iface.epoch), f.tcp_flags)
    };
    // SAFETY: by the contract.
    let event = unsafe { &mut *event };
    key.meta.reason = reason_index(event.cause.reason) as u16;
    if vlan != 0 {
        key.meta.vlan = vlan as u16;
    }
    let Some(place) = enter(iface.id, iface.epoch, direction) else { return };
    let now_ns = clock::traced_ns(place.cpu);
    let one = Refusal {
        wire: event.wire,
        tcp_flags,
        now_ns,
        class: class::REFUSED,
        seen: false,
        mark: event.dropped.mark,
        tells: iface.flags & WANT_TRANSLATIONS != 0,
    };
    record_all::<F>(&place, &mut key, &one, event);
    leave(&place);
}

/// A packet was refused in front of every hook, by a program that has no buffer of it. `false`: nobody wants to know.
///
/// # Safety
/// `headers` must be what its headers say.
#[inline(always)]
pub unsafe fn in_front<F: Family>(iface: &Iface, headers: *const Flow<F::Addr>, reason: u32, now_ns: u64) -> bool {
    if iface.flags & ONLY_NOTED != 0 || !wanted(iface.flags, INGRESS) {
        return false;
    }
    // SAFETY: by the contract.
    let f = unsafe { &*headers };
    let key = key_of(f, iface.id, Meta::pack(INGRESS, class::REFUSED), reason_index(reason) as u16, iface.epoch);
    let wire = Wire { packets: 1, bytes: f.l3_len };
    let (class, tcp_flags) = (class::REFUSED, f.tcp_flags);
    let Some(place) = enter(iface.id, iface.epoch, INGRESS) else { return false };
    let one = Refusal { wire, tcp_flags, now_ns, class, seen: false, mark: 0, tells: false };
    record::<F>(&place, &key, &one, core::ptr::null_mut());
    leave(&place);
    true
}

/// It cannot be shown whether a packet was refused.
#[inline(never)]
pub fn unknown(spot: u32, direction: u8, wire: Wire) {
    let Some(iface) = account::iface(spot) else { return };
    if iface.flags & ONLY_NOTED != 0 || !wanted(iface.flags, direction) {
        return;
    }
    let Some(place) = enter(iface.id, iface.epoch, direction) else { return };
    // SAFETY: a pointer into the map value.
    unsafe { bump(&raw mut (*place.truth).unknown, wire) };
    leave(&place);
}

/// Takes family, packets, bytes and tuple from the note, as if they had been read from the packet's headers.
#[inline(always)]
pub fn recall(event: &mut Event) {
    let note = &event.note;
    event.family = note.family();
    event.wire = Wire { packets: u32::from(note.packets), bytes: note.bytes };
    if note.family() == FAMILY_V4 {
        event.v4 = flow_of(&note.key, note.tcp_flags);
    } else {
        event.v6 = flow_of(&event.key6, note.tcp_flags);
    }
}

#[inline(always)]
fn flow_of<A: Copy>(key: &Key<A>, tcp_flags: u8) -> Flow<A> {
    let Meta { sport, dport, vlan, proto, .. } = key.meta;
    Flow {
        src: key.src,
        dst: key.dst,
        sport,
        dport,
        vlan,
        proto,
        tcp_flags,
        l3_len: 0,
        headers: 0,
        ip_header: 0,
        fragment: Fragment::NONE,
    }
}

/// Whether the headers of a dying buffer still say what they said at the hook.
#[inline(always)]
pub fn is_same_tuple(event: &Event) -> bool {
    if event.family != event.note.family() {
        return false;
    }
    if event.family == FAMILY_V4 {
        let a = &event.v4;
        let b = &event.note.key;
        return a.src == b.src && a.dst == b.dst && a.sport == b.meta.sport && a.dport == b.meta.dport;
    }
    let a = &event.v6;
    let b = &event.key6;
    a.src == b.src && a.dst == b.dst && a.sport == b.meta.sport && a.dport == b.meta.dport
}

/// Counts it, and the later fragments of its datagram, which carry no ports.
#[inline(always)]
fn record_all<F: Family>(place: &Place, key: &mut Key<F::Addr>, one: &Refusal, event: &mut Event) {
    let telling = if one.tells { &raw mut event.telling } else { core::ptr::null_mut() };
    record::<F>(place, key, one, telling);
    if event.later.packets != 0 {
        let none = absent(event.later_proto);
        key.meta.proto = event.later_proto;
        key.meta.sport = none;
        key.meta.dport = none;
        // Of one record of an event it can be told.
        record::<F>(place, key, &Refusal { wire: event.later, tcp_flags: 0, ..*one }, core::ptr::null_mut());
    }
}

/// Tells what a refused packet has on the other side, of the last record of it that is new.
#[inline(never)]
pub fn tell(event: &mut Event) {
    let telling = &event.telling;
    let Some(cpu) = cpu::cpu() else { return };
    if !lock(cpu) {
        let Meta { iface, epoch, .. } = meta(telling);
        told::not_told(u32::from(iface), epoch);
        return;
    }
    let key = &raw const telling.key;
    // SAFETY: a key of that family, in map memory; we hold the flag.
    unsafe {
        if telling.family == FAMILY_V4 {
            told::tell::<V4>(key.cast(), event.cause.address, telling.is_new);
        } else {
            told::tell::<V6>(key, event.cause.address, telling.is_new);
        }
    }
    unlock(cpu);
}

#[inline(always)]
fn meta(telling: &Telling) -> Meta {
    if telling.family == FAMILY_V4 {
        // SAFETY: a key of that family.
        unsafe { (*(&raw const telling.key).cast::<Key<Ip4>>()).meta }
    } else {
        telling.key.meta
    }
}

/// Counts it, in a record of its own kind.
#[inline(always)]
fn record<F: Family>(place: &Place, key: &Key<F::Addr>, one: &Refusal, telling: *mut Telling) {
    let Refusal { wire, tcp_flags, now_ns, class, seen, mark, .. } = *one;
    // What has another mark has another slot: two rules that refuse one flow in turns do not evict each other.
    // SAFETY: a map value of this CPU.
    let hash = F::hash(unsafe { (*place.cpu).seed }, key) ^ u64::from(mark.wrapping_mul(MARK_SPREAD));
    let index = slot_index(hash, REFUSED_MASK.load());
    let packet = One { wire, tcp_flags, mark, now_ns };
    let recorded = if let (true, Some(bank)) = (place.locked, F::refused(index)) {
        // SAFETY: a bank of this CPU, and we hold the flag.
        unsafe { count::<F, true>(bank, index, key, &packet, Fresh { telling }).is_some() }
    } else {
        if !telling.is_null() {
            told::not_told(u32::from(key.meta.iface), key.meta.epoch);
        }
        emit_alone::<F, true>(key, &packet)
    };
    let truth = place.truth;
    // SAFETY: pointers into the map value.
    unsafe {
        bump(&raw mut (*truth).refused, wire);
        if class == class::REFUSED_LATE {
            bump(&raw mut (*truth).late, wire);
        }
        if seen {
            bump(&raw mut (*truth).seen, wire);
        }
        if !recorded && (class == class::REFUSED || class == class::REFUSED_LATE) {
            bump(&raw mut (*truth).lost, wire);
        } else if !recorded && class == class::REFUSED_LOST {
            bump(&raw mut (*truth).lost_twice, wire);
        } else if !recorded {
            bump(&raw mut (*truth).lost_counted, wire);
        }
    }
}

/// Takes a packet out of the cache slot its hook counted it in. `false`: another CPU's, or the slot is gone.
#[inline(always)]
fn take_back<F: Family>(key: &Key<F::Addr>, event: &Event, cpu: *mut Cpu) -> bool {
    let note = &event.note;
    if !circle::is_own(note.number, cpu) {
        return false;
    }
    // SAFETY: a map value.
    let mask = unsafe { (*cpu).passed_mask };
    let index = slot_index(u64::from(note.place & ((1 << PLACE_BITS) - 1)), mask);
    let Some(bank) = F::passed(index) else { return false };
    let packets = u64::from(note.packets);
    let bytes = u64::from(note.bytes);
    // SAFETY: a slot of this CPU, and the caller holds the flag.
    unsafe {
        let slot = slot_in(bank, index);
        if !F::same(&raw const (*slot).key, key) {
            return false;
        }
        let Record { key: owner, stats } = &mut *slot;
        if stats.packets < packets || stats.bytes < bytes {
            return false;
        }
        stats.packets -= packets;
        stats.bytes -= bytes;
        if stats.packets == 0 {
            // Nothing of it stays: the next packet of the flow begins anew, with its own time and flags.
            owner.meta.iface = 0;
            return true;
        }
        if note.tcp_flags & !note.flags_before != 0 {
            stats.tcp_flags |= FLAGS_UNSURE;
        }
        // The latest of the flow so far, unless others of its time have been counted behind it.
        if stats.last_ns == note.now_ns {
            stats.last_ns = note.last_before_ns().max(stats.first_ns);
        }
    }
    true
}

const _: () = assert!(EGRESS == 1 && INGRESS == 0, "they are indexes");
