//! A model of the kernel's side: what the programs promise, and nothing about how.

use std::{
    collections::{BTreeMap, VecDeque},
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use flowlog_ebpf::abi::{Count, EPOCHS, FAMILY_V4, Key, Meta, Record4, Stats, Truth, class};

use crate::{
    agent::{AgentError, books::Source},
    disk::sim::{Random, SimDisk},
    kernel::{
        block,
        sweep::{Cursor, Scope, Swept},
    },
    types::{Epoch, IfaceId},
    window::Subject,
};

const SLOTS: usize = 16;
const FLOWS: u64 = 40;
const RING_BYTES: u64 = 4_096;
/// Every packet has as many.
pub const PACKET_BYTES: u64 = 100;

/// Packets by interface id and source address.
type Tally = BTreeMap<(String, String), u64>;

/// What was sent.
#[derive(Clone, Debug, Default)]
pub struct Sent {
    /// All packets that a hook counted.
    pub all: Tally,
    /// Of these: given back to the kernel as durable.
    pub safe: Tally,
}

struct Entry {
    start: u64,
    end: u64,
    bytes: Vec<u8>,
}

/// What is in the kernel.
pub struct State {
    /// Which boot it is, and the ring's id.
    pub boot: u32,
    random: Random,
    /// Epochs of watched interfaces.
    epochs: BTreeMap<u16, u32>,
    truth: BTreeMap<(u16, u32), Truth>,
    slots: Vec<Option<Record4>>,
    ring: VecDeque<Entry>,
    released: u64,
    produced: u64,
    now_ns: u64,
    /// What was sent so far.
    pub sent: Sent,
}

/// The kernel; clones are the same one.
#[derive(Clone)]
pub struct SimKernel(Arc<Mutex<State>>);

fn interface(id: u16) -> String {
    format!("nic-{id}")
}

impl SimKernel {
    pub fn new(random: Random) -> Self {
        Self(Arc::new(Mutex::new(State {
            boot: 1,
            random,
            epochs: BTreeMap::new(),
            truth: BTreeMap::new(),
            slots: vec![None; SLOTS],
            ring: VecDeque::new(),
            released: 0,
            produced: 0,
            now_ns: 0,
            sent: Sent::default(),
        })))
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Some packets, or none.
    pub fn traffic(&self, most: u64) {
        let mut state = self.lock();
        for _ in 0..state.random.below(most + 1) {
            state.packet();
        }
    }

    pub fn watch(&self, id: IfaceId, epoch: Epoch) {
        self.lock().epochs.insert(id.0, epoch.0);
    }

    pub fn is_watching(&self) -> bool {
        !self.lock().epochs.is_empty()
    }

    pub fn unwatch(&self) {
        self.lock().epochs.clear();
    }

    pub fn set_now(&self, now_ns: u64) {
        self.lock().now_ns = now_ns;
    }

    /// The machine starts again: everything in the kernel is gone.
    pub fn reboot(&self) {
        let mut state = self.lock();
        state.boot += 1;
        state.epochs.clear();
        state.truth.clear();
        state.slots = vec![None; SLOTS];
        state.ring.clear();
        (state.released, state.produced) = (0, 0);
    }
}

impl State {
    fn packet(&mut self) {
        let watched: Vec<u16> = self.epochs.keys().copied().collect();
        if watched.is_empty() {
            return;
        }
        let at = usize::try_from(self.random.below(watched.len() as u64)).unwrap_or(0);
        let (id, flow) = (watched[at], self.random.below(FLOWS));
        let (epoch, flow32) = (self.epochs[&id], u32::try_from(flow).unwrap_or(0));
        let name = (interface(id), Ipv4Addr::from(flow32.to_ne_bytes()).to_string());
        *self.sent.all.entry(name).or_default() += 1;
        let one = Count { packets: 1, bytes: PACKET_BYTES };
        let truth = self.truth.entry((id, epoch % EPOCHS)).or_default();
        add(&mut truth.hook[0].seen, one);
        let meta = Meta { iface: id, proto: 17, flags: Meta::pack(0, class::PASSED), epoch, ..Meta::default() };
        let key = Key { src: flow32, dst: 1, meta };
        let slot = usize::try_from(flow).unwrap_or(0) % SLOTS;
        if let Some(record) = self.slots[slot].as_mut().filter(|r| r.key == key) {
            record.stats.packets += 1;
            record.stats.bytes += PACKET_BYTES;
            record.stats.last_ns = self.now_ns;
            return;
        }
        if self.slots[slot].is_some() && !self.evict(slot) {
            let truth = self.truth.entry((id, epoch % EPOCHS)).or_default();
            add(&mut truth.hook[0].lost, one);
            // Not in any record: the counted loss is what must be found.
            return;
        }
        let (first_ns, last_ns) = (self.now_ns, self.now_ns);
        let stats = Stats { first_ns, last_ns, bytes: PACKET_BYTES, packets: 1, tcp_flags: 0, tag: 0 };
        self.slots[slot] = Some(Record4 { key, stats });
    }

    fn evict(&mut self, slot: usize) -> bool {
        let Some(record) = self.slots[slot] else { return true };
        let mut bytes = Vec::new();
        block::write(&mut bytes, FAMILY_V4, &[record]);
        let room = (8 + bytes.len()).next_multiple_of(8) as u64;
        if self.produced + room - self.released > RING_BYTES {
            return false;
        }
        let start = self.produced;
        self.produced += room;
        self.ring.push_back(Entry { start, end: self.produced, bytes });
        self.slots[slot] = None;
        true
    }
}

fn add(count: &mut Count, more: Count) {
    count.packets += more.packets;
    count.bytes += more.bytes;
}

/// One process's view of the kernel: it begins to read where the ring was released.
pub struct SimSource {
    pub kernel: SimKernel,
    disk: SimDisk,
    read: u64,
    block: Vec<u8>,
}

impl SimSource {
    pub fn new(kernel: SimKernel, disk: SimDisk) -> Self {
        let read = kernel.lock().released;
        Self { kernel, disk, read, block: Vec::new() }
    }

    /// Between any two operations packets pass, and the process may be killed.
    fn step(&self) {
        self.kernel.traffic(2);
        self.disk.step();
    }
}

impl Source for SimSource {
    fn read(&mut self) -> Option<(&[u8], u64)> {
        self.step();
        let state = self.kernel.lock();
        let entry = state.ring.iter().find(|e| e.start == self.read)?;
        (self.read, self.block) = (entry.end, entry.bytes.clone());
        Some((&self.block, self.read))
    }

    fn position(&self) -> u64 {
        self.read
    }

    fn produced(&self) -> u64 {
        self.kernel.lock().produced
    }

    fn release(&mut self, position: u64) {
        self.step();
        let mut state = self.kernel.lock();
        assert!(position <= self.read && position >= state.released, "released {position}, read {}", self.read);
        while let Some(entry) = state.ring.pop_front_if(|e| e.end <= position) {
            for record in block::Records::parse(&entry.bytes).into_iter().flatten() {
                if let block::Record::V4(r) = record {
                    let name = (interface(r.key.meta.iface), Ipv4Addr::from(r.key.src.to_ne_bytes()).to_string());
                    *state.sent.safe.entry(name).or_default() += r.stats.packets;
                }
            }
        }
        state.released = position;
    }

    fn set_epoch(&mut self, id: IfaceId, _ifindex: u32, epoch: Epoch) {
        self.step();
        if let Some(current) = self.kernel.lock().epochs.get_mut(&id.0) {
            *current = epoch.0;
        }
    }

    fn set_oldest(&mut self, _subject: &Subject, _oldest: Epoch) {
        self.step();
    }

    fn wait_for_programs(&mut self) {
        self.step();
    }

    fn sweep(&mut self, scope: Scope, _from: Cursor) -> Result<Swept, AgentError> {
        self.step();
        let mut state = self.kernel.lock();
        for slot in 0..SLOTS {
            let Some(record) = state.slots[slot] else { continue };
            let current = state.epochs.get(&record.key.meta.iface) == Some(&record.key.meta.epoch);
            if (scope == Scope::All || !current) && !state.evict(slot) {
                return Ok(Swept::RingFull(Cursor::default()));
            }
        }
        Ok(Swept::Done)
    }

    fn truth(&self, id: IfaceId, epoch: Epoch) -> Result<Truth, AgentError> {
        self.step();
        Ok(self.kernel.lock().truth.get(&(id.0, epoch.0 % EPOCHS)).copied().unwrap_or_default())
    }

    fn clear_truth(&mut self, id: IfaceId, epoch: Epoch) -> Result<(), AgentError> {
        self.step();
        self.kernel.lock().truth.remove(&(id.0, epoch.0 % EPOCHS));
        Ok(())
    }

    fn seek(&mut self, position: u64) -> bool {
        let state = self.kernel.lock();
        let known = (state.released..=state.produced).contains(&position);
        if known {
            self.read = position;
        }
        known
    }

    fn forget(&mut self) -> Result<(), AgentError> {
        // Only a machine that has started again has nothing to go on with, and then nothing is here.
        let state = self.kernel.lock();
        assert!(state.ring.is_empty() && state.slots.iter().all(Option::is_none), "records would be dropped");
        Ok(())
    }
}
