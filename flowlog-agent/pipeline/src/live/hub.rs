//! The thread between the capture and those who look: it filters, and makes lines and sums.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::Duration,
};

use flowlog_host::clock;
use flowlog_model::{
    MonoNs, NS_PER_SEC, Now,
    live::{Batch, FlowLine, What},
};

use tokio::sync::mpsc::error::TrySendError;

use super::{
    LineNames, Live, Observed,
    line::Seen,
    tally::Tally,
    tap::{Message, Places},
};
use crate::window::block::Records;

/// For so long in a second an observer is waited for that reads and has no room: a sweep's records come all at once. Meanwhile blocks wait in
/// the hub's own channel. Sixteen of them together cannot hold it up for good.
const PATIENCE: Duration = Duration::from_millis(50);
/// So often it is looked whether there is room by now.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// What the hub knows of one observer.
struct Served {
    of: Arc<Observed>,
    /// It has not read when it was waited for: it is not waited for again before it has.
    is_slow: bool,
    /// What is left of this second's patience, and since when that second is.
    patience: (Duration, MonoNs),
    /// Sums since the last report, if that is what it wants.
    tally: Tally,
    since: MonoNs,
}

/// Serves until the capture's end is gone.
pub(super) fn run(live: &Live, messages: &Receiver<Message>, names: &LineNames) {
    let mut hub = Hub { live, names, served: BTreeMap::new() };
    loop {
        let message = match hub.due_in() {
            None => messages.recv().map_err(|_gone| RecvTimeoutError::Disconnected),
            Some(pause) => messages.recv_timeout(pause),
        };
        match message {
            Ok(Message::Block(places, bytes)) => hub.block(&places, &bytes),
            Ok(Message::Begin(number)) => hub.begin(number),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        hub.report();
    }
    // Those who wait for more find out that there is none.
    live.0.lock().all.clear();
}

struct Hub<'a> {
    live: &'a Live,
    names: &'a LineNames,
    /// Those whose stream has begun, by number.
    served: BTreeMap<u64, Served>,
}

impl Hub<'_> {
    fn begin(&mut self, number: u64) {
        let observers = self.live.0.lock();
        if let Some(of) = observers.all.iter().find(|o| o.number == number) {
            let since = clock::now().mono;
            let served =
                Served { of: of.clone(), is_slow: false, patience: (PATIENCE, since), tally: Tally::default(), since };
            self.served.insert(number, served);
        }
    }

    fn block(&mut self, places: &Places, bytes: &[u8]) {
        self.served.retain(|_, s| !s.of.sender.is_closed());
        if self.served.is_empty() {
            return;
        }
        let now = clock::now();
        let mut lines = BTreeMap::<u64, Vec<FlowLine>>::new();
        for record in Records::parse(bytes).into_iter().flatten() {
            let Some(place) = places.get(&record.meta().iface) else { continue };
            let Some(seen) = Seen::of_record(&record, place) else { continue };
            let reason = seen.reason(self.names);
            let facts = seen.facts(place, reason.as_deref());
            for (number, served) in &mut self.served {
                let of = &served.of;
                if !of.ask.takes(place.account_id(), &place.facts()) || !of.ask.filter.takes(&facts) {
                    continue;
                }
                match of.ask.what {
                    What::Flows { .. } => {
                        let line = seen.line(place, reason.clone(), self.names, now);
                        lines.entry(*number).or_default().push(line);
                    }
                    What::Top { .. } => served.tally.add(&seen, place, reason.as_deref()),
                }
            }
        }
        for (number, lines) in lines {
            if let Some(served) = self.served.get_mut(&number) {
                served.send(Batch::Flows(lines));
            }
        }
    }

    /// Sends reports that are due.
    fn report(&mut self) {
        let now = clock::now();
        for served in self.served.values_mut() {
            let What::Top { every: Some(every), entries } = served.of.ask.what else { continue };
            if left(served.since, every, now).is_zero() {
                let interval_ms = now.mono.0.saturating_sub(served.since.0) / 1_000_000;
                let report = std::mem::take(&mut served.tally).report(entries, interval_ms, now);
                served.since = now.mono;
                served.send(Batch::Top(Box::new(report)));
            }
        }
    }

    /// Time until the next report.
    fn due_in(&self) -> Option<Duration> {
        let now = clock::now();
        let due = self.served.values().filter_map(|s| match s.of.ask.what {
            What::Top { every: Some(every), .. } => Some(left(s.since, every, now)),
            _ => None,
        });
        due.min()
    }
}

/// What is left of a stretch of time.
fn left(since: MonoNs, every: Duration, now: Now) -> Duration {
    every.saturating_sub(Duration::from_nanos(now.mono.0.saturating_sub(since.0)))
}

impl Served {
    /// Hands over what there is room for; the rest is lost, and counted.
    fn send(&mut self, mut batch: Batch) {
        let lines = if let Batch::Flows(lines) = &batch { lines.len() } else { 1 };
        let now = clock::now().mono;
        if now.0.saturating_sub(self.patience.1.0) >= NS_PER_SEC.unsigned_abs() {
            self.patience = (PATIENCE, now);
        }
        loop {
            match self.of.sender.try_send(batch) {
                Ok(()) => {
                    self.is_slow = false;
                    return;
                }
                Err(TrySendError::Closed(_)) => return,
                Err(TrySendError::Full(back)) => batch = back,
            }
            if self.is_slow || self.patience.0.is_zero() {
                break;
            }
            // There is no event that a thread without a runtime could wait for with a limit.
            std::thread::sleep(LOOK_AGAIN);
            self.patience.0 = self.patience.0.saturating_sub(LOOK_AGAIN);
        }
        self.is_slow = true;
        self.of.lost.fetch_add(lines as u64, Ordering::SeqCst);
    }
}
