//! The bytes of an object, as a Parquet reader asks for them: of a file, or of a bucket in few requests.

use std::{
    fs::File,
    io::Read,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::{Buf as _, Bytes};
use parquet::{
    errors::{ParquetError, Result},
    file::reader::{ChunkReader, Length},
};

use super::places::{At, Found, Opened};

/// An object up to this size is read whole.
const WHOLE_BYTES: u64 = 1 << 20;
/// Of a larger one, what is read at once, behind the end, where its footer is. (A store is asked for twice as much at most.)
const PIECE_BYTES: u64 = 4 << 20;
/// Where a page begins, its header is looked for in so many bytes.
const PAGE_HEADER_BYTES_MAX: u64 = 64 << 10;

pub(super) enum Contents {
    Whole(Bytes),
    File(File),
    Remote(Remote),
}

/// A large object of a bucket, and the piece of it that was read last.
pub(super) struct Remote {
    bucket: Arc<Opened>,
    key: String,
    bytes: u64,
    last: Mutex<(u64, Bytes)>,
}

impl Contents {
    pub(super) fn open(object: &Found) -> anyhow::Result<Self> {
        match &object.at {
            At::File(path) if object.bytes <= WHOLE_BYTES => Ok(Self::Whole(std::fs::read(path)?.into())),
            At::File(path) => Ok(Self::File(File::open(path)?)),
            At::Bucket { bucket, key } => {
                let remote = Remote {
                    bucket: bucket.clone(),
                    key: key.clone(),
                    bytes: object.bytes,
                    last: Mutex::new((0, Bytes::new())),
                };
                if object.bytes <= WHOLE_BYTES {
                    return Ok(Self::Whole(remote.fetch(0..object.bytes)?));
                }
                let tail = object.bytes - WHOLE_BYTES;
                remote.piece(tail, WHOLE_BYTES)?;
                Ok(Self::Remote(remote))
            }
        }
    }
}

impl Remote {
    fn fetch(&self, range: Range<u64>) -> Result<Bytes> {
        let read = self.bucket.reader.read(&self.key, range);
        self.bucket.runtime.block_on(read).map_err(|e| ParquetError::External(Box::new(e)))
    }

    /// What lies at a place, `least` bytes at least: of the piece that was read last, or of another one.
    fn piece(&self, start: u64, least: u64) -> Result<Bytes> {
        let mut kept = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let has = |(at, piece): &(u64, Bytes)| *at <= start && start + least <= at + piece.len() as u64;
        if !has(&kept) {
            let end = (start + least.max(PIECE_BYTES)).min(self.bytes);
            let mut parts = Vec::new();
            let mut at = start;
            while at < end {
                let part = self.fetch(at..(at + PIECE_BYTES).min(end))?;
                at += part.len() as u64;
                parts.push(part);
            }
            let piece = if parts.len() == 1 { parts.remove(0) } else { Bytes::from(parts.concat()) };
            *kept = (start, piece);
        }
        if !has(&kept) {
            return Err(ParquetError::EOF(format!("{least} bytes at {start} of an object of {}", self.bytes)));
        }
        Ok(kept.1.slice(usize::try_from(start - kept.0).unwrap_or(usize::MAX)..))
    }
}

impl Length for Contents {
    fn len(&self) -> u64 {
        match self {
            Self::Whole(bytes) => bytes.len() as u64,
            Self::File(file) => Length::len(file),
            Self::Remote(remote) => remote.bytes,
        }
    }
}

impl ChunkReader for Contents {
    type T = Box<dyn Read>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        Ok(match self {
            Self::Whole(bytes) => Box::new(bytes.get_read(start)?),
            Self::File(file) => Box::new(file.get_read(start)?),
            Self::Remote(remote) => {
                let left = remote.bytes.saturating_sub(start);
                Box::new(remote.piece(start, left.min(PAGE_HEADER_BYTES_MAX))?.reader())
            }
        })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        match self {
            Self::Whole(bytes) => bytes.get_bytes(start, length),
            Self::File(file) => file.get_bytes(start, length),
            Self::Remote(remote) => Ok(remote.piece(start, length as u64)?.slice(..length)),
        }
    }
}
