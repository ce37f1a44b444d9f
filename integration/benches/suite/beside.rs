//! A fourth lane: whatever a command attaches to it, a whole agent for example.

use std::{
    os::unix::process::CommandExt as _,
    process::{Child, Command},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
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
    /// Runs `sh -c COMMAND` in the node, with `INTERFACE` in its environment, and waits until a program is attached there.
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

/// Whether a program is attached: by tcx, as a filter, or by XDP.
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
        || says(format!("ip -d link show dev {interface}"))?.contains("prog/xdp"))
}
