//! Definitions of the table, engine by engine.

use std::fmt::Write as _;

use flowlog_model::rule::NAME_FOLDER;
use flowlog_pipeline::encode::{
    schema::{COLUMNS, ColumnSpec, ValueType},
    text::COLUMNS_OF_VERSION_2,
};

use super::{super::exit::Failure, Engine, Source, WORDS};

/// Folders of the time, with the least and the greatest there are, and how many digits their names have.
const FOLDERS: [(&str, u32, u32, u32); 4] =
    [("year", 2026, 2045, 4), ("month", 1, 12, 2), ("day", 1, 31, 2), ("hour", 0, 23, 2)];

impl Engine {
    /// A type of ours in its words.
    fn type_of(self, of: ValueType) -> &'static str {
        match (self, of) {
            (Self::Clickhouse, ValueType::Boolean) => "Nullable(Bool)",
            (_, ValueType::Boolean) => "boolean",
            (Self::Clickhouse, ValueType::Int32) => "Nullable(Int32)",
            (Self::Trino | Self::Duckdb, ValueType::Int32) => "integer",
            (_, ValueType::Int32) => "int",
            (Self::Clickhouse, ValueType::Int64) => "Nullable(Int64)",
            (_, ValueType::Int64) => "bigint",
            (Self::Clickhouse, ValueType::Utf8) => "Nullable(String)",
            (Self::Trino | Self::Duckdb, ValueType::Utf8) => "varchar",
            (_, ValueType::Utf8) => "string",
            (Self::Clickhouse, ValueType::Timestamp) => "Nullable(DateTime64(6, 'UTC'))",
            (Self::Trino, ValueType::Timestamp) => "timestamp(6)",
            (Self::Duckdb, ValueType::Timestamp) => "timestamp with time zone",
            (_, ValueType::Timestamp) => "timestamp",
        }
    }

    /// A column's name in a definition, which is another language in Athena.
    fn named(self, name: &str) -> String {
        if self == Self::Athena { format!("`{name}`") } else { self.quoted(name) }
    }

    /// `name type` of every column of ours, a line each.
    fn columns(self) -> String {
        let lines = COLUMNS.iter().map(|c| format!("  {} {}", self.named(c.name), self.type_of(c.of)));
        lines.collect::<Vec<_>>().join(",\n")
    }
}

/// The names of the partitions, and whether each is a number.
fn partitions(source: &Source) -> Vec<(&'static str, bool)> {
    let name = source.is_named.then_some((NAME_FOLDER, false));
    name.into_iter().chain(FOLDERS.map(|(folder, ..)| (folder, true))).collect()
}

/// Makes the table.
pub(super) fn definition(engine: Engine, table: &str, source: &Source) -> Result<String, Failure> {
    if matches!(engine, Engine::Athena | Engine::Trino) && !source.is_bucket {
        return Err(Failure::Wrong(format!("{}: this engine reads buckets; give s3://bucket[/prefix]", source.root)));
    }
    Ok(match engine {
        Engine::Athena => athena(table, source),
        Engine::Trino => trino(table, source),
        Engine::Spark => spark(table, source),
        Engine::Duckdb => duckdb(table, source),
        Engine::Clickhouse => clickhouse(table, source),
    })
}

/// The 14 columns that clouds have, under their names.
pub(super) fn view(engine: Engine, table: &str) -> String {
    let is_word = |name: &str| WORDS.iter().any(|id| id.name() == name);
    let names = COLUMNS
        .iter()
        .take(COLUMNS_OF_VERSION_2)
        .map(|c| if is_word(c.name) { engine.quoted(c.name) } else { c.name.to_owned() });
    let names = names.collect::<Vec<_>>().join(", ");
    format!("\n-- The 14 columns of version 2.\ncreate or replace view {table}_v2 as\nselect {names}\nfrom {table};\n")
}

/// Partitions are computed of the query, so nobody has to add them.
fn athena(table: &str, source: &Source) -> String {
    let Source { root, .. } = source;
    let parts: Vec<String> = partitions(source)
        .into_iter()
        .map(|(name, is_number)| format!("`{name}` {}", if is_number { "int" } else { "string" }))
        .collect();
    let template = partitions(source).into_iter().map(|(name, _)| format!("{name}=${{{name}}}/"));
    let template = template.collect::<Vec<_>>().concat();
    let mut properties = String::new();
    if source.is_named {
        // Names are the customers': each query says which (`where flow_log = 'web'`).
        let _ = writeln!(properties, "  'projection.{NAME_FOLDER}.type' = 'injected',");
    }
    for (name, least, most, digits) in FOLDERS {
        let _ = writeln!(
            properties,
            "  'projection.{name}.type' = 'integer', 'projection.{name}.range' = '{least},{most}', 'projection.{name}.digits' = '{digits}',"
        );
    }
    format!(
        "-- Athena: partitions are projected, so there is nothing to repair; say year, month and day in queries.\n\
         create external table if not exists {table} (\n{}\n)\npartitioned by ({})\nstored as parquet\nlocation '{root}/'\n\
         tblproperties (\n  'projection.enabled' = 'true',\n{properties}  'storage.location.template' = '{root}/{template}'\n);\n",
        Engine::Athena.columns(),
        parts.join(", ")
    )
}

fn trino(table: &str, source: &Source) -> String {
    let Source { root, .. } = source;
    let names: Vec<&str> = partitions(source).into_iter().map(|(name, _)| name).collect();
    // As text: `month=01` is no number's name.
    let parts = names.iter().map(|name| format!(",\n  \"{name}\" varchar")).collect::<Vec<_>>().concat();
    let by = names.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
    format!(
        "-- Trino, in the schema `default` of a catalog of the Hive connector; the call finds new partitions.\n\
         create table if not exists {table} (\n{}{parts}\n)\n\
         with (external_location = '{root}/', format = 'PARQUET', partitioned_by = array[{by}]);\n\
         call system.sync_partition_metadata('default', '{table}', 'ADD');\n",
        Engine::Trino.columns()
    )
}

fn spark(table: &str, source: &Source) -> String {
    let root = source.root.replacen("s3://", "s3a://", 1);
    let all = partitions(source);
    let parts =
        all.iter().map(|(name, is_number)| format!(",\n  `{name}` {}", if *is_number { "int" } else { "string" }));
    let parts = parts.collect::<Vec<_>>().concat();
    let by = all.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    format!(
        "-- Spark; the repair finds new partitions.\nset time zone 'UTC';\n\
         create table if not exists {table} (\n{}{parts}\n)\nusing parquet\npartitioned by ({by})\nlocation '{root}/';\n\
         msck repair table {table};\n",
        Engine::Spark.columns()
    )
}

fn duckdb(table: &str, source: &Source) -> String {
    let Source { root, .. } = source;
    let types = partitions(source)
        .into_iter()
        .map(|(name, is_number)| format!("'{name}': {}", if is_number { "int" } else { "varchar" }));
    let types = types.collect::<Vec<_>>().join(", ");
    let way = if source.is_bucket {
        "-- A secret of type s3 says how to reach the bucket.\ninstall httpfs;\nload httpfs;\n"
    } else {
        ""
    };
    // By field ids: an object need not have all of them, and none is opened to find out.
    let column = |c: &ColumnSpec| {
        format!(
            "  {}: {{name: '{}', type: '{}', default_value: NULL}}",
            c.field_id,
            c.name,
            Engine::Duckdb.type_of(c.of)
        )
    };
    let columns = COLUMNS.iter().map(column).collect::<Vec<_>>().join(",\n");
    format!(
        "-- DuckDB.\n{way}set timezone = 'UTC';\ncreate or replace view {table} as\nselect * from read_parquet('{root}/**/*.parquet', \
         hive_partitioning = true, hive_types = {{{types}}}, schema = map {{\n{columns}\n}});\n"
    )
}

fn clickhouse(table: &str, source: &Source) -> String {
    let Source { root, .. } = source;
    let parts = partitions(source).into_iter().map(|(name, is_number)| {
        format!(",\n  {} {}", Engine::Clickhouse.quoted(name), if is_number { "Int32" } else { "String" })
    });
    let columns =
        format!("{}{}", Engine::Clickhouse.columns(), parts.collect::<Vec<_>>().concat()).replace('\'', "\\'");
    let reads = if source.is_bucket {
        format!("s3('{root}/**.parquet', 'Parquet', '\n{columns}\n')")
    } else {
        format!("file('{root}/**/*.parquet', 'Parquet', '\n{columns}\n')")
    };
    format!(
        "-- ClickHouse. A directory is one below the server's user_files_path, or any of clickhouse-local.\n\
         create or replace view {table} as\nselect * from {reads};\n"
    )
}
