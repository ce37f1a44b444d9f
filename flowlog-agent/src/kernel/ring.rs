//! The reading end of the ring buffer.
#![allow(unsafe_code)] // records are copied out of shared memory

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
};

use aya::maps::{Map, MapData, RingBuf};
use flowlog_ebpf::abi::{Block4, BlockHeader, FAMILY_V4, FAMILY_V6, Record4, Record6};
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

/// The consumer of the ring. A block leaves the ring when its last record has been taken and the next is asked for.
pub struct Ring {
    blocks: RingBuf<MapData>,
    /// The block that is being read, copied out of the ring.
    block: Vec<u8>,
    /// Its family, and where the next record begins.
    family: u32,
    at: usize,
    unknown: u64,
}

impl Ring {
    pub(super) fn new(map: Map) -> Result<Self, KernelError> {
        let blocks = RingBuf::try_from(map).map_err(|e| KernelError::from_chain("map the ring buffer", &e))?;
        Ok(Self { blocks, block: Vec::with_capacity(size_of::<Block4>()), family: 0, at: 0, unknown: 0 })
    }

    /// The oldest record, `None` if the ring is empty right now.
    pub fn pop(&mut self) -> Option<Record> {
        while self.at >= self.block.len() {
            self.next_block()?;
        }
        if self.family == FAMILY_V4 { self.take().map(Record::V4) } else { self.take().map(Record::V6) }
    }

    fn take<R: Copy>(&mut self) -> Option<R> {
        let bytes = self.block.get(self.at..self.at + size_of::<R>())?;
        self.at += size_of::<R>();
        // SAFETY: records are plain integers for which any bytes are valid; the slice is as long as one.
        Some(unsafe { bytes.as_ptr().cast::<R>().read_unaligned() })
    }

    /// Copies the next block; one that makes no sense is counted and left empty.
    fn next_block(&mut self) -> Option<()> {
        self.block.clear();
        self.at = 0;
        let item = self.blocks.next()?;
        let word = |at: usize| item.get(at..at + 4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
        let (records, family) = (word(0).unwrap_or(0) as usize, word(4).unwrap_or(0));
        let size = match family {
            FAMILY_V4 => size_of::<Record4>(),
            FAMILY_V6 => size_of::<Record6>(),
            _ => 0,
        };
        match item.get(size_of::<BlockHeader>()..).and_then(|rest| rest.get(..records * size)) {
            Some(rest) if records > 0 && size > 0 => self.block.extend_from_slice(rest),
            _ => self.unknown += 1,
        }
        self.family = family;
        Some(())
    }

    /// Blocks of no known form so far; anything but 0 means programs and agent do not belong together.
    #[must_use]
    pub fn unknown(&self) -> u64 {
        self.unknown
    }
}

impl Ring {
    /// Wake-ups of this ring, independent of reading it. Needs a running tokio reactor.
    pub fn wakeups(&self) -> io::Result<Wakeups> {
        // SAFETY: the ring's descriptor is open as long as `self` is, and is duplicated right here.
        let fd = unsafe { BorrowedFd::borrow_raw(self.blocks.as_raw_fd()) }.try_clone_to_owned()?;
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
