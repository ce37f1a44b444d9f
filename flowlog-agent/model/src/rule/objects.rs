//! What objects are, and how their keys are made up.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{InvalidField, words};

/// The partition column that the name is, in keys of [`Layout::HiveNamed`].
pub const NAME_FOLDER: &str = "flow_log";

/// How keys are made up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "LayoutWord", into = "LayoutWord")]
pub enum Layout {
    /// The name, then year, month, day and hour: one flow log is a table.
    #[default]
    Hive,
    /// The same with `flow_log=` in front of the name: all flow logs under one root are a table.
    HiveNamed,
    /// The name alone.
    Flat,
}

impl Layout {
    /// All words, as in the configuration.
    pub const WORDS: &[&str] = &["hive", "hive-named", "flat"];

    /// As in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hive => "hive",
            Self::HiveNamed => "hive-named",
            Self::Flat => "flat",
        }
    }
}

impl FromStr for Layout {
    type Err = InvalidField;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let named = [Self::Hive, Self::HiveNamed, Self::Flat].into_iter().find(|l| l.as_str() == s);
        named.ok_or_else(|| InvalidField::new("layout", s, words(Self::WORDS)))
    }
}

/// How a layout is stored; and how it was, when there were two.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum LayoutWord {
    IsHive(bool),
    Is(String),
}

impl From<Layout> for LayoutWord {
    fn from(layout: Layout) -> Self {
        Self::Is(layout.as_str().to_owned())
    }
}

impl TryFrom<LayoutWord> for Layout {
    type Error = InvalidField;

    fn try_from(word: LayoutWord) -> Result<Self, Self::Error> {
        match word {
            LayoutWord::IsHive(true) => Ok(Self::Hive),
            LayoutWord::IsHive(false) => Ok(Self::Flat),
            LayoutWord::Is(word) => word.parse(),
        }
    }
}

/// What an object is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// All columns.
    #[default]
    Parquet,
    /// As Parquet, without the columns in which no row has a value.
    ParquetNarrow,
    /// The 14 columns of version 2 as text in gzip, as clouds write them.
    Text,
}

impl Format {
    /// All words, as in the configuration.
    pub const WORDS: &[&str] = &["parquet", "parquet-narrow", "text"];

    /// As in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::ParquetNarrow => "parquet-narrow",
            Self::Text => "text",
        }
    }

    /// What keys end with, behind a dot.
    #[must_use]
    pub const fn ending(self) -> &'static str {
        match self {
            Self::Parquet | Self::ParquetNarrow => "parquet",
            Self::Text => "log.gz",
        }
    }
}

impl FromStr for Format {
    type Err = InvalidField;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let named = [Self::Parquet, Self::ParquetNarrow, Self::Text].into_iter().find(|f| f.as_str() == s);
        named.ok_or_else(|| InvalidField::new("format", s, words(Self::WORDS)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_agent_of_two_layouts_has_stored_is_still_understood() {
        use serde::de::value::{BoolDeserializer, Error, StrDeserializer};
        let was = |hive| Layout::deserialize(BoolDeserializer::<Error>::new(hive));
        assert_eq!((was(true), was(false)), (Ok(Layout::Hive), Ok(Layout::Flat)));
        for word in Layout::WORDS {
            let is = Layout::deserialize(StrDeserializer::<Error>::new(word)).expect("a layout");
            assert_eq!((is.as_str(), word.parse()), (*word, Ok(is)));
        }
        assert!(Layout::deserialize(StrDeserializer::<Error>::new("hives")).is_err());
    }
}
