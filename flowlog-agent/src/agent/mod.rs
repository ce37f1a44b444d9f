//! Wiring: one thread drains the kernel and turns windows, one encodes and spools, one uploads.
//!
//! * [`start`]: what must hold before the first hook is attached;
//! * [`kernel_source`]: the real kernel behind the pipeline's port;
//! * [`live`]: showing flows before their window ends; [`figures`]: what is counted, for monitoring;
//! * [`delivery`]: from a closed window to the store; [`ending`]: until all of it is there;
//! * [`memory`]: what a start needs, and whether it fits;
//! * [`managed`]: rules from the store, and the API's thread; [`control`]: a region's, without a kernel;
//! * [`signals`]: being asked to stop; [`service`]: what the service manager is told; [`reload`]: the configuration, read again,
//!   with what is [`around`] captures;
//! * [`trouble`]: waiting for the state directory; [`thread`]: runtimes of their own;
//! * [`error`]: what can go wrong;
//! * this file: the main loop, and the commands around it.

mod around;
pub(crate) mod control;
mod delivery;
mod ending;
mod error;
mod figures;
mod kernel_source;
mod live;
mod managed;
pub(crate) mod memory;
pub(crate) mod reload;
mod service;
mod signals;
pub(crate) mod sizing;
mod start;
mod thread;
mod trouble;

use std::{sync::Arc, time::Duration};

use delivery::{Delivery, line_names};
use ending::finish;
pub(crate) use error::AgentError;
use error::system;
use figures::Questions;
use flowlog_control::{
    api::RefusedLogins,
    metrics::{self, MetricsListener},
};
use flowlog_host::{clock, lock};
use flowlog_kernel::{
    confine::Confined,
    heap,
    netdev::{links::LinkWatch, netns},
    pins,
};
use flowlog_model::{status::Status, xdp::XdpLevel};
use flowlog_pipeline::{
    capture::{self, Inherited},
    disk::Filesystem,
    journal::replay::Pending,
    live::Live,
    spool::Spool,
};
use kernel_source::KernelSource;
use live::LiveFlows;
use managed::{Files, Managed, Orders, Served, Wanted, Watching};
pub(crate) use reload::Plan;
use reload::{Reached, Reload, Scene};
use service::Service;
use signals::{Hangups, Looks, Stop};
use start::{
    check_interfaces, check_targets, ensure_room, open_kernel, open_spool, recover, setup, state_dir,
    when_there_is_room,
};
use tokio::{sync::watch, time::MissedTickBehavior};
use trouble::Trouble;

use crate::{config::Config, log};

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
/// No store is waited for: each target is tried by the uploader, and what comes of it is in the status.
///
/// # Errors
/// Anything that makes capturing impossible; all of it is checked before the first hook is attached.
pub(crate) async fn run(plan: Plan, confined: &Confined) -> Result<(), AgentError> {
    let config = plan.config.clone();
    // Before anybody can find the process by its lock.
    let (mut stop, hangups, looks, service) = (Stop::new()?, Hangups::new()?, Looks::new()?, Service::new());
    let (fs, _lock) = state_dir(&config)?;
    let (files, watching) =
        config.manage.as_ref().map(|m| Files::open(m, Some(&config.state_dir))).transpose()?.unzip();
    let start = || begin(config.clone(), &fs, files.clone());
    let Some(begun) = when_there_is_room(&mut stop, &service, start).await? else { return Ok(()) };
    let Begun { config, spool, managed, metrics, mut capture, pending } = begun;
    // The first thread after this one is the next line's.
    confined.finish()?;
    let again = watching.map(Watching::start).transpose()?;
    heap::give_back();
    let inventory = managed.as_ref().map(Managed::inventory);
    let (s3, reached) = watch::channel(config.s3.clone());
    let buckets = Arc::new(Files::buckets(inventory.clone(), reached));
    let mut delivery = Delivery::start(&config, fs.clone(), spool, &capture, buckets.clone())?;
    delivery.inherit(&mut capture, pending)?;
    let (live, ends) = Live::new();
    if managed.is_some() {
        let names = line_names(capture.node().kernel.reasons(), delivery.marks.clone());
        capture.show(ends.start(names).map_err(system("start a thread"))?);
    }
    let shown = LiveFlows(live.clone());
    let refused = RefusedLogins::default();
    let board = managed.as_ref().map(|m| m.files().board.clone()).unwrap_or_default();
    let (orders, api, region) = match managed {
        Some(managed) => {
            let Served { orders, api, region } =
                managed.serve(buckets, delivery.reporter.subscribe(), shown, refused.clone())?;
            (orders, Some(api), region)
        }
        None => (Orders::fixed(Wanted::new(&config)), None, None),
    };
    let mut questions = Questions::new(refused, board, region);
    questions.serve(metrics)?;
    let reload = Reload::new(hangups, again, plan, Reached { fs, s3, inventory, api });
    if let Some(unknown) = capture.node().kernel.reasons().unknown() {
        tracing::warn!("this kernel has {unknown}");
    }
    if let Some(absent) = capture.node().kernel.reasons().absent() {
        tracing::warn!("this kernel has {absent}");
    }
    #[cfg(feature = "faults")]
    start::try_to_execute();
    tracing::info!(interfaces = config.captures.len(), pinned = capture.is_pinned(), "capturing");
    if let Some(words) = start::first_object(&capture) {
        tracing::info!("{words}");
    }
    service.ready();
    let status = delivery.reporter.subscribe();
    let mut around = Around { orders, live, questions, reload, looks, status, service };
    let result = main_loop(&mut capture, &mut delivery, &mut around, &mut stop).await;
    if capture.is_pinned() {
        result?;
        around.service.stopping("stopping: the capture goes on in the kernel");
        capture.drain(usize::MAX);
        capture.commit()?;
        // What was delivered since the last one: the next agent goes on knowing it.
        delivery.report(&capture, None);
        capture.leave();
        tracing::info!(
            "stopping: the capture goes on in the kernel; the next start takes it over, `flowlog detach` ends it"
        );
        return Ok(());
    }
    around.service.stopping("stopping: delivering what is captured; a further signal leaves the rest in the spool");
    // The signal that led here is being obeyed; the next one ends the waiting.
    stop.obey();
    let Around { mut questions, status, .. } = around;
    let finished = tokio::select! {
        ended = finish(capture, delivery, &mut stop) => ended,
        () = questions.answer_rest(&status) => unreachable!("it answers for ever"),
    };
    match finished {
        Err(AgentError::LeftBehind { what }) => {
            tracing::warn!("second signal: {what} are left; the next start delivers them");
            result
        }
        ended => ended.and(result),
    }
}

/// A capture that has begun, and what goes with it.
struct Begun {
    /// With what the store of flow logs adds to it.
    config: Config,
    spool: Spool,
    managed: Option<Managed>,
    /// Where figures are to be served.
    metrics: Option<MetricsListener>,
    capture: Capture,
    pending: Vec<Pending>,
}

fn begin(mut config: Config, fs: &Arc<dyn Filesystem>, files: Option<Files>) -> Result<Begun, AgentError> {
    ensure_room(&config.state_dir, &**fs)?;
    let spool = open_spool(&config, fs)?;
    check_targets(&config)?;
    let managed = match config.manage.clone().zip(files) {
        Some((manage, files)) => Some(Managed::open(&manage, files, &mut config)?),
        None => None,
    };
    let metrics = config.metrics.as_ref().map(metrics::listen).transpose()?;
    let found = recover(&**fs)?;
    check_interfaces(&config)?;
    let (mut node, head) = open_kernel(&config, &found)?;
    node.told = managed.as_ref().map(|m| m.files().interfaces.clone());
    let (capture, pending) = Capture::start(node, setup(&config), Inherited { fs: fs.clone(), found, head })?;
    Ok(Begun { config, spool, managed, metrics, capture, pending })
}

/// Ends the capture that an earlier agent left in the kernel: takes all hooks away, delivers everything, and removes
/// every pin.
///
/// # Errors
/// If that is not possible; what could not be delivered stays in the spool.
pub(crate) async fn detach(mut config: Config) -> Result<(), AgentError> {
    let (mut stop, _hangups, _looks, service) = (Stop::new()?, Hangups::new()?, Looks::new()?, Service::new());
    // Hooks are taken away wherever their interfaces are.
    config.follow_namespaces = true;
    config.enters_namespaces = true;
    // Owners get their XDP programs back.
    config.xdp = XdpLevel::Counters;
    // Of the inventory it needs the buckets.
    if let Some(manage) = &mut config.manage {
        manage.sources.clear();
    }
    // The pinned maps have the sizes that they were made with, whatever the configuration says now.
    if let Some(made) = config.pin_dir.as_deref().map(pins::made_for).transpose()?.flatten() {
        config.sizes = made.sizes;
    }
    let (fs, _lock) = state_dir(&config)?;
    let take_over = || {
        ensure_room(&config.state_dir, &*fs)?;
        let spool = open_spool(&config, &fs)?;
        let found = recover(&*fs)?;
        let (node, head) = open_kernel(&config, &found)?;
        let (capture, pending) = Capture::take_over(node, setup(&config), Inherited { fs: fs.clone(), found, head })?;
        Ok((spool, capture, pending))
    };
    let Some(taken) = when_there_is_room(&mut stop, &service, take_over).await? else {
        return Err(AgentError::LeftBehind { what: "all hooks".to_owned() });
    };
    let (spool, mut capture, pending) = taken;
    let (files, watching) = config.manage.as_ref().map(|m| Files::open(m, None)).transpose()?.unzip();
    watching.map(Watching::start).transpose()?;
    let (_s3, reached) = watch::channel(config.s3.clone());
    let buckets = Arc::new(Files::buckets(files.map(|f| f.inventory), reached));
    let mut delivery = Delivery::start(&config, fs, spool, &capture, buckets)?;
    delivery.inherit(&mut capture, pending)?;
    finish(capture, delivery, &mut stop).await
}

/// Refuses to end a capture of another network namespace: its interfaces are not to be seen from here.
///
/// # Errors
/// [`AgentError::OtherNetns`]; and if the pins cannot be read.
pub(crate) fn ensure_same_netns(config: &Config) -> Result<(), AgentError> {
    let own = netns::own().map_err(system("find the network namespace"))?.inum;
    let pinned = config.pin_dir.as_deref().map(pins::made_for).transpose()?.flatten().map(|made| made.netns_inum);
    let running = lock::holder(&config.state_dir).and_then(|pid| netns::of_process(pid).ok()).map(|n| n.inum);
    match pinned.or(running).filter(|inum| *inum != own) {
        Some(other) => Err(AgentError::OtherNetns { netns: netns::words(other) }),
        None => Ok(()),
    }
}

/// Whom the main loop hears and tells, besides the kernel and the stores.
struct Around {
    orders: Orders,
    live: Live,
    questions: Questions,
    reload: Reload,
    looks: Looks,
    /// How everything is doing, as it was reported last.
    status: watch::Receiver<Arc<Status>>,
    service: Service,
}

impl Around {
    /// What a reload acts upon.
    fn scene<'a>(&'a mut self, capture: &'a mut Capture, delivery: &'a mut Delivery) -> (&'a mut Reload, Scene<'a>) {
        let Self { orders, questions, reload, service, .. } = self;
        (reload, Scene { capture, delivery, orders, questions, service })
    }
}

async fn main_loop(
    capture: &mut Capture,
    delivery: &mut Delivery,
    around: &mut Around,
    stop: &mut Stop,
) -> Result<(), AgentError> {
    let wakeups = capture.node().ring.wakeups().map_err(system("watch the ring"))?;
    let links = LinkWatch::new(capture.node().namespaces.changes()).map_err(system("watch the interfaces"))?;
    // Interfaces may have changed between the start and this subscription.
    capture.look_at_interfaces()?;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut trouble = Trouble::default();
    loop {
        let now = clock::now();
        let deadline = Duration::from_nanos(
            capture
                .due_in_ns(now)
                .min(capture.look_in_ns(now))
                .min(capture.look_behind_in_ns(now))
                .min(capture.look_live_in_ns(now)),
        );
        tokio::select! {
            biased;
            () = stop.asked() => return Ok(()),
            woken = wakeups.next() => woken.map_err(system("watch the ring"))?,
            () = links.changed() => trouble.note(capture.look_at_interfaces().map_err(AgentError::from))?,
            () = links.neighbours_changed() => capture.neighbours_changed(),
            want = around.orders.next() => trouble.note(around.orders.begin(want, capture))?,
            came = around.reload.next() => {
                let (reload, mut scene) = around.scene(capture, delivery);
                reload.take(&came, clock::now(), &mut scene);
            }
            _ = tick.tick() => {
                capture.check_hooks();
                trouble.note(capture.look_at_xdp(clock::now()).map_err(AgentError::from))?;
                capture.look_at_hiding(clock::now());
                log::tell_repeats();
                delivery.reporter.sources(around.questions.silent_sources());
                delivery.report(capture, trouble.words());
                around.service.status(&around.status.borrow(), clock::now());
            }
            question = around.questions.next() => {
                delivery.report(capture, trouble.words());
                around.questions.answer(question, capture, delivery);
            }
            () = around.looks.next() => {
                delivery.report(capture, trouble.words());
                figures::look(capture, delivery);
            }
            ended = delivery.encoder.encoded() => ended?,
            // Whoever has come is seen to below.
            () = around.live.changed() => {}
            () = tokio::time::sleep(deadline.max(trouble.pause())) => {}
        }
        if catch_up(capture, delivery, (&mut *around, &mut trouble), stop).await? {
            return Ok(());
        }
    }
}

/// Reads the ring until it is empty, and does what follows; whether somebody has asked to stop. In a flood the ring is never empty: windows
/// turn in between.
async fn catch_up(
    capture: &mut Capture,
    delivery: &mut Delivery,
    (around, trouble): (&mut Around, &mut Trouble),
    stop: &mut Stop,
) -> Result<bool, AgentError> {
    loop {
        let taken = capture.drain(DRAIN_BATCH);
        tracing::debug!(blocks = taken, "read the ring");
        trouble.note(work(capture, delivery))?;
        loop {
            #[cfg(feature = "faults")]
            service::try_to_hang();
            around.service.alive(clock::now());
            tokio::select! {
                biased;
                // A full disk may hold up the encoder; what it has not taken is in the queue, and in the journal.
                () = stop.asked() => return Ok(true),
                sent = delivery.encode(capture) => break sent?,
                // Waiting for it is no hanging.
                () = tokio::time::sleep(TICK) => {}
            }
        }
        if around.orders.is_carried_out(capture) {
            // The status goes out before the answer, so that it is up to date for whoever asks after the answer.
            delivery.report(capture, trouble.words());
            around.orders.answer(capture);
        }
        if around.reload.is_due(capture) {
            delivery.report(capture, trouble.words());
            let (reload, mut scene) = around.scene(capture, delivery);
            reload.finish(&mut scene);
        }
        if taken < DRAIN_BATCH {
            return Ok(false);
        }
        tokio::task::yield_now().await;
        if stop.is_asked() {
            return Ok(true);
        }
    }
}

/// What follows every look into the ring. Any of it may fail and is tried again by the next call.
fn work(capture: &mut Capture, delivery: &mut Delivery) -> Result<(), AgentError> {
    capture.commit()?;
    let now = clock::now();
    capture.turn_due(now)?;
    capture.look_again(now)?;
    capture.look_behind(now)?;
    capture.look_live(now)?;
    delivery.release(capture)?;
    Ok(capture.beat(now, BEAT_NS)?)
}
