//! A flow of a settled window, as rows show it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flowlog_ebpf::{
    abi::{EGRESS, INGRESS, Ip4, Ip6},
    packet::NOT_THERE,
};
use flowlog_model::rule::Direction;

/// Counters of one flow in one window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// First packet, monotonic ns.
    pub first_ns: u64,
    /// Last packet, monotonic ns.
    pub last_ns: u64,
    /// Bytes on the wire, from the IP header on.
    pub bytes: u64,
    /// Packets on the wire: GSO segments count one by one.
    pub packets: u64,
    /// OR of all TCP flags.
    pub tcp_flags: u8,
    /// Flags of packets that were refused afterwards may be among them.
    pub flags_unsure: bool,
    /// What was seen of a TCP handshake.
    pub handshake: Handshake,
    /// Connection tracking says that packets went the way of the one that opened the connection.
    pub is_original: bool,
    /// The same, the other way. Both: of several connections.
    pub is_reply: bool,
}

/// What was seen of a TCP handshake in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handshake {
    /// A SYN: the flow's source opened the connection.
    pub opens: bool,
    /// A SYN with ACK: the flow's source was asked.
    pub answers: bool,
    /// When that packet passed, the first one of several: monotonic microseconds, the lower 32 bits. 0 of what was refused.
    pub at_us: u32,
}

/// Addresses of a flow, by family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Addresses {
    /// Source and destination, as they lie in the packet.
    V4(Ip4, Ip4),
    /// Source and destination, as they lie in the packet.
    V6(Ip6, Ip6),
}

/// One flow of a settled window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    pub addresses: Addresses,
    /// Source port, or ICMP type.
    pub sport: u16,
    /// Destination port, or ICMP code.
    pub dport: u16,
    /// VLAN id, 0 if untagged.
    pub vlan: u16,
    /// Drop reason's index; 0 if accepted.
    pub reason: u16,
    pub proto: u8,
    /// Way through the interface.
    pub direction: Direction,
    pub refused: bool,
    /// The firewall's mark, if it was refused; 0: none.
    pub mark: u32,
    pub totals: Totals,
}

const TCP: u8 = 6;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

impl Addresses {
    /// Source and destination.
    #[must_use]
    pub(crate) fn ips(self) -> (IpAddr, IpAddr) {
        match self {
            Self::V4(src, dst) => (ipv4(src).into(), ipv4(dst).into()),
            Self::V6(src, dst) => (ipv6(src).into(), ipv6(dst).into()),
        }
    }
}

/// An IPv4 address as it lies in a packet.
pub(crate) fn ipv4(address: Ip4) -> Ipv4Addr {
    Ipv4Addr::from(address.to_ne_bytes())
}

/// An IPv6 address as it lies in a packet.
pub(crate) fn ipv6([first, second]: Ip6) -> Ipv6Addr {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&first.to_ne_bytes());
    bytes[8..].copy_from_slice(&second.to_ne_bytes());
    Ipv6Addr::from(bytes)
}

impl Flow {
    /// OR of the TCP flags of its packets; `None` if it is not TCP, or nobody knows: a later fragment has neither ports
    /// nor flags, and those of accepted packets are not known where refused ones' may be among them.
    #[must_use]
    pub(crate) fn tcp_flags(&self) -> Option<u8> {
        let Totals { tcp_flags, flags_unsure, .. } = self.totals;
        let later_fragment = (self.sport, self.dport, tcp_flags) == (0, 0, 0);
        (self.proto == TCP && !later_fragment && (self.refused || !flags_unsure)).then_some(tcp_flags)
    }

    /// Whether it is ICMP: as for the parser, either ICMP in either family.
    #[must_use]
    pub(crate) fn is_icmp(&self) -> bool {
        self.proto == ICMP || self.proto == ICMPV6
    }

    /// Its ICMP type and code, if it has them: later fragments have not.
    #[must_use]
    pub(crate) fn icmp(&self) -> Option<(u16, u16)> {
        (self.is_icmp() && self.sport != NOT_THERE).then_some((self.sport, self.dport))
    }
}

const _: () = {
    assert!(Direction::Ingress.index() == INGRESS as usize && Direction::Egress.index() == EGRESS as usize);
};
