//! Reading the bytes of a frame at a hook. Knows no map and no kernel struct: the benchmark's programs use it as well.

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_skb_load_bytes};
use flowlog_ebpf::packet::{Bytes, OFFSET_MAX};

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
/// Link + two VLAN tags + IPv6 + TCP: with this much in the linear part, direct access sees all headers but
/// those behind long option or extension header chains.
pub const LINEAR_ENOUGH: usize = 14 + 8 + 40 + 20;

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
        let number = u32::from_le_bytes([
            at.add(1).read_volatile(),
            at.add(2).read_volatile(),
            at.add(3).read_volatile(),
            at.add(4).read_volatile(),
        ]);
        opaque(number)
    }
}

/// The same number, of which the compiler knows nothing: it keeps the mask that follows. LLVM drops masks that it can prove
/// to change nothing; verifiers before Linux 6.10 cannot, once two registers were or-ed, or a number was kept on the stack. So
/// this stays where it is written, and the mask behind it.
#[inline(always)]
pub fn opaque(number: u32) -> u32 {
    let mut wide = u64::from(number);
    // SAFETY: a move to itself. (An empty statement would leave line information for no instruction, which is refused.)
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) wide, options(nomem, nostack, preserves_flags)) };
    wide as u32
}

/// The same pointer, computed where this is written. LLVM would keep its index on the stack instead, and add it where the pointer is
/// used: there the verifier does not know the index's bounds any more. (No upstream issue is known as of 2026-11.)
#[inline(always)]
pub fn computed<T>(mut pointer: *mut T) -> *mut T {
    // SAFETY: a move to itself.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) pointer, options(nomem, nostack, preserves_flags)) };
    pointer
}

/// The linear part of a packet, by direct packet access.
pub struct Direct {
    pub data: usize,
    pub end: usize,
}

impl Direct {
    /// The first `N` bytes, in place; `None` if the linear part is shorter.
    #[inline(always)]
    pub fn head<const N: usize>(&self) -> Option<&[u8; N]> {
        if self.data + N > self.end {
            return None;
        }
        // SAFETY: within the packet (checked above, and again by the verifier).
        Some(unsafe { &*(self.data as *const [u8; N]) })
    }
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
    pub skb: *mut __sk_buff,
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

/// Whether a frame has lost its link header although its device has one: generic XDP copies most buffers, and the copy does
/// not know how long that header is (`skb_pp_cow_data` leaves out `mac_len`). Then the type in it is not what the kernel says.
#[inline(always)]
pub fn is_headless(skb: *mut __sk_buff) -> bool {
    // SAFETY: the context pointer; the verifier rewrites these loads to the real members.
    let (protocol, data, end) = unsafe { ((*skb).protocol as u16, (*skb).data as usize, (*skb).data_end as usize) };
    let ip = protocol == ETH_P_IP.to_be() || protocol == ETH_P_IPV6.to_be();
    let typed = Direct { data, end }.head::<14>().map(|h| u16::from_ne_bytes([h[12], h[13]]));
    ip && typed.is_some_and(|t| t != protocol)
}
