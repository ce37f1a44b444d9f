//! What callers can wish for. Each is checked as far as that goes at once, and written down in one transaction; what takes
//! time becomes a [`Request`], which the worker carries out.

mod anew;

use std::{collections::BTreeMap, fmt, sync::Arc};

use flowlog_model::{FlowLogId, rule::InvalidField, text::quotable};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, MapAccess, Visitor},
};
use tokio::sync::{Notify, watch};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    Refused,
    access::{Caller, Operation},
    allowed,
    expected::Expected,
    flow_log::{FlowLog, Parent, Properties, Settings, Stamp, State},
    reader::visible,
    request::{Progress, Request, Work},
    shares::Shares,
    stamp,
    store::{AuditEntry, Change, FlowLogStore, SharedStore, export},
};
use crate::inventory::{Contract, Resource};

/// Flow logs of one contract on one node: more than a node has interfaces for.
const FLOW_LOGS_PER_CONTRACT_MAX: usize = 2_000;
/// Requests of one contract that wait at the same time.
const WAITING_PER_CONTRACT_MAX: usize = 1_000;
/// Requests that are remembered after they are over: clients ask for a while.
const REQUESTS_KEPT_MAX: usize = 5_000;

/// The fields of a flow log that a request sets. A create or a replace needs all four; a PATCH leaves the absent ones as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = FlowLogProperties)]
pub struct Patch {
    /// Name of the flow log: 1 to 63 ASCII letters, digits, `.`, `_` or `-`. Object keys begin with the prefix, if there is one, and
    /// the name that the flow log was activated with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Packets to capture, as the interface's owner sees them: `INGRESS` (they come in), `EGRESS` (they go out) or
    /// `BIDIRECTIONAL` (both).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direction: Option<String>,
    /// Packets to capture: `ACCEPTED` (the firewall let them through), `REJECTED` (it refused them) or `ALL` (both).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// Bucket that objects are written to, and an optional prefix of their keys: `bucket` or `bucket/prefix`. The prefix is 1 to 63
    /// ASCII letters, digits, `.`, `_` or `-`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bucket: Option<String>,
}

impl<'de> Deserialize<'de> for Patch {
    /// Strictly: a field that is not known, said twice, or `null` is a mistake, and so is a list. What serde derives would take a
    /// list for the fields in their order (serde-rs/serde#1587), and `null` for a field that is not said.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Said)
    }
}

struct Said;

impl<'de> Visitor<'de> for Said {
    type Value = Patch;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with any of `name`, `direction`, `action` and `bucket`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Patch, A::Error> {
        let mut said = <[Option<String>; 4]>::default();
        while let Some(field) = map.next_key::<String>()? {
            let Some(n) = Properties::FIELDS.iter().position(|name| *name == field) else {
                return Err(de::Error::unknown_field(&field, &Properties::FIELDS));
            };
            if said[n].replace(map.next_value()?).is_some() {
                return Err(de::Error::custom(format!("`{field}` is said twice")));
            }
        }
        let [name, direction, action, bucket] = said;
        Ok(Patch { name, direction, action, bucket })
    }
}

impl From<Properties> for Patch {
    fn from(p: Properties) -> Self {
        Self { name: Some(p.name), direction: Some(p.direction), action: Some(p.action), bucket: Some(p.bucket) }
    }
}

impl Patch {
    pub(crate) fn apply(self, to: &Properties) -> Properties {
        let to = to.clone();
        Properties {
            name: self.name.unwrap_or(to.name),
            direction: self.direction.unwrap_or(to.direction),
            action: self.action.unwrap_or(to.action),
            bucket: self.bucket.unwrap_or(to.bucket),
        }
        .canonical()
    }

    /// All fields.
    ///
    /// # Errors
    /// Names of those that are missing.
    pub(crate) fn complete(self) -> Result<Properties, Vec<&'static str>> {
        match (self.name, self.direction, self.action, self.bucket) {
            (Some(name), Some(direction), Some(action), Some(bucket)) => {
                Ok(Properties { name, direction, action, bucket })
            }
            (name, direction, action, bucket) => {
                let fields = Properties::FIELDS.into_iter().zip([name, direction, action, bucket]);
                Err(fields.filter(|(_, value)| value.is_none()).map(|(field, _)| field).collect())
            }
        }
    }
}

/// See the module's head. Wakes the worker when there is something to carry out.
pub struct Editor {
    store: SharedStore,
    /// For new flow logs.
    settings: watch::Receiver<Settings>,
    work: Arc<Notify>,
    /// Nothing is changed here.
    is_elsewhere: bool,
}

impl Editor {
    pub(super) fn new(
        store: SharedStore,
        settings: watch::Receiver<Settings>,
        work: Arc<Notify>,
        is_elsewhere: bool,
    ) -> Self {
        Self { store, settings, work, is_elsewhere }
    }

    /// Makes the changes of a plan, where that may be.
    async fn changed<T>(
        &self,
        plan: impl FnMut(&FlowLogStore) -> Result<(T, Vec<Change>), Refused>,
    ) -> Result<T, Refused> {
        if self.is_elsewhere {
            let words =
                "this node carries out what its region says: change flow logs at the region's API (`flowlog control`)";
            return Err(Refused::Conflict(words.to_owned()));
        }
        self.store.change(plan).await
    }

    /// Writes a draft down, right or wrong.
    ///
    /// # Errors
    /// If the caller may not, or there are too many.
    pub(crate) async fn add(
        &self,
        caller: &Caller,
        resource: &Resource,
        properties: Properties,
    ) -> Result<FlowLog, Refused> {
        let plan = |store: &FlowLogStore| {
            let flow_log = self.new_flow_log(store, caller, resource, properties.clone())?;
            let changes =
                vec![Change::Put(Box::new(flow_log.clone())), audit(&stamp(caller), &flow_log, "draft added")];
            Ok((flow_log, changes))
        };
        self.changed(plan).await
    }

    /// Makes a flow log and activates it as soon as all checks have passed.
    ///
    /// # Errors
    /// If the caller may not, a field is wrong, or the resource has a flow log already.
    pub(crate) async fn create(
        &self,
        caller: &Caller,
        resource: &Resource,
        properties: Properties,
    ) -> Result<(FlowLog, Request), Refused> {
        let plan = |store: &FlowLogStore| {
            let flow_log = self.new_flow_log(store, caller, resource, properties.clone())?;
            flow_log.properties.check().map_err(Refused::Invalid)?;
            if let Some(other) = store.flow_logs().values().find(|f| f.parent.id == resource.id && f.holds_its_parent())
            {
                return Err(Refused::Conflict(format!(
                    "{} {} has the flow log `{}` ({}) already, and takes one; delete that first",
                    resource.kind,
                    resource.id,
                    other.shown_name(),
                    other.id
                )));
            }
            let request = new_request(store, caller, &flow_log.contract, Work::Provision(vec![flow_log.id]))?;
            let what = format!("flow log `{}` created for {} {}", flow_log.properties.name, resource.kind, resource.id);
            let mut changes = vec![Change::Put(Box::new(flow_log.clone())), audit(&stamp(caller), &flow_log, &what)];
            changes.extend(request_changes(store, &request));
            Ok(((flow_log, request), changes))
        };
        let made = self.changed(plan).await?;
        self.work.notify_one();
        Ok(made)
    }

    fn new_flow_log(
        &self,
        store: &FlowLogStore,
        caller: &Caller,
        resource: &Resource,
        properties: Properties,
    ) -> Result<FlowLog, Refused> {
        allowed(caller, Operation::Create, &resource.contract, &format!("{} {}", resource.kind, resource.id))?;
        if let Some(problems) = properties.unkept() {
            return Err(Refused::Invalid(problems));
        }
        let count = store.flow_logs().values().filter(|f| f.contract == resource.contract).count();
        if count >= FLOW_LOGS_PER_CONTRACT_MAX {
            return Err(Refused::TooMany(format!("contract {} has {count} flow logs; delete some", resource.contract)));
        }
        let Resource { id, kind, contract, datacenter, server, interfaces, .. } = resource.clone();
        let made = stamp(caller);
        Ok(FlowLog {
            id: FlowLogId(Uuid::new_v4()),
            contract,
            parent: Parent { kind, id, datacenter, server },
            properties: properties.canonical(),
            settings: self.settings.borrow().clone(),
            state: State::Draft,
            key_name: None,
            interfaces,
            problems: Vec::new(),
            version: 1,
            created: made.clone(),
            modified: made,
        })
    }

    /// Changes fields: all of a draft, the name of an active flow log. With `activate`, one that is not active yet is
    /// activated after it. What changes nothing leaves no trace.
    ///
    /// # Errors
    /// If the caller may not, a field is wrong or cannot be changed any more, it is another version than `expected`, or something is
    /// being done to it.
    pub(crate) async fn change(
        &self,
        caller: &Caller,
        id: FlowLogId,
        patch: Patch,
        activate: bool,
        expected: &Expected,
    ) -> Result<(FlowLog, Request), Refused> {
        let settings = self.settings.borrow().clone();
        let plan = |store: &FlowLogStore| {
            if store.is_stand_in(id) {
                return anew::planned(store, caller, id, patch.clone(), activate, &settings);
            }
            planned_change(store, caller, id, patch.clone(), activate, expected)
        };
        let changed = self.changed(plan).await?;
        self.work.notify_one();
        Ok(changed)
    }

    /// Activates drafts, all or none: these, or all of a contract.
    ///
    /// # Errors
    /// If the caller may not, or there is nothing to do.
    pub(crate) async fn provision(
        &self,
        caller: &Caller,
        ids: &[FlowLogId],
        contract: Option<&Contract>,
    ) -> Result<Request, Refused> {
        let request = self.changed(|store| planned_provision(store, caller, ids, contract)).await?;
        self.work.notify_one();
        Ok(request)
    }

    /// Ends a flow log: its capture is ended and flushed, what has been delivered stays.
    ///
    /// # Errors
    /// If the caller may not, or it is another version than `expected`.
    pub(crate) async fn delete(&self, caller: &Caller, id: FlowLogId, expected: &Expected) -> Result<Request, Refused> {
        let plan = |store: &FlowLogStore| {
            let flow_log = visible(store, caller, id)?;
            allowed(caller, Operation::Delete, &flow_log.contract, &format!("flow log {id}"))?;
            expected.holds(flow_log)?;
            if let Some(request) = store.open_requests().find(|r| r.work == Work::Delete(id)) {
                return Ok((request.clone(), Vec::new()));
            }
            let request = new_request(store, caller, &flow_log.contract, Work::Delete(id))?;
            let mut changes = vec![audit(&stamp(caller), flow_log, "deletion asked for")];
            changes.extend(request_changes(store, &request));
            Ok((request, changes))
        };
        let request = self.changed(plan).await?;
        self.work.notify_one();
        Ok(request)
    }

    /// All flow logs, for another store.
    ///
    /// # Errors
    /// If the caller is not the operator, or one is being changed.
    pub(crate) fn export(&self, caller: &Caller) -> Result<Vec<FlowLog>, Refused> {
        export::exported(&self.store.lock(), caller)
    }

    /// Takes flow logs over from another store, all of these or none; returns how many are new here.
    ///
    /// # Errors
    /// If the caller is not the operator, or one cannot be beside those that are here.
    pub(crate) async fn import(&self, caller: &Caller, flow_logs: &[FlowLog]) -> Result<usize, Refused> {
        let taken = self.changed(|store| export::imported(store, caller, flow_logs)).await?;
        self.work.notify_one();
        Ok(taken)
    }
}

/// A flow log as it is after a change, its request, and what there is to write.
fn planned_change(
    store: &FlowLogStore,
    caller: &Caller,
    id: FlowLogId,
    patch: Patch,
    activate: bool,
    expected: &Expected,
) -> Result<((FlowLog, Request), Vec<Change>), Refused> {
    let old = visible(store, caller, id)?.clone();
    // What is to stay as it is has to be known. Whoever says all of it replaces it.
    if patch.clone().complete().is_err() {
        store.refuse_not_understood(id)?;
    }
    let properties = patch.apply(&old.properties);
    let only_name = Properties { name: properties.name.clone(), ..old.properties.clone() } == properties;
    let active = old.state == State::Active;
    let operation = if only_name && !activate { Operation::Rename } else { Operation::Change };
    let operation = if only_name && active { Operation::Rename } else { operation };
    allowed(caller, operation, &old.contract, &format!("flow log {id}"))?;
    expected.holds(&old)?;
    if store.is_busy(id) || matches!(old.state, State::Provisioning | State::Deleting) {
        return Err(Refused::Conflict(format!("flow log {id} is being changed; try again when that is done")));
    }
    if active && !only_name {
        return Err(Refused::Invalid(immutable(&old.properties, &properties)));
    }
    let problems = if active || activate { properties.check().err() } else { properties.unkept() };
    if let Some(problems) = problems {
        return Err(Refused::Invalid(problems));
    }
    let name = &properties.name;
    let tries = activate && !active;
    let what = match (properties != old.properties, only_name, tries) {
        (true, true, _) => Some(format!("renamed from `{}` to `{}`", old.shown_name(), quotable(name))),
        (true, false, _) => Some("draft changed".to_owned()),
        (false, _, true) => Some("provisioning asked for".to_owned()),
        // What is the same as was understood last is not what is there.
        (false, _, false) => store.not_understood(id).map(|_| "written as it was understood last".to_owned()),
    };
    let request = {
        let work = if tries { Work::Provision(vec![id]) } else { Work::Changed(id) };
        new_request(store, caller, &old.contract, work)?
    };
    let mut changes = request_changes(store, &request);
    let mut new = old;
    if let Some(what) = what {
        new.properties = properties;
        touch(&mut new, caller);
        if !active {
            new.state = State::Draft;
            new.problems.clear();
        }
        changes.extend([Change::Put(Box::new(new.clone())), audit(&stamp(caller), &new, &what)]);
    }
    Ok(((new, request), changes))
}

/// The request that activates drafts, and what there is to write.
fn planned_provision(
    store: &FlowLogStore,
    caller: &Caller,
    ids: &[FlowLogId],
    contract: Option<&Contract>,
) -> Result<(Request, Vec<Change>), Refused> {
    let mut flow_logs = Vec::new();
    for id in ids {
        flow_logs.push(visible(store, caller, *id)?.clone());
    }
    if let Some(contract) = contract.or(caller.contract()).filter(|_| ids.is_empty()) {
        let pending = |f: &&FlowLog| {
            let is_draft = matches!(f.state, State::Draft | State::Validated);
            f.contract == *contract && is_draft && store.not_understood(f.id).is_none()
        };
        flow_logs.extend(store.flow_logs().values().filter(pending).cloned());
        flow_logs.sort_by_key(|f| (f.created.at_secs, f.id));
    }
    let Some(contract) = flow_logs.first().map(|f| f.contract.clone()) else {
        return Err(Refused::Conflict("there are no drafts to provision".to_owned()));
    };
    for f in &flow_logs {
        allowed(caller, Operation::Provision, &f.contract, &format!("flow log {}", f.id))?;
        store.refuse_not_understood(f.id)?;
        if f.contract != contract {
            return Err(Refused::Conflict("flow logs of several contracts are not provisioned together".to_owned()));
        }
        if store.is_busy(f.id) || !matches!(f.state, State::Draft | State::Validated) {
            return Err(Refused::Conflict(format!("flow log {} is active or being changed already", f.id)));
        }
    }
    let request = new_request(store, caller, &contract, Work::Provision(flow_logs.iter().map(|f| f.id).collect()))?;
    let mut changes: Vec<Change> =
        flow_logs.iter().map(|f| audit(&stamp(caller), f, "provisioning asked for")).collect();
    changes.extend(request_changes(store, &request));
    Ok((request, changes))
}

/// What an active flow log cannot change.
fn immutable(old: &Properties, new: &Properties) -> Vec<InvalidField> {
    let fields = [
        ("direction", &old.direction, &new.direction),
        ("action", &old.action, &new.action),
        ("bucket", &old.bucket, &new.bucket),
    ];
    let rule = |old: &str| {
        format!("an active flow log keeps its `{old}`; delete it and create another, or change only its name")
    };
    let changed = fields.into_iter().filter(|(_, old, new)| old != new);
    changed.map(|(field, old, new)| InvalidField::new(field, new.clone(), rule(old))).collect()
}

pub(super) fn touch(flow_log: &mut FlowLog, caller: &Caller) {
    flow_log.version = flow_log.version.saturating_add(1);
    flow_log.modified = stamp(caller);
}

pub(super) fn audit(by: &Stamp, flow_log: &FlowLog, what: &str) -> Change {
    let contract = flow_log.contract.clone();
    let flow_log = flow_log.id;
    Change::Audit(Box::new(AuditEntry { stamp: by.clone(), contract, flow_log, what: what.to_owned() }))
}

fn new_request(store: &FlowLogStore, caller: &Caller, contract: &Contract, work: Work) -> Result<Request, Refused> {
    let waiting = store.open_requests().filter(|r| r.contract == *contract).count();
    if waiting >= WAITING_PER_CONTRACT_MAX {
        return Err(Refused::TooMany(format!("{waiting} requests of contract {contract} are waiting already")));
    }
    let changed = matches!(work, Work::Changed(_));
    Ok(Request {
        id: Uuid::new_v4(),
        contract: contract.clone(),
        work,
        progress: if changed { Progress::Done } else { Progress::Queued },
        message: if changed { "Request has been successfully executed".to_owned() } else { String::new() },
        asked: stamp(caller),
        ended: Vec::new(),
        number: store.requests().values().map(|r| r.number + 1).max().unwrap_or(0),
    })
}

/// The request itself, and old ones forgotten, of whoever has the most.
fn request_changes(store: &FlowLogStore, request: &Request) -> Vec<Change> {
    let mut changes = vec![Change::Request(Box::new(request.clone()))];
    let surplus = (store.requests().len() + 1).saturating_sub(REQUESTS_KEPT_MAX);
    if surplus > 0 {
        let over = store.requests().values().filter(|r| r.progress.is_over());
        let over: BTreeMap<u64, &Request> = over.map(|r| (r.number, r)).collect();
        let mut shares = Shares::default();
        for request in over.values() {
            shares.push(&request.contract, request.number);
        }
        let forgotten = std::iter::from_fn(|| shares.forget()).take(surplus);
        changes.extend(forgotten.map(|(_, number)| Change::Forget(over[&number].id)));
    }
    changes
}
