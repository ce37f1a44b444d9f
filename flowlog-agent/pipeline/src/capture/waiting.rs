//! What a look at the interfaces waits for, and for how long.

/// What the next look at the interfaces waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NextLook {
    /// For a change: the kernel tells.
    Change,
    /// For the ring to have had its turn: there is more to hook.
    Turn,
    /// The last look could not do all there was to do.
    Trouble,
    /// An interface has just gone: it may be on its way to another namespace.
    Move,
    /// An interface is captured in another namespace, or meant there: nobody tells when it changes.
    Elsewhere,
    /// One may be in another namespace.
    Sought,
}

impl NextLook {
    /// For how long at most; `None`: for ever.
    pub(super) fn pause_ns(self) -> Option<u64> {
        match self {
            Self::Change => None,
            Self::Turn => Some(0),
            Self::Trouble | Self::Move => Some(200_000_000),
            Self::Elsewhere => Some(500_000_000),
            Self::Sought => Some(10_000_000_000),
        }
    }
}
