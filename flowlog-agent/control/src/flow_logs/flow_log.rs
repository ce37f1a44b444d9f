//! A flow log as the store keeps it, and the states it goes through. Pure.
//!
//! ```text
//! draft -> validated -> provisioning -> active -> deleting -> gone
//!   ^ ^________|   ^________|
//!   |__ changed     undone
//! ```

use std::collections::BTreeMap;

use flowlog_model::{
    FlowLogId, HookKind,
    rule::{Action, Directions, Format, InvalidField, Layout, Name, bucket_and_prefix, read_window_secs},
    status::CaptureState,
    text::quotable,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::inventory::{Contract, Interface, Inventory, Kind};

/// Longest field that a draft keeps, right or wrong.
const FIELD_BYTES_MAX: usize = 1_024;

/// Where a flow log is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = FlowLogState)]
pub enum State {
    /// Written down. Captures nothing.
    Draft,
    /// Every check has passed. Captures nothing.
    Validated,
    /// About to capture: finished or undone, also after a crash.
    Provisioning,
    Active,
    /// About to be gone: its capture is being ended and flushed.
    Deleting,
}

impl State {
    #[cfg(test)]
    pub(crate) const ALL: [Self; 5] = [Self::Draft, Self::Validated, Self::Provisioning, Self::Active, Self::Deleting];

    /// Whether a flow log may go from this state to `next`.
    #[must_use]
    pub(crate) fn may_become(self, next: Self) -> bool {
        use State::{Active, Deleting, Draft, Provisioning, Validated};
        let follows = matches!(
            (self, next),
            (Draft, Validated)
                | (Validated, Draft | Provisioning)
                | (Provisioning, Active | Validated)
                | (Active, Deleting)
        );
        self == next || follows
    }

    /// Whether a flow log may be gone after this state.
    #[must_use]
    pub(crate) fn may_end(self) -> bool {
        matches!(self, Self::Draft | Self::Validated | Self::Deleting)
    }

    /// Whether the kernel is to capture in this state.
    #[must_use]
    pub(crate) fn captures(self) -> bool {
        matches!(self, Self::Provisioning | Self::Active)
    }
}

/// What a customer says, as it was said: a draft may be wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Properties {
    /// Name of the flow log: 1 to 63 ASCII letters, digits, `.`, `_` or `-`. Object keys begin with the prefix, if there is one, and
    /// the name that the flow log was activated with.
    pub name: String,
    /// Packets that are captured, as the interface's owner sees them: `INGRESS` (they come in), `EGRESS` (they go out) or
    /// `BIDIRECTIONAL` (both).
    pub direction: String,
    /// Packets that are captured: `ACCEPTED` (the firewall let them through), `REJECTED` (it refused them) or `ALL` (both).
    pub action: String,
    /// Bucket that objects are written to, and an optional prefix of their keys: `bucket` or `bucket/prefix`. The prefix is 1 to 63
    /// ASCII letters, digits, `.`, `_` or `-`.
    pub bucket: String,
}

/// What a customer says, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Checked {
    pub name: Name,
    pub directions: Directions,
    pub action: Action,
    pub destination: Destination,
}

/// The bucket of a flow log, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Destination {
    pub bucket: String,
    /// What keys of objects begin with, before the name.
    pub prefix: Option<String>,
}

impl Properties {
    /// Names of the fields, as they are on the wire.
    pub(crate) const FIELDS: [&str; 4] = ["name", "direction", "action", "bucket"];

    /// Understands the fields.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub(crate) fn check(&self) -> Result<Checked, Vec<InvalidField>> {
        let mut problems = self.too_long();
        let mut also = Vec::new();
        let name = kept(self.name.parse(), &mut also);
        let directions = kept(self.direction.parse(), &mut also);
        let action = kept(self.action.parse(), &mut also);
        let destination = self.destination().map_err(|p| also.extend(p)).ok();
        // That one is too long is all that is wrong with it.
        also.retain(|p| problems.iter().all(|long| long.field != p.field));
        problems.append(&mut also);
        match (name, directions, action, destination) {
            (Some(name), Some(directions), Some(action), Some(destination)) => {
                Ok(Checked { name, directions, action, destination })
            }
            _ => Err(problems),
        }
    }

    /// Understands the bucket, whatever the other fields are.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn destination(&self) -> Result<Destination, Vec<InvalidField>> {
        bucket_and_prefix(&self.bucket).map(|(bucket, prefix)| Destination { bucket, prefix })
    }

    /// Everything that is wrong with what not even a draft keeps: with fields that are too long.
    #[must_use]
    pub(crate) fn unkept(&self) -> Option<Vec<InvalidField>> {
        if self.too_long().is_empty() { None } else { self.check().err() }
    }

    fn too_long(&self) -> Vec<InvalidField> {
        let values = [&self.name, &self.direction, &self.action, &self.bucket];
        let long = Self::FIELDS.into_iter().zip(values).filter(|(_, value)| value.len() > FIELD_BYTES_MAX);
        long.map(|(field, value)| {
            let beginning: String = value.chars().take(32).collect();
            InvalidField::new(field, format!("{beginning}…"), format!("must be at most {FIELD_BYTES_MAX} bytes"))
        })
        .collect()
    }

    /// The same with the words of the cloud API, where they are understood.
    #[must_use]
    pub(crate) fn canonical(mut self) -> Self {
        if let Ok(directions) = self.direction.parse::<Directions>() {
            self.direction = directions.as_str().to_ascii_uppercase();
        }
        match self.action.parse::<Action>() {
            Ok(Action::Any) => Action::CLOUD_ANY.clone_into(&mut self.action),
            Ok(action) => self.action = action.as_str().to_ascii_uppercase(),
            Err(_) => {}
        }
        self
    }
}

/// What is right; what is not goes to the others.
fn kept<T>(result: Result<T, InvalidField>, problems: &mut Vec<InvalidField>) -> Option<T> {
    result.map_err(|p| problems.push(p)).ok()
}

/// What a node decides about every flow log; fixed when it is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = FlowLogSettings)]
pub struct Settings {
    /// Length of a window in seconds.
    #[serde(deserialize_with = "read_window_secs")]
    pub window_secs: u32,
    /// How interfaces are hooked.
    #[schema(value_type = String)]
    pub hook: HookKind,
    /// Write an object for a window without traffic.
    pub nodata: bool,
    /// Fill the columns `start_ns` and `end_ns`.
    pub subsecond: bool,
    /// How its keys are made up: `hive`, `hive-named` or `flat`.
    #[serde(alias = "hive_layout")]
    #[schema(value_type = String)]
    pub layout: Layout,
    /// What its objects are: `parquet` or `text`.
    #[serde(default)]
    #[schema(value_type = String)]
    pub format: Format,
}

/// What a flow log is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[schema(as = FlowLogParent)]
pub struct Parent {
    pub kind: Kind,
    pub id: Uuid,
    /// Data center it is in.
    pub datacenter: Uuid,
    pub server: Option<Uuid>,
}

/// Who did something, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Stamp {
    pub by: String,
    /// Id; nil for the operator.
    pub by_id: Uuid,
    /// When, in seconds since 1970.
    pub at_secs: i64,
}

/// See the module's head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FlowLog {
    #[schema(value_type = Uuid)]
    pub id: FlowLogId,
    #[schema(value_type = String)]
    pub contract: Contract,
    pub parent: Parent,
    /// What the customer says.
    pub properties: Properties,
    /// What the node decides.
    pub settings: Settings,
    pub state: State,
    /// The name that its object keys begin with: the one it was activated with. Renaming changes the other.
    #[schema(value_type = Option<String>)]
    pub key_name: Option<Name>,
    /// Interfaces of its parent, as the inventory last had them: a parent that is away for a while keeps its gap.
    #[schema(value_type = Vec<Object>)]
    pub interfaces: Vec<Interface>,
    /// What the last check or provisioning found wrong.
    #[schema(value_type = Vec<Object>)]
    pub problems: Vec<InvalidField>,
    pub version: u64,
    pub created: Stamp,
    pub modified: Stamp,
}

/// Versions that are believed: no flow log is changed so often, and there is always a next one.
pub(super) const VERSION_MAX: u64 = 1 << 48;

impl FlowLog {
    /// What is wrong with one that comes from elsewhere (a value in etcd, a file that is imported), and may have been written by anybody. What the
    /// customer says may be wrong in a draft only.
    ///
    /// # Errors
    /// All of it, in words.
    pub(crate) fn check_foreign(&self) -> Result<(), String> {
        let mut problems = if self.state == State::Draft {
            self.properties.unkept().unwrap_or_default()
        } else {
            self.properties.check().err().unwrap_or_default()
        };
        if self.version > VERSION_MAX {
            let rule = format!("must be at most {VERSION_MAX}");
            problems.push(InvalidField::new("version", self.version.to_string(), rule));
        }
        let words: Vec<String> = problems.iter().map(ToString::to_string).collect();
        if words.is_empty() { Ok(()) } else { Err(words.join("; ")) }
    }

    /// Its name, fit for a sentence.
    pub(crate) fn shown_name(&self) -> String {
        quotable(&self.properties.name)
    }

    /// Names what it is now: another one whenever it changes.
    #[must_use]
    pub(crate) fn etag(&self) -> String {
        format!("{}{:08x}", self.id.0.simple(), self.version)
    }

    /// Whether the inventory has what it is attached to. One of the same id and another contract is not its parent.
    #[must_use]
    pub(crate) fn has_its_parent(&self, inventory: &Inventory) -> bool {
        let known = inventory.resources.get(&self.parent.id);
        known.is_some_and(|r| r.kind == self.parent.kind && r.contract == self.contract)
    }

    /// Whether it has the one place of its parent, or a claim to it. One that has failed has none.
    #[must_use]
    pub(crate) fn holds_its_parent(&self) -> bool {
        self.state.captures() || self.state == State::Deleting || self.problems.is_empty()
    }

    /// The first of its interfaces that cannot be captured, and why not. One that is not there yet is no trouble: it is waited for.
    #[must_use]
    pub(crate) fn trouble(&self, states: &BTreeMap<String, CaptureState>) -> Option<InvalidField> {
        self.interfaces.iter().find_map(|i| match states.get(&i.id) {
            Some(CaptureState::Trouble { why }) => {
                Some(InvalidField::new("interface", i.selector.to_string(), why.clone()))
            }
            _ => None,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A draft of contract 1, on a NIC.
    pub(crate) fn sample() -> FlowLog {
        let made = Stamp { by: "ann".to_owned(), by_id: Uuid::nil(), at_secs: 0 };
        let words = |s: &str| s.to_owned();
        FlowLog {
            id: FlowLogId(Uuid::from_u128(1)),
            contract: "1".parse().expect("a contract"),
            parent: Parent {
                kind: Kind::Nic,
                id: Uuid::from_u128(2),
                datacenter: Uuid::from_u128(3),
                server: Some(Uuid::from_u128(4)),
            },
            properties: Properties {
                name: words("web"),
                direction: words("BIDIRECTIONAL"),
                action: words("ALL"),
                bucket: words("flows"),
            },
            settings: Settings {
                window_secs: 60,
                hook: HookKind::Tc,
                nodata: true,
                subsecond: false,
                layout: Layout::Hive,
                format: Format::Parquet,
            },
            state: State::Draft,
            key_name: None,
            interfaces: Vec::new(),
            problems: Vec::new(),
            version: 1,
            created: made.clone(),
            modified: made,
        }
    }

    /// Every pair of states, written out.
    #[test]
    fn states_follow_each_other_as_drawn_and_in_no_other_way() {
        let table = [
            // Draft, Validated, Provisioning, Active, Deleting
            [true, true, false, false, false],
            [true, true, true, false, false],
            [false, true, true, true, false],
            [false, false, false, true, true],
            [false, false, false, false, true],
        ];
        assert_eq!(State::ALL.map(State::may_end), [true, true, false, false, true]);
        for (from, row) in State::ALL.into_iter().zip(table) {
            for (to, allowed) in State::ALL.into_iter().zip(row) {
                assert_eq!(from.may_become(to), allowed, "{from:?} -> {to:?}");
            }
        }
    }

    #[test]
    fn all_that_is_wrong_with_a_draft_is_said_at_once_with_field_value_and_remedy() {
        let words = |s: &str| s.to_owned();
        let bad = Properties {
            name: words("a/b"),
            direction: words("UP"),
            action: words("MAYBE"),
            bucket: words("Big/x%2Fy"),
        };
        let problems = bad.check().expect_err("bad");
        let fields: Vec<&str> = problems.iter().map(|p| p.field.as_ref()).collect();
        assert_eq!(fields, ["name", "direction", "action", "bucket", "prefix"]);
        assert!(problems.iter().all(|p| !p.value.is_empty() && p.rule.len() > 10), "{problems:?}");
        let good = Properties {
            name: words("web"),
            direction: words("ingress"),
            action: words("any"),
            bucket: words("flows/team"),
        };
        assert!(good.check().is_ok_and(|c| c.destination.prefix.as_deref() == Some("team")));
        assert_eq!(good.clone().canonical().action, "ALL");
        let long = Properties { name: "n".repeat(2_000), ..good };
        assert_eq!(long.check().expect_err("long").len(), 1);
    }
}
