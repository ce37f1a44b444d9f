//! The kernel, its ring and the windows of all watched interfaces. Everything here runs on one thread.

use std::{collections::HashMap, io};

use flowlog_ebpf::abi::{self, Iface, Truth};

use super::{AgentError, proof::Proof};
use crate::{
    config::{self, Config},
    encode::ObjectInfo,
    kernel::{
        Kernel, Ring,
        layout::Reasons,
        ring::{Record, Wakeups},
        sweep::{Cursor, Scope, Swept},
    },
    netdev::{self, NetDev},
    rule::{Action, Direction, Rule},
    types::{Epoch, IfaceId, Now},
    window::{FlowTable, Span, WindowClock},
};

/// A window that is over: everything an object is made from.
#[derive(Debug)]
pub struct Closed {
    /// About the object.
    pub info: ObjectInfo,
    /// Its records.
    pub table: FlowTable,
    /// The programs' own count.
    pub truth: Truth,
}

/// One watched interface.
struct Watched {
    id: IfaceId,
    dev: NetDev,
    capture: config::Capture,
    clock: WindowClock,
    epoch: Epoch,
    /// The open window's records.
    table: FlowTable,
    /// While a window is being closed: its epoch and records.
    closing: Option<(Epoch, FlowTable)>,
    proofs: Vec<Proof>,
    late_records: u64,
}

/// See the module's head.
pub struct Capture {
    kernel: Kernel,
    ring: Ring,
    watched: Vec<Watched>,
    by_id: HashMap<u16, usize>,
    node_id: String,
    flows_max: usize,
    /// Fences put into the ring, and the last one that came out.
    fences: u32,
    fence_seen: u32,
}

/// Records taken before a grace period: all that the default ring holds, and an end in any flood.
const DRAIN_BEFORE_WAIT: usize = 131_072;
/// Records taken between two looks for the fence.
const DRAIN_TO_FENCE: usize = 65_536;

/// Flags of an interface for the programs.
fn flags(rule: &Rule, dev: &NetDev) -> u16 {
    let want = |direction, hook, refused| {
        if !rule.directions.includes(direction) {
            return 0;
        }
        // Accepted is seen less refused, so it needs both; rejected alone needs no hook.
        if rule.action == Action::Rejected { refused } else { hook | refused }
    };
    want(Direction::Ingress, abi::WANT_INGRESS, abi::WANT_REFUSED_INGRESS)
        | want(Direction::Egress, abi::WANT_EGRESS, abi::WANT_REFUSED_EGRESS)
        | if dev.link_header { 0 } else { abi::NO_LINK_HEADER }
        | if dev.bridge { abi::IS_BRIDGE } else { 0 }
}

impl Capture {
    /// Looks everything up, loads the programs, and attaches.
    ///
    /// # Errors
    /// On the first thing that is not as configured; hooks attached so far are taken away again.
    pub fn start(config: &Config) -> Result<Self, AgentError> {
        let devs: Vec<NetDev> = config.captures.iter().map(|c| netdev::find(&c.interface)).collect::<Result<_, _>>()?;
        let netns = netdev::netns_inum().map_err(super::system("find the network namespace"))?;
        let mut kernel = Kernel::load(config.sizes, netns)?;
        let ring = kernel.take_ring()?;
        let mut capture = Self {
            kernel,
            ring,
            watched: Vec::new(),
            by_id: HashMap::new(),
            node_id: config.node_id.clone(),
            flows_max: config.flows_max,
            fences: 0,
            fence_seen: 0,
        };
        // Verdicts first: a packet that passed a hook must not die unnoticed.
        capture.kernel.attach_verdict()?;
        for (number, (c, dev)) in (1u16..).zip(config.captures.iter().zip(devs)) {
            capture.add(IfaceId(number), c.clone(), dev)?;
        }
        Ok(capture)
    }

    fn add(&mut self, id: IfaceId, capture: config::Capture, dev: NetDev) -> Result<(), AgentError> {
        let (epoch, flags) = (Epoch(1), flags(&capture.rule, &dev));
        let iface = Iface { id: id.0, flags, epoch: epoch.0, oldest: epoch.0, upper: dev.upper };
        let mut proofs = Vec::new();
        self.kernel.watch(dev.index, iface)?;
        for direction in Direction::BOTH {
            let wanted = capture.rule.directions.includes(direction) && capture.rule.action != Action::Rejected;
            if wanted {
                let before = netdev::counters(&dev.name)?;
                let hook = self.kernel.attach(&dev.name, direction, capture.hook)?;
                tracing::info!(interface = dev.name, %direction, %hook, "attached");
                proofs.push(Proof::new(direction, before));
            }
        }
        let clock = WindowClock::new(capture.rule.window_secs, Now::read());
        self.by_id.insert(id.0, self.watched.len());
        self.watched.push(Watched {
            id,
            dev,
            capture,
            clock,
            epoch,
            table: FlowTable::default(),
            closing: None,
            proofs,
            late_records: 0,
        });
        Ok(())
    }

    /// Names of drop reasons.
    #[must_use]
    pub fn reasons(&self) -> &Reasons {
        self.kernel.reasons()
    }

    /// Tells when the ring has filled up to its wake mark.
    pub fn wakeups(&self) -> io::Result<Wakeups> {
        self.ring.wakeups()
    }

    /// Time until the next window must be closed.
    #[must_use]
    pub fn due_in_ns(&self, now: Now) -> u64 {
        self.watched.iter().map(|w| w.clock.due_in_ns(now)).min().unwrap_or(u64::MAX)
    }

    /// Takes up to `most` records from the ring into their windows; returns how many.
    pub fn drain(&mut self, most: usize) -> usize {
        for taken in 0..most {
            let Some(record) = self.ring.pop() else { return taken };
            let meta = match &record {
                Record::V4(r) => r.key.meta,
                Record::V6(r) => r.key.meta,
            };
            if meta.iface == 0 {
                self.fence_seen = meta.epoch;
                continue;
            }
            let Some(watched) = self.by_id.get(&meta.iface).and_then(|i| self.watched.get_mut(*i)) else { continue };
            watched.add(record, Epoch(meta.epoch));
        }
        most
    }

    /// Closes every window that is due; if all together hold too many flows, the largest as well.
    pub fn turn_due(&mut self, now: Now) -> Result<Vec<Closed>, AgentError> {
        let flows: usize = self.watched.iter().map(|w| w.table.len()).sum();
        let all = || self.watched.iter().enumerate();
        let largest = all().max_by_key(|(_, w)| w.table.len()).filter(|_| flows > self.flows_max).map(|(i, _)| i);
        let due: Vec<(usize, bool)> = all()
            .filter(|(i, w)| w.clock.is_due(now) || largest == Some(*i))
            .map(|(i, w)| (i, !w.clock.is_due(now)))
            .collect();
        if due.is_empty() { Ok(Vec::new()) } else { self.turn(&due, now, Scope::Closed) }
    }

    /// Takes the hooks away and closes all windows.
    pub fn finish(&mut self, now: Now) -> Result<Vec<Closed>, AgentError> {
        self.kernel.detach();
        let all: Vec<(usize, bool)> = (0..self.watched.len()).map(|i| (i, false)).collect();
        self.turn(&all, now, Scope::All)
    }

    /// Ends the windows of some interfaces together. `true` marks one that is flushed for its size.
    fn turn(&mut self, due: &[(usize, bool)], now: Now, scope: Scope) -> Result<Vec<Closed>, AgentError> {
        let mut spans: Vec<(usize, bool, Span)> = Vec::with_capacity(due.len());
        for &(index, flushed_early) in due {
            let w = &mut self.watched[index];
            let old = w.epoch;
            w.epoch = old.next();
            w.closing = Some((old, std::mem::take(&mut w.table)));
            self.kernel.set_epoch(w.id, w.dev.index, w.epoch);
            spans.push((index, flushed_early, w.clock.turn(now)));
        }
        // A grace period takes tens of ms: as much room in the ring as can be had.
        self.drain(DRAIN_BEFORE_WAIT);
        // Packets between a hook and their verdict get one grace period to be taken back from the old window.
        self.kernel.wait_for_programs();
        self.drain(DRAIN_BEFORE_WAIT);
        for (index, ..) in &spans {
            let w = &self.watched[*index];
            self.kernel.set_oldest(w.dev.index, w.epoch);
            self.kernel.set_upper(w.dev.index, netdev::upper(&w.dev.name));
        }
        self.kernel.wait_for_programs();
        let mut at = Cursor::default();
        while let Swept::RingFull(cursor) = self.kernel.sweep(scope, at)? {
            at = cursor;
            self.drain(usize::MAX);
        }
        self.drain_to_fence()?;
        spans.into_iter().map(|(index, flushed_early, span)| self.collect(index, flushed_early, span)).collect()
    }

    /// Drains until everything that is in the ring now is out. Just emptying it is not enough: it looks empty while
    /// another CPU is writing a record in front of ours.
    fn drain_to_fence(&mut self) -> Result<(), AgentError> {
        self.fences = self.fences.wrapping_add(1);
        let fence = self.fences;
        while !self.kernel.fence(fence)? {
            self.drain(usize::MAX);
        }
        while self.fence_seen != fence {
            self.drain(DRAIN_TO_FENCE);
        }
        Ok(())
    }

    fn collect(&mut self, index: usize, flushed_early: bool, span: Span) -> Result<Closed, AgentError> {
        let w = &mut self.watched[index];
        let (epoch, table) = w.closing.take().unwrap_or((w.epoch, FlowTable::default()));
        let truth = self.kernel.truth(w.id, epoch)?;
        self.kernel.clear_truth(w.id, epoch)?;
        for proof in &mut w.proofs {
            proof.window_closed(&w.dev.name, &truth);
        }
        let late_refusals = truth.verdict.iter().flatten().any(|v| v.late.packets > 0);
        let late = late_refusals || w.late_records > 0;
        if w.late_records > 0 {
            tracing::error!(
                interface = w.dev.name,
                records = w.late_records,
                "records of a closed window; counted in the next"
            );
            w.late_records = 0;
        }
        let interface_id = w.capture.interface_id.clone().unwrap_or_else(|| format!("{}-{}", self.node_id, w.dev.name));
        let info = ObjectInfo {
            rule: w.capture.rule.clone(),
            node_id: self.node_id.clone(),
            account_id: w.capture.account_id.clone(),
            interface_id,
            span,
            flushed_early,
            late,
        };
        Ok(Closed { info, table, truth })
    }

    /// Looks whether hooks that have not been seen running yet are.
    pub fn check_hooks(&mut self) {
        for w in &mut self.watched {
            if w.proofs.iter().all(Proof::is_settled) {
                continue;
            }
            if let Ok(truth) = self.kernel.truth(w.id, w.epoch) {
                for proof in &mut w.proofs {
                    proof.look(&w.dev.name, &truth);
                }
            }
        }
    }
}

impl Watched {
    fn add(&mut self, mut record: Record, epoch: Epoch) {
        let table = match &mut self.closing {
            Some((closing, table)) if *closing == epoch => table,
            _ => {
                if epoch != self.epoch {
                    self.late_records += 1;
                    match &mut record {
                        Record::V4(r) => r.key.meta.epoch = self.epoch.0,
                        Record::V6(r) => r.key.meta.epoch = self.epoch.0,
                    }
                }
                &mut self.table
            }
        };
        match &record {
            Record::V4(r) => table.add4(r),
            Record::V6(r) => table.add6(r),
        }
    }
}
