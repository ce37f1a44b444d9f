//! Network namespaces besides our own: `network_namespaces(7)`. Nothing here is kept: an open namespace would live on after
//! whoever made it has removed it.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::Path,
};

use flowlog_model::interface::{NETNS_NAMED, Netns};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// `NSFS_MAGIC` of `include/uapi/linux/magic.h`: files that stand for namespaces.
const NSFS_MAGIC: i64 = 0x6e73_6673;
/// Namespaces that are looked into at most: each costs a dump of its interfaces.
const NAMESPACES_MAX: usize = 4_096;

/// The one we are in.
///
/// # Errors
/// If `/proc` is not mounted.
pub fn own() -> io::Result<Netns> {
    Ok(Netns { inum: inum(Path::new("/proc/thread-self/ns/net"))?, path: None })
}

/// The one that a process is in.
///
/// # Errors
/// If there is no such process.
pub fn of_process(pid: i32) -> io::Result<Netns> {
    let path = Path::new("/proc").join(pid.to_string()).join("ns/net");
    Ok(Netns { inum: inum(&path)?, path: Some(path) })
}

/// The one that a file stands for.
///
/// # Errors
/// If there is no such file, or it stands for no namespace.
pub(crate) fn at(path: &Path) -> io::Result<Netns> {
    if rustix::fs::statfs(path)?.f_type != NSFS_MAGIC {
        return Err(io::Error::new(io::ErrorKind::NotFound, "it is no network namespace"));
    }
    Ok(Netns { inum: inum(path)?, path: Some(path.to_owned()) })
}

/// How a person reaches a namespace: by its name, or by a process that is in it.
#[must_use]
pub fn words(number: u32) -> String {
    let found = own().ok().into_iter().flat_map(|own| others(&own)).find(|n| n.inum == number);
    match found.and_then(|n| n.path) {
        Some(path) if path.starts_with(NETNS_NAMED) => {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            format!("`{name}` (use `ip netns exec {name} flowlog …`)")
        }
        Some(path) => format!("of {} (use `nsenter --net={} flowlog …`)", path.display(), path.display()),
        None => format!("number {number}, which nobody is in any more"),
    }
}

/// All others that have a name or a process.
#[must_use]
pub(crate) fn others(own: &Netns) -> Vec<Netns> {
    let mut seen = BTreeSet::from([own.inum]);
    let list = |dir: &str| fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    let processes = list("/proc").filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().parse::<u32>().is_ok()));
    let paths = list(NETNS_NAMED).chain(processes.map(|p| p.join("ns/net")));
    let found = paths.filter_map(|path| Some(Netns { inum: inum(&path).ok()?, path: Some(path) }));
    found.filter(|n| seen.insert(n.inum)).take(NAMESPACES_MAX).collect()
}

/// Runs `work` on this thread inside the namespace.
///
/// # Errors
/// If it cannot be entered: it is gone, or another one by now.
///
/// # Panics
/// If there is no way back, which whoever may enter has.
pub fn enter<T>(netns: &Netns, work: impl FnOnce() -> T) -> io::Result<T> {
    let Some(path) = &netns.path else { return Ok(work()) };
    let home = File::open("/proc/thread-self/ns/net")?;
    let there = File::open(path)?;
    if there.metadata()?.ino() != u64::from(netns.inum) {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the network namespace is gone"));
    }
    move_into_link_name_space(there.as_fd(), Some(LinkNameSpaceType::Network))?;
    let result = work();
    move_into_link_name_space(home.as_fd(), Some(LinkNameSpaceType::Network))
        .expect("who may enter a namespace may go back to the one it came from");
    Ok(result)
}

fn inum(path: &Path) -> io::Result<u32> {
    u32::try_from(fs::metadata(path)?.ino()).map_err(io::Error::other)
}
