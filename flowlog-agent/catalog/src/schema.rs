//! The table: columns, partitions and properties. Columns are those of objects, by their field ids.

use std::sync::Arc;

use flowlog_pipeline::encode::schema::{COLUMNS, ColumnId, ValueType};
use iceberg::{
    TableCreation,
    spec::{NestedField, PrimitiveType, Schema, Transform, Type, UnboundPartitionSpec},
};

use crate::footer::{Footer, FooterColumn};

/// First version of objects that have field ids, and a `window_start` that is a time.
pub(crate) const VERSION_MIN: u32 = 4;
/// What a new table is partitioned by: the hour that the window begins in. One object is one window: it has one such hour.
const PARTITION: &str = "window_start_hour";
/// What a new table says of itself. Old files of metadata are engines' to remove, and not without limit: there is one for each commit.
const PROPERTIES: [(&str, &str); 3] = [
    ("write.parquet.compression-codec", "zstd"),
    ("write.metadata.delete-after-commit.enabled", "true"),
    ("write.metadata.previous-versions-max", "100"),
];

/// The number of `window_start`.
pub(crate) fn window_start_id() -> i32 {
    field_id(ColumnId::WindowStart)
}

fn field_id(column: ColumnId) -> i32 {
    COLUMNS.iter().find(|c| c.id == column).map_or(0, |c| c.field_id)
}

fn type_of(value: ValueType) -> Type {
    Type::Primitive(match value {
        ValueType::Boolean => PrimitiveType::Boolean,
        ValueType::Int32 => PrimitiveType::Int,
        ValueType::Int64 => PrimitiveType::Long,
        ValueType::Utf8 => PrimitiveType::String,
        ValueType::Timestamp => PrimitiveType::Timestamptz,
    })
}

/// A table that is not there yet.
///
/// # Errors
/// None is known: columns and partition are ours.
pub(crate) fn creation(name: &str) -> iceberg::Result<TableCreation> {
    // All may be null: a column that an object of some version lacks is no error then.
    let field = |c: &flowlog_pipeline::encode::schema::ColumnSpec| {
        Arc::new(NestedField::optional(c.field_id, c.name, type_of(c.of)).with_doc(c.meaning))
    };
    let schema = Schema::builder().with_fields(COLUMNS.iter().map(field)).build()?;
    let partition = UnboundPartitionSpec::builder();
    let partition = partition.add_partition_field(window_start_id(), PARTITION, Transform::Hour)?.build();
    let properties = PROPERTIES.map(|(key, value)| (key.to_owned(), value.to_owned()));
    Ok(TableCreation::builder()
        .name(name.to_owned())
        .schema(schema)
        .partition_spec(partition)
        .properties(properties)
        .build())
}

/// Why an object does not fit into a table. It is left where it is, and counted by the first word.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Misfit {
    #[error(
        "it is of version {0}, whose columns have no field ids and whose window_start is a number: table `{1}` would not be read right. docs/iceberg.md (Older objects)"
    )]
    Version(u32, String),
    #[error("its column `{name}` has no field id that the table could know it by")]
    NoId { name: String },
    #[error("its column `{name}` is {of}, in the table field {id} is `{theirs}`, {their_type}")]
    OtherColumn { id: i32, name: String, of: String, theirs: String, their_type: String },
    #[error(
        "its column `{name}` is number {id}, and that is not the table's next one: another column has been added to the table, or one of an object in between is not there yet"
    )]
    NoPlace { id: i32, name: String },
    #[error("it has no rows, or does not say which window it is of")]
    NoWindow,
    #[error("its name says that the window begins at {name}, its rows say {rows}")]
    OtherWindow { name: i64, rows: i64 },
    #[error("the table is partitioned by `{0}`, of which this object has no single value")]
    Partition(String),
    #[error("{0}")]
    Unreadable(String),
}

impl Misfit {
    /// What it is counted as.
    pub(crate) const REASONS: [&str; 5] = ["version", "column", "window", "partition", "unreadable"];

    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Version(..) => "version",
            Self::NoId { .. } | Self::NoPlace { .. } | Self::OtherColumn { .. } => "column",
            Self::NoWindow | Self::OtherWindow { .. } => "window",
            Self::Partition(_) => "partition",
            Self::Unreadable(_) => "unreadable",
        }
    }
}

/// The columns of an object that the table does not have yet, in the order of their numbers.
///
/// # Errors
/// If the table has something else under the same number or name.
pub(crate) fn missing<'a>(footer: &'a Footer, schema: &Schema) -> Result<Vec<&'a FooterColumn>, Misfit> {
    let mut missing = Vec::new();
    for column in &footer.columns {
        let no_id = || Misfit::NoId { name: column.name.clone() };
        let id = column.id.ok_or_else(no_id)?;
        let of = column.of.as_ref();
        let other = |theirs: &NestedField| Misfit::OtherColumn {
            id,
            name: column.name.clone(),
            of: of.map_or_else(|| "of a type that no table has".to_owned(), ToString::to_string),
            theirs: theirs.name.clone(),
            their_type: theirs.field_type.to_string(),
        };
        match (schema.field_by_id(id), schema.field_by_name(&column.name)) {
            // A column that somebody has renamed in the table is still the same one.
            (Some(theirs), _) if of.is_some_and(|of| fits(of, &theirs.field_type)) => {}
            (Some(theirs), _) | (None, Some(theirs)) => return Err(other(theirs)),
            (None, None) if of.is_none() => return Err(no_id()),
            (None, None) => missing.push(column),
        }
    }
    missing.sort_by_key(|column| column.id);
    Ok(missing)
}

/// Whether a column of an object is read right as a type of the table: the same, or one that Iceberg may have widened.
fn fits(of: &PrimitiveType, table: &Type) -> bool {
    match table {
        Type::Primitive(theirs) => theirs == of || matches!((of, theirs), (PrimitiveType::Int, PrimitiveType::Long)),
        _ => false,
    }
}
