//! Network interfaces: what is known about one, and which one is meant.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use crate::xdp::XdpMode;

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
    /// Network namespace it is in.
    pub netns: Netns,
    /// XDP programs on it, ours as well: who runs each, and its id.
    pub xdp: Vec<(XdpMode, u32)>,
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

/// Which interface is meant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Selector {
    /// The one of this name. Once found it is still the same one under another name, as long as no other has this name.
    Name(String),
    /// The one with this hardware address.
    Mac(Mac),
    /// The one with this index.
    Index(u32),
    /// None, for now: what it is of is not in the inventory.
    #[serde(skip)]
    Absent,
}

impl Selector {
    /// The interface that is meant; `bound` is the one that was meant the last time. In our own namespace first: only what
    /// was found before, or has the right hardware address, is looked for in others.
    #[must_use]
    pub fn find<'a>(&self, among: &'a [NetDev], bound: Option<Bound<'_>>) -> Option<&'a NetDev> {
        let here = |d: &&NetDev| d.netns.name().is_none();
        let own = || among.iter().filter(here);
        let known = || {
            let bound = bound?;
            let stayed = among.iter().find(|d| bound.stayed(d));
            stayed.or_else(|| among.iter().find(|d| bound.moved(d)))
        };
        match self {
            Self::Name(name) => own().find(|d| d.name == *name).or_else(known),
            // A VLAN or bridge has the address of what is below it, which was there before: the lowest index.
            Self::Mac(mac) => {
                let with = |d: &&NetDev| d.mac == Some(*mac);
                let lowest = own().filter(with).min_by_key(|d| d.index);
                lowest.or_else(known).or_else(|| among.iter().filter(with).min_by_key(|d| d.index))
            }
            Self::Index(index) => own().find(|d| d.index == *index).or_else(known),
            Self::Absent => None,
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Mac(mac) => write!(f, "{mac}"),
            Self::Index(index) => write!(f, "index {index}"),
            Self::Absent => f.write_str("of a resource that is not in the inventory"),
        }
    }
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

    fn dev(name: &str, index: u32, netns: Netns) -> NetDev {
        let mac = Some(Mac([2, 0, 0, 0, 0, 7]));
        NetDev {
            name: name.to_owned(),
            index,
            mac,
            link_header: true,
            bridge: false,
            above: Vec::new(),
            netns,
            xdp: Vec::new(),
        }
    }

    #[test]
    fn an_interface_that_was_found_by_name_is_the_same_under_another_until_a_new_one_has_the_name() {
        let dev = |name: &str, index| dev(name, index, Netns::at(1, None));
        let tap = Selector::Name("tap0".to_owned());
        let mac = Some(Mac([2, 0, 0, 0, 0, 7]));
        let bound = Some(Bound { name: "tap0", index: 5, netns_inum: 1, mac });
        let index = |s: &Selector, among: &[NetDev], bound| s.find(among, bound).map(|d| d.index);
        assert_eq!(index(&tap, &[dev("tap0", 5)], None), Some(5));
        assert_eq!(index(&tap, &[dev("vm-a", 5)], bound), Some(5));
        assert_eq!(index(&tap, &[dev("vm-a", 5)], None), None);
        assert_eq!(index(&tap, &[dev("vm-a", 5), dev("tap0", 9)], bound), Some(9));
        assert_eq!(index(&Selector::Mac(Mac([2, 0, 0, 0, 0, 7])), &[dev("vlan", 9), dev("tap0", 5)], None), Some(5));
        assert_eq!(index(&Selector::Index(9), &[dev("a", 7)], bound), None);
        assert_eq!(index(&Selector::Absent, &[dev("", 5)], bound), None);
    }

    #[test]
    fn an_interface_is_followed_into_another_namespace_by_its_address_and_never_taken_for_one_of_there() {
        let there = || Netns::at(2, Some("blue"));
        let tap = Selector::Name("tap0".to_owned());
        let mac = Some(Mac([2, 0, 0, 0, 0, 7]));
        let bound = Bound { name: "tap0", index: 5, netns_inum: 1, mac };
        let found = |among: &[NetDev], bound| tap.find(among, bound).map(|d| (d.netns.inum, d.index));
        assert_eq!(found(&[dev("tap0", 5, there())], Some(bound)), Some((2, 5)));
        assert_eq!(found(&[dev("tap0", 8, there())], Some(bound)), Some((2, 8)));
        assert_eq!(found(&[dev("eth0", 5, there())], Some(bound)), Some((2, 5)));
        // Nobody was found before; another address; another name and index; one of the name here.
        assert_eq!(found(&[dev("tap0", 5, there())], None), None);
        let other = Some(Mac([2, 0, 0, 0, 0, 8]));
        assert_eq!(found(&[dev("tap0", 5, there())], Some(Bound { mac: other, ..bound })), None);
        assert_eq!(found(&[dev("eth0", 8, there())], Some(bound)), None);
        let both = [dev("tap0", 9, Netns::at(1, None)), dev("tap0", 5, there())];
        assert_eq!(found(&both, Some(bound)), Some((1, 9)));
        // An address is looked for everywhere.
        let by_mac = Selector::Mac(Mac([2, 0, 0, 0, 0, 7]));
        assert_eq!(by_mac.find(&[dev("x", 9, there())], None).map(|d| d.netns.name()), Some(Some("blue".to_owned())));
    }
}
