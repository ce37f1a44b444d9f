//! A packet that dies for a firewall's reason: all that is known about it while it is judged.

use flowlog_ebpf::{
    abi::{FAMILY_V4, FAMILY_V6, Ip4, Ip6, Key, Note, SCRATCH_WORDS},
    packet::{self, Flow, Frame, Packet, Part},
};

use crate::{
    kernel::{Dropped, tunnel_headers},
    maps::DYING,
    note,
    wire::Wire,
};

/// What the tracepoint says besides the buffer itself.
#[derive(Clone, Copy)]
pub struct Cause {
    /// Address of the buffer.
    pub address: u64,
    /// The kernel's number of the reason.
    pub reason: u32,
    /// The reason's `REASON_*`: what kind of refusal it is.
    pub action: u8,
    /// Whether the socket's own filter may have done it.
    pub own_filter: bool,
}

/// A packet that dies for a firewall's reason. In map memory: the stack has no room for it.
#[repr(C)]
pub struct Event {
    /// What the tracepoint says.
    pub cause: Cause,
    /// What the kernel knows about the buffer.
    pub dropped: Dropped,
    /// The note that is being looked at.
    pub note: Note,
    /// The spot of the interface whose hook wrote it.
    pub spot: u32,
    /// Its key, if it is IPv6.
    pub key6: Key<Ip6>,
    /// The headers have been looked at: [`read_headers`].
    pub is_read: bool,
    /// It cannot be judged any further without them.
    pub needs_headers: bool,
    /// `FAMILY_*` of what the headers say; 0: they have not been, or cannot be read.
    pub family: u32,
    /// What the headers say, if `family` is IPv4.
    pub v4: Flow<Ip4>,
    /// What the headers say, if `family` is IPv6.
    pub v6: Flow<Ip6>,
    /// Packets and bytes of it on the wire.
    pub wire: Wire,
    /// Packets and bytes of the other fragments, if it is a datagram that was put together.
    pub later: Wire,
    /// The protocol that those name.
    pub later_proto: u8,
    /// Packets and bytes of the other fragments of a datagram whose fragments do not agree.
    pub unsure: Wire,
    /// Which part of a datagram it is: all of it, or a fragment.
    pub part: Part,
    /// A hook of the interface it came in through has noted it.
    pub came_in_noted: bool,
    /// The interface through which a hook has seen it leave; 0: none.
    pub left_through: u32,
    /// `elsewhere` has been filled in.
    pub is_asked: bool,
    /// Interfaces without a note of it that want to know of its refusal.
    pub elsewhere: Elsewhere,
    /// [`Identity`] by its newest note.
    pub identity: u32,
    /// [`Identity`] by the oldest that was looked at.
    pub oldest: u32,
    /// Notes that were looked at.
    pub followed: u32,
    /// The interface that the last of them was about; before, the one it came in through.
    pub at: u32,
    /// One of them was about its way in.
    pub came_in: bool,
    /// It was found by its address alone.
    pub by_address: bool,
    /// It is a copy of the packet that the notes are about.
    pub copied: bool,
    /// The search for notes by address.
    pub search: note::Search,
    /// Numbers of the next notes, 16 bits each.
    pub links: u64,
    /// The last record that is new.
    pub telling: Telling,
    /// Interfaces that no hook has noted it on and that it was refused on: two at most, each with the direction in its lowest bit.
    unseen: u64,
    /// The way in has been judged, where there is no note.
    pub is_ingress_judged: bool,
    /// All has been judged.
    pub is_judged: bool,
}

/// A record that is new, of which it is to be told what its packets have on the other side of a translation.
#[repr(C)]
pub struct Telling {
    /// Its key; of IPv4 in the first bytes.
    pub key: Key<Ip6>,
    /// Its `FAMILY_*`; 0: there is none.
    pub family: u32,
    /// 0: it is not new, but may be another connection's by now.
    pub is_new: u32,
}

const _: () = assert!(size_of::<Event>() <= SCRATCH_WORDS * 8);

/// Interfaces that want to know of a refusal, whether a hook of theirs has noted it or not.
#[derive(Clone, Copy)]
pub struct Elsewhere {
    /// The spot of the one that it came in through; 0: none.
    pub came_in: u32,
    /// The spot of the bridge above that; 0: none.
    pub climbed: u32,
    /// The one that it was to leave through; 0: none.
    pub out: u32,
    /// Its spot.
    pub out_spot: u32,
    /// It is a bridge with watched ports, or above a watched interface.
    pub is_bridge: bool,
}

/// What is known about who a dying buffer is.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Identity {
    /// The very packet that its notes are about.
    Shown,
    /// It passed no hook.
    None,
    /// It, or what it was copied from, passed a hook; the note is gone.
    Forgotten,
    /// A copy of a packet that passed a hook.
    Copy,
    /// A part of a datagram that has been judged as a whole.
    Judged,
}

impl Event {
    /// What is known before anything has been looked at. (The search and the notes begin with themselves.)
    #[inline(always)]
    pub fn begin(&mut self) {
        self.family = 0;
        self.is_read = false;
        self.needs_headers = false;
        self.is_asked = false;
        self.later = Wire { packets: 0, bytes: 0 };
        self.later_proto = 0;
        self.unsure = Wire { packets: 0, bytes: 0 };
        self.came_in_noted = false;
        self.left_through = 0;
        self.telling.family = 0;
        self.unseen = 0;
        self.is_ingress_judged = false;
        self.is_judged = false;
    }

    /// It was refused at this spot, where no hook has noted it: to be counted in a step of its own, as the verifier walks all of that for
    /// each place it is called from.
    #[inline(always)]
    pub fn is_unseen_at(&mut self, spot: u32, direction: u8) {
        self.unseen = self.unseen << u32::BITS | u64::from(spot << 1 | u32::from(direction));
    }

    /// The next such spot and direction.
    #[inline(always)]
    pub fn next_unseen(&mut self) -> Option<(u32, u8)> {
        let next = self.unseen as u32;
        self.unseen >>= u32::BITS;
        (next != 0).then_some((next >> 1, (next & 1) as u8))
    }
}

/// Reads the headers, as far as they are where they can be read. What a note has said of them stays if they are not. Most
/// refusals need no more than their note, and each read of kernel memory costs 4 ns. Called in one place: the verifier walks all
/// of it for each.
#[inline(never)]
pub fn read_headers(event: &mut Event) {
    event.is_read = true;
    let d = &event.dropped;
    let frame = Frame { len: d.l3_available, vlan_tci: d.vlan_tci, link_header: false };
    let (family, part, proto, l3_len, headers) = match packet::parse(&d.headers, frame) {
        Packet::V4(f) => {
            event.v4 = f;
            (FAMILY_V4, f.fragment.part, f.proto, f.l3_len, f.headers)
        }
        Packet::V6(f) => {
            event.v6 = f;
            (FAMILY_V6, f.fragment.part, f.proto, f.l3_len, f.headers)
        }
        Packet::NonIp(_) | Packet::Malformed(_) => {
            event.part = Part::Whole;
            if event.family == 0 {
                event.wire = Wire { packets: 1, bytes: d.l3_available };
            }
            return;
        }
    };
    event.family = family;
    event.part = part;
    let tunnel = if d.gso_size == 0 || proto == packet::TCP { 0 } else { tunnel_headers(event.cause.address) };
    let headers = if tunnel == 0 { headers } else { tunnel };
    let (packets, bytes) = packet::wire(l3_len, headers, d.gso_size, d.gso_segs);
    event.wire = Wire { packets, bytes };
}

/// The event in the scratch memory of one of the two programs.
#[inline(always)]
pub fn event(which: usize) -> Option<&'static mut Event> {
    let dying = DYING.get_ptr_mut(0)?;
    // SAFETY: a map value of this CPU that only the program of this number uses.
    Some(unsafe { &mut *(&raw mut (*dying).scratch[which & 1]).cast::<Event>() })
}
