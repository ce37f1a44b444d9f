//! Who did what: for owners and administrators of a contract, and for the node's operator.

use axum::extract::State;
use maud::html;

use super::{
    Console, Page, Visitor,
    frame::{self, At},
    words::{seen, short, time},
};

/// Entries that are shown, the newest first. The API has more.
const SHOWN: usize = 200;

/// GET of the last entries.
pub(super) async fn show(State(console): State<Console>, visitor: Visitor) -> Page {
    let entries = console.app.control.reader.audit(&visitor.caller, SHOWN).await?;
    let is_operator = visitor.caller.contract().is_none();
    let content = html! {
        h1 { "Audit log" }
        @if entries.is_empty() { p { "Nothing has been changed yet." } } @else {
            p.quiet { "The last " (entries.len()) " changes, the newest first." }
            div.scroll tabindex="0" role="region" aria-label="Changes" {
                table {
                    thead { tr { th { "When" } th { "Who" } @if is_operator { th { "Contract" } } th { "Flow log" } th { "What" } } }
                    tbody {
                        @for entry in &entries {
                            tr {
                                td { (time(entry.stamp.at_secs)) }
                                td { (seen(&entry.stamp.by)) }
                                @if is_operator { td { (entry.contract) } }
                                td { a href=(format!("/console/flowlogs/{}", entry.flow_log)) title=(entry.flow_log) { (short(entry.flow_log.0)) } }
                                td { (seen(&entry.what)) }
                            }
                        }
                    }
                }
            }
        }
    };
    Ok(frame::page(&console, &visitor, At::Audit, "Audit log", &content))
}
