//! `bpf(2)`, for programs that are made here, and for those that trace other people's: aya loads and attaches neither. Sources:
//! `include/uapi/linux/bpf.h`, bpf(2).
#![allow(unsafe_code, reason = "a system call by number")]

use std::{
    ffi::CString,
    fmt, io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use flowlog_model::rule::Direction;

const BPF_MAP_CREATE: u32 = 0;
const BPF_MAP_UPDATE_ELEM: u32 = 2;
const BPF_PROG_LOAD: u32 = 5;
const BPF_OBJ_PIN: u32 = 6;
const BPF_OBJ_GET: u32 = 7;
const BPF_PROG_GET_FD_BY_ID: u32 = 13;
const BPF_OBJ_GET_INFO_BY_FD: u32 = 15;
const BPF_RAW_TRACEPOINT_OPEN: u32 = 17;
const BPF_BTF_LOAD: u32 = 18;
const BPF_LINK_CREATE: u32 = 28;
const BPF_LINK_UPDATE: u32 = 29;
const BPF_LINK_DETACH: u32 = 34;
/// `BPF_MAP_TYPE_PROG_ARRAY`.
const PROGRAM_ARRAY: u32 = 3;
/// Longest name of a program or map, with its end.
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

/// A program, ready to be loaded.
pub(super) struct Code {
    pub(super) instructions: Vec<Instruction>,
    /// Where its functions begin, and their types (`struct bpf_func_info`), one after the other.
    pub(super) functions: Vec<u8>,
    /// Bytes of each.
    pub(super) function_bytes: usize,
}

/// Room for what the verifier says of a program that it refuses; it is its end that counts.
const LOG_BYTES: usize = 64 << 10;
/// The verifier says what it has against a program, and little else (`BPF_LOG_LEVEL1`).
const LOG_LEVEL: u32 = 1;

/// How a program is loaded.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ProgramKind {
    /// `BPF_PROG_TYPE_*`.
    pub(super) program_type: u32,
    /// `BPF_F_*`.
    pub(super) flags: u32,
    /// `BPF_*` of `enum bpf_attach_type`; 0 where the type has none.
    pub(super) attach_type: u32,
}

/// A function of somebody's program, as programs that trace it name it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function<'a> {
    pub(super) program: BorrowedFd<'a>,
    /// Its number in the program's type information.
    pub(super) type_id: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
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
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
    attach_prog_fd: u32,
    core_relo_cnt: u32,
}

#[repr(C)]
struct MapAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; NAME_BYTES],
}

#[repr(C)]
struct TypesAttr {
    btf: u64,
    btf_log_buf: u64,
    btf_size: u32,
    btf_log_size: u32,
    log_level: u32,
    spare: u32,
}

/// How something is named by its id, and where the kernel puts the next one.
#[repr(C)]
pub(super) struct ByIdAttr {
    id: u32,
    pub(super) next_id: u32,
    open_flags: u32,
}

impl ByIdAttr {
    pub(super) fn of(id: u32) -> Self {
        Self { id, next_id: 0, open_flags: 0 }
    }
}

#[repr(C)]
struct OpenAttr {
    name: u64,
    prog_fd: u32,
    spare: u32,
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

/// The same, with a place among others.
#[repr(C)]
struct OrderAttr {
    link: LinkAttr,
    relative_id: u32,
    spare: u32,
    expected_revision: u64,
}

#[repr(C)]
struct UpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

#[repr(C)]
struct DetachAttr {
    link_fd: u32,
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
    /// Of no interest here, up to the type information.
    other: [u64; 15],
    btf_id: u32,
    func_info_rec_size: u32,
    func_info: u64,
    nr_func_info: u32,
    nr_line_info: u32,
    /// Of no interest either.
    lines: [u64; 8],
    verified_instructions: u32,
    attach_btf_obj_id: u32,
}

/// `struct bpf_func_info`.
#[repr(C)]
#[derive(Default)]
struct FunctionInfo {
    offset: u32,
    type_id: u32,
}

/// The system call; what it returns where it succeeds.
pub(super) fn call_with<T>(command: u32, attr: &mut T) -> io::Result<i32> {
    // SAFETY: a `repr(C)` beginning of `union bpf_attr` without padding, with its size; the kernel takes what is behind it for zero,
    // and writes at most into it. Pointers in it are to memory that its maker keeps.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { i32::try_from(result).map_err(io::Error::other) }
}

/// The same for commands that write nothing into it.
fn call<T>(command: u32, mut attr: T) -> io::Result<i32> {
    call_with(command, &mut attr)
}

/// The same for commands that return a descriptor.
pub(super) fn descriptor<T>(command: u32, attr: T) -> io::Result<OwnedFd> {
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

/// Why the kernel does not take a program: its error, and the verifier's last words, if it has any.
#[derive(Debug)]
pub(super) struct Unloaded {
    pub(super) error: io::Error,
    pub(super) words: String,
}

impl From<io::Error> for Unloaded {
    fn from(error: io::Error) -> Self {
        Self { error, words: String::new() }
    }
}

impl fmt::Display for Unloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.words.is_empty() { self.error.fmt(f) } else { write!(f, "{} ({})", self.words, self.error) }
    }
}

/// Has the kernel verify a program.
pub(super) fn load(kind: ProgramKind, name: &str, instructions: &[Instruction]) -> Result<OwnedFd, Unloaded> {
    verify(&load_attr(kind, name, instructions)?)
}

/// The same with the types of its functions; `types` are those of the object that it is from.
pub(super) fn load_typed(kind: ProgramKind, name: &str, code: &Code, types: &[u8]) -> Result<OwnedFd, Unloaded> {
    let btf_size = u32::try_from(types.len()).map_err(io::Error::other)?;
    let attr =
        TypesAttr { btf: address(types.as_ptr()), btf_log_buf: 0, btf_size, btf_log_size: 0, log_level: 0, spare: 0 };
    let types = descriptor(BPF_BTF_LOAD, attr)?;
    let Code { instructions, functions, function_bytes } = code;
    let count = functions.len().checked_div(*function_bytes).unwrap_or(0);
    verify(&LoadAttr {
        prog_btf_fd: number(types.as_fd()),
        func_info_rec_size: u32::try_from(*function_bytes).map_err(io::Error::other)?,
        func_info: address(functions.as_ptr()),
        func_info_cnt: u32::try_from(count).map_err(io::Error::other)?,
        ..load_attr(kind, name, instructions)?
    })
}

/// The same for one that traces a function of another program.
pub(super) fn load_for(
    function: Function<'_>,
    kind: ProgramKind,
    name: &str,
    instructions: &[Instruction],
) -> Result<OwnedFd, Unloaded> {
    verify(&LoadAttr {
        attach_btf_id: function.type_id,
        attach_prog_fd: number(function.program),
        ..load_attr(kind, name, instructions)?
    })
}

fn verify(attr: &LoadAttr) -> Result<OwnedFd, Unloaded> {
    descriptor(BPF_PROG_LOAD, *attr).map_err(|error| {
        let mut log = vec![0u8; LOG_BYTES];
        let log_size = u32::try_from(LOG_BYTES).unwrap_or(0);
        let again = LoadAttr { log_level: LOG_LEVEL, log_size, log_buf: address(log.as_mut_ptr()), ..*attr };
        let _ = descriptor(BPF_PROG_LOAD, again);
        log.truncate(log.iter().position(|byte| *byte == 0).unwrap_or(0));
        let said = String::from_utf8_lossy(&log);
        let last = said.lines().rfind(|line| !line.is_empty() && !line.starts_with("processed "));
        Unloaded { error, words: last.unwrap_or_default().to_owned() }
    })
}

fn name_of(name: &str) -> [u8; NAME_BYTES] {
    let mut bytes = [0; NAME_BYTES];
    bytes.iter_mut().take(NAME_BYTES - 1).zip(name.bytes()).for_each(|(to, from)| *to = from);
    bytes
}

fn load_attr(kind: ProgramKind, name: &str, instructions: &[Instruction]) -> io::Result<LoadAttr> {
    let license = c"GPL";
    Ok(LoadAttr {
        prog_type: kind.program_type,
        insn_cnt: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        insns: address(instructions.as_ptr()),
        license: address(license.as_ptr()),
        prog_flags: kind.flags,
        prog_name: name_of(name),
        expected_attach_type: kind.attach_type,
        ..LoadAttr::default()
    })
}

/// A program by its id. Takes `CAP_SYS_ADMIN`.
pub(super) fn program(id: u32) -> io::Result<OwnedFd> {
    descriptor(BPF_PROG_GET_FD_BY_ID, ByIdAttr::of(id))
}

/// What the kernel knows of a program or link: `info` is the beginning of its `struct bpf_*_info`.
pub(super) fn info<T>(of: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let info_len = u32::try_from(size_of::<T>()).map_err(io::Error::other)?;
    let attr = InfoAttr { bpf_fd: number(of), info_len, info: address(std::ptr::from_mut(info)) };
    call(BPF_OBJ_GET_INFO_BY_FD, attr).map(drop)
}

/// The kernel's id of a program.
pub(super) fn id(program: BorrowedFd<'_>) -> io::Result<u32> {
    let mut found = ProgramInfo::default();
    info(program, &mut found)?;
    Ok(found.id)
}

/// Instructions that the verifier walked.
pub(super) fn verified_instructions(program: BorrowedFd<'_>) -> io::Result<u32> {
    let mut found = ProgramInfo::default();
    info(program, &mut found)?;
    Ok(found.verified_instructions)
}

/// The function that a program begins with; `None`: it was loaded without type information.
pub(super) fn main_function(program: BorrowedFd<'_>) -> io::Result<Option<Function<'_>>> {
    let mut function = FunctionInfo::default();
    let mut found = ProgramInfo {
        func_info_rec_size: u32::try_from(size_of::<FunctionInfo>()).map_err(io::Error::other)?,
        func_info: address(&raw mut function),
        nr_func_info: 1,
        ..ProgramInfo::default()
    };
    info(program, &mut found)?;
    let is_known = found.btf_id != 0 && found.nr_func_info != 0 && function.type_id != 0;
    Ok(is_known.then_some(Function { program, type_id: function.type_id }))
}

/// Attaches a program that traces to what it was loaded for.
pub(super) fn trace(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    descriptor(BPF_RAW_TRACEPOINT_OPEN, OpenAttr { name: 0, prog_fd: number(program), spare: 0 })
}

/// Attaches a program to an interface of the network namespace we are in.
pub(super) fn link(program: BorrowedFd<'_>, ifindex: u32, attach_type: u32, flags: u32) -> io::Result<OwnedFd> {
    let prog_fd = number(program);
    descriptor(BPF_LINK_CREATE, LinkAttr { prog_fd, target_ifindex: ifindex, attach_type, flags })
}

/// `BPF_F_BEFORE` without another program: before all.
const FIRST: u32 = 1 << 3;
/// `BPF_F_AFTER` and `BPF_F_ID`: behind the program with this id.
const BEHIND_ID: u32 = 1 << 4 | 1 << 5;
/// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS` of `enum bpf_attach_type`, by direction.
pub(super) const ATTACH_TCX: [u32; 2] = [46, 47];

/// Attaches a program to one direction of an interface of the network namespace we are in: behind the program with this id, or without
/// one before all others.
pub(super) fn link_behind(
    program: BorrowedFd<'_>,
    ifindex: u32,
    direction: Direction,
    behind: Option<u32>,
) -> io::Result<OwnedFd> {
    let attach_type = ATTACH_TCX[direction.index()];
    let Some(relative_id) = behind else { return link(program, ifindex, attach_type, FIRST) };
    let first = LinkAttr { prog_fd: number(program), target_ifindex: ifindex, attach_type, flags: BEHIND_ID };
    descriptor(BPF_LINK_CREATE, OrderAttr { link: first, relative_id, spare: 0, expected_revision: 0 })
}

/// Puts another program in the place of the one that a link holds.
pub(super) fn replace(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let attr = UpdateAttr { link_fd: number(link), new_prog_fd: number(program), flags: 0, old_prog_fd: 0 };
    call(BPF_LINK_UPDATE, attr).map(drop)
}

/// Takes a link's program away from where it is attached, whoever else holds the link; when this returns, every packet that had begun to pass
/// it has (`tcx_entry_sync`).
pub(super) fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    call(BPF_LINK_DETACH, DetachAttr { link_fd: number(link) }).map(drop)
}

/// Makes an array with room for one program.
pub(super) fn program_array(name: &str) -> io::Result<OwnedFd> {
    let attr = MapAttr {
        map_type: PROGRAM_ARRAY,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        flags: 0,
        inner_map_fd: 0,
        numa_node: 0,
        map_name: name_of(name),
    };
    descriptor(BPF_MAP_CREATE, attr)
}

/// Puts a program into an array of programs.
pub(super) fn set_element(map: BorrowedFd<'_>, key: u32, program: BorrowedFd<'_>) -> io::Result<()> {
    let value = number(program);
    let attr = ElementAttr {
        map_fd: number(map),
        spare: 0,
        key: address(&raw const key),
        value: address(&raw const value),
        flags: 0,
    };
    call(BPF_MAP_UPDATE_ELEM, attr).map(drop)
}

/// Pins what a descriptor stands for.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attr = ObjectAttr { pathname: address(path.as_ptr()), bpf_fd: number(object), file_flags: 0 };
    call(BPF_OBJ_PIN, attr).map(drop)
}

/// What is pinned at a path.
pub(super) fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    descriptor(BPF_OBJ_GET, ObjectAttr { pathname: address(path.as_ptr()), bpf_fd: 0, file_flags: 0 })
}

const _: () = {
    assert!(size_of::<Instruction>() == 8);
    assert!(size_of::<LoadAttr>() == 120);
    assert!(core::mem::offset_of!(LoadAttr, attach_btf_id) == 108);
    assert!(size_of::<ByIdAttr>() == 12 && size_of::<OpenAttr>() == 16 && size_of::<FunctionInfo>() == 8);
    assert!(core::mem::offset_of!(ProgramInfo, btf_id) == 128);
    assert!(core::mem::offset_of!(ProgramInfo, verified_instructions) == 216);
    assert!(size_of::<TypesAttr>() == 32);
    assert!(
        size_of::<ObjectAttr>() == 16
            && size_of::<LinkAttr>() == 16
            && size_of::<OrderAttr>() == 32
            && size_of::<UpdateAttr>() == 16
    );
    assert!(size_of::<ElementAttr>() == 32 && size_of::<MapAttr>() == 44);
    assert!(size_of::<InfoAttr>() == 16 && size_of::<ProgramInfo>() == 224);
};
