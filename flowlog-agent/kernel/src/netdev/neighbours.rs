//! Which neighbours are behind which ports of bridges: the kernel's neighbours (address to hardware address) and its bridges' tables (hardware address to
//! port). rtnetlink(7), `include/uapi/linux/neighbour.h`.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
};

use super::rtnetlink::ask_any;

/// A neighbour of this node on a bridge, behind one of its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighbourBehind {
    /// Index of the bridge.
    pub bridge: u32,
    /// Its address, as it lies in a packet; an IPv4 address in the first word.
    pub address: [u32; 4],
    /// Index of the port.
    pub port: u32,
}

/// Neighbours behind these ports, of the namespace we are in.
///
/// # Errors
/// If the kernel does not answer.
pub fn behind(ports: &BTreeSet<u32>) -> io::Result<Vec<NeighbourBehind>> {
    let stations = stations(&ask(AddressFamily::Bridge)?);
    if !stations.values().any(|port| port.is_some_and(|port| ports.contains(&port))) {
        return Ok(Vec::new());
    }
    Ok(join(&stations, &ask(AddressFamily::Unspec)?, ports))
}

fn ask(family: AddressFamily) -> io::Result<Vec<NeighbourMessage>> {
    let mut request = NeighbourMessage::default();
    request.header.family = family;
    let answer = ask_any(RouteNetlinkMessage::GetNeighbour(request), true)?.into_iter();
    let neighbours = answer.filter_map(|m| match m {
        RouteNetlinkMessage::NewNeighbour(n) => Some(n),
        _ => None,
    });
    Ok(neighbours.collect())
}

/// By bridge and hardware address: the port of a station; `None`: in one VLAN it is this one, in another that one.
type Stations = BTreeMap<(u32, Vec<u8>), Option<u32>>;

fn stations(table: &[NeighbourMessage]) -> Stations {
    let mut found = Stations::new();
    for entry in table {
        // What is permanent is the bridge itself, and what has no bridge is a device's own list.
        let bridge = entry.attributes.iter().find_map(|a| match a {
            NeighbourAttribute::Controller(bridge) => Some(*bridge),
            _ => None,
        });
        let (Some(bridge), Some(station)) = (bridge, hardware(entry)) else { continue };
        if entry.header.state == NeighbourState::Permanent {
            continue;
        }
        let port = entry.header.ifindex;
        found.entry((bridge, station)).and_modify(|known| *known = known.filter(|k| *k == port)).or_insert(Some(port));
    }
    found
}

fn join(stations: &Stations, neighbours: &[NeighbourMessage], ports: &BTreeSet<u32>) -> Vec<NeighbourBehind> {
    let of = |n: &NeighbourMessage| {
        let bridge = n.header.ifindex;
        let port = stations.get(&(bridge, hardware(n)?)).copied().flatten().filter(|port| ports.contains(port))?;
        let unusable = matches!(n.header.state, NeighbourState::Incomplete | NeighbourState::Failed);
        let address = address(n).filter(|_| !unusable)?;
        Some(NeighbourBehind { bridge, address, port })
    };
    neighbours.iter().filter_map(of).collect()
}

fn hardware(n: &NeighbourMessage) -> Option<Vec<u8>> {
    n.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::LinkLayerAddress(bytes) => Some(bytes.clone()),
        _ => None,
    })
}

fn address(n: &NeighbourMessage) -> Option<[u32; 4]> {
    n.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => Some([u32::from_ne_bytes(a.octets()), 0, 0, 0]),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => {
            let bytes = a.octets();
            let word = |n: usize| u32::from_ne_bytes([bytes[n], bytes[n + 1], bytes[n + 2], bytes[n + 3]]);
            Some([word(0), word(4), word(8), word(12)])
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(ifindex: u32, state: NeighbourState, attributes: Vec<NeighbourAttribute>) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = ifindex;
        message.header.state = state;
        message.attributes = attributes;
        message
    }

    fn station(port: u32, mac: u8, state: NeighbourState) -> NeighbourMessage {
        let attributes = vec![NeighbourAttribute::LinkLayerAddress(vec![mac; 6]), NeighbourAttribute::Controller(9)];
        entry(port, state, attributes)
    }

    fn neighbour(mac: u8, last: u8, state: NeighbourState) -> NeighbourMessage {
        let address = NeighbourAddress::Inet([10, 0, 0, last].into());
        entry(
            9,
            state,
            vec![NeighbourAttribute::Destination(address), NeighbourAttribute::LinkLayerAddress(vec![mac; 6])],
        )
    }

    #[test]
    fn a_neighbour_is_behind_the_port_of_its_station_if_that_is_one_and_wanted() {
        use NeighbourState::{Failed, Permanent, Reachable, Stale};
        let table = [
            station(3, 1, Reachable),
            station(4, 2, Stale),
            station(3, 3, Permanent),
            station(3, 4, Reachable),
            station(4, 4, Reachable),
            station(5, 5, Reachable),
        ];
        // Of the bridge itself; of two ports; of a port that nobody wants; of no station; one that does not answer.
        let neighbours = [
            neighbour(1, 1, Stale),
            neighbour(2, 2, Permanent),
            neighbour(3, 3, Reachable),
            neighbour(4, 4, Reachable),
            neighbour(5, 5, Reachable),
            neighbour(6, 6, Reachable),
            neighbour(1, 7, Failed),
        ];
        let found = join(&stations(&table), &neighbours, &BTreeSet::from([3, 4]));
        let of = |last, port| {
            let address = [u32::from_ne_bytes([10, 0, 0, last]), 0, 0, 0];
            NeighbourBehind { bridge: 9, address, port }
        };
        assert_eq!(found, [of(1, 3), of(2, 4)]);
    }
}
