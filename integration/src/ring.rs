//! Reading the ring without a journal: what is read is given back at once.

use flowlog_kernel::Ring;
use flowlog_pipeline::window::block::{Record, Records};

/// All records that are in the ring; blocks that make no sense have none.
#[must_use]
pub fn take(ring: &mut Ring) -> Vec<Record> {
    let mut records = Vec::new();
    while let Some((block, end)) = ring.read() {
        records.extend(Records::parse(block).into_iter().flatten());
        ring.release(end);
    }
    records
}
