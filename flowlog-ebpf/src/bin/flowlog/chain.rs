//! What the notes of a dying packet say: one by one, newest first.

use core::ffi::c_void;

use flowlog_ebpf::abi::{CHAIN_MAX, EGRESS, FAMILY_V4, INGRESS, REASON_LOST, REASON_REFUSED};

use crate::{
    circle,
    datagram::{Whole, whole},
    devices::{find_noted, is_above, way_out},
    event::{Event, Identity, event},
    family::{V4, V6},
    lost, note, refuse,
    repeat::{GO_ON, STOP, repeat},
    wire::Wire,
};

/// Begins with the newest note: hooks on the way out, then those on the way in, from the interface that it came in through down to
/// the port. What is older is of an earlier passage: it had left, and was received again.
///
/// # Safety
/// `event` must be the event of the program `which`.
#[inline(always)]
pub unsafe fn begin(event: *mut Event, which: usize) {
    // SAFETY: by the contract above; no reference outlives the start of the loop.
    unsafe {
        let number = (*event).dropped.number;
        (*event).by_address = number == 0 && !note::numbered();
        (*event).links = u64::from(number);
        if (*event).by_address {
            let rounds = (*event).search.begin();
            repeat(rounds, search, which);
            (*event).links = (*event).search.found;
        }
        (*event).identity = if number == 0 { Identity::None } else { Identity::Forgotten } as u32;
        (*event).oldest = (*event).identity;
        (*event).copied = false;
        (*event).at = (*event).dropped.iif;
        (*event).came_in = false;
        (*event).followed = 0;
    }
}

/// Looks for the buffer's address in one note.
unsafe extern "C" fn search(_i: u32, context: *mut c_void) -> i64 {
    // SAFETY: `bpf_loop` hands back the pointer it was given.
    let which = unsafe { *context.cast::<u64>() };
    let Some(event) = event(which as usize) else { return STOP };
    if event.search.look(event.cause.address) { GO_ON } else { STOP }
}

/// Judges the packet by its next note. Behind the last note [`Event::links`] is 0. A note that needs the headers asks for them.
#[inline(always)]
pub fn link(event: &mut Event) {
    let links = event.links;
    event.links = 0;
    if event.followed == CHAIN_MAX {
        return;
    }
    if !circle::find(links as u16, &mut event.note, &mut event.key6) {
        event.oldest = Identity::Forgotten as u32;
        return;
    }
    if !event.is_read && (event.by_address || event.note.is_fragment()) {
        event.needs_headers = true;
        event.links = links;
        return;
    }
    let identity = own(event);
    event.oldest = identity as u32;
    if event.followed == 0 {
        event.identity = identity as u32;
    }
    event.followed += 1;
    let passage = passage(event);
    if identity == Identity::Judged || passage == Passage::Earlier {
        return;
    }
    if passage == Passage::Elsewhere {
        // Nothing to count.
    } else if identity == Identity::Shown {
        noted(event);
    } else {
        // The buffer is a copy of the packet of this note, and so of the older notes.
        unknown_copy(event);
        event.copied = true;
    }
    event.links = if event.by_address { links >> 16 } else { u64::from(event.note.prev) };
}

/// Whether a note is of this passage of the packet through the node.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Passage {
    /// The interface is one that the packet climbed through, or was on its way out through.
    This,
    /// It had left through the interface, and is on another way now: inside a tunnel's packet, or redirected.
    Elsewhere,
    /// It had left, and was received again; or another packet was in the buffer.
    Earlier,
}

#[inline(always)]
fn passage(event: &mut Event) -> Passage {
    if !find_noted(event) {
        // It has come from another namespace: through a cable, say.
        return Passage::Earlier;
    }
    let ifindex = u32::from(event.note.ifindex);
    let netns = event.dropped.netns;
    if event.note.key.meta.direction() == EGRESS {
        if event.came_in || u32::from(event.note.iif) != event.dropped.iif {
            return Passage::Earlier;
        }
        let out = way_out(event);
        if ifindex != out && !is_above(netns, out, ifindex) {
            return Passage::Elsewhere;
        }
        // An address alone also finds what the buffer held before. On the way out netfilter comes before our hook: a note of
        // the interface that it refuses the way to is an earlier packet's.
        let out = ifindex == event.dropped.dev || ifindex == event.dropped.dst;
        let earlier = event.left_through != 0 || (out && event.cause.action == REASON_REFUSED);
        return if event.by_address && earlier { Passage::Earlier } else { Passage::This };
    }
    // Through each interface once.
    let again = event.came_in && ifindex == event.at;
    if again || (ifindex != event.at && !is_above(netns, ifindex, event.at)) {
        return Passage::Earlier;
    }
    event.at = ifindex;
    event.came_in = true;
    Passage::This
}

/// Whether the dying buffer is the packet of the note.
#[inline(never)]
fn own(event: &mut Event) -> Identity {
    let same = event.note.address == event.cause.address && !event.copied;
    if !event.note.is_fragment() {
        return if same { Identity::Shown } else { Identity::Copy };
    }
    match if event.copied { Whole::Unknown } else { whole(event) } {
        Whole::Judged => Identity::Judged,
        Whole::Shown => Identity::Shown,
        Whole::Fragment if same => Identity::Shown,
        // Put together and cut again, perhaps.
        Whole::Fragment | Whole::Unknown => Identity::Copy,
    }
}

/// A copy dies, with which the stack may have gone on (`skb_share_check`): it is not known what became of the packet. Copies
/// of what is addressed to many each have a fate of their own.
#[inline(always)]
fn unknown_copy(event: &mut Event) {
    if !event.dropped.group && event.cause.action == REASON_REFUSED {
        unknown_noted(event);
    }
}

/// Packets and bytes of the note, and of the rest of its datagram.
#[inline(always)]
fn with_its_datagram(event: &Event) -> Wire {
    let note = &event.note;
    let later = event.later;
    let unsure = event.unsure;
    Wire {
        packets: u32::from(note.packets) + later.packets + unsure.packets,
        bytes: note.bytes + later.bytes + unsure.bytes,
    }
}

/// It is not known what became of the packet of the note, on its way in.
#[inline(always)]
fn unknown_noted(event: &mut Event) {
    let note = &event.note;
    let d = &event.dropped;
    let ifindex = u32::from(note.ifindex);
    if note.key.meta.direction() == INGRESS {
        refuse::unknown(event.spot, INGRESS, with_its_datagram(event));
        event.came_in_noted |= ifindex == d.iif;
    }
}

/// The packet of the note was refused or lost, as far as that can be said.
#[inline(never)]
fn noted(event: &mut Event) {
    let note = &event.note;
    let d = &event.dropped;
    let action = event.cause.action;
    let ifindex = u32::from(note.ifindex);
    let ingress = note.key.meta.direction() == INGRESS;
    if ingress {
        event.came_in_noted |= ifindex == d.iif;
    } else if event.left_through == 0 {
        event.left_through = ifindex;
    }
    // On a port that is neither the one it came in through nor the one it is routed to: of a flood, perhaps.
    let bridged = d.dev != 0 && d.dev != d.iif && d.dst != d.dev && event.later.packets == 0;
    // What a process of this node sends is a clone of what its socket holds: then it is no copy if nobody else has it.
    let only_sent = d.cloned && d.sent_clone && d.sharers() <= 2;
    // A bridge that takes what is not for it (promiscuous) hands it up and forwards a clone.
    let handed_up = d.other_host && ifindex != d.dev && is_above(d.netns, ifindex, d.dev);
    let copies_live_on = ingress && d.cloned && (d.group || handed_up || (bridged && !only_sent));
    if action == REASON_LOST {
        if copies_live_on {
            // Nobody knows which of them was the packet.
        } else if note.family() == FAMILY_V4 {
            lost::noted::<V4>(event);
        } else {
            lost::noted::<V6>(event);
        }
        return;
    }
    let weak = event.by_address && (!ingress || action != REASON_REFUSED || !refuse::is_same_tuple(event));
    if event.family == 0 {
        // For what comes after the notes, should the headers not be where they can be read now: at the hook they were.
        refuse::recall(event);
    }
    let note = &event.note;
    if copies_live_on || event.cause.own_filter || weak {
        return refuse::unknown(event.spot, note.key.meta.direction(), with_its_datagram(event));
    }
    if note.family() == FAMILY_V4 {
        refuse::noted::<V4>(event);
    } else {
        refuse::noted::<V6>(event);
    }
}
