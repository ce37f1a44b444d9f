//! Doing something on each CPU, between two packets.
//!
//! Packets are looked at in interrupts, and in what follows upon them (softirq) before anything else runs on that CPU. So a thread that runs on
//! a CPU is between two packets there: what it changes, no packet sees half of. Not so with a real-time kernel, where softirqs are threads
//! themselves.

use std::{fs, io, path::Path, thread};

use rustix::{
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
    time::{ClockId, clock_getres},
};

use crate::{cpus::CpuList, netdev::ethtool};

/// Where interfaces of our own namespace have their settings.
const INTERFACES: &str = "/sys/class/net";
/// From this length of a clock's tick on the kernel holds no packet back behind the end of a poll (`napi_gro_flush` in `__napi_poll`).
const TICK_NS: i64 = 1_000_000;

/// Why XDP and TC cannot take over from each other between two packets of an interface, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Obstacle {
    #[error(
        "its packets are steered to other CPUs between the two (RPS); write 0 to /sys/class/net/{0}/queues/rx-*/rps_cpus for the moment"
    )]
    Steered(String),
    #[error(
        "its packets are held back between the two to be merged; write 0 to /sys/class/net/{0}/gro_flush_timeout for the moment"
    )]
    HeldBack(String),
    #[error(
        "this kernel, with its clock of 1,000 Hz, may hold its packets back between the two to be merged; `ethtool -K {0} gro off` for the moment (not for veth, which turns it on for XDP)"
    )]
    Merged(String),
    #[error("sockets poll interfaces, and hold packets back between the two meanwhile; set {0} to 0 for the moment")]
    Polled(&'static str),
    #[error("it is in another network namespace, and whether packets are parted there cannot be read")]
    Elsewhere,
    #[error(
        "whether its packets are steered or held back between the two cannot be read: /sys/class/net/{0} is not there, or is an interface of another network namespace (start the agent by `ip netns exec`, which mounts the right /sys)"
    )]
    Unread(String),
    #[error("a real-time kernel may stop between the two, at any packet")]
    RealTime,
    #[error("the agent may not run on each CPU, so that it cannot be between two packets there ({0})")]
    Cpus(io::Error),
}

/// Why this process cannot run on each CPU in turn, or not between two packets; `None`: it can. Tried.
#[must_use]
pub(crate) fn obstacle() -> Option<Obstacle> {
    if fs::read_to_string("/sys/kernel/realtime").is_ok_and(|text| text.trim() == "1") {
        return Some(Obstacle::RealTime);
    }
    on_each(false, |_| {}).err().map(Obstacle::Cpus)
}

/// Why packets may pass XDP and TC of an interface of our own namespace on two CPUs, or may be held back in between; `None`: they do not.
/// (One socket that polls by itself, `SO_BUSY_POLL`, is not to be seen.)
#[must_use]
pub(crate) fn parts_packets(interface: &str, index: u32) -> Option<Obstacle> {
    let tick = clock_getres(ClockId::MonotonicCoarse);
    // What cannot be asked is taken to be so: with XDP drivers turn it on.
    let merges = || ethtool::merges(interface).unwrap_or(true);
    set_up_to_part(Path::new(INTERFACES), interface, index)
        .or_else(|| {
            SYSCTLS
                .into_iter()
                .find(|s| is_set(&Path::new("/proc/sys").join(s.replace('.', "/"))))
                .map(Obstacle::Polled)
        })
        .or_else(|| {
            (tick.tv_sec == 0 && tick.tv_nsec <= TICK_NS && merges()).then(|| Obstacle::Merged(interface.to_owned()))
        })
}

/// Settings of the node that have sockets poll interfaces.
const SYSCTLS: [&str; 2] = ["net.core.busy_poll", "net.core.busy_read"];

/// What an interface's settings below `root` say about it. They are those of the network namespace in which that was mounted, which need not
/// be ours (`nsenter --net`): so they are believed if they are of the interface with this index.
fn set_up_to_part(root: &Path, interface: &str, index: u32) -> Option<Obstacle> {
    let dir = root.join(interface);
    let is_it = fs::read_to_string(dir.join("ifindex")).is_ok_and(|text| text.trim().parse() == Ok(index));
    let queues = match fs::read_dir(dir.join("queues")) {
        Ok(queues) if is_it => queues,
        _ => return Some(Obstacle::Unread(interface.to_owned())),
    };
    if queues.flatten().any(|queue| is_set(&queue.path().join("rps_cpus"))) {
        return Some(Obstacle::Steered(interface.to_owned()));
    }
    is_set(&dir.join("gro_flush_timeout")).then(|| Obstacle::HeldBack(interface.to_owned()))
}

/// Whether a file has a number or a mask of CPUs that is not 0.
fn is_set(path: &Path) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.trim().chars().any(|c| !matches!(c, '0' | ',')))
}

/// Does `work` on each CPU that is there, in ascending order or in descending order, on a thread of its own.
///
/// # Errors
/// The first CPU that this process may not run on.
pub(crate) fn on_each(descending: bool, work: impl Fn(u32) + Send) -> io::Result<()> {
    let mut cpus: Vec<u32> = CpuList::Online.read().map_err(io::Error::other)?.into_iter().collect();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_packets_or_holds_them_back_is_named_with_what_to_write_where() {
        let root = tempfile::tempdir().expect("room");
        for (interface, queues, flush, words) in [
            ("eth0", &["0", "00000000,00000000"][..], "0", None),
            ("eth1", &["0", "2"], "0", Some("write 0 to /sys/class/net/eth1/queues/rx-*/rps_cpus")),
            ("eth2", &["00000000,00000001"], "0", Some("eth2/queues/rx-*/rps_cpus")),
            ("eth3", &["0"], "20000", Some("write 0 to /sys/class/net/eth3/gro_flush_timeout")),
            ("eth4", &[], "0", None),
            // It has another index: an interface of the same name in another namespace.
            ("eth6", &["0"], "0", Some("cannot be read: /sys/class/net/eth6")),
        ] {
            let dir = root.path().join(interface);
            fs::create_dir_all(dir.join("queues")).expect("room");
            fs::write(dir.join("gro_flush_timeout"), format!("{flush}\n")).expect("room");
            fs::write(dir.join("ifindex"), if interface == "eth6" { "17\n" } else { "7\n" }).expect("room");
            for (n, mask) in queues.iter().enumerate() {
                let queue = dir.join(format!("queues/rx-{n}"));
                fs::create_dir(&queue).expect("room");
                fs::write(queue.join("rps_cpus"), format!("{mask}\n")).expect("room");
            }
            let said = set_up_to_part(root.path(), interface, 7).map(|o| o.to_string());
            match words {
                None => assert_eq!(said, None),
                Some(words) => assert!(said.as_deref().is_some_and(|s| s.contains(words)), "{interface}: {said:?}"),
            }
        }
        assert!(matches!(set_up_to_part(root.path(), "eth5", 7), Some(Obstacle::Unread(_))), "it is not there");
    }
}
