//! The encoder: a thread that makes closed windows into durable objects, one after the other.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use flowlog_host::{clock, fault};
use flowlog_model::rule::Location;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::{
    encode::{self, Names, Object, RowCounts, key::object_key},
    error::CaptureError,
    spool::Spool,
    window::{Balance, Closed, FlowTable, Loss, LossReason, Settled, Span, settle},
};

/// A window with more rows leaves enough freed memory behind to be worth giving back: 20 MiB.
const LARGE_WINDOW: usize = 100_000;
/// Closed windows waiting for the encoder before draining waits for it. Their flows are bounded as well, by `flows_max`.
const CLOSED_MAX: usize = 1_024;
/// Pause before an object that could not be spooled is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// A window whose object is durable, or that has none.
#[derive(Clone, Debug)]
pub struct Encoded {
    pub key: String,
    pub location: Location,
    /// Interface it is of.
    pub interface_id: String,
    /// What its key begins with.
    pub folder: String,
    /// The window.
    pub span: Span,
    pub rows: RowCounts,
    pub balance: Balance,
    pub losses: Vec<Loss>,
    /// Whether its rows, or at least its totals, could be written.
    pub is_encoded: bool,
    /// Whether its object had to be put aside, and is not delivered.
    pub is_aside: bool,
}

/// The dependencies of the encoder.
pub struct Tools {
    pub names: Names,
    /// Gives freed memory back to the system.
    pub give_back: fn(),
}

/// A closed window on its way to the encoder, with its share of the memory for flows.
type Job = (Closed, OwnedSemaphorePermit);

/// The way to the encoder and back.
pub struct Encoder {
    jobs: Option<mpsc::Sender<Job>>,
    /// One permit for each flow.
    room: Arc<Semaphore>,
    flows_max: usize,
    /// Permits that are to be taken away, and that windows still have.
    owed: usize,
    encoded: mpsc::UnboundedReceiver<Encoded>,
    taken: Vec<Encoded>,
}

impl Encoder {
    /// Starts the thread. It ends with the process: what it has not encoded is in the journal.
    ///
    /// # Errors
    /// If there can be no thread.
    pub fn start(spool: Spool, tools: Tools, flows_max: usize) -> Result<Self, CaptureError> {
        let (jobs, windows) = mpsc::channel(CLOSED_MAX);
        let (done, encoded) = mpsc::unbounded_channel();
        let thread = std::thread::Builder::new().name("encode".to_owned());
        thread
            .spawn(move || encode_windows(windows, &spool, &tools, &done))
            .map_err(|source| CaptureError::Thread { thread: "encoder", source })?;
        let flows_max = flows_max.min(Semaphore::MAX_PERMITS);
        Ok(Self {
            jobs: Some(jobs),
            room: Arc::new(Semaphore::new(flows_max)),
            flows_max,
            owed: 0,
            encoded,
            taken: Vec::new(),
        })
    }

    /// Flows that may be on their way: so many from now on. What is on its way already stays.
    pub fn limit_flows(&mut self, flows_max: usize) {
        let flows_max = flows_max.min(Semaphore::MAX_PERMITS);
        // What is still owed has never been given back.
        let (have, before) = (self.flows_max + self.owed, self.flows_max);
        self.flows_max = flows_max;
        if flows_max > have {
            self.owed = 0;
            self.room.add_permits(flows_max - have);
        } else {
            self.owed = have - flows_max;
            self.take_back();
        }
        tracing::debug!(before, flows_max, owed = self.owed, "flows on their way");
    }

    fn take_back(&mut self) {
        self.owed -= self.room.forget_permits(self.owed);
    }

    /// Takes windows from the front of a queue as long as there are any, and waits until each has room in memory: the kernel's
    /// ring fills up meanwhile, and counts what it loses. Whoever stops waiting finds the rest in the queue.
    ///
    /// # Errors
    /// If the thread is gone.
    pub async fn send_all(&mut self, queue: &mut VecDeque<Closed>) -> Result<(), CaptureError> {
        self.take_back();
        let gone = || CaptureError::Ended("encoder");
        let jobs = self.jobs.as_ref().ok_or_else(gone)?;
        while let Some(window) = queue.front() {
            let flows = window.table.flow_count().min(self.flows_max);
            let permits = u32::try_from(flows).unwrap_or(u32::MAX);
            let Ok(permit) = self.room.clone().acquire_many_owned(permits).await else { return Err(gone()) };
            let Ok(place) = jobs.reserve().await else { return Err(gone()) };
            if let Some(window) = queue.pop_front() {
                place.send((window, permit));
            }
        }
        Ok(())
    }

    /// No more windows come.
    pub fn close(&mut self) {
        self.jobs = None;
    }

    /// Waits until a window is encoded; [`take_encoded`](Self::take_encoded) has it.
    ///
    /// # Errors
    /// If the thread has ended: after [`close`](Self::close) because all is done, else by a panic.
    pub async fn encoded(&mut self) -> Result<(), CaptureError> {
        let encoded = self.encoded.recv().await.ok_or(CaptureError::Ended("encoder"))?;
        self.taken.push(encoded);
        Ok(())
    }

    /// All windows encoded since the last call.
    pub fn take_encoded(&mut self) -> Vec<Encoded> {
        while let Ok(encoded) = self.encoded.try_recv() {
            self.taken.push(encoded);
        }
        std::mem::take(&mut self.taken)
    }
}

/// Encodes and spools windows until the channel closes.
fn encode_windows(
    mut windows: mpsc::Receiver<Job>,
    spool: &Spool,
    tools: &Tools,
    done: &mpsc::UnboundedSender<Encoded>,
) {
    // The permit is given back when the window's object is in the spool.
    while let Some((closed, _permit)) = windows.blocking_recv() {
        fault::point("encode");
        let no_room = |bytes| spool.no_room(bytes, clock::now().wall.secs());
        let (mut encoded, object) = encode_window(closed, &no_room, &tools.names);
        if let Some(object) = &object {
            encoded.is_aside = store(spool, &encoded.location, object);
        }
        let large = encoded.rows.accepted + encoded.rows.rejected > LARGE_WINDOW;
        if done.send(encoded).is_err() {
            return;
        }
        drop(object);
        if large {
            (tools.give_back)();
        }
    }
}

/// Encodes one window; with totals only if that is all there is room for, or if its flows cannot be made into rows. `no_room`
/// says why there is none for an object of so many bytes.
pub(crate) fn encode_window(
    closed: Closed,
    no_room: &dyn Fn(u64) -> Option<String>,
    names: &Names,
) -> (Encoded, Option<Object>) {
    let Closed { info, table, truth, hook, .. } = closed;
    let flow_log = info.rule.name.as_str();
    let interface = info.interface_id.as_str();
    let settled = guarded(|| settle::settle(table, truth.as_ref(), hook)).unwrap_or_else(|words| {
        tracing::error!(
            flow_log,
            interface,
            words,
            "the flows of this window cannot be settled: only its counters stay"
        );
        guarded(|| settle::settle(FlowTable::default(), truth.as_ref(), hook)).unwrap_or_default()
    });
    let mut settled = settled;
    settled.note_xdp(&info.xdp);
    complain(flow_log, interface, &settled);
    let write = |settled: &Settled| {
        let written = guarded(|| encode::encode(&info, settled, names));
        written.and_then(|result| result.map_err(|error| error.to_string()))
    };
    let totals = |reason, why: &str| {
        tracing::error!(flow_log, interface, why, "this window leaves its totals only");
        let totals = settled.totals_only(reason);
        (write(&totals), totals)
    };
    let spool_full = |why: String| totals(LossReason::SpoolFull, &format!("the spool is full: {why}"));
    let (written, settled) = match no_room(0) {
        Some(why) => spool_full(why),
        None => match write(&settled) {
            Err(words) => totals(LossReason::NotEncoded, &words),
            Ok(object) => match no_room(object.as_ref().map_or(0, |o| o.bytes.len() as u64)) {
                Some(why) => spool_full(why),
                None => (Ok(object), settled),
            },
        },
    };
    let Settled { balance, losses, .. } = settled;
    let is_encoded = written.is_ok();
    let object = written.unwrap_or_else(|words| {
        tracing::error!(
            flow_log,
            interface,
            words,
            "not even the totals of this window can be encoded: it leaves no object"
        );
        None
    });
    let rows = object.as_ref().map_or_else(RowCounts::default, |o| o.rows);
    let RowCounts { accepted, rejected, skipped } = rows;
    tracing::info!(flow_log, interface, window = info.span.start_secs, accepted, rejected, skipped, %balance, "window closed");
    let encoded = Encoded {
        key: object_key(&info),
        location: info.rule.target.location.clone(),
        interface_id: info.interface_id.clone(),
        folder: info.rule.folder(),
        span: info.span,
        rows,
        balance,
        losses,
        is_encoded,
        is_aside: false,
    };
    (encoded, object)
}

/// Says what is wrong with the books of a window, if anything is.
fn complain(flow_log: &str, interface: &str, settled: &Settled) {
    let Settled { balance, short, .. } = settled;
    if balance.difference() == (0, 0) {
        return;
    }
    tracing::error!(flow_log, interface, %balance, "the books do not balance");
    for (flow, deficit) in short {
        tracing::error!(flow_log, interface, ?flow, ?deficit, "more was refused than had passed");
    }
}

/// Runs what a bug of ours may end, so that it ends nothing else; returns the words of a panic.
fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| {
        let words = payload.downcast_ref::<String>().cloned();
        words
            .or_else(|| payload.downcast_ref::<&str>().map(|s| (*s).to_owned()))
            .unwrap_or_else(|| "a panic".to_owned())
    })
}

/// Makes an object durable; returns whether it had to be put aside, because something stands in its own way. What stands in
/// everybody's, such as a full disk, is waited for: until it is gone, the records are in the journal only.
fn store(spool: &Spool, location: &Location, object: &Object) -> bool {
    let mut tries = 0u32;
    loop {
        let Err(error) = spool.hold(location, object) else { return false };
        if error.is_of_one_object()
            && let Ok(file) = spool.put_aside(location, object)
        {
            tracing::error!(key = object.key, %error, file, "cannot spool this object: put aside, and not delivered");
            return true;
        }
        tries += 1;
        // The first, and then less and less often.
        if tries.is_power_of_two() {
            tracing::error!(%error, tries, "cannot spool a window; will try again");
        }
        std::thread::sleep(RETRY);
    }
}

#[cfg(test)]
mod tests;
