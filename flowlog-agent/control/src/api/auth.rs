//! Who is asking: the peer's user on the node's own socket, Basic or Bearer credentials over TCP. And how often.

use std::{net::IpAddr, num::NonZeroU32};

use axum::http::{HeaderMap, header, request::Parts};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use governor::{
    Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
    state::keyed::HashMapStateStore,
};
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::{App, Peer, error::ApiError};
use crate::flow_logs::access::Caller;

/// Rate limit of one principal: requests a second, and the burst that is allowed. A client that waits for ten requests asks ten
/// times a second at most.
const RATE: NonZeroU32 = NonZeroU32::new(50).expect("not 0");
const BURST: NonZeroU32 = NonZeroU32::new(200).expect("not 0");
/// Rate limit of one address for guessing: passwords a second, and the burst that is allowed. A wrong token counts as well; a
/// password that was right a moment ago does not.
const TRY_RATE: NonZeroU32 = NonZeroU32::new(1).expect("not 0");
const TRY_BURST: NonZeroU32 = NonZeroU32::new(20).expect("not 0");
/// Passwords that are checked at the same time: each takes 19 MiB.
const HASHES_MAX: usize = 2;
/// Addresses and principals whose rates are kept. Past it, those that are within their rate are forgotten.
const REMEMBERED_MAX: usize = 10_000;

type Keyed<K> = RateLimiter<K, HashMapStateStore<K>, DefaultClock>;

/// Rate limits, by principal and by address.
pub(crate) struct Limits {
    requests: Keyed<Uuid>,
    tries: Keyed<IpAddr>,
    hashing: Semaphore,
}

impl Default for Limits {
    fn default() -> Self {
        let limiter = |rate, burst| Quota::per_second(rate).allow_burst(burst);
        Self {
            requests: RateLimiter::hashmap(limiter(RATE, BURST)),
            tries: RateLimiter::hashmap(limiter(TRY_RATE, TRY_BURST)),
            hashing: Semaphore::new(HASHES_MAX),
        }
    }
}

impl Limits {
    fn check<K: std::hash::Hash + Eq + Clone>(limiter: &Keyed<K>, key: &K) -> Result<(), ApiError> {
        if limiter.len() > REMEMBERED_MAX {
            limiter.retain_recent();
        }
        limiter.check_key(key).map(drop).map_err(|until| {
            let secs = until.wait_time_from(DefaultClock::default().now()).as_secs() + 1;
            ApiError::too_many(format!("too many requests; try again in {secs} s"), secs)
        })
    }
}

/// Authenticates a request and applies the rate limits; returns the caller.
///
/// # Errors
/// 401, 429.
pub(crate) async fn known(parts: &Parts, app: &App) -> Result<Caller, ApiError> {
    let caller = match parts.extensions.get::<Peer>() {
        Some(Peer::Unix { uid }) => app.control.reader.principals().by_uid(*uid),
        Some(Peer::Tcp { address, .. }) => by_credentials(app, *address, &parts.headers).await?,
        None => None,
    };
    let caller = caller.ok_or_else(ApiError::unauthorized)?;
    // The node's operator has no rate limit.
    if caller != Caller::Operator {
        Limits::check(&app.limits.requests, &caller.id())?;
    }
    Ok(caller)
}

async fn by_credentials(app: &App, address: IpAddr, headers: &HeaderMap) -> Result<Option<Caller>, ApiError> {
    let Some(given) = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()) else { return Ok(None) };
    let (scheme, value) = given.split_once(' ').unwrap_or((given, ""));
    let principals = app.control.reader.principals();
    if scheme.eq_ignore_ascii_case("bearer") {
        let found = principals.by_token(value.trim());
        if found.is_none() {
            Limits::check(&app.limits.tries, &address)?;
        }
        return Ok(found);
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return Ok(None);
    }
    let decoded = STANDARD.decode(value.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let Some((name, password)) = decoded.as_deref().and_then(|d| d.split_once(':')) else { return Ok(None) };
    if let Some(caller) = principals.remembered(name, password) {
        return Ok(Some(caller));
    }
    Limits::check(&app.limits.tries, &address)?;
    let (name, password) = (name.to_owned(), password.to_owned());
    let Ok(_one) = app.limits.hashing.acquire().await else { return Ok(None) };
    // Hashing is slow on purpose: on this thread it would hold up every other request.
    let checked = tokio::task::spawn_blocking(move || principals.by_password(&name, &password)).await;
    Ok(checked.unwrap_or_default())
}
