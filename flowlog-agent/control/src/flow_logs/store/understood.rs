//! What a value in etcd says of a flow log, or why it is not understood: it is of a later version, or damaged. Pure.
//!
//! What is not understood is never carried out in part: whoever has understood an earlier value goes on with that one, and says so.

use flowlog_model::{
    FlowLogId, HookKind,
    rule::{Format, InvalidField, Layout},
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use uuid::Uuid;

use crate::{
    etcd::keys::RuleKey,
    flow_logs::flow_log::{FlowLog, Parent, Properties, Settings, Stamp, State, VERSION_MAX},
    inventory::{Contract, Kind},
};

/// The field under which it is said of a flow log that its value is not understood. Nothing of that is ever written to etcd.
const FIELD: &str = "etcd";
/// What a stand-in says where not even that can be read. No contract of the cloud is called so: the operator alone sees it.
const UNKNOWN: &str = "not-understood";

/// A value that is not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NotUnderstood {
    /// Its key, below the prefix.
    pub key: String,
    /// When it was written.
    pub revision: i64,
    pub why: String,
}

impl NotUnderstood {
    /// In a sentence, without what follows from it.
    pub(crate) fn words(&self) -> String {
        format!("`{}` in etcd is not understood ({}): was it written by a later version?", self.key, self.why)
    }

    /// What is wrong with the flow log, for who may change it.
    pub(crate) fn problem(&self) -> InvalidField {
        let rule = format!(
            "is not understood ({}); use the version of flowlog that wrote it, or delete the flow log, or replace it (PUT)",
            self.why
        );
        InvalidField::new(FIELD, self.key.clone(), rule)
    }
}

/// Forgets what was only said of its value.
pub(super) fn forget_problem(flow_log: &mut FlowLog) {
    flow_log.problems.retain(|problem| problem.field != FIELD);
}

/// What a value says of the flow log whose key it is in.
///
/// # Errors
/// If it is not understood.
pub(crate) fn understood(
    (parent, id): (Uuid, FlowLogId),
    value: &[u8],
    revision: i64,
) -> Result<FlowLog, NotUnderstood> {
    let not = |why| NotUnderstood { key: RuleKey::FlowLog { parent, id }.name(), revision, why };
    let flow_log: FlowLog = serde_json::from_slice(value).map_err(|e| not(e.to_string()))?;
    if (flow_log.parent.id, flow_log.id) != (parent, id) {
        return Err(not(format!("it is of flow log {} of {}", flow_log.id, flow_log.parent.id)));
    }
    // Fields are words: those of a later version are read as well as ours, and it would capture nothing. One that ends needs none.
    if flow_log.state != State::Deleting {
        flow_log.check_foreign().map_err(not)?;
    }
    Ok(flow_log)
}

/// What stands for a flow log of which nothing was ever understood, so that it is seen and can be deleted: what can be read of it.
pub(crate) fn stand_in((parent, id): (Uuid, FlowLogId), value: &[u8]) -> FlowLog {
    let value: Value = serde_json::from_slice(value).unwrap_or_default();
    let word = |field: &str| value["properties"][field].as_str().unwrap_or_default().to_owned();
    let nobody = Stamp { by: UNKNOWN.to_owned(), by_id: Uuid::nil(), at_secs: 0 };
    let settings = Settings {
        window_secs: 600,
        hook: HookKind::Tc,
        nodata: true,
        subsecond: false,
        layout: Layout::Hive,
        format: Format::Parquet,
    };
    let state = match part(&value["state"]) {
        Some(draft @ (State::Draft | State::Validated)) => draft,
        // Whoever has understood it once captures it.
        _ => State::Active,
    };
    FlowLog {
        id,
        contract: part::<Contract>(&value["contract"]).unwrap_or_else(|| UNKNOWN.parse().expect("a good name")),
        parent: part(&value["parent"]).filter(|of: &Parent| of.id == parent).unwrap_or(Parent {
            kind: Kind::Nic,
            id: parent,
            datacenter: Uuid::nil(),
            server: None,
        }),
        properties: Properties {
            name: Some(word("name")).filter(|name| !name.is_empty()).unwrap_or_else(|| UNKNOWN.to_owned()),
            direction: word("direction"),
            action: word("action"),
            bucket: word("bucket"),
        },
        settings: part(&value["settings"]).unwrap_or(settings),
        state,
        key_name: part(&value["key_name"]),
        interfaces: part(&value["interfaces"]).unwrap_or_default(),
        problems: Vec::new(),
        version: part(&value["version"]).filter(|version| *version <= VERSION_MAX).unwrap_or(0),
        created: part(&value["created"]).unwrap_or_else(|| nobody.clone()),
        modified: part(&value["modified"]).unwrap_or(nobody),
    }
}

/// Whether it is known whose a stand-in is, and of what: else it cannot be made anew, only deleted.
pub(crate) fn can_be_replaced(stand_in: &FlowLog) -> bool {
    stand_in.contract.as_str() != UNKNOWN && !stand_in.parent.datacenter.is_nil()
}

/// A part, if it is understood.
fn part<T: DeserializeOwned>(value: &Value) -> Option<T> {
    serde_json::from_value(value.clone()).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::flow_logs::flow_log::tests::sample;

    /// What somebody has made of a value.
    type Change = fn(&mut Value);

    fn of(change: impl FnOnce(&mut Value)) -> (Result<FlowLog, NotUnderstood>, FlowLog) {
        let good = FlowLog { state: State::Active, ..sample() };
        let key = (good.parent.id, good.id);
        let mut value = serde_json::to_value(&good).expect("json");
        change(&mut value);
        let bytes = serde_json::to_vec(&value).expect("json");
        (understood(key, &bytes, 7), stand_in(key, &bytes))
    }

    #[test]
    fn what_a_later_version_may_write_is_not_understood_and_what_can_be_read_of_it_stands_for_it() {
        let active = FlowLog { state: State::Active, ..sample() };
        assert_eq!(of(|_| ()).0, Ok(active.clone()));
        // Fields that are not known are no reason: that is how a later version adds what it can do without.
        assert!(of(|v| v["more"] = json!(1)).0.is_ok());
        let changes: [(&str, Change); 10] = [
            ("version `18446744073709551615`: must be", |v| v["version"] = json!(u64::MAX)),
            ("paused", |v| v["state"] = json!("paused")),
            ("integer `7`", |v| v["contract"] = json!(7)),
            ("SIDEWAYS", |v| v["properties"]["direction"] = json!("SIDEWAYS")),
            ("LOST", |v| v["properties"]["action"] = json!("LOST")),
            ("window `0`: must be at least", |v| v["settings"]["window_secs"] = json!(0)),
            ("window `7`: must divide a day", |v| v["settings"]["window_secs"] = json!(7)),
            ("name `../../up`", |v| v["key_name"] = json!("../../up")),
            ("U+001B", |v| v["key_name"] = json!("\u{1b}[2J")),
            ("of flow log", |v| v["id"] = json!(Uuid::from_u128(99))),
        ];
        for (words, change) in changes {
            let (read, stand_in) = of(change);
            let not = read.expect_err(words);
            assert!(not.why.contains(words) && not.words().contains(&not.key), "{not:?}");
            assert_eq!((stand_in.id, stand_in.parent.id, stand_in.state), (active.id, active.parent.id, State::Active));
            assert_eq!(stand_in.properties.name, active.properties.name);
        }
        // A draft may be wrong.
        assert!(of(|v| (v["state"], v["properties"]["action"]) = (json!("draft"), json!("LOST"))).0.is_ok());
        let nothing = stand_in((active.parent.id, active.id), b"\0damaged");
        assert_eq!((nothing.state, nothing.contract.as_str()), (State::Active, UNKNOWN));
        assert!(!can_be_replaced(&nothing) && can_be_replaced(&of(|v| v["state"] = json!("paused")).1));
        // It can be written as it is, and is read again.
        let bytes = serde_json::to_vec(&FlowLog { state: State::Deleting, ..nothing }).expect("json");
        assert!(understood((active.parent.id, active.id), &bytes, 1).is_ok());
    }

    #[test]
    fn what_is_only_said_of_a_value_is_not_kept() {
        let mut flow_log = sample();
        let not = of(|v| v["state"] = json!("paused")).0.expect_err("not understood");
        let own = InvalidField::new("name", "a/b", "may not");
        flow_log.problems = vec![not.problem(), own.clone()];
        forget_problem(&mut flow_log);
        assert_eq!(flow_log.problems, [own]);
    }
}
