//! Memory: giving it back.
#![allow(unsafe_code, reason = "malloc_trim, mallopt")]

/// Returns freed memory to the system, where the C library can: the allocator keeps what was freed, and loading needs
/// 20 MiB for type information that nobody looks at again.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers; callable from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Blocks of this size and above go back to the system as soon as they are freed: checking a password takes 19 MiB.
#[cfg(target_env = "gnu")]
const LARGE_BYTES: libc::c_int = 8 << 20;
/// The allocator keeps so much of what was freed at the end of its heap.
#[cfg(target_env = "gnu")]
const KEPT_BYTES: libc::c_int = 16 << 20;

/// Has large blocks returned to the system when they are freed. By itself the C library of GNU keeps blocks of a size that was freed
/// before, in an arena for each thread, and [`give_back`] does not reach the end of those (`mallopt(3)`, `M_MMAP_THRESHOLD`).
pub fn return_large_blocks() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers; called before there are threads.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
    }
}
