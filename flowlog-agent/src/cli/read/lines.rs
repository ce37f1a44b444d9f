//! Rows as lines for other programs: CSV, JSON, and the text that clouds write.

use std::sync::LazyLock;

use flowlog_pipeline::encode::{
    schema::{COLUMNS, ColumnId},
    text::{COLUMNS_OF_VERSION_2, header as text_header},
};
use parquet::arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder};

use super::{Output, contents::Contents, filter::Conditions, places::Found, values::Values};

/// What lines have where there is no value.
const NOTHING: &str = "-";

/// A form of lines, with its columns.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    Csv,
    Json,
    Text,
}

impl Shape {
    /// That of an output; `None`: it is a table.
    pub(super) fn of(output: Output) -> Option<Self> {
        match output {
            Output::Csv => Some(Self::Csv),
            Output::Text => Some(Self::Text),
            Output::Json => Some(Self::Json),
            Output::Table => None,
        }
    }

    fn columns(self) -> impl Iterator<Item = ColumnId> {
        let count = if matches!(self, Self::Text) { COLUMNS_OF_VERSION_2 } else { COLUMNS.len() };
        COLUMNS.iter().take(count).map(|column| column.id)
    }

    /// The first line.
    pub(super) fn header(self) -> &'static str {
        match self {
            Self::Csv => CSV_HEADER.as_str(),
            Self::Json => "",
            Self::Text => TEXT_HEADER.as_str(),
        }
    }
}

static CSV_HEADER: LazyLock<String> = LazyLock::new(|| {
    let names: Vec<&str> = Shape::Csv.columns().map(ColumnId::name).collect();
    names.join(",") + "\n"
});

static TEXT_HEADER: LazyLock<String> = LazyLock::new(|| text_header() + "\n");

/// Hands over the lines of an object, some at a time.
pub(super) fn each(
    object: &Found,
    conditions: &Conditions,
    shape: Shape,
    rows_max: usize,
    take: &mut dyn FnMut(String) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(Contents::open(object)?)?;
    let schema = builder.metadata().file_metadata().schema_descr_ptr();
    let shown = ProjectionMask::columns(&schema, shape.columns().map(ColumnId::name));
    let Some(builder) = conditions.on(builder.with_projection(shown).with_limit(rows_max)) else { return Ok(()) };
    for batch in builder.build()? {
        let batch = batch?;
        let cells = Values::all(&batch, shape.columns())?;
        let mut lines = String::new();
        for row in 0..batch.num_rows() {
            match shape {
                Shape::Csv => csv(&cells, row, &mut lines)?,
                Shape::Json => json(&cells, row, &mut lines)?,
                Shape::Text => text(&cells, row, &mut lines)?,
            }
        }
        take(lines)?;
    }
    Ok(())
}

/// As in RFC 4180; what has no value is empty.
fn csv(cells: &[Values], row: usize, lines: &mut String) -> anyhow::Result<()> {
    for (number, values) in cells.iter().enumerate() {
        if number > 0 {
            lines.push(',');
        }
        let from = lines.len();
        values.write(row, lines)?;
        if lines[from..].contains([',', '"']) {
            let quoted = format!("\"{}\"", lines[from..].replace('"', "\"\""));
            lines.replace_range(from.., &quoted);
        }
    }
    lines.push('\n');
    Ok(())
}

fn json(cells: &[Values], row: usize, lines: &mut String) -> anyhow::Result<()> {
    lines.push('{');
    let mut is_first = true;
    let mut value = String::new();
    for values in cells {
        value.clear();
        if !values.write(row, &mut value)? {
            continue;
        }
        if !std::mem::replace(&mut is_first, false) {
            lines.push(',');
        }
        lines.push('"');
        lines.push_str(values.id.name());
        lines.push_str("\":");
        if values.is_bare() {
            lines.push_str(&value);
        } else {
            lines.push_str(&serde_json::to_string(&value)?);
        }
    }
    lines.push_str("}\n");
    Ok(())
}

/// As clouds write it: of a row that is no flow only what it is, where and when.
fn text(cells: &[Values], row: usize, lines: &mut String) -> anyhow::Result<()> {
    const OF_NO_FLOW: [ColumnId; 6] = [
        ColumnId::Version,
        ColumnId::AccountId,
        ColumnId::InterfaceId,
        ColumnId::Start,
        ColumnId::End,
        ColumnId::LogStatus,
    ];
    let status = cells.iter().find(|values| values.id == ColumnId::LogStatus);
    let is_flow = status.map(|values| values.text(row)).transpose()?.flatten().is_some_and(|status| status == "OK");
    for (number, values) in cells.iter().enumerate() {
        if number > 0 {
            lines.push(' ');
        }
        let is_shown = is_flow || OF_NO_FLOW.contains(&values.id);
        if !is_shown || !values.write(row, lines)? {
            lines.push_str(NOTHING);
        }
    }
    lines.push('\n');
    Ok(())
}
