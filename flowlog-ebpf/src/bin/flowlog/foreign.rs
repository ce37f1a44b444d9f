//! Counting what a foreign XDP program took in front of every hook: it has a packet's headers as they were before that program ran, and what
//! the program returned. What was dropped is a REJECT with the reason `XDP`, as generic XDP's drops are; what was sent back or redirected is
//! counted as a hook would have. What passes is none of its business: a hook will see it.
//!
//! What it counts is added to [`TAKEN`] as well, so that the driver's own count of the same packets is not taken for others. What nobody
//! wants, or what comes while a watch begins or ends, is not: it is left to the driver's count.

use aya_ebpf::bindings::xdp_action::{XDP_PASS, XDP_REDIRECT, XDP_TX};
use flowlog_ebpf::{
    abi::{INGRESS, Iface, Ip4, Ip6, Taken, WANT_INGRESS},
    packet::Flow,
};

use crate::{
    account::{self, FOUND_V4, FOUND_V6},
    family::{V4, V6},
    maps::{TAKEN, XDP_PLACE},
    refuse,
    xdp::Raw,
};

/// A foreign program has returned `action` for a frame on the interface at `spot`.
///
/// # Safety
/// `headers` must point to map memory in which [`account::parse`] has put what it `found`; nobody else may write there meanwhile.
#[inline(never)]
pub unsafe fn took(spot: u32, action: u32, found: u64, headers: *const u64, now_ns: u64) {
    if action == XDP_PASS || headers.is_null() {
        return;
    }
    let Some(iface) = account::iface(spot) else { return };
    let is_forwarded = action == XDP_TX || action == XDP_REDIRECT;
    let kind = found as u32;
    let is_flow = kind == FOUND_V4 || kind == FOUND_V6;
    // SAFETY: by the contract.
    let is_counted = unsafe {
        if is_flow && !is_forwarded {
            dropped(iface, kind, headers, now_ns)
        } else {
            counted(iface, found, headers, now_ns)
        }
    };
    if !is_counted {
        return;
    }
    let Some(taken) = TAKEN.get_ptr_mut(u32::from(iface.id)) else { return };
    // SAFETY: a map value of this CPU; XDP programs do not interrupt each other.
    unsafe {
        let Taken { dropped, forwarded } = &mut *taken;
        if is_forwarded {
            *forwarded += 1;
        } else {
            *dropped += 1;
        }
    }
}

/// # Safety
/// As of [`took`].
#[inline(never)]
unsafe fn dropped(iface: &Iface, kind: u32, headers: *const u64, now_ns: u64) -> bool {
    let [_, _, reason] = XDP_PLACE.load();
    // SAFETY: by the contract.
    unsafe {
        if kind == FOUND_V4 {
            refuse::in_front::<V4>(iface, headers.cast::<Flow<Ip4>>(), reason as u32, now_ns)
        } else {
            refuse::in_front::<V6>(iface, headers.cast::<Flow<Ip6>>(), reason as u32, now_ns)
        }
    }
}

/// What was forwarded, or is no flow: as at a hook.
///
/// # Safety
/// As of [`took`].
#[inline(never)]
unsafe fn counted(iface: &Iface, found: u64, headers: *const u64, now_ns: u64) -> bool {
    if iface.flags & WANT_INGRESS == 0 {
        return false;
    }
    let Some(at) = account::taking(iface, INGRESS, now_ns) else { return false };
    // SAFETY: by the contract.
    unsafe {
        match found as u32 {
            FOUND_V4 => account::flow::<V4, Raw, false>(&Raw, &at, &*headers.cast::<Flow<Ip4>>()),
            FOUND_V6 => account::flow::<V6, Raw, false>(&Raw, &at, &*headers.cast::<Flow<Ip6>>()),
            _ => account::no_flow(&at, found),
        }
    }
    true
}
