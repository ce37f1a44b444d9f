//! Trouble with the state directory.

use std::time::Duration;

use super::error::AgentError;

/// It is waited for, because the kernel goes on counting.
#[derive(Default)]
pub(super) struct Trouble {
    words: Option<String>,
}

impl Trouble {
    pub(super) fn note(&mut self, result: Result<(), AgentError>) -> Result<(), AgentError> {
        match result {
            Ok(()) => {
                if self.words.take().is_some() {
                    tracing::info!("the state directory can be written to again");
                }
                Ok(())
            }
            Err(error @ (AgentError::Journal(_) | AgentError::Spool(_))) => {
                let words = error.to_string();
                if self.words.as_ref() != Some(&words) {
                    tracing::error!(%error, "will try again");
                }
                self.words = Some(words);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn words(&self) -> Option<&str> {
        self.words.as_deref()
    }

    /// Windows that are due and cannot be turned must not be tried without end.
    pub(super) fn pause(&self) -> Duration {
        if self.words.is_some() { Duration::from_millis(200) } else { Duration::ZERO }
    }
}
