//! Wishes: add, check, change, rename, delete. Each is the editor's or the validator's to grant; a draft that is wrong is kept, and says why.

use axum::{
    extract::State,
    response::{IntoResponse as _, Redirect},
};
use flowlog_model::FlowLogId;
use maud::html;
use uuid::Uuid;

use super::{
    Console, NotShown, Page, Visitor,
    door::{Filled, Id},
    form,
    frame::{self, At},
    request,
    resource::{self, Refilled},
    words::seen,
};
use crate::{
    api::error::ApiError,
    flow_logs::{
        Refused,
        access::Operation,
        editor::Patch,
        expected::Expected,
        flow_log::{FlowLog, Properties},
    },
};

/// The version that a form was made of.
fn expected(filled: &Filled) -> Expected {
    Expected::of(Some(filled.one("version")).into_iter().filter(|v| !v.is_empty()))
}

/// Checks a draft, and shows it with what was found. A check that cannot be done now is no reason to hide the draft.
async fn checked(console: &Console, visitor: &Visitor, id: FlowLogId) -> Page {
    match console.app.control.validator.validate(&visitor.caller, id).await {
        Ok(flow_log) => Ok(Redirect::to(&resource::path(&flow_log)).into_response()),
        Err(Refused::Forbidden(_)) => Ok(Redirect::to(&format!("/console/flowlogs/{id}")).into_response()),
        Err(refused) => Err(refused.into()),
    }
}

/// What the editor has made of a wish; what it does not keep is shown in the form again. `id` and `parent` are those of the flow log.
fn granted<T>(
    console: &Console,
    visitor: &Visitor,
    (id, parent): (Option<FlowLogId>, Uuid),
    values: &Properties,
    result: Result<T, Refused>,
) -> Result<T, NotShown> {
    result.map_err(|refused| match refused {
        Refused::Invalid(problems) => {
            resource::refused(console, visitor, parent, &Refilled { id, values, problems: &problems })
        }
        refused => refused.into(),
    })
}

/// POST of a draft.
pub(super) async fn add(State(console): State<Console>, visitor: Visitor, Id(id): Id, filled: Filled) -> Page {
    let control = &console.app.control;
    let resource = control.reader.resource(&visitor.caller, id)?;
    let values = form::properties(&filled);
    let added = control.editor.add(&visitor.caller, &resource, values.clone()).await;
    let flow_log = granted(&console, &visitor, (None, id), &values, added)?;
    checked(&console, &visitor, flow_log.id).await
}

/// POST: check it.
pub(super) async fn validate(State(console): State<Console>, visitor: Visitor, Id(id): Id, _: Filled) -> Page {
    let flow_log = console.app.control.validator.validate(&visitor.caller, FlowLogId(id)).await?;
    Ok(Redirect::to(&resource::path(&flow_log)).into_response())
}

/// POST of all fields of a draft.
pub(super) async fn change(State(console): State<Console>, visitor: Visitor, Id(id): Id, filled: Filled) -> Page {
    let id = FlowLogId(id);
    changed(&console, &visitor, (id, &filled), form::properties(&filled).into()).await?;
    checked(&console, &visitor, id).await
}

/// POST of a name.
pub(super) async fn rename(State(console): State<Console>, visitor: Visitor, Id(id): Id, filled: Filled) -> Page {
    let patch = Patch { name: Some(filled.one("name").trim().to_owned()), ..Patch::default() };
    let renamed = changed(&console, &visitor, (FlowLogId(id), &filled), patch).await?;
    Ok(Redirect::to(&resource::path(&renamed)).into_response())
}

async fn changed(
    console: &Console,
    visitor: &Visitor,
    (id, filled): (FlowLogId, &Filled),
    patch: Patch,
) -> Result<FlowLog, NotShown> {
    let control = &console.app.control;
    let old = control.reader.flow_log(&visitor.caller, id)?;
    let values = patch.clone().apply(&old.properties);
    let result = control.editor.change(&visitor.caller, id, patch, false, &expected(filled)).await;
    granted(console, visitor, (Some(id), old.parent.id), &values, result).map(|(flow_log, _)| flow_log)
}

/// GET of what a deletion means.
pub(super) async fn ask_to_delete(State(console): State<Console>, visitor: Visitor, Id(id): Id) -> Page {
    let flow_log = console.app.control.reader.flow_log(&visitor.caller, FlowLogId(id))?;
    if let Some(words) = resource::refusal(&visitor, Operation::Delete, &flow_log.contract) {
        return Err(ApiError::forbidden(words).into());
    }
    let name = seen(&flow_log.properties.name);
    let content = html! {
        h1 { "Delete the flow log “" (name) "”?" }
        @if flow_log.state.captures() {
            p { "Its capture ends now. The open window is flushed, and becomes the last object." }
            p { "Objects that have been delivered stay in " strong { (seen(&flow_log.properties.bucket)) } ": delete them there, if they are to go." }
        } @else {
            p { "It is a draft: nothing was captured, and nothing is delivered." }
        }
        form.actions method="post" action=(format!("/console/flowlogs/{id}/delete")) {
            (frame::token(&visitor))
            input type="hidden" name="version" value=(flow_log.etag());
            button.danger type="submit" { "Delete" }
            a.button href=(resource::path(&flow_log)) { "Keep it" }
        }
    };
    Ok(frame::page(&console, &visitor, At::Resource(flow_log.parent.id), "Delete", &content))
}

/// POST: delete it.
pub(super) async fn delete(State(console): State<Console>, visitor: Visitor, Id(id): Id, filled: Filled) -> Page {
    let editor = &console.app.control.editor;
    let request = editor.delete(&visitor.caller, FlowLogId(id), &expected(&filled)).await?;
    Ok(Redirect::to(&request::path(request.id)).into_response())
}
