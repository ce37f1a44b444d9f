//! A model of the kernel's side: what the programs promise, and nothing about how.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use flowlog_ebpf::abi::{self, Count, EPOCHS, FAMILY_V4, Key, Meta, Record4, Stats, Truth, class};
use flowlog_model::{
    MonoNs, Now, WallNs,
    interface::{IfKey, Mac, NetDev, Netns},
    xdp::{Named, XdpCounters, XdpMode, XdpProgram, XdpReading},
};

use crate::{disk::sim::Random, source::Watch, window::block};

/// Interfaces that are to be captured.
pub(crate) const NICS: [u16; 2] = [1, 2];
/// What one may be called otherwise than by its number.
pub(crate) const OTHER_ID: &str = "other";
pub(super) const SLOTS: usize = 16;
const FLOWS: u64 = 40;
const RING_BYTES: u64 = 4_096;
/// Every packet has as many.
pub(crate) const PACKET_BYTES: u64 = 100;

/// Packets by interface id and source address.
type Tally = BTreeMap<(String, String), u64>;

#[derive(Clone, Debug, Default)]
pub(crate) struct Sent {
    /// All packets that a hook counted.
    pub all: Tally,
    /// Of these: given back to the kernel as durable.
    pub safe: Tally,
    /// What somebody's XDP program had dropped when the agent looked first, and last; by interface id, boot and index.
    pub xdp: BTreeMap<(String, u32, IfKey), (u64, u64)>,
}

impl Sent {
    /// Packets that somebody's XDP program dropped on an interface while the agent looked.
    pub(crate) fn xdp_dropped(&self, interface: &str) -> u64 {
        let of = self.xdp.iter().filter(|((i, ..), _)| i == interface);
        of.map(|(_, (first, last))| last - first).sum()
    }
}

pub(super) struct InRing {
    pub(super) nic: u16,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) bytes: Vec<u8>,
}

/// An interface that exists.
pub(super) struct Device {
    pub(super) nic: u16,
    pub(super) dev: NetDev,
    /// It cannot be hooked.
    pub(super) is_stubborn: bool,
}

/// What is in the kernel.
pub(crate) struct State {
    /// Which boot it is, and the ring's id.
    pub boot: u32,
    random: Random,
    pub(super) devices: Vec<Device>,
    /// By namespace.
    last_index: BTreeMap<u32, u32>,
    /// Interfaces with our hooks.
    pub(super) hooks: BTreeSet<IfKey>,
    /// What the programs know of interfaces; stays when one goes.
    pub(super) watches: BTreeMap<IfKey, Watch>,
    /// What somebody's XDP program has dropped.
    xdp: BTreeMap<IfKey, u64>,
    /// Current epoch by interface id.
    pub(super) epoch_of: BTreeMap<u16, u32>,
    /// Whose flows somebody looks at, by id.
    pub(super) observed: BTreeSet<u16>,
    pub(super) truth: BTreeMap<(u16, u32), Truth>,
    pub(super) slots: Vec<Option<(u16, Record4)>>,
    pub(super) ring: VecDeque<InRing>,
    pub(super) released: u64,
    pub(super) produced: u64,
    pub(super) now: Now,
    /// XDP and TC cannot take over from each other.
    pub parts: bool,
    /// What was sent so far.
    pub sent: Sent,
}

/// The kernel; clones are the same one.
#[derive(Clone)]
pub(crate) struct SimKernel(Arc<Mutex<State>>);

pub(super) fn interface(nic: u16) -> String {
    format!("nic-{nic}")
}

/// Hardware address of an interface.
pub(crate) fn mac(nic: u16) -> Mac {
    Mac([2, 0, 0, 0, 0, nic.to_le_bytes()[0]])
}

/// Its name, when it comes.
pub(crate) fn name(nic: u16) -> String {
    format!("eth{nic}")
}

impl SimKernel {
    pub(crate) fn new(random: Random) -> Self {
        let kernel = Self(Arc::new(Mutex::new(State {
            boot: 1,
            random,
            devices: Vec::new(),
            last_index: BTreeMap::new(),
            hooks: BTreeSet::new(),
            watches: BTreeMap::new(),
            xdp: BTreeMap::new(),
            epoch_of: BTreeMap::new(),
            observed: BTreeSet::new(),
            truth: BTreeMap::new(),
            slots: vec![None; SLOTS],
            ring: VecDeque::new(),
            released: 0,
            produced: 0,
            now: Now { mono: MonoNs(0), wall: WallNs(0) },
            parts: false,
            sent: Sent::default(),
        })));
        kernel.settle();
        kernel
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Some packets, or none.
    pub(crate) fn traffic(&self, most: u64) {
        let mut state = self.lock();
        for _ in 0..state.random.below(most + 1) {
            state.packet();
        }
        let all: Vec<IfKey> = state.devices.iter().map(|d| d.dev.key()).collect();
        for key in all.into_iter().filter(|_| most > 0) {
            let dropped = state.random.below(3);
            *state.xdp.entry(key).or_default() += dropped;
        }
    }

    /// Something has been counted since it started.
    pub(crate) fn has_counted(&self) -> bool {
        !self.lock().epoch_of.is_empty()
    }

    pub(crate) fn set_now(&self, now: Now) {
        self.lock().now = now;
    }

    /// Every interface is here, has its own name and can be hooked. Returns whether that is a change the kernel tells of.
    pub(crate) fn settle(&self) -> bool {
        let mut state = self.lock();
        state.parts = false;
        let mut told = false;
        for nic in NICS {
            if !state.devices.iter().any(|d| d.nic == nic) {
                state.appear(nic);
                told = true;
            }
        }
        for at in 0..state.devices.len() {
            if state.devices[at].dev.netns.name().is_some() {
                state.move_to(at, Netns::at(1, None));
                told = true;
            }
            let Device { nic, dev, is_stubborn } = &mut state.devices[at];
            *is_stubborn = false;
            let settled = name(*nic);
            told |= settled != dev.name;
            dev.name = settled;
        }
        told
    }

    /// Names of interfaces whose packets no hook counts.
    pub(crate) fn uncounted(&self) -> Vec<String> {
        let state = self.lock();
        let counted: BTreeSet<u16> = state.counted().into_iter().map(|(nic, ..)| nic).collect();
        let others = state.devices.iter().filter(|d| !counted.contains(&d.nic));
        others.map(|d| d.dev.name.clone()).collect()
    }

    /// Something happens to an interface.
    pub(crate) fn disturb(&self) {
        let mut state = self.lock();
        let nic = NICS[usize::try_from(state.random.below(NICS.len() as u64)).unwrap_or(0)];
        let what = state.random.below(5);
        let Some(at) = state.devices.iter().position(|d| d.nic == nic) else { return state.appear(nic) };
        match what {
            0 => state.disappear(at),
            1 => {
                let away = state.devices[at].dev.netns.name().is_some();
                state.move_to(at, if away { Netns::at(1, None) } else { Netns::at(2, Some("blue")) });
            }
            2 => state.devices[at].dev.name.push('x'),
            3 => state.devices[at].is_stubborn ^= true,
            // Gone and back before anybody looks.
            _ => {
                state.disappear(at);
                state.appear(nic);
            }
        }
    }

    /// The machine starts again: everything in the kernel is gone.
    pub(crate) fn reboot(&self) {
        let mut state = self.lock();
        state.boot += 1;
        state.hooks.clear();
        state.watches.clear();
        state.xdp.clear();
        state.epoch_of.clear();
        state.truth.clear();
        state.slots = vec![None; SLOTS];
        state.ring.clear();
        state.released = 0;
        state.produced = 0;
    }
}

impl State {
    /// An index that none had before in that namespace: the loopback has the first.
    fn next_index(&mut self, netns_inum: u32) -> u32 {
        let last = self.last_index.entry(netns_inum).or_insert(1);
        *last += 1;
        *last
    }

    /// Moves an interface to another namespace. Its hooks do not go with it, and indexes begin anew there.
    fn move_to(&mut self, at: usize, netns: Netns) {
        let key = self.devices[at].dev.key();
        self.hooks.remove(&key);
        let index = self.next_index(netns.inum);
        let dev = &mut self.devices[at].dev;
        dev.netns = netns;
        dev.index = index;
    }

    /// What there is to see of somebody's XDP program on an interface.
    pub(super) fn xdp(&mut self, of: IfKey) -> Option<XdpReading> {
        let device = self.devices.iter().find(|d| d.dev.key() == of)?;
        let dropped = self.xdp.get(&of).copied().unwrap_or(0);
        let seen = self.sent.xdp.entry((interface(device.nic), self.boot, of)).or_insert((dropped, dropped));
        seen.1 = dropped;
        let program = XdpProgram { mode: XdpMode::Driver, id: 9, name: None };
        let counted = Some([("rx_queue_0_xdp_drops".to_owned(), dropped)].into());
        let counters = XdpCounters { driver: "veth".to_owned(), dropped: counted, forwarded: Some(Named::new()) };
        Some(XdpReading { programs: vec![program], counters, ..XdpReading::default() })
    }

    /// A new interface; it has the name that it always had.
    fn appear(&mut self, nic: u16) {
        let dev = NetDev {
            name: name(nic),
            index: self.next_index(1),
            mac: Some(mac(nic)),
            link_header: true,
            bridge: false,
            below: None,
            above: Vec::new(),
            netns: Netns::at(1, None),
            xdp: Vec::new(),
        };
        self.devices.push(Device { nic, dev, is_stubborn: false });
    }

    /// Its hooks go with it; what the programs know of it stays.
    fn disappear(&mut self, at: usize) {
        let gone = self.devices.remove(at);
        self.hooks.remove(&gone.dev.key());
    }

    /// Interfaces with hooks of ours whose ingress is counted: number of the NIC, id and epoch of its watch.
    fn counted(&self) -> Vec<(u16, u16, u32)> {
        let hooked = self.devices.iter().filter(|d| self.hooks.contains(&d.dev.key()));
        let counts = hooked.filter_map(|d| Some((d.nic, self.watches.get(&d.dev.key())?)));
        counts.filter(|(_, w)| w.flags & abi::WANT_INGRESS != 0).map(|(nic, w)| (nic, w.id.0, w.epoch.0)).collect()
    }

    fn packet(&mut self) {
        let counted = self.counted();
        if counted.is_empty() {
            return;
        }
        let at = usize::try_from(self.random.below(counted.len() as u64)).unwrap_or(0);
        let (nic, id, epoch) = counted[at];
        let flow = self.random.below(FLOWS);
        let now_ns = self.now.mono.0;
        let flow32 = u32::try_from(flow).unwrap_or(0);
        let name = (interface(nic), Ipv4Addr::from(flow32.to_ne_bytes()).to_string());
        *self.sent.all.entry(name).or_default() += 1;
        let one = Count { packets: 1, bytes: PACKET_BYTES };
        let truth = self.truth.entry((id, epoch % EPOCHS)).or_default();
        add(&mut truth.hook[0].seen, one);
        let meta = Meta { iface: id, proto: 17, flags: Meta::pack(0, class::PASSED), epoch, ..Meta::default() };
        let key = Key { src: flow32, dst: 1, meta };
        let slot = usize::try_from(flow).unwrap_or(0) % SLOTS;
        if let Some((_, record)) = self.slots[slot].as_mut().filter(|(_, r)| r.key == key) {
            record.stats.packets += 1;
            record.stats.bytes += PACKET_BYTES;
            record.stats.last_ns = now_ns;
            return;
        }
        if self.slots[slot].is_some() && !self.evict(slot) {
            let truth = self.truth.entry((id, epoch % EPOCHS)).or_default();
            add(&mut truth.hook[0].lost, one);
            // Not in any record: the counted loss is what must be found.
            return;
        }
        let stats = Stats { first_ns: now_ns, last_ns: now_ns, bytes: PACKET_BYTES, packets: 1, tcp_flags: 0, tag: 0 };
        self.slots[slot] = Some((nic, Record4 { key, stats }));
    }

    pub(super) fn evict(&mut self, slot: usize) -> bool {
        let Some((nic, record)) = self.slots[slot] else { return true };
        let mut bytes = Vec::new();
        block::write(&mut bytes, FAMILY_V4, &[record]);
        let room = (8 + bytes.len()).next_multiple_of(8) as u64;
        if self.produced + room - self.released > RING_BYTES {
            return false;
        }
        let start = self.produced;
        self.produced += room;
        self.ring.push_back(InRing { nic, start, end: self.produced, bytes });
        self.slots[slot] = None;
        true
    }
}

fn add(count: &mut Count, more: Count) {
    count.packets += more.packets;
    count.bytes += more.bytes;
}
