//! What differs between the address families: caches, blocks, hashes.

use flowlog_ebpf::{
    abi::{
        BANK_SLOTS, BLOCK4 as SIZE4, BLOCK6 as SIZE6, BlockHeader, Ends6, FAMILY_V4, FAMILY_V6, Ip4, Ip6, Key,
        PLACE_BITS, PLACE_V6, Record,
    },
    hash,
};

use crate::maps::{self, BLOCK4, BLOCK6, Bank, PASSED4, PASSED6, REFUSED4, REFUSED6};

/// What differs between the IPv4 and the IPv6 tables.
pub trait Family {
    /// Address type of the key.
    type Addr: Copy + Default + 'static;
    /// What stands in `BlockHeader::family`: `FAMILY_V4` or `FAMILY_V6`.
    const FAMILY: u32;
    /// What marks a note of this family: see [`flowlog_ebpf::abi::Note::place`].
    const PLACE: u32;
    /// Records in a full block.
    const BLOCK: u32;
    /// Bank of the flow cache that a slot is in.
    fn passed(index: u32) -> Option<*mut Bank<Record<Self::Addr>>>;
    /// Bank of the refused cache that a slot is in.
    fn refused(index: u32) -> Option<*mut Bank<Record<Self::Addr>>>;
    /// Head of the block that is being filled.
    fn block() -> Option<*mut BlockHeader>;
    /// As [`passed`](Self::passed), of another CPU.
    fn passed_of(cpu: u32, index: u32) -> Option<*mut Bank<Record<Self::Addr>>>;
    /// As [`refused`](Self::refused), of another CPU.
    fn refused_of(cpu: u32, index: u32) -> Option<*mut Bank<Record<Self::Addr>>>;
    /// As [`block`](Self::block), of another CPU.
    fn block_of(cpu: u32) -> Option<*mut BlockHeader>;
    /// Flow hash, without the epoch: a flow keeps its slot across windows.
    fn hash(seed: u64, key: &Key<Self::Addr>) -> u64;
    /// Keeps the key in the note, and the addresses beside it if they do not fit in.
    ///
    /// # Safety
    /// `note` and `beside` must be the places for it.
    unsafe fn keep(note: *mut Key<Ip4>, beside: *mut Ends6, key: &Key<Self::Addr>);
    /// The key of a noted packet.
    fn noted(key4: &Key<Ip4>, key6: &Key<Ip6>) -> Key<Self::Addr>;
    /// Key comparison by words.
    ///
    /// # Safety
    /// `slot` must point to a key.
    unsafe fn same(slot: *const Key<Self::Addr>, key: &Key<Self::Addr>) -> bool;
}

pub enum V4 {}

pub enum V6 {}

impl Family for V4 {
    type Addr = Ip4;
    const FAMILY: u32 = FAMILY_V4;
    const PLACE: u32 = 0;
    const BLOCK: u32 = SIZE4 as u32;
    #[inline(always)]
    fn passed(index: u32) -> Option<*mut Bank<Record<Ip4>>> {
        PASSED4.get_ptr_mut(index / BANK_SLOTS)
    }
    #[inline(always)]
    fn refused(index: u32) -> Option<*mut Bank<Record<Ip4>>> {
        REFUSED4.get_ptr_mut(index / BANK_SLOTS)
    }
    #[inline(always)]
    fn block() -> Option<*mut BlockHeader> {
        BLOCK4.get_ptr_mut(0).map(<*mut _>::cast)
    }
    #[inline(always)]
    fn passed_of(cpu: u32, index: u32) -> Option<*mut Bank<Record<Ip4>>> {
        maps::of_cpu(&raw const PASSED4, index / BANK_SLOTS, cpu)
    }
    #[inline(always)]
    fn refused_of(cpu: u32, index: u32) -> Option<*mut Bank<Record<Ip4>>> {
        maps::of_cpu(&raw const REFUSED4, index / BANK_SLOTS, cpu)
    }
    #[inline(always)]
    fn block_of(cpu: u32) -> Option<*mut BlockHeader> {
        maps::of_cpu(&raw const BLOCK4, 0, cpu).map(<*mut _>::cast)
    }
    #[inline(always)]
    fn hash(seed: u64, key: &Key<Ip4>) -> u64 {
        // SAFETY: the key is 24 bytes with no padding, aligned to 8.
        let w = unsafe { &*core::ptr::from_ref(key).cast::<[u64; 3]>() };
        // The third word holds reason, protocol, flags and the epoch; keep the part below the epoch.
        hash::words2(seed, w[0], w[1] ^ (w[2] << 32))
    }
    #[inline(always)]
    unsafe fn keep(note: *mut Key<Ip4>, _beside: *mut Ends6, key: &Key<Ip4>) {
        // SAFETY: by the contract.
        unsafe { note.write(*key) };
    }
    #[inline(always)]
    fn noted(key4: &Key<Ip4>, _key6: &Key<Ip6>) -> Key<Ip4> {
        *key4
    }
    #[inline(always)]
    unsafe fn same(slot: *const Key<Ip4>, key: &Key<Ip4>) -> bool {
        // SAFETY: both are 24-byte keys without padding, aligned to 8.
        let (a, b) = unsafe { (&*slot.cast::<[u64; 3]>(), &*core::ptr::from_ref(key).cast::<[u64; 3]>()) };
        ((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2])) == 0
    }
}

impl Family for V6 {
    type Addr = Ip6;
    const FAMILY: u32 = FAMILY_V6;
    const PLACE: u32 = PLACE_V6 << PLACE_BITS;
    const BLOCK: u32 = SIZE6 as u32;
    #[inline(always)]
    fn passed(index: u32) -> Option<*mut Bank<Record<Ip6>>> {
        PASSED6.get_ptr_mut(index / BANK_SLOTS)
    }
    #[inline(always)]
    fn refused(index: u32) -> Option<*mut Bank<Record<Ip6>>> {
        REFUSED6.get_ptr_mut(index / BANK_SLOTS)
    }
    #[inline(always)]
    fn block() -> Option<*mut BlockHeader> {
        BLOCK6.get_ptr_mut(0).map(<*mut _>::cast)
    }
    #[inline(always)]
    fn passed_of(cpu: u32, index: u32) -> Option<*mut Bank<Record<Ip6>>> {
        maps::of_cpu(&raw const PASSED6, index / BANK_SLOTS, cpu)
    }
    #[inline(always)]
    fn refused_of(cpu: u32, index: u32) -> Option<*mut Bank<Record<Ip6>>> {
        maps::of_cpu(&raw const REFUSED6, index / BANK_SLOTS, cpu)
    }
    #[inline(always)]
    fn block_of(cpu: u32) -> Option<*mut BlockHeader> {
        maps::of_cpu(&raw const BLOCK6, 0, cpu).map(<*mut _>::cast)
    }
    #[inline(always)]
    fn hash(seed: u64, key: &Key<Ip6>) -> u64 {
        // SAFETY: the key is 48 bytes with no padding, aligned to 8.
        let w = unsafe { &*core::ptr::from_ref(key).cast::<[u64; 6]>() };
        hash::words5(seed, w[0], w[1], w[2], w[3], w[4] ^ (w[5] << 32))
    }
    #[inline(always)]
    unsafe fn keep(note: *mut Key<Ip4>, beside: *mut Ends6, key: &Key<Ip6>) {
        // SAFETY: by the contract.
        unsafe {
            (*note).meta = key.meta;
            beside.write(Ends6 { src: key.src, dst: key.dst });
        }
    }
    #[inline(always)]
    fn noted(_key4: &Key<Ip4>, key6: &Key<Ip6>) -> Key<Ip6> {
        *key6
    }
    #[inline(always)]
    unsafe fn same(slot: *const Key<Ip6>, key: &Key<Ip6>) -> bool {
        // SAFETY: both are 48-byte keys without padding, aligned to 8.
        let (a, b) = unsafe { (&*slot.cast::<[u64; 6]>(), &*core::ptr::from_ref(key).cast::<[u64; 6]>()) };
        ((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) | (a[4] ^ b[4]) | (a[5] ^ b[5])) == 0
    }
}
