//! A fourth lane: whatever a command attaches to it, a whole agent for example, by programs or by a packet socket.

use std::{
    os::unix::process::CommandExt as _,
    process::{Child, Command},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use integration::net::Netns;
use rustix::process::{Pid, Signal, kill_process_group};

/// Time that it has to attach its programs.
const ATTACHED_WITHIN: Duration = Duration::from_secs(60);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// A command that runs, with all that it has started.
pub(crate) struct Beside(Child);

impl Beside {
    /// Runs `sh -c COMMAND` in the node, with `INTERFACE` in its environment, and waits until something is attached there.
    pub(crate) fn start(command: &str, node: &Netns, interface: &str) -> anyhow::Result<Self> {
        let child =
            node.run(|| Command::new("sh").args(["-c", command]).env("INTERFACE", interface).process_group(0).spawn());
        let mut beside = Self(child.with_context(|| format!("start `{command}`"))?);
        let started = Instant::now();
        while !is_attached(node, interface)? {
            if let Some(status) = beside.0.try_wait()? {
                bail!("`{command}` ended ({status}) before it had attached anything to {interface}");
            }
            if started.elapsed() > ATTACHED_WITHIN {
                bail!("`{command}` has attached nothing to {interface} within {} s", ATTACHED_WITHIN.as_secs());
            }
            std::thread::sleep(LOOK);
        }
        Ok(beside)
    }

    /// Fails unless it still runs and is attached: else what was measured is a lane that nobody watches.
    pub(crate) fn check(&mut self, node: &Netns, interface: &str) -> anyhow::Result<()> {
        if let Some(status) = self.0.try_wait()? {
            bail!("the command beside ended ({status}) while it was measured");
        }
        ensure!(is_attached(node, interface)?, "the command beside is no longer attached to {interface}");
        Ok(())
    }

    /// The command's process, and those it has started, as far as they are in its group.
    pub(crate) fn processes(&self) -> anyhow::Result<Vec<u32>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            // Gone since it was listed: not one of those that are to be counted.
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // PID (NAME) STATE PARENT GROUP: the name may have any character.
            let group = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(2)?.parse().ok());
            if group == Some(self.0.id()) {
                found.push(pid);
            }
        }
        Ok(found)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if let Some(group) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            // Gone already: nothing to end.
            let _ = kill_process_group(group, Signal::TERM);
        }
        let _ = self.0.wait();
    }
}

/// Whether a program is attached, by tcx, as a filter, or by XDP; or a packet socket.
fn is_attached(node: &Netns, interface: &str) -> anyhow::Result<bool> {
    let name = std::ffi::CString::new(interface)?;
    let by_tcx =
        |side| node.run(|| SchedClassifier::query_tcx(name.as_c_str(), side)).is_ok_and(|(_, found)| !found.is_empty());
    if by_tcx(TcAttachType::Ingress) || by_tcx(TcAttachType::Egress) {
        return Ok(true);
    }
    let says = |command: String| node.exec(&command);
    Ok(["ingress", "egress"]
        .iter()
        .any(|side| says(format!("tc filter show dev {interface} {side}")).is_ok_and(|out| out.contains("bpf")))
        || says(format!("ip -d link show dev {interface}"))?.contains("prog/xdp")
        || has_packet_socket(node, interface)?)
}

/// Whether a packet socket receives what this interface sees. One that is bound to none receives what all of them see, and would cost
/// every lane: it does not count.
fn has_packet_socket(node: &Netns, interface: &str) -> anyhow::Result<bool> {
    let index = node.exec(&format!("cat /sys/class/net/{interface}/ifindex"))?;
    // sk RefCnt Type Proto Iface R(eceives) Rmem User Inode
    Ok(node.exec("cat /proc/net/packet")?.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.get(4) == Some(&index.trim()) && words.get(5) == Some(&"1")
    }))
}
