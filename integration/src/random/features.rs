//! What a random network may contain; each can be left out, so that a failure is narrowed down.

use std::collections::BTreeSet;

use anyhow::{bail, ensure};

/// Everything there is. `xdp`, `clsact`: hooks of the agent. `smallcache`: caches of 16 slots. `noise`: raw sockets that
/// filter everything. `packet`: packet sockets for all protocols; `protosock`: for IP alone. `gro`: NAPI batches.
/// `jumbo`: frames larger than a page whose headers lie in page fragments. `tap`: taps instead of veths. `sockfilter`: receiving sockets with a filter of their own.
pub const ALL: [&str; 29] = [
    "bridge",
    "macvlan",
    "vlan",
    "crowd",
    "v6",
    "tcp",
    "ping",
    "echo",
    "nat",
    "ct",
    "notrack",
    "frag",
    "tee",
    "limit",
    "reject",
    "spread",
    "smallcache",
    "noise",
    "packet",
    "protosock",
    "gro",
    "rejected",
    "xdp",
    "clsact",
    "guestfw",
    "sockfilter",
    "smp",
    "jumbo",
    "tap",
];

/// What is switched on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features(BTreeSet<&'static str>);

impl Features {
    #[must_use]
    pub fn all() -> Self {
        Self(ALL.into_iter().collect())
    }

    /// From `all`, `simple` (nothing) or names, separated by commas; `-NAME` takes one away.
    ///
    /// # Errors
    /// If there is no such name.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut on = BTreeSet::new();
        for word in text.split(',').map(str::trim).filter(|w| !w.is_empty()) {
            let name = word.trim_start_matches('-');
            match (name, ALL.iter().find(|n| **n == name)) {
                ("all", _) => on.extend(ALL),
                ("simple", _) => {}
                (_, Some(known)) if word.starts_with('-') => drop(on.remove(known)),
                (_, Some(known)) => drop(on.insert(*known)),
                (_, None) => bail!("there is no feature `{name}`; there are: all, simple, {}", ALL.join(", ")),
            }
        }
        ensure!(!text.trim().is_empty(), "no feature: say `simple`");
        Ok(Self(on))
    }

    /// Whether this one is on.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        debug_assert!(ALL.contains(&name), "{name}");
        self.0.contains(name)
    }
}

/// As [`Features::parse`] reads it.
impl std::fmt::Display for Features {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.len() == ALL.len() {
            return f.write_str("all");
        }
        if self.0.is_empty() {
            return f.write_str("simple");
        }
        f.write_str(&self.0.iter().copied().collect::<Vec<_>>().join(","))
    }
}
