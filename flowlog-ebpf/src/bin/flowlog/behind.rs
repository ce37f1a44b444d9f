//! The port that a bridge would have picked for a packet that was routed to it and refused before; and the interface below the stacked device
//! that a packet was routed to.
//!
//! The bridge looks for the hardware address of the next hop, which the packet does not have yet. The agent knows both tables of the kernel:
//! neighbours and the bridge's own. It knows, too, through what packets of a VLAN, say, leave.

use flowlog_ebpf::abi::{ANY_NEXT_HOP, FAMILY_V4, NextHop, SPOT_BITS, WANT_REFUSED_EGRESS};

use crate::{account, event::Event, maps::BEHIND};

/// Whether a device is a bridge with watched ports behind which a next hop is known, or is above a watched interface.
#[inline(always)]
pub fn is_bridge(ifindex: u32, netns_inum: u32) -> bool {
    ifindex != 0 && find(&NextHop { address: [0; 4], bridge: ifindex, netns_inum }).is_some()
}

#[inline(never)]
fn find(key: &NextHop) -> Option<&'static u32> {
    // SAFETY: read at once.
    unsafe { BEHIND.get(key) }
}

/// The spot of the watched port that the next hop of the packet is behind, or of the interface below; above [`SPOT_BITS`], the VLAN id that it
/// has there. 0: it is not known, or there is none.
#[inline(never)]
pub fn port(event: &mut Event, bridge: u32) -> u32 {
    let d = &event.dropped;
    let (gateway, own) = if event.family == FAMILY_V4 {
        (d.gateway4(), [event.v4.dst, 0, 0, 0])
    } else {
        let [a, b] = event.v6.dst;
        (d.gateway6(), [a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32])
    };
    let address = if gateway == [0; 4] { own } else { gateway };
    let mut key = NextHop { address: ANY_NEXT_HOP, bridge, netns_inum: d.netns };
    let mut found = find(&key).map_or(0, |spot| *spot);
    if found == 0 && address != [0; 4] {
        key.address = address;
        found = find(&key).map_or(0, |spot| *spot);
    }
    let spot = found & ((1 << SPOT_BITS) - 1);
    if account::iface(spot).is_some_and(|i| i.flags & WANT_REFUSED_EGRESS != 0) { found } else { 0 }
}
