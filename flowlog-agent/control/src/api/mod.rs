//! The HTTP API: the cloud's own flow log resources (IONOS Cloud API v6), so that its published clients work unchanged,
//! and what the command line needs beyond them.
//!
//! * [`serve`]: sockets, TLS, limits on connections and time;
//! * [`auth`]: who is asking, and how often;
//! * [`routes`]: every path, once: the router and the `OpenAPI` document are both made from that table;
//! * [`flow_logs`], [`parents`], [`requests`]: the cloud's resources; [`node`]: ours;
//! * [`model`]: what is on the wire; [`error`]: what is on the wire when something is wrong.
//!
//! What a caller may do and what happens then does not belong here ([`crate::flow_logs`]).

pub(crate) mod auth;
pub(crate) mod error;
pub(crate) mod flow_logs;
mod hasher;
pub mod model;
pub mod node;
pub(crate) mod parents;
pub(crate) mod requests;
pub(crate) mod routes;
pub mod serve;

use std::sync::Arc;

use axum::{
    Json,
    extract::{FromRequest, FromRequestParts, Request},
    http::{HeaderMap, header, request::Parts},
};
use error::ApiError;
use flow_logs::Place;
use model::Page;
use serde::de::DeserializeOwned;

use crate::flow_logs::{Control, access::Caller};

/// Base path of the cloud API.
pub(crate) const CLOUD: &str = "/cloudapi/v6";
/// Base path of what is ours.
pub const NODE: &str = "/flowlog/v1";
/// Largest body that is read: a flow log has four short fields.
const BODY_BYTES_MAX: usize = 64 << 10;

/// The state that all handlers share.
#[derive(Clone)]
pub(crate) struct App {
    pub control: Arc<Control>,
    pub limits: Arc<auth::Limits>,
    /// The URL under which clients reach this API, if it is configured.
    pub public_url: Option<Arc<str>>,
}

/// How a request came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Over the node's own socket, from a process of this user.
    Unix {
        uid: u32,
    },
    Tcp {
        address: std::net::IpAddr,
        tls: bool,
    },
}

/// The URL that links begin with.
#[derive(Clone, Debug)]
pub(crate) struct Base(pub String);

impl Base {
    fn of(app: &App, peer: Option<&Peer>, headers: &HeaderMap) -> Self {
        if let Some(url) = &app.public_url {
            return Self(url.trim_end_matches('/').to_owned());
        }
        let host = headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or("localhost");
        let scheme = if matches!(peer, Some(Peer::Tcp { tls: true, .. })) { "https" } else { "http" };
        Self(format!("{scheme}://{host}"))
    }
}

/// The request context of every handler. The caller is authenticated before anything else of the request is looked at.
pub(crate) struct RequestContext {
    pub app: App,
    pub caller: Caller,
    /// The resource that the path names.
    pub place: Place,
    /// The URL that links in the answer begin with.
    pub base: Base,
    /// The page of a list.
    pub page: Page,
}

impl FromRequestParts<App> for RequestContext {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Self::Rejection> {
        let caller = auth::known(parts, app).await?;
        let place = Place::of(parts, app).await?;
        let base = Base::of(app, parts.extensions.get::<Peer>(), &parts.headers);
        Ok(Self { app: app.clone(), caller, place, base, page: Page::of(parts.uri.query()) })
    }
}

/// A JSON body. Clients differ in what they call its type, so that is not looked at.
pub(crate) struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<App> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &App) -> Result<Self, Self::Rejection> {
        let reading = axum::body::to_bytes(request.into_body(), BODY_BYTES_MAX);
        let bytes = match tokio::time::timeout(serve::BODY_TIMEOUT, reading).await {
            Err(_) => return Err(ApiError::slow()),
            Ok(Err(_)) => return Err(ApiError::too_large(BODY_BYTES_MAX)),
            Ok(Ok(bytes)) => bytes,
        };
        serde_json::from_slice(&bytes).map(Self).map_err(|e| ApiError::not_understood(&e))
    }
}

/// A JSON answer.
type Answer<T> = Result<Json<T>, ApiError>;
