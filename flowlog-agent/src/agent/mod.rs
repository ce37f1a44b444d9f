//! Wiring: one task drains the kernel and turns windows, one blocking thread encodes and spools, one task uploads.
//!
//! * [`capture`]: kernel, ring and windows of all watched interfaces. Synchronous;
//! * [`proof`]: does each attached hook really run?
//! * this file: start-up checks, the main loop, shutdown.

pub mod capture;
pub mod proof;

use std::{sync::Arc, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::MissedTickBehavior,
};

use crate::{
    config::Config,
    encode::{self, EncodeError},
    kernel::{KernelError, heap, layout::Reasons},
    netdev::NetDevError,
    spool::{Spool, SpoolError},
    types::Now,
    upload::{Progress, Store, StoreError, Uploader},
    window,
};
use capture::{Capture, Closed};

/// How often the ring is looked at without being woken: it then holds less than a quarter of its size.
const TICK: Duration = Duration::from_secs(2);
/// Records taken from the ring before signals and timers get their turn.
const DRAIN_BATCH: usize = 65_536;
/// A window with more rows leaves enough freed memory behind to be worth giving back: 20 MiB.
const LARGE_WINDOW: usize = 100_000;
/// Closed windows waiting for the encoder before draining waits for it. Their flows are bounded as well, by `flows_max`.
const CLOSED_MAX: usize = 1_024;

/// What can go wrong before or while capturing.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Kernel edge.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Interface.
    #[error(transparent)]
    NetDev(#[from] NetDevError),
    /// Spool.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// Target.
    #[error("target `{target}`: {source}")]
    Target {
        /// As configured.
        target: String,
        /// Why it cannot be used.
        source: StoreError,
    },
    /// Encoding.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The operating system.
    #[error("cannot {action}: {source}")]
    System {
        /// What was attempted.
        action: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

fn system(action: &'static str) -> impl FnOnce(std::io::Error) -> AgentError {
    move |source| AgentError::System { action, source }
}

/// Captures until SIGTERM or SIGINT, then flushes, delivers and detaches.
///
/// # Errors
/// Anything that makes capturing impossible; all of it is checked before the first hook is attached.
pub async fn run(config: Config) -> Result<(), AgentError> {
    let mut stop = Stop::new()?;
    let spool = Spool::open(&config.state_dir)?;
    check_targets(&config).await?;
    let mut capture = Capture::start(&config)?;
    heap::give_back();
    tracing::info!(interfaces = config.captures.len(), "capturing");
    let uploader = Uploader::new(spool.clone(), config.s3.clone());
    let progress = uploader.progress();
    let wake = Arc::new(Notify::new());
    wake.notify_one();
    upload_forever(uploader, wake.clone())?;
    let (sender, windows) = mpsc::channel(CLOSED_MAX);
    let flows_max = config.flows_max.min(Semaphore::MAX_PERMITS);
    let closed = Encoder { sender, room: Arc::new(Semaphore::new(flows_max)), flows_max };
    let reasons = capture.reasons().clone();
    let encoder = {
        let (wake, spool) = (wake.clone(), spool.clone());
        tokio::task::spawn_blocking(move || encode_windows(windows, &spool, &reasons, &wake))
    };
    let result = main_loop(&mut capture, &closed, &mut stop).await;
    tracing::info!("stopping: taking the hooks away and flushing the open windows");
    let last = capture.finish(Now::read())?;
    drop(capture);
    for window in last {
        closed.send(window).await;
    }
    drop(closed);
    encoder.await.map_err(|e| system("encode the last windows")(std::io::Error::other(e)))?;
    result?;
    finish_upload(&spool, progress, &wake, &mut stop).await;
    Ok(())
}

/// Runs the uploader on a thread of its own, which ends with the process: what it has not delivered is in the spool.
fn upload_forever(uploader: Uploader, wake: Arc<Notify>) -> Result<(), AgentError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system("start uploads"))?;
    let thread = std::thread::Builder::new().name("upload".to_owned());
    thread.spawn(move || runtime.block_on(uploader.run(wake))).map_err(system("start uploads"))?;
    Ok(())
}

/// Every target must take an object before anything is attached.
async fn check_targets(config: &Config) -> Result<(), AgentError> {
    for capture in &config.captures {
        let target = &capture.rule.target;
        Spool::check(target)?;
        let failed = |source| AgentError::Target { target: target.to_string(), source };
        let store = Store::open(&target.location, &config.s3).map_err(failed)?;
        let name = capture.rule.name.as_str();
        let folder = target.prefix.as_ref().map_or_else(|| name.to_owned(), |p| format!("{p}/{name}"));
        store.probe(&folder).await.map_err(failed)?;
    }
    Ok(())
}

async fn main_loop(capture: &mut Capture, closed: &Encoder, stop: &mut Stop) -> Result<(), AgentError> {
    let wakeups = capture.wakeups().map_err(system("watch the ring"))?;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let deadline = Duration::from_nanos(capture.due_in_ns(Now::read()));
        tokio::select! {
            biased;
            () = stop.asked() => return Ok(()),
            woken = wakeups.next() => woken.map_err(system("watch the ring"))?,
            _ = tick.tick() => capture.check_hooks(),
            () = tokio::time::sleep(deadline) => {}
        }
        // In a flood the ring is never empty: windows turn in between.
        loop {
            let taken = capture.drain(DRAIN_BATCH);
            for window in capture.turn_due(Now::read())? {
                if !closed.send(window).await {
                    return Ok(()); // its panic is reported by the caller
                }
            }
            if taken < DRAIN_BATCH {
                break;
            }
            tokio::task::yield_now().await;
            if stop.is_asked() {
                return Ok(());
            }
        }
    }
}

/// A closed window on its way to the encoder, with its share of the memory for flows.
type Job = (Closed, OwnedSemaphorePermit);

/// The way to the encoder.
struct Encoder {
    sender: mpsc::Sender<Job>,
    /// One permit for each flow.
    room: Arc<Semaphore>,
    flows_max: usize,
}

impl Encoder {
    /// Waits until closed windows have room in memory: the kernel's ring fills up meanwhile, and counts what it loses.
    /// `false`: the encoder is gone.
    async fn send(&self, window: Closed) -> bool {
        let flows = window.table.len().min(self.flows_max);
        let permits = u32::try_from(flows).unwrap_or(u32::MAX);
        match self.room.clone().acquire_many_owned(permits).await {
            Ok(permit) => self.sender.send((window, permit)).await.is_ok(),
            Err(_) => false,
        }
    }
}

/// Encodes and spools windows until the channel closes. An object that cannot be made durable is tried again: until
/// it is, its records exist only here.
fn encode_windows(mut windows: mpsc::Receiver<Job>, spool: &Spool, reasons: &Reasons, wake: &Notify) {
    let name = |index: u16| reasons.name(index).map(str::to_owned);
    // The permit is given back when the window's object is in the spool.
    while let Some((closed, _permit)) = windows.blocking_recv() {
        let Closed { info, table, truth } = closed;
        let settled = window::settle::settle(table, &truth);
        let balance = settled.balance;
        let difference = balance.difference();
        if difference != (0, 0) {
            tracing::error!(rule = info.rule.name.as_str(), interface = info.interface_id, %balance, ?truth, "the books do not balance");
        }
        let object = match encode::encode(&info, settled, &name) {
            Ok(Some(object)) => object,
            Ok(None) => continue,
            Err(error) => {
                tracing::error!(%error, "window lost");
                continue;
            }
        };
        let rows = object.rows;
        tracing::info!(
            rule = info.rule.name.as_str(),
            interface = info.interface_id,
            window = info.span.start_secs,
            accepted = rows.accepted,
            rejected = rows.rejected,
            skipped = rows.skipped,
            %balance,
            "window closed"
        );
        while let Err(error) = spool.store(&info.rule.target.location, &object) {
            tracing::error!(%error, "cannot spool a window; will try again");
            std::thread::sleep(Duration::from_secs(1));
        }
        wake.notify_one();
        if rows.accepted + rows.rejected > LARGE_WINDOW {
            drop(object);
            heap::give_back();
        }
    }
}

/// Waits until the spool is empty, or somebody asks a second time.
async fn finish_upload(spool: &Spool, mut progress: watch::Receiver<Progress>, wake: &Notify, stop: &mut Stop) {
    loop {
        let waiting = spool.entries().map_or(0, |entries| entries.len());
        if waiting == 0 {
            return;
        }
        wake.notify_one();
        tokio::select! {
            // The uploader lives longer than this.
            _ = progress.changed() => {}
            () = stop.asked_again() => {
                let why = progress.borrow().last_error.clone().unwrap_or_else(|| "the store is slow".to_owned());
                tracing::warn!(waiting, why, "second signal: leaving objects in the spool; the next start delivers them");
                return;
            }
        }
    }
}

/// SIGTERM and SIGINT.
struct Stop {
    count: watch::Receiver<u32>,
}

impl Stop {
    fn new() -> Result<Self, AgentError> {
        let (sender, count) = watch::channel(0);
        let mut term = signal(SignalKind::terminate()).map_err(system("handle SIGTERM"))?;
        let mut int = signal(SignalKind::interrupt()).map_err(system("handle SIGINT"))?;
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = term.recv() => {}
                    _ = int.recv() => {}
                }
                sender.send_modify(|n| *n += 1);
            }
        });
        Ok(Self { count })
    }

    fn is_asked(&self) -> bool {
        *self.count.borrow() > 0
    }

    async fn asked(&mut self) {
        // The sender lives as long as the runtime.
        let _ = self.count.wait_for(|n| *n >= 1).await;
    }

    async fn asked_again(&mut self) {
        let _ = self.count.wait_for(|n| *n >= 2).await;
    }
}
