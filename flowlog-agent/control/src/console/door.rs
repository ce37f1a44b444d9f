//! Who comes in: a browser with the cookie of a session, or a process of somebody who is known on the node's own socket. And how a form
//! shows that it is one of ours: by a token that only our pages have, and by what the browser says of where it comes from.

use std::net::{IpAddr, Ipv4Addr};

use axum::{
    extract::{FromRequest, FromRequestParts, Path, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header, request::Parts},
    middleware::Next,
    response::{IntoResponse as _, Redirect, Response},
};
use flowlog_host::clock;
use uuid::Uuid;

use super::{Console, NotShown, Visitor, session::Door};
use crate::{
    api::{App, Peer, auth, body_of, error::ApiError},
    flow_logs::principals::digest,
};

/// What pages ask for by themselves: that keeps no session alive.
pub(super) const LIVE: &str = "/console/live/";
/// Where somebody logs in.
pub(super) const LOGIN: &str = "/console/login";
/// Name of the cookie, where the way is encrypted: browsers then take it from this host alone, and for all of its paths.
const COOKIE_TLS: &str = "__Host-flowlog";
/// The same on loopback.
const COOKIE_PLAIN: &str = "flowlog";
/// Name of the field that each form has.
pub(super) const FORM_TOKEN: &str = "form_token";
/// Longest path that somebody is brought back to after a login.
const PATH_BYTES_MAX: usize = 200;

/// Whether cookies of this connection cross the network encrypted; a proxy in front may do that.
fn is_encrypted(app: &App, peer: Option<&Peer>) -> bool {
    let behind_tls = app.public_url.get().is_some_and(|url| url.starts_with("https://"));
    matches!(peer, Some(Peer::Tcp { tls, .. }) if *tls || behind_tls)
}

fn cookie_name(app: &App, peer: Option<&Peer>) -> &'static str {
    if is_encrypted(app, peer) { COOKIE_TLS } else { COOKIE_PLAIN }
}

/// The cookie of a session. It ends with the browser, or with the session.
#[must_use]
pub(super) fn cookie(app: &App, peer: Option<&Peer>, token: &str) -> Option<HeaderValue> {
    let secure = if is_encrypted(app, peer) { "; Secure" } else { "" };
    let over = if token.is_empty() { "; Max-Age=0" } else { "" };
    let name = cookie_name(app, peer);
    HeaderValue::from_str(&format!("{name}={token}; Path=/; HttpOnly; SameSite=Strict{secure}{over}")).ok()
}

/// The token of a session, as the browser has kept it.
#[must_use]
pub(super) fn token<'a>(app: &App, parts: (&'a HeaderMap, Option<&Peer>)) -> Option<&'a str> {
    let (headers, peer) = parts;
    let name = cookie_name(app, peer);
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(';'));
    cookies.filter_map(|c| c.trim().split_once('=')).find(|(n, _)| *n == name).map(|(_, token)| token)
}

/// Finds out who comes in, and goes on with it; else leads to the login.
pub(super) async fn enter(State(console): State<Console>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    match visitor(&console, &parts) {
        Ok((visitor, cookie)) => {
            parts.extensions.insert(visitor);
            let mut response = next.run(Request::from_parts(parts, body)).await;
            if let Some(cookie) = cookie {
                response.headers_mut().append(header::SET_COOKIE, cookie);
            }
            response
        }
        Err(response) => response,
    }
}

#[allow(clippy::result_large_err, reason = "an answer, once a request")]
fn visitor(console: &Console, parts: &Parts) -> Result<(Visitor, Option<HeaderValue>), Response> {
    let Console { app, sessions, .. } = console;
    let principals = app.control.reader.principals();
    let peer = parts.extensions.get::<Peer>();
    let door = match peer {
        Some(Peer::Unix { uid }) => Door::Socket { uid: *uid },
        _ => Door::Password,
    };
    let now = clock::now().mono;
    let is_use = !parts.uri.path().starts_with(LIVE);
    let kept = token(app, (&parts.headers, peer));
    if let Some(visitor) = kept.and_then(|token| sessions.find(token, door, &principals, now, is_use)) {
        auth::admit(parts, app, &visitor.caller).map_err(|e| NotShown::Trouble(e).into_response())?;
        return Ok((visitor, None));
    }
    let by_uid = match door {
        Door::Socket { uid } => principals.by_uid(uid),
        Door::Password => None,
    };
    let Some(caller) = by_uid else { return Err(unknown(app, parts)) };
    auth::admit(parts, app, &caller).map_err(|e| NotShown::Trouble(e).into_response())?;
    // A form of a session that is over is not one of ours any more: its token does not fit the new one.
    let (token, visitor) = sessions.begin(caller, door, &principals, now);
    Ok((visitor, cookie(app, peer, &token)))
}

/// Whether the session of a page that is being answered still goes on.
#[must_use]
pub(super) fn goes_on(console: &Console, headers: &HeaderMap, peer: Option<&Peer>) -> bool {
    let Console { app, sessions, .. } = console;
    let principals = app.control.reader.principals();
    // Over the socket the kernel has said who asks, for as long as the connection lasts.
    let door = match peer {
        Some(Peer::Unix { uid }) => return principals.by_uid(*uid).is_some(),
        _ => Door::Password,
    };
    let kept = token(app, (headers, peer));
    kept.is_some_and(|token| sessions.find(token, door, &principals, clock::now().mono, false).is_some())
}

/// Somebody who is not known: to the login, and back from there to the page that was asked for.
fn unknown(app: &App, parts: &Parts) -> Response {
    let stranger = auth::stranger(parts, app);
    let is_socket = matches!(parts.extensions.get(), Some(Peer::Unix { .. }));
    if is_socket || stranger.told().0 != StatusCode::UNAUTHORIZED {
        return NotShown::Trouble(stranger).into_response();
    }
    if parts.uri.path().starts_with(LIVE) {
        // A redirect would put the login into the middle of a page. Which page that is only the script knows that asked.
        let page = parts.headers.get("hx-current-url").and_then(|url| url.to_str().ok()?.parse::<Uri>().ok());
        let path = page.as_ref().and_then(Uri::path_and_query).map_or("/", |p| p.as_str());
        return (StatusCode::UNAUTHORIZED, [("hx-redirect", login(path))]).into_response();
    }
    let path = parts.uri.path_and_query().map_or("/", |p| p.as_str());
    Redirect::to(&login(if parts.method.is_safe() { path } else { "/" })).into_response()
}

/// The login, and behind it this page of ours.
fn login(path: &str) -> String {
    if path == "/" || !is_own_path(path) {
        return LOGIN.to_owned();
    }
    let query = serde_urlencoded::to_string([("next", path)]).unwrap_or_default();
    format!("{LOGIN}?{query}")
}

/// Whether this is a path of ours, and nothing that a browser takes for another place.
#[must_use]
pub(super) fn is_own_path(path: &str) -> bool {
    let fits = path.len() <= PATH_BYTES_MAX && path.bytes().all(|b| b.is_ascii_graphic() && b != b'\\');
    fits && (path == "/" || path.starts_with("/console/"))
}

/// The address that somebody comes from, as guesses are counted.
#[must_use]
pub(super) fn address(peer: Option<&Peer>) -> IpAddr {
    match peer {
        Some(Peer::Tcp { address, .. }) => *address,
        _ => Ipv4Addr::LOCALHOST.into(),
    }
}

impl FromRequestParts<Console> for Visitor {
    type Rejection = NotShown;

    fn from_request_parts(parts: &mut Parts, _: &Console) -> impl Future<Output = Result<Self, NotShown>> {
        std::future::ready(parts.extensions.get::<Self>().cloned().ok_or_else(|| ApiError::unauthorized().into()))
    }
}

/// The id in a page's address. What is none is the address of nothing.
pub(super) struct Id(pub Uuid);

impl FromRequestParts<Console> for Id {
    type Rejection = NotShown;

    async fn from_request_parts(parts: &mut Parts, console: &Console) -> Result<Self, NotShown> {
        let path = Path::<Uuid>::from_request_parts(parts, console).await;
        path.map(|Path(id)| Self(id)).map_err(|_no_id| ApiError::not_found(parts.uri.path()).into())
    }
}

/// What somebody has filled in.
pub(super) struct Filled(Vec<(String, String)>);

impl Filled {
    /// Reads a form of anybody's: of the login.
    ///
    /// # Errors
    /// 403 from another site; 408, 413, 422.
    pub(super) async fn of_anybody(request: Request) -> Result<Self, NotShown> {
        if is_cross_site(request.headers()) {
            return Err(ApiError::forbidden("this form was sent by another site").into());
        }
        let bytes = body_of(request).await?;
        let fields = serde_urlencoded::from_bytes(&bytes);
        let words = |e: serde_urlencoded::de::Error| ApiError::invalid(vec![format!("form: {e}")]);
        Ok(Self(fields.map_err(words)?))
    }

    /// The value of a field; empty if it is not there.
    #[must_use]
    pub(super) fn one(&self, name: &str) -> &str {
        self.0.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }

    /// All values of a field.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

impl FromRequest<Console> for Filled {
    type Rejection = NotShown;

    async fn from_request(request: Request, _: &Console) -> Result<Self, NotShown> {
        let visitor = request.extensions().get::<Visitor>().cloned().ok_or_else(ApiError::unauthorized)?;
        let filled = Self::of_anybody(request).await?;
        // Digests, so that the time tells nothing.
        if digest(&[filled.one(FORM_TOKEN)]) == digest(&[&visitor.form_token]) {
            return Ok(filled);
        }
        Err(ApiError::forbidden("this form is of a session that is over; go back, reload the page and send it again")
            .into())
    }
}

/// Whether a browser says that a request comes from a page of somebody else's (Fetch Metadata, else `Origin`). One that says nothing has
/// the form's token to show, and a cookie that is sent to no other site.
fn is_cross_site(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).map(|v| v.to_str().unwrap_or("?"));
    match (text("sec-fetch-site"), text("origin")) {
        (Some(site), _) => !matches!(site, "same-origin" | "none"),
        (None, Some(origin)) => origin.split_once("://").map(|(_, host)| host) != text("host"),
        (None, None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_of_another_site_is_told_by_what_the_browser_says() {
        let says = |lines: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.insert(*name, value.parse().expect("a value"));
            }
            is_cross_site(&headers)
        };
        assert!(!says(&[]) && !says(&[("sec-fetch-site", "same-origin")]) && !says(&[("sec-fetch-site", "none")]));
        assert!(says(&[("sec-fetch-site", "cross-site")]) && says(&[("sec-fetch-site", "same-site")]));
        let host = ("host", "node:8443");
        assert!(!says(&[host, ("origin", "https://node:8443")]));
        assert!(says(&[host, ("origin", "https://node:9999")]) && says(&[host, ("origin", "null")]));
        assert!(says(&[host, ("origin", "https://node:8443"), ("sec-fetch-site", "cross-site")]));
    }

    #[test]
    fn the_login_remembers_a_page_of_ours() {
        assert_eq!(login("/console/audit"), "/console/login?next=%2Fconsole%2Faudit");
        for path in ["/", "//evil", "https://evil/console/audit"] {
            assert_eq!(login(path), LOGIN);
        }
    }

    #[test]
    fn a_login_leads_back_to_pages_of_ours_and_nowhere_else() {
        for path in ["/", "/console/audit", "/console/resources/1?x=%2F"] {
            assert!(is_own_path(path), "{path}");
        }
        for path in ["", "//evil", "/\\evil", "https://evil", "/console/\\..", "/cloudapi/v6", "/console/\n", "/evil"] {
            assert!(!is_own_path(path), "{path}");
        }
    }
}
