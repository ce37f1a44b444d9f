//! An object as a table that a person can read.

use std::fmt::Write as _;

use flowlog_model::text::printable;
use flowlog_pipeline::{
    encode::{parquet::BALANCE_KEY, schema::ColumnId},
    window::balance_names as names,
};
use jiff::Timestamp;
use parquet::{
    arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder},
    file::metadata::FileMetaData,
};

use super::{contents::Contents, filter::Conditions, places::Found, values::Values};

/// What is shown of a row.
const SHOWN: [ColumnId; 18] = [
    ColumnId::Start,
    ColumnId::LogStatus,
    ColumnId::FlowDirection,
    ColumnId::Protocol,
    ColumnId::IcmpType,
    ColumnId::SrcAddr,
    ColumnId::SrcPort,
    ColumnId::DstAddr,
    ColumnId::DstPort,
    ColumnId::Packets,
    ColumnId::Bytes,
    ColumnId::Action,
    ColumnId::RejectReason,
    ColumnId::SkipReason,
    ColumnId::PktSrcAddr,
    ColumnId::PktSrcPort,
    ColumnId::PktDstAddr,
    ColumnId::PktDstPort,
];

/// The table of an object. Empty if there are conditions that hold for none of its rows.
pub(super) fn lines(object: &Found, conditions: &Conditions, rows_max: usize) -> anyhow::Result<String> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(Contents::open(object)?)?;
    let meta = builder.metadata().file_metadata();
    let total = usize::try_from(meta.num_rows()).unwrap_or(0);
    let balance = entry(meta, BALANCE_KEY).unwrap_or_default().to_owned();
    let schema = meta.schema_descr_ptr();
    let shown = ProjectionMask::columns(&schema, SHOWN.map(ColumnId::name));
    // As many as are shown, and one that says whether there are more.
    let builder = builder.with_projection(shown).with_limit(rows_max.saturating_add(1));
    let Some(builder) = conditions.on(builder) else { return Ok(String::new()) };
    let mut rows = Vec::new();
    for batch in builder.build()? {
        let batch = batch?;
        let cells = Values::all(&batch, SHOWN)?;
        let wanted = batch.num_rows().min(rows_max.saturating_add(1) - rows.len());
        for row in 0..wanted {
            rows.push(line(&cells, row)?);
        }
    }
    if rows.is_empty() && !conditions.is_empty() {
        return Ok(String::new());
    }
    let mut all = format!("\n{}  ({total} rows)\n", printable(&object.to_string()));
    let heading = ["START", "STATUS", "DIR", "PROTO", "SOURCE", "DESTINATION", "PACKETS", "BYTES", "ACTION", "REASON"];
    writeln!(all, "{}", laid_out(heading))?;
    let more = rows.len() > rows_max;
    rows.iter().take(rows_max).try_for_each(|row| writeln!(all, "{row}"))?;
    if more {
        let how_many = if conditions.is_empty() { (total - rows_max).to_string() } else { String::new() };
        writeln!(all, "  … {how_many} more")?;
    }
    writeln!(all, "  {}", printable(&conservation(&balance)))?;
    Ok(all)
}

/// What an object's metadata say under a key.
pub(super) fn entry<'a>(meta: &'a FileMetaData, key: &str) -> Option<&'a str> {
    meta.key_value_metadata()?.iter().find(|pair| pair.key == key)?.value.as_deref()
}

/// The books of the window as one equation, in packets.
fn conservation(balance: &str) -> String {
    let of = |wanted: &str| {
        let pair = balance.split_whitespace().find_map(|p| p.split_once('=').filter(|(name, _)| *name == wanted));
        match pair {
            Some((_, counts)) => counts.split_once('/').map_or("?", |(packets, _)| packets),
            // What is not there is 0, if there is anything.
            None if balance.is_empty() => "?",
            None => "0",
        }
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

fn line(cells: &[Values], row: usize) -> anyhow::Result<String> {
    let of = |id: ColumnId| cells.iter().find(|values| values.id == id);
    let text = |id| anyhow::Ok(of(id).map(|v| v.text(row)).transpose()?.flatten().unwrap_or("-".into()).into_owned());
    let number = |id| anyhow::Ok(of(id).map(|v| v.number(row)).transpose()?.flatten());
    let shown = |n: Option<i64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let start = Timestamp::from_second(number(ColumnId::Start)?.unwrap_or(0));
    let start = start.map(|t| t.strftime("%H:%M:%S").to_string()).unwrap_or_default();
    let protocol = number(ColumnId::Protocol)?;
    let end = |address: String, port: Option<i64>| match port {
        Some(p) if matches!(protocol, Some(6 | 17 | 132)) => format!("{address}:{p}"),
        _ => address,
    };
    // The other side of an address translation.
    let told = match [text(ColumnId::PktSrcAddr)?, text(ColumnId::PktDstAddr)?] {
        [source, destination] if source == "-" && destination == "-" => String::new(),
        [source, destination] => {
            let source = end(source, number(ColumnId::PktSrcPort)?);
            format!("told {source} > {}", end(destination, number(ColumnId::PktDstPort)?))
        }
    };
    let protocol_name = match (protocol, number(ColumnId::IcmpType)?) {
        (Some(6), _) => "tcp".to_owned(),
        (Some(17), _) => "udp".to_owned(),
        (Some(1 | 58), Some(kind)) => format!("icmp/{kind}"),
        (other, _) => shown(other),
    };
    let reason = match (text(ColumnId::RejectReason)?, text(ColumnId::SkipReason)?) {
        (r, s) if r == "-" => s,
        (r, _) => r,
    };
    Ok(laid_out([
        &start,
        &text(ColumnId::LogStatus)?,
        &text(ColumnId::FlowDirection)?,
        &protocol_name,
        &end(text(ColumnId::SrcAddr)?, number(ColumnId::SrcPort)?),
        &end(text(ColumnId::DstAddr)?, number(ColumnId::DstPort)?),
        &shown(number(ColumnId::Packets)?),
        &shown(number(ColumnId::Bytes)?),
        &text(ColumnId::Action)?,
        [reason.trim_start_matches('-'), &told].join(" ").trim(),
    ]))
}

/// Cells in their columns.
fn laid_out([start, status, dir, proto, source, destination, packets, bytes, action, reason]: [&str; 10]) -> String {
    format!(
        "  {start:<8} {status:<8} {dir:<7} {proto:<6} {source:<22} {destination:<22} {packets:>8} {bytes:>11} {action:<10} {reason}"
    )
}
