//! The live capture: the kernel's programs and hooks behind the books, and which interfaces they watch
//! ([`interfaces`], [`numbering`]). Everything here runs on one thread.

mod interfaces;
mod numbering;

use std::{collections::BTreeMap, io, sync::Arc};

use super::{
    AgentError,
    books::{Books, Source as _, Spans},
    live::{Live, attach},
    proof::Proof,
    wanted::Absent,
};
use crate::{
    config::{self, Config},
    disk::Filesystem,
    journal::{
        self, JournalError, Recovered,
        entry::{FORMAT, Head},
        replay::Pending,
    },
    kernel::{Kernel, Pins, layout::Reasons, ring::Wakeups, sweep::Scope},
    netdev::{self, NetDev, NetDevError, netns::Netns, traffic_control::Users},
    status::CaptureState,
    types::{IfaceId, Now},
    window::{Closed, Event, Ledger, Subject},
};

/// An interface that was watched, and is not there any more.
struct Gone {
    since_secs: i64,
    /// What it was.
    subject: Subject,
}

/// Interfaces whose hooks are checked at the same time: each costs a few system calls.
const CHECKED_PER_TICK: usize = 16;

/// See the module's head.
pub struct Capture {
    books: Books<Live>,
    proofs: BTreeMap<IfaceId, Vec<Proof>>,
    flows_max: usize,
    /// What is to be captured, whether its interface is there or not.
    captures: Vec<config::Capture>,
    node_id: String,
    /// Interfaces that were watched and are gone, by id.
    gone: BTreeMap<String, Gone>,
    /// Last windows of earlier watches, by interface id: new ones must come after them.
    spans: Spans,
    /// The last look at the interfaces could not do all there was to do.
    unsettled: bool,
    /// It left some for the next one, which comes at once.
    more: bool,
    /// When it was.
    looked: Now,
    /// The interface whose hooks were checked last.
    checked: IfaceId,
    /// The last look looked for some in other namespaces.
    sought: bool,
    /// Pairs of stacked interfaces that the programs have no room for.
    unstacked: usize,
    /// Who else uses `skb->tc_index`.
    users: Option<Users>,
    /// Captures without an interface, and why, by interface id.
    absent: BTreeMap<String, Absent>,
    /// Captures whose interface is there and cannot be hooked, and why.
    troubles: BTreeMap<String, String>,
}

fn boot_id() -> Result<String, AgentError> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(super::system("read the boot id"))?;
    Ok(text.trim().to_owned())
}

impl Capture {
    /// Loads the programs, goes on where an earlier agent stopped, and watches what is configured.
    ///
    /// # Errors
    /// On the first thing that is not as configured; a capture that was not there before is not there afterwards.
    pub fn start(
        config: &Config,
        fs: &Arc<dyn Filesystem>,
        found: Recovered,
    ) -> Result<(Self, Vec<Pending>), AgentError> {
        let devices = netdev::all()?;
        let missing = |c: &&config::Capture| !c.wait && c.interface.find(&devices, None).is_none();
        if let Some(c) = config.captures.iter().find(missing) {
            let (name, others) = (c.interface.to_string(), netdev::names(&devices));
            return Err(NetDevError::NotFound { name, others }.into());
        }
        let (mut capture, pending, spans) = Self::open(config, fs, found)?;
        let first = capture.books.ledger.watched().next().is_none();
        capture.spans.extend(spans);
        let found = capture.find(devices);
        capture.stack(&found)?;
        capture.number(&found);
        for why in found.absent.values() {
            match why {
                Absent::Waiting(why) => tracing::info!("{why}"),
                Absent::Taken(why) => tracing::warn!("{why}"),
            }
        }
        let strict: Vec<String> = config.captures.iter().filter(|c| !c.wait).map(|c| c.id(&config.node_id)).collect();
        let problem = loop {
            match capture.watch_all(&found) {
                Ok(mut troubles) => {
                    let problem = strict.iter().find_map(|id| troubles.remove(id));
                    if problem.is_some() || capture.is_complete() || strict.is_empty() {
                        break problem;
                    }
                }
                Err(error) => break Some(error),
            }
        };
        if let Some(error) = problem {
            if first {
                // Nobody asked for half of it, and pins would keep it. What it has counted is in the journal.
                let _ = capture.finish(Now::read());
            }
            return Err(error);
        }
        capture.absent = found.absent;
        Ok((capture, pending))
    }

    /// Takes over what an earlier agent left in the kernel and in the journal, only to end it.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn take_over(
        config: &Config,
        fs: &Arc<dyn Filesystem>,
        found: Recovered,
    ) -> Result<(Self, Vec<Pending>), AgentError> {
        let (mut capture, pending, _) = Self::open(config, fs, found)?;
        let kernel = &mut capture.books.source.kernel;
        // Only links that we hold can be taken away in the right order.
        kernel.attach_verdict()?;
        let devices = netdev::all()?;
        for (_, w) in capture.books.ledger.watched() {
            if let Some(dev) = still_there(&devices, &w.subject) {
                attach(kernel, &w.subject, dev)?;
            }
        }
        Ok((capture, pending))
    }

    /// Everything up to, and without, deciding what is watched.
    fn open(
        config: &Config,
        fs: &Arc<dyn Filesystem>,
        found: Recovered,
    ) -> Result<(Self, Vec<Pending>, Spans), AgentError> {
        let boot_id = boot_id()?;
        refuse_other_pins(config, found.head.as_ref(), &boot_id)?;
        let netns = Netns::own().map_err(super::system("find the network namespace"))?.inum;
        let mut kernel = match &config.pin_dir {
            Some(dir) => Kernel::load_pinned(config.sizes, netns, Pins::open(dir, config.sizes)?)?,
            None => Kernel::load(config.sizes, netns)?,
        };
        let ring = kernel.take_ring()?;
        let now = Now::read();
        let head = Head { format: FORMAT, boot_id, ring_id: ring.id()?, pin_dir: config.pin_dir.clone(), begun: now };
        let (books, pending, spans) = Books::open(Live { kernel, ring }, fs, found, head, now)?;
        let capture = Self {
            books,
            proofs: BTreeMap::new(),
            flows_max: config.flows_max,
            captures: config.captures.clone(),
            node_id: config.node_id.clone(),
            gone: BTreeMap::new(),
            spans: Spans::new(),
            unsettled: false,
            more: false,
            looked: now,
            checked: IfaceId(0),
            sought: false,
            unstacked: 0,
            users: None,
            absent: BTreeMap::new(),
            troubles: BTreeMap::new(),
        };
        Ok((capture, pending, spans))
    }

    /// Names of drop reasons.
    #[must_use]
    pub fn reasons(&self) -> &Reasons {
        self.books.source.kernel.reasons()
    }

    /// Tells when the ring has filled up to its wake mark.
    pub fn wakeups(&self) -> io::Result<Wakeups> {
        self.books.source.ring.wakeups()
    }

    /// Time until the next window must be closed.
    #[must_use]
    pub fn due_in_ns(&self, now: Now) -> u64 {
        self.books.ledger.watched().map(|(_, w)| w.clock.due_in_ns(now)).min().unwrap_or(u64::MAX)
    }

    /// Takes up to `most` blocks from the ring into their windows; returns how many.
    pub fn drain(&mut self, most: usize) -> usize {
        self.books.drain(most)
    }

    /// Makes what was drained durable.
    ///
    /// # Errors
    /// If it cannot be; see [`Books::commit`].
    pub fn commit(&mut self) -> Result<(), JournalError> {
        self.books.commit()
    }

    /// Says in the journal that the host is up, if it has not for `every_ns`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn beat(&mut self, now: Now, every_ns: u64) -> Result<(), JournalError> {
        if self.books.since_beat_ns(now) < every_ns { Ok(()) } else { self.books.beat(now) }
    }

    /// Objects are durable in the spool.
    ///
    /// # Errors
    /// If the journal cannot say so.
    pub fn done(&mut self, keys: &[String]) -> Result<(), JournalError> {
        self.books.done(keys)
    }

    /// Closes every window that is due; if all together hold too many flows, the largest as well.
    ///
    /// # Errors
    /// If the kernel or the journal refuses.
    pub fn turn_due(&mut self, now: Now) -> Result<(), AgentError> {
        let ledger = &self.books.ledger;
        let crowded = ledger.flows() > self.flows_max;
        let largest = ledger.watched().max_by_key(|(_, w)| w.flows()).filter(|_| crowded).map(|(id, _)| id);
        let due: Vec<(IfaceId, bool)> = ledger
            .watched()
            .filter(|(id, w)| w.clock.is_due(now) || largest == Some(*id))
            .map(|(id, w)| (id, !w.clock.is_due(now)))
            .collect();
        let unfinished = ledger.watched().any(|(_, w)| w.closing_epoch().is_some());
        if due.is_empty() && !unfinished { Ok(()) } else { self.books.turn(&due, now, Scope::Closed) }
    }

    /// Windows closed since the last call.
    pub fn take_closed(&mut self) -> Vec<Closed> {
        let closed = self.books.take_closed();
        for window in &closed {
            self.prove(window);
        }
        closed
    }

    /// At the end of a window: was a hook by-passed all the time?
    fn prove(&mut self, window: &Closed) {
        let Some(truth) = &window.truth else { return };
        let of = |w: &crate::window::ledger::Watched| w.subject.interface_id == window.info.interface_id;
        let Some((id, w)) = self.books.ledger.watched().find(|(_, w)| of(w)) else { return };
        for proof in self.proofs.get_mut(&id).into_iter().flatten() {
            proof.window_closed(&w.subject, truth);
        }
    }

    /// Takes the hooks away and closes all windows; nothing of us stays in the kernel.
    ///
    /// # Errors
    /// If the kernel or the journal refuses.
    pub fn finish(&mut self, now: Now) -> Result<(), AgentError> {
        let ids: Vec<IfaceId> = self.books.ledger.watched().map(|(id, _)| id).collect();
        self.end_accounting(&ids, &self.devices()?);
        self.books.source.kernel.detach_all()?;
        let all: Vec<(IfaceId, bool)> = ids.iter().map(|id| (*id, false)).collect();
        self.books.turn(&all, now, Scope::All)?;
        let events: Vec<Event> = ids.iter().map(|id| Event::Unwatch { id: *id }).collect();
        self.books.record(&events)?;
        Ok(self.books.source.kernel.remove_pins()?)
    }

    /// After [`finish`](Self::finish), when all objects are delivered: removes the journal.
    pub fn end(&mut self) {
        self.books.end();
    }

    /// Whether hooks and maps outlive this process.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.books.source.kernel.is_pinned()
    }

    /// Looks whether hooks that have not been seen running yet are.
    pub fn check_hooks(&mut self) {
        // Some at a time, in turns: on most of many interfaces nothing happens for long.
        let open = |p: &(&IfaceId, &mut Vec<Proof>)| !p.1.iter().all(Proof::is_settled);
        let last = self.checked;
        let in_turn = |id: &IfaceId| (*id <= last, *id);
        let mut waiting: Vec<(&IfaceId, &mut Vec<Proof>)> = self.proofs.iter_mut().filter(open).collect();
        waiting.sort_by_key(|(id, _)| in_turn(id));
        for (id, proofs) in waiting.into_iter().take(CHECKED_PER_TICK) {
            self.checked = *id;
            let Some(w) = self.books.ledger.get(*id) else { continue };
            if let Ok(truth) = self.books.source.truth(*id, w.epoch) {
                for proof in proofs {
                    proof.look(&w.subject, &truth);
                }
            }
        }
    }

    /// How every capture is doing, by interface id.
    #[must_use]
    pub fn states(&self) -> BTreeMap<String, CaptureState> {
        let mut states: BTreeMap<String, CaptureState> = BTreeMap::new();
        for (id, why) in &self.absent {
            let state = match why {
                Absent::Taken(why) => CaptureState::Trouble { why: why.clone() },
                Absent::Waiting(why) => CaptureState::Waiting { why: why.clone() },
            };
            states.insert(id.clone(), state);
        }
        for (_, w) in self.books.ledger.watched() {
            let Subject { interface, ifindex, netns, interface_id, .. } = &w.subject;
            let (interface, netns) = (interface.clone(), netns.clone());
            states.insert(interface_id.clone(), CaptureState::Attached { interface, ifindex: *ifindex, netns });
        }
        for (id, why) in &self.troubles {
            states.insert(id.clone(), CaptureState::Trouble { why: why.clone() });
        }
        states
    }

    /// Id of a capture's interface, as in records and keys.
    #[must_use]
    pub fn id(&self, capture: &config::Capture) -> String {
        capture.id(&self.node_id)
    }

    /// What is to be captured.
    #[must_use]
    pub fn captures(&self) -> &[config::Capture] {
        &self.captures
    }

    /// The books, to look at.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.books.ledger
    }
}

/// The interface of a subject, if it is still the same one. One that is gone has taken its hooks along.
fn still_there<'a>(devices: &'a [NetDev], subject: &Subject) -> Option<&'a NetDev> {
    devices.iter().find(|dev| dev.index == subject.ifindex && dev.netns.inum == subject.netns_inum)
}

/// A journal whose ring is pinned elsewhere must not be taken for one whose ring is gone.
fn refuse_other_pins(config: &Config, head: Option<&Head>, boot_id: &str) -> Result<(), AgentError> {
    let Some(Head { boot_id: written, pin_dir: Some(dir), .. }) = head else { return Ok(()) };
    if written != boot_id || config.pin_dir.as_ref() == Some(dir) || !dir.exists() {
        return Ok(());
    }
    Err(AgentError::OtherPins { dir: dir.clone() })
}

/// Re-reads the journal of a state directory.
///
/// # Errors
/// If it cannot be read.
pub fn recover(fs: &dyn Filesystem) -> Result<Recovered, AgentError> {
    let found = journal::recover(fs)?;
    if found.torn_bytes > 0 {
        tracing::warn!(bytes = found.torn_bytes, "the journal had a torn end: cut off");
    }
    for name in &found.foreign {
        tracing::warn!(name, "this is not the journal's: left alone");
    }
    Ok(found)
}
