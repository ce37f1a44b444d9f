//! Labels of a resource: names and values that somebody has given it. They go into the metadata of its objects, and flow logs are selected
//! by them.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::{
    rule::{InvalidField, NAME_BYTES_MAX},
    text::quotable,
};

/// Labels of one resource: they are kept for each watch, in the journal, and in each of its objects.
pub const LABELS_MAX: usize = 16;
/// Longest value: names of VMs and projects have 255 bytes at most.
pub const LABEL_BYTES_MAX: usize = 255;

/// See the module's head. Few, short, and fit to be shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct Labels(BTreeMap<String, String>);

impl Labels {
    /// Adds one, in the place of one that has this name.
    ///
    /// # Errors
    /// If name or value are not as they must be, or there are too many.
    pub fn insert(&mut self, name: &str, value: &str) -> Result<(), InvalidField> {
        check_name(name)?;
        if value.len() > LABEL_BYTES_MAX || value.chars().any(char::is_control) {
            let beginning: String = value.chars().take(32).collect();
            let rule = format!("a value has at most {LABEL_BYTES_MAX} bytes, and no control characters");
            return Err(InvalidField::new("label", format!("{name} = {}", quotable(&beginning)), rule));
        }
        if self.0.len() >= LABELS_MAX && !self.0.contains_key(name) {
            let rule = format!("is one too many: a resource has {LABELS_MAX} labels at most");
            return Err(InvalidField::new("label", name, rule));
        }
        self.0.insert(name.to_owned(), value.to_owned());
        Ok(())
    }

    /// The value of one.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Each with its value, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all of these are among them, with the same values.
    #[must_use]
    pub fn has(&self, wanted: &Self) -> bool {
        wanted.iter().all(|(name, value)| self.get(name) == Some(value))
    }
}

fn check_name(name: &str) -> Result<(), InvalidField> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.chars().all(allowed) {
        return Ok(());
    }
    let beginning: String = name.chars().take(32).collect();
    let rule = format!("a name has 1 to {NAME_BYTES_MAX} ASCII letters, digits, `.`, `_` or `-`");
    Err(InvalidField::new("label", quotable(&beginning), rule))
}

impl TryFrom<BTreeMap<String, String>> for Labels {
    type Error = InvalidField;

    fn try_from(all: BTreeMap<String, String>) -> Result<Self, InvalidField> {
        let mut labels = Self::default();
        all.iter().try_for_each(|(name, value)| labels.insert(name, value))?;
        Ok(labels)
    }
}

impl From<Labels> for BTreeMap<String, String> {
    fn from(labels: Labels) -> Self {
        labels.0
    }
}

/// `env=prod, vm=web`
impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (name, value)) in self.iter().enumerate() {
            write!(f, "{}{name}={}", if n == 0 { "" } else { ", " }, quotable(value))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_few_short_and_fit_to_be_shown_and_what_is_not_is_refused_in_words() {
        let mut labels = Labels::default();
        for (name, value, words) in [
            ("", "x", "1 to 63"),
            ("a/b", "x", "label `a/b`"),
            (&"n".repeat(64), "x", "1 to 63"),
            ("vm", "a\nb", "no control characters"),
            ("vm", &"v".repeat(256), "at most 255 bytes"),
        ] {
            let error = labels.insert(name, value).expect_err(name).to_string();
            assert!(error.contains(words) && error.len() < 200 && !error.contains('\n'), "{error}");
        }
        assert!(labels.is_empty());
        for n in 0..LABELS_MAX {
            labels.insert(&format!("l{n:02}"), "v").expect("room");
        }
        assert!(labels.insert("more", "v").expect_err("full").to_string().contains("16 labels at most"));
        labels.insert("l00", "w").expect("in its place");
        assert_eq!(labels.get("l00"), Some("w"));
        let written = BTreeMap::from(labels.clone());
        assert_eq!(Labels::try_from(written), Ok(labels));
        assert!(Labels::try_from(BTreeMap::from([("a b".to_owned(), "x".to_owned())])).is_err());
    }

    #[test]
    fn labels_have_what_is_among_them() {
        let of = |all: &[(&str, &str)]| {
            let mut labels = Labels::default();
            for (name, value) in all {
                labels.insert(name, value).expect("a label");
            }
            labels
        };
        let all = of(&[("env", "prod"), ("vm", "web")]);
        assert!(all.has(&of(&[])) && all.has(&of(&[("env", "prod")])) && all.has(&all));
        assert!(!all.has(&of(&[("env", "test")])) && !all.has(&of(&[("team", "a")])));
        assert_eq!(all.to_string(), "env=prod, vm=web");
    }
}
