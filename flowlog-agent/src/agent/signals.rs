//! Signals: being asked to stop, and asked again.

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use super::error::{AgentError, system};

/// SIGTERM and SIGINT. SIGHUP ends nothing.
pub(super) struct Stop {
    count: watch::Receiver<u32>,
    /// Those that have been obeyed.
    obeyed: u32,
}

impl Stop {
    pub(super) fn new() -> Result<Self, AgentError> {
        let (sender, count) = watch::channel(0);
        let mut term = signal(SignalKind::terminate()).map_err(system("handle SIGTERM"))?;
        let mut int = signal(SignalKind::interrupt()).map_err(system("handle SIGINT"))?;
        let mut hup = signal(SignalKind::hangup()).map_err(system("handle SIGHUP"))?;
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = term.recv() => {}
                    _ = int.recv() => {}
                    _ = hup.recv() => {
                        tracing::info!(
                            "SIGHUP: inventory, principals, credentials and certificates are read again whenever they change; \
                             what else is configured takes `flowlog stop` and `flowlog run`"
                        );
                        continue;
                    }
                }
                sender.send_modify(|n| *n += 1);
            }
        });
        Ok(Self { count, obeyed: 0 })
    }

    pub(super) fn is_asked(&self) -> bool {
        *self.count.borrow() > self.obeyed
    }

    /// What was asked is being done: from now on, being asked is being asked again.
    pub(super) fn obey(&mut self) {
        self.obeyed = *self.count.borrow();
    }

    pub(super) async fn asked(&mut self) {
        let obeyed = self.obeyed;
        // The sender lives as long as the runtime.
        let _ = self.count.wait_for(|n| *n > obeyed).await;
    }
}
