//! `bpf(2)`, for programs that are made here: aya loads and attaches those of an object file only. Sources:
//! `include/uapi/linux/bpf.h`, bpf(2).
#![allow(unsafe_code, reason = "a system call by number")]

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

const BPF_MAP_LOOKUP_ELEM: u32 = 1;
const BPF_PROG_LOAD: u32 = 5;
const BPF_OBJ_PIN: u32 = 6;
const BPF_OBJ_GET: u32 = 7;
const BPF_OBJ_GET_INFO_BY_FD: u32 = 15;
const BPF_LINK_CREATE: u32 = 28;
const BPF_LINK_UPDATE: u32 = 29;
/// Longest name of a program, with its end.
const NAME_BYTES: usize = 16;

/// An instruction: `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    pub(super) code: u8,
    /// Destination in the lower half, source in the upper one.
    pub(super) registers: u8,
    pub(super) offset: i16,
    pub(super) immediate: i32,
}

/// How a program is loaded.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProgramKind {
    /// `BPF_PROG_TYPE_*`.
    pub(super) program_type: u32,
    /// `BPF_F_*`.
    pub(super) flags: u32,
    /// `BPF_*` of `enum bpf_attach_type`; 0 where the type has none.
    pub(super) attach_type: u32,
}

#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; NAME_BYTES],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
struct ObjectAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
struct LinkAttr {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
struct UpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

#[repr(C)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    spare: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The beginning of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    program_type: u32,
    id: u32,
}

/// The system call; what it returns where it succeeds.
fn call<T>(command: u32, attr: &T) -> io::Result<i32> {
    // SAFETY: a `repr(C)` beginning of `union bpf_attr` without padding, with its size; the kernel takes what is behind it for zero.
    // Pointers in it are to memory that its maker keeps.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { i32::try_from(result).map_err(io::Error::other) }
}

fn descriptor<T>(command: u32, attr: &T) -> io::Result<OwnedFd> {
    let fd = call(command, attr)?;
    // SAFETY: these commands return a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn address<T>(of: *const T) -> u64 {
    of.expose_provenance() as u64
}

/// Has the kernel verify a program.
pub(super) fn load(kind: ProgramKind, name: &str, instructions: &[Instruction]) -> io::Result<OwnedFd> {
    let license = c"GPL";
    let mut prog_name = [0; NAME_BYTES];
    prog_name.iter_mut().take(NAME_BYTES - 1).zip(name.bytes()).for_each(|(to, from)| *to = from);
    descriptor(
        BPF_PROG_LOAD,
        &LoadAttr {
            prog_type: kind.program_type,
            insn_cnt: u32::try_from(instructions.len()).map_err(io::Error::other)?,
            insns: address(instructions.as_ptr()),
            license: address(license.as_ptr()),
            prog_flags: kind.flags,
            prog_name,
            expected_attach_type: kind.attach_type,
            ..LoadAttr::default()
        },
    )
}

/// The kernel's id of a program.
pub(super) fn id(program: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = ProgramInfo::default();
    let info_len = u32::try_from(size_of::<ProgramInfo>()).map_err(io::Error::other)?;
    call(BPF_OBJ_GET_INFO_BY_FD, &InfoAttr { bpf_fd: number(program), info_len, info: address(&raw mut info) })?;
    Ok(info.id)
}

/// Attaches a program to an interface of the network namespace we are in.
pub(super) fn link(program: BorrowedFd<'_>, ifindex: u32, attach_type: u32, flags: u32) -> io::Result<OwnedFd> {
    let prog_fd = number(program);
    descriptor(BPF_LINK_CREATE, &LinkAttr { prog_fd, target_ifindex: ifindex, attach_type, flags })
}

/// Puts another program in the place of the one that a link holds.
pub(super) fn replace(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attr = UpdateAttr { link_fd: number(link), new_prog_fd: number(program), flags: 0, old_prog_fd: 0 };
    call(BPF_LINK_UPDATE, &attr).map(drop)
}

/// An element of a map with keys and values of four bytes; of an array of programs, the id of the one that is there.
pub(super) fn element(map: BorrowedFd<'_>, key: u32) -> io::Result<Option<u32>> {
    let mut value = 0u32;
    let attr = ElementAttr {
        map_fd: number(map),
        spare: 0,
        key: address(&raw const key),
        value: address(&raw mut value),
        flags: 0,
    };
    match call(BPF_MAP_LOOKUP_ELEM, &attr) {
        Ok(_) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Pins what a descriptor stands for.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = ObjectAttr { pathname: address(path.as_ptr()), bpf_fd: number(object), file_flags: 0 };
    call(BPF_OBJ_PIN, &attr).map(drop)
}

/// What is pinned at a path.
pub(super) fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    descriptor(BPF_OBJ_GET, &ObjectAttr { pathname: address(path.as_ptr()), bpf_fd: 0, file_flags: 0 })
}

const _: () = {
    assert!(size_of::<Instruction>() == 8);
    assert!(size_of::<LoadAttr>() == 72);
    assert!(size_of::<ObjectAttr>() == 16 && size_of::<LinkAttr>() == 16 && size_of::<UpdateAttr>() == 16);
    assert!(size_of::<ElementAttr>() == 32);
    assert!(size_of::<InfoAttr>() == 16 && size_of::<ProgramInfo>() == 8);
};
