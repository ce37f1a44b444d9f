//! The packet parser: link header, VLAN tags, IPv4 with options, IPv6 with extension headers, fragments,
//! TCP, UDP, ICMP. One implementation for the TC, XDP and verdict programs, the unit tests and the fuzzer.
//!
//! It reads through [`Bytes`], so the same code works on direct packet access, on `bpf_skb_load_bytes`, on kernel
//! memory and on a slice. It never loops over data: every loop is bounded by a constant, for the verifier.
//!
//! Sources: RFC 791, RFC 8200, RFC 4302 (AH length), RFC 7045 (extension header list), RFC 2675 (jumbo payload),
//! IEEE 802.1Q / 802.1ad.

use crate::abi::{Ip4, Ip6};

/// Where header bytes come from.
pub trait Bytes {
    /// Reads `N` bytes at `offset` from the start of the frame; `None` if they are not all there.
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// Returns `offset`. The kernel's readers return it through memory, so that the verifier forgets how it came
    /// about: it then sees one state after each extension header and not every combination of header lengths.
    #[inline(always)]
    fn forget(&self, offset: u16) -> u16 {
        offset
    }
}

impl Bytes for [u8] {
    #[inline]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk().copied()
    }
}

/// No header is looked for past this offset; the verifier wants a bound. Ordinary chains end before 200.
pub const OFFSET_MAX: usize = 2_047;
/// VLAN tags followed inside the frame; a third one (with one more in the skb) makes the frame malformed.
pub const VLAN_TAGS_MAX: usize = 2;
/// IPv6 extension headers followed; more than this is malformed. RFC 8200 names six kinds, one of them twice.
pub const EXTENSION_HEADERS_MAX: usize = 8;

const ETH_HEADER: usize = 14;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const ETH_P_8021Q: u16 = 0x8100;
const ETH_P_8021AD: u16 = 0x88a8;
const VLAN_ID: u16 = 0x0fff;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// What is known about a frame before its bytes are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Length of the whole frame in bytes, link header included. For GSO: of the unsegmented packet.
    pub len: u32,
    /// VLAN tag control information that the NIC or kernel already took out of the frame; 0 if none.
    pub vlan_tci: u16,
    /// `false` for devices without a link header: the frame starts with the IP header.
    pub link_header: bool,
}

/// Outcome of parsing. Every frame has one; nothing is dropped silently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet {
    /// IPv4.
    V4(Flow<Ip4>),
    /// IPv6.
    V6(Flow<Ip6>),
    /// Not IP; the bytes behind the link header and VLAN tags.
    NonIp(u32),
    /// IP that cannot be parsed; the bytes behind the link header and VLAN tags.
    Malformed(u32),
}

/// The flow-identifying and counting facts of one IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow<A> {
    /// Source address, network order.
    pub src: A,
    /// Destination address, network order.
    pub dst: A,
    /// Source port, or ICMP type; 0 for later fragments and protocols without ports.
    pub sport: u16,
    /// Destination port, or ICMP code; 0 likewise.
    pub dport: u16,
    /// Outermost VLAN id; 0 if untagged.
    pub vlan: u16,
    /// Upper-layer protocol, behind all extension headers.
    pub proto: u8,
    /// The TCP flag octet (CWR ECE URG ACK PSH RST SYN FIN from bit 7 down); 0 if not TCP.
    pub tcp_flags: u8,
    /// Layer-3 length from the IP header (link padding excluded); from the frame where the header says 0.
    pub l3_len: u32,
    /// Length of IP + TCP/UDP headers: what every segment of a GSO packet repeats.
    pub headers: u32,
}

/// Wire packets and wire layer-3 bytes of a packet that the kernel carries unsegmented.
///
/// `gso_segs` is what the kernel says; packets from a guest (`SKB_GSO_DODGY`) say 0 and are computed from `gso_size`.
/// Encapsulated GSO (VXLAN and the like) repeats inner headers that are not counted: the packets are right, the
/// bytes miss the inner headers of all but the first segment.
#[inline(always)]
#[must_use]
pub fn wire(l3_len: u32, headers: u32, gso_size: u32, gso_segs: u32) -> (u32, u32) {
    if gso_size == 0 || l3_len <= headers {
        return (1, l3_len);
    }
    let segments = if gso_segs == 0 { (l3_len - headers).div_ceil(gso_size) } else { gso_segs };
    (segments, l3_len + (segments - 1) * headers)
}

#[inline(always)]
const fn be16(hi: u8, lo: u8) -> u16 {
    u16::from_be_bytes([hi, lo])
}

/// An IPv4 address from its bytes.
#[inline(always)]
#[must_use]
pub const fn ip4(bytes: [u8; 4]) -> Ip4 {
    u32::from_ne_bytes(bytes)
}

/// An IPv6 address from its bytes.
#[inline(always)]
#[must_use]
pub const fn ip6(b: [u8; 16]) -> Ip6 {
    let (lo, hi) = (
        u64::from_ne_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]),
        u64::from_ne_bytes([b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]]),
    );
    [lo, hi]
}

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
/// [`parse`] (the tests and the fuzzer compare them) or nothing. `h` is the start of the frame.
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
    if u32::from_ne_bytes(at::<12, 4, COMMON4>(h)) & PLAIN_BITS != PLAIN
        || u16::from_ne_bytes(at::<20, 2, COMMON4>(h)) & FRAGMENT != 0
        || (proto != TCP && proto != UDP)
        || total > available
        || total < 20
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
    })
}

/// As [`common4`]: Ethernet without a tag, IPv6 without extension headers, TCP or UDP.
#[inline(always)]
#[must_use]
pub fn common6(h: &[u8; COMMON6], frame: Frame) -> Option<Flow<Ip6>> {
    let proto = h[20];
    let available = frame.len.wrapping_sub(ETH_HEADER as u32);
    let total = u32::from(u16::from_be_bytes(at::<18, 2, COMMON6>(h))) + 40;
    if u16::from_be_bytes(at::<12, 2, COMMON6>(h)) != ETH_P_IPV6
        || h[14] >> 4 != 6
        || (proto != TCP && proto != UDP)
        || total > available
        || total == 40
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
    })
}

/// Parses one frame.
#[inline(always)]
pub fn parse<B: Bytes + ?Sized>(bytes: &B, frame: Frame) -> Packet {
    let mut vlan = frame.vlan_tci & VLAN_ID;
    let (ethertype, offset) = if frame.link_header {
        let Some([hi, lo]) = bytes.read(12) else { return Packet::NonIp(frame.len) };
        let mut ethertype = be16(hi, lo);
        let mut offset = ETH_HEADER;
        for _ in 0..VLAN_TAGS_MAX {
            if ethertype != ETH_P_8021Q && ethertype != ETH_P_8021AD {
                break;
            }
            let Some([t0, t1, hi, lo]) = bytes.read(offset) else {
                return Packet::Malformed(frame.len.saturating_sub(ETH_HEADER as u32));
            };
            if vlan == 0 {
                vlan = be16(t0, t1) & VLAN_ID;
            }
            ethertype = be16(hi, lo);
            offset += 4;
        }
        (ethertype, offset)
    } else {
        // Two bytes, since the verifier learns nothing from a bounds check for one.
        match bytes.read::<2>(0) {
            Some([b, _]) if b >> 4 == 4 => (ETH_P_IP, 0),
            Some([b, _]) if b >> 4 == 6 => (ETH_P_IPV6, 0),
            _ => (0, 0),
        }
    };
    let available = frame.len.saturating_sub(offset as u32);
    match ethertype {
        ETH_P_IP => ipv4(bytes, offset, available, vlan).map_or(Packet::Malformed(available), Packet::V4),
        ETH_P_IPV6 => ipv6(bytes, offset, available, vlan).map_or(Packet::Malformed(available), Packet::V6),
        ETH_P_8021Q | ETH_P_8021AD => Packet::Malformed(available),
        _ => Packet::NonIp(available),
    }
}

/// Parses from the IPv4 header at `offset`; `available` is the frame length from there. `None`: malformed.
#[inline(always)]
pub fn ipv4<B: Bytes + ?Sized>(bytes: &B, offset: usize, available: u32, vlan: u16) -> Option<Flow<Ip4>> {
    let h: [u8; 20] = bytes.read(offset)?;
    let header = ((h[0] & 0x0f) as usize) << 2;
    if h[0] >> 4 != 4 || header < 20 || (header as u32) > available {
        return None;
    }
    let total = u32::from(be16(h[2], h[3]));
    // 0: TSO beyond 64 KiB ("BIG TCP"), the length does not fit. More than there is: truncated on the way here.
    let l3_len = if total < header as u32 || total > available { available } else { total };
    if total != 0 && total < header as u32 {
        return None;
    }
    let mut flow = Flow {
        src: u32::from_ne_bytes([h[12], h[13], h[14], h[15]]),
        dst: u32::from_ne_bytes([h[16], h[17], h[18], h[19]]),
        sport: 0,
        dport: 0,
        vlan,
        proto: h[9],
        tcp_flags: 0,
        l3_len,
        headers: header as u32,
    };
    let fragment_offset = be16(h[6], h[7]) & 0x1fff;
    if fragment_offset == 0 {
        upper_layer(bytes, offset + header, &mut flow)?;
    }
    Some(flow)
}

/// Parses from the IPv6 header at `offset`; `available` is the frame length from there. `None`: malformed.
#[inline(always)]
pub fn ipv6<B: Bytes + ?Sized>(bytes: &B, offset: usize, available: u32, vlan: u16) -> Option<Flow<Ip6>> {
    let h: [u8; 8] = bytes.read(offset)?;
    if h[0] >> 4 != 6 {
        return None;
    }
    let src = ip6(bytes.read(offset + 8)?);
    let dst = ip6(bytes.read(offset + 24)?);
    let payload = u32::from(be16(h[4], h[5]));
    // 0: jumbogram or TSO beyond 64 KiB.
    let l3_len = if payload == 0 || payload + 40 > available { available } else { payload + 40 };
    let mut next = h[6];
    let mut at = offset + 40;
    let mut first_fragment = true;
    for _ in 0..EXTENSION_HEADERS_MAX {
        match next {
            // Hop-by-hop, routing, destination options, mobility, HIP, shim6: length in 8-byte units, less the first.
            0 | 43 | 60 | 135 | 139 | 140 => {
                let [n, len] = bytes.read(at)?;
                next = n;
                at += (len as usize + 1) << 3;
            }
            // Authentication header: length in 4-byte units, less two.
            51 => {
                let [n, len] = bytes.read(at)?;
                next = n;
                at += (len as usize + 2) << 2;
            }
            44 => {
                let f: [u8; 8] = bytes.read(at)?;
                next = f[0];
                at += 8;
                if be16(f[2], f[3]) & 0xfff8 != 0 {
                    first_fragment = false;
                    break;
                }
            }
            _ => break,
        }
        if at > OFFSET_MAX {
            return None;
        }
        at = usize::from(bytes.forget(at as u16)) & OFFSET_MAX;
    }
    if first_fragment && matches!(next, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140) {
        return None; // the chain goes on past the limit
    }
    let mut flow =
        Flow { src, dst, sport: 0, dport: 0, vlan, proto: next, tcp_flags: 0, l3_len, headers: (at - offset) as u32 };
    if first_fragment {
        upper_layer(bytes, at, &mut flow)?;
    }
    Some(flow)
}

/// Ports, flags, ICMP type and code. `None`: the header is not all there.
#[inline(always)]
fn upper_layer<B: Bytes + ?Sized, A>(bytes: &B, offset: usize, flow: &mut Flow<A>) -> Option<()> {
    match flow.proto {
        TCP => {
            let h: [u8; 14] = bytes.read(offset)?;
            flow.sport = be16(h[0], h[1]);
            flow.dport = be16(h[2], h[3]);
            flow.tcp_flags = h[13];
            flow.headers += u32::from(h[12] >> 4) << 2;
        }
        UDP => {
            let h: [u8; 4] = bytes.read(offset)?;
            flow.sport = be16(h[0], h[1]);
            flow.dport = be16(h[2], h[3]);
            flow.headers += 8;
        }
        ICMP | ICMPV6 => {
            let h: [u8; 2] = bytes.read(offset)?;
            flow.sport = u16::from(h[0]);
            flow.dport = u16::from(h[1]);
        }
        _ => {}
    }
    Some(())
}

/// What must hold for any bytes and any claim about them; panics if it does not. For the fuzzer and the unit test.
#[doc(hidden)]
pub fn check_invariants(bytes: &[u8], frame: Frame, gso_size: u32, gso_segs: u32) {
    if frame.link_header {
        if let Some(flow) = bytes.first_chunk().and_then(|h| common4(h, frame)) {
            assert_eq!(parse(bytes, frame), Packet::V4(flow));
        }
        if let Some(flow) = bytes.first_chunk().and_then(|h| common6(h, frame)) {
            assert_eq!(parse(bytes, frame), Packet::V6(flow));
        }
    }
    let (l3_len, headers, ports, proto, flags) = match parse(bytes, frame) {
        Packet::NonIp(n) | Packet::Malformed(n) => return assert!(n <= frame.len),
        Packet::V4(f) => (f.l3_len, f.headers, (f.sport, f.dport), f.proto, f.tcp_flags),
        Packet::V6(f) => (f.l3_len, f.headers, (f.sport, f.dport), f.proto, f.tcp_flags),
    };
    assert!(l3_len <= frame.len && headers >= 20);
    assert!(ports == (0, 0) || matches!(proto, TCP | UDP | ICMP | ICMPV6));
    assert!(flags == 0 || proto == TCP);
    let (packets, wire_bytes) = wire(l3_len, headers, gso_size, gso_segs);
    assert!(packets >= 1 && wire_bytes >= l3_len);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{vec, vec::Vec};

    fn seeds() -> [Vec<u8>; 3] {
        let mut v4 = vec![0u8; 74];
        v4[12..16].copy_from_slice(&[8, 0, 0x47, 0]);
        v4[16..18].copy_from_slice(&60u16.to_be_bytes());
        v4[23] = TCP;
        let mut v6 = vec![0u8; 120];
        v6[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
        v6[18..21].copy_from_slice(&[0, 66, 0]);
        v6[54..56].copy_from_slice(&[44, 0]);
        v6[62] = TCP;
        let mut vlan = vec![0u8; 60];
        vlan[12..18].copy_from_slice(&[0x81, 0, 0, 5, 8, 0]);
        vlan[18] = 0x45;
        vlan[27] = UDP;
        [v4, v6, vlan]
    }

    #[test]
    fn no_bytes_break_the_parser() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for round in 0..200_000_usize {
            let mut bytes = seeds()[round % 3].clone();
            for _ in 0..random() % 6 {
                let at = random() as usize % bytes.len();
                bytes[at] = random() as u8;
            }
            bytes.truncate(random() as usize % (bytes.len() + 1));
            let len = bytes.len() as u32 + (random() % 4) as u32 * 700;
            let frame = Frame { len, vlan_tci: random() as u16, link_header: random() % 4 != 0 };
            check_invariants(&bytes, frame, (random() % 2_000) as u32, (random() % 50) as u32);
        }
    }
}
