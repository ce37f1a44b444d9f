//! Where a dying packet is between interfaces, and where interfaces are.

use flowlog_ebpf::abi::{EGRESS, REASON_LOST, Range, Stacked};

use crate::{
    account,
    event::Event,
    maps::{ABOVE, BASES, OWN_NETNS, WATCHED},
};

/// The loopback device has this index in every network namespace.
pub const LOOPBACK: u32 = 1;

/// Whether the packet is on a device (`dev`) that it leaves through, and no longer on the one it came in through.
#[inline(always)]
pub fn moved_on(event: &Event) -> bool {
    let d = &event.dropped;
    // IPv6 `reject` gives a packet from here that has no device yet the loopback's.
    let borrowed = d.dev == LOOPBACK && d.iif == 0;
    // A tunnel's packet is still on the tunnel's device until it has left through that of its route. A port or a lower device
    // is below that of the route.
    let tunnelled = d.dst != 0 && d.dst != d.dev && d.iif == 0 && !is_above(d.netns, d.dev, d.dst);
    d.dev != 0 && d.dev != d.iif && !borrowed && !tunnelled
}

/// The device that the packet was to leave through, 0 if none: see "Where a refused packet was going" in ARCHITECTURE.md. It is
/// `dev` if that is neither the in port nor the bridge between the ports, else the device of the route.
#[inline(never)]
pub fn way_out(event: &mut Event) -> u32 {
    if moved_on(event) { event.dropped.dev } else { event.dropped.dst }
}

/// Where the programs find an interface of a network namespace; 0: it is not watched, or there is none.
#[inline(never)]
pub fn spot(ifindex: u32, netns: u32) -> u32 {
    if ifindex == 0 {
        return 0;
    }
    if netns == OWN_NETNS.load() {
        return ifindex;
    }
    // SAFETY: read at once.
    unsafe { BASES.get(&Range::of(netns, ifindex)) }.map_or(0, |base| base.wrapping_add(ifindex))
}

/// The spot of a watched interface that wants to know of this refusal; 0: it does not.
#[inline(always)]
pub fn wants(ifindex: u32, refused: u16, netns: u32) -> u32 {
    let spot = spot(ifindex, netns);
    if account::iface(spot).is_some_and(|i| i.flags & refused != 0) { spot } else { 0 }
}

/// Finds the interface whose hook wrote the note that is looked at. `false`: the packet is in another network namespace by now, or may be.
///
/// A packet without device and route is in a queue on its way in: a fragment, or what a socket has received. With a note of its way out it
/// has left. A refused one is where its note is: firewalls refuse queued fragments. One that was lost may have been handed on to a socket of
/// another namespace, by a way that no hook has noted: nobody knows.
#[inline(always)]
pub fn find_noted(event: &mut Event) -> bool {
    let Some(watched) = WATCHED.get(u32::from(event.note.key.meta.iface)) else { return false };
    event.spot = watched.spot;
    if event.dropped.netns == 0 {
        if event.cause.action == REASON_LOST || event.note.key.meta.direction() == EGRESS {
            return false;
        }
        event.dropped.netns = watched.netns_inum;
    }
    event.dropped.netns == watched.netns_inum
}

/// Whether one interface is stacked on another of the same network namespace, directly or through others.
#[inline(never)]
pub fn is_above(netns_inum: u32, lower: u32, upper: u32) -> bool {
    // SAFETY: the value is not looked at.
    unsafe { ABOVE.get(&Stacked { lower, upper, netns_inum }).is_some() }
}
