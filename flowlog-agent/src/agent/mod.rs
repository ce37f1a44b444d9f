//! Wiring: one thread drains the kernel and turns windows, one encodes and spools, one uploads.
//!
//! * [`capture`]: kernel, ring and windows of all watched interfaces. Synchronous;
//! * [`live`]: the kernel behind the books; [`wanted`]: which interfaces are meant;
//! * [`books`]: the order in which ring, windows and journal change;
//! * [`encoder`]: from a closed window to a durable object;
//! * [`managed`]: rules from the store, and the API's thread;
//! * [`proof`]: does each attached hook really run?
//! * [`status`]: what there is to say about every rule;
//! * this file: start-up checks, the main loop, the ways to end.

pub mod books;
pub mod capture;
pub mod encoder;
pub mod live;
pub mod managed;
pub mod proof;
#[cfg(test)]
mod simulation;
pub mod status;
pub mod wanted;

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Notify, watch},
    time::MissedTickBehavior,
};

use crate::{
    api::serve::ServeError,
    config::Config,
    control::store::RulesError,
    disk::{Filesystem, real::Disk},
    journal::{JournalError, replay::Pending},
    kernel::{KernelError, heap, pins},
    lock,
    netdev::{NetDevError, links::LinkWatch},
    spool::{Spool, SpoolError},
    types::Now,
    upload::{Progress, Store, StoreError, Stores, Uploader},
};
use capture::Capture;
use encoder::{Encoded, Encoder};
use managed::{Files, Managed, Orders};
use status::Reporter;

/// How often the ring is looked at without being woken: it then holds less than a quarter of its size.
const TICK: Duration = Duration::from_secs(2);
/// How often the journal says that the host is up: what a gap is measured from.
const BEAT_NS: u64 = 10_000_000_000;
/// Blocks taken from the ring before signals and timers get their turn: 64 Ki records.
const DRAIN_BATCH: usize = 1_024;

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
    /// Journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The state directory.
    #[error("state directory `{}`: {source}; end what uses it, or name another with `--state-dir`", path.display())]
    StateDir {
        /// The directory.
        path: PathBuf,
        /// Why it cannot be used.
        source: std::io::Error,
    },
    /// The rule store.
    #[error(transparent)]
    Rules(#[from] RulesError),
    /// The API.
    #[error(transparent)]
    Api(#[from] ServeError),
    /// A file of the configuration.
    #[error("`{}`: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why it cannot be used.
        problem: String,
    },
    /// The journal belongs to pins that are still there.
    #[error(
        "the state directory belongs to a capture that is pinned at `{}`: name that with `--pin-dir`, or end that \
         capture with `flowlog-agent detach`", dir.display()
    )]
    OtherPins {
        /// Where they are.
        dir: PathBuf,
    },
    /// No room in the kernel's maps.
    #[error(
        "all {max} places for interfaces are taken; raise `kernel.interfaces_max` and start again with `detach`, then `run`"
    )]
    NoRoom {
        /// How many there are.
        max: u16,
    },
    /// Target.
    #[error("target `{target}`: {source}")]
    Target {
        /// As configured.
        target: String,
        /// Why it cannot be used.
        source: StoreError,
    },
    /// A thread of ours ended by itself.
    #[error("the {0} ended by itself: a bug; what it had is in the state directory")]
    Ended(&'static str),
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

/// Everything between a closed window and the store.
struct Delivery {
    spool: Spool,
    encoder: Encoder,
    progress: watch::Receiver<Progress>,
    wake: Arc<Notify>,
    /// Durable objects of which the journal does not know yet.
    encoded: Vec<Encoded>,
    reporter: Reporter,
}

/// Captures until SIGTERM or SIGINT. If the capture is pinned, it goes on in the kernel for the next start; else it is
/// ended as by [`detach`].
///
/// # Errors
/// Anything that makes capturing impossible; all of it is checked before the first hook is attached.
pub async fn run(mut config: Config) -> Result<(), AgentError> {
    let mut stop = Stop::new()?;
    let (fs, _lock) = state_dir(&config)?;
    let spool = open_spool(&config, &fs)?;
    check_targets(&config).await?;
    let managed = match config.manage.clone() {
        Some(manage) => Some(Managed::open(&manage, Files::open(&manage)?, &mut config)?),
        None => None,
    };
    let inventory = managed.as_ref().map(Managed::inventory);
    let stores = Arc::new(Files::stores(inventory, config.s3.clone()));
    let found = capture::recover(&*fs)?;
    let (mut capture, pending) = Capture::start(&config, &fs, found)?;
    heap::give_back();
    let mut delivery = Delivery::start(&config, fs, spool, &capture, stores.clone())?;
    delivery.inherit(&mut capture, pending).await?;
    let mut orders = managed.map(|m| m.serve(stores, delivery.reporter.subscribe())).transpose()?;
    if let Some(unknown) = capture.reasons().unknown() {
        tracing::warn!("this kernel has {unknown}");
    }
    tracing::info!(interfaces = config.captures.len(), pinned = capture.is_pinned(), "capturing");
    let result = main_loop(&mut capture, &mut delivery, &mut orders, &mut stop).await;
    if capture.is_pinned() {
        result?;
        capture.drain(usize::MAX);
        capture.commit()?;
        tracing::info!(
            "stopping: the capture goes on in the kernel; the next start takes it over, `flowlog-agent detach` ends it"
        );
        return Ok(());
    }
    finish(capture, delivery, &mut stop).await?;
    result
}

/// Ends the capture that an earlier agent left in the kernel: takes all hooks away, delivers everything, and removes
/// every pin.
///
/// # Errors
/// If that is not possible; what could not be delivered stays in the spool.
pub async fn detach(mut config: Config) -> Result<(), AgentError> {
    let mut stop = Stop::new()?;
    // Whatever it was made with.
    if let Some(sizes) = config.pin_dir.as_deref().map(pins::sizes).transpose()?.flatten() {
        config.sizes = sizes;
    }
    let (fs, _lock) = state_dir(&config)?;
    let spool = open_spool(&config, &fs)?;
    let found = capture::recover(&*fs)?;
    let (mut capture, pending) = Capture::take_over(&config, &fs, found)?;
    let files = config.manage.as_ref().map(Files::open).transpose()?;
    let stores = Arc::new(Files::stores(files.map(|f| f.inventory), config.s3.clone()));
    let mut delivery = Delivery::start(&config, fs, spool, &capture, stores)?;
    delivery.inherit(&mut capture, pending).await?;
    finish(capture, delivery, &mut stop).await
}

/// The state directory, locked as long as the second part lives: two agents would deliver each other's files.
fn state_dir(config: &Config) -> Result<(Arc<dyn Filesystem>, std::fs::File), AgentError> {
    let failed = |source| AgentError::StateDir { path: config.state_dir.clone(), source };
    let disk = Disk::open(&config.state_dir).map_err(failed)?;
    let lock = lock::take(&config.state_dir).map_err(failed)?;
    Ok((Arc::new(disk), lock))
}

fn open_spool(config: &Config, fs: &Arc<dyn Filesystem>) -> Result<Spool, AgentError> {
    let (spool, left) = Spool::open(fs.clone(), config.spool)?;
    if left.partial > 0 {
        tracing::info!(files = left.partial, "removed files that were being written when the last agent ended");
    }
    for name in left.foreign {
        tracing::warn!(name, "this is not the spool's: left alone");
    }
    Ok(spool)
}

/// Every target must take an object before anything is attached.
async fn check_targets(config: &Config) -> Result<(), AgentError> {
    for capture in &config.captures {
        let target = &capture.rule.target;
        Spool::check(target)?;
        let failed = |source| AgentError::Target { target: target.to_string(), source };
        let store = Store::open(&target.location, &config.s3).map_err(failed)?;
        store.probe(&capture.rule.folder()).await.map_err(failed)?;
    }
    Ok(())
}

impl Delivery {
    fn start(
        config: &Config,
        fs: Arc<dyn Filesystem>,
        spool: Spool,
        capture: &Capture,
        stores: Arc<Stores>,
    ) -> Result<Self, AgentError> {
        let uploader = Uploader::new(spool.clone(), Arc::new(move |location| stores.open(location)));
        let (progress, wake) = (uploader.progress(), Arc::new(Notify::new()));
        upload_forever(uploader, wake.clone())?;
        let encoder = Encoder::start(spool.clone(), capture.reasons().clone(), config.flows_max)?;
        let reporter = Reporter::new(fs);
        Ok(Self { spool, encoder, progress, wake, encoded: Vec::new(), reporter })
    }

    /// Windows that an earlier agent had closed: encoded again, unless their object is in the spool.
    async fn inherit(&mut self, capture: &mut Capture, pending: Vec<Pending>) -> Result<(), AgentError> {
        let mut stored = Vec::new();
        for Pending { key, window, .. } in pending {
            if self.spool.has(&window.info.rule.target.location, &key)? {
                stored.push(key);
            } else {
                self.encoder.send(window).await?;
            }
        }
        if !stored.is_empty() {
            capture.done(&stored)?;
        }
        self.spool.release_all()?;
        self.wake.notify_one();
        self.encode(capture).await
    }

    /// Says how every rule is doing.
    fn report(&mut self, capture: &Capture, trouble: Option<&str>) {
        self.reporter.report(capture, &self.progress.borrow(), &self.spool, trouble);
    }

    /// Hands closed windows to the encoder.
    async fn encode(&mut self, capture: &mut Capture) -> Result<(), AgentError> {
        for window in capture.take_closed() {
            self.encoder.send(window).await?;
        }
        Ok(())
    }

    /// Lets objects be delivered that have become durable, once the journal says so.
    fn release(&mut self, capture: &mut Capture) -> Result<(), AgentError> {
        self.encoded.extend(self.encoder.take_encoded());
        if self.encoded.is_empty() {
            return Ok(());
        }
        let keys: Vec<String> = self.encoded.iter().map(|e| e.key.clone()).collect();
        capture.done(&keys)?;
        for encoded in self.encoded.drain(..) {
            self.reporter.window(&encoded);
            self.spool.release(&encoded.location, &[encoded.key])?;
        }
        self.wake.notify_one();
        Ok(())
    }
}

/// Runs the uploader on a thread of its own, which ends with the process: what it has not delivered is in the spool.
fn upload_forever(uploader: Uploader, wake: Arc<Notify>) -> Result<(), AgentError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system("start uploads"))?;
    let thread = std::thread::Builder::new().name("upload".to_owned());
    thread.spawn(move || runtime.block_on(uploader.run(wake))).map_err(system("start uploads"))?;
    Ok(())
}

async fn main_loop(
    capture: &mut Capture,
    delivery: &mut Delivery,
    orders: &mut Option<Orders>,
    stop: &mut Stop,
) -> Result<(), AgentError> {
    let wakeups = capture.wakeups().map_err(system("watch the ring"))?;
    let links = LinkWatch::new().map_err(system("watch the interfaces"))?;
    // What has changed since they were looked up.
    capture.look_at_interfaces()?;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut trouble = Trouble::default();
    loop {
        let now = Now::read();
        let deadline = Duration::from_nanos(capture.due_in_ns(now).min(capture.look_in_ns(now)));
        tokio::select! {
            biased;
            () = stop.asked() => return Ok(()),
            woken = wakeups.next() => woken.map_err(system("watch the ring"))?,
            () = links.changed() => trouble.note(capture.look_at_interfaces())?,
            want = Orders::next(orders) => {
                if let Some(orders) = orders {
                    trouble.note(orders.begin(want, capture))?;
                }
            }
            _ = tick.tick() => {
                capture.check_hooks();
                delivery.report(capture, trouble.words());
            }
            ended = delivery.encoder.encoded() => ended?,
            () = tokio::time::sleep(deadline.max(trouble.pause())) => {}
        }
        // In a flood the ring is never empty: windows turn in between.
        loop {
            let taken = capture.drain(DRAIN_BATCH);
            trouble.note(work(capture, delivery))?;
            delivery.encode(capture).await?;
            if let Some(orders) = orders.as_mut().filter(|o| o.is_carried_out(capture)) {
                // First said, then told: whoever asks now finds it.
                delivery.report(capture, trouble.words());
                orders.answer(capture);
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

/// What follows every look into the ring. Any of it may fail and is tried again by the next call.
fn work(capture: &mut Capture, delivery: &mut Delivery) -> Result<(), AgentError> {
    capture.commit()?;
    let now = Now::read();
    capture.turn_due(now)?;
    capture.look_again(now)?;
    delivery.release(capture)?;
    Ok(capture.beat(now, BEAT_NS)?)
}

/// Trouble with the state directory: it is waited for, because the kernel goes on counting.
#[derive(Default)]
struct Trouble {
    words: Option<String>,
}

impl Trouble {
    fn note(&mut self, result: Result<(), AgentError>) -> Result<(), AgentError> {
        match result {
            Ok(()) => {
                if self.words.take().is_some() {
                    tracing::info!("the state directory can be written to again");
                }
                Ok(())
            }
            Err(error @ (AgentError::Journal(_) | AgentError::Spool(_))) => {
                let words = error.to_string();
                if self.words.as_ref() != Some(&words) {
                    tracing::error!(%error, "will try again");
                }
                self.words = Some(words);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn words(&self) -> Option<&str> {
        self.words.as_deref()
    }

    /// Windows that are due and cannot be turned must not be tried without end.
    fn pause(&self) -> Duration {
        if self.words.is_some() { Duration::from_millis(200) } else { Duration::ZERO }
    }
}

/// Ends the capture, delivers everything and removes what is left; a second signal leaves objects in the spool.
async fn finish(mut capture: Capture, mut delivery: Delivery, stop: &mut Stop) -> Result<(), AgentError> {
    tracing::info!("stopping: taking the hooks away and flushing the open windows");
    capture.finish(Now::read())?;
    delivery.encode(&mut capture).await?;
    delivery.encoder.close();
    while delivery.encoder.encoded().await.is_ok() {
        delivery.release(&mut capture)?;
    }
    delivery.release(&mut capture)?;
    capture.end();
    drop(capture);
    finish_upload(&delivery, stop).await;
    Ok(())
}

/// Waits until the spool is empty, or somebody asks a second time.
async fn finish_upload(delivery: &Delivery, stop: &mut Stop) {
    let mut progress = delivery.progress.clone();
    while !delivery.spool.is_empty() {
        delivery.wake.notify_one();
        tokio::select! {
            // The uploader lives longer than this.
            _ = progress.changed() => {}
            () = stop.asked_again() => {
                let waiting = delivery.spool.entries().map_or(0, |e| e.len());
                let why = progress.borrow().trouble().unwrap_or("the store is slow").to_owned();
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
