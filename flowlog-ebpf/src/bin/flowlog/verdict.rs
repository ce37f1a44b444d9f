//! The verdict programs: which packets did the node's own firewall refuse, on which watched interface?
//!
//! The tracepoint `kfree_skb` fires for every packet that dies, with the reason. Packets that die for a reason that
//! is not a firewall's leave at the first look-up.
//!
//! A refused packet was refused on its way *in* through the interface it came from, and on its way *out* through
//! the one it was headed for; each gets its own REJECT count. If our hook had counted the packet as passed, that
//! count is taken back: from its cache slot while it is still there, else by the agent (see `abi::class`).
//!
//! The kernel skips a tracing program that would interrupt itself (`bpf_prog_active`): a verdict in process context
//! interrupted by one in softirq would lose the second. So there are two programs on the tracepoint: the first
//! marks what it handled, the second handles what the first never saw.
//!
//! A link to a tracepoint cannot be given another program. So what is attached does nothing but jump to the
//! program that a map names: a new agent replaces that one, and every event is handled by exactly one of the two.

use aya_ebpf::{helpers::generated::bpf_ktime_get_ns, macros::btf_tracepoint, programs::BtfTracePointContext};
use flowlog_ebpf::{
    abi::{
        Dying, EGRESS, HANDLED, INGRESS, IS_BRIDGE, Key, Meta, ONLY_NOTED, REASON_BY_PLACE, REASON_REFUSED,
        REASON_TC_EGRESS, REASON_XDP, Record, SEEN_ENTRIES, SEEN_LOST, SEEN_SLOT_BITS, Seen, VERDICT_FIRST,
        VERDICT_NESTED, VerdictTruth, WANT_EGRESS, WANT_INGRESS, WANT_REFUSED_EGRESS, WANT_REFUSED_INGRESS, class,
        reason_index,
    },
    packet::{self, Flow, Frame, Packet},
};

use crate::{
    account::{self, Family, One, V4, V6, Wire, bump, count, emit_alone, key_of, lock, seen_index, split, unlock},
    frame::forget,
    kernel::Dropped,
    maps::{DYING, NETNS_OF, PASSED_MASK, REASONS, REFUSED_MASK, VERDICTS, XDP_PLACE},
};

/// The loopback device has this index in every network namespace.
const LOOPBACK: u32 = 1;
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
    dropped(skb, address, reason, action);
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
    dropped(skb, address, reason, action);
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

#[inline(always)]
fn handled(dying: *mut Dying, address: u64) -> *mut u64 {
    let index = (address >> 6) as usize & (HANDLED - 1);
    // SAFETY: the index is below the array's length.
    unsafe { (&raw mut (*dying).handled).cast::<u64>().add(index) }
}

#[inline(always)]
fn seen(skb: u64, direction: u8) -> Option<&'static Seen> {
    let cpu = account::cpu()?;
    let index = seen_index(skb, direction) as usize & (2 * SEEN_ENTRIES as usize - 1);
    // SAFETY: a map value of this CPU; the index is below the length of both arrays.
    unsafe {
        let noted = (&raw const (*cpu).skbs).cast::<u64>().add(index).read();
        (noted == skb && skb != 0).then(|| &*(&raw const (*cpu).seen).cast::<Seen>().add(index))
    }
}

/// Everything but which of the two programs handles the event.
#[inline(always)]
fn dropped(skb: *const u8, address: u64, reason: u32, action: u8) {
    // SAFETY: `skb` is the tracepoint's first argument.
    let d = unsafe { Dropped::read(skb) };
    if d.protocol != ETH_P_IP && d.protocol != ETH_P_IPV6 {
        return;
    }
    let seen_in = seen(address, INGRESS);
    let came_in = forget(came_in_through(&d, seen_in, action));
    let headed_out = forget(headed_out_through(&d, address, action));
    if came_in | headed_out == 0 {
        return;
    }
    let event = Event { dropped: d, address, reason, came_in, headed_out };
    let frame = Frame { len: event.dropped.l3_available, vlan_tci: event.dropped.vlan_tci, link_header: false };
    match packet::parse(&event.dropped.headers, frame) {
        Packet::V4(f) => refuse_both::<V4>(&event, &f),
        Packet::V6(f) => refuse_both::<V6>(&event, &f),
        // Truncated IP: the hook counted it as malformed, which says nothing about its verdict.
        Packet::NonIp(_) | Packet::Malformed(_) => {}
    }
}

/// A refused packet, and where it counts.
struct Event {
    dropped: Dropped,
    address: u64,
    reason: u32,
    /// Where it came in, as [`place`] packs it; 0: nowhere that is watched.
    came_in: u32,
    /// Where it was headed, likewise.
    headed_out: u32,
}

/// An interface a refused packet counts for, in one number: the verifier forgets one number more easily than several,
/// and then follows the rest of the program once and not for every way to get there.
#[inline(always)]
const fn place(ifindex: u32, passed_hook: bool, noted: bool) -> u32 {
    ifindex | (passed_hook as u32) << 30 | (noted as u32) << 31
}
/// Bit of [`place`]: its hook must have counted it, note or no note.
const PASSED_HOOK: u32 = 1 << 30;
/// Bit of [`place`]: its hook has left a note in `Cpu::seen`.
const NOTED: u32 = 1 << 31;

#[inline(always)]
fn refuse_both<F: Family>(event: &Event, f: &Flow<F::Addr>) {
    if event.came_in != 0 {
        refuse::<F>(event, event.came_in, INGRESS, f);
    }
    if event.headed_out != 0 {
        refuse::<F>(event, event.headed_out, EGRESS, f);
    }
}

/// The stack re-labels a packet when it climbs from a bridge port, bond member or VLAN's lower device; the hook's
/// entry still knows where it came in.
#[inline(always)]
fn came_in_through(d: &Dropped, noted: Option<&Seen>, action: u8) -> u32 {
    if d.iif == 0 {
        return 0;
    }
    // Generic XDP comes before the hook of its own interface: a note of that one is an earlier packet's.
    let noted = noted.filter(|e| action != REASON_XDP || u32::from(e.ifindex) != d.dev);
    let by_note = noted.filter(|e| {
        let ifindex = u32::from(e.ifindex);
        ifindex == d.iif || account::iface(ifindex).is_some_and(|i| i.upper == d.iif)
    });
    let ifindex = by_note.map_or(d.iif, |e| u32::from(e.ifindex));
    let Some(iface) = account::iface(ifindex).filter(|i| i.flags & WANT_REFUSED_INGRESS != 0) else { return 0 };
    // Without device and route (a queued fragment), only a hook's own entry proves the namespace.
    if !(is_in(ifindex, d.netns) || (d.netns == 0 && by_note.is_some())) {
        return 0;
    }
    // A packet that died in another tc program or in generic XDP may not have reached our hook.
    let passed_hook = action == REASON_REFUSED && iface.flags & WANT_INGRESS != 0;
    if iface.flags & ONLY_NOTED != 0 && by_note.is_none() {
        return 0;
    }
    place(ifindex, passed_hook, by_note.is_some())
}

/// Whether the watched interface of this index is in a network namespace: indexes repeat in each of them.
#[inline(always)]
fn is_in(ifindex: u32, netns: u32) -> bool {
    NETNS_OF.get(ifindex).is_some_and(|inum| *inum == netns)
}

/// See the table in DESIGN section 4: `dev` is the out port if it is neither the in port nor the bridge between
/// them; otherwise the route's device, unless that is the loopback (local delivery) or the in port.
#[inline(always)]
fn headed_out_through(d: &Dropped, address: u64, action: u8) -> u32 {
    let moved_on = d.dev != 0 && d.dev != d.iif;
    let out = if moved_on { d.dev } else { d.dst };
    if out == 0 || out == LOOPBACK || out == d.iif {
        return 0;
    }
    let Some(iface) = account::iface(out).filter(|i| i.flags & WANT_REFUSED_EGRESS != 0) else { return 0 };
    if !is_in(out, d.netns) {
        return 0;
    }
    // A packet that came from a port and is now on the bridge is not (yet) headed out through the bridge device.
    if moved_on && d.iif != 0 && d.dst != out && iface.flags & IS_BRIDGE != 0 {
        return 0;
    }
    // All firewall hooks of the way out come before the tc hook; only another tc program can come after it.
    let tc = action == REASON_TC_EGRESS && iface.flags & WANT_EGRESS != 0;
    let noted = tc && seen(address, EGRESS).is_some_and(|e| u32::from(e.ifindex) == out);
    if iface.flags & ONLY_NOTED != 0 && !noted {
        return 0;
    }
    place(out, false, noted)
}

/// A function of its own: inlined, four copies of it would not fit on the stack.
#[inline(never)]
fn refuse<F: Family>(event: &Event, place: u32, direction: u8, f: &Flow<F::Addr>) {
    let Some(iface) = account::iface(place & (PASSED_HOOK - 1)) else { return };
    let passed_hook = place & PASSED_HOOK != 0;
    let d = &event.dropped;
    let reason = reason_index(event.reason) as u16;
    let id = iface.id;
    let mut key = key_of(f, id, Meta::pack(direction, class::PASSED), 0, iface.epoch);
    let (_, tag) = split(F::hash(&key), PASSED_MASK.load());
    let noted = if place & NOTED != 0 { seen(event.address, direction).copied() } else { None };
    // A packet that may have died before our hook is in the place of an earlier one more often than not: buffers are
    // used again at once. No address has been translated yet, so the note must be of the same flow.
    let entry = noted.filter(|e| passed_hook || e.tag == tag);
    let (packets, bytes) = packet::wire(f.l3_len, f.headers, d.gso_size, d.gso_segs);
    let (mut w, mut epoch, mut late) = (Wire { packets, bytes }, iface.epoch, false);
    if let Some(e) = &entry {
        // What the hook counted, so that taking it back is exact (fragments put together in between, for one).
        w = Wire { packets: u32::from(e.packets), bytes: e.bytes };
        late = (e.epoch.wrapping_sub(iface.oldest) as i32) < 0;
        if !late {
            epoch = e.epoch;
        }
    }
    let Some(truth) = account::truth(id, epoch) else { return };
    let Some(cpu) = account::cpu() else { return };
    let locked = lock(cpu);
    let set = usize::from(direction & 1) * 2 + usize::from(!locked);
    // SAFETY: a map value; direction and set are 0 or 1.
    let truth = unsafe { (&raw mut (*truth).verdict).cast::<VerdictTruth>().add(set) };
    key.meta.epoch = epoch;
    let class = if late {
        class::REFUSED_LATE
    } else if entry.is_none() && !passed_hook {
        class::REFUSED
    } else if entry.is_some_and(|e| e.place >> SEEN_SLOT_BITS == SEEN_LOST) {
        class::REFUSED_LOST
    } else if locked && take_back::<F>(&mut key, entry, w) {
        class::REFUSED
    } else {
        class::REFUSED_COUNTED
    };
    key.meta.flags = Meta::pack(direction, class);
    key.meta.reason = reason;
    let (index, tag) = split(F::hash(&key), REFUSED_MASK.load());
    // Tracing programs have no coarse clock, and the exact one costs 20 ns: a packet that has just passed a hook here
    // has its time.
    // SAFETY: a map value; the call takes no arguments.
    let now_ns = unsafe { if entry.is_some() { (*cpu).now_ns } else { bpf_ktime_get_ns() } };
    let one = One { wire: w, tcp_flags: f.tcp_flags, tag, now_ns };
    let recorded = match (locked, F::refused(index)) {
        // SAFETY: a slot of this CPU, and we hold the flag.
        (true, Some(slot)) => unsafe { count::<F>(slot, &key, &one) },
        _ => emit_alone::<F>(&key, &one),
    };
    let was_seen = entry.is_some() && !late || entry.is_none() && passed_hook;
    // SAFETY: pointers into the map value.
    unsafe {
        bump(&raw mut (*truth).refused, w);
        if late {
            bump(&raw mut (*truth).late, w);
        }
        if was_seen {
            bump(&raw mut (*truth).seen, w);
        }
        if !recorded && (class == class::REFUSED || class == class::REFUSED_LATE) {
            bump(&raw mut (*truth).lost, w);
        } else if !recorded {
            bump(&raw mut (*truth).lost_counted, w);
        }
    }
    if locked {
        unlock(cpu);
    }
}

/// Takes a packet out of the cache slot its hook counted it in, and makes `key` that slot's key (the tuple as it was
/// on the wire, before any address translation). `false`: the slot is gone.
#[inline(always)]
fn take_back<F: Family>(key: &mut Key<F::Addr>, entry: Option<Seen>, w: Wire) -> bool {
    let (hash_index, hash_tag) = split(F::hash(key), PASSED_MASK.load());
    let (index, tag) = match entry {
        Some(e) if e.place >> SEEN_SLOT_BITS == F::PLACE => (e.place & ((1 << SEEN_SLOT_BITS) - 1), e.tag),
        Some(_) => return false,
        None => (hash_index, hash_tag),
    };
    let Some(slot) = F::passed(index) else { return false };
    // SAFETY: a slot of this CPU, and the caller holds the flag.
    unsafe {
        let Record { key: owner, stats } = &mut *slot;
        let same = stats.tag == tag
            && owner.meta.iface == key.meta.iface
            && owner.meta.epoch == key.meta.epoch
            && owner.meta.flags == key.meta.flags;
        if !same || stats.packets < u64::from(w.packets) || stats.bytes < u64::from(w.bytes) {
            return false;
        }
        stats.packets -= u64::from(w.packets);
        stats.bytes -= u64::from(w.bytes);
        *key = *owner;
    }
    true
}
