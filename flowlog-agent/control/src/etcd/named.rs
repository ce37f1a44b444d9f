//! Whether the name that a process has in its region is its own.

/// See the module's head. Whoever's is not writes nothing to etcd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Named {
    /// Etcd has not been asked yet.
    #[default]
    Unknown,
    Ours,
    /// Another process has it: who, and what to do.
    Taken(String),
}

impl Named {
    /// Why nothing is written, if nothing is.
    #[must_use]
    pub fn words(&self) -> Option<String> {
        match self {
            Self::Unknown => {
                Some("it is not known yet whether another process has this one's name in the region".to_owned())
            }
            Self::Ours => None,
            Self::Taken(words) => Some(words.clone()),
        }
    }
}
