//! What may keep packets from our hooks: programs of others in front of them, and hardware that carries packets past the kernel.

use serde::{Deserialize, Serialize};

use crate::rule::Direction;

/// Entries of each list that are remembered. One that is attached anew every second tells nobody more.
const ENTRIES_MAX: usize = 16;

/// What may keep packets from the hooks of one interface, in words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hiding {
    /// Programs and filters of others in front of our hooks, by direction: `ID` or `ID:NAME` of a program, the kind of another filter.
    pub in_front: [Vec<String>; 2],
    /// What is carried past the hooks, or may be, and by whom.
    pub offload: Vec<String>,
}

impl Hiding {
    /// Whether nothing keeps packets from the hooks.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lists().all(Vec::is_empty)
    }

    /// Adds what was found at another time.
    pub fn add(&mut self, other: &Self) {
        let [ingress, egress] = &mut self.in_front;
        for (to, from) in [ingress, egress, &mut self.offload].into_iter().zip(other.lists()) {
            for entry in from {
                if to.len() < ENTRIES_MAX && !to.contains(entry) {
                    to.push(entry.clone());
                }
            }
        }
    }

    fn lists(&self) -> impl Iterator<Item = &Vec<String>> {
        self.in_front.iter().chain([&self.offload])
    }

    /// Who is in front, for people: `ingress 12:name, 13; egress flower`. Empty: nobody.
    #[must_use]
    pub fn front_words(&self) -> String {
        let of = |direction: Direction| (direction, self.in_front[direction.index()].join(", "));
        let both = Direction::BOTH.into_iter().map(of).filter(|(_, who)| !who.is_empty());
        both.map(|(direction, who)| format!("{direction} {who}")).collect::<Vec<_>>().join("; ")
    }

    /// What is carried past the hooks, for people. Empty: nothing.
    #[must_use]
    pub fn offload_words(&self) -> String {
        self.offload.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_entry_is_named_once_and_too_many_are_not() {
        let of = |ids: &[u32]| Hiding {
            in_front: [ids.iter().map(ToString::to_string).collect(), Vec::new()],
            ..Hiding::default()
        };
        let mut all = of(&[7]);
        all.add(&of(&[7, 8]));
        all.add(&Hiding { offload: vec!["flower".to_owned()], ..Hiding::default() });
        assert_eq!((all.front_words().as_str(), all.offload_words().as_str()), ("ingress 7, 8", "flower"));
        for id in 0..100 {
            all.add(&of(&[id]));
        }
        assert_eq!(all.in_front[0].len(), ENTRIES_MAX);
        assert!(Hiding::default().is_empty() && !all.is_empty());
    }
}
