//! Network namespaces and what lives in them, for the tests and the demo. Everything is removed on drop; [`remove_all`] is for
//! an interrupt, after which nothing is dropped.
//!
//! It knows nothing of flowlog, so that a program that builds in seconds can use it.
#![allow(clippy::disallowed_methods, reason = "tests and tools read clocks to measure and to wait")]

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::File,
    process::{Command, Output},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context as _, ensure};

static NEXT: AtomicU32 = AtomicU32::new(0);
/// Names of the namespaces that this process has to remove.
static OURS: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// The list of namespaces. A thread that panicked while it held the list has not made it wrong.
fn ours() -> MutexGuard<'static, BTreeSet<String>> {
    OURS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes all namespaces that this process has made and not dropped yet. Whoever drops one meanwhile waits for it, so that
/// the process does not end half-way.
pub fn remove_all() {
    let mut names = ours();
    while let Some(name) = names.pop_first() {
        let _ = sh(&format!("ip netns del {name}"));
    }
}

/// Runs a command line split at spaces; an error holds what it printed.
///
/// # Errors
/// If it cannot be started or fails.
pub fn sh(line: &str) -> anyhow::Result<String> {
    let mut words = line.split_whitespace();
    let out =
        Command::new(words.next().context("empty command")?).args(words).output().with_context(|| line.to_owned())?;
    checked(line, &out)
}

fn checked(line: &str, out: &Output) -> anyhow::Result<String> {
    ensure!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr).trim());
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// A network namespace of our own.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes one with its loopback up and IPv6 quiet: no router solicitations among the packets that are counted, and a
    /// new address is told to multicast routers at once, not up to a second later (RFC 3810, section 9.11).
    ///
    /// # Errors
    /// Without root, or without iproute2.
    pub fn new(role: &str) -> anyhow::Result<Self> {
        let name = format!("fl{}-{}-{role}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        // Before it is there: the interrupt that ends this process may come at any time.
        ours().insert(name.clone());
        sh(&format!("ip netns add {name}")).inspect_err(|_| {
            ours().remove(&name);
        })?;
        let ns = Self { name };
        ns.exec("ip link set lo up")?;
        ns.sysctl("net.ipv6.conf.default.router_solicitations", "0")?;
        ns.sysctl("net.ipv6.conf.default.addr_gen_mode", "1")?;
        ns.sysctl("net.ipv6.conf.default.mldv2_unsolicited_report_interval", "1")?;
        Ok(ns)
    }

    /// Its name, for `ip netns exec`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A program that will run inside.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs a command line inside.
    ///
    /// # Errors
    /// If it fails.
    pub fn exec(&self, line: &str) -> anyhow::Result<String> {
        sh(&format!("ip netns exec {} {line}", self.name))
    }

    /// Sets a kernel parameter inside.
    ///
    /// # Errors
    /// If there is no such parameter.
    pub fn sysctl(&self, key: &str, value: &str) -> anyhow::Result<()> {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        self.run(|| std::fs::write(&path, value)).with_context(|| path.clone())
    }

    /// Runs a closure on a thread that has moved inside.
    ///
    /// # Panics
    /// If the namespace is gone, or the closure panics.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    let ns = File::open(format!("/run/netns/{}", self.name)).expect("namespace");
                    let kind = rustix::thread::LinkNameSpaceType::Network;
                    rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&ns), Some(kind))
                        .expect("setns");
                    work()
                })
                .join()
                .expect("thread inside the namespace")
        })
    }

    /// Loads nftables rules.
    ///
    /// # Errors
    /// If they do not parse.
    pub fn nft(&self, rules: &str) -> anyhow::Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), rules)?;
        self.exec(&format!("nft -f {}", file.path().display())).map(drop)
    }

    /// Packets and bytes of a named nftables counter: what the firewall itself says it refused.
    ///
    /// # Errors
    /// If there is no such counter.
    pub fn nft_counter(&self, table: &str, counter: &str) -> anyhow::Result<(u64, u64)> {
        let json: serde_json::Value =
            serde_json::from_str(&self.exec(&format!("nft -j list counter {table} {counter}"))?)?;
        let found = json["nftables"].as_array().and_then(|a| a.iter().find_map(|o| o.get("counter")));
        let c = found.with_context(|| format!("no counter {counter}"))?;
        Ok((c["packets"].as_u64().context("packets")?, c["bytes"].as_u64().context("bytes")?))
    }

    /// A statistic of an interface, as in `/sys/class/net/NAME/statistics`.
    ///
    /// # Errors
    /// If there is none.
    pub fn statistic(&self, interface: &str, name: &str) -> anyhow::Result<u64> {
        let json: serde_json::Value = serde_json::from_str(&self.exec(&format!("ip -j -s -s link show {interface}"))?)?;
        let (side, field) = name.split_once('_').context("side_field")?;
        json[0]["stats64"][side][field].as_u64().with_context(|| format!("{interface} {name}"))
    }

    /// An interface's hardware address.
    ///
    /// # Errors
    /// If there is none.
    pub fn mac(&self, interface: &str) -> anyhow::Result<[u8; 6]> {
        let json: serde_json::Value = serde_json::from_str(&self.exec(&format!("ip -j link show {interface}"))?)?;
        let text = json[0]["address"].as_str().context("address")?.to_owned();
        let mut mac = [0; 6];
        for (byte, part) in mac.iter_mut().zip(text.split(':')) {
            *byte = u8::from_str_radix(part, 16)?;
        }
        Ok(mac)
    }

    /// Value of a counter in `/proc/net/snmp` of this namespace, such as `Tcp OutSegs`.
    ///
    /// # Errors
    /// If there is none.
    pub fn snmp(&self, protocol: &str, counter: &str) -> anyhow::Result<u64> {
        let text = self.exec("cat /proc/net/snmp")?;
        let mut lines = text.lines().filter(|l| l.starts_with(&format!("{protocol}:")));
        let names = lines.next().context("names")?;
        let values = lines.next().context("values")?;
        let pairs = names.split_whitespace().zip(values.split_whitespace());
        let value = pairs.into_iter().find(|(n, _)| *n == counter).context("counter")?.1;
        Ok(value.parse()?)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if ours().remove(&self.name) {
            let _ = sh(&format!("ip netns del {}", self.name));
        }
    }
}

/// A cable between two namespaces.
///
/// # Errors
/// If a name is taken.
pub fn veth(a: (&Netns, &str), b: (&Netns, &str)) -> anyhow::Result<()> {
    sh(&format!("ip link add {} netns {} type veth peer name {} netns {}", a.1, a.0.name(), b.1, b.0.name()))?;
    for (ns, name) in [a, b] {
        ns.exec(&format!("ip link set {name} up"))?;
    }
    Ok(())
}

/// Adds an address; IPv6 without duplicate address detection, so that it is usable at once.
///
/// # Errors
/// If the interface does not exist.
pub fn address(ns: &Netns, interface: &str, address: &str) -> anyhow::Result<()> {
    let nodad = if address.contains(':') { " nodad" } else { "" };
    ns.exec(&format!("ip addr add {address} dev {interface}{nodad}")).map(drop)
}

/// Two hosts on a cable: `a` (10.1.0.1, `fd01::1`) and `b` (10.1.0.2, `fd01::2`), both on `eth0`. Neighbours are static,
/// so that no ARP mixes with counted packets.
#[derive(Debug)]
pub struct Pair {
    /// The host whose interface is watched.
    pub a: Netns,
    pub b: Netns,
}

impl Pair {
    /// Plugs it together.
    ///
    /// # Errors
    /// Without root.
    pub fn new() -> anyhow::Result<Self> {
        let a = Netns::new("a")?;
        let b = Netns::new("b")?;
        veth((&a, "eth0"), (&b, "eth0"))?;
        for (ns, n) in [(&a, 1), (&b, 2)] {
            address(ns, "eth0", &format!("10.1.0.{n}/16"))?;
            address(ns, "eth0", &format!("fd01::{n}/64"))?;
        }
        for (ns, peer, n) in [(&a, &b, 2), (&b, &a, 1)] {
            let mac = peer.mac("eth0")?.map(|b| format!("{b:02x}")).join(":");
            for ip in [format!("10.1.0.{n}"), format!("fd01::{n}")] {
                ns.exec(&format!("ip neigh replace {ip} lladdr {mac} dev eth0 nud permanent"))?;
            }
        }
        Ok(Self { a, b })
    }

    /// Waits until packets on their way have been received: the receive queues of all CPUs are empty.
    ///
    /// # Panics
    /// If they do not empty for ten seconds.
    pub fn wait_until_quiet(&self) {
        let received = || self.a.statistic("eth0", "rx_packets").expect("eth0");
        let mut last = received();
        for _ in 0..100 {
            // An RCU grace period on every CPU lets softirqs run; there is no event to wait for.
            std::thread::sleep(std::time::Duration::from_millis(100));
            let now = received();
            if now == last {
                return;
            }
            last = now;
        }
        panic!("packets keep coming");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_leaves_no_namespace() {
        let there = |ns: &Netns| std::path::Path::new("/run/netns").join(ns.name()).exists();
        let [a, b, dropped] = ["a", "b", "c"].map(|role| Netns::new(role).expect("root"));
        drop(dropped);
        assert_eq!(ours().len(), 2);
        assert!(there(&a) && there(&b));
        remove_all();
        assert!(!there(&a) && !there(&b) && ours().is_empty());
    }
}
