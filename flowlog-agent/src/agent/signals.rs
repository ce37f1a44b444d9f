//! Signals: being asked to stop, asked again, told to read files again, and asked how things are.

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

use super::error::{AgentError, system};

/// SIGTERM and SIGINT.
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
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = term.recv() => {}
                    _ = int.recv() => {}
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

/// SIGHUP. It ends nothing from here on, whether anybody asks for it or not.
pub(super) struct Hangups(Signal);

impl Hangups {
    pub(super) fn new() -> Result<Self, AgentError> {
        signal(SignalKind::hangup()).map(Self).map_err(system("handle SIGHUP"))
    }

    /// Waits for one; several at once are one.
    pub(super) async fn next(&mut self) {
        // There is no end of them as long as there is a runtime.
        let _ = self.0.recv().await;
    }
}

/// SIGUSR1: somebody asks what is counted at this moment. It ends nothing from here on, as of [`Hangups`].
pub(super) struct Looks(Signal);

impl Looks {
    pub(super) fn new() -> Result<Self, AgentError> {
        signal(SignalKind::user_defined1()).map(Self).map_err(system("handle SIGUSR1"))
    }

    /// Waits for one; several at once are one.
    pub(super) async fn next(&mut self) {
        let _ = self.0.recv().await;
    }
}
