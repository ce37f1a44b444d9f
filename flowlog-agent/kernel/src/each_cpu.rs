//! Doing something on each CPU, between two packets.
//!
//! Packets are looked at in interrupts, and in what follows upon them (softirq) before anything else runs on that CPU. So a thread that runs on
//! a CPU is between two packets there: what it changes, no packet sees half of. Not so with a real-time kernel, where softirqs are threads
//! themselves.

use std::{fs, io, path::Path, thread};

use aya::util::online_cpus;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Why this process cannot run on each CPU in turn, or not between two packets; `None`: it can. Tried.
#[must_use]
pub(crate) fn obstacle() -> Option<String> {
    if fs::read_to_string("/sys/kernel/realtime").is_ok_and(|text| text.trim() == "1") {
        return Some("a real-time kernel".to_owned());
    }
    on_each(false, |_| {}).err().map(|error| format!("cannot run on each CPU: {error}"))
}

/// Why packets may pass XDP and TC of an interface of our own namespace on two CPUs, or may be held back in between; `None`: they do not.
#[must_use]
pub(crate) fn parts_packets(interface: &str) -> Option<&'static str> {
    let dir = Path::new("/sys/class/net").join(interface);
    let is_set = |path: &Path| {
        // A mask of CPUs, or a number.
        fs::read_to_string(path).is_ok_and(|text| text.trim().chars().any(|c| !matches!(c, '0' | ',')))
    };
    let queues = fs::read_dir(dir.join("queues")).into_iter().flatten().flatten();
    if queues.into_iter().any(|queue| is_set(&queue.path().join("rps_cpus"))) {
        return Some("packets are steered to other CPUs (rps_cpus)");
    }
    is_set(&dir.join("gro_flush_timeout")).then_some("packets are held back to be merged (gro_flush_timeout)")
}

/// Does `work` on each CPU that is there, in ascending order or in descending order, on a thread of its own.
///
/// # Errors
/// The first CPU that this process may not run on.
pub(crate) fn on_each(descending: bool, work: impl Fn(u32) + Send) -> io::Result<()> {
    let mut cpus = online_cpus().map_err(|(file, error)| io::Error::new(error.kind(), format!("{file}: {error}")))?;
    cpus.sort_unstable();
    if descending {
        cpus.reverse();
    }
    let all = move || {
        for cpu in cpus {
            let at = usize::try_from(cpu).map_err(io::Error::other)?;
            if at >= CpuSet::MAX_CPU {
                return Err(io::Error::other(format!("CPU {cpu} has a number too large")));
            }
            let mut only = CpuSet::new();
            only.set(at);
            sched_setaffinity(None, &only)?;
            if sched_getaffinity(None)? != only {
                return Err(io::Error::other(format!("CPU {cpu} is not ours to run on")));
            }
            work(cpu);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let ran = thread::Builder::new().name("each-cpu".to_owned()).spawn_scoped(scope, all)?;
        ran.join().unwrap_or_else(|_| Err(io::Error::other("it has panicked")))
    })
}
