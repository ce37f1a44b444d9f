//! Who is asking: the peer's user on the node's own socket, Basic or Bearer credentials over TCP. And how often.

#![allow(clippy::disallowed_methods, reason = "limits and waiting times are by the limiters' own clock")]

use std::{
    collections::HashMap,
    net::IpAddr,
    num::NonZeroU32,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::http::{HeaderMap, header, request::Parts};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use governor::{
    Quota, RateLimiter,
    clock::{Clock, DefaultClock},
    state::keyed::HashMapStateStore,
};
use uuid::Uuid;

use super::{
    App, Peer,
    error::ApiError,
    hasher::{Guess, Hasher},
    room::{Owner, Seat},
};
use crate::{flow_logs::access::Caller, inventory::Contract};

/// Rate limit of one principal: requests a second, and the burst that is allowed. A client that waits for ten requests asks ten
/// times a second at most.
const RATE: NonZeroU32 = NonZeroU32::new(50).expect("not 0");
const BURST: NonZeroU32 = NonZeroU32::new(200).expect("not 0");
/// Rate limit of all principals of a contract together.
const CONTRACT_RATE: NonZeroU32 = NonZeroU32::new(100).expect("not 0");
const CONTRACT_BURST: NonZeroU32 = NonZeroU32::new(400).expect("not 0");
/// Of these, changes: each waits for the disk, and everybody else for it.
const CHANGE_RATE: NonZeroU32 = NonZeroU32::new(20).expect("not 0");
const CHANGE_BURST: NonZeroU32 = NonZeroU32::new(200).expect("not 0");
/// Rate limit of an address, or of a user of the node, for requests of nobody who is known.
const STRANGER_RATE: NonZeroU32 = NonZeroU32::new(20).expect("not 0");
const STRANGER_BURST: NonZeroU32 = NonZeroU32::new(100).expect("not 0");
/// Rate limit of one address for guessing at one name: passwords a second, and the burst that is allowed. A wrong token counts as
/// well; a password that was right a moment ago does not. While the limit is reached no password of that name is looked at from
/// there, right or wrong: the answer would tell.
const TRY_RATE: NonZeroU32 = NonZeroU32::new(1).expect("not 0");
const TRY_BURST: NonZeroU32 = NonZeroU32::new(20).expect("not 0");
/// Longest name and longest password that are looked at.
const WORD_BYTES_MAX: usize = 1_024;
/// Addresses and principals whose rates are kept. Past it, those that are within their rate are forgotten.
const REMEMBERED_MAX: usize = 10_000;

/// Logins that were refused.
#[derive(Clone, Debug, Default)]
pub struct RefusedLogins(Arc<AtomicU64>);

impl RefusedLogins {
    fn note(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A moment of the limiters' clock.
type QuantaInstant = <DefaultClock as Clock>::Instant;
type Keyed<K> = RateLimiter<K, HashMapStateStore<K>, DefaultClock>;

/// Rate limits, by principal and by address.
pub(crate) struct Limits {
    requests: Keyed<Uuid>,
    contracts: Keyed<Contract>,
    changes: Keyed<Contract>,
    strangers: Keyed<Owner>,
    tries: Keyed<Guesser>,
    /// Who has reached the limit, and until when, in the limiter's time.
    blocked: Mutex<HashMap<Guesser, QuantaInstant>>,
    hasher: Hasher,
    refused: RefusedLogins,
}

/// Who guesses at whom. The name is empty for tokens.
type Guesser = (IpAddr, String);

impl Limits {
    /// Nobody has asked yet. `give_back` returns freed memory to the system.
    ///
    /// # Errors
    /// If there can be no threads for hashing.
    pub(crate) fn new(give_back: fn(), refused: RefusedLogins) -> std::io::Result<Self> {
        let limiter = |rate, burst| Quota::per_second(rate).allow_burst(burst);
        Ok(Self {
            requests: RateLimiter::hashmap(limiter(RATE, BURST)),
            contracts: RateLimiter::hashmap(limiter(CONTRACT_RATE, CONTRACT_BURST)),
            changes: RateLimiter::hashmap(limiter(CHANGE_RATE, CHANGE_BURST)),
            strangers: RateLimiter::hashmap(limiter(STRANGER_RATE, STRANGER_BURST)),
            tries: RateLimiter::hashmap(limiter(TRY_RATE, TRY_BURST)),
            blocked: Mutex::default(),
            hasher: Hasher::start(give_back)?,
            refused,
        })
    }

    /// Refuses somebody who has reached the limit, without counting it.
    fn not_blocked(&self, who: &Guesser) -> Result<(), ApiError> {
        let now = DefaultClock::default().now();
        let mut blocked = self.blocked.lock().unwrap_or_else(PoisonError::into_inner);
        blocked.retain(|_, until| *until > now);
        match blocked.get(who) {
            Some(until) => Err(too_many(until.duration_since(now))),
            None => Ok(()),
        }
    }

    /// Counts a try, and remembers whoever has no more.
    fn count(&self, who: &Guesser) -> Result<(), ApiError> {
        if self.tries.len() > REMEMBERED_MAX {
            self.tries.retain_recent();
        }
        self.tries.check_key(who).map(drop).map_err(|until| {
            let mut blocked = self.blocked.lock().unwrap_or_else(PoisonError::into_inner);
            blocked.insert(who.clone(), until.earliest_possible());
            too_many(until.wait_time_from(DefaultClock::default().now()))
        })
    }

    fn check<K: std::hash::Hash + Eq + Clone>(limiter: &Keyed<K>, key: &K) -> Result<(), ApiError> {
        if limiter.len() > REMEMBERED_MAX {
            limiter.retain_recent();
        }
        let now = || DefaultClock::default().now();
        limiter.check_key(key).map(drop).map_err(|until| too_many(until.wait_time_from(now())))
    }
}

fn too_many(wait: Duration) -> ApiError {
    let secs = wait.as_secs() + 1;
    ApiError::too_many(format!("too many requests; try again in {secs} s"), secs)
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
    let Some(caller) = caller else { return Err(stranger(parts, app)) };
    admit(parts, app, &caller)?;
    Ok(caller)
}

/// What somebody is told whom nobody knows; it is counted.
pub(crate) fn stranger(parts: &Parts, app: &App) -> ApiError {
    let from = parts.extensions.get::<Peer>().map_or(Owner::User(u32::MAX), Peer::owner);
    Limits::check(&app.limits.strangers, &from).err().unwrap_or_else(ApiError::unauthorized)
}

/// Lets a request of somebody in who is known, within the limits; the connection is theirs from now on.
///
/// # Errors
/// 429.
pub(crate) fn admit(parts: &Parts, app: &App, caller: &Caller) -> Result<(), ApiError> {
    if let Some(seat) = parts.extensions.get::<Arc<Seat>>() {
        seat.known_as(caller);
    }
    // The node's operator has no rate limit. A principal has one, and so have all of its contract together.
    if let Some(contract) = caller.contract() {
        Limits::check(&app.limits.requests, &caller.id())?;
        Limits::check(&app.limits.contracts, contract)?;
        if !parts.method.is_safe() {
            Limits::check(&app.limits.changes, contract)?;
        }
    }
    Ok(())
}

async fn by_credentials(app: &App, address: IpAddr, headers: &HeaderMap) -> Result<Option<Caller>, ApiError> {
    let Some(given) = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()) else { return Ok(None) };
    let (scheme, value) = given.split_once(' ').unwrap_or((given, ""));
    if scheme.eq_ignore_ascii_case("bearer") {
        let found = app.control.reader.principals().by_token(value.trim());
        if found.is_none() {
            app.limits.refused.note();
            app.limits.count(&(address, String::new()))?;
        }
        return Ok(found);
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return Ok(None);
    }
    let decoded = STANDARD.decode(value.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let Some((name, password)) = decoded.as_deref().and_then(|d| d.split_once(':')) else { return Ok(None) };
    by_password(app, address, name, password).await
}

/// The caller with this name and password, if they fit, within the limits on guesses. Whoever is refused is counted.
///
/// # Errors
/// 429.
pub(crate) async fn by_password(
    app: &App,
    address: IpAddr,
    name: &str,
    password: &str,
) -> Result<Option<Caller>, ApiError> {
    let known = guess(app, address, name, password).await;
    if !matches!(known, Ok(Some(_))) {
        app.limits.refused.note();
    }
    known
}

async fn guess(app: &App, address: IpAddr, name: &str, password: &str) -> Result<Option<Caller>, ApiError> {
    if name.len() > WORD_BYTES_MAX || password.len() > WORD_BYTES_MAX {
        return Ok(None);
    }
    let principals = app.control.reader.principals();
    let who = (address, name.to_owned());
    app.limits.not_blocked(&who)?;
    if let Some(caller) = principals.remembered(name, password) {
        return Ok(Some(caller));
    }
    let guess = Guess { principals: principals.clone(), address, name: name.to_owned(), password: password.to_owned() };
    // A seat first: a flood of names must not fill the limiter.
    let answered = app.limits.hasher.ask(guess).ok_or_else(|| too_many(Duration::ZERO))?;
    app.limits.count(&who)?;
    // Its seat was needed for somebody who has fewer.
    answered.await.map_err(|_gone| too_many(Duration::ZERO))
}
