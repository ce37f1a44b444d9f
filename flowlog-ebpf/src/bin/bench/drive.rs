//! Drivers: write the next flow's number into the packet, then tail-call the program under test.
//!
//! So any program can be measured as it is, somebody else's too. What the driver costs is in every figure, and the
//! benchmark subtracts that of the driver with an empty program behind it.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{TC_ACT_UNSPEC, xdp_action::XDP_PASS},
    btf_maps::{Array, PerCpuArray, ProgramArray},
    helpers::generated::{bpf_get_smp_processor_id, bpf_tail_call},
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};
use flowlog_ebpf::bench::{Drive, ORDER_ENTRIES, PROGRAMS_MAX};

/// What to do; one element.
#[btf_map]
static DRIVE: Array<Drive, 1> = Array::new();
/// Flow numbers in the order packets come.
#[btf_map]
static ORDER: Array<u32, { ORDER_ENTRIES as usize }> = Array::new();
/// Packets that this CPU has driven so far; one element.
#[btf_map]
static CURSOR: PerCpuArray<u64, 1> = PerCpuArray::new();
/// TC programs under test, at the slots that `Drive::program` names.
#[btf_map]
static TC_PROGRAMS: ProgramArray<{ PROGRAMS_MAX as usize }> = ProgramArray::new();
/// XDP programs under test, at the slots that `Drive::program` names.
#[btf_map]
static XDP_PROGRAMS: ProgramArray<{ PROGRAMS_MAX as usize }> = ProgramArray::new();

/// What an entry writes down: see `kernel/src/entry.rs` of the agent.
#[btf_map]
static BASE: PerCpuArray<[u32; 2], 1> = PerCpuArray::new();

/// What an entry does, instruction by instruction: a number for the hook, and a jump to the last of the programs under test.
#[classifier]
pub fn tc_entry(ctx: TcContext) -> i32 {
    if let Some(base) = BASE.get_ptr_mut(0) {
        // SAFETY: a map value of this CPU; the context and a program array.
        unsafe {
            (*base)[0] = 0;
            bpf_tail_call(ctx.as_ptr().cast(), (&raw const TC_PROGRAMS).cast_mut().cast(), PROGRAMS_MAX - 1);
        }
    }
    TC_ACT_UNSPEC
}

/// Keeps the verifier sure of the offset.
const OFFSET_MASK: usize = 0x7f;

/// Writes the next flow number; returns the slot of the program to call.
#[inline(always)]
fn next(data: usize, end: usize) -> Option<u32> {
    let drive = DRIVE.get(0)?;
    let cursor = CURSOR.get_ptr_mut(0)?;
    // SAFETY: a map value of this CPU.
    let n = unsafe {
        *cursor += 1;
        *cursor as u32
    };
    let number = if drive.new_flows != 0 { n } else { *ORDER.get(n & (ORDER_ENTRIES - 1))? };
    let own = if drive.cpu_shift < 32 {
        // SAFETY: takes no arguments.
        unsafe { bpf_get_smp_processor_id() << (drive.cpu_shift & 31) }
    } else {
        0
    };
    let at = data + (drive.offset as usize & OFFSET_MASK);
    if at + 8 > end {
        return None;
    }
    // SAFETY: within the packet.
    unsafe { (at as *mut u64).write_unaligned(drive.rest | u64::from((number ^ own).to_be()) << (drive.shift & 63)) };
    Some(drive.program)
}

#[classifier]
pub fn drive_tc(ctx: TcContext) -> i32 {
    if let Some(program) = next(ctx.data(), ctx.data_end()) {
        // SAFETY: the context and a program array.
        unsafe { bpf_tail_call(ctx.as_ptr().cast(), (&raw const TC_PROGRAMS).cast_mut().cast(), program) };
    }
    TC_ACT_UNSPEC
}

#[xdp(frags)]
pub fn drive_xdp(ctx: XdpContext) -> u32 {
    if let Some(program) = next(ctx.data(), ctx.data_end()) {
        // SAFETY: the context and a program array.
        unsafe { bpf_tail_call(ctx.ctx.cast(), (&raw const XDP_PROGRAMS).cast_mut().cast(), program) };
    }
    XDP_PASS
}
