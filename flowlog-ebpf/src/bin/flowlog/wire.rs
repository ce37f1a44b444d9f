//! How much a packet is on the wire, and adding it to a counter.

use flowlog_ebpf::abi::Count;

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
