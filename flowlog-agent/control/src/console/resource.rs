//! The overview, and a NIC, gateway or balancer with its flow log: what it is, how it is doing, and what its reader may do with it.

use axum::{
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse as _, Redirect, Response},
};
use flowlog_model::{FlowLogId, rule::InvalidField};
use maud::{Markup, html};
use serde::Deserialize;
use uuid::Uuid;

use super::{
    Console, NotShown, Page, Visitor,
    door::Id,
    form::Form,
    frame::{self, At},
    summary, tree,
    words::{Light, label, seen, short},
};
use crate::{
    flow_logs::{
        access::{Access, Operation},
        flow_log::{FlowLog, Properties, State as Stage},
    },
    inventory::{Contract, Resource},
};

/// What somebody has filled in and what is wrong with it, where nothing of it was kept.
pub(super) struct Refilled<'a> {
    /// The flow log that was to become this; `None`: a new one.
    pub id: Option<FlowLogId>,
    pub values: &'a Properties,
    pub problems: &'a [InvalidField],
}

#[derive(Deserialize)]
pub(super) struct Search {
    #[serde(default)]
    q: String,
}

/// GET of the first page.
pub(super) async fn overview(
    State(console): State<Console>,
    visitor: Visitor,
    Query(Search { q }): Query<Search>,
) -> Page {
    let reader = &console.app.control.reader;
    let summaries: Vec<_> =
        reader.flow_logs(&visitor.caller, |_| true).into_iter().map(|f| reader.summary(f)).collect();
    let count = |light: Light| summaries.iter().filter(|s| Light::of(s) == light).count();
    let lights = [Light::Red, Light::Yellow, Light::Green, Light::Ready, Light::Draft, Light::Wrong];
    let content = html! {
        h1 { "Flow logs" }
        @if q.is_empty() {
            p { "Choose a NIC, gateway or balancer to see its flow log, or to give it one." }
        } @else {
            p { "What was found for “" (seen(&q)) "” is in the tree." }
        }
        ul.lights {
            @for light in lights { li { (light.drawn()) " " strong { (count(light)) } " " (light.words()) } }
        }
        @let troubled: Vec<_> = summaries.iter().filter(|s| matches!(Light::of(s), Light::Red | Light::Yellow)).collect();
        @if !troubled.is_empty() {
            h2 { "What needs a look" }
            ul.troubled {
                @for summary in troubled {
                    li {
                        (Light::of(summary).drawn()) " "
                        a href=(format!("/console/flowlogs/{}", summary.flow_log.id)) { (seen(&summary.flow_log.properties.name)) }
                        @for why in &summary.why { p.quiet { (seen(why)) } }
                    }
                }
            }
        }
    };
    Ok(frame::searched(&console, &visitor, (At::Overview, &q), "Overview", &content))
}

/// GET of a flow log by its id: a link that outlives names.
pub(super) async fn of_flow_log(State(console): State<Console>, visitor: Visitor, Id(id): Id) -> Page {
    let reader = &console.app.control.reader;
    let flow_log = reader.flow_log(&visitor.caller, FlowLogId(id))?;
    if reader.resource(&visitor.caller, flow_log.parent.id).is_ok() {
        return Ok(Redirect::to(&format!("/console/resources/{}#flow-log-{id}", flow_log.parent.id)).into_response());
    }
    Ok(orphan(&console, &visitor, &flow_log, None))
}

/// A flow log whose parent has left the inventory.
fn orphan(console: &Console, visitor: &Visitor, flow_log: &FlowLog, refilled: Option<&Refilled<'_>>) -> Response {
    let content = html! {
        h1 { (flow_log.parent.kind) " " (short(flow_log.parent.id)) }
        p.problem { "It is not in the inventory any more." }
        (section(console, visitor, flow_log, true, refilled))
    };
    frame::page(console, visitor, At::Overview, &flow_log.properties.name, &content)
}

/// GET of a NIC, gateway or balancer.
pub(super) async fn show(State(console): State<Console>, visitor: Visitor, Id(id): Id) -> Page {
    let resource = console.app.control.reader.resource(&visitor.caller, id)?;
    Ok(page(&console, &visitor, &resource, None))
}

fn page(console: &Console, visitor: &Visitor, resource: &Resource, refilled: Option<&Refilled<'_>>) -> Response {
    let content = drawn(console, visitor, resource, refilled);
    frame::page(console, visitor, At::Resource(resource.id), &label(resource), &content)
}

/// The page of a NIC, gateway or balancer once more: what was filled in is in its form, with what is wrong beside it.
pub(super) fn refused(console: &Console, visitor: &Visitor, parent: Uuid, refilled: &Refilled<'_>) -> NotShown {
    let reader = &console.app.control.reader;
    let shown = match (reader.resource(&visitor.caller, parent), refilled.id) {
        (Ok(resource), _) => Ok(page(console, visitor, &resource, Some(refilled))),
        (Err(_), Some(id)) => {
            reader.flow_log(&visitor.caller, id).map(|f| orphan(console, visitor, &f, Some(refilled)))
        }
        (Err(gone), None) => Err(gone),
    };
    match shown {
        Ok(mut page) => {
            *page.status_mut() = StatusCode::UNPROCESSABLE_ENTITY;
            NotShown::Refilled(Box::new(page))
        }
        Err(refused) => refused.into(),
    }
}

fn drawn(console: &Console, visitor: &Visitor, resource: &Resource, refilled: Option<&Refilled<'_>>) -> Markup {
    let reader = &console.app.control.reader;
    let flow_logs = reader.flow_logs(&visitor.caller, |f| f.parent.id == resource.id);
    let standing = tree::standing(&flow_logs, resource.id).map(|f| f.id);
    let is_open = |id| standing == Some(id) || refilled.is_some_and(|r| r.id == Some(id));
    let selected_by = reader.covered(&visitor.caller).remove(&resource.id);
    let interfaces: Vec<String> = resource.interfaces.iter().map(|i| i.selector.to_string()).collect();
    html! {
        h1 { (label(resource)) }
        dl.facts {
            div { dt { "Kind" } dd { (resource.kind) } }
            div { dt { "Id" } dd { code { (resource.id) } } }
            @if let Some(server) = resource.server { div { dt { "Server" } dd { code { (server) } } } }
            div { dt { "Data center" } dd { code { (resource.datacenter) } } }
            div { dt { "Interface" } dd { (seen(&interfaces.join(", "))) } }
            @if visitor.caller.contract().is_none() { div { dt { "Contract" } dd { (resource.contract) } } }
            @if !resource.labels.is_empty() { div { dt { "Labels" } dd { (seen(&resource.labels.to_string())) } } }
            @if let Some(name) = &selected_by {
                div { dt { "Captured" } dd { "by flow log " strong { (seen(name)) } " of this node's configuration, which selects it; a flow log of its own takes its place" } }
            }
        }
        @for flow_log in &flow_logs { (section(console, visitor, flow_log, is_open(flow_log.id), refilled)) }
        @if flow_logs.is_empty() || refilled.is_some_and(|r| r.id.is_none()) { (adding(visitor, resource, flow_logs.is_empty(), refilled)) }
    }
}

/// What keeps somebody from doing something, in words; `None`: nothing.
#[must_use]
pub(super) fn refusal(visitor: &Visitor, operation: Operation, contract: &Contract) -> Option<String> {
    match visitor.caller.may(operation, contract) {
        Access::Granted => None,
        Access::Needs(privilege) => Some(format!(
            "This takes the privilege to {}; an owner or administrator of the contract can grant it.",
            privilege.words()
        )),
        Access::Hidden | Access::NeedsAdministrator => Some("Only owners and administrators may do that.".to_owned()),
    }
}

fn adding(visitor: &Visitor, resource: &Resource, is_first: bool, refilled: Option<&Refilled<'_>>) -> Markup {
    let words = |s: &str| s.to_owned();
    let empty =
        Properties { name: words(""), direction: words("BIDIRECTIONAL"), action: words("ALL"), bucket: words("") };
    let action = format!("/console/resources/{}/flowlogs", resource.id);
    let refilled = refilled.filter(|r| r.id.is_none());
    let (values, problems) = refilled.map_or((&empty, &[][..]), |r| (r.values, r.problems));
    let form = Form { action, ids: "new".to_owned(), button: "Add flow log", values, problems, version: None };
    html! {
        section.flow-log {
            @if is_first { h2 { (Light::Grey.drawn()) " No flow log" } } @else { h2 { "One more" } }
            @match refusal(visitor, Operation::Create, &resource.contract) {
                Some(words) => p.quiet { (words) },
                None => {
                    p { "A draft captures nothing. It is checked at once, and begins with “Provision changes”." }
                    (form.drawn(visitor))
                }
            }
        }
    }
}

/// One flow log.
fn section(
    console: &Console,
    visitor: &Visitor,
    flow_log: &FlowLog,
    is_open: bool,
    refilled: Option<&Refilled<'_>>,
) -> Markup {
    let summary = console.app.control.reader.summary(flow_log.clone());
    let light = Light::of(&summary);
    let is_begun = flow_log.state.captures() || flow_log.state == Stage::Deleting;
    let id = flow_log.id;
    let refilled = refilled.filter(|r| r.id == Some(id));
    html! {
        section.flow-log id=(format!("flow-log-{id}")) {
            details open[is_open] {
                summary { h2 { @if !is_begun { (light.drawn()) " " } (seen(&flow_log.properties.name)) @if !is_begun { " " span.quiet { (light.words()) } } } }
                @if is_begun {
                    (summary::drawn(console, &summary))
                    (active(visitor, flow_log, refilled))
                } @else {
                    (draft(visitor, flow_log, refilled))
                }
            }
        }
    }
}

fn draft(visitor: &Visitor, flow_log: &FlowLog, refilled: Option<&Refilled<'_>>) -> Markup {
    let id = flow_log.id;
    let (values, problems) =
        refilled.map_or((&flow_log.properties, &flow_log.problems[..]), |r| (r.values, r.problems));
    let form = Form {
        action: format!("/console/flowlogs/{id}/change"),
        ids: id.to_string(),
        button: "Save and check",
        values,
        problems,
        version: Some(flow_log.etag()),
    };
    let refused = refusal(visitor, Operation::Change, &flow_log.contract);
    html! {
        p role="status" {
            @if refilled.is_some() {
                "It captures nothing, and what you have filled in was not kept: see what is wrong with it."
            } @else if !flow_log.problems.is_empty() {
                "It captures nothing: " (flow_log.problems.len()) " of its fields must be corrected first."
            } @else if flow_log.state == Stage::Validated {
                "All checks have passed. It captures nothing until it is provisioned."
            } @else {
                "It captures nothing, and has not been checked yet."
            }
        }
        @match &refused {
            Some(words) => {
                p.quiet { (words) }
                (summary::fields(flow_log))
                @for problem in &flow_log.problems { p.problem { (seen(&problem.to_string())) } }
            }
            None => (form.drawn(visitor)),
        }
        div.actions {
            @if refused.is_none() {
                form method="post" action=(format!("/console/flowlogs/{id}/validate")) {
                    (frame::token(visitor))
                    button type="submit" { "Check again" }
                }
            }
            (deletion(visitor, flow_log))
        }
    }
}

fn active(visitor: &Visitor, flow_log: &FlowLog, refilled: Option<&Refilled<'_>>) -> Markup {
    let id = flow_log.id;
    let (values, problems) = refilled.map_or((&flow_log.properties, &[][..]), |r| (r.values, r.problems));
    let is_wrong = !problems.is_empty();
    html! {
        div.actions {
            @match refusal(visitor, Operation::Rename, &flow_log.contract) {
                Some(words) => p.quiet { (words) },
                None => {
                    form.inline method="post" action=(format!("/console/flowlogs/{id}/rename")) {
                        (frame::token(visitor))
                        input type="hidden" name="version" value=(flow_log.etag());
                        label for=(format!("rename-{id}")) { "Name" }
                        input id=(format!("rename-{id}")) name="name" value=(values.name) maxlength="63" autocomplete="off"
                            spellcheck="false" aria-invalid=[is_wrong.then_some("true")]
                            aria-describedby=[is_wrong.then(|| format!("rename-{id}-help"))];
                        button type="submit" { "Rename" }
                        @if is_wrong {
                            div id=(format!("rename-{id}-help")) { @for problem in problems { p.problem { (seen(&problem.rule)) } } }
                        }
                    }
                    (deletion(visitor, flow_log))
                }
            }
        }
    }
}

fn deletion(visitor: &Visitor, flow_log: &FlowLog) -> Markup {
    html! {
        @if refusal(visitor, Operation::Delete, &flow_log.contract).is_none() {
            a.button.danger href=(format!("/console/flowlogs/{}/delete", flow_log.id)) { "Delete …" }
        }
    }
}

/// Where a flow log is shown.
#[must_use]
pub(super) fn path(flow_log: &FlowLog) -> String {
    format!("/console/flowlogs/{}", flow_log.id)
}
