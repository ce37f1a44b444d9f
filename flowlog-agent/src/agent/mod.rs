//! Wiring: one thread drains the kernel and turns windows, one encodes and spools, one uploads.
//!
//! * [`start`]: what must hold before the first hook is attached;
//! * [`kernel_source`]: the real kernel behind the pipeline's port;
//! * [`delivery`]: from a closed window to the store;
//! * [`managed`]: rules from the store, and the API's thread;
//! * [`signals`]: being asked to stop;
//! * [`error`]: what can go wrong;
//! * this file: the main loop, and the ways to end.

mod delivery;
mod error;
mod kernel_source;
mod managed;
mod signals;
mod start;

use std::{sync::Arc, time::Duration};

use delivery::{Delivery, finish_upload};
pub(crate) use error::AgentError;
use error::system;
use flowlog_host::clock;
use flowlog_kernel::{heap, netdev::links::LinkWatch, pins};
use flowlog_pipeline::capture::{self, Inherited};
use kernel_source::KernelSource;
use managed::{Files, Managed, Orders};
use signals::Stop;
use start::{check_interfaces, check_targets, open_kernel, open_spool, recover, setup, state_dir};
use tokio::time::MissedTickBehavior;

use crate::config::Config;

/// The capture of the real kernel.
type Capture = capture::Capture<KernelSource>;

/// How often the ring is looked at without being woken: it then holds less than a quarter of its size.
const TICK: Duration = Duration::from_secs(2);
/// How often the journal says that the host is up: what a gap is measured from.
const BEAT_NS: u64 = 10_000_000_000;
/// Blocks taken from the ring before signals and timers get their turn: 64 Ki records.
const DRAIN_BATCH: usize = 1_024;

/// Captures until SIGTERM or SIGINT. If the capture is pinned, it goes on in the kernel for the next start; else it is
/// ended as by [`detach`].
///
/// # Errors
/// Anything that makes capturing impossible; all of it is checked before the first hook is attached.
pub(crate) async fn run(mut config: Config) -> Result<(), AgentError> {
    let mut stop = Stop::new()?;
    let (fs, _lock) = state_dir(&config)?;
    let spool = open_spool(&config, &fs)?;
    check_targets(&config).await?;
    let managed = match config.manage.clone() {
        Some(manage) => Some(Managed::open(&manage, Files::open(&manage)?, &mut config)?),
        None => None,
    };
    let inventory = managed.as_ref().map(Managed::inventory);
    let buckets = Arc::new(Files::buckets(inventory, config.s3.clone()));
    let found = recover(&*fs)?;
    check_interfaces(&config)?;
    let (node, head) = open_kernel(&config, &found)?;
    let (mut capture, pending) = Capture::start(node, setup(&config), Inherited { fs: fs.clone(), found, head })?;
    heap::give_back();
    let mut delivery = Delivery::start(&config, fs, spool, &capture, buckets.clone())?;
    delivery.inherit(&mut capture, pending).await?;
    let mut orders = managed.map(|m| m.serve(buckets, delivery.reporter.subscribe())).transpose()?;
    if let Some(unknown) = capture.node().kernel.reasons().unknown() {
        tracing::warn!("this kernel has {unknown}");
    }
    tracing::info!(interfaces = config.captures.len(), pinned = capture.is_pinned(), "capturing");
    let result = main_loop(&mut capture, &mut delivery, &mut orders, &mut stop).await;
    if capture.is_pinned() {
        result?;
        capture.drain(usize::MAX);
        capture.commit()?;
        tracing::info!(
            "stopping: the capture goes on in the kernel; the next start takes it over, `flowlog detach` ends it"
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
pub(crate) async fn detach(mut config: Config) -> Result<(), AgentError> {
    let mut stop = Stop::new()?;
    // The pinned maps have the sizes that they were made with, whatever the configuration says now.
    if let Some(sizes) = config.pin_dir.as_deref().map(pins::sizes).transpose()?.flatten() {
        config.sizes = sizes;
    }
    let (fs, _lock) = state_dir(&config)?;
    let spool = open_spool(&config, &fs)?;
    let found = recover(&*fs)?;
    let (node, head) = open_kernel(&config, &found)?;
    let (mut capture, pending) = Capture::take_over(node, setup(&config), Inherited { fs: fs.clone(), found, head })?;
    let files = config.manage.as_ref().map(Files::open).transpose()?;
    let buckets = Arc::new(Files::buckets(files.map(|f| f.inventory), config.s3.clone()));
    let mut delivery = Delivery::start(&config, fs, spool, &capture, buckets)?;
    delivery.inherit(&mut capture, pending).await?;
    finish(capture, delivery, &mut stop).await
}

async fn main_loop(
    capture: &mut Capture,
    delivery: &mut Delivery,
    orders: &mut Option<Orders>,
    stop: &mut Stop,
) -> Result<(), AgentError> {
    let wakeups = capture.node().ring.wakeups().map_err(system("watch the ring"))?;
    let links = LinkWatch::new().map_err(system("watch the interfaces"))?;
    // Interfaces may have changed between the start and this subscription.
    capture.look_at_interfaces()?;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut trouble = Trouble::default();
    loop {
        let now = clock::now();
        let deadline = Duration::from_nanos(capture.due_in_ns(now).min(capture.look_in_ns(now)));
        tokio::select! {
            biased;
            () = stop.asked() => return Ok(()),
            woken = wakeups.next() => woken.map_err(system("watch the ring"))?,
            () = links.changed() => trouble.note(capture.look_at_interfaces().map_err(AgentError::from))?,
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
                // The status goes out before the answer, so that it is up to date for whoever asks after the answer.
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
    let now = clock::now();
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
    capture.finish(clock::now())?;
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
