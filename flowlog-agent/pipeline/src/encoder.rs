//! The encoder: a thread that makes closed windows into durable objects, one after the other.

use std::{sync::Arc, time::Duration};

use flowlog_host::{clock, fault};
use flowlog_model::rule::Location;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::{
    encode::{self, Object, RowCounts, key::object_key},
    error::CaptureError,
    spool::Spool,
    window::{Balance, Closed, settle},
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
    pub rows: RowCounts,
    pub balance: Balance,
}

/// The dependencies of the encoder.
pub struct Tools {
    /// The name of a drop reason.
    pub reason_name: Box<dyn Fn(u16) -> Option<String> + Send>,
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
        Ok(Self { jobs: Some(jobs), room: Arc::new(Semaphore::new(flows_max)), flows_max, encoded, taken: Vec::new() })
    }

    /// Waits until closed windows have room in memory: the kernel's ring fills up meanwhile, and counts what it loses.
    ///
    /// # Errors
    /// If the thread is gone.
    pub async fn send(&self, window: Closed) -> Result<(), CaptureError> {
        let gone = CaptureError::Ended("encoder");
        let Some(jobs) = &self.jobs else { return Err(gone) };
        let flows = window.table.flow_count().min(self.flows_max);
        let permits = u32::try_from(flows).unwrap_or(u32::MAX);
        let Ok(permit) = self.room.clone().acquire_many_owned(permits).await else { return Err(gone) };
        jobs.send((window, permit)).await.or(Err(gone))
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
        let location = closed.info.rule.target.location.clone();
        let full = spool.is_full(clock::now().wall.secs());
        let (encoded, object) = encode_window(closed, full, &*tools.reason_name);
        if let Some(object) = &object {
            store(spool, &location, object);
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

/// Encodes one window; with totals only if the spool is full.
pub(crate) fn encode_window(
    closed: Closed,
    full: Option<String>,
    reason_name: &dyn Fn(u16) -> Option<String>,
) -> (Encoded, Option<Object>) {
    let Closed { info, table, truth, hook } = closed;
    let rule = info.rule.name.as_str();
    let mut settled = settle::settle(table, truth.as_ref(), hook);
    if settled.balance.difference() != (0, 0) {
        let balance = settled.balance;
        tracing::error!(rule, interface = info.interface_id, %balance, ?truth, "the books do not balance");
        for (flow, deficit) in &settled.short {
            tracing::error!(rule, interface = info.interface_id, ?flow, ?deficit, "more was refused than had passed");
        }
    }
    if let Some(why) = full {
        tracing::error!(
            rule,
            interface = info.interface_id,
            why,
            "the spool is full: this window leaves its totals only"
        );
        settled = settled.totals_only();
    }
    let balance = settled.balance;
    let (key, location) = (object_key(&info), info.rule.target.location.clone());
    let interface_id = info.interface_id.clone();
    let encoded = |rows: RowCounts| Encoded { key: key.clone(), location, interface_id, rows, balance };
    match encode::encode(&info, settled, reason_name) {
        Ok(Some(object)) => {
            let rows = object.rows;
            tracing::info!(
                rule,
                interface = info.interface_id,
                window = info.span.start_secs,
                accepted = rows.accepted,
                rejected = rows.rejected,
                skipped = rows.skipped,
                %balance,
                "window closed"
            );
            (encoded(rows), Some(object))
        }
        Ok(None) => (encoded(RowCounts::default()), None),
        Err(error) => {
            tracing::error!(%error, "window lost");
            (encoded(RowCounts::default()), None)
        }
    }
}

/// An object that cannot be made durable is tried again: until it is, its records are in the journal only.
fn store(spool: &Spool, location: &Location, object: &Object) {
    let mut tries = 0u32;
    while let Err(error) = spool.hold(location, object) {
        tries += 1;
        // The first, and then less and less often.
        if tries.is_power_of_two() {
            tracing::error!(%error, tries, "cannot spool a window; will try again");
        }
        std::thread::sleep(RETRY);
    }
}
