//! Which packets are meant, in the words of pcap-filter(7), as far as they are common; made into what the programs evaluate.
//!
//! As there: `not` binds closest; `and` and `or` bind alike, from left to right; a value without a keyword has those of the one before it
//! (`port 22 or 80`). Names of hosts, networks, ports and services are not looked up.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flowlog_ebpf::expression::{
    AND, BOTH, DESTINATION, EITHER, ETHERTYPE, FAMILY, NET, NOT, OR, PORT, PROTOCOL, SOURCE, TESTS_MAX, Test, VLAN,
};

/// Parentheses and negations inside each other: each takes stack of ours.
const NESTED_MAX: usize = 32;
/// Ethertype of ARP (`include/uapi/linux/if_ether.h`).
const ETH_P_ARP: u16 = 0x0806;
/// The largest VLAN id.
const VLAN_MAX: u16 = 4_095;

/// Why an expression cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpressionError {
    #[error("expression, column {column}: `{word}`: {expected}")]
    Word {
        /// Where the word begins, from 1.
        column: usize,
        word: String,
        /// What is expected in its place, or what is wrong with it.
        expected: String,
    },
    #[error("expression: it ends too early: {expected}")]
    End {
        /// What would have to follow.
        expected: String,
    },
    #[error(
        "expression, column {column}: more than {TESTS_MAX} conditions; trace fewer at once, or a net in place of its hosts"
    )]
    Long {
        /// Where the first begins that is too much.
        column: usize,
    },
}

/// What the programs evaluate; nothing, for every packet.
///
/// # Errors
/// If it cannot be understood: where, and what is expected there.
pub(super) fn parse(text: &str) -> Result<Vec<Test>, ExpressionError> {
    let last = Qualifiers { protocol: None, sides: EITHER, kind: Kind::Host };
    let mut parser = Parser { words: words(text), at: 0, tests: Vec::new(), last };
    if !parser.words.is_empty() {
        parser.expression(0)?;
    }
    match parser.next() {
        None => Ok(parser.tests),
        Some(word) => Err(wrong(word, "`and` or `or` is expected")),
    }
}

#[derive(Clone, Copy)]
struct Word<'a> {
    /// From 1, in characters.
    column: usize,
    text: &'a str,
}

/// Splits at blanks, and around what needs none.
fn words(text: &str) -> Vec<Word<'_>> {
    let mut words = Vec::new();
    let mut rest = text;
    let mut column = 1;
    while let Some(first) = rest.chars().next() {
        let len = if first.is_whitespace() || "()!".contains(first) {
            first.len_utf8()
        } else if rest.starts_with("&&") || rest.starts_with("||") {
            2
        } else {
            let ends = |(at, c): &(usize, char)| *at > 0 && (c.is_whitespace() || "()!&|".contains(*c));
            rest.char_indices().find(ends).map_or(rest.len(), |(at, _)| at)
        };
        let (word, behind) = rest.split_at(len);
        if !first.is_whitespace() {
            words.push(Word { column, text: word });
        }
        column += word.chars().count();
        rest = behind;
    }
    words
}

fn wrong(word: Word<'_>, expected: impl Into<String>) -> ExpressionError {
    ExpressionError::Word { column: word.column, word: word.text.to_owned(), expected: expected.into() }
}

fn ended(expected: impl Into<String>) -> ExpressionError {
    ExpressionError::End { expected: expected.into() }
}

/// What a value is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Host,
    Net,
    Port,
    PortRange,
    Proto,
}

impl Kind {
    fn of(word: &str) -> Option<Self> {
        Some(match word {
            "host" => Self::Host,
            "net" => Self::Net,
            "port" => Self::Port,
            "portrange" => Self::PortRange,
            "proto" => Self::Proto,
            _ => return None,
        })
    }

    fn is_port(self) -> bool {
        matches!(self, Self::Port | Self::PortRange)
    }

    const fn expected(self) -> &'static str {
        match self {
            Self::Host => "an IPv4 or IPv6 address is expected (names are not looked up)",
            Self::Net => "a network is expected, as 10.0.0.0/8 or 2001:db8::/32",
            Self::Port => "a port number is expected (names are not looked up)",
            Self::PortRange => "two port numbers are expected, as 8000-8080",
            Self::Proto => "tcp, udp, sctp, icmp, icmp6 or a number up to 255 is expected",
        }
    }
}

/// What stands in front of a value.
#[derive(Clone, Copy)]
struct Qualifiers {
    /// The test for the protocol in front of it.
    protocol: Option<Test>,
    sides: u16,
    kind: Kind,
}

const PRIMITIVE: &str = "host, net, port, portrange, proto, src, dst, ip, ip6, tcp, udp, sctp, icmp, icmp6, arp, vlan, an address, `not`, `(`";

struct Parser<'a> {
    words: Vec<Word<'a>>,
    at: usize,
    tests: Vec<Test>,
    last: Qualifiers,
}

impl<'a> Parser<'a> {
    fn peek(&self, ahead: usize) -> Option<Word<'a>> {
        self.words.get(self.at + ahead).copied()
    }

    fn next(&mut self) -> Option<Word<'a>> {
        let word = self.peek(0);
        self.at += 1;
        word
    }

    /// Goes behind the next word, if it is one of these.
    fn take(&mut self, any: &[&str]) -> bool {
        let is_any = self.peek(0).is_some_and(|word| any.contains(&word.text));
        self.at += usize::from(is_any);
        is_any
    }

    fn push(&mut self, test: Test) -> Result<(), ExpressionError> {
        if self.tests.len() == TESTS_MAX {
            let before = self.at.saturating_sub(1).min(self.words.len().saturating_sub(1));
            return Err(ExpressionError::Long { column: self.words.get(before).map_or(1, |word| word.column) });
        }
        self.tests.push(test);
        Ok(())
    }

    fn expression(&mut self, nested: usize) -> Result<(), ExpressionError> {
        self.term(nested)?;
        loop {
            let kind = if self.take(&["and", "&&"]) {
                AND
            } else if self.take(&["or", "||"]) {
                OR
            } else {
                return Ok(());
            };
            self.term(nested)?;
            self.push(Test { kind, ..Test::default() })?;
        }
    }

    fn term(&mut self, nested: usize) -> Result<(), ExpressionError> {
        let Some(word) = self.peek(0) else { return Err(ended(format!("one of {PRIMITIVE} is expected"))) };
        if nested == NESTED_MAX {
            return Err(wrong(word, format!("more than {NESTED_MAX} of `not` and `(` inside each other")));
        }
        if self.take(&["not", "!"]) {
            self.term(nested + 1)?;
            return self.push(Test { kind: NOT, ..Test::default() });
        }
        if self.take(&["("]) {
            self.expression(nested + 1)?;
            return match self.next() {
                Some(word) if word.text == ")" => Ok(()),
                Some(word) => Err(wrong(word, "`and`, `or` or `)` is expected")),
                None => Err(ended("`)` is expected")),
            };
        }
        if self.take(&["vlan"]) {
            return self.vlan();
        }
        self.primitive()
    }

    fn vlan(&mut self) -> Result<(), ExpressionError> {
        let number = self.peek(0).filter(|word| word.text.starts_with(|c: char| c.is_ascii_digit()));
        let (low, high) = match number {
            None => (0, VLAN_MAX),
            Some(word) => {
                self.at += 1;
                let id = word.text.parse().ok().filter(|id| *id <= VLAN_MAX);
                id.map(|id| (id, id)).ok_or_else(|| wrong(word, "a VLAN id up to 4095 is expected"))?
            }
        };
        self.push(Test { kind: VLAN, low, high, ..Test::default() })
    }

    /// `[ip|ip6|tcp|udp|…] [src|dst|…] [host|net|port|…] VALUE`, or a protocol alone.
    fn primitive(&mut self) -> Result<(), ExpressionError> {
        let began = self.at;
        let protocol = self.peek(0).and_then(|word| protocol(word.text));
        self.at += usize::from(protocol.is_some());
        let sides = self.sides();
        let kind = self.peek(0).and_then(|word| Kind::of(word.text));
        self.at += usize::from(kind.is_some());
        if let (Some(test), None, None) = (protocol, sides, kind) {
            return self.push(test);
        }
        let qualifiers = if self.at == began {
            self.last
        } else {
            Qualifiers { protocol, sides: sides.unwrap_or(EITHER), kind: kind.unwrap_or_default() }
        };
        let Some(value) = self.next() else {
            return Err(ended(qualifiers.kind.expected()));
        };
        if self.at == began + 1 && !is_value(value.text) {
            return Err(wrong(value, format!("one of {PRIMITIVE} is expected")));
        }
        self.last = qualifiers;
        let test = self.value(qualifiers, value)?;
        if let Some(protocol) = qualifiers.protocol {
            fits(protocol, qualifiers.kind, value)?;
            of_family(protocol, test, value)?;
            self.push(protocol)?;
            self.push(test)?;
            return self.push(Test { kind: AND, ..Test::default() });
        }
        self.push(test)
    }

    /// `src`, `dst`, `src or dst`, `src and dst`.
    fn sides(&mut self) -> Option<u16> {
        let (own, other) = if self.take(&["src"]) {
            (SOURCE, "dst")
        } else if self.take(&["dst"]) {
            (DESTINATION, "src")
        } else {
            return None;
        };
        let both = match (self.peek(0)?.text, self.peek(1).map(|word| word.text)) {
            ("or" | "||", Some(word)) if word == other => EITHER,
            ("and" | "&&", Some(word)) if word == other => BOTH,
            _ => return Some(own),
        };
        // `src 10.0.0.1 or dst …` has its value in between.
        self.at += 2;
        Some(both)
    }

    fn value(&mut self, of: Qualifiers, word: Word<'_>) -> Result<Test, ExpressionError> {
        let bad = || wrong(word, of.kind.expected());
        let port = |text: &str| text.parse::<u16>().ok().ok_or_else(bad);
        let range = |low, high| Test { kind: PORT, sides: of.sides, low, high, ..Test::default() };
        match of.kind {
            Kind::Host => {
                let address: IpAddr = word.text.parse().ok().ok_or_else(bad)?;
                Ok(net(of.sides, address, if address.is_ipv4() { 32 } else { 128 }))
            }
            Kind::Net => self.network(of, word),
            Kind::Port => port(word.text).map(|port| range(port, port)),
            Kind::PortRange => {
                let (low, high) = word.text.split_once('-').ok_or_else(bad)?;
                let (low, high) = (port(low)?, port(high)?);
                if low <= high { Ok(range(low, high)) } else { Err(bad()) }
            }
            Kind::Proto => {
                let number = word.text.parse::<u8>().ok().map(u16::from);
                let named = protocol(word.text).filter(|test| test.kind == PROTOCOL).map(|test| test.low);
                let low = number.or(named).ok_or_else(bad)?;
                Ok(Test { kind: PROTOCOL, low, ..Test::default() })
            }
        }
    }

    /// `10.0.0.0/8`, `10`, `10.0.0.0 mask 255.0.0.0`, `2001:db8::/32`.
    fn network(&mut self, of: Qualifiers, word: Word<'_>) -> Result<Test, ExpressionError> {
        let bad = || wrong(word, Kind::Net.expected());
        let (address, bits) = match word.text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse::<u32>().ok().ok_or_else(bad)?)),
            None => (word.text, None),
        };
        let (address, own) = if let Ok(v6) = address.parse::<Ipv6Addr>() {
            (IpAddr::V6(v6), 128)
        } else {
            let (v4, own) = beginning(address).ok_or_else(bad)?;
            (IpAddr::V4(v4), own)
        };
        let bits = match bits {
            Some(bits) if bits <= if address.is_ipv4() { 32 } else { 128 } => bits,
            Some(_) => return Err(bad()),
            None if address.is_ipv4() && self.take(&["mask"]) => {
                let Some(mask) = self.next() else { return Err(ended("a mask is expected")) };
                let parsed: Option<Ipv4Addr> = mask.text.parse().ok();
                let is_mask = |m: &u32| m.leading_ones() + m.trailing_zeros() == 32;
                let found = parsed.map(u32::from).filter(is_mask);
                found.ok_or_else(|| wrong(mask, "a mask is expected, as 255.255.0.0"))?.leading_ones()
            }
            None => own,
        };
        let test = net(of.sides, address, bits);
        let whole = net(of.sides, address, 128);
        if test.value == whole.value {
            Ok(test)
        } else {
            Err(wrong(word, format!("the network has bits behind its first {bits}")))
        }
    }
}

/// The test that a word for a protocol stands for.
fn protocol(word: &str) -> Option<Test> {
    let (kind, low) = match word {
        "ip" => (FAMILY, 4),
        "ip6" => (FAMILY, 6),
        "icmp" => (PROTOCOL, 1),
        "tcp" => (PROTOCOL, 6),
        "udp" => (PROTOCOL, 17),
        "icmp6" => (PROTOCOL, 58),
        "sctp" => (PROTOCOL, 132),
        "arp" => (ETHERTYPE, ETH_P_ARP),
        _ => return None,
    };
    Some(Test { kind, low, ..Test::default() })
}

/// Whether a word may be a value: an address or a number.
fn is_value(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_digit()) || word.contains(':')
}

/// Whether a protocol has such values.
fn fits(protocol: Test, kind: Kind, value: Word<'_>) -> Result<(), ExpressionError> {
    let has_it = match protocol.kind {
        FAMILY => !kind.is_port(),
        PROTOCOL => kind.is_port() && !matches!(protocol.low, 1 | 58),
        _ => false,
    };
    if has_it { Ok(()) } else { Err(wrong(value, "the protocol in front of it has none: write `… and …`")) }
}

/// Whether a protocol has addresses of that kind.
fn of_family(protocol: Test, test: Test, value: Word<'_>) -> Result<(), ExpressionError> {
    if protocol.kind != FAMILY || test.kind != NET || protocol.low == test.low {
        return Ok(());
    }
    let (is, front, means) = if test.low == 6 { ("IPv6", "ip", "IPv4") } else { ("IPv4", "ip6", "IPv6") };
    Err(wrong(value, format!("it is of {is}, and `{front}` in front of it means {means}: no packet is both")))
}

/// The first octets of an IPv4 address, and how many bits they are.
fn beginning(text: &str) -> Option<(Ipv4Addr, u32)> {
    let mut octets = [0; 4];
    let mut bits = 0;
    for (n, part) in text.split('.').enumerate() {
        *octets.get_mut(n)? = part.parse().ok()?;
        bits += 8;
    }
    Some((Ipv4Addr::from(octets), bits))
}

/// An address of which the first bits count; more than it has are all.
fn net(sides: u16, address: IpAddr, bits: u32) -> Test {
    let mask_of = |n: u32| {
        let own = bits.saturating_sub(32 * n).min(32);
        u32::MAX.checked_shl(32 - own).unwrap_or(0).to_be()
    };
    let (low, value, mask) = match address {
        IpAddr::V4(v4) => (4, [u32::from_ne_bytes(v4.octets()), 0, 0, 0], [mask_of(0), 0, 0, 0]),
        IpAddr::V6(v6) => {
            let octets = v6.octets();
            let words = std::array::from_fn(|n| u32::from_ne_bytes(octets.as_chunks().0[n]));
            (6, words, [mask_of(0), mask_of(1), mask_of(2), mask_of(3)])
        }
    };
    let value = [value[0] & mask[0], value[1] & mask[1], value[2] & mask[2], value[3] & mask[3]];
    Test { kind: NET, sides, low, value, mask, ..Test::default() }
}

#[cfg(test)]
mod tests;
