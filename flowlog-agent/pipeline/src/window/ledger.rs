//! Everything that is known about the windows of all watched interfaces, as a function of the events so far.
//!
//! The ledger changes by nothing but blocks of records and [`Event`]s. The agent writes both to its journal in the
//! order in which it applies them; so an agent that reads the journal back has the same ledger, and goes on.

use std::{collections::BTreeMap, hint::black_box};

use flowlog_ebpf::abi::{Count, Truth};
use flowlog_model::{
    Epoch, HookKind, IfaceId, Labels, Now, WatchSpec,
    figures::Volume,
    hiding::Hiding,
    interface::{Mac, Netns},
    translation::Services,
    xdp::XdpReading,
};
use serde::{Deserialize, Serialize};

use super::{
    FlowTable, Foreign, ObjectInfo, Span, WindowClock, XdpWindow, settle,
    table::{
        KEPT_MAX, NOWHERE, TOGETHER,
        told::{Kept, Questions, is_kept},
    },
    xdp::XdpTally,
};
use crate::window::block::{Record, Records};

/// Counters on disk: packets and bytes.
type Words = (u64, u64);

/// What happens to windows besides records.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// An interface is watched from now on. In a snapshot: it is being watched.
    Watch {
        id: IfaceId,
        #[serde(rename = "subject")]
        spec: Box<WatchSpec>,
        span: Span,
        epoch: Epoch,
        /// Time before it in which nothing was counted, in Unix seconds: goes into its row.
        #[serde(default)]
        gap: Option<(i64, i64)>,
        /// Since when it is watched, in Unix seconds; `None`: since this window was opened.
        #[serde(default)]
        since_secs: Option<i64>,
    },
    /// The open window ends; the next begins.
    Turn {
        id: IfaceId,
        /// The window that ends, with its marks.
        closed: Span,
        /// The one that begins, with the next epoch.
        next: Span,
        /// It ended for its size.
        flushed_early: bool,
    },
    /// All records of the window that ended are in.
    Close {
        id: IfaceId,
        /// The programs' counts for it, in the order of [`Truth::counts`]; `None` if they are lost.
        truth: Option<Vec<Words>>,
        /// Time during which nothing was counted.
        gap: Option<(i64, i64)>,
    },
    /// An interface is not watched any more. Its windows have been closed.
    Unwatch { id: IfaceId },
    /// The interface is watched for another rule, from the beginning of the open window on. None that has ended is still to be closed.
    Changed {
        id: IfaceId,
        #[serde(rename = "subject")]
        spec: Box<WatchSpec>,
        /// The open window, as the new rule has it.
        span: Span,
    },
    /// The interface has another name or hardware address, or its resource other labels.
    Named {
        id: IfaceId,
        interface: String,
        /// Its hardware address now.
        mac: Option<Mac>,
        /// What its resource is known by now.
        #[serde(default, skip_serializing_if = "Labels::is_empty")]
        labels: Labels,
    },
    /// A closed window's object is durable, or there is none.
    Done { key: String },
    /// The host was up.
    Beat { now: Now },
    /// In a snapshot: a window that has ended but is not closed.
    Closing {
        id: IfaceId,
        span: Span,
        /// It ended for its size.
        flushed_early: bool,
    },
    /// In a snapshot: what tables hold besides records.
    Carry {
        id: IfaceId,
        /// [`FlowTable::refused_lost`] of the open window, then of the closing one.
        refused_lost: [[Words; 2]; 2],
        /// Late records seen so far.
        late_records: u64,
    },
    /// A look at the XDP of an interface: its counts belong to the open window. `None`: it could not be looked at.
    Xdp { id: IfaceId, reading: Option<Box<XdpReading>> },
    /// In a snapshot: what such looks have come to, in the open window and in one that has ended but is not closed.
    XdpTally { id: IfaceId, open: Box<XdpTally>, closing: Option<Box<XdpWindow>> },
}

/// A window that is over: everything an object is made from.
#[derive(Debug)]
pub struct Closed {
    pub info: ObjectInfo,
    pub table: FlowTable,
    /// The programs' own count; `None` if it is lost.
    pub truth: Option<Truth>,
    pub hook: HookKind,
    /// Where the interface is that it is of: its index, and the namespace that the index is of.
    pub place: (u32, Netns),
}

/// A window that has ended and whose last records are on their way.
#[derive(Debug)]
pub(crate) struct Closing {
    span: Span,
    table: FlowTable,
    flushed_early: bool,
    xdp: XdpWindow,
}

#[derive(Debug)]
pub(crate) struct Watched {
    pub spec: WatchSpec,
    pub clock: WindowClock,
    pub epoch: Epoch,
    /// Since when it is watched.
    pub since_secs: i64,
    table: FlowTable,
    closing: Option<Closing>,
    late_records: u64,
    /// Time in which nothing was counted, until a closed window reports it.
    gap: Option<(i64, i64)>,
    /// What other people's XDP programs do.
    pub xdp: XdpTally,
    /// Translations of earlier windows.
    kept: Kept,
    /// What programs counted in the windows that were closed since the agent knows of it.
    pub counted: Truth,
    /// What monitoring was told of accepted packets, by direction: no later look tells less.
    pub told: [Volume; 2],
}

impl Watched {
    /// Flows, and translations of flows, in windows that are not closed.
    #[must_use]
    pub(crate) fn flows(&self) -> usize {
        let of = |table: &FlowTable| table.flow_count() + table.told();
        of(&self.table) + self.closing.as_ref().map_or(0, |c| of(&c.table))
    }

    /// The flows of the open window, as far as they have come in.
    #[must_use]
    pub(crate) fn open_table(&self) -> &FlowTable {
        &self.table
    }

    /// What connection tracking is to be asked of the window that has ended but is not closed.
    #[must_use]
    pub(crate) fn questions(&self) -> Questions {
        let closing = self.closing.as_ref().filter(|_| self.spec.translations);
        closing.map(|c| c.table.questions(&self.kept)).unwrap_or_default()
    }

    /// What a load balancer with these addresses is to be asked of that window.
    #[must_use]
    pub(crate) fn served(&self, services: &Services) -> Questions {
        let closing = self.closing.as_ref().filter(|_| self.spec.translations);
        closing.map(|c| c.table.served(&self.kept, services)).unwrap_or_default()
    }

    /// When the oldest window that is not closed ends, seconds since 1970.
    #[must_use]
    pub(crate) fn end_secs(&self) -> i64 {
        self.closing.as_ref().map_or(self.clock.current().end_secs, |c| c.span.end_secs)
    }

    /// Epoch of a window that has ended but is not closed.
    #[must_use]
    pub(crate) fn closing_epoch(&self) -> Option<Epoch> {
        self.closing.as_ref().map(|_| self.epoch.previous())
    }

    /// What is known about the window that has ended but is not closed.
    #[must_use]
    pub(crate) fn closing_info(&self) -> Option<ObjectInfo> {
        let Closing { span, flushed_early, xdp, .. } = self.closing.as_ref()?;
        let WatchSpec { rule, node_id, account_id, interface_id, side, translations, labels, .. } = self.spec.clone();
        let span = *span;
        let flushed_early = *flushed_early;
        Some(ObjectInfo {
            rule,
            node_id,
            account_id,
            interface_id,
            side,
            span,
            flushed_early,
            late: false,
            gap: None,
            foreign: Foreign::default(),
            xdp: xdp.clone(),
            translations,
            labels,
            hiding: Hiding::default(),
        })
    }

    /// The table that records of an epoch belong to.
    fn table(&self, epoch: Epoch) -> &FlowTable {
        match &self.closing {
            Some(closing) if epoch == self.epoch.previous() => &closing.table,
            _ => &self.table,
        }
    }

    /// Adds a record, with what was guessed of its flow.
    fn add(&mut self, record: &Record, guess: u32) {
        if is_kept(record) {
            return self.kept.add(record);
        }
        let epoch = Epoch(record.meta().epoch);
        match &mut self.closing {
            Some(closing) if epoch == self.epoch.previous() => closing.table.add(record, guess),
            _ => {
                // A record of a window that is closed already cannot come, as far as we know. If one does, it counts here.
                self.late_records += u64::from(epoch != self.epoch);
                self.table.add(record, guess);
            }
        }
    }
}

/// See the module's head.
#[derive(Debug, Default)]
pub struct Ledger {
    watched: BTreeMap<IfaceId, Watched>,
    records: u64,
    unknown_records: u64,
}

impl Ledger {
    pub(crate) fn watched(&self) -> impl Iterator<Item = (IfaceId, &Watched)> {
        self.watched.iter().map(|(id, w)| (*id, w))
    }

    pub(crate) fn watched_mut(&mut self) -> impl Iterator<Item = (IfaceId, &mut Watched)> {
        self.watched.iter_mut().map(|(id, w)| (*id, w))
    }

    #[must_use]
    pub(crate) fn get(&self, id: IfaceId) -> Option<&Watched> {
        self.watched.get(&id)
    }

    #[must_use]
    pub(crate) fn flows(&self) -> usize {
        self.watched.values().map(Watched::flows).sum()
    }

    /// Records that were taken in.
    #[must_use]
    pub(crate) fn records(&self) -> u64 {
        self.records
    }

    /// Records of interfaces that nobody watches: anything but 0 is a bug.
    #[must_use]
    #[cfg(test)]
    pub(crate) fn unknown_records(&self) -> u64 {
        self.unknown_records
    }

    /// Ids that are free, lowest first.
    pub(crate) fn free_ids(&self) -> impl Iterator<Item = IfaceId> {
        (1..=u16::MAX).map(IfaceId).filter(|id| !self.watched.contains_key(id))
    }

    /// Adds a block of records. One that makes no sense is counted.
    pub(crate) fn block(&mut self, bytes: &[u8]) {
        let Some(mut records) = Records::parse(bytes) else {
            self.unknown_records += 1;
            return;
        };
        // Flows are all over memory: they are asked for together, and then added to.
        let mut together: Vec<(Record, u32)> = Vec::with_capacity(TOGETHER);
        loop {
            together.clear();
            together.extend(records.by_ref().take(TOGETHER).map(|record| (record, NOWHERE)));
            if together.is_empty() {
                return;
            }
            for (record, guess) in &mut together {
                *guess = self.table(record).map_or(NOWHERE, |table| table.guess(record));
            }
            let near = together.iter().filter_map(|(record, guess)| Some(self.table(record)?.peek(*guess)));
            black_box(near.fold(0, |all, word| all ^ word));
            for (record, guess) in &together {
                self.records += 1;
                match self.watched.get_mut(&IfaceId(record.meta().iface)) {
                    Some(watched) => watched.add(record, *guess),
                    None => self.unknown_records += 1,
                }
            }
        }
    }

    /// The table that a record belongs to.
    fn table(&self, record: &Record) -> Option<&FlowTable> {
        let meta = record.meta();
        self.watched.get(&IfaceId(meta.iface)).map(|watched| watched.table(Epoch(meta.epoch)))
    }

    /// Applies an event; [`Event::Close`] gives the closed window.
    pub(crate) fn apply(&mut self, event: Event) -> Option<Closed> {
        match event {
            Event::Watch { id, spec, span, epoch, gap, since_secs } => {
                let spec = *spec;
                let since_secs = since_secs.unwrap_or(span.opened.wall.secs());
                let clock = WindowClock::resume(spec.rule.window_secs, span);
                let table = FlowTable::default();
                let xdp = XdpTally::default();
                let kept = Kept::default();
                let counted = Truth::default();
                let told = Default::default();
                let (closing, late_records) = (None, 0);
                let watched = Watched {
                    spec,
                    clock,
                    epoch,
                    since_secs,
                    table,
                    closing,
                    late_records,
                    gap,
                    xdp,
                    kept,
                    counted,
                    told,
                };
                self.watched.insert(id, watched);
            }
            Event::Turn { id, closed, next, flushed_early } => {
                let w = self.watched.get_mut(&id)?;
                let table = std::mem::take(&mut w.table);
                w.closing = Some(Closing { span: closed, table, flushed_early, xdp: w.xdp.turn() });
                w.clock = WindowClock::resume(w.spec.rule.window_secs, next);
                w.epoch = w.epoch.next();
            }
            Event::Close { id, truth, gap } => return self.close(id, truth, gap),
            Event::Unwatch { id } => {
                self.watched.remove(&id);
            }
            Event::Changed { id, spec, span } => {
                let w = self.watched.get_mut(&id)?;
                w.clock = WindowClock::resume(spec.rule.window_secs, span);
                w.spec = *spec;
                if !w.spec.translations {
                    w.kept = Kept::default();
                }
            }
            Event::Named { id, interface, mac, labels } => {
                let spec = &mut self.watched.get_mut(&id)?.spec;
                spec.interface = interface;
                spec.mac = mac;
                spec.labels = labels;
            }
            Event::Closing { id, span, flushed_early } => {
                let w = self.watched.get_mut(&id)?;
                let xdp = XdpWindow::default();
                w.closing = Some(Closing { span, table: FlowTable::default(), flushed_early, xdp });
            }
            Event::Carry { id, refused_lost: [open, closing], late_records } => {
                let w = self.watched.get_mut(&id)?;
                w.table.set_refused_lost(open.map(count));
                w.late_records = late_records;
                if let Some(c) = &mut w.closing {
                    c.table.set_refused_lost(closing.map(count));
                }
            }
            Event::Xdp { id, reading } => {
                let xdp = &mut self.watched.get_mut(&id)?.xdp;
                match reading {
                    Some(reading) => xdp.look(*reading),
                    None => xdp.lose(),
                }
            }
            Event::XdpTally { id, open, closing } => {
                let w = self.watched.get_mut(&id)?;
                w.xdp = *open;
                if let Some((c, xdp)) = w.closing.as_mut().zip(closing) {
                    c.xdp = *xdp;
                }
            }
            Event::Done { .. } | Event::Beat { .. } => {}
        }
        None
    }

    fn close(&mut self, id: IfaceId, truth: Option<Vec<Words>>, gap: Option<(i64, i64)>) -> Option<Closed> {
        let kept: usize = self.watched.iter().filter(|(other, _)| **other != id).map(|(_, w)| w.kept.len()).sum();
        let w = self.watched.get_mut(&id)?;
        let mut info = w.closing_info()?;
        if truth.is_none() {
            // The host went down, and the driver's counters with it.
            info.xdp.lose();
        }
        let truth = truth.map(truth_of);
        if let Some(truth) = &truth {
            w.counted.add(truth.counts());
        }
        let late_refusals = truth.is_some_and(|t| t.verdict.iter().flatten().any(|v| v.late.packets > 0));
        let mut table = w.closing.take()?.table;
        if w.spec.translations {
            let untold = truth.is_none_or(|t| t.untold.iter().any(|n| n.packets > 0));
            w.kept = table.join(&w.kept, untold, KEPT_MAX.saturating_sub(kept));
        }
        let hook = w.spec.hook;
        let late_deficits = hook == HookKind::Xdp && table.deficits().any(|(flow, _)| settle::is_late(hook, &flow));
        let late = late_refusals || late_deficits || w.late_records > 0;
        w.late_records = 0;
        let gap = gap.or(w.gap.take());
        let place = (w.spec.ifindex, Netns::at(w.spec.netns_inum, w.spec.netns.as_deref()));
        Some(Closed { info: ObjectInfo { late, gap, ..info }, table, truth, hook, place })
    }

    /// Hands out events and blocks that make this ledger out of an empty one.
    pub(crate) fn snapshot(&self, each: &mut dyn FnMut(Part<'_>)) {
        let event = |each: &mut dyn FnMut(Part<'_>), event| each(Part::Event(Box::new(event)));
        for (id, w) in &self.watched {
            let id = *id;
            let span = *w.clock.current();
            let epoch = w.epoch;
            let (spec, since_secs) = (Box::new(w.spec.clone()), Some(w.since_secs));
            event(each, Event::Watch { id, spec, span, epoch, gap: w.gap, since_secs });
            w.table.blocks(id.0, epoch.0, |b| each(Part::Block(b)));
            if let Some(Closing { span, table, flushed_early, .. }) = &w.closing {
                event(each, Event::Closing { id, span: *span, flushed_early: *flushed_early });
                table.blocks(id.0, epoch.previous().0, |b| each(Part::Block(b)));
            }
            let lost = |t: &FlowTable| t.refused_lost().map(|c| (c.packets, c.bytes));
            let closing = w.closing.as_ref().map_or_else(Default::default, |c| lost(&c.table));
            let refused_lost = [lost(&w.table), closing];
            w.kept.blocks(id.0, epoch.0, |b| each(Part::Block(b)));
            event(each, Event::Carry { id, refused_lost, late_records: w.late_records });
            let closing = w.closing.as_ref().map(|c| Box::new(c.xdp.clone()));
            event(each, Event::XdpTally { id, open: Box::new(w.xdp.clone()), closing });
        }
    }
}

/// A part of a snapshot.
#[derive(Debug)]
pub enum Part<'a> {
    Event(Box<Event>),
    /// A block of records.
    Block(&'a [u8]),
}

fn count((packets, bytes): Words) -> Count {
    Count { packets, bytes }
}

/// Counters in the form of [`Event::Close`].
#[must_use]
pub(crate) fn truth_words(truth: &Truth) -> Vec<Words> {
    truth.counts().map(|c| (c.packets, c.bytes)).collect()
}

fn truth_of(words: Vec<Words>) -> Truth {
    let mut truth = Truth::default();
    truth.add(words.into_iter().map(count));
    truth
}
