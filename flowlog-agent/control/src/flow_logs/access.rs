//! Who may do what: principals, roles, privileges. Pure.
//!
//! An owner or administrator may do everything within its contract. A user may look; to create and change flow logs it
//! needs the privilege for that, and where a bucket is involved, the one to use object storage as well. Nobody sees
//! another contract's resources: asking for them is answered as if they did not exist. The node's operator (root on the
//! node's own socket) may do everything.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::inventory::Contract;

/// Role of a principal within its contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// Has signed the contract.
    Owner,
    /// Acts for the owner.
    Administrator,
    /// Has the privileges it was given.
    User,
}

/// What a user can be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Privilege {
    /// Create, change and delete flow logs.
    CreateFlowLogs,
    UseObjectStorage,
}

impl Privilege {
    /// What it allows, for a sentence in an error.
    #[must_use]
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::CreateFlowLogs => "create flow logs",
            Self::UseObjectStorage => "use object storage",
        }
    }
}

/// Somebody with a contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Principal {
    pub id: Uuid,
    /// Name, as in the audit log and in Basic credentials.
    pub name: String,
    pub contract: Contract,
    pub role: Role,
    /// Privileges: of a user.
    pub privileges: Vec<Privilege>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// Root of the node, on its own socket.
    Operator,
    Principal(Arc<Principal>),
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Read,
    /// Make a flow log, which names a bucket.
    Create,
    /// Check one, which tries its bucket.
    Validate,
    Provision,
    Rename,
    /// Change anything else of a draft, its bucket among it.
    Change,
    Delete,
    /// Read the audit log.
    Audit,
}

impl Operation {
    #[cfg(test)]
    pub(crate) const ALL: [Self; 8] = [
        Self::Read,
        Self::Create,
        Self::Validate,
        Self::Provision,
        Self::Rename,
        Self::Change,
        Self::Delete,
        Self::Audit,
    ];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Granted,
    /// No: the resource belongs to another contract, and is answered as if it did not exist.
    Hidden,
    /// No: the caller lacks this privilege.
    Needs(Privilege),
    /// No: only owners and administrators may.
    NeedsAdministrator,
}

impl Caller {
    /// Whether this caller may do something to a resource of a contract.
    #[must_use]
    pub(crate) fn may(&self, operation: Operation, contract: &Contract) -> Access {
        let Self::Principal(p) = self else { return Access::Granted };
        if p.contract != *contract {
            return Access::Hidden;
        }
        if p.role != Role::User {
            return Access::Granted;
        }
        let needed: &[Privilege] = match operation {
            Operation::Read => &[],
            Operation::Audit => return Access::NeedsAdministrator,
            Operation::Rename | Operation::Delete => &[Privilege::CreateFlowLogs],
            Operation::Create | Operation::Validate | Operation::Provision | Operation::Change => {
                &[Privilege::CreateFlowLogs, Privilege::UseObjectStorage]
            }
        };
        needed.iter().find(|n| !p.privileges.contains(n)).map_or(Access::Granted, |n| Access::Needs(*n))
    }

    /// Whether this caller sees resources of a contract at all.
    #[must_use]
    pub(crate) fn sees(&self, contract: &Contract) -> bool {
        self.may(Operation::Read, contract) == Access::Granted
    }

    /// The contract this caller is bound to; `None`: to none.
    #[must_use]
    pub(crate) fn contract(&self) -> Option<&Contract> {
        match self {
            Self::Operator => None,
            Self::Principal(p) => Some(&p.contract),
        }
    }

    /// As in `createdBy` and the audit log.
    #[must_use]
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Operator => "operator",
            Self::Principal(p) => &p.name,
        }
    }

    /// As in `createdByUserId`; nil for the operator.
    #[must_use]
    pub(crate) fn id(&self) -> Uuid {
        match self {
            Self::Operator => Uuid::nil(),
            Self::Principal(p) => p.id,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principal(contract: &str, role: Role, privileges: &[Privilege]) -> Caller {
        Caller::Principal(Arc::new(Principal {
            id: Uuid::nil(),
            name: "ann".to_owned(),
            contract: contract.parse().expect("contract"),
            role,
            privileges: privileges.to_vec(),
        }))
    }

    /// The whole table, written out: role, privileges, and what each operation is answered within the own contract.
    #[test]
    fn role_times_privilege_times_contract_times_operation() {
        use Privilege::{CreateFlowLogs as C, UseObjectStorage as S};
        let yes = Access::Granted;
        let c = Access::Needs(C);
        let s = Access::Needs(S);
        let admin = Access::NeedsAdministrator;
        let sets: [&[Privilege]; 4] = [&[], &[C], &[S], &[C, S]];
        let users = [
            // Read, Create, Validate, Provision, Rename, Change, Delete, Audit
            [yes, c, c, c, c, c, c, admin],
            [yes, s, s, s, yes, s, yes, admin],
            [yes, c, c, c, c, c, c, admin],
            [yes, yes, yes, yes, yes, yes, yes, admin],
        ];
        let own = "1".parse().expect("contract");
        let other = "2".parse().expect("contract");
        let mut cells = 0;
        for role in [Role::Owner, Role::Administrator, Role::User] {
            for (privileges, user) in sets.iter().zip(users) {
                let caller = principal("1", role, privileges);
                for (operation, expected) in Operation::ALL.into_iter().zip(user) {
                    let expected = if role == Role::User { expected } else { yes };
                    assert_eq!(caller.may(operation, &own), expected, "{role:?} {privileges:?} {operation:?}");
                    assert_eq!(caller.may(operation, &other), Access::Hidden, "{role:?} {operation:?}");
                    assert_eq!(Caller::Operator.may(operation, &other), yes);
                    cells += 2;
                }
            }
        }
        assert_eq!(cells, 3 * 4 * 2 * Operation::ALL.len());
    }
}
