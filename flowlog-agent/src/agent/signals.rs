//! Signals: being asked to stop, once or twice.

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use super::error::{AgentError, system};

/// SIGTERM and SIGINT.
pub(super) struct Stop {
    count: watch::Receiver<u32>,
}

impl Stop {
    pub(super) fn new() -> Result<Self, AgentError> {
        let (sender, count) = watch::channel(0);
        let mut term = signal(SignalKind::terminate()).map_err(system("handle SIGTERM"))?;
        let mut int = signal(SignalKind::interrupt()).map_err(system("handle SIGINT"))?;
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = term.recv() => {}
                    _ = int.recv() => {}
                }
                sender.send_modify(|n| *n += 1);
            }
        });
        Ok(Self { count })
    }

    pub(super) fn is_asked(&self) -> bool {
        *self.count.borrow() > 0
    }

    pub(super) async fn asked(&mut self) {
        // The sender lives as long as the runtime.
        let _ = self.count.wait_for(|n| *n >= 1).await;
    }

    pub(super) async fn asked_again(&mut self) {
        let _ = self.count.wait_for(|n| *n >= 2).await;
    }
}
