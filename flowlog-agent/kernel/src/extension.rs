//! Which program stands in the place of another one's function (`BPF_PROG_TYPE_EXT`).
//!
//! libxdp's dispatcher for a single program is such a place: the program replaces the dispatcher's main function as a whole, and the
//! kernel traces no function that is replaced (`bpf_trampoline_link_prog` in `kernel/bpf/trampoline.c`: `EBUSY`). What runs is the
//! extension, so that is what is traced. Not here: programs that a dispatcher calls; they are part of what its main function returns.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use super::bpf::{self, ByIdAttr, Function};

const BPF_LINK_GET_FD_BY_ID: u32 = 30;
const BPF_LINK_GET_NEXT_ID: u32 = 31;
/// `BPF_LINK_TYPE_TRACING`: extensions have this one as well as what traces a function.
const TRACING_LINK: u32 = 2;
/// Extensions have no attach type; what traces a function has one of `BPF_TRACE_*`.
const NO_ATTACH_TYPE: u32 = 0;

/// The beginning of `struct bpf_link_info`, as links of tracing programs and extensions fill it.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    link_type: u32,
    id: u32,
    prog_id: u32,
    padding: u32,
    attach_type: u32,
    /// The program, for a function of a program.
    target_obj_id: u32,
    target_btf_id: u32,
}

/// The program in the place of a function; `None`: nothing replaces it. Takes `CAP_SYS_ADMIN`, as all reading by id does.
pub(super) fn of(function: Function<'_>) -> io::Result<Option<OwnedFd>> {
    let target = (bpf::id(function.program)?, function.type_id);
    let mut last = 0;
    while let Some(id) = next(last)? {
        last = id;
        // A link may go while we read.
        let Ok(link) = bpf::descriptor(BPF_LINK_GET_FD_BY_ID, ByIdAttr::of(id)) else { continue };
        let mut found = LinkInfo::default();
        bpf::info(link.as_fd(), &mut found)?;
        let is_extension = (found.link_type, found.attach_type) == (TRACING_LINK, NO_ATTACH_TYPE);
        if is_extension && (found.target_obj_id, found.target_btf_id) == target {
            return bpf::program(found.prog_id).map(Some);
        }
    }
    Ok(None)
}

/// The link with the least id above this one.
fn next(id: u32) -> io::Result<Option<u32>> {
    let mut attr = ByIdAttr::of(id);
    match bpf::call_with(BPF_LINK_GET_NEXT_ID, &mut attr) {
        Ok(_) => Ok(Some(attr.next_id)),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

const _: () = assert!(size_of::<LinkInfo>() == 28 && core::mem::offset_of!(LinkInfo, attach_type) == 16);
