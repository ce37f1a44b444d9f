//! Maps and load-time constants of the tracer's programs.

use aya_ebpf::{Global, bindings::BPF_F_MMAPABLE, btf_maps::Array, macros::btf_map};
use flowlog_ebpf::{
    abi::{ConnectionPlace, Cpu, KernelOffsets, MarkPlace},
    expression::{TESTS_MAX, Test},
    sighting::{Budget, TARGETS_MAX, Target},
};

/// The agent's own, if one captures: its notes are read. Else an empty one.
#[btf_map]
pub static CPU: Array<Cpu, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

/// Which packets are meant.
#[btf_map]
pub static EXPRESSION: Array<Test, TESTS_MAX> = Array::new();

/// The interfaces that are traced: for packets that are not seen at a hook of theirs.
#[btf_map]
pub static TARGETS: Array<Target, TARGETS_MAX> = Array::new();

/// How much may be said.
#[btf_map]
pub static BUDGET: Array<Budget, 1> = Array::new();

/// Sightings a second, on all CPUs together.
#[unsafe(no_mangle)]
pub static RATE: Global<u64> = Global::new(0);

/// 0: frames on the interfaces start with an IP header.
#[unsafe(no_mangle)]
pub static LINK_HEADER: Global<u32> = Global::new(1);

/// As the agent's programs have it.
#[unsafe(no_mangle)]
pub static OFFSETS: Global<KernelOffsets> = Global::new(KernelOffsets::ZERO);

/// As the agent's programs have it; no mark is asked for.
#[unsafe(no_mangle)]
pub static MARK: Global<MarkPlace> = Global::new(MarkPlace { mask: 0, skb: 0, is_connection: 0, connection: 0 });

/// As the agent's programs have it.
#[unsafe(no_mangle)]
pub static CONNECTION: Global<ConnectionPlace> =
    Global::new(ConnectionPlace { skb: 0, status: 0, tuples: 0, stride: 0 });

/// As the agent's programs have it.
#[unsafe(no_mangle)]
pub static SEQUENCE_BITS: Global<u32> = Global::new(8);
