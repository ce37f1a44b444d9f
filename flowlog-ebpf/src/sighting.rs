//! What the tracer's programs tell the command about one packet at one place.

use crate::{
    abi::{Ends6, Note, TUPLE_WORDS},
    expression::Subject,
};

/// [`Sighting::at`]: on its way in, behind our hook.
pub const AT_INGRESS: u32 = 0;
/// On its way out, behind our hook.
pub const AT_EGRESS: u32 = 1;
/// Where it dies.
pub const AT_DEATH: u32 = 2;
/// On its way in, on a kernel without tcx: in front of our hook.
pub const BEFORE_INGRESS: u32 = 3;

/// [`Sighting::found`]: an IP packet.
pub const FOUND_FLOW: u32 = 0;
/// No IP packet.
pub const FOUND_NON_IP: u32 = 1;
/// An IP packet that cannot be parsed.
pub const FOUND_MALFORMED: u32 = 2;

/// [`Sighting::identity`]: it carries no number: no hook has noted it.
pub const NOTE_NONE: u32 = 0;
/// It is the packet of its note.
pub const NOTE_OWN: u32 = 1;
/// It has a note, and a verdict on that has been counted.
pub const NOTE_COUNTED: u32 = 2;
/// Its note is about another buffer: it is a copy, or has been copied.
pub const NOTE_OTHER: u32 = 3;
/// Its note is gone.
pub const NOTE_GONE: u32 = 4;

/// Bytes of a frame that cannot be parsed: link header, VLAN tags, and an IP header with a few that follow.
pub const HEAD_BYTES: usize = 128;

/// One packet at one place. Explicitly padded: it is sent as it is.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Sighting {
    /// When, `CLOCK_MONOTONIC`.
    pub now_ns: u64,
    /// Address of its buffer.
    pub address: u64,
    /// Where in the kernel it dies.
    pub place: u64,
    /// The kernel's number of the reason why.
    pub reason: u32,
    /// Where it is: [`AT_INGRESS`] …
    pub at: u32,
    /// Number of the CPU.
    pub cpu: u32,
    /// Inode number of the network namespace; 0: that of the interface it is seen at.
    pub netns_inum: u32,
    /// Index of the interface it is on; 0: none.
    pub dev: u32,
    /// Of the interface that it came in through; 0: none.
    pub iif: u32,
    /// Of the interface that its route leads to; 0: none.
    pub dst: u32,
    /// Layer-3 bytes; of what is no IP packet, those behind link header and VLAN tags.
    pub bytes: u32,
    /// What it was parsed as: [`FOUND_FLOW`] …
    pub found: u32,
    /// Whether its note is known: [`NOTE_NONE`] …
    pub identity: u32,
    /// The number that it carries.
    pub number: u32,
    /// Bytes of the whole buffer.
    pub frame_bytes: u32,
    /// What its headers say.
    pub subject: Subject,
    /// Its note, if it is known; else zeros, or another one's.
    pub note: Note,
    /// The addresses that are noted, if it is IPv6.
    pub ends6: Ends6,
    /// 1: it belongs to a connection that is translated.
    pub is_translated: u32,
    /// Bytes in `head`.
    pub head_bytes: u32,
    /// The tuple of packets like it before any translation, and that of the answers (`struct nf_conntrack_tuple`).
    pub tuples: [[u32; TUPLE_WORDS]; 2],
    /// How the frame begins, if it cannot be parsed.
    pub head: [u8; HEAD_BYTES],
}

/// An interface whose packets are traced.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Its index; 0: none.
    pub ifindex: u32,
    /// Inode number of its network namespace.
    pub netns_inum: u32,
}

/// Interfaces that are traced at the same time: each is compared with each packet that dies.
pub const TARGETS_MAX: usize = 8;

/// How much the programs may say, and what they have left out.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// Which second is being counted in (`CLOCK_MONOTONIC`).
    pub second: u64,
    /// Sightings in it.
    pub used: u64,
    /// Sightings that were sent.
    pub said: u64,
    /// Sightings that were more than the rate allows.
    pub suppressed: u64,
}

const _: () = {
    assert!(size_of::<Sighting>() == 72 + 48 + 64 + 32 + 8 + 80 + HEAD_BYTES);
    assert!(size_of::<Target>() == 8 && size_of::<Budget>() == 32);
};
