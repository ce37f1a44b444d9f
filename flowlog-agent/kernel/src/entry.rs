//! Entries: what is attached to interfaces of other network namespaces.
//!
//! Indexes begin anew in every namespace, and a hook knows its interface by index alone. So each [`Range`](flowlog_ebpf::abi::Range) of indexes
//! has a program of its own, a dozen instructions long: it writes down what is to be added to the index, and jumps to the hook. Asking for
//! the namespace would cost each packet several dependent loads; what the jump costs is a row of `cargo xtask bench packet --only kinds`.
//! Loading the hook itself once for each namespace would cost a packet nothing, but the verifier 90,000 instructions each time.
//!
//! Entries are made here, instruction by instruction, since each has a number of its own. An agent that takes over replaces the hooks in
//! the arrays that entries jump through, and so all at once.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use flowlog_ebpf::abi::{
    Cpu, ELSEWHERE_AGAIN_EGRESS, ELSEWHERE_AGAIN_INGRESS, ELSEWHERE_EGRESS, ELSEWHERE_INGRESS, ELSEWHERE_XDP_INGRESS,
};
use flowlog_model::rule::Direction;

use super::bpf::{self, Instruction, ProgramKind};

/// `BPF_PROG_TYPE_SCHED_CLS`.
const SCHED_CLS: u32 = 3;
/// `BPF_PROG_TYPE_XDP`.
const XDP: u32 = 6;
/// `BPF_XDP` of `enum bpf_attach_type`.
pub(super) const ATTACH_XDP: u32 = 37;
/// `BPF_F_XDP_HAS_FRAGS`: as the hook has it, or it could not be jumped to.
const XDP_HAS_FRAGS: u32 = 1 << 5;
/// How an XDP program is loaded, by whether it takes frames in several buffers.
pub(super) const fn xdp_kind(has_frags: bool) -> ProgramKind {
    ProgramKind { program_type: XDP, flags: if has_frags { XDP_HAS_FRAGS } else { 0 }, attach_type: ATTACH_XDP }
}

/// `TC_ACT_UNSPEC`: whoever comes next decides.
const TC_GO_ON: i32 = -1;
/// `XDP_PASS`.
const XDP_GO_ON: i32 = 2;

/// Which hook an entry jumps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Tc(Direction),
    Xdp,
    /// What is in the place of [`Self::Tc`] while another entry is put in front.
    Again(Direction),
}

impl Way {
    /// The hook's name in the eBPF object.
    pub(super) const fn hook(self) -> &'static str {
        match self {
            Self::Tc(Direction::Ingress) => "flowlog_elsewhere_ingress",
            Self::Tc(Direction::Egress) => "flowlog_elsewhere_egress",
            Self::Xdp => "flowlog_elsewhere_xdp",
            Self::Again(Direction::Ingress) => "flowlog_elsewhere_again_ingress",
            Self::Again(Direction::Egress) => "flowlog_elsewhere_again_egress",
        }
    }

    /// The array that it is in, and where.
    pub(super) const fn place(self) -> (&'static str, u32) {
        match self {
            Self::Tc(Direction::Ingress) => ("ELSEWHERE_TC", ELSEWHERE_INGRESS),
            Self::Tc(Direction::Egress) => ("ELSEWHERE_TC", ELSEWHERE_EGRESS),
            Self::Xdp => ("ELSEWHERE_XDP", ELSEWHERE_XDP_INGRESS),
            Self::Again(Direction::Ingress) => ("ELSEWHERE_TC", ELSEWHERE_AGAIN_INGRESS),
            Self::Again(Direction::Egress) => ("ELSEWHERE_TC", ELSEWHERE_AGAIN_EGRESS),
        }
    }

    /// What the kernel calls its entries.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Tc(Direction::Ingress) | Self::Again(Direction::Ingress) => "flowlog_in",
            Self::Tc(Direction::Egress) | Self::Again(Direction::Egress) => "flowlog_out",
            Self::Xdp => "flowlog_in_xdp",
        }
    }
}

/// The maps that an entry uses.
#[derive(Clone, Copy)]
pub(super) struct Maps<'a> {
    /// Scratch state of each CPU.
    pub(super) cpu: BorrowedFd<'a>,
    /// The array of hooks.
    pub(super) hooks: BorrowedFd<'a>,
}

/// Makes an entry: its interfaces are at `base` plus their index.
pub(super) fn load(way: Way, base: u32, maps: Maps<'_>) -> io::Result<OwnedFd> {
    let (kind, go_on) = match way {
        Way::Tc(_) | Way::Again(_) => (ProgramKind { program_type: SCHED_CLS, flags: 0, attach_type: 0 }, TC_GO_ON),
        Way::Xdp => (ProgramKind { program_type: XDP, flags: XDP_HAS_FRAGS, attach_type: ATTACH_XDP }, XDP_GO_ON),
    };
    let loaded = bpf::load(kind, way.name(), &instructions(base, maps, way.place().1, go_on)?);
    loaded.map_err(|unloaded| io::Error::new(unloaded.error.kind(), unloaded.to_string()))
}

/// `*(u32 *)&cpu[smp_processor_id()]->base = base; tail_call(ctx, hooks, at); return go_on`.
fn instructions(base: u32, maps: Maps<'_>, at: u32, go_on: i32) -> io::Result<Vec<Instruction>> {
    let base_at = i16::try_from(core::mem::offset_of!(Cpu, base)).map_err(io::Error::other)?;
    let mut program = vec![move_register(6, 1), call(GET_SMP_PROCESSOR_ID), store_register(10, -4, 0)];
    program.extend(load_map(1, maps.cpu));
    program.extend([
        move_register(2, 10),
        add(2, -4),
        call(MAP_LOOKUP_ELEM),
        // Over what follows, to the end: there is an element for each CPU, but the verifier wants to be told.
        jump_if_zero(0, 6),
        store(0, base_at, base.cast_signed()),
        move_register(1, 6),
    ]);
    program.extend(load_map(2, maps.hooks));
    program.extend([set(3, at.cast_signed()), call(TAIL_CALL), set(0, go_on), EXIT]);
    Ok(program)
}

const MAP_LOOKUP_ELEM: i32 = 1;
const GET_SMP_PROCESSOR_ID: i32 = 8;
const TAIL_CALL: i32 = 12;
/// The upper half of a load of eight bytes; the lower one names a map by its descriptor.
const MAP_FD: u8 = 1;
const EXIT: Instruction = instruction(0x95, 0, 0, 0, 0);

const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: to | from << 4, offset, immediate }
}

const fn move_register(to: u8, from: u8) -> Instruction {
    instruction(0xbf, to, from, 0, 0)
}

const fn set(to: u8, value: i32) -> Instruction {
    instruction(0xb7, to, 0, 0, value)
}

const fn add(to: u8, value: i32) -> Instruction {
    instruction(0x07, to, 0, 0, value)
}

/// Four bytes of a register.
const fn store_register(base: u8, offset: i16, from: u8) -> Instruction {
    instruction(0x63, base, from, offset, 0)
}

/// Four bytes.
const fn store(base: u8, offset: i16, value: i32) -> Instruction {
    instruction(0x62, base, 0, offset, value)
}

const fn jump_if_zero(register: u8, over: i16) -> Instruction {
    instruction(0x15, register, 0, over, 0)
}

const fn call(helper: i32) -> Instruction {
    instruction(0x85, 0, 0, 0, helper)
}

fn load_map(to: u8, map: BorrowedFd<'_>) -> [Instruction; 2] {
    use std::os::fd::AsRawFd as _;
    [instruction(0x18, to, MAP_FD, 0, map.as_fd().as_raw_fd()), instruction(0, 0, 0, 0, 0)]
}
