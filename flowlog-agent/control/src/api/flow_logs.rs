//! Flow logs of NICs, NAT gateways and load balancers. The four differ in their paths only.

use axum::{
    Json,
    extract::{FromRequestParts as _, MatchedPath, RawPathParams},
    http::{StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use flowlog_model::FlowLogId;
use uuid::Uuid;

use super::{
    Answer, App, Base, Body, CLOUD, RequestContext,
    error::{ApiError, ensure_any},
    model::{Collection, FlowLogBody, FlowLogResource, folder, parent_path},
};
use crate::{
    flow_logs::{
        access::Caller,
        editor::Patch,
        flow_log::{FlowLog, Parent, Properties},
        request::Request,
    },
    inventory::{Kind, Resource},
};

/// What a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Kind of the last parent in it, if there is one.
    pub kind: Option<Kind>,
    pub datacenter: Option<Uuid>,
    pub server: Option<Uuid>,
    /// `{resource}`: a NIC, gateway or balancer.
    pub resource: Option<Uuid>,
    /// `{flowlog}` or `{request}`: whichever the path ends with.
    pub item: Option<Uuid>,
}

impl Place {
    /// Reads the path.
    ///
    /// # Errors
    /// 404.
    pub(crate) async fn of(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let path = MatchedPath::from_request_parts(parts, app).await;
        let path = path.as_ref().map_or("", MatchedPath::as_str);
        let kind = Kind::ALL.into_iter().find(|k| path.contains(&format!("/{}", folder(*k))));
        let mut place = Self { kind, datacenter: None, server: None, resource: None, item: None };
        let params =
            RawPathParams::from_request_parts(parts, app).await.map_err(|e| ApiError::not_found(&e.to_string()))?;
        for (name, value) in &params {
            let id: Uuid = value.parse().map_err(|e| ApiError::not_found(&format!("`{value}` is not a UUID: {e}")))?;
            let field = match name {
                "datacenter" => &mut place.datacenter,
                "server" => &mut place.server,
                "resource" => &mut place.resource,
                _ => &mut place.item,
            };
            *field = Some(id);
        }
        Ok(place)
    }
}

impl Place {
    /// The resource, if all of the path is right.
    ///
    /// # Errors
    /// 404.
    pub(crate) fn resource(&self, app: &App, caller: &Caller) -> Result<Resource, ApiError> {
        let id = self.resource.ok_or_else(|| ApiError::not_found("path"))?;
        let resource = app.control.reader.resource(caller, id)?;
        let right = Some(resource.kind) == self.kind
            && Some(resource.datacenter) == self.datacenter
            && resource.server == self.server;
        if right { Ok(resource) } else { Err(ApiError::not_found(&format!("resource {id}"))) }
    }

    /// The flow log, likewise. Its parent may have left the inventory.
    fn flow_log(&self, app: &App, caller: &Caller) -> Result<FlowLog, ApiError> {
        let id = self.item.ok_or_else(|| ApiError::not_found("path"))?;
        let flow_log = app.control.reader.flow_log(caller, FlowLogId(id))?;
        let Parent { kind, id: parent, datacenter, server } = flow_log.parent;
        let named = (self.kind, self.resource, self.datacenter, self.server);
        let right = named == (Some(kind), Some(parent), Some(datacenter), server);
        if right { Ok(flow_log) } else { Err(ApiError::not_found(&format!("flow log {id}"))) }
    }
}

pub(super) fn on_wire(app: &App, base: &Base, flow_log: &FlowLog) -> FlowLogResource {
    let reader = &app.control.reader;
    FlowLogResource::of(base, &reader.summary(flow_log.clone()), reader.is_busy(flow_log.id))
}

/// The version of what is in an answer, as `If-Match` takes it.
fn tagged(flow_log: &FlowLog, answer: impl IntoResponse) -> Response {
    ([(header::ETAG, format!("\"{}\"", flow_log.etag()))], answer).into_response()
}

/// 202, and where to ask how far it is.
fn accepted(base: &Base, request: &Request, body: impl IntoResponse) -> Response {
    let location = format!("{}{CLOUD}/requests/{}/status", base.0, request.id);
    (StatusCode::ACCEPTED, [(header::LOCATION, location)], body).into_response()
}

/// All fields, or what is missing.
fn complete(said: Patch) -> Result<Properties, ApiError> {
    let words = |name: &str| format!("[(root).properties.{name}] `{name}` is required");
    said.complete().map_err(|missing| ApiError::invalid(missing.into_iter().map(words).collect()))
}

/// GET of a list.
pub(crate) async fn list(RequestContext { app, caller, place, base, query, .. }: RequestContext) -> Answer<Collection> {
    let Resource { kind, id, datacenter, server, .. } = place.resource(&app, &caller)?;
    let all = app.control.reader.flow_logs(&caller, |f| f.parent.id == id);
    let items = all.iter().map(|f| serde_json::to_value(on_wire(&app, &base, f)).unwrap_or_default()).collect();
    let path = format!("{}/flowlogs", parent_path(&Parent { kind, id, datacenter, server }));
    Ok(Json(Collection::of(&base, &path, items, &query)))
}

pub(crate) async fn create(
    RequestContext { app, caller, place, base, .. }: RequestContext,
    Body(body): Body<FlowLogBody>,
) -> Result<Response, ApiError> {
    let resource = place.resource(&app, &caller)?;
    let (flow_log, request) = app.control.editor.create(&caller, &resource, complete(body.properties)?).await?;
    Ok(tagged(&flow_log, accepted(&base, &request, Json(on_wire(&app, &base, &flow_log)))))
}

pub(crate) async fn show(
    RequestContext { app, caller, place, base, .. }: RequestContext,
) -> Result<Response, ApiError> {
    let flow_log = place.flow_log(&app, &caller)?;
    Ok(tagged(&flow_log, Json(on_wire(&app, &base, &flow_log))))
}

pub(crate) async fn replace(context: RequestContext, Body(body): Body<FlowLogBody>) -> Result<Response, ApiError> {
    change(&context, complete(body.properties)?.into()).await
}

/// PATCH: what is absent stays as it is.
pub(crate) async fn patch(context: RequestContext, Body(patch): Body<Patch>) -> Result<Response, ApiError> {
    ensure_any(&patch)?;
    change(&context, patch).await
}

async fn change(context: &RequestContext, patch: Patch) -> Result<Response, ApiError> {
    let RequestContext { app, caller, place, base, expected, .. } = context;
    let old = place.flow_log(app, caller)?;
    let (flow_log, request) = app.control.editor.change(caller, old.id, patch, true, expected).await?;
    Ok(tagged(&flow_log, accepted(base, &request, Json(on_wire(app, base, &flow_log)))))
}

pub(crate) async fn delete(
    RequestContext { app, caller, place, base, expected, .. }: RequestContext,
) -> Result<Response, ApiError> {
    let flow_log = place.flow_log(&app, &caller)?;
    let request = app.control.editor.delete(&caller, flow_log.id, &expected).await?;
    Ok(accepted(&base, &request, ()))
}
