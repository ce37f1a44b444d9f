//! Interfaces: which are watched, for what, where the programs find them, and which are stacked on which.
//!
//! Ifindexes begin anew in every network namespace. The programs find an interface at its *spot* in one flat array: a look-up
//! is then one load. In the agent's own namespace the spot is the ifindex. In another one it is the ifindex plus the *base* of the
//! [`Range`] that the index is in; bases are chosen so that no two interfaces have one spot.

/// Ifindexes below this can be watched, in each namespace. Linux hands them out ascending, so a node needs 65,535 interface
/// creations to get past it; what is past it is refused by name.
pub const IFINDEX_MAX: u32 = 65_536;

/// Ifindexes of a [`Range`]: a namespace of an appliance mostly has a few, from 1 on.
pub const RANGE_INDEXES: u32 = 64;

/// Ranges that there is room for, in all other namespaces together: the spots of all are as many as those of our own namespace.
pub const RANGES_MAX: u32 = 1_024;

/// Places of the `IFACES` array.
pub const SPOTS: u32 = IFINDEX_MAX + RANGES_MAX * RANGE_INDEXES;

/// [`RANGE_INDEXES`] ifindexes of one network namespace that follow each other: key of the `BASES` map, whose value is what is added
/// to each of them (modulo 2^32).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    /// Inode number of the network namespace.
    pub netns_inum: u32,
    /// Its first ifindex, divided by [`RANGE_INDEXES`].
    pub number: u32,
}

impl Range {
    /// The one that an interface is in.
    #[must_use]
    #[inline(always)]
    pub const fn of(netns_inum: u32, ifindex: u32) -> Self {
        Self { netns_inum, number: ifindex / RANGE_INDEXES }
    }

    /// What is added to its ifindexes if it is the `place`th of all ranges, from 0.
    #[must_use]
    pub const fn base(self, place: u32) -> u32 {
        (IFINDEX_MAX + place * RANGE_INDEXES).wrapping_sub(self.number * RANGE_INDEXES)
    }
}

/// Pairs of interfaces of which one is stacked on the other, that the programs can know.
pub const ABOVE_MAX: u32 = 16_384;

/// A hook is attached for ingress.
pub const WANT_INGRESS: u16 = 1 << 0;
/// A hook is attached for egress.
pub const WANT_EGRESS: u16 = 1 << 1;
/// Refused packets on their way in are wanted.
pub const WANT_REFUSED_INGRESS: u16 = 1 << 2;
/// Refused packets on their way out are wanted.
pub const WANT_REFUSED_EGRESS: u16 = 1 << 3;
/// The device has no link-layer header (tun, wireguard): frames start with the IP header.
pub const NO_LINK_HEADER: u16 = 1 << 4;
/// The device is a bridge: it is never the port a bridged packet was refused on.
pub const IS_BRIDGE: u16 = 1 << 5;
/// Only refusals of packets that a hook has noted count: for the moments at which hooks begin and end, when packets are
/// on their way that no hook has counted.
pub const ONLY_NOTED: u16 = 1 << 6;
/// Ingress is counted by an XDP program: the TC hook only notes it.
pub const XDP_INGRESS: u16 = 1 << 7;
/// In the flags of index 0 of `IFACES`, which is no interface: somebody on this node reads `skb->tc_index`, so packets get
/// no numbers.
pub const NO_NUMBERS: u16 = 1 << 8;
/// Of translated packets, the addresses and ports on the other side of the translation are wanted ([`class::TOLD`](super::class::TOLD)).
pub const WANT_TRANSLATIONS: u16 = 1 << 9;

/// Who counts ingress is changing from TC to XDP or back, one CPU after the other: [`Iface::by_xdp`] says where it is XDP.
///
/// A packet passes XDP and TC on one CPU, in one go. So whoever changes that number on the CPU that it is about, outside of an interrupt, does
/// so between two packets: each is counted once, be it by the one or by the other.
pub const HANDS_OVER: u16 = 1 << 10;

/// A watched interface, at its spot in the `IFACES` array. All zero: not watched.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Iface {
    /// Id used in keys and truth counters; 0: not watched.
    pub id: u16,
    /// `WANT_*` ([`WANT_TRANSLATIONS`] among them), [`NO_LINK_HEADER`], [`IS_BRIDGE`], [`ONLY_NOTED`], [`XDP_INGRESS`], [`HANDS_OVER`].
    pub flags: u16,
    /// The epoch that packets are counted in now.
    pub epoch: u32,
    /// Oldest epoch that may still be written to.
    pub oldest: u32,
    /// With [`HANDS_OVER`]: XDP counts ingress on CPUs below this, TC on the others. Else of no meaning.
    pub by_xdp: u32,
}

/// Where a watched interface is: at its id in the `WATCHED` array.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    /// The epoch that packets are counted in now, as in [`Iface::epoch`]: for the sweeper.
    pub epoch: u32,
    /// Inode number of its network namespace.
    pub netns_inum: u32,
    /// Its spot in `IFACES`.
    pub spot: u32,
    /// Not 0: somebody is looking at its flows, for the sweeper ([`sweep::OBSERVED`](super::sweep::OBSERVED)).
    pub observed: u32,
}

/// Two interfaces, `upper` stacked on `lower` directly or through others: key of the `ABOVE` map. Both are in one network
/// namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stacked {
    /// Ifindex of a bridge port, bond member, lower device of a VLAN or macvlan.
    pub lower: u32,
    /// Ifindex of the bridge, bond, VLAN, macvlan.
    pub upper: u32,
    /// Inode number of their network namespace.
    pub netns_inum: u32,
}

/// Next hops behind bridges' ports that the programs can know.
pub const BEHIND_MAX: u32 = 16_384;

/// A next hop of packets that are routed to a bridge, or to a device that is stacked on an interface: key of the `BEHIND` map, whose value is the
/// spot of the watched port that it is behind, or of the interface below; above [`SPOT_BITS`] the VLAN id that packets have there, 0: what
/// they have already. With the address 0 the value means nothing: there are such ports.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHop {
    /// Its address, as it lies in a packet; an IPv4 address in the first word.
    pub address: [u32; 4],
    /// Ifindex of the bridge, or of the stacked device.
    pub bridge: u32,
    /// Inode number of its network namespace.
    pub netns_inum: u32,
}

/// [`NextHop::address`] of a device below which all packets go the same way.
pub const ANY_NEXT_HOP: [u32; 4] = [u32::MAX; 4];

/// Bits of a spot where a VLAN id is above it.
pub const SPOT_BITS: u32 = 18;

const _: () = {
    // With a VLAN id and a direction they fit into 32 bits.
    assert!(SPOTS <= 1 << SPOT_BITS && SPOT_BITS + 12 < 32);
    assert!(size_of::<NextHop>() == 24);
    assert!(size_of::<Iface>() == 16);
    assert!(core::mem::offset_of!(Iface, epoch) == 4);
    assert!(core::mem::offset_of!(Iface, oldest) == 8);
    assert!(size_of::<Stacked>() == 12);
    assert!(size_of::<Range>() == 8);
    assert!(size_of::<Watched>() == 16);
    assert!(IFINDEX_MAX - 1 <= u16::MAX as u32);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_interfaces_have_one_spot() {
        let ranges = [Range::of(2, 3), Range::of(3, 3), Range::of(3, 64), Range::of(4, 65_535)];
        let mut spots: std::vec::Vec<u32> = std::vec![3, 64, 65_535];
        for (range, place) in ranges.into_iter().zip([0, 1, 2, RANGES_MAX - 1]) {
            let indexes = range.number * RANGE_INDEXES..(range.number + 1) * RANGE_INDEXES;
            spots.extend(indexes.map(|ifindex| ifindex.wrapping_add(range.base(place))));
        }
        assert!(spots.iter().all(|spot| *spot < SPOTS));
        spots.sort_unstable();
        assert!(spots.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
