//! What flow logs are attached to, answered from the inventory: clients wait until a parent is available before they
//! attach something to it. Fields that the cloud API requires and no inventory has are empty.

use std::{collections::BTreeSet, sync::Arc};

use axum::Json;
use flowlog_model::interface::By;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Answer, App, Base, CLOUD, RequestContext,
    error::ApiError,
    flow_logs::{Place, on_wire},
    model::{Collection, available, folder, parent_path},
    query::reference,
};
use crate::{
    flow_logs::{access::Caller, flow_log::Parent},
    inventory::{Kind, Resource, load::Loaded},
};

/// What a caller sees of the inventory.
struct View<'a> {
    app: &'a App,
    caller: &'a Caller,
    base: &'a Base,
    loaded: Arc<Loaded>,
}

fn parent_of(r: &Resource) -> Parent {
    Parent { kind: r.kind, id: r.id, datacenter: r.datacenter, server: r.server }
}

impl<'a> View<'a> {
    fn of(context: &'a RequestContext) -> Self {
        let RequestContext { app, caller, base, .. } = context;
        Self { app, caller, base, loaded: app.control.reader.inventory() }
    }

    fn resources(&self) -> impl Iterator<Item = &Resource> {
        self.loaded.inventory.resources.values().filter(|r| self.caller.sees(&r.contract))
    }

    fn servers_of(&self, datacenter: Uuid) -> BTreeSet<Uuid> {
        self.resources().filter(|r| r.datacenter == datacenter).filter_map(|r| r.server).collect()
    }

    /// NICs of a server, or gateways or balancers of a data center.
    fn of_kind(&self, kind: Kind, datacenter: Uuid, server: Option<Uuid>) -> impl Iterator<Item = &Resource> {
        let there = self.loaded.inventory.of_kind(kind, datacenter);
        there.filter(move |r| self.caller.sees(&r.contract) && r.server == server)
    }

    fn element(&self, kind: &str, id: Uuid, path: &str, properties: &Value, entities: &Value) -> Value {
        let href = format!("{}{CLOUD}/{path}", self.base.0);
        let metadata = available(id);
        json!({"id": id, "type": kind, "href": href, "metadata": metadata, "properties": properties, "entities": entities})
    }

    /// What is below something that is shown at this depth (1 or more): references, then each at its own depth.
    fn below<T>(
        &self,
        path: &str,
        depth: usize,
        all: impl Iterator<Item = T>,
        show: impl Fn(T, usize) -> Value,
    ) -> Value {
        let shown = |one| if depth == 1 { reference(&show(one, 0)) } else { show(one, depth - 2) };
        let items: Vec<Value> = all.map(shown).collect();
        json!({"id": path, "type": "collection", "href": format!("{}{CLOUD}/{path}", self.base.0), "items": items})
    }

    fn datacenter(&self, id: Uuid, depth: usize) -> Value {
        let path = format!("datacenters/{id}");
        let mut entities = json!({});
        if depth > 0 {
            let servers = self.servers_of(id).into_iter();
            entities["servers"] = self.below(&format!("{path}/servers"), depth, servers, |s, d| self.server(id, s, d));
            for kind in Kind::ALL.into_iter().filter(|k| *k != Kind::Nic) {
                let path = format!("{path}/{}", folder(kind));
                let all = self.of_kind(kind, id, None);
                entities[folder(kind)] = self.below(&path, depth, all, |r, d| self.resource(r, d));
            }
        }
        let properties = json!({"name": id.to_string(), "location": "", "version": 1, "features": []});
        self.element("datacenter", id, &path, &properties, &entities)
    }

    fn server(&self, datacenter: Uuid, id: Uuid, depth: usize) -> Value {
        let path = format!("datacenters/{datacenter}/servers/{id}");
        let mut entities = json!({});
        if depth > 0 {
            let nics = self.of_kind(Kind::Nic, datacenter, Some(id));
            entities["nics"] = self.below(&format!("{path}/nics"), depth, nics, |r, d| self.resource(r, d));
        }
        let properties = json!({"name": id.to_string(), "vmState": "RUNNING"});
        self.element("server", id, &path, &properties, &entities)
    }

    fn resource(&self, r: &Resource, depth: usize) -> Value {
        let path = parent_path(&parent_of(r));
        let mut entities = json!({});
        if depth > 0 {
            let all = self.app.control.reader.flow_logs(self.caller, |f| f.parent.id == r.id);
            let show = |f, _| serde_json::to_value(on_wire(self.app, self.base, &f)).unwrap_or_default();
            entities["flowlogs"] = self.below(&format!("{path}/flowlogs"), depth, all.into_iter(), show);
        }
        let (kind, properties) = of_resource(r);
        self.element(kind, r.id, &path, &properties, &entities)
    }

    /// A data center that the caller sees.
    fn known(&self, place: &Place) -> Result<Uuid, ApiError> {
        let id = place.datacenter.ok_or_else(|| ApiError::not_found("path"))?;
        let there = self.resources().any(|r| r.datacenter == id);
        if there { Ok(id) } else { Err(ApiError::not_found(&format!("data center {id}"))) }
    }

    /// A server in it.
    fn known_server(&self, place: &Place) -> Result<(Uuid, Uuid), ApiError> {
        let datacenter = self.known(place)?;
        let id = place.server.ok_or_else(|| ApiError::not_found("path"))?;
        let there = self.servers_of(datacenter).contains(&id);
        if there { Ok((datacenter, id)) } else { Err(ApiError::not_found(&format!("server {id}"))) }
    }
}

/// Type and fields of a NIC, gateway or balancer.
fn of_resource(r: &Resource) -> (&'static str, Value) {
    let name = if r.name.is_empty() { r.id.to_string() } else { r.name.clone() };
    let mac = r.interfaces.iter().find_map(|i| match &i.selector.by {
        By::Mac(mac) => Some(mac.to_string()),
        _ => None,
    });
    let balancer = || json!({"name": name, "listenerLan": 0, "targetLan": 0, "ips": [], "lbPrivateIps": []});
    match r.kind {
        Kind::Nic => ("nic", json!({"name": name, "mac": mac, "lan": 0, "ips": []})),
        Kind::NatGateway => ("natgateway", json!({"name": name, "publicIps": [], "lans": []})),
        Kind::NetworkLoadBalancer => ("networkloadbalancer", balancer()),
        Kind::ApplicationLoadBalancer => ("applicationloadbalancer", balancer()),
    }
}

/// Depth of each item of a list, which is one level below it.
fn inner(context: &RequestContext) -> usize {
    context.query.depth.saturating_sub(1)
}

/// GET of all data centers in which the caller sees something.
pub(crate) async fn datacenters(context: RequestContext) -> Answer<Collection> {
    let view = View::of(&context);
    let ids: BTreeSet<Uuid> = view.resources().map(|r| r.datacenter).collect();
    let items = ids.into_iter().map(|id| view.datacenter(id, inner(&context))).collect();
    Ok(Json(Collection::of(&context.base, "datacenters", items, &context.query)))
}

/// GET of a data center.
pub(crate) async fn show_datacenter(context: RequestContext) -> Answer<Value> {
    let view = View::of(&context);
    Ok(Json(view.datacenter(view.known(&context.place)?, context.query.depth)))
}

/// GET of a data center's servers.
pub(crate) async fn servers(context: RequestContext) -> Answer<Collection> {
    let view = View::of(&context);
    let dc = view.known(&context.place)?;
    let items = view.servers_of(dc).into_iter().map(|id| view.server(dc, id, inner(&context))).collect();
    Ok(Json(Collection::of(&context.base, &format!("datacenters/{dc}/servers"), items, &context.query)))
}

/// GET of a server.
pub(crate) async fn show_server(context: RequestContext) -> Answer<Value> {
    let view = View::of(&context);
    let (datacenter, id) = view.known_server(&context.place)?;
    Ok(Json(view.server(datacenter, id, context.query.depth)))
}

/// GET of a list of NICs, gateways or balancers.
pub(crate) async fn resources(context: RequestContext) -> Answer<Collection> {
    let view = View::of(&context);
    let place = &context.place;
    let kind = place.kind.ok_or_else(|| ApiError::not_found("path"))?;
    let dc = view.known(place)?;
    let above = match place.server {
        Some(_) => format!("datacenters/{dc}/servers/{}", view.known_server(place)?.1),
        None => format!("datacenters/{dc}"),
    };
    let items = view.of_kind(kind, dc, place.server).map(|r| view.resource(r, inner(&context))).collect();
    Ok(Json(Collection::of(&context.base, &format!("{above}/{}", folder(kind)), items, &context.query)))
}

/// GET of a NIC, gateway or balancer.
pub(crate) async fn show_resource(context: RequestContext) -> Answer<Value> {
    let resource = context.place.resource(&context.app, &context.caller)?;
    Ok(Json(View::of(&context).resource(&resource, context.query.depth)))
}
