//! Newtypes for numbers that must not be mixed up.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Id of a watched interface within this agent, 1-based.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct IfaceId(pub u16);

/// Id of a flow log in the rule store and the cloud API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FlowLogId(pub Uuid);

impl fmt::Display for FlowLogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of a window of one interface, counting up from 1; wraps with `u32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u32);

impl Epoch {
    /// The epoch before this one.
    #[must_use]
    pub fn previous(self) -> Self {
        Self(self.0.wrapping_sub(1))
    }

    /// The epoch after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

/// Monotonic time in ns (`CLOCK_MONOTONIC`): never steps, says nothing about the date.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MonoNs(pub u64);

/// Wall-clock time in ns since 1970 (UTC): can step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WallNs(pub i64);

/// Nanoseconds in a second.
pub const NS_PER_SEC: i64 = 1_000_000_000;

impl WallNs {
    /// Whole seconds since 1970, rounded down.
    #[must_use]
    pub fn secs(self) -> i64 {
        self.0.div_euclid(NS_PER_SEC)
    }
}

/// Both clocks at (nearly) the same instant. The only place in the agent where clocks are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Now {
    /// Monotonic.
    pub mono: MonoNs,
    /// Wall.
    pub wall: WallNs,
}

impl Now {
    /// Reads both clocks.
    #[must_use]
    pub fn read() -> Self {
        let ns = |t: rustix::time::Timespec| t.tv_sec * NS_PER_SEC + t.tv_nsec;
        let mono = ns(rustix::time::clock_gettime(rustix::time::ClockId::Monotonic));
        let wall = ns(rustix::time::clock_gettime(rustix::time::ClockId::Realtime));
        Self { mono: MonoNs(u64::try_from(mono).unwrap_or(0)), wall: WallNs(wall) }
    }

    /// What to add to a monotonic time to get wall-clock time.
    #[must_use]
    pub fn wall_minus_mono(self) -> i64 {
        self.wall.0 - i64::try_from(self.mono.0).unwrap_or(i64::MAX)
    }
}

/// Length of the kernel's timer tick: what its coarse clocks go forward by.
#[must_use]
pub fn tick_ns() -> u64 {
    let tick = rustix::time::clock_getres(rustix::time::ClockId::MonotonicCoarse);
    u64::try_from(tick.tv_sec * NS_PER_SEC + tick.tv_nsec).unwrap_or(0)
}

/// Bytes as lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut s, b| {
        // Writing to a String cannot fail.
        let _ = write!(s, "{b:02x}");
        s
    })
}
