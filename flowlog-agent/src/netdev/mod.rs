//! What the kernel says about interfaces. Asks rtnetlink; changes nothing.
//!
//! * [`links`]: tells when one comes, goes or changes;
//! * [`rtnetlink`]: the questions and their answers;
//! * [`xdp`]: whether a driver runs XDP itself.

pub mod links;
mod rtnetlink;
pub mod xdp;

use std::{fmt, fs, io, os::unix::fs::MetadataExt as _, str::FromStr};

use serde::{Deserialize, Serialize};

/// An interface as found at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetDev {
    /// Name.
    pub name: String,
    /// Index, unique within the network namespace.
    pub index: u32,
    /// Hardware address, if it has one of six bytes.
    pub mac: Option<Mac>,
    /// Frames start with an Ethernet header.
    pub link_header: bool,
    /// It is a bridge.
    pub bridge: bool,
    /// Index of the device stacked on it (bridge, VLAN, bond), 0 if none. With several (VLANs on one port), the lowest.
    pub upper: u32,
}

/// A hardware address.
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
    /// The interface that is meant; `bound` is the index of the one that was meant the last time.
    #[must_use]
    pub fn find<'a>(&self, among: &'a [NetDev], bound: Option<u32>) -> Option<&'a NetDev> {
        match self {
            Self::Name(name) => {
                let named = among.iter().find(|d| d.name == *name);
                named.or_else(|| among.iter().find(|d| Some(d.index) == bound))
            }
            // A VLAN or bridge has the address of what is below it, which was there before: the lowest index.
            Self::Mac(mac) => among.iter().filter(|d| d.mac == Some(*mac)).min_by_key(|d| d.index),
            Self::Index(index) => among.iter().find(|d| d.index == *index),
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

/// Frames an interface has counted, by direction (ingress, egress).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames.
    pub packets: [u64; 2],
}

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum NetDevError {
    /// No such interface.
    #[error("interface `{name}`: no such interface in this network namespace; there are: {others}")]
    NotFound {
        /// Name asked for.
        name: String,
        /// Names that exist.
        others: String,
    },
    /// The kernel did not answer as expected.
    #[error("cannot ask the kernel for its interfaces: {0}")]
    Unreadable(#[from] io::Error),
}

/// All interfaces of this namespace.
///
/// # Errors
/// If the kernel does not answer.
pub fn all() -> Result<Vec<NetDev>, NetDevError> {
    Ok(rtnetlink::dump()?)
}

/// Looks an interface up by name.
///
/// # Errors
/// [`NetDevError::NotFound`] lists what there is instead.
pub fn find(name: &str) -> Result<NetDev, NetDevError> {
    let all = all()?;
    let named = all.iter().find(|d| d.name == name);
    named.cloned().ok_or_else(|| NetDevError::NotFound { name: name.to_owned(), others: names(&all) })
}

/// Names of interfaces, sorted, as a list for people.
#[must_use]
pub fn names(of: &[NetDev]) -> String {
    let mut names: Vec<&str> = of.iter().map(|d| d.name.as_str()).collect();
    names.sort_unstable();
    names.join(", ")
}

/// The interface's own counters: a witness our programs do not own.
///
/// # Errors
/// If it is gone.
pub fn counters(index: u32) -> Result<Counters, NetDevError> {
    Ok(rtnetlink::counters(index)?)
}

/// Inode number of the network namespace we are in.
///
/// # Errors
/// If `/proc` is not mounted.
pub fn netns_inum() -> io::Result<u32> {
    let inode = fs::metadata("/proc/thread-self/ns/net")?.ino();
    u32::try_from(inode).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_is_found_and_others_are_refused_by_name() {
        let lo = find("lo").expect("lo");
        assert!(lo.index == 1 && lo.link_header && !lo.bridge && lo.mac == Some(Mac([0; 6])), "{lo:?}");
        assert!(counters(1).is_ok() && counters(u32::MAX >> 1).is_err());
        for bad in ["no-such-if0", "", "..", "../net/lo"] {
            let error = find(bad).expect_err(bad).to_string();
            assert!(error.contains(&format!("`{bad}`")) && error.contains("lo"), "{error}");
        }
    }

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

    #[test]
    fn an_interface_that_was_found_by_name_is_the_same_under_another_until_a_new_one_has_the_name() {
        let dev = |name: &str, index| NetDev {
            name: name.to_owned(),
            index,
            mac: Some(Mac([2, 0, 0, 0, 0, 7])),
            link_header: true,
            bridge: false,
            upper: 0,
        };
        let tap = Selector::Name("tap0".to_owned());
        let index = |s: &Selector, among: &[NetDev], bound| s.find(among, bound).map(|d| d.index);
        assert_eq!(index(&tap, &[dev("tap0", 5)], None), Some(5));
        assert_eq!(index(&tap, &[dev("vm-a", 5)], Some(5)), Some(5));
        assert_eq!(index(&tap, &[dev("vm-a", 5)], None), None);
        assert_eq!(index(&tap, &[dev("vm-a", 5), dev("tap0", 9)], Some(5)), Some(9));
        assert_eq!(index(&Selector::Mac(Mac([2, 0, 0, 0, 0, 7])), &[dev("vlan", 9), dev("tap0", 5)], None), Some(5));
        assert_eq!(index(&Selector::Index(9), &[dev("a", 5)], Some(5)), None);
    }
}
