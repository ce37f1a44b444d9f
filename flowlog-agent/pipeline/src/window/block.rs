//! Blocks of records, as they lie in the ring and in the journal: `repr(C)` integers without padding, in this machine's byte
//! order (`flowlog_ebpf::abi`).

use std::hash::Hasher;

use flowlog_ebpf::abi::{
    BlockHeader, FAMILY_V4, FAMILY_V6, Ip4, Ip6, Key, Meta, Record as AbiRecord, Record4, Record6, Stats,
};

/// One record, by address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    V4(Record4),
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
        let records = word(0)? as usize;
        let family = word(4)?;
        let size = match family {
            FAMILY_V4 => size_of::<Record4>(),
            FAMILY_V6 => size_of::<Record6>(),
            _ => return None,
        };
        let bytes = block.get(size_of::<BlockHeader>()..)?.get(..records.checked_mul(size)?)?;
        (records > 0).then_some(Self { bytes, v6: family == FAMILY_V6 })
    }

    fn take<A: Address>(&mut self) -> Option<AbiRecord<A>> {
        let (head, rest) = self.bytes.split_at_checked(size_of::<AbiRecord<A>>())?;
        self.bytes = rest;
        Words(head).record()
    }
}

impl Iterator for Records<'_> {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        if self.v6 { self.take::<Ip6>().map(Record::V6) } else { self.take::<Ip4>().map(Record::V4) }
    }
}

impl Record {
    /// What does not depend on the family.
    #[must_use]
    pub(crate) fn meta(&self) -> flowlog_ebpf::abi::Meta {
        match self {
            Self::V4(r) => r.key.meta,
            Self::V6(r) => r.key.meta,
        }
    }
}

/// Takes numbers from the front of bytes.
pub(crate) struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn next<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.next().map(u8::from_ne_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.next().map(u16::from_ne_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.next().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.next().map(u64::from_ne_bytes)
    }

    /// In the order of `abi::Record` and its members.
    fn record<A: Address>(&mut self) -> Option<AbiRecord<A>> {
        let src = A::read(self)?;
        let dst = A::read(self)?;
        let meta = Meta {
            sport: self.u16()?,
            dport: self.u16()?,
            vlan: self.u16()?,
            iface: self.u16()?,
            reason: self.u16()?,
            proto: self.u8()?,
            flags: self.u8()?,
            epoch: self.u32()?,
        };
        let stats = Stats {
            first_ns: self.u64()?,
            last_ns: self.u64()?,
            bytes: self.u64()?,
            packets: self.u64()?,
            tcp_flags: self.u32()?,
            tag: self.u32()?,
        };
        Some(AbiRecord { key: Key { src, dst, meta }, stats })
    }
}

/// An address of a record.
pub(crate) trait Address: Sized {
    fn read(words: &mut Words<'_>) -> Option<Self>;
    fn write(&self, out: &mut Vec<u8>);
    /// Wide enough for either family, as in [`flowlog_ebpf::abi::Side`].
    fn wide(self) -> Ip6;
    /// An address that was made [`wide`](Self::wide).
    fn narrow(wide: Ip6) -> Self;
    /// Hashes two of them.
    fn hash_both(a: &Self, b: &Self, state: &mut impl Hasher);
}

impl Address for Ip4 {
    fn read(words: &mut Words<'_>) -> Option<Self> {
        words.u32()
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.to_ne_bytes());
    }

    fn wide(self) -> Ip6 {
        [u64::from(self), 0]
    }

    #[allow(clippy::cast_possible_truncation, reason = "an IPv4 address is in the lower half")]
    fn narrow([low, _]: Ip6) -> Self {
        low as Self
    }

    #[inline]
    fn hash_both(a: &Self, b: &Self, state: &mut impl Hasher) {
        state.write_u64(u64::from(*a) | u64::from(*b) << 32);
    }
}

impl Address for Ip6 {
    fn read(words: &mut Words<'_>) -> Option<Self> {
        Some([words.u64()?, words.u64()?])
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.iter().flat_map(|half| half.to_ne_bytes()));
    }

    fn wide(self) -> Ip6 {
        self
    }

    fn narrow(wide: Ip6) -> Self {
        wide
    }

    #[inline]
    fn hash_both(a: &Self, b: &Self, state: &mut impl Hasher) {
        for half in a.iter().chain(b) {
            state.write_u64(*half);
        }
    }
}

/// Appends a block of one family to `out`, as a CPU would have sent it.
pub(crate) fn write<A: Address>(out: &mut Vec<u8>, family: u32, records: &[AbiRecord<A>]) {
    out.extend(u32::try_from(records.len()).unwrap_or(0).to_ne_bytes());
    out.extend(family.to_ne_bytes());
    for AbiRecord { key: Key { src, dst, meta: m }, stats } in records {
        src.write(out);
        dst.write(out);
        out.extend([m.sport, m.dport, m.vlan, m.iface, m.reason].iter().flat_map(|n| n.to_ne_bytes()));
        out.extend([m.proto, m.flags]);
        out.extend(m.epoch.to_ne_bytes());
        let Stats { first_ns, last_ns, bytes, packets, tcp_flags, tag } = stats;
        out.extend([first_ns, last_ns, bytes, packets].iter().flat_map(|n| n.to_ne_bytes()));
        out.extend([tcp_flags, tag].iter().flat_map(|n| n.to_ne_bytes()));
    }
}

#[cfg(test)]
mod tests {
    use flowlog_ebpf::abi::Stats;

    use super::*;

    #[test]
    fn a_block_is_read_as_it_was_written_and_nonsense_is_no_block() {
        let mut record = Record6::default();
        record.key.src = [1, 2];
        record.stats = Stats { packets: 3, ..Stats::default() };
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
