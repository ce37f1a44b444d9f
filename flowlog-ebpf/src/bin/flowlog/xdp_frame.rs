//! Reading the frame that an XDP program is about to see.

use crate::{
    kernel::{Linear, probe_or_zero},
    maps::OFFSETS,
};

/// A frame that an XDP program is about to see.
#[derive(Clone, Copy)]
pub struct XdpFrame {
    /// Ifindex of the device that has received it.
    pub ifindex: u32,
    /// Inode of that device's network namespace.
    pub netns: u32,
    /// It is in several buffers, and this is the first one.
    pub is_in_parts: bool,
    pub headers: Linear,
}

/// A bit of `xdp_buff->flags`: `XDP_FLAGS_HAS_FRAGS` of `include/net/xdp.h`.
const XDP_HAS_FRAGS: u32 = 1;

impl XdpFrame {
    /// Reads the `xdp_buff` at `buffer`.
    #[inline(always)]
    pub fn read(buffer: u64) -> Self {
        let o = &OFFSETS.load();
        let data: u64 = probe_or_zero(buffer + u64::from(o.xdp_data));
        let end: u64 = probe_or_zero(buffer + u64::from(o.xdp_data_end));
        let flags: u32 = probe_or_zero(buffer + u64::from(o.xdp_flags));
        let (ifindex, netns) = Self::place(buffer);
        Self {
            ifindex,
            netns,
            is_in_parts: flags & XDP_HAS_FRAGS != 0,
            headers: Linear::at(data, end.wrapping_sub(data) as usize),
        }
    }

    /// Ifindex of the device that has received the frame of this `xdp_buff`, and inode of that device's network namespace.
    #[inline(always)]
    pub fn place(buffer: u64) -> (u32, u32) {
        let o = &OFFSETS.load();
        let queue: u64 = probe_or_zero(buffer + u64::from(o.xdp_rxq));
        let dev: u64 = probe_or_zero(queue + u64::from(o.rxq_dev));
        let net: u64 = probe_or_zero(dev + u64::from(o.dev_net));
        (probe_or_zero(dev + u64::from(o.dev_ifindex)), probe_or_zero(net + u64::from(o.net_inum)))
    }
}
