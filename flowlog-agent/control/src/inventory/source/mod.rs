//! What the hypervisor already knows of the NICs of its VMs, so that nobody has to write it down.
//!
//! * [`names`]: interfaces whose names say whose they are;
//! * [`libvirt`]: the status files of libvirt's running domains; [`domain`]: what is in one;
//! * [`ovsdb`]: the interfaces of Open vSwitch, from its database; [`rpc`]: how it is spoken to;
//! * [`spec`]: what the configuration says of a source, and what NICs that it finds become; [`identity`]: their ids;
//! * [`board`]: what all of them have found, and how they are doing; [`follow`]: looking again;
//! * [`last_said`]: what each said last, for an agent that starts while it does not answer;
//! * [`import`]: what one would bring, without an agent.
//!
//! A source only finds. That a file knows a NIC better is [`load`](super::load)'s matter, what is captured
//! [`flow_logs`](crate::flow_logs)'s.

pub mod board;
mod domain;
pub mod follow;
mod identity;
pub mod import;
pub mod last_said;
pub(crate) mod libvirt;
pub(crate) mod names;
pub(crate) mod ovsdb;
mod rpc;
pub mod spec;

use std::{borrow::Cow, collections::BTreeMap, io, path::PathBuf, time::Duration};

use flowlog_host::trust::TrustError;
use flowlog_model::{interface::Mac, rule::Side};
pub(crate) use identity::Identity;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// NICs of one source that are taken: as many as the inventory takes drop-in files.
const NICS_MAX: usize = 10_000;

/// A NIC, as a source knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundNic {
    pub(crate) identity: Identity,
    /// Name of its interface on this node.
    pub(crate) interface: String,
    /// Hardware address of the guest's end.
    pub(crate) mac: Option<Mac>,
    /// The VM.
    pub(crate) server: Option<Uuid>,
    /// What people call it.
    pub(crate) name: String,
    /// The cloud's project it belongs to.
    pub(crate) project: Option<String>,
    /// What else is known of it; not checked.
    pub(crate) labels: BTreeMap<Cow<'static, str>, String>,
    /// What is known under names that the configuration has chosen.
    pub(crate) groups: BTreeMap<String, String>,
    /// Which side of it this node sees, where that is not what the configuration says.
    pub(crate) side: Option<Side>,
}

/// What one look has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Look {
    pub nics: Vec<FoundNic>,
    /// What could not be read, of which what was known before is in `nics`.
    pub problems: Vec<String>,
}

/// Why a source finds nothing; what it has found before still holds.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    #[error("{}: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{}: {source}", path.display())]
    Open { path: PathBuf, source: TrustError },
    #[error("{}: {words}", path.display())]
    Answer { path: PathBuf, words: String },
}

/// What finds NICs.
pub(crate) trait Source: Send {
    /// Looks at all there is.
    fn look(&mut self) -> Result<Look, SourceError>;
    /// Returns when it is time to look again: something may have changed, or so much time has passed.
    fn wait(&mut self, at_most: Option<Duration>) -> Result<(), SourceError>;
}
