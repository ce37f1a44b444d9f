//! A reload (SIGHUP): the configuration, the inventory and the principals are read again. All of what the configuration says from then on is
//! applied, or none of it, with the reason.
//!
//! ```text
//! asked -> inventory and principals read -> configuration read and checked, listening where it says -> captures changed -> the rest
//!                                             | wrong                                                   | cannot be
//!                                             +--------------------> refused: all as before <-----------+
//! ```
//!
//! What can fail comes first; nothing that has changed by then is seen from outside but captures, which are changed back.

use std::{collections::BTreeMap, sync::Arc};

use flowlog_control::{
    inventory::{load::Loaded, watch::Again},
    serve::Relisten,
};
use flowlog_host::fault;
use flowlog_model::{CaptureSpec, MonoNs, Now, S3Options, status::CaptureState};
use flowlog_pipeline::disk::Filesystem;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    Capture,
    around::Around,
    delivery::Delivery,
    figures::Questions,
    managed::{Orders, Place, Wanted},
    memory,
    service::Service,
    signals::Hangups,
    start::{check_interfaces, check_targets},
};
use crate::config::{Config, Layers, Merged, needs_restart};

/// Where it is written what came of the last reload, in the state directory: for `flowlog reload`, which waits for it.
pub(crate) const FILE: &str = "reload.json";

/// What came of a reload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reloaded {
    pub pid: u32,
    /// When it began, by the monotonic clock: it is of nobody who asked later.
    pub begun: MonoNs,
    /// What has changed; or why nothing has.
    pub outcome: Result<Vec<String>, String>,
}

/// How a configuration came to be what it is, so that it can be made again.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub layers: Layers,
    pub merged: Merged,
    pub config: Config,
}

/// What a reload acts upon, beside the main loop's own.
pub(super) struct Reached {
    pub fs: Arc<dyn Filesystem>,
    /// How buckets are reached.
    pub s3: watch::Sender<S3Options>,
    /// What is in the inventory; nothing, without one.
    pub inventory: Option<watch::Receiver<Arc<Loaded>>>,
    /// Where the API is served; nobody, if it is not.
    pub api: Option<mpsc::Sender<Relisten>>,
}

/// See the module's head.
pub(super) struct Reload {
    hangups: Hangups,
    /// Who reads inventory and principals; nobody, without any.
    again: Option<Again<Place>>,
    stage: Stage,
    /// What is in force.
    plan: Plan,
    reached: Reached,
    begun: MonoNs,
}

enum Stage {
    Idle,
    Reading(oneshot::Receiver<()>),
    /// The captures are being changed.
    Applying(Box<Change>),
}

/// A configuration that has been found sound, and what has been made for it.
struct Change {
    merged: Merged,
    config: Config,
    around: Around,
    words: Vec<String>,
}

/// How far a reload is.
pub(super) enum Step {
    /// Somebody wants one.
    Asked,
    /// Inventory and principals have been read.
    Read,
}

/// What the main loop has that a reload changes.
pub(super) struct Scene<'a> {
    pub capture: &'a mut Capture,
    pub delivery: &'a mut Delivery,
    pub orders: &'a mut Orders,
    pub questions: &'a mut Questions,
    pub service: &'a mut Service,
}

impl Reload {
    pub(super) fn new(hangups: Hangups, again: Option<Again<Place>>, plan: Plan, reached: Reached) -> Self {
        Self { hangups, again, stage: Stage::Idle, plan, reached, begun: MonoNs(0) }
    }

    /// Waits for the next step. Whoever stops waiting for it misses none.
    pub(super) async fn next(&mut self) -> Step {
        match &mut self.stage {
            Stage::Idle => {
                self.hangups.next().await;
                Step::Asked
            }
            Stage::Reading(read) => {
                // Without an answer nobody reads them any more, which is in the log.
                let _ = read.await;
                Step::Read
            }
            // The main loop sees when they have been changed.
            Stage::Applying(_) => std::future::pending().await,
        }
    }

    /// Takes a step.
    pub(super) fn take(&mut self, step: &Step, now: Now, scene: &mut Scene<'_>) {
        match step {
            Step::Asked => {
                self.begun = now.mono;
                scene.service.reloading(now);
                match self.again.as_ref().map(Again::ask) {
                    Some(read) => self.stage = Stage::Reading(read),
                    None => self.begin(scene),
                }
            }
            Step::Read => self.begin(scene),
        }
    }

    /// Reads the configuration, and begins to apply it.
    fn begin(&mut self, scene: &mut Scene<'_>) {
        self.stage = Stage::Idle;
        let change = match self.prepare(scene.capture, &scene.orders.wanted) {
            Ok(change) => change,
            Err(why) => return self.end(Err(why), scene.service),
        };
        fault::point("reload_prepared");
        let fixed = change.config.captures.clone();
        self.stage = Stage::Applying(Box::new(change));
        if fixed == self.plan.config.captures {
            return self.finish(scene);
        }
        scene.capture.take_gaps(false);
        if let Err(error) = want(fixed, scene) {
            // The journal refuses, and nothing is to be half done.
            self.undo(error, scene);
        }
        fault::point("reload_wanted");
    }

    /// Whether the captures have been changed, and the rest is to come.
    #[must_use]
    pub(super) fn is_due(&self, capture: &Capture) -> bool {
        matches!(self.stage, Stage::Applying(_)) && capture.is_complete()
    }

    /// Applies the rest; or, where a capture cannot be what it is to be, makes them what they were.
    pub(super) fn finish(&mut self, scene: &mut Scene<'_>) {
        let Stage::Applying(change) = &self.stage else { return };
        let states = scene.capture.states();
        let must_be = |c: &CaptureSpec| !c.wait || scene.capture.is_held(&c.id(&change.config.node_id));
        let is_new = |c: &&CaptureSpec| must_be(c) && !self.plan.config.captures.contains(c);
        let trouble = change.config.captures.iter().filter(is_new).find_map(|c| {
            match states.get(&c.id(&change.config.node_id)) {
                Some(CaptureState::Trouble { why }) => {
                    Some(format!("flow log `{}` on {}: {why}", c.name(), c.interface))
                }
                _ => None,
            }
        });
        if let Some(why) = trouble {
            return self.undo(why, scene);
        }
        if let Err(why) = count_by(&change.config, scene.capture) {
            return self.undo(why, scene);
        }
        scene.capture.take_gaps(true);
        let Stage::Applying(change) = std::mem::replace(&mut self.stage, Stage::Idle) else { return };
        let Change { merged, config, around, words } = *change;
        scene.delivery.spool.limit(config.spool);
        scene.capture.limit_flows(config.flows_max);
        scene.delivery.encoder.limit_flows(config.flows_max);
        self.reached.s3.send_replace(config.s3.clone());
        if let Some(manage) = &config.manage {
            scene.orders.select(&manage.templates);
            scene.orders.settle(&manage.settings);
        }
        let serve = |listening| scene.questions.serve(listening);
        around.apply(&self.plan.config, self.reached.api.as_ref(), self.again.as_ref(), serve);
        scene.delivery.marks.are(config.marks.names.clone());
        scene.capture.node_mut().restore_order = config.restore_order;
        self.plan.merged = merged;
        self.plan.config = config;
        fault::point("reload_applied");
        self.end(Ok(words), scene.service);
    }

    /// Makes everything what it was.
    fn undo(&mut self, why: String, scene: &mut Scene<'_>) {
        if let Stage::Applying(change) = std::mem::replace(&mut self.stage, Stage::Idle) {
            change.around.abandon();
        }
        let captures = want(self.plan.config.captures.clone(), scene);
        scene.capture.take_gaps(true);
        let reasons = count_by(&self.plan.config, scene.capture);
        if let Err(error) = captures.and(reasons) {
            tracing::warn!(error, "will try again");
        }
        self.end(Err(why), scene.service);
    }

    /// Says what came of it.
    fn end(&mut self, outcome: Result<Vec<String>, String>, service: &mut Service) {
        let read = if self.again.is_some() { "inventory and principals were read again; " } else { "" };
        match &outcome {
            Ok(words) if words.is_empty() => tracing::info!("SIGHUP: {read}nothing else has changed"),
            Ok(words) => tracing::info!("SIGHUP: {read}{}", words.join("; ")),
            Err(why) => tracing::error!("SIGHUP: {read}the configuration is what it was: {why}"),
        }
        service.reloaded(outcome.as_ref().map(|words| words.join("; ")).map_err(String::as_str));
        let reloaded = Reloaded { pid: std::process::id(), begun: self.begun, outcome };
        if let Err(error) = self.write(&reloaded) {
            tracing::warn!(%error, "`flowlog reload` is not told: cannot write `{FILE}`");
        }
    }

    fn write(&self, reloaded: &Reloaded) -> std::io::Result<()> {
        let json = serde_json::to_vec(reloaded).map_err(std::io::Error::other)?;
        let partial = format!("{FILE}.partial");
        // Not synced: after a power cut nobody waits for it.
        self.reached.fs.create("", &partial)?.append(&json)?;
        self.reached.fs.rename(("", &partial), ("", FILE))
    }

    /// Checks everything that can be, and listens where it is to be served. The error says why it cannot be.
    fn prepare(&self, capture: &Capture, wanted: &Wanted) -> Result<Change, String> {
        let old = &self.plan.config;
        let is_pinned = old.pin_dir.is_some();
        let restart = needs_restart(is_pinned);
        let merged = self.plan.layers.read().map_err(|e| e.to_string())?;
        let changed = merged.changed(&self.plan.merged);
        let (config, _) = memory::checked_with(merged.raw.clone(), Some(old.sizes)).map_err(|e| e.to_string())?;
        // A size that is put in at the value in force, or taken out where that stands, is no other size.
        let same_sizes = config.sizes == old.sizes;
        let differ = changed.iter().filter(|key| !(same_sizes && key.is_map_size()));
        let fixed: Vec<String> = differ.filter_map(|key| key.refused_by_a_reload(is_pinned)).collect();
        if !fixed.is_empty() {
            return Err(fixed.join("; "));
        }
        if config.enters_namespaces && !old.enters_namespaces {
            return Err(format!(
                "flow_log.netns: the agent has given up what entering other namespaces takes; {restart}"
            ));
        }
        capture.node().kernel.reasons_with(&config.reasons).map_err(|e| e.to_string())?;
        check_targets(&config).map_err(|e| e.to_string())?;
        check_interfaces(&config).map_err(|e| e.to_string())?;
        check_others(capture, wanted, &config)?;
        self.check_gaps(capture, wanted, &config)?;
        // Last: it leaves files behind.
        let around = Around::prepare(old, &config, restart)?;
        let keys = changed.iter().map(|key| key.path());
        let of = |config: &Config| config.manage.as_ref().map(|m| m.templates.all.clone()).unwrap_or_default();
        let selected = (of(&config) != of(old)).then(|| "flow logs by selection: changed".to_owned());
        let words = keys.chain(differences(&old.captures, &config.captures, &config.node_id)).chain(selected).collect();
        Ok(Change { merged, config, around, words })
    }

    /// No packet may be missed or counted twice where an interface is captured now, and will be otherwise. (Should that be found out only when it
    /// is to be done, it is left undone, and the reload is taken back.)
    fn check_gaps(&self, capture: &Capture, wanted: &Wanted, config: &Config) -> Result<(), String> {
        let selected = match (&config.manage, &self.reached.inventory) {
            (Some(manage), Some(inventory)) => {
                let loaded = inventory.borrow().clone();
                wanted.selected_by(&manage.templates, &loaded.inventory, &config.node_id)
            }
            _ => Vec::new(),
        };
        let mut then = wanted.with(&config.captures);
        then.retain(|c| c.rule.id.is_some() || config.captures.contains(c));
        then.extend(selected);
        let parted = capture.would_part(&then).map_err(|e| e.to_string())?;
        if parted.is_empty() { Ok(()) } else { Err(parted.join("; ")) }
    }
}

/// Has these captured from now on, beside what the store orders.
fn want(fixed: Vec<CaptureSpec>, scene: &mut Scene<'_>) -> Result<(), String> {
    scene.orders.wanted.fix(fixed);
    scene.capture.want(scene.orders.wanted.all()).map_err(|e| e.to_string())
}

/// Has drop reasons count as a configuration says, from now on.
fn count_by(config: &Config, capture: &mut Capture) -> Result<(), String> {
    let kernel = &mut capture.node_mut().kernel;
    let reasons = kernel.reasons_with(&config.reasons).map_err(|e| e.to_string())?;
    if reasons.actions == kernel.reasons().actions {
        return Ok(());
    }
    if let Some(absent) = reasons.absent() {
        tracing::warn!("this kernel has {absent}");
    }
    kernel.set_reasons(reasons).map_err(|e| e.to_string())
}

/// No flow log of the API may lose its interface, its id or its room to one of the file.
fn check_others(capture: &Capture, wanted: &Wanted, config: &Config) -> Result<(), String> {
    let all = wanted.with(&config.captures);
    let max = usize::from(config.sizes.interfaces_max);
    if all.len() > max {
        let managed = wanted.managed.len();
        return Err(format!("kernel.interfaces_max: flow logs of the API have {managed} of {max} places"));
    }
    let (now, then) = (capture.states(), capture.would_be(&all).map_err(|e| e.to_string())?);
    let ids: BTreeMap<String, &CaptureSpec> = config.captures.iter().map(|c| (c.id(&config.node_id), c)).collect();
    for theirs in &wanted.managed {
        let id = theirs.id(&config.node_id);
        if ids.contains_key(&id) {
            return Err(format!("interface_id `{id}`: is that of flow log `{}` of the API", theirs.name()));
        }
        // One by selection leaves what the file names itself to that.
        let is_captured = theirs.rule.id.is_some() && matches!(now.get(&id), Some(CaptureState::Attached { .. }));
        if let Some(CaptureState::Trouble { why }) = then.get(&id).filter(|_| is_captured) {
            return Err(format!("flow log `{}` of the API would end: {why}; delete one of the two", theirs.name()));
        }
    }
    Ok(())
}

/// What becomes of flow logs, each in a few words.
fn differences(old: &[CaptureSpec], new: &[CaptureSpec], node_id: &str) -> Vec<String> {
    let of = |all: &[CaptureSpec]| -> BTreeMap<String, CaptureSpec> {
        all.iter().map(|c| (c.id(node_id), c.clone())).collect()
    };
    let (old, new) = (of(old), of(new));
    let words = |c: &CaptureSpec, what: &str| format!("flow log `{}` on {}: {what}", c.name(), c.interface);
    let gone = old.iter().filter(|(id, _)| !new.contains_key(*id)).map(|(_, c)| words(c, "removed"));
    let come = new.iter().filter_map(|(id, c)| match old.get(id) {
        None => Some(words(c, "added")),
        Some(before) if before != c => Some(words(c, "changed")),
        Some(_) => None,
    });
    gone.chain(come).collect()
}
