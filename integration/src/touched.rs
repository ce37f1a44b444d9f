//! How many cache lines a packet costs that a hook of flowlog's counts: its programs, on [`crate::machine`].

use anyhow::{Context as _, ensure};
use flowlog_ebpf::abi::{Cpu, EPOCHS, Iface, WANT_INGRESS, XDP_INGRESS};

use crate::machine::{ContextKind, Machine, Run};

/// The programs of this tree.
static OBJECT: &[u8] = include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../flowlog-ebpf/prebuilt/flowlog.bpf.o"));

/// The interface that packets come in through.
const IFINDEX: u32 = 7;
const ID: u16 = 1;
/// Packets of one flow: the first makes its record, the others are hits.
const PACKETS: u32 = 8;

/// A hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountedAt {
    /// TC, for packets on their way in.
    TcIngress,
    /// XDP.
    Xdp,
}

impl CountedAt {
    /// All that are looked at.
    pub const ALL: [Self; 2] = [Self::TcIngress, Self::Xdp];

    /// Its name for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TcIngress => "TC ingress",
            Self::Xdp => "XDP",
        }
    }
}

/// What a hit takes: a packet whose flow is in the cache. `skew_bytes`: how far behind a line's begin begins what the kernel puts anywhere, below
/// 64.
///
/// # Errors
/// If the program does what the machine does not know, or does not count the packets.
pub fn hit(hook: CountedAt, packet: &[u8], skew_bytes: u64) -> anyhow::Result<Run> {
    let (program, kind, flags) = match hook {
        CountedAt::TcIngress => ("flowlog_tc_ingress", ContextKind::Skb, WANT_INGRESS),
        CountedAt::Xdp => ("flowlog_xdp", ContextKind::Xdp, WANT_INGRESS | XDP_INGRESS),
    };
    let mut machine = Machine::new(OBJECT, program, kind, skew_bytes)?;
    let iface = [ID.to_le_bytes(), flags.to_le_bytes()].concat();
    machine.write("IFACES", IFINDEX, core::mem::offset_of!(Iface, id), &iface)?;
    machine.write("IFACES", IFINDEX, core::mem::offset_of!(Iface, epoch), &1u32.to_le_bytes())?;
    // As `notes::begin` of the agent's kernel layer does it, for the first of few CPUs.
    machine.write("CPU", 0, core::mem::offset_of!(Cpu, owner), &0x0100u16.to_le_bytes())?;
    machine.write("CPU", 0, core::mem::offset_of!(Cpu, sequence), &0x00ffu16.to_le_bytes())?;
    machine.write("CPU", 0, core::mem::offset_of!(Cpu, seed), &0x5eed_u64.to_le_bytes())?;
    machine.write("CPU", 0, core::mem::offset_of!(Cpu, passed_mask), &0x3fffu32.to_le_bytes())?;
    let len = u32::try_from(packet.len())?;
    let context: &[(usize, u32)] = match kind {
        // `len`, `ingress_ifindex`, `ifindex` of `struct __sk_buff`.
        ContextKind::Skb => &[(0, len), (36, IFINDEX), (40, IFINDEX)],
        // `ingress_ifindex` of `struct xdp_md`.
        ContextKind::Xdp => &[(12, IFINDEX)],
    };
    let mut run = Run::default();
    for _ in 0..PACKETS {
        run = machine.run(packet, context).with_context(|| program.to_owned())?;
    }
    let counted = machine.read("HOOKED", u32::from(ID) * EPOCHS + 1, 0, 8)?;
    ensure!(counted == u64::from(PACKETS).to_le_bytes(), "{program} has counted {counted:?}");
    Ok(run)
}
