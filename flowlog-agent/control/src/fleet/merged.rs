//! One inventory and one status, of what all nodes say. Pure.
//!
//! A resource is of the node that has it. Where several say so, that is said, and it is shown as the one has it that captures it, else the one
//! that has said it last: a live migration is two nodes for a moment. A node that is not heard of keeps what it had.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use flowlog_model::{
    FlowLogId,
    status::{CaptureState, RuleStatus, Status},
};
use uuid::Uuid;

use super::said::{NodeResources, NodeStatus};
use crate::inventory::{Resource, load::Loaded};

/// What is known of a node.
#[derive(Clone, Debug, Default)]
pub(super) struct NodeSaid {
    pub resources: Arc<NodeResources>,
    /// When that was said.
    pub revision: i64,
    /// How it is doing; `None`: it is not heard of.
    pub status: Option<Arc<NodeStatus>>,
    /// What it has said last that is not understood, by key: what it said there before is shown.
    pub not_understood: BTreeSet<String>,
}

/// All nodes, by id.
pub(super) type Nodes = BTreeMap<String, NodeSaid>;

/// Which nodes that are heard of have a resource, who has said so last first.
pub(super) type Claims = BTreeMap<Uuid, Vec<String>>;

pub(super) fn claims(nodes: &Nodes) -> Claims {
    let mut all: BTreeMap<Uuid, Vec<(i64, &String)>> = BTreeMap::new();
    for (name, node) in nodes.iter().filter(|(_, node)| node.status.is_some()) {
        for resource in &node.resources.resources {
            all.entry(resource.id).or_default().push((node.revision, name));
        }
    }
    let newest_first = |mut named: Vec<(i64, &String)>| {
        named.sort_by_key(|(revision, _)| std::cmp::Reverse(*revision));
        named.into_iter().map(|(_, name)| name.clone()).collect()
    };
    all.into_iter().map(|(id, named)| (id, newest_first(named))).collect()
}

/// The inventory of a region: what its server's own files say of buckets, and what its nodes have.
pub(super) fn inventory(own: &Loaded, nodes: &Nodes, claims: &Claims) -> Loaded {
    let mut loaded = own.clone();
    let (mut away, mut several) = (BTreeSet::new(), BTreeSet::new());
    // Later ones win: those that are not heard of first, then by when it was said.
    let mut order: Vec<(&String, &NodeSaid)> = nodes.iter().collect();
    order.sort_by_key(|(_, node)| (node.status.is_some(), node.revision));
    for (name, node) in order {
        for resource in &node.resources.resources {
            let Resource { id, kind, .. } = resource;
            match claims.get(id).map(Vec::as_slice) {
                Some([_]) => {}
                Some(many) => {
                    several.insert(format!("{kind} {id} is on nodes {}: it is on one", many.join(" and ")));
                }
                None => {
                    away.insert(name);
                }
            }
            let source = Some(format!("node {name}"));
            loaded.inventory.resources.insert(*id, Resource { source, ..resource.clone() });
        }
    }
    loaded.problems.extend(away.into_iter().map(|name| format!("node {name} is not heard of; what it had is shown")));
    loaded.problems.extend(several);
    let puzzling = nodes.iter().filter(|(_, node)| !node.not_understood.is_empty());
    loaded.problems.extend(puzzling.map(|(name, _)| {
        format!("what node {name} says is not understood, is it of a later version? what it said before is shown")
    }));
    loaded
}

/// How the flow logs of a region are doing: each as the node has it that has its NIC. `captured` are flow logs that are to be captured, with
/// their parents.
pub(super) fn status(nodes: &Nodes, claims: &Claims, captured: &[(FlowLogId, Uuid)], now_secs: i64) -> Status {
    let mut told: BTreeMap<FlowLogId, BTreeMap<&str, Vec<&RuleStatus>>> = BTreeMap::new();
    for (name, status) in nodes.iter().filter_map(|(name, node)| Some((name, node.status.as_ref()?))) {
        for rule in &status.rules {
            if let Some(id) = rule.rule_id {
                told.entry(id).or_default().entry(name).or_default().push(rule);
            }
        }
    }
    let away = away(nodes);
    let mut rules = Vec::new();
    for (id, parent) in captured {
        let claiming = claims.get(parent).map_or(&[][..], Vec::as_slice);
        let of = told.get(id);
        let said = |name: &&String| of.and_then(|by| by.get(name.as_str()));
        let is_attached = |name: &&String| {
            said(name).is_some_and(|all| all.iter().any(|r| matches!(r.capture, CaptureState::Attached { .. })))
        };
        let shown = claiming.iter().find(is_attached).or_else(|| claiming.iter().find(|n| said(n).is_some()));
        match shown {
            Some(name) => rules.extend(said(&name).into_iter().flatten().map(|rule| RuleStatus {
                node: Some(name.clone()),
                also_on: claiming.iter().filter(|n| *n != name).cloned().collect(),
                ..(*rule).clone()
            })),
            None => rules.push(waiting(*id, claiming.first(), away.get(parent).copied())),
        }
    }
    let leaving = nodes.values().filter_map(|n| n.status.as_ref()).flat_map(|s| s.leaving.clone()).collect();
    Status { written_secs: now_secs, pid: std::process::id(), rules, leaving, ..Status::default() }
}

/// What nodes had that are not heard of, and the first of these by name.
fn away(nodes: &Nodes) -> BTreeMap<Uuid, &String> {
    let silent = nodes.iter().rev().filter(|(_, node)| node.status.is_none());
    silent.flat_map(|(name, node)| node.resources.resources.iter().map(move |r| (r.id, name))).collect()
}

/// One of which no node says anything: not one that has it, nor one that had it and is not heard of.
fn waiting(id: FlowLogId, claiming: Option<&String>, away: Option<&String>) -> RuleStatus {
    let (node, why) = match (claiming, away) {
        (Some(name), _) => (Some(name), format!("node {name} has not said yet how it is doing")),
        (None, Some(name)) => {
            let why = format!("node {name}, which had it last, is not heard of: how it is doing is not known");
            (Some(name), why)
        }
        (None, None) => (None, "no node has it now".to_owned()),
    };
    let capture = CaptureState::Waiting { why };
    RuleStatus { rule_id: Some(id), node: node.cloned(), capture, ..RuleStatus::default() }
}

#[cfg(test)]
mod tests {
    use flowlog_model::{Labels, interface::Selector, rule::Side};

    use super::*;
    use crate::inventory::{Interface, Kind};

    fn nic(n: u128) -> Resource {
        Resource {
            id: Uuid::from_u128(n),
            kind: Kind::Nic,
            name: String::new(),
            contract: "1".parse().expect("a contract"),
            datacenter: Uuid::from_u128(3),
            server: None,
            side: Side::Guest,
            translations: false,
            labels: Labels::default(),
            source: None,
            interfaces: vec![Interface { id: n.to_string(), selector: Selector::name("tap0") }],
        }
    }

    fn rule(n: u128, capture: CaptureState) -> RuleStatus {
        RuleStatus { rule_id: Some(FlowLogId(Uuid::from_u128(n))), capture, ..RuleStatus::default() }
    }

    fn attached() -> CaptureState {
        CaptureState::Attached { interface: "tap0".to_owned(), ifindex: 4, netns: None }
    }

    fn node(revision: i64, nics: &[u128], rules: Option<Vec<RuleStatus>>) -> NodeSaid {
        let resources = Arc::new(NodeResources { resources: nics.iter().map(|n| nic(*n)).collect() });
        let status = rules.map(|rules| Arc::new(NodeStatus { rules, ..NodeStatus::default() }));
        NodeSaid { resources, revision, status, not_understood: BTreeSet::new() }
    }

    fn shown(nodes: &Nodes) -> (RuleStatus, Loaded) {
        let claims = claims(nodes);
        let captured = [(FlowLogId(Uuid::from_u128(1)), Uuid::from_u128(7))];
        let status = status(nodes, &claims, &captured, 0);
        assert_eq!(status.rules.len(), 1);
        (status.rules[0].clone(), inventory(&Loaded::default(), nodes, &claims))
    }

    #[test]
    fn a_flow_log_is_as_the_node_has_it_that_has_its_nic_and_two_that_claim_it_are_said() {
        let gone = CaptureState::Waiting { why: "no tap0".to_owned() };
        let mut nodes = Nodes::from([
            ("a".to_owned(), node(5, &[7], Some(vec![rule(1, attached())]))),
            ("b".to_owned(), node(6, &[], Some(vec![]))),
        ]);
        let (one, loaded) = shown(&nodes);
        assert_eq!((one.node.as_deref(), one.capture, one.also_on), (Some("a"), attached(), vec![]));
        assert_eq!((loaded.problems.len(), loaded.inventory.resources.len()), (0, 1));
        // Its VM arrives at the other node.
        nodes.insert("b".to_owned(), node(8, &[7], Some(vec![rule(1, gone.clone())])));
        let (one, loaded) = shown(&nodes);
        assert_eq!((one.node.as_deref(), one.also_on), (Some("a"), vec!["b".to_owned()]));
        assert!(loaded.problems[0].contains("is on nodes b and a"), "{:?}", loaded.problems);
        nodes.insert("b".to_owned(), node(8, &[7], Some(vec![rule(1, attached())])));
        assert_eq!(shown(&nodes).0.node.as_deref(), Some("b"));
        nodes.insert("a".to_owned(), node(9, &[], Some(vec![])));
        let (one, loaded) = shown(&nodes);
        assert_eq!((one.node.as_deref(), one.also_on.len(), loaded.problems.len()), (Some("b"), 0, 0));
        // It is not heard of any more.
        nodes.insert("b".to_owned(), node(8, &[7], None));
        let (one, loaded) = shown(&nodes);
        assert!(matches!(&one.capture, CaptureState::Waiting { why } if why.contains("node b, which had it last")));
        assert!(loaded.problems[0].contains("node b is not heard of") && loaded.inventory.resources.len() == 1);
        nodes.remove("b");
        assert!(matches!(&shown(&nodes).0.capture, CaptureState::Waiting { why } if why == "no node has it now"));
    }
}
