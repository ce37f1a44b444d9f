//! Connections of those who want figures. When all places are taken, whoever has said nothing for the longest time gives one up: connections that
//! were opened and forgotten keep nobody from asking.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// Connections at the same time: one who scrapes has one, and there are few of them.
pub(super) const SEATS: usize = 16;

struct Taken {
    /// Requests that are being answered.
    busy: usize,
    /// When it was last used, as a number that grows.
    used: u64,
    /// It is to end.
    end: Arc<Notify>,
}

#[derive(Default)]
struct State {
    taken: BTreeMap<u64, Taken>,
    /// Grows with whatever happens.
    time: u64,
}

impl State {
    fn tick(&mut self) -> u64 {
        self.time += 1;
        self.time
    }
}

/// See the module's head.
#[derive(Clone, Default)]
pub(super) struct Seats(Arc<Mutex<State>>);

/// A place that is taken; free again when dropped.
pub(super) struct MetricsSeat {
    seats: Seats,
    number: u64,
    end: Arc<Notify>,
}

impl Seats {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Whoever panicked has changed an entry or not; each is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one; `None`: everybody is being answered.
    pub(super) fn take(&self) -> Option<MetricsSeat> {
        let mut state = self.lock();
        if state.taken.len() >= SEATS {
            let idle = state.taken.iter().filter(|(_, t)| t.busy == 0);
            let number = *idle.min_by_key(|(_, t)| t.used)?.0;
            if let Some(gone) = state.taken.remove(&number) {
                gone.end.notify_one();
            }
        }
        let number = state.tick();
        let end = Arc::new(Notify::new());
        state.taken.insert(number, Taken { busy: 0, used: number, end: end.clone() });
        Some(MetricsSeat { seats: self.clone(), number, end })
    }
}

impl MetricsSeat {
    fn change(&self, change: impl FnOnce(&mut Taken)) {
        let mut state = self.seats.lock();
        let now = state.tick();
        if let Some(taken) = state.taken.get_mut(&self.number) {
            taken.used = now;
            change(taken);
        }
    }

    /// Waits until somebody else needs it.
    pub(super) async fn needed(&self) {
        self.end.notified().await;
    }
}

impl Drop for MetricsSeat {
    fn drop(&mut self) {
        self.seats.lock().taken.remove(&self.number);
    }
}

/// A request that is being answered; until it is dropped.
pub(super) struct Answering(Arc<MetricsSeat>);

impl Answering {
    pub(super) fn new(seat: Arc<MetricsSeat>) -> Self {
        seat.change(|t| t.busy += 1);
        Self(seat)
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.change(|t| t.busy = t.busy.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_open(seat: &MetricsSeat) -> bool {
        seat.seats.lock().taken.contains_key(&seat.number)
    }

    #[test]
    fn whoever_is_silent_longest_makes_room_and_nobody_who_is_being_answered() {
        let seats = Seats::default();
        let all: Vec<Arc<MetricsSeat>> = (0..SEATS).map(|_| Arc::new(seats.take().expect("a seat"))).collect();
        // The first has asked since, the second is being answered.
        drop(Answering::new(all[0].clone()));
        let busy = Answering::new(all[1].clone());
        let _one = seats.take().expect("a seat");
        let open: Vec<bool> = all.iter().map(|seat| is_open(seat)).collect();
        assert!(!open[2] && open.iter().filter(|is| !**is).count() == 1, "{open:?}");
        let rest: Vec<MetricsSeat> = (0..SEATS - 2).map(|_| seats.take().expect("a seat")).collect();
        assert!(is_open(&all[1]) && !is_open(&all[0]));
        drop(rest);
        let working: Vec<Answering> =
            (0..SEATS - 1).map(|_| Answering::new(Arc::new(seats.take().expect("a seat")))).collect();
        assert!(seats.take().is_none(), "everybody is being answered");
        drop((busy, working));
        assert!(seats.take().is_some());
    }
}
