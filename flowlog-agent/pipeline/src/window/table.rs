//! Merging records by flow.
//!
//! Flows live in chunks of a fixed size beside a hash index of 4-byte numbers: a table that grows moves the index only,
//! and a flow costs 56 bytes (IPv6: 80) and 6 to 12 for the index. What all flows of a window share is not repeated.
//!
//! Verdicts are settled on the way in: a refused packet that a hook had counted is subtracted from its accepted flow,
//! which may then stand below zero until its own record arrives.

mod entry;
mod flow;
mod lost;
pub(crate) mod told;
mod twins;

use std::{
    hash::{BuildHasher as _, Hash},
    hint::black_box,
};

use flowlog_ebpf::abi::{Count, FAMILY_V4, FAMILY_V6, Ip4, Ip6, Record, Record4, Record6, class};
use hashbrown::{DefaultHashBuilder, HashTable};

use self::entry::{FlowEntry, FlowKey, LOST};
pub(crate) use self::flow::{ipv4, ipv6};
pub use self::{
    flow::{Addresses, Flow, Handshake, Totals},
    lost::Lost,
    told::{KEPT_MAX, OtherSide, Untold},
};
use crate::window::block;

/// Records in a block of a snapshot: 64 KiB of IPv4 records.
const SNAPSHOT_RECORDS: usize = 1 << 10;

/// Flows in a chunk: 224 KiB of IPv4 flows.
const CHUNK: usize = 1 << 12;

/// Records whose flows are asked for at the same time: as many as a block of the kernel has.
pub(crate) const TOGETHER: usize = 64;
/// In place of a flow's number: there is none.
pub(crate) const NOWHERE: u32 = u32::MAX;

/// Flows that the smallest index has room for.
const INDEX_MIN: usize = 3;

#[derive(Debug)]
struct Table<A> {
    chunks: Vec<Vec<FlowEntry<A>>>,
    index: HashTable<u32>,
    hasher: DefaultHashBuilder,
    /// Entries that say what was lost.
    losses: usize,
    /// Once it is sealed: flows of which some was lost, each with the entry that says how much; in order.
    lost: Vec<(u32, u32)>,
    /// What flows have on the other side of a translation.
    told: told::Translations<A>,
    /// Once it is sealed: see [`twins`].
    twins: Vec<u32>,
}

impl<A> Default for Table<A> {
    fn default() -> Self {
        Self {
            chunks: Vec::new(),
            index: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            losses: 0,
            lost: Vec::new(),
            told: told::Translations::default(),
            twins: Vec::new(),
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
    fn entry(&mut self, key: FlowKey<A>) -> &mut FlowEntry<A> {
        let id = self.number(key) as usize;
        &mut self.chunks[id / CHUNK][id % CHUNK]
    }

    #[inline]
    fn at(&self, id: u32) -> Option<&FlowEntry<A>> {
        self.chunks.get(id as usize / CHUNK)?.get(id as usize % CHUNK)
    }

    /// Where the flow with this key is, if there is one.
    fn find(&self, key: &FlowKey<A>) -> Option<u32> {
        self.find_hashed(self.hasher.hash_one(key), key)
    }

    fn find_hashed(&self, hash: u64, key: &FlowKey<A>) -> Option<u32> {
        self.index.find(hash, |id| self.at(*id).is_some_and(|e| e.key() == *key)).copied()
    }

    /// Where the flow of a record probably is: at the first place that its hash does not exclude.
    fn guess(&self, key: FlowKey<A>) -> u32 {
        self.index.find(self.hasher.hash_one(key), |_| true).copied().unwrap_or(NOWHERE)
    }

    /// Where the flow with this key is; it is there from now on.
    fn number(&mut self, key: FlowKey<A>) -> u32 {
        let hash = self.hasher.hash_one(key);
        self.find_hashed(hash, &key).unwrap_or_else(|| self.insert(hash, key))
    }

    fn insert(&mut self, hash: u64, key: FlowKey<A>) -> u32 {
        if self.index.len() == self.index.capacity() {
            self.grow();
        }
        let Self { chunks, index, losses, .. } = self;
        *losses += usize::from(key.flags & LOST != 0);
        if chunks.last().is_none_or(|last| last.len() == CHUNK) {
            chunks.push(Vec::with_capacity(CHUNK));
        }
        let chunk = chunks.len() - 1;
        let id = u32::try_from(chunk * CHUNK + chunks[chunk].len()).expect("fewer flows than `flows_max` allows");
        chunks[chunk].push(FlowEntry::new(key));
        index.insert_unique(hash, id, |_| unreachable!("there is room"));
        id
    }

    /// Gives the index twice the room. Left to itself it would go through the old one, and ask for flows in no order; and both would be
    /// in memory at once.
    fn grow(&mut self) {
        let Self { chunks, index, hasher, .. } = self;
        let room = (index.capacity() + 1).max(INDEX_MIN);
        *index = HashTable::new();
        index.reserve(room, |_| unreachable!("it is empty"));
        for (id, entry) in (0u32..).zip(chunks.iter().flatten()) {
            index.insert_unique(hasher.hash_one(entry.key()), id, |_| unreachable!("there is room"));
        }
    }

    /// Adds a record whose flow is at the place `guess`, or elsewhere, or not there yet.
    fn add(&mut self, record: &Record<A>, guess: u32, lost: &mut [Count; 2]) {
        let Record { key, stats } = record;
        let of_class = key.meta.class();
        if of_class == class::TOLD {
            return self.told.add(record);
        }
        let flow = FlowKey::of(key, of_class, stats.tag);
        let place = self.chunks.get_mut(guess as usize / CHUNK).and_then(|c| c.get_mut(guess as usize % CHUNK));
        match place.filter(|e| e.key() == flow) {
            Some(entry) => entry.merge(stats),
            None => self.entry(flow).merge(stats),
        }
        match of_class {
            class::REFUSED_COUNTED => {
                let passed = self.entry(FlowKey::of(key, class::PASSED, 0));
                passed.packets -= signed(stats.packets);
                passed.bytes -= signed(stats.bytes);
                // Counts can be taken back, flags cannot.
                passed.set_unsure();
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
        self.find_twins();
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

impl Flow {
    /// The flow of one record, with the record's counts.
    #[must_use]
    pub(crate) fn of_record(record: &block::Record) -> Self {
        match record {
            block::Record::V4(r) => FlowEntry::of_record(r).settle(Addresses::V4).0,
            block::Record::V6(r) => FlowEntry::of_record(r).settle(Addresses::V6).0,
        }
    }
}

/// Bit of a flow's number that says IPv6.
const V6: u32 = 1 << 31;

impl FlowTable {
    /// Adds an IPv4 record.
    pub fn add4(&mut self, record: &Record4) {
        self.v4.add(record, NOWHERE, &mut self.refused_lost);
    }

    /// Adds an IPv6 record.
    pub fn add6(&mut self, record: &Record6) {
        self.v6.add(record, NOWHERE, &mut self.refused_lost);
    }

    /// Adds records: [`TOGETHER`] at a time, so that all their flows are under way from memory at once.
    pub fn add_all(&mut self, records: &[block::Record]) {
        let mut guesses = [NOWHERE; TOGETHER];
        for some in records.chunks(TOGETHER) {
            for (guess, record) in guesses.iter_mut().zip(some) {
                *guess = self.guess(record);
            }
            self.expect(&guesses[..some.len()]);
            some.iter().zip(guesses).for_each(|(record, guess)| self.add(record, guess));
        }
    }

    /// The number of the flow that a record probably adds to.
    #[inline]
    pub(crate) fn guess(&self, record: &block::Record) -> u32 {
        match record {
            block::Record::V4(r) => self.v4.guess(FlowKey::of(&r.key, r.key.meta.class(), r.stats.tag)),
            block::Record::V6(r) => self.v6.guess(FlowKey::of(&r.key, r.key.meta.class(), r.stats.tag)) | V6,
        }
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

    /// Adds a record whose flow is the one that was guessed, or another one.
    pub(crate) fn add(&mut self, record: &block::Record, guess: u32) {
        match record {
            block::Record::V4(r) => self.v4.add(r, guess, &mut self.refused_lost),
            block::Record::V6(r) => self.v6.add(r, guess & !V6, &mut self.refused_lost),
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

    /// Asks memory for flows that will be looked at next, all at once. Nothing comes of it but that they are near then.
    fn expect(&self, numbers: &[u32]) {
        black_box(numbers.iter().fold(0, |all, number| all ^ self.peek(*number)));
    }

    /// Something of a flow that has to come from memory.
    #[inline]
    pub(crate) fn peek(&self, number: u32) -> u64 {
        let id = number & !V6;
        let word =
            if number & V6 == 0 { self.v4.at(id).map(FlowEntry::ends) } else { self.v6.at(id).map(FlowEntry::ends) };
        word.unwrap_or_default()
    }

    /// The flows with these numbers, as far as [`flow`](Self::flow) has them, and the number of each.
    pub(crate) fn flows_of(&self, numbers: &[u32], found: &mut Vec<u32>, flows: &mut Vec<Flow>) {
        found.clear();
        flows.clear();
        self.expect(numbers);
        for number in numbers {
            let id = number & !V6;
            // Each is built where it is to be: to hand it over takes as long as that.
            if number & V6 == 0 {
                let Some(entry) = self.v4.at(id).filter(|e| e.has_row()) else { continue };
                flows.push(entry.flow(Addresses::V4));
            } else {
                let Some(entry) = self.v6.at(id).filter(|e| e.has_row()) else { continue };
                flows.push(entry.flow(Addresses::V6));
            }
            found.push(*number);
        }
    }

    /// All flows with their numbers, one after the other as they lie in memory.
    #[inline]
    pub(crate) fn for_each(&self, mut each: impl FnMut(u32, &Flow)) {
        self.for_each_settled(|number, flow, _| {
            if flow.totals.packets > 0 {
                each(number, flow);
            }
        });
    }

    /// The same with those that have no packets, and with what was taken back from each beyond what it had.
    #[inline]
    pub(crate) fn for_each_settled(&self, mut each: impl FnMut(u32, &Flow, Count)) {
        for (number, entry) in (0..).zip(self.v4.chunks.iter().flatten()).filter(|(_, e)| !e.is_lost()) {
            each(number, &entry.flow(Addresses::V4), entry.deficit());
        }
        for (number, entry) in (V6..).zip(self.v6.chunks.iter().flatten()).filter(|(_, e)| !e.is_lost()) {
            each(number, &entry.flow(Addresses::V6), entry.deficit());
        }
    }

    /// One flow; `None` if all its packets were taken back, or there is no such number, or it says what was lost of another.
    #[inline]
    #[must_use]
    pub(crate) fn flow(&self, number: u32) -> Option<Flow> {
        let id = number & !V6;
        if number & V6 == 0 {
            self.v4.at(id).filter(|e| e.has_row()).map(|e| e.flow(Addresses::V4))
        } else {
            self.v6.at(id).filter(|e| e.has_row()).map(|e| e.flow(Addresses::V6))
        }
    }

    /// One flow of a window that goes on; `true`: its counts are what was lost of another one.
    #[must_use]
    pub(crate) fn open_flow(&self, number: u32) -> Option<(Flow, bool)> {
        let id = number & !V6;
        let (flow, is_lost) = if number & V6 == 0 {
            self.v4.at(id).map(|e| (e.settle(Addresses::V4).0, e.is_lost()))
        } else {
            self.v6.at(id).map(|e| (e.settle(Addresses::V6).0, e.is_lost()))
        }?;
        (flow.totals.packets > 0).then_some((flow, is_lost))
    }

    /// One flow and what was taken back from it beyond what it had.
    #[inline]
    pub(crate) fn settled(&self, number: u32) -> Option<(Flow, Count)> {
        let id = number & !V6;
        if number & V6 == 0 {
            self.v4.at(id).filter(|e| !e.is_lost()).map(|e| e.settle(Addresses::V4))
        } else {
            self.v6.at(id).filter(|e| !e.is_lost()).map(|e| e.settle(Addresses::V6))
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

#[cfg(test)]
mod tests;
