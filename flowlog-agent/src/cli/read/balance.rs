//! The books of all objects, summed up.

use std::{collections::BTreeMap, process::ExitCode};

use flowlog_model::text::printable;
use flowlog_pipeline::{
    encode::parquet::{BALANCE_KEY, WINDOW_END_KEY, WINDOW_START_KEY},
    window::WrittenBooks,
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

/// Prints the sums; says which objects do not balance.
pub(super) fn run(objects: &[Found], span: Span, unread: &mut Unread) -> anyhow::Result<ExitCode> {
    let mut order: Vec<String> = Vec::new();
    let mut sums: BTreeMap<String, (i128, i128)> = BTreeMap::new();
    let mut differing = Vec::new();
    let (mut count, mut unknown) = (0, 0);
    let add = |read: Option<(String, WrittenBooks)>| {
        let Some((object, books)) = read else { return Ok(()) };
        count += 1;
        for (name, of) in books.entries {
            if !order.contains(&name) {
                order.push(name.clone());
            }
            let sum = sums.entry(name).or_default();
            *sum = (sum.0 + i128::from(of.packets), sum.1 + i128::from(of.bytes));
        }
        match books.difference {
            None => unknown += 1,
            Some((0, 0)) => {}
            Some((packets, bytes)) => differing.push(format!("{object}: {packets} packets, {bytes} bytes")),
        }
        Ok(())
    };
    in_order(objects, |object| read(object, span), add, unread)?;
    if count == 0 && unread.count == 0 {
        return Err(
            Failure::NotThere("there is no Parquet object of that time: nothing was compared".to_owned()).into()
        );
    }
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

/// The books of an object whose window is in a stretch of time, and its name.
fn read(object: &Found, span: Span) -> anyhow::Result<Option<(String, WrittenBooks)>> {
    let metadata = ParquetMetaDataReader::new().parse_and_finish(&Contents::open(object)?)?;
    let meta = metadata.file_metadata();
    let books = entry(meta, BALANCE_KEY)
        .ok_or_else(|| Failure::Wrong("it has no books: flowlog did not write this".to_owned()))?;
    let secs = |key| entry(meta, key).and_then(|text| text.parse::<i64>().ok());
    let (from, to) = (secs(WINDOW_START_KEY).unwrap_or(i64::MIN), secs(WINDOW_END_KEY).unwrap_or(i64::MAX));
    if from >= span.until || to <= span.since {
        return Ok(None);
    }
    let books = WrittenBooks::parse(books).map_err(|e| Failure::Wrong(e.to_string()))?;
    Ok(Some((object.to_string(), books)))
}
