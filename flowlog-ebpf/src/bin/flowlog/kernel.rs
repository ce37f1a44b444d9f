//! Reading packets and kernel memory.

use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_skb_load_bytes};
use flowlog_ebpf::packet::{Bytes, OFFSET_MAX};

use crate::maps::OFFSETS;

/// The same number, of which the verifier knows nothing: a scalar that went through the stack byte by byte, unaligned.
/// What follows is then one state to it, however many ways led there.
#[inline(always)]
pub fn forget(number: u32) -> u32 {
    let mut cell = [0u8; 8];
    let at = cell.as_mut_ptr();
    let [a, b, c, d] = number.to_le_bytes();
    // SAFETY: a local array; volatile, so that the compiler keeps the detour.
    unsafe {
        at.add(1).write_volatile(a);
        at.add(2).write_volatile(b);
        at.add(3).write_volatile(c);
        at.add(4).write_volatile(d);
        u32::from_le_bytes([
            at.add(1).read_volatile(),
            at.add(2).read_volatile(),
            at.add(3).read_volatile(),
            at.add(4).read_volatile(),
        ])
    }
}

/// The linear part of a packet, by direct packet access.
pub struct Direct {
    pub data: usize,
    pub end: usize,
}

impl Bytes for Direct {
    #[inline(always)]
    fn forget(&self, offset: u16) -> u16 {
        forget(u32::from(offset)) as u16
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        if offset > OFFSET_MAX {
            return None;
        }
        let at = self.data + offset;
        if at + N > self.end {
            return None;
        }
        // SAFETY: `at..at + N` lies within the packet (checked above, and again by the verifier).
        Some(unsafe { (at as *const [u8; N]).read_unaligned() })
    }
}

/// An skb whose headers are not all in its linear part; copies them out without changing the skb.
pub struct Fragmented {
    pub skb: *mut aya_ebpf::bindings::__sk_buff,
}

impl Bytes for Fragmented {
    #[inline(always)]
    fn forget(&self, offset: u16) -> u16 {
        forget(u32::from(offset)) as u16
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let mut out = [0u8; N];
        // SAFETY: `out` is N bytes long; the helper checks the offset against the packet.
        let rc = unsafe { bpf_skb_load_bytes(self.skb.cast(), offset as u32, out.as_mut_ptr().cast(), N as u32) };
        (rc == 0).then_some(out)
    }
}

/// Kernel memory that the verifier knows nothing about; a bad address reads as "not there".
#[inline(always)]
fn probe<T>(address: u64) -> Option<T> {
    let mut out = core::mem::MaybeUninit::<T>::uninit();
    // SAFETY: `out` has room for T; the helper survives any address and then returns an error.
    unsafe {
        (bpf_probe_read_kernel(out.as_mut_ptr().cast(), size_of::<T>() as u32, address as *const _) == 0)
            .then(|| out.assume_init())
    }
}

/// As [`probe`]; a bad address, null included, reads as 0. Without a branch: each would double what the verifier walks.
#[inline(always)]
fn probe_or_zero<T>(address: u64) -> T {
    let mut out = core::mem::MaybeUninit::<T>::uninit();
    // SAFETY: as `probe`; where the helper fails it fills `out` with zeros, which is a T for the integers used here.
    unsafe {
        bpf_probe_read_kernel(out.as_mut_ptr().cast(), size_of::<T>() as u32, address as *const _);
        out.assume_init()
    }
}

/// Headers of a dropped packet, from its network header on.
pub struct Linear {
    address: u64,
    len: usize,
}

impl Bytes for Linear {
    #[inline(always)]
    fn forget(&self, offset: u16) -> u16 {
        forget(u32::from(offset)) as u16
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        if offset + N > self.len {
            return None;
        }
        probe(self.address + offset as u64)
    }
}

/// Reads a member through a BTF-typed pointer: a plain load that the verifier checks against the kernel's BTF.
///
/// # Safety
/// `base` must be such a pointer and `offset` the offset of a `T` in its struct.
#[inline(always)]
unsafe fn member<T: Copy>(base: *const u8, offset: u32) -> T {
    // SAFETY: by the contract above; a fault in a BTF load reads as zero.
    unsafe { base.add(offset as usize).cast::<T>().read_volatile() }
}

/// What the verdict program needs from a dropped `sk_buff`.
pub struct Dropped {
    /// `skb->skb_iif`: the interface it came in through, 0 if it was made here.
    pub iif: u32,
    /// Ifindex of `skb->dev`, 0 if none.
    pub dev: u32,
    /// Ifindex of the device of its route, 0 if none.
    pub dst: u32,
    /// Network namespace inode, 0 if the skb has neither device nor route.
    pub netns: u32,
    /// Ethertype, host order.
    pub protocol: u16,
    /// VLAN tag control information, 0 if none.
    pub vlan_tci: u16,
    /// Bytes from the network header on.
    pub l3_available: u32,
    /// GSO segment payload size, 0 if not GSO.
    pub gso_size: u32,
    /// GSO segments, 0 if not known.
    pub gso_segs: u32,
    /// The headers.
    pub headers: Linear,
}

impl Dropped {
    /// Reads the members of `skb`.
    ///
    /// # Safety
    /// `skb` must be the `struct sk_buff *` argument of the tracepoint.
    #[inline(always)]
    pub unsafe fn read(skb: *const u8) -> Self {
        let o = &OFFSETS.load();
        // SAFETY: offsets come from this kernel's BTF for exactly these structs and members.
        unsafe {
            let head: u64 = member::<u64>(skb, o.skb_head);
            let data: u64 = member::<u64>(skb, o.skb_data);
            let len: u32 = member(skb, o.skb_len);
            let data_len: u32 = member(skb, o.skb_data_len);
            let network = head + u64::from(member::<u16>(skb, o.skb_network_header));
            // Bytes between the network header and `data`: negative at egress, where `data` is the link header.
            let pulled = data.wrapping_sub(network) as u32;
            let l3_available = len.wrapping_add(pulled);
            let shinfo = head + u64::from(member::<u32>(skb, o.skb_end));
            let dev = member::<u64>(skb, o.skb_dev);
            let dst = member::<u64>(skb, o.skb_refdst) & !1;
            let dst_dev: u64 = probe_or_zero(dst + u64::from(o.dst_dev));
            let net: u64 = probe_or_zero(if dev == 0 { dst_dev } else { dev } + u64::from(o.dev_net));
            Self {
                iif: member(skb, o.skb_iif),
                dev: probe_or_zero(dev + u64::from(o.dev_ifindex)),
                dst: probe_or_zero(dst_dev + u64::from(o.dev_ifindex)),
                netns: probe_or_zero(net + u64::from(o.net_inum)),
                protocol: u16::from_be(member(skb, o.skb_protocol)),
                vlan_tci: member(skb, o.skb_vlan_tci),
                l3_available,
                gso_size: u32::from(probe_or_zero::<u16>(shinfo + u64::from(o.shinfo_gso_size))),
                gso_segs: u32::from(probe_or_zero::<u16>(shinfo + u64::from(o.shinfo_gso_segs))),
                headers: Linear { address: network, len: l3_available.wrapping_sub(data_len) as usize },
            }
        }
    }
}
