//! The real kernel as the pipeline's port: programs, ring, hooks, interfaces.

use std::collections::{BTreeMap, BTreeSet};

use flowlog_control::inventory::source::follow::Interfaces;
use flowlog_ebpf::abi::{self, Iface, Stacked, Truth};
use flowlog_host::{clock, fault};
use flowlog_kernel::{
    Kernel, KernelError, Ring,
    attach::{Hooks, swaps_tc},
    netdev::{
        self, Namespaces, NetDevError, connections, foreign, foreign_xdp, ipvs, neighbours, netns, offload,
        traffic_control,
    },
    sweep::wait_for_programs,
};
use flowlog_model::{
    Epoch, HookKind, IfaceId, Now, WatchSpec,
    hiding::Hiding,
    interface::{Counters, Elsewhere, IfKey, NetDev, Netns, NetnsName, OnTop},
    rule::{Action, Direction},
    sweep::{Cursor, Scope, Swept},
    translation::{Services, Tuple},
    xdp::{XdpLevel, XdpMode, XdpProgram, XdpReading, XdpView},
};
use flowlog_pipeline::{
    source::{GracePeriod, Node, NumberUsers, Source, SourceError, Watch, XdpPlace},
    window::Foreign,
};

/// What part of the ring may wait to be read while the caches are emptied: the rest is for the hooks, which go on counting.
const RING_SHARE: u64 = 4;

/// See the module's head.
pub(super) struct KernelSource {
    pub(super) kernel: Kernel,
    pub(super) ring: Ring,
    /// Whether interfaces are looked for in other network namespaces.
    pub(super) follow_namespaces: bool,
    /// Hooks are put in front again where others went in front of them.
    pub(super) restore_order: bool,
    /// How closely it is looked at other people's XDP programs, if it can be.
    pub(super) xdp_level: XdpLevel,
    /// What is known of these.
    pub(super) namespaces: Namespaces,
    /// Whom to tell which interfaces there are.
    pub(super) told: Option<Interfaces>,
}

/// An interface that cannot be hooked may be gone already; everything else is about the kernel.
fn failed(error: KernelError) -> SourceError {
    match error {
        KernelError::Attach { .. } => SourceError::Interface(Box::new(error)),
        _ => SourceError::Kernel(Box::new(error)),
    }
}

fn unknown(error: NetDevError) -> SourceError {
    SourceError::Interface(Box::new(error))
}

/// What an interface is called: to be said, so its index will do.
fn name_of(netns: &Netns, index: i32) -> String {
    let name = u32::try_from(index).ok().and_then(|index| netdev::name(netns, index).ok());
    name.unwrap_or_else(|| format!("interface {index}"))
}

/// The hooks that a rule needs.
fn hooks_of(spec: &WatchSpec) -> Vec<(Direction, HookKind)> {
    // Where XDP counts, and where nothing is counted, a TC hook notes who the packets are.
    let tc = Direction::BOTH.into_iter().filter(|direction| spec.captures(*direction));
    let xdp = (spec.counts_ingress_by() == Some(HookKind::Xdp)).then_some((Direction::Ingress, HookKind::Xdp));
    tc.map(|direction| (direction, spec.tc_hook())).chain(xdp).collect()
}

impl KernelSource {
    /// The kernel's ids of our own programs.
    fn own(&self) -> Vec<u32> {
        [self.kernel.programs.ids(), self.kernel.hooks.ids()].concat()
    }

    /// How closely it is looked at the XDP of an interface, which has some.
    fn view(&self, spec: &WatchSpec, xdp: &[XdpProgram]) -> XdpView {
        match self.xdp_level {
            XdpLevel::Counters => XdpView::default(),
            XdpLevel::Wrap if !self.kernel.interfaces.is_here(spec.key()) => {
                let why = Some("not wrapped: it is in another network namespace".to_owned());
                XdpView { level: XdpLevel::Counters, why }
            }
            XdpLevel::Wrap => self.kernel.wraps.view(spec.ifindex),
            XdpLevel::Trace => {
                let mut native = xdp.iter().filter(|p| p.mode == XdpMode::Driver).map(|p| p.id);
                let Some(id) = native.find(|id| !self.kernel.hooks.is_traced(*id)) else {
                    let is_there = xdp.iter().any(|p| p.mode == XdpMode::Driver);
                    return if is_there { XdpView { level: XdpLevel::Trace, why: None } } else { XdpView::default() };
                };
                let why = self
                    .kernel
                    .hooks
                    .untraced(id)
                    .unwrap_or("it is not traced yet, or the stack runs it on another interface");
                XdpView { level: XdpLevel::Counters, why: Some(format!("program {id}: {why}")) }
            }
        }
    }

    /// Traces the native programs of watched interfaces; returns the interfaces where that has changed.
    fn trace_xdp(&mut self, places: &[XdpPlace]) -> Vec<IfaceId> {
        let own = self.own();
        let of = |wanted: XdpMode| places.iter().flat_map(|p| &p.programs).filter(move |(mode, _)| *mode == wanted);
        // What the stack runs it drops with a buffer, and that is a REJECT already.
        let generic: BTreeSet<u32> = of(XdpMode::Generic).map(|(_, id)| *id).collect();
        let is_wanted = |id: &u32| !own.contains(id) && !generic.contains(id);
        let wanted: BTreeSet<u32> = of(XdpMode::Driver).map(|(_, id)| *id).filter(is_wanted).collect();
        let Kernel { hooks, programs, .. } = &mut self.kernel;
        let is_traced = |hooks: &Hooks, id: u32| (hooks.is_traced(id), hooks.untraced(id).is_some());
        let before: BTreeMap<u32, _> = wanted.iter().map(|id| (*id, is_traced(hooks, *id))).collect();
        if let Err(error) = hooks.trace(programs, &wanted) {
            tracing::warn!(%error, "what has traced somebody else's XDP program is still there");
        }
        let has_changed = |(_, id): &(XdpMode, u32)| before.get(id).is_some_and(|was| *was != is_traced(hooks, *id));
        places.iter().filter(|p| p.programs.iter().any(has_changed)).map(|p| p.id).collect()
    }

    /// Drops everything that is in the kernel.
    fn empty(&mut self) -> Result<(), KernelError> {
        if !self.kernel.is_pinned() {
            return Ok(());
        }
        self.kernel.interfaces.unwatch_all();
        wait_for_programs();
        let mut at = Cursor::default();
        let mut dropped = 0u64;
        loop {
            let swept = self.kernel.sweeper.sweep(&self.kernel.programs, Scope::All, at, || false)?;
            while let Some((_, end)) = self.ring.read() {
                self.ring.release(end);
                dropped += 1;
            }
            match swept {
                Swept::RingFull(cursor) => at = cursor,
                Swept::Done => break,
            }
        }
        self.kernel.truth.clear_all()?;
        if dropped > 0 {
            tracing::error!(
                blocks = dropped,
                "the pinned maps held records, but the state directory has no journal of them: dropped"
            );
        }
        Ok(())
    }
}

impl Source for KernelSource {
    fn read(&mut self) -> Option<(&[u8], u64)> {
        self.ring.read()
    }

    fn position(&self) -> u64 {
        self.ring.position()
    }

    fn produced(&self) -> u64 {
        self.ring.produced()
    }

    fn release(&mut self, position: u64) {
        self.ring.release(position);
    }

    fn set_epoch(&mut self, id: IfaceId, at: IfKey, epoch: Epoch) {
        self.kernel.interfaces.set_epoch(id, at, epoch);
    }

    fn set_oldest(&mut self, spec: &WatchSpec, oldest: Epoch) {
        self.kernel.interfaces.set_oldest(spec.key(), oldest);
    }

    fn wait_for_programs(&mut self) {
        wait_for_programs();
    }

    fn begin_wait(&mut self) -> GracePeriod {
        GracePeriod::begin(wait_for_programs)
    }

    fn set_observed(&mut self, id: IfaceId, is_observed: bool) {
        self.kernel.interfaces.set_observed(id, is_observed);
    }

    fn sweep(&mut self, scope: Scope, from: Cursor) -> Result<Swept, SourceError> {
        fault::point("sweep_begins");
        let Self { kernel, ring, .. } = self;
        let most = u64::from(kernel.sizes().ring_bytes) / RING_SHARE;
        let is_short = || ring.produced().saturating_sub(ring.position()) > most;
        kernel.sweeper.sweep(&kernel.programs, scope, from, is_short).map_err(failed)
    }

    fn truth(&self, id: IfaceId, epoch: Epoch) -> Result<Truth, SourceError> {
        let mut truth = self.kernel.truth.get(id, epoch).map_err(failed)?;
        if !self.kernel.knows_connections() {
            // Whatever there was to tell, nobody could.
            truth.untold[0].packets += 1;
        }
        Ok(truth)
    }

    fn clear_truth(&mut self, id: IfaceId, epoch: Epoch) -> Result<(), SourceError> {
        self.kernel.truth.clear(id, epoch).map_err(failed)
    }

    fn xdp(&self, id: IfaceId, spec: &WatchSpec) -> Option<XdpReading> {
        let there = spec.namespace();
        if spec.hook == HookKind::Xdp && there.path.is_some() {
            // What is attached there is an entry of ours.
            return None;
        }
        let is_here = self.kernel.interfaces.is_here(spec.key());
        let earlier = self.kernel.hooks.pinned_xdp(spec.ifindex).filter(|_| is_here);
        let own: Vec<u32> = self.kernel.programs.id("flowlog_xdp").ok().into_iter().chain(earlier).collect();
        let wrapped = self.kernel.wraps.of(spec.ifindex).filter(|_| is_here);
        let mut reading = foreign_xdp::read(&there, spec.ifindex, &own, wrapped).ok()?;
        // After the driver's counters: what these have of ours is in it.
        reading.taken = self.kernel.truth.taken(id).ok()?;
        if !reading.programs.is_empty() {
            reading.view = self.view(spec, &reading.programs);
        }
        Some(reading)
    }

    fn connections(&self, spec: &WatchSpec, questions: &[Tuple]) -> Vec<Option<Tuple>> {
        let answers = netns::enter(&spec.namespace(), || connections::ask(questions)).flatten();
        answers.unwrap_or_else(|error| {
            tracing::warn!(interface = spec.interface, %error, "cannot ask connection tracking: `pkt_*` of some rows stay empty");
            vec![None; questions.len()]
        })
    }

    fn services(&self, spec: &WatchSpec) -> Services {
        netns::enter(&spec.namespace(), ipvs::services).flatten().unwrap_or_else(|error| {
            tracing::warn!(interface = spec.interface, %error, "cannot ask IPVS what it serves: `pkt_*` of some rows stay empty");
            Services::default()
        })
    }

    fn targets(&self, spec: &WatchSpec, questions: &[Tuple]) -> Vec<Option<Tuple>> {
        netns::enter(&spec.namespace(), || ipvs::targets(questions)).flatten().unwrap_or_else(|error| {
            tracing::warn!(interface = spec.interface, %error, "cannot ask IPVS for its targets: `pkt_*` of some rows stay empty");
            vec![None; questions.len()]
        })
    }

    fn seek(&mut self, position: u64) -> bool {
        self.ring.seek(position)
    }

    fn forget(&mut self) -> Result<(), SourceError> {
        self.empty().map_err(failed)
    }
}

impl Node for KernelSource {
    fn now(&self) -> Now {
        clock::now()
    }

    fn interfaces(&self) -> Result<Vec<NetDev>, SourceError> {
        let devices = netdev::all().map_err(unknown)?;
        if let Some(told) = self.told.as_ref().filter(|told| told.are_wanted()) {
            told.are(devices.iter().map(|dev| dev.name.clone()).collect());
        }
        Ok(devices)
    }

    fn interfaces_elsewhere(&self, named: &BTreeSet<NetnsName>, all: bool) -> Elsewhere {
        self.namespaces.interfaces(named, all && self.follow_namespaces)
    }

    fn hears_elsewhere(&self) -> bool {
        self.namespaces.changes().is_heard()
    }

    fn counters(&self, netns: &Netns, index: u32) -> Result<Counters, SourceError> {
        netdev::counters(netns, index).map_err(unknown)
    }

    fn interfaces_max(&self) -> u16 {
        self.kernel.sizes().interfaces_max
    }

    fn attach_verdict(&mut self) -> Result<(), SourceError> {
        self.kernel.hooks.attach_verdict(&mut self.kernel.programs).map_err(failed)
    }

    fn hook(&mut self, spec: &WatchSpec, dev: &NetDev) -> Result<Vec<Direction>, SourceError> {
        let Kernel { hooks, programs, interfaces, .. } = &mut self.kernel;
        let place = (dev, interfaces.claim(dev.key()).map_err(failed)?);
        for (direction, kind) in hooks_of(spec) {
            if hooks.has(dev.key(), direction, kind) {
                continue;
            }
            let hook = hooks.attach(programs, place, direction, kind).map_err(failed)?;
            tracing::info!(interface = dev.name, netns = dev.netns.name(), %direction, %hook, "attached");
        }
        let counts = spec.rule.action != Action::Rejected;
        Ok(Direction::BOTH.into_iter().filter(|direction| counts && spec.captures(*direction)).collect())
    }

    fn unhook_rest(&mut self, spec: &WatchSpec, dev: &NetDev) -> Result<(), SourceError> {
        self.kernel.hooks.keep_only(dev, &hooks_of(spec)).map_err(failed)
    }

    fn hands_over_xdp(&self, spec: &WatchSpec) -> Result<(), SourceError> {
        self.kernel.hands_over_xdp(spec.key(), &spec.interface).map_err(|e| SourceError::Interface(Box::new(e)))
    }

    fn swaps_tc(&self, before: &WatchSpec, after: &WatchSpec) -> bool {
        swaps_tc(&hooks_of(before), &hooks_of(after))
    }

    fn unhook(&mut self, of: IfKey) -> Result<(), SourceError> {
        let Kernel { wraps, interfaces, .. } = &mut self.kernel;
        if interfaces.is_here(of) {
            wraps.restore(of.index).map_err(failed)?;
        }
        self.kernel.hooks.detach(of).map_err(failed)
    }

    fn remove_stale_hooks(&mut self) -> Result<(), SourceError> {
        self.kernel.hooks.remove_stale_hooks().map_err(failed)?;
        self.kernel.interfaces.release();
        Ok(())
    }

    fn watch(&mut self, dev: &NetDev, watch: Watch) -> Result<(), SourceError> {
        let Watch { id, flags, epoch, oldest } = watch;
        let iface = Iface { id: id.0, flags, epoch: epoch.0, oldest: oldest.0, by_xdp: 0 };
        self.kernel.interfaces.watch(dev.key(), iface).map_err(failed)
    }

    fn watched(&self, at: IfKey) -> Option<IfaceId> {
        self.kernel.interfaces.watched(at)
    }

    fn unwatch(&mut self, at: IfKey) {
        self.kernel.interfaces.unwatch(at);
    }

    fn flags(&self, at: IfKey) -> u16 {
        self.kernel.interfaces.flags(at)
    }

    fn set_flags(&mut self, id: IfaceId, at: IfKey, flags: u16) {
        self.kernel.interfaces.set_flags(id, at, flags);
    }

    fn set_stacked(&mut self, stacked: &BTreeSet<Stacked>) -> Result<usize, SourceError> {
        self.kernel.interfaces.set_above(stacked).map_err(failed)
    }

    fn number_users(&self, devs: &[&NetDev]) -> NumberUsers {
        let mut users = NumberUsers::default();
        let namespaces: Vec<&Netns> = devs.iter().map(|d| &d.netns).collect();
        for (at, there) in namespaces.iter().enumerate().filter(|(at, n)| !namespaces[..*at].contains(n)) {
            let watched: Vec<u32> = devs[at..].iter().filter(|d| d.netns == **there).map(|d| d.index).collect();
            match netns::enter(there, || traffic_control::users(&watched)).flatten() {
                Ok(traffic_control::Users { reader, writer }) => {
                    let named = |(kind, index): (String, i32)| (kind, name_of(there, index));
                    users.reader = users.reader.or(reader.map(named));
                    users.writer = users.writer.or(writer.map(named));
                }
                Err(error) => tracing::warn!(%error, "cannot ask who uses skb->tc_index"),
            }
        }
        users
    }

    fn foreign(&self, ifindex: u32, netns: &Netns) -> Foreign {
        let is_here = self.kernel.interfaces.is_here(IfKey { netns_inum: netns.inum, index: ifindex });
        let earlier = self.kernel.hooks.pinned_xdp(ifindex).filter(|_| is_here);
        let own: Vec<u32> = self.own().into_iter().chain(earlier).collect();
        let wrapped = self.kernel.wraps.of(ifindex).filter(|_| is_here);
        let look = || Foreign {
            tc: Direction::BOTH.map(|direction| foreign::tc(ifindex, direction, &own)),
            xdp: match wrapped {
                Some((_, theirs)) => vec![theirs.to_string()],
                None => foreign::xdp(ifindex, &own),
            },
        };
        // A namespace that is gone, or that may not be entered, says nothing.
        netns::enter(netns, look).unwrap_or_default()
    }

    fn hiding(&self, spec: &WatchSpec) -> Option<Hiding> {
        let own = self.own();
        let look = || Hiding {
            in_front: Direction::BOTH.map(|direction| foreign::in_front(spec.ifindex, direction, &own)),
            offload: offload::of(&spec.interface, spec.ifindex),
        };
        netns::enter(&spec.namespace(), look).ok()
    }

    fn see_xdp(&mut self, places: &[XdpPlace]) -> Vec<IfaceId> {
        match self.xdp_level {
            XdpLevel::Counters => return Vec::new(),
            XdpLevel::Trace => return self.trace_xdp(places),
            XdpLevel::Wrap => {}
        }
        let own = self.kernel.programs.id("flowlog_xdp").ok();
        let Kernel { wraps, programs, interfaces, .. } = &mut self.kernel;
        let is_wanted = |p: &&XdpPlace| interfaces.is_here(p.spec.key()) && p.spec.captures(Direction::Ingress);
        let here = || places.iter().filter(is_wanted);
        let watched: Vec<u32> = here().map(|p| p.spec.ifindex).collect();
        wraps.restore_others(&watched);
        let foreign = here().filter(|p| !p.programs.iter().any(|(_, id)| own == Some(*id)));
        let changed = foreign.filter(|p| wraps.see(programs, (p.spec.ifindex, &p.spec.interface), &p.programs));
        changed.map(|p| p.id).collect()
    }

    fn leave_xdp(&mut self) {
        if let Err(error) = self.kernel.wraps.restore_all() {
            tracing::error!(%error, "flowlog's program goes on running the owner's, which is in force; `flowlog detach` tries again");
        }
    }

    fn go_first(&mut self, spec: &WatchSpec, direction: Direction) -> Result<bool, SourceError> {
        // Without numbers, packets that pass both could not be told from those that do not.
        if !self.restore_order || self.flags(spec.key()) & abi::NO_NUMBERS != 0 {
            return Ok(false);
        }
        let Kernel { hooks, programs, interfaces, .. } = &mut self.kernel;
        let base = interfaces.claim(spec.key()).map_err(failed)?;
        hooks.go_first(programs, (spec.key(), &spec.interface), base, direction).map_err(failed)
    }

    fn set_behind(&mut self, specs: &[WatchSpec], on_top: &[OnTop]) -> Result<usize, SourceError> {
        let mut ports = BTreeMap::<u32, (Netns, BTreeSet<u32>)>::new();
        for spec in specs {
            let there = ports.entry(spec.netns_inum).or_insert_with(|| (spec.namespace(), BTreeSet::new()));
            there.1.insert(spec.ifindex);
        }
        let mut found = BTreeMap::new();
        for (netns_inum, (netns, ports)) in &ports {
            // What is gone has no neighbours.
            let neighbours = netns::enter(netns, || neighbours::behind(ports)).flatten().unwrap_or_default();
            found.insert(*netns_inum, neighbours);
        }
        self.kernel.interfaces.set_behind(&found, on_top).map_err(failed)
    }

    fn set_numbers_missing(&mut self, missing: bool) {
        self.kernel.interfaces.set_numbers_missing(missing);
    }

    fn is_pinned(&self) -> bool {
        self.kernel.is_pinned()
    }

    fn detach_all(&mut self) -> Result<(), SourceError> {
        self.kernel.wraps.restore_all().map_err(failed)?;
        let programs = self.kernel.wraps.elsewhere();
        if programs > 0 {
            tracing::warn!(
                programs,
                "flowlog's program goes on running an owner's on interfaces that have gone to other network namespaces: what it needs stays pinned; bring them back and start or detach once more, or put the owner's program there"
            );
        }
        self.kernel.hooks.detach_all().map_err(failed)
    }

    fn remove_pins(&mut self) -> Result<(), SourceError> {
        self.kernel.hooks.remove_pins().map_err(failed)
    }
}
