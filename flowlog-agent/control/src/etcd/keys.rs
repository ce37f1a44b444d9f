//! Names of keys below the prefix.

use flowlog_model::FlowLogId;
use uuid::Uuid;

use crate::inventory::Contract;

/// What all keys of the store begin with, but those of the audit log.
pub(crate) const RULES: &str = "rules/";
/// Flow logs.
pub(crate) const FLOW_LOGS: &str = "rules/flow-logs/";
/// What nodes say.
pub(crate) const NODES: &str = "nodes/";
/// The server that carries requests out.
pub(crate) const LEADER: &str = "leader";
/// The audit log.
pub(crate) const AUDIT: &str = "audit/";

/// What a key below [`RULES`] names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RuleKey {
    FlowLog { parent: Uuid, id: FlowLogId },
    Request(Uuid),
    Contract(Contract),
}

impl RuleKey {
    /// As it is written, below the prefix.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::FlowLog { parent, id } => format!("{FLOW_LOGS}{parent}/{id}"),
            Self::Request(id) => format!("{RULES}requests/{id}"),
            Self::Contract(contract) => format!("{RULES}contracts/{contract}"),
        }
    }

    /// Reads a name; `None`: it is another one, such as a later version's.
    pub(crate) fn of(name: &str) -> Option<Self> {
        let (kind, rest) = name.strip_prefix(RULES)?.split_once('/')?;
        match kind {
            "flow-logs" => {
                let (parent, id) = rest.split_once('/')?;
                Some(Self::FlowLog { parent: parent.parse().ok()?, id: FlowLogId(id.parse().ok()?) })
            }
            "requests" => Some(Self::Request(rest.parse().ok()?)),
            "contracts" => Some(Self::Contract(rest.parse().ok()?)),
            _ => None,
        }
    }
}

/// The last transaction of a writer.
pub(crate) fn writer(writer: &str) -> String {
    format!("{RULES}writers/{writer}")
}

/// Entries of a contract; of all without one.
pub(crate) fn audits(contract: Option<&Contract>) -> String {
    contract.map_or_else(|| AUDIT.to_owned(), |contract| format!("{AUDIT}{contract}/"))
}

/// The `n`th entry of a transaction: in the order of time, and nobody else's.
pub(crate) fn audit(contract: &Contract, at_ms: i64, transaction: Uuid, n: usize) -> String {
    format!("{AUDIT}{contract}/{at_ms:013}-{}-{n:03}", transaction.simple())
}

/// What a node has.
pub(crate) fn resources(node: &str) -> String {
    format!("{NODES}{node}/resources")
}

/// Which process is the server of a name.
pub(crate) fn server(name: &str) -> String {
    format!("servers/{name}")
}

/// How a node is doing.
pub(crate) fn status(node: &str) -> String {
    format!("{NODES}{node}/status")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_written_and_others_are_nobodys() {
        let id = Uuid::from_u128(7);
        let all = [
            RuleKey::FlowLog { parent: Uuid::from_u128(9), id: FlowLogId(id) },
            RuleKey::Request(id),
            RuleKey::Contract("31960002".parse().expect("a contract")),
        ];
        for key in all {
            assert_eq!(RuleKey::of(&key.name()), Some(key));
        }
        for other in ["", "rules/", "rules/flow-logs/7", "rules/writers/n", "nodes/n/status", "rules/later/x"] {
            assert_eq!(RuleKey::of(other), None, "{other}");
        }
    }
}
