//! What the kernel knows of a buffer, and whether that is on an interface that is traced.

use flowlog_ebpf::{
    packet::Frame,
    sighting::{AT_DEATH, FOUND_NON_IP, NOTE_COUNTED, NOTE_OWN},
};

use crate::{
    look::{self, HEADERS},
    maps::TARGETS,
};

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;

/// Goes behind the VLAN tags, and takes down what the kernel knows.
#[inline(never)]
pub fn take_down(which: u32) -> u32 {
    let Some(look) = look::look(which) else { return 0 };
    // SAFETY: a map value of this CPU.
    unsafe {
        let d = &raw mut (*look).dropped;
        (*d).skip_tags();
        let s = &raw mut (*look).sighting;
        (*s).netns_inum = (*d).netns;
        (*s).dev = (*d).dev;
        (*s).iif = (*d).iif;
        (*s).dst = (*d).dst;
        (*s).number = u32::from((*d).number);
        (*s).frame_bytes = (*d).l3_available;
        (*look).subjects[HEADERS].ethertype = (*d).protocol;
    }
    1
}

/// Parses its headers.
#[inline(never)]
pub fn parse(which: u32) -> u32 {
    let Some(look) = look::look(which) else { return 0 };
    // SAFETY: a map value of this CPU.
    unsafe {
        let d = &raw const (*look).dropped;
        let frame = Frame { len: (*d).l3_available, vlan_tci: (*d).vlan_tci, link_header: false };
        let headers = (*d).headers;
        look::parse(&headers, &frame, which);
        // Without a link header whatever begins with a 4 or a 6 would be IP.
        let protocol = (*d).protocol;
        if protocol != ETH_P_IP && protocol != ETH_P_IPV6 {
            (*look).sighting.found = FOUND_NON_IP;
            (*look).subjects[HEADERS].family = 0;
            (*look).subjects[HEADERS].has_ports = 0;
        }
    }
    1
}

/// Answer of [`is_at_target`]: it is not on this interface, and there are more.
pub const MORE: u32 = 0;
/// It is.
pub const AT_TARGET: u32 = 1;
/// It is on none of them.
pub const NOWHERE: u32 = 2;

/// Whether the packet is on the next of the interfaces that are traced; where it dies, also whether it was, or was headed there.
#[inline(never)]
pub fn is_at_target(which: u32) -> u32 {
    let Some(look) = look::look(which) else { return NOWHERE };
    // SAFETY: a map value of this CPU.
    unsafe {
        let number = (*look).test;
        (*look).test = number + 1;
        let Some(target) = TARGETS.get(number).filter(|target| target.ifindex != 0) else {
            (*look).test = 0;
            return NOWHERE;
        };
        let s = &raw const (*look).sighting;
        if (*s).netns_inum != target.netns_inum {
            return MORE;
        }
        let is_noted = (*s).identity == NOTE_OWN || (*s).identity == NOTE_COUNTED;
        let was = (*s).iif == target.ifindex
            || (*s).dst == target.ifindex
            || (is_noted && u32::from((*s).note.ifindex) == target.ifindex);
        if (*s).dev == target.ifindex || ((*s).at == AT_DEATH && was) {
            (*look).test = 0;
            return AT_TARGET;
        }
        MORE
    }
}
