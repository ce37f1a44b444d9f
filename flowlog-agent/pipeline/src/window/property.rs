//! The ledger under anything: packets, refusals of every kind, evictions, turns, snapshots and replays in any order.
//!
//! The model does with each packet what the programs do, and knows which row it belongs in. Complete records give the
//! model's rows and a balance of 0; a record that is missing, doubled, or of another flow gives another balance.

use std::collections::BTreeMap;

use flowlog_ebpf::abi::{Count, FAMILY_V4, Key, Meta, Record, Record4, Stats, Truth, class};
use flowlog_model::{Epoch, HookKind, IfaceId, MonoNs, NS_PER_SEC, Now, WallNs, WatchSpec, rule::Rule};
use proptest::{collection::vec, prelude::*};

use super::{Closed, Event, Ledger, Part, Settled, Span, WindowClock, ledger::truth_words, settle};
use crate::window::block;

const ID: IfaceId = IfaceId(7);
const REASON: u16 = 12;
const FLOWS: u16 = 4;
const WINDOW: u32 = 60;

/// What happens next. Numbers choose among what there is, modulo.
#[derive(Clone, Debug)]
enum Act {
    /// A hook counts packets of a flow; `lost`: the ring is full.
    Pass {
        flow: u16,
        packets: u16,
        lost: bool,
    },
    /// Something that a hook has counted is refused; `full`: the ring is.
    Refuse {
        which: usize,
        full: bool,
    },
    /// Something that a hook has counted dies on its way; `full`: the ring is.
    Die {
        which: usize,
        full: bool,
    },
    /// Something is refused that no hook has seen.
    RefuseUnseen {
        flow: u16,
        packets: u16,
    },
    /// A slot's record goes to the agent.
    Evict {
        which: usize,
    },
    Turn,
    /// The window that has ended is closed.
    Close,
    /// The agent starts again, from a snapshot or from the first entry on.
    Restart {
        snapshot: bool,
    },
}

fn acts() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (0..FLOWS, 1..5u16, prop::bool::weighted(0.1))
            .prop_map(|(flow, packets, lost)| Act::Pass { flow, packets, lost }),
        5 => (any::<usize>(), prop::bool::weighted(0.1)).prop_map(|(which, full)| Act::Refuse { which, full }),
        3 => (any::<usize>(), prop::bool::weighted(0.1)).prop_map(|(which, full)| Act::Die { which, full }),
        1 => (0..FLOWS, 1..5u16).prop_map(|(flow, packets)| Act::RefuseUnseen { flow, packets }),
        4 => any::<usize>().prop_map(|which| Act::Evict { which }),
        1 => Just(Act::Turn),
        2 => Just(Act::Close),
        1 => any::<bool>().prop_map(|snapshot| Act::Restart { snapshot }),
    ]
}

/// What goes wrong with one record of a class on its way to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Missing,
    Doubled,
    /// A refusal names a flow that no hook has seen.
    OtherFlow,
}

/// A record's flow, class and epoch.
type Slot = (u16, u8, u32);

#[derive(Clone, Debug)]
struct Noted {
    flow: u16,
    packets: u16,
    epoch: u32,
    lost: bool,
}

#[derive(Clone, Debug)]
enum Entry {
    Event(Event),
    Block(Vec<u8>),
}

/// The kernel's side, and which rows there must be.
struct Model {
    hook: HookKind,
    ledger: Ledger,
    journal: Vec<Entry>,
    slots: BTreeMap<Slot, u64>,
    truth: BTreeMap<u32, Truth>,
    noted: Vec<Noted>,
    /// Lost packets in the rows of each epoch, by flow.
    died: BTreeMap<u32, BTreeMap<u16, i64>>,
    /// Rows of each epoch: packets by flow and verdict.
    rows: BTreeMap<u32, BTreeMap<(u16, bool), i64>>,
    epoch: u32,
    clock: WindowClock,
    ended: bool,
    now: Now,
    fault: Option<(u8, Fault)>,
    /// Epoch of the record that met the fault.
    hit: Option<u32>,
}

fn count(packets: u64) -> Count {
    Count { packets, bytes: packets * 100 }
}

fn add(to: &mut Count, packets: u64) {
    to.packets += packets;
    to.bytes += packets * 100;
}

fn spec(hook: HookKind) -> WatchSpec {
    WatchSpec {
        interface: "eth0".to_owned(),
        ifindex: 2,
        hook,
        rule: Rule::sample(WINDOW),
        node_id: "n".to_owned(),
        account_id: None,
        interface_id: "n-eth0".to_owned(),
        side: flowlog_model::rule::Side::Host,
        netns_inum: 1,
        netns: None,
        mac: None,
        translations: false,
        labels: flowlog_model::Labels::default(),
    }
}

impl Model {
    fn new(hook: HookKind, fault: Option<(u8, Fault)>) -> Self {
        let now = Now { mono: MonoNs(1_000_000_000), wall: WallNs(1_700_000_000 * NS_PER_SEC) };
        let clock = WindowClock::new(WINDOW, now);
        let mut model = Self {
            hook,
            ledger: Ledger::default(),
            journal: Vec::new(),
            slots: BTreeMap::new(),
            truth: BTreeMap::new(),
            noted: Vec::new(),
            died: BTreeMap::new(),
            rows: BTreeMap::new(),
            epoch: 1,
            clock,
            ended: false,
            now,
            fault,
            hit: None,
        };
        let span: Span = *model.clock.current();
        model.event(Event::Watch {
            id: ID,
            spec: Box::new(spec(hook)),
            span,
            epoch: Epoch(1),
            gap: None,
            since_secs: None,
        });
        model
    }

    fn event(&mut self, event: Event) -> Option<Closed> {
        self.journal.push(Entry::Event(event.clone()));
        self.ledger.apply(event)
    }

    fn truth(&mut self, epoch: u32) -> &mut Truth {
        self.truth.entry(epoch).or_default()
    }

    fn row(&mut self, epoch: u32, flow: u16, refused: bool, packets: i64) {
        *self.rows.entry(epoch).or_default().entry((flow, refused)).or_default() += packets;
    }

    /// Hands a slot's record to the agent, unless the fault keeps it.
    fn evict(&mut self, slot: Slot) {
        let Some(packets) = self.slots.remove(&slot).filter(|n| *n > 0) else { return };
        let (flow, class, epoch) = slot;
        let fault = self.fault.take_if(|(c, _)| *c == class && self.hit.is_none()).map(|(_, f)| f);
        if fault.is_some() {
            self.hit = Some(epoch);
        }
        let flow = if fault == Some(Fault::OtherFlow) { FLOWS + 1 } else { flow };
        let reason = if class == class::PASSED { 0 } else { REASON };
        let meta = Meta {
            sport: flow,
            dport: 443,
            iface: ID.0,
            proto: 6,
            flags: Meta::pack(0, class),
            reason,
            epoch,
            ..Meta::default()
        };
        let stats = Stats { first_ns: 1, last_ns: 2, bytes: packets * 100, packets, ..Stats::default() };
        let record: Record4 = Record { key: Key { src: 1, dst: 2, meta }, stats };
        let times = match fault {
            Some(Fault::Missing) => 0,
            Some(Fault::Doubled) => 2,
            Some(Fault::OtherFlow) | None => 1,
        };
        for _ in 0..times {
            let mut bytes = Vec::new();
            block::write(&mut bytes, FAMILY_V4, &[record]);
            self.ledger.block(&bytes);
            self.journal.push(Entry::Block(bytes));
        }
    }

    fn refuse(&mut self, noted: &Noted, full: bool) {
        let Noted { flow, packets, epoch: passed_in, lost } = *noted;
        let n = u64::from(packets);
        // An XDP hook leaves no note of its window or of a loss: what is refused counts where it is refused.
        let noted_here = self.hook != HookKind::Xdp;
        let late = noted_here && passed_in != self.epoch && !(self.ended && passed_in == self.epoch - 1);
        let epoch = if late || !noted_here { self.epoch } else { passed_in };
        let slot = self.slots.get_mut(&(flow, class::PASSED, epoch)).filter(|s| **s >= n);
        let class = match slot {
            _ if late => class::REFUSED_LATE,
            _ if lost && noted_here => class::REFUSED_LOST,
            Some(slot) => {
                *slot -= n;
                class::REFUSED
            }
            None => class::REFUSED_COUNTED,
        };
        let verdict = &mut self.truth(epoch).verdict[0][usize::from(packets % 2 == 0)];
        add(&mut verdict.refused, n);
        if late {
            add(&mut verdict.late, n);
        } else {
            add(&mut verdict.seen, n);
        }
        let taken_back = class == class::REFUSED || class == class::REFUSED_COUNTED;
        if full && (class == class::REFUSED || class == class::REFUSED_LATE) {
            add(&mut verdict.lost, n);
        } else if full {
            add(&mut verdict.lost_counted, n);
        } else {
            *self.slots.entry((flow, class, epoch)).or_default() += n;
            self.row(epoch, flow, true, i64::from(packets));
        }
        if taken_back && !(full && class == class::REFUSED_COUNTED) {
            self.row(epoch, flow, false, -i64::from(packets));
        }
    }

    fn die(&mut self, noted: &Noted, full: bool) {
        let Noted { flow, packets, epoch: passed_in, lost } = *noted;
        let n = u64::from(packets);
        let noted_here = self.hook != HookKind::Xdp;
        // What is in no record has no row to be lost from.
        if lost && noted_here {
            return;
        }
        let late = noted_here && passed_in != self.epoch && !(self.ended && passed_in == self.epoch - 1);
        let epoch = if late || !noted_here { self.epoch } else { passed_in };
        let verdict = &mut self.truth(epoch).verdict[0][usize::from(packets % 2 == 0)];
        if late {
            add(&mut verdict.died_late, n);
            return;
        }
        add(&mut verdict.died, n);
        if full {
            add(&mut verdict.died_untold, n);
        } else {
            *self.slots.entry((flow, class::LOST, epoch)).or_default() += n;
            *self.died.entry(epoch).or_default().entry(flow).or_default() += i64::from(packets);
        }
    }

    fn act(&mut self, act: &Act) -> Option<(u32, Closed)> {
        match *act {
            Act::Pass { flow, packets, lost } => {
                let epoch = self.epoch;
                let n = u64::from(packets);
                let hook = &mut self.truth(epoch).hook[0];
                add(&mut hook.seen, n);
                if lost {
                    add(&mut hook.lost, n);
                } else {
                    *self.slots.entry((flow, class::PASSED, epoch)).or_default() += n;
                    self.row(epoch, flow, false, i64::from(packets));
                }
                self.noted.push(Noted { flow, packets, epoch, lost });
            }
            Act::Refuse { which, full } => {
                if !self.noted.is_empty() {
                    // A note is used once.
                    let noted = self.noted.swap_remove(which % self.noted.len());
                    self.refuse(&noted, full);
                }
            }
            Act::Die { which, full } => {
                if !self.noted.is_empty() {
                    let noted = self.noted.swap_remove(which % self.noted.len());
                    self.die(&noted, full);
                }
            }
            Act::RefuseUnseen { flow, packets } => {
                let epoch = self.epoch;
                let n = u64::from(packets);
                add(&mut self.truth(epoch).verdict[0][0].refused, n);
                *self.slots.entry((flow, class::REFUSED, epoch)).or_default() += n;
                self.row(epoch, flow, true, i64::from(packets));
            }
            Act::Evict { which } => {
                if let Some(slot) = self.slots.keys().nth(which % self.slots.len().max(1)).copied() {
                    self.evict(slot);
                }
            }
            Act::Turn => {
                let closed = self.act(&Act::Close);
                self.now.mono.0 += 60 * NS_PER_SEC.unsigned_abs();
                self.now.wall.0 += 60 * NS_PER_SEC;
                let span = self.clock.turn(self.now);
                let next = *self.clock.current();
                self.event(Event::Turn { id: ID, closed: span, next, flushed_early: false });
                self.epoch += 1;
                self.ended = true;
                return closed;
            }
            Act::Close => {
                if !self.ended {
                    return None;
                }
                let epoch = self.epoch - 1;
                let left: Vec<Slot> = self.slots.keys().filter(|s| s.2 == epoch).copied().collect();
                for slot in left {
                    self.evict(slot);
                }
                self.ended = false;
                let truth = Some(truth_words(self.truth(epoch)));
                let closed = self.event(Event::Close { id: ID, truth, gap: None }).expect("a window that has ended");
                return Some((epoch, closed));
            }
            Act::Restart { snapshot } => self.restart(snapshot),
        }
        None
    }

    fn restart(&mut self, snapshot: bool) {
        let mut ledger = Ledger::default();
        if snapshot {
            self.ledger.snapshot(&mut |part| match part {
                Part::Event(event) => {
                    ledger.apply(*event);
                }
                Part::Block(block) => ledger.block(block),
            });
        } else {
            for entry in self.journal.clone() {
                match entry {
                    Entry::Event(event) => {
                        ledger.apply(event);
                    }
                    Entry::Block(block) => ledger.block(&block),
                }
            }
        }
        self.ledger = ledger;
    }
}

/// Runs all of it and closes the last windows; returns every window with its epoch and lateness.
fn run(hook: HookKind, acts: &[Act], fault: Option<(u8, Fault)>) -> (Model, Vec<(u32, bool, Settled)>) {
    let mut model = Model::new(hook, fault);
    let last = [Act::Turn, Act::Close];
    let closed: Vec<_> = acts.iter().chain(&last).filter_map(|act| model.act(act)).collect();
    let settled = closed.into_iter().map(|(epoch, Closed { info, table, truth, hook, .. })| {
        (epoch, info.late, settle::settle(table, truth.as_ref(), hook))
    });
    let settled = settled.collect();
    (model, settled)
}

fn rows(settled: &Settled) -> BTreeMap<(u16, bool), i64> {
    let mut rows = BTreeMap::new();
    for flow in settled.table.flows() {
        let packets = i64::try_from(flow.totals.packets).expect("few");
        assert_eq!(flow.totals.bytes, flow.totals.packets * 100);
        assert!(rows.insert((flow.sport, flow.refused), packets).is_none(), "one row a flow and verdict");
    }
    rows
}

/// Lost packets by flow.
fn died(settled: &Settled) -> BTreeMap<u16, i64> {
    let numbers = settled.table.numbers().filter_map(|n| Some((n, settled.table.flow(n)?)));
    let lost = numbers.filter_map(|(n, flow)| Some((flow, settled.table.lost(n, &flow)?)));
    lost.map(|(flow, lost)| {
        assert!(!flow.refused && lost.count.packets <= flow.totals.packets && lost.reason == REASON, "{flow:?}");
        assert_eq!(lost.count.bytes, lost.count.packets * 100);
        (flow.sport, i64::try_from(lost.count.packets).expect("few"))
    })
    .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn complete_records_balance_and_give_the_rows_of_the_packets(acts in vec(acts(), 1..60)) {
        let (model, windows) = run(HookKind::Tc, &acts, None);
        for (epoch, _, settled) in windows {
            prop_assert_eq!(settled.balance.difference(), (0, 0), "epoch {}: {}", epoch, settled.balance);
            prop_assert_eq!(settled.balance.deficit, Count::default());
            let mut expected = model.rows.get(&epoch).cloned().unwrap_or_default();
            expected.retain(|_, n| *n != 0);
            prop_assert_eq!(rows(&settled), expected, "epoch {}", epoch);
            prop_assert_eq!(died(&settled), model.died.get(&epoch).cloned().unwrap_or_default(), "epoch {}", epoch);
        }
    }

    #[test]
    fn with_xdp_complete_records_balance_and_what_is_of_earlier_windows_is_late(acts in vec(acts(), 1..60)) {
        let (model, windows) = run(HookKind::Xdp, &acts, None);
        for (epoch, late, settled) in windows {
            prop_assert_eq!(settled.balance.difference(), (0, 0), "epoch {}: {}", epoch, settled.balance);
            let short = model.rows.get(&epoch).is_some_and(|rows| rows.values().any(|n| *n < 0));
            prop_assert_eq!(late, short, "epoch {}", epoch);
            died(&settled);
        }
    }

    #[test]
    fn a_record_that_is_missing_doubled_or_of_another_flow_does_not_balance(
        acts in vec(acts(), 1..60),
        class in prop::sample::select(vec![
            class::PASSED, class::REFUSED, class::REFUSED_COUNTED, class::REFUSED_LOST, class::REFUSED_LATE,
            class::LOST,
        ]),
        fault in prop::sample::select(vec![Fault::Missing, Fault::Doubled, Fault::OtherFlow]),
    ) {
        // Of another flow: only what is taken back from one is found out.
        let class = if fault == Fault::OtherFlow { class::REFUSED_COUNTED } else { class };
        let (model, windows) = run(HookKind::Tc, &acts, Some((class, fault)));
        for (epoch, _, settled) in windows {
            // Of what found the ring full no more is known than how much it was.
            if model.hit == Some(epoch) && settled.balance.untold == count(0) {
                prop_assert_ne!(settled.balance.difference(), (0, 0), "epoch {}: {}", epoch, settled.balance);
            } else if model.hit != Some(epoch) {
                prop_assert_eq!(settled.balance.difference(), (0, 0), "epoch {}: {}", epoch, settled.balance);
            }
        }
    }
}
