//! Adding to what all CPUs share.

/// `lock add`: what `__sync_fetch_and_add` becomes in C.
///
/// # Safety
/// `at` must point into a map value.
#[inline(always)]
pub unsafe fn atomic_add(at: *mut u64, n: u64) {
    // SAFETY: the caller's pointer into a map value.
    unsafe { core::arch::asm!("lock *(u64 *)({at} + 0) += {n}", at = in(reg) at, n = in(reg) n) };
}
