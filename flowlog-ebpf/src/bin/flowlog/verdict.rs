//! The verdict programs: which packets did the node's own firewall refuse, on which watched interface?
//!
//! The tracepoint `kfree_skb` fires for every packet that dies, with the reason. Packets that die for a reason that
//! is neither a firewall's nor a loss leave at the first look-up.
//!
//! A refused packet was refused on its way *in* through every interface it climbed through, and on its way *out* through
//! the one it was headed for; each gets its own REJECT count. Where a hook had counted it as passed is in the notes whose
//! chain begins with the packet's number ([`crate::note`]); that count is taken back: from its cache slot while it is still
//! there, else by the agent (see `abi::class`).
//!
//! A packet that was let through and is lost on its way goes the same way along its notes; it stays in the ACCEPT records that
//! have it, and a record beside them says how it died ([`crate::lost`]).
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

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use flowlog_ebpf::abi::{
    CHAIN_MAX, Dying, HANDLED, REASON_BY_PLACE, REASON_LOST, REASON_SOCKET, REASON_XDP, VERDICT_FIRST, VERDICT_NESTED,
    reason_index,
};

use crate::{
    chain, cpu,
    event::{Cause, Event, Identity, event, read_headers},
    kernel::{self, Dropped},
    maps::{DROP_ARGUMENTS, DYING, REASONS, ROUTE_PLACE, VERDICTS, XDP_PLACE},
    refuse,
    repeat::{GO_ON, STOP, repeat},
    unnoted,
};

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
    let address = unsafe { cpu::address((&raw mut (*dying).pointers).cast::<u64>(), skb as u64) };
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
    let address = unsafe { cpu::address((&raw mut (*dying).pointers).cast::<u64>().add(1), skb as u64) };
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

/// The reason and its `REASON_*`, if the packet was refused or lost on its way, and has not just come to its end.
#[inline(always)]
fn refusal(ctx: &BtfTracePointContext) -> Option<(u32, u8)> {
    let mut reason: u32 = ctx.arg(2);
    let mut action = *REASONS.get(reason_index(reason))?;
    if action == REASON_BY_PLACE {
        let place: u64 = ctx.arg(1);
        let [first, last, xdp] = XDP_PLACE.load();
        if place >= first && place <= last {
            return Some((xdp as u32, REASON_XDP));
        }
        let [first, last, no_route] = ROUTE_PLACE.load();
        if place < first || place > last {
            return None;
        }
        reason = no_route as u32;
        action = *REASONS.get(reason_index(reason))?;
    }
    if action == REASON_LOST {
        // Most that die so passed no hook of ours, and leave here.
        let skb: *const u8 = ctx.arg(0);
        // SAFETY: the tracepoint's first argument, a `struct sk_buff *`.
        return (unsafe { kernel::number(skb) } != 0).then_some((reason, action));
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
    unsafe {
        let event = (&raw mut (*dying).scratch[which]).cast::<Event>();
        (&raw mut (*event).cause).write(cause);
        Dropped::read(skb, &raw mut (*event).dropped);
        (*event).dropped.skip_tags();
        if (*event).dropped.protocol == ETH_P_IP || (*event).dropped.protocol == ETH_P_IPV6 {
            (*event).begin();
            chain::begin(event, which);
            repeat(STEPS_MAX, judge, which);
        }
    }
}

/// Steps of [`judge`]: each note that is followed; the headers, twice; the question who else wants to know, the way in, the way out, and
/// two interfaces without a note on each; what is told of all of these; and the end.
const STEPS_MAX: u32 = 2 * (CHAIN_MAX + 4) + 6;

/// A step of the judgement: the next note; behind the last one, the interfaces that have none. The headers are a step of their own,
/// in front of whatever needs them. One loop, so that the verifier walks each of them once.
unsafe extern "C" fn judge(_i: u32, context: *mut c_void) -> i64 {
    // SAFETY: `bpf_loop` hands back the pointer it was given.
    let which = unsafe { *context.cast::<u64>() };
    let Some(event) = event(which as usize) else { return STOP };
    if event.telling.family != 0 {
        refuse::tell(event);
        event.telling.family = 0;
        return GO_ON;
    }
    if let Some((spot, direction)) = event.next_unseen() {
        unnoted::unseen(event, spot, direction);
        return GO_ON;
    }
    if event.is_judged {
        return STOP;
    }
    if event.needs_headers {
        event.needs_headers = false;
        read_headers(event);
        return GO_ON;
    }
    if event.links != 0 {
        chain::link(event);
        if event.links != 0 || event.telling.family != 0 {
            return GO_ON;
        }
    }
    // Of what was lost, only those count who have had it.
    if event.cause.action == REASON_LOST {
        return STOP;
    }
    if event.identity == Identity::Judged as u32 || !(event.is_asked || unnoted::ask(event)) {
        return STOP;
    }
    if !event.is_read {
        event.needs_headers = true;
        return GO_ON;
    }
    if event.is_ingress_judged {
        unnoted::judge_egress(event);
        event.is_judged = true;
    } else {
        unnoted::judge_ingress(event);
        event.is_ingress_judged = true;
    }
    GO_ON
}
