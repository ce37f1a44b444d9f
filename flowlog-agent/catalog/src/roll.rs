//! The roll: which sheets say what a table has taken. It is a property of the table, and changes in the commit that adds the objects.
//! Pure.
//!
//! Written: `ID:OBJECTS,ID:OBJECTS`, the largest sheet first. A commit adds one sheet; small ones at the end go into it, so that there are
//! never many, and that each object is written down again a few times only.

use std::{fmt, str::FromStr};

use uuid::Uuid;

/// The property of the table.
pub(crate) const PROPERTY: &str = "flowlog.roll";
/// The folder of the sheets, below the table's location. Spark's `remove_orphan_files` does not look into folders that begin so; nobody
/// else's looks outside of `data` and `metadata`.
pub(crate) const FOLDER: &str = "_flowlog";
/// A sheet goes into the new one if it is at most so many times as large: then sizes at least double from sheet to sheet.
const SWALLOWED_TIMES: u64 = 2;

/// A file with objects that are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SheetRef {
    /// Id of the commit that wrote it.
    pub(crate) id: Uuid,
    pub(crate) objects: u64,
}

/// See the module's head.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Roll(Vec<SheetRef>);

/// A roll that is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the table's property `{PROPERTY}` is `{0}`, which is no roll: nothing is taken until it is as it was in an earlier version of the table's metadata"
)]
pub(crate) struct NoRoll(String);

impl Roll {
    pub(crate) fn sheets(&self) -> &[SheetRef] {
        &self.0
    }

    pub(crate) fn objects(&self) -> u64 {
        self.0.iter().map(|s| s.objects).sum()
    }

    pub(crate) fn has(&self, id: Uuid) -> bool {
        self.0.iter().any(|s| s.id == id)
    }

    /// The roll after a commit that takes so many objects; and the sheets whose objects must be in the new one as well.
    pub(crate) fn with(&self, id: Uuid, objects: u64) -> (Self, Vec<SheetRef>) {
        let mut kept = self.0.clone();
        let mut swallowed = Vec::new();
        let mut total = objects;
        while let Some(last) = kept.last().filter(|s| s.objects <= total.saturating_mul(SWALLOWED_TIMES)) {
            total += last.objects;
            swallowed.push(*last);
            kept.pop();
        }
        kept.push(SheetRef { id, objects: total });
        (Self(kept), swallowed)
    }
}

impl fmt::Display for Roll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, SheetRef { id, objects }) in self.0.iter().enumerate() {
            write!(f, "{}{id}:{objects}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl FromStr for Roll {
    type Err = NoRoll;

    fn from_str(text: &str) -> Result<Self, NoRoll> {
        let sheet = |part: &str| {
            let (id, objects) = part.split_once(':')?;
            Some(SheetRef { id: id.parse().ok()?, objects: objects.parse().ok()? })
        };
        let sheets: Option<Vec<SheetRef>> = text.split(',').map(sheet).collect();
        sheets.map(Self).ok_or_else(|| NoRoll(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_is_taken_stays_in_the_roll_and_sheets_stay_few(commits in proptest::collection::vec(1_u64..2_000, 1..200)) {
            let mut roll = Roll::default();
            // What each sheet has, by the commits that took it.
            let mut sheets: BTreeMap<Uuid, BTreeSet<usize>> = BTreeMap::new();
            let objects_of = |sheet: &BTreeSet<usize>| sheet.iter().map(|commit| commits[*commit]).sum::<u64>();
            let (mut taken, mut written) = (0, 0);
            for (number, objects) in commits.iter().enumerate() {
                let id = Uuid::from_u128(number as u128 + 1);
                let (next, swallowed) = roll.with(id, *objects);
                let mut sheet = BTreeSet::from([number]);
                for old in &swallowed {
                    prop_assert!(roll.has(old.id) && !next.has(old.id));
                    sheet.extend(&sheets[&old.id]);
                }
                taken += objects;
                written += objects_of(&sheet);
                prop_assert_eq!(next.sheets().last().expect("one").objects, objects_of(&sheet));
                sheets.insert(id, sheet);
                prop_assert_eq!(next.to_string().parse::<Roll>(), Ok(next.clone()));
                roll = next;
                let all: usize = roll.sheets().iter().map(|s| sheets[&s.id].len()).sum();
                prop_assert_eq!((all, roll.objects()), (number + 1, taken));
                // 2^20 objects at most, and each sheet has more than twice what follows.
                prop_assert!(roll.sheets().len() <= 20, "{}", roll);
            }
            let each = written / taken;
            prop_assert!(each <= 20, "each object was written down {} times", each);
        }
    }

    #[test]
    fn what_is_no_roll_is_not_taken_for_an_empty_one() {
        for text in ["", "x", "x:1", "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000001:-1"]
        {
            assert_eq!(text.parse::<Roll>(), Err(NoRoll(text.to_owned())));
        }
    }
}
