//! The order that rows are written in.

use flowlog_model::rule::Direction;

use crate::window::{Addresses, Flow};

/// Order of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By the time of a flow's first packet.
    Start,
    /// By direction, family, service (protocol and lower port) and the address at the other end: rows of one customer's
    /// interface then differ least from their neighbours.
    Service,
}

impl Order {
    /// For the metadata. Parquet's own field for it knows orders of columns only.
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::Start => "flows: start",
            Self::Service => "flows: flow_direction, type, protocol, the lower port, the address at the other end",
        }
    }
}

/// What objects are written in.
pub const CHOSEN: Order = Order::Service;

/// A flow and what it is sorted by, in one number: comparing pairs takes twice as long.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Keyed(u128);

impl Keyed {
    /// Flows with the same key are in the order of their numbers.
    pub(super) fn new(key: u64, number: u32) -> Self {
        Self(u128::from(key) << u32::BITS | u128::from(number))
    }

    pub(super) fn number(self) -> u32 {
        let [a, b, c, d, ..] = self.0.to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }
}

/// [`Order::Service`] in one word: all of an IPv4 address, 32 bits of the first half of an IPv6 address.
pub(super) fn by_service(f: &Flow) -> u64 {
    let egress = f.direction == Direction::Egress;
    let (v6, peer) = match f.addresses {
        Addresses::V4(src, dst) => (false, u32::from_be(if egress { dst } else { src })),
        Addresses::V6(src, dst) => {
            let [hi, lo] = if egress { dst } else { src };
            // A network's hosts differ in the second half, networks in the first.
            let mixed = u64::from_be(hi) ^ u64::from_be(lo).rotate_left(16);
            (true, u32::try_from(mixed & u64::from(u32::MAX)).unwrap_or_default())
        }
    };
    let service = u64::from(f.sport.min(f.dport));
    u64::from(egress) << 57 | u64::from(v6) << 56 | u64::from(f.proto) << 48 | service << 32 | u64::from(peer)
}
