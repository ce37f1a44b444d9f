//! What flow logs are attached to, answered from the inventory: clients wait until a parent is available before they
//! attach something to it. Fields that the cloud API requires and no inventory has are empty.

use std::collections::BTreeSet;

use axum::Json;
use flowlog_model::interface::Selector;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Answer, Base, CLOUD, RequestContext,
    error::ApiError,
    flow_logs::Place,
    model::{Collection, available, folder, parent_path},
};
use crate::{
    flow_logs::{access::Caller, flow_log::Parent},
    inventory::{Inventory, Kind, Resource},
};

fn element(base: &Base, kind: &str, id: Uuid, path: &str, properties: &Value) -> Value {
    let href = format!("{}{CLOUD}/{path}", base.0);
    json!({"id": id, "type": kind, "href": href, "metadata": available(id), "properties": properties, "entities": {}})
}

fn datacenter(base: &Base, id: Uuid) -> Value {
    let properties = json!({"name": id.to_string(), "location": "", "version": 1, "features": []});
    element(base, "datacenter", id, &format!("datacenters/{id}"), &properties)
}

fn server(base: &Base, datacenter: Uuid, id: Uuid) -> Value {
    let properties = json!({"name": id.to_string(), "vmState": "RUNNING"});
    element(base, "server", id, &format!("datacenters/{datacenter}/servers/{id}"), &properties)
}

fn resource(base: &Base, r: &Resource) -> Value {
    let path = parent_path(&Parent { kind: r.kind, id: r.id, datacenter: r.datacenter, server: r.server });
    let name = if r.name.is_empty() { r.id.to_string() } else { r.name.clone() };
    let mac = r.interfaces.iter().find_map(|i| match &i.selector {
        Selector::Mac(mac) => Some(mac.to_string()),
        _ => None,
    });
    let (kind, properties) = match r.kind {
        Kind::Nic => ("nic", json!({"name": name, "mac": mac, "lan": 0, "ips": []})),
        Kind::NatGateway => ("natgateway", json!({"name": name, "publicIps": [], "lans": []})),
        Kind::NetworkLoadBalancer | Kind::ApplicationLoadBalancer => {
            let kind =
                if r.kind == Kind::NetworkLoadBalancer { "networkloadbalancer" } else { "applicationloadbalancer" };
            (kind, json!({"name": name, "listenerLan": 0, "targetLan": 0, "ips": [], "lbPrivateIps": []}))
        }
    };
    element(base, kind, r.id, &path, &properties)
}

/// What a caller sees of the inventory.
fn seen<'a>(caller: &'a Caller, inventory: &'a Inventory) -> impl Iterator<Item = &'a Resource> {
    inventory.resources.values().filter(|r| caller.sees(&r.contract))
}

/// GET of `datacenters`.
pub(crate) async fn datacenters(RequestContext { app, caller, base, page, .. }: RequestContext) -> Answer<Collection> {
    let loaded = app.control.reader.inventory();
    let ids: BTreeSet<Uuid> = seen(&caller, &loaded.inventory).map(|r| r.datacenter).collect();
    let items = ids.into_iter().map(|id| datacenter(&base, id)).collect();
    Ok(Json(Collection::of(&base, "datacenters", items, page)))
}

/// A data center that a caller sees.
fn known(caller: &Caller, inventory: &Inventory, place: &Place) -> Result<Uuid, ApiError> {
    let id = place.datacenter.ok_or_else(|| ApiError::not_found("path"))?;
    let there = seen(caller, inventory).any(|r| r.datacenter == id);
    if there { Ok(id) } else { Err(ApiError::not_found(&format!("data center {id}"))) }
}

/// A server in it.
fn known_server(caller: &Caller, inventory: &Inventory, place: &Place) -> Result<(Uuid, Uuid), ApiError> {
    let datacenter = known(caller, inventory, place)?;
    let id = place.server.ok_or_else(|| ApiError::not_found("path"))?;
    let there = seen(caller, inventory).any(|r| r.datacenter == datacenter && r.server == Some(id));
    if there { Ok((datacenter, id)) } else { Err(ApiError::not_found(&format!("server {id}"))) }
}

/// GET of a data center.
pub(crate) async fn show_datacenter(RequestContext { app, caller, place, base, .. }: RequestContext) -> Answer<Value> {
    Ok(Json(datacenter(&base, known(&caller, &app.control.reader.inventory().inventory, &place)?)))
}

/// GET of a data center's servers.
pub(crate) async fn servers(RequestContext { app, caller, place, base, page }: RequestContext) -> Answer<Collection> {
    let loaded = app.control.reader.inventory();
    let dc = known(&caller, &loaded.inventory, &place)?;
    let there = seen(&caller, &loaded.inventory).filter(|r| r.datacenter == dc);
    let ids: BTreeSet<Uuid> = there.filter_map(|r| r.server).collect();
    let items = ids.into_iter().map(|id| server(&base, dc, id)).collect();
    Ok(Json(Collection::of(&base, &format!("datacenters/{dc}/servers"), items, page)))
}

/// GET of a server.
pub(crate) async fn show_server(RequestContext { app, caller, place, base, .. }: RequestContext) -> Answer<Value> {
    let (datacenter, id) = known_server(&caller, &app.control.reader.inventory().inventory, &place)?;
    Ok(Json(server(&base, datacenter, id)))
}

/// GET of a list of NICs, gateways or balancers.
pub(crate) async fn resources(RequestContext { app, caller, place, base, page }: RequestContext) -> Answer<Collection> {
    let loaded = app.control.reader.inventory();
    let kind = place.kind.ok_or_else(|| ApiError::not_found("path"))?;
    let dc = known(&caller, &loaded.inventory, &place)?;
    let mut path = format!("datacenters/{dc}");
    if place.server.is_some() {
        let (_, server) = known_server(&caller, &loaded.inventory, &place)?;
        path = format!("{path}/servers/{server}");
    }
    let there = loaded.inventory.of_kind(kind, dc).filter(|r| caller.sees(&r.contract) && r.server == place.server);
    let items = there.map(|r| resource(&base, r)).collect();
    Ok(Json(Collection::of(&base, &format!("{path}/{}", folder(kind)), items, page)))
}

/// GET of a NIC, gateway or balancer.
pub(crate) async fn show_resource(RequestContext { app, caller, place, base, .. }: RequestContext) -> Answer<Value> {
    Ok(Json(resource(&base, &place.resource(&app, &caller)?)))
}
