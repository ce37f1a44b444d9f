//! Other people's XDP programs: which are on an interface, and what its driver has counted of them.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

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

/// One look at the XDP of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct XdpReading {
    /// Somebody else's programs that are attached.
    pub programs: Vec<XdpProgram>,
    /// What its driver has counted, whoever's the programs were.
    pub counters: XdpCounters,
}
