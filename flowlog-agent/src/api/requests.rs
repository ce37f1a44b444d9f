//! Requests: how far a change is.

use axum::{
    Json,
    extract::{RawQuery, State},
};
use serde_json::{Value, json};

use super::{
    Answer, App, Base, CLOUD,
    auth::Known,
    error::ApiError,
    flow_logs::Place,
    model::{Collection, Page, RequestStatus, date},
};
use crate::control::request::Request;

fn on_wire(base: &Base, request: &Request) -> Value {
    json!({
        "id": request.id,
        "type": "request",
        "href": format!("{}{CLOUD}/requests/{}", base.0, request.id),
        "metadata": {
            "createdDate": date(request.asked.at_secs),
            "createdBy": request.asked.by,
            "etag": request.id.simple().to_string(),
            "requestStatus": RequestStatus::of(base, request),
        },
        "properties": {"method": "", "headers": {}, "body": "", "url": ""},
    })
}

/// GET of the list, the newest first.
pub async fn list(
    State(app): State<App>,
    Known(caller): Known,
    base: Base,
    RawQuery(query): RawQuery,
) -> Answer<Collection> {
    let items = app.control.requests(&caller).iter().map(|r| on_wire(&base, r)).collect();
    Ok(Json(Collection::of(&base, "requests", items, Page::of(query.as_deref()))))
}

/// GET.
pub async fn show(State(app): State<App>, Known(caller): Known, place: Place, base: Base) -> Answer<Value> {
    let id = place.item.ok_or_else(|| ApiError::not_found("path"))?;
    Ok(Json(on_wire(&base, &app.control.request(&caller, id)?)))
}

/// GET of the status.
pub async fn status(State(app): State<App>, Known(caller): Known, place: Place, base: Base) -> Answer<RequestStatus> {
    let id = place.item.ok_or_else(|| ApiError::not_found("path"))?;
    Ok(Json(RequestStatus::of(&base, &app.control.request(&caller, id)?)))
}
