//! A flow log of which nothing was ever understood is replaced: made anew under its id, with all of its fields.

use flowlog_model::FlowLogId;

use super::{Patch, audit, new_request, request_changes, touch};
use crate::flow_logs::{
    Refused,
    access::{Caller, Operation},
    allowed,
    flow_log::{FlowLog, Properties, Settings, State},
    reader::visible,
    request::{Request, Work},
    stamp,
    store::{Change, FlowLogStore, understood::can_be_replaced},
};

/// A flow log as it is after that, its request, and what there is to write.
pub(super) fn planned(
    store: &FlowLogStore,
    caller: &Caller,
    id: FlowLogId,
    patch: Patch,
    activate: bool,
    settings: &Settings,
) -> Result<((FlowLog, Request), Vec<Change>), Refused> {
    let old = visible(store, caller, id)?.clone();
    allowed(caller, Operation::Change, &old.contract, &format!("flow log {id}"))?;
    let properties = patch.complete().ok().filter(|_| activate && can_be_replaced(&old) && !store.is_busy(id));
    let Some(properties) = properties.map(Properties::canonical) else {
        store.refuse_not_understood(id)?;
        return Err(Refused::NotFound(format!("flow log {id}")));
    };
    properties.check().map_err(Refused::Invalid)?;
    let mut new = FlowLog { properties, settings: settings.clone(), state: State::Draft, key_name: None, ..old };
    new.problems.clear();
    touch(&mut new, caller);
    let request = new_request(store, caller, &new.contract, Work::Provision(vec![id]))?;
    let mut changes = request_changes(store, &request);
    changes.extend([
        Change::Put(Box::new(new.clone())),
        audit(&stamp(caller), &new, "replaced, as it was not understood"),
    ]);
    Ok(((new, request), changes))
}
