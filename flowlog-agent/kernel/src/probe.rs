//! What this machine can do. Looks, asks, and has the programs loaded and thrown away; attaches nothing.

use std::{fmt, fs, path::Path};

use aya::{
    maps::MapType,
    programs::ProgramType,
    sys::{is_map_supported, is_program_supported},
};

use flowlog_model::{
    hiding::Hiding,
    interface::NetDev,
    rule::Direction,
    xdp::{XdpMode, XdpReading, words},
};
use rustix::thread::CapabilitySet;

use super::{
    Kernel, Sizes,
    attach::{has_tcx, kernel_at_least},
    btf::Btf,
    confine::{self, capabilities::NEEDED},
    layout::{self, Moves},
    pins::is_bpffs,
    refusal, wrap,
};
use crate::netdev;

/// Names of our programs that run other people's begin with this.
const WRAPPER: &str = "flowlog_wrap";
/// Oldest kernel that is tested against.
const KERNEL_MIN: (u8, u8) = (6, 1);

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// As it should be.
    Ok,
    /// Works, with the limit that the detail names.
    Limited,
    /// flowlog cannot run without it.
    Missing,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Limited => "limited",
            Self::Missing => "MISSING",
        })
    }
}

#[derive(Clone, Debug)]
pub struct Finding {
    /// What was looked at.
    pub what: String,
    /// How it came out.
    pub state: State,
    /// What was found; what to do if it is not as it should be.
    pub detail: String,
}

pub fn finding(what: impl Into<String>, state: State, detail: impl Into<String>) -> Finding {
    Finding { what: what.into(), state, detail: detail.into() }
}

/// Checks the machine and the given interfaces, whether drop reasons can be moved like this, and whether the capture can be pinned there, if it
/// is to be pinned.
#[must_use]
pub fn machine(interfaces: &[String], moves: &Moves, (pin_dir, is_needed): (Option<&Path>, bool)) -> Vec<Finding> {
    let mut all = vec![kernel_version(), btf(moves)];
    all.extend(capabilities());
    all.push(filters());
    all.extend(programs());
    all.extend(accepted());
    all.push(hooks());
    all.push(symbols());
    all.push(pinning(pin_dir, is_needed));
    all.extend(interfaces.iter().map(|name| interface(name)));
    all
}

fn kernel_version() -> Finding {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let (major, minor) = KERNEL_MIN;
    if kernel_at_least(major, minor) {
        finding("kernel", State::Ok, release.trim())
    } else {
        finding("kernel", State::Missing, format!("{}; needs {major}.{minor} or newer", release.trim()))
    }
}

fn btf(moves: &Moves) -> Finding {
    let resolved = Btf::vmlinux().and_then(|btf| {
        layout::offsets(&btf)?;
        let reasons = layout::Reasons::resolve(&btf)?.with(moves)?;
        Ok((reasons.counts(), reasons.unknown().or_else(|| reasons.absent())))
    });
    match resolved {
        Ok((_, Some(unknown))) => finding("type information (BTF)", State::Limited, unknown),
        Ok(((refusals, losses), None)) => {
            let detail = format!("{refusals} drop reasons mean REJECT, {losses} that a packet was lost");
            finding("type information (BTF)", State::Ok, detail)
        }
        Err(error) => finding("type information (BTF)", State::Missing, error.to_string()),
    }
}

fn capabilities() -> Vec<Finding> {
    let held = rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    // CAP_SYS_ADMIN stands for all but this one.
    let has = |one: CapabilitySet| {
        held.contains(one) || (one != CapabilitySet::NET_ADMIN && held.contains(CapabilitySet::SYS_ADMIN))
    };
    let found = NEEDED.iter_names().map(|(name, one)| {
        let name = format!("CAP_{name}");
        if has(one) {
            finding(name, State::Ok, "held")
        } else {
            finding(name, State::Missing, "not held; run as root or grant it")
        }
    });
    found.collect()
}

/// The agent refuses to run without a filter of its system calls.
fn filters() -> Finding {
    const WHAT: &str = "system call filters";
    if confine::has_filters() {
        finding(WHAT, State::Ok, "supported")
    } else {
        finding(WHAT, State::Missing, "this kernel has none; flowlog needs CONFIG_SECCOMP_FILTER=y")
    }
}

fn programs() -> Vec<Finding> {
    let of = |what: &str, supported: Result<bool, String>| match supported {
        Ok(true) => finding(what, State::Ok, "supported"),
        Ok(false) => finding(what, State::Missing, "this kernel does not support it"),
        Err(error) => finding(what, State::Missing, format!("cannot find out: {error}")),
    };
    let program = |t| is_program_supported(t).map_err(|e| e.to_string());
    vec![
        of("tc programs", program(ProgramType::SchedClassifier)),
        of("xdp programs", program(ProgramType::Xdp)),
        of("ring buffer", is_map_supported(MapType::RingBuf).map_err(|e| e.to_string())),
    ]
}

/// Whether this kernel takes our programs, and lets them trace those of others: the only way to know is to ask it.
fn accepted() -> Vec<Finding> {
    const WHAT: &str = "flowlog's programs";
    if refusal::jit_is_off() {
        let detail = "the kernel's JIT compiler is off: set the sysctl net.core.bpf_jit_enable to 1";
        return vec![finding(WHAT, State::Missing, detail)];
    }
    let mut kernel = match Kernel::load(Sizes::default(), 0) {
        Ok(kernel) => kernel,
        Err(error) => return vec![finding(WHAT, State::Missing, error.to_string())],
    };
    let accepted = match kernel.programs.verified_instructions() {
        Ok(programs) => {
            let most = programs.iter().map(|(_, count)| *count).max().unwrap_or(0);
            let detail =
                format!("all {} are accepted; the largest takes the verifier {most} instructions", programs.len());
            finding(WHAT, State::Ok, detail)
        }
        Err(error) => finding(WHAT, State::Missing, error.to_string()),
    };
    let tracing = match kernel.programs.untraceable() {
        None => finding("tracing XDP", State::Ok, "possible (`xdp = \"trace\"`)"),
        Some(why) => {
            finding("tracing XDP", State::Limited, format!("{why}; `xdp = \"trace\"` stays at the driver's counters"))
        }
    };
    vec![accepted, tracing]
}

/// Generic XDP gives no reason for a drop; it is told by where in the kernel it happens.
fn symbols() -> Finding {
    match layout::xdp_text() {
        Ok(_) => finding("kernel symbols", State::Ok, "readable"),
        Err(problem) => {
            let detail = format!("drops by generic XDP programs will count as ACCEPT: {problem}");
            finding("kernel symbols", State::Limited, detail)
        }
    }
}

fn hooks() -> Finding {
    if has_tcx() {
        finding("tc attachment", State::Ok, "tcx links")
    } else {
        finding(
            "tc attachment",
            State::Limited,
            "clsact filters (tcx links need Linux 6.6): filters outlive a killed agent",
        )
    }
}

fn pinning(pin_dir: Option<&Path>, is_needed: bool) -> Finding {
    let Some(pin_dir) = pin_dir else {
        return finding("pinning", State::Ok, "not asked for (`no_pin`): the capture ends with the agent");
    };
    // It is made at the start.
    let dir = pin_dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    if is_bpffs(dir) {
        finding("pinning", State::Ok, format!("a bpf file system is mounted on {}", dir.display()))
    } else {
        let detail = format!(
            "no bpf file system on {}: mount one (mount -t bpf bpf {0}), or run with `--no-pin`: the capture then ends with the agent",
            dir.display()
        );
        // Without a configuration nobody has said that it is to be.
        finding("pinning", if is_needed { State::Missing } else { State::Limited }, detail)
    }
}

/// What somebody else's XDP programs on an interface hide; `None`: there are none.
fn foreign_xdp(dev: &NetDev) -> Option<String> {
    let XdpReading { programs, counters, .. } = netdev::foreign_xdp::read(&dev.netns, dev.index, &[], None).ok()?;
    if programs.is_empty() {
        let is_wrapped =
            dev.xdp.iter().any(|(_, id)| netdev::foreign_xdp::name(*id).is_some_and(|n| n.starts_with(WRAPPER)));
        return is_wrapped
            .then(|| "somebody else's XDP program on it is run by flowlog's (`xdp = \"wrap\"`)".to_owned());
    }
    let counted = match (programs.iter().all(|p| p.mode == XdpMode::Generic), counters.dropped.is_some()) {
        (true, _) => "what it drops will be REJECT, what it forwards is in no row",
        (false, true) => "what it drops and forwards is counted by the driver, and is in no flow",
        (false, false) => "what it drops and forwards is in no flow, and its driver does not count it",
    };
    let better = match wrap::obstacle(&dev.xdp) {
        _ if programs.iter().all(|p| p.mode == XdpMode::Generic) => String::new(),
        None => "; with `xdp = \"wrap\"` it would be in flows".to_owned(),
        Some(why) => format!("; it cannot be wrapped: {why}"),
    };
    Some(format!("somebody else's XDP program is on it ({}): {counted}{better}", words(&programs)))
}

/// What else may keep packets from hooks on an interface; `None`: nothing.
fn hiding(dev: &NetDev) -> Option<String> {
    let in_front = Direction::BOTH.map(|direction| netdev::foreign::in_front_of_flowlog(dev.index, direction));
    let found = Hiding { in_front, offload: netdev::offload::of(&dev.name, dev.index) };
    let (front, offload) = (found.front_words(), found.offload_words());
    let front = (!front.is_empty()).then(|| {
        format!("somebody else is in front of flowlog's hook ({front}): what they take for themselves is in no flow; `restore_order` puts the hook in front again")
    });
    let offload = (!offload.is_empty())
        .then(|| format!("packets may be carried past every hook ({offload}): they are in no flow"));
    let all: Vec<String> = front.into_iter().chain(offload).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

fn interface(name: &str) -> Finding {
    let what = format!("interface {name}");
    match netdev::find(name) {
        Err(error) => finding(what, State::Missing, error.to_string()),
        Ok(dev) => {
            let driver = fs::read_link(Path::new("/sys/class/net").join(name).join("device/driver"))
                .ok()
                .and_then(|p| p.file_name().map(|n| n.to_string_lossy().into_owned()));
            let driver = driver.unwrap_or_else(|| "virtual".to_owned());
            let kind = if dev.bridge { ", bridge" } else { "" };
            let xdp = match netdev::xdp::native(dev.index) {
                Some(true) => "native",
                Some(false) => "generic",
                None => "native if the driver has it, else generic (this kernel does not say)",
            };
            let detail = format!("index {}, driver {driver}{kind}; xdp: {xdp}", dev.index);
            let limits: Vec<String> = foreign_xdp(&dev).into_iter().chain(hiding(&dev)).collect();
            if limits.is_empty() {
                finding(what, State::Ok, detail)
            } else {
                finding(what, State::Limited, format!("{detail}; {}", limits.join("; ")))
            }
        }
    }
}
