//! The reading end of the ring buffer.
#![allow(unsafe_code)] // records are copied out of shared memory

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
};

use aya::maps::{Map, MapData, RingBuf};
use flowlog_ebpf::abi::{Record4, Record6};
use tokio::io::{Interest, unix::AsyncFd};

use super::KernelError;

/// One record, by address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// IPv4.
    V4(Record4),
    /// IPv6.
    V6(Record6),
}

/// The consumer of the ring. A record leaves the ring when the next one is asked for.
pub struct Ring {
    ring: RingBuf<MapData>,
    unknown: u64,
}

impl Ring {
    pub(super) fn new(map: Map) -> Result<Self, KernelError> {
        let ring = RingBuf::try_from(map).map_err(|e| KernelError::from_chain("map the ring buffer", &e))?;
        Ok(Self { ring, unknown: 0 })
    }

    /// The oldest record, `None` if the ring is empty right now.
    pub fn pop(&mut self) -> Option<Record> {
        loop {
            let item = self.ring.next()?;
            let bytes: &[u8] = &item;
            // SAFETY: records are plain integers for which any bytes are valid; the lengths match.
            unsafe {
                match bytes.len() {
                    n if n == size_of::<Record4>() => {
                        return Some(Record::V4(bytes.as_ptr().cast::<Record4>().read_unaligned()));
                    }
                    n if n == size_of::<Record6>() => {
                        return Some(Record::V6(bytes.as_ptr().cast::<Record6>().read_unaligned()));
                    }
                    _ => {}
                }
            }
            drop(item);
            self.unknown += 1;
        }
    }

    /// Records of no known length so far; anything but 0 means programs and agent do not belong together.
    #[must_use]
    pub fn unknown(&self) -> u64 {
        self.unknown
    }
}

impl Ring {
    /// Wake-ups of this ring, independent of reading it. Needs a running tokio reactor.
    pub fn wakeups(&self) -> io::Result<Wakeups> {
        // SAFETY: the ring's descriptor is open as long as `self` is, and is duplicated right here.
        let fd = unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }.try_clone_to_owned()?;
        // SAFETY: the descriptor is owned by the registration and closed only with it.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)?;
        Ok(Wakeups(fd))
    }
}

/// Tells when the programs wake the agent: the ring has filled up to its wake mark.
pub struct Wakeups(AsyncFd<OwnedFd>);

impl Wakeups {
    /// Waits for the next wake-up. (The reactor is edge-triggered: records submitted without a wake-up do not end it.)
    pub async fn next(&self) -> io::Result<()> {
        self.0.readable().await.map(|mut ready| ready.clear_ready())
    }
}
