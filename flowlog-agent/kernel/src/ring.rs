//! The reading end of the ring buffer: reading and releasing are two steps.
//!
//! Our own reader and not the loader's, because that one gives room back with every record it hands out (no upstream issue asks for
//! another way as of 2026-11): here a record keeps its place until it is durable elsewhere ([`Ring::release`]). Positions are the
//! kernel's own, bytes since the ring was made; they live in the ring itself, so they outlive the agent as it does.
//! (`kernel/bpf/ringbuf.c`; the memory model is described in `Documentation/bpf/ringbuf.rst`.)
#![allow(unsafe_code, reason = "entries lie in shared memory")]

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::atomic::Ordering,
};

use aya::maps::{Map, MapData};
use tokio::io::{Interest, unix::AsyncFd};

use super::{KernelError, mapping::Mapping};

/// `BPF_RINGBUF_BUSY_BIT`: somebody is writing this entry.
const BUSY: u32 = 1 << 31;
/// `BPF_RINGBUF_DISCARD_BIT`: the writer changed its mind.
const DISCARDED: u32 = 1 << 30;
/// Bytes in front of every entry: `BPF_RINGBUF_HDR_SZ`.
const HEADER: usize = 8;

/// The consumer of the ring.
pub struct Ring {
    map: MapData,
    consumer: Mapping,
    producer: Mapping,
    page: usize,
    mask: u64,
    /// Everything before it has been read.
    read: u64,
}

impl Ring {
    pub(super) fn new(map: Map) -> Result<Self, KernelError> {
        let refused = |problem: String| KernelError::Refused { action: "map the ring buffer".to_owned(), problem };
        let Map::RingBuf(map) = map else { return Err(refused("it is none in the embedded object".to_owned())) };
        let info = map.info().map_err(|e| KernelError::from_chain("read the size of the ring buffer", &e))?;
        let page = rustix::param::page_size();
        let bytes = info.max_entries() as usize;
        let fd = map.fd().as_fd();
        let consumer = Mapping::new(fd, page, 0, true).map_err(|e| refused(e.to_string()))?;
        // The data pages are mapped twice in a row, so that an entry never wraps.
        let producer = Mapping::new(fd, page + 2 * bytes, page, false).map_err(|e| refused(e.to_string()))?;
        let mut ring = Self { map, consumer, producer, page, mask: bytes as u64 - 1, read: 0 };
        ring.read = ring.released();
        Ok(ring)
    }

    /// Position up to which entries have been given back to the kernel.
    #[must_use]
    pub(crate) fn released(&self) -> u64 {
        self.consumer.word64(0).map_or(0, |p| p.load(Ordering::Acquire))
    }

    /// Position up to which entries have been reserved, complete or not.
    #[must_use]
    pub fn produced(&self) -> u64 {
        self.producer.word64(0).map_or(0, |p| p.load(Ordering::Acquire))
    }

    /// Position up to which entries have been read.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.read
    }

    /// Goes on reading at `position`, which must be the end of an entry that is still in the ring, or of the last
    /// one released. `false`: it is neither.
    pub fn seek(&mut self, position: u64) -> bool {
        let known = (self.released()..=self.produced()).contains(&position);
        if known {
            self.read = position;
        }
        known
    }

    /// The next complete entry, which keeps its place, and the position behind it; `None` if there is none right now.
    pub fn read(&mut self) -> Option<(&[u8], u64)> {
        loop {
            if self.read >= self.produced() {
                return None;
            }
            let at = self.page + usize::try_from(self.read & self.mask).ok()?;
            let head = self.producer.word32(at)?.load(Ordering::Acquire);
            if head & BUSY != 0 {
                return None;
            }
            let len = (head & !DISCARDED) as usize;
            self.read += (HEADER + len).next_multiple_of(8) as u64;
            if head & DISCARDED == 0 {
                // SAFETY: complete (not busy) and not released, so the kernel leaves it alone; the borrow of self keeps
                // `release` away.
                return unsafe { self.producer.bytes(at + HEADER, len) }.map(|bytes| (bytes, self.read));
            }
        }
    }

    /// Gives everything up to `position` back to the kernel. It must have been read.
    pub fn release(&mut self, position: u64) {
        debug_assert!(position <= self.read);
        if let Some(consumer) = self.consumer.word64(0) {
            // Pairs with the kernel's acquiring load before it reuses the room.
            consumer.store(position, Ordering::Release);
        }
    }

    /// Wake-ups of this ring, independent of reading it. Needs a running tokio reactor.
    pub fn wakeups(&self) -> io::Result<Wakeups> {
        Wakeups::of(self.map.fd().as_fd())
    }

    /// The kernel's id of the ring, never used twice between two boots.
    pub fn id(&self) -> Result<u32, KernelError> {
        let info = self.map.info().map_err(|e| KernelError::from_chain("read the ring buffer's id", &e))?;
        Ok(info.id())
    }
}

/// Tells when the programs wake the agent: the ring has filled up to its wake mark.
pub struct Wakeups(AsyncFd<OwnedFd>);

impl Wakeups {
    /// Those of a ring, by its descriptor. Needs a running tokio reactor.
    pub(super) fn of(ring: BorrowedFd<'_>) -> io::Result<Self> {
        let fd = ring.try_clone_to_owned()?;
        // SAFETY: the descriptor is owned by the registration and closed only with it.
        unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map(Self).map_err(io::Error::from)
    }

    /// Waits for the next wake-up. (The reactor is edge-triggered: records submitted without a wake-up do not end it.)
    pub async fn next(&self) -> io::Result<()> {
        self.0.readable().await.map(|mut ready| ready.clear_ready())
    }
}
