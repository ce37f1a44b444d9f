//! In with a name and a password, and out again. Guesses are counted as those at the API are.

use axum::{
    Extension,
    extract::{Query, Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{AppendHeaders, IntoResponse as _, Redirect, Response},
};
use flowlog_host::clock;
use maud::html;
use serde::Deserialize;

use super::{
    Console, Page, Visitor,
    door::{self, Filled, LOGIN, is_own_path},
    frame,
    session::Door,
};
use crate::api::{Peer, auth};

#[derive(Deserialize)]
pub(super) struct Next {
    #[serde(default)]
    next: String,
}

/// What somebody reads whose browser still has the cookie of a session.
const IS_OVER: &str = "Your session is over. Sessions end after 30 minutes without use, after twelve hours, and when the agent or its \
                       principals begin anew.";

/// GET of the form.
pub(super) async fn show(
    State(console): State<Console>,
    Query(Next { next }): Query<Next>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
) -> Response {
    let peer = peer.map(|Extension(peer)| peer);
    let had_one = door::token(&console.app, (&headers, peer.as_ref())).is_some();
    let words = (had_one && !door::goes_on(&console, &headers, peer.as_ref())).then_some(IS_OVER);
    form(&console, &next, "", words.map(|words| (StatusCode::OK, words)))
}

fn form(console: &Console, next: &str, name: &str, problem: Option<(StatusCode, &str)>) -> Response {
    let content = html! {
        main.login #main {
            h1 { "flowlog" }
            p.quiet { "Flow logs of " (console.node) }
            form method="post" action=(LOGIN) {
                input type="hidden" name="next" value=(next);
                @if let Some((status, words)) = problem {
                    p.problem[!status.is_success()] role="alert" { (words) }
                }
                label for="name" { "Name" }
                input #name name="name" autocomplete="username" required autofocus[name.is_empty()] value=(name);
                label for="password" { "Password" }
                input #password type="password" name="password" autocomplete="current-password" required autofocus[!name.is_empty()];
                button.primary type="submit" { "Log in" }
            }
        }
    };
    let status = problem.map_or(StatusCode::OK, |(status, _)| status);
    (status, frame::bare("Log in", &content)).into_response()
}

/// POST of the form.
pub(super) async fn enter(State(console): State<Console>, request: Request) -> Page {
    let peer = request.extensions().get::<Peer>().cloned();
    let before = door::token(&console.app, (request.headers(), peer.as_ref())).map(str::to_owned);
    let filled = Filled::of_anybody(request).await?;
    let (name, next) = (filled.one("name"), filled.one("next"));
    let app = &console.app;
    let known = auth::by_password(app, door::address(peer.as_ref()), name, filled.one("password")).await;
    let caller = match known {
        Ok(Some(caller)) => caller,
        Ok(None) => {
            let words = "This name and this password do not belong together.";
            return Ok(form(&console, next, name, Some((StatusCode::UNAUTHORIZED, words))));
        }
        Err(error) => {
            let (status, messages, _) = error.told();
            return Ok(form(&console, next, name, Some((status, &messages.join("; ")))));
        }
    };
    if let Some(token) = before {
        console.sessions.end(&token);
    }
    let principals = app.control.reader.principals();
    let (token, _) = console.sessions.begin(caller, Door::Password, &principals, clock::now().mono);
    let cookie = door::cookie(app, peer.as_ref(), &token).map(|c| (header::SET_COOKIE, c));
    let to = if is_own_path(next) { next } else { "/" };
    Ok((AppendHeaders(cookie), Redirect::to(to)).into_response())
}

/// POST: out.
pub(super) async fn leave(State(console): State<Console>, _: Visitor, request: Request) -> Page {
    let peer = request.extensions().get::<Peer>().cloned();
    let token = door::token(&console.app, (request.headers(), peer.as_ref())).map(str::to_owned);
    // Only a form of ours ends a session.
    <Filled as axum::extract::FromRequest<Console>>::from_request(request, &console).await?;
    if let Some(token) = token {
        console.sessions.end(&token);
    }
    let gone = door::cookie(&console.app, peer.as_ref(), "").map(|c| (header::SET_COOKIE, c));
    Ok((AppendHeaders(gone), Redirect::to(LOGIN)).into_response())
}
