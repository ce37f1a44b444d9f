//! Merging records by flow.
//!
//! Flows live in chunks of a fixed size beside a hash index of 4-byte numbers: a table that grows moves the index only,
//! and a flow costs 56 bytes (IPv6: 80) and 6 to 12 for the index. What all flows of a window share is not repeated.
//!
//! Verdicts are settled on the way in: a refused packet that a hook had counted is subtracted from its accepted flow,
//! which may then stand below zero until its own record arrives.

mod lost;
pub(crate) mod told;

use std::hash::{BuildHasher as _, Hash};

use flowlog_ebpf::{
    abi::{
        Count, EGRESS, FAMILY_V4, FAMILY_V6, FLAGS_UNSURE, INGRESS, Ip4, Ip6, Key, Meta, Record, Record4, Record6,
        Stats, class,
    },
    packet::NOT_THERE,
};
use flowlog_model::rule::Direction;
use hashbrown::{DefaultHashBuilder, HashTable};

pub use self::{
    lost::Lost,
    told::{KEPT_MAX, OtherSide, Untold},
};
use crate::window::block;

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

/// What tells flows of one window and interface apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct FlowKey<A> {
    src: A,
    dst: A,
    sport: u16,
    dport: u16,
    vlan: u16,
    reason: u16,
    proto: u8,
    /// Bit 0: direction, as in [`Meta::flags`]; bits 1 and 3: what it is a count of.
    flags: u8,
    /// The firewall's mark, of what was refused.
    mark: u32,
}

const _: () = {
    assert!(Direction::Ingress.index() == INGRESS as usize && Direction::Egress.index() == EGRESS as usize);
};

const REFUSED: u8 = 1 << 1;
/// Bit of [`Entry::flags`] that is no part of the key: [`Totals::flags_unsure`].
const UNSURE: u8 = 1 << 2;
/// What was lost of the accepted flow with the same key but for this bit and the reason.
const LOST: u8 = 1 << 3;

impl<A: Copy> FlowKey<A> {
    /// The entry that a record of this class and tag adds to.
    fn of(key: &Key<A>, of_class: u8, tag: u32) -> Self {
        let Meta { sport, dport, vlan, proto, .. } = key.meta;
        let (what, reason, mark) = match of_class {
            class::PASSED => (0, 0, 0),
            class::LOST => (LOST, key.meta.reason, 0),
            _ => (REFUSED, key.meta.reason, tag),
        };
        let flags = key.meta.direction() | what;
        Self { src: key.src, dst: key.dst, sport, dport, vlan, reason, proto, flags, mark }
    }

    /// The accepted flow that this one was lost of.
    fn accepted(self) -> Self {
        Self { reason: 0, flags: self.flags & !LOST, ..self }
    }
}

/// A flow as it is kept: its key, member by member so that no byte is lost to alignment, and its counts. These are below
/// zero while more has been taken back than has arrived.
#[derive(Clone, Copy, Debug)]
struct Entry<A> {
    src: A,
    dst: A,
    sport: u16,
    dport: u16,
    vlan: u16,
    reason: u16,
    proto: u8,
    flags: u8,
    tcp_flags: u8,
    mark: u32,
    first_ns: u64,
    last_ns: u64,
    bytes: i64,
    packets: i64,
}

const _: () = {
    assert!(size_of::<Entry<Ip4>>() == 56);
    assert!(size_of::<Entry<Ip6>>() == 80);
};

/// Records in a block of a snapshot: 64 KiB of IPv4 records.
const SNAPSHOT_RECORDS: usize = 1 << 10;

/// Flows in a chunk: 224 KiB of IPv4 flows.
const CHUNK: usize = 1 << 12;

#[derive(Debug)]
struct Table<A> {
    chunks: Vec<Vec<Entry<A>>>,
    index: HashTable<u32>,
    hasher: DefaultHashBuilder,
    /// Once it is sealed: flows of which some was lost, each with the entry that says how much; in order.
    lost: Vec<(u32, u32)>,
    /// What flows have on the other side of a translation.
    told: told::Translations<A>,
}

impl<A> Default for Table<A> {
    fn default() -> Self {
        Self {
            chunks: Vec::new(),
            index: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            lost: Vec::new(),
            told: told::Translations::default(),
        }
    }
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

impl<A: block::Address + Copy + Eq + Hash> Table<A> {
    fn len(&self) -> usize {
        self.chunks.last().map_or(0, |last| (self.chunks.len() - 1) * CHUNK + last.len())
    }

    /// The flow with this key; a new one has counted nothing.
    fn entry(&mut self, key: FlowKey<A>) -> &mut Entry<A> {
        let id = self.number(key) as usize;
        &mut self.chunks[id / CHUNK][id % CHUNK]
    }

    fn at(&self, id: u32) -> Option<&Entry<A>> {
        self.chunks.get(id as usize / CHUNK)?.get(id as usize % CHUNK)
    }

    /// Where the flow with this key is.
    fn number(&mut self, key: FlowKey<A>) -> u32 {
        let Self { chunks, index, hasher, .. } = self;
        let at = |chunks: &[Vec<Entry<A>>], id: u32| chunks[id as usize / CHUNK][id as usize % CHUNK].key();
        let hash = hasher.hash_one(key);
        let found = index.find(hash, |id| at(chunks, *id) == key).copied();
        found.unwrap_or_else(|| {
            if chunks.last().is_none_or(|last| last.len() == CHUNK) {
                chunks.push(Vec::with_capacity(CHUNK));
            }
            let chunk = chunks.len() - 1;
            let id = u32::try_from(chunk * CHUNK + chunks[chunk].len()).expect("fewer flows than `flows_max` allows");
            chunks[chunk].push(Entry::new(key));
            index.insert_unique(hash, id, |id| hasher.hash_one(at(chunks, *id)));
            id
        })
    }

    fn add(&mut self, record: &Record<A>, lost: &mut [Count; 2]) {
        let Record { key, stats } = record;
        let of_class = key.meta.class();
        if of_class == class::TOLD {
            return self.told.add(record);
        }
        self.entry(FlowKey::of(key, of_class, stats.tag)).merge(stats);
        match of_class {
            class::REFUSED_COUNTED => {
                let passed = self.entry(FlowKey::of(key, class::PASSED, 0));
                passed.packets -= signed(stats.packets);
                passed.bytes -= signed(stats.bytes);
                // Counts can be taken back, flags cannot.
                passed.flags |= UNSURE;
            }
            class::REFUSED_LOST => {
                let lost = &mut lost[usize::from(key.meta.direction())];
                lost.packets += stats.packets;
                lost.bytes += stats.bytes;
            }
            _ => {}
        }
    }

    /// Frees the index: nothing is added any more. Drops chunks' spare room, too.
    fn seal(&mut self) {
        if self.index.is_empty() {
            return;
        }
        self.find_lost();
        self.index = HashTable::new();
        if let Some(last) = self.chunks.last_mut() {
            last.shrink_to_fit();
        }
    }

    /// See [`FlowTable::blocks`].
    fn blocks(&self, family: u32, iface: u16, epoch: u32, each: &mut impl FnMut(&[u8])) {
        let mut bytes = Vec::new();
        let mut records = Vec::with_capacity(SNAPSHOT_RECORDS);
        for some in self.chunks.iter().flat_map(|c| c.chunks(SNAPSHOT_RECORDS)) {
            records.clear();
            records.extend(some.iter().map(|e| e.record(iface, epoch)));
            bytes.clear();
            block::write(&mut bytes, family, &records);
            each(&bytes);
        }
    }
}

impl<A: Copy> Entry<A> {
    fn new(key: FlowKey<A>) -> Self {
        let FlowKey { src, dst, sport, dport, vlan, reason, proto, flags, mark } = key;
        Self {
            src,
            dst,
            sport,
            dport,
            vlan,
            reason,
            proto,
            flags,
            tcp_flags: 0,
            mark,
            first_ns: u64::MAX,
            last_ns: 0,
            bytes: 0,
            packets: 0,
        }
    }

    fn key(&self) -> FlowKey<A> {
        let Self { src, dst, sport, dport, vlan, reason, proto, flags, mark, .. } = *self;
        FlowKey { src, dst, sport, dport, vlan, reason, proto, flags: flags & !UNSURE, mark }
    }

    fn merge(&mut self, stats: &Stats) {
        self.first_ns = self.first_ns.min(stats.first_ns);
        self.last_ns = self.last_ns.max(stats.last_ns);
        // A record of a snapshot may stand below zero: see `Entry::record`.
        self.bytes += stats.bytes.cast_signed();
        self.packets += stats.packets.cast_signed();
        self.tcp_flags |= stats.tcp_flags.to_le_bytes()[0];
        if stats.tcp_flags & FLAGS_UNSURE != 0 {
            self.flags |= UNSURE;
        }
    }

    /// The one record that makes this entry when it is added to an empty table.
    fn record(&self, iface: u16, epoch: u32) -> Record<A> {
        let Self { sport, dport, vlan, reason, proto, flags, first_ns, last_ns, .. } = *self;
        let class = match flags & (REFUSED | LOST) {
            0 => class::PASSED,
            LOST => class::LOST,
            _ => class::REFUSED,
        };
        let unsure = if flags & UNSURE == 0 { 0 } else { FLAGS_UNSURE };
        let flags = Meta::pack(flags & 1, class);
        Record {
            key: Key {
                src: self.src,
                dst: self.dst,
                meta: Meta { sport, dport, vlan, iface, reason, proto, flags, epoch },
            },
            stats: Stats {
                first_ns,
                last_ns,
                bytes: self.bytes.cast_unsigned(),
                packets: self.packets.cast_unsigned(),
                tcp_flags: u32::from(self.tcp_flags) | unsure,
                tag: self.mark,
            },
        }
    }

    fn direction(&self) -> Direction {
        Direction::BOTH[usize::from(self.flags & 1)]
    }

    /// The flow as a row shows it, and its deficit: what was taken back beyond what it had.
    fn settle(&self, addresses: impl Fn(A, A) -> Addresses) -> (Flow, Count) {
        let Self { sport, dport, vlan, reason, proto, flags, first_ns, last_ns, tcp_flags, .. } = *self;
        let flags_unsure = flags & UNSURE != 0;
        let counted = |n: i64| u64::try_from(n).unwrap_or(0);
        let packets = counted(self.packets);
        let bytes = counted(self.bytes);
        let flow = Flow {
            addresses: addresses(self.src, self.dst),
            sport,
            dport,
            vlan,
            reason,
            proto,
            direction: self.direction(),
            refused: flags & REFUSED != 0,
            mark: self.mark,
            totals: Totals { first_ns, last_ns, bytes, packets, tcp_flags, flags_unsure },
        };
        (flow, Count { packets: counted(-self.packets), bytes: counted(-self.bytes) })
    }
}

/// The flows of one interface and window.
#[derive(Debug, Default)]
pub struct FlowTable {
    v4: Table<Ip4>,
    v6: Table<Ip6>,
    /// Refused packets that the hook had counted as lost, by direction.
    refused_lost: [Count; 2],
    /// Once all records are in: what is not known of translations.
    untold: Untold,
}

/// Bit of a flow's number that says IPv6.
const V6: u32 = 1 << 31;

impl FlowTable {
    /// Adds an IPv4 record.
    pub fn add4(&mut self, record: &Record4) {
        self.v4.add(record, &mut self.refused_lost);
    }

    /// Adds an IPv6 record.
    pub fn add6(&mut self, record: &Record6) {
        self.v6.add(record, &mut self.refused_lost);
    }

    /// Number of different flows, and of reasons for which some of them were lost.
    #[must_use]
    pub fn flow_count(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Refused packets that the hook had counted as lost, by direction: they are lost no longer.
    #[must_use]
    pub(crate) fn refused_lost(&self) -> [Count; 2] {
        self.refused_lost
    }

    /// Hands out blocks of records that make this table when they are added to an empty one, in the same order.
    pub(crate) fn blocks(&self, iface: u16, epoch: u32, mut each: impl FnMut(&[u8])) {
        self.v4.blocks(FAMILY_V4, iface, epoch, &mut each);
        self.v6.blocks(FAMILY_V6, iface, epoch, &mut each);
        self.told_blocks(iface, epoch, &mut each);
    }

    /// Takes over what another table had counted as refused and lost.
    pub(crate) fn set_refused_lost(&mut self, lost: [Count; 2]) {
        self.refused_lost = lost;
    }

    pub(crate) fn add(&mut self, record: &block::Record) {
        match record {
            block::Record::V4(r) => self.add4(r),
            block::Record::V6(r) => self.add6(r),
        }
    }

    /// No more records are added: frees what was needed for that.
    pub fn seal(&mut self) {
        self.v4.seal();
        self.v6.seal();
    }

    /// Numbers of all flows, for [`flow`](Self::flow).
    pub(crate) fn numbers(&self) -> impl Iterator<Item = u32> + use<> {
        let upto = |n: usize| 0..u32::try_from(n).unwrap_or(V6);
        upto(self.v4.len()).chain(upto(self.v6.len()).map(|id| id | V6))
    }

    /// One flow; `None` if all its packets were taken back, or there is no such number, or it says what was lost of another.
    #[must_use]
    pub(crate) fn flow(&self, number: u32) -> Option<Flow> {
        self.settled(number).map(|(flow, _)| flow).filter(|f| f.totals.packets > 0)
    }

    /// One flow and what was taken back from it beyond what it had.
    fn settled(&self, number: u32) -> Option<(Flow, Count)> {
        let id = number & !V6;
        if number & V6 == 0 {
            self.v4.at(id).filter(|e| e.flags & LOST == 0).map(|e| e.settle(Addresses::V4))
        } else {
            self.v6.at(id).filter(|e| e.flags & LOST == 0).map(|e| e.settle(Addresses::V6))
        }
    }

    /// Flows from which more was taken back than they had, and how much: packets or bytes that no record has brought.
    pub(crate) fn deficits(&self) -> impl Iterator<Item = (Flow, Count)> + '_ {
        self.numbers().filter_map(|n| self.settled(n)).filter(|(_, deficit)| *deficit != Count::default())
    }

    /// All flows, in no order.
    pub fn flows(&self) -> impl Iterator<Item = Flow> + '_ {
        self.numbers().filter_map(|n| self.flow(n))
    }
}
