//! Drawing on a terminal.

use std::sync::mpsc::{Receiver, TryRecvError};

use flowlog_model::{live::TopReport, text::printable};
use ratatui::{
    DefaultTerminal, Frame,
    layout::{Constraint, Layout},
    style::{Style, Stylize as _},
    text::Line as Words,
    widgets::{Cell, Row, Table, Tabs},
};

use super::{
    KEY_PAUSE,
    keys::Keyboard,
    view::{Tab, View, rate},
};

/// Shows reports until a key, or the last of them, ends it. The terminal is then as it was before.
pub(super) fn show(reports: &Receiver<TopReport>) -> anyhow::Result<()> {
    let mut terminal = ratatui::try_init()?;
    let shown = attend(&mut terminal, reports);
    ratatui::try_restore()?;
    shown
}

fn attend(terminal: &mut DefaultTerminal, reports: &Receiver<TopReport>) -> anyhow::Result<()> {
    let mut view = View::default();
    let keyboard = Keyboard::open()?;
    loop {
        loop {
            match reports.try_recv() {
                Ok(report) => view.report(report),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
        }
        terminal.draw(|frame| draw(frame, &view))?;
        for key in keyboard.wait(KEY_PAUSE)? {
            if !view.key(key) {
                return Ok(());
            }
        }
    }
}

fn draw(frame: &mut Frame<'_>, view: &View) {
    let [top, tabs, body, bottom] =
        Layout::vertical([Constraint::Length(1), Constraint::Length(1), Constraint::Min(0), Constraint::Length(1)])
            .areas(frame.area());
    frame.render_widget(Words::from(view.summary()).bold(), top);
    let titles = (1..).zip(Tab::ALL).map(|(n, tab)| format!("{n} {}", tab.words()));
    let selected = Tab::ALL.iter().position(|tab| *tab == view.tab);
    frame.render_widget(Tabs::new(titles).select(selected), tabs);
    let report = view.shown();
    let rows = view.rows().into_iter().map(|line| {
        let counts = line.counts;
        let numbers = [
            rate(counts.packets(), report),
            rate(counts.bytes(), report),
            rate(counts.rejected_packets, report),
            rate(counts.lost_packets, report),
        ];
        let name = Cell::from(printable(&line.name).into_owned());
        Row::new([name].into_iter().chain(numbers.map(|n| Cell::from(Words::from(n).right_aligned()))))
    });
    let heads = ["packets/s", "bytes/s", "rejected/s", "lost/s"];
    let head = [Cell::from(view.tab.words())]
        .into_iter()
        .chain(heads.map(|head| Cell::from(Words::from(head).right_aligned())));
    let widths = [Constraint::Fill(1)].into_iter().chain([Constraint::Length(10); 4]);
    frame.render_widget(Table::new(rows, widths).header(Row::new(head).style(Style::new().bold())), body);
    frame.render_widget(Words::from(foot(view)).dim(), bottom);
}

fn foot(view: &View) -> String {
    if view.is_typing {
        return format!("show only: {}_   enter: keep, escape: show all", printable(&view.filter));
    }
    let paused = if view.is_paused { "PAUSED  " } else { "" };
    let only = if view.filter.is_empty() { String::new() } else { format!("only `{}`  ", printable(&view.filter)) };
    format!("{paused}{only}by {}  |  1-4, tab: what  s: sort  /: filter  p: pause  q: quit", view.sort.words())
}
