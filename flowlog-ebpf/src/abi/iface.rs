//! Interfaces: which are watched, for what, and which are stacked on which.

/// Ifindexes are looked up in a flat array of this size: a lookup is then one load. Linux hands them out
/// ascending, so a node needs 65,535 interface creations to get past it; what is past it is refused by name.
pub const IFINDEX_MAX: u32 = 65_536;

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

/// A watched interface, at index `ifindex` of the `IFACES` array. All zero: not watched.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Iface {
    /// Id used in keys and truth counters; 0: not watched.
    pub id: u16,
    /// `WANT_*`, [`NO_LINK_HEADER`], [`IS_BRIDGE`], [`ONLY_NOTED`], [`XDP_INGRESS`].
    pub flags: u16,
    /// The epoch that packets are counted in now.
    pub epoch: u32,
    /// Oldest epoch that may still be written to.
    pub oldest: u32,
    /// Explicit padding up to 16 bytes, always 0.
    pub spare: u32,
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
}

const _: () = {
    assert!(size_of::<Iface>() == 16);
    assert!(core::mem::offset_of!(Iface, epoch) == 4);
    assert!(core::mem::offset_of!(Iface, oldest) == 8);
    assert!(size_of::<Stacked>() == 8);
    assert!(IFINDEX_MAX - 1 <= u16::MAX as u32);
};
