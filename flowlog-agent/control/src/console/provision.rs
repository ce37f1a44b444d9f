//! Provision changes: what would happen, draft by draft; then all of what was chosen, or nothing.

use std::collections::BTreeMap;

use axum::{
    extract::State,
    response::{IntoResponse as _, Redirect},
};
use flowlog_model::FlowLogId;
use maud::{Markup, html};
use uuid::Uuid;

use super::{
    Console, Page, Visitor,
    door::Filled,
    frame::{self, At},
    request, resource,
    words::{Light, said, seen, short},
};
use crate::{
    api::error::ApiError,
    flow_logs::{
        access::Operation,
        flow_log::{FlowLog, State as Stage},
    },
    inventory::Contract,
};

/// GET of what there is to provision. Drafts that nobody has checked are checked first: the page says what would happen.
pub(super) async fn show(State(console): State<Console>, visitor: Visitor) -> Page {
    let control = &console.app.control;
    let is_draft = |f: &FlowLog| matches!(f.state, Stage::Draft | Stage::Validated);
    for flow_log in control.reader.flow_logs(&visitor.caller, |f| f.state == Stage::Draft && f.problems.is_empty()) {
        // What cannot be checked now stays unchecked, and is shown as that.
        let _ = control.validator.validate(&visitor.caller, flow_log.id).await;
    }
    let mut drafts = BTreeMap::<Contract, Vec<FlowLog>>::new();
    for flow_log in control.reader.flow_logs(&visitor.caller, is_draft) {
        drafts.entry(flow_log.contract.clone()).or_default().push(flow_log);
    }
    let content = html! {
        h1 { "Provision changes" }
        @if drafts.is_empty() { p { "There are no drafts. Choose a NIC, gateway or balancer, and add a flow log." } }
        @for (contract, drafts) in &drafts { (of_contract(&console, &visitor, contract, drafts)) }
    };
    Ok(frame::page(&console, &visitor, At::Provision, "Provision changes", &content))
}

fn of_contract(console: &Console, visitor: &Visitor, contract: &Contract, drafts: &[FlowLog]) -> Markup {
    let refused = resource::refusal(visitor, Operation::Provision, contract);
    html! {
        form.provision method="post" action="/console/provision" {
            (frame::token(visitor))
            @if visitor.caller.contract().is_none() { h2 { "Contract " (contract) } }
            p { "All that are chosen begin together; if one cannot, none does, and the page says why." }
            ul.drafts { @for draft in drafts { li { (one(console, draft)) } } }
            @match refused {
                Some(words) => p.quiet { (words) },
                None => div.actions { button.primary type="submit" { "Provision" } }
            }
        }
    }
}

fn one(console: &Console, draft: &FlowLog) -> Markup {
    let light = Light::of(&console.app.control.reader.summary(draft.clone()));
    let p = &draft.properties;
    let interfaces: Vec<String> = draft.interfaces.iter().map(|i| i.selector.to_string()).collect();
    html! {
        label.check {
            input type="checkbox" name="flow_log" value=(draft.id) checked[draft.state == Stage::Validated];
            (light.drawn())
            " " strong { (seen(&p.name)) } " " span.quiet { (light.words()) }
        }
        p {
            (draft.parent.kind) " " a href=(resource::path(draft)) { (short(draft.parent.id)) } ": " (seen(&interfaces.join(", ")))
            " will be captured (" (said(&p.direction)) ", " (said(&p.action)) "); objects go to " strong { (seen(&p.bucket)) } "."
        }
        @for problem in &draft.problems { p.problem { (seen(&problem.to_string())) } }
    }
}

/// POST: begin with those that were chosen.
pub(super) async fn begin(State(console): State<Console>, visitor: Visitor, filled: Filled) -> Page {
    let ids: Result<Vec<Uuid>, _> = filled.all("flow_log").map(str::parse).collect();
    let ids = ids.map_err(|e| ApiError::invalid(vec![format!("flow_log: {e}")]))?;
    if ids.is_empty() {
        return Err(ApiError::invalid(vec!["choose at least one draft".to_owned()]).into());
    }
    let ids: Vec<FlowLogId> = ids.into_iter().map(FlowLogId).collect();
    let request = console.app.control.editor.provision(&visitor.caller, &ids, None).await?;
    Ok(Redirect::to(&request::path(request.id)).into_response())
}
