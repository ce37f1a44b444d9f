//! Programs that trace somebody else's XDP program: made for it, one at its entry and one at its exit
//! (`flowlog-ebpf/src/bin/flowlog/trace.rs`).
//!
//! A program that traces another one is verified against that one's type information, so each has a pair of its own. aya loads such
//! programs for functions of the kernel only: here they are loaded by hand.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use super::{
    bpf::{self, Function, Instruction, ProgramKind},
    extension, heap,
    object::{self, MapFds, TakenOut},
};

/// `BPF_PROG_TYPE_TRACING`.
const TRACING: u32 = 26;
/// `BPF_TRACE_FENTRY` of `enum bpf_attach_type`.
const AT_ENTRY: u32 = 24;
/// `BPF_TRACE_FEXIT` of the same.
const AT_EXIT: u32 = 25;
/// Name in the object, and where it is attached.
const ENTRY: (&str, u32) = ("flowlog_entry", AT_ENTRY);
const EXIT: (&str, u32) = ("flowlog_exit", AT_EXIT);

/// Why a program cannot be traced.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TraceError {
    #[error("it is gone, or may not be asked for: {0}")]
    Unknown(io::Error),
    #[error("it was loaded without type information (BTF)")]
    NoTypes,
    #[error("this machine lets nobody trace programs (no trampolines): {0}")]
    Forbidden(io::Error),
    #[error("the kernel refuses to trace it: {0}")]
    Refused(io::Error),
    #[error("our programs are not usable: {0}")]
    Object(String),
    #[error("cannot pin what traces it: {0}")]
    Pin(String),
}

/// A loaded pair.
pub(super) struct Pair {
    entry: OwnedFd,
    exit: OwnedFd,
}

impl Pair {
    /// Has the kernel verify a pair for a program.
    pub(super) fn load(object: &[u8], maps: &MapFds, of: BorrowedFd<'_>) -> Result<Self, TraceError> {
        let function = main_function(of)?;
        let taken = object::take(object, maps, None, [ENTRY.0, EXIT.0]).map_err(TraceError::Object);
        let loaded = taken.and_then(|TakenOut { programs: [entry, exit], .. }| {
            let entry = load(function, ENTRY, &entry.instructions)?;
            Ok(Self { entry, exit: load(function, EXIT, &exit.instructions)? })
        });
        // What was read of the object is not needed any more.
        heap::give_back();
        loaded
    }

    /// Attaches it: what holds the entry, and the exit. The exit comes first: until there is an entry, it counts nothing.
    pub(super) fn attach(&self) -> Result<(OwnedFd, OwnedFd), TraceError> {
        let exit = bpf::trace(self.exit.as_fd()).map_err(refused)?;
        let entry = bpf::trace(self.entry.as_fd()).map_err(refused)?;
        Ok((entry, exit))
    }

    /// Instructions that the verifier walked, by program.
    pub(super) fn verified_instructions(&self) -> io::Result<[(String, u32); 2]> {
        let of = |(name, _): (&str, u32), fd: &OwnedFd| {
            bpf::verified_instructions(fd.as_fd()).map(|count| (name.to_owned(), count))
        };
        Ok([of(ENTRY, &self.entry)?, of(EXIT, &self.exit)?])
    }
}

/// What runs where the program with this id is attached: it, or the extension in its place.
pub(super) fn program(id: u32) -> Result<OwnedFd, TraceError> {
    let named = bpf::program(id).map_err(TraceError::Unknown)?;
    // Extensions cannot be extended: one look is enough.
    let instead = extension::of(main_function(named.as_fd())?).map_err(TraceError::Unknown)?;
    Ok(instead.unwrap_or(named))
}

fn main_function(program: BorrowedFd<'_>) -> Result<Function<'_>, TraceError> {
    bpf::main_function(program).map_err(TraceError::Unknown)?.ok_or(TraceError::NoTypes)
}

fn load(function: Function<'_>, (name, attach_type): (&str, u32), code: &[Instruction]) -> Result<OwnedFd, TraceError> {
    let kind = ProgramKind { program_type: TRACING, flags: 0, attach_type };
    bpf::load_for(function, kind, name, code).map_err(|unloaded| {
        if unloaded.words.is_empty() {
            return refused(unloaded.error);
        }
        TraceError::Refused(io::Error::new(unloaded.error.kind(), unloaded.to_string()))
    })
}

fn refused(error: io::Error) -> TraceError {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES | libc::ENOTSUP) => TraceError::Forbidden(error),
        _ => TraceError::Refused(error),
    }
}
