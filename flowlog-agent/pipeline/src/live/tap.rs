//! The capture's end: what it hands over while somebody looks.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        mpsc::{SyncSender, TrySendError},
    },
};

use flowlog_model::{CaptureSpec, IfaceId, MonoNs, Now, WatchSpec};

use super::{LineNames, Live, Waiting, line::Place};
use crate::window::{Event, Ledger, block::Records};

/// How often the caches are emptied of what somebody looks at. A packet is shown within a second of it, and a flow costs a new record
/// twice a second.
const SWEEP_EVERY_NS: u64 = 500_000_000;

/// After a look nobody is answered for so long: whoever asks again and again waits, and not the ring.
const REST_NS: u64 = 100_000_000;
/// And for so long for each flow that was gone through, which takes a quarter of that.
const REST_PER_FLOW_NS: u64 = 400;

/// Watched interfaces by the id that records have.
pub(crate) type Places = BTreeMap<u16, Place>;

/// What goes to the hub.
pub(crate) enum Message {
    /// Records, and the interfaces they are of.
    Block(Arc<Places>, Vec<u8>),
    /// What comes behind this is an observer's: it has seen all from before.
    Begin(u64),
}

/// See the module's head.
pub struct Tap {
    live: Live,
    sender: SyncSender<Message>,
    pub(crate) names: Option<Arc<LineNames>>,
    places: Arc<Places>,
    /// The ledger has other interfaces than `places`.
    is_stale: bool,
    /// What flow logs are called, by interface id, where that is not their rule's name.
    called: BTreeMap<String, String>,
    /// When the caches were last emptied of what somebody looks at.
    swept: Option<MonoNs>,
    /// Until when whoever asks has to wait.
    rests_until: MonoNs,
    /// Interfaces that the programs were told are looked at.
    pub(crate) observed: BTreeSet<u16>,
}

impl Tap {
    pub(crate) fn new(live: Live, sender: SyncSender<Message>) -> Self {
        Self {
            live,
            sender,
            names: None,
            places: Arc::default(),
            is_stale: true,
            called: BTreeMap::new(),
            swept: None,
            rests_until: MonoNs(0),
            observed: BTreeSet::new(),
        }
    }

    /// A tap that nobody can look through.
    #[must_use]
    pub fn closed() -> Self {
        let (_, super::Ends { tap, .. }) = Live::new();
        tap
    }

    pub(crate) fn set_names(&mut self, names: Arc<LineNames>) {
        self.names = Some(names);
    }

    pub(crate) fn live(&self) -> &Live {
        &self.live
    }

    /// What is to be captured has changed: names, perhaps.
    pub(crate) fn name(&mut self, captures: &[CaptureSpec], node_id: &str) {
        let called = captures.iter().filter_map(|c| Some((c.id(node_id), c.called.clone()?)));
        self.called = called.collect();
        self.is_stale = true;
    }

    /// An event has been applied: interfaces may be others now.
    pub(crate) fn note(&mut self, event: &Event) {
        self.is_stale |=
            matches!(event, Event::Watch { .. } | Event::Unwatch { .. } | Event::Changed { .. } | Event::Named { .. });
        if let Event::Watch { id, .. } = event {
            // The programs have not been told of this one, whatever had its id before.
            self.observed.remove(&id.0);
        }
    }

    /// A block has been merged.
    #[inline]
    pub(crate) fn block(&mut self, block: &[u8], ledger: &Ledger) {
        if self.live.is_open() {
            self.send_block(block, ledger);
        }
    }

    fn send_block(&mut self, block: &[u8], ledger: &Ledger) {
        let places = self.places(ledger);
        if self.sender.try_send(Message::Block(places, block.to_vec())).is_err() {
            self.live.lose(Records::parse(block).map_or(0, |records| records.count() as u64));
        }
    }

    /// The interfaces that are watched now.
    pub(crate) fn places(&mut self, ledger: &Ledger) -> Arc<Places> {
        if std::mem::take(&mut self.is_stale) {
            let of = |spec: &WatchSpec| {
                let called = self.called.get(&spec.interface_id);
                let flow_log = called.map_or_else(|| spec.rule.name.as_str().to_owned(), String::clone);
                Place { spec: spec.clone(), flow_log }
            };
            self.places = Arc::new(ledger.watched().map(|(IfaceId(id), w)| (id, of(&w.spec))).collect());
        }
        self.places.clone()
    }

    /// Time until somebody who looks is to see what the caches hold.
    pub(crate) fn due_in_ns(&self, now: Now) -> u64 {
        if !self.live.is_open() && self.observed.is_empty() {
            return u64::MAX;
        }
        let sweep_in_ns = self.swept.map_or(0, |at| (at.0 + SWEEP_EVERY_NS).saturating_sub(now.mono.0));
        if self.live.0.lock().waiting.is_empty() { sweep_in_ns } else { sweep_in_ns.min(self.rests_ns(now)) }
    }

    /// Time until somebody who waits may be answered.
    fn rests_ns(&self, now: Now) -> u64 {
        self.rests_until.0.saturating_sub(now.mono.0)
    }

    /// The caches have been emptied of what somebody looks at, and so many flows gone through for somebody.
    pub(crate) fn note_look(&mut self, now: Now, flows: u64) {
        self.swept = Some(now.mono);
        let until = MonoNs(now.mono.0 + REST_NS + flows.saturating_mul(REST_PER_FLOW_NS));
        self.rests_until = self.rests_until.max(until);
    }

    /// One who waits for a beginning, if it is time: those who have come first are answered first.
    pub(crate) fn take_waiting(&self, now: Now) -> Option<Waiting> {
        let waiting = &mut self.live.0.lock().waiting;
        (self.rests_ns(now) == 0 && !waiting.is_empty()).then(|| waiting.remove(0))
    }

    /// From here on records are an observer's. It is told how much it has missed, and not waited for: if there is no room, it is tried again.
    pub(crate) fn begin(&self, number: u64) -> bool {
        !matches!(self.sender.try_send(Message::Begin(number)), Err(TrySendError::Full(_)))
    }

    /// Somebody waits on.
    pub(crate) fn put_back(&self, waiting: Waiting) {
        self.live.0.lock().waiting.insert(0, waiting);
    }
}
