//! What the parser must do with any bytes, and tests that try.

use super::{
    DCCP, ETH_HEADER, Frame, ICMP, ICMPV6, IPV6_PACKET_MAX, JUMBO_HEADER, NOT_THERE, Packet, SCTP, TCP, UDP, UDPLITE,
    VLAN_TAGS_MAX, common4, common6, parse, why, wire,
};

/// What must hold for any bytes and any claim about them; panics if it does not. For the fuzzer and the unit test.
#[allow(clippy::missing_panics_doc, reason = "panicking is what it does")]
pub fn check_invariants(bytes: &[u8], frame: Frame, gso_size: u32, gso_segs: u32) {
    if frame.link_header {
        if let Some(flow) = bytes.first_chunk().and_then(|h| common4(h, frame)) {
            assert_eq!(parse(bytes, frame), Packet::V4(flow));
        }
        if let Some(flow) = bytes.first_chunk().and_then(|h| common6(h, frame)) {
            assert_eq!(parse(bytes, frame), Packet::V6(flow));
        }
    }
    assert_eq!(why(bytes, frame).is_none(), matches!(parse(bytes, frame), Packet::V4(_) | Packet::V6(_)));
    let (l3_len, headers, ports, proto, flags) = match parse(bytes, frame) {
        Packet::NonIp(n) | Packet::Malformed(n) => return assert!(n <= frame.len),
        Packet::V4(f) => (f.l3_len, f.headers, (f.sport, f.dport), f.proto, f.tcp_flags),
        Packet::V6(f) => (f.l3_len, f.headers, (f.sport, f.dport), f.proto, f.tcp_flags),
    };
    assert!(l3_len <= frame.len && headers >= 20);
    match proto {
        TCP | UDP | SCTP | DCCP | UDPLITE => {}
        ICMP | ICMPV6 => assert!(ports == (NOT_THERE, NOT_THERE) || (ports.0 <= 0xff && ports.1 <= 0xff)),
        _ => assert_eq!(ports, (0, 0)),
    }
    // Nothing comes from behind the packet's end: without those bytes the outcome is the same.
    let tag = |at: usize| matches!(bytes.get(at..at + 2), Some([0x81, 0] | [0x88, 0xa8]));
    let tags = (0..VLAN_TAGS_MAX).take_while(|n| tag(12 + 4 * n)).count();
    let link = if frame.link_header { ETH_HEADER + 4 * tags } else { 0 };
    let internal = if l3_len + JUMBO_HEADER > IPV6_PACKET_MAX { JUMBO_HEADER } else { 0 };
    let end = bytes.len().min(link + (l3_len + internal) as usize);
    assert_eq!(parse(&bytes[..end], frame), parse(bytes, frame), "padding was read");
    assert!(flags == 0 || proto == TCP);
    let (packets, wire_bytes) = wire(l3_len, headers, gso_size, gso_segs);
    assert!(packets >= 1 && wire_bytes >= l3_len);
}

#[cfg(test)]
mod tests {
    use std::{vec, vec::Vec};

    use super::*;

    fn seeds() -> [Vec<u8>; 5] {
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
        let mut padded = vec![0u8; 60];
        padded[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
        padded[16..18].copy_from_slice(&34u16.to_be_bytes());
        padded[23] = TCP;
        let mut jumbo = vec![0u8; 100];
        jumbo[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
        jumbo[54..60].copy_from_slice(&[TCP, 0, 0xc2, 4, 0, 1]);
        [v4, v6, vlan, padded, jumbo]
    }

    #[test]
    fn a_vlan_tag_counts_the_same_in_the_frame_and_out_of_it() {
        let tagged = |tags: u16| {
            let mut frame = vec![0u8; 12];
            for id in 1..=tags {
                frame.extend_from_slice(&[0x81, 0, 0, id as u8]);
            }
            frame.extend_from_slice(&[8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, UDP]);
            frame.resize(frame.len() + 18, 0);
            frame
        };
        let outcome =
            |frame: &[u8], vlan_tci| match parse(frame, Frame { len: frame.len() as u32, vlan_tci, link_header: true })
            {
                Packet::V4(f) => Ok(f.vlan),
                other => Err(other),
            };
        for tags in 0..6 {
            let whole = tagged(tags);
            let expected = if usize::from(tags) <= VLAN_TAGS_MAX { Ok(tags.min(1)) } else { Err(()) };
            assert_eq!(outcome(&whole, 0).or(Err(())), expected, "{tags} in the frame");
            if tags > 0 {
                let outer_taken_out = [&whole[..12], &whole[16..]].concat();
                assert_eq!(outcome(&outer_taken_out, 1).or(Err(())), expected, "{tags}, one taken out");
            }
        }
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
            let mut bytes = seeds()[round % 5].clone();
            for _ in 0..random() % 6 {
                let at = random() as usize % bytes.len();
                bytes[at] = random() as u8;
            }
            bytes.truncate(random() as usize % (bytes.len() + 1));
            let len = bytes.len() as u32 + [0, 0, 700, 2_100, 66_000][random() as usize % 5];
            let frame = Frame { len, vlan_tci: random() as u16, link_header: random() % 4 != 0 };
            check_invariants(&bytes, frame, (random() % 2_000) as u32, (random() % 50) as u32);
        }
    }
}
