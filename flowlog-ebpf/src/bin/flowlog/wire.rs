//! How much a packet is on the wire, and adding it to a counter; where the counters are.

use flowlog_ebpf::abi::{Count, EPOCHS, Truth};

use crate::maps::TRUTH;

/// Packets and bytes of one packet as the kernel carries it.
#[derive(Clone, Copy)]
pub struct Wire {
    pub packets: u32,
    pub bytes: u32,
}

/// Adds to a counter.
///
/// # Safety
/// `count` must point into a map value that only programs on this CPU write, and never two at once.
#[inline(always)]
pub unsafe fn bump(count: *mut Count, wire: Wire) {
    // SAFETY: by the contract above.
    unsafe {
        (*count).packets += u64::from(wire.packets);
        (*count).bytes += u64::from(wire.bytes);
    }
}

/// Witness counters of an interface and epoch on this CPU.
#[inline(always)]
pub fn truth(id: u16, epoch: u32) -> Option<*mut Truth> {
    TRUTH.get_ptr_mut(u32::from(id) * EPOCHS + epoch % EPOCHS)
}
