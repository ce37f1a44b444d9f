//! How much memory this process may have: what its control group allows, and every group above it.
//!
//! Maps are counted there as well, to the group of whoever makes them; `RLIMIT_MEMLOCK` does not count them (Linux 5.11 and newer).

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    chosen::Machine,
    cpus::{CpuCount, CpuList},
};

/// The memory that one control group may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Where it is written.
    pub file: PathBuf,
    pub bytes: u64,
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} MiB", self.bytes >> 20)
    }
}

/// A number that no machine has: version 1 of control groups has no word for "no limit".
const NO_LIMIT: u64 = 1 << 50;

/// All that hold, from our own group upwards. Nothing above the root of a container can be seen from inside.
#[must_use]
pub fn limits() -> Vec<Limit> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    of(&groups, Path::new("/sys/fs/cgroup"))
}

/// What this machine has, and what of its memory this process may have.
#[must_use]
pub fn machine() -> Machine {
    let possible = CpuCount::here().map_or(1, |cpus| cpus.values);
    Machine {
        cpus: CpuList::Online.read().map_or(u64::from(possible), |cpus| cpus.len() as u64),
        cpus_possible: u64::from(possible),
        memory_bytes: limits().into_iter().map(|limit| limit.bytes).chain(memory_total()).min().unwrap_or(u64::MAX),
    }
}

/// Memory of this machine, if the kernel says it.
#[must_use]
fn memory_total() -> Option<u64> {
    total(&fs::read_to_string("/proc/meminfo").ok()?)
}

/// The total in a text of the form of `/proc/meminfo`.
fn total(text: &str) -> Option<u64> {
    let kib = text.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"))?;
    kib.trim().parse::<u64>().ok()?.checked_mul(1_024)
}

/// The limits of the groups in `groups`, which has the form of `/proc/self/cgroup` (version 1 or 2).
fn of(groups: &str, root: &Path) -> Vec<Limit> {
    groups.lines().filter_map(|line| files(line, root)).flatten().filter_map(read).collect()
}

/// The files with limits of one line's group, and of all above it.
fn files(line: &str, root: &Path) -> Option<Vec<PathBuf>> {
    let (_, rest) = line.split_once(':')?;
    let (controllers, path) = rest.split_once(':')?;
    // Throttling (`memory.high`) is for good if what is needed does not fit: maps and windows cannot be reclaimed.
    let (root, names): (_, &[&str]) = if controllers.is_empty() {
        (root.to_owned(), &["memory.max", "memory.high"])
    } else if controllers.split(',').any(|c| c == "memory") {
        (root.join("memory"), &["memory.limit_in_bytes"])
    } else {
        return None;
    };
    let groups = Path::new(path.trim_start_matches('/')).ancestors();
    Some(groups.flat_map(|group| names.iter().map(|name| root.join(group).join(name)).collect::<Vec<_>>()).collect())
}

fn read(file: PathBuf) -> Option<Limit> {
    // "max" is none.
    let bytes = fs::read_to_string(&file).ok()?.trim().parse().ok().filter(|n| *n < NO_LIMIT)?;
    Some(Limit { file, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_of_a_group_and_of_all_above_it_are_found_in_both_versions() {
        let dir = tempfile::tempdir().expect("tempdir");
        for (path, text) in [
            ("a.slice/f.service/memory.max", "67108864\n"),
            ("a.slice/f.service/memory.high", "max\n"),
            ("a.slice/memory.max", "max\n"),
            ("a.slice/memory.high", "1000000\n"),
            ("free/memory.max", "max\n"),
            ("memory/above/old/memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory/above/memory.limit_in_bytes", "1000\n"),
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("make");
            fs::write(path, text).expect("write");
        }
        let found = |groups: &str| -> Vec<(String, u64)> {
            let limits = of(groups, dir.path()).into_iter();
            limits.map(|l| (l.file.strip_prefix(dir.path()).expect("below").display().to_string(), l.bytes)).collect()
        };
        let limit = |file: &str, bytes| (file.to_owned(), bytes);
        assert_eq!(
            found("0::/a.slice/f.service\n"),
            [limit("a.slice/f.service/memory.max", 64 << 20), limit("a.slice/memory.high", 1_000_000)]
        );
        assert_eq!(found("0::/free\n"), []);
        assert_eq!(
            found("3:cpu,cpuacct:/x\n2:memory:/above/old\n0::/free\n"),
            [limit("memory/above/memory.limit_in_bytes", 1_000)]
        );
        assert_eq!(found("2:memory:/\n"), []);
        assert_eq!(found("nonsense"), []);
    }

    #[test]
    fn the_memory_of_a_machine_is_read_where_it_is_said() {
        assert_eq!(total("MemTotal:       24689764 kB\nMemFree:        1 kB\n"), Some(24_689_764 * 1_024));
        assert_eq!((total("MemFree: 1 kB\n"), total("MemTotal: x kB\n"), total("")), (None, None, None));
        assert!(memory_total().is_some_and(|bytes| bytes > 1 << 20));
    }
}
