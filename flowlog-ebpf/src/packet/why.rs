//! Why a frame is no flow, for people. Not for the programs: they count it, and whoever traces hands its bytes over.

use core::fmt;

use super::{Bytes as _, ETH_HEADER, ETH_P_8021AD, ETH_P_8021Q, ETH_P_IP, Frame, Packet, VLAN_TAGS_MAX, be16, parse};

/// Why the parser has found no flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is of another kind: its Ethertype.
    Ethertype(u16),
    /// The frame has no room for a link header.
    NoLink,
    /// Without a link header, it begins like no IP packet.
    NoVersion,
    /// A VLAN tag is cut short.
    CutTag,
    /// It has more VLAN tags than are followed.
    Tags,
    /// The IP header of this version is cut short.
    CutHeader(u8),
    /// Its IP header of this version says that it is of another.
    Version(u8, u8),
    /// Its IPv4 header says that it has fewer bytes than any.
    ShortHeader,
    /// Its IPv4 header says that it is longer than the frame.
    LongHeader,
    /// Its IPv4 header says that the packet is shorter than the header.
    ShortPacket,
    /// It has an IPv6 hop-by-hop header, and says that nothing is behind its IPv6 header.
    Jumbo,
    /// What is behind the IP header of this version is cut short: for IPv6 that may be a chain of headers.
    CutUpper(u8, u8),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Ethertype(kind) => write!(f, "Ethertype {kind:#06x}"),
            Self::NoLink => f.write_str("it is shorter than a link header"),
            Self::NoVersion => f.write_str("it begins with neither version 4 nor version 6"),
            Self::CutTag => f.write_str("a VLAN tag is cut short"),
            Self::Tags => write!(f, "it has more than {VLAN_TAGS_MAX} VLAN tags"),
            Self::CutHeader(version) => write!(f, "its IPv{version} header is cut short"),
            Self::Version(version, said) => write!(f, "its IPv{version} header says version {said}"),
            Self::ShortHeader => f.write_str("its IPv4 header says that it has fewer than 20 bytes"),
            Self::LongHeader => f.write_str("its IPv4 header says that it is longer than the packet"),
            Self::ShortPacket => f.write_str("its IPv4 header says that the packet is shorter than the header"),
            Self::Jumbo => f.write_str("its IPv6 header says that nothing follows, and that a hop-by-hop header does"),
            Self::CutUpper(4, proto) => write!(f, "the header of protocol {proto} behind its IPv4 header is cut short"),
            Self::CutUpper(version, proto) => {
                write!(f, "what begins with header {proto} behind its IPv{version} header is cut short")
            }
        }
    }
}

/// Why these bytes, which are the beginning of a frame, are no flow; `None`: they are one.
#[must_use]
pub fn why(bytes: &[u8], frame: Frame) -> Option<Why> {
    let is_ip = match parse(bytes, frame) {
        Packet::V4(_) | Packet::V6(_) => return None,
        Packet::NonIp(_) => false,
        Packet::Malformed(_) => true,
    };
    if !frame.link_header {
        let Some([first, _]) = bytes.read(0) else { return Some(Why::NoVersion) };
        return Some(if is_ip { ip(bytes, 0, first >> 4, frame.len) } else { Why::NoVersion });
    }
    let Some([hi, lo]) = bytes.read(12) else { return Some(Why::NoLink) };
    let mut kind = be16(hi, lo);
    let mut offset = ETH_HEADER;
    while kind == ETH_P_8021Q || kind == ETH_P_8021AD {
        let taken = offset == ETH_HEADER + 4 * VLAN_TAGS_MAX;
        if taken {
            return Some(Why::Tags);
        }
        let Some([_, _, hi, lo]) = bytes.read(offset) else { return Some(Why::CutTag) };
        kind = be16(hi, lo);
        offset += 4;
    }
    if !is_ip {
        return Some(Why::Ethertype(kind));
    }
    if frame.vlan_tci != 0 && offset == ETH_HEADER + 4 * VLAN_TAGS_MAX {
        return Some(Why::Tags);
    }
    let version = if kind == ETH_P_IP { 4 } else { 6 };
    Some(ip(bytes, offset, version, frame.len.saturating_sub(offset as u32)))
}

/// Why the parser does not take the IP packet at `offset`.
fn ip(bytes: &[u8], offset: usize, version: u8, available: u32) -> Why {
    let Some([first, _, hi, lo, _, _, next, _]) = bytes.read(offset) else { return Why::CutHeader(version) };
    if first >> 4 != version {
        return Why::Version(version, first >> 4);
    }
    let fixed = if version == 4 { 20 } else { 40 };
    if bytes.get(offset..offset + fixed).is_none() {
        return Why::CutHeader(version);
    }
    let length = u32::from(be16(hi, lo));
    if version == 6 {
        return if length == 0 && next == 0 { Why::Jumbo } else { Why::CutUpper(6, next) };
    }
    let header = u32::from(first & 0x0f) << 2;
    if header < 20 {
        Why::ShortHeader
    } else if header > available {
        Why::LongHeader
    } else if length != 0 && length < header {
        Why::ShortPacket
    } else {
        Why::CutUpper(4, bytes.get(offset + 9).copied().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use std::{string::ToString as _, vec, vec::Vec};

    use super::*;

    fn frame(kind: [u8; 2], behind: &[u8]) -> Vec<u8> {
        let mut bytes = vec![2; 12];
        bytes.extend_from_slice(&kind);
        bytes.extend_from_slice(behind);
        bytes
    }

    /// A TCP header, and all of an IPv4 header in front of it but how it begins.
    fn ipv4(first: u8, total: u16) -> Vec<u8> {
        let mut ip = vec![first, 0];
        ip.extend_from_slice(&total.to_be_bytes());
        ip.extend_from_slice(&[0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        ip.resize(40, 0);
        ip
    }

    #[test]
    fn every_way_to_be_no_flow_is_said() {
        let v6 = |length: u8, next: u8| [&[0x60, 0, 0, 0, 0, length, next, 64][..], &[0; 32]].concat();
        let tags = |n: usize| [[0, 1, 0x81, 0].repeat(n), vec![0, 1, 8, 0]].concat();
        for (bytes, vlan_tci, expected) in [
            (frame([8, 0], &ipv4(0x45, 40)), 0, None),
            (frame([8, 6], &[0; 28]), 0, Some(Why::Ethertype(0x0806))),
            (vec![0; 12], 0, Some(Why::NoLink)),
            (frame([0x81, 0], &[0, 1, 8]), 0, Some(Why::CutTag)),
            (frame([0x81, 0], &[tags(3), ipv4(0x45, 40)].concat()), 0, Some(Why::Tags)),
            (frame([0x81, 0], &[tags(2), ipv4(0x45, 40)].concat()), 5, Some(Why::Tags)),
            (frame([8, 0], &[0x45; 19]), 0, Some(Why::CutHeader(4))),
            (frame([8, 0], &[]), 0, Some(Why::CutHeader(4))),
            (frame([8, 0], &ipv4(0x65, 40)), 0, Some(Why::Version(4, 6))),
            (frame([8, 0], &ipv4(0x44, 40)), 0, Some(Why::ShortHeader)),
            (frame([8, 0], &ipv4(0x4f, 40)), 0, Some(Why::LongHeader)),
            (frame([8, 0], &ipv4(0x45, 19)), 0, Some(Why::ShortPacket)),
            (frame([8, 0], &ipv4(0x45, 30)), 0, Some(Why::CutUpper(4, 6))),
            (frame([0x86, 0xdd], &v6(0, 0)), 0, Some(Why::Jumbo)),
            (frame([0x86, 0xdd], &v6(0, 6)), 0, Some(Why::CutUpper(6, 6))),
            (frame([0x86, 0xdd], &v6(0, 6)[..39]), 0, Some(Why::CutHeader(6))),
        ] {
            let about = Frame { len: bytes.len() as u32, vlan_tci, link_header: true };
            assert_eq!(why(&bytes, about), expected, "{bytes:02x?}");
        }
        let bare = |bytes: &[u8]| why(bytes, Frame { len: bytes.len() as u32, vlan_tci: 0, link_header: false });
        assert_eq!((bare(&[0x50; 40]), bare(&[0x45])), (Some(Why::NoVersion), Some(Why::NoVersion)));
        assert_eq!(bare(&ipv4(0x43, 40)), Some(Why::ShortHeader));
        assert_eq!(Why::Ethertype(0x88cc).to_string(), "Ethertype 0x88cc");
    }
}
