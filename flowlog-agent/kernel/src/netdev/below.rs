//! What all packets that leave through a stacked device leave through: a VLAN, a macvlan, a bond.
//!
//! Only where every packet does so. A macvlan in bridge mode and an ipvlan hand packets to their neighbours on the same device, and a bond
//! that balances chooses for each packet.

use flowlog_model::interface::Below;
use netlink_packet_route::link::{
    BondMode, InfoBond, InfoData, InfoMacVlan, InfoVlan, LinkInfo, LinkMessage, MacVlanMode,
};

use super::rtnetlink::{infos, lower};

/// See the module's head.
pub(super) fn below(link: &LinkMessage) -> Option<Below> {
    let data = infos(link).iter().find_map(|i| match i {
        LinkInfo::Data(data) => Some(data),
        _ => None,
    })?;
    match data {
        InfoData::Vlan(said) => {
            let id = said.iter().find_map(|s| if let InfoVlan::Id(id) = s { Some(*id) } else { None });
            Some(Below { index: lower(link)?, vlan: id? })
        }
        InfoData::MacVlan(said) => {
            let mode = said.iter().find_map(|s| if let InfoMacVlan::Mode(mode) = s { Some(*mode) } else { None });
            let leaves = matches!(mode, Some(MacVlanMode::Private | MacVlanMode::Vepa | MacVlanMode::Passthrough));
            Some(Below { index: lower(link).filter(|_| leaves)?, vlan: 0 })
        }
        InfoData::Bond(said) => {
            let is_one = said.iter().any(|s| matches!(s, InfoBond::Mode(BondMode::ActiveBackup)));
            let active = said.iter().find_map(|s| if let InfoBond::ActivePort(port) = s { Some(*port) } else { None });
            Some(Below { index: active.filter(|_| is_one)?, vlan: 0 })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::LinkAttribute;

    use super::*;

    #[test]
    fn what_is_below_is_said_where_all_packets_leave_through_it() {
        let of = |data| {
            let mut message = LinkMessage::default();
            message.header.index = 9;
            message.attributes = vec![LinkAttribute::Link(2), LinkAttribute::LinkInfo(vec![LinkInfo::Data(data)])];
            below(&message).map(|below| (below.index, below.vlan))
        };
        let bond = |mode| InfoData::Bond(vec![InfoBond::Mode(mode), InfoBond::ActivePort(3)]);
        let macvlan = |mode| InfoData::MacVlan(vec![InfoMacVlan::Mode(mode)]);
        assert_eq!(of(InfoData::Vlan(vec![InfoVlan::Id(100)])), Some((2, 100)));
        assert_eq!(of(macvlan(MacVlanMode::Vepa)), Some((2, 0)));
        assert_eq!(of(macvlan(MacVlanMode::Bridge)), None);
        assert_eq!(of(bond(BondMode::ActiveBackup)), Some((3, 0)));
        assert_eq!(of(bond(BondMode::BalanceRr)), None);
        assert_eq!(of(InfoData::Bond(vec![InfoBond::Mode(BondMode::ActiveBackup)])), None, "none is active");
    }
}
