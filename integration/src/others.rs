//! Other people's programs on the watched interface: counters and droppers, from `testkit.bpf.o`.

use std::{ffi::CStr, path::Path};

use aya::{
    Ebpf,
    maps::{PerCpuArray, ProgramArray},
    programs::{
        LinkOrder, SchedClassifier, TcAttachType, Xdp, XdpMode,
        tc::{NlOptions, TcAttach, qdisc_add_clsact},
    },
};

use crate::net::Netns;

pub(crate) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../flowlog-ebpf/prebuilt/testkit.bpf.o"));

/// Where among the programs on a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A tcx link before all others.
    TcxFirst,
    /// A tcx link after all others.
    TcxLast,
    /// A clsact filter: after all tcx links.
    Clsact,
    /// XDP in the driver.
    XdpNative,
    /// XDP in the stack.
    XdpGeneric,
}

/// Names of the programs of tcx links on `eth0`, in the order in which they run.
///
/// # Errors
/// What the kernel says.
pub fn order(ns: &Netns, side: TcAttachType) -> anyhow::Result<Vec<String>> {
    let (_, programs) = ns.run(|| SchedClassifier::query_tcx(c"eth0", side))?;
    Ok(programs.iter().filter_map(|p| p.name_as_str().map(str::to_owned)).collect())
}

/// The id of the XDP program that the driver of `eth0` runs.
///
/// # Errors
/// If it cannot be asked for.
pub fn xdp_id(ns: &Netns) -> anyhow::Result<Option<u32>> {
    let json: serde_json::Value = serde_json::from_str(&ns.exec("ip -j link show eth0")?)?;
    Ok(json[0]["xdp"]["prog"]["id"].as_u64().and_then(|id| u32::try_from(id).ok()))
}

/// Takes the XDP program of `eth0` away, whoever's it is.
///
/// # Errors
/// What the kernel says.
pub fn xdp_off(ns: &Netns) -> anyhow::Result<()> {
    ns.exec("ip link set dev eth0 xdpdrv off").map(drop)
}

/// One attached program; detached on drop.
pub struct Other {
    ebpf: Ebpf,
}

impl Other {
    /// Attaches `program` of the test kit to `eth0` of a namespace.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn attach(ns: &Netns, program: &str, side: TcAttachType, place: Place) -> anyhow::Result<Self> {
        Self::attach_to(ns, c"eth0", program, side, place)
    }

    /// The same on any interface.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn attach_to(
        ns: &Netns,
        interface: &CStr,
        program: &str,
        side: TcAttachType,
        place: Place,
    ) -> anyhow::Result<Self> {
        ns.run(|| {
            let mut ebpf = Ebpf::load(OBJECT)?;
            let p = ebpf.program_mut(program).ok_or_else(|| anyhow::anyhow!("no {program}"))?;
            match place {
                Place::XdpNative | Place::XdpGeneric => {
                    let p: &mut Xdp = p.try_into()?;
                    p.load()?;
                    p.attach(interface, if place == Place::XdpNative { XdpMode::Driver } else { XdpMode::Skb })?;
                }
                Place::TcxFirst | Place::TcxLast | Place::Clsact => {
                    let p: &mut SchedClassifier = p.try_into()?;
                    p.load()?;
                    let options = match place {
                        Place::TcxFirst => TcAttach::Tcx { attach_type: side, order: LinkOrder::first() },
                        Place::TcxLast => TcAttach::Tcx { attach_type: side, order: LinkOrder::last() },
                        _ => {
                            let _ = qdisc_add_clsact(interface);
                            let options = NlOptions { priority: 50, ..NlOptions::default() };
                            TcAttach::Netlink { parent: side.into(), options }
                        }
                    };
                    p.attach(interface, options)?;
                }
            }
            Ok(Self { ebpf })
        })
    }

    /// Puts an XDP program on `eth0` as `ip link` does, over netlink, in the place of any other one; `bpffs` is for a pin that is gone at once. It
    /// stays until somebody takes it away: see [`xdp_off`].
    ///
    /// # Errors
    /// What the kernel says.
    pub fn put(ns: &Netns, bpffs: &Path, program: &str) -> anyhow::Result<Self> {
        let mut ebpf = Ebpf::load(OBJECT)?;
        let p: &mut Xdp = ebpf.program_mut(program).ok_or_else(|| anyhow::anyhow!("no {program}"))?.try_into()?;
        p.load()?;
        let pin = bpffs.join("others");
        p.pin(&pin)?;
        let put = ns.exec(&format!("ip -force link set dev eth0 xdpdrv pinned {}", pin.display()));
        std::fs::remove_file(&pin)?;
        put?;
        Ok(Self { ebpf })
    }

    /// Attaches a program to the driver of `eth0` that runs `program` by a tail call, as dispatchers do.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn attach_dispatched(ns: &Netns, program: &str) -> anyhow::Result<Self> {
        let mut other = Self::attach(ns, "xdp_dispatch", TcAttachType::Ingress, Place::XdpNative)?;
        let p: &mut Xdp = other.ebpf.program_mut(program).ok_or_else(|| anyhow::anyhow!("no {program}"))?.try_into()?;
        p.load()?;
        let fd = p.fd()?.try_clone()?;
        let map = other.ebpf.map_mut("RUN").ok_or_else(|| anyhow::anyhow!("no map"))?;
        ProgramArray::try_from(map)?.set(0, &fd, 0)?;
        Ok(other)
    }

    /// What became of packets by the count of `xdp_mixed` itself, at the number of each action: aborted, dropped, passed,
    /// sent back, redirected.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn actions(&self) -> anyhow::Result<[u64; 5]> {
        let map = self.ebpf.map("ACTIONS").ok_or_else(|| anyhow::anyhow!("no map"))?;
        let map: PerCpuArray<_, u64> = map.try_into()?;
        let mut actions = [0; 5];
        for (at, packets) in actions.iter_mut().enumerate() {
            *packets = map.get(&u32::try_from(at)?, 0)?.iter().sum();
        }
        Ok(actions)
    }

    /// The kernel's id of a program of it.
    ///
    /// # Errors
    /// If it is not loaded.
    pub fn id(&self, program: &str) -> anyhow::Result<u32> {
        Ok(self.ebpf.program(program).ok_or_else(|| anyhow::anyhow!("no {program}"))?.info()?.id())
    }

    /// Packets it has seen, and dropped.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn counters(&self) -> anyhow::Result<(u64, u64)> {
        let map = self.ebpf.map("COUNTERS").ok_or_else(|| anyhow::anyhow!("no map"))?;
        let map: PerCpuArray<_, u64> = map.try_into()?;
        Ok((map.get(&0, 0)?.iter().sum(), map.get(&1, 0)?.iter().sum()))
    }
}
