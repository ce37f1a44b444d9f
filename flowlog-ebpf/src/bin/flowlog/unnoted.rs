//! Refusals on interfaces whose hooks have not noted the packet: it died before them, or was only headed there.

use flowlog_ebpf::abi::{
    EGRESS, FAMILY_V4, FAMILY_V6, INGRESS, IS_BRIDGE, ONLY_NOTED, REASON_REFUSED, REASON_SOCKET, REASON_TC_INGRESS,
    REASON_XDP, SPOT_BITS, WANT_REFUSED_EGRESS, WANT_REFUSED_INGRESS,
};

use crate::{
    account,
    behind::{is_bridge, port},
    datagram::fragment,
    devices::{LOOPBACK, is_above, moved_on, wants, way_out},
    event::{Elsewhere, Event, Identity},
    family::{V4, V6},
    kernel, refuse,
};

/// No device may have a smaller MTU for IP (RFC 791).
const MTU_LEAST: u32 = 68;

/// Asks which interfaces want to know of it besides those that its notes have named so far. `false`: none.
#[inline(never)]
pub fn ask(event: &mut Event) -> bool {
    let out = way_out(event);
    let d = &event.dropped;
    let action = event.cause.action;
    // Local delivery is a route to the loopback.
    let leaves = !(out == LOOPBACK && d.iif != 0);
    let is_bridge = leaves && is_bridge(out, d.netns);
    let out_spot = if leaves && out != event.left_through { wants(out, WANT_REFUSED_EGRESS, d.netns) } else { 0 };
    let elsewhere = Elsewhere {
        came_in: if event.came_in_noted { 0 } else { wants(d.iif, WANT_REFUSED_INGRESS, d.netns) },
        climbed: if action == REASON_REFUSED && d.dev != d.iif { climbs_to_bridge(event) } else { 0 },
        out: if out_spot == 0 && !is_bridge { 0 } else { out },
        out_spot,
        is_bridge,
    };
    event.elsewhere = elsewhere;
    event.is_asked = true;
    elsewhere.came_in | elsewhere.climbed | elsewhere.out != 0
}

/// The interface it came in through, if no hook of that one has noted it.
#[inline(never)]
pub fn judge_ingress(event: &mut Event) {
    let action = event.cause.action;
    let Elsewhere { came_in, climbed, .. } = event.elsewhere;
    if climbed != 0 {
        event.is_unseen_at(climbed, INGRESS);
    }
    if event.came_in_noted || came_in == 0 {
        return;
    }
    // Dropped by a tc program before ours, or by generic XDP.
    let before_hook = action == REASON_TC_INGRESS || action == REASON_XDP;
    // Its other notes are all there, so if this interface's hook had seen it, that note would be there as well.
    if before_hook || (event.oldest == Identity::Shown as u32 && action != REASON_SOCKET) {
        return event.is_unseen_at(came_in, INGRESS);
    }
    // A copy has been judged by its notes already.
    if event.oldest != Identity::Copy as u32 && action != REASON_SOCKET {
        refuse::unknown(came_in, INGRESS, event.wire);
    }
}

/// The spot of the bridge, if it is a packet for the host on a bridge port, refused before the bridge's own hook (the bridge
/// family's input chain).
#[inline(always)]
fn climbs_to_bridge(event: &Event) -> u32 {
    let d = &event.dropped;
    let spot = wants(d.dev, WANT_REFUSED_INGRESS, d.netns);
    let climbs = account::iface(spot).is_some_and(|i| i.flags & IS_BRIDGE != 0)
        && is_above(d.netns, d.iif, d.dev)
        && kernel::is_bridges_own(event.cause.address);
    if climbs { spot } else { 0 }
}

/// Whether it is the copy of a packet to many that the stack makes for this node itself (`ip_mc_output`,
/// `ip6_finish_output2`). It passes the same chain, and never leaves.
#[inline(always)]
fn is_looped_back(event: &Event) -> bool {
    let d = &event.dropped;
    if d.iif != 0 || !d.cloned || d.owned {
        return false;
    }
    if event.family == FAMILY_V4 { d.route().is_to_many() } else { event.v6.dst[0] == 0xff }
}

/// Whether a received packet that has not moved on yet does not go out at all: it is for this node (in a VRF, its route is not to
/// the loopback), or has the route back to where it came from, as `reject` in a prerouting chain gives it.
#[inline(always)]
fn ends_here(event: &Event, out: u32) -> bool {
    let d = &event.dropped;
    if event.family == FAMILY_V4 {
        let route = d.route();
        return route.is_to_here() || !route.is_input;
    }
    out == d.iif || is_above(d.netns, d.iif, out)
}

/// The interface that it was to leave through.
#[inline(never)]
pub fn judge_egress(event: &mut Event) {
    let Elsewhere { out, out_spot, is_bridge, .. } = event.elsewhere;
    let moved_on = moved_on(event);
    if out == 0 || (event.left_through == out && !is_bridge) || is_looped_back(event) {
        return;
    }
    let d = &event.dropped;
    if !moved_on && d.iif != 0 && ends_here(event, out) {
        return;
    }
    // A packet that came from a port and is now on the bridge is not (yet) headed out through the bridge device.
    let bridge = is_bridge || account::iface(out_spot).is_some_and(|i| i.flags & IS_BRIDGE != 0);
    if moved_on && bridge && is_above(d.netns, d.iif, out) {
        return;
    }
    if event.later.packets == 0 && d.gso_size == 0 && event.wire.bytes > MTU_LEAST {
        let mtu = d.mtu();
        if mtu != 0 && event.wire.bytes > mtu {
            fragment(event, mtu);
        }
    }
    if event.left_through != out {
        event.is_unseen_at(out_spot, EGRESS);
    }
    if is_bridge {
        let port = port(event, out);
        if port != 0 {
            event.is_unseen_at(port, EGRESS);
        }
    }
}

/// A packet that no hook of the interface has counted was refused there. Above [`SPOT_BITS`]: the VLAN id that it would have had.
#[inline(never)]
pub fn unseen(event: &mut Event, spot: u32, direction: u8) {
    let vlan = spot >> SPOT_BITS;
    let spot = spot & ((1 << SPOT_BITS) - 1);
    // While hooks begin and end, packets are on their way that passed none.
    if account::iface(spot).is_none_or(|i| i.flags & ONLY_NOTED != 0) {
        return;
    }
    let event: *mut Event = event;
    // SAFETY: the event that we were given, and a part of it.
    unsafe {
        match (*event).family {
            FAMILY_V4 => refuse::unseen::<V4>(event, (spot, vlan), direction, &raw const (*event).v4),
            FAMILY_V6 => refuse::unseen::<V6>(event, (spot, vlan), direction, &raw const (*event).v6),
            // Not to be read: a hook that saw it would have counted it as malformed.
            _ => {}
        }
    }
}
