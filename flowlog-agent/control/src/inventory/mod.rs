//! What exists on this node: NICs, NAT gateways, load balancers, and where buckets are. Whoever runs the node's VMs
//! writes it down, or knows it and is asked; we only read.
//!
//! * [`file`]: the form of the files;
//! * [`buckets`]: whose bucket is whose;
//! * [`source`]: NICs that the hypervisor knows of;
//! * [`load`]: from files and sources to an inventory, keeping what a broken file last said;
//! * `known`: NICs that several of them know;
//! * [`watch`]: reading again when files change.
//!
//! Who may do what with a resource does not belong here ([`crate::flow_logs::access`]), nor whether its interface is there (the
//! kernel's side knows).

mod buckets;
pub(crate) mod file;
mod known;
pub mod load;
pub mod source;
pub mod watch;

use std::{collections::BTreeMap, fmt, str::FromStr};

use flowlog_model::{Labels, interface::Selector, rule::Side};
use serde::{Deserialize, Serialize};
use source::spec::UnownedNic;
use utoipa::ToSchema;
use uuid::Uuid;

pub use buckets::{BucketPlace, BucketRegistry};

/// What a flow log can be attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ResourceKind)]
pub enum Kind {
    /// A virtual machine's network interface.
    Nic,
    /// A managed NAT gateway.
    NatGateway,
    /// A managed network load balancer.
    NetworkLoadBalancer,
    /// A managed application load balancer.
    ApplicationLoadBalancer,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] =
        [Self::Nic, Self::NatGateway, Self::NetworkLoadBalancer, Self::ApplicationLoadBalancer];

    /// What people call it, in the singular.
    #[must_use]
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Nic => "NIC",
            Self::NatGateway => "NAT gateway",
            Self::NetworkLoadBalancer => "network load balancer",
            Self::ApplicationLoadBalancer => "application load balancer",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}

/// A customer's contract. Key-safe, since it is in records.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Contract(String);

impl Contract {
    #[must_use]
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Contract {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        flowlog_model::rule::key_part("contract", s).map(Self).map_err(|e| e.to_string())
    }
}

impl TryFrom<String> for Contract {
    type Error = String;

    fn try_from(s: String) -> Result<Self, Self::Error> {
        s.parse()
    }
}

impl From<Contract> for String {
    fn from(contract: Contract) -> Self {
        contract.0
    }
}

impl fmt::Display for Contract {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One interface of a resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// As in records and keys.
    pub id: String,
    /// Which one it is on this node.
    pub selector: Selector,
}

/// Something that a flow log can be attached to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resource {
    pub id: Uuid,
    pub kind: Kind,
    /// Its name, if it has one.
    pub name: String,
    pub contract: Contract,
    /// Virtual data center it is in.
    pub datacenter: Uuid,
    /// Server it belongs to: of NICs.
    pub server: Option<Uuid>,
    /// Which side of its interfaces this node sees.
    pub side: Side,
    /// Rows have the other side of address translations.
    #[serde(default)]
    pub translations: bool,
    /// What it is known by besides its id.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// The source that has found it; `None`: it is in a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Its interfaces: one, or the public ones of a gateway or balancer.
    pub interfaces: Vec<Interface>,
}

/// Everything on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    pub resources: BTreeMap<Uuid, Resource>,
    /// NICs that sources have found and that are nobody's.
    pub unowned: Vec<UnownedNic>,
    /// Whose buckets are whose, and where.
    pub buckets: BucketRegistry,
}

impl Inventory {
    /// Resources of one kind in a data center.
    pub(crate) fn of_kind(&self, kind: Kind, datacenter: Uuid) -> impl Iterator<Item = &Resource> {
        self.resources.values().filter(move |r| r.kind == kind && r.datacenter == datacenter)
    }
}
