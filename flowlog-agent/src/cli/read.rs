//! `flowlog read`: delivered objects, for people and for programs, and their books.
//!
//! * [`places`]: which objects; [`contents`]: their bytes, of files and of buckets;
//! * [`filter`]: which rows; [`values`]: one value as text;
//! * [`table`]: an object as a table; [`lines`]: all objects as CSV, JSON or text; [`balance`]: sums of the books.

mod balance;
mod contents;
mod filter;
mod lines;
mod places;
mod table;
mod values;

use std::{
    panic,
    path::PathBuf,
    process::ExitCode,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use anyhow::Context as _;
use filter::{Conditions, When};
use places::{Found, Places};

use super::{
    exit,
    out::{self, say},
};
use crate::config::{Layers, StoreFlags};

/// Objects that are read at the same time before what they hold is shown.
const BATCH: usize = 512;
/// Larger objects are read by themselves, and shown as they are read.
const LARGE_BYTES: u64 = 1 << 20;
/// Requests to a store at the same time: what takes long is the way.
const REQUESTS: usize = 16;
/// Objects that could not be read are named up to so many: where a whole store fails, one line is as good as a thousand.
const UNREAD_NAMED_MAX: usize = 20;
/// Rows of an object that a table shows if nothing is said.
const TABLE_ROWS: usize = 40;

#[derive(clap::Args)]
#[command(after_help = "\
Conditions are COLUMN OPERATOR VALUE, joined by `and`: = != < <= > >=; addresses also of a network (srcaddr = 10.0.0.0/8). A time is
2026-11-28, 2026-11-28T10:00:00Z, or how long ago: 90s, 15m, 2h, 7d.

Examples:
  flowlog read ./flows
  flowlog read --rows 0 ./flows/flowlog/year=2026
  flowlog read --since 2h --where 'action = REJECT and dstport = 22' ./flows
  flowlog read -o csv --since 2026-11-27 --until 2026-11-28 s3://flows/team-a
  flowlog read --balance ./flows")]
pub(super) struct ReadArgs {
    /// Parquet files, directories to search for them, or `s3://bucket[/prefix]`. What is named twice is read once.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Rows to print of each object; 0 for all. Default: 40 of a table, else all.
    #[arg(long)]
    rows: Option<usize>,
    /// Only rows that begin at this time or later.
    #[arg(long, value_name = "TIME")]
    since: Option<When>,
    /// Only rows that begin before this time.
    #[arg(long, value_name = "TIME")]
    until: Option<When>,
    /// Only rows for which these hold.
    #[arg(long = "where", value_name = "CONDITIONS")]
    conditions: Option<Conditions>,
    /// How rows are printed.
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Print the sums of the books of all objects instead of rows; exit 1 if one of them does not balance.
    #[arg(long, conflicts_with_all = ["output", "rows", "conditions"])]
    balance: bool,
    /// Configuration with the way to the buckets. Flags win over it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    store: StoreFlags,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// A table for each object, with its balance.
    Table,
    /// All columns, with a header.
    Csv,
    /// One object of JSON a line, with the columns that have a value.
    Json,
    /// The 14 columns of version 2, separated by spaces, with a header.
    Text,
}

pub(super) fn run(args: &ReadArgs) -> anyhow::Result<ExitCode> {
    let layers = Layers { file: args.config.clone(), given: args.store.0.clone() };
    let places = Places::new(layers.read()?.raw.s3)?;
    let span = filter::span(args.since, args.until);
    let objects = places.find(&args.paths, span)?;
    let mut unread = Unread::default();
    if args.balance {
        let balance = balance::run(&objects, span, &mut unread)?;
        return unread.end(objects.len()).map(|_all| balance);
    }
    let mut conditions = args.conditions.clone().unwrap_or_default();
    conditions.within(span);
    let most = |default| match args.rows.unwrap_or(default) {
        0 => usize::MAX,
        rows => rows,
    };
    if let Some(shape) = lines::Shape::of(args.output) {
        out::text(shape.header())?;
        show_lines(&objects, &conditions, shape, most(0), &mut unread)?;
    } else {
        let rows_max = most(TABLE_ROWS);
        in_order(&objects, |object| table::lines(object, &conditions, rows_max), |text| out::text(&text), &mut unread)?;
        say!("{} objects", objects.len() - unread.count)?;
    }
    unread.end(objects.len())
}

/// Objects that could not be read: each is said, and the others are read all the same.
#[derive(Default)]
struct Unread {
    count: usize,
    first: Option<anyhow::Error>,
}

impl Unread {
    fn note(&mut self, error: anyhow::Error) {
        self.count += 1;
        // The first is said at the end, if it is the only one; else here, with the next one.
        match self.first.as_ref() {
            None => self.first = Some(error),
            Some(first) => {
                if self.count == 2 {
                    out::note(&exit::words(first));
                }
                if self.count <= UNREAD_NAMED_MAX {
                    out::note(&exit::words(&error));
                }
            }
        }
    }

    /// The end of a command that has looked at so many objects.
    fn end(self, objects: usize) -> anyhow::Result<ExitCode> {
        match self.first {
            None => Ok(ExitCode::SUCCESS),
            Some(error) if self.count == 1 && objects == 1 => Err(error),
            Some(error) => {
                Err(error.context(format!("{} of {objects} objects could not be read, the first", self.count)))
            }
        }
    }
}

/// Small objects several at a time, large ones as they are read.
fn show_lines(
    objects: &[Found],
    conditions: &Conditions,
    shape: lines::Shape,
    rows_max: usize,
    unread: &mut Unread,
) -> anyhow::Result<()> {
    for run in objects.chunk_by(|a, b| a.bytes.max(b.bytes) <= LARGE_BYTES) {
        if let [large] = run
            && large.bytes > LARGE_BYTES
        {
            let mut unshown = Ok(());
            let shown = lines::each(large, conditions, shape, rows_max, &mut |text| {
                unshown = out::text(&text);
                if unshown.is_ok() { Ok(()) } else { Err(anyhow::anyhow!("nobody reads on")) }
            });
            unshown?;
            if let Err(error) = shown {
                unread.note(error.context(format!("cannot read `{large}`")));
            }
            continue;
        }
        let work = |object: &Found| {
            let mut all = String::new();
            lines::each(object, conditions, shape, rows_max, &mut |text| {
                all.push_str(&text);
                Ok(())
            })?;
            Ok(all)
        };
        in_order(run, work, |text| out::text(&text), unread)?;
    }
    Ok(())
}

/// Does something with each object, several at the same time, and hands over what comes of it in the order of the objects. Those with which it
/// cannot be done are noted.
fn in_order<T: Send>(
    objects: &[Found],
    work: impl Fn(&Found) -> anyhow::Result<T> + Sync,
    mut take: impl FnMut(T) -> anyhow::Result<()>,
    unread: &mut Unread,
) -> anyhow::Result<()> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    for batch in objects.chunks(BATCH) {
        let threads = if batch.iter().any(Found::is_remote) { REQUESTS } else { cores };
        let next = AtomicUsize::new(0);
        let mut done: Vec<(usize, anyhow::Result<T>)> = Vec::with_capacity(batch.len());
        thread::scope(|scope| {
            let one = || {
                let mut mine = Vec::new();
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(object) = batch.get(at) else { break mine };
                    let result = work(object).with_context(|| format!("cannot read `{object}`"));
                    mine.push((at, result));
                }
            };
            let workers: Vec<_> = (0..threads.min(batch.len())).map(|_| scope.spawn(one)).collect();
            for worker in workers {
                done.extend(worker.join().unwrap_or_else(|panic| panic::resume_unwind(panic)));
            }
        });
        done.sort_unstable_by_key(|(at, _)| *at);
        for (_, result) in done {
            match result {
                Ok(result) => take(result)?,
                Err(error) => unread.note(error),
            }
        }
    }
    Ok(())
}
