//! The circles that notes are in: finding a note by its number.

use flowlog_ebpf::abi::{Cpu, Ends6, FAMILY_V6, Ip6, Key, NOTES, Note};

use crate::{
    cpu,
    frame::opaque,
    maps::{CPU, SEQUENCE_BITS},
};

/// Index in its circle of the note that counts as `sequence`.
#[inline(always)]
pub fn index(sequence: u32) -> usize {
    (opaque(sequence) & (NOTES - 1)) as usize
}

/// Whether a note with this number is in this CPU's circle.
#[inline(always)]
pub fn is_own(number: u16, cpu: *mut Cpu) -> bool {
    // SAFETY: a map value of this CPU.
    unsafe { number & !(*cpu).sequence == (*cpu).owner }
}

/// A copy of the note with this number, and of its key if it is IPv6. `false`: there is none (any more).
#[inline(always)]
pub fn find(number: u16, note: &mut Note, key6: &mut Key<Ip6>) -> bool {
    let Some((cpu, sequence)) = circle(number) else { return false };
    let index = index(sequence);
    // SAFETY: a map value, of another CPU perhaps; the index is below the length of both arrays. The number is looked at
    // before and after the copy: the owner may be writing another note in its place.
    unsafe {
        let found = (&raw mut (*cpu).notes).cast::<Note>().add(index);
        if (&raw const (*found).number).read_volatile() != number {
            return false;
        }
        copy(found, note);
        if note.family() == FAMILY_V6 {
            copy((&raw const (*cpu).ends6).cast::<Ends6>().add(index), core::ptr::from_mut(key6).cast());
            copy(&raw const note.key.meta, &raw mut key6.meta);
        }
        (&raw const (*found).number).read_volatile() == number
    }
}

/// The state of the CPU that gave this number, and the part of the number that counts.
#[inline(always)]
fn circle(number: u16) -> Option<(*mut Cpu, u32)> {
    let cpu = cpu::cpu()?;
    // SAFETY: a map value.
    let sequence = u32::from(number & unsafe { (*cpu).sequence });
    if is_own(number, cpu) {
        return Some((cpu, sequence));
    }
    let owner = u32::from(number) >> SEQUENCE_BITS.load();
    if owner == 0 {
        return None;
    }
    Some((CPU.get_ptr_mut(owner - 1)?, sequence))
}

/// Copies word by word. (A plain assignment becomes a call of `memmove`, which here is a loop over bytes.)
///
/// # Safety
/// Both must be aligned to 8, and `T` a multiple of that.
#[inline(always)]
unsafe fn copy<T>(from: *const T, to: *mut T) {
    for word in 0..size_of::<T>() / 8 {
        // SAFETY: within the value. Volatile, so that LLVM does not see the assignment through.
        unsafe { to.cast::<u64>().add(word).write_volatile(from.cast::<u64>().add(word).read_volatile()) };
    }
}
