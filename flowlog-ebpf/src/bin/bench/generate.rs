//! The traffic generator: run with live frames, it sends every frame it is given, as the next flow.

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_TX},
    btf_maps::Array,
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use flowlog_ebpf::bench::{GENERATED_WORDS, Generate};

/// What to vary; one element. Only one generator runs at a time.
#[btf_map]
static GENERATE: Array<Generate, 1> = Array::new();

/// Keeps the verifier sure of the offset.
const OFFSET_MASK: usize = 0x7f;

/// Writes two bytes at an offset of the frame.
#[inline(always)]
fn put(ctx: &XdpContext, offset: u32, value: u16) -> Option<()> {
    let at = ctx.data() + (offset as usize & OFFSET_MASK);
    if at + 2 > ctx.data_end() {
        return None;
    }
    // SAFETY: within the frame.
    unsafe { (at as *mut u16).write_unaligned(value.to_be()) };
    Some(())
}

#[inline(always)]
fn vary(ctx: &XdpContext) -> Option<()> {
    let g = GENERATE.get_ptr_mut(0)?;
    let data = ctx.data();
    let end = ctx.data_end();
    if data + GENERATED_WORDS * 8 > end {
        return None;
    }
    // SAFETY: a map value that only this program writes to while it runs; within the frame.
    let (made, g) = unsafe {
        (*g).made += 1;
        for word in 0..GENERATED_WORDS {
            (data as *mut u64).add(word).write_unaligned((&raw const (*g).start).cast::<u64>().add(word).read());
        }
        ((*g).made - 1, &*g)
    };
    let flow = made as u32 & (g.flows.wrapping_sub(1));
    // Two addresses next to each other carry neighbouring ports, as in life.
    let address = (flow >> 12) as u16;
    let port = 0x4000 + (flow & 0xfff) as u16;
    put(ctx, g.address, address)?;
    put(ctx, g.address_balance, !address)?;
    put(ctx, g.port, port)?;
    put(ctx, g.port_balance, !port)
}

/// Sends through the interface the frame claims to have come in by.
#[xdp]
pub fn generate(ctx: XdpContext) -> u32 {
    if vary(&ctx).is_some() { XDP_TX } else { XDP_DROP }
}

/// Takes frames away at the end of their way, before they cost anything: no drop the verdict program would see.
#[xdp]
pub fn sink(_ctx: XdpContext) -> u32 {
    XDP_DROP
}
