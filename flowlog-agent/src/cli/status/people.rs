//! The status as people read it: a line for each rule and interface, and below what there is to say of some.

use std::fmt::Write as _;

use flowlog_control::api::model::date;
use flowlog_model::{
    amount::{bytes, count, duration},
    figures::{CaptureLook, Look},
    hiding::Hiding,
    status::{CaptureState, Counts, Leaving, RouteState, RuleStatus, Status, XdpStatus},
    text::printable,
    xdp::{XdpLevel, XdpView, words},
};
use serde::Serialize;

use crate::cli::table::{Cell, Colour, Column, Table, cells, fitted, has_colours};

/// What there is to show.
pub(super) struct Shown<'a> {
    pub(super) status: &'a Status,
    pub(super) is_running: bool,
    /// What is counted at this moment, if the agent says so.
    pub(super) look: Option<&'a Look>,
    /// What was counted when it was looked last.
    pub(super) before: Option<&'a Look>,
    pub(super) now_secs: i64,
    /// Whether everything is wanted that is known of each.
    pub(super) is_long: bool,
}

const DIRECTION: &str = "DIRECTION";
const ACTION: &str = "ACTION";
const WAITING: &str = "WAITING";
const LAST_OBJECT: &str = "LAST OBJECT";
const WINDOW: &str = "WINDOW";
const COLUMNS: [Column; 12] = [
    Column::cut("RULE"),
    // Names whole; an id, which is there instead while there is no interface, is below as well.
    Column::cut("INTERFACE").at_least(15),
    Column::whole(DIRECTION).sooner(2),
    Column::whole(ACTION).sooner(3),
    Column::whole("STATE"),
    Column::number("PACKETS/s"),
    Column::number("ACCEPTED"),
    Column::number("REJECTED"),
    Column::number("LOST"),
    Column::number(WAITING).spare(),
    Column::cut(LAST_OBJECT).spare(),
    Column::cut(WINDOW).sooner(4),
];

impl Shown<'_> {
    pub(super) fn text(&self) -> String {
        self.text_of_width(None)
    }

    /// In lines of so many characters; `None`: as standard output is.
    fn text_of_width(&self, width: Option<u16>) -> String {
        let out = self.head();
        let mut table = Table::of_width(&COLUMNS, width, has_colours());
        let mut rules: Vec<&RuleStatus> = self.status.rules.iter().collect();
        rules.sort_by(|a, b| (&a.rule, place(a)).cmp(&(&b.rule, place(b))));
        for of in &rules {
            table.row(self.row(of));
        }
        for Leaving { folder, interface_id, delivery, .. } in &self.status.leaving {
            let what = "has ended; the rest is being delivered";
            table.row(cells![
                folder,
                interface_id,
                "-",
                "-",
                "leaving",
                "-",
                "-",
                "-",
                "-",
                delivery.waiting,
                what,
                "-"
            ]);
        }
        let (lines, left_out) = table.lines_and_left_out();
        let mut out = fitted(&harmless(&out), width) + &lines;
        let before = out.len();
        // Writing to a String cannot fail.
        for of in rules {
            for words in self.left_out_words(of, &left_out).into_iter().chain(self.below(of)) {
                let _ = writeln!(out, "{} on {}: {words}", of.rule, place(of));
            }
        }
        for Leaving { folder, interface_id, delivery, .. } in &self.status.leaving {
            if let Some(words) = delivery.state.error() {
                let _ = writeln!(out, "{folder} of {interface_id}: {words}");
            }
        }
        if self.is_running && self.look.is_none() && self.status.stopping.is_none() && !self.status.rules.is_empty() {
            out += "packets are those of closed windows: this user cannot ask the agent, or it does not answer\n";
        }
        let below = fitted(&harmless(&out.split_off(before)), width);
        out + &below
    }

    /// The agent itself.
    fn head(&self) -> String {
        let Status { pid, trouble, spool_full, rules, quarantined, stopping, .. } = self.status;
        let mut out = match stopping.as_ref().filter(|_| self.is_running) {
            Some(words) => format!("stopping (process {pid}): {words}\n"),
            None if self.is_running => format!("running (process {pid})\n"),
            None => "not running; as of its end:\n".to_owned(),
        };
        for (what, words) in [("trouble", trouble), ("spool is full", spool_full)] {
            if let Some(words) = words {
                let _ = writeln!(out, "{what}: {words}");
            }
        }
        for words in &self.status.sources {
            let _ = writeln!(out, "{words}");
        }
        let sum = |count: fn(&RuleStatus) -> u64| rules.iter().map(count).sum::<u64>();
        for (what, windows) in [
            (
                "windows put aside in `quarantine`, because they could not be spooled",
                sum(|r| r.counts.windows_put_aside),
            ),
            ("windows that could not be encoded", sum(|r| r.counts.windows_without_object)),
            ("objects are in `quarantine` of the state directory: somebody must look at them", *quarantined as u64),
        ] {
            if windows > 0 {
                let _ = writeln!(out, "{windows} {what}");
            }
        }
        out
    }

    fn row(&self, of: &RuleStatus) -> Vec<Cell> {
        let RuleStatus { rule, direction, action, counts, delivery, .. } = of;
        let look = self.look.and_then(|look| look.find(of));
        let [accepted, rejected] = match look {
            Some(look) => [look.accepted_packets, look.rejected_packets],
            None => [counts.accepted_packets, counts.rejected_packets],
        };
        let rate = look.and_then(|now| self.rate(of, now)).map_or_else(|| "-".to_owned(), count);
        let window = self.window_words(of);
        let last = delivery.last_object.as_ref().map(|last| {
            let ago = duration(self.now_secs.saturating_sub(last.at_secs).max(0));
            format!("{ago} ago, {}", bytes(last.bytes))
        });
        let mut row = cells![rule, place(of), direction, action];
        row.push(state(of));
        row.extend(cells![rate, count(accepted), count(rejected), count(counts.lost_packets), delivery.waiting]);
        row.extend([last, window].map(|words| Cell::from(words.as_deref().unwrap_or("-"))));
        row
    }

    /// How old its window is, and when it ends, if somebody says so.
    fn window_words(&self, of: &RuleStatus) -> Option<String> {
        let look = self.look.filter(|_| self.is_running)?.find(of)?;
        let age = duration(self.now_secs.saturating_sub(look.window_opened_secs).max(0));
        Some(format!("{age}, ends in {}", duration(look.window_end_secs.saturating_sub(self.now_secs).max(0))))
    }

    /// What a table had no room for, as a line below it.
    fn left_out_words(&self, of: &RuleStatus, left_out: &[&str]) -> Option<String> {
        let words = |heading| match heading {
            DIRECTION => Some(of.direction.clone()),
            ACTION => Some(of.action.clone()),
            WAITING => waiting_words(of),
            // That is below anyhow, if everything is.
            LAST_OBJECT if !self.is_long => last_object_words(of, self.now_secs),
            WINDOW => self.window_words(of).map(|words| format!("window {words}")),
            _ => None,
        };
        let said: Vec<String> = left_out.iter().filter_map(|heading| words(*heading)).collect();
        (!said.is_empty()).then(|| said.join("; "))
    }

    /// Packets a second: since it was looked last, else in the open window so far.
    fn rate(&self, of: &RuleStatus, now: &CaptureLook) -> Option<u64> {
        let at_ms = self.look?.at_ms;
        let (packets, ms) = match self.before.and_then(|before| Some((before.at_ms, before.find(of)?))) {
            Some((before_ms, before)) => (now.seen_packets.saturating_sub(before.seen_packets), at_ms - before_ms),
            None => (now.window_packets, at_ms - now.window_opened_secs * 1_000),
        };
        let ms = u64::try_from(ms).ok().filter(|ms| *ms > 0)?;
        Some((packets.saturating_mul(1_000) + ms / 2) / ms)
    }

    /// What there is to say of one: trouble, and what else may keep packets from it; of every one, if that is wanted.
    fn below(&self, of: &RuleStatus) -> Vec<String> {
        let RuleStatus { capture, counts, delivery, xdp, hiding, .. } = of;
        let mut all = Vec::new();
        all.extend(capture.why().map(str::to_owned));
        all.extend(delivery.state.error().map(str::to_owned));
        if self.is_long {
            all.extend(progress_words(of, self.now_secs));
            all.extend(delivery.last_object.as_ref().map(|last| format!("last object {}", last.key)));
        } else if of.lag_secs(self.now_secs) > LAG_SECS_SAID {
            all.push(lag_words(of.lag_secs(self.now_secs)));
        }
        all.extend(xdp_words(xdp, counts));
        all.extend(hiding_words(hiding));
        all
    }
}

/// Lines whose words, which others may have written, can do nothing to a terminal.
fn harmless(lines: &str) -> String {
    lines.lines().map(|line| printable(line).into_owned() + "\n").collect()
}

/// An object that waits no longer is on its way.
const LAG_SECS_SAID: i64 = 60;

/// The interface, or its id while there is none.
fn place(of: &RuleStatus) -> &str {
    if of.interface.is_empty() { &of.interface_id } else { &of.interface }
}

/// How it is doing, in a word.
fn state(of: &RuleStatus) -> Cell {
    let RuleStatus { capture, delivery, .. } = of;
    let colour = match (capture, &delivery.state) {
        (CaptureState::Trouble { .. }, _) | (CaptureState::Attached { .. }, RouteState::Blocked { .. }) => Colour::Red,
        (CaptureState::Attached { .. }, RouteState::Idle | RouteState::Delivering) => Colour::Green,
        _ => Colour::Yellow,
    };
    let word = match (capture, &delivery.state) {
        (CaptureState::Attached { .. }, RouteState::Idle) => "capturing".to_owned(),
        (CaptureState::Attached { .. }, route) => tag(route),
        _ => tag(capture),
    };
    Cell::coloured(word, colour)
}

fn lag_words(secs: i64) -> String {
    format!("the oldest object waits for {}", duration(secs))
}

/// How many of its objects wait, if any do.
fn waiting_words(of: &RuleStatus) -> Option<String> {
    match of.delivery.waiting {
        0 => None,
        1 => Some("1 object waits for delivery".to_owned()),
        n => Some(format!("{n} objects wait for delivery")),
    }
}

/// How long ago its last object was delivered, if one was.
fn last_object_words(of: &RuleStatus, now_secs: i64) -> Option<String> {
    let last = of.delivery.last_object.as_ref()?;
    let ago = duration(now_secs.saturating_sub(last.at_secs).max(0));
    Some(format!("last object {ago} ago, {}", bytes(last.bytes)))
}

/// Since when it is captured, what was delivered last, what waits, and what the last window came to.
pub(in crate::cli) fn progress_words(of: &RuleStatus, now_secs: i64) -> Vec<String> {
    let mut parts: Vec<String> =
        of.since_secs.map(|secs| format!("capturing since {}", date(secs))).into_iter().collect();
    parts.push(last_object_words(of, now_secs).unwrap_or_else(|| "no object yet".to_owned()));
    match of.lag_secs(now_secs) {
        0 => {}
        lag => parts.push(lag_words(lag)),
    }
    let window = of.last_window.map(|books| {
        let [start, end] = [books.start_secs, books.end_secs].map(date);
        format!("window {start} to {end}: {books}")
    });
    [Some(parts.join("; ")), window].into_iter().flatten().collect()
}

/// What there is to say about other people's XDP programs; `None`: there are none.
pub(in crate::cli) fn xdp_words(xdp: &XdpStatus, counts: &Counts) -> Option<String> {
    let Counts { xdp_dropped_packets: dropped, xdp_forwarded_packets: forwarded, .. } = counts;
    if xdp.programs.is_empty() && (*dropped, *forwarded) == (0, 0) {
        return None;
    }
    let programs = match words(&xdp.programs) {
        none if none.is_empty() => "gone".to_owned(),
        programs => programs,
    };
    let uncounted = xdp.uncounted.as_ref().map(|why| format!("; {why}")).unwrap_or_default();
    let view = match &xdp.view {
        XdpView { level: XdpLevel::Counters, why: None } => String::new(),
        XdpView { level, why: None } => format!("; seen by `{}`", level.as_str()),
        XdpView { level, why: Some(why) } => format!("; seen by `{}` only: {why}", level.as_str()),
    };
    Some(format!("xdp of somebody else: {programs}; {dropped} packets dropped, {forwarded} forwarded{uncounted}{view}"))
}

/// What there is to say about what else may keep packets from the hooks.
pub(in crate::cli) fn hiding_words(hiding: &Hiding) -> Vec<String> {
    let (front, offload) = (hiding.front_words(), hiding.offload_words());
    let mut all = Vec::new();
    if !front.is_empty() {
        all.push(format!("in front of our hooks: {front}"));
    }
    if !offload.is_empty() {
        all.push(format!("past our hooks: {offload}"));
    }
    all
}

/// The word for a state, as it is in JSON.
fn tag(state: &impl Serialize) -> String {
    let json = serde_json::to_value(state).unwrap_or_default();
    json["state"].as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(at_ms: i64, seen_packets: u64) -> Look {
        let capture = CaptureLook {
            interface_id: "nic-a".to_owned(),
            seen_packets,
            accepted_packets: seen_packets - 7,
            rejected_packets: 7,
            window_packets: 3_000,
            window_opened_secs: 970,
            window_end_secs: 1_600,
            ..CaptureLook::default()
        };
        Look { at_ms, captures: vec![capture] }
    }

    fn status() -> Status {
        let rule = RuleStatus {
            rule: "web".to_owned(),
            interface: "tap0".to_owned(),
            interface_id: "nic-a".to_owned(),
            direction: "bidirectional".to_owned(),
            action: "any".to_owned(),
            capture: CaptureState::Attached { interface: "tap0".to_owned(), ifindex: 3, netns: None },
            ..RuleStatus::default()
        };
        Status { rules: vec![rule], pid: 5, ..Status::default() }
    }

    fn shown(look: Option<&Look>, before: Option<&Look>) -> String {
        Shown { status: &status(), is_running: true, look, before, now_secs: 1_000, is_long: false }.text()
    }

    #[test]
    fn words_of_others_beside_the_table_can_do_nothing_to_a_terminal() {
        let mut status = status();
        status.sources = vec!["`\u{1b}[2J` is not understood".to_owned()];
        status.rules[0].capture = CaptureState::Trouble { why: "\u{1b}]0;x\u{7}".to_owned() };
        let shown =
            Shown { status: &status, is_running: true, look: None, before: None, now_secs: 1_000, is_long: false };
        let text = shown.text();
        assert!(text.contains("\\u{1b}[2J") && text.contains("\\u{1b}]0;x\\u{7}"), "{text}");
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
    }

    #[test]
    fn an_agent_that_is_about_to_end_says_so_as_long_as_it_runs() {
        let status = Status { pid: 5, stopping: Some("delivering".to_owned()), ..Status::default() };
        let of =
            |is_running| Shown { status: &status, is_running, look: None, before: None, now_secs: 0, is_long: false };
        assert!(of(true).text().starts_with("stopping (process 5): delivering\n"));
        assert!(of(false).text().starts_with("not running"));
    }

    #[test]
    fn packets_a_second_are_those_since_the_last_look_and_at_first_those_of_the_open_window() {
        let words =
            |text: &str| text.lines().nth(2).unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
        let now = look(1_000_000, 10_007);
        let first = words(&shown(Some(&now), None));
        assert_eq!(first, "web tap0 bidirectional any capturing 100 10,000 7 0 0 - 30 s, ends in 10 min");
        let second = words(&shown(Some(&now), Some(&look(998_000, 7))));
        assert!(second.contains(" capturing 5,000 10,000 7 "), "{second}");
        // A clock that was put back is no reason to divide by nothing.
        assert!(words(&shown(Some(&now), Some(&look(1_000_000, 7)))).contains(" capturing - "));
        let unasked = shown(None, None);
        assert!(words(&unasked).contains(" capturing - 0 0 ") && unasked.contains("closed windows"), "{unasked}");
    }

    #[test]
    fn what_a_table_has_no_room_for_is_a_line_below_it() {
        let (look, status) = (look(1_000_000, 10_007), status());
        let of = |is_long| Shown {
            status: &status,
            is_running: true,
            look: Some(&look),
            before: None,
            now_secs: 1_000,
            is_long,
        };
        for is_long in [false, true] {
            for width in [40, 60, 80, 100, 200] {
                let text = of(is_long).text_of_width(Some(width));
                assert!(text.lines().all(|line| line.chars().count() <= usize::from(width)), "{width}: {text}");
                let text = text.replace("\n  ", " ");
                for words in ["bidirectional", "any", "capturing", "30 s, ends in 10 min", "10,000"] {
                    assert!(text.contains(words), "{width}: {words}: {text}");
                }
            }
        }
        assert!(
            of(false).text_of_width(Some(80)).contains("web on tap0: bidirectional; any; window 30 s, ends in 10 min"),
            "{}",
            of(false).text_of_width(Some(80))
        );
    }

    #[test]
    fn eighty_columns_show_how_each_is_doing_and_what_waits_however_long_names_and_numbers_are() {
        for (interface, packets, waiting) in [
            ("tap0", 7, 3),
            ("tap0", 1_234_567_890, 0),
            ("tap1234567i0-abc", 1_234_567, 12_345),
            ("tap1234567i0-abc", 123_456_789_012, 1),
        ] {
            let id = "5c1b7c1e-0a55-4e1c-9d2f-0f6f0c5ad001";
            let mut rule = RuleStatus {
                rule: "a-flow-log-of-some-customer".to_owned(),
                interface: interface.to_owned(),
                interface_id: id.to_owned(),
                direction: "bidirectional".to_owned(),
                action: "accepted".to_owned(),
                capture: CaptureState::Attached { interface: interface.to_owned(), ifindex: 3, netns: None },
                ..RuleStatus::default()
            };
            (rule.counts.accepted_packets, rule.counts.rejected_packets) = (packets, packets + 1);
            rule.counts.lost_packets = 2;
            rule.delivery.waiting = waiting;
            rule.delivery.state =
                RouteState::Retrying { since_secs: 900, tries: 3, error: "the store does not answer".to_owned() };
            let status = Status { rules: vec![rule], pid: 5, ..Status::default() };
            let shown =
                Shown { status: &status, is_running: true, look: None, before: None, now_secs: 1_000, is_long: false };
            let text = shown.text_of_width(Some(80));
            assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
            for words in [interface, "a-flow", "retrying", &count(packets), &count(packets + 1), "the store does not"] {
                assert!(text.contains(words), "{words}: {text}");
            }
            let is_column = text.lines().any(|l| l.contains("WAITING") && l.contains("LOST"));
            let is_folded = text.lines().any(|l| l.starts_with("WAITING"));
            let is_below = waiting == 0 || text.contains("for delivery");
            assert!(is_column || is_folded || is_below, "{text}");
            assert!(waiting == 0 || text.contains(&waiting.to_string()), "{text}");
        }
    }
}
