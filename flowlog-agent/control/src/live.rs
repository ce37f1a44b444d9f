//! Live flows, as the API needs them: a port. The command plugs the capture in.

use async_trait::async_trait;
use flowlog_model::live::{Ask, Batch, Begun, LiveError, TopReport};

/// Where live flows come from.
pub trait LiveSource: Send + Sync {
    /// Somebody looks from now on, until the stream is dropped.
    ///
    /// # Errors
    /// [`LiveError`]: too many do.
    fn observe(&self, ask: Ask) -> Result<Box<dyn LiveStream>, LiveError>;
}

/// What somebody sees who looks.
#[async_trait]
pub trait LiveStream: Send {
    /// The beginning: what was asked for of the open windows. Once.
    async fn begun(&mut self) -> Begun;
    /// Sums of what the open windows hold now, of the flows that were asked for; `None`: the capture has ended. It takes no other place than
    /// the stream has. After [`begun`](Self::begun).
    async fn sums(&mut self, entries: usize) -> Option<Box<TopReport>>;
    /// What comes next; `None`: the capture has ended. Whoever stops waiting misses nothing.
    async fn next(&mut self) -> Option<Batch>;
    /// Lines, or records, that did not get as far as this since the stream began.
    fn lost(&self) -> u64;
}
