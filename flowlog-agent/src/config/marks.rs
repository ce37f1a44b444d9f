//! Marks that tell the rules of the operator's own firewall apart: `[rule_mark]` and `[verdict_marks]`.

use std::collections::BTreeMap;

use flowlog_kernel::{Mark, MarkFrom};
use flowlog_model::rule::InvalidField;

use super::raw::RawMark;

/// Longest name of a rule, in characters: it stands in many rows.
const NAME_CHARS_MAX: usize = 128;
/// Most rules that have names.
const NAMES_MAX: usize = 65_536;

/// Which mark of a refused packet is recorded, and which rules are known by it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    pub mark: Mark,
    /// Names of rules, by their mark after the mask.
    pub names: BTreeMap<u32, String>,
}

impl Marks {
    pub(super) fn check(raw: &RawMark, names: &BTreeMap<String, String>) -> Result<Self, InvalidField> {
        let from = match raw.from.as_deref() {
            None | Some("packet") => MarkFrom::Packet,
            Some("connection") => MarkFrom::Connection,
            Some("nothing") => MarkFrom::Nothing,
            Some(other) => {
                return Err(InvalidField::new("rule_mark.from", other, "use `packet`, `connection` or `nothing`"));
            }
        };
        let mask = raw.mask.unwrap_or(u32::MAX);
        if mask == 0 {
            return Err(InvalidField::new(
                "rule_mark.mask",
                "0",
                "leaves nothing of a mark; to record none, use `from = \"nothing\"`",
            ));
        }
        if names.len() > NAMES_MAX {
            let rule = format!("at most {NAMES_MAX} marks can have names");
            return Err(InvalidField::new("verdict_marks", names.len().to_string(), rule));
        }
        let mut marks = Self { mark: Mark { from, mask }, names: BTreeMap::new() };
        for (written, name) in names {
            let invalid = |rule: String| InvalidField::new("verdict_marks", written, rule);
            let number = written.strip_prefix("0x").map_or_else(|| written.parse(), |hex| u32::from_str_radix(hex, 16));
            let Ok(number) = number else {
                return Err(invalid("must be a number of 32 bits: decimal, or hexadecimal behind `0x`".to_owned()));
            };
            if number == 0 {
                return Err(invalid("0 is what a packet without a mark has".to_owned()));
            }
            if from == MarkFrom::Nothing || number & !mask != 0 {
                return Err(invalid(format!("no mark is ever this: `rule_mark` records those of {mask:#x}")));
            }
            if name.is_empty() || name.chars().count() > NAME_CHARS_MAX || name.chars().any(char::is_control) {
                let rule = format!("its name must have 1 to {NAME_CHARS_MAX} characters that can be printed");
                return Err(invalid(rule));
            }
            if marks.names.insert(number, name.clone()).is_some() {
                return Err(invalid("is there twice, written in two ways".to_owned()));
            }
        }
        Ok(marks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(from: Option<&str>, mask: Option<u32>, names: &[(&str, &str)]) -> Result<Marks, String> {
        let names = names.iter().map(|(mark, name)| ((*mark).to_owned(), (*name).to_owned())).collect();
        Marks::check(&RawMark { from: from.map(str::to_owned), mask }, &names).map_err(|e| e.to_string())
    }

    #[test]
    fn marks_are_numbers_under_the_mask_and_each_has_one_name() {
        assert_eq!(check(None, None, &[]), Ok(Marks::default()));
        let marks = check(Some("connection"), Some(0xff), &[("0x12", "sg-ssh"), ("19", "sg-dns")]).expect("sound");
        assert_eq!(marks.mark, Mark { from: MarkFrom::Connection, mask: 0xff });
        assert_eq!(marks.names, BTreeMap::from([(0x12, "sg-ssh".to_owned()), (19, "sg-dns".to_owned())]));
        for (from, mask, names, expected) in [
            (Some("skb"), None, &[][..], "rule_mark.from `skb`: use `packet`"),
            (None, Some(0), &[], "rule_mark.mask `0`: leaves nothing"),
            (None, None, &[("ssh", "x")], "verdict_marks `ssh`: must be a number"),
            (None, None, &[("0x100000000", "x")], "must be a number of 32 bits"),
            (None, None, &[("0", "x")], "0 is what a packet without a mark has"),
            (None, Some(0xf), &[("0x12", "x")], "no mark is ever this: `rule_mark` records those of 0xf"),
            (Some("nothing"), None, &[("1", "x")], "no mark is ever this"),
            (None, None, &[("1", "a\nb")], "its name must have"),
            (None, None, &[("0x10", "a"), ("16", "b")], "is there twice"),
        ] {
            let error = check(from, mask, names).expect_err(expected);
            assert!(error.contains(expected), "{error}");
        }
    }
}
