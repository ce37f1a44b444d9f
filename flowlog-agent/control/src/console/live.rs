//! What is refused now, and by whom and why most in the open windows: a stream of server-sent events, for as long as somebody looks.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Extension,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse as _, Response},
};
use flowlog_model::{
    FlowLogId,
    live::{Ask, Batch, FlowLine, TopEntry, TopReport, What, filter::FlowFilter},
};
use futures_util::stream;
use maud::{Markup, html};
use tokio::time::{Interval, MissedTickBehavior};

use super::{
    Console, Page, Visitor,
    door::{self, Id},
    words::{count, seen},
};
use crate::{
    api::{
        Peer,
        error::ApiError,
        live::sight,
        room::{Seat, Streaming},
    },
    flow_logs::{access::Caller, flow_log::FlowLog},
    live::LiveStream,
};

/// How often the sums of the open windows are looked at. So often as well it shows that the stream goes on, and that the session does.
const SUMS_EVERY: Duration = Duration::from_secs(3);
/// Entries of each sum.
const ENTRIES: usize = 5;
/// Lines of one batch that are shown: nobody reads more at once. The others are counted.
const LINES_MAX: usize = 50;

/// The part of a page that begins it. Nothing is looked at before it is opened.
#[must_use]
pub(super) fn drawn(flow_log: &FlowLog) -> Markup {
    html! {
        details.watch data-watch=(format!("/console/live/flowlogs/{}/watch", flow_log.id)) {
            summary { h3 { "Live" } }
            div.watching {
                div {
                    p.actions {
                        strong { "Rejected, as it happens" }
                        button.pause type="button" aria-pressed="false" { "Pause" }
                        span.quiet.note role="status" { "…" }
                    }
                    div.live tabindex="0" role="log" aria-live="off" aria-label="Rejected packets" {}
                }
                div.sums {}
            }
            noscript { p { "This takes scripts." } }
        }
    }
}

/// A stream on its way out.
struct Watch {
    console: Console,
    headers: HeaderMap,
    peer: Option<Peer>,
    caller: Caller,
    flow_log: FlowLogId,
    observer: Box<dyn LiveStream>,
    sums: Interval,
    said_lost: u64,
    streaming: Option<Streaming>,
}

/// GET of the stream.
pub(super) async fn watch(
    State(console): State<Console>,
    visitor: Visitor,
    Id(id): Id,
    seat: Option<Extension<Arc<Seat>>>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
) -> Page {
    let control = &console.app.control;
    let flow_log = control.reader.flow_log(&visitor.caller, FlowLogId(id))?;
    let mut filter = FlowFilter::default();
    let mut add = |key: &str, value: &str| {
        let added = filter.add(key, value);
        added.map(drop).map_err(|e| ApiError::invalid(vec![e.to_string()]))
    };
    for interface in &flow_log.interfaces {
        add("interface", &interface.id)?;
    }
    add("verdict", "rejected")?;
    let what = What::Flows { recent: None, follow: true };
    let mut observer = match control.live.observe(Ask { sight: sight(&visitor.caller), filter, what }) {
        Ok(observer) => observer,
        // As an event: a browser would not show the words of an error.
        Err(error) => return Ok(events(Body::from(event("problem", &seen(&error.to_string()))))),
    };
    let _nothing = observer.begun().await;
    let mut sums = tokio::time::interval(SUMS_EVERY);
    sums.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let streaming = seat.map(|Extension(seat)| Streaming::new(seat));
    let peer = peer.map(|Extension(peer)| peer);
    let (caller, flow_log) = (visitor.caller, flow_log.id);
    let watch = Watch { console, headers, peer, caller, flow_log, observer, sums, said_lost: 0, streaming };
    let body = stream::unfold(watch, |mut watch| async move {
        let bytes = watch.next().await?;
        Some((Ok::<_, Infallible>(bytes), watch))
    });
    Ok(events(Body::from_stream(body)))
}

fn events(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
}

/// One event. Its data are one line: what others say has no line ends by then.
fn event(name: &str, data: &str) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}

impl Watch {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(streaming) = &self.streaming {
            streaming.is_read();
        }
        if !door::goes_on(&self.console, &self.headers, self.peer.as_ref()) || !self.is_there() {
            return None;
        }
        let mut out = String::new();
        tokio::select! {
            batch = self.observer.next() => match batch? {
                Batch::Flows(flows) => out.push_str(&event("flows", &lines(&flows).into_string())),
                Batch::Top(_) => {}
            },
            _tick = self.sums.tick() => out.push_str(&self.sums().await),
        }
        let lost = self.observer.lost();
        if lost != self.said_lost {
            self.said_lost = lost;
            out.push_str(&event("lost", &count(lost)));
        }
        Some(out.into())
    }

    /// Whether its flow log still is.
    fn is_there(&self) -> bool {
        self.console.app.control.reader.flow_log(&self.caller, self.flow_log).is_ok()
    }

    /// What the open windows have, now.
    async fn sums(&mut self) -> String {
        let report = self.observer.sums(ENTRIES).await;
        event("sums", &report.map_or_else(String::new, |report| tables(&report).into_string()))
    }
}

fn lines(flows: &[FlowLine]) -> Markup {
    html! {
        // The newest is the first.
        @for flow in flows.iter().rev().take(LINES_MAX) {
            p {
                time.clock datetime=(flow.time) title=(flow.time) { (flow.time) }
                " " (seen(&flow.to_string())) " ×" (count(flow.packets)) " "
                strong { (seen(flow.reject_reason.as_deref().unwrap_or_default())) }
                @if let Some(rule) = &flow.verdict_rule { " " span.quiet { (seen(rule)) } }
            }
        }
        @if flows.len() > LINES_MAX { p.quiet { (count((flows.len() - LINES_MAX) as u64)) " more" } }
    }
}

fn tables(report: &TopReport) -> Markup {
    html! {
        (table("Top reasons", &report.reasons))
        (table("Top talkers refused", &report.talkers))
        p.quiet { "Of the open windows: " (count(report.total.rejected_packets)) " packets rejected." }
    }
}

fn table(title: &str, entries: &[TopEntry]) -> Markup {
    html! {
        table {
            caption { (title) }
            tbody {
                @if entries.is_empty() { tr { td.quiet { "none yet" } } }
                @for entry in entries {
                    tr {
                        td { (seen(entry.label.as_ref().unwrap_or(&entry.name))) }
                        td.number { (count(entry.counts.rejected_packets)) }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_event_and_what_others_say_ends_none() {
        let flow = FlowLine {
            time: "2026-11-27T10:31:07.123Z".to_owned(),
            protocol: 6,
            srcaddr: "203.0.113.9".to_owned(),
            srcport: Some(4431),
            dstaddr: "10.0.0.2".to_owned(),
            dstport: Some(22),
            packets: 1_200,
            reject_reason: Some("NETFILTER_DROP".to_owned()),
            verdict_rule: Some("<b>\n\nevent: problem\ndata: x".to_owned()),
            ..FlowLine::default()
        };
        let text = event("flows", &lines(&vec![flow; 60]).into_string());
        assert_eq!((text.matches('\n').count(), text.matches("event: ").count()), (3, 51), "{text}");
        assert!(text.starts_with("event: flows\ndata: <p>") && !text.contains("<b>"), "{text}");
        assert!(text.contains("tcp 203.0.113.9:4431 &gt; 10.0.0.2:22 ×1,200") && text.contains("10 more"), "{text}");
    }
}
