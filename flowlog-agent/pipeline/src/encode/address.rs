//! An address in a row.

use super::labels::Label;
use crate::window::{Addresses, ipv4, ipv6};

/// An address as it lies in a packet, by family.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum RowAddress {
    None,
    V4(u32),
    V6([u64; 2]),
}

impl RowAddress {
    /// Source and destination.
    pub(super) const fn both(of: Addresses) -> (Self, Self) {
        match of {
            Addresses::V4(src, dst) => (Self::V4(src), Self::V4(dst)),
            Addresses::V6(src, dst) => (Self::V6(src), Self::V6(dst)),
        }
    }

    /// As a row shows it.
    pub(super) fn label(&self) -> Option<Label> {
        match self {
            Self::None => None,
            Self::V4(address) => Some(Label::Text(ipv4(*address).to_string())),
            Self::V6(address) => Some(Label::Text(ipv6(*address).to_string())),
        }
    }
}
