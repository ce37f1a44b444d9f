//! Where a dying packet is between interfaces, and where interfaces are.

use flowlog_ebpf::abi::Stacked;

use crate::{
    account,
    event::Event,
    maps::{ABOVE, NETNS_OF},
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
    let tunnelled = d.dst != 0 && d.dst != d.dev && d.iif == 0 && !is_above(d.dev, d.dst);
    d.dev != 0 && d.dev != d.iif && !borrowed && !tunnelled
}

/// The device that the packet was to leave through, 0 if none: see "Where a refused packet was going" in ARCHITECTURE.md. It is
/// `dev` if that is neither the in port nor the bridge between the ports, else the device of the route.
#[inline(never)]
pub fn way_out(event: &mut Event) -> u32 {
    if moved_on(event) { event.dropped.dev } else { event.dropped.dst }
}

/// Whether a watched interface wants to know of this refusal.
#[inline(always)]
pub fn wants(ifindex: u32, refused: u16, netns: u32) -> bool {
    ifindex != 0 && account::iface(ifindex).is_some_and(|i| i.flags & refused != 0) && is_in(ifindex, netns)
}

/// Whether the watched interface of this index is in a network namespace: indexes repeat in each of them.
#[inline(always)]
fn is_in(ifindex: u32, netns: u32) -> bool {
    NETNS_OF.get(ifindex).is_some_and(|inum| *inum == netns)
}

/// As [`is_in`], for an interface whose own hook has noted the packet: without device and route (a queued fragment) nothing
/// else says where it is.
#[inline(always)]
pub fn is_here(ifindex: u32, netns: u32) -> bool {
    netns == 0 || is_in(ifindex, netns)
}

/// Whether one interface is stacked on another, directly or through others.
#[inline(never)]
pub fn is_above(lower: u32, upper: u32) -> bool {
    // SAFETY: the value is not looked at.
    unsafe { ABOVE.get(&Stacked { lower, upper }).is_some() }
}
