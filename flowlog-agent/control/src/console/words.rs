//! Values as people read them.

use std::borrow::Cow;

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

/// A length of time, to one unit.
#[must_use]
pub(super) fn duration(secs: i64) -> String {
    match secs {
        ..=119 => format!("{secs} s"),
        120..=7_199 => format!("{} min", secs / 60),
        7_200..=172_799 => format!("{} h", secs / 3_600),
        _ => format!("{} d", secs / 86_400),
    }
}

/// A number with its thousands apart.
#[must_use]
pub(super) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes, to three digits.
#[must_use]
pub(super) fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut whole = n;
    let mut rest = 0;
    let mut unit = 0;
    while whole >= 1_024 && unit + 1 < units.len() {
        rest = whole % 1_024;
        whole /= 1_024;
        unit += 1;
    }
    let tenth = rest * 10 / 1_024;
    if unit > 0 && whole < 10 { format!("{whole}.{tenth} {}", units[unit]) } else { format!("{whole} {}", units[unit]) }
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
    fn numbers_bytes_and_times_are_as_people_read_them() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0, 1_023, 1_024, 1_536, 20 << 20].map(bytes), ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "20 MiB"]);
        assert_eq!([5, 119, 120, 7_200, 200_000].map(duration), ["5 s", "119 s", "2 min", "2 h", "2 d"]);
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
