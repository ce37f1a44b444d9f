//! Figures for whoever asks: the adapter behind the control plane's port asks the main loop, which answers between two looks into the ring,
//! and writes them down where it is asked by a signal.

use std::sync::Arc;

use async_trait::async_trait;
use flowlog_control::{
    api::RefusedLogins,
    fleet::node::NodeHealth,
    inventory::source::board::Board,
    metrics::{FiguresSource, MetricsListener},
};
use flowlog_host::clock;
use flowlog_model::{
    figures::{CaptureFigures, Figures, LiveFigures, Look, NodeFigures},
    status::Status,
};
use flowlog_pipeline::capture::Load;
use tokio::sync::{mpsc, oneshot, watch};

use super::{Capture, delivery::Delivery, error::AgentError, thread};

/// Questions that wait at most: whoever asks more often than the main loop answers is told that it does not.
const QUESTIONS_MAX: usize = 4;

/// Where the answer goes.
type Question = oneshot::Sender<Figures>;

/// The main loop's end.
pub(super) struct Questions {
    asked: mpsc::Receiver<Question>,
    asking: mpsc::Sender<Question>,
    refused: RefusedLogins,
    board: Board,
    /// How the node is doing in its region, if it is in one.
    region: Option<NodeHealth>,
    /// Who serves them, until this is dropped.
    serving: Option<oneshot::Sender<()>>,
}

/// The other end.
struct Asking(mpsc::Sender<Question>);

#[async_trait]
impl FiguresSource for Asking {
    async fn figures(&self) -> Option<Figures> {
        let (question, answer) = oneshot::channel();
        self.0.try_send(question).ok()?;
        answer.await.ok()
    }
}

impl Questions {
    /// Nobody serves them yet.
    pub(super) fn new(refused: RefusedLogins, board: Board, region: Option<NodeHealth>) -> Self {
        let (asking, asked) = mpsc::channel(QUESTIONS_MAX);
        Self { asked, asking, refused, board, region, serving: None }
    }

    /// Serves figures there from now on, if they are to be served, on a thread that ends with the process or when they are served elsewhere.
    ///
    /// # Errors
    /// If there can be no thread; then they are served where they were.
    pub(super) fn serve(&mut self, listening: Option<MetricsListener>) -> Result<(), AgentError> {
        let serving = match listening {
            None => None,
            Some(listening) => {
                let (end, ended) = oneshot::channel::<()>();
                let source = Arc::new(Asking(self.asking.clone()));
                thread::with_a_runtime("metrics", || async {
                    tokio::select! {
                        served = listening.run(source) => {
                            if let Err(error) = served {
                                tracing::error!(%error, "metrics are not served");
                            }
                        }
                        _ = ended => {}
                    }
                })?;
                Some(end)
            }
        };
        self.serving = serving;
        Ok(())
    }

    /// Sources of the inventory that do not answer, and what is not as it should be in the region.
    pub(super) fn silent_sources(&self) -> Vec<String> {
        let words = self.region.as_ref().map(NodeHealth::words).unwrap_or_default();
        self.board.silent().into_iter().chain(words).collect()
    }

    /// The next question; waits for ever if nobody can ask.
    pub(super) async fn next(&mut self) -> Question {
        match self.asked.recv().await {
            Some(question) => question,
            None => std::future::pending().await,
        }
    }

    /// Answers one, after the status has been brought up to date. What the kernel does not say is left out.
    pub(super) fn answer(&self, question: Question, capture: &mut Capture, delivery: &Delivery) {
        let captures = of_captures(capture);
        let Load { ring_used_bytes, records, journal_bytes } = capture.take_load();
        let kernel = &capture.node().kernel;
        let node = NodeFigures {
            ring_bytes: u64::from(kernel.sizes().ring_bytes),
            ring_used_bytes,
            records,
            journal_bytes,
            logins_refused: self.refused.count(),
            programs: kernel.programs.statistics(),
            uploads: delivery.progress.borrow().uploads.clone(),
            sources: self.board.figures(),
        };
        let status = delivery.reporter.said();
        // Whoever asked may not have waited.
        let _ = question.send(Figures { status, is_running: true, live: Some(LiveFigures { captures, node }) });
    }
}

impl Questions {
    /// Answers for ever, while the agent only delivers what is left: by how that is going.
    pub(super) async fn answer_rest(&mut self, said: &watch::Receiver<Arc<Status>>) {
        loop {
            let question = self.next().await;
            let status = Status::clone(&said.borrow());
            let _ = question.send(Figures { status, is_running: true, live: None });
        }
    }
}

/// Writes down what is counted at this moment, for `flowlog status`.
pub(super) fn look(capture: &mut Capture, delivery: &Delivery) {
    let at_ms = clock::now().wall.0 / 1_000_000;
    if let Err(error) = delivery.reporter.look(&Look::of(at_ms, &of_captures(capture))) {
        tracing::warn!(%error, "cannot write down what is counted");
    }
}

/// Every watched interface; what the kernel does not say is left out.
fn of_captures(capture: &mut Capture) -> Vec<CaptureFigures> {
    capture.figures(clock::now()).unwrap_or_else(|error| {
        tracing::warn!(%error, "there are no figures of packets");
        Vec::new()
    })
}
