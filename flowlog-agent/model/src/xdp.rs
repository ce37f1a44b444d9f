//! Other people's XDP programs: which are on an interface, and what its driver has counted of them.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::rule::{InvalidField, words as choices};

/// Who runs a program: `XDP_ATTACHED_*` of `include/uapi/linux/if_link.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// The driver, before the kernel has a buffer: what the program drops or forwards passes none of our hooks.
    Driver,
    /// The stack, with a buffer: what the program drops is a REJECT.
    Generic,
    /// The card. Neither driver nor stack sees what the program drops or forwards.
    Offload,
}

impl XdpMode {
    /// As in status, metadata and log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Driver => "driver",
            Self::Generic => "generic",
            Self::Offload => "offload",
        }
    }
}

/// A program that somebody else has attached to an interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct XdpProgram {
    /// Who runs it.
    pub mode: XdpMode,
    /// The kernel's id of the program.
    pub id: u32,
    /// Its name, where it may be asked for (`CAP_SYS_ADMIN`).
    #[serde(default)]
    pub name: Option<String>,
}

impl fmt::Display for XdpProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} id={}", self.mode.as_str(), self.id)?;
        self.name.as_ref().map_or(Ok(()), |name| write!(f, " name={name}"))
    }
}

/// Programs as a list for people; empty if there are none.
#[must_use]
pub fn words(programs: &[XdpProgram]) -> String {
    programs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Counters of a driver, by the names that it gives them: packets since some moment that nobody knows.
pub type Named = BTreeMap<String, u64>;

/// What an interface's driver counts of XDP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct XdpCounters {
    /// The driver; empty if it does not say.
    pub driver: String,
    /// Packets that programs dropped or aborted; `None`: it does not count them.
    #[serde(default)]
    pub dropped: Option<Named>,
    /// Packets that programs sent back or redirected; `None`: it does not count them.
    #[serde(default)]
    pub forwarded: Option<Named>,
}

/// How closely it is looked at what foreign native programs do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpLevel {
    /// The driver's counters are read: packets, and no flows.
    #[default]
    Counters,
    /// Programs of ours run where theirs begin and end, and see each packet: flows.
    Trace,
    /// A program of ours has their place and runs them: flows.
    Wrap,
}

impl XdpLevel {
    const ALL: [Self; 3] = [Self::Counters, Self::Trace, Self::Wrap];

    /// As in configuration files.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counters => "counters",
            Self::Trace => "trace",
            Self::Wrap => "wrap",
        }
    }

    /// Whether programs of others must be asked for by their ids, which takes `CAP_SYS_ADMIN`.
    #[must_use]
    pub const fn asks_for_programs(self) -> bool {
        !matches!(self, Self::Counters)
    }
}

impl FromStr for XdpLevel {
    type Err = InvalidField;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let named = Self::ALL.into_iter().find(|level| level.as_str() == s);
        named.ok_or_else(|| InvalidField::new("xdp", s, choices(&Self::ALL.map(Self::as_str))))
    }
}

/// How closely it is looked at an interface now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct XdpView {
    /// The level that is in force.
    pub level: XdpLevel,
    /// Why it is not the level that is configured, if it is not.
    #[serde(default)]
    pub why: Option<String>,
}

/// Packets that foreign programs took, and that our programs have counted as flows or as no flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct XdpTaken {
    /// Dropped or aborted.
    pub dropped: u64,
    /// Sent back or redirected.
    pub forwarded: u64,
}

/// One look at the XDP of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct XdpReading {
    /// Somebody else's programs that are attached.
    pub programs: Vec<XdpProgram>,
    /// What its driver has counted, whoever's the programs were.
    pub counters: XdpCounters,
    /// What we have counted of it ourselves. Read after the driver's counters: what they have of these packets is in it.
    #[serde(default)]
    pub taken: XdpTaken,
    /// How closely it is looked at these programs.
    #[serde(default)]
    pub view: XdpView,
}
