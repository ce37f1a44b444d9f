//! One value of a column as text.

use std::{borrow::Cow, fmt::Write as _};

use anyhow::Context as _;
use arrow::{
    array::{Array, ArrayRef, AsArray as _, RecordBatch},
    datatypes::{DataType, Int32Type, Int64Type, TimestampMicrosecondType},
};
use flowlog_model::text::printable;
use flowlog_pipeline::encode::schema::{COLUMNS, ColumnId, ColumnSpec, FIRST_FIELD_IDS};
use jiff::Timestamp;

use super::super::exit::Failure;

/// A column of a batch; `None`: the file has none. It is of an earlier version, or narrow: without the columns in which no row has a value.
pub(super) struct Values {
    pub(super) id: ColumnId,
    array: Option<ArrayRef>,
}

impl Values {
    /// A column by its name. One that every version has had, and every row has a value in, must be there.
    pub(super) fn of(batch: &RecordBatch, id: ColumnId) -> anyhow::Result<Self> {
        let array = batch.column_by_name(id.name()).cloned();
        let is_always = |c: &ColumnSpec| !c.nullable && FIRST_FIELD_IDS.contains(&c.field_id);
        if array.is_none() && COLUMNS.iter().any(|c| c.id == id && is_always(c)) {
            return Err(wrong(id, "missing"));
        }
        Ok(Self { id, array })
    }

    /// Those of several columns.
    pub(super) fn all(batch: &RecordBatch, ids: impl IntoIterator<Item = ColumnId>) -> anyhow::Result<Vec<Self>> {
        ids.into_iter().map(|id| Self::of(batch, id)).collect()
    }

    fn there(&self, row: usize) -> Option<&ArrayRef> {
        self.array.as_ref().filter(|array| array.is_valid(row))
    }

    /// A text, fit to be shown: whoever wrote the file may have written anything into it.
    pub(super) fn text(&self, row: usize) -> anyhow::Result<Option<Cow<'_, str>>> {
        let Some(array) = self.there(row) else { return Ok(None) };
        let texts = array.as_string_opt::<i32>().ok_or_else(|| wrong(self.id, "not text"))?;
        Ok(Some(printable(texts.value(row))))
    }

    pub(super) fn number(&self, row: usize) -> anyhow::Result<Option<i64>> {
        let Some(array) = self.there(row) else { return Ok(None) };
        match array.data_type() {
            DataType::Int32 => Ok(Some(array.as_primitive::<Int32Type>().value(row).into())),
            DataType::Int64 => Ok(Some(array.as_primitive::<Int64Type>().value(row))),
            _ => Err(wrong(self.id, "no number")),
        }
    }

    /// Adds the value to a line; returns whether there is one.
    pub(super) fn write(&self, row: usize, line: &mut String) -> anyhow::Result<bool> {
        let Some(array) = self.there(row) else { return Ok(false) };
        match array.data_type() {
            DataType::Utf8 => line.push_str(&self.text(row)?.unwrap_or_default()),
            DataType::Boolean => write!(line, "{}", array.as_boolean().value(row))?,
            DataType::Timestamp(..) => {
                let times =
                    array.as_primitive_opt::<TimestampMicrosecondType>().ok_or_else(|| wrong(self.id, "no time"))?;
                write!(line, "{}", Timestamp::from_microsecond(times.value(row)).context("no time")?)?;
            }
            // A number of seconds, up to version 3.
            DataType::Int64 if self.id == ColumnId::WindowStart => {
                let secs = array.as_primitive::<Int64Type>().value(row);
                write!(line, "{}", Timestamp::from_second(secs).context("no time")?)?;
            }
            _ => write!(line, "{}", self.number(row)?.unwrap_or_default())?,
        }
        Ok(true)
    }

    /// Whether it is a number or a boolean, which JSON has without quotes.
    pub(super) fn is_bare(&self) -> bool {
        let of = self.array.as_ref().map(Array::data_type);
        self.id != ColumnId::WindowStart && matches!(of, Some(DataType::Int32 | DataType::Int64 | DataType::Boolean))
    }
}

fn wrong(id: ColumnId, what: &str) -> anyhow::Error {
    Failure::Wrong(format!("column `{}` is {what}: flowlog did not write this", id.name())).into()
}
