//! A host under test with one to four ports, a guest behind each, and what lies between a port and the host's routing.

use super::{features::Features, prng::Prng};

/// Most ports of a host.
const PORTS_MAX: usize = 4;
/// The VLAN of a segment that has one.
pub const VLAN: u16 = 7;

/// What the ports of a segment lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The port itself has the address.
    Routed,
    /// A bridge of the ports.
    Bridge,
    /// A macvlan on the port.
    Macvlan,
    /// A macvlan on a bridge of the ports.
    BridgeMacvlan,
    /// A VLAN on the port.
    Vlan,
}

/// One IP network: guests, and perhaps an address of the host in it.
#[derive(Clone, Debug)]
pub struct Segment {
    /// How it is built.
    pub kind: Kind,
    /// Guests, which have the numbers of their ports.
    pub guests: Vec<usize>,
    /// Whether the host has an address in it: else it only bridges.
    pub addressed: bool,
    /// Another macvlan or VLAN, unused, on the same device and made before ours.
    pub crowd: bool,
}

/// Who sends or receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Endpoint {
    /// The host under test.
    Host,
    Guest(usize),
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Guest(g) => write!(f, "guest{g}"),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Topology {
    /// In order of their numbers.
    pub segments: Vec<Segment>,
    /// Ports that receive in NAPI batches, with GRO.
    pub gro: bool,
    /// Their NAPI has a thread.
    pub threaded: bool,
    pub ports: Ports,
}

/// What the ports of a host are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    Veth,
    /// Veths that take frames of 9,000 bytes, as all links then do.
    Jumbo,
    Tap,
}

impl Topology {
    #[must_use]
    pub fn random(rng: &mut Prng, features: &Features) -> Self {
        let ports = rng.between(1, PORTS_MAX);
        let mut kinds = vec![Kind::Routed];
        for (feature, kind) in [("bridge", Kind::Bridge), ("macvlan", Kind::Macvlan), ("vlan", Kind::Vlan)] {
            if features.has(feature) {
                kinds.push(kind);
            }
        }
        if features.has("bridge") {
            kinds.push(Kind::Bridge);
        }
        if features.has("bridge") && features.has("macvlan") {
            kinds.push(Kind::BridgeMacvlan);
        }
        let mut segments = Vec::new();
        let mut next = 0;
        while next < ports {
            let kind = *rng.pick(&kinds);
            let bridged = matches!(kind, Kind::Bridge | Kind::BridgeMacvlan);
            let n = if bridged { rng.between(1, 3).min(ports - next) } else { 1 };
            let silent = kind == Kind::Bridge && n > 1 && rng.chance(25);
            let crowd = matches!(kind, Kind::Macvlan | Kind::Vlan | Kind::BridgeMacvlan);
            let crowd = crowd && features.has("crowd") && rng.chance(50);
            segments.push(Segment { kind, guests: (next..next + n).collect(), addressed: !silent, crowd });
            next += n;
        }
        let gro = features.has("gro") && rng.chance(40);
        let jumbo = features.has("jumbo") && rng.chance(25);
        let threaded = gro && rng.chance(50);
        let tap = features.has("tap") && !gro && !jumbo && rng.chance(40);
        let ports = match (jumbo, tap) {
            (true, _) => Ports::Jumbo,
            (_, true) => Ports::Tap,
            _ => Ports::Veth,
        };
        Self { segments, gro, threaded, ports }
    }

    /// Number of guests, and of ports.
    #[must_use]
    pub fn guests(&self) -> usize {
        self.segments.iter().map(|s| s.guests.len()).sum()
    }

    /// Number of the segment that a guest is in.
    #[must_use]
    pub fn segment_of(&self, guest: usize) -> usize {
        self.segments.iter().position(|s| s.guests.contains(&guest)).expect("every guest is in a segment")
    }

    /// The device that the host's routing knows for a segment.
    #[must_use]
    pub fn routed_device(&self, segment: usize) -> String {
        let Segment { kind, guests, .. } = &self.segments[segment];
        match kind {
            Kind::Routed => format!("p{}", guests[0]),
            Kind::Bridge => format!("br{segment}"),
            Kind::Macvlan | Kind::BridgeMacvlan => format!("mv{segment}"),
            Kind::Vlan => format!("p{}.{VLAN}", guests[0]),
        }
    }

    /// The devices between a guest and the host's routing, the port first.
    #[must_use]
    pub fn chain(&self, guest: usize) -> Vec<String> {
        let segment = self.segment_of(guest);
        let port = format!("p{guest}");
        let last = self.routed_device(segment);
        match self.segments[segment].kind {
            Kind::Routed => vec![port],
            Kind::Bridge | Kind::Macvlan | Kind::Vlan => vec![port, last],
            Kind::BridgeMacvlan => vec![port, format!("br{segment}"), last],
        }
    }

    /// All devices of the host that packets pass.
    #[must_use]
    pub fn devices(&self) -> Vec<String> {
        let mut all: Vec<String> = (0..self.guests()).flat_map(|g| self.chain(g)).collect();
        all.sort();
        all.dedup();
        all
    }

    /// The guest's own interface in this network.
    #[must_use]
    pub fn guest_device(&self, guest: usize) -> String {
        let vlan = self.segments[self.segment_of(guest)].kind == Kind::Vlan;
        if vlan { format!("eth0.{VLAN}") } else { "eth0".to_owned() }
    }

    /// Address of a guest, or (with 254 as its number) of the host, in a segment.
    #[must_use]
    pub fn address(segment: usize, number: usize, v6: bool) -> String {
        if v6 { format!("fd00:{}::{number}", segment + 1) } else { format!("10.{}.0.{number}", 20 + segment) }
    }

    /// Address of a guest.
    #[must_use]
    pub fn guest_address(&self, guest: usize, v6: bool) -> String {
        Self::address(self.segment_of(guest), guest + 1, v6)
    }

    /// Address of the host in a segment.
    #[must_use]
    pub fn host_address(segment: usize, v6: bool) -> String {
        Self::address(segment, 254, v6)
    }
}
