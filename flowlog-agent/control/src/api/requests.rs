//! Requests: how far a change is.

use axum::Json;
use serde_json::{Value, json};

use super::{
    Answer, App, Base, CLOUD, RequestContext,
    error::ApiError,
    model::{Collection, RequestStatus, date},
};
use crate::flow_logs::request::Request;

fn on_wire(app: &App, base: &Base, request: &Request) -> Value {
    let message = app.control.reader.message(request);
    json!({
        "id": request.id,
        "type": "request",
        "href": format!("{}{CLOUD}/requests/{}", base.0, request.id),
        "metadata": {
            "createdDate": date(request.asked.at_secs),
            "createdBy": request.asked.by,
            "etag": request.id.simple().to_string(),
            "requestStatus": RequestStatus::of(base, request, message),
        },
        "properties": {"method": "", "headers": {}, "body": "", "url": ""},
    })
}

/// GET of the list, the newest first.
pub(crate) async fn list(RequestContext { app, caller, base, query, .. }: RequestContext) -> Answer<Collection> {
    let items = app.control.reader.requests(&caller).iter().map(|r| on_wire(&app, &base, r)).collect();
    Ok(Json(Collection::of(&base, "requests", items, &query)))
}

pub(crate) async fn show(RequestContext { app, caller, place, base, .. }: RequestContext) -> Answer<Value> {
    let id = place.item.ok_or_else(|| ApiError::not_found("path"))?;
    Ok(Json(on_wire(&app, &base, &app.control.reader.request(&caller, id)?)))
}

/// GET of the status.
pub(crate) async fn status(RequestContext { app, caller, place, base, .. }: RequestContext) -> Answer<RequestStatus> {
    let id = place.item.ok_or_else(|| ApiError::not_found("path"))?;
    let request = app.control.reader.request(&caller, id)?;
    Ok(Json(RequestStatus::of(&base, &request, app.control.reader.message(&request))))
}
