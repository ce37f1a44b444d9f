//! Every path, once. The router and the `OpenAPI` document are both made from this table, so the document has what there is.

use axum::{
    Json, Router,
    extract::Request,
    response::IntoResponse as _,
    routing::{MethodRouter, delete, get, patch, post, put},
};
use utoipa::{
    OpenApi as _,
    openapi::{
        ContentBuilder, HttpMethod, OpenApi, PathItem, Ref, RefOr, Required, ResponseBuilder, SecurityRequirement,
        path::{OperationBuilder, ParameterBuilder, ParameterIn, PathsBuilder},
        request_body::RequestBodyBuilder,
        schema::{Array, ObjectBuilder, Schema, Type},
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

use super::{App, CLOUD, NODE, error, error::ApiError, flow_logs, live, model, model::folder, node, parents, requests};
use crate::inventory::Kind;

struct Route {
    method: HttpMethod,
    path: String,
    summary: &'static str,
    /// Schema of the body.
    body: Option<&'static str>,
    /// Status and schema of the answer; `[]` behind it: a list of such.
    answer: (u16, Option<&'static str>),
    handler: MethodRouter<App>,
}

fn route(
    method: HttpMethod,
    path: String,
    summary: &'static str,
    body: Option<&'static str>,
    answer: (u16, Option<&'static str>),
    handler: MethodRouter<App>,
) -> Route {
    Route { method, path, summary, body, answer, handler }
}

/// The cloud's resources below one kind of parent.
fn of_kind(kind: Kind) -> Vec<Route> {
    use HttpMethod::{Delete, Get, Patch, Post, Put};
    let above = match kind {
        Kind::Nic => format!("{CLOUD}/datacenters/{{datacenter}}/servers/{{server}}"),
        _ => format!("{CLOUD}/datacenters/{{datacenter}}"),
    };
    let parents = format!("{above}/{}", folder(kind));
    let parent = format!("{parents}/{{resource}}");
    let all = format!("{parent}/flowlogs");
    let one = format!("{all}/{{flowlog}}");
    let body = Some("FlowLogBody");
    let log = Some("FlowLogResource");
    let list = Some("Collection");
    vec![
        route(Get, parents, "List them", None, (200, list), get(parents::resources)),
        route(Get, parent, "Show one", None, (200, None), get(parents::show_resource)),
        route(Get, all.clone(), "List its flow logs", None, (200, list), get(flow_logs::list)),
        route(Post, all, "Create a flow log", body, (202, log), post(flow_logs::create)),
        route(Get, one.clone(), "Show a flow log", None, (200, log), get(flow_logs::show)),
        route(Put, one.clone(), "Change all fields of a flow log", body, (202, log), put(flow_logs::replace)),
        route(
            Patch,
            one.clone(),
            "Change some fields of a flow log: of an active one, its name",
            Some("FlowLogProperties"),
            (202, log),
            patch(flow_logs::patch),
        ),
        route(Delete, one, "Delete a flow log; delivered objects stay", None, (202, None), delete(flow_logs::delete)),
    ]
}

fn cloud() -> Vec<Route> {
    use HttpMethod::Get;
    let at = |path: &str| format!("{CLOUD}/{path}");
    let list = Some("Collection");
    let dcs = "datacenters/{datacenter}";
    vec![
        route(Get, at("datacenters"), "List data centers", None, (200, list), get(parents::datacenters)),
        route(Get, at(dcs), "Show a data center", None, (200, None), get(parents::show_datacenter)),
        route(Get, at(&format!("{dcs}/servers")), "List servers", None, (200, list), get(parents::servers)),
        route(
            Get,
            at(&format!("{dcs}/servers/{{server}}")),
            "Show a server",
            None,
            (200, None),
            get(parents::show_server),
        ),
        route(Get, at("requests"), "List requests", None, (200, list), get(requests::list)),
        route(Get, at("requests/{request}"), "Show a request", None, (200, None), get(requests::show)),
        route(
            Get,
            at("requests/{request}/status"),
            "Show how far a request is",
            None,
            (200, Some("RequestStatus")),
            get(requests::status),
        ),
    ]
}

fn ours() -> Vec<Route> {
    use HttpMethod::{Delete, Get, Patch, Post};
    let at = |path: &str| format!("{NODE}/{path}");
    let one = at("flowlogs/{flowlog}");
    let status = Some("RequestStatus");
    let summary = Some("FlowLogSummary");
    vec![
        route(Get, at("flowlogs"), "Sum all flow logs up", None, (200, Some("FlowLogSummary[]")), get(node::list)),
        route(Post, at("flowlogs"), "Add a draft", Some("Draft"), (201, summary), post(node::add)),
        route(Get, one.clone(), "Sum a flow log up", None, (200, summary), get(node::show)),
        route(
            Patch,
            one.clone(),
            "Change a draft, or a name",
            Some("FlowLogProperties"),
            (200, summary),
            patch(node::change),
        ),
        route(Delete, one.clone(), "Delete a flow log", None, (202, status), delete(node::delete)),
        route(Post, format!("{one}/validate"), "Check a draft", None, (200, summary), post(node::validate)),
        route(
            Post,
            at("provision"),
            "Activate drafts, all or none",
            Some("Selection"),
            (202, status),
            post(node::provision),
        ),
        route(
            Get,
            at("requests/{request}/status"),
            "Wait until a request is over, 20 s at most",
            None,
            (200, status),
            get(node::finished),
        ),
        route(Get, at("inventory"), "What is on this node", None, (200, None), get(node::inventory)),
        route(
            Get,
            at("flows"),
            "Flows as they come, and those of the open windows: one a line",
            None,
            (200, None),
            get(live::flows),
        ),
        route(Get, at("top"), "The largest flows, talkers and reasons, live", None, (200, None), get(live::top)),
        route(Get, at("audit"), "Who did what", None, (200, None), get(node::audit)),
        route(Get, at("export"), "All flow logs, for another store", None, (200, None), get(node::export)),
        route(Post, at("import"), "Take flow logs over from another store", None, (200, None), post(node::import)),
    ]
}

fn all() -> Vec<Route> {
    Kind::ALL.into_iter().flat_map(of_kind).chain(cloud()).chain(ours()).collect()
}

/// The router. Whatever it does not know is answered as JSON, too.
pub(crate) fn router(app: App) -> Router {
    let document = document();
    let mut router = Router::new();
    for Route { path, handler, .. } in all() {
        router = router.route(&path, handler);
    }
    router
        .route("/openapi.json", get(async move || Json(document.clone())))
        .fallback(async |request: Request| ApiError::not_found(request.uri().path()).into_response())
        .method_not_allowed_fallback(async || ApiError::method().into_response())
        .with_state(app)
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "flowlog",
        description = "Flow logs of this node. Compatible with the flow log resources of the IONOS Cloud API v6."
    ),
    components(schemas(
        model::FlowLogResource,
        model::FlowLogBody,
        crate::flow_logs::editor::Patch,
        crate::flow_logs::flow_log::Properties,
        crate::flow_logs::summary::Summary,
        model::Collection,
        model::RequestStatus,
        error::ErrorBody,
        node::Draft,
        node::Selection
    ))
)]
struct Schemas;

#[must_use]
pub(crate) fn document() -> OpenApi {
    let mut document = Schemas::openapi();
    let mut paths = PathsBuilder::new();
    for route in all() {
        let item = PathItem::new(route.method.clone(), operation(&route));
        paths = paths.path(route.path, item);
    }
    document.paths = paths.build();
    let mut components = document.components.unwrap_or_default();
    for (name, scheme) in [("basic", HttpAuthScheme::Basic), ("bearer", HttpAuthScheme::Bearer)] {
        let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(scheme).build());
        components.security_schemes.insert(name.to_owned(), scheme.into());
    }
    document.components = Some(components);
    let none: [&str; 0] = [];
    document.security = Some(vec![SecurityRequirement::new("basic", none), SecurityRequirement::new("bearer", none)]);
    document
}

fn verb(method: &HttpMethod) -> &'static str {
    match method {
        HttpMethod::Get => "get",
        HttpMethod::Post => "post",
        HttpMethod::Put => "put",
        HttpMethod::Patch => "patch",
        HttpMethod::Delete => "delete",
        _ => "other",
    }
}

fn operation(route: &Route) -> OperationBuilder {
    let json = |schema: &str| {
        let of = match schema.strip_suffix("[]") {
            Some(each) => RefOr::T(Schema::Array(Array::new(Ref::from_schema_name(each)))),
            None => RefOr::Ref(Ref::from_schema_name(schema)),
        };
        ContentBuilder::new().schema(Some(of)).build()
    };
    let (status, schema) = route.answer;
    let mut answer = ResponseBuilder::new().description("done");
    if let Some(schema) = schema {
        answer = answer.content("application/json", json(schema));
    }
    let failed = ResponseBuilder::new().description("not done").content("application/json", json("ErrorBody"));
    let id = format!("{}{}", verb(&route.method), route.path.replace(['/', '{', '}'], "_"));
    let mut operation = OperationBuilder::new()
        .operation_id(Some(id))
        .summary(Some(route.summary))
        .response(status.to_string(), answer)
        .response("default", failed);
    if let Some(schema) = route.body {
        let body = RequestBodyBuilder::new().content("application/json", json(schema)).required(Some(Required::True));
        operation = operation.request_body(Some(body.build()));
    }
    for name in route.path.split('/').filter_map(|p| p.strip_prefix('{')?.strip_suffix('}')) {
        let uuid = ObjectBuilder::new().schema_type(Type::String).build();
        let parameter = ParameterBuilder::new().name(name).parameter_in(ParameterIn::Path).required(Required::True);
        operation = operation.parameter(parameter.schema(Some(uuid)));
    }
    operation
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_every_path_and_every_schema_it_names() {
        let document = serde_json::to_value(document()).expect("json");
        let mut operations = 0;
        for route in all() {
            let method = verb(&route.method);
            assert!(document["paths"][&route.path][method].is_object(), "{method} {}", route.path);
            operations += 1;
        }
        assert_eq!(operations, 4 * 8 + 7 + 14);
        let text = document.to_string();
        for name in text.split("#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(document["components"]["schemas"][name].is_object(), "{name}");
        }
    }
}
