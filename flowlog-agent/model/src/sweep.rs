//! Sweeping the kernel's caches: evicting what is left of closed epochs.

/// How a sweep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swept {
    /// All caches are clean.
    Done,
    /// The ring is full: drain it, then go on from here.
    RingFull(Cursor),
}

/// Where a sweep stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// The CPU's number.
    pub cpu: u32,
    /// Which of its caches.
    pub cache: u64,
    /// The next slot of that.
    pub slot: u32,
}

/// Which records a sweep evicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those of closed epochs.
    Closed,
    /// Those of all epochs: when the capture ends.
    All,
    /// Those of closed epochs, and those of interfaces whose flows somebody is looking at.
    Observed,
}
