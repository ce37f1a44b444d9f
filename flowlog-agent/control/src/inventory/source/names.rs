//! Interfaces whose names say whose they are: `tap100i0` of Proxmox, `tap5c1b7c1e-0a` of Neutron. Pure: which interfaces there are is told by
//! whoever captures them.

use std::collections::BTreeMap;

use flowlog_model::rule::InvalidField;
use regex::{Regex, RegexBuilder};

use super::{FoundNic, Identity, Look, NICS_MAX, identity};

/// What a pattern may take once it is compiled: one for names of 15 bytes takes a few KiB.
const PATTERN_BYTES_MAX: usize = 256 << 10;
/// The group that is the cloud's project, and so no part of a NIC's identity.
const PROJECT: &str = "project";

/// A regular expression over names of interfaces, with groups that have names.
#[derive(Clone, Debug)]
pub(crate) struct NamePattern(Regex);

impl PartialEq for NamePattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl NamePattern {
    /// Understands one.
    ///
    /// # Errors
    /// If it is none, or nothing in it tells NICs apart.
    pub(super) fn new(text: &str) -> Result<Self, InvalidField> {
        let wrong = |rule: String| InvalidField::new("inventory.source.patterns", text, rule);
        let compiled = RegexBuilder::new(text).size_limit(PATTERN_BYTES_MAX).build();
        // The first line only says that there is an error.
        let last = |e: regex::Error| e.to_string().lines().last().unwrap_or_default().trim().to_owned();
        let pattern = compiled.map_err(|e| wrong(last(e)))?;
        if !pattern.capture_names().flatten().any(|name| name != PROJECT) {
            let rule =
                r"needs groups with names, which tell NICs apart, as in `^tap(?<vm>\d+)i(?<nic>\d+)$`".to_owned();
            return Err(wrong(rule));
        }
        Ok(Self(pattern))
    }

    /// The NIC that an interface of this name is of.
    fn find(&self, name: &str) -> Option<FoundNic> {
        let captures = self.0.captures(name)?;
        let groups = self.0.capture_names().flatten();
        let groups: BTreeMap<String, String> =
            groups.filter_map(|g| Some((g.to_owned(), captures.name(g)?.as_str().to_owned()))).collect();
        let mut stable = groups.clone();
        let project = stable.remove(PROJECT);
        if stable.is_empty() {
            return None;
        }
        let group = |name: &str| stable.get(name);
        let vm = group("vm");
        // A group that is called so and holds a whole id is one.
        let port = group("port").and_then(|text| text.parse().ok());
        Some(FoundNic {
            server: vm.map(|text| identity::vm(text)),
            name: vm.cloned().unwrap_or_default(),
            identity: port.map_or_else(|| Identity::Groups(stable.clone()), Identity::Port),
            interface: name.to_owned(),
            mac: None,
            project,
            labels: BTreeMap::new(),
            groups,
            side: None,
        })
    }
}

/// NICs of interfaces with these names; the first pattern that matches counts.
pub(crate) fn find<'a>(patterns: &[NamePattern], names: impl Iterator<Item = &'a str>) -> Look {
    let mut look = Look::default();
    for nic in names.filter_map(|name| patterns.iter().find_map(|p| p.find(name))) {
        if look.nics.len() == NICS_MAX {
            look.problems.push(format!("interfaces past the first {NICS_MAX} are left out"));
            break;
        }
        look.nics.push(nic);
    }
    look
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(all: &[&str]) -> Vec<NamePattern> {
        all.iter().map(|text| NamePattern::new(text).expect(text)).collect()
    }

    #[test]
    fn names_of_proxmox_and_neutron_say_whose_they_are_and_other_names_nothing() {
        let all = patterns(&[r"^tap(?<vm>\d+)i(?<nic>\d+)$", "^tap(?<port>[0-9a-f]{8}-[0-9a-f]{2})$"]);
        let names = ["lo", "tap100i0", "tap100i1", "tap5c1b7c1e-0a", "tap100i0x", "xtap100i0", "eth0"];
        let found = find(&all, names.into_iter());
        assert!(found.problems.is_empty());
        let interfaces: Vec<&str> = found.nics.iter().map(|n| n.interface.as_str()).collect();
        assert_eq!(interfaces, ["tap100i0", "tap100i1", "tap5c1b7c1e-0a"]);
        let [first, second, port] = &found.nics[..] else { panic!("{found:?}") };
        assert_eq!((first.server, first.name.as_str()), (second.server, "100"));
        assert!(first.server.is_some() && first.identity != second.identity);
        assert_eq!((port.server, &port.groups), (None, &BTreeMap::from([("port".into(), "5c1b7c1e-0a".into())])));
    }

    #[test]
    fn an_id_comes_from_the_groups_and_not_from_the_rest_of_the_name_nor_from_the_project() {
        let one = |pattern: &str, name: &str| find(&patterns(&[pattern]), [name].into_iter()).nics.remove(0);
        let before = one(r"^tap(?<vm>\d+)i(?<nic>\d+)$", "tap7i0");
        assert_eq!(one(r"^vm(?<vm>\d+)-(?<nic>\d+)$", "vm7-0").identity.id(), before.identity.id());
        let owned = one(r"^(?<project>[a-z]+)(?<vm>\d+)i(?<nic>\d+)$", "acme7i0");
        assert_eq!((owned.identity.id(), owned.project.as_deref()), (before.identity.id(), Some("acme")));
    }

    #[test]
    fn a_pattern_that_is_none_or_tells_nothing_apart_is_refused_in_one_line() {
        for (bad, words) in [
            ("^tap(", "unclosed group"),
            ("^tap.*$", "needs groups with names"),
            ("^(?<project>[a-z]+)$", "needs groups with names"),
            (r"(?<vm>\w{1000}{1000})", "size limit"),
        ] {
            let error = NamePattern::new(bad).expect_err(bad).to_string();
            assert!(error.contains(words) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn more_interfaces_than_there_is_room_for_are_left_out_and_that_is_said() {
        let names: Vec<String> = (0..=NICS_MAX).map(|n| format!("t{n}")).collect();
        let found = find(&patterns(&[r"^t(?<nic>\d+)$"]), names.iter().map(String::as_str));
        assert_eq!((found.nics.len(), found.problems.len()), (NICS_MAX, 1));
    }
}
