//! Entries of a segment.
//!
//! ```text
//! crc32 of everything behind it : u32 | bytes of payload : u32 | kind : u32 | 0 : u32 | ring position : u64 | payload
//! ```
//!
//! Numbers are in the machine's order: a journal never leaves its machine. Blocks are as they were in the ring, events
//! JSON (there are few of them).

use std::path::PathBuf;

use flowlog_model::Now;
use serde::{Deserialize, Serialize};

use crate::window::Event;

/// Bytes in front of a payload.
pub(crate) const HEADER: usize = 24;
/// Largest payload: events are small, blocks of a snapshot 88 KiB. What claims to be larger is torn.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// Version of all this.
pub const FORMAT: u32 = 1;

/// What a segment belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// [`FORMAT`] of the agent that wrote it.
    pub format: u32,
    /// Boot of the machine (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// The kernel's id of the ring.
    pub ring_id: u32,
    /// Where that ring is pinned, if it is.
    pub pin_dir: Option<PathBuf>,
    /// When it was begun.
    pub begun: Now,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Frame<'a> {
    /// First in every segment.
    Head(Head),
    /// Records, and the ring position behind them.
    Block {
        position: u64,
        /// As in the ring.
        bytes: &'a [u8],
    },
    Event(Box<Event>),
    /// All of the ledger has been written; ring position at that time.
    SnapshotEnd {
        position: u64,
    },
}

const HEAD: u32 = 1;
const BLOCK: u32 = 2;
const EVENT: u32 = 3;
const SNAPSHOT_END: u32 = 4;

impl<'a> Frame<'a> {
    /// Appends it to `out`.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let json;
        let (kind, position, payload): (u32, u64, &[u8]) = match self {
            Self::Head(head) => {
                json = serde_json::to_vec(head).unwrap_or_default();
                (HEAD, 0, &json)
            }
            Self::Block { position, bytes } => (BLOCK, *position, bytes),
            Self::Event(event) => {
                json = serde_json::to_vec(event).unwrap_or_default();
                (EVENT, 0, &json)
            }
            Self::SnapshotEnd { position } => (SNAPSHOT_END, *position, &[]),
        };
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_ne_bytes());
        out.extend_from_slice(&kind.to_ne_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&position.to_ne_bytes());
        out.extend_from_slice(payload);
        let crc = crc32fast::hash(&out[start + 4..]);
        out[start..start + 4].copy_from_slice(&crc.to_ne_bytes());
    }

    /// How many bytes of payload follow this header; `None`: it is torn.
    #[must_use]
    pub(crate) fn payload_len(header: &[u8; HEADER]) -> Option<usize> {
        let len = u32::from_ne_bytes(header[4..8].try_into().ok()?) as usize;
        (len <= PAYLOAD_BYTES_MAX).then_some(len)
    }

    /// Reads an entry; `None`: it is torn.
    #[must_use]
    pub(crate) fn read(header: &[u8; HEADER], payload: &'a [u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_ne_bytes(header.get(at..at + 4)?.try_into().ok()?));
        let mut crc = crc32fast::Hasher::new();
        crc.update(&header[4..]);
        crc.update(payload);
        if crc.finalize() != word(0)? {
            return None;
        }
        let position = u64::from_ne_bytes(header[16..].try_into().ok()?);
        match word(8)? {
            HEAD => serde_json::from_slice(payload).ok().map(Frame::Head),
            BLOCK => Some(Frame::Block { position, bytes: payload }),
            EVENT => serde_json::from_slice(payload).ok().map(|e| Frame::Event(Box::new(e))),
            SNAPSHOT_END => Some(Frame::SnapshotEnd { position }),
            _ => None,
        }
    }
}
