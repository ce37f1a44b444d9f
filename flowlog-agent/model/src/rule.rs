//! What a customer asks for: a name, a direction, an action and a target. Pure validation: whether the
//! target exists is found out by the pipeline, whether the interface does by the kernel's side.

mod objects;
mod target;

use std::{borrow::Cow, fmt, str::FromStr};

pub use objects::{Format, Layout, NAME_FOLDER};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
pub use target::{Location, Target, bucket_and_prefix};

use crate::FlowLogId;

/// Longest name of a rule: it starts every object key, and 63 is what host and bucket names allow.
pub const NAME_BYTES_MAX: usize = 63;
/// Longest window: records stay in memory for that long.
pub const WINDOW_SECS_MAX: u32 = 86_400;

/// A field that breaks a rule: names field, value and remedy in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{field} `{value}`: {rule}")]
pub struct InvalidField {
    /// Field as the user knows it.
    pub field: Cow<'static, str>,
    /// What was given for it.
    pub value: String,
    /// What holds, and so what to do.
    pub rule: String,
}

impl InvalidField {
    /// What breaks which rule.
    pub fn new(field: &'static str, value: impl Into<String>, rule: impl Into<String>) -> Self {
        Self { field: Cow::Borrowed(field), value: value.into(), rule: rule.into() }
    }
}

/// The rule of a field that takes one of these words.
pub(crate) fn words(all: &[&str]) -> String {
    let quoted: Vec<String> = all.iter().map(|word| format!("`{word}`")).collect();
    format!("use {}", one_of(&quoted))
}

/// `a, b or c`.
fn one_of<S: AsRef<str>>(all: &[S]) -> String {
    let words: Vec<&str> = all.iter().map(AsRef::as_ref).collect();
    match words.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} or {last}", others.join(", ")),
        _ => words.concat(),
    }
}

/// Way through a hook, as the watched interface sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Into the node through the interface.
    Ingress,
    /// Out of the node through the interface.
    Egress,
}

impl Direction {
    /// Both, in `abi` order.
    pub const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    /// As in flow logs, records and pins.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// Index into per-direction arrays of the ABI.
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Ingress => 0,
            Self::Egress => 1,
        }
    }
}

/// Which side of its owner's interface we see. A rule's directions, and those in records, are as the owner sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// We see the owner's interface itself.
    #[default]
    Host,
    /// The host's end of a guest's interface (tap, veth): what comes in here went out there.
    Guest,
}

impl Side {
    /// What the owner calls the direction of a hook.
    #[must_use]
    pub fn owners(self, hook: Direction) -> Direction {
        match (self, hook) {
            (Self::Host, direction) => direction,
            (Self::Guest, Direction::Ingress) => Direction::Egress,
            (Self::Guest, Direction::Egress) => Direction::Ingress,
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Directions a rule wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Directions {
    /// Only what comes in.
    Ingress,
    /// Only what goes out.
    Egress,
    /// What comes in and what goes out.
    #[default]
    Bidirectional,
}

impl Directions {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ingress, Self::Egress, Self::Bidirectional];

    /// All words, for people.
    #[must_use]
    pub fn words() -> String {
        one_of(&Self::ALL.map(Self::as_str))
    }

    /// As in configuration and API, which has it in capitals.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => Direction::Ingress.as_str(),
            Self::Egress => Direction::Egress.as_str(),
            Self::Bidirectional => "bidirectional",
        }
    }

    /// Whether `direction` is among them.
    #[must_use]
    pub fn includes(self, direction: Direction) -> bool {
        match self {
            Self::Ingress => direction == Direction::Ingress,
            Self::Egress => direction == Direction::Egress,
            Self::Bidirectional => true,
        }
    }
}

impl FromStr for Directions {
    type Err = InvalidField;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let named = Self::ALL.into_iter().find(|d| d.as_str().eq_ignore_ascii_case(s));
        named.ok_or_else(|| InvalidField::new("direction", s, words(&Self::ALL.map(Self::as_str))))
    }
}

/// Packets a rule wants, by verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Only what the firewall let through.
    Accepted,
    /// Only what the firewall refused.
    Rejected,
    /// What the firewall let through and what it refused.
    #[default]
    Any,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Accepted, Self::Rejected, Self::Any];

    /// All words, for people.
    #[must_use]
    pub fn words() -> String {
        one_of(&Self::ALL.map(Self::as_str))
    }

    /// What the cloud API calls [`Any`](Self::Any).
    pub const CLOUD_ANY: &str = "ALL";

    /// As in configuration and, in capitals, in the API: but for [`CLOUD_ANY`](Self::CLOUD_ANY).
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Rejected => "rejected",
            Self::Any => "any",
        }
    }
}

impl FromStr for Action {
    type Err = InvalidField;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        if s.eq_ignore_ascii_case(Self::CLOUD_ANY) {
            return Ok(Self::Any);
        }
        let named = Self::ALL.into_iter().find(|a| a.as_str().eq_ignore_ascii_case(s));
        named.ok_or_else(|| InvalidField::new("action", s, words(&Self::ALL.map(Self::as_str))))
    }
}

/// A rule's name. Key-safe, wherever it was read: it is the first part of every object key after the prefix.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Name(String);

impl TryFrom<String> for Name {
    type Error = InvalidField;

    fn try_from(name: String) -> Result<Self, InvalidField> {
        name.parse()
    }
}

impl Name {
    /// The name, as it stands in keys.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = InvalidField;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        key_part("name", s).map(Self)
    }
}

/// Checks one part of an object key.
///
/// # Errors
/// If it is empty, too long, `.` or `..`, or holds anything but ASCII letters, digits, `.`, `_` and `-`.
pub fn key_part(field: &'static str, s: &str) -> Result<String, InvalidField> {
    if s.contains('/') || s.to_ascii_lowercase().contains("%2f") {
        return Err(InvalidField::new(field, s, "may not contain `/` or `%2F`; use `-` instead"));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let rule = format!("use 1 to {NAME_BYTES_MAX} ASCII letters, digits, `.`, `_` or `-`");
    // Some look like others that are allowed, and some cannot be seen at all: said by number.
    if let Some(c) = s.chars().find(|c| !allowed(*c)) {
        let shown: String =
            s.chars().flat_map(|c| if allowed(c) { vec![c] } else { c.escape_default().collect() }).collect();
        return Err(InvalidField::new(field, shown, format!("U+{:04X} is not allowed; {rule}", u32::from(c))));
    }
    if s.is_empty() || s.len() > NAME_BYTES_MAX || s.chars().all(|c| c == '.') {
        return Err(InvalidField::new(field, s, rule));
    }
    Ok(s.to_owned())
}

/// Checks that columns for parts of a second have a place in objects of this form.
///
/// # Errors
/// If they are wanted where there are none.
pub fn subsecond(field: &'static str, wanted: bool, format: Format) -> Result<bool, InvalidField> {
    if wanted && format == Format::Text {
        let rule =
            "objects of `format = \"text\"` have no columns `start_ns` and `end_ns`: leave it out, or write Parquet";
        return Err(InvalidField::new(field, "true", rule));
    }
    Ok(wanted)
}

/// Checks the length of a window.
///
/// # Errors
/// If it is 0, longer than [`WINDOW_SECS_MAX`] or does not divide a day evenly.
pub fn window_secs(secs: u32) -> Result<u32, InvalidField> {
    let rule = match secs {
        0 => "must be at least 1 second".to_owned(),
        s if s > WINDOW_SECS_MAX => format!("must be at most {WINDOW_SECS_MAX} seconds (a day)"),
        s if !WINDOW_SECS_MAX.is_multiple_of(s) => {
            "must divide a day evenly, so that windows start on round times; try 1m, 5m, 10m or 1h".to_owned()
        }
        s => return Ok(s),
    };
    Err(InvalidField::new("window", secs.to_string(), rule))
}

/// Reads the length of a window, and [checks](window_secs) it: what is stored elsewhere may have been written by anybody.
///
/// # Errors
/// If it is no number, or no length that a window can have.
pub fn read_window_secs<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    window_secs(u32::deserialize(from)?).map_err(D::Error::custom)
}

/// One flow log on one interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Id in the flow-log store; the quick way in (`run --interface`) has none.
    #[serde(default)]
    pub id: Option<FlowLogId>,
    /// Name; starts the object key. Of a rule in the store: the name it was activated with, so that renaming it moves
    /// no key.
    pub name: Name,
    /// Directions wanted, as the interface's owner sees them.
    pub directions: Directions,
    /// Packets wanted, by verdict.
    pub action: Action,
    /// Where its objects go.
    pub target: Target,
    /// Length of a window in seconds.
    pub window_secs: u32,
    /// Write an object for a window without traffic.
    pub nodata: bool,
    /// Fill the columns `start_ns` and `end_ns`: half as many bytes again.
    pub subsecond: bool,
    /// How its keys are made up. Agents before there were three had a yes or no.
    #[serde(alias = "hive_layout")]
    pub layout: Layout,
    /// What its objects are.
    #[serde(default)]
    pub format: Format,
}

impl Rule {
    /// As in the column `rule_id`.
    #[must_use]
    pub fn label(&self) -> String {
        self.id.map_or_else(|| self.name.as_str().to_owned(), |id| id.to_string())
    }

    /// What all its keys begin with: `[prefix/]name`, or `[prefix/]flow_log=name`.
    #[must_use]
    pub fn folder(&self) -> String {
        let name = self.name.as_str();
        let name = if self.layout == Layout::HiveNamed { format!("{NAME_FOLDER}={name}") } else { name.to_owned() };
        self.target.prefix.as_ref().map_or_else(|| name.clone(), |p| format!("{p}/{name}"))
    }
}

#[cfg(any(test, feature = "samples"))]
impl Rule {
    /// A rule for tests of later stages.
    ///
    /// # Panics
    /// Never: its parts are good.
    #[must_use]
    pub fn sample(window_secs: u32) -> Self {
        Self {
            id: None,
            name: "web".parse().expect("a name"),
            directions: Directions::Bidirectional,
            action: Action::Any,
            target: "s3://flows".parse().expect("a target"),
            window_secs,
            nodata: true,
            subsecond: false,
            layout: Layout::Hive,
            format: Format::Parquet,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_key_safe() {
        for good in ["web", "a", "db-1_x.y", &"n".repeat(63)] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in ["", "a/b", "a%2Fb", "a%2fb", "..", ".", "a b", "ü", "a\n", "\u{430}", &"n".repeat(64)] {
            let error = bad.parse::<Name>().expect_err(bad).to_string();
            assert!(error.starts_with("name `") && !error.contains('\n') && error.is_ascii(), "{error}");
        }
        // A Cyrillic letter that looks like ours.
        let look_alike = "w\u{435}b".parse::<Name>().expect_err("look-alike").to_string();
        assert!(look_alike.contains("U+0435 is not allowed"), "{look_alike}");
    }

    #[test]
    fn windows_divide_a_day() {
        for good in [1, 60, 600, 3_600, 86_400] {
            assert_eq!(window_secs(good), Ok(good));
        }
        for bad in [0, 7, 601, 86_401, u32::MAX] {
            assert!(window_secs(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_guest_sends_what_comes_in_at_its_tap() {
        for direction in Direction::BOTH {
            assert_eq!(Side::Host.owners(direction), direction);
            assert_ne!(Side::Guest.owners(direction), direction);
        }
    }

    #[test]
    fn enums_take_the_words_of_the_cloud_api() {
        assert_eq!("BIDIRECTIONAL".parse(), Ok(Directions::Bidirectional));
        assert_eq!("ALL".parse(), Ok(Action::Any));
        assert_eq!(
            "both".parse::<Directions>().expect_err("no word").rule,
            "use `ingress`, `egress` or `bidirectional`"
        );
        assert!("drop".parse::<Action>().is_err());
    }
}
