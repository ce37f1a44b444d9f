//! What is on this node, as a tree: data centers, their servers and NICs, gateways and balancers, each with its light.

use std::collections::BTreeMap;

use axum::{
    extract::{Query, State},
    response::{Html, IntoResponse as _},
};
use flowlog_model::status::{CaptureState, RuleStatus, Status};
use maud::{Markup, html};
use serde::Deserialize;
use uuid::Uuid;

use super::{
    Console, Page, Visitor,
    frame::{self, At},
    words::{Light, label, seen, short},
};
use crate::{
    flow_logs::{access::Caller, flow_log::FlowLog, summary::Summary},
    inventory::{Contract, Kind, Resource},
};

/// One NIC, gateway or balancer.
struct Leaf {
    id: Uuid,
    label: String,
    light: Light,
    /// Its flow log's name, or why there is none.
    beside: String,
}

/// NICs of a server, or what a data center has of another kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Branch {
    Server(Uuid),
    Kind(Kind),
}

type Branches = BTreeMap<Branch, Vec<Leaf>>;
/// By contract and data center.
type Tree = BTreeMap<(Contract, Uuid), Branches>;

/// The flow log that stands for a resource: the one that has its place, else the oldest.
#[must_use]
pub(super) fn standing(flow_logs: &[FlowLog], resource: Uuid) -> Option<&FlowLog> {
    let mut own = flow_logs.iter().filter(|f| f.parent.id == resource);
    let first = own.clone().next();
    own.find(|f| f.state.captures()).or(first)
}

/// Whether a search finds a resource: each of its words is somewhere in what is known of it.
fn is_found(search: &str, resource: &Resource, flow_log: Option<&FlowLog>, selected_by: Option<&str>) -> bool {
    let interfaces: Vec<String> = resource.interfaces.iter().map(|i| format!("{} {}", i.id, i.selector)).collect();
    let server = resource.server.map(|s| s.to_string()).unwrap_or_default();
    let name = flow_log.map_or("", |f| f.properties.name.as_str());
    let all = format!(
        "{} {} {} {server} {} {} {name} {} {} {}",
        resource.kind,
        resource.id,
        resource.name,
        resource.datacenter,
        resource.contract,
        interfaces.join(" "),
        selected_by.unwrap_or_default(),
        resource.labels
    );
    let all = all.to_lowercase();
    search.to_lowercase().split_whitespace().all(|word| all.contains(word))
}

fn grown(console: &Console, caller: &Caller, search: &str) -> Tree {
    let reader = &console.app.control.reader;
    let loaded = reader.inventory();
    let flow_logs = reader.flow_logs(caller, |_| true);
    let covered = reader.covered(caller);
    let status = reader.status();
    let mut tree = Tree::new();
    for resource in loaded.inventory.resources.values().filter(|r| caller.sees(&r.contract)) {
        let flow_log = standing(&flow_logs, resource.id);
        let selected_by = covered.get(&resource.id).map(String::as_str);
        if !is_found(search, resource, flow_log, selected_by) {
            continue;
        }
        let summary: Option<Summary> = flow_log.cloned().map(|f| reader.summary(f));
        let branch = match (resource.kind, resource.server) {
            (Kind::Nic, Some(server)) => Branch::Server(server),
            (kind, _) => Branch::Kind(kind),
        };
        let leaf = Leaf {
            id: resource.id,
            label: label(resource),
            light: match (&summary, selected_by) {
                (Some(summary), None) => Light::of(summary),
                (None, None) => Light::Grey,
                (_, Some(_)) => by_selection(resource, &status),
            },
            beside: match (selected_by, summary) {
                (Some(name), _) => format!("{} (by selection)", seen(name)),
                (None, summary) => summary.map(|s| seen(&s.flow_log.properties.name).into_owned()).unwrap_or_default(),
            },
        };
        let place = (resource.contract.clone(), resource.datacenter);
        tree.entry(place).or_default().entry(branch).or_default().push(leaf);
    }
    tree
}

/// The light of what a flow log of the configuration covers: how its captures are doing.
fn by_selection(resource: &Resource, status: &Status) -> Light {
    let ids = |id: &str| resource.interfaces.iter().any(|i| i.id == id);
    let of = |rule: &RuleStatus| match rule.capture {
        CaptureState::Attached { .. } => Light::Green,
        CaptureState::Waiting { .. } | CaptureState::Unknown => Light::Yellow,
        CaptureState::Trouble { .. } => Light::Red,
    };
    let lights = status.rules.iter().filter(|rule| ids(&rule.interface_id)).map(of);
    [Light::Red, Light::Yellow, Light::Green]
        .into_iter()
        .find(|light| lights.clone().any(|l| l == *light))
        .unwrap_or(Light::Grey)
}

impl Branch {
    fn label(&self) -> String {
        match self {
            Self::Server(id) => format!("Server {}", short(*id)),
            Self::Kind(Kind::Nic) => "NICs".to_owned(),
            Self::Kind(Kind::NatGateway) => "NAT gateways".to_owned(),
            Self::Kind(Kind::NetworkLoadBalancer) => "Network load balancers".to_owned(),
            Self::Kind(Kind::ApplicationLoadBalancer) => "Application load balancers".to_owned(),
        }
    }
}

/// The tree, which asks for itself again.
#[must_use]
pub(super) fn drawn(console: &Console, visitor: &Visitor, at: Option<Uuid>, search: &str) -> Markup {
    let caller = &visitor.caller;
    let tree = grown(console, caller, search);
    let at_words = at.map(|id| id.to_string()).unwrap_or_default();
    html! {
        div #tree hx-get="/console/live/tree" hx-trigger="every 3s" hx-swap="outerMorph" hx-include="#tree-at, #search" {
            input #tree-at type="hidden" name="at" value=(at_words);
            @if tree.is_empty() {
                p.quiet { @if search.is_empty() { "Nothing of yours is on this node." } @else { "Nothing is found." } }
            }
            @for ((contract, datacenter), branches) in &tree {
                details open id=(format!("dc-{contract}-{datacenter}")) {
                    summary {
                        "Data center " span title=(datacenter) { (short(*datacenter)) }
                        @if caller.contract().is_none() { span.quiet { " contract " (contract) } }
                    }
                    @for (branch, leaves) in branches {
                        details open id=(format!("b-{contract}-{datacenter}-{}", branch.label().replace(' ', "-"))) {
                            summary { (branch.label()) }
                            ul { @for leaf in leaves { li { (leaf_drawn(leaf, at)) } } }
                        }
                    }
                }
            }
        }
    }
}

fn leaf_drawn(leaf: &Leaf, at: Option<Uuid>) -> Markup {
    html! {
        a.leaf href=(format!("/console/resources/{}", leaf.id)) aria-current=[(at == Some(leaf.id)).then_some("page")] title=(leaf.id) {
            (leaf.light.drawn())
            span { (leaf.label) }
            @if !leaf.beside.is_empty() { span.quiet { (leaf.beside) } }
        }
    }
}

#[derive(Deserialize)]
pub(super) struct Looking {
    #[serde(default)]
    at: String,
    #[serde(default)]
    q: String,
}

/// GET of the tree as it is now, and of the number of drafts beside it.
pub(super) async fn live(
    State(console): State<Console>,
    visitor: Visitor,
    Query(Looking { at, q }): Query<Looking>,
) -> Page {
    let page = html! {
        (drawn(&console, &visitor, at.parse().ok(), &q))
        hx-partial hx-target="#drafts" hx-swap="outerMorph" { (frame::drafts(&console, &visitor, At::Overview)) }
    };
    Ok(Html(page.into_string()).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow_logs::flow_log::{State, tests::sample};

    #[test]
    fn what_captures_stands_for_its_resource_before_an_older_draft() {
        let old = sample();
        let new = FlowLog { state: State::Active, version: 7, ..sample() };
        let both = [old.clone(), new];
        assert_eq!(standing(&both, old.parent.id).map(|f| f.version), Some(7));
        assert_eq!(standing(&both[..1], old.parent.id).map(|f| f.version), Some(1));
        assert!(standing(&both, Uuid::nil()).is_none());
    }
}
