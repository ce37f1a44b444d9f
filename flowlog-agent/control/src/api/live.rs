//! Live flows over HTTP: streams of JSON, one value a line.
//!
//! ```text
//! flows?follow=true     flows as they come; without it, those of the open windows alone
//!       last=20         so many flows of the open windows first, those with the latest packets
//!       since=5m        those with a packet in so much time
//!       verdict=rejected, ip=10.0.0.0/8, src=, dst=, port=22, proto=tcp, direction=, interface=, flow_log=, reason=
//!                       several of one key: any of them; `not.port=22`: none of these
//! top?every=2s          sums of each two seconds; without it, once, of the open windows
//!     entries=10        so many of each kind; and conditions as above
//! ```

use std::{sync::Arc, time::Duration};

use axum::{
    Extension,
    body::Body,
    extract::Query as Pairs,
    http::{Uri, header},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use flowlog_model::{
    amount::parse_duration,
    live::{
        Ask, Batch, Begun, FlowEvent, RECENT_MAX, RecentAsk, Sight, What,
        filter::{FlowFilter, KEYS},
    },
};
use futures_util::stream;
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;

use super::{
    RequestContext,
    error::ApiError,
    room::{Seat, Streaming},
};
use crate::{
    flow_logs::{access::Caller, principals::Principals},
    live::LiveStream,
};

/// Without anything to say, an empty line shows so often that the stream goes on, and finds out that nobody reads it any more.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// Shortest and longest stretch of time of a report.
const EVERY: [Duration; 2] = [Duration::from_millis(500), Duration::from_mins(1)];
/// Entries of each kind in a report, unless asked for otherwise, and at most.
const ENTRIES_DEFAULT: usize = 10;
const ENTRIES_MAX: usize = 100;

/// A query, taken apart.
#[derive(Default)]
struct Asked {
    filter: FlowFilter,
    follow: bool,
    last: Option<usize>,
    since: Option<Duration>,
    every: Option<Duration>,
    entries: Option<usize>,
}

/// Names of what a query may say besides conditions.
const OF_FLOWS: [&str; 3] = ["follow", "last", "since"];
const OF_TOP: [&str; 2] = ["every", "entries"];

fn invalid(name: &str, value: &str, rule: &str) -> ApiError {
    ApiError::invalid(vec![format!("{name} `{value}`: {rule}")])
}

/// A length of time as people write it.
fn duration(name: &str, value: &str) -> Result<Duration, ApiError> {
    parse_duration(value).map_err(|how| invalid(name, value, &how.to_string()))
}

impl Asked {
    fn of(uri: &Uri, takes: &[&str]) -> Result<Self, ApiError> {
        let Pairs(pairs): Pairs<Vec<(String, String)>> =
            Pairs::try_from_uri(uri).map_err(|e| invalid("query", uri.query().unwrap_or_default(), &e.to_string()))?;
        let mut asked = Self::default();
        for (name, value) in &pairs {
            let number = |most: usize| {
                let parsed = value.parse().ok().filter(|n| (1..=most).contains(n));
                parsed.ok_or_else(|| invalid(name, value, &format!("use 1 to {most}")))
            };
            match name.as_str() {
                other if !takes.contains(&other) => asked.condition(name, value, takes)?,
                "follow" => {
                    asked.follow = value.parse().map_err(|_neither| invalid(name, value, "use `true` or `false`"))?;
                }
                "last" => asked.last = Some(number(RECENT_MAX)?),
                "since" => asked.since = Some(duration(name, value)?),
                "every" => {
                    let every = duration(name, value)?;
                    if !(EVERY[0]..=EVERY[1]).contains(&every) {
                        return Err(invalid(name, value, "use `500ms` to `1m`"));
                    }
                    asked.every = Some(every);
                }
                _ => asked.entries = Some(number(ENTRIES_MAX)?),
            }
        }
        Ok(asked)
    }

    fn condition(&mut self, name: &str, value: &str, takes: &[&str]) -> Result<(), ApiError> {
        match self.filter.add(name, value) {
            Ok(true) => Ok(()),
            Ok(false) => {
                let rule = format!(
                    "no such parameter; there are {}, and `not.` before a condition",
                    [takes, &KEYS].concat().join(", ")
                );
                Err(invalid(name, value, &rule))
            }
            Err(error) => Err(ApiError::invalid(vec![error.to_string()])),
        }
    }

    /// What is asked for of the open windows; a query that follows asks for nothing of them, unless it says so.
    fn recent(&self) -> Option<RecentAsk> {
        let says = self.last.is_some() || self.since.is_some();
        let last = self.last.unwrap_or(usize::MAX);
        (says || !self.follow).then_some(RecentAsk { last, within: self.since })
    }
}

/// What a caller may see.
pub(crate) fn sight(caller: &Caller) -> Sight {
    caller.contract().map_or(Sight::Node, |contract| Sight::Contract(contract.as_str().to_owned()))
}

/// GET of live flows.
pub(super) async fn flows(
    context: RequestContext,
    seat: Option<Extension<Arc<Seat>>>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let asked = Asked::of(&uri, &OF_FLOWS)?;
    let what = What::Flows { recent: asked.recent(), follow: asked.follow };
    answer(&context, seat, asked.filter, what).await
}

/// GET of sums.
pub(super) async fn top(
    context: RequestContext,
    seat: Option<Extension<Arc<Seat>>>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let asked = Asked::of(&uri, &OF_TOP)?;
    let what = What::Top { every: asked.every, entries: asked.entries.unwrap_or(ENTRIES_DEFAULT) };
    answer(&context, seat, asked.filter, what).await
}

async fn answer(
    RequestContext { app, caller, .. }: &RequestContext,
    seat: Option<Extension<Arc<Seat>>>,
    filter: FlowFilter,
    what: What,
) -> Result<Response, ApiError> {
    let goes_on = matches!(what, What::Flows { follow: true, .. } | What::Top { every: Some(_), .. });
    let observing = app.control.live.observe(Ask { sight: sight(caller), filter, what });
    let mut observer = observing.map_err(|error| ApiError::too_many(error.to_string(), RETRY_SECS))?;
    let first = beginning(&what, observer.begun().await);
    let streaming = seat.filter(|_| goes_on).map(|Extension(seat)| Streaming::new(seat));
    // Whoever is known by the file of principals may not be any more when that changes. A client asks again.
    let principals = caller.contract().map(|_| app.control.reader.watch_principals());
    let out = Out { observer, first: Some(first), said_lost: 0, goes_on, principals, streaming };
    let body = Body::from_stream(stream::unfold(out, |mut out| async move {
        let bytes = out.next().await?;
        Some((Ok::<_, std::convert::Infallible>(bytes), out))
    }));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-store")], body).into_response())
}

/// After so long one who looks may have gone.
const RETRY_SECS: u64 = 10;

/// A stream on its way out.
struct Out {
    observer: Box<dyn LiveStream>,
    first: Option<Vec<u8>>,
    said_lost: u64,
    goes_on: bool,
    principals: Option<watch::Receiver<Arc<Principals>>>,
    streaming: Option<Streaming>,
}

impl Out {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(streaming) = &self.streaming {
            streaming.is_read();
        }
        if let Some(first) = self.first.take() {
            return Some(first.into());
        }
        if !self.goes_on {
            return None;
        }
        let changed = async {
            match &mut self.principals {
                Some(principals) => drop(principals.changed().await),
                None => std::future::pending().await,
            }
        };
        let mut bytes = Vec::new();
        let mut end = |why: &str| {
            self.goes_on = false;
            line(&mut bytes, &FlowEvent::Ended { ended: why.to_owned() });
        };
        tokio::select! {
            () = changed => end("the principals of this node have changed; ask again"),
            batch = self.observer.next() => match batch {
                Some(batch) => lines(&mut bytes, batch, self.observer.lost()),
                None => end("the agent is ending"),
            },
            () = tokio::time::sleep(HEARTBEAT) => bytes.push(b'\n'),
        }
        let lost_lines = self.observer.lost();
        if lost_lines != self.said_lost {
            self.said_lost = lost_lines;
            line(&mut bytes, &FlowEvent::Lost { lost_lines });
        }
        Some(bytes.into())
    }
}

/// What a stream begins with: names that nothing has; of flows, how far back the open windows go; then what they hold.
fn beginning(what: &What, Begun { batch, left_out, since_secs, unknown }: Begun) -> Vec<u8> {
    let mut bytes = Vec::new();
    for note in unknown {
        line(&mut bytes, &FlowEvent::Note { note });
    }
    if let What::Flows { recent: Some(_), .. } = what {
        let time = |secs| Timestamp::from_second(secs).map_or_else(|_| String::new(), |t| t.to_string());
        line(&mut bytes, &FlowEvent::Windows { windows_since: since_secs.map(time), left_out });
    }
    if let Some(batch) = batch {
        lines(&mut bytes, batch, 0);
    }
    // The head of an answer goes out with its first bytes.
    if bytes.is_empty() {
        bytes.push(b'\n');
    }
    bytes
}

fn lines(bytes: &mut Vec<u8>, batch: Batch, lost_records: u64) {
    match batch {
        Batch::Flows(flows) => flows.iter().for_each(|flow| line(bytes, flow)),
        Batch::Top(mut report) => {
            report.lost_records = lost_records;
            line(bytes, &report);
        }
    }
}

fn line(bytes: &mut Vec<u8>, value: &impl Serialize) {
    // Writing to memory cannot fail, nor can these values be anything but JSON.
    let _ = serde_json::to_writer(&mut *bytes, value);
    bytes.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(query: &str, takes: &[&str]) -> Result<Asked, String> {
        let uri = format!("/flows?{query}").parse().expect("a uri");
        Asked::of(&uri, takes).map_err(|error| format!("{error:?}"))
    }

    #[test]
    fn a_query_that_follows_asks_for_nothing_of_the_open_windows_unless_it_says_so() {
        let recent = |query: &str| asked(query, &OF_FLOWS).expect("good").recent();
        assert_eq!(recent("follow=true"), None);
        assert_eq!(recent(""), Some(RecentAsk { last: usize::MAX, within: None }));
        assert_eq!(recent("follow=true&last=3"), Some(RecentAsk { last: 3, within: None }));
        let within = Some(Duration::from_secs(90));
        assert_eq!(recent("since=1m30s&port=22"), Some(RecentAsk { last: usize::MAX, within }));
        assert_eq!(recent("since=90"), Some(RecentAsk { last: usize::MAX, within }), "a number alone is seconds");
    }

    #[test]
    fn bad_queries_are_named_with_their_rule() {
        for (query, takes, says) in [
            ("last=0", &OF_FLOWS[..], "last `0`: use 1 to 10000"),
            ("since=soon", &OF_FLOWS, "since `soon`: use a length of time"),
            ("since=-5m", &OF_FLOWS, "since `-5m`: use a length of time"),
            ("follow=yes", &OF_FLOWS, "follow `yes`: use `true` or `false`"),
            ("every=1ms", &OF_TOP, "every `1ms`: use `500ms` to `1m`"),
            ("entries=101", &OF_TOP, "entries `101`: use 1 to 100"),
            ("last=1", &OF_TOP, "last `1`: no such parameter; there are every, entries, verdict"),
            ("colour=red", &OF_FLOWS, "colour `red`: no such parameter"),
            ("not.ip=x", &OF_FLOWS, "ip `x`: use an address"),
        ] {
            let error = asked(query, takes).err().expect("bad");
            assert!(error.contains(says), "{query}: {error}");
        }
    }
}
