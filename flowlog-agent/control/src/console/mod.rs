//! The console: what the API has, as pages for people. Rendered here, without state in the browser; scripts bring what changes, draw
//! the chart and know keys, and every page does without.
//!
//! * [`door`]: who comes in, and how a form shows that it is one of ours; [`session`]: who has logged in; [`login`];
//! * [`frame`]: what all pages have; [`tree`]: what is on the node, with lights; [`words`]: values as people read them;
//! * [`resource`], [`summary`], [`form`]: a NIC, gateway or balancer, its flow log, the fields of one;
//! * [`change`], [`provision`], [`request`]: what can be wished for, and what became of it;
//! * [`live`]: what is refused now; [`audit`], [`node`]: who did what; how the node is doing;
//! * [`assets`]: style and scripts, in the binary.
//!
//! Pages ask [`crate::flow_logs`] as the API's handlers do: who may see or do what is decided there.

mod assets;
mod audit;
mod change;
mod door;
mod form;
mod frame;
mod live;
mod login;
mod node;
mod provision;
mod request;
mod resource;
pub(crate) mod session;
mod summary;
mod tree;
mod words;

use std::sync::Arc;

use axum::{
    Router,
    extract::Request,
    http::{HeaderName, HeaderValue, header},
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use session::{Sessions, Visitor};

use crate::api::{App, error::ApiError};

/// What all pages share.
#[derive(Clone)]
pub(crate) struct Console {
    app: App,
    sessions: Arc<Sessions>,
    /// What the node is called.
    node: Arc<str>,
}

impl Console {
    #[must_use]
    pub(crate) fn new(app: App, node: Arc<str>) -> Self {
        Self { app, sessions: Arc::default(), node }
    }
}

/// Everything that the console answers. Fragments, which pages ask for by themselves, are below [`door::LIVE`].
pub(crate) fn routes(console: Console) -> Router {
    let known = Router::new()
        .route("/", get(resource::overview))
        .route("/console/resources/{id}", get(resource::show))
        .route("/console/resources/{id}/flowlogs", post(change::add))
        .route("/console/flowlogs/{id}", get(resource::of_flow_log))
        .route("/console/flowlogs/{id}/validate", post(change::validate))
        .route("/console/flowlogs/{id}/change", post(change::change))
        .route("/console/flowlogs/{id}/rename", post(change::rename))
        .route("/console/flowlogs/{id}/delete", get(change::ask_to_delete).post(change::delete))
        .route("/console/provision", get(provision::show).post(provision::begin))
        .route("/console/requests/{id}", get(request::show))
        .route("/console/audit", get(audit::show))
        .route("/console/node", get(node::show))
        .route("/console/logout", post(login::leave))
        .route("/console/live/tree", get(tree::live))
        .route("/console/live/flowlogs/{id}", get(summary::renewed))
        .route("/console/live/flowlogs/{id}/history", get(summary::history))
        .route("/console/live/flowlogs/{id}/watch", get(live::watch))
        .route("/console/live/requests/{id}", get(request::live))
        .route("/console/live/node", get(node::live))
        .route_layer(from_fn_with_state(console.clone(), door::enter));
    Router::new()
        .route("/console/login", get(login::show).post(login::enter))
        .route("/console/assets/{hash}/{name}", get(assets::get))
        .merge(known)
        .layer(from_fn(hardened))
        .with_state(console)
}

/// What a browser may do with a page: load what this node has, show it nowhere else, and keep nothing of it.
async fn hardened(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in HARDENED {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

const HARDENED: [(HeaderName, &str); 5] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
];

/// A page that is not shown, or a wish that is not granted.
pub(super) enum NotShown {
    Trouble(ApiError),
    /// The form is shown again, with what is wrong in it.
    Refilled(Box<Response>),
}

impl<E: Into<ApiError>> From<E> for NotShown {
    fn from(error: E) -> Self {
        Self::Trouble(error.into())
    }
}

impl IntoResponse for NotShown {
    fn into_response(self) -> Response {
        match self {
            Self::Trouble(error) => frame::trouble(&error),
            Self::Refilled(page) => *page,
        }
    }
}

type Page = Result<Response, NotShown>;
