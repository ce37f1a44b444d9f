//! Packets that die.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use flowlog_ebpf::sighting::AT_DEATH;

use crate::{
    kernel::Dropped,
    look::{self, DYING, Position},
    steps,
};

#[btf_tracepoint(function = "kfree_skb")]
pub fn flowlog_see_death(ctx: BtfTracePointContext) -> i32 {
    let skb: *const u8 = ctx.arg(0);
    let place: u64 = ctx.arg(1);
    let reason: u32 = ctx.arg(2);
    let Some(look) = look::look(DYING) else { return 0 };
    // SAFETY: a map value of this CPU; this program does not interrupt itself. `skb` is the tracepoint's first argument.
    unsafe {
        look::begin(look, skb as u64, Position { at: AT_DEATH, place, reason });
        Dropped::read(skb, &raw mut (*look).dropped);
        steps::run(look, DYING, steps::BUFFER);
    }
    0
}
