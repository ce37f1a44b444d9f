//! The kernel edge: loading, attaching and talking to the eBPF programs. The only layer that names `aya`.
//!
//! * [`btf`], [`layout`]: what this kernel's structs and drop reasons look like;
//! * [`load`]: the eBPF object, its constants, and [`Kernel`]: everything of ours in the kernel, by owner;
//! * [`sizes`]: how large the maps are; [`chosen`]: cache and ring, where nobody says it; [`programs`]: the programs;
//! * [`attach`]: hooks (tcx, clsact, XDP) and the verdict programs; [`entry`], [`bpf`]: what is attached in other network namespaces;
//!   [`pins`]: what outlives the agent, and where;
//! * [`maps`]: interfaces and epochs; [`spots`]: where the programs find interfaces; [`truth`]: the truth counters; [`notes`]: what tells packets apart; [`behind`]: which next hops are behind which ports;
//! * [`wrap`]: other people's XDP programs, run by ours;
//! * [`ring`]: blocks of records, as bytes; [`sweep`]: closing an epoch on every CPU; [`cpus`]: which there are;
//! * [`heap`]: giving freed memory back; [`limits`]: how much there may be;
//! * [`confine`]: what the process gives up before it works;
//! * [`tracer`]: what becomes of single packets, for whoever asks;
//! * [`probe`]: what this machine can do, without changing it; [`refusal`]: why it does not take a program;
//! * [`netdev`]: what the kernel says about interfaces.
//!
//! What a record *means* does not belong here, nor does any decision about rules.
#![deny(unsafe_code)] // allowed, with reasons, only in the files that need it

pub mod attach;
mod behind;
mod bpf;
pub(crate) mod btf;
pub mod chosen;
pub mod confine;
mod cpus;
mod each_cpu;
mod entry;
mod extension;
pub mod heap;
pub(crate) mod layout;
pub mod limits;
pub(crate) mod load;
mod mapping;
pub(crate) mod maps;
pub mod netdev;
mod notes;
mod object;
mod outer;
pub mod pins;
pub mod probe;
mod programs;
mod refusal;
pub(crate) mod ring;
mod sizes;
mod spots;
pub mod sweep;
mod trace;
pub mod tracer;
mod truth;
mod wrap;

use std::{io, path::PathBuf};

pub use attach::Attached;
use aya::programs::ProgramError;
pub use cpus::CpuCount;
pub use each_cpu::Obstacle;
use flowlog_model::rule::InvalidField;
pub use layout::{Mark, MarkFrom, Moves, Reasons};
pub use load::{Kernel, Options};
pub use pins::Pins;
pub use programs::Programs;
pub use ring::Ring;
pub use sizes::Sizes;
pub use wrap::Wraps;

/// What can go wrong at the kernel edge.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("kernel type information at `{}` is not usable: {problem}; flowlog needs a kernel built with CONFIG_DEBUG_INFO_BTF=y", path.display())]
    NoBtf {
        /// The file that was tried.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A struct member or enum that the programs need is not in this kernel.
    #[error("this kernel has no `{name}`; flowlog needs Linux 6.1 or newer")]
    MissingType {
        /// Name of the type or member.
        name: String,
    },
    /// The kernel refused for lack of privilege.
    #[error("the kernel refused to {action}: {source}; run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON")]
    Permission { action: String, source: io::Error },
    /// A setting that this kernel cannot have.
    #[error(transparent)]
    Setting(#[from] InvalidField),
    /// Another agent has it.
    #[error("cannot {action}: {source}")]
    InUse { action: String, source: io::Error },
    #[error("cannot {action}: {problem}")]
    Refused {
        action: String,
        /// The kernel's or verifier's words.
        problem: String,
    },
    /// An interface cannot be hooked in the wanted way.
    #[error("cannot attach {hook} to interface `{interface}`: {problem}")]
    Attach {
        interface: String,
        hook: String,
        /// The kernel's words and what to do.
        problem: String,
    },
}

impl KernelError {
    /// Turns any error of the loader into ours; a missing privilege anywhere among its causes becomes
    /// [`KernelError::Permission`].
    pub(crate) fn from_chain(action: impl Into<String>, error: &(dyn std::error::Error + 'static)) -> Self {
        let action = action.into();
        if let Some(ProgramError::LoadError { io_error, verifier_log }) = error.downcast_ref()
            && let Some(problem) = refusal::words(io_error, &verifier_log.to_string())
        {
            return Self::Refused { action, problem };
        }
        let mut words = error.to_string();
        let mut cause = Some(error);
        while let Some(e) = cause {
            if let Some(io) = e.downcast_ref::<io::Error>()
                && matches!(io.raw_os_error(), Some(libc::EPERM | libc::EACCES))
            {
                return Self::Permission { action, source: io::Error::from_raw_os_error(libc::EPERM) };
            }
            cause = e.source();
            if let Some(next) = cause
                && !words.contains(&next.to_string())
            {
                words = format!("{words}: {next}");
            }
        }
        Self::Refused { action, problem: words }
    }
}
