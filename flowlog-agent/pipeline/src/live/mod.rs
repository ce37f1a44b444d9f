//! Live flows: records as they leave the kernel, for whoever looks, on their way off the capture's path.
//!
//! ```text
//! Books::drain -> Tap: copies blocks, while somebody looks -> a channel that may be full -> Hub (a thread of its own):
//!     filters, lines, sums -> a channel for each observer that may be full -> whoever shows them
//! ```
//!
//! * [`tap`]: the capture's end; what the open windows hold is shown by `capture/shown.rs`;
//! * [`hub`]: the thread in between; [`tally`]: sums of what it sees;
//! * [`line`]: what is shown of a record;
//! * this file: who is looking.
//!
//! Nothing here holds up the capture: what does not fit into a channel is lost for those who look, and counted for them. While nobody
//! looks, a block costs one look at a flag.

mod hub;
pub(crate) mod line;
pub(crate) mod tally;
pub(crate) mod tap;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, sync_channel},
    },
};

use flowlog_model::{
    MonoNs,
    live::{
        Ask, Batch, Begun, LiveError, OBSERVERS_EACH, OBSERVERS_MAX, RecentAsk, Sight, TopReport, What,
        filter::InterfaceFacts,
    },
};
use line::Place;
use tap::{Message, Tap};
use tokio::sync::{Notify, mpsc, oneshot};

/// Blocks on their way to the hub: 2 MiB, which is what one CPU's caches of the default size hold of 32,768 flows.
const BLOCKS_MAX: usize = 512;
/// Batches on their way to one observer: 1,024 lines at most, half a MiB.
const BATCHES_MAX: usize = 16;

/// What nothing else knows of the node, for lines.
pub struct LineNames {
    /// All drop reasons that the kernel has.
    pub reasons: Vec<String>,
    /// The name of a drop reason.
    pub reason: Box<dyn Fn(u16) -> Option<String> + Send + Sync>,
    /// Which rule refused: by the firewall's mark, else by the drop reason.
    pub rule: Box<dyn Fn(u32, u16) -> Option<String> + Send + Sync>,
}

/// One who is looking, as the hub knows it.
struct Observed {
    number: u64,
    ask: Ask,
    sender: mpsc::Sender<Batch>,
    lost: Arc<AtomicU64>,
}

/// Somebody waits for what the open windows hold, or for the stream to begin.
pub(crate) struct Waiting {
    pub number: u64,
    pub ask: Ask,
    pub begun: oneshot::Sender<Begun>,
}

impl Waiting {
    /// Whether flows of an interface may be among those it waits for.
    pub(crate) fn takes(&self, place: &Place) -> bool {
        self.ask.takes(place.account_id(), &place.facts())
    }
}

#[derive(Default)]
struct Observers {
    next: u64,
    all: Vec<Arc<Observed>>,
    waiting: Vec<Waiting>,
}

/// Who is looking, as all sides know it.
struct Shared {
    /// Somebody is: looked at for each block.
    is_open: AtomicBool,
    observers: Mutex<Observers>,
    /// Records that did not get as far as the hub.
    lost_records: AtomicU64,
    /// Somebody has come or gone.
    changed: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Observers> {
        self.observers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module's head.
#[derive(Clone)]
pub struct Live(Arc<Shared>);

/// The capture's end, and what the hub's thread is started with.
pub struct Ends {
    pub(crate) tap: Tap,
    hub: Receiver<Message>,
}

/// One who is looking; until it is dropped.
pub struct Observer {
    live: Live,
    number: u64,
    ask: Ask,
    lost: Arc<AtomicU64>,
    /// [`Shared::lost_records`] when it came.
    lost_before: u64,
    batches: mpsc::Receiver<Batch>,
    begun: Option<oneshot::Receiver<Begun>>,
}

impl Live {
    /// Nobody looks yet.
    #[must_use]
    pub fn new() -> (Self, Ends) {
        let (sender, hub) = sync_channel(BLOCKS_MAX);
        let live = Self(Arc::new(Shared {
            is_open: AtomicBool::new(false),
            observers: Mutex::default(),
            lost_records: AtomicU64::new(0),
            changed: Notify::new(),
        }));
        let tap = Tap::new(live.clone(), sender);
        (live, Ends { tap, hub })
    }

    /// Somebody looks from now on.
    ///
    /// # Errors
    /// [`LiveError`]: too many do.
    pub fn observe(&self, ask: Ask) -> Result<Observer, LiveError> {
        let mut observers = self.0.lock();
        if observers.all.len() >= OBSERVERS_MAX {
            return Err(LiveError::Full);
        }
        let of_contract = observers.all.iter().filter(|o| o.ask.sight == ask.sight).count();
        if matches!(ask.sight, Sight::Contract(_)) && of_contract >= OBSERVERS_EACH {
            return Err(LiveError::FullForContract);
        }
        let (sender, batches) = mpsc::channel(BATCHES_MAX);
        let (begun, begins) = oneshot::channel();
        let lost = Arc::new(AtomicU64::new(0));
        let number = observers.next;
        observers.next += 1;
        observers.all.push(Arc::new(Observed { number, ask: ask.clone(), sender, lost: lost.clone() }));
        observers.waiting.push(Waiting { number, ask: ask.clone(), begun });
        self.0.is_open.store(true, Ordering::SeqCst);
        drop(observers);
        self.0.changed.notify_one();
        let lost_before = self.0.lost_records.load(Ordering::SeqCst);
        Ok(Observer { live: self.clone(), number, ask, lost, lost_before, batches, begun: Some(begins) })
    }

    /// Waits until somebody has come or gone.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    fn is_open(&self) -> bool {
        self.0.is_open.load(Ordering::Relaxed)
    }

    fn lose(&self, records: u64) {
        self.0.lost_records.fetch_add(records, Ordering::SeqCst);
    }

    /// Which of these interfaces somebody looks at: by id, with the contract.
    pub(crate) fn wanted<'a, I>(&self, interfaces: I) -> BTreeSet<u16>
    where
        I: Iterator<Item = (u16, Option<&'a str>, InterfaceFacts<'a>)>,
    {
        let observers = self.0.lock();
        let is_wanted =
            |account: Option<&str>, of: &InterfaceFacts<'_>| observers.all.iter().any(|o| o.ask.takes(account, of));
        interfaces.filter(|(_, account, of)| is_wanted(*account, of)).map(|(id, ..)| id).collect()
    }
}

impl Observer {
    /// The beginning: what was asked for of the open windows. Once.
    pub async fn begun(&mut self) -> Begun {
        match self.begun.take() {
            // Without an answer the capture has ended.
            Some(begun) => {
                let begun = begun.await.unwrap_or_default();
                // What was lost before was not for it.
                self.lost_before = self.live.0.lost_records.load(Ordering::SeqCst);
                begun
            }
            None => Begun::default(),
        }
    }

    /// Sums of what the open windows hold now, of the flows that it has asked for: an observer looks as often as it is answered, and takes
    /// no second place for it. `None`: the capture has ended. After [`begun`](Self::begun).
    pub async fn sums(&mut self, entries: usize) -> Option<Box<TopReport>> {
        match self.ask_again(What::Top { every: None, entries }).await.ok()?.batch {
            Some(Batch::Top(report)) => Some(report),
            _ => None,
        }
    }

    /// Waits for what the open windows hold as somebody does who has just come. One answer at a time: an earlier one is given up.
    fn ask_again(&self, what: What) -> oneshot::Receiver<Begun> {
        let (begun, begins) = oneshot::channel();
        let mut observers = self.live.0.lock();
        observers.waiting.retain(|w| w.number != self.number);
        observers.waiting.push(Waiting { number: self.number, ask: Ask { what, ..self.ask.clone() }, begun });
        drop(observers);
        self.live.0.changed.notify_one();
        begins
    }

    /// What comes next; `None`: the capture has ended.
    pub async fn next(&mut self) -> Option<Batch> {
        self.batches.recv().await
    }

    /// Lines, or records, that it did not get since it came.
    #[must_use]
    pub fn lost(&self) -> u64 {
        let on_the_way = self.live.0.lost_records.load(Ordering::SeqCst) - self.lost_before;
        self.lost.load(Ordering::SeqCst) + on_the_way
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        let mut observers = self.live.0.lock();
        observers.all.retain(|o| o.number != self.number);
        observers.waiting.retain(|w| w.number != self.number);
        self.live.0.is_open.store(!observers.all.is_empty(), Ordering::SeqCst);
        drop(observers);
        self.live.0.changed.notify_one();
    }
}

impl Ends {
    /// Starts the hub; the capture's end is what is left.
    ///
    /// # Errors
    /// If there can be no thread.
    pub fn start(self, names: LineNames) -> std::io::Result<Tap> {
        let Self { mut tap, hub } = self;
        let names = Arc::new(names);
        tap.set_names(names.clone());
        let live = tap.live().clone();
        std::thread::Builder::new().name("live".to_owned()).spawn(move || hub::run(&live, &hub, &names))?;
        Ok(tap)
    }
}

/// How old a packet may be that is shown as of now: what [`RecentAsk::within`] comes to on the monotonic clock.
pub(crate) fn earliest(ask: &RecentAsk, now: MonoNs) -> u64 {
    let within = ask.within.map_or(u64::MAX, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX));
    now.0.saturating_sub(within)
}
