//! What is shown, and what keys change of it. Pure.

use std::{cmp::Reverse, fmt::Write as _};

use flowlog_model::live::{TopCounts, TopEntry, TopReport};

/// What is counted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Tab {
    #[default]
    Interfaces,
    Flows,
    Talkers,
    Reasons,
}

impl Tab {
    pub(super) const ALL: [Self; 4] = [Self::Interfaces, Self::Flows, Self::Talkers, Self::Reasons];

    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Interfaces => "interfaces",
            Self::Flows => "flows",
            Self::Talkers => "talkers",
            Self::Reasons => "reasons",
        }
    }

    /// Above its names, where there is no screen.
    pub(super) fn heading(self) -> &'static str {
        match self {
            Self::Interfaces => "INTERFACES",
            Self::Flows => "FLOWS",
            Self::Talkers => "TALKERS",
            Self::Reasons => "REASONS",
        }
    }

    fn entries(self, report: &TopReport) -> &[TopEntry] {
        match self {
            Self::Interfaces => &report.interfaces,
            Self::Flows => &report.flows,
            Self::Talkers => &report.talkers,
            Self::Reasons => &report.reasons,
        }
    }
}

/// What comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    #[default]
    Packets,
    Bytes,
    Rejected,
}

impl Sort {
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Packets => "packets",
            Self::Bytes => "bytes",
            Self::Rejected => "rejected",
        }
    }

    fn next(self) -> Self {
        match self {
            Self::Packets => Self::Bytes,
            Self::Bytes => Self::Rejected,
            Self::Rejected => Self::Packets,
        }
    }

    fn of(self, counts: &TopCounts) -> u64 {
        match self {
            Self::Packets => counts.packets().max(counts.lost_packets),
            Self::Bytes => counts.bytes(),
            Self::Rejected => counts.rejected_packets,
        }
    }
}

/// A key that is of interest here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Char(char),
    Enter,
    Escape,
    Backspace,
    /// Tab, or an arrow to the right.
    Next,
    /// An arrow to the left.
    Previous,
    /// Ctrl-C.
    Interrupt,
}

/// A line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub name: String,
    pub counts: TopCounts,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct View {
    report: TopReport,
    pub tab: Tab,
    pub sort: Sort,
    /// Only names that hold this are shown.
    pub filter: String,
    /// The filter is being typed.
    pub is_typing: bool,
    /// Reports are not shown: what is on the screen stays.
    pub is_paused: bool,
}

impl View {
    /// A report has come.
    pub(super) fn report(&mut self, report: TopReport) {
        if !self.is_paused {
            self.report = report;
        }
    }

    pub(super) fn shown(&self) -> &TopReport {
        &self.report
    }

    pub(super) fn show(&mut self, tab: Tab, sort: Sort) {
        (self.tab, self.sort) = (tab, sort);
    }

    /// A key has been pressed; `false`: that is the end.
    #[must_use]
    pub(super) fn key(&mut self, key: Key) -> bool {
        if key == Key::Interrupt {
            return false;
        }
        if self.is_typing {
            match key {
                Key::Char(c) => self.filter.push(c),
                Key::Backspace => drop(self.filter.pop()),
                Key::Enter => self.is_typing = false,
                Key::Escape => (self.is_typing, self.filter) = (false, String::new()),
                _ => {}
            }
            return true;
        }
        match key {
            Key::Char('q') => return false,
            Key::Char('/') => self.is_typing = true,
            Key::Char('s') => self.sort = self.sort.next(),
            Key::Char('p' | ' ') => self.is_paused = !self.is_paused,
            Key::Char(digit @ '1'..='4') => {
                let at = digit.to_digit(10).and_then(|n| usize::try_from(n).ok()).unwrap_or(1);
                self.tab = Tab::ALL[at - 1];
            }
            Key::Next => self.step(1),
            Key::Previous => self.step(Tab::ALL.len() - 1),
            Key::Escape => self.filter.clear(),
            _ => {}
        }
        true
    }

    fn step(&mut self, by: usize) {
        let at = Tab::ALL.iter().position(|tab| *tab == self.tab).unwrap_or(0);
        self.tab = Tab::ALL[(at + by) % Tab::ALL.len()];
    }

    /// The lines of the table, the largest first.
    #[must_use]
    pub(super) fn rows(&self) -> Vec<Line> {
        let wanted = self.filter.to_lowercase();
        let line = |entry: &TopEntry| {
            let name = match &entry.label {
                Some(label) => format!("{}  {label}", entry.name),
                None => entry.name.clone(),
            };
            Line { name, counts: entry.counts }
        };
        let lines = self.tab.entries(&self.report).iter().map(line);
        let mut lines: Vec<Line> = lines.filter(|line| line.name.to_lowercase().contains(&wanted)).collect();
        lines.sort_by_key(|line| Reverse(self.sort.of(&line.counts)));
        lines
    }

    /// All of it, in a line.
    #[must_use]
    pub(super) fn summary(&self) -> String {
        let TopReport { time, total, not_told_apart_packets, lost_records, .. } = &self.report;
        let time = time.split('T').nth(1).and_then(|t| t.split('.').next()).unwrap_or("-");
        let mut words = format!(
            "{time}  {} packets/s  {} bytes/s  {} rejected/s  {} lost/s",
            rate(total.packets(), &self.report),
            rate(total.bytes(), &self.report),
            rate(total.rejected_packets, &self.report),
            rate(total.lost_packets, &self.report),
        );
        for (count, what) in [(not_told_apart_packets, "packets not told apart"), (lost_records, "records lost")] {
            if *count > 0 {
                // Writing to a String cannot fail.
                let _ = write!(words, "  {count} {what}");
            }
        }
        words
    }
}

/// Counts a second.
#[must_use]
pub(super) fn rate(count: u64, report: &TopReport) -> String {
    scaled(count.saturating_mul(1_000) / report.interval_ms.max(1))
}

/// A number of four digits at most, with a letter for what it is a thousand times of.
fn scaled(n: u64) -> String {
    let mut unit = 1;
    for letter in ["", "k", "M", "G", "T"] {
        if n / unit < 10_000 {
            return format!("{}{letter}", n / unit);
        }
        unit *= 1_000;
    }
    format!("{n}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, label: Option<&str>, packets: u64, bytes: u64, rejected: u64) -> TopEntry {
        let counts = TopCounts {
            accepted_packets: packets - rejected,
            accepted_bytes: bytes,
            rejected_packets: rejected,
            ..TopCounts::default()
        };
        TopEntry { name: name.to_owned(), label: label.map(str::to_owned), counts }
    }

    fn view() -> View {
        let mut view = View::default();
        view.report(TopReport {
            time: "2026-11-27T14:31:07.1Z".to_owned(),
            interval_ms: 2_000,
            total: entry("", None, 50_000_000, 100, 10).counts,
            interfaces: vec![entry("nic-1", Some("web"), 30, 10, 1), entry("nic-2", None, 20, 90, 9)],
            talkers: vec![entry("10.0.0.1", None, 30, 10, 0)],
            ..TopReport::default()
        });
        view
    }

    fn names(view: &View) -> Vec<String> {
        view.rows().into_iter().map(|line| line.name).collect()
    }

    #[test]
    fn keys_choose_what_is_shown_and_what_comes_first() {
        let mut view = view();
        assert_eq!(names(&view), ["nic-1  web", "nic-2"]);
        assert!(view.key(Key::Char('s')));
        assert_eq!((view.sort, names(&view)), (Sort::Bytes, vec!["nic-2".to_owned(), "nic-1  web".to_owned()]));
        assert!(view.key(Key::Char('3')));
        assert_eq!((view.tab, names(&view)), (Tab::Talkers, vec!["10.0.0.1".to_owned()]));
        assert!(view.key(Key::Next) && view.key(Key::Next) && view.key(Key::Previous));
        assert_eq!(view.tab, Tab::Reasons);
        assert!(!view.key(Key::Char('q')));
    }

    #[test]
    fn a_filter_is_typed_and_its_letters_are_no_keys() {
        let mut view = view();
        for key in [Key::Char('/'), Key::Char('W'), Key::Char('q'), Key::Backspace, Key::Char('e'), Key::Enter] {
            assert!(view.key(key));
        }
        assert_eq!((names(&view), view.is_typing), (vec!["nic-1  web".to_owned()], false));
        assert!(view.key(Key::Escape) && names(&view).len() == 2);
        assert!(view.key(Key::Char('/')) && !view.key(Key::Interrupt));
    }

    #[test]
    fn what_is_paused_stays() {
        let mut view = view();
        assert!(view.key(Key::Char('p')));
        view.report(TopReport::default());
        assert_eq!(names(&view).len(), 2);
        assert_eq!(view.summary(), "14:31:07  25M packets/s  50 bytes/s  5 rejected/s  0 lost/s");
    }

    #[test]
    fn numbers_have_four_digits_at_most() {
        let all = [0, 9_999, 10_000, 9_999_999, 10_000_000, u64::MAX / 1_000_000];
        assert_eq!(all.map(scaled), ["0", "9999", "10k", "9999k", "10M", "18T"]);
    }
}
