//! Columns of numbers that differ from row to row, none missing: the numbers themselves, or how much each differs from the one before.

use parquet::{basic::Encoding, errors::ParquetError, schema::types::ColumnDescPtr};

use super::{
    chunk::{Chunk, Compressor, PAGE_ROWS, PageBody, Pages, Says, pages, same_levels},
    labels::LabelRef,
    pack::{pack, varint},
};

/// How such numbers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LongsEncoding {
    Plain,
    /// Parquet's `DELTA_BINARY_PACKED`.
    Delta,
}

/// Differences in a block, and in each of the parts that have a width of their own: what readers are used to for numbers of 64 bits.
const BLOCK: usize = 256;
const PART: usize = 64;
const PARTS: usize = BLOCK / PART;

/// A whole column chunk, to be appended to a row group.
pub(super) fn chunk(
    column: &ColumnDescPtr,
    values: &[i64],
    longs: LongsEncoding,
    compressor: &mut Compressor,
    says: Says,
) -> Result<Chunk, ParquetError> {
    let mut out = Pages::new(column, Some(compressor));
    for page in pages(values.len(), PAGE_ROWS) {
        let values = &values[page];
        let mut bytes = Vec::with_capacity(size_of_val(values));
        if column.max_def_level() > 0 {
            same_levels(&mut bytes, true, values.len());
        }
        let encoding = match longs {
            LongsEncoding::Plain => {
                bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
                Encoding::PLAIN
            }
            LongsEncoding::Delta => {
                deltas(&mut bytes, values);
                Encoding::DELTA_BINARY_PACKED
            }
        };
        let least = values.iter().min().copied().map(LabelRef::Long);
        let bounds = least.zip(values.iter().max().copied().map(LabelRef::Long));
        out.page(PageBody { bytes, encoding, rows: values.len(), nulls: 0, bounds })?;
    }
    out.close(says)
}

/// <https://parquet.apache.org/docs/file-format/data-pages/encodings/#delta-encoding-delta_binary_packed--5>
fn deltas(out: &mut Vec<u8>, values: &[i64]) {
    let mut before = values.first().copied().unwrap_or_default();
    varint(out, BLOCK as u64);
    varint(out, PARTS as u64);
    varint(out, values.len() as u64);
    varint(out, zigzag(before));
    let mut deltas = [0; BLOCK];
    for block in values.get(1..).unwrap_or_default().chunks(BLOCK) {
        let deltas = &mut deltas[..block.len()];
        for (delta, value) in deltas.iter_mut().zip(block) {
            *delta = value.wrapping_sub(before);
            before = *value;
        }
        let least = deltas.iter().min().copied().unwrap_or_default();
        varint(out, zigzag(least));
        // Above the least one, and none is below it: as numbers without a sign.
        let above = |delta: i64| delta.wrapping_sub(least).cast_unsigned();
        let widths = out.len();
        out.extend_from_slice(&[0; PARTS]);
        for (number, part) in deltas.chunks(PART).enumerate() {
            let bits = part.iter().fold(0, |all, delta| all | above(*delta)).bit_width() as usize;
            out[widths + number] = u8::try_from(bits).expect("at most 64");
            pack(out, part, bits, PART * bits / 8, above);
        }
    }
}

/// Small numbers of either sign as small ones without.
fn zigzag(n: i64) -> u64 {
    (n << 1 ^ n >> 63).cast_unsigned()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use parquet::{
        basic::Compression,
        file::{
            properties::WriterProperties, reader::FileReader as _, serialized_reader::SerializedFileReader,
            writer::SerializedFileWriter,
        },
        record::RowAccessor as _,
        schema::parser::parse_message_type,
    };

    use super::*;

    /// Writes a column and reads it back with the library's reader.
    fn there_and_back(of: &str, values: &[i64], encoding: LongsEncoding) -> Vec<i64> {
        let schema = Arc::new(parse_message_type(&format!("message m {{ {of} int64 a; }}")).expect("a schema"));
        let mut file =
            SerializedFileWriter::new(Vec::new(), schema, Arc::new(WriterProperties::new())).expect("a file");
        let column = file.schema_descr().column(0);
        let mut group = file.next_row_group().expect("a row group");
        let mut compressor = Compressor::new(Compression::UNCOMPRESSED, 0).expect("a compressor");
        let says = Says { bounds: true, pages: true };
        let (bytes, close) = chunk(&column, values, encoding, &mut compressor, says).expect("a chunk");
        group.append_column(&bytes, close).expect("appends");
        group.close().expect("closes");
        let reader = SerializedFileReader::new(Bytes::from(file.into_inner().expect("finishes"))).expect("a file");
        let rows = reader.get_row_iter(None).expect("rows").map(|row| row.expect("a row"));
        rows.map(|row| row.get_long(0).expect("a number")).collect()
    }

    #[test]
    fn numbers_read_back_as_written_whatever_their_width_and_number() {
        let mut state = 1_u64;
        let mut random = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state ^ state >> 29
        };
        for bits in 0..=u64::BITS {
            for rows in [1, 2, PART, PART + 1, PART + 2, BLOCK, BLOCK + 1, BLOCK + 2, 3 * BLOCK + 77] {
                let of_width = |n: u64| n.checked_shr(u64::BITS - bits).unwrap_or_default().cast_signed();
                let values: Vec<i64> = (0..rows).map(|_| of_width(random())).collect();
                for encoding in [LongsEncoding::Plain, LongsEncoding::Delta] {
                    for of in ["required", "optional"] {
                        assert!(
                            there_and_back(of, &values, encoding) == values,
                            "{bits} bits, {rows} rows, {encoding:?}"
                        );
                    }
                }
            }
        }
        let long: Vec<i64> = (0..PAGE_ROWS + 300).map(|_| random().cast_signed() >> 40).collect();
        assert!(there_and_back("optional", &long, LongsEncoding::Delta) == long, "two pages");
        let extremes = [i64::MIN, i64::MAX, 0, i64::MAX, i64::MIN, -1];
        assert_eq!(there_and_back("optional", &extremes, LongsEncoding::Delta), extremes);
    }
}
