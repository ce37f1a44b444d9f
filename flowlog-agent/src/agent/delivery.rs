//! Everything between a closed window and the store: the encoder, the spool, the uploads.

use std::sync::Arc;

use flowlog_kernel::heap;
use flowlog_pipeline::{
    disk::Filesystem,
    encoder::{Encoded, Encoder, Tools},
    journal::replay::Pending,
    reporter::Reporter,
    spool::Spool,
    upload::{Buckets, Progress, Uploader},
};
use tokio::sync::{Notify, watch};

use super::{
    Capture,
    error::{AgentError, system},
    signals::Stop,
};
use crate::config::Config;

/// See the module's head.
pub(super) struct Delivery {
    spool: Spool,
    pub(super) encoder: Encoder,
    progress: watch::Receiver<Progress>,
    wake: Arc<Notify>,
    /// Durable objects of which the journal does not know yet.
    encoded: Vec<Encoded>,
    pub(super) reporter: Reporter,
}

impl Delivery {
    pub(super) fn start(
        config: &Config,
        fs: Arc<dyn Filesystem>,
        spool: Spool,
        capture: &Capture,
        buckets: Arc<Buckets>,
    ) -> Result<Self, AgentError> {
        let uploader = Uploader::new(spool.clone(), Arc::new(move |location| buckets.open(location)));
        let (progress, wake) = (uploader.progress(), Arc::new(Notify::new()));
        upload_forever(uploader, wake.clone())?;
        let reasons = capture.node().kernel.reasons().clone();
        let reason_name = Box::new(move |index| reasons.name(index).map(str::to_owned));
        let tools = Tools { reason_name, give_back: heap::give_back };
        let encoder = Encoder::start(spool.clone(), tools, config.flows_max)?;
        let reporter = Reporter::new(fs);
        Ok(Self { spool, encoder, progress, wake, encoded: Vec::new(), reporter })
    }

    /// Windows that an earlier agent had closed: encoded again, unless their object is in the spool.
    pub(super) async fn inherit(&mut self, capture: &mut Capture, pending: Vec<Pending>) -> Result<(), AgentError> {
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
    pub(super) fn report(&mut self, capture: &Capture, trouble: Option<&str>) {
        self.reporter.report(capture, &self.progress.borrow(), &self.spool, trouble);
    }

    /// Hands closed windows to the encoder.
    pub(super) async fn encode(&mut self, capture: &mut Capture) -> Result<(), AgentError> {
        for window in capture.take_closed() {
            self.encoder.send(window).await?;
        }
        Ok(())
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

/// Runs the uploader on a thread of its own, which ends with the process: what it has not delivered is in the spool.
fn upload_forever(uploader: Uploader, wake: Arc<Notify>) -> Result<(), AgentError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system("start uploads"))?;
    let thread = std::thread::Builder::new().name("upload".to_owned());
    thread.spawn(move || runtime.block_on(uploader.run(wake))).map_err(system("start uploads"))?;
    Ok(())
}

/// Waits until the spool is empty, or somebody asks a second time.
pub(super) async fn finish_upload(delivery: &Delivery, stop: &mut Stop) {
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
