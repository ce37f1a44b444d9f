//! Which packets are meant: an expression in postfix form, evaluated for one packet. The tracer's programs and its tests run this code.
//!
//! Each [`Test`] pushes a truth value, or combines those that are there: what is on top when all have been done is the answer. The values
//! are the bits of one number, so there is nothing to run out of ([`TESTS_MAX`] are not more than it has bits).
#![allow(clippy::needless_bitwise_bool, reason = "each branch would double what the verifier walks")]

/// Tests of an expression at most: the stack is a number of 64 bits. `host a or b or …` has three for each address but the first.
pub const TESTS_MAX: usize = 64;

/// [`Test::kind`]: none: the expression ends before it.
pub const END: u16 = 0;
/// Both of the two on top.
pub const AND: u16 = 1;
/// One of the two on top.
pub const OR: u16 = 2;
/// The opposite of the one on top.
pub const NOT: u16 = 3;
/// The address family is [`Test::low`]: 4 or 6.
pub const FAMILY: u16 = 4;
/// The protocol is [`Test::low`].
pub const PROTOCOL: u16 = 5;
/// An address, masked, is [`Test::value`]; the family is [`Test::low`].
pub const NET: u16 = 6;
/// A port is one of [`Test::low`] to [`Test::high`].
pub const PORT: u16 = 7;
/// The outermost VLAN id is one of [`Test::low`] to [`Test::high`].
pub const VLAN: u16 = 8;
/// The Ethertype is [`Test::low`].
pub const ETHERTYPE: u16 = 9;

/// [`Test::sides`]: the source's.
pub const SOURCE: u16 = 1;
/// The destination's.
pub const DESTINATION: u16 = 2;
/// Either's.
pub const EITHER: u16 = SOURCE | DESTINATION;
/// Both.
pub const BOTH: u16 = 4;

/// One test of an expression.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Test {
    /// What it does: [`AND`] …
    pub kind: u16,
    /// Whose address or port is looked at: [`SOURCE`] …
    pub sides: u16,
    /// What is looked for, or the lowest of it.
    pub low: u16,
    /// The highest.
    pub high: u16,
    /// The address, as it lies in a packet; an IPv4 address in the first word.
    pub value: [u32; 4],
    /// The bits of it that count.
    pub mask: [u32; 4],
}

/// What is known of a packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// Source address, as it lies in a packet; an IPv4 address in the first word.
    pub src: [u32; 4],
    /// Destination address.
    pub dst: [u32; 4],
    /// Source port, or type of an ICMP message.
    pub sport: u16,
    /// Destination port, or code of an ICMP message.
    pub dport: u16,
    /// Ethertype; 0: not known.
    pub ethertype: u16,
    /// Outermost VLAN id; 0: none.
    pub vlan: u16,
    /// 4 or 6; 0: it is no IP packet, or none that can be read.
    pub family: u16,
    /// Number of the protocol (IANA).
    pub proto: u16,
    /// 1: `sport` and `dport` are ports.
    pub has_ports: u16,
    /// Explicit padding, always 0.
    pub spare: u16,
}

/// What the stack is after one more test.
#[inline(always)]
#[must_use]
pub fn step(test: &Test, subject: &Subject, stack: u64) -> u64 {
    let (first, second, below) = (stack & 1, stack >> 1 & 1, stack >> 2 << 1);
    match test.kind {
        AND => below | (first & second),
        OR => below | first | second,
        NOT => stack ^ 1,
        _ => stack << 1 | u64::from(holds(test, subject)),
    }
}

/// Whether the packet passes a test that is none of [`AND`], [`OR`] and [`NOT`].
#[inline(always)]
fn holds(test: &Test, subject: &Subject) -> bool {
    let within = |number: u16| (test.low <= number) & (number <= test.high);
    match test.kind {
        FAMILY => subject.family == test.low,
        PROTOCOL => (subject.family != 0) & (subject.proto == test.low),
        NET => {
            let (src, dst) = (is_in(&subject.src, test), is_in(&subject.dst, test));
            (subject.family == test.low) & sided(test.sides, src, dst)
        }
        PORT => (subject.has_ports == 1) & sided(test.sides, within(subject.sport), within(subject.dport)),
        VLAN => (subject.vlan != 0) & within(subject.vlan),
        ETHERTYPE => subject.ethertype == test.low,
        _ => false,
    }
}

/// Whether that holds for the sides that are looked at.
#[inline(always)]
const fn sided(sides: u16, src: bool, dst: bool) -> bool {
    ((sides & SOURCE != 0) & src) | ((sides & DESTINATION != 0) & dst) | ((sides == BOTH) & src & dst)
}

#[inline(always)]
const fn is_in(address: &[u32; 4], test: &Test) -> bool {
    let (a, m, v) = (address, &test.mask, &test.value);
    (a[0] & m[0]) ^ v[0] | (a[1] & m[1]) ^ v[1] | (a[2] & m[2]) ^ v[2] | (a[3] & m[3]) ^ v[3] == 0
}

/// Whether a packet is meant. An expression without tests means every packet.
#[must_use]
pub fn is_meant(expression: &[Test], subject: &Subject) -> bool {
    let tests = expression.iter().take(TESTS_MAX).take_while(|test| test.kind != END);
    tests.fold(EMPTY, |stack, test| step(test, subject, stack)) & 1 != 0
}

/// The stack before anything has been tested.
pub const EMPTY: u64 = 1;

const _: () = assert!(size_of::<Test>() == 40 && size_of::<Subject>() == 48);
