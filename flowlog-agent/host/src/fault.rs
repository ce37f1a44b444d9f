//! Fault points: named places at which tests end the process or make an operation fail. Without the feature `faults`, which no
//! release has, they do nothing.
//!
//! `FLOWLOG_FAULT=NAME:N` ends the process as `kill -9` does when it comes to the place `NAME` for the `N`th time;
//! `FLOWLOG_FAULT=NAME:N:ERRNO` makes that operation fail with that error once, `NAME:N+:ERRNO` from then on.

use std::io;

/// The places that `handover.rs` kills the agent at, one after the other, in the order data takes. There are more: a test that needs
/// another one, such as `journal_write`, names it.
pub const POINTS: [&str; 18] = [
    "ring_read",
    "merge",
    "journal_append",
    "journal_sync",
    "position_advance",
    "turn_recorded",
    "epoch_switch",
    "sweep",
    "window_close",
    "encode",
    "spool_write",
    "spool_sync",
    "spool_rename",
    "spool_dir_sync",
    "spool_release",
    "put_sent",
    "reply_lost",
    "spool_unlink",
];

/// Places around the transactions of the flow-log store: `integration/tests/all/rules.rs` kills the agent at each.
pub const STORE_POINTS: [&str; 7] = [
    "rules_commit",
    "rules_committed",
    "rules_provisioning",
    "rules_ordered",
    "rules_undone",
    "rules_deleting",
    "rules_ended",
];

/// Arms what `FLOWLOG_FAULT` says. Call once, first thing.
///
/// # Errors
/// If it cannot be understood.
#[cfg(feature = "faults")]
pub fn arm() -> Result<(), String> {
    use std::sync::atomic::{AtomicU64, Ordering};

    let Ok(text) = std::env::var("FLOWLOG_FAULT") else { return Ok(()) };
    let parts: Vec<&str> = text.split(':').collect();
    let bad = || format!("FLOWLOG_FAULT `{text}`: use NAME:N or NAME:N[+]:ERRNO");
    let name = parts.first().ok_or_else(bad)?;
    let nth = parts.get(1).ok_or_else(bad)?;
    let onwards = nth.ends_with('+');
    let Ok(nth) = nth.trim_end_matches('+').parse::<u64>() else { return Err(bad()) };
    let Ok(errno) = parts.get(2).map(|e| e.parse::<i32>()).transpose() else { return Err(bad()) };
    let count = AtomicU64::new(0);
    let name = (*name).to_owned();
    fail::cfg_callback(name.clone(), move || {
        let now = count.fetch_add(1, Ordering::SeqCst) + 1;
        if now != nth && !(onwards && now > nth) {
            return;
        }
        match errno {
            None => {
                eprintln!("fault: killed at {name}");
                let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            }
            Some(errno) => ERRNO.with(|e| e.set(errno)),
        }
    })
}

#[cfg(feature = "faults")]
thread_local! {
    static ERRNO: std::cell::Cell<i32> = const { std::cell::Cell::new(0) };
}

/// A place at which the process can be ended.
#[inline]
pub fn point(name: &'static str) {
    #[cfg(feature = "faults")]
    fail::fail_point!(name);
    let _ = name;
}

/// A place at which an operation can be made to fail.
///
/// # Errors
/// The one that was armed.
#[inline]
pub fn io(name: &'static str) -> io::Result<()> {
    point(name);
    #[cfg(feature = "faults")]
    {
        let errno = ERRNO.with(|e| e.replace(0));
        if errno != 0 {
            return Err(io::Error::from_raw_os_error(errno));
        }
    }
    Ok(())
}
