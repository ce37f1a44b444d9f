//! The agent's life, again and again, and what may happen to it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex},
    time::Duration,
};

use flowlog_model::{
    CaptureSpec, HookKind, MonoNs, NS_PER_SEC, Now, WallNs,
    interface::Selector,
    live::{Ask, RecentAsk, Sight, What, filter::FlowFilter},
    rule::{Rule, Side},
};
use tokio::sync::Notify;

use super::{
    kernel::{NICS, Sent, SimKernel, mac, name},
    source::SimSource,
};
use crate::{
    books::Inherited,
    capture::{Capture, Setup},
    disk::{
        Filesystem,
        sim::{Fault, Killed, Random, SimDisk},
    },
    encode::Names,
    encode::Object,
    encoder::{Encoded, encode_window},
    error::CaptureError,
    journal::{
        self,
        entry::{FORMAT, Head},
    },
    live::{Live, Observer},
    spool::{Limits, Spool},
    upload::{
        Uploader,
        scripted::{Reply, Scripted, Shelf},
    },
    window::Closed,
};

/// Processes that trouble may befall. One more follows, which is left alone.
const LIVES: u64 = 3;
/// Steps of a life that nothing ends.
const STEPS: u64 = 16;

#[allow(clippy::struct_excessive_bools, reason = "each is a trouble of its own")]
#[derive(Clone, Copy, Debug)]
struct Weather {
    kills: bool,
    power_cuts: bool,
    disk_errors: bool,
    store_errors: bool,
    clock_steps: bool,
    small_spool: bool,
    /// Interfaces come, go, move, get other names, and cannot be hooked.
    restless: bool,
    /// Flow logs are given other names, owners and lengths while they capture.
    changing: bool,
    /// And other hooks, which sometimes cannot follow.
    parting: bool,
    full_from: Option<u64>,
}

/// What there is in the end.
pub(crate) struct Life {
    pub sent: Sent,
    /// What landed: keys and objects.
    pub contents: Vec<(String, bytes::Bytes)>,
    /// How often the power was cut.
    pub power_cuts: u64,
    /// Interfaces came and went.
    pub was_restless: bool,
    /// A start may have found hooks that could not follow.
    pub was_parting: bool,
}

/// Everything outside the agent's process.
pub(crate) struct World {
    random: Random,
    kernel: SimKernel,
    pub disk: SimDisk,
    shelf: Shelf,
    store: Scripted,
    weather: Weather,
    now: Now,
    power_cuts: u64,
    /// How often flow logs were changed.
    changes: u64,
}

struct Process {
    fs: Arc<dyn Filesystem>,
    capture: Capture<SimSource>,
    live: Live,
    /// Somebody looks at live flows.
    looking: Option<Observer>,
    spool: Spool,
    closed: Vec<Closed>,
    /// Encoded; not durable yet.
    objects: Vec<(Encoded, Option<Object>)>,
    /// Durable; the journal does not know yet.
    held: Vec<Encoded>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let weather = Weather {
            kills: !random.once_in(4),
            power_cuts: random.once_in(2),
            disk_errors: random.once_in(2),
            store_errors: random.once_in(2),
            clock_steps: random.once_in(3),
            small_spool: random.once_in(5),
            restless: random.once_in(2),
            changing: random.once_in(2),
            parting: random.once_in(2),
            full_from: None,
        };
        Self::with(seed, weather)
    }

    /// A world in which nothing goes wrong by itself.
    pub(crate) fn calm(seed: u64) -> Self {
        let weather = Weather {
            kills: false,
            power_cuts: false,
            disk_errors: false,
            store_errors: false,
            clock_steps: false,
            small_spool: false,
            restless: false,
            changing: false,
            parting: false,
            full_from: None,
        };
        Self::with(seed, weather)
    }

    /// The disk is full from the `n`th write on, until the last process.
    pub(crate) fn with_disk_full_from(mut self, n: u64) -> Self {
        self.weather.full_from = Some(n);
        self.disk.fill_from(Some(n));
        self
    }

    fn with(seed: u64, weather: Weather) -> Self {
        let mut random = Random(seed ^ 0x5eed);
        let disk = SimDisk::default();
        // The state directory itself.
        disk.make_dir("").expect("a new disk");
        let shelf = Shelf::default();
        let replies = Mutex::new(Random(random.number()));
        let script_disk = disk.clone();
        let script = move |_: &_| {
            script_disk.step();
            let mut random = replies.lock().expect("one thread");
            match random.below(4) {
                0 if weather.store_errors => Reply::Refused,
                1 if weather.store_errors => Reply::Lost,
                _ => Reply::Stored,
            }
        };
        let store = Scripted::new(&shelf, Box::new(script));
        let kernel = SimKernel::new(Random(random.number()));
        let now = Now { mono: MonoNs(1_000 * NS_PER_SEC.unsigned_abs()), wall: WallNs(1_700_000_000 * NS_PER_SEC) };
        kernel.set_now(now);
        Self { random, kernel, disk, shelf, store, weather, now, power_cuts: 0, changes: 0 }
    }

    pub(crate) fn run(mut self) -> Life {
        for _ in 0..LIVES {
            self.plan();
            let ended = catch_unwind(AssertUnwindSafe(|| self.life(false)));
            if let Err(payload) = &ended
                && !payload.is::<Killed>()
            {
                std::panic::resume_unwind(ended.expect_err("just seen"));
            }
            // An agent that ends with an error is started again, like one that was killed.
            self.disk.revive();
            self.pass(5 * NS_PER_SEC);
            self.kernel.traffic(20);
            if self.weather.power_cuts && self.random.once_in(3) {
                self.disk.power_cut(&mut self.random);
                self.power_cuts += u64::from(self.kernel.has_counted());
                self.kernel.reboot();
                self.now.mono = MonoNs(10 * NS_PER_SEC.unsigned_abs());
                self.kernel.set_now(self.now);
            }
        }
        self.disk.fill_from(None);
        self.weather.store_errors = false;
        self.store.behave();
        let was_restless = std::mem::take(&mut self.weather.restless);
        self.life(true).expect("nothing is wrong any more");
        let contents = runtime().block_on(self.shelf.contents());
        let sent = self.kernel.lock().sent.clone();
        Life { sent, contents, power_cuts: self.power_cuts, was_restless, was_parting: self.weather.parting }
    }

    /// What happens to the next process.
    fn plan(&mut self) {
        let from = self.disk.ops();
        if self.weather.kills {
            let at = from + 1 + self.random.below(900);
            self.disk.plan(at, Fault::Kill);
        }
        if self.weather.disk_errors {
            for _ in 0..self.random.below(6) {
                let errno = if self.random.once_in(2) { libc::EIO } else { libc::ENOSPC };
                let at = from + 1 + self.random.below(1_000);
                self.disk.plan(at, Fault::Error(errno));
            }
        }
    }

    fn pass(&mut self, ns: i64) {
        self.now.mono.0 += ns.unsigned_abs();
        self.now.wall.0 += ns;
        if self.weather.clock_steps && self.random.once_in(30) {
            let step = [-3_600, 3_600, -2, 2][usize::try_from(self.random.below(4)).unwrap_or(0)];
            self.now.wall.0 += step * NS_PER_SEC;
        }
        self.kernel.set_now(self.now);
        self.disk.set_now(self.now.wall.0);
    }

    /// One process from its start to its end; the last one ends the capture and delivers everything.
    fn life(&mut self, last: bool) -> Result<(), CaptureError> {
        let mut process = self.start()?;
        // Nobody says that an interface can be hooked from now on: the agent must try again by itself.
        let settled = last && self.kernel.settle();
        for step in 0..STEPS {
            let ns = i64::try_from(self.random.below(700_000_000)).unwrap_or(0);
            self.pass(ns);
            self.kernel.traffic(30);
            let restless = self.weather.restless && self.random.once_in(3);
            if restless {
                self.kernel.disturb();
            }
            let disturbed = restless || settled && step == 0;
            // Errors are waited for, as in the main loop.
            let _ = process.work(self.now, disturbed, &mut self.random);
            if self.weather.changing && self.random.once_in(5) {
                self.changes += 1;
                self.kernel.lock().parts = self.weather.parting && self.random.once_in(2);
                process.capture.take_gaps(self.random.once_in(2));
                let _ = process.capture.want(self.wanted());
            }
            if self.random.once_in(4) {
                self.upload(&process, Duration::from_secs(2));
            }
        }
        if last {
            assert_eq!(self.kernel.uncounted(), Vec::<String>::new(), "interfaces that are there and not captured");
            process.finish(self.now)?;
            self.upload(&process, Duration::from_hours(1));
            assert!(process.spool.is_empty(), "everything is delivered in the end");
            let aside = process.fs.list("quarantine").expect("nothing is wrong any more");
            assert!(aside.is_empty(), "a window came in two forms: {aside:?}");
        }
        Ok(())
    }

    fn wanted(&self) -> Vec<CaptureSpec> {
        let hook = if self.weather.parting && self.changes / 2 % 2 == 1 { HookKind::Xdp } else { HookKind::Tc };
        let of = |nic| CaptureSpec { hook, ..spec(nic, self.changes, self.weather.clock_steps) };
        NICS.map(of).to_vec()
    }

    fn start(&mut self) -> Result<Process, CaptureError> {
        let fs: Arc<dyn Filesystem> = Arc::new(self.disk.clone());
        let bytes_max = if self.weather.small_spool { 20_000 } else { 1 << 30 };
        let (spool, _) = Spool::open(fs.clone(), Limits { bytes_max, age_secs_max: u64::MAX })?;
        let found = journal::recover(&*fs)?;
        let boot = self.kernel.lock().boot;
        let head = Head { format: FORMAT, boot_id: boot.to_string(), ring_id: boot, pin_dir: None, begun: self.now };
        let source = SimSource::new(self.kernel.clone(), self.disk.clone());
        let captures = self.wanted();
        let setup = Setup { captures, node_id: "n".to_owned(), flows_max: usize::MAX };
        let (capture, pending) = Capture::start(source, setup, Inherited { fs: fs.clone(), found, head })?;
        // Nobody shows what is seen: that changes nothing for the capture.
        let (live, ends) = Live::new();
        let mut process = Process {
            fs,
            capture,
            live,
            looking: None,
            spool,
            closed: Vec::new(),
            objects: Vec::new(),
            held: Vec::new(),
        };
        process.capture.show(ends.tap);
        let mut stored = Vec::new();
        for p in pending {
            if process.spool.has(&p.window.info.rule.target.location, &p.key)? {
                stored.push(p.key);
            } else {
                process.closed.push(p.window);
            }
        }
        process.capture.done(&stored)?;
        process.spool.release_all()?;
        process.capture.look_at_interfaces()?;
        process.capture.beat(self.now, 0)?;
        Ok(process)
    }

    /// The uploader for some virtual time.
    fn upload(&mut self, process: &Process, time: Duration) {
        let store = self.store.clone();
        let mut random = Random(self.random.number());
        let uploader = Uploader::new(process.spool.clone(), Arc::new(move |_| Ok(Arc::new(store.store()))))
            .with_jitter(Box::new(move || f64::from(u16::try_from(random.below(65_536)).unwrap_or(0)) / 65_536.0));
        let wake = Arc::new(Notify::new());
        runtime().block_on(async {
            let _ = tokio::time::timeout(time, uploader.run(wake)).await;
        });
        if self.disk.is_dead() {
            std::panic::resume_unwind(Box::new(Killed));
        }
    }
}

impl Process {
    /// One turn of the main loop, and of the encoder.
    fn work(&mut self, now: Now, disturbed: bool, random: &mut Random) -> Result<(), CaptureError> {
        // The kernel tells of changes in our own namespace.
        let looked = if disturbed { self.capture.look_at_interfaces() } else { Ok(()) };
        self.capture.drain(usize::try_from(random.below(40)).unwrap_or(0));
        self.capture.commit()?;
        if random.once_in(8) {
            self.looking = if self.looking.is_none() { self.live.observe(everything()).ok() } else { None };
        }
        self.capture.look_live(now)?;
        let turned = self.capture.turn_due(now).and_then(|()| self.capture.look_again(now));
        self.closed.extend(self.capture.take_closed());
        looked.and(turned)?;
        // The encoder has its own pace.
        if !random.once_in(3) {
            self.encode(now)?;
        }
        Ok(self.capture.beat(now, 0)?)
    }

    fn encode(&mut self, now: Now) -> Result<(), CaptureError> {
        for closed in self.closed.drain(..) {
            let no_room = |bytes| self.spool.no_room(bytes, now.wall.secs());
            self.objects.push(encode_window(closed, &no_room, &Names::none()));
        }
        while let Some((encoded, object)) = self.objects.first() {
            if let Some(object) = object {
                self.spool.hold(&encoded.location, object)?;
            }
            self.held.push(self.objects.remove(0).0);
        }
        let keys: Vec<String> = self.held.iter().map(|e| e.key.clone()).collect();
        self.capture.done(&keys)?;
        for encoded in self.held.drain(..) {
            self.spool.release(&encoded.location, &[encoded.key])?;
        }
        Ok(())
    }

    fn finish(&mut self, now: Now) -> Result<(), CaptureError> {
        self.capture.finish(now)?;
        self.closed.extend(self.capture.take_closed());
        self.encode(now)?;
        self.capture.end();
        assert_eq!(self.capture.ledger().unknown_records(), 0);
        assert!(self.fs.list(journal::DIR).is_ok_and(|left| left.is_empty()), "the journal is gone");
        Ok(())
    }
}

/// The first is meant by its name, the second by its address. Each change gives them another name, owner, or length of windows, which
/// clocks that step back would not know apart.
fn spec(nic: u16, changes: u64, is_length_fixed: bool) -> CaptureSpec {
    let rule = Rule::sample(if is_length_fixed || changes.is_multiple_of(3) { 1 } else { 2 });
    let called = if changes.is_multiple_of(2) { rule.name.clone() } else { "db".parse().expect("a name") };
    CaptureSpec {
        interface: if nic == 1 { Selector::name(name(nic)) } else { Selector::mac(mac(nic)) },
        interface_id: Some(format!("nic-{nic}")),
        account_id: (changes % 5 > 2).then(|| changes.to_string()),
        hook: HookKind::Tc,
        side: Side::Host,
        wait: true,
        translations: false,
        labels: flowlog_model::Labels::default(),
        rule: Rule { nodata: false, name: called, ..rule },
        called: None,
    }
}

/// What somebody asks for who looks at all there is.
fn everything() -> Ask {
    let recent = Some(RecentAsk { last: usize::MAX, within: None });
    Ask { sight: Sight::Node, filter: FlowFilter::default(), what: What::Flows { recent, follow: true } }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime")
}
