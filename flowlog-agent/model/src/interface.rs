//! Network interfaces: what is known about one, and which one is meant.

mod selector;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use crate::xdp::XdpMode;

pub use selector::{By, NetnsName, Selector};

/// Where ip-netns(8) keeps the network namespaces that have names.
pub const NETNS_NAMED: &str = "/run/netns";

/// A network namespace, and a way into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netns {
    /// Inode number: what the kernel's programs know it by.
    pub inum: u32,
    /// A file that stands for it; `None`: the one we are in.
    pub path: Option<PathBuf>,
}

impl Netns {
    /// What people call it; `None`: the one we are in.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        let path = self.path.as_ref()?;
        let named = path.strip_prefix(NETNS_NAMED).unwrap_or(path);
        Some(named.display().to_string())
    }

    /// One with a name, or our own.
    #[must_use]
    pub fn at(inum: u32, name: Option<&str>) -> Self {
        Self { inum, path: name.map(|n| Path::new(NETNS_NAMED).join(n)) }
    }
}

/// Which interface it is, as the kernel knows it: indexes begin anew in every network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfKey {
    /// Inode number of the network namespace.
    pub netns_inum: u32,
    /// Index in that namespace.
    pub index: u32,
}

impl fmt::Display for IfKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "index {} of network namespace {}", self.index, self.netns_inum)
    }
}

/// What is directly below a stacked device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Below {
    /// Index of the device below, in the same network namespace.
    pub index: u32,
    /// VLAN id that packets have there; 0: what they have already.
    pub vlan: u16,
}

/// A device whose packets leave through a watched interface below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnTop {
    /// Inode number of the network namespace of both.
    pub netns_inum: u32,
    /// Index of the device.
    pub upper: u32,
    /// The nearest watched interface below it, and the outermost VLAN id that its packets have there.
    pub below: Below,
}

/// An interface as found at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetDev {
    /// Name, unique within the network namespace.
    pub name: String,
    /// Index, unique within the network namespace.
    pub index: u32,
    /// Hardware address, if it has one of six bytes.
    pub mac: Option<Mac>,
    /// Frames start with an Ethernet header.
    pub link_header: bool,
    /// It is a bridge.
    pub bridge: bool,
    /// Indexes of all devices stacked on this one (bridge, VLAN, bond, macvlan), directly or through others.
    pub above: Vec<u32>,
    /// What all packets that leave through it leave through, if it is stacked on something and that is sure.
    pub below: Option<Below>,
    /// Network namespace it is in.
    pub netns: Netns,
    /// XDP programs on it, ours as well: who runs each, and its id.
    pub xdp: Vec<(XdpMode, u32)>,
}

impl NetDev {
    /// Which one it is.
    #[must_use]
    pub fn key(&self) -> IfKey {
        IfKey { netns_inum: self.netns.inum, index: self.index }
    }
}

/// What is known about an interface that was found before: it may have moved, or have another name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound<'a> {
    /// Name it had then.
    pub name: &'a str,
    /// Index it had then.
    pub index: u32,
    /// Inode number of the network namespace it was in.
    pub netns_inum: u32,
    /// Hardware address it had then; none if it had none of six bytes.
    pub mac: Option<Mac>,
}

impl Bound<'_> {
    /// It is still where it was.
    fn stayed(&self, dev: &NetDev) -> bool {
        dev.index == self.index && dev.netns.inum == self.netns_inum
    }

    /// It has been moved to another namespace. The kernel keeps its address, and name or index if they are free there.
    fn moved(&self, dev: &NetDev) -> bool {
        let known = self.mac.is_some_and(|mac| mac.0 != [0; 6] && dev.mac == Some(mac));
        known && dev.netns.inum != self.netns_inum && (dev.name == self.name || dev.index == self.index)
    }
}

/// A hardware address of six bytes; as text `02:00:00:00:00:01`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.map(|b| format!("{b:02x}")).join(":"))
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let bytes: Vec<u8> = s.split([':', '-']).filter_map(|p| u8::from_str_radix(p, 16).ok()).collect();
        let well_formed = s.len() == 17 && s.chars().all(|c| c.is_ascii_hexdigit() || c == ':' || c == '-');
        match <[u8; 6]>::try_from(bytes) {
            Ok(bytes) if well_formed => Ok(Self(bytes)),
            _ => Err(format!("`{s}` is not a hardware address; write it as `02:00:00:aa:bb:cc`")),
        }
    }
}

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(s: String) -> Result<Self, Self::Error> {
        s.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

/// Interfaces of other network namespaces than our own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elsewhere {
    /// The interfaces that were found.
    pub devices: Vec<NetDev>,
    /// The namespaces that were looked for by name and are there: their inode numbers.
    pub namespaces: BTreeMap<NetnsName, u32>,
}

/// Names of interfaces, sorted, as a list for people.
#[must_use]
pub fn names(of: &[NetDev]) -> String {
    let mut names: Vec<&str> = of.iter().map(|d| d.name.as_str()).collect();
    names.sort_unstable();
    names.join(", ")
}

/// Frames an interface has counted, by direction (ingress, egress).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames, each direction at its [`index`](crate::rule::Direction::index).
    pub packets: [u64; 2],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_are_read_and_printed() {
        let mac: Mac = "02:00:00:AA:bb:0c".parse().expect("an address");
        assert_eq!(mac.to_string(), "02:00:00:aa:bb:0c");
        assert_eq!("02-00-00-aa-bb-0c".parse(), Ok(mac));
        for bad in
            ["", "02:00:00:aa:bb", "02:00:00:aa:bb:0g", "02:00:00:aa:bb:0c:01", "2:0:0:a:b:c", "+2:00:00:aa:bb:0c"]
        {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }
}
