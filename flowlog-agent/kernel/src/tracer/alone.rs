//! One tracer at a time on a node, whatever network namespace or container it is in: the kernel's list of programs says who there is.

use std::{fs, time::Duration};

use aya::programs::loaded_programs;

use super::TracerError;
use crate::KernelError;

/// How the kernel names the program that every tracer has: the first 15 bytes of `flowlog_see_death`.
const NAME: &str = "flowlog_see_dea";

/// For so long the kernel may still have the program of a process that has ended: a second.
const GOING_TRIES: u32 = 50;
const GOING_PAUSE: Duration = Duration::from_millis(20);

/// Whether there is no tracer.
///
/// # Errors
/// Who it is, if there is one.
pub(super) fn look() -> Result<(), TracerError> {
    ensure(|_| true)
}

/// Whether the tracer whose program has this id may go on: of two that have begun at the same time it is the one that has loaded first. Its
/// program must be loaded: whoever comes later sees it.
///
/// # Errors
/// Who the other one is.
pub(super) fn loaded(own: u32) -> Result<(), TracerError> {
    ensure(|id| id < own)
}

fn ensure(is_other: impl Fn(u32) -> bool) -> Result<(), TracerError> {
    for _ in 0..GOING_TRIES {
        let Some(other) = other(&is_other)? else { return Ok(()) };
        if let Some(pid) = holder(other) {
            return Err(TracerError::InUse { who: format!("process {pid}") });
        }
        // Nobody has it any more: it goes as soon as the kernel gets to it, and nobody tells.
        std::thread::sleep(GOING_PAUSE);
    }
    match other(&is_other)? {
        None => Ok(()),
        Some(other) => Err(TracerError::InUse { who: format!("whoever has loaded program {other}") }),
    }
}

/// A tracer's program, if there is one that counts.
fn other(is_other: impl Fn(u32) -> bool) -> Result<Option<u32>, TracerError> {
    for program in loaded_programs() {
        match program {
            Ok(other) if other.name_as_str() == Some(NAME) && is_other(other.id()) => return Ok(Some(other.id())),
            Ok(_) => {}
            // One that has just gone says nothing. Whoever may not ask does not know whether there is another tracer.
            Err(error) => {
                let error = KernelError::from_chain("list its programs", &error);
                if matches!(error, KernelError::Permission { .. }) {
                    return Err(error.into());
                }
            }
        }
    }
    Ok(None)
}

/// The process that has a program's descriptor.
fn holder(program: u32) -> Option<u32> {
    let line = format!("prog_id:\t{program}");
    let entries = |dir: String| fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    let has = |pid: &str| {
        let mut files = entries(format!("/proc/{pid}/fdinfo"));
        files.any(|file| fs::read_to_string(file).is_ok_and(|text| text.lines().any(|l| l == line)))
    };
    let mut pids = entries("/proc".to_owned()).filter_map(|path| path.file_name()?.to_str()?.parse::<u32>().ok());
    pids.find(|pid| has(&pid.to_string()))
}
