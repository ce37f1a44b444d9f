//! Giving memory back: the allocator keeps what was freed, and loading needs 20 MiB for type information that nobody
//! looks at again.
#![allow(unsafe_code)] // malloc_trim

/// Returns freed memory to the system, where the C library can.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers; callable from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
