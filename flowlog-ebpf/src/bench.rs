//! What the benchmark's eBPF programs (`src/bin/bench/`) and the benchmark (`integration/benches/suite/`) agree on. The agent
//! uses none of it.

/// How the driver programs vary the packet of `BPF_PROG_TEST_RUN` before they hand it to the program under test.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drive {
    /// Offset in the frame of the word of eight bytes that tells flows apart. It is written as a whole: the programs
    /// load it as a whole, and would wait for a narrower store, which packets do not make them do.
    pub offset: u32,
    /// Shift of the flow number in that word.
    pub shift: u32,
    /// The rest of the word.
    pub rest: u64,
    /// Slot of the program under test.
    pub program: u32,
    /// 0: flow numbers come from the `ORDER` array. Else: every packet has a new one, counted up.
    pub new_flows: u32,
    /// Each CPU adds its number shifted by this, so that CPUs work on flows of their own; 32 or more: on the same ones.
    pub cpu_shift: u32,
    /// Explicit padding, always 0.
    pub pad: u32,
}

/// Entries of `ORDER`: packets before a sequence repeats. A power of two.
pub const ORDER_ENTRIES: u32 = 1 << 20;
/// Programs under test at most.
pub const PROGRAMS_MAX: u32 = 64;
/// Flows that the preallocated tables of the baselines hold.
pub const TABLE_ENTRIES: usize = 1 << 20;
/// Slots of the explored caches: as many as the real one has by default.
pub const CACHE_SLOTS: usize = crate::abi::CACHE_SLOTS_DEFAULT as usize;

/// What the traffic generator (`generate.rs`) varies in each frame. Every pair of bytes it writes is balanced by its
/// complement elsewhere, so that checksums stay right.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Generate {
    /// Offset of two bytes of the source address.
    pub address: u32,
    /// Offset of the two bytes that balance it.
    pub address_balance: u32,
    /// Offset of the source port.
    pub port: u32,
    /// Offset of the two bytes that balance it.
    pub port_balance: u32,
    /// Flow numbers run from 0 to this, exclusive; a power of two.
    pub flows: u32,
    /// Explicit padding, always 0.
    pub pad: u32,
    /// Frames made so far: the next flow number. Written by the program.
    pub made: u64,
    /// First bytes of every frame. The kernel uses frames again, after the node has changed their headers.
    pub start: [u64; GENERATED_WORDS],
}

/// Words at the start of a frame that the generator writes anew.
pub const GENERATED_WORDS: usize = 8;

const _: () = {
    assert!(size_of::<Drive>() == 32);
    assert!(size_of::<Generate>() == 32 + 64);
};
