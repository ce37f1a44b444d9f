//! One tracer at a time on a node, whatever network namespace or container it is in: the kernel's list of programs says who there is.

use std::fs;

use aya::programs::loaded_programs;

use super::TracerError;
use crate::KernelError;

/// How the kernel names the program that every tracer has: the first 15 bytes of `flowlog_see_death`.
const NAME: &str = "flowlog_see_dea";

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
    for program in loaded_programs() {
        match program {
            Ok(other) if other.name_as_str() == Some(NAME) && is_other(other.id()) => {
                return Err(TracerError::InUse { who: holder(other.id()) });
            }
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
    Ok(())
}

/// The process that has a program's descriptor, in words.
fn holder(program: u32) -> String {
    let line = format!("prog_id:\t{program}");
    let entries = |dir: String| fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    let has = |pid: &str| {
        let mut files = entries(format!("/proc/{pid}/fdinfo"));
        files.any(|file| fs::read_to_string(file).is_ok_and(|text| text.lines().any(|l| l == line)))
    };
    let pids = entries("/proc".to_owned()).filter_map(|path| path.file_name()?.to_str()?.parse::<u32>().ok());
    let mut found = pids.map(|pid| pid.to_string()).filter(|pid| has(pid));
    found.next().map_or_else(|| format!("whoever has loaded program {program}"), |pid| format!("process {pid}"))
}
