//! `cargo xtask bench lines`: the cache lines that a packet costs, by what they are of. Nothing here is measured: the programs run on an interpreter
//! ([`integration::machine`]), and say the same on any machine.
#![allow(clippy::cast_precision_loss, reason = "counts that are printed")]

use std::collections::BTreeMap;

use integration::{
    machine::LINE_BYTES,
    touched::{CountedAt, hit},
};

use crate::{
    frames::{Ends, Kind, frame},
    report::{Figure, Report, Table},
};

/// Where the kernel puts what it puts anywhere: at multiples of this.
const STEP_BYTES: u64 = 8;
/// Length of the packets: as in [`crate::lab`].
const FRAME_BYTES: usize = 74;
/// Lines that a hit is to touch at most.
const WANTED: f64 = 5.0;

/// Adds a table and a target to the report.
pub(crate) fn run(report: &mut Report) -> anyhow::Result<()> {
    let kinds = [Kind::ALL[0], Kind::ALL[2]];
    let columns: Vec<(CountedAt, Kind)> =
        CountedAt::ALL.into_iter().flat_map(|hook| kinds.map(|kind| (hook, kind))).collect();
    let names: Vec<String> = columns.iter().map(|(hook, kind)| format!("{}, {}", hook.name(), kind.name())).collect();
    let mut rows: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut sums = vec![0.0; columns.len()];
    let mut instructions = Vec::new();
    for (column, (hook, kind)) in columns.iter().enumerate() {
        let (packet, _) = frame(*kind, &Ends::nowhere(), FRAME_BYTES);
        let skews = (0..LINE_BYTES / STEP_BYTES).map(|n| n * STEP_BYTES);
        let places = (LINE_BYTES / STEP_BYTES) as f64;
        for skew in skews {
            let run = hit(*hook, &packet, skew)?;
            for (what, lines) in &run.lines {
                let share = *lines as f64 / places;
                rows.entry(what.clone()).or_insert_with(|| vec![0.0; columns.len()])[column] += share;
                sums[column] += share;
            }
            if skew == 0 {
                instructions.push(run.instructions as f64);
            }
        }
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let note = "Packet, context and stack are left out, and what the kernel's helpers touch. What the kernel may put anywhere counts as \
                the mean of all places.";
    let mut table = Table::new("Cache lines of a hit", "lines, by the map that they are of", note, &names);
    let figures = |values: &[f64]| values.iter().map(|v| Some(Figure::once(*v))).collect::<Vec<_>>();
    for (what, lines) in &rows {
        table.row(what, figures(lines));
    }
    table.row("all", figures(&sums));
    table.row("instructions", figures(&instructions));
    report.table(table);
    report.target("lines: a hit, TC ingress, IPv4", sums[0], "lines", WANTED, true);
    Ok(())
}
