//! What a start needs in memory, and whether it fits: the arithmetic for `run`, which refuses what does not, and for `check`.
//!
//! An agent that does not fit is ended by the kernel in its first flood, or while it loads, without a word.

use std::path::PathBuf;

use flowlog_kernel::{
    Sizes,
    limits::{Limit, limits, machine},
    pins,
};
use flowlog_pipeline::window::KEPT_MAX;

use super::sizing::Sizing;
use crate::config::{Config, FLOWS_MAX_DEFAULT, FLOWS_MAX_MIN, RawConfig};

/// The agent itself: its heap while it loads, which is when it is largest, threads, buffers of encoder and delivery, and the pages of its
/// binary that it always needs.
const AGENT_BYTES: u64 = 31 << 20;
/// A flow in an open window (`pipeline/src/window/table.rs`: 70 bytes and a table that is at most 87 % full).
const OPEN_BYTES: u64 = 80;
/// The same in a window that is being written.
const WRITTEN_BYTES: u64 = 80;
/// The same in the columns that it is written from.
const COLUMNS_BYTES: u64 = 140;
/// A translation that is kept from an earlier window, IPv6 (`pipeline/src/window/table/told.rs`: 80 bytes and its place in the index).
/// Translations of a window count as its flows.
const KEPT_BYTES: u64 = 92;
/// Live flows: what is on its way to those who look (2 MiB), and lines and sums of four who do not read (each 0.5 and 2 MiB:
/// `pipeline/src/live/`).
const LIVE_BYTES: u64 = 12 << 20;
/// All of a flow.
const FLOW_BYTES: u64 = OPEN_BYTES + WRITTEN_BYTES + COLUMNS_BYTES;

/// What a start needs, in bytes by what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Need {
    /// The kernel's maps; 0 if they are there already.
    maps: u64,
    /// Translations that are kept; 0 if nobody wants any.
    kept: u64,
    /// Live flows; 0 if nobody can look.
    live: u64,
    /// Flows in open windows at most.
    flows_max: usize,
}

impl Need {
    pub(crate) fn total(&self) -> u64 {
        self.agent().saturating_add(self.maps).saturating_add(self.flows(FLOW_BYTES))
    }

    /// The agent itself, and what it keeps.
    fn agent(&self) -> u64 {
        AGENT_BYTES + self.kept + self.live
    }

    fn flows(&self, bytes_each: u64) -> u64 {
        (self.flows_max as u64).saturating_mul(bytes_each)
    }
}

impl std::fmt::Display for Need {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let windows = self.flows(OPEN_BYTES + WRITTEN_BYTES);
        let [total, maps, agent] = [self.total(), self.maps, self.agent()].map(mib);
        let [windows, encoder] = [windows, self.flows(COLUMNS_BYTES)].map(mib);
        write!(
            f,
            "{total} MiB: {maps} for maps, {windows} for windows of up to {} flows and those being written, {encoder} for encoding them, \
             {agent} for the agent",
            self.flows_max
        )
    }
}

/// Whole mebibytes, rounded up.
fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// It does not fit.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("this needs {need}; `{}` allows {}: raise it, or {remedy}", file.display(), mib(*bytes))]
pub(crate) struct MemoryError {
    need: Need,
    file: PathBuf,
    bytes: u64,
    remedy: String,
}

/// What a start with this configuration needs on this machine, and the tightest limit it has to fit into.
#[derive(Debug)]
pub(crate) struct Here {
    pub(crate) need: Need,
    pub(crate) limit: Option<Limit>,
    /// How large cache and ring are, and why.
    pub(crate) sizing: Sizing,
}

/// Checks a configuration, and that it fits into memory. Without `flows_max` there are as many as fit; cache and ring are what is pinned, or
/// else what is chosen, where nobody says how large they are.
///
/// # Errors
/// If it is wrong, or does not fit.
pub(crate) fn checked(raw: RawConfig) -> anyhow::Result<(Config, Here)> {
    checked_with(raw, None)
}

/// As [`checked`], beside a capture that goes on with what it has.
///
/// # Errors
/// Likewise.
pub(crate) fn checked_with(raw: RawConfig, in_force: Option<Sizes>) -> anyhow::Result<(Config, Here)> {
    let follows = raw.flows_max.is_none();
    let said = raw.kernel.clone();
    let mut config = raw.check()?;
    // What cannot be read is refused when it is to be gone on with, and says why.
    let made = config.pin_dir.as_deref().and_then(|dir| pins::made_for(dir).ok().flatten());
    let sizing = Sizing::new(&said, in_force.or(made.as_ref().map(|made| made.sizes)), machine());
    sizing.apply(&mut config.sizes);
    let limits = limits();
    let (maps, _) = config.sizes.memory_bytes_here();
    let kept = if config.may_want_translations() { KEPT_MAX as u64 * KEPT_BYTES } else { 0 };
    let live = if config.manage.is_some() { LIVE_BYTES } else { 0 };
    if follows {
        config.flows_max = flows_max(&limits, maps + kept + live);
    }
    // Pinned maps are there, and have been counted to whoever made them.
    let need = Need { maps: if made.is_some() { 0 } else { maps }, kept, live, flows_max: config.flows_max };
    ensure_fits(need, &limits).map_err(super::AgentError::from)?;
    Ok((config, Here { need, limit: tightest(&limits).cloned(), sizing }))
}

/// How many flows fit beside maps, and what is kept, of this size, where nobody has said how many there may be: a service with a limit gets along with it by
/// writing windows earlier.
fn flows_max(limits: &[Limit], maps: u64) -> usize {
    let Some(limit) = tightest(limits) else { return FLOWS_MAX_DEFAULT };
    flows_within(limit.bytes, maps).clamp(FLOWS_MAX_MIN, FLOWS_MAX_DEFAULT)
}

/// Whether it fits into all limits.
///
/// # Errors
/// With figures and the remedy.
fn ensure_fits(need: Need, limits: &[Limit]) -> Result<(), MemoryError> {
    let Some(Limit { file, bytes }) = tightest(limits).filter(|l| need.total() > l.bytes) else { return Ok(()) };
    let fitting = flows_within(*bytes, need.maps.saturating_add(need.kept));
    let remedy = if fitting < FLOWS_MAX_MIN {
        "lower `kernel.cache_slots`, `kernel.ring_bytes` or `kernel.interfaces_max`".to_owned()
    } else {
        format!("lower `flows_max` to {fitting}")
    };
    Err(MemoryError { need, file: file.clone(), bytes: *bytes, remedy })
}

fn tightest(limits: &[Limit]) -> Option<&Limit> {
    limits.iter().min_by_key(|l| l.bytes)
}

fn flows_within(bytes: u64, maps: u64) -> usize {
    let left = bytes.saturating_sub(AGENT_BYTES).saturating_sub(maps);
    usize::try_from(left / FLOW_BYTES).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn limits(mebibytes: &[u64]) -> Vec<Limit> {
        let limit = |(n, mib): (usize, &u64)| Limit { file: PathBuf::from(format!("/{n}")), bytes: mib * MIB };
        mebibytes.iter().enumerate().map(limit).collect()
    }

    #[test]
    fn what_does_not_fit_into_the_tightest_limit_is_refused_and_the_remedy_fits() {
        for (maps, flows, allowed, refused_by, remedy) in [
            (17, 50_000, &[][..], None, ""),
            (17, 50_000, &[64], None, ""),
            (17, 60_000, &[64], Some("/0"), "lower `flows_max` to 55924"),
            (17, 55_924, &[64], None, ""),
            (17, 50_000, &[1_000, 48, 64], Some("/1"), "lower `kernel.cache_slots`"),
            (17, 1_000, &[1_000, 49], None, ""),
            (400, 2_000_000, &[1_024], None, ""),
            (400, 2_000_000, &[1_024, 1_000], Some("/1"), "lower `flows_max` to 1988799"),
            // Maps that are there already are somebody else's.
            (0, 1_000, &[32], None, ""),
            (u64::MAX / MIB, usize::MAX, &[1], Some("/0"), "lower `kernel.cache_slots`"),
        ] {
            let need = Need { maps: maps * MIB, kept: 0, live: 0, flows_max: flows };
            let refused = ensure_fits(need, &limits(allowed)).err();
            let case = format!("maps {maps}, flows {flows}, {allowed:?}: {refused:?}");
            let by = refused.as_ref().map(|e| e.file.display().to_string());
            assert_eq!(by.as_deref(), refused_by, "{case}");
            assert!(refused.is_none_or(|e| e.remedy.contains(remedy)), "{case}");
        }
    }

    #[test]
    fn the_number_of_flows_follows_the_tightest_limit_and_then_fits() {
        for (maps, allowed, expected) in [
            (17, &[][..], FLOWS_MAX_DEFAULT),
            (17, &[64], 55_924),
            (17, &[64, 1_000], 55_924),
            (17, &[100_000], FLOWS_MAX_DEFAULT),
            (17, &[20], FLOWS_MAX_MIN),
        ] {
            let limits = limits(allowed);
            let flows_max = flows_max(&limits, maps * MIB);
            assert_eq!(flows_max, expected, "{allowed:?}");
            let fits = ensure_fits(Need { maps: maps * MIB, kept: 0, live: 0, flows_max }, &limits).is_ok();
            assert_eq!(fits, flows_max > FLOWS_MAX_MIN, "{allowed:?}");
        }
    }

    #[test]
    fn the_sentence_has_every_figure_the_limit_and_the_remedy() {
        let need = Need { maps: 17 * MIB, kept: 0, live: 0, flows_max: 60_000 };
        let kept = Need { kept: 6 * MIB, ..need };
        assert!(kept.to_string().starts_with("72 MiB:") && kept.to_string().ends_with("37 for the agent"), "{kept}");
        let words = ensure_fits(need, &limits(&[64])).expect_err("too much").to_string();
        assert_eq!(
            words,
            "this needs 66 MiB: 17 for maps, 10 for windows of up to 60000 flows and those being written, 9 for encoding them, 31 for the \
             agent; `/0` allows 64: raise it, or lower `flows_max` to 55924"
        );
    }
}
