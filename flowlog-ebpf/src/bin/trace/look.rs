//! The packet that is being looked at: all of it in map memory, where the verifier follows nothing.

use aya_ebpf::{
    btf_maps::PerCpuArray,
    helpers::generated::{bpf_get_smp_processor_id, bpf_ktime_get_ns},
    macros::btf_map,
};
use flowlog_ebpf::{
    abi::{FAMILY_V4, Ip6, Key, Note},
    expression::{EMPTY, Subject},
    packet::{Bytes, Flow, Frame, Packet, Part, has_ports, parse as parse_frame},
    sighting::{
        FOUND_FLOW, FOUND_MALFORMED, FOUND_NON_IP, NOTE_COUNTED, NOTE_GONE, NOTE_NONE, NOTE_OTHER, NOTE_OWN, Sighting,
    },
};

use crate::{
    circle, cpu,
    kernel::{self, Dropped},
};

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;

/// Packets that can be looked at on a CPU at the same time: one at a hook, and one that dies in what the hook has interrupted.
const LOOKS_MAX: usize = 2;
/// Index of the one at a hook.
pub const AT_HOOK: u32 = 0;
/// Index of the one that dies.
pub const DYING: u32 = 1;

/// Whose tuple a subject is: what the headers say.
pub const HEADERS: usize = 0;
/// What the packet had at its hook.
pub const NOTED: usize = 1;
/// What its connection's packets have before any translation.
pub const BEFORE: usize = 2;
/// Subjects of a packet, up to a power of two, so that a mask keeps an index inside.
pub const SUBJECTS: usize = 4;

/// Scratch state of this CPU.
#[btf_map]
static LOOKS: PerCpuArray<Looks, 1> = PerCpuArray::new();

/// All that is looked at on a CPU.
#[repr(C)]
pub struct Looks {
    looks: [Look; LOOKS_MAX],
}

/// One packet.
#[repr(C)]
pub struct Look {
    /// A pointer on its way to becoming a number.
    pub cell: u64,
    /// Truth values of the expression, so far.
    pub stack: u64,
    /// Which subject it is evaluated for.
    pub subject: u32,
    /// Which of its tests is next, and before which interface is.
    pub test: u32,
    /// What is to be done next: `steps`.
    pub phase: u32,
    /// Explicit padding.
    pub spare: u32,
    /// What the packet is known by; those of no family are not there.
    pub subjects: [Subject; SUBJECTS],
    /// What the kernel knows of a buffer that dies.
    pub dropped: Dropped,
    /// The noted key, if it is IPv6.
    pub key6: Key<Ip6>,
    /// What will be said.
    pub sighting: Sighting,
}

/// The one with this index.
#[inline(always)]
pub fn look(which: u32) -> Option<*mut Look> {
    let looks = LOOKS.get_ptr_mut(0)?;
    // SAFETY: a map value of this CPU; whoever uses an index does not interrupt itself.
    Some(unsafe { &raw mut (*looks).looks[which as usize & (LOOKS_MAX - 1)] })
}

/// Where a packet is.
#[derive(Clone, Copy)]
pub struct Position {
    /// `AT_*` of a sighting.
    pub at: u32,
    /// Where it dies.
    pub place: u64,
    /// Why.
    pub reason: u32,
}

/// Begins with a packet of which nothing is known but where it is.
///
/// # Safety
/// `look` must come from [`look`].
#[inline(always)]
pub unsafe fn begin(look: *mut Look, buffer: u64, of: Position) {
    // SAFETY: a map value. Member by member: an assignment of all of it would be a call for each.
    unsafe {
        let s = &raw mut (*look).sighting;
        (*s).now_ns = bpf_ktime_get_ns();
        (*s).cpu = bpf_get_smp_processor_id();
        (*s).address = cpu::address(&raw mut (*look).cell, buffer);
        (*s).place = of.place;
        (*s).reason = of.reason;
        (*s).at = of.at;
        (*s).netns_inum = 0;
        (*s).head_bytes = 0;
        (*s).is_translated = 0;
        (*look).subjects[NOTED].family = 0;
        (*look).subjects[BEFORE].family = 0;
        (*look).subject = HEADERS as u32;
        (*look).test = 0;
        (*look).stack = EMPTY;
    }
}

/// Parses the headers into the sighting. A function of its own: the verifier forgets all the ways through the parser when it returns.
#[inline(never)]
pub fn parse<B: Bytes>(bytes: &B, frame: &Frame, which: u32) -> u32 {
    let Some(look) = look(which) else { return 0 };
    // SAFETY: a map value of this CPU.
    unsafe {
        let s = &raw mut (*look).sighting;
        let subject = &raw mut (*look).subjects[HEADERS];
        let (found, len) = match parse_frame(bytes, *frame) {
            Packet::V4(f) => {
                (*subject).src = [f.src, 0, 0, 0];
                (*subject).dst = [f.dst, 0, 0, 0];
                keep(subject, &f, 4);
                (FOUND_FLOW, f.l3_len)
            }
            Packet::V6(f) => {
                (*subject).src = words(f.src);
                (*subject).dst = words(f.dst);
                keep(subject, &f, 6);
                (FOUND_FLOW, f.l3_len)
            }
            Packet::NonIp(len) => (FOUND_NON_IP, len),
            Packet::Malformed(len) => (FOUND_MALFORMED, len),
        };
        (*s).found = found;
        (*s).bytes = len;
        if found != FOUND_FLOW {
            nothing(subject, frame);
        }
    }
    1
}

#[inline(always)]
fn words(address: Ip6) -> [u32; 4] {
    let [a, b] = address;
    [a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32]
}

#[inline(always)]
unsafe fn keep<A>(to: *mut Subject, f: &Flow<A>, family: u16) {
    // SAFETY: by the caller, a map value.
    unsafe {
        (*to).sport = f.sport;
        (*to).dport = f.dport;
        (*to).vlan = f.vlan;
        (*to).family = family;
        (*to).proto = u16::from(f.proto);
        (*to).has_ports = u16::from(has_ports(f.proto) && f.fragment.part != Part::Later);
    }
}

/// What is known of a frame that is no IP packet.
#[inline(always)]
unsafe fn nothing(to: *mut Subject, frame: &Frame) {
    // SAFETY: by the caller, a map value.
    unsafe {
        (*to).src = [0; 4];
        (*to).dst = [0; 4];
        (*to).sport = 0;
        (*to).dport = 0;
        (*to).vlan = frame.vlan_tci & 0x0fff;
        (*to).family = 0;
        (*to).proto = 0;
        (*to).has_ports = 0;
    }
}

/// Finds the note of the number that the packet carries.
#[inline(never)]
pub fn find_note(which: u32) -> u32 {
    let Some(look) = look(which) else { return 0 };
    // SAFETY: a map value of this CPU.
    unsafe {
        let s = &raw mut (*look).sighting;
        let number = (*s).number;
        if number == 0 {
            (*s).identity = NOTE_NONE;
            return 0;
        }
        if !circle::find(number as u16, &mut (*s).note, &mut (*look).key6) {
            (*s).identity = NOTE_GONE;
            return 0;
        }
        let note: *const Note = &raw const (*s).note;
        let address = (&raw const (*note).address).read_volatile();
        let identity = if address == (*s).address {
            NOTE_OWN
        } else if address == 0 {
            NOTE_COUNTED
        } else {
            NOTE_OTHER
        };
        (*s).identity = identity;
        let subject = &raw mut (*look).subjects[NOTED];
        if (*note).family() == FAMILY_V4 {
            (*subject).src = [(*note).key.src, 0, 0, 0];
            (*subject).dst = [(*note).key.dst, 0, 0, 0];
            (*subject).family = 4;
        } else {
            (*s).ends6.src = (*look).key6.src;
            (*s).ends6.dst = (*look).key6.dst;
            (*subject).src = words((*look).key6.src);
            (*subject).dst = words((*look).key6.dst);
            (*subject).family = 6;
        }
        let meta = &raw const (*note).key.meta;
        (*subject).sport = (*meta).sport;
        (*subject).dport = (*meta).dport;
        (*subject).vlan = (*meta).vlan;
        (*subject).proto = u16::from((*meta).proto);
        (*subject).has_ports = u16::from(has_ports((*meta).proto));
        (*subject).ethertype = if (*subject).family == 4 { ETH_P_IP } else { ETH_P_IPV6 };
    }
    1
}

/// Word of a connection's tuple that has the source port and the address family (`struct nf_conntrack_tuple`).
const SOURCE_AND_FAMILY: usize = 4;
/// The one that has the destination address begins here.
const DESTINATION: usize = 5;
/// The one that has the destination port, and the protocol behind it.
const DESTINATION_AND_PROTOCOL: usize = 9;
/// Address family of IPv4 (`include/linux/socket.h`).
const AF_INET: u32 = 2;

/// Reads the tuples of the packet's connection, if that is translated.
#[inline(never)]
pub fn find_connection(which: u32) -> u32 {
    let Some(look) = look(which) else { return 0 };
    // SAFETY: a map value of this CPU, with room for both tuples.
    unsafe {
        let s = &raw mut (*look).sighting;
        let connection = kernel::connection((*s).address);
        if !kernel::translated(connection, &raw mut (*s).tuples) {
            return 0;
        }
        (*s).is_translated = 1;
        let own = (&raw const (*s).tuples).cast::<u32>();
        let subject = &raw mut (*look).subjects[BEFORE];
        let first =
            |at: usize| [own.add(at).read(), own.add(at + 1).read(), own.add(at + 2).read(), own.add(at + 3).read()];
        (*subject).src = first(0);
        (*subject).dst = first(DESTINATION);
        let family = own.add(SOURCE_AND_FAMILY).read();
        let end = own.add(DESTINATION_AND_PROTOCOL).read();
        let is_v4 = family >> 16 & 0xff == AF_INET;
        (*subject).sport = u16::from_be(family as u16);
        (*subject).dport = u16::from_be(end as u16);
        (*subject).proto = (end >> 16 & 0xff) as u16;
        (*subject).vlan = (*look).subjects[HEADERS].vlan;
        (*subject).has_ports = u16::from(has_ports((end >> 16) as u8));
        (*subject).family = if is_v4 { 4 } else { 6 };
        (*subject).ethertype = if is_v4 { ETH_P_IP } else { ETH_P_IPV6 };
    }
    1
}
