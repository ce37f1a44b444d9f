//! `flowlog read`: delivered objects as a table a person can read.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use arrow::{
    array::{Array as _, AsArray as _, RecordBatch},
    datatypes::{Int32Type, Int64Type},
};
use flowlog_model::text::printable;
use flowlog_pipeline::{
    encode::{parquet::BALANCE_KEY, schema::ColumnId},
    window::balance_names as names,
};
use jiff::Timestamp;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{exit::Failure, out::say};

pub(super) fn run(paths: &[PathBuf], rows_max: usize) -> anyhow::Result<ExitCode> {
    let mut files = Vec::new();
    for path in paths {
        find(path, &mut files)?;
    }
    files.sort();
    for file in &files {
        for line in table(file, rows_max)? {
            // Whoever wrote the file may have written anything into it.
            say!("{}", printable(&line))?;
        }
    }
    say!("{} objects", files.len())?;
    Ok(ExitCode::SUCCESS)
}

fn find(path: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let meta = fs::metadata(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    if meta.is_file() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path).with_context(|| format!("cannot list `{}`", path.display()))? {
        let entry = entry?.path();
        if entry.is_dir() || entry.extension().is_some_and(|e| e == "parquet") {
            find(&entry, files)?;
        }
    }
    Ok(())
}

/// The lines that show a file.
fn table(file: &Path, rows_max: usize) -> anyhow::Result<Vec<String>> {
    let named = || format!("cannot read `{}`", file.display());
    let reader =
        ParquetRecordBatchReaderBuilder::try_new(fs::File::open(file).with_context(named)?).with_context(named)?;
    let meta = reader.metadata().file_metadata();
    let total = meta.num_rows();
    let balance = meta
        .key_value_metadata()
        .and_then(|kv| kv.iter().find(|p| p.key == BALANCE_KEY))
        .and_then(|p| p.value.clone())
        .unwrap_or_default();
    let mut lines = vec![String::new(), format!("{}  ({total} rows)", file.display())];
    lines.push(format!(
        "  {:<8} {:<8} {:<7} {:<6} {:<22} {:<22} {:>8} {:>11} {:<10} {}",
        "START", "STATUS", "DIR", "PROTO", "SOURCE", "DESTINATION", "PACKETS", "BYTES", "ACTION", "REASON"
    ));
    let mut left = if rows_max == 0 { usize::MAX } else { rows_max };
    for batch in reader.build().with_context(named)? {
        let batch = batch.with_context(named)?;
        for row in 0..batch.num_rows().min(left) {
            lines.push(line(&batch, row).with_context(named)?);
        }
        left -= batch.num_rows().min(left);
    }
    let shown = if rows_max == 0 { usize::MAX } else { rows_max };
    if usize::try_from(total).unwrap_or(0) > shown {
        lines.push(format!("  … {} more", usize::try_from(total).unwrap_or(0) - shown));
    }
    lines.push(format!("  {}", conservation(&balance)));
    Ok(lines)
}

/// The books of the window as one equation, in packets.
fn conservation(balance: &str) -> String {
    let of = |wanted: &str| {
        let pair = balance.split_whitespace().find_map(|p| p.split_once('=').filter(|(name, _)| *name == wanted));
        pair.and_then(|(_, counts)| counts.split_once('/')).map_or("?", |(packets, _)| packets)
    };
    format!(
        "conservation: {} seen - {} not IP + {} refused before a hook = {} accepted + {} rejected + {} lost (difference {})",
        of(names::SEEN),
        of(names::NON_IP),
        of(names::REFUSED_UNSEEN),
        of(names::ACCEPTED_ROWS),
        of(names::REJECTED_ROWS),
        of(names::LOST),
        of(names::DIFFERENCE),
    )
}

fn line(batch: &RecordBatch, row: usize) -> anyhow::Result<String> {
    let wrong = |id: ColumnId, what: &str| {
        Failure::Wrong(format!("column `{}` is {what}: flowlog did not write this", id.name()))
    };
    let column = |id: ColumnId| batch.column_by_name(id.name()).ok_or_else(|| wrong(id, "missing"));
    let text = |id: ColumnId| -> anyhow::Result<String> {
        let c = column(id)?.as_string_opt::<i32>().ok_or_else(|| wrong(id, "not text"))?;
        Ok(if c.is_null(row) { "-".to_owned() } else { c.value(row).to_owned() })
    };
    let small = |id: ColumnId| -> anyhow::Result<Option<i32>> {
        let c = column(id)?.as_primitive_opt::<Int32Type>().ok_or_else(|| wrong(id, "not int32"))?;
        Ok((!c.is_null(row)).then(|| c.value(row)))
    };
    let big = |id: ColumnId| -> anyhow::Result<Option<i64>> {
        let c = column(id)?.as_primitive_opt::<Int64Type>().ok_or_else(|| wrong(id, "not int64"))?;
        Ok((!c.is_null(row)).then(|| c.value(row)))
    };
    let number = |n: Option<i64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let start = Timestamp::from_second(big(ColumnId::Start)?.unwrap_or(0)).map(|t| t.strftime("%H:%M:%S").to_string());
    let protocol = small(ColumnId::Protocol)?;
    let end = |address: String, port: Option<i32>| match port {
        Some(p) if matches!(protocol, Some(6 | 17 | 132)) => format!("{address}:{p}"),
        _ => address,
    };
    // The other side of an address translation.
    let told = match [text(ColumnId::PktSrcAddr)?, text(ColumnId::PktDstAddr)?] {
        [source, destination] if source == "-" && destination == "-" => String::new(),
        [source, destination] => {
            let (source, destination) =
                (end(source, small(ColumnId::PktSrcPort)?), end(destination, small(ColumnId::PktDstPort)?));
            format!("told {source} > {destination}")
        }
    };
    let protocol_name = match (protocol, small(ColumnId::IcmpType)?) {
        (Some(6), _) => "tcp".to_owned(),
        (Some(17), _) => "udp".to_owned(),
        (Some(1 | 58), Some(kind)) => format!("icmp/{kind}"),
        (other, _) => number(other.map(i64::from)),
    };
    let reason = match (text(ColumnId::RejectReason)?, text(ColumnId::SkipReason)?) {
        (r, s) if r == "-" => s,
        (r, _) => r,
    };
    Ok(format!(
        "  {:<8} {:<8} {:<7} {:<6} {:<22} {:<22} {:>8} {:>11} {:<10} {}",
        start.unwrap_or_default(),
        text(ColumnId::LogStatus)?,
        text(ColumnId::FlowDirection)?,
        protocol_name,
        end(text(ColumnId::SrcAddr)?, small(ColumnId::SrcPort)?),
        end(text(ColumnId::DstAddr)?, small(ColumnId::DstPort)?),
        number(big(ColumnId::Packets)?),
        number(big(ColumnId::Bytes)?),
        text(ColumnId::Action)?,
        [reason.trim_start_matches('-'), &told].join(" ").trim()
    ))
}
