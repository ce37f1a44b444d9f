//! Maps of the kernel in our own memory.
#![allow(unsafe_code, reason = "mmap")]

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use aya::{Ebpf, maps::Map};

use super::KernelError;

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

/// A memory-mapped array map, accessed by words.
pub(super) struct MappedArray {
    mapping: Mapping,
    /// Bytes from one element to the next; the kernel rounds element sizes up to 8.
    stride: usize,
}

impl MappedArray {
    pub(super) fn new(ebpf: &Ebpf, name: &str) -> Result<Self, KernelError> {
        let refused = |problem: String| KernelError::Refused { action: format!("map `{name}` into memory"), problem };
        let Some(Map::Array(data)) = ebpf.map(name) else {
            return Err(refused("it is not an array in the embedded object".to_owned()));
        };
        let info = data.info().map_err(|e| KernelError::from_chain(format!("read the size of map `{name}`"), &e))?;
        let elements = info.max_entries() as usize;
        let stride = info.value_size().next_multiple_of(8) as usize;
        let bytes = (elements * stride).next_multiple_of(rustix::param::page_size());
        let mapping = Mapping::new(data.fd().as_fd(), bytes, 0, true).map_err(|e| refused(e.to_string()))?;
        Ok(Self { mapping, stride })
    }

    /// A word of 32 bits of an element.
    pub(super) fn word(&self, element: u32, word: usize) -> Option<&AtomicU32> {
        self.mapping.word32(element as usize * self.stride + 4 * word)
    }

    /// A word of 64 bits of an element.
    pub(super) fn word64(&self, element: u32, word: usize) -> Option<&AtomicU64> {
        self.mapping.word64(element as usize * self.stride + 8 * word)
    }

    pub(super) fn store(&self, element: u32, word: usize, value: u32) {
        if let Some(w) = self.word(element, word) {
            w.store(value, Ordering::SeqCst);
        }
    }

    pub(super) fn load(&self, element: u32, word: usize) -> u32 {
        self.word(element, word).map_or(0, |w| w.load(Ordering::SeqCst))
    }
}
