//! The HTTP API: the cloud's own flow log resources (IONOS Cloud API v6), so that its published clients work unchanged,
//! and what the command line needs beyond them.
//!
//! * [`room`]: who has how many connections;
//! * [`auth`]: who is asking, and how often;
//! * [`routes`]: every path, once: the router and the `OpenAPI` document are both made from that table;
//! * [`flow_logs`], [`parents`], [`requests`]: the cloud's resources; [`node`]: ours; [`live`]: flows as they come;
//! * [`model`]: what is on the wire; [`query`]: how much of it, and in which order; [`error`]: what is on the wire when something is wrong.
//!
//! Sockets do not belong here ([`crate::serve`]). What a caller may do and what happens then does not belong here ([`crate::flow_logs`]).

pub(crate) mod auth;
pub mod error;
pub(crate) mod flow_logs;
mod hasher;
pub(crate) mod live;
pub mod model;
pub mod node;
pub(crate) mod parents;
pub(crate) mod query;
pub(crate) mod requests;
pub(crate) mod room;
pub(crate) mod routes;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

pub use auth::RefusedLogins;
use axum::{
    Json,
    extract::{FromRequest, FromRequestParts, Request},
    http::{HeaderMap, header, request::Parts},
};
use error::ApiError;
use flow_logs::Place;
use flowlog_model::text::quotable;
use query::Query;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::flow_logs::{Control, access::Caller, expected::Expected};

/// Base path of the cloud API.
pub(crate) const CLOUD: &str = "/cloudapi/v6";
/// Base path of what is ours.
pub const NODE: &str = "/flowlog/v1";
/// Whom a request is for, where somebody has several contracts.
const CONTRACT_HEADER: &str = "x-contract-number";
/// Largest body that is read: a flow log has four short fields.
const BODY_BYTES_MAX: usize = 64 << 10;
/// Time for a body to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The state that all handlers share.
#[derive(Clone)]
pub(crate) struct App {
    pub control: Arc<Control>,
    pub limits: Arc<auth::Limits>,
    /// The URL under which clients reach this API, if it is configured.
    pub public_url: PublicUrl,
}

/// A URL that a reload may change.
#[derive(Clone, Debug, Default)]
pub(crate) struct PublicUrl(Arc<Mutex<Option<Arc<str>>>>);

impl PublicUrl {
    pub(crate) fn get(&self) -> Option<Arc<str>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set(&self, url: Option<Arc<str>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = url;
    }
}

/// How a request came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Over the node's own socket, from a process of this user.
    Unix { uid: u32 },
    Tcp {
        address: std::net::IpAddr,
        /// What it has reached.
        local: std::net::SocketAddr,
        tls: bool,
    },
}

impl Peer {
    /// Whose share its requests are of, as long as nobody knows whose they are.
    fn owner(&self) -> room::Owner {
        match self {
            Self::Unix { uid } => room::Owner::User(*uid),
            Self::Tcp { address, .. } => room::Owner::at(*address),
        }
    }
}

/// The URL that links begin with.
#[derive(Clone, Debug)]
pub(crate) struct Base(pub String);

impl Base {
    /// As configured, else the address that was reached. The `Host` of a request is anybody's word: a link that somebody stores or
    /// follows must not lead where a request pointed.
    fn of(app: &App, peer: Option<&Peer>) -> Self {
        match (app.public_url.get(), peer) {
            (Some(url), _) => Self(url.trim_end_matches('/').to_owned()),
            (None, Some(Peer::Tcp { local, tls, .. })) => {
                Self(format!("{}://{local}", if *tls { "https" } else { "http" }))
            }
            (None, Some(Peer::Unix { .. }) | None) => Self("http://localhost".to_owned()),
        }
    }
}

/// Refuses a request that is meant for another contract than its caller's.
fn meant_for_own_contract(caller: &Caller, headers: &HeaderMap) -> Result<(), ApiError> {
    let (Some(named), Some(own)) = (headers.get(CONTRACT_HEADER), caller.contract()) else { return Ok(()) };
    let named = String::from_utf8_lossy(named.as_bytes());
    if named.trim() == own.as_str() {
        return Ok(());
    }
    let words = format!("{CONTRACT_HEADER} `{}`: these credentials are of contract {own}", quotable(&named));
    Err(ApiError::forbidden(words))
}

/// The request context of every handler. The caller is authenticated before anything else of the request is looked at.
pub(crate) struct RequestContext {
    pub app: App,
    pub caller: Caller,
    /// The resource that the path names.
    pub place: Place,
    /// The URL that links in the answer begin with.
    pub base: Base,
    /// What is wanted of a list.
    pub query: Query,
    /// Which version is to be changed.
    pub expected: Expected,
}

impl FromRequestParts<App> for RequestContext {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Self::Rejection> {
        let caller = auth::known(parts, app).await?;
        meant_for_own_contract(&caller, &parts.headers)?;
        let place = Place::of(parts, app).await?;
        let base = Base::of(app, parts.extensions.get::<Peer>());
        let tags = parts.headers.get_all(header::IF_MATCH).iter().map(|v| v.to_str().unwrap_or("not text"));
        let query = Query::of(&parts.uri)?;
        let expected = Expected::of(tags);
        Ok(Self { app: app.clone(), caller, place, base, query, expected })
    }
}

/// All of a body, if it is small and comes soon.
///
/// # Errors
/// 408, 413.
pub(crate) async fn body_of(request: Request) -> Result<axum::body::Bytes, ApiError> {
    let reading = axum::body::to_bytes(request.into_body(), BODY_BYTES_MAX);
    match tokio::time::timeout(BODY_TIMEOUT, reading).await {
        Err(_) => Err(ApiError::slow()),
        Ok(Err(_)) => Err(ApiError::too_large(BODY_BYTES_MAX)),
        Ok(Ok(bytes)) => Ok(bytes),
    }
}

/// A JSON body. Clients differ in what they call its type, so that is not looked at.
pub(crate) struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<App> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &App) -> Result<Self, Self::Rejection> {
        let bytes = body_of(request).await?;
        // What serde derives takes a list for the fields of an object: serde-rs/serde#1587.
        let is_object = bytes.iter().find(|b| !b.is_ascii_whitespace()).is_none_or(|b| *b == b'{');
        if !is_object && serde_json::from_slice::<IgnoredAny>(&bytes).is_ok() {
            return Err(ApiError::invalid(vec!["body: must be an object, `{…}`".to_owned()]));
        }
        serde_json::from_slice(&bytes).map(Self).map_err(|e| ApiError::not_understood(&e))
    }
}

type Answer<T> = Result<Json<T>, ApiError>;
