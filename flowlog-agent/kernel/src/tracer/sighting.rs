//! Sightings, read back from the lines that the programs have logged.

use std::{
    mem::offset_of,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use flowlog_ebpf::{
    abi::{FAMILY_V4, FAMILY_V6, Key, Meta, Note, PLACE_BITS, PLACE_FRAGMENT, PLACE_V6},
    expression::Subject,
    sighting::{HEAD_BYTES, Sighting},
};
use flowlog_model::translation::Tuple;

/// Bytes of a sighting.
const BYTES: usize = size_of::<Sighting>();
/// Words of a connection's tuple (`struct nf_conntrack_tuple`): source port and address family; the destination; its port and the protocol.
const FAMILY: usize = 4;
const DESTINATION: usize = 5;
const PROTOCOL: usize = 9;
/// Address family of IPv4 (`include/linux/socket.h`).
const AF_INET: u16 = 2;

/// One packet at one place, as it was sent.
pub(super) struct Seen(Box<[u8; BYTES]>);

impl Seen {
    /// From hexadecimal digits. `None`: it is no sighting.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let digits = line.as_bytes();
        if digits.len() != 2 * BYTES {
            return None;
        }
        let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let mut bytes = Box::new([0; BYTES]);
        for (byte, pair) in bytes.iter_mut().zip(digits.as_chunks::<2>().0) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Self(bytes))
    }

    /// `N` bytes from `at` on, which is within.
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
    }

    /// The 64-bit member at this offset of [`Sighting`].
    pub(super) fn long(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.bytes(at))
    }

    /// The 32-bit member at this offset of [`Sighting`].
    pub(super) fn word(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.bytes(at))
    }

    fn half(&self, at: usize) -> u16 {
        u16::from_ne_bytes(self.bytes(at))
    }

    /// The member of what the headers say at this offset of [`Subject`].
    pub(super) fn said(&self, at: usize) -> u16 {
        self.half(offset_of!(Sighting, subject) + at)
    }

    fn address(&self, at: usize, is_v4: bool) -> IpAddr {
        if is_v4 {
            IpAddr::V4(Ipv4Addr::from(self.bytes::<4>(at)))
        } else {
            IpAddr::V6(Ipv6Addr::from(self.bytes::<16>(at)))
        }
    }

    /// What the headers say; `None`: they are not of an IP packet.
    pub(super) fn headers(&self) -> Option<Tuple> {
        let is_v4 = match self.said(offset_of!(Subject, family)) {
            4 => true,
            6 => false,
            _ => return None,
        };
        let at = offset_of!(Sighting, subject);
        Some(Tuple {
            src: self.address(at + offset_of!(Subject, src), is_v4),
            dst: self.address(at + offset_of!(Subject, dst), is_v4),
            sport: self.said(offset_of!(Subject, sport)),
            dport: self.said(offset_of!(Subject, dport)),
            proto: u8::try_from(self.said(offset_of!(Subject, proto))).unwrap_or(0),
        })
    }

    /// Its note.
    pub(super) fn note(&self) -> Noted {
        let at = offset_of!(Sighting, note);
        let place = self.word(at + offset_of!(Note, place)) >> PLACE_BITS;
        let family = if place & PLACE_V6 == 0 { FAMILY_V4 } else { FAMILY_V6 };
        let meta = at + offset_of!(Note, key) + offset_of!(Key<u32>, meta);
        let ends = if family == FAMILY_V4 {
            let key = at + offset_of!(Note, key);
            [key + offset_of!(Key<u32>, src), key + offset_of!(Key<u32>, dst)]
        } else {
            [offset_of!(Sighting, ends6), offset_of!(Sighting, ends6) + 16]
        };
        let [src, dst] = ends.map(|at| self.address(at, family == FAMILY_V4));
        Noted {
            tuple: Tuple {
                src,
                dst,
                sport: self.half(meta + offset_of!(Meta, sport)),
                dport: self.half(meta + offset_of!(Meta, dport)),
                proto: self.bytes::<1>(meta + offset_of!(Meta, proto))[0],
            },
            ifindex: u32::from(self.half(at + offset_of!(Note, ifindex))),
            is_egress: self.bytes::<1>(meta + offset_of!(Meta, flags))[0] & 1 != 0,
            kind: place & (PLACE_FRAGMENT - 1),
            is_fragment: place & PLACE_FRAGMENT != 0,
        }
    }

    /// Tuples of packets like it before and after translation; `None`: they are not translated.
    pub(super) fn translation(&self) -> Option<(Tuple, Tuple)> {
        if self.word(offset_of!(Sighting, is_translated)) == 0 {
            return None;
        }
        let at = offset_of!(Sighting, tuples);
        let tuple = |at: usize| {
            let is_v4 = self.half(at + 4 * FAMILY + 2) == AF_INET;
            let port = |at: usize| u16::from_be_bytes(self.bytes(at));
            Tuple {
                src: self.address(at, is_v4),
                dst: self.address(at + 4 * DESTINATION, is_v4),
                sport: port(at + 4 * FAMILY),
                dport: port(at + 4 * PROTOCOL),
                proto: self.bytes::<1>(at + 4 * PROTOCOL + 2)[0],
            }
        };
        let words = (BYTES - HEAD_BYTES - at) / 2;
        Some((tuple(at), tuple(at + words).reversed()))
    }

    /// How the frame begins, if it was kept.
    pub(super) fn head(&self) -> &[u8] {
        let at = offset_of!(Sighting, head);
        let len = self.word(offset_of!(Sighting, head_bytes)) as usize;
        self.0.get(at..at + len.min(HEAD_BYTES)).unwrap_or_default()
    }
}

/// What a hook has noted of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Noted {
    pub(super) tuple: Tuple,
    /// The interface of that hook.
    pub(super) ifindex: u32,
    pub(super) is_egress: bool,
    /// Where it was counted: a `PLACE_*` without the marks.
    pub(super) kind: u32,
    pub(super) is_fragment: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_sighting_is_none() {
        for junk in [String::new(), "0".repeat(2 * BYTES - 1), "x".repeat(2 * BYTES), "é".repeat(BYTES)] {
            assert!(Seen::parse(&junk).is_none());
        }
        let zeros = Seen::parse(&"0".repeat(2 * BYTES)).expect("as long as one");
        assert!(zeros.headers().is_none() && zeros.translation().is_none() && zeros.head().is_empty());
    }

    #[test]
    fn members_are_where_the_programs_have_written_them() {
        let mut bytes = [0u8; BYTES];
        let mut put = |at: usize, what: &[u8]| bytes[at..at + what.len()].copy_from_slice(what);
        let subject = offset_of!(Sighting, subject);
        put(subject, &[10, 0, 0, 1]);
        put(subject + 16, &[10, 0, 0, 2]);
        put(subject + 32, &22u16.to_ne_bytes());
        put(subject + 40, &4u16.to_ne_bytes());
        put(subject + 42, &6u16.to_ne_bytes());
        put(offset_of!(Sighting, is_translated), &1u32.to_ne_bytes());
        let tuple = offset_of!(Sighting, tuples);
        for (n, last) in [(0, 1), (40, 9)] {
            put(tuple + n, &[10, 0, 0, last]);
            put(tuple + n + 16, &[0x11, 0x22, 2, 0]);
            put(tuple + n + 20, &[10, 0, 0, last + 1]);
            put(tuple + n + 36, &[0, 80, 6, 0]);
        }
        put(offset_of!(Sighting, head_bytes), &2u32.to_ne_bytes());
        put(offset_of!(Sighting, head), &[1, 2, 3]);
        let digit = |d: u8| char::from_digit(u32::from(d), 16).expect("a digit");
        let line: String = bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect();
        let seen = Seen::parse(&line).expect("a sighting");
        let tuple = |src: [u8; 4], sport, dst: [u8; 4], dport| Tuple {
            src: src.into(),
            dst: dst.into(),
            sport,
            dport,
            proto: 6,
        };
        assert_eq!(seen.headers(), Some(tuple([10, 0, 0, 1], 22, [10, 0, 0, 2], 0)));
        let after = tuple([10, 0, 0, 10], 80, [10, 0, 0, 9], 0x1122);
        assert_eq!(seen.translation(), Some((tuple([10, 0, 0, 1], 0x1122, [10, 0, 0, 2], 80), after)));
        assert_eq!(seen.head(), [1, 2]);
    }
}
