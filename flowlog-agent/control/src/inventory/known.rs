//! NICs that several know: a file and a source, or two sources. By id, by interface, or by the guest's address.

use std::collections::BTreeMap;

use flowlog_model::{
    interface::{By, Mac},
    text::quotable,
};
use uuid::Uuid;

use super::{Resource, source::FoundNic};

/// Who has said it first.
type Origin = String;

/// A NIC is known already; in words.
#[derive(Debug)]
pub(super) enum Twice {
    /// To a file, or to a source before: that is as it may be.
    Elsewhere(String),
    /// To the same source: whatever tells its NICs apart does not.
    Within(String),
}

/// What is known so far.
#[derive(Default)]
pub(super) struct Known {
    ids: BTreeMap<Uuid, Origin>,
    /// By the interface's name, in our own namespace.
    names: BTreeMap<String, Origin>,
    /// By address: a file has that of the interface here, a source that of the guest's end.
    macs: BTreeMap<Mac, Origin>,
}

impl Known {
    /// What files say.
    pub(super) fn of<'a>(resources: impl Iterator<Item = &'a Resource>) -> Self {
        let mut known = Self::default();
        let file = || "a file".to_owned();
        for resource in resources {
            known.ids.insert(resource.id, file());
            for interface in &resource.interfaces {
                match &interface.selector.by {
                    By::Name(name) if interface.selector.netns.is_none() => {
                        known.names.insert(name.clone(), file());
                    }
                    By::Mac(mac) => drop(known.macs.insert(*mac, file())),
                    By::Name(_) | By::Index(_) | By::Absent => {}
                }
            }
        }
        known
    }

    /// A source has found a NIC; that somebody knows it already.
    pub(super) fn claim(&mut self, nic: &FoundNic, source: &str) -> Option<Twice> {
        let id = nic.identity.id();
        // libvirt gives the tap the guest's address, with another first byte.
        let here = nic.mac.map(|Mac([_, rest @ ..])| Mac([0xfe, rest[0], rest[1], rest[2], rest[3], rest[4]]));
        let mac = nic.mac.into_iter().chain(here).find_map(|mac| self.macs.get(&mac));
        // Within one source two VMs may have an address, on two networks.
        let mac = mac.filter(|origin| origin.as_str() != source);
        let first = self.ids.get(&id).or_else(|| self.names.get(&nic.interface)).or(mac);
        if let Some(first) = first {
            let interface = quotable(&nic.interface);
            return Some(if first == source {
                Twice::Within(format!(
                    "nic {id} ({interface}): another one has its id or its interface; the first one counts"
                ))
            } else {
                Twice::Elsewhere(format!("{first} has nic {id} ({interface}) as well; what that says counts"))
            });
        }
        self.ids.insert(id, source.to_owned());
        self.names.insert(nic.interface.clone(), source.to_owned());
        if let Some(mac) = nic.mac {
            self.macs.insert(mac, source.to_owned());
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use flowlog_model::{interface::Selector, rule::Side};

    use super::*;
    use crate::inventory::{Interface, Kind, source::Identity};

    fn written(id: u128, selector: Selector) -> Resource {
        Resource {
            id: Uuid::from_u128(id),
            kind: Kind::Nic,
            name: String::new(),
            contract: "1".parse().expect("contract"),
            datacenter: Uuid::from_u128(3),
            server: None,
            side: Side::Guest,
            translations: false,
            labels: flowlog_model::Labels::default(),
            source: None,
            interfaces: vec![Interface { id: id.to_string(), selector }],
        }
    }

    fn found(id: u128, interface: &str, mac: &str) -> FoundNic {
        FoundNic {
            identity: Identity::Port(Uuid::from_u128(id)),
            interface: interface.to_owned(),
            mac: Some(mac.parse().expect("an address")),
            server: None,
            name: String::new(),
            project: None,
            labels: BTreeMap::new(),
            groups: BTreeMap::new(),
            side: None,
        }
    }

    #[test]
    fn a_nic_that_a_file_or_a_source_before_knows_is_known_by_id_interface_or_address() {
        // A file has the tap's address, which begins with fe.
        let tap = "fe:54:00:00:00:01".parse().expect("an address");
        let files = [written(1, Selector::name("tap1")), written(2, Selector::mac(tap))];
        let mut known = Known::of(files.iter());
        let mut said = |nic: &FoundNic, source: &str| known.claim(nic, source);
        for nic in [
            found(1, "tap9", "52:54:00:00:00:09"),
            found(9, "tap1", "52:54:00:00:00:09"),
            found(9, "tap9", "52:54:00:00:00:01"),
        ] {
            let twice = said(&nic, "libvirt");
            assert!(
                matches!(&twice, Some(Twice::Elsewhere(words)) if words.starts_with("a file has nic")),
                "{twice:?}"
            );
        }
        assert!(said(&found(5, "tap5", "52:54:00:00:00:05"), "libvirt").is_none());
        let twice = said(&found(6, "other", "52:54:00:00:00:05"), "ovsdb");
        assert!(matches!(&twice, Some(Twice::Elsewhere(words)) if words.starts_with("libvirt has nic")), "{twice:?}");
        // Two VMs of one source may have an address; an id or an interface is one NIC's.
        assert!(said(&found(7, "tap7", "52:54:00:00:00:05"), "libvirt").is_none());
        assert!(matches!(said(&found(7, "tap8", "52:54:00:00:00:08"), "libvirt"), Some(Twice::Within(_))));
    }
}
