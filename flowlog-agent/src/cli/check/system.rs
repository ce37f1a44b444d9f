//! What a configuration asks of this machine: interfaces, room on the disk, addresses to listen on.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use flowlog_control::metrics::Endpoint;
use flowlog_host::lock;
use flowlog_kernel::{
    netdev::{self, Namespaces},
    pins,
    probe::{Finding, State, finding},
};
use flowlog_model::{
    amount::bytes,
    interface::{Elsewhere, NetDev},
};

use crate::config::Config;

/// Whether every interface is there, where, and up.
pub(super) fn interfaces(config: &Config) -> Vec<Finding> {
    let mut devices = match netdev::all() {
        Ok(devices) => devices,
        Err(error) => return vec![finding("interfaces", State::Missing, error.to_string())],
    };
    let named = config.captures.iter().filter_map(|c| c.interface.netns.clone()).collect();
    let Elsewhere { devices: more, namespaces } = Namespaces::default().interfaces(&named, false);
    devices.extend(more);
    let found = config.captures.iter().map(|capture| {
        let what = format!("flow log {} on {}", capture.name(), capture.interface);
        match capture.interface.find(&devices, None, &namespaces) {
            Some(dev) => {
                let (state, words) = there(dev);
                finding(what, state, words)
            }
            None if capture.wait => finding(what, State::Limited, "is not there; waits for it"),
            None => {
                let words = match &capture.interface.netns {
                    Some(netns) if !namespaces.contains_key(netns) => {
                        format!("there is no network namespace `{netns}`")
                    }
                    _ => "no such interface".to_owned(),
                };
                finding(what, State::Missing, format!("{words}; make it first, or use `wait = true`"))
            }
        }
    });
    found.collect()
}

/// Whether what is pinned can be gone on with, if anything is.
pub(super) fn pinned(config: &Config) -> Option<Finding> {
    const WHAT: &str = "pinned capture";
    let dir = config.pin_dir.as_deref()?;
    if let Err(error) = pins::fits(dir, config.sizes) {
        return Some(finding(WHAT, State::Missing, error.to_string()));
    }
    pins::made_for(dir).ok()??;
    Some(finding(WHAT, State::Ok, format!("{}: an agent goes on with it", dir.display())))
}

/// What there is to say of an interface that is there.
fn there(dev: &NetDev) -> (State, String) {
    let place = dev
        .netns
        .name()
        .map_or_else(|| "in this network namespace".to_owned(), |n| format!("in network namespace {n}"));
    let words = format!("{}, index {}, {place}", dev.name, dev.index);
    // `/sys/class/net` is of the namespace that it was mounted in, and so says nothing of others.
    let state = fs::read_to_string(Path::new("/sys/class/net").join(&dev.name).join("operstate"));
    match state.ok().filter(|_| dev.netns.path.is_none()).as_deref().map(str::trim) {
        Some("down" | "lowerlayerdown") => (State::Limited, format!("{words}; is down, so nothing passes")),
        Some("up") => (State::Ok, format!("{words}; up")),
        _ => (State::Ok, words),
    }
}

/// Whether the spool can grow as large as it may.
pub(super) fn room(config: &Config) -> Finding {
    const WHAT: &str = "room for the spool";
    // It is made at the start.
    let there = config.state_dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let free = match rustix::fs::statvfs(there) {
        Ok(of) => of.f_bavail.saturating_mul(of.f_frsize),
        Err(error) => return finding(WHAT, State::Missing, format!("{}: {error}", there.display())),
    };
    let has = bytes_in(&config.state_dir.join("spool"));
    let may = config.spool.bytes_max;
    let words = format!("{} of {} in use, {} free in {}", bytes(has), bytes(may), bytes(free), there.display());
    if may.saturating_sub(has) <= free {
        finding(WHAT, State::Ok, words)
    } else {
        finding(WHAT, State::Limited, format!("{words}: a full disk is waited for; lower `spool.bytes_max`"))
    }
}

fn bytes_in(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => bytes_in(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.map(of).sum()
}

/// Where the agent is to listen.
enum At {
    Address(SocketAddr),
    /// And whether its directory is made, if that alone is missing.
    Socket(PathBuf, bool),
}

/// Whether it can listen where it is to, or does already.
pub(super) fn listeners(config: &Config) -> Vec<Finding> {
    let mut places = Vec::new();
    if let Some(manage) = &config.manage {
        places.push(("api.socket", At::Socket(manage.api.socket.clone(), true)));
        places.extend(manage.api.listen.map(|address| ("api.listen", At::Address(address))));
    }
    places.extend(config.metrics.clone().map(|endpoint| match endpoint {
        Endpoint::Address(address) => ("metrics.listen", At::Address(address)),
        Endpoint::Socket(path) => ("metrics.listen", At::Socket(path, false)),
    }));
    let agent = lock::holder(&config.state_dir);
    places.into_iter().map(|(what, at)| listener(what, &at, agent)).collect()
}

fn listener(key: &str, at: &At, agent: Option<i32>) -> Finding {
    let (what, tried) = match at {
        At::Address(address) => (format!("{key} {address}"), TcpListener::bind(address).map(drop)),
        At::Socket(path, makes_dir) => (format!("{key} {}", path.display()), can_be_made(path, *makes_dir)),
    };
    match tried {
        Ok(()) => finding(what, State::Ok, "free"),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => match agent.filter(|pid| is_held(at, *pid)) {
            Some(pid) => finding(what, State::Ok, format!("held by the running agent, process {pid}")),
            None => finding(what, State::Missing, "another process has it; end that, or name another"),
        },
        Err(error) => finding(what, State::Missing, error.to_string()),
    }
}

/// Nothing is made. A socket that nobody serves is a leftover.
fn can_be_made(path: &Path, makes_dir: bool) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if !std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()) => {
            Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is another file of this name"))
        }
        Ok(_) if UnixStream::connect(path).is_ok() => Err(io::ErrorKind::AddrInUse.into()),
        _ => {
            let dir = path.parent().unwrap_or(Path::new("/"));
            let above = dir.parent().filter(|_| makes_dir && !dir.exists());
            let there = above.unwrap_or(dir);
            if !there.exists() {
                let words = format!("there is no directory `{}`", there.display());
                return Err(io::Error::new(io::ErrorKind::NotFound, words));
            }
            Ok(rustix::fs::access(there, rustix::fs::Access::WRITE_OK)?)
        }
    }
}

/// Whether a process listens there, as far as that may be known.
fn is_held(at: &At, pid: i32) -> bool {
    let of = |file: &str| fs::read_to_string(format!("/proc/{pid}/net/{file}")).unwrap_or_default();
    let inodes: Vec<String> = match at {
        At::Address(address) => {
            [of("tcp"), of("tcp6")].iter().flat_map(|text| listening(text, address.port())).collect()
        }
        At::Socket(path, _) => bound(&of("unix"), path),
    };
    let own = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().filter_map(Result::ok);
    let mut own = own.filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned()));
    own.any(|link| inodes.iter().any(|inode| link == format!("socket:[{inode}]")))
}

/// Inodes of sockets that listen on a port (`net/ipv4/tcp_ipv4.c`: `sl local rem st tx:rx tr:tm retr uid timeout inode`).
fn listening(table: &str, port: u16) -> Vec<String> {
    let local = format!(":{port:04X}");
    let of = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let listens = words.get(1)?.ends_with(&local) && *words.get(3)? == "0A";
        listens.then(|| words.get(9).map(|inode| (*inode).to_owned()))?
    };
    table.lines().filter_map(of).collect()
}

/// Inodes of sockets of a path (`net/unix/af_unix.c`: `num refs protocol flags type state inode path`).
fn bound(table: &str, path: &Path) -> Vec<String> {
    let of = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (Path::new(words.get(7)?) == path).then(|| words.get(6).map(|inode| (*inode).to_owned()))?
    };
    table.lines().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_free_until_somebody_listens_and_then_it_is_known_whether_that_is_the_agent() {
        let held = TcpListener::bind("127.0.0.1:0").expect("a port");
        let at = At::Address(held.local_addr().expect("its address"));
        let own = i32::try_from(std::process::id()).expect("a process id");
        assert_eq!(listener("api.listen", &at, None).state, State::Missing);
        assert_eq!(listener("api.listen", &at, Some(1)).state, State::Missing);
        let ours = listener("api.listen", &at, Some(own));
        assert!(ours.state == State::Ok && ours.detail.contains("held by the running agent"), "{ours:?}");
        drop(held);
        assert_eq!(listener("api.listen", &at, None).detail, "free");
        let dir = tempfile::tempdir().expect("tempdir");
        let at = At::Socket(dir.path().join("agent.sock"), false);
        assert_eq!(listener("api.socket", &at, None).detail, "free");
        let held = std::os::unix::net::UnixListener::bind(dir.path().join("agent.sock")).expect("a socket");
        assert_eq!(listener("api.socket", &at, Some(own)).state, State::Ok);
        assert_eq!(listener("api.socket", &at, None).state, State::Missing);
        drop(held);
        assert_eq!(listener("api.socket", &at, None).detail, "free", "a leftover is replaced");
        let in_dir = |name: &str, makes_dir| listener("a socket", &At::Socket(dir.path().join(name), makes_dir), None);
        assert_eq!(in_dir("run/agent.sock", true).state, State::Ok);
        for (name, makes_dir) in [("run/metrics.sock", false), ("typo/run/agent.sock", true)] {
            let missing = in_dir(name, makes_dir);
            assert!(missing.state == State::Missing && missing.detail.contains("no directory"), "{missing:?}");
        }
    }
}
