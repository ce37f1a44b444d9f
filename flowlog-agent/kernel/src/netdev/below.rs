//! Which watched interface a packet leaves through that leaves through a device stacked on it: a VLAN, a macvlan, a bond.
//!
//! Only where every packet does so. A macvlan in bridge mode and an ipvlan hand packets to their neighbours on the same device, and a bond
//! that balances chooses for each packet.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use netlink_packet_route::link::{
    BondMode, InfoBond, InfoData, InfoMacVlan, InfoVlan, LinkAttribute, LinkInfo, LinkMessage, MacVlanMode,
};

use super::rtnetlink::links;

/// A device whose packets leave through a watched interface below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpperDevice {
    /// Its index.
    pub upper: u32,
    /// Index of the nearest watched interface below.
    pub lower: u32,
    /// Outermost VLAN id that its packets have there; 0: none of its own.
    pub vlan: u16,
}

/// Devices above these interfaces, of the namespace we are in.
///
/// # Errors
/// If the kernel does not answer.
pub fn above(watched: &BTreeSet<u32>) -> io::Result<Vec<UpperDevice>> {
    let all = links()?;
    let below: BTreeMap<u32, Step> = all.iter().filter_map(|link| Some((link.header.index, step(link)?))).collect();
    Ok(below.keys().filter_map(|upper| follow(*upper, &below, watched)).collect())
}

/// What is directly below a device, and which VLAN id it gives its packets.
#[derive(Clone, Copy)]
struct Step {
    lower: u32,
    vlan: u16,
}

fn follow(upper: u32, below: &BTreeMap<u32, Step>, watched: &BTreeSet<u32>) -> Option<UpperDevice> {
    let mut at = *below.get(&upper)?;
    let mut vlan = at.vlan;
    // Devices are not stacked in a ring; more steps than devices are none.
    for _ in 0..below.len() {
        if watched.contains(&at.lower) {
            return Some(UpperDevice { upper, lower: at.lower, vlan });
        }
        at = *below.get(&at.lower)?;
        vlan = if at.vlan == 0 { vlan } else { at.vlan };
    }
    None
}

fn step(link: &LinkMessage) -> Option<Step> {
    let infos = link.attributes.iter().find_map(|a| match a {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    })?;
    let data = infos.iter().find_map(|i| match i {
        LinkInfo::Data(data) => Some(data),
        _ => None,
    })?;
    // One in another namespace has an index of there.
    let elsewhere = link.attributes.iter().any(|a| matches!(a, LinkAttribute::LinkNetNsId(_)));
    let lower = link.attributes.iter().find_map(|a| match a {
        LinkAttribute::Link(lower) if !elsewhere && *lower != link.header.index => Some(*lower),
        _ => None,
    });
    match data {
        InfoData::Vlan(said) => {
            let id = said.iter().find_map(|s| if let InfoVlan::Id(id) = s { Some(*id) } else { None });
            Some(Step { lower: lower?, vlan: id? })
        }
        InfoData::MacVlan(said) => {
            let mode = said.iter().find_map(|s| if let InfoMacVlan::Mode(mode) = s { Some(*mode) } else { None });
            let leaves = matches!(mode, Some(MacVlanMode::Private | MacVlanMode::Vepa | MacVlanMode::Passthrough));
            Some(Step { lower: lower.filter(|_| leaves)?, vlan: 0 })
        }
        InfoData::Bond(said) => {
            let is_one = said.iter().any(|s| matches!(s, InfoBond::Mode(BondMode::ActiveBackup)));
            let active = said.iter().find_map(|s| if let InfoBond::ActivePort(port) = s { Some(*port) } else { None });
            Some(Step { lower: active.filter(|_| is_one)?, vlan: 0 })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, lower: Option<u32>, data: InfoData) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.extend(lower.map(LinkAttribute::Link));
        message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Data(data)]));
        message
    }

    #[test]
    fn packets_leave_through_what_is_below_where_that_is_sure() {
        let bond = |mode| InfoData::Bond(vec![InfoBond::Mode(mode), InfoBond::ActivePort(2)]);
        let macvlan = |mode| InfoData::MacVlan(vec![InfoMacVlan::Mode(mode)]);
        let vlan = |id| InfoData::Vlan(vec![InfoVlan::Id(id)]);
        let links = [
            link(5, None, bond(BondMode::ActiveBackup)),
            link(6, Some(5), vlan(100)),
            link(7, Some(6), vlan(7)),
            link(8, Some(6), macvlan(MacVlanMode::Vepa)),
            link(9, Some(6), macvlan(MacVlanMode::Bridge)),
            link(10, None, bond(BondMode::BalanceRr)),
            link(11, Some(10), vlan(3)),
            link(12, Some(4), vlan(3)),
        ];
        let below: BTreeMap<u32, Step> = links.iter().filter_map(|l| Some((l.header.index, step(l)?))).collect();
        let of = |upper, watched: &[u32]| {
            follow(upper, &below, &watched.iter().copied().collect()).map(|a| (a.lower, a.vlan))
        };
        assert_eq!(of(5, &[2]), Some((2, 0)));
        assert_eq!(of(6, &[2]), Some((2, 100)));
        assert_eq!(of(7, &[2]), Some((2, 100)), "the outer tag");
        assert_eq!(of(7, &[2, 6]), Some((6, 7)), "the nearest one");
        assert_eq!(of(8, &[2]), Some((2, 100)));
        for upper in [9, 10, 11, 12] {
            assert_eq!(of(upper, &[2, 3]), None, "{upper}");
        }
    }
}
