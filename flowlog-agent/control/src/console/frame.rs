//! What all pages have: head, the tree, what there is to do, and who is here.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{Html, IntoResponse as _, Response},
};
use maud::{DOCTYPE, Markup, html};
use uuid::Uuid;

use super::{Console, Visitor, assets::url, door::FORM_TOKEN, session::Door, tree, words::seen};
use crate::{
    api::error::ApiError,
    flow_logs::{
        access::{Access, Operation},
        flow_log::State,
    },
};

/// How htmx behaves: it makes no code of text, keeps no pages, and leaves a page as it is where an answer is an error.
const HTMX: &str = r#"{"history":false,"includeIndicatorCSS":false,"noSwap":[204,304,"4xx","5xx"],"morphIgnore":["data-htmx-powered","open"],"defaultTimeout":30000}"#;

fn document(title: &str, body: &Markup) -> Html<String> {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="htmx-config" content=(HTMX);
                title { (title) " · flowlog" }
                link rel="icon" href=(url("icon.svg")) type="image/svg+xml";
                link rel="stylesheet" href=(url("uPlot.min.css"));
                link rel="stylesheet" href=(url("console.css"));
                script defer src=(url("htmx.min.js")) {}
                script defer src=(url("uPlot.iife.min.js")) {}
                script defer src=(url("console.js")) {}
            }
            (body)
        }
    };
    Html(page.into_string())
}

/// A page without the tree: for whoever is not known yet.
pub(super) fn bare(title: &str, content: &Markup) -> Html<String> {
    document(title, &html! { body.bare { (content) } })
}

/// Where in the console somebody is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    Overview,
    Resource(Uuid),
    Provision,
    Audit,
    Node,
}

/// A page with all of it.
#[must_use]
pub(super) fn page(console: &Console, visitor: &Visitor, at: At, title: &str, content: &Markup) -> Response {
    searched(console, visitor, (at, ""), title, content)
}

/// The same, with no more in the tree than is searched for.
#[must_use]
pub(super) fn searched(
    console: &Console,
    visitor: &Visitor,
    (at, search): (At, &str),
    title: &str,
    content: &Markup,
) -> Response {
    let resource = match at {
        At::Resource(id) => Some(id),
        _ => None,
    };
    let tree = tree::drawn(console, visitor, resource, search);
    let body = html! {
        body {
            a.skip href="#main" { "Skip to content" }
            (header(console, visitor, (at, search)))
            p.lost #lost role="status" hidden { "The connection to the node is lost; trying again." }
            div.layout {
                nav.side aria-label="What is on this node" {
                    (tree)
                }
                main #main tabindex="-1" { (content) }
            }
        }
    };
    document(title, &body).into_response()
}

fn header(console: &Console, visitor: &Visitor, (at, search): (At, &str)) -> Markup {
    let caller = &visitor.caller;
    let current = |here: At| (at == here).then_some("page");
    let may_audit = caller.contract().is_none_or(|c| caller.may(Operation::Audit, c) == Access::Granted);
    html! {
        header.top {
            a.brand href="/" aria-current=[current(At::Overview)] { "flowlog" }
            span.node { (console.node) }
            form.search role="search" action="/" method="get" {
                label.hidden for="search" { "Search" }
                input #search type="search" name="q" value=(search) placeholder="Search  /" autocomplete="off" spellcheck="false"
                    hx-get="/console/live/tree" hx-trigger="input changed delay:150ms" hx-target="#tree" hx-swap="outerMorph"
                    hx-include="#tree-at";
            }
            nav.pages aria-label="Pages" {
                (drafts(console, visitor, at))
                @if may_audit { a href="/console/audit" aria-current=[current(At::Audit)] { "Audit log" } }
                @if caller.contract().is_none() { a href="/console/node" aria-current=[current(At::Node)] { "Node" } }
            }
            div.who {
                span { (seen(caller.name())) }
                @if let Some(contract) = caller.contract() { span.quiet { "contract " (contract) } }
                @if visitor.door == Door::Password {
                    form method="post" action="/console/logout" {
                        (token(visitor))
                        button type="submit" { "Log out" }
                    }
                }
            }
        }
    }
}

/// How many drafts there are, and the way to what becomes of them.
#[must_use]
pub(super) fn drafts(console: &Console, visitor: &Visitor, at: At) -> Markup {
    let is_draft = |s: State| matches!(s, State::Draft | State::Validated);
    let drafts = console.app.control.reader.flow_logs(&visitor.caller, |f| is_draft(f.state)).len();
    let words = match drafts {
        0 => "No drafts".to_owned(),
        1 => "1 draft".to_owned(),
        n => format!("{n} drafts"),
    };
    html! {
        span #drafts {
            span.quiet { (words) }
            " "
            a.button.primary[drafts > 0] href="/console/provision" aria-current=[(at == At::Provision).then_some("page")] {
                "Provision changes"
            }
        }
    }
}

/// What each form has.
#[must_use]
pub(super) fn token(visitor: &Visitor) -> Markup {
    html! { input type="hidden" name=(FORM_TOKEN) value=(visitor.form_token); }
}

/// A page that says what is wrong.
#[must_use]
pub(super) fn trouble(error: &ApiError) -> Response {
    let (status, messages, retry) = error.told();
    let title = match status {
        StatusCode::NOT_FOUND => "There is no such thing here",
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => "Not allowed",
        StatusCode::TOO_MANY_REQUESTS => "Too many requests",
        StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED => "Something has changed meanwhile",
        _ => "That did not work",
    };
    let content = html! {
        main.trouble #main {
            h1 { (title) }
            @for message in messages { p { (seen(message)) } }
            p { a href="/" { "To the overview" } }
        }
    };
    let mut response = (status, bare(title, &content)).into_response();
    if let Some(secs) = retry {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(secs));
    }
    response
}
