//! Which interface is meant, and finding it among those that there are.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::{Bound, Mac, NETNS_NAMED, NetDev};
use crate::rule::InvalidField;

/// A network namespace by what people call it: a name of ip-netns(8), or the absolute path of a file that stands for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NetnsName(String);

impl NetnsName {
    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A file that stands for it, as long as there is such a namespace.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        // An absolute path replaces what it is joined to.
        Path::new(NETNS_NAMED).join(&self.0)
    }

    /// As a part of an object's key, which has no `/`.
    #[must_use]
    pub fn in_keys(&self) -> String {
        self.0.trim_start_matches('/').replace('/', "-")
    }
}

/// Longest path of a namespace: more than any that a runtime makes.
const NETNS_BYTES_MAX: usize = 255;

impl FromStr for NetnsName {
    type Err = InvalidField;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let plain = !s.is_empty() && s.len() <= NETNS_BYTES_MAX && s.chars().all(|c| c.is_ascii_graphic());
        let steps_up = s.split('/').any(|part| part == "." || part == "..");
        if plain && !steps_up && (s.starts_with('/') || !s.contains('/')) {
            return Ok(Self(s.to_owned()));
        }
        let rule =
            format!("use a name of `ip netns`, or an absolute path without `..`, of {NETNS_BYTES_MAX} bytes at most");
        Err(InvalidField::new("netns", s, rule))
    }
}

impl TryFrom<String> for NetnsName {
    type Error = InvalidField;

    fn try_from(s: String) -> Result<Self, Self::Error> {
        s.parse()
    }
}

impl From<NetnsName> for String {
    fn from(name: NetnsName) -> Self {
        name.0
    }
}

impl fmt::Display for NetnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which interface is meant; in files `{ name = "eth0", netns = "natgw" }`, with `mac` or `index` in the place of `name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "RawSelector", into = "RawSelector")]
pub struct Selector {
    /// What it is known by there.
    pub by: By,
    /// The namespace that it is in; `None`: ours, or any if it is known by more than its place.
    pub netns: Option<NetnsName>,
}

/// What an interface is known by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum By {
    /// The one of this name. Once found it is still the same one under another name, as long as no other has this name.
    Name(String),
    /// The one with this hardware address.
    Mac(Mac),
    /// The one with this index.
    Index(u32),
    /// None, for now: what it is of is not in the inventory.
    Absent,
}

impl Selector {
    /// One of our own namespace, by its name.
    #[must_use]
    pub fn name(name: impl Into<String>) -> Self {
        Self { by: By::Name(name.into()), netns: None }
    }

    /// One with this hardware address.
    #[must_use]
    pub fn mac(mac: Mac) -> Self {
        Self { by: By::Mac(mac), netns: None }
    }

    /// One of our own namespace, by its index.
    #[must_use]
    pub fn index(index: u32) -> Self {
        Self { by: By::Index(index), netns: None }
    }

    /// See [`By::Absent`].
    #[must_use]
    pub fn absent() -> Self {
        Self { by: By::Absent, netns: None }
    }

    /// The same in a namespace.
    #[must_use]
    pub fn within(self, netns: Option<NetnsName>) -> Self {
        Self { netns, ..self }
    }

    /// As a part of ids and keys.
    #[must_use]
    pub fn in_keys(&self) -> String {
        self.netns.as_ref().map_or_else(|| self.by.to_string(), |netns| format!("{}-{}", netns.in_keys(), self.by))
    }

    /// The interface that is meant; `bound` is the one that was meant the last time. `namespaces` says which namespaces have a name.
    ///
    /// Where a namespace is named, only there. Else in our own first: only what was found before, or has the right hardware address, is
    /// looked for in others.
    #[must_use]
    pub fn find<'a>(
        &self,
        among: &'a [NetDev],
        bound: Option<Bound<'_>>,
        namespaces: &BTreeMap<NetnsName, u32>,
    ) -> Option<&'a NetDev> {
        let Some(netns) = &self.netns else { return self.by.find(among, bound) };
        let inum = *namespaces.get(netns)?;
        let inside = || among.iter().filter(|d| d.netns.inum == inum);
        let stayed = || inside().find(|d| bound.is_some_and(|b| b.stayed(d)));
        match &self.by {
            By::Name(name) => inside().find(|d| d.name == *name).or_else(stayed),
            By::Mac(mac) => inside().filter(|d| d.mac == Some(*mac)).min_by_key(|d| d.index),
            By::Index(index) => inside().find(|d| d.index == *index),
            By::Absent => None,
        }
    }
}

impl By {
    fn find<'a>(&self, among: &'a [NetDev], bound: Option<Bound<'_>>) -> Option<&'a NetDev> {
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

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Mac(mac) => write!(f, "{mac}"),
            Self::Index(index) => write!(f, "index {index}"),
            Self::Absent => f.write_str("of a resource that is not in the inventory"),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.by.fmt(f)?;
        self.netns.as_ref().map_or(Ok(()), |netns| write!(f, " of network namespace {netns}"))
    }
}

/// [`Selector`] as it is written.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSelector {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mac: Option<Mac>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<NetnsName>,
}

impl TryFrom<RawSelector> for Selector {
    type Error = &'static str;

    fn try_from(raw: RawSelector) -> Result<Self, Self::Error> {
        let by = match (raw.name, raw.mac, raw.index) {
            (Some(name), None, None) => By::Name(name),
            (None, Some(mac), None) => By::Mac(mac),
            (None, None, Some(index)) => By::Index(index),
            (None, None, None) if raw.netns.is_none() => By::Absent,
            _ => {
                return Err(
                    "interface: give one of `name`, `mac` and `index`, and `netns` if it is in another network namespace",
                );
            }
        };
        Ok(Self { by, netns: raw.netns })
    }
}

impl From<Selector> for RawSelector {
    fn from(Selector { by, netns }: Selector) -> Self {
        let none = Self { netns, ..Self::default() };
        match by {
            By::Name(name) => Self { name: Some(name), ..none },
            By::Mac(mac) => Self { mac: Some(mac), ..none },
            By::Index(index) => Self { index: Some(index), ..none },
            By::Absent => none,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interface::Netns;

    #[test]
    fn a_namespace_is_named_or_a_path_and_an_interface_in_it_is_found_nowhere_else() {
        for bad in ["", ".", "..", "a/b", "/run/../x", "a b", &"x".repeat(256)] {
            let error = bad.parse::<NetnsName>().expect_err(bad).to_string();
            assert!(error.contains("netns") && error.contains("ip netns"), "{error}");
        }
        let gateway: NetnsName = "natgw".parse().expect("a name");
        assert_eq!(gateway.path(), Path::new("/run/netns/natgw"));
        let by_path: NetnsName = "/proc/7/ns/net".parse().expect("a path");
        assert_eq!(by_path.path(), Path::new("/proc/7/ns/net"));
        let public = Selector::name("eth0").within(Some(gateway.clone()));
        assert_eq!(
            (public.to_string().as_str(), public.in_keys().as_str()),
            ("eth0 of network namespace natgw", "natgw-eth0")
        );
        assert_eq!(Selector::name("eth0").within(Some(by_path)).in_keys(), "proc-7-ns-net-eth0");
        let all = [dev("eth0", 3, Netns::at(1, None)), dev("eth0", 3, Netns::at(2, Some("natgw")))];
        let found = |s: &Selector, namespaces| s.find(&all, None, &namespaces).map(|d| d.netns.inum);
        let known = BTreeMap::from([(gateway, 2)]);
        assert_eq!(found(&public, known.clone()), Some(2));
        assert_eq!(found(&public, BTreeMap::new()), None);
        assert_eq!(found(&Selector::name("eth0"), known.clone()), Some(1));
        let other = public.netns.clone();
        assert_eq!(found(&Selector::name("eth1").within(other.clone()), known.clone()), None);
        assert_eq!(found(&Selector::index(3).within(other.clone()), known.clone()), Some(2));
        assert_eq!(found(&Selector::mac(Mac([2, 0, 0, 0, 0, 7])).within(other), known), Some(2));
    }

    fn dev(name: &str, index: u32, netns: Netns) -> NetDev {
        let mac = Some(Mac([2, 0, 0, 0, 0, 7]));
        NetDev {
            name: name.to_owned(),
            index,
            mac,
            link_header: true,
            bridge: false,
            below: None,
            above: Vec::new(),
            netns,
            xdp: Vec::new(),
        }
    }

    #[test]
    fn an_interface_that_was_found_by_name_is_the_same_under_another_until_a_new_one_has_the_name() {
        let dev = |name: &str, index| dev(name, index, Netns::at(1, None));
        let tap = By::Name("tap0".to_owned());
        let mac = Some(Mac([2, 0, 0, 0, 0, 7]));
        let bound = Some(Bound { name: "tap0", index: 5, netns_inum: 1, mac });
        let index = |s: &By, among: &[NetDev], bound| s.find(among, bound).map(|d| d.index);
        assert_eq!(index(&tap, &[dev("tap0", 5)], None), Some(5));
        assert_eq!(index(&tap, &[dev("vm-a", 5)], bound), Some(5));
        assert_eq!(index(&tap, &[dev("vm-a", 5)], None), None);
        assert_eq!(index(&tap, &[dev("vm-a", 5), dev("tap0", 9)], bound), Some(9));
        assert_eq!(index(&By::Mac(Mac([2, 0, 0, 0, 0, 7])), &[dev("vlan", 9), dev("tap0", 5)], None), Some(5));
        assert_eq!(index(&By::Index(9), &[dev("a", 7)], bound), None);
        assert_eq!(index(&By::Absent, &[dev("", 5)], bound), None);
    }

    #[test]
    fn an_interface_is_followed_into_another_namespace_by_its_address_and_never_taken_for_one_of_there() {
        let there = || Netns::at(2, Some("blue"));
        let tap = By::Name("tap0".to_owned());
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
        let by_mac = By::Mac(Mac([2, 0, 0, 0, 0, 7]));
        assert_eq!(by_mac.find(&[dev("x", 9, there())], None).map(|d| d.netns.name()), Some(Some("blue".to_owned())));
    }
}
