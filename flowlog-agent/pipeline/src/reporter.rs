//! Says how every rule is doing: to whoever listens, and in `status.json` in the state directory, for when no agent runs, and for the next
//! one, which goes on knowing what was delivered last and what the last window came to.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use flowlog_host::clock;
use flowlog_model::{
    CaptureSpec,
    figures::Look,
    rule::Rule,
    status::{
        CaptureState, Counts, DeliveredObject, Leaving, Losses, RouteState, RouteStatus, RuleStatus, Status,
        WindowBooks, XdpStatus,
    },
};
use serde::Serialize;
use tokio::sync::watch;

use crate::{
    capture::Capture,
    disk::{self, Filesystem},
    encode::key::{stem, stem_of},
    encoder::Encoded,
    source::Node,
    spool::Spool,
    upload::{self, Progress, Route},
    window::{LossReason, ledger::Watched},
};

/// Name of the file.
pub const FILE: &str = "status.json";
/// Name of the file with [`Look`]: written when somebody asks.
pub const LOOK_FILE: &str = "live.json";

/// Writes the file when something has changed.
pub struct Reporter {
    fs: Arc<dyn Filesystem>,
    /// By what keys begin with, and interface: what its closed windows have come to.
    closed: BTreeMap<(String, String), ClosedWindows>,
    /// What an earlier agent knew last.
    known: BTreeMap<Captured, Known>,
    /// Where the objects of the rules go that were said last, in their order.
    routes: Vec<(Route, String)>,
    node_id: String,
    /// Sources of the inventory that do not answer.
    sources: Vec<String>,
    /// What is done before the end, once there is one.
    stopping: Option<String>,
    written: Status,
    said: watch::Sender<Arc<Status>>,
}

impl Reporter {
    /// Reports into a state directory.
    #[must_use]
    pub fn new(fs: Arc<dyn Filesystem>) -> Self {
        // It is no promise: without it, or if it is of an agent that wrote another one, nothing is known.
        let earlier: Option<Status> =
            disk::read(&*fs, "", FILE).ok().and_then(|json| serde_json::from_slice(&json).ok());
        let known = earlier.into_iter().flat_map(|status| status.rules).map(|r| (Captured::of(&r), Known::of(r)));
        let known = known.collect();
        Self {
            fs,
            closed: BTreeMap::new(),
            known,
            routes: Vec::new(),
            node_id: String::new(),
            sources: Vec::new(),
            stopping: None,
            written: Status::default(),
            said: watch::Sender::default(),
        }
    }

    /// These sources of the inventory do not answer.
    pub fn sources(&mut self, silent: Vec<String>) {
        self.sources = silent;
    }

    /// From now on it is said that the agent is about to end. It does not look when it is asked any more.
    pub fn stop(&mut self, words: &str) {
        self.stopping = Some(words.to_owned());
    }

    /// What was said last.
    #[must_use]
    pub fn said(&self) -> Status {
        self.written.clone()
    }

    /// What was said last, and later.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Status>> {
        self.said.subscribe()
    }

    /// A window has been encoded.
    pub fn window(&mut self, encoded: &Encoded) {
        let of = (encoded.folder.clone(), encoded.interface_id.clone());
        let ClosedWindows { counts, last } = self.closed.entry(of).or_default();
        *last = Some(encoded.balance.books(&encoded.span));
        counts.windows += 1;
        counts.accepted_packets += encoded.balance.accepted_rows.packets;
        counts.rejected_packets += encoded.balance.rejected_rows.packets;
        counts.lost_packets += encoded.balance.lost.packets;
        counts.accepted_rows += encoded.rows.accepted as u64;
        counts.rejected_rows += encoded.rows.rejected as u64;
        counts.skipped_rows += encoded.rows.skipped as u64;
        let (difference, _) = encoded.balance.difference();
        counts.difference_packets += u64::try_from(difference.unsigned_abs()).unwrap_or(u64::MAX);
        for loss in &encoded.losses {
            *count_of(&mut counts.losses, loss.reason) += loss.count.packets;
        }
        counts.xdp_dropped_packets += encoded.balance.xdp_dropped.packets;
        counts.xdp_forwarded_packets += encoded.balance.xdp_forwarded.packets;
        counts.windows_put_aside += u64::from(encoded.is_aside);
        counts.windows_without_object += u64::from(!encoded.is_encoded);
    }

    /// Says how things are, if that is anything new. That the file cannot be written is no reason to stop.
    pub fn report<N: Node>(&mut self, capture: &Capture<N>, progress: &Progress, spool: &Spool, trouble: Option<&str>) {
        let now_secs = clock::now().wall.secs();
        let mut captured = capture.states();
        let watched: BTreeMap<&str, &Watched> =
            capture.ledger().watched().map(|(_, w)| (w.spec.interface_id.as_str(), w)).collect();
        let mut deliveries = Deliveries::of(progress, spool);
        let wanted: BTreeSet<(String, String)> =
            capture.captures().iter().map(|c| (c.rule.folder(), capture.id(c))).collect();
        self.closed.retain(|of, _| wanted.contains(of));
        let of = |c: &CaptureSpec| (route_of(&c.rule), stem(&capture.id(c), capture.node_id()));
        self.routes = capture.captures().iter().map(of).collect();
        capture.node_id().clone_into(&mut self.node_id);
        let rules = capture.captures().iter().map(|c| {
            let rule = &c.rule;
            let interface_id = capture.id(c);
            let w = watched.get(interface_id.as_str());
            let state = captured.remove(&interface_id).unwrap_or_default();
            let is_attached = matches!(state, CaptureState::Attached { .. });
            let closed = self.closed.get(&(rule.folder(), interface_id.clone())).copied().unwrap_or_default();
            let status = RuleStatus {
                rule: c.name().to_owned(),
                direction: rule.directions.as_str().to_owned(),
                action: rule.action.as_str().to_owned(),
                rule_id: rule.id,
                node: None,
                also_on: Vec::new(),
                not_understood: None,
                interface: w.map(|w| w.spec.interface.clone()).unwrap_or_default(),
                capture: state,
                hook: c.hook.as_str().to_owned(),
                since_secs: w.filter(|_| is_attached).map(|w| w.since_secs),
                target: rule.target.to_string(),
                window_start: w.map_or(0, |w| w.clock.current().start_secs),
                flows: w.map_or(0, |w| w.flows()),
                counts: closed.counts,
                last_window: closed.last,
                delivery: deliveries.take(route_of(rule), stem(&interface_id, capture.node_id())),
                xdp: w.map(|w| xdp_of(w)).unwrap_or_default(),
                hiding: capture.hiding(&interface_id),
                interface_id,
            };
            match self.known.get(&Captured::of(&status)) {
                Some(known) => known.added_to(status),
                None => status,
            }
        });
        let status = Status {
            written_secs: self.written.written_secs,
            pid: std::process::id(),
            rules: rules.collect(),
            spool_bytes: spool.bytes(),
            spool_full: spool.is_full(now_secs),
            trouble: trouble.map(str::to_owned),
            quarantined: deliveries.aside.values().sum(),
            leaving: deliveries.left(capture.node_id()),
            sources: self.sources.clone(),
            stopping: self.stopping.clone(),
            looks_when_asked: self.stopping.is_none(),
        };
        self.say(status, now_secs);
    }

    /// Says how the delivery of what is left is doing, when there is no capture any more.
    pub fn report_rest(&mut self, progress: &Progress, spool: &Spool) {
        let now_secs = clock::now().wall.secs();
        let mut deliveries = Deliveries::of(progress, spool);
        let mut status = self.written.clone();
        for (rule, (route, stem)) in status.rules.iter_mut().zip(&self.routes) {
            let last = rule.delivery.last_object.take();
            rule.delivery = deliveries.take(route.clone(), stem.clone());
            rule.delivery.last_object = rule.delivery.last_object.take().or(last);
        }
        status.spool_bytes = spool.bytes();
        status.spool_full = spool.is_full(now_secs);
        status.quarantined = deliveries.aside.values().sum();
        status.leaving = deliveries.left(&self.node_id);
        (status.stopping, status.looks_when_asked) = (self.stopping.clone(), self.stopping.is_none());
        self.say(status, now_secs);
    }

    fn say(&mut self, mut status: Status, now_secs: i64) {
        if status == self.written {
            return;
        }
        status.written_secs = now_secs;
        if let Err(error) = self.write(FILE, &status) {
            tracing::debug!(%error, "cannot write the status file");
        }
        self.written = status;
        self.said.send_replace(Arc::new(self.written.clone()));
    }

    /// Says what is counted at this moment.
    ///
    /// # Errors
    /// If the file cannot be written: whoever asked waits in vain, and shows what there is.
    pub fn look(&self, look: &Look) -> std::io::Result<()> {
        self.write(LOOK_FILE, look)
    }

    fn write(&self, name: &str, what: &impl Serialize) -> std::io::Result<()> {
        let json = serde_json::to_vec_pretty(what).map_err(std::io::Error::other)?;
        let partial = format!("{name}.partial");
        // Not synced: after a power cut nobody wants to know what it said.
        self.fs.create("", &partial)?.append(&json)?;
        self.fs.rename(("", &partial), ("", name))
    }
}

/// Where the packets of a reason are counted.
fn count_of(losses: &mut Losses, reason: LossReason) -> &mut u64 {
    match reason {
        LossReason::RingFull => &mut losses.ring_full,
        LossReason::Malformed => &mut losses.malformed,
        LossReason::VerdictUnknown => &mut losses.verdict_unknown,
        LossReason::SpoolFull => &mut losses.spool_full,
        LossReason::NotEncoded => &mut losses.not_encoded,
    }
}

/// What closed windows have come to since the start of the agent.
#[derive(Clone, Copy, Default)]
struct ClosedWindows {
    counts: Counts,
    last: Option<WindowBooks>,
}

/// What tells a rule on an interface from others, in every status: another one of the same name is not the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Captured {
    rule: String,
    interface_id: String,
    target: String,
}

impl Captured {
    fn of(status: &RuleStatus) -> Self {
        // The name of a managed one can change.
        let rule = status.rule_id.map_or_else(|| status.rule.clone(), |id| id.to_string());
        Self { rule, interface_id: status.interface_id.clone(), target: status.target.clone() }
    }
}

/// What is known of a rule on an interface from an earlier agent.
#[derive(Clone, Debug)]
struct Known {
    last_object: Option<DeliveredObject>,
    last_window: Option<WindowBooks>,
}

impl Known {
    fn of(status: RuleStatus) -> Self {
        Self { last_object: status.delivery.last_object, last_window: status.last_window }
    }

    /// Where there is nothing newer, this is the last.
    fn added_to(&self, mut status: RuleStatus) -> RuleStatus {
        status.delivery.last_object = status.delivery.last_object.or_else(|| self.last_object.clone());
        status.last_window = status.last_window.or(self.last_window);
        status
    }
}

/// Other people's XDP programs on an interface.
fn xdp_of(w: &Watched) -> XdpStatus {
    XdpStatus { programs: w.xdp.programs().to_vec(), uncounted: w.xdp.uncounted(), view: w.xdp.view() }
}

/// The route of a rule.
fn route_of(rule: &Rule) -> Route {
    Route { store: rule.target.location.to_string(), folder: rule.folder() }
}

/// What goes where, by route and interface; what no capture asks for is left.
struct Deliveries<'a> {
    progress: &'a Progress,
    left: BTreeMap<(Route, String), RouteStatus>,
    /// Objects that were put aside.
    aside: BTreeMap<(Route, String), usize>,
}

impl<'a> Deliveries<'a> {
    fn of(progress: &'a Progress, spool: &Spool) -> Self {
        let mut aside = BTreeMap::new();
        // That it cannot be listed is in the log of whoever delivers.
        for entry in spool.aside().unwrap_or_default() {
            *aside.entry((upload::route(&entry), stem_of(&entry.key).to_owned())).or_default() += 1;
        }
        Self { progress, left: progress.interfaces.clone(), aside }
    }

    /// How the objects of an interface are doing. The state is that of their store, and so are failures.
    fn take(&mut self, route: Route, stem: String) -> RouteStatus {
        let of_route = self.progress.routes.get(&route);
        let state = of_route.map(|r| r.state.clone()).unwrap_or_default();
        let failures = of_route.map_or(0, |r| r.failures);
        let key = (route, stem);
        let own = self.left.remove(&key).unwrap_or_default();
        let state = match state {
            RouteState::Idle | RouteState::Delivering if own.delivered == 0 => RouteState::Idle,
            other => other,
        };
        let quarantined = self.aside.get(&key).copied().unwrap_or_default() as u64;
        RouteStatus { state, quarantined, failures, ..own }
    }

    /// What is still waiting and was not asked for.
    fn left(mut self, node_id: &str) -> Vec<Leaving> {
        let waiting: Vec<(Route, String)> =
            self.left.iter().filter(|(_, status)| status.waiting > 0).map(|(key, _)| key.clone()).collect();
        let leaving = |(route, stem): (Route, String)| {
            let interface_id = stem.strip_suffix(&format!("_{node_id}")).unwrap_or(&stem).to_owned();
            let store = route.store.clone();
            let folder = route.folder.clone();
            Leaving { store, folder, interface_id, delivery: self.take(route, stem) }
        };
        waiting.into_iter().map(leaving).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        disk::real::Disk,
        encode::{Object, RowCounts},
        spool::Limits,
    };

    #[test]
    fn each_interface_has_its_own_objects_and_what_nobody_asks_for_is_leaving() {
        let dir = tempfile::tempdir().expect("tempdir");
        let open = || Spool::open(Arc::new(Disk::open(dir.path()).expect("disk")), Limits::default()).expect("open").0;
        let bucket = flowlog_model::rule::Location::Bucket("flows".to_owned());
        let key = "web/year=2026/nic-a_n_20261123T141000Z_0.parquet".to_owned();
        let object = Object { key, bytes: b"parquet".to_vec(), rows: RowCounts::default() };
        open().put_aside(&bucket, &object).expect("aside");
        let route = |folder: &str| Route { store: "s3://flows".to_owned(), folder: folder.to_owned() };
        let web = route("web");
        let old = route("old");
        let of = |delivered, waiting| RouteStatus { delivered, waiting, ..RouteStatus::default() };
        let mut progress = Progress::default();
        let delivering = RouteStatus { state: RouteState::Delivering, ..RouteStatus::default() };
        let state = RouteState::Blocked { since_secs: 1, tries: 1, error: "gone".to_owned() };
        progress.routes = [(web.clone(), delivering), (old.clone(), RouteStatus { state, ..of(9, 3) })].into();
        progress.interfaces = [
            ((web.clone(), "nic-a_n".to_owned()), of(2, 0)),
            ((old.clone(), "nic-b_n".to_owned()), of(9, 3)),
            ((old, "nic-c_n".to_owned()), of(9, 0)),
        ]
        .into();
        // Of an earlier agent as well.
        let mut deliveries = Deliveries::of(&progress, &open());
        let a = deliveries.take(web.clone(), "nic-a_n".to_owned());
        assert_eq!((a.state, a.delivered, a.quarantined), (RouteState::Delivering, 2, 1));
        let b = deliveries.take(web, "nic-b_n".to_owned());
        assert_eq!((b.state, b.delivered, b.quarantined), (RouteState::Idle, 0, 0), "nothing of it was delivered");
        let left = deliveries.left("n");
        assert_eq!(left.len(), 1);
        assert_eq!((left[0].folder.as_str(), left[0].interface_id.as_str()), ("old", "nic-b"));
        assert!(left[0].delivery.waiting == 3 && left[0].delivery.state.error() == Some("gone"));
    }

    #[test]
    fn when_the_capture_has_ended_it_is_said_what_is_left_and_that_the_agent_is_ending() {
        let dir = tempfile::tempdir().expect("tempdir");
        let disk: Arc<dyn Filesystem> = Arc::new(Disk::open(dir.path()).expect("disk"));
        let (spool, _) = Spool::open(disk.clone(), Limits::default()).expect("open");
        let mut reporter = Reporter::new(disk);
        let web = Route { store: "s3://flows".to_owned(), folder: "web".to_owned() };
        let object = DeliveredObject { key: "last".to_owned(), bytes: 41, at_secs: 7 };
        let mut rule = RuleStatus { rule: "web".to_owned(), ..RuleStatus::default() };
        rule.delivery = RouteStatus { waiting: 1, last_object: Some(object.clone()), ..RouteStatus::default() };
        reporter.written = Status { rules: vec![rule], looks_when_asked: true, ..Status::default() };
        reporter.routes = vec![(web.clone(), "nic-a_n".to_owned())];
        "n".clone_into(&mut reporter.node_id);
        let waiting = |waiting| RouteStatus { waiting, ..RouteStatus::default() };
        let old = Route { folder: "old".to_owned(), ..web.clone() };
        let progress = Progress {
            interfaces: [((web, "nic-a_n".to_owned()), waiting(5)), ((old, "nic-b_n".to_owned()), waiting(2))].into(),
            ..Progress::default()
        };
        reporter.stop("delivering");
        reporter.report_rest(&progress, &spool);
        let json = std::fs::read(dir.path().join(FILE)).expect("the file");
        let said: Status = serde_json::from_slice(&json).expect("a status");
        assert_eq!((said.stopping.as_deref(), said.looks_when_asked), (Some("delivering"), false));
        assert_eq!((said.rules[0].delivery.waiting, &said.rules[0].delivery.last_object), (5, &Some(object)));
        assert_eq!((said.leaving[0].interface_id.as_str(), said.leaving[0].delivery.waiting), ("nic-b", 2));
        reporter.report_rest(&Progress::default(), &spool);
        assert!(reporter.said().leaving.is_empty() && reporter.said().rules[0].delivery.waiting == 0);
    }

    #[test]
    fn what_was_last_stays_known_of_the_same_rule_on_the_same_interface_until_there_is_something_newer() {
        let dir = tempfile::tempdir().expect("tempdir");
        let open = || Reporter::new(Arc::new(Disk::open(dir.path()).expect("disk")));
        let object = |key: &str| Some(DeliveredObject { key: key.to_owned(), bytes: 41, at_secs: 7 });
        let window = |seen_packets| Some(WindowBooks { seen_packets, ..WindowBooks::default() });
        let rule = |rule_id: Option<u128>, name: &str| RuleStatus {
            rule: name.to_owned(),
            rule_id: rule_id.map(|id| flowlog_model::FlowLogId(uuid::Uuid::from_u128(id))),
            interface_id: "nic-a".to_owned(),
            target: "s3://flows".to_owned(),
            ..RuleStatus::default()
        };
        let mut known = rule(Some(1), "web");
        (known.delivery.last_object, known.last_window) = (object("old"), window(5));
        let earlier = open();
        assert!(earlier.known.is_empty(), "there was none");
        earlier.write(FILE, &Status { rules: vec![known], ..Status::default() }).expect("write");
        let reporter = open();
        let said = |status: RuleStatus| {
            let known = reporter.known.get(&Captured::of(&status));
            let status = known.map_or_else(|| status.clone(), |k| k.added_to(status.clone()));
            (status.delivery.last_object.map(|o| o.key), status.last_window.map(|w| w.seen_packets))
        };
        assert_eq!(said(rule(Some(1), "renamed")), (Some("old".to_owned()), Some(5)));
        assert_eq!(said(rule(Some(2), "web")), (None, None), "a new one of the same name");
        let mut newer = rule(Some(1), "web");
        newer.delivery.last_object = object("new");
        assert_eq!(said(newer), (Some("new".to_owned()), Some(5)));
        std::fs::write(dir.path().join(FILE), b"{").expect("write");
        assert!(open().known.is_empty(), "it cannot be read: nothing is known, and nothing ends");
    }
}
