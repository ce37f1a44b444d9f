//! From an object's footer to what a manifest says of it.

use std::collections::HashMap;

use iceberg::{
    spec::{
        DataContentType, DataFile, DataFileBuilder, DataFileFormat, Datum, Literal, PartitionSpec, PrimitiveType,
        Schema, Struct, Transform, Type,
    },
    transform::create_transform_function,
};

use crate::{
    footer::{Footer, FooterColumn},
    object_name,
    schema::{Misfit, VERSION_MIN, window_start_id},
};

/// Microseconds of a second.
const MICROS: i64 = 1_000_000;
/// The object's metadata that have the value which a column has in all of its rows.
const CONSTANT: [(&str, &str); 4] =
    [("rule_id", "rule_id"), ("node_id", "node"), ("interface_id", "interface"), ("sequence", "sequence")];

/// Whether an object is one that this program can tell a table of.
///
/// # Errors
/// Why not.
pub(crate) fn check(uri: &str, footer: &Footer, table: &str) -> Result<(), Misfit> {
    let version = footer.version.ok_or(Misfit::NoWindow)?;
    if version < VERSION_MIN {
        return Err(Misfit::Version(version, table.to_owned()));
    }
    let window = window_start(footer)?;
    match object_name::window_start(uri) {
        Some(name) if name != window => Err(Misfit::OtherWindow { name, rows: window }),
        _ => Ok(()),
    }
}

/// The begin of an object's window, Unix seconds: what its metadata say, and every row.
fn window_start(footer: &Footer) -> Result<i64, Misfit> {
    let said = footer.said("window_start").and_then(|secs| secs.parse::<i64>().ok()).ok_or(Misfit::NoWindow)?;
    let whole = Datum::timestamptz_micros(said.checked_mul(MICROS).ok_or(Misfit::NoWindow)?);
    let bounds = footer.column(window_start_id()).and_then(|column| column.bounds.as_ref());
    let Some((least, greatest)) = bounds.filter(|_| footer.rows > 0) else { return Err(Misfit::NoWindow) };
    if *least == whole && *greatest == whole {
        return Ok(said);
    }
    Err(Misfit::OtherWindow { name: said, rows: micros(least).unwrap_or_default() / MICROS })
}

fn micros(datum: &Datum) -> Option<i64> {
    match datum.literal() {
        iceberg::spec::PrimitiveLiteral::Long(micros) => Some(*micros),
        _ => None,
    }
}

/// What a manifest says of an object.
///
/// # Errors
/// If it does not fit into a partition of the table.
pub(crate) fn data_file(
    uri: &str,
    bytes: u64,
    footer: &Footer,
    schema: &Schema,
    spec: &PartitionSpec,
) -> Result<DataFile, Misfit> {
    let known: Vec<(i32, &FooterColumn)> = footer.columns.iter().filter_map(|c| Some((c.id?, c))).collect();
    let by_id = |what: fn(&FooterColumn) -> Option<u64>| -> HashMap<i32, u64> {
        known.iter().filter_map(|(id, column)| Some((*id, what(column)?))).collect()
    };
    let bounds: Vec<(i32, (Datum, Datum))> =
        known.iter().filter_map(|(id, c)| Some((*id, widened(*id, c.bounds.clone()?, schema)?))).collect();
    DataFileBuilder::default()
        .content(DataContentType::Data)
        .file_path(uri.to_owned())
        .file_format(DataFileFormat::Parquet)
        .partition(partition(footer, schema, spec)?)
        .partition_spec_id(spec.spec_id())
        .record_count(footer.rows)
        .file_size_in_bytes(bytes)
        .column_sizes(by_id(|c| Some(c.bytes)))
        .value_counts(by_id(|c| Some(c.values)))
        .null_value_counts(by_id(|c| c.nulls))
        .lower_bounds(bounds.iter().map(|(id, (least, _))| (*id, least.clone())).collect())
        .upper_bounds(bounds.into_iter().map(|(id, (_, greatest))| (id, greatest)).collect())
        .split_offsets(Some(footer.offsets.clone()))
        .build()
        .map_err(|e| Misfit::Unreadable(e.to_string()))
}

/// Bounds in the type that the table has for the column.
fn widened(id: i32, (least, greatest): (Datum, Datum), schema: &Schema) -> Option<(Datum, Datum)> {
    let of = &schema.field_by_id(id)?.field_type;
    Some((least.to(of).ok()?, greatest.to(of).ok()?))
}

/// The partition of an object: each of its values is a function of a column that has one value in all rows.
fn partition(footer: &Footer, schema: &Schema, spec: &PartitionSpec) -> Result<Struct, Misfit> {
    let value = |field: &iceberg::spec::PartitionField| -> Result<Option<Literal>, Misfit> {
        let none = || Misfit::Partition(field.name.clone());
        if field.transform == Transform::Void {
            return Ok(None);
        }
        let whole = constant(footer, schema, field.source_id).ok_or_else(none)?;
        let function = create_transform_function(&field.transform).ok().ok_or_else(none)?;
        let value = function.transform_literal(&whole).ok().flatten().ok_or_else(none)?;
        Ok(Some(value.into()))
    };
    spec.fields().iter().map(value).collect()
}

/// The value that a column has in every row of an object, in the table's type.
fn constant(footer: &Footer, schema: &Schema, id: i32) -> Option<Datum> {
    let of = &schema.field_by_id(id)?.field_type;
    let column = footer.column(id)?;
    let bounds = column.bounds.as_ref().filter(|(least, greatest)| least == greatest && column.nulls == Some(0));
    if let Some((value, _)) = bounds {
        return value.clone().to(of).ok();
    }
    // Small objects have no bounds of these: their metadata say the same.
    let key = CONSTANT.iter().find(|(name, _)| *name == column.name)?.1;
    let said = footer.said(key)?;
    match of.as_ref() {
        Type::Primitive(PrimitiveType::String) => Some(Datum::string(said)),
        Type::Primitive(PrimitiveType::Long) => said.parse::<i64>().ok().map(Datum::long),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use flowlog_pipeline::encode::schema::COLUMNS;
    use iceberg::spec::{PrimitiveLiteral, UnboundPartitionSpec};

    use super::*;
    use crate::{footer::Tail, schema};

    fn object(name: &str) -> (u64, Box<Footer>) {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../integration/objects");
        let bytes = Bytes::from(std::fs::read(folder.join(name)).expect("an object"));
        let size = bytes.len() as u64;
        match Footer::read(&bytes, size).expect("a footer") {
            Tail::Whole(footer) => (size, footer),
            Tail::Needs(_) => panic!("{name} was given whole"),
        }
    }

    const SAMPLE: &str = "sample/flow_log=web/year=2027/month=01/day=15/hour=09/n-eth0_20270115T090000Z_0.parquet";

    fn schema() -> Schema {
        schema::creation("flows").expect("a table").schema
    }

    fn spec(fields: &[(i32, Transform)]) -> PartitionSpec {
        let mut spec = UnboundPartitionSpec::builder();
        for (id, transform) in fields {
            spec = spec.add_partition_field(*id, format!("f{id}_{transform}"), *transform).expect("a field");
        }
        spec.build().bind(schema()).expect("a spec")
    }

    fn id(name: &str) -> i32 {
        COLUMNS.iter().find(|c| c.name == name).expect("a column").field_id
    }

    #[test]
    fn a_manifest_says_of_an_object_what_its_rows_are() {
        let (bytes, footer) = object(SAMPLE);
        let file = data_file("s3://b/x", bytes, &footer, &schema(), &spec(&[(26, Transform::Hour)])).expect("fits");
        assert_eq!((file.file_size_in_bytes(), file.record_count()), (bytes, 34));
        let offsets = file.split_offsets().expect("where row groups begin");
        assert!(offsets.len() == 3 && offsets[0] == 4 && offsets.is_sorted(), "{offsets:?}");
        // 1,800,003,600 s is hour 500,001 since 1970.
        assert_eq!(file.partition().fields(), [Some(Literal::int(500_001))]);
        let bound = |name: &str| {
            let (least, greatest) = (&file.lower_bounds()[&id(name)], &file.upper_bounds()[&id(name)]);
            (least.literal().clone(), greatest.literal().clone())
        };
        assert_eq!(bound("dstport"), (PrimitiveLiteral::Int(1), PrimitiveLiteral::Int(40_000)));
        // The last two row groups have no address at all.
        let text = |text: &str| PrimitiveLiteral::String(text.to_owned());
        assert_eq!(bound("srcaddr"), (text("10.0.0.1"), text("203.0.113.7")));
        let start = PrimitiveLiteral::Long(1_800_003_600_000_000);
        assert_eq!(bound("window_start"), (start.clone(), start));
        assert_eq!(file.value_counts()[&id("packets")], 34);
        assert_eq!(file.null_value_counts()[&id("interface_id")], 0);
        assert!(file.null_value_counts()[&id("rule_mark")] == 34, "no row has one");
    }

    #[test]
    fn a_partition_is_what_an_object_has_one_value_of() {
        let fits = |name: &str, fields: &[(i32, Transform)]| {
            let (bytes, footer) = object(name);
            let file = data_file("s3://b/x", bytes, &footer, &schema(), &spec(fields))?;
            Ok::<_, Misfit>(file.partition().fields().to_vec())
        };
        let parts = [(id("rule_id"), Transform::Identity), (26, Transform::Day), (id("node_id"), Transform::Identity)];
        let expected = vec![Some(Literal::string("web")), Some(Literal::date(20_833)), Some(Literal::string("n"))];
        assert_eq!(fits(SAMPLE, &parts), Ok(expected.clone()));
        // Of a few rows there are no bounds: the metadata say it.
        assert_eq!(fits(&SAMPLE.replace("09", "08"), &parts), Ok(expected));
        let many = fits(SAMPLE, &[(id("srcaddr"), Transform::Identity)]);
        assert!(matches!(many, Err(Misfit::Partition(_))), "{many:?}");
    }

    #[test]
    fn objects_of_another_version_or_another_window_are_refused() {
        let check = |uri: &str, name: &str| check(uri, &object(name).1, "a.b").map_err(|misfit| misfit.reason());
        assert_eq!(check("s3://b/n-eth0_20270115T090000Z_0.parquet", SAMPLE), Ok(()));
        assert_eq!(check("s3://b/n-eth0_20270115T091000Z_0.parquet", SAMPLE), Err("window"));
        for version in ["v1", "v2", "v3"] {
            assert_eq!(check("s3://b/x.parquet", &format!("{version}-plain.parquet")), Err("version"));
        }
        assert_eq!(check("s3://b/x.parquet", "v4-nodata.parquet"), Ok(()));
    }

    #[test]
    fn what_is_no_object_is_not_taken_for_one() {
        let (whole, size) = {
            let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../integration/objects");
            let bytes = Bytes::from(std::fs::read(folder.join(SAMPLE)).expect("an object"));
            (bytes.clone(), bytes.len() as u64)
        };
        let needs = Footer::read(&whole.slice(whole.len() - 100..), size).expect("its end");
        assert!(matches!(needs, Tail::Needs(range) if range.end == size && range.start > 0));
        for end in 0..whole.len() {
            assert!(Footer::read(&whole.slice(..end), end as u64).is_err(), "cut at {end}");
        }
    }
}
