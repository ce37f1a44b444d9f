//! What is on the wire, in the cloud API's form.

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Base, CLOUD, query::Query};
use crate::{
    flow_logs::{
        editor::Patch,
        flow_log::{Parent, Properties, Stamp, State},
        join,
        request::{Progress, Request},
        summary::{Mark, Summary},
    },
    inventory::Kind,
};

/// Version, dates and state of a resource.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Metadata {
    /// Changes whenever the resource does.
    pub etag: String,
    /// When it was created, as RFC 3339 in UTC (`2026-01-31T12:00:00Z`). What comes from the inventory has 1970-01-01.
    pub created_date: String,
    /// Name of the user who created it: `operator` for the operator of the node, `inventory` for what comes from the inventory.
    pub created_by: String,
    /// Id of the user who created it. It is all zeros for the operator of the node and for what comes from the inventory.
    pub created_by_user_id: Uuid,
    /// When it was last changed, as RFC 3339 in UTC.
    pub last_modified_date: String,
    /// Name of the user who changed it last, as in `createdBy`.
    pub last_modified_by: String,
    /// Id of the user who changed it last, as in `createdByUserId`.
    pub last_modified_by_user_id: Uuid,
    #[schema(value_type = String)]
    pub state: ResourceState,
    /// Why it has failed, or what is not as it should be. Absent if there is nothing to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// How a resource is, in the cloud's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum ResourceState {
    /// Something is being done to it.
    Busy,
    Available,
    /// A draft: nobody has activated it.
    Inactive,
    Failed,
}

/// A flow log: what is captured of one NIC, NAT gateway or load balancer, and the bucket that it goes to.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct FlowLogResource {
    /// Id of the flow log. It stays the same when the flow log is renamed.
    pub id: Uuid,
    /// Type of the resource, always `flow-log`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// URL of the flow log.
    pub href: String,
    /// Version, dates and state of the flow log.
    pub metadata: Metadata,
    /// Name, direction, action and bucket of the flow log.
    pub properties: Properties,
}

/// The body of POST and PUT. What a client may have got from GET is tolerated beside the properties.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FlowLogBody {
    /// Fields that the flow log is to have. All four are required.
    pub properties: Patch,
    #[serde(default, rename = "id")]
    #[schema(ignore)]
    _id: IgnoredAny,
    #[serde(default, rename = "type")]
    #[schema(ignore)]
    _kind: IgnoredAny,
    #[serde(default, rename = "href")]
    #[schema(ignore)]
    _href: IgnoredAny,
    #[serde(default, rename = "metadata")]
    #[schema(ignore)]
    _metadata: IgnoredAny,
}

/// A page of a list.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Collection {
    /// Path of the list below `/cloudapi/v6`, for example `requests`.
    pub id: String,
    /// Type of the resource, always `collection`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// URL of the list, without the query.
    pub href: String,
    /// Items on this page: references to them, or all of their fields if `depth` is 1 or more.
    #[schema(value_type = Vec<Object>)]
    pub items: Vec<Value>,
    /// Number of items on the pages before this one.
    pub offset: usize,
    /// Largest number of items on a page.
    pub limit: usize,
    /// URLs of this page and of those before and after it.
    #[serde(rename = "_links")]
    pub links: Links,
}

/// URLs of a page of a list and of its neighbours.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub(crate) struct Links {
    /// URL of the page before this one. Absent on the first page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prev: Option<String>,
    /// URL of this page.
    #[serde(rename = "self")]
    pub this: String,
    /// URL of the page after this one. Absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// How far a request is.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RequestStatus {
    /// Id of the request, followed by `/status`.
    pub id: String,
    /// Type of the resource, always `request-status`.
    #[serde(rename = "type")]
    pub kind: String,
    /// URL of the status, to be asked until `metadata.status` is `DONE` or `FAILED`.
    pub href: String,
    pub metadata: RequestStatusMetadata,
}

/// How far a request is.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RequestStatusMetadata {
    /// `QUEUED`, `RUNNING`, `DONE` or `FAILED`.
    #[schema(value_type = String)]
    pub status: Progress,
    /// In words; why it failed.
    pub message: String,
    /// Changes whenever the status does.
    pub etag: String,
    /// What it is about.
    #[schema(value_type = Vec<Object>)]
    pub targets: Vec<Value>,
}

impl Collection {
    /// What a query wants of `items`, which are all there are, at a path below the base.
    #[must_use]
    pub(crate) fn of(base: &Base, path: &str, items: Vec<Value>, query: &Query) -> Self {
        let Query { offset, limit, .. } = *query;
        let items = query.chosen(items);
        let href = format!("{}{CLOUD}/{path}", base.0);
        let link = |offset: usize| format!("{href}?{}", query.page(offset));
        let more = items.len() > offset.saturating_add(limit);
        let links = Links {
            prev: (offset > 0).then(|| link(offset.saturating_sub(limit))),
            this: link(offset),
            next: more.then(|| link(offset + limit)),
        };
        let items = items.into_iter().skip(offset).take(limit).map(|item| query.deep(item)).collect();
        Self { id: path.to_owned(), kind: "collection", href, items, offset, limit, links }
    }
}

/// A parent's path below the base.
#[must_use]
pub(crate) fn parent_path(parent: &Parent) -> String {
    let Parent { kind, id, datacenter, server } = parent;
    match (kind, server) {
        (Kind::Nic, Some(server)) => format!("datacenters/{datacenter}/servers/{server}/nics/{id}"),
        _ => format!("datacenters/{datacenter}/{}/{id}", folder(*kind)),
    }
}

/// Name of a kind's lists.
#[must_use]
pub(crate) fn folder(kind: Kind) -> &'static str {
    match kind {
        Kind::Nic => "nics",
        Kind::NatGateway => "natgateways",
        Kind::NetworkLoadBalancer => "networkloadbalancers",
        Kind::ApplicationLoadBalancer => "applicationloadbalancers",
    }
}

/// Unix seconds as RFC 3339.
#[must_use]
pub fn date(secs: i64) -> String {
    Timestamp::from_second(secs).unwrap_or(Timestamp::UNIX_EPOCH).to_string()
}

fn metadata(created: &Stamp, modified: &Stamp, etag: String, state: ResourceState) -> Metadata {
    Metadata {
        etag,
        created_date: date(created.at_secs),
        created_by: created.by.clone(),
        created_by_user_id: created.by_id,
        last_modified_date: date(modified.at_secs),
        last_modified_by: modified.by.clone(),
        last_modified_by_user_id: modified.by_id,
        state,
        message: None,
    }
}

/// Metadata of what the inventory has: it is there, so it is available.
#[must_use]
pub(crate) fn available(id: Uuid) -> Metadata {
    let nobody = Stamp { by: "inventory".to_owned(), by_id: Uuid::nil(), at_secs: 0 };
    metadata(&nobody, &nobody, id.simple().to_string(), ResourceState::Available)
}

impl FlowLogResource {
    /// On the wire; `busy` if something is being done to it. One that is active and cannot do its work has failed, and whatever is
    /// not as it should be is said.
    #[must_use]
    pub(crate) fn of(base: &Base, summary: &Summary, busy: bool) -> Self {
        let flow_log = &summary.flow_log;
        let (state, message) = match flow_log.state {
            _ if busy => (ResourceState::Busy, None),
            State::Provisioning | State::Deleting => (ResourceState::Busy, None),
            State::Active => {
                let state = if summary.mark == Mark::Red { ResourceState::Failed } else { ResourceState::Available };
                (state, Some(summary.why.join("; ")).filter(|why| !why.is_empty()))
            }
            State::Draft | State::Validated if flow_log.problems.is_empty() => (ResourceState::Inactive, None),
            State::Draft | State::Validated => (ResourceState::Failed, Some(join(&flow_log.problems))),
        };
        let metadata = metadata(&flow_log.created, &flow_log.modified, flow_log.etag(), state);
        Self {
            id: flow_log.id.0,
            kind: "flow-log",
            href: format!("{}{CLOUD}/{}/flowlogs/{}", base.0, parent_path(&flow_log.parent), flow_log.id),
            metadata: Metadata { message, ..metadata },
            properties: flow_log.properties.clone(),
        }
    }
}

impl RequestStatus {
    #[must_use]
    pub(crate) fn of(base: &Base, request: &Request, message: String) -> Self {
        let target = |id: &flowlog_model::FlowLogId| serde_json::json!({"target": {"id": id, "type": "flow-log"}});
        Self {
            id: format!("{}/status", request.id),
            kind: "request-status".to_owned(),
            href: format!("{}{CLOUD}/requests/{}/status", base.0, request.id),
            metadata: RequestStatusMetadata {
                status: request.progress,
                message,
                etag: format!("{}{:?}", request.id.simple(), request.progress),
                targets: request.work.flow_logs().iter().map(target).collect(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_cut_and_linked() {
        let base = Base("http://h".to_owned());
        let items = || (0..5).map(|n| serde_json::json!({"id": n})).collect::<Vec<_>>();
        let query = |text: &str| Query::of(&format!("/r?{text}").parse().expect("a URI")).expect("good");
        let middle = Collection::of(&base, "requests", items(), &query("pretty=true&depth=3&offset=2&limit=2"));
        assert_eq!((middle.items.len(), middle.offset, middle.limit), (2, 2, 2));
        let link = |offset: usize| format!("http://h/cloudapi/v6/requests?offset={offset}&limit=2&pretty=true&depth=3");
        assert_eq!((middle.links.prev, middle.links.next), (Some(link(0)), Some(link(4))));
        let all = Collection::of(&base, "requests", items(), &query(""));
        assert!(all.items.len() == 5 && all.links.prev.is_none() && all.links.next.is_none());
        let none = Collection::of(&base, "r", items(), &query("offset=18446744073709551615"));
        assert!(none.items.is_empty());
    }
}
