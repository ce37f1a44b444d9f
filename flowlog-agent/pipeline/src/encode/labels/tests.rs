use std::sync::Arc;

use bytes::Bytes;
use parquet::{
    basic::{Compression, ZstdLevel},
    file::{
        page_index::column_index::ColumnIndexMetaData,
        properties::WriterProperties,
        reader::FileReader as _,
        serialized_reader::{ReadOptionsBuilder, SerializedFileReader},
        statistics::Statistics,
        writer::SerializedFileWriter,
    },
    record::{Field, RowAccessor as _},
    schema::parser::parse_message_type,
};

use super::*;
use crate::encode::{chunk::PAGE_ROWS, pack::RUN};

/// One optional INT32 column as a file.
fn written(labels: &Labels) -> Bytes {
    written_as("int32", labels)
}

/// One optional column of a type as a file.
fn written_as(of: &str, labels: &Labels) -> Bytes {
    let schema = Arc::new(parse_message_type(&format!("message m {{ optional {of} a; }}")).expect("a schema"));
    let codec = Compression::ZSTD(ZstdLevel::try_new(1).expect("a level"));
    let mut file = SerializedFileWriter::new(Vec::new(), schema, Arc::new(WriterProperties::new())).expect("a file");
    let column = file.schema_descr().column(0);
    let mut group = file.next_row_group().expect("a row group");
    let mut compressor = Compressor::new(codec, 1).expect("a compressor");
    let says = Says { bounds: true, pages: true };
    let (bytes, close) = chunk(&column, labels, &mut compressor, says).expect("a chunk");
    group.append_column(&bytes, close).expect("appends");
    group.close().expect("closes");
    Bytes::from(file.into_inner().expect("finishes"))
}

/// Writes one optional INT32 column and reads it back with the library's reader.
fn there_and_back(labels: &Labels) -> Vec<Option<i32>> {
    let reader = SerializedFileReader::new(written(labels)).expect("a Parquet file");
    let rows = reader.get_row_iter(None).expect("rows").map(|row| row.expect("a row"));
    rows.map(|row| match row.get_column_iter().next() {
        Some((_, Field::Null)) => None,
        _ => Some(row.get_int(0).expect("an integer")),
    })
    .collect()
}

#[test]
fn labels_read_back_as_written_whatever_their_number_and_gaps() {
    for rows in [1, 7, 8, 9, RUN - 1, RUN, RUN + 1, 3 * RUN + 5, PAGE_ROWS + 3] {
        for different in [1, 2, 3, 255, 256, 257, 40_000] {
            for gap in [0, 1, 2, 7] {
                let mut labels = Labels::default();
                for value in 0..different {
                    labels.label(&Label::Int(value - 5));
                }
                let value = |row: usize| (i32::try_from(row * 7).unwrap_or(0)) % different;
                // Gap 1: nothing but nulls.
                let null = |row: usize| gap != 0 && row.is_multiple_of(gap);
                for row in 0..rows {
                    labels.push(if null(row) { NULL } else { u32::try_from(value(row)).unwrap_or(NULL) });
                }
                let wanted: Vec<_> = (0..rows).map(|row| (!null(row)).then(|| value(row) - 5)).collect();
                assert!(there_and_back(&labels) == wanted, "{rows} rows, {different} labels, gap {gap}");
            }
        }
    }
}

#[test]
fn bounds_are_those_of_the_rows_for_the_chunk_and_for_each_page() {
    // As many labels as are looked for one by one, and as codes of each width tell apart.
    for different in [10, 200, 300, 70_000] {
        bounds_are_those_of_the_rows_with(different);
    }
}

fn bounds_are_those_of_the_rows_with(different: i32) {
    // The vocabulary begins with 0; the first page has 3 to 5, the second nothing, the third 7.
    let mut labels = Labels::default();
    for value in 0..different {
        labels.label(&Label::Int(value));
    }
    for row in 0..=2 * PAGE_ROWS {
        let code = if row < PAGE_ROWS { 3 + u32::try_from(row % 3).unwrap_or(0) } else { NULL };
        labels.push(if row == 2 * PAGE_ROWS { 7 } else { code });
    }
    let options = ReadOptionsBuilder::new().with_page_index().build();
    let reader = SerializedFileReader::new_with_options(written(&labels), options).expect("a Parquet file");
    let metadata = reader.metadata();
    let column = metadata.row_group(0).column(0);
    let Some(Statistics::Int32(chunk)) = column.statistics() else { panic!("{:?}", column.statistics()) };
    assert_eq!(
        (chunk.min_opt(), chunk.max_opt(), chunk.null_count_opt()),
        (Some(&3), Some(&7), Some(PAGE_ROWS as u64))
    );
    let index = metadata.page_index_for_row_group(0);
    let Some(ColumnIndexMetaData::INT32(pages)) = index.column_index(0) else { panic!("no index") };
    let bounds: Vec<_> = (0..3).map(|page| (pages.min_value(page).copied(), pages.max_value(page).copied())).collect();
    assert_eq!(bounds, [(Some(3), Some(5)), (None, None), (Some(7), Some(7))]);
    let none = SerializedFileReader::new(written(&Labels::same(None, 10))).expect("a Parquet file");
    let none = none.metadata().row_group(0).column(0).statistics().cloned().expect("a number of nulls");
    assert_eq!((none.min_bytes_opt(), none.max_bytes_opt(), none.null_count_opt()), (None, None, Some(10)));
}

#[test]
fn a_column_of_one_value_or_of_none_reads_back() {
    assert_eq!(there_and_back(&Labels::same(Some(Label::Int(2)), 1_000)), vec![Some(2); 1_000]);
    assert_eq!(there_and_back(&Labels::same(None, 1_000)), vec![None; 1_000]);
}

#[test]
fn whether_or_not_reads_back_as_written_and_null_as_null() {
    for rows in [1, 5, 8, 4_003, PAGE_ROWS + 3] {
        for gap in [0, 1, 2, 7] {
            let mut labels = Labels::default();
            for value in [false, true] {
                labels.label(&Label::Bool(value));
            }
            let value = |row: usize| (gap == 0 || !row.is_multiple_of(gap)).then_some(row % 3 == 1);
            (0..rows).for_each(|row| labels.push(value(row).map_or(NULL, u32::from)));
            let reader = SerializedFileReader::new(written_as("boolean", &labels)).expect("a Parquet file");
            let read = reader.get_row_iter(None).expect("rows").map(|row| row.expect("a row"));
            let read = read.map(|row| match row.get_column_iter().next() {
                Some((_, Field::Bool(value))) => Some(*value),
                _ => None,
            });
            assert!(read.eq((0..rows).map(value)), "{rows} rows, gap {gap}");
            let has = |wanted| (0..rows).any(|row| value(row) == Some(wanted));
            let bounds = [true, false].map(|other| if has(!other) { !other } else { other });
            let column = reader.metadata().row_group(0).column(0);
            let Some(Statistics::Boolean(said)) = column.statistics() else { panic!("{:?}", column.statistics()) };
            let any = has(true) || has(false);
            let wanted = (any.then_some(bounds[0]), any.then_some(bounds[1]));
            assert_eq!((said.min_opt().copied(), said.max_opt().copied()), wanted, "{rows} rows, gap {gap}");
        }
    }
}

#[test]
fn columns_that_get_more_labels_on_the_way_keep_what_rows_had() {
    let mut labels = Labels::with_room(10);
    let rows = 70_000;
    for row in 0..rows {
        // Nothing but the same at first; then a new one in each row, with nulls among them.
        let code = labels.label(&Label::Int(row));
        labels.push(if row < 200 {
            0
        } else if row % 3 == 0 {
            NULL
        } else {
            code
        });
    }
    let wanted = (0..rows).map(|row| if row < 200 { Some(0) } else { (row % 3 != 0).then_some(row) });
    assert!(there_and_back(&labels) == wanted.collect::<Vec<_>>(), "{rows} rows");
}
