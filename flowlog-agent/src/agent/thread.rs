//! Threads with a runtime of their own, which end with the process.

use super::error::{AgentError, system};

/// Runs a future on a thread of its own. The runtime is made there: one that cannot be used may not end inside another.
pub(super) fn with_a_runtime<F>(name: &'static str, work: impl FnOnce() -> F + Send + 'static) -> Result<(), AgentError>
where
    F: Future<Output = ()>,
{
    let (made, is_made) = std::sync::mpsc::sync_channel(1);
    let run = move || match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let _ = made.send(Ok(()));
            runtime.block_on(async { work().await });
        }
        Err(error) => drop(made.send(Err(error))),
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(run).map_err(system("start a thread"))?;
    is_made.recv().unwrap_or(Ok(())).map_err(system("start a thread"))
}
