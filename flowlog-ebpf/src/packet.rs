//! The packet parser: link header, VLAN tags, IPv4 with options, IPv6 with extension headers, fragments,
//! TCP, UDP, ICMP. One implementation for the TC, XDP and verdict programs, the unit tests and the fuzzer.
//!
//! It reads through [`Bytes`], so the same code works on direct packet access, on `bpf_skb_load_bytes`, on kernel
//! memory and on a slice. It never loops over data: every loop is bounded by a constant, for the verifier.
//!
//! What is behind the IP header's own length is padding, and never read. A packet is malformed only where nothing can
//! be said about it; one whose upper header is in no part of it (fragments, chains of headers past the limits) keeps
//! its addresses, its bytes, and the number of the header that was looked for last.
//!
//! Sources: RFC 791, RFC 8200, RFC 4302 (AH length), RFC 7045 (extension header list), RFC 2675 (jumbo payload),
//! RFC 1858 and 7112 (what a first fragment holds), IEEE 802.1Q / 802.1ad.

use crate::abi::{Ip4, Ip6};

mod check;
mod common;
mod why;

#[doc(hidden)]
pub use check::check_invariants;
pub use common::{COMMON4, COMMON6, common4, common6};
pub use why::{Why, why};

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
/// VLAN tags followed, the one that the kernel took out of the frame included: what a hook sees does not depend on who
/// took it out. One more makes the frame malformed.
pub const VLAN_TAGS_MAX: usize = 3;
/// IPv6 extension headers followed; behind more than this the upper header is not looked for. RFC 8200 names six kinds,
/// one of them twice.
pub const EXTENSION_HEADERS_MAX: usize = 8;
/// In place of ICMP type and code where a packet has none (later fragments): a type has 8 bits. Ports are 0 then.
pub const NOT_THERE: u16 = 0xffff;

const ETH_HEADER: usize = 14;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
/// A VLAN tag follows (`include/uapi/linux/if_ether.h`).
pub const ETH_P_8021Q: u16 = 0x8100;
/// A provider's VLAN tag follows.
pub const ETH_P_8021AD: u16 = 0x88a8;
const VLAN_ID: u16 = 0x0fff;

/// Number of ICMP (IANA).
pub const ICMP: u8 = 1;
/// Number of TCP (IANA).
pub const TCP: u8 = 6;
const UDP: u8 = 17;
/// Number of `ICMPv6` (IANA).
pub const ICMPV6: u8 = 58;
const DCCP: u8 = 33;
const SCTP: u8 = 132;
const UDPLITE: u8 = 136;

/// Bytes of a TCP header up to its flags.
const TCP_FLAGS_END: u32 = 14;
/// Bytes of two ports.
const PORTS_END: u32 = 4;
/// As much as is looked at of an upper header.
const ROOM_MAX: u32 = TCP_FLAGS_END;
/// Bytes of ICMP type and code.
const ICMP_CODE_END: u32 = 2;
/// More fragments follow (IPv4).
const MORE_FRAGMENTS: u16 = 0x2000;
/// The largest IPv6 packet whose length fits its header.
const IPV6_PACKET_MAX: u32 = 40 + 65_535;
/// The hop-by-hop header with a jumbo payload option that the kernel puts into IPv6 packets larger than that, and takes
/// out of every segment again (`struct hop_jumbo_hdr`): it is on no wire.
const JUMBO_HEADER: u32 = 8;

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
    /// IPv4: Ethertype 0x0800 behind all VLAN tags, or version 4 in the first byte of a frame without link header.
    V4(Flow<Ip4>),
    /// IPv6: Ethertype 0x86dd behind all VLAN tags, or version 6 in the first byte of a frame without link header.
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
    /// Source port, or ICMP type; 0 for later fragments and protocols without ports, [`NOT_THERE`] for those of ICMP.
    pub sport: u16,
    /// Destination port, or ICMP code; likewise.
    pub dport: u16,
    /// Outermost VLAN id; 0 if untagged.
    pub vlan: u16,
    /// Upper-layer protocol, behind all extension headers; the last one's number where the chain goes on elsewhere.
    pub proto: u8,
    /// The TCP flag octet (CWR ECE URG ACK PSH RST SYN FIN from bit 7 down); 0 if not TCP, or not in this fragment.
    pub tcp_flags: u8,
    /// Layer-3 length from the IP header (link padding excluded); from the frame where the header says 0.
    pub l3_len: u32,
    /// Length of IP + TCP/UDP headers: what every segment of a GSO packet repeats, unless it is in a tunnel's packet.
    pub headers: u32,
    /// Length of the IP header, extension headers included.
    pub ip_header: u32,
    /// Which part of a datagram it is.
    pub fragment: Fragment,
}

/// Which part of a datagram a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// All of it, its beginning, or something behind.
    pub part: Part,
    /// The datagram's identification; 0 if all of it.
    pub id: u32,
}

impl Fragment {
    /// A packet that is a datagram of its own.
    pub const NONE: Self = Self { part: Part::Whole, id: 0 };
}

/// See [`Fragment`]. As wide as what is beside it: the verifier refuses copies of padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Part {
    /// The whole datagram: its fragment offset is 0, and no fragments follow.
    Whole,
    /// Its beginning, with the upper layer's header.
    First,
    /// A fragment with an offset above 0: the upper layer's header is not in it.
    Later,
}

/// Wire packets and wire layer-3 bytes of a packet that the kernel carries unsegmented.
///
/// `gso_segs` is what the kernel says; packets from a guest (`SKB_GSO_DODGY`) say 0 and are computed from `gso_size`.
/// `headers` are those that each segment repeats: of a packet inside a tunnel's packet the inner ones as well, which only the kernel
/// knows ([`Flow::headers`] are the outer ones).
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
    [
        u64::from_ne_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]),
        u64::from_ne_bytes([b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]]),
    ]
}

/// Parses one frame from its first byte: link header and VLAN tags if it has them, then IPv4 or IPv6.
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
            // The tag that the kernel took out is the outermost; one with no bit set is not told from none.
            let Some([t0, t1, hi, lo]) = bytes.read(offset) else {
                return Packet::Malformed(frame.len.saturating_sub(ETH_HEADER as u32));
            };
            if vlan == 0 {
                vlan = be16(t0, t1) & VLAN_ID;
            }
            ethertype = be16(hi, lo);
            offset += 4;
        }
        // As many as can be, and one more that the kernel took out.
        if frame.vlan_tci != 0 && offset == ETH_HEADER + 4 * VLAN_TAGS_MAX {
            return Packet::Malformed(frame.len.saturating_sub(offset as u32));
        }
        (ethertype, usize::from(blur(bytes, offset as u16, frame.len)) & OFFSET_MAX)
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
        ip_header: header as u32,
        fragment: piece(h[6] & 0x1f != 0 || h[7] != 0, h[6] & 0x20 != 0, u32::from(be16(h[4], h[5]))),
    };
    let fragment = be16(h[6], h[7]);
    // A later fragment has no upper header.
    let later = matches!(flow.fragment.part, Part::Later);
    let room = if later { 0 } else { l3_len - header as u32 };
    let at = usize::from(bytes.forget((offset + header) as u16)) & OFFSET_MAX;
    upper_layer(bytes, at, room, fragment & (0x1fff | MORE_FRAGMENTS) != 0, &mut flow)?;
    Some(flow)
}

/// Layer-3 length of an IPv6 packet, and how much of it is the kernel's own [`JUMBO_HEADER`]; `None`: malformed.
#[inline(always)]
fn ipv6_len<B: Bytes + ?Sized>(bytes: &B, offset: usize, available: u32, payload: u32, next: u8) -> Option<(u32, u16)> {
    if payload != 0 {
        return Some((if payload + 40 > available { available } else { payload + 40 }, 0));
    }
    if available <= IPV6_PACKET_MAX {
        // Nothing but a header, unless a hop-by-hop option says otherwise: and that may not, for a length that fits
        // the header (RFC 2675, section 3).
        return if next == 0 { None } else { Some((40, 0)) };
    }
    // No device of Linux sends or receives packets this large: it is segmented later, or was put together of segments.
    if next == 0 {
        let [_, units, option, len] = bytes.read(offset + 40)?;
        if units == 0 && option == 0xc2 && len == 4 {
            return Some((available, JUMBO_HEADER as u16));
        }
    }
    Some((available, 0))
}

/// As [`Bytes::forget`], for constants as well: the verifier knows even the zeros that went through memory, but not that
/// something of the packet cancels out.
#[inline(always)]
fn blur<B: Bytes + ?Sized>(bytes: &B, number: u16, with: u32) -> u16 {
    bytes.forget(number ^ with as u16) ^ with as u16
}

/// What stands in the place of ports, or of ICMP type and code, where a packet has none: later fragments.
#[inline(always)]
#[must_use]
pub const fn absent(proto: u8) -> u16 {
    if proto == ICMP || proto == ICMPV6 { NOT_THERE } else { 0 }
}

/// Whether packets of a protocol have ports, in all but the later fragments.
#[inline(always)]
#[must_use]
pub const fn has_ports(proto: u8) -> bool {
    matches!(proto, TCP | UDP | SCTP | DCCP | UDPLITE)
}

/// Whether a number in a chain of IPv6 headers is that of an extension header.
#[inline(always)]
const fn is_extension(next: u8) -> bool {
    matches!(next, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140)
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
    let mut next = h[6];
    let (len, internal) = ipv6_len(bytes, offset, available, u32::from(be16(h[4], h[5])), next)?;
    let internal = u32::from(blur(bytes, internal, len));
    let end = offset as u32 + len;
    let mut at = offset + 40;
    // Offset and more-fragments bit of the fragment header, if there is one.
    let mut fragment = 0;
    let mut id = 0;
    for _ in 0..EXTENSION_HEADERS_MAX {
        if at as u32 + 8 > end {
            break; // no room for another extension header
        }
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
                fragment = be16(f[2], f[3]) & 0xfff9;
                id = u32::from_be_bytes([f[4], f[5], f[6], f[7]]);
                if fragment > 1 {
                    break;
                }
            }
            _ => break,
        }
        if at > OFFSET_MAX {
            break;
        }
        at = usize::from(bytes.forget(at as u16)) & OFFSET_MAX;
    }
    // However the chain ended, it is one state to the verifier from here on.
    let at = u32::from(blur(bytes, at as u16, len));
    // Cut short by the packet's end; that a chain goes on past our limits is no fault of the packet.
    let cut = at > end || (is_extension(next) && at + 8 > end);
    if cut && fragment == 0 {
        return None;
    }
    let here = !cut && fragment <= 1 && at <= OFFSET_MAX as u32;
    let room = u32::from(blur(bytes, if here { (end - at).min(ROOM_MAX) as u16 } else { 0 }, len));
    let part = fragment != 0 || at > OFFSET_MAX as u32;
    let l3_len = len.wrapping_sub(internal);
    let headers = (at - offset as u32).wrapping_sub(internal);
    let mut flow = Flow {
        src,
        dst,
        sport: 0,
        dport: 0,
        vlan,
        proto: next,
        tcp_flags: 0,
        l3_len,
        headers,
        ip_header: headers,
        fragment: piece(fragment > 1, fragment & 1 != 0, id),
    };
    upper_layer(bytes, at as usize & OFFSET_MAX, room, part, &mut flow)?;
    Some(flow)
}

/// What the fragmentation fields say; `id` counts only if it is a fragment at all.
#[inline(always)]
const fn piece(later: bool, more: bool, id: u32) -> Fragment {
    let part = match (later, more) {
        (true, _) => Part::Later,
        (false, true) => Part::First,
        (false, false) => return Fragment::NONE,
    };
    Fragment { part, id }
}

/// Ports, flags, ICMP type and code, as far as they are in the `room` bytes that the packet has at `offset`; `part`: it
/// is no fault if they are not. `None`: the header is not all there.
#[inline(always)]
fn upper_layer<B: Bytes + ?Sized, A>(
    bytes: &B,
    offset: usize,
    room: u32,
    part: bool,
    flow: &mut Flow<A>,
) -> Option<()> {
    match flow.proto {
        TCP if room >= TCP_FLAGS_END => {
            let h: [u8; 14] = bytes.read(offset)?;
            flow.sport = be16(h[0], h[1]);
            flow.dport = be16(h[2], h[3]);
            flow.tcp_flags = h[13];
            flow.headers += u32::from(h[12] >> 4) << 2;
        }
        TCP | UDP | SCTP | DCCP | UDPLITE if room >= PORTS_END && (flow.proto != TCP || part) => {
            let h: [u8; 4] = bytes.read(offset)?;
            flow.sport = be16(h[0], h[1]);
            flow.dport = be16(h[2], h[3]);
            // What each segment repeats: SCTP's common header.
            flow.headers += if flow.proto == SCTP { 12 } else { 8 };
        }
        ICMP | ICMPV6 if room >= ICMP_CODE_END => {
            let h: [u8; 2] = bytes.read(offset)?;
            flow.sport = u16::from(h[0]);
            flow.dport = u16::from(h[1]);
        }
        TCP | UDP | SCTP | DCCP | UDPLITE | ICMP | ICMPV6 if !part => return None,
        ICMP | ICMPV6 => {
            flow.sport = absent(flow.proto);
            flow.dport = absent(flow.proto);
        }
        _ => {}
    }
    Some(())
}
