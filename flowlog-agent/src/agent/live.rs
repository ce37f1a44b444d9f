//! The adapter behind the control plane's port: shows live flows of the capture.

use async_trait::async_trait;
use flowlog_control::live::{LiveSource, LiveStream};
use flowlog_model::live::{Ask, Batch, Begun, LiveError, TopReport};
use flowlog_pipeline::live::{Live, Observer};

/// The capture's live flows.
pub(super) struct LiveFlows(pub(super) Live);

impl LiveSource for LiveFlows {
    fn observe(&self, ask: Ask) -> Result<Box<dyn LiveStream>, LiveError> {
        Ok(Box::new(Looking(self.0.observe(ask)?)))
    }
}

/// One who looks.
struct Looking(Observer);

#[async_trait]
impl LiveStream for Looking {
    async fn begun(&mut self) -> Begun {
        self.0.begun().await
    }

    async fn sums(&mut self, entries: usize) -> Option<Box<TopReport>> {
        self.0.sums(entries).await
    }

    async fn next(&mut self) -> Option<Batch> {
        self.0.next().await
    }

    fn lost(&self) -> u64 {
        self.0.lost()
    }
}
