//! An address in a row.

use std::ops::Range;

use hashbrown::{HashMap, hash_map::Entry};

use super::labels::{Labels, NULL};
use crate::window::{ipv4, ipv6};

/// The text of each byte as a decimal number, and how long it is.
const DECIMAL: [([u8; 3], u8); 256] = {
    let mut table = [([0; 3], 0); 256];
    let mut n = 0u8;
    loop {
        let [hundreds, tens, ones] = [b'0' + n / 100, b'0' + n / 10 % 10, b'0' + n % 10];
        table[n as usize] = match n {
            0..10 => ([ones, 0, 0], 1),
            10..100 => ([tens, ones, 0], 2),
            _ => ([hundreds, tens, ones], 3),
        };
        if n == u8::MAX {
            break table;
        }
        n += 1;
    }
};

/// Appends an IPv4 address as a row shows it. The standard library's way takes several times as long.
fn write4(out: &mut Vec<u8>, address: u32) {
    for (at, byte) in ipv4(address).octets().into_iter().enumerate() {
        if at > 0 {
            out.push(b'.');
        }
        let (digits, length) = DECIMAL[usize::from(byte)];
        out.extend_from_slice(&digits[..usize::from(length)]);
    }
}

/// Characters of an IPv6 address that is not the image of an IPv4 one.
const TEXT6_MAX: usize = 8 * 4 + 7;
/// What the image of an IPv4 address begins with.
const MAPPED: [u16; 6] = [0, 0, 0, 0, 0, 0xffff];

/// Appends an IPv6 address as a row shows it (RFC 5952). The standard library's way takes several times as long.
fn write6(out: &mut Vec<u8>, address: [u64; 2]) {
    let words = ipv6(address).segments();
    if words.starts_with(&MAPPED) {
        out.extend_from_slice(b"::ffff:");
        let [_, _, _, _, low @ ..] = address[1].to_ne_bytes();
        return write4(out, u32::from_ne_bytes(low));
    }
    let mut text = [0; TEXT6_MAX];
    let mut length = 0;
    let mut put = |character: u8| {
        text[length] = character;
        length += 1;
    };
    let zeros = longest_zeros(words);
    let mut at = 0;
    while at < words.len() {
        if at == zeros.start && !zeros.is_empty() {
            put(b':');
            put(b':');
            at = zeros.end;
            continue;
        }
        if at > 0 && at != zeros.end {
            put(b':');
        }
        let digits = words[at].bit_width().div_ceil(4).max(1);
        for place in (0..digits).rev() {
            put(b"0123456789abcdef"[usize::from(words[at] >> (4 * place) & 0xf)]);
        }
        at += 1;
    }
    out.extend_from_slice(&text[..length]);
}

/// Where the zeros are that are left out: the first of the longest runs of two and more.
fn longest_zeros(words: [u16; 8]) -> Range<usize> {
    let mut longest = 0..0;
    let mut begin = 0;
    for (at, word) in words.into_iter().enumerate() {
        if word != 0 {
            begin = at + 1;
        } else if at + 1 - begin > longest.len().max(1) {
            longest = begin..at + 1;
        }
    }
    longest
}

/// Codes of one family's addresses. Rows come in an order in which most have the address of the row before.
struct Codes<A> {
    all: HashMap<A, u32>,
    last: Option<(A, u32)>,
}

impl<A> Default for Codes<A> {
    fn default() -> Self {
        Self { all: HashMap::new(), last: None }
    }
}

impl<A: Copy + Eq + std::hash::Hash> Codes<A> {
    #[inline]
    fn code(&mut self, address: A, labels: &mut Labels, write: impl FnOnce(&mut Vec<u8>, A)) -> u32 {
        if let Some((last, code)) = self.last
            && last == address
        {
            return code;
        }
        let code = match self.all.entry(address) {
            Entry::Occupied(e) => *e.get(),
            Entry::Vacant(e) => *e.insert(labels.text(|out| write(out, address))),
        };
        self.last = Some((address, code));
        code
    }
}

/// A column of addresses, as they lie in packets.
#[derive(Default)]
pub(super) struct AddressColumn {
    pub(super) labels: Labels,
    v4: Codes<u32>,
    v6: Codes<[u64; 2]>,
}

impl AddressColumn {
    /// For so many rows.
    pub(super) fn with_room(rows: usize) -> Self {
        Self { labels: Labels::with_room(rows), ..Self::default() }
    }

    /// The longest text of an address (`INET6_ADDRSTRLEN` without its zero), and its length in front of it.
    pub(super) const TEXT_MAX: usize = 45 + 4;

    /// The code of an IPv4 address.
    #[inline]
    pub(super) fn code4(&mut self, address: u32) -> u32 {
        self.v4.code(address, &mut self.labels, write4)
    }

    /// The code of an IPv6 address.
    #[inline]
    pub(super) fn code6(&mut self, address: [u64; 2]) -> u32 {
        self.v6.code(address, &mut self.labels, write6)
    }

    /// No address for the next row.
    pub(super) fn push_none(&mut self) {
        self.labels.push(NULL);
    }

    /// The column, `rows` long.
    pub(super) fn take(&mut self, rows: usize) -> Labels {
        if self.labels.rows() == 0 {
            return Labels::same(None, rows);
        }
        self.labels.fill(rows);
        std::mem::take(&mut self.labels)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn an_address_is_written_as_the_standard_library_writes_it() {
        for byte in 0..=u8::MAX {
            for at in 0..4 {
                let mut octets = [7, 0, 255, 10];
                octets[at] = byte;
                let mut out = Vec::new();
                write4(&mut out, u32::from_ne_bytes(octets));
                assert_eq!(String::from_utf8(out), Ok(Ipv4Addr::from(octets).to_string()));
            }
        }
    }

    #[test]
    fn an_ipv6_address_is_written_as_the_standard_library_writes_it() {
        let written = |words: [u16; 8]| {
            let [hi, lo] = *Ipv6Addr::from(words).octets().as_chunks().0 else { panic!("sixteen bytes") };
            let mut out = Vec::new();
            write6(&mut out, [u64::from_ne_bytes(hi), u64::from_ne_bytes(lo)]);
            String::from_utf8(out)
        };
        // Every set of words that are zero, with words of every length in the others.
        for zeros in 0..=u8::MAX {
            for word in [1, 0xf, 0x10, 0xabc, 0xffff] {
                let words: [u16; 8] = std::array::from_fn(|at| if zeros >> at & 1 == 1 { 0 } else { word });
                assert_eq!(written(words), Ok(Ipv6Addr::from(words).to_string()));
            }
        }
        for words in [[0, 0, 0, 0, 0, 0xffff, 0x0a00, 0x07ff], [0, 0, 0, 0, 0, 0xffff, 0, 0]] {
            assert_eq!(written(words), Ok(Ipv6Addr::from(words).to_string()));
        }
    }
}
