//! Blocks of records, as they lie in the ring and in the journal.
#![allow(unsafe_code)] // records are plain bytes

use flowlog_ebpf::abi::{BlockHeader, FAMILY_V4, FAMILY_V6, Key, Record4, Record6};

/// One record, by address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// IPv4.
    V4(Record4),
    /// IPv6.
    V6(Record6),
}

/// The records of a block; nothing if it makes no sense.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    bytes: &'a [u8],
    v6: bool,
}

impl<'a> Records<'a> {
    /// `None`: this is no block of ours.
    #[must_use]
    pub fn parse(block: &'a [u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_ne_bytes(block.get(at..at + 4)?.try_into().ok()?));
        let (records, family) = (word(0)? as usize, word(4)?);
        let size = match family {
            FAMILY_V4 => size_of::<Record4>(),
            FAMILY_V6 => size_of::<Record6>(),
            _ => return None,
        };
        let bytes = block.get(size_of::<BlockHeader>()..)?.get(..records.checked_mul(size)?)?;
        (records > 0).then_some(Self { bytes, v6: family == FAMILY_V6 })
    }

    fn take<R: Copy>(&mut self) -> Option<R> {
        let (head, rest) = self.bytes.split_at_checked(size_of::<R>())?;
        self.bytes = rest;
        // SAFETY: records are plain integers for which any bytes are valid; the slice is as long as one.
        Some(unsafe { head.as_ptr().cast::<R>().read_unaligned() })
    }
}

impl Iterator for Records<'_> {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        if self.v6 { self.take().map(Record::V6) } else { self.take().map(Record::V4) }
    }
}

impl Record {
    /// What does not depend on the family.
    #[must_use]
    pub fn meta(&self) -> flowlog_ebpf::abi::Meta {
        match self {
            Self::V4(r) => r.key.meta,
            Self::V6(r) => r.key.meta,
        }
    }
}

/// Appends a block of one family to `out`, as a CPU would have sent it.
pub fn write<A: Copy>(out: &mut Vec<u8>, family: u32, records: &[flowlog_ebpf::abi::Record<A>]) {
    const { assert!(size_of::<Key<A>>().is_multiple_of(8)) };
    out.extend_from_slice(&u32::try_from(records.len()).unwrap_or(0).to_ne_bytes());
    out.extend_from_slice(&family.to_ne_bytes());
    // SAFETY: records are `repr(C)` integers without padding (their sizes are asserted in `abi`).
    out.extend_from_slice(unsafe {
        std::slice::from_raw_parts(records.as_ptr().cast::<u8>(), std::mem::size_of_val(records))
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowlog_ebpf::abi::Stats;

    #[test]
    fn a_block_is_read_as_it_was_written_and_nonsense_is_no_block() {
        let mut record = Record6::default();
        (record.key.src, record.stats) = ([1, 2], Stats { packets: 3, ..Stats::default() });
        let mut bytes = Vec::new();
        write(&mut bytes, FAMILY_V6, &[record, Record6::default()]);
        let read: Vec<Record> = Records::parse(&bytes).expect("a block").collect();
        assert_eq!(read, [Record::V6(record), Record::V6(Record6::default())]);
        for cut in 0..bytes.len() {
            assert!(Records::parse(&bytes[..cut]).is_none(), "{cut}");
        }
        bytes[4] = 5;
        assert!(Records::parse(&bytes).is_none());
    }
}
