//! What the command line needs beyond the cloud's resources: drafts, checks, summaries, the inventory, the audit log.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use flowlog_model::FlowLogId;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    Answer, Base, Body, NODE, RequestContext,
    error::{ApiError, ensure_any},
    flow_logs::Place,
    model::RequestStatus,
};
use crate::{
    flow_logs::{
        editor::Patch,
        flow_log::{FlowLog, Properties, State},
        request::Request,
        store::{
            AuditEntry,
            export::{Exported, FORMAT, TakenOver},
        },
        summary::Summary,
    },
    inventory::{Contract, Resource, source::spec::UnownedNic},
};

/// Entries of the audit log that are shown.
const AUDIT_SHOWN: usize = 1_000;

/// A draft to be added.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "Map<String, Value>")]
pub struct Draft {
    /// NIC, NAT gateway or load balancer.
    pub resource: Uuid,
    /// Its fields, right or wrong.
    #[serde(flatten)]
    pub properties: Properties,
}

impl TryFrom<Map<String, Value>> for Draft {
    type Error = String;

    /// As `flatten` would have it, and fields that are not known are refused. (The two are fragile together, serde-rs/serde#2384, and
    /// with what [`Patch`] refuses by itself they are not to be had.)
    fn try_from(mut fields: Map<String, Value>) -> Result<Self, String> {
        let resource = fields.remove("resource").ok_or("missing field `resource`")?;
        let resource = serde_json::from_value(resource).map_err(|e| format!("resource: {e}"))?;
        let said: Patch = serde_json::from_value(Value::Object(fields)).map_err(|e| e.to_string())?;
        let missing = |fields: Vec<&str>| format!("missing field `{}`", fields.join("`, `"));
        Ok(Self { resource, properties: said.complete().map_err(missing)? })
    }
}

/// What is to be provisioned: these, or all drafts of the contract.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Selection {
    /// Ids of drafts to provision, all or none of them. Empty or absent: all drafts of the contract.
    pub flow_logs: Vec<Uuid>,
    /// Contract whose drafts are meant, if `flow_logs` is empty. Absent: that of the caller. The operator of the node has none, and
    /// must name one.
    pub contract: Option<String>,
}

fn id(place: &Place) -> Result<FlowLogId, ApiError> {
    place.item.map(FlowLogId).ok_or_else(|| ApiError::not_found("path"))
}

fn accepted(base: &Base, request: &Request) -> Response {
    (StatusCode::ACCEPTED, Json(RequestStatus::of(base, request, request.message.clone()))).into_response()
}

/// GET of all flow logs.
pub(crate) async fn list(RequestContext { app, caller, .. }: RequestContext) -> Answer<Vec<Summary>> {
    let all = app.control.reader.flow_logs(&caller, |_| true);
    Ok(Json(app.control.reader.summaries(all)))
}

pub(crate) async fn show(RequestContext { app, caller, place, .. }: RequestContext) -> Answer<Summary> {
    Ok(Json(app.control.reader.summary(app.control.reader.flow_log(&caller, id(&place)?)?)))
}

/// POST of a draft.
pub(crate) async fn add(
    RequestContext { app, caller, .. }: RequestContext,
    Body(draft): Body<Draft>,
) -> Result<Response, ApiError> {
    let resource = app.control.reader.resource(&caller, draft.resource)?;
    let flow_log = app.control.editor.add(&caller, &resource, draft.properties).await?;
    Ok((StatusCode::CREATED, Json(app.control.reader.summary(flow_log))).into_response())
}

/// POST: check a draft.
pub(crate) async fn validate(RequestContext { app, caller, place, .. }: RequestContext) -> Answer<Summary> {
    let checked = app.control.validator.validate(&caller, id(&place)?).await?;
    Ok(Json(app.control.reader.summary(checked)))
}

/// PATCH: what is absent stays as it is.
pub(crate) async fn change(
    RequestContext { app, caller, place, expected, .. }: RequestContext,
    Body(patch): Body<Patch>,
) -> Answer<Summary> {
    ensure_any(&patch)?;
    let (changed, _) = app.control.editor.change(&caller, id(&place)?, patch, false, &expected).await?;
    Ok(Json(app.control.reader.summary(changed)))
}

pub(crate) async fn delete(
    RequestContext { app, caller, place, base, expected, .. }: RequestContext,
) -> Result<Response, ApiError> {
    Ok(accepted(&base, &app.control.editor.delete(&caller, id(&place)?, &expected).await?))
}

/// POST: activate the drafts that are selected.
pub(crate) async fn provision(
    RequestContext { app, caller, base, .. }: RequestContext,
    Body(selection): Body<Selection>,
) -> Result<Response, ApiError> {
    let contract: Option<Contract> = match selection.contract.as_deref().map(str::parse).transpose() {
        Ok(contract) => contract,
        Err(words) => return Err(ApiError::invalid(vec![words])),
    };
    let ids: Vec<FlowLogId> = selection.flow_logs.into_iter().map(FlowLogId).collect();
    Ok(accepted(&base, &app.control.editor.provision(&caller, &ids, contract.as_ref()).await?))
}

/// GET of a request: answers when it is over, or after a while.
pub(crate) async fn finished(RequestContext { app, caller, place, base, .. }: RequestContext) -> Answer<RequestStatus> {
    let FlowLogId(id) = id(&place)?;
    let request = app.control.reader.finished(&caller, id).await?;
    Ok(Json(RequestStatus::of(&base, &request, app.control.reader.message(&request))))
}

/// What is on this node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InventoryList {
    pub resources: Vec<Listed>,
    /// NICs that sources have found and that are nobody's: for the node's operator only.
    #[serde(default)]
    pub unowned: Vec<UnownedNic>,
    /// Why files or entries of the inventory are not used: for the node's operator only, who knows where they are.
    pub problems: Vec<String>,
}

/// A resource, and the flow log that it has.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Listed {
    #[serde(flatten)]
    pub resource: Resource,
    pub flow_log: Option<FlowLogName>,
    /// The flow log of the configuration that covers it by selection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selected_by: Option<String>,
}

/// As much of a flow log as tells which one it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FlowLogName {
    pub id: FlowLogId,
    pub name: String,
    pub state: State,
}

/// GET of the inventory, as far as a caller sees it.
pub(crate) async fn inventory(RequestContext { app, caller, .. }: RequestContext) -> Answer<InventoryList> {
    let loaded = app.control.reader.inventory();
    let taken = app.control.reader.flow_logs(&caller, |_| true);
    let covered = app.control.reader.covered(&caller);
    let seen = loaded.inventory.resources.values().filter(|r| caller.sees(&r.contract));
    let resources = seen.map(|resource| {
        let of_resource = taken.iter().filter(|f| f.parent.id == resource.id);
        // The one that captures, or is about to, before drafts.
        let flow_log = of_resource.min_by_key(|f| matches!(f.state, State::Draft | State::Validated));
        let name = |f: &FlowLog| FlowLogName { id: f.id, name: f.properties.name.clone(), state: f.state };
        let selected_by = covered.get(&resource.id).cloned();
        Listed { resource: resource.clone(), flow_log: flow_log.map(name), selected_by }
    });
    let resources = resources.collect();
    let (unowned, problems) = match caller.contract() {
        None => (loaded.inventory.unowned.clone(), loaded.problems.clone()),
        Some(_) => (Vec::new(), Vec::new()),
    };
    Ok(Json(InventoryList { resources, unowned, problems }))
}

/// The audit log, newest first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AuditLog {
    pub path: String,
    pub entries: Vec<AuditEntry>,
}

/// GET of the audit log.
pub(crate) async fn audit(RequestContext { app, caller, .. }: RequestContext) -> Answer<AuditLog> {
    let entries = app.control.reader.audit(&caller, AUDIT_SHOWN).await?;
    Ok(Json(AuditLog { path: format!("{NODE}/audit"), entries }))
}

/// GET of all flow logs, for another store.
pub(crate) async fn export(RequestContext { app, caller, .. }: RequestContext) -> Answer<Exported> {
    Ok(Json(Exported { format: FORMAT, flow_logs: app.control.editor.export(&caller)? }))
}

/// POST of flow logs from another store: all of these, or none.
pub(crate) async fn import(
    RequestContext { app, caller, .. }: RequestContext,
    Body(body): Body<Exported>,
) -> Answer<TakenOver> {
    if body.format != FORMAT {
        let words = format!("[(root).format] format {} is not known, this is format {FORMAT}", body.format);
        return Err(ApiError::invalid(vec![words]));
    }
    let imported = app.control.editor.import(&caller, &body.flow_logs).await?;
    Ok(Json(TakenOver { imported, already: body.flow_logs.len() - imported }))
}
