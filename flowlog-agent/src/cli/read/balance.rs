//! The books of all objects, summed up.

use std::{collections::BTreeMap, process::ExitCode};

use flowlog_model::text::printable;
use flowlog_pipeline::{
    encode::parquet::{BALANCE_KEY, WINDOW_END_KEY, WINDOW_START_KEY},
    window::balance_names::DIFFERENCE,
};
use parquet::file::metadata::ParquetMetaDataReader;

use super::{
    super::{
        exit::Failure,
        out::{self, say},
        table::{Column, Table, cells},
    },
    Unread,
    contents::Contents,
    filter::Span,
    in_order,
    places::Found,
    table::entry,
};

/// What the command says with its exit code: something does not balance.
const DIFFERS: u8 = 1;

/// The books of one object: its entries, packets and bytes, in their order.
struct Books {
    object: String,
    entries: Vec<(String, (i128, i128))>,
    /// `None`: its programs' counts went down with the host.
    difference: Option<(i128, i128)>,
}

/// Prints the sums; says which objects do not balance.
pub(super) fn run(objects: &[Found], span: Span, unread: &mut Unread) -> anyhow::Result<ExitCode> {
    let mut order: Vec<String> = Vec::new();
    let mut sums: BTreeMap<String, (i128, i128)> = BTreeMap::new();
    let mut differing = Vec::new();
    let (mut count, mut unknown) = (0, 0);
    let add = |books: Option<Books>| {
        let Some(books) = books else { return Ok(()) };
        count += 1;
        for (name, (packets, bytes)) in books.entries {
            if !order.contains(&name) {
                order.push(name.clone());
            }
            let sum = sums.entry(name).or_default();
            *sum = (sum.0 + packets, sum.1 + bytes);
        }
        match books.difference {
            None => unknown += 1,
            Some((0, 0)) => {}
            Some((packets, bytes)) => differing.push(format!("{}: {packets} packets, {bytes} bytes", books.object)),
        }
        Ok(())
    };
    in_order(objects, |object| read(object, span), add, unread)?;
    let mut table = Table::new(&[Column::whole("ENTRY"), Column::number("PACKETS"), Column::number("BYTES")]);
    for name in &order {
        let (packets, bytes) = sums.get(name).copied().unwrap_or_default();
        table.row(cells![name, packets, bytes]);
    }
    out::text(&table.lines())?;
    let of_unknown = if unknown == 0 { String::new() } else { format!(", {unknown} with nothing to compare with") };
    say!("{count} objects, {} that do not balance{of_unknown}", differing.len())?;
    for object in &differing {
        say!("{}", printable(object))?;
    }
    Ok(if differing.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(DIFFERS) })
}

/// The books of an object whose window is in a stretch of time.
fn read(object: &Found, span: Span) -> anyhow::Result<Option<Books>> {
    let metadata = ParquetMetaDataReader::new().parse_and_finish(&Contents::open(object)?)?;
    let meta = metadata.file_metadata();
    let books = entry(meta, BALANCE_KEY)
        .ok_or_else(|| Failure::Wrong("it has no books: flowlog did not write this".to_owned()))?;
    let secs = |key| entry(meta, key).and_then(|text| text.parse::<i64>().ok());
    let (from, to) = (secs(WINDOW_START_KEY).unwrap_or(i64::MIN), secs(WINDOW_END_KEY).unwrap_or(i64::MAX));
    if from >= span.until || to <= span.since {
        return Ok(None);
    }
    let mut entries = Vec::new();
    let mut difference = None;
    for (name, counts) in books.split_whitespace().filter_map(|pair| pair.split_once('=')) {
        let pair = counts.split_once('/').and_then(|(p, b)| Some((p.parse().ok()?, b.parse().ok()?)));
        if name == DIFFERENCE {
            difference = pair;
        } else {
            let pair = pair.ok_or_else(|| Failure::Wrong(format!("`{name}` in its books is no count")))?;
            entries.push((name.to_owned(), pair));
        }
    }
    Ok(Some(Books { object: object.to_string(), entries, difference }))
}
