//! What is to be taken: what is there, and not in the table. Pure.

use crate::list::Found;

/// Objects of one commit. A manifest has a kilobyte or two for each, all of it in memory; whoever has more waiting gets several commits.
pub(crate) const COMMIT_OBJECTS_MAX: usize = 5_000;

/// See the module's head.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Plan<'a> {
    /// Objects of the next commit, the oldest windows first.
    pub(crate) take: Vec<&'a Found>,
    /// Objects that are there, and not taken: these, and those for later commits.
    pub(crate) waiting: usize,
}

/// Of objects in the order of their windows, those that are neither taken nor set aside.
pub(crate) fn plan(objects: &[Found], is_done: impl Fn(&Found) -> bool, most: usize) -> Plan<'_> {
    let mut take = Vec::new();
    let mut waiting = 0;
    for object in objects.iter().filter(|object| !is_done(object)) {
        waiting += 1;
        if take.len() < most {
            take.push(object);
        }
    }
    Plan { take, waiting }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_late_is_taken_as_well_and_what_is_taken_is_not() {
        let object = |n: i64| Found { uri: n.to_string(), bytes: 1, hash: 0, window_start: n };
        let objects: Vec<Found> = (0..10).map(object).collect();
        let late = |object: &Found| ![3, 8, 9].contains(&object.window_start);
        let Plan { take, waiting } = plan(&objects, late, 2);
        assert_eq!((take, waiting), (vec![&objects[3], &objects[8]], 3));
        assert_eq!(plan(&objects, |_| true, 2), Plan { take: vec![], waiting: 0 });
    }
}
