//! Numbers in runs, bit by bit: Parquet's hybrid of run-length encoding and bit packing
//! (<https://parquet.apache.org/docs/file-format/data-pages/encodings/>).

/// Values in one bit-packed run: as many as a header of one byte tells.
pub(super) const RUN: usize = 63 * 8;

pub(super) fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n.to_le_bytes()[0] | 0x80);
        n >>= 7;
    }
    out.push(n.to_le_bytes()[0]);
}

/// One run of `count` equal values.
pub(super) fn run(out: &mut Vec<u8>, value: u32, count: usize, bits: usize) {
    varint(out, (count as u64) << 1);
    out.extend_from_slice(&value.to_le_bytes()[..bits.div_ceil(8)]);
}

/// Bit-packed runs of what `each` makes of the values; the last group of eight is filled up with zeros.
pub(super) fn packed<T: Copy>(out: &mut Vec<u8>, values: &[T], bits: usize, each: impl Fn(T) -> u32) {
    out.reserve(values.len() * bits / 8 + values.len() / RUN + 16);
    for of_run in values.chunks(RUN) {
        let groups = of_run.len().div_ceil(8);
        varint(out, (groups as u64) << 1 | 1);
        pack(out, of_run, bits, groups * bits, |value| u64::from(each(value)));
    }
}

/// Appends the lower bits of what `each` makes of the values, `length` bytes: all others are zero.
pub(super) fn pack<T: Copy>(out: &mut Vec<u8>, values: &[T], bits: usize, length: usize, each: impl Fn(T) -> u64) {
    let from = out.len();
    // Whole words are written, of which the last one goes past the end.
    out.resize(from + length + 2 * WORD, 0);
    let place = &mut out[from..];
    // Up to seven bits of a word are left of the values before.
    match bits {
        0 => {}
        1..=7 => fill::<8, T>(place, values, bits, each),
        8..=14 => fill::<4, T>(place, values, bits, each),
        15..=28 => fill::<2, T>(place, values, bits, each),
        29..=56 => fill::<1, T>(place, values, bits, each),
        _ => wide(place, values, bits, each),
    }
    out.truncate(from + length);
}

/// Bytes that are written at once.
const WORD: usize = size_of::<u64>();

/// The same with so many values to a word.
#[inline]
fn fill<const AT_ONCE: usize, T: Copy>(place: &mut [u8], values: &[T], bits: usize, each: impl Fn(T) -> u64) {
    let (mut at, mut word, mut filled) = (0, 0u64, 0);
    let mut flush = |word: &mut u64, filled: &mut usize| {
        place[at..at + WORD].copy_from_slice(&word.to_le_bytes());
        at += *filled / 8;
        *word >>= *filled & !7;
        *filled &= 7;
    };
    let (whole, rest) = values.as_chunks::<AT_ONCE>();
    for some in whole {
        for value in some {
            word |= each(*value) << filled;
            filled += bits;
        }
        flush(&mut word, &mut filled);
    }
    for value in rest {
        word |= each(*value) << filled;
        filled += bits;
    }
    flush(&mut word, &mut filled);
}

/// The same of numbers that, with bits that are left, do not fit into a word.
#[cold]
fn wide<T: Copy>(place: &mut [u8], values: &[T], bits: usize, each: impl Fn(T) -> u64) {
    let (mut at, mut word, mut filled) = (0, 0u128, 0);
    for value in values {
        word |= u128::from(each(*value)) << filled;
        filled += bits;
        place[at..at + 2 * WORD].copy_from_slice(&word.to_le_bytes());
        at += filled / 8;
        word >>= filled & !7;
        filled &= 7;
    }
}
