//! Our program that runs somebody else's XDP program (`flowlog-ebpf/src/bin/flowlog/wrap.rs`), loaded for that one.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use super::{
    bpf, entry, heap,
    object::{self, MapFds, TakenOut},
};

/// Name in the object, and what the kernel calls it.
const PROGRAM: &str = "flowlog_wrap";
/// The array in the object that stands for each one's own.
const ARRAY: &str = "WRAPPED";
/// The only place of an array.
const PLACE: u32 = 0;

/// What is needed to load ours.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a> {
    pub(super) object: &'a [u8],
    pub(super) maps: &'a MapFds,
}

/// Ours for one program, and its array: it runs that program as long as somebody holds both.
pub(super) struct Outer {
    pub(super) ours: OwnedFd,
    pub(super) array: OwnedFd,
}

impl Outer {
    /// Loads one that runs `foreign`; in words why that cannot be.
    pub(super) fn load(parts: Parts<'_>, foreign: BorrowedFd<'_>) -> Result<Self, String> {
        let mut problem = String::new();
        for has_frags in [false, true] {
            let array = bpf::program_array(ARRAY).map_err(|e| e.to_string())?;
            // First: an array is for programs like the first that it meets.
            let ours = load(parts, array.as_fd(), has_frags)?;
            match bpf::set_element(array.as_fd(), PLACE, foreign) {
                Ok(()) => return Ok(Self { ours, array }),
                Err(error) => problem = error.to_string(),
            }
        }
        Err(format!("the kernel does not let a program of ours jump to it ({problem})"))
    }

    /// Another one of ours, on an array that there is.
    pub(super) fn load_on(parts: Parts<'_>, array: BorrowedFd<'_>) -> Result<OwnedFd, String> {
        // Whichever the array takes.
        load(parts, array, false).or_else(|_| load(parts, array, true))
    }
}

/// Ours, on this array. `has_frags`: it takes frames in several buffers, as the owner's does.
fn load(parts: Parts<'_>, array: BorrowedFd<'_>, has_frags: bool) -> Result<OwnedFd, String> {
    let TakenOut { types, programs: [code] } = object::take(parts.object, parts.maps, Some((ARRAY, array)), [PROGRAM])?;
    let kind = entry::xdp_kind(has_frags);
    // The kernel lets functions make tail calls only if it knows their types.
    let loaded = bpf::load_typed(kind, PROGRAM, &code, &types).map_err(|e| format!("load program `{PROGRAM}`: {e}"));
    heap::give_back();
    loaded
}
