//! Reading a journal back.

use std::io::{self, BufReader, Read};

use super::{
    DIR, JournalError,
    entry::{FORMAT, Frame, HEADER, Head},
    failed,
};
use crate::{
    disk::{Filesystem, Kind},
    encode::key::object_key,
    types::Now,
    window::{Closed, Event, Ledger},
};

/// A closed window whose object is not known to be durable.
#[derive(Debug)]
pub struct Pending {
    /// Its object's key.
    pub key: String,
    /// The window.
    pub window: Closed,
    /// Segment it was closed in.
    pub segment: u64,
}

/// What a journal held.
#[derive(Debug, Default)]
pub struct Recovered {
    /// The last head: what the ring position belongs to.
    pub head: Option<Head>,
    /// Open windows.
    pub ledger: Ledger,
    /// Closed ones, oldest first.
    pub pending: Vec<Pending>,
    /// Ring position up to which all blocks are in.
    pub position: u64,
    /// When the journal was last written to, as far as is known.
    pub last_seen: Option<Now>,
    /// Numbers of all segments, ascending.
    pub segments: Vec<u64>,
    /// Bytes at the ends of segments that were not whole entries.
    pub torn_bytes: u64,
    /// Things in the directory that are not ours.
    pub foreign: Vec<String>,
}

/// Reads everything there is. Torn ends are left out and counted.
///
/// # Errors
/// If the directory or a segment cannot be read.
pub fn recover(fs: &dyn Filesystem) -> Result<Recovered, JournalError> {
    let mut found = Recovered::default();
    fs.make_dir(DIR).map_err(failed("make the directory of"))?;
    for item in fs.list(DIR).map_err(failed("list the segments of"))? {
        match u64::from_str_radix(&item.name, 16) {
            Ok(number) if item.kind == Kind::File && item.name == super::name(number) => found.segments.push(number),
            _ => found.foreign.push(item.name),
        }
    }
    found.segments.sort_unstable();
    for number in found.segments.clone() {
        let file = fs.open(DIR, &super::name(number)).map_err(failed("open a segment of"))?;
        segment(&mut BufReader::with_capacity(1 << 18, file), number, &mut found).map_err(failed("read"))?;
    }
    Ok(found)
}

/// Applies one segment.
fn segment(file: &mut dyn Read, number: u64, found: &mut Recovered) -> io::Result<()> {
    // A snapshot takes the place of everything that is open, once it is complete.
    let mut snapshot = Some(Ledger::default());
    let mut head = None;
    let mut payload = Vec::new();
    loop {
        let mut header = [0; HEADER];
        let got = fill(file, &mut header)?;
        if got == 0 {
            return Ok(());
        }
        let len = if got == HEADER { Frame::payload_len(&header) } else { None };
        payload.resize(len.unwrap_or(0), 0);
        let read = fill(file, &mut payload)?;
        let whole = len == Some(read);
        let Some(frame) = whole.then(|| Frame::read(&header, &payload)).flatten() else {
            found.torn_bytes += (got + read) as u64 + io::copy(file, &mut io::sink())?;
            return Ok(());
        };
        match frame {
            Frame::Head(h) if h.format == FORMAT => head = Some(h),
            Frame::Head(h) => {
                return Err(io::Error::other(format!(
                    "segment {} is of format {}, this flowlog knows {FORMAT}; start the version that wrote it and \
                     let it deliver (`flowlog-agent detach`)",
                    super::name(number),
                    h.format
                )));
            }
            Frame::SnapshotEnd { position } => {
                if let Some(complete) = snapshot.take() {
                    // What is open here was not closed: that event failed after it had reached the disk.
                    let open: Vec<String> =
                        complete.watched().filter_map(|(_, w)| w.closing_info()).map(|i| object_key(&i)).collect();
                    found.pending.retain(|p| !open.contains(&p.key));
                    found.ledger = complete;
                    found.position = position;
                    found.note_time(head.as_ref().map(|h| h.begun));
                    found.head = head.take().or(found.head.take());
                }
            }
            Frame::Block { position, bytes } => {
                if let Some(partial) = &mut snapshot {
                    partial.block(bytes);
                } else {
                    found.ledger.block(bytes);
                    found.position = position;
                }
            }
            Frame::Event(event) => match &mut snapshot {
                Some(partial) => {
                    partial.apply(event);
                }
                None => found.event(event, number),
            },
        }
    }
}

/// Reads until `buffer` is full or the file ends.
fn fill(file: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(got)
}

impl Recovered {
    fn note_time(&mut self, at: Option<Now>) {
        // The later one by any clock: the wall clock may have been set back.
        if let Some(at) = at {
            self.last_seen = Some(at);
        }
    }

    fn event(&mut self, event: Event, segment: u64) {
        match &event {
            Event::Done { key } => {
                self.pending.retain(|p| p.key != *key);
                return;
            }
            Event::Beat { now } => return self.note_time(Some(*now)),
            _ => {}
        }
        if let Some(window) = self.ledger.apply(event) {
            self.pending.push(Pending { key: object_key(&window.info), window, segment });
        }
    }
}
