//! What the kernel is to capture: a function of the flow logs in the store and of the inventory, of nothing else. Pure.

use std::collections::BTreeMap;

use flowlog_model::{
    FlowLogId,
    capture::CaptureSpec,
    interface::Selector,
    rule::{Rule, Side, Target},
};

use super::flow_log::{Checked, Destination, FlowLog, State};
use crate::inventory::{BucketRegistry, Contract, Interface, Inventory, Resource};

/// Where objects of a flow log go.
#[must_use]
fn target(checked: &Checked, contract: &Contract, buckets: &BucketRegistry) -> Target {
    let Destination { bucket, prefix } = &checked.destination;
    Target { location: buckets.location(contract, bucket), prefix: prefix.clone() }
}

/// The parent of a flow log, if it is in the inventory.
fn parent<'a>(flow_log: &FlowLog, inventory: &'a Inventory) -> Option<&'a Resource> {
    let parent = flow_log.parent;
    let same = |r: &&Resource| r.kind == parent.kind && r.contract == flow_log.contract;
    inventory.resources.get(&parent.id).filter(same)
}

/// Interfaces of a flow log's parent now, and which side of them we see. A parent that is not in the inventory keeps the
/// ids it had: its capture waits.
#[must_use]
pub(crate) fn interfaces(flow_log: &FlowLog, inventory: &Inventory) -> (Vec<Interface>, Side) {
    if let Some(resource) = parent(flow_log, inventory) {
        return (resource.interfaces.clone(), resource.side);
    }
    let absent = |i: &Interface| Interface { id: i.id.clone(), selector: Selector::absent() };
    (flow_log.interfaces.iter().map(absent).collect(), Side::default())
}

/// Everything that is to be captured. What is active comes first: where two turn out to mean the same interface, the one
/// that is being activated gives way.
#[must_use]
pub fn captures(flow_logs: &BTreeMap<FlowLogId, FlowLog>, inventory: &Inventory) -> Vec<CaptureSpec> {
    let mut capturing: Vec<&FlowLog> = flow_logs.values().filter(|f| f.state.captures()).collect();
    capturing.sort_by_key(|f| (f.state != State::Active, f.created.at_secs, f.id));
    capturing.into_iter().flat_map(|f| captures_of(f, inventory)).collect()
}

/// The same if `new` were activated, one after the other. What has a green light goes before them: its place is promised.
#[must_use]
pub(crate) fn captures_with(
    flow_logs: &BTreeMap<FlowLogId, FlowLog>,
    inventory: &Inventory,
    new: &[&FlowLog],
) -> Vec<CaptureSpec> {
    let is_new = |f: &FlowLog| new.iter().any(|n| n.id == f.id);
    let promised = flow_logs.values().filter(|f| f.state == State::Validated && f.holds_its_parent() && !is_new(f));
    let more = promised.chain(new.iter().copied()).flat_map(|f| captures_of(f, inventory));
    captures(flow_logs, inventory).into_iter().chain(more).collect()
}

/// The captures of one.
pub(super) fn captures_of(flow_log: &FlowLog, inventory: &Inventory) -> Vec<CaptureSpec> {
    // It has passed its checks, or it would not capture; a new name was checked when it was given. So this does not fail.
    let Ok(checked) = flow_log.properties.check() else { return Vec::new() };
    let settings = &flow_log.settings;
    let rule = Rule {
        id: Some(flow_log.id),
        name: flow_log.key_name.clone().unwrap_or_else(|| checked.name.clone()),
        directions: checked.directions,
        action: checked.action,
        target: target(&checked, &flow_log.contract, &inventory.buckets),
        window_secs: settings.window_secs,
        nodata: settings.nodata,
        subsecond: settings.subsecond,
        layout: settings.layout,
        format: settings.format,
    };
    let (interfaces, side) = interfaces(flow_log, inventory);
    let parent = parent(flow_log, inventory);
    let translations = parent.is_some_and(|r| r.translations);
    let labels = parent.map(|r| r.labels.clone()).unwrap_or_default();
    let capture = |i: Interface| CaptureSpec {
        interface: i.selector,
        interface_id: Some(i.id),
        account_id: Some(flow_log.contract.as_str().to_owned()),
        hook: settings.hook,
        side,
        wait: true,
        translations,
        labels: labels.clone(),
        rule: rule.clone(),
        called: Some(checked.name.as_str().to_owned()),
    };
    interfaces.into_iter().map(capture).collect()
}

#[cfg(test)]
mod tests {
    use flowlog_model::Labels;
    use uuid::Uuid;

    use super::*;
    use crate::{
        flow_logs::flow_log::{Parent, tests::sample},
        inventory::{BucketPlace, Kind},
    };

    fn nic(n: u128, name: &str) -> Resource {
        Resource {
            id: Uuid::from_u128(n),
            kind: Kind::Nic,
            name: String::new(),
            contract: "1".parse().expect("contract"),
            datacenter: Uuid::from_u128(3),
            server: Some(Uuid::from_u128(4)),
            side: Side::Guest,
            translations: false,
            labels: Labels::default(),
            source: None,
            interfaces: vec![Interface { id: n.to_string(), selector: Selector::name(name) }],
        }
    }

    fn flow_log(id: u128, nic: u128, state: State) -> (FlowLogId, FlowLog) {
        let id = FlowLogId(Uuid::from_u128(id));
        let interfaces = vec![Interface { id: nic.to_string(), selector: Selector::index(99) }];
        let parent = Parent { id: Uuid::from_u128(nic), ..sample().parent };
        (id, FlowLog { id, parent, state, interfaces, ..sample() })
    }

    #[test]
    fn only_what_is_active_or_being_activated_is_captured_and_what_is_active_comes_first() {
        let inventory = Inventory {
            resources: [nic(2, "tap0"), nic(5, "tap1"), nic(6, "tap2")].into_iter().map(|r| (r.id, r)).collect(),
            buckets: BucketPlace::Directory("/srv".into()).into(),
            ..Inventory::default()
        };
        for (state, captured) in State::ALL.into_iter().zip([false, false, true, true, false]) {
            let logs = BTreeMap::from([flow_log(1, 2, state)]);
            assert_eq!(captures(&logs, &inventory).len(), usize::from(captured), "{state:?}");
        }
        let logs = BTreeMap::from([flow_log(1, 2, State::Provisioning), flow_log(9, 5, State::Active)]);
        let all = captures(&logs, &inventory);
        assert_eq!(all.iter().map(|c| c.interface.to_string()).collect::<Vec<_>>(), ["tap1", "tap0"]);
        assert_eq!(all[0].rule.target.to_string(), "file:///srv/1/flows");
        assert!(all.iter().all(|c| c.side == Side::Guest && c.account_id.as_deref() == Some("1")));
    }

    #[test]
    fn a_flow_log_whose_parent_is_away_keeps_its_interfaces_and_waits() {
        let logs = BTreeMap::from([flow_log(1, 2, State::Active)]);
        let all = captures(&logs, &Inventory::default());
        assert_eq!((all[0].interface_id.as_deref(), &all[0].interface), (Some("2"), &Selector::absent()));
        // One of the same id and another contract is not its parent.
        let stranger = Resource { contract: "2".parse().expect("contract"), ..nic(2, "tap0") };
        let inventory = Inventory { resources: BTreeMap::from([(stranger.id, stranger)]), ..Inventory::default() };
        assert_eq!(captures(&logs, &inventory)[0].interface, Selector::absent());
    }

    #[test]
    fn a_renamed_flow_log_keeps_the_name_its_keys_begin_with() {
        let (id, mut log) = flow_log(1, 2, State::Active);
        log.key_name = Some("first".parse().expect("name"));
        log.properties.name = "second".to_owned();
        let all = captures(&BTreeMap::from([(id, log)]), &Inventory::default());
        assert_eq!(all[0].rule.folder(), "first");
        assert_eq!(all[0].rule.label(), id.to_string());
    }
}
