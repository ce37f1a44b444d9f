//! How much a packet is on the wire, and adding it to a counter; where the counters are.

use flowlog_ebpf::abi::{Count, Cpu, EPOCHS, Hooked, Judged};

use crate::maps::{HOOKED, JUDGED};

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

/// What hooks on this CPU have counted of an interface and epoch.
#[inline(always)]
pub fn hooked(cpu: *mut Cpu, id: u16, epoch: u32) -> Option<*mut Hooked> {
    // SAFETY: a map value.
    let first = unsafe { (*cpu).hooked };
    HOOKED.get_ptr_mut(first + u32::from(id) * EPOCHS + epoch % EPOCHS)
}

/// What verdicts on this CPU have counted of an interface and epoch.
#[inline(always)]
pub fn judged(id: u16, epoch: u32) -> Option<*mut Judged> {
    JUDGED.get_ptr_mut(u32::from(id) * EPOCHS + epoch % EPOCHS)
}
