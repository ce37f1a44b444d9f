//! The model of the kernel behind the pipeline's port: what one process sees of it. Between any two operations packets pass, and the
//! process may be killed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use flowlog_ebpf::abi::{EPOCHS, Stacked, Truth};
use flowlog_model::{
    Epoch, IfaceId, Now, WatchSpec,
    interface::{Counters, Elsewhere, IfKey, NetDev, Netns, NetnsName},
    rule::Direction,
    sweep::{Cursor, Scope, Swept},
    xdp::XdpReading,
};

use super::kernel::{OTHER_ID, SLOTS, SimKernel, interface};
use crate::{
    disk::sim::SimDisk,
    source::{Node, NumberUsers, Source, SourceError, Watch},
    window::block,
};

/// One process's view of the kernel: it begins to read where the ring was released.
pub(crate) struct SimSource {
    pub kernel: SimKernel,
    disk: SimDisk,
    read: u64,
    block: Vec<u8>,
}

impl SimSource {
    pub(crate) fn new(kernel: SimKernel, disk: SimDisk) -> Self {
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
        self.read = entry.end;
        self.block = entry.bytes.clone();
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
                    let name = (interface(entry.nic), Ipv4Addr::from(r.key.src.to_ne_bytes()).to_string());
                    *state.sent.safe.entry(name).or_default() += r.stats.packets;
                }
            }
        }
        state.released = position;
    }

    fn set_epoch(&mut self, id: IfaceId, at: IfKey, epoch: Epoch) {
        self.step();
        let mut state = self.kernel.lock();
        state.epoch_of.insert(id.0, epoch.0);
        if let Some(watch) = state.watches.get_mut(&at).filter(|w| w.id == id) {
            watch.epoch = epoch;
        }
    }

    fn set_oldest(&mut self, _subject: &WatchSpec, _oldest: Epoch) {
        self.step();
    }

    fn wait_for_programs(&mut self) {
        self.step();
    }

    fn set_observed(&mut self, id: IfaceId, is_observed: bool) {
        let mut state = self.kernel.lock();
        if is_observed {
            state.observed.insert(id.0)
        } else {
            state.observed.remove(&id.0)
        };
    }

    fn sweep(&mut self, scope: Scope, _from: Cursor) -> Result<Swept, SourceError> {
        self.step();
        let mut state = self.kernel.lock();
        for slot in 0..SLOTS {
            let Some((_, record)) = state.slots[slot] else { continue };
            let current = state.epoch_of.get(&record.key.meta.iface) == Some(&record.key.meta.epoch);
            let is_observed = scope == Scope::Observed && state.observed.contains(&record.key.meta.iface);
            if (scope == Scope::All || !current || is_observed) && !state.evict(slot) {
                return Ok(Swept::RingFull(Cursor::default()));
            }
        }
        Ok(Swept::Done)
    }

    fn truth(&self, id: IfaceId, epoch: Epoch) -> Result<Truth, SourceError> {
        self.step();
        Ok(self.kernel.lock().truth.get(&(id.0, epoch.0 % EPOCHS)).copied().unwrap_or_default())
    }

    fn clear_truth(&mut self, id: IfaceId, epoch: Epoch) -> Result<(), SourceError> {
        self.step();
        self.kernel.lock().truth.remove(&(id.0, epoch.0 % EPOCHS));
        Ok(())
    }

    fn xdp(&self, _id: IfaceId, spec: &WatchSpec) -> Option<XdpReading> {
        self.step();
        self.kernel.lock().xdp(spec.key())
    }

    fn seek(&mut self, position: u64) -> bool {
        let state = self.kernel.lock();
        let known = (state.released..=state.produced).contains(&position);
        if known {
            self.read = position;
        }
        known
    }

    fn forget(&mut self) -> Result<(), SourceError> {
        // Only a machine that has started again has nothing to go on with, and then nothing is here.
        let state = self.kernel.lock();
        assert!(state.ring.is_empty() && state.slots.iter().all(Option::is_none), "records would be dropped");
        Ok(())
    }
}

impl SimSource {
    fn interfaces_in(&self, inum: u32) -> Vec<NetDev> {
        self.step();
        let state = self.kernel.lock();
        state.devices.iter().map(|d| d.dev.clone()).filter(|d| d.netns.inum == inum).collect()
    }
}

/// What the kernel says of an interface that is not there.
fn gone() -> SourceError {
    SourceError::Interface("no such device".into())
}

impl Node for SimSource {
    fn now(&self) -> Now {
        self.kernel.lock().now
    }

    fn interfaces(&self) -> Result<Vec<NetDev>, SourceError> {
        Ok(self.interfaces_in(1))
    }

    fn interfaces_elsewhere(&self, named: &BTreeSet<NetnsName>, all: bool) -> Elsewhere {
        let namespaces: BTreeMap<NetnsName, u32> = named.iter().map(|name| (name.clone(), 2)).collect();
        let devices = if all || !namespaces.is_empty() { self.interfaces_in(2) } else { Vec::new() };
        Elsewhere { devices, namespaces }
    }

    fn hears_elsewhere(&self) -> bool {
        false
    }

    fn counters(&self, netns: &Netns, index: u32) -> Result<Counters, SourceError> {
        self.step();
        let key = IfKey { netns_inum: netns.inum, index };
        let there = self.kernel.lock().devices.iter().any(|d| d.dev.key() == key);
        if there { Ok(Counters::default()) } else { Err(gone()) }
    }

    fn interfaces_max(&self) -> u16 {
        8
    }

    fn hands_over_xdp(&self, _spec: &WatchSpec) -> Result<(), SourceError> {
        if self.kernel.lock().parts { Err(SourceError::Interface("packets are parted".into())) } else { Ok(()) }
    }

    fn attach_verdict(&mut self) -> Result<(), SourceError> {
        self.step();
        Ok(())
    }

    fn hook(&mut self, spec: &WatchSpec, dev: &NetDev) -> Result<Vec<Direction>, SourceError> {
        self.step();
        let mut state = self.kernel.lock();
        let there = state.devices.iter().find(|d| d.dev.key() == dev.key()).ok_or_else(gone)?;
        if there.is_stubborn {
            return Err(SourceError::Interface("busy".into()));
        }
        let meant = [&interface(there.nic), OTHER_ID].contains(&spec.interface_id.as_str());
        assert!(meant, "another interface is hooked than the one that is meant: {}", spec.interface_id);
        state.hooks.insert(dev.key());
        Ok(vec![Direction::Ingress])
    }

    fn unhook(&mut self, of: IfKey) -> Result<(), SourceError> {
        self.step();
        self.kernel.lock().hooks.remove(&of);
        Ok(())
    }

    fn unhook_rest(&mut self, _spec: &WatchSpec, _dev: &NetDev) -> Result<(), SourceError> {
        self.step();
        Ok(())
    }

    fn remove_stale_hooks(&mut self) -> Result<(), SourceError> {
        self.step();
        Ok(())
    }

    fn watch(&mut self, dev: &NetDev, watch: Watch) -> Result<(), SourceError> {
        self.step();
        let mut state = self.kernel.lock();
        state.epoch_of.insert(watch.id.0, watch.epoch.0);
        state.watches.insert(dev.key(), watch);
        Ok(())
    }

    fn watched(&self, at: IfKey) -> Option<IfaceId> {
        self.kernel.lock().watches.get(&at).map(|w| w.id)
    }

    fn unwatch(&mut self, at: IfKey) {
        self.step();
        self.kernel.lock().watches.remove(&at);
    }

    fn flags(&self, at: IfKey) -> u16 {
        self.kernel.lock().watches.get(&at).map_or(0, |w| w.flags)
    }

    fn set_flags(&mut self, id: IfaceId, at: IfKey, flags: u16) {
        self.step();
        if let Some(watch) = self.kernel.lock().watches.get_mut(&at).filter(|w| w.id == id) {
            watch.flags = flags;
        }
    }

    fn set_stacked(&mut self, _stacked: &BTreeSet<Stacked>) -> Result<usize, SourceError> {
        Ok(0)
    }

    fn number_users(&self, _devs: &[&NetDev]) -> NumberUsers {
        NumberUsers::default()
    }

    fn set_numbers_missing(&mut self, _missing: bool) {}

    fn is_pinned(&self) -> bool {
        true
    }

    fn detach_all(&mut self) -> Result<(), SourceError> {
        self.step();
        let mut kernel = self.kernel.lock();
        // Hooks go one by one: what one has counted could be refused when the other is gone, and the other way round.
        let counting: Vec<&IfKey> = kernel.hooks.iter().filter(|key| kernel.watches.contains_key(key)).collect();
        assert!(counting.is_empty(), "hooks are taken away from interfaces that still count: {counting:?}");
        kernel.hooks.clear();
        Ok(())
    }

    fn remove_pins(&mut self) -> Result<(), SourceError> {
        self.step();
        Ok(())
    }
}
