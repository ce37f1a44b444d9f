//! The text that clouds write: 14 columns of version 2, a line each, in gzip. For parsers that know nothing else.

use std::io::{self, Write};

use flate2::{Compression, write::GzEncoder};
use flowlog_model::MonoNs;

use super::{
    ObjectInfo,
    rows::Rows,
    schema::{COLUMNS, RECORD_VERSION},
};
use crate::window::{Addresses, Flow, ipv4, ipv6};

/// Columns of version 2: the first ones, in their order.
pub const COLUMNS_OF_VERSION_2: usize = 14;
/// gzip's own default: 9 takes twice as long for a percent.
const LEVEL: u32 = 6;
/// What stands where there is no value.
const NOTHING: &str = "-";

/// The names of the columns, as clouds have them in a file's first line.
#[must_use]
pub fn header() -> String {
    let names: Vec<String> = COLUMNS.iter().take(COLUMNS_OF_VERSION_2).map(|c| c.name.replace('_', "-")).collect();
    names.join(" ")
}

/// Writes one object. The same rows are the same bytes: there is no time in the head of the file.
///
/// # Errors
/// The compressor's own; none are known in memory.
pub(super) fn write(info: &ObjectInfo, rows: &Rows<'_>) -> io::Result<Vec<u8>> {
    let mut out = GzEncoder::new(Vec::new(), Compression::new(LEVEL));
    writeln!(out, "{}", header())?;
    let account = info.account_id.as_deref().unwrap_or(NOTHING);
    let begin = format!("{RECORD_VERSION} {account} {}", info.interface_id);
    rows.flows().try_for_each(|flow| line(&mut out, info, &begin, &flow))?;
    let (from, to) = (info.span.start_secs, info.span.end_secs);
    // Clouds do not say how many packets they skipped, nor why.
    let mut no_flow = |from, to, status| writeln!(out, "{begin} - - - - - - - {from} {to} - {status}");
    if rows.is_empty() {
        no_flow(from, to, "NODATA")?;
    }
    if rows.skips_packets() {
        no_flow(from, to, "SKIPDATA")?;
    }
    if let Some((from, to)) = info.gap {
        no_flow(from, to, "SKIPDATA")?;
    }
    out.finish()
}

fn line(out: &mut impl Write, info: &ObjectInfo, begin: &str, flow: &Flow) -> io::Result<()> {
    let (sport, dport) = if flow.is_icmp() { (0, 0) } else { (flow.sport, flow.dport) };
    let totals = &flow.totals;
    let secs = |ns| info.span.wall_of_tick(MonoNs(ns)).secs();
    let (start, end) = (secs(totals.first_ns), secs(totals.last_ns));
    let action = if flow.refused { "REJECT" } else { "ACCEPT" };
    match flow.addresses {
        Addresses::V4(src, dst) => write!(out, "{begin} {} {}", ipv4(src), ipv4(dst))?,
        Addresses::V6(src, dst) => write!(out, "{begin} {} {}", ipv6(src), ipv6(dst))?,
    }
    let (packets, bytes) = (totals.packets, totals.bytes);
    writeln!(out, " {sport} {dport} {} {packets} {bytes} {start} {end} {action} OK", flow.proto)
}
