//! How much memory this process may have: what its control group allows, and every group above it.
//!
//! Maps are counted there as well, to the group of whoever makes them; `RLIMIT_MEMLOCK` does not count them (Linux 5.11 and newer).

use std::{
    fs,
    path::{Path, PathBuf},
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
}
