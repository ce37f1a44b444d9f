//! The journal, a write-ahead log: records and events that are in no object yet, on disk.
//!
//! A record leaves the kernel's ring only when it is durable here, and an object replaces it only when that is durable
//! in the spool. Between the two the journal is what an agent that was killed goes on from.
//!
//! ```text
//! journal/0000000000000007      a segment: Head, snapshot, SnapshotEnd, then blocks and events as they come
//! ```
//!
//! * Every segment begins with a snapshot of the whole [`Ledger`], so older ones are needed only for windows that were
//!   closed in them and whose objects are not durable yet. They are removed when there are none.
//! * A new segment is begun at every start, when the old one has grown to a multiple of what is alive, and after any
//!   error: what was written to a file whose write or sync failed counts as not written (a later sync proves nothing).
//! * What a start reads of the last segment may be in memory only (its last sync failed, and then the process died): if a window was
//!   closed in it whose object is still to come, it is written anew before anything relies on it.
//! * A torn end is cut: entries carry a checksum, and reading a segment ends at the first that does not match.
//! * Order: first durable here, then true. Blocks are released from the ring after [`commit`](Journal::commit), events
//!   are applied after [`record`](Journal::record).
//!
//! What an event means does not belong here (`window::ledger`), nor does anything about the kernel.

pub mod entry;
pub mod replay;

use std::{
    collections::BTreeMap,
    io::{self, Read as _},
    sync::Arc,
};

use entry::{Frame, Head};
use flowlog_host::fault;
pub use replay::{Recovered, recover};

use crate::{
    disk::{File, Filesystem},
    window::{Event, Ledger, Part},
};

/// Directory in the state directory.
pub(crate) const DIR: &str = "journal";
/// A segment is not replaced before it has this many bytes: below it, space is no matter.
const SEGMENT_BYTES_MIN: u64 = 16 << 20;
/// A segment is replaced when it is this many times as large as what it must hold: a quarter of all writes is then
/// copying.
const SEGMENT_GROWTH: u64 = 4;
/// Name of a segment that is being written anew.
const ANEW: &str = "anew";
/// Bytes that are copied at a time.
const COPY_BYTES: usize = 1 << 20;
/// A flow in a snapshot, at most.
const FLOW_BYTES: u64 = 88;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot {action} the journal: {source}; what is not in it stays in the kernel's ring, and is lost when that is full"
)]
pub struct JournalError {
    pub action: &'static str,
    #[source]
    pub source: io::Error,
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> JournalError {
    move |source| JournalError { action, source }
}

pub(crate) struct Journal {
    fs: Arc<dyn Filesystem>,
    head: Head,
    /// The segment that is being written; `None` after an error.
    segment: Option<Segment>,
    /// Number of the next segment.
    next: u64,
    /// All segments there are.
    segments: Vec<u64>,
    /// Closed windows whose objects are not durable: by key, the segment they were closed in.
    pending: BTreeMap<String, u64>,
    /// Blocks that wait for the next commit, framed.
    buffer: Vec<u8>,
    /// Ring position at the end of the last block in the buffer.
    position: u64,
}

struct Segment {
    number: u64,
    file: Box<dyn File>,
    bytes: u64,
}

fn name(number: u64) -> String {
    format!("{number:016x}")
}

impl Journal {
    /// Begins a new segment after what [`recover`] has found.
    ///
    /// # Errors
    /// If it cannot be made durable.
    pub(crate) fn start(
        fs: Arc<dyn Filesystem>,
        head: Head,
        found: &Recovered,
        ledger: &Ledger,
        position: u64,
    ) -> Result<Self, JournalError> {
        let mut journal = Self {
            fs,
            head,
            segment: None,
            next: found.segments.last().map_or(1, |last| last + 1),
            segments: found.segments.clone(),
            pending: found.pending.iter().map(|p| (p.key.clone(), p.segment)).collect(),
            buffer: Vec::new(),
            position,
        };
        // A process that was killed on the way may have left it.
        let _ = journal.fs.remove(DIR, ANEW);
        if let Some(last) = found.segments.last().filter(|last| found.pending.iter().any(|p| p.segment == **last)) {
            journal.write_anew(*last)?;
        }
        journal.rotate(ledger)?;
        Ok(journal)
    }

    /// Makes all of a segment durable that can be read of it. To sync it again would prove nothing.
    fn write_anew(&self, number: u64) -> Result<(), JournalError> {
        let failed = || failed("write the last segment anew in");
        let mut old = self.fs.open(DIR, &name(number)).map_err(failed())?;
        let mut new = self.fs.create(DIR, ANEW).map_err(failed())?;
        let mut bytes = vec![0; COPY_BYTES];
        loop {
            match old.read(&mut bytes) {
                Ok(0) => break,
                Ok(n) => new.append(&bytes[..n]).map_err(failed())?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(failed()(e)),
            }
        }
        new.sync().map_err(failed())?;
        self.fs.rename((DIR, ANEW), (DIR, &name(number))).map_err(failed())?;
        self.fs.sync_dir(DIR).map_err(failed())
    }

    /// Adds a block that ends at `position` of the ring. It is durable after the next [`commit`](Self::commit); the
    /// ledger must have it before that.
    pub(crate) fn block(&mut self, block: &[u8], position: u64) {
        Frame::Block { position, bytes: block }.write(&mut self.buffer);
        self.position = position;
    }

    /// Makes all blocks durable; returns the ring position up to which it has them.
    ///
    /// # Errors
    /// If it cannot. The blocks are in `ledger`, and with it in the segment that the next call begins.
    pub(crate) fn commit(&mut self, ledger: &Ledger) -> Result<u64, JournalError> {
        let Some(segment) = &self.segment else {
            self.rotate(ledger)?;
            return Ok(self.position);
        };
        let limit = SEGMENT_BYTES_MIN.max(SEGMENT_GROWTH * FLOW_BYTES * ledger.flows() as u64);
        if segment.bytes > limit {
            self.rotate(ledger)?;
        } else if !self.buffer.is_empty() {
            let bytes = std::mem::take(&mut self.buffer);
            let written = self.write(&bytes);
            self.buffer = bytes;
            self.buffer.clear();
            written?;
        }
        Ok(self.position)
    }

    /// Makes events durable, in this order. Only then may they be applied. All blocks must have been committed.
    ///
    /// # Errors
    /// If it cannot; then none of them has happened.
    pub(crate) fn record(&mut self, events: &[Event], ledger: &Ledger) -> Result<(), JournalError> {
        self.commit(ledger)?;
        let mut bytes = Vec::new();
        for event in events {
            Frame::Event(Box::new(event.clone())).write(&mut bytes);
        }
        self.write(&bytes)
    }

    /// A window was closed by an event that has been recorded: its records are needed until
    /// [`done`](Self::done).
    pub(crate) fn closed(&mut self, key: String) {
        let segment = self.segment.as_ref().map_or(self.next, |s| s.number);
        self.pending.insert(key, segment);
    }

    /// Objects are durable (and this is recorded): forgets the windows.
    pub(crate) fn done(&mut self, keys: &[String]) {
        for key in keys {
            self.pending.remove(key);
        }
        self.remove_old();
    }

    /// Begins a segment that belongs to another kernel state: `position` is its ring's.
    ///
    /// # Errors
    /// If it cannot be made durable; then the old one goes on.
    pub(crate) fn begin_anew(&mut self, head: Head, position: u64, ledger: &Ledger) -> Result<(), JournalError> {
        let old = (std::mem::replace(&mut self.head, head), self.position);
        self.position = position;
        self.rotate(ledger).inspect_err(|_| (self.head, self.position) = old)
    }

    /// Removes all segments, if nothing is left that anybody could want to read.
    pub(crate) fn end(&mut self, ledger: &Ledger) {
        if self.pending.is_empty() && ledger.watched().next().is_none() {
            self.segment = None;
            for number in self.segments.drain(..) {
                let _ = self.fs.remove(DIR, &name(number));
            }
        }
    }

    /// Appends and syncs; after an error the segment is given up.
    /// Bytes of the segment that is written to; another is there only while it is replaced.
    #[must_use]
    pub(crate) fn bytes(&self) -> u64 {
        self.segment.as_ref().map_or(0, |segment| segment.bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), JournalError> {
        let Some(mut segment) = self.segment.take() else {
            return Err(failed("write")(io::Error::other("the last write failed")));
        };
        fault::point("journal_append");
        fault::io("journal_write").and_then(|()| segment.file.append(bytes)).map_err(failed("write"))?;
        fault::point("journal_sync");
        fault::io("journal_sync_error").and_then(|()| segment.file.sync()).map_err(failed("sync"))?;
        segment.bytes += bytes.len() as u64;
        self.segment = Some(segment);
        Ok(())
    }

    /// Begins a segment with a snapshot of `ledger`, which has all blocks of the buffer.
    fn rotate(&mut self, ledger: &Ledger) -> Result<(), JournalError> {
        self.buffer.clear();
        self.segment = None;
        self.fs.make_dir(DIR).map_err(failed("make the directory of"))?;
        let number = self.next;
        // Its number is used up even if this fails: nothing may be appended to a file in doubt.
        self.next += 1;
        self.segments.push(number);
        let mut file = self.fs.create(DIR, &name(number)).map_err(failed("begin a segment of"))?;
        let mut buffer = Vec::new();
        let mut bytes = 0u64;
        let mut result = Ok(());
        Frame::Head(self.head.clone()).write(&mut buffer);
        let position = self.position;
        ledger.snapshot(&mut |part| {
            match part {
                Part::Event(event) => Frame::Event(event).write(&mut buffer),
                Part::Block(bytes) => Frame::Block { position, bytes }.write(&mut buffer),
            }
            // Some at a time: a snapshot can be as large as all tables.
            if buffer.len() > 1 << 20 && result.is_ok() {
                bytes += buffer.len() as u64;
                result = file.append(&buffer);
                buffer.clear();
            }
        });
        Frame::SnapshotEnd { position }.write(&mut buffer);
        bytes += buffer.len() as u64;
        result.and_then(|()| file.append(&buffer)).map_err(failed("write a snapshot to"))?;
        file.sync().map_err(failed("sync a snapshot in"))?;
        self.fs.sync_dir(DIR).map_err(failed("sync the directory of"))?;
        self.segment = Some(Segment { number, file, bytes });
        self.remove_old();
        Ok(())
    }

    /// Removes segments that nothing needs any more. One that cannot be removed now is tried again later.
    fn remove_old(&mut self) {
        let Some(current) = self.segment.as_ref().map(|s| s.number) else { return };
        let first = self.pending.values().copied().min().unwrap_or(current).min(current);
        let fs = &self.fs;
        self.segments.retain(|number| {
            let keep = *number >= first;
            keep || match fs.remove(DIR, &name(*number)) {
                Ok(()) => false,
                Err(e) => e.kind() != io::ErrorKind::NotFound,
            }
        });
    }
}
