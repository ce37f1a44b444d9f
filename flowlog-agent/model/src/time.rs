//! Points in time. Which clock they are of is in their type.

use serde::{Deserialize, Serialize};

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
    #[inline]
    #[must_use]
    pub fn secs(self) -> i64 {
        self.0.div_euclid(NS_PER_SEC)
    }
}

/// Both clocks at (nearly) the same instant. They are read by `flowlog_host::clock` alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Now {
    /// Time on the monotonic clock.
    pub mono: MonoNs,
    /// Time on the wall clock.
    pub wall: WallNs,
}

impl Now {
    /// What to add to a monotonic time to get wall-clock time.
    #[inline]
    #[must_use]
    pub fn wall_minus_mono(self) -> i64 {
        self.wall.0 - i64::try_from(self.mono.0).unwrap_or(i64::MAX)
    }
}
