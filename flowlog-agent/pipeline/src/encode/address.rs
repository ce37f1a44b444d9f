//! An address in a row.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::labels::Label;
use crate::window::Addresses;

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
            Self::V4(a) => Some(Label::Text(Ipv4Addr::from(a.to_ne_bytes()).to_string())),
            Self::V6([hi, lo]) => {
                let mut bytes = [0; 16];
                bytes[..8].copy_from_slice(&hi.to_ne_bytes());
                bytes[8..].copy_from_slice(&lo.to_ne_bytes());
                Some(Label::Text(Ipv6Addr::from(bytes).to_string()))
            }
        }
    }
}
