//! Programs that stand for *other people's* in the tests: counters and droppers before and after flowlog's.
//! Never loaded by the agent.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![allow(unreachable_pub, reason = "aya's macros export what the kernel loads")]
#![allow(unsafe_code, reason = "packet pointers")]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        bindings::{
            TC_ACT_OK, TC_ACT_SHOT, TC_ACT_UNSPEC,
            xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX},
        },
        btf_maps::{PerCpuArray, ProgramArray},
        helpers::generated::bpf_redirect,
        macros::{btf_map, cgroup_skb, classifier, xdp},
        programs::{SkBuffContext, TcContext, XdpContext},
    };

    /// 0: packets seen, 1: packets dropped.
    #[btf_map]
    static COUNTERS: PerCpuArray<u64, 2> = PerCpuArray::new();

    /// Packets by what became of them: at the number of the action (`enum xdp_action`).
    #[btf_map]
    static ACTIONS: PerCpuArray<u64, 5> = PerCpuArray::new();

    /// What `xdp_dispatch` runs.
    #[btf_map]
    static RUN: ProgramArray<1> = ProgramArray::new();

    fn bump(index: u32) {
        if let Some(c) = COUNTERS.get_ptr_mut(index) {
            // SAFETY: a map value of this CPU.
            unsafe { *c += 1 };
        }
    }

    /// Port that UDP over IPv4 without options goes to, if it is below 256; else 0.
    #[inline(always)]
    fn udp_port(data: usize, end: usize) -> u8 {
        if data + 42 > end {
            return 0;
        }
        // SAFETY: within the packet.
        let byte = |at: usize| unsafe { *((data + at) as *const u8) };
        if byte(12) == 8 && byte(13) == 0 && byte(23) == 17 && byte(36) == 0 { byte(37) } else { 0 }
    }

    /// UDP over IPv4 without options, to port 7.
    #[inline(always)]
    fn to_port_7(data: usize, end: usize) -> bool {
        if data + 42 > end {
            return false;
        }
        // SAFETY: within the packet.
        let byte = |at: usize| unsafe { *((data + at) as *const u8) };
        byte(12) == 8 && byte(13) == 0 && byte(23) == 17 && byte(36) == 0 && byte(37) == 7
    }

    #[classifier]
    pub fn tc_count(_ctx: TcContext) -> i32 {
        bump(0);
        TC_ACT_UNSPEC
    }

    /// Ends the chain: nothing after it runs.
    #[classifier]
    pub fn tc_accept(_ctx: TcContext) -> i32 {
        bump(0);
        TC_ACT_OK
    }

    #[classifier]
    pub fn tc_drop(ctx: TcContext) -> i32 {
        bump(0);
        if to_port_7(ctx.data(), ctx.data_end()) {
            bump(1);
            return TC_ACT_SHOT;
        }
        TC_ACT_UNSPEC
    }

    /// Drops every second packet of one flow.
    #[classifier]
    pub fn tc_drop_half(ctx: TcContext) -> i32 {
        if !to_port_7(ctx.data(), ctx.data_end()) {
            return TC_ACT_UNSPEC;
        }
        bump(0);
        if COUNTERS.get(0).is_some_and(|c| *c % 2 == 0) {
            bump(1);
            return TC_ACT_SHOT;
        }
        TC_ACT_UNSPEC
    }

    /// Refuses UDP over IPv4 to port 7, to and from the processes of a cgroup.
    #[cgroup_skb]
    pub fn cgroup_drop(ctx: SkBuffContext) -> i32 {
        bump(0);
        // From the IP header on.
        let protocol = ctx.load::<u8>(9);
        let port = ctx.load::<u16>(22);
        if protocol == Ok(17) && port == Ok(7u16.to_be()) {
            bump(1);
            return 0;
        }
        1
    }

    #[xdp]
    pub fn xdp_drop(ctx: XdpContext) -> u32 {
        bump(0);
        if to_port_7(ctx.data(), ctx.data_end()) {
            bump(1);
            return XDP_DROP;
        }
        XDP_PASS
    }

    /// Drops what goes to port 7, sends back what goes to 9, redirects what goes to 11 (out of the interface it came in through),
    /// and fails at what goes to 13.
    #[xdp]
    pub fn xdp_mixed(ctx: XdpContext) -> u32 {
        mixed(&ctx)
    }

    /// The same for frames in several buffers.
    #[xdp(frags)]
    pub fn xdp_mixed_frags(ctx: XdpContext) -> u32 {
        mixed(&ctx)
    }

    /// Has the name of libxdp's.
    #[xdp]
    pub fn xdp_dispatcher(_ctx: XdpContext) -> u32 {
        bump(0);
        XDP_PASS
    }

    #[inline(always)]
    fn mixed(ctx: &XdpContext) -> u32 {
        let action = match udp_port(ctx.data(), ctx.data_end()) {
            7 => XDP_DROP,
            9 => XDP_TX,
            // SAFETY: a helper that keeps a number for what follows; the context pointer.
            11 => unsafe { bpf_redirect((*ctx.ctx).ingress_ifindex, 0).cast_unsigned() as u32 },
            13 => XDP_ABORTED,
            _ => XDP_PASS,
        };
        if let Some(c) = ACTIONS.get_ptr_mut(if action > XDP_REDIRECT { XDP_ABORTED } else { action }) {
            // SAFETY: a map value of this CPU.
            unsafe { *c += 1 };
        }
        action
    }

    /// Lets everything through.
    #[xdp]
    pub fn xdp_pass(_ctx: XdpContext) -> u32 {
        XDP_PASS
    }

    /// Runs what is in [`RUN`], as a dispatcher does, and drops everything if there is nothing.
    #[xdp]
    pub fn xdp_dispatch(ctx: XdpContext) -> u32 {
        bump(0);
        // SAFETY: nothing here needs to be dropped.
        unsafe { RUN.tail_call(&ctx, 0) };
        XDP_DROP
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }
}
