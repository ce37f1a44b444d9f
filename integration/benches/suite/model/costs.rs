//! What follows from records: the formulae of the model, with what this machine takes for each step.
#![allow(clippy::cast_precision_loss, reason = "counts that are printed")]

use flowlog_ebpf::abi::{BLOCK4, Block4, SWEEP_CHUNK};
use flowlog_kernel::Sizes;

/// What each step takes here, measured at one point; the tables compare what follows from it with what is measured at others.
#[derive(Clone, Copy, Debug, Default)]
#[allow(clippy::struct_field_names, reason = "units are last in names")]
pub(crate) struct Costs {
    /// A look at [`SWEEP_CHUNK`] slots that are empty, on another CPU.
    pub(crate) chunk_ns: f64,
    /// The same on our own.
    pub(crate) own_chunk_ns: f64,
    /// A record that the sweep evicts, besides.
    pub(crate) swept_ns: f64,
    /// A record in the agent: read, journaled, merged.
    pub(crate) record_ns: f64,
    /// A row of an object, from the end of its window to the store.
    pub(crate) row_ns: f64,
    /// A window of an interface that ends, and its object.
    pub(crate) window_ns: f64,
    /// The agent when nothing happens, of each second.
    pub(crate) idle_ns: f64,
}

impl Costs {
    /// Seconds that a sweep takes of our own CPU, if it is swept, and so many others, of the records that it finds.
    pub(crate) fn sweep_secs(&self, sizes: &Sizes, (own, others): (u32, u32), records: f64) -> f64 {
        let looks = f64::from(own) * self.own_chunk_ns + f64::from(others) * self.chunk_ns;
        (sweep_calls(sizes) * looks + records * self.swept_ns) / 1e9
    }

    /// The agent's share of a core, for records a second, and so many windows that end in `window_secs`.
    pub(crate) fn agent_share(&self, records_sec: f64, interfaces: f64, window_secs: f64) -> f64 {
        (records_sec * self.record_ns + interfaces / window_secs * self.window_ns + self.idle_ns) / 1e9
    }
}

/// Calls of the sweeper for each CPU: one for [`SWEEP_CHUNK`] slots of each family, one more for the blocks.
pub(crate) fn sweep_calls(sizes: &Sizes) -> f64 {
    let chunks = |slots: u32| f64::from(slots.div_ceil(SWEEP_CHUNK));
    2.0 * chunks(sizes.passed_slots) + 2.0 * chunks(sizes.refused_slots) + 1.0
}

/// Bytes in the ring of so many records of IPv4 in full blocks, with the ring's own header.
pub(crate) fn ring_bytes(records: f64) -> f64 {
    records / BLOCK4 as f64 * (size_of::<Block4>() as f64 + 8.0)
}

/// Wake-ups a second: at a quarter of the ring.
pub(crate) fn wakeups(records_sec: f64, sizes: &Sizes) -> f64 {
    ring_bytes(records_sec) / (f64::from(sizes.ring_bytes) / 4.0)
}
