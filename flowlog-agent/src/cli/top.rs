//! `flowlog top`: the largest interfaces, flows, talkers and drop reasons, as they are now.
//!
//! * [`view`]: what is shown, and what keys change of it; [`screen`]: drawing it on a terminal;
//! * this file: the command, and where the reports come from.

mod keys;
mod screen;
mod view;

use std::{
    io::{IsTerminal as _, stdout},
    ops::ControlFlow,
    process::ExitCode,
    sync::mpsc,
    time::Duration,
};

use anyhow::Context as _;
use flowlog_model::{amount::parse_duration, live::TopReport};
use view::{Sort, Tab, View, rate};

use super::{
    client::SocketArgs,
    observe::{Filter, in_query},
    out,
    status::Output,
    table::{Column, Table, cells},
};

/// Entries of each kind that are asked for: as many as the API gives.
const ENTRIES: &str = "100";
/// Of these, so many are printed of each kind where nobody can scroll.
const PRINTED: usize = 10;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  flowlog top
  flowlog top --interface tap0 --every 10s
  flowlog top --once -o json

Keys: 1 to 4 or tab: what is shown; s: sort by; p: pause; /: search; q: quit.")]
pub(super) struct TopArgs {
    #[command(flatten)]
    socket: SocketArgs,
    /// Print the sums of the open windows, once, and end.
    #[arg(long)]
    once: bool,
    /// Length of each stretch of time: 2, 500ms, 1m.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_duration, conflicts_with = "once")]
    every: Duration,
    /// Form of the reports; on a terminal the table is a screen that keys change.
    #[arg(long, short, value_name = "FORM", default_value = "table")]
    output: Output,
    #[command(flatten)]
    filter: Filter,
}

pub(super) fn run(args: TopArgs) -> anyhow::Result<ExitCode> {
    let TopArgs { socket, once, every, output, filter } = args;
    let mut others = vec![("entries".to_owned(), ENTRIES.to_owned())];
    if !once {
        others.push(("every".to_owned(), in_query(every)));
    }
    let path = filter.path("top", others);
    let client = socket.client();
    if !once && output == Output::Table && stdout().is_terminal() {
        let (sender, reports) = mpsc::channel();
        // It ends with the process: nobody waits for the next report.
        let reading = std::thread::Builder::new().name("reports".to_owned()).spawn(move || {
            client.stream(&path, |line| {
                let report: TopReport = serde_json::from_str(line)?;
                Ok(if sender.send(report).is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
            })
        });
        screen::show(&reports)?;
        let reading = reading.context("cannot start a thread")?;
        // Whoever has no more to say has said why.
        return if reading.is_finished() {
            reading.join().unwrap_or(Ok(())).map(|()| ExitCode::SUCCESS)
        } else {
            Ok(ExitCode::SUCCESS)
        };
    }
    client.stream(&path, |line| {
        match output {
            Output::Json => out::text(&format!("{line}\n"))?,
            Output::Table => out::text(&printed(&serde_json::from_str(line)?))?,
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(ExitCode::SUCCESS)
}

/// A report for people, where there is no screen.
fn printed(report: &TopReport) -> String {
    let mut view = View::default();
    view.report(report.clone());
    let mut out = format!("{}\n", view.summary());
    for tab in Tab::ALL {
        view.show(tab, Sort::Packets);
        let mut table = Table::new(&[
            Column::cut(tab.heading()),
            Column::number("PACKETS/s"),
            Column::number("BYTES/s"),
            Column::number("REJECTED/s"),
            Column::number("PACKETS"),
            Column::number("LOST"),
        ]);
        for row in view.rows().into_iter().take(PRINTED) {
            let [packets, bytes, rejected] =
                [row.counts.packets(), row.counts.bytes(), row.counts.rejected_packets].map(|n| rate(n, report));
            table.row(cells![row.name, packets, bytes, rejected, row.counts.packets(), row.counts.lost_packets]);
        }
        out.push('\n');
        out += &table.lines();
    }
    out.push('\n');
    out
}

/// How long a key is waited for before the screen is drawn again.
const KEY_PAUSE: Duration = Duration::from_millis(100);
