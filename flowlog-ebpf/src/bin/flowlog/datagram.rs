//! Datagrams in fragments: put together before a firewall refuses them, or cut only after it would have let them out.

use flowlog_ebpf::{abi::FAMILY_V4, packet::Part};

use crate::{event::Event, note, wire::Wire};

/// What a note of a fragment and the dying buffer have to do with each other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Whole {
    /// The buffer is the datagram that the fragment was put into, with all others that were counted.
    Shown,
    /// It is a fragment itself.
    Fragment,
    /// It is a fragment, and its datagram has been judged.
    Judged,
    /// It was put together from fragments that are not known any more.
    Unknown,
}

/// The stack puts fragments together before most firewalls see them: see [`flowlog_ebpf::abi::Datagram`].
#[inline(never)]
pub fn whole(event: &mut Event) -> Whole {
    let Some(datagram) = note::datagram(event.note.place) else { return Whole::Unknown };
    if event.part != Part::Whole {
        return if datagram.refused != 0 { Whole::Judged } else { Whole::Fragment };
    }
    let payload = match event.family {
        FAMILY_V4 => event.v4.l3_len.wrapping_sub(event.v4.ip_header),
        _ => event.v6.l3_len.wrapping_sub(event.v6.ip_header),
    };
    if datagram.first != u32::from(event.note.number) || datagram.refused != 0 {
        return Whole::Unknown;
    }
    // Judged from here on, whatever comes of it: its fragments die with it.
    datagram.refused = 1;
    let others = Wire { packets: datagram.later_packets, bytes: datagram.later_bytes };
    if datagram.mixed != 0 || datagram.epoch != event.note.key.meta.epoch || datagram.payload != payload {
        // Not what the wire would have carried on: one of them came twice, perhaps.
        event.unsure = others;
        return Whole::Unknown;
    }
    event.wire = Wire { packets: u32::from(event.note.packets), bytes: event.note.bytes };
    event.later = others;
    event.later_proto = datagram.later_proto;
    if datagram.address == event.cause.address { Whole::Shown } else { Whole::Unknown }
}

/// A packet that is larger than the way out allows would have left in fragments.
#[inline(never)]
pub fn fragment(event: &mut Event, mtu: u32) {
    // An IPv6 fragment has a header that says so.
    let (header, extra, proto) = if event.family == FAMILY_V4 {
        (event.v4.ip_header, 0, event.v4.proto)
    } else {
        (event.v6.ip_header, 8, event.v6.proto)
    };
    // All but the last carry a multiple of eight bytes.
    let each = mtu.saturating_sub(header + extra) & !7;
    let payload = event.wire.bytes.saturating_sub(header);
    if each == 0 || payload <= each {
        return;
    }
    let later = (payload - 1) / each;
    event.wire = Wire { packets: 1, bytes: header + extra + each };
    event.later = Wire { packets: later, bytes: payload - each + later * (header + extra) };
    event.later_proto = proto;
}
