//! Which rows: a few conditions, which the Parquet reader's row filter asks before it reads the other columns. Whoever wants more has an
//! engine (docs/queries.md).

use std::{net::IpAddr, str::FromStr};

use arrow::{
    array::{Array, AsArray as _, BooleanArray, RecordBatch},
    datatypes::{DataType, Int32Type, Int64Type, TimestampMicrosecondType},
    error::ArrowError,
};
use flowlog_host::clock;
use flowlog_model::{amount::parse_duration, live::filter::Cidr};
use flowlog_pipeline::encode::schema::{COLUMNS, ColumnId, ColumnSpec, ValueType};
use jiff::{Timestamp, civil, tz::TimeZone};
use parquet::{
    arrow::{
        ProjectionMask,
        arrow_reader::{ArrowPredicate, ArrowPredicateFn, ParquetRecordBatchReaderBuilder, RowFilter},
    },
    schema::types::SchemaDescriptor,
};

use super::contents::Contents;

/// Most conditions: each reads a column.
const CONDITIONS_MAX: usize = 32;
const US_PER_SEC: i64 = 1_000_000;
/// How a condition looks.
const EXAMPLE: &str = "use one such as `dstport = 22`";
/// Columns whose values are a few words, and these.
const WORDS: [(ColumnId, &[&str]); 3] = [
    (ColumnId::Action, &["ACCEPT", "REJECT"]),
    (ColumnId::LogStatus, &["OK", "NODATA", "SKIPDATA"]),
    (ColumnId::FlowDirection, &["ingress", "egress"]),
];
/// Columns with a point in time, as Unix seconds.
const TIMES: [ColumnId; 2] = [ColumnId::Start, ColumnId::End];
/// Columns with an address.
const ADDRESSES: [ColumnId; 4] = [ColumnId::SrcAddr, ColumnId::DstAddr, ColumnId::PktSrcAddr, ColumnId::PktDstAddr];

/// A point in time, as people write it: Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct When(i64);

impl FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(ago) = parse_duration(text) {
            let secs = i64::try_from(ago.as_secs()).unwrap_or(i64::MAX);
            return Ok(Self(clock::now().wall.secs().saturating_sub(secs)));
        }
        let utc = |time: civil::DateTime| TimeZone::UTC.to_timestamp(time).ok();
        let civil = || text.parse::<civil::DateTime>().ok().and_then(utc);
        let time = text.parse::<Timestamp>().ok().or_else(civil);
        time.map(|t| Self(t.as_second()))
            .ok_or_else(|| "use 2026-11-28, 2026-11-28T10:00:00Z, or how long ago: 90s, 15m, 2h, 7d".to_owned())
    }
}

/// A stretch of time, Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) since: i64,
    /// Not itself in it.
    pub(super) until: i64,
}

pub(super) fn span(since: Option<When>, until: Option<When>) -> Span {
    Span { since: since.map_or(i64::MIN, |w| w.0), until: until.map_or(i64::MAX, |w| w.0) }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Is,
    IsNot,
    Less,
    AtMost,
    More,
    AtLeast,
}

impl Operator {
    /// The longer ones first: the shorter ones are how those begin.
    const ALL: [(&str, Self); 7] = [
        ("!=", Self::IsNot),
        ("==", Self::Is),
        ("<=", Self::AtMost),
        (">=", Self::AtLeast),
        ("=", Self::Is),
        ("<", Self::Less),
        (">", Self::More),
    ];

    fn holds<T: PartialOrd + ?Sized>(self, value: &T, wanted: &T) -> bool {
        match self {
            Self::Is => value == wanted,
            Self::IsNot => value != wanted,
            Self::Less => value < wanted,
            Self::AtMost => value <= wanted,
            Self::More => value > wanted,
            Self::AtLeast => value >= wanted,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    Null,
    Number(i64),
    Is(bool),
    Text(String),
    /// Addresses have the order of their numbers; between IPv4 and IPv6 there is none.
    Address(IpAddr),
    Network(Cidr),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Condition {
    column: ColumnId,
    operator: Operator,
    wanted: Wanted,
}

/// See the module's head. All of them hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Conditions(Vec<Condition>);

impl FromStr for Conditions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut rest = text.trim();
        if rest.is_empty() {
            return Err(format!("there is no condition; {EXAMPLE}"));
        }
        let mut all = Vec::new();
        loop {
            let (condition, behind) = condition(rest)?;
            all.push(condition);
            rest = behind.trim_start();
            match word(rest) {
                ("", "") => break,
                (and, "") if and.eq_ignore_ascii_case("and") => {
                    return Err(format!("behind the last `{and}` there is no condition; {EXAMPLE}"));
                }
                (and, behind) if and.eq_ignore_ascii_case("and") => rest = behind.trim_start(),
                _ => return Err(format!("`{rest}`: conditions are joined by `and`; for more, see docs/queries.md")),
            }
        }
        if all.len() > CONDITIONS_MAX {
            return Err(format!("{} conditions; {CONDITIONS_MAX} at most", all.len()));
        }
        Ok(Self(all))
    }
}

/// The letters that a text begins with, and what is behind them.
fn word(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len()))
}

fn condition(text: &str) -> Result<(Condition, &str), String> {
    let (name, rest) = word(text);
    let column = COLUMNS.iter().find(|c| c.name == name).ok_or_else(|| {
        let names: Vec<&str> = COLUMNS.iter().map(|c| c.name).collect();
        format!("`{name}` is no column; there are {}", names.join(", "))
    })?;
    let rest = rest.trim_start();
    let found = Operator::ALL.into_iter().find_map(|(sign, o)| Some((o, rest.strip_prefix(sign)?)));
    if rest.starts_with("=!") {
        return Err(format!("behind `{name}`: `=!` is no operator; use !="));
    }
    let (operator, rest) = found.ok_or_else(|| format!("behind `{name}`: use =, !=, <, <=, > or >="))?;
    let rest = rest.trim_start();
    let (value, quoted, rest) = if let Some(inner) = rest.strip_prefix('\'') {
        let (value, behind) = inner.split_once('\'').ok_or_else(|| format!("`{rest}`: the quote does not end"))?;
        (value, true, behind)
    } else {
        let (value, behind) = rest.split_at(rest.find(char::is_whitespace).unwrap_or(rest.len()));
        (value, false, behind)
    };
    let wanted = wanted(column, value, quoted)?;
    if matches!(wanted, Wanted::Null | Wanted::Network(_) | Wanted::Is(_))
        && !matches!(operator, Operator::Is | Operator::IsNot)
    {
        return Err(format!("`{name}`: with {value} only = and != mean something"));
    }
    Ok((Condition { column: column.id, operator, wanted }, rest))
}

fn wanted(column: &ColumnSpec, value: &str, quoted: bool) -> Result<Wanted, String> {
    let wrong = |what: &str| format!("`{}` = `{value}`: use {what}", column.name);
    if value.is_empty() && !quoted {
        return Err(wrong("a value"));
    }
    if value == "null" && !quoted {
        return Ok(Wanted::Null);
    }
    match column.of {
        ValueType::Boolean => value.parse().map(Wanted::Is).map_err(|_unreadable| wrong("true, false or null")),
        ValueType::Int64 if TIMES.contains(&column.id) => {
            let seconds = value.parse().ok().or_else(|| value.parse().ok().map(|When(secs)| secs));
            seconds.map(Wanted::Number).ok_or_else(|| {
                wrong("Unix seconds, a time such as 2026-11-28T10:00:00Z, or how long ago: 90s, 15m, 2h, 7d")
            })
        }
        ValueType::Int32 | ValueType::Int64 => {
            value.parse().map(Wanted::Number).map_err(|_unreadable| wrong("a number or null"))
        }
        ValueType::Timestamp => {
            let When(secs) = value.parse().map_err(|how: String| format!("`{}`: {how}", column.name))?;
            Ok(Wanted::Number(secs.saturating_mul(US_PER_SEC)))
        }
        ValueType::Utf8 if ADDRESSES.contains(&column.id) => match value.parse() {
            Ok(address) => Ok(Wanted::Address(address)),
            Err(_network) => Cidr::parse(column.name, value).map(Wanted::Network).map_err(|e| e.to_string()),
        },
        ValueType::Utf8 => match WORDS.iter().find(|(id, _)| *id == column.id) {
            None => Ok(Wanted::Text(value.to_owned())),
            Some((_, words)) => {
                let meant = words.iter().find(|word| word.eq_ignore_ascii_case(value));
                meant.map(|word| Wanted::Text((*word).to_owned())).ok_or_else(|| wrong(&words.join(", ")))
            }
        },
    }
}

impl Conditions {
    /// Only rows that begin in a stretch of time.
    pub(super) fn within(&mut self, span: Span) {
        let start = |operator, secs| Condition { column: ColumnId::Start, operator, wanted: Wanted::Number(secs) };
        if span.since != i64::MIN {
            self.0.push(start(Operator::AtLeast, span.since));
        }
        if span.until != i64::MAX {
            self.0.push(start(Operator::Less, span.until));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Has a file read with them. `None`: it has no such row, since it lacks a column.
    pub(super) fn on(
        &self,
        builder: ParquetRecordBatchReaderBuilder<Contents>,
    ) -> Option<ParquetRecordBatchReaderBuilder<Contents>> {
        if self.is_empty() {
            return Some(builder);
        }
        let filter = self.filter(builder.metadata().file_metadata().schema_descr())?;
        Some(builder.with_row_filter(filter))
    }

    fn filter(&self, schema: &SchemaDescriptor) -> Option<RowFilter> {
        let mut predicates: Vec<Box<dyn ArrowPredicate>> = Vec::new();
        for condition in &self.0 {
            let name = condition.column.name();
            let Some(number) = schema.columns().iter().position(|c| c.path().string() == name) else {
                // Of an earlier version: the column would be null.
                if condition.wanted == Wanted::Null && condition.operator == Operator::Is {
                    continue;
                }
                return None;
            };
            let condition = condition.clone();
            let holds = move |batch: RecordBatch| condition.holds(batch.column(0));
            predicates.push(Box::new(ArrowPredicateFn::new(ProjectionMask::leaves(schema, [number]), holds)));
        }
        Some(RowFilter::new(predicates))
    }
}

impl Condition {
    /// Which rows of a column it holds for. Of a row without a value none does, but for `= null`.
    fn holds(&self, column: &dyn Array) -> Result<BooleanArray, ArrowError> {
        let operator = self.operator;
        let wrong = || {
            ArrowError::SchemaError(format!(
                "`{}` is {}: flowlog did not write this",
                self.column.name(),
                column.data_type()
            ))
        };
        let each = |value: &dyn Fn(usize) -> bool| -> BooleanArray {
            (0..column.len()).map(|row| Some(column.is_valid(row) && value(row))).collect()
        };
        Ok(match &self.wanted {
            Wanted::Null => {
                (0..column.len()).map(|row| Some(column.is_null(row) == (operator == Operator::Is))).collect()
            }
            Wanted::Number(wanted) => {
                // `window_start` was a number of seconds up to version 3.
                let is_time = self.column == ColumnId::WindowStart;
                let factor = if is_time { US_PER_SEC } else { 1 };
                match column.data_type() {
                    DataType::Int32 => {
                        let values = column.as_primitive::<Int32Type>();
                        each(&|row| operator.holds(&i64::from(values.value(row)), wanted))
                    }
                    DataType::Int64 => {
                        let values = column.as_primitive::<Int64Type>();
                        each(&|row| operator.holds(&values.value(row).saturating_mul(factor), wanted))
                    }
                    DataType::Timestamp(..) => {
                        let values = column.as_primitive_opt::<TimestampMicrosecondType>().ok_or_else(wrong)?;
                        each(&|row| operator.holds(&values.value(row), wanted))
                    }
                    _ => return Err(wrong()),
                }
            }
            Wanted::Is(wanted) => {
                let values = column.as_boolean_opt().ok_or_else(wrong)?;
                each(&|row| operator.holds(&values.value(row), wanted))
            }
            Wanted::Text(wanted) => {
                let values = column.as_string_opt::<i32>().ok_or_else(wrong)?;
                each(&|row| operator.holds(values.value(row), wanted.as_str()))
            }
            Wanted::Address(wanted) => {
                let values = column.as_string_opt::<i32>().ok_or_else(wrong)?;
                let address = |row: usize| values.value(row).parse::<IpAddr>().ok();
                each(&|row| match address(row) {
                    Some(a) if a.is_ipv4() == wanted.is_ipv4() => operator.holds(&a, wanted),
                    _ => operator == Operator::IsNot,
                })
            }
            Wanted::Network(network) => {
                let values = column.as_string_opt::<i32>().ok_or_else(wrong)?;
                let is_in = |row: usize| values.value(row).parse::<IpAddr>().is_ok_and(|a| network.contains(a));
                each(&|row| is_in(row) == (operator == Operator::Is))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int32Array, Int64Array, StringArray};

    use super::*;

    fn of(text: &str) -> Vec<Condition> {
        text.parse::<Conditions>().unwrap_or_else(|e| panic!("{text}: {e}")).0
    }

    fn holds(text: &str, column: &dyn Array) -> Vec<bool> {
        let [condition] = of(text).try_into().expect("one");
        let held = condition.holds(column).expect("holds");
        held.iter().map(|value| value.expect("never null")).collect()
    }

    #[test]
    fn conditions_are_read_as_people_write_them_and_what_is_wrong_is_named() {
        assert_eq!(of("action = REJECT and dstport=22"), of("action='REJECT' AND dstport  =  22"));
        assert_eq!(of("window_start >= 2026-11-28T01:00:00Z"), of("window_start>=2026-11-28T01:00"));
        assert_eq!(of("dstport == 22"), of("dstport = 22"));
        assert_eq!(of("action = reject and log_status=ok"), of("action = REJECT and log_status = OK"));
        assert_eq!(of("flow_direction != Egress"), of("flow_direction != egress"));
        assert_eq!(of("start > 2026-11-28"), of("start > 1795824000"));
        for (text, words) in [
            ("", "there is no condition; use one such as"),
            ("  ", "there is no condition"),
            ("dstport = 22 and", "behind the last `and` there is no condition"),
            ("dstport = 22 AND ", "behind the last `AND`"),
            ("and dstport = 22", "`and` is no column"),
            ("dstport =! 22", "`=!` is no operator; use !="),
            ("action = DROP", "use ACCEPT, REJECT"),
            ("start > yesterday", "Unix seconds, a time such as"),
            ("colour = 1", "is no column; there are version, account_id"),
            ("dstport", "use =, !="),
            ("dstport =", "a value"),
            ("dstport = ssh", "a number or null"),
            ("initiator > true", "only = and !="),
            ("srcaddr < 10.0.0.0/8", "only = and !="),
            ("srcaddr = 10.0.0.0/64", "a network such as"),
            ("dstaddr = 300.1.1.1", "use an address, or a network"),
            ("pkt_srcaddr > web", "use an address"),
            ("action = 'REJECT", "does not end"),
            ("dstport = 1 or dstport = 2", "joined by `and`"),
            ("window_start = soon", "how long ago"),
        ] {
            let error = text.parse::<Conditions>().expect_err(text);
            assert!(error.contains(words), "{text}: {error}");
        }
        assert!(vec!["version = 2"; CONDITIONS_MAX + 1].join(" and ").parse::<Conditions>().is_err());
    }

    #[test]
    fn a_time_is_a_point_or_how_long_ago() {
        let when = |text: &str| text.parse::<When>().unwrap_or_else(|e| panic!("{text}: {e}")).0;
        assert_eq!(when("2026-11-28"), when("2026-11-28T00:00:00Z"));
        assert_eq!(when("2026-11-28T10:00:00+01:00"), when("2026-11-28T09:00"));
        let (hour, day) = (when("1h"), when("1d"));
        assert!((82_799..=82_801).contains(&(hour - day)), "{hour} {day}");
    }

    #[test]
    fn a_condition_holds_as_in_sql_and_for_networks() {
        let ports = Int32Array::from(vec![Some(22), None, Some(80)]);
        assert_eq!(holds("dstport != 22", &ports), [false, false, true]);
        assert_eq!(holds("dstport = null", &ports), [false, true, false]);
        assert_eq!(holds("dstport != null", &ports), [true, false, true]);
        assert_eq!(holds("dstport >= 22", &ports), [true, false, true]);
        let addresses = StringArray::from(vec![Some("10.1.2.3"), None, Some("fd00::1"), Some("192.0.2.1")]);
        assert_eq!(holds("srcaddr = 10.0.0.0/8", &addresses), [true, false, false, false]);
        assert_eq!(holds("srcaddr != fd00::/8", &addresses), [true, false, false, true]);
        assert_eq!(holds("srcaddr = 192.0.2.1", &addresses), [false, false, false, true]);
        assert_eq!(holds("srcaddr >= 9.0.0.0", &addresses), [true, false, false, true], "as numbers, not as text");
        assert_eq!(holds("srcaddr < fd00:0::2", &addresses), [false, false, true, false], "of its own kind");
        assert_eq!(holds("srcaddr != fd00:0::1", &addresses), [true, false, false, true]);
        let old = Int64Array::from(vec![Some(1_800_000_000)]);
        assert_eq!(holds("window_start = 2027-01-15T08:00:00Z", &old), [true], "seconds, up to version 3");
    }
}
