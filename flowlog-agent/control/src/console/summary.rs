//! How a flow log is doing: its fields, its interfaces, what was counted and delivered, and why it is not green if it is not.

use axum::{
    Json,
    extract::State,
    response::{Html, IntoResponse as _},
};
use flowlog_host::clock;
use flowlog_model::{
    FlowLogId,
    status::{CaptureState, RouteState, RuleStatus},
};
use maud::{Markup, html};

use super::{
    Console, Page, Visitor,
    door::Id,
    live,
    words::{Light, bytes, count, duration, said, seen, time},
};
use crate::flow_logs::{
    flow_log::{FlowLog, State as Stage},
    history::Traffic,
    summary::Summary,
};

/// All of it, which asks for itself again; the chart stays as it is.
#[must_use]
pub(super) fn drawn(console: &Console, summary: &Summary) -> Markup {
    let id = summary.flow_log.id;
    let traffic = console.app.control.reader.traffic(&summary.flow_log);
    html! {
        (changing(summary))
        figure.chart {
            figcaption { "Packets a second, last hours " span.quiet { (totals(&traffic)) } }
            div.plot data-history=(format!("/console/live/flowlogs/{id}/history")) {}
        }
        (live::drawn(&summary.flow_log))
    }
}

/// What changes.
fn changing(summary: &Summary) -> Markup {
    let id = summary.flow_log.id;
    html! {
        div id=(format!("summary-{id}")) hx-get=(format!("/console/live/flowlogs/{id}")) hx-trigger="every 3s" hx-swap="outerMorph" {
            p.state { (Light::of(summary).drawn()) " " (state(summary)) }
            @if !summary.why.is_empty() {
                ul.why { @for why in &summary.why { li.problem { (seen(why)) } } }
            }
            (fields(&summary.flow_log))
            @for capture in &summary.captures { (interface(capture)) }
        }
    }
}

fn state(summary: &Summary) -> Markup {
    let is_delivering = summary.lag_secs == 0 && summary.captures.iter().all(|c| c.delivery.state.error().is_none());
    let attached = summary.attached();
    let begun = html! {
        @match attached {
            0 => "Waiting to capture",
            some if some < summary.captures.len() => { "Capturing " (some) " of " (summary.captures.len()) " interfaces" }
            _ => { "Capturing" @if let Some(secs) = summary.since_secs() { " since " (time(secs)) } }
        }
    };
    html! {
        @match (summary.flow_log.state, summary.last_object()) {
            (Stage::Provisioning, _) => "Being activated.",
            (Stage::Deleting, _) => "Being ended; its last window is flushed.",
            (_, None) if summary.lag_secs == 0 => {
                (begun) @if attached > 0 { "; the first object comes with the end of the first window" } "."
            },
            (_, last) => {
                (begun) @if is_delivering && attached > 0 { ", delivering" }
                @if let Some(last) = last { "; last object " (ago(last.at_secs)) ", " (bytes(last.bytes)) }
                @if summary.lag_secs > 0 { "; the oldest object has waited for " (duration(summary.lag_secs)) }
                "."
            },
        }
    }
}

/// How long ago something was.
fn ago(at_secs: i64) -> String {
    format!("{} ago", duration(clock::now().wall.secs().saturating_sub(at_secs).max(0)))
}

/// What the customer said, and what became of it.
#[must_use]
pub(super) fn fields(flow_log: &FlowLog) -> Markup {
    let p = &flow_log.properties;
    html! {
        dl.facts {
            div { dt { "Direction" } dd { (said(&p.direction)) } }
            div { dt { "Action" } dd { (said(&p.action)) } }
            div { dt { "Bucket" } dd { (seen(&p.bucket)) } }
            @if let Some(key) = flow_log.key_name.as_ref().filter(|k| k.as_str() != p.name) {
                div { dt { "Keys begin with" } dd { (key.as_str()) } }
            }
            div { dt { "Window" } dd { (duration(flow_log.settings.window_secs.into())) } }
            div { dt { "Made" } dd { (time(flow_log.created.at_secs)) " by " (seen(&flow_log.created.by)) } }
            @if flow_log.modified != flow_log.created {
                div { dt { "Changed" } dd { (time(flow_log.modified.at_secs)) " by " (seen(&flow_log.modified.by)) } }
            }
        }
    }
}

fn interface(capture: &RuleStatus) -> Markup {
    let RuleStatus { counts, delivery, .. } = capture;
    html! {
        h3 { "Interface " @if capture.interface.is_empty() { "-" } @else { (seen(&capture.interface)) } }
        dl.facts {
            div { dt { "Capture" } dd {
                (attached(&capture.capture)) @if let Some(secs) = capture.since_secs { ", since " (time(secs)) }
            } }
            @if capture.window_start > 0 {
                div { dt { "Open window" } dd { "since " (time(capture.window_start)) ", " (count(capture.flows as u64)) " flows" } }
            }
            div { dt { "Accepted" } dd { (count(counts.accepted_packets)) " packets" } }
            div { dt { "Rejected" } dd { (count(counts.rejected_packets)) " packets" } }
            div { dt { "Lost" } dd { (count(counts.lost_packets)) " packets" } }
            @if counts.xdp_dropped_packets + counts.xdp_forwarded_packets > 0 {
                div { dt { "Taken by somebody else's XDP" }
                    dd { (count(counts.xdp_dropped_packets)) " dropped, " (count(counts.xdp_forwarded_packets)) " forwarded" } }
            }
            div { dt { "Windows" } dd { (count(counts.windows)) " since the agent began" } }
            div { dt { "Delivery" } dd { (delivering(&delivery.state)) } }
            div { dt { "Delivered" } dd { (count(delivery.delivered)) " objects since the agent began" } }
            @if delivery.waiting > 0 {
                div { dt { "Waiting" } dd { (count(delivery.waiting as u64)) " objects, " (bytes(delivery.waiting_bytes)) } }
            }
            @if delivery.quarantined > 0 { div { dt { "Put aside" } dd { (count(delivery.quarantined)) " objects" } } }
            @if let Some(last) = &delivery.last_object {
                div.wide { dt { "Last object" } dd { code { (seen(&last.key)) } ", " (bytes(last.bytes)) ", " (time(last.at_secs)) } }
            }
        }
        @if let Some(books) = &capture.last_window {
            p.books {
                "Books of the last window, " (time(books.start_secs)) " to " (time(books.end_secs)) ": " (books.to_string())
            }
        }
        @if counts.windows > 0 {
            p.quiet {
                "All closed windows since the agent began: " (count(counts.accepted_packets + counts.rejected_packets + counts.lost_packets))
                " packets = " (count(counts.accepted_packets)) " accepted + " (count(counts.rejected_packets)) " rejected + "
                (count(counts.lost_packets)) " lost"
            }
        }
    }
}

fn attached(state: &CaptureState) -> Markup {
    html! {
        @match state {
            CaptureState::Attached { interface, ifindex, netns } => {
                (seen(interface)) ", index " (ifindex)
                @if let Some(netns) = netns { ", in the namespace " (seen(netns)) }
            }
            CaptureState::Waiting { why } => (seen(why)),
            CaptureState::Trouble { why } => { "in trouble: " (seen(why)) },
            CaptureState::Unknown => "not looked for yet",
        }
    }
}

/// How a store is doing.
#[must_use]
pub(super) fn delivering(state: &RouteState) -> Markup {
    let since = |what: &str, since_secs: i64, tries: u64, error: &str| {
        html! { (what) " since " (time(since_secs)) ", " (tries) " tries: " (seen(error)) }
    };
    match state {
        RouteState::Idle => html! { "nothing since the agent began" },
        RouteState::Delivering => html! { "delivering" },
        RouteState::Retrying { since_secs, tries, error } => since("trying again", *since_secs, *tries, error),
        RouteState::Degraded { since_secs, tries, error } => since("failing", *since_secs, *tries, error),
        RouteState::Blocked { since_secs, tries, error } => since("blocked", *since_secs, *tries, error),
    }
}

/// What the chart shows, for whoever does not see it.
fn totals(traffic: &Traffic) -> Markup {
    let most = |of: &[f64]| of.iter().copied().fold(0.0, f64::max);
    html! {
        "at most " (format!("{:.1}", most(&traffic.accepted))) " accepted, " (format!("{:.1}", most(&traffic.rejected))) " rejected, "
        (format!("{:.1}", most(&traffic.lost))) " lost"
    }
}

/// GET of what changes.
pub(super) async fn renewed(State(console): State<Console>, visitor: Visitor, Id(id): Id) -> Page {
    let reader = &console.app.control.reader;
    let summary = reader.summary(reader.flow_log(&visitor.caller, FlowLogId(id))?);
    Ok(Html(changing(&summary).into_string()).into_response())
}

/// GET of what the chart draws.
pub(super) async fn history(State(console): State<Console>, visitor: Visitor, Id(id): Id) -> Page {
    let reader = &console.app.control.reader;
    let flow_log = reader.flow_log(&visitor.caller, FlowLogId(id))?;
    Ok(Json(reader.traffic(&flow_log)).into_response())
}
