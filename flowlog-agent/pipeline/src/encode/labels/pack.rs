//! Numbers in runs, bit by bit: Parquet's hybrid of run-length encoding and bit packing
//! (<https://parquet.apache.org/docs/file-format/data-pages/encodings/>).

/// Values in one bit-packed run: as many as a header of one byte tells.
pub(super) const RUN: usize = 63 * 8;

fn varint(out: &mut Vec<u8>, mut n: usize) {
    while n >= 0x80 {
        out.push(n.to_le_bytes()[0] | 0x80);
        n >>= 7;
    }
    out.push(n.to_le_bytes()[0]);
}

/// One run of `count` equal values.
pub(super) fn run(out: &mut Vec<u8>, value: u32, count: usize, bits: usize) {
    varint(out, count << 1);
    out.extend_from_slice(&value.to_le_bytes()[..bits.div_ceil(8)]);
}

/// Bit-packed runs; the last group of eight is filled up with zeros.
pub(super) fn packed(out: &mut Vec<u8>, values: &[u32], bits: usize) {
    packed_as(out, values, bits, |value| value);
}

/// The same of what `each` makes of the values.
pub(super) fn packed_as(out: &mut Vec<u8>, values: &[u32], bits: usize, each: impl Fn(u32) -> u32) {
    out.reserve(values.len() * bits / 8 + values.len() / RUN + 16);
    for of_run in values.chunks(RUN) {
        let groups = of_run.len().div_ceil(8);
        varint(out, groups << 1 | 1);
        let end = out.len() + groups * bits;
        let mut word = 0u64;
        let mut filled = 0;
        for value in of_run {
            word |= u64::from(each(*value)) << filled;
            filled += bits;
            if filled >= 32 {
                out.extend_from_slice(&word.to_le_bytes()[..4]);
                word >>= 32;
                filled -= 32;
            }
        }
        out.extend_from_slice(&word.to_le_bytes());
        // Up to seven bytes more than are filled, or zeros of the last group.
        out.resize(end, 0);
    }
}
