//! `flowlog control`: API and console for the nodes of a region, without a kernel, and so without root.

use std::sync::Arc;

use flowlog_control::{
    api::RefusedLogins,
    fleet::region::{self, RegionFigures, RegionParts},
    flow_logs::flow_log::Settings,
    inventory::watch::Again,
    metrics::{self, MetricsListener},
    serve::{Relisten, listen},
};
use flowlog_host::clock;
use flowlog_kernel::heap;
use flowlog_model::S3Options;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use super::{
    around::Around,
    error::AgentError,
    managed::{CHANGES_MAX, Files, Place, Probe},
    reload::Plan,
    service::Service,
    signals::{Hangups, Stop},
};
use crate::config::{Config, Merged};

/// What to do about a key that is decided at the start.
const NEEDS_RESTART: &str = "restart `flowlog control` to change it; captures and deliveries go on meanwhile";

/// Serves until SIGTERM or SIGINT. Nothing is lost with it: all that it knows is in etcd.
///
/// # Errors
/// If a file, an address or a certificate cannot be used.
pub(crate) async fn serve(plan: Plan) -> Result<(), AgentError> {
    let config = &plan.config;
    let manage = config.manage.clone().ok_or(AgentError::NoRegion)?;
    let etcd = manage.etcd.clone().ok_or(AgentError::NoRegion)?;
    let (mut stop, hangups, service) = (Stop::new()?, Hangups::new()?, Service::new());
    let (files, watching) = Files::open(&manage, None)?;
    let listening = listen(&manage.api)?;
    let figures = config.metrics.as_ref().map(metrics::listen).transpose()?;
    let again = watching.start()?;
    let (s3, reached) = watch::channel(config.s3.clone());
    let buckets = Files::buckets(Some(files.inventory.clone()), reached);
    let (settling, settings) = watch::channel(manage.settings.clone());
    let Files { inventory, principals, .. } = files;
    let buckets = Arc::new(Probe(Arc::new(buckets)));
    let parts = RegionParts { etcd, name: config.node_id.clone(), inventory, principals, buckets, settings };
    let (control, worker) = region::plane(parts);
    let leave = worker.leave();
    let mut telling = Telling { counted: Arc::new(worker.figures()), serving: None };
    telling.serve(figures);
    let (api, changes) = mpsc::channel(CHANGES_MAX);
    let (hand_over, handed) = oneshot::channel();
    let serving = async {
        service.serving();
        // From now on a reload has something to speak of.
        let _ = hand_over.send(service);
        if let Err(error) = listening.run(Arc::new(control), heap::give_back, RefusedLogins::default(), changes).await {
            tracing::error!(%error, "the API is not served");
        }
    };
    let reloading = async {
        match handed.await {
            Ok(service) => Reloads { hangups, again, plan, s3, settling, api, telling, service }.run().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = stop.asked() => tracing::info!("stopping"),
        () = worker.run(serving) => {}
        () = reloading => {}
    }
    leave.await;
    Ok(())
}

/// Figures of the region, for whoever asks.
struct Telling {
    counted: Arc<dyn Fn() -> RegionFigures + Send + Sync>,
    serving: Option<JoinHandle<()>>,
}

impl Telling {
    /// Serves them there from now on; nowhere, if that is nowhere.
    fn serve(&mut self, listening: Option<MetricsListener>) {
        let counted = self.counted.clone();
        let next = listening.map(|listening| {
            tokio::spawn(async move {
                if let Err(error) = listening.run_of_region(counted).await {
                    tracing::error!(%error, "metrics are not served");
                }
            })
        });
        if let Some(before) = std::mem::replace(&mut self.serving, next) {
            before.abort();
        }
    }
}

/// Who reads the files again when that is asked for (SIGHUP), as an agent does: all of what is new is in force then, or none of it, with the
/// reason.
struct Reloads {
    hangups: Hangups,
    /// Who reads inventory and principals.
    again: Again<Place>,
    /// What is in force.
    plan: Plan,
    s3: watch::Sender<S3Options>,
    settling: watch::Sender<Settings>,
    api: mpsc::Sender<Relisten>,
    telling: Telling,
    service: Service,
}

impl Reloads {
    /// For ever.
    async fn run(mut self) {
        loop {
            self.hangups.next().await;
            self.service.reloading(clock::now());
            // Without an answer nobody reads them any more, which is in the log.
            let _ = self.again.ask().await;
            let outcome = self.prepare().map(|(merged, config, around, words)| {
                self.apply(merged, config, around);
                words
            });
            let read = "inventory and principals were read again";
            match &outcome {
                Ok(words) if words.is_empty() => tracing::info!("SIGHUP: {read}; nothing else has changed"),
                Ok(words) => tracing::info!("SIGHUP: {read}; {}", words.join("; ")),
                Err(why) => tracing::error!("SIGHUP: {read}; the configuration is what it was: {why}"),
            }
            self.service.reloaded(outcome.as_ref().map(|words| words.join("; ")).map_err(String::as_str));
        }
    }

    /// Reads the configuration and checks it, and listens where it says; with what has changed, in words.
    fn prepare(&self) -> Result<(Merged, Config, Around, Vec<String>), String> {
        let merged = self.plan.layers.read().map_err(|e| e.to_string())?;
        let changed = merged.changed(&self.plan.merged);
        let fixed = changed.iter().filter(|key| key.refused_by_a_reload(true).is_some());
        let fixed: Vec<String> = fixed.map(|key| format!("{}: {NEEDS_RESTART}", key.path())).collect();
        if !fixed.is_empty() {
            return Err(fixed.join("; "));
        }
        let config = merged.raw.clone().check_without_captures().map_err(|e| e.to_string())?;
        let around = Around::prepare(&self.plan.config, &config, NEEDS_RESTART)?;
        Ok((merged, config, around, changed.iter().map(|key| key.path()).collect()))
    }

    fn apply(&mut self, merged: Merged, config: Config, around: Around) {
        self.s3.send_replace(config.s3.clone());
        if let Some(manage) = &config.manage {
            self.settling.send_replace(manage.settings.clone());
        }
        let telling = &mut self.telling;
        around.apply(&self.plan.config, Some(&self.api), Some(&self.again), |listening| {
            telling.serve(listening);
            Ok(())
        });
        self.plan.merged = merged;
        self.plan.config = config;
    }
}
