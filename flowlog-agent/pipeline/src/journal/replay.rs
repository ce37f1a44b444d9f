//! Reading a journal back.

use std::io::{self, BufReader, Read};

use flowlog_model::Now;

use super::{
    DIR, JournalError,
    entry::{FORMAT, Frame, HEADER, Head},
    failed,
};
use crate::{
    disk::{Filesystem, Kind},
    encode::key::object_key,
    window::{Closed, Event, Ledger},
};

/// A closed window whose object is not known to be durable.
#[derive(Debug)]
pub struct Pending {
    pub key: String,
    pub window: Closed,
    /// Segment it was closed in.
    pub segment: u64,
}

/// What a journal held.
#[derive(Debug, Default)]
pub struct Recovered {
    /// The last head: what the ring position belongs to.
    pub head: Option<Head>,
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
            // Of a start that was killed: the next one removes it.
            _ if item.name == super::ANEW => {}
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
                     let it deliver (`flowlog detach`)",
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
                    partial.apply(*event);
                }
                None => found.event(*event, number),
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
        // Entries lie in the order they were written in, so the last one is the latest, even if the wall clock was set back.
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

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use flowlog_ebpf::abi::{FAMILY_V4, Record4};
    use flowlog_model::{Epoch, HookKind, IfaceId, MonoNs, NS_PER_SEC, WallNs, capture::WatchSpec, rule::Rule};

    use super::*;
    use crate::{
        disk::real::Disk,
        journal::Journal,
        window::{WindowClock, block},
    };

    const NOW: Now = Now { mono: MonoNs(5_000_000_000), wall: WallNs(1_700_000_000 * NS_PER_SEC) };

    fn head() -> Head {
        Head { format: FORMAT, boot_id: "b".to_owned(), ring_id: 1, pin_dir: None, begun: NOW }
    }

    fn watch(id: u16) -> Event {
        let spec = WatchSpec {
            interface: format!("eth{id}"),
            ifindex: u32::from(id),
            hook: HookKind::Tc,
            rule: Rule::sample(60),
            node_id: "n".to_owned(),
            account_id: None,
            interface_id: format!("nic-{id}"),
            side: flowlog_model::rule::Side::Host,
            netns_inum: 1,
            netns: None,
            mac: None,
            translations: false,
            labels: flowlog_model::Labels::default(),
        };
        let span = *WindowClock::new(60, NOW).current();
        Event::Watch { id: IfaceId(id), spec: Box::new(spec), span, epoch: Epoch(1), gap: None, since_secs: None }
    }

    fn block(source: u32) -> Vec<u8> {
        let mut record = Record4::default();
        record.key.src = source;
        record.key.meta.iface = 1;
        record.key.meta.epoch = 1;
        record.stats.packets = 1;
        let mut bytes = Vec::new();
        block::write(&mut bytes, FAMILY_V4, &[record]);
        bytes
    }

    /// A journal of one watched interface and ten flows; returns its only segment's file.
    fn write(dir: &Path) -> std::path::PathBuf {
        let fs: Arc<dyn Filesystem> = Arc::new(Disk::open(dir).expect("open"));
        let mut ledger = Ledger::default();
        let found = recover(&*fs).expect("empty");
        let mut journal = Journal::start(fs, head(), &found, &ledger, 0).expect("start");
        journal.record(&[watch(1)], &ledger).expect("record");
        ledger.apply(watch(1));
        for flow in 1..=10 {
            let bytes = block(flow);
            ledger.block(&bytes);
            journal.block(&bytes, u64::from(flow) * 100);
            assert_eq!(journal.commit(&ledger).expect("commit"), u64::from(flow) * 100);
        }
        dir.join(DIR).join(super::super::name(1))
    }

    #[test]
    fn since_when_an_interface_is_watched_stays_known_whatever_window_is_open() {
        let mut begun = watch(1);
        if let Event::Watch { since_secs, .. } = &mut begun {
            *since_secs = Some(77);
        }
        let mut ledger = Ledger::default();
        ledger.apply(begun);
        let mut copy = Ledger::default();
        ledger.snapshot(&mut |part| {
            if let crate::window::Part::Event(event) = part {
                copy.apply(*event);
            }
        });
        assert_eq!(copy.get(IfaceId(1)).map(|w| w.since_secs), Some(77));
        // An older agent's journal does not say it: since its open window began.
        let mut old = serde_json::to_value(watch(2)).expect("json");
        old["Watch"].as_object_mut().expect("an event").remove("since_secs");
        copy.apply(serde_json::from_value(old).expect("an event"));
        let watched = copy.get(IfaceId(2)).expect("watched");
        assert_eq!(watched.since_secs, watched.clock.current().opened.wall.secs());
    }

    #[test]
    fn a_segment_that_is_cut_anywhere_gives_what_was_whole_and_counts_what_was_not() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = write(dir.path());
        let whole = std::fs::read(&file).expect("read");
        let fs = Disk::open(dir.path()).expect("open");
        let mut entries_seen = 0;
        for cut in (0..=whole.len()).rev() {
            std::fs::write(&file, &whole[..cut]).expect("write");
            let found = recover(&fs).expect("a cut is no error");
            let flows = found.ledger.flows() as u64;
            assert_eq!(found.position, flows * 100, "cut at {cut}");
            assert!(found.torn_bytes < 1_000 && (found.torn_bytes == 0 || cut < whole.len()), "cut at {cut}");
            entries_seen += u64::from(found.torn_bytes == 0);
        }
        // Head, end of the snapshot, one event, ten blocks, and nothing at all.
        assert_eq!(entries_seen, 14);
    }

    #[test]
    fn a_bit_that_flips_anywhere_ends_the_reading_there() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = write(dir.path());
        let whole = std::fs::read(&file).expect("read");
        let fs = Disk::open(dir.path()).expect("open");
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            std::fs::write(&file, &bytes).expect("write");
            let found = recover(&fs).expect("junk is no error");
            assert!(found.torn_bytes > 0 && found.position < 1_000, "bit at {at}");
            assert_eq!(found.ledger.unknown_records(), 0);
        }
    }
}
