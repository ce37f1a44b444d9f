//! `flowlog sql`: what an engine has to be told of delivered objects: the table, a view of the clouds' 14 columns, and a few queries.
//!
//! * [`tables`]: definitions, engine by engine; [`queries`]: the same questions for all of them.

mod queries;
mod tables;

use std::process::ExitCode;

use clap::ValueEnum;
use flowlog_model::rule::{Location, Name, Target};
use flowlog_pipeline::encode::schema::ColumnId;
use queries::QUERIES;

use super::{exit::Failure, out};

/// Longest name of a table that all engines take.
const TABLE_BYTES_MAX: usize = 63;

/// Words that at least one of the engines does not take for the name of a table: those that Trino, Athena (queries and definitions), `DuckDB` and
/// Spark have reserved.
const RESERVED: &str = "\
all alter analyse analyze and anti any array as asc asymmetric authorization between bigint binary boolean both by case cast char check \
collate column commit conf constraint create cross cube current current_catalog current_date current_path current_role current_schema \
current_time current_timestamp current_user cursor database date deallocate decimal default deferrable delete desc describe distinct do \
double drop else end escape except exchange execute exists extended external extract false fetch first float following for foreign from \
full function glob grant group grouping having if import in initially inner insert int integer intersect interval into is isnull join lambda \
last lateral leading left less like limit listagg local localtime localtimestamp macro map minus more natural none normalize not notnull \
null numeric of offset on only or order out outer over overlaps partialscan partition percent pivot placing preceding precision prepare \
preserve primary procedure qualify range reads recursive reduce references regexp returning revoke right rlike rollback rollup row rows \
select semi session_user set show similar skip smallint some start summarize symmetric table tablesample then time timestamp to trailing \
transform trigger trim true truncate unbounded uescape union unique uniquejoin unnest unpivot update user using utc_timestamp values varchar \
variadic views when where window with";

#[derive(clap::Args)]
#[command(after_help = "\
The script is for the engine's own client; docs/queries.md has every query with what it says.

Examples:
  flowlog sql athena --target s3://flows/team-a --name web
  flowlog sql duckdb --target ./flows --name flowlog | duckdb
  flowlog sql spark --target s3://flows
  flowlog sql clickhouse --target s3://flows --query port_scans")]
pub(super) struct SqlArgs {
    /// Which engine is told.
    engine: Engine,
    /// Where the objects are: the target of the flow log, with its prefix.
    #[arg(long, short, value_name = "URL")]
    target: Target,
    /// The flow log whose objects are the table; its layout is `hive`. Without: all below the target, whose layout is `hive-named`.
    #[arg(long, value_name = "NAME")]
    name: Option<Name>,
    /// What the table is called; the view of 14 columns has `_v2` behind it.
    #[arg(long, value_name = "NAME", default_value = "flowlog", value_parser = table)]
    table: String,
    /// Print this query alone.
    #[arg(long, value_name = "QUERY", value_parser = clap::builder::PossibleValuesParser::new(QUERIES.map(|q| q.name)))]
    query: Option<String>,
}

/// An engine, with its ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Engine {
    Athena,
    Trino,
    Spark,
    Duckdb,
    Clickhouse,
}

impl Engine {
    /// A column's name in a query: some are words of SQL.
    fn quoted(self, name: &str) -> String {
        match self {
            Self::Spark => format!("`{name}`"),
            Self::Athena | Self::Trino | Self::Duckdb | Self::Clickhouse => format!("\"{name}\""),
        }
    }
}

/// What a table is of.
struct Source {
    /// Without a slash at its end.
    root: String,
    /// Whether the flow log's name is a partition.
    is_named: bool,
    is_bucket: bool,
}

fn table(text: &str) -> Result<String, String> {
    let is_good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let good = text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_') && text.chars().all(is_good);
    if RESERVED.split_ascii_whitespace().any(|word| word == text) {
        Err("is a word of SQL: use another name".to_owned())
    } else if good && text.len() <= TABLE_BYTES_MAX {
        Ok(text.to_owned())
    } else {
        Err(format!("use lower case letters, digits and `_`, {TABLE_BYTES_MAX} at most"))
    }
}

pub(super) fn run(args: &SqlArgs) -> anyhow::Result<ExitCode> {
    out::text(&script(args)?)?;
    Ok(ExitCode::SUCCESS)
}

fn script(args: &SqlArgs) -> anyhow::Result<String> {
    let SqlArgs { engine, table, .. } = args;
    if let Some(query) = &args.query {
        let wanted = QUERIES.iter().filter(|q| q.name == query);
        return Ok(wanted.map(|q| q.text(*engine, table)).collect());
    }
    let source = source(args)?;
    let mut all = tables::definition(*engine, table, &source)?;
    all += &tables::view(*engine, table);
    for query in &QUERIES {
        all += "\n";
        all += &query.text(*engine, table);
    }
    Ok(all)
}

fn source(args: &SqlArgs) -> anyhow::Result<Source> {
    let (place, is_bucket) = match &args.target.location {
        Location::Bucket(bucket) => (format!("s3://{bucket}"), true),
        Location::Directory(dir) => (dir.display().to_string(), false),
        other @ Location::OfContract { .. } => return Err(Failure::Wrong(format!("{other}: name the bucket")).into()),
    };
    if place.contains(['\'', '\\']) {
        return Err(Failure::Wrong(format!("{place}: a quote in it cannot be told to every engine")).into());
    }
    let parts = [Some(place), args.target.prefix.clone(), args.name.as_ref().map(|n| n.as_str().to_owned())];
    let root = parts.into_iter().flatten().collect::<Vec<_>>().join("/");
    Ok(Source { root, is_named: args.name.is_none(), is_bucket })
}

/// Columns whose names are words of SQL in one engine or another.
const WORDS: [ColumnId; 3] = [ColumnId::Start, ColumnId::End, ColumnId::Family];

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Told {
        #[command(flatten)]
        args: SqlArgs,
    }

    fn told(words: &[&str]) -> String {
        let told = <Told as clap::Parser>::try_parse_from([&["sql"], words].concat()).expect("understood");
        script(&told.args).expect("a script")
    }

    #[test]
    fn every_query_of_the_documents_is_what_is_printed() {
        Told::command().debug_assert();
        let document = include_str!("../../../docs/queries.md");
        for query in &QUERIES {
            let printed = told(&["duckdb", "--target", "s3://flows", "--query", query.name]);
            let (_, sql) = printed.split_once('\n').expect("its words and the query");
            assert!(document.contains(&format!("```sql\n{sql}```")), "docs/queries.md lacks {printed}");
            assert!(document.contains(query.says), "docs/queries.md lacks: {}", query.says);
        }
    }

    /// The column list that a cloud's documents give for Athena, word for word in its names, has the types that ours has.
    #[test]
    fn the_clouds_own_columns_are_the_first_of_the_table() {
        let athena = told(&["athena", "--target", "s3://flows/team", "--name", "web"]);
        let columns = "`version` int,\n  `account_id` string,\n  `interface_id` string,\n  `srcaddr` string,\n  `dstaddr` string,\n  \
                       `srcport` int,\n  `dstport` int,\n  `protocol` int,\n  `packets` bigint,\n  `bytes` bigint,\n  `start` bigint,\n  \
                       `end` bigint,\n  `action` string,\n  `log_status` string,\n";
        assert!(athena.contains(columns), "{athena}");
        let template = "s3://flows/team/web/year=${year}/month=${month}/day=${day}/hour=${hour}/";
        assert!(athena.contains(template) && !athena.contains("flow_log"), "{athena}");
        let named = told(&["athena", "--target", "s3://flows"]);
        assert!(
            named.contains("s3://flows/flow_log=${flow_log}/year=${year}/") && named.contains("injected"),
            "{named}"
        );
    }

    #[test]
    fn what_cannot_be_told_is_refused() {
        for (words, why) in [
            (&["trino", "--target", "./flows"][..], "s3://"),
            (&["athena", "--target", "/var/flows"], "s3://"),
            (&["duckdb", "--target", "/var/it's"], "a quote"),
        ] {
            let told = <Told as clap::Parser>::try_parse_from([&["sql"], words].concat()).expect("understood");
            let error = script(&told.args).expect_err("refused").to_string();
            assert!(error.contains(why), "{error}");
        }
        for table in ["Flows", "a;b", "1a", "", &"a".repeat(64), "select", "table", "user", "order", "date"] {
            let words = ["sql", "duckdb", "--target", "s3://flows", "--table", table];
            assert!(<Told as clap::Parser>::try_parse_from(words).is_err(), "{table}");
        }
    }
}
