//! The verdict programs: which packets did the node's own firewall refuse, on which watched interface?
//!
//! The tracepoint `kfree_skb` fires for every packet that dies, with the reason. Packets that die for a reason that
//! is not a firewall's leave at the first look-up.
//!
//! A refused packet was refused on its way *in* through every interface it climbed through, and on its way *out* through
//! the one it was headed for; each gets its own REJECT count. Where a hook had counted it as passed is in the notes whose
//! chain begins with the packet's number ([`crate::note`]); that count is taken back: from its cache slot while it is still
//! there, else by the agent (see `abi::class`).
//!
//! What cannot be shown is not guessed. A buffer of which copies may live on, or that may be a copy with which the stack
//! went on, or whose note is gone, counts as [`flowlog_ebpf::abi::VerdictTruth::unknown`].
//!
//! The kernel skips a tracing program that would interrupt itself (`bpf_prog_active`): a verdict in process context
//! interrupted by one in softirq would lose the second. So there are two programs on the tracepoint: the first
//! marks what it handled, the second handles what the first never saw.
//!
//! A link to a tracepoint cannot be given another program. So what is attached does nothing but jump to the
//! program that a map names: a new agent replaces that one, and every event is handled by exactly one of the two.

use core::ffi::c_void;

use aya_ebpf::{helpers::generated::bpf_loop, macros::btf_tracepoint, programs::BtfTracePointContext};
use flowlog_ebpf::abi::{
    CHAIN_MAX, Dying, EGRESS, FAMILY_V4, FAMILY_V6, HANDLED, INGRESS, IS_BRIDGE, ONLY_NOTED, REASON_BY_PLACE,
    REASON_REFUSED, REASON_SOCKET, REASON_TC_INGRESS, REASON_XDP, Stacked, VERDICT_FIRST, VERDICT_NESTED,
    WANT_REFUSED_EGRESS, WANT_REFUSED_INGRESS, reason_index,
};

use crate::{
    account::{self, V4, V6, Wire},
    datagram::{Whole, fragment, whole},
    event::{Cause, Event, Identity, event, read_headers},
    kernel::{self, Dropped},
    maps::{ABOVE, DROP_ARGUMENTS, DYING, NETNS_OF, REASONS, VERDICTS, XDP_PLACE},
    note, refuse,
};

/// The loopback device has this index in every network namespace.
const LOOPBACK: u32 = 1;
/// No device may have a smaller MTU for IP (RFC 791).
const MTU_LEAST: u32 = 68;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;

/// What is attached: jumps to [`flowlog_verdict`].
#[btf_tracepoint(function = "kfree_skb")]
pub fn flowlog_drop(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: nothing here needs to be dropped.
    unsafe { VERDICTS.tail_call(&ctx, VERDICT_FIRST) };
    0
}

/// What is attached: jumps to [`flowlog_verdict_nested`].
#[btf_tracepoint(function = "kfree_skb")]
pub fn flowlog_drop_nested(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: nothing here needs to be dropped.
    unsafe { VERDICTS.tail_call(&ctx, VERDICT_NESTED) };
    0
}

#[btf_tracepoint(function = "kfree_skb")]
pub fn flowlog_verdict(ctx: BtfTracePointContext) -> i32 {
    let Some((reason, action)) = refusal(&ctx) else { return 0 };
    let skb: *const u8 = ctx.arg(0);
    let Some(dying) = DYING.get_ptr_mut(0) else { return 0 };
    // SAFETY: a map value of this CPU; this program does not interrupt itself.
    let address = unsafe { account::address((&raw mut (*dying).pointers).cast::<u64>(), skb as u64) };
    // SAFETY: a map value of this CPU.
    unsafe { handled(dying, address).write_volatile(address) };
    let own = own_filter(&ctx, action);
    dropped(skb, dying, 0, Cause { address, reason, action, own_filter: own });
    0
}

/// Runs right after [`flowlog_verdict`] for the same event, and alone for an event that interrupted it.
#[btf_tracepoint(function = "kfree_skb")]
pub fn flowlog_verdict_nested(ctx: BtfTracePointContext) -> i32 {
    let Some((reason, action)) = refusal(&ctx) else { return 0 };
    let skb: *const u8 = ctx.arg(0);
    let Some(dying) = DYING.get_ptr_mut(0) else { return 0 };
    // SAFETY: a map value of this CPU; this program does not interrupt itself.
    let address = unsafe { account::address((&raw mut (*dying).pointers).cast::<u64>().add(1), skb as u64) };
    let mark = handled(dying, address);
    // SAFETY: a map value of this CPU.
    unsafe {
        if mark.read_volatile() == address {
            mark.write_volatile(0);
            return 0;
        }
    }
    let own = own_filter(&ctx, action);
    dropped(skb, dying, 1, Cause { address, reason, action, own_filter: own });
    0
}

/// The reason and its `REASON_*`, if the packet was refused and did not just die.
#[inline(always)]
fn refusal(ctx: &BtfTracePointContext) -> Option<(u32, u8)> {
    let reason: u32 = ctx.arg(2);
    let action = *REASONS.get(reason_index(reason))?;
    if action == REASON_BY_PLACE {
        let place: u64 = ctx.arg(1);
        let [first, last, xdp] = XDP_PLACE.load();
        return (place >= first && place <= last).then_some((xdp as u32, REASON_XDP));
    }
    (action != 0).then_some((reason, action))
}

/// Whether the socket's own filter may have dropped the packet, and not a cgroup's program. Kernels before 6.11 do not say
/// which socket it was.
#[inline(always)]
fn own_filter(ctx: &BtfTracePointContext, action: u8) -> bool {
    if action != REASON_SOCKET {
        return false;
    }
    if DROP_ARGUMENTS.load() < 4 {
        return true;
    }
    let sk: *const u8 = ctx.arg(3);
    // SAFETY: the tracepoint's fourth argument, a `struct sock *`.
    sk.is_null() || unsafe { kernel::has_filter(sk) }
}

#[inline(always)]
fn handled(dying: *mut Dying, address: u64) -> *mut u64 {
    let index = (address >> 6) as usize & (HANDLED - 1);
    // SAFETY: the index is below the array's length.
    unsafe { (&raw mut (*dying).handled).cast::<u64>().add(index) }
}

/// Everything but which of the two programs handles the event.
#[inline(always)]
fn dropped(skb: *const u8, dying: *mut Dying, which: usize, cause: Cause) {
    // SAFETY: a map value of this CPU that only this program uses; `Event` fits, and all of it is written before it is read.
    // `skb` is the tracepoint's first argument.
    let event = unsafe {
        let event = (&raw mut (*dying).scratch[which]).cast::<Event>();
        (&raw mut (*event).cause).write(cause);
        Dropped::read(skb, &raw mut (*event).dropped);
        &mut *event
    };
    if event.dropped.protocol != ETH_P_IP && event.dropped.protocol != ETH_P_IPV6 {
        return;
    }
    read_headers(event);
    judge(event, which);
}

#[inline(always)]
fn judge(event: &mut Event, which: usize) {
    judge_noted(event, which);
    if event.identity == Identity::Judged as u32 {
        return;
    }
    judge_ingress(event);
    judge_egress(event);
}

/// Everything that its notes say. Newest first: hooks on the way out, then those on the way in, from the interface that it
/// came in through down to the port. What is older is of an earlier passage: it had left, and was received again.
#[inline(always)]
fn judge_noted(event: &mut Event, which: usize) {
    let number = event.dropped.number;
    event.by_address = number == 0 && !note::numbered();
    event.links = u64::from(number);
    if event.by_address {
        let rounds = event.search.begin();
        repeat(rounds, search, which);
        event.links = event.search.found;
    }
    event.identity = if number == 0 { Identity::None } else { Identity::Forgotten } as u32;
    (event.oldest, event.copied) = (event.identity, false);
    (event.at, event.came_in, event.followed) = (event.dropped.iif, false, 0);
    if event.links == 0 {
        return;
    }
    repeat(CHAIN_MAX, link, which);
}

/// A step of a loop: gets a pointer to the program's number; returns 0 to go on, 1 to stop.
type Step = unsafe extern "C" fn(u32, *mut c_void) -> i64;

/// A loop of the kernel's: the verifier walks it once.
#[inline(always)]
fn repeat(rounds: u32, step: Step, which: usize) {
    let mut context = which as u64;
    // SAFETY: the callback takes exactly these arguments; `context` outlives the loop.
    unsafe { bpf_loop(rounds, step as *mut c_void, core::ptr::from_mut(&mut context).cast(), 0) };
}

/// Looks for the buffer's address in one note.
unsafe extern "C" fn search(_i: u32, context: *mut c_void) -> i64 {
    // SAFETY: `bpf_loop` hands back the pointer it was given.
    let which = unsafe { *context.cast::<u64>() };
    let Some(event) = event(which as usize) else { return 1 };
    i64::from(!event.search.look(event.cause.address))
}

/// Goes by one note.
unsafe extern "C" fn link(_i: u32, context: *mut c_void) -> i64 {
    // SAFETY: `bpf_loop` hands back the pointer it was given.
    let which = unsafe { *context.cast::<u64>() };
    let Some(event) = event(which as usize) else { return 1 };
    let number = event.links as u16;
    if number == 0 {
        return 1;
    }
    if !note::find(number, &mut event.note, &mut event.key6) {
        event.oldest = Identity::Forgotten as u32;
        return 1;
    }
    let identity = own(event);
    event.oldest = identity as u32;
    if event.followed == 0 {
        event.identity = identity as u32;
    }
    event.followed += 1;
    let passage = passage(event);
    if identity == Identity::Judged || passage == Passage::Earlier {
        return 1;
    }
    if passage == Passage::Elsewhere {
        // Nothing to count.
    } else if identity == Identity::Shown {
        noted(event);
    } else {
        // Of a copy, so are the notes behind.
        unknown_copy(event);
        event.copied = true;
    }
    event.links = if event.by_address { event.links >> 16 } else { u64::from(event.note.prev) };
    i64::from(event.links == 0)
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
    let ifindex = u32::from(event.note.ifindex);
    if event.note.key.meta.direction() == EGRESS {
        if event.came_in || u32::from(event.note.iif) != event.dropped.iif {
            return Passage::Earlier;
        }
        let out = way_out(event);
        if ifindex != out && !is_above(out, ifindex) {
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
    if again || (ifindex != event.at && !is_above(ifindex, event.at)) {
        return Passage::Earlier;
    }
    (event.at, event.came_in) = (ifindex, true);
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

/// It is not known what became of the packet of the note, on its way in.
#[inline(always)]
fn unknown_noted(event: &mut Event) {
    let (note, d) = (&event.note, &event.dropped);
    let ifindex = u32::from(note.ifindex);
    if note.key.meta.direction() == INGRESS && is_here(ifindex, d.netns) {
        let Wire { packets, bytes } = event.later;
        refuse::unknown(
            ifindex,
            INGRESS,
            Wire { packets: packets + u32::from(note.packets), bytes: bytes + note.bytes },
        );
        event.came_in_noted |= ifindex == d.iif;
    }
}

/// The packet of the note was refused, as far as that can be said.
#[inline(never)]
fn noted(event: &mut Event) {
    let (note, d, action) = (&event.note, &event.dropped, event.cause.action);
    let (ifindex, ingress) = (u32::from(note.ifindex), note.key.meta.direction() == INGRESS);
    if !is_here(ifindex, d.netns) {
        return;
    }
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
    let handed_up = d.other_host && ifindex != d.dev && is_above(ifindex, d.dev);
    let copies_live_on = ingress && d.cloned && (d.group || handed_up || (bridged && !only_sent));
    let weak = event.by_address && (!ingress || action != REASON_REFUSED || !refuse::is_same_tuple(event));
    if event.family == 0 {
        // The headers cannot be read where they are now: the hook could.
        refuse::recall(event);
    }
    let note = &event.note;
    if copies_live_on || event.cause.own_filter || weak {
        let direction = note.key.meta.direction();
        let Wire { packets, bytes } = event.later;
        let wire = Wire { packets: packets + u32::from(note.packets), bytes: bytes + note.bytes };
        return refuse::unknown(ifindex, direction, wire);
    }
    if note.family() == FAMILY_V4 {
        refuse::noted::<V4>(event);
    } else {
        refuse::noted::<V6>(event);
    }
}

/// The interface it came in through, if no hook of that one has noted it.
#[inline(never)]
fn judge_ingress(event: &mut Event) {
    let (d, action) = (&event.dropped, event.cause.action);
    let climbed = action == REASON_REFUSED && d.dev != d.iif && climbs_to_bridge(event);
    if climbed {
        unseen(event, event.dropped.dev, INGRESS);
    }
    let d = &event.dropped;
    if event.came_in_noted || !wants(d.iif, WANT_REFUSED_INGRESS, d.netns) {
        return;
    }
    // Dropped by a tc program before ours, or by generic XDP.
    let before_hook = action == REASON_TC_INGRESS || action == REASON_XDP;
    // It has notes of other hooks, as far back as they go, so it would have one of this.
    if before_hook || (event.oldest == Identity::Shown as u32 && action != REASON_SOCKET) {
        return unseen(event, event.dropped.iif, INGRESS);
    }
    // Of a copy, its notes have said what there is to say.
    if event.oldest != Identity::Copy as u32 && action != REASON_SOCKET {
        refuse::unknown(d.iif, INGRESS, event.wire);
    }
}

/// A packet for the host on a bridge port, refused before the bridge's own hook (the bridge family's input chain).
#[inline(always)]
fn climbs_to_bridge(event: &Event) -> bool {
    let d = &event.dropped;
    wants(d.dev, WANT_REFUSED_INGRESS, d.netns)
        && account::iface(d.dev).is_some_and(|i| i.flags & IS_BRIDGE != 0)
        && is_above(d.iif, d.dev)
        && kernel::is_bridges_own(event.cause.address)
}

/// Whether the packet is on a device (`dev`) that it leaves through, and no longer on the one it came in through.
#[inline(always)]
fn moved_on(event: &Event) -> bool {
    let d = &event.dropped;
    // IPv6 `reject` gives a packet from here that has no device yet the loopback's.
    let borrowed = d.dev == LOOPBACK && d.iif == 0;
    // A tunnel's packet is still on the tunnel's device until it has left through that of its route. A port or a lower device
    // is below that of the route.
    let tunnelled = d.dst != 0 && d.dst != d.dev && d.iif == 0 && !is_above(d.dev, d.dst);
    d.dev != 0 && d.dev != d.iif && !borrowed && !tunnelled
}

/// The device that the packet was to leave through, 0 if none: see the table in docs/verdicts.md. `dev` is the out port if it is
/// neither the in port nor the bridge between them; otherwise it is the route's device.
#[inline(never)]
fn way_out(event: &mut Event) -> u32 {
    if moved_on(event) { event.dropped.dev } else { event.dropped.dst }
}

/// Whether it is the copy of a packet to many that the stack makes for this node itself (`ip_mc_output`,
/// `ip6_finish_output2`). It passes the same chain, and never leaves.
#[inline(always)]
fn is_looped_back(event: &Event) -> bool {
    let d = &event.dropped;
    if d.iif != 0 || !d.cloned || d.owned {
        return false;
    }
    if event.family == FAMILY_V4 { d.route().is_to_many() } else { event.v6.dst[0] == 0xff }
}

/// Whether a received packet that has not moved on yet does not go out at all: it is for this node (in a VRF, its route is not to
/// the loopback), or has the route back to where it came from, as `reject` in a prerouting chain gives it.
#[inline(always)]
fn ends_here(event: &Event, out: u32) -> bool {
    let d = &event.dropped;
    if event.family == FAMILY_V4 {
        let route = d.route();
        return route.is_to_here() || !route.is_input;
    }
    out == d.iif || is_above(d.iif, out)
}

/// What `way_out` says, unless that is the loopback (local delivery).
#[inline(never)]
fn judge_egress(event: &mut Event) {
    if is_looped_back(event) {
        return;
    }
    let out = way_out(event);
    let moved_on = moved_on(event);
    let d = &event.dropped;
    // Local delivery is a route to the loopback.
    let local = out == LOOPBACK && d.iif != 0;
    if local || event.left_through == out || !wants(out, WANT_REFUSED_EGRESS, d.netns) {
        return;
    }
    if !moved_on && d.iif != 0 && ends_here(event, out) {
        return;
    }
    // A packet that came from a port and is now on the bridge is not (yet) headed out through the bridge device.
    let bridge = account::iface(out).is_some_and(|i| i.flags & IS_BRIDGE != 0);
    if moved_on && bridge && is_above(d.iif, out) {
        return;
    }
    if event.later.packets == 0 && d.gso_size == 0 && event.wire.bytes > MTU_LEAST {
        let mtu = d.mtu();
        if mtu != 0 && event.wire.bytes > mtu {
            fragment(event, mtu);
        }
    }
    unseen(event, out, EGRESS);
}

/// A packet that no hook of the interface has counted was refused there.
#[inline(never)]
fn unseen(event: &mut Event, ifindex: u32, direction: u8) {
    // While hooks begin and end, packets are on their way that passed none.
    if account::iface(ifindex).is_none_or(|i| i.flags & ONLY_NOTED != 0) {
        return;
    }
    match event.family {
        FAMILY_V4 => refuse::unseen::<V4>(event, ifindex, direction, &event.v4),
        FAMILY_V6 => refuse::unseen::<V6>(event, ifindex, direction, &event.v6),
        // Not to be read: a hook that saw it would have counted it as malformed.
        _ => {}
    }
}

/// Whether a watched interface wants to know of this refusal.
#[inline(always)]
fn wants(ifindex: u32, refused: u16, netns: u32) -> bool {
    ifindex != 0 && account::iface(ifindex).is_some_and(|i| i.flags & refused != 0) && is_in(ifindex, netns)
}

/// Whether the watched interface of this index is in a network namespace: indexes repeat in each of them.
#[inline(always)]
fn is_in(ifindex: u32, netns: u32) -> bool {
    NETNS_OF.get(ifindex).is_some_and(|inum| *inum == netns)
}

/// As [`is_in`], for an interface whose own hook has noted the packet: without device and route (a queued fragment) nothing
/// else says where it is.
#[inline(always)]
fn is_here(ifindex: u32, netns: u32) -> bool {
    netns == 0 || is_in(ifindex, netns)
}

/// Whether one interface is stacked on another, directly or through others.
#[inline(never)]
fn is_above(lower: u32, upper: u32) -> bool {
    // SAFETY: the value is not looked at.
    unsafe { ABOVE.get(Stacked { lower, upper }).is_some() }
}
