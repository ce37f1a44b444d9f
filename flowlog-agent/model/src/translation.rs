//! Addresses and ports of packets, as connection tracking knows them.

use std::net::IpAddr;

/// Whose packets: where they come from and go to, and the protocol that has the ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// Source address; of the same family as the destination.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// Number of the protocol (IANA).
    pub proto: u8,
}

impl Tuple {
    /// That of answers.
    #[must_use]
    pub const fn reversed(self) -> Self {
        let Self { src, dst, sport, dport, proto } = self;
        Self { src: dst, dst: src, sport: dport, dport: sport, proto }
    }
}
