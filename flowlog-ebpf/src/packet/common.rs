//! The most common frames, parsed without a loop and with few branches.

use super::{ETH_HEADER, ETH_P_IPV6, Flow, Fragment, Frame, PORTS_END, TCP, TCP_FLAGS_END, UDP, VLAN_ID, ip4, ip6};
use crate::abi::{Ip4, Ip6};

/// Bytes from the start of the frame that [`common4`] looks at: up to the TCP flags.
pub const COMMON4: usize = ETH_HEADER + 20 + 14;
/// Bytes from the start of the frame that [`common6`] looks at.
pub const COMMON6: usize = ETH_HEADER + 40 + 14;

/// The `N` bytes at `AT`: one load.
#[inline(always)]
fn at<const AT: usize, const N: usize, const LEN: usize>(h: &[u8; LEN]) -> [u8; N] {
    // Never the default: every call has AT + N <= LEN.
    h.get(AT..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
}

/// The most common frame: Ethernet without a tag, IPv4 without options or fragmentation, TCP or UDP. Says the same as
/// [`super::parse`] (the tests and the fuzzer compare them) or nothing. `h` is the start of the frame.
#[inline(always)]
#[must_use]
pub fn common4(h: &[u8; COMMON4], frame: Frame) -> Option<Flow<Ip4>> {
    // Ethertype, version and header length in one comparison; the type of service does not matter.
    const PLAIN: u32 = u32::from_ne_bytes([0x08, 0x00, 0x45, 0x00]);
    const PLAIN_BITS: u32 = u32::from_ne_bytes([0xff, 0xff, 0xff, 0x00]);
    // More fragments, and the fragment's offset.
    const FRAGMENT: u16 = u16::from_ne_bytes([0x3f, 0xff]);
    let proto = h[23];
    let available = frame.len.wrapping_sub(ETH_HEADER as u32);
    let total = u32::from(u16::from_be_bytes(at::<16, 2, COMMON4>(h)));
    let upper = if proto == TCP { TCP_FLAGS_END } else { PORTS_END };
    if u32::from_ne_bytes(at::<12, 4, COMMON4>(h)) & PLAIN_BITS != PLAIN
        || u16::from_ne_bytes(at::<20, 2, COMMON4>(h)) & FRAGMENT != 0
        || (proto != TCP && proto != UDP)
        || total > available
        || total < 20 + upper
    {
        return None;
    }
    Some(Flow {
        src: ip4(at::<26, 4, COMMON4>(h)),
        dst: ip4(at::<30, 4, COMMON4>(h)),
        sport: u16::from_be_bytes(at::<34, 2, COMMON4>(h)),
        dport: u16::from_be_bytes(at::<36, 2, COMMON4>(h)),
        vlan: frame.vlan_tci & VLAN_ID,
        proto,
        tcp_flags: if proto == TCP { h[47] } else { 0 },
        l3_len: total,
        headers: 20 + if proto == TCP { u32::from(h[46] >> 4) << 2 } else { 8 },
        ip_header: 20,
        fragment: Fragment::NONE,
    })
}

/// As [`common4`]: Ethernet without a tag, IPv6 without extension headers, TCP or UDP.
#[inline(always)]
#[must_use]
pub fn common6(h: &[u8; COMMON6], frame: Frame) -> Option<Flow<Ip6>> {
    let proto = h[20];
    let available = frame.len.wrapping_sub(ETH_HEADER as u32);
    let total = u32::from(u16::from_be_bytes(at::<18, 2, COMMON6>(h))) + 40;
    let upper = if proto == TCP { TCP_FLAGS_END } else { PORTS_END };
    if u16::from_be_bytes(at::<12, 2, COMMON6>(h)) != ETH_P_IPV6
        || h[14] >> 4 != 6
        || (proto != TCP && proto != UDP)
        || total > available
        || total < 40 + upper
    {
        return None;
    }
    Some(Flow {
        src: ip6(at::<22, 16, COMMON6>(h)),
        dst: ip6(at::<38, 16, COMMON6>(h)),
        sport: u16::from_be_bytes(at::<54, 2, COMMON6>(h)),
        dport: u16::from_be_bytes(at::<56, 2, COMMON6>(h)),
        vlan: frame.vlan_tci & VLAN_ID,
        proto,
        tcp_flags: if proto == TCP { h[67] } else { 0 },
        l3_len: total,
        headers: 40 + if proto == TCP { u32::from(h[66] >> 4) << 2 } else { 8 },
        ip_header: 40,
        fragment: Fragment::NONE,
    })
}
