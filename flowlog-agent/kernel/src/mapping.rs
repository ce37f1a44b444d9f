//! Maps of the kernel in our own memory.
#![allow(unsafe_code, reason = "mmap")]

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64},
};

/// A shared mapping; unmapped on drop.
pub(super) struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}
// SAFETY: shared words are only reached through atomics, shared bytes only through `bytes`, whose caller says why
// nobody writes to them.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps `bytes` of a BPF map from `offset` on.
    pub(crate) fn new(map: BorrowedFd<'_>, bytes: usize, offset: usize, writable: bool) -> io::Result<Self> {
        let protection = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: a fresh shared mapping; the kernel checks offset and length against the map.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, map.as_raw_fd(), offset) };
        match NonNull::new(base.cast::<u8>()) {
            Some(place) if base != libc::MAP_FAILED => Ok(Self { base: place, bytes }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The 32-bit word at byte `at`.
    pub(crate) fn word32(&self, at: usize) -> Option<&AtomicU32> {
        // SAFETY: in bounds and aligned (checked); we only access it atomically, programs by loads of at most 8 bytes.
        (at.is_multiple_of(4) && at + 4 <= self.bytes)
            .then(|| unsafe { self.base.add(at).cast::<AtomicU32>().as_ref() })
    }

    /// The 64-bit word at byte `at`.
    pub(crate) fn word64(&self, at: usize) -> Option<&AtomicU64> {
        // SAFETY: as in `word32`.
        (at.is_multiple_of(8) && at + 8 <= self.bytes)
            .then(|| unsafe { self.base.add(at).cast::<AtomicU64>().as_ref() })
    }

    /// Bytes that nobody writes to as long as the result is used: the caller says why.
    ///
    /// # Safety
    /// The kernel must not write to them meanwhile.
    pub(crate) unsafe fn bytes(&self, at: usize, len: usize) -> Option<&[u8]> {
        let end = at.checked_add(len)?;
        // SAFETY: in bounds (checked); not written to (the caller's promise).
        (end <= self.bytes).then(|| unsafe { std::slice::from_raw_parts(self.base.add(at).as_ptr(), len) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, no reference to which outlives self.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}
