//! How the node is doing, for its operator: agent, kernel, memory, spool, interfaces, stores, and what is wrong with the inventory.

use std::fs;

use axum::{
    extract::State,
    response::{Html, IntoResponse as _},
};
use flowlog_host::clock;
use flowlog_model::{
    status::{CaptureState, Leaving, RuleStatus},
    xdp,
};
use maud::{Markup, html};

use super::{
    Console, Page, Visitor,
    frame::{self, At},
    summary::delivering,
    words::{bytes, count, duration, seen, time},
};
use crate::{api::error::ApiError, flow_logs::access::Caller};

/// Everybody else learns nothing of the node: not even that there is such a page.
fn for_operator(visitor: &Visitor) -> Result<(), ApiError> {
    if visitor.caller == Caller::Operator { Ok(()) } else { Err(ApiError::not_found("/console/node")) }
}

/// GET of all of it.
pub(super) async fn show(State(console): State<Console>, visitor: Visitor) -> Page {
    for_operator(&visitor)?;
    let content = html! { h1 { "Node " (console.node) } (drawn(&console)) };
    Ok(frame::page(&console, &visitor, At::Node, "Node", &content))
}

/// GET of it as it is now.
pub(super) async fn live(State(console): State<Console>, visitor: Visitor) -> Page {
    for_operator(&visitor)?;
    Ok(Html(drawn(&console).into_string()).into_response())
}

/// Bytes of memory that the agent has now (proc(5), `statm`), if the kernel says so.
fn resident_bytes() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

fn drawn(console: &Console) -> Markup {
    let reader = &console.app.control.reader;
    let status = reader.status();
    let loaded = reader.inventory();
    let uname = rustix::system::uname();
    let flow_logs = reader.flow_logs(&Caller::Operator, |_| true).len();
    html! {
        div #node hx-get="/console/live/node" hx-trigger="every 3s" hx-swap="outerMorph" {
            @for (what, words) in [("Trouble", &status.trouble), ("The spool is full", &status.spool_full)] {
                @if let Some(words) = words { p.problem { strong { (what) } ": " (seen(words)) } }
            }
            @for problem in &loaded.problems { p.problem { strong { "Inventory" } ": " (seen(problem)) } }
            dl.facts {
                div { dt { "flowlog" } dd { (env!("CARGO_PKG_VERSION")) ", process " (status.pid) } }
                div { dt { "Kernel" } dd { (seen(&uname.release().to_string_lossy())) } }
                @if let Some(resident) = resident_bytes() { div { dt { "Memory" } dd { (bytes(resident)) } } }
                div { dt { "Spool" } dd { (bytes(status.spool_bytes)) } }
                div { dt { "Put aside" } dd { (count(status.quarantined as u64)) " objects" } }
                div { dt { "Flow logs" } dd { (count(flow_logs as u64)) } }
                div { dt { "In the inventory" } dd { (count(loaded.inventory.resources.len() as u64)) } }
                div { dt { "As of" } dd { (time(status.written_secs)) } }
            }
            h2 { "Interfaces" }
            @if status.rules.is_empty() { p.quiet { "Nothing is captured." } } @else { (interfaces(&status.rules)) }
            @if !status.leaving.is_empty() { h2 { "Still to be delivered" } (leaving(&status.leaving)) }
        }
    }
}

fn interfaces(rules: &[RuleStatus]) -> Markup {
    let now = clock::now().wall.secs();
    html! {
        div.scroll tabindex="0" role="region" aria-label="Interfaces" {
            table {
                thead { tr {
                    th { "Interface" } th { "Flow log" } th { "Hook" } th { "Flows" } th { "Accepted" } th { "Rejected" } th { "Lost" }
                    th { "Store" } th { "Waiting" } th { "Others there" }
                } }
                tbody {
                    @for r in rules {
                        tr {
                            td { @if r.interface.is_empty() { (seen(&r.interface_id)) } @else { (seen(&r.interface)) } }
                            td {
                                @match r.rule_id {
                                    Some(id) => a href=(format!("/console/flowlogs/{id}")) { (seen(&r.rule)) },
                                    None => { (seen(&r.rule)) " " span.quiet { "(configured)" } },
                                }
                            }
                            td {
                                @match &r.capture {
                                    CaptureState::Attached { ifindex, netns, .. } => {
                                        (seen(&r.hook)) ", index " (ifindex) @if let Some(netns) = netns { " in " (seen(netns)) }
                                    }
                                    other => (seen(other.why().unwrap_or("not looked for yet"))),
                                }
                            }
                            td.number { (count(r.flows as u64)) }
                            td.number { (count(r.counts.accepted_packets)) }
                            td.number { (count(r.counts.rejected_packets)) }
                            td.number { (count(r.counts.lost_packets)) }
                            td { (seen(&r.target)) ": " (delivering(&r.delivery.state)) }
                            td.number {
                                (count(r.delivery.waiting as u64))
                                @if let Some(oldest) = r.delivery.oldest_secs { ", " (duration(now.saturating_sub(oldest).max(0))) }
                            }
                            td { (seen(&others(r))) }
                        }
                    }
                }
            }
        }
    }
}

/// What somebody else has on an interface.
fn others(r: &RuleStatus) -> String {
    let words = [xdp::words(&r.xdp.programs), r.hiding.front_words(), r.hiding.offload_words()];
    let words: Vec<String> = words.into_iter().filter(|w| !w.is_empty()).collect();
    if words.is_empty() { "-".to_owned() } else { words.join("; ") }
}

fn leaving(all: &[Leaving]) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="Still to be delivered" {
            table {
                thead { tr { th { "Folder" } th { "Interface" } th { "Store" } th { "Objects" } th { "Bytes" } } }
                tbody {
                    @for l in all {
                        tr {
                            td { (seen(&l.folder)) } td { (seen(&l.interface_id)) }
                            td { (seen(&l.store)) ": " (delivering(&l.delivery.state)) }
                            td.number { (count(l.delivery.waiting as u64)) } td.number { (bytes(l.delivery.waiting_bytes)) }
                        }
                    }
                }
            }
        }
    }
}
