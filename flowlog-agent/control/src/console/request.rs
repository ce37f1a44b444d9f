//! What becomes of a wish that takes time: waiting, being carried out, done, or failed and why.

use axum::{
    extract::State,
    response::{Html, IntoResponse as _},
};
use maud::{Markup, html};
use uuid::Uuid;

use super::{
    Console, Page, Visitor,
    door::Id,
    frame::{self, At},
    words::{seen, short, time},
};
use crate::flow_logs::request::{Progress, Request, Work};

/// Where it is shown.
#[must_use]
pub(super) fn path(id: Uuid) -> String {
    format!("/console/requests/{id}")
}

/// GET of one.
pub(super) async fn show(State(console): State<Console>, visitor: Visitor, Id(id): Id) -> Page {
    let request = console.app.control.reader.request(&visitor.caller, id)?;
    let content = html! {
        h1 { (title(&request.work)) }
        p.quiet { "Asked for by " (seen(&request.asked.by)) ", " (time(request.asked.at_secs)) }
        (drawn(&console, &visitor, &request))
    };
    Ok(frame::page(&console, &visitor, At::Provision, title(&request.work), &content))
}

/// GET of how far it is.
pub(super) async fn live(State(console): State<Console>, visitor: Visitor, Id(id): Id) -> Page {
    let request = console.app.control.reader.request(&visitor.caller, id)?;
    Ok(Html(drawn(&console, &visitor, &request).into_string()).into_response())
}

fn title(work: &Work) -> &'static str {
    match work {
        Work::Provision(_) => "Provisioning",
        Work::Delete(_) => "Deletion",
        Work::Changed(_) => "Change",
    }
}

/// How far it is; asks for itself again until it is over.
fn drawn(console: &Console, visitor: &Visitor, request: &Request) -> Markup {
    let reader = &console.app.control.reader;
    let (class, words) = match request.progress {
        Progress::Queued => ("progress", "Waits for its turn …"),
        Progress::Running => ("progress", "Is being carried out …"),
        Progress::Done => ("progress done", "Done."),
        Progress::Failed => ("progress failed", "Failed: nothing was begun."),
    };
    let is_over = request.progress.is_over();
    let message = reader.message(request);
    html! {
        div #request class=(class) role="status"
            hx-get=[(!is_over).then(|| format!("/console/live/requests/{}", request.id))]
            hx-trigger=[(!is_over).then_some("every 1s")] hx-swap=[(!is_over).then_some("outerMorph")]
        {
            p.outcome { strong { (words) } }
            @if is_over && !message.is_empty() { p.problem[request.progress == Progress::Failed] { (seen(&message)) } }
            ul {
                @for id in request.work.flow_logs() {
                    li {
                        @match reader.flow_log(&visitor.caller, *id) {
                            Ok(f) => a href=(format!("/console/flowlogs/{id}")) { (seen(&f.properties.name)) },
                            Err(_) => span.quiet { "flow log " (short(id.0)) " (gone)" },
                        }
                    }
                }
            }
            @if !is_over { noscript { p { "Reload the page to see how far it is." } } }
        }
    }
}
