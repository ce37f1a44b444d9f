//! Everything between a closed window and the store: the encoder, the spool, the uploads.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, PoisonError, RwLock},
};

use flowlog_kernel::{Reasons, heap};
use flowlog_pipeline::{
    disk::Filesystem,
    encode::Names,
    encoder::{Encoded, Encoder, Tools},
    journal::replay::Pending,
    live::LineNames,
    reporter::Reporter,
    spool::Spool,
    upload::{Buckets, Progress, Uploader},
    window::Closed,
};
use tokio::sync::{Notify, watch};

use super::{Capture, error::AgentError, thread};
use crate::config::Config;

/// Names of the operator's rules by their marks, for those who make rows and lines; a reload changes them.
#[derive(Clone, Default)]
pub(super) struct MarkNames(Arc<RwLock<BTreeMap<u32, String>>>);

impl MarkNames {
    /// These, from now on.
    pub(super) fn are(&self, names: BTreeMap<u32, String>) {
        // Whoever panicked has replaced them or not.
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = names;
    }

    fn get(&self, mark: u32) -> Option<String> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&mark).cloned()
    }
}

/// What drop reasons are called, and what refused a flow: the rule that is known by the mark, else the part of the kernel.
fn names(reasons: Reasons, marks: MarkNames) -> Names {
    let of_rules = reasons.clone();
    Names {
        reason: Box::new(move |index| reasons.name(index).map(str::to_owned)),
        rule: Box::new(move |info, flow| {
            if let Some(name) = marks.get(flow.mark) {
                return Some(name);
            }
            let subsystem = of_rules.subsystem(flow.reason)?;
            let programs: &[String] = match subsystem {
                "tc" => &info.foreign.tc[flow.direction.index()],
                "xdp" => &info.foreign.xdp,
                _ => &[],
            };
            // Of several nobody knows which it was.
            let separator = if programs.is_empty() { "" } else { ":" };
            Some(format!("{subsystem}{separator}{}", programs.join("+")))
        }),
    }
}

/// The same, for live flows: who else was at the hooks is not known of them.
pub(super) fn line_names(reasons: &Reasons, marks: MarkNames) -> LineNames {
    let (of_rules, reasons) = (reasons.clone(), reasons.clone());
    LineNames {
        reasons: reasons.names().map(str::to_owned).collect(),
        reason: Box::new(move |index| reasons.name(index).map(str::to_owned)),
        rule: Box::new(move |mark, reason| marks.get(mark).or_else(|| of_rules.subsystem(reason).map(str::to_owned))),
    }
}

/// See the module's head.
pub(super) struct Delivery {
    pub(super) spool: Spool,
    pub(super) encoder: Encoder,
    pub(super) progress: watch::Receiver<Progress>,
    pub(super) wake: Arc<Notify>,
    /// Closed windows on their way to the encoder.
    queue: VecDeque<Closed>,
    /// Durable objects of which the journal does not know yet.
    encoded: Vec<Encoded>,
    pub(super) reporter: Reporter,
    /// What rules are called, by their marks.
    pub(super) marks: MarkNames,
}

impl Delivery {
    pub(super) fn start(
        config: &Config,
        fs: Arc<dyn Filesystem>,
        spool: Spool,
        capture: &Capture,
        buckets: Arc<Buckets>,
    ) -> Result<Self, AgentError> {
        let mut uploader = Uploader::new(spool.clone(), Arc::new(move |location| buckets.open(location)));
        for capture in &config.captures {
            uploader.probe(&capture.rule);
        }
        let progress = uploader.progress();
        let wake = Arc::new(Notify::new());
        let woken = wake.clone();
        // What it has not delivered is in the spool.
        thread::with_a_runtime("upload", || uploader.run(woken))?;
        let reasons = capture.node().kernel.reasons().clone();
        let marks = MarkNames::default();
        marks.are(config.marks.names.clone());
        let names = names(reasons, marks.clone());
        let tools = Tools { names, give_back: heap::give_back };
        let encoder = Encoder::start(spool.clone(), tools, config.flows_max)?;
        let reporter = Reporter::new(fs);
        Ok(Self { spool, encoder, progress, wake, queue: VecDeque::new(), encoded: Vec::new(), reporter, marks })
    }

    /// Windows that an earlier agent had closed: encoded again, unless their object is in the spool.
    pub(super) fn inherit(&mut self, capture: &mut Capture, pending: Vec<Pending>) -> Result<(), AgentError> {
        let mut stored = Vec::new();
        for Pending { key, window, .. } in pending {
            if self.spool.has(&window.info.rule.target.location, &key)? {
                stored.push(key);
            } else {
                self.queue.push_back(window);
            }
        }
        if !stored.is_empty() {
            capture.done(&stored)?;
        }
        self.spool.release_all()?;
        self.wake.notify_one();
        Ok(())
    }

    /// Says how every rule is doing.
    pub(super) fn report(&mut self, capture: &Capture, trouble: Option<&str>) {
        self.reporter.report(capture, &self.progress.borrow(), &self.spool, trouble);
    }

    /// The same, when there is no capture any more.
    pub(super) fn report_rest(&mut self) {
        self.reporter.report_rest(&self.progress.borrow(), &self.spool);
    }

    /// Hands closed windows to the encoder. Whoever stops waiting for it loses none.
    pub(super) async fn encode(&mut self, capture: &mut Capture) -> Result<(), AgentError> {
        self.queue.extend(capture.take_closed());
        Ok(self.encoder.send_all(&mut self.queue).await?)
    }

    /// Lets objects be delivered that have become durable, once the journal says so.
    pub(super) fn release(&mut self, capture: &mut Capture) -> Result<(), AgentError> {
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
