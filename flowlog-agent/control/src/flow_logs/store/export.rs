//! Flow logs on their way from one store to another: from a node's file to a region's etcd, or back.
//!
//! They keep their ids, states and versions, so that object keys and etags stay what they were. Requests and the audit log stay where they
//! are: the one are over, the other is a record of that store.

use std::collections::{BTreeMap, BTreeSet};

use flowlog_model::FlowLogId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Change, FlowLogStore};
use crate::flow_logs::{
    Refused,
    access::Caller,
    editor::audit,
    flow_log::{FlowLog, State},
    stamp,
};

/// Form of [`Exported`].
pub const FORMAT: u32 = 1;

/// All flow logs of a store.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exported {
    /// [`FORMAT`].
    pub format: u32,
    pub flow_logs: Vec<FlowLog>,
}

/// What a store has taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenOver {
    /// Flow logs that are new here.
    pub imported: usize,
    /// Those that were here already, as they are there.
    pub already: usize,
}

fn only_operator(caller: &Caller) -> Result<(), Refused> {
    match caller {
        Caller::Operator => Ok(()),
        Caller::Principal(_) => Err(Refused::Forbidden("only the operator may move flow logs".to_owned())),
    }
}

/// All of them, the oldest first.
///
/// # Errors
/// If the caller is not the operator, or something is being done to one: it would be done twice.
pub(crate) fn exported(store: &FlowLogStore, caller: &Caller) -> Result<Vec<FlowLog>, Refused> {
    only_operator(caller)?;
    let moving = |f: &&FlowLog| matches!(f.state, State::Provisioning | State::Deleting);
    let busy = store.open_requests().count() + store.flow_logs().values().filter(moving).count();
    if busy > 0 {
        return Err(Refused::Conflict(format!(
            "{busy} requests or flow logs are under way; try again when they are over"
        )));
    }
    // What is known of such a one is older than what it is.
    store.flow_logs().keys().try_for_each(|id| store.refuse_not_understood(*id))?;
    let mut all: Vec<FlowLog> = store.flow_logs().values().cloned().collect();
    all.sort_by_key(|f| (f.created.at_secs, f.id));
    Ok(all)
}

/// How many of these are new, and what there is to write.
///
/// # Errors
/// If the caller is not the operator, or one cannot be beside those that are here.
pub(crate) fn imported(
    store: &FlowLogStore,
    caller: &Caller,
    flow_logs: &[FlowLog],
) -> Result<(usize, Vec<Change>), Refused> {
    only_operator(caller)?;
    let (mut new, mut changes) = (0, Vec::new());
    // Which resources have one already, of those that are asked about: the store is looked through once.
    let holds = |f: &&FlowLog| f.holds_its_parent() && f.state != State::Draft;
    let parents: BTreeSet<Uuid> = flow_logs.iter().map(|f| f.parent.id).collect();
    let here = store.flow_logs().values().filter(|f| parents.contains(&f.parent.id)).filter(holds);
    let mut taken: BTreeMap<Uuid, FlowLogId> = here.map(|f| (f.parent.id, f.id)).collect();
    for flow_log in flow_logs {
        let FlowLog { id, state, .. } = flow_log;
        match store.flow_logs().get(id) {
            Some(here) if here == flow_log => continue,
            Some(_) => return Err(conflict(flow_log, "is here, and is another version; delete one of the two")),
            None => {}
        }
        if let Err(problems) = flow_log.check_foreign() {
            return Err(conflict(flow_log, &format!("cannot be taken over: {problems}")));
        }
        if matches!(state, State::Provisioning | State::Deleting) {
            return Err(conflict(flow_log, "was being changed when it was exported; export again"));
        }
        if holds(&flow_log)
            && let Some(other) = taken.insert(flow_log.parent.id, *id)
        {
            return Err(conflict(flow_log, &format!("is of a resource that has the flow log {other} here")));
        }
        new += 1;
        changes.push(Change::Import(Box::new(flow_log.clone())));
        changes.push(audit(&stamp(caller), flow_log, "imported from another store"));
    }
    Ok((new, changes))
}

fn conflict(flow_log: &FlowLog, words: &str) -> Refused {
    Refused::Conflict(format!("flow log `{}` ({}) {words}; nothing was imported", flow_log.shown_name(), flow_log.id))
}
