//! Values as people read them.

use std::borrow::Cow;

pub(super) use flowlog_model::amount::{bytes, count, duration};
use flowlog_model::text::printable;
use jiff::Timestamp;
use maud::{Markup, html};
use uuid::Uuid;

use crate::{
    flow_logs::{
        flow_log::State,
        summary::{Mark, Summary},
    },
    inventory::Resource,
};

/// How a resource, or its flow log, is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Light {
    /// It has no flow log.
    Grey,
    /// Drafts: one that nobody has checked; one with mistakes; one that can be provisioned.
    Draft,
    Wrong,
    Ready,
    Green,
    Yellow,
    Red,
}

impl Light {
    #[must_use]
    pub(super) fn of(summary: &Summary) -> Self {
        match (summary.flow_log.state, summary.mark) {
            (State::Draft, _) if summary.flow_log.problems.is_empty() => Self::Draft,
            (State::Validated, Mark::Green) => Self::Ready,
            (State::Draft | State::Validated, _) => Self::Wrong,
            (_, Mark::Green) => Self::Green,
            (_, Mark::Yellow) => Self::Yellow,
            (_, Mark::Red) => Self::Red,
        }
    }

    #[must_use]
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Grey => "no flow log",
            Self::Draft => "draft, not checked yet",
            Self::Wrong => "draft with mistakes",
            Self::Ready => "draft, can be provisioned",
            Self::Green => "captured and delivering",
            Self::Yellow => "waiting, or something was lost",
            Self::Red => "in trouble",
        }
    }

    /// As it is drawn. The words are there as well: not everybody sees colours.
    #[must_use]
    pub(super) fn drawn(self) -> Markup {
        let class = match self {
            Self::Grey => "light grey",
            Self::Draft => "light hollow",
            Self::Wrong => "light hollow red",
            Self::Ready => "light hollow green",
            Self::Green => "light green",
            Self::Yellow => "light yellow",
            Self::Red => "light red",
        };
        html! { span class=(class) role="img" aria-label=(self.words()) title=(self.words()) {} }
    }
}

/// Words of somebody else's, fit to be seen. That they are text and no markup is seen to where they are put into a page.
#[must_use]
pub(super) fn seen(words: &str) -> Cow<'_, str> {
    printable(words)
}

/// A point in time: UTC, until a script writes it in the reader's zone.
#[must_use]
pub(super) fn time(secs: i64) -> Markup {
    let Ok(at) = Timestamp::from_second(secs) else { return html! { "-" } };
    let utc = at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string();
    html! { time datetime=(at) title=(utc) { (utc) } }
}

/// As much of an id as tells it from others.
#[must_use]
pub(super) fn short(id: Uuid) -> String {
    let id = id.to_string();
    format!("{}…{}", &id[..4], &id[id.len() - 4..])
}

/// What a resource is called.
#[must_use]
pub(super) fn label(resource: &Resource) -> String {
    if resource.name.is_empty() {
        format!("{} {}", resource.kind, short(resource.id))
    } else {
        seen(&resource.name).into_owned()
    }
}

/// A word of the cloud's API as people write it.
#[must_use]
pub(super) fn said(word: &str) -> String {
    let lower = word.to_ascii_lowercase();
    match lower.as_str() {
        "ingress" => "Ingress".to_owned(),
        "egress" => "Egress".to_owned(),
        "bidirectional" => "Bidirectional".to_owned(),
        "accepted" => "Accepted".to_owned(),
        "rejected" => "Rejected".to_owned(),
        "all" | "any" => "Any".to_owned(),
        _ => seen(word).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_utc_until_a_script_writes_it_in_the_readers_zone() {
        let at = time(0).into_string();
        assert!(
            at.contains("datetime=\"1970-01-01T00:00:00Z\"") && at.contains("title=\"1970-01-01 00:00:00 UTC\""),
            "{at}"
        );
    }

    #[test]
    fn words_of_others_are_text_in_a_page_and_do_nothing() {
        let words = "<script>alert(1)</script>\u{202e}\"'&";
        let page = html! { p title=(seen(words)) { (seen(words)) } }.into_string();
        assert!(!page.contains("<script") && !page.contains('\u{202e}') && page.contains("&lt;script&gt;"), "{page}");
    }
}
