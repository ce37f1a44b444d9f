//! Addresses and ports of packets, as connection tracking knows them, and load balancers.

use std::{collections::HashSet, net::IpAddr};

/// Whose packets: where they come from and go to, and the protocol that has the ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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

/// An address for which the kernel's load balancer (IPVS) chooses a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Service {
    /// Number of the protocol (IANA).
    pub proto: u8,
    /// Where clients send to.
    pub address: IpAddr,
    /// The port there.
    pub port: u16,
}

/// All such addresses of a network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Services {
    /// Those that have an address and a port.
    pub at: HashSet<Service>,
    /// There are others, which are known by marks of the firewall.
    pub by_mark: bool,
}

impl Services {
    /// Whether packets with this tuple may be a client's.
    #[must_use]
    pub fn may_serve(&self, of: &Tuple) -> bool {
        let Tuple { dst, dport, proto, .. } = *of;
        self.by_mark || self.at.contains(&Service { proto, address: dst, port: dport })
    }
}
