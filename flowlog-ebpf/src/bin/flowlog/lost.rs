//! Counting what was let through and died on its way: in a record beside the one that has it, which stays as it is.

use flowlog_ebpf::{
    abi::{Key, Meta, class, reason_index},
    packet::absent,
    refusal::Noted,
};

use crate::{
    account,
    cache::{Nothing, One, count, emit_alone, slot_index},
    event::Event,
    family::Family,
    maps::REFUSED_MASK,
    refuse::{Place, enter, leave},
    wire::{Wire, bump},
};

/// The packet of `event.note` was lost; with it the rest of its datagram, if it is one.
#[inline(never)]
pub fn noted<F: Family>(event: &mut Event) {
    let note = &event.note;
    let mut key = F::noted(&note.key, &event.key6);
    let direction = key.meta.direction();
    let Some(iface) = account::iface(event.spot) else { return };
    let is_late = (key.meta.epoch.wrapping_sub(iface.oldest) as i32) < 0;
    let counted = Noted { place: note.kind(), is_fragment: note.is_fragment(), is_late };
    // The note belongs to a watch that has ended, or no row will have the packet.
    if iface.id != key.meta.iface || !counted.is_in_record() {
        return;
    }
    let wire = Wire { packets: u32::from(note.packets), bytes: note.bytes };
    let now_ns = note.now_ns;
    // The row of a closed window stands, and a later one must not show more lost packets than it has.
    let epoch = if is_late { iface.epoch } else { key.meta.epoch };
    let Some(place) = enter(iface.id, epoch, direction) else { return };
    if is_late {
        // SAFETY: pointers into the map value.
        unsafe {
            bump(&raw mut (*place.truth).died_late, wire);
            bump(&raw mut (*place.truth).died_late, event.later);
        }
    } else {
        key.meta.flags = Meta::pack(direction, class::LOST);
        key.meta.reason = reason_index(event.cause.reason) as u16;
        record::<F>(&place, &key, wire, now_ns);
        if event.later.packets != 0 {
            // Later fragments carry no ports.
            let no_ports = absent(event.later_proto);
            key.meta.proto = event.later_proto;
            key.meta.sport = no_ports;
            key.meta.dport = no_ports;
            record::<F>(&place, &key, event.later, now_ns);
        }
    }
    leave(&place);
}

/// Counts it, in a record of its own kind.
#[inline(always)]
fn record<F: Family>(place: &Place, key: &Key<F::Addr>, wire: Wire, now_ns: u64) {
    // SAFETY: a map value of this CPU.
    let index = slot_index(F::hash(unsafe { (*place.cpu).seed }, key), REFUSED_MASK.load());
    let packet = One { wire, tcp_flags: 0, mark: 0, now_ns };
    let recorded = match (place.locked, F::refused(index)) {
        // SAFETY: a bank of this CPU, and we hold the flag.
        (true, Some(bank)) => unsafe { count::<F, true>(bank, index, key, &packet, Nothing).is_some() },
        _ => emit_alone::<F, false>(key, &packet),
    };
    // SAFETY: pointers into the map value.
    unsafe {
        bump(&raw mut (*place.truth).died, wire);
        if !recorded {
            bump(&raw mut (*place.truth).died_untold, wire);
        }
    }
}
