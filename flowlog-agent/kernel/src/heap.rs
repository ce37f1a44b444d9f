//! Memory: giving it back, and how much there may be.
#![allow(unsafe_code, reason = "malloc_trim, mallopt")]

use std::{fs, path::Path};

/// What the agent needs besides flows: itself, the kernel's maps at their default sizes, and encoding.
const BASE_BYTES: u64 = 48 << 20;
/// A flow in memory, at most: in its window, in one that is being written, and in the columns it is written from.
const FLOW_BYTES: u64 = 300;

/// Returns freed memory to the system, where the C library can: the allocator keeps what was freed, and loading needs
/// 20 MiB for type information that nobody looks at again.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers; callable from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Blocks of this size and above go back to the system as soon as they are freed: checking a password takes 19 MiB.
#[cfg(target_env = "gnu")]
const LARGE_BYTES: libc::c_int = 8 << 20;
/// The allocator keeps so much of what was freed at the end of its heap.
#[cfg(target_env = "gnu")]
const KEPT_BYTES: libc::c_int = 16 << 20;

/// Has large blocks returned to the system when they are freed. By itself the C library of GNU keeps blocks of a size that was freed
/// before, in an arena for each thread, and [`give_back`] does not reach the end of those (`mallopt(3)`, `M_MMAP_THRESHOLD`).
pub fn return_large_blocks() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers; called before there are threads.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
    }
}

/// How many flows fit into the memory of our control group (`MemoryMax=` of a service); `None`: it has no limit.
#[must_use]
pub fn flows_within_limit() -> Option<usize> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let limit = limit(&groups, Path::new("/sys/fs/cgroup"))?;
    usize::try_from(limit.saturating_sub(BASE_BYTES) / FLOW_BYTES).ok()
}

/// The limit of the memory control group among `groups`, in the form of `/proc/self/cgroup` (version 1 or 2).
fn limit(groups: &str, root: &Path) -> Option<u64> {
    let of = |line: &str| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let path = path.trim_start_matches('/');
        let file = if controllers.is_empty() {
            root.join(path).join("memory.max")
        } else if controllers.split(',').any(|c| c == "memory") {
            root.join("memory").join(path).join("memory.limit_in_bytes")
        } else {
            return None;
        };
        // "max", and in version 1 a number no machine has.
        fs::read_to_string(file).ok()?.trim().parse::<u64>().ok().filter(|n| *n < 1 << 50)
    };
    groups.lines().filter_map(of).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_a_control_group_is_found_in_both_versions() {
        let dir = tempfile::tempdir().expect("tempdir");
        for (path, text) in [
            ("a.slice/f.service/memory.max", "67108864\n"),
            ("free/memory.max", "max\n"),
            ("memory/old/memory.limit_in_bytes", "1000\n"),
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("make");
            fs::write(path, text).expect("write");
        }
        let of = |groups: &str| limit(groups, dir.path());
        assert_eq!(of("0::/a.slice/f.service\n"), Some(64 << 20));
        assert_eq!(of("0::/free\n"), None);
        assert_eq!(of("3:cpu,cpuacct:/x\n2:memory:/old\n"), Some(1_000));
        assert_eq!(of("2:memory:/\n"), None);
        assert_eq!(of("nonsense"), None);
    }
}
