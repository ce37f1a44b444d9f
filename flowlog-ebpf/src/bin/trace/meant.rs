//! Whether a packet is one that was asked for: one of the tuples that it is known by is, that of its headers, of its note, or of its
//! connection.

use flowlog_ebpf::expression::{EMPTY, END, Subject, TESTS_MAX, step};

use crate::{
    frame::opaque,
    look::{BEFORE, HEADERS, SUBJECTS, look},
    maps::EXPRESSION,
};

/// Answer of [`test`]: there is more to be tested.
pub const MORE: u32 = 0;
/// It is meant.
pub const MEANT: u32 = 1;
/// It is not.
pub const NOT_MEANT: u32 = 2;
/// As often [`test`] may have to be asked.
pub const ASKED_MAX: u32 = (BEFORE as u32 + 1) * (TESTS_MAX as u32 + 1);

/// One test more.
#[inline(never)]
pub fn test(which: u32) -> u32 {
    let Some(look) = look(which) else { return NOT_MEANT };
    // SAFETY: a map value of this CPU; the index is below the array's length.
    unsafe {
        let index = opaque((*look).subject) as usize & (SUBJECTS - 1);
        let subject = (&raw const (*look).subjects).cast::<Subject>().add(index);
        let is_there = index == HEADERS || (*subject).family != 0;
        let number = (*look).test;
        let next = EXPRESSION.get(number).filter(|test| test.kind != END);
        if let Some(test) = next.filter(|_| is_there) {
            (*look).stack = step(test, &*subject, (*look).stack);
            (*look).test = number + 1;
            return MORE;
        }
        if is_there && (*look).stack & 1 != 0 {
            return MEANT;
        }
        (*look).subject += 1;
        (*look).test = 0;
        (*look).stack = EMPTY;
        if index == BEFORE { NOT_MEANT } else { MORE }
    }
}
