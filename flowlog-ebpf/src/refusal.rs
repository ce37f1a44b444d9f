//! How a refused packet is counted, from where its hook had counted it: decided here, carried out by the verdict program.

use crate::abi::{PLACE_LOST, PLACE_NOWHERE, PLACE_SLOT, class};

/// What is known of a noted packet when it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noted {
    /// Where its hook had counted it: a `PLACE_*` without the marks.
    pub place: u32,
    /// It is a fragment: its slot is not known.
    pub is_fragment: bool,
    /// The window in which it was counted is closed.
    pub is_late: bool,
}

impl Noted {
    /// Whether it can be looked for in its slot, by whoever holds the CPU's caches.
    #[must_use]
    #[inline(always)]
    pub const fn may_be_in_slot(self) -> bool {
        self.place == PLACE_SLOT && !self.is_fragment && !self.is_late
    }

    /// Its class ([`class`]), after it was taken out of its slot or could not be.
    #[must_use]
    #[inline(always)]
    pub const fn class(self, taken_back: bool) -> u8 {
        if self.place == PLACE_NOWHERE || (taken_back && !self.is_late) {
            class::REFUSED
        } else if self.is_late {
            class::REFUSED_LATE
        } else if self.place == PLACE_LOST {
            class::REFUSED_LOST
        } else {
            class::REFUSED_COUNTED
        }
    }

    /// Whether an ACCEPT record has it, so that a record beside that can say what became of it.
    #[must_use]
    #[inline(always)]
    pub const fn is_in_record(self) -> bool {
        self.place != PLACE_NOWHERE && self.place != PLACE_LOST
    }

    /// Whether a hook has counted it in the window in which it is refused.
    #[must_use]
    #[inline(always)]
    pub const fn was_seen(self) -> bool {
        self.place != PLACE_NOWHERE && !self.is_late
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{PLACE_RECORD, PLACE_XDP};

    #[test]
    fn a_refused_packet_is_subtracted_where_it_was_counted_and_nowhere_else() {
        let noted = |place, is_fragment, is_late| Noted { place, is_fragment, is_late };
        // Noted, whether it could be taken out of its slot, its class, whether it is among the packets seen.
        let table = [
            (noted(PLACE_NOWHERE, false, false), false, class::REFUSED, false),
            // Nothing to be late for.
            (noted(PLACE_NOWHERE, false, true), false, class::REFUSED, false),
            (noted(PLACE_SLOT, false, false), true, class::REFUSED, true),
            (noted(PLACE_SLOT, false, false), false, class::REFUSED_COUNTED, true),
            (noted(PLACE_SLOT, true, false), false, class::REFUSED_COUNTED, true),
            (noted(PLACE_SLOT, false, true), false, class::REFUSED_LATE, false),
            (noted(PLACE_RECORD, false, false), false, class::REFUSED_COUNTED, true),
            (noted(PLACE_XDP, false, false), false, class::REFUSED_COUNTED, true),
            (noted(PLACE_LOST, false, false), false, class::REFUSED_LOST, true),
            (noted(PLACE_LOST, false, true), false, class::REFUSED_LATE, false),
        ];
        for (noted, taken_back, class, seen) in table {
            assert_eq!((noted.class(taken_back), noted.was_seen()), (class, seen), "{noted:?}");
            assert!(noted.may_be_in_slot() || !taken_back, "{noted:?}");
            assert_eq!(noted.is_in_record(), !matches!(noted.place, PLACE_NOWHERE | PLACE_LOST), "{noted:?}");
        }
        assert!(!noted(PLACE_SLOT, true, false).may_be_in_slot() && !noted(PLACE_SLOT, false, true).may_be_in_slot());
    }
}
