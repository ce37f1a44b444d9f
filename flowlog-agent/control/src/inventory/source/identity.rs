//! Ids of NICs that sources find. They are in keys and rows for years: so they come from what stays, never from an interface's name, which is
//! another one after the next start of the VM or on the next node.

use std::collections::BTreeMap;

use flowlog_model::interface::Mac;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What our ids of version 5 (RFC 9562) are made within. It is never to change: all of them would.
const NAMESPACE: Uuid = Uuid::from_u128(0x7c2e_5b0a_91d4_4f6e_8a33_d5e1_64b7_09fc);

/// What a NIC is known by, whatever its interface is called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Identity {
    /// The cloud's own id of its port.
    Port(Uuid),
    /// The same, where that is no UUID.
    PortName(String),
    /// Its VM, and its address there.
    VmAndMac(Uuid, Mac),
    /// What a pattern has taken out of its interface's name: each group with its text.
    Groups(BTreeMap<String, String>),
}

impl Identity {
    /// From the cloud's id of a port.
    pub(super) fn of_port(id: &str) -> Self {
        id.parse().map_or_else(|_no_uuid| Self::PortName(id.to_owned()), Self::Port)
    }

    /// The id in records and keys.
    pub(crate) fn id(&self) -> Uuid {
        match self {
            Self::Port(id) => *id,
            Self::PortName(name) => made(&["port", name]),
            Self::VmAndMac(vm, mac) => made(&["nic", &vm.to_string(), &mac.to_string()]),
            Self::Groups(groups) => {
                let parts = groups.iter().flat_map(|(name, text)| [name.as_str(), text.as_str()]);
                made(&["groups"].into_iter().chain(parts).collect::<Vec<_>>())
            }
        }
    }
}

/// The id of a VM that a pattern has found.
pub(super) fn vm(text: &str) -> Uuid {
    text.parse().unwrap_or_else(|_no_uuid| made(&["vm", text]))
}

/// The id of the data center that a contract has on this node, where nobody has given it one.
pub(super) fn datacenter(contract: &str) -> Uuid {
    made(&["datacenter", contract])
}

/// Parts are kept apart by a byte that is in none of them.
fn made(parts: &[&str]) -> Uuid {
    Uuid::new_v5(&NAMESPACE, parts.join("\0").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_the_ports_own_else_it_comes_from_vm_and_address_and_never_changes() {
        let port = "5c1b7c1e-0a55-4e1c-9d2f-0f6f0c5ad001";
        assert_eq!(Identity::of_port(port).id().to_string(), port);
        let vm: Uuid = "7d2b0d3a-4f5e-4a60-8f57-3a1f2f3c0001".parse().expect("an id");
        let of = |mac: &str| Identity::VmAndMac(vm, mac.parse().expect("an address")).id().to_string();
        // Written down once: another id would be another NIC to whoever reads objects.
        assert_eq!(of("52:54:00:00:00:01"), "b46745ba-acde-558d-8145-0cd59df02a2b");
        assert_ne!(of("52:54:00:00:00:01"), of("52:54:00:00:00:02"));
        let groups = |all: &[(&str, &str)]| {
            let all = all.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
            Identity::Groups(all.collect()).id()
        };
        assert_eq!(groups(&[("vm", "100"), ("nic", "0")]).to_string(), "d6d5cce0-054a-5db8-bcdc-e3ae8353ed0f");
        assert_ne!(groups(&[("vm", "1"), ("nic", "00")]), groups(&[("vm", "10"), ("nic", "0")]));
        assert_eq!(Identity::of_port("lsp-1").id().get_version_num(), 5);
    }
}
