//! Questions about flows that came in, for connection tracking and for a load balancer, and their answers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flowlog_ebpf::abi::{FAMILY_V4, FAMILY_V6, INGRESS, Ip4, Ip6, Key, Meta, Record, Side, Stats, class};
use flowlog_model::translation::Tuple;

use super::{Packets, UNKNOWN};
use crate::window::{
    block::{self, Address},
    table::{Addresses, SNAPSHOT_RECORDS},
};

/// What is to be asked when a window ends.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Questions {
    /// Packets as they came in.
    pub(crate) tuples: Vec<Tuple>,
    /// In which VLAN they are.
    pub(crate) vlans: Vec<u16>,
    /// How many there was no room for.
    pub(crate) left_out: u64,
    /// Without an answer it is not known whose packets these are, whatever else they show.
    pub(crate) must_be_known: bool,
}

impl Questions {
    pub(super) fn of(mut all: impl Iterator<Item = (Tuple, u16)>, room: usize) -> Self {
        let (tuples, vlans) = all.by_ref().take(room).unzip();
        Self { tuples, vlans, left_out: all.count() as u64, must_be_known: false }
    }
}

/// Blocks of records that say what was answered of packets that came in.
pub(crate) fn answered((iface, epoch): (u16, u32), questions: &Questions, answers: &[Option<Tuple>]) -> Vec<Vec<u8>> {
    let Questions { tuples, vlans, .. } = questions;
    let (mut four, mut six) = (Vec::new(), Vec::new());
    for ((asked, vlan), answer) in tuples.iter().zip(vlans).zip(answers) {
        let (other, tag) = match answer {
            Some(other) => (other, 0),
            None if questions.must_be_known => (asked, UNKNOWN),
            None => continue,
        };
        let flags = Meta::pack(INGRESS, class::TOLD);
        let Tuple { sport, dport, proto, .. } = *asked;
        let meta = Meta { sport, dport, vlan: *vlan, iface, reason: 0, proto, flags, epoch };
        let side = Side { src: wide(other.src), dst: wide(other.dst), sport: other.sport, dport: other.dport };
        let (src, dst) = (wide(asked.src), wide(asked.dst));
        let stats = Stats { tag, ..side.pack() };
        if asked.src.is_ipv4() {
            let key = Key { src: Ip4::narrow(src), dst: Ip4::narrow(dst), meta };
            four.push(Record { key, stats });
        } else {
            six.push(Record { key: Key { src, dst, meta }, stats });
        }
    }
    let mut blocks = blocks(FAMILY_V4, &four);
    blocks.extend(self::blocks(FAMILY_V6, &six));
    blocks
}

fn blocks<A: Address>(family: u32, records: &[Record<A>]) -> Vec<Vec<u8>> {
    let block = |some: &[Record<A>]| {
        let mut bytes = Vec::new();
        block::write(&mut bytes, family, some);
        bytes
    };
    records.chunks(SNAPSHOT_RECORDS).map(block).collect()
}

/// As connection tracking knows them.
pub(super) fn tuple<A: Copy>(of: &Packets<A>, addresses: impl Fn(A, A) -> Addresses) -> Tuple {
    let (src, dst) = match addresses(of.src, of.dst) {
        Addresses::V4(src, dst) => (v4(src), v4(dst)),
        Addresses::V6(src, dst) => (v6(src), v6(dst)),
    };
    Tuple { src, dst, sport: of.sport, dport: of.dport, proto: of.proto }
}

fn v4(address: Ip4) -> IpAddr {
    Ipv4Addr::from(address.to_ne_bytes()).into()
}

fn v6([hi, lo]: Ip6) -> IpAddr {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&hi.to_ne_bytes());
    bytes[8..].copy_from_slice(&lo.to_ne_bytes());
    Ipv6Addr::from(bytes).into()
}

fn wide(address: IpAddr) -> Ip6 {
    match address {
        IpAddr::V4(a) => Ip4::from_ne_bytes(a.octets()).wide(),
        IpAddr::V6(a) => {
            let octets = a.octets();
            let half = |at: usize| octets[at..].first_chunk().map_or(0, |b| u64::from_ne_bytes(*b));
            [half(0), half(8)]
        }
    }
}
