//! The end of a capture: hooks away, windows closed, objects delivered. Each step is waited for, and a signal ends the waiting.

use std::time::Duration;

use flowlog_host::clock;

use super::{Capture, delivery::Delivery, error::AgentError, signals::Stop, trouble::Trouble};

/// So often the status is brought up to date.
const STATUS_EVERY: Duration = Duration::from_secs(2);
/// The log says what is waited for once in so many of these times.
const SAY_EVERY: usize = 5;
/// What `flowlog status` says meanwhile, and `flowlog stop`, which waits for it.
const STOPPING: &str = "delivering what is captured; a further `flowlog stop` (or Ctrl-C) ends it at once, and leaves the rest in the spool";

/// Ends the capture, delivers everything and removes what is left.
///
/// # Errors
/// [`AgentError::LeftBehind`] if a signal came first; what there is to deliver is in the state directory then.
pub(super) async fn finish(mut capture: Capture, mut delivery: Delivery, stop: &mut Stop) -> Result<(), AgentError> {
    tracing::info!("stopping: taking the hooks away and flushing the open windows; a further signal ends it at once");
    delivery.reporter.stop(STOPPING);
    delivery.report(&capture, None);
    let closed = tokio::select! {
        biased;
        () = stop.asked() => {
            let what = match delivery.spool.entries().map_or(0, |e| e.len()) {
                0 => "windows that are not written yet".to_owned(),
                waiting => format!("{waiting} objects in the spool, and windows that may not be written yet,"),
            };
            return Err(AgentError::LeftBehind { what });
        }
        closed = close(&mut capture, &mut delivery) => closed,
    };
    closed?;
    capture.end();
    drop(capture);
    let done = delivered(&mut delivery, stop).await;
    delivery.report_rest();
    done
}

/// Takes the hooks away, and waits until all windows are objects in the spool. A full disk is waited for.
async fn close(capture: &mut Capture, delivery: &mut Delivery) -> Result<(), AgentError> {
    let mut trouble = Trouble::default();
    while let Err(error) = capture.finish(clock::now()) {
        trouble.note(Err(error.into()))?;
        tokio::time::sleep(trouble.pause()).await;
    }
    trouble.note(Ok(()))?;
    delivery.encode(capture).await?;
    delivery.encoder.close();
    loop {
        // Ends when all is encoded.
        let more = delivery.encoder.encoded().await.is_ok();
        while let Err(error) = delivery.release(capture) {
            trouble.note(Err(error))?;
            tokio::time::sleep(trouble.pause()).await;
        }
        if !more {
            return Ok(());
        }
    }
}

/// Waits until the spool is empty, and says what it waits for.
async fn delivered(delivery: &mut Delivery, stop: &mut Stop) -> Result<(), AgentError> {
    let mut progress = delivery.progress.clone();
    delivery.wake.notify_one();
    let mut tell = tokio::time::interval(STATUS_EVERY);
    let mut told = 0;
    while !delivery.spool.is_empty() {
        tokio::select! {
            biased;
            () = stop.asked() => {
                let waiting = delivery.spool.entries().map_or(0, |e| e.len());
                let why = progress.borrow().trouble().unwrap_or("the store is slow").to_owned();
                return Err(AgentError::LeftBehind { what: format!("{waiting} objects in the spool ({why})") });
            }
            // The uploader lives longer than this.
            _ = progress.changed() => {}
            _ = tell.tick() => {
                delivery.report_rest();
                told += 1;
                // What is delivered at once needs no words.
                if told % SAY_EVERY != 2 {
                    continue;
                }
                let waiting = delivery.spool.entries().map_or(0, |e| e.len());
                let why = progress.borrow_and_update().trouble().unwrap_or("the store is slow").to_owned();
                tracing::info!(waiting, why, "waiting for objects to be delivered; a further signal leaves them in the spool");
            }
        }
    }
    Ok(())
}
