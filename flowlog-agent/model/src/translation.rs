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
    /// The port there; [`ANY_PORT`](Self::ANY_PORT): whichever it is.
    pub port: u16,
}

impl Service {
    /// How IPVS writes down that a service is for every port of its address.
    pub const ANY_PORT: u16 = 0;
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
        let is_served = |port| self.at.contains(&Service { proto, address: dst, port });
        self.by_mark || is_served(dport) || is_served(Service::ANY_PORT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_without_a_port_is_for_every_port_of_its_address() {
        let address: IpAddr = "10.3.0.1".parse().expect("an address");
        let at = HashSet::from([Service { proto: 17, address, port: Service::ANY_PORT }]);
        let services = Services { at, by_mark: false };
        let to = |dst: &str, proto| Tuple {
            src: address,
            dst: dst.parse().expect("an address"),
            sport: 9,
            dport: 53,
            proto,
        };
        assert!(services.may_serve(&to("10.3.0.1", 17)));
        assert!(!services.may_serve(&to("10.3.0.1", 6)) && !services.may_serve(&to("10.3.0.2", 17)));
    }
}
