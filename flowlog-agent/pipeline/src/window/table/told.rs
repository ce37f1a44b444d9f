//! What translated flows have on the other side: what the programs have told of flows on their way out and of what was refused, and
//! what follows from it for flows on their way in.
//!
//! On the way in a hook comes before connection tracking. So a flow that comes in has the reverse of what was told of its answers; in
//! this window, or in one before ([`Kept`]). A flow whose answers have gone out and of which nothing was told is not translated. What is
//! left is asked for, once, and what is not known then is counted.

mod questions;
#[cfg(test)]
mod tests;

use std::hash::{BuildHasher as _, Hash};

use flowlog_ebpf::{
    abi::{EGRESS, FAMILY_V4, FAMILY_V6, INGRESS, Ip4, Ip6, Key, Meta, Record, Side, Stats, class},
    packet::{ICMP, ICMPV6, NOT_THERE, has_ports},
};
use flowlog_model::{rule::Direction, translation::Services};
use hashbrown::{DefaultHashBuilder, HashTable};

use self::questions::tuple;
pub(crate) use self::questions::{Questions, answered};
use super::{
    Addresses, Flow, FlowTable, SNAPSHOT_RECORDS, Table,
    entry::{FlowEntry, FlowKey, LOST, REFUSED},
};
use crate::window::block::{self, Address};

/// Translations that are known from earlier windows, of all interfaces together: 6 MiB at most (`agent/memory.rs`).
pub const KEPT_MAX: usize = 1 << 16;
/// Flows of an ending window that connection tracking is asked about: 20 ms.
pub(crate) const ASKED_MAX: usize = 4_096;

/// Flows of an ending window that go to a load balancer's addresses and are looked for among its connections: 10 MiB while that is done.
pub(crate) const SERVED_MAX: usize = 1 << 16;

/// Bit of [`Stats::tag`] of a record in a snapshot: it was kept from an earlier window.
const EARLIER: u32 = 1 << 0;
/// The same: different things were told.
const SEVERAL: u32 = 1 << 1;
/// The same: who knows the connections does not know it.
const UNKNOWN: u32 = 1 << 2;

/// Packets on one side of a translation, as far as their rows tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Packets<A> {
    src: A,
    dst: A,
    sport: u16,
    dport: u16,
    vlan: u16,
    proto: u8,
    /// `INGRESS` or `EGRESS`.
    direction: u8,
    /// They were refused: their connection need not be that of those that passed.
    refused: bool,
}

impl<A: Copy> Packets<A> {
    fn of_entry(e: &FlowEntry<A>) -> Self {
        let FlowEntry { src, dst, sport, dport, vlan, proto, flags, .. } = *e;
        Self { src, dst, sport, dport, vlan, proto, direction: flags & 1, refused: flags & REFUSED != 0 }
    }

    /// Their answers, as they passed; `None`: it is not known which packets these are.
    fn answers(self) -> Option<Self> {
        let Self { src, dst, sport, dport, vlan, proto, direction, refused: _ } = self;
        let (sport, dport) = answering(proto, (sport, dport))?;
        Some(Self { src: dst, dst: src, sport, dport, vlan, proto, direction: direction ^ 1, refused: false })
    }

    /// Whether connection tracking finds them by what is known of them.
    fn can_be_asked(self) -> bool {
        has_ports(self.proto) && (self.sport, self.dport) != (0, 0)
    }

    fn accepted(self) -> FlowKey<A> {
        let Self { src, dst, sport, dport, vlan, proto, direction, refused: _ } = self;
        FlowKey { src, dst, sport, dport, vlan, reason: 0, proto, flags: direction, mark: 0 }
    }
}

/// Ports of the packets that answer packets with these; of ICMP, type and code. `None`: nothing answers them.
pub(super) fn answering(proto: u8, (sport, dport): (u16, u16)) -> Option<(u16, u16)> {
    match proto {
        ICMP | ICMPV6 if sport == NOT_THERE => Some((sport, dport)),
        ICMP | ICMPV6 => Some((answer_to(proto, sport)?, dport)),
        _ => Some((dport, sport)),
    }
}

/// Type of the ICMP message that answers one of this type, either way (`nf_conntrack_proto_icmp.c`, `nf_conntrack_proto_icmpv6.c`).
fn answer_to(proto: u8, kind: u16) -> Option<u16> {
    const PAIRS: [(u16, u16); 4] = [(8, 0), (13, 14), (15, 16), (17, 18)];
    const PAIRS6: [(u16, u16); 2] = [(128, 129), (139, 140)];
    let pairs: &[_] = if proto == ICMP { &PAIRS } else { &PAIRS6 };
    pairs.iter().find_map(|(a, b)| if kind == *a { Some(*b) } else { (kind == *b).then_some(*a) })
}

/// What packets have on the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ends<A> {
    src: A,
    dst: A,
    sport: u16,
    dport: u16,
}

#[derive(Clone, Copy, Debug)]
struct Told<A> {
    of: Packets<A>,
    side: Ends<A>,
    /// Different things were told: the row is of several connections.
    several: bool,
    /// Its connection has ended, and nobody has said what it was: not even that nothing was translated.
    unknown: bool,
}

impl<A: Copy> Told<A> {
    /// What it says of the answers.
    fn reversed(self, of: Packets<A>) -> Self {
        let Ends { src, dst, sport, dport } = self.side;
        Self { of, side: Ends { src: dst, dst: src, sport: dport, dport: sport }, ..self }
    }
}

/// All that was told of one address family, in the order in which it was.
#[derive(Debug)]
pub(super) struct Translations<A> {
    all: Vec<Told<A>>,
    index: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl<A> Default for Translations<A> {
    fn default() -> Self {
        Self { all: Vec::new(), index: HashTable::new(), hasher: DefaultHashBuilder::default() }
    }
}

impl<A: Address + Copy + Eq + Hash> Translations<A> {
    fn len(&self) -> usize {
        self.all.len()
    }

    /// What was told of these packets.
    fn get(&self, of: Packets<A>) -> Option<Told<A>> {
        let hash = self.hasher.hash_one(of);
        let id = self.index.find(hash, |id| self.all[*id as usize].of == of)?;
        Some(self.all[*id as usize])
    }

    /// What follows for these packets.
    #[inline]
    fn find(&self, of: Packets<A>) -> Option<Told<A>> {
        // As nearly everywhere: not even a hash is needed.
        if self.all.is_empty() {
            return None;
        }
        // What goes out was told of by the programs, unless a load balancer of its own translates it: that was asked about what came in.
        let may_be_answered = of.direction == INGRESS || !of.refused;
        let from_answers = || Some(self.get(of.answers().filter(|_| may_be_answered)?)?.reversed(of));
        self.get(of).or_else(from_answers)
    }

    fn tell(&mut self, told: Told<A>) {
        let Self { all, index, hasher } = self;
        let hash = hasher.hash_one(told.of);
        if let Some(id) = index.find(hash, |id| all[*id as usize].of == told.of) {
            let known = &mut all[*id as usize];
            known.several |= told.several || known.side != told.side;
            known.unknown |= told.unknown;
            return;
        }
        let id = u32::try_from(all.len()).expect("fewer flows than `flows_max` allows");
        all.push(told);
        index.insert_unique(hash, id, |id| hasher.hash_one(all[*id as usize].of));
    }

    /// Adds a record of the class `TOLD`.
    pub(super) fn add(&mut self, record: &Record<A>) {
        let Record { key, stats } = record;
        let Meta { sport, dport, vlan, proto, .. } = key.meta;
        let direction = key.meta.direction();
        let refused = key.meta.reason != 0;
        let of = Packets { src: key.src, dst: key.dst, sport, dport, vlan, proto, direction, refused };
        let Side { src, dst, sport, dport } = Side::unpack(stats);
        let side = Ends { src: A::narrow(src), dst: A::narrow(dst), sport, dport };
        self.tell(Told { of, side, several: stats.tag & SEVERAL != 0, unknown: stats.tag & UNKNOWN != 0 });
    }

    /// Hands out blocks of records that say it all again, with `tag` set in each.
    fn blocks(&self, (family, iface, epoch): (u32, u16, u32), tag: u32, each: &mut impl FnMut(&[u8])) {
        let mut bytes = Vec::new();
        for some in self.all.chunks(SNAPSHOT_RECORDS) {
            let records: Vec<Record<A>> = some.iter().map(|told| told.record(iface, epoch, tag)).collect();
            bytes.clear();
            block::write(&mut bytes, family, &records);
            each(&bytes);
        }
    }

    /// The last ones of what passed, as many as there is room for; how many that leaves out.
    fn last(&self, room: usize) -> (Self, u64) {
        let mut kept = Self::default();
        let passed = || self.all.iter().filter(|told| !told.of.refused && !told.unknown);
        let left_out = passed().count().saturating_sub(room);
        for told in passed().skip(left_out) {
            kept.tell(*told);
        }
        (kept, left_out as u64)
    }
}

impl<A: Address + Copy> Told<A> {
    fn record(&self, iface: u16, epoch: u32, tag: u32) -> Record<A> {
        let Packets { src, dst, sport, dport, vlan, proto, direction, refused } = self.of;
        let flags = Meta::pack(direction, class::TOLD);
        let reason = u16::from(refused);
        let key = Key { src, dst, meta: Meta { sport, dport, vlan, iface, reason, proto, flags, epoch } };
        let Ends { src, dst, sport, dport } = self.side;
        let tag = tag | if self.several { SEVERAL } else { 0 } | if self.unknown { UNKNOWN } else { 0 };
        Record { key, stats: Stats { tag, ..Side { src: src.wide(), dst: dst.wide(), sport, dport }.pack() } }
    }
}

/// A flow whose packets have come in, and what is on their other side is not known from this window.
struct Open<A> {
    packets: Packets<A>,
    /// It is from an earlier one.
    kept: Option<Told<A>>,
}

impl<A: Address + Copy + Eq + Hash> Table<A> {
    fn open<'a>(&'a self, kept: &'a Translations<A>, untold: bool) -> impl Iterator<Item = Open<A>> + 'a {
        let flows = self.chunks.iter().flatten().filter(|e| e.flags & LOST == 0 && e.packets > 0);
        flows.filter_map(move |e| {
            let packets = Packets::of_entry(e);
            let goes_out = e.flags & 1 == EGRESS;
            if (goes_out && !untold) || self.told.find(packets).is_some() {
                return None;
            }
            let kept = kept.find(packets);
            // What was refused had its connection with it; of what goes out without a word, and of what is an answer to that, there
            // is none to tell. (Unless words were lost.)
            let answered = || packets.answers().is_some_and(|a| self.find(&a.accepted()).is_some());
            let is_known = !untold && (e.flags & REFUSED != 0 || answered());
            (kept.is_some() || !is_known).then_some(Open { packets, kept })
        })
    }

    /// See [`FlowTable::join`].
    fn join(&mut self, kept: &Translations<A>, untold: bool) -> u64 {
        let of_flows = self.chunks.iter().flatten().filter(|e| e.flags & LOST == 0 && e.packets > 0);
        let mut unknown =
            of_flows.filter_map(|e| self.told.find(Packets::of_entry(e))).filter(|t| t.unknown).count() as u64;
        let mut known = Vec::new();
        for open in self.open(kept, untold) {
            match open.kept {
                Some(told) => known.push(told),
                None => unknown += 1,
            }
        }
        for told in known {
            self.told.tell(told);
        }
        unknown
    }

    fn questions<'a>(&'a self, kept: &'a Translations<A>) -> impl Iterator<Item = Packets<A>> + 'a {
        self.open(kept, false).filter(|o| o.kept.is_none() && o.packets.can_be_asked()).map(|o| o.packets)
    }

    /// Flows of clients, of which nothing was told, as far as `may_serve` says so of their tuples.
    fn served<'a>(
        &'a self,
        kept: &'a Translations<A>,
        may_serve: impl Fn(&Packets<A>) -> bool + 'a,
    ) -> impl Iterator<Item = Packets<A>> + 'a {
        let came_in =
            self.chunks.iter().flatten().filter(|e| e.flags & (LOST | REFUSED | 1) == INGRESS && e.packets > 0);
        came_in.filter_map(move |e| {
            let packets = Packets::of_entry(e);
            let is_wanted = packets.can_be_asked() && may_serve(&packets) && self.told.find(packets).is_none();
            // A connection that goes on has the target that it had.
            (is_wanted && (e.may_be_new() || kept.find(packets).is_none())).then_some(packets)
        })
    }
}

/// Translations from earlier windows of an interface.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    v4: Translations<Ip4>,
    v6: Translations<Ip6>,
}

impl Kept {
    pub(crate) fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// As [`FlowTable::blocks`].
    pub(crate) fn blocks(&self, iface: u16, epoch: u32, mut each: impl FnMut(&[u8])) {
        self.v4.blocks((FAMILY_V4, iface, epoch), EARLIER, &mut each);
        self.v6.blocks((FAMILY_V6, iface, epoch), EARLIER, &mut each);
    }

    /// Adds a record of a snapshot.
    pub(crate) fn add(&mut self, record: &block::Record) {
        match record {
            block::Record::V4(r) => self.v4.add(r),
            block::Record::V6(r) => self.v6.add(r),
        }
    }
}

/// Whether a record of a snapshot was kept from an earlier window.
pub(crate) fn is_kept(record: &block::Record) -> bool {
    let tag = match record {
        block::Record::V4(r) => r.stats.tag,
        block::Record::V6(r) => r.stats.tag,
    };
    record.meta().class() == class::TOLD && tag & EARLIER != 0
}

/// What is known of translations besides what the rows say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Untold {
    /// Flows whose other side, if there is one, is not known.
    pub unknown: u64,
    /// Translations for which there was no room in [`KEPT_MAX`].
    pub not_kept: u64,
}

/// A flow on the other side of its translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherSide {
    /// Addresses, source port and destination port.
    Is(Addresses, u16, u16),
    /// The row is of several connections, whose other sides are not the same.
    Several,
}

impl FlowTable {
    /// How many translations are in the table.
    #[must_use]
    pub(crate) fn told(&self) -> usize {
        self.v4.told.len() + self.v6.told.len()
    }

    /// What was not told.
    #[must_use]
    pub fn untold(&self) -> Untold {
        self.untold
    }

    pub(super) fn told_blocks(&self, iface: u16, epoch: u32, each: &mut impl FnMut(&[u8])) {
        self.v4.told.blocks((FAMILY_V4, iface, epoch), 0, each);
        self.v6.told.blocks((FAMILY_V6, iface, epoch), 0, each);
    }

    /// All records are in: takes what is missing from earlier windows, and counts what is not known then. `untold`: the programs could
    /// not say all. Returns what later windows may need, no more than there is room for.
    pub(crate) fn join(&mut self, kept: &Kept, untold: bool, room: usize) -> Kept {
        let unknown = self.v4.join(&kept.v4, untold) + self.v6.join(&kept.v6, untold);
        let (v4, left4) = self.v4.told.last(room);
        let (v6, left6) = self.v6.told.last(room - v4.len());
        self.untold = Untold { unknown, not_kept: left4 + left6 };
        Kept { v4, v6 }
    }

    /// What connection tracking is to be asked, and in which VLAN the packets are.
    pub(crate) fn questions(&self, kept: &Kept) -> Questions {
        let v4 = self.v4.questions(&kept.v4).map(|p| (tuple(&p, Addresses::V4), p.vlan));
        let v6 = self.v6.questions(&kept.v6).map(|p| (tuple(&p, Addresses::V6), p.vlan));
        Questions::of(v4.chain(v6), ASKED_MAX)
    }

    /// What a load balancer is to be asked that has these addresses.
    pub(crate) fn served(&self, kept: &Kept, services: &Services) -> Questions {
        let v4 = self.v4.served(&kept.v4, |p| services.may_serve(&tuple(p, Addresses::V4)));
        let v6 = self.v6.served(&kept.v6, |p| services.may_serve(&tuple(p, Addresses::V6)));
        let v4 = v4.map(|p| (tuple(&p, Addresses::V4), p.vlan));
        let v6 = v6.map(|p| (tuple(&p, Addresses::V6), p.vlan));
        Questions { must_be_known: true, ..Questions::of(v4.chain(v6), SERVED_MAX) }
    }

    /// What a flow has on the other side; `None`: the same, or it is not known.
    #[must_use]
    pub fn other_side(&self, flow: &Flow) -> Option<OtherSide> {
        match flow.addresses {
            Addresses::V4(src, dst) => side_of(&self.v4.told, (src, dst), flow, Addresses::V4),
            Addresses::V6(src, dst) => side_of(&self.v6.told, (src, dst), flow, Addresses::V6),
        }
    }
}

fn side_of<A: Address + Copy + Eq + Hash>(
    told: &Translations<A>,
    (src, dst): (A, A),
    flow: &Flow,
    addresses: impl Fn(A, A) -> Addresses,
) -> Option<OtherSide> {
    let Flow { sport, dport, vlan, proto, direction, refused, .. } = *flow;
    let direction = if direction == Direction::Egress { EGRESS } else { INGRESS };
    let found = told.find(Packets { src, dst, sport, dport, vlan, proto, direction, refused })?;
    if found.unknown {
        return None;
    }
    if found.several {
        return Some(OtherSide::Several);
    }
    let side = found.side;
    // Connection tracking has said that nothing is translated.
    let is_same = (side.src, side.dst) == (src, dst) && (flow.is_icmp() || (side.sport, side.dport) == (sport, dport));
    (!is_same).then(|| OtherSide::Is(addresses(side.src, side.dst), side.sport, side.dport))
}
