//! What an operator wants of drop reasons instead of what the table ([`super::known`]) says.

use flowlog_ebpf::abi::{REASON_BY_PLACE, REASON_LOST, REASON_REFUSED};
use flowlog_model::rule::InvalidField;

use super::{
    known::{self, Known},
    reasons::PREFIX,
};

/// What packets are that die for a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// REJECT.
    Rejected,
    /// ACCEPT, and lost.
    Lost,
    /// ACCEPT, and nothing else.
    Ignored,
}

/// Names that are shown for one that nobody knows.
const NEAR_MAX: usize = 3;

/// Reasons that are to count as something else than they do by default, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moves(Vec<(String, Kind)>);

impl Moves {
    /// Takes the lists of the configuration's table `[reasons]`.
    ///
    /// # Errors
    /// If a reason is in them twice, or cannot be moved.
    pub fn new(rejected: &[String], lost: &[String], ignored: &[String]) -> Result<Self, InvalidField> {
        let lists = [
            ("reasons.rejected", Kind::Rejected, rejected),
            ("reasons.lost", Kind::Lost, lost),
            ("reasons.ignored", Kind::Ignored, ignored),
        ];
        let mut all = Self::default();
        for (field, kind, names) in lists {
            for given in names {
                let name = given.strip_prefix(PREFIX).unwrap_or(given);
                if all.0.iter().any(|(other, _)| other == name) {
                    return Err(InvalidField::new(field, given, "is named twice; a reason counts as one thing"));
                }
                if known(name).is_some_and(|k| k.action == REASON_BY_PLACE) {
                    let rule = "says nothing about why a packet died, and cannot be moved";
                    return Err(InvalidField::new(field, given, rule));
                }
                all.0.push((name.to_owned(), kind));
            }
        }
        Ok(all)
    }

    /// Name and `REASON_*` of each.
    pub(super) fn actions(&self) -> impl Iterator<Item = (&str, u8)> {
        self.0.iter().map(|(name, kind)| {
            let action = match kind {
                // A refusal that the programs know more about stays what it is.
                Kind::Rejected => known(name).map(|k| k.action).filter(|a| *a != 0 && *a != REASON_LOST),
                Kind::Lost => Some(REASON_LOST),
                Kind::Ignored => Some(0),
            };
            (name.as_str(), action.unwrap_or(REASON_REFUSED))
        })
    }

    /// What to say of a name that neither the running kernel (whose names are given) nor any tested kernel has.
    pub(super) fn unheard_of<'a>(name: &str, running: impl Iterator<Item = &'a str>) -> InvalidField {
        let mut names: Vec<&str> = running.chain(known::all().map(|k| k.name)).collect();
        names.sort_unstable();
        names.dedup();
        names.sort_by_key(|other| distance(name, other));
        let near: Vec<String> = names.iter().take(NEAR_MAX).map(|n| format!("`{n}`")).collect();
        let rule = format!(
            "no kernel has a drop reason of this name; near ones: {} (docs/reasons.md has all)",
            near.join(", ")
        );
        InvalidField::new("reasons", name, rule)
    }
}

/// What the table says of a reason.
pub(super) fn known(name: &str) -> Option<&'static Known> {
    known::all().find(|k| k.name == name)
}

/// Insertions, deletions and replacements that make one name of another (Levenshtein), whatever their case.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(!from.eq_ignore_ascii_case(&to));
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use flowlog_ebpf::abi::REASON_TC_INGRESS;

    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn a_reason_counts_as_one_thing_and_one_that_says_nothing_cannot_be_moved() {
        let said = |rejected: &[&str], lost: &[&str], ignored: &[&str]| {
            Moves::new(&names(rejected), &names(lost), &names(ignored)).map_err(|e| e.to_string())
        };
        let twice = said(&[], &["NO_SOCKET"], &["SKB_DROP_REASON_NO_SOCKET"]).expect_err("twice");
        assert!(twice.contains("reasons.ignored `SKB_DROP_REASON_NO_SOCKET`: is named twice"), "{twice}");
        let empty = said(&["NOT_SPECIFIED"], &[], &[]).expect_err("by place");
        assert!(empty.contains("reasons.rejected `NOT_SPECIFIED`: says nothing"), "{empty}");
        let moves = said(&["TC_INGRESS", "NO_SOCKET", "NOMEM"], &["NETFILTER_DROP"], &["QDISC_DROP"]).expect("good");
        let actions: Vec<_> = moves.actions().collect();
        let expected = [
            ("TC_INGRESS", REASON_TC_INGRESS),
            ("NO_SOCKET", REASON_REFUSED),
            ("NOMEM", REASON_REFUSED),
            ("NETFILTER_DROP", REASON_LOST),
            ("QDISC_DROP", 0),
        ];
        assert_eq!(actions, expected);
    }

    #[test]
    fn a_name_that_no_kernel_has_is_answered_with_near_ones() {
        let error = Moves::unheard_of("QDISC_DORP", ["OMINOUS"].into_iter()).to_string();
        assert!(error.starts_with("reasons `QDISC_DORP`: no kernel has") && error.contains("`QDISC_DROP`"), "{error}");
        assert!(Moves::unheard_of("ominus", ["OMINOUS"].into_iter()).to_string().contains("near ones: `OMINOUS`"));
        assert_eq!((distance("", "ab"), distance("ABC", "abc"), distance("kitten", "sitting")), (2, 0, 3));
    }
}
