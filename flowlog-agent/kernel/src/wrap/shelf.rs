//! What runs other people's XDP programs, one set for each of them, and where it is kept.
//!
//! A program of ours jumps through an array of its own, which has the owner's program in its only place. So it runs that one wherever it is
//! attached: on several interfaces, and on one that has gone to another network namespace. Pinned are, ID being the owner's program:
//!
//! ```text
//! <pin dir>/xdp/ID-foreign     the owner's program
//! <pin dir>/xdp/ID-array       the array; the kernel empties one that nobody holds
//! <pin dir>/xdp/ID-ours-OUR    ours, by its own id; several while an agent takes over
//! ```

use std::{
    fs, io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::fs::DirBuilderExt as _,
    },
    path::{Path, PathBuf},
};

use aya::{
    maps::MapInfo,
    programs::{ProgramError, loaded_programs},
};

use crate::{
    KernelError, bpf,
    outer::{Outer, Parts},
    pins,
};

/// See the module's head.
#[derive(Default)]
pub(super) struct Shelf {
    dir: Option<PathBuf>,
}

fn failed(action: String, problem: &dyn std::fmt::Display) -> KernelError {
    KernelError::Refused { action, problem: problem.to_string() }
}

impl Shelf {
    pub(super) fn new(dir: Option<PathBuf>) -> Self {
        Self { dir }
    }

    fn dir(&self) -> Result<&Path, String> {
        self.dir.as_deref().ok_or_else(|| "nothing is pinned".to_owned())
    }

    /// Names of all pins.
    fn names(&self) -> Result<Vec<String>, KernelError> {
        let Some(dir) = &self.dir else { return Ok(Vec::new()) };
        match fs::read_dir(dir) {
            Ok(entries) => Ok(entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(failed("list the pins of wrapped programs".to_owned(), &e)),
        }
    }

    /// The programs of owners for which there is something.
    pub(super) fn owners(&self) -> Result<Vec<u32>, KernelError> {
        let mut found: Vec<u32> =
            self.names()?.iter().filter_map(|name| name.split_once('-')?.0.parse().ok()).collect();
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Those of ours that are pinned, by id.
    fn pinned_ours(&self, theirs: u32) -> Result<Vec<u32>, KernelError> {
        let prefix = format!("{theirs}-ours-");
        Ok(self.names()?.iter().filter_map(|name| name.strip_prefix(&prefix)?.parse().ok()).collect())
    }

    /// Those of ours that there are for a program, pinned or not, as far as we may ask.
    pub(super) fn ours(&self, theirs: u32) -> Result<Vec<u32>, KernelError> {
        let mut found = self.pinned_ours(theirs)?;
        found.extend(self.users(theirs).unwrap_or_default());
        Ok(found)
    }

    /// Whoever uses a program's array. Asking takes `CAP_SYS_ADMIN`.
    fn users(&self, theirs: u32) -> Result<Vec<u32>, String> {
        let array = MapInfo::from_pin(self.path(theirs, "array")?).map_err(|e| e.to_string())?.id();
        let mut found = Vec::new();
        for program in loaded_programs() {
            let program = match program {
                Ok(program) => program,
                // It has ended between two questions.
                Err(ProgramError::SyscallError(e)) if e.io_error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error.to_string()),
            };
            if program.map_ids().map_err(|e| e.to_string())?.is_some_and(|ids| ids.contains(&array)) {
                found.push(program.id());
            }
        }
        Ok(found)
    }

    fn path(&self, theirs: u32, part: &str) -> Result<PathBuf, String> {
        Ok(self.dir()?.join(format!("{theirs}-{part}")))
    }

    fn part(&self, theirs: u32, part: &str) -> Result<OwnedFd, String> {
        let path = self.path(theirs, part)?;
        bpf::pinned(&path).map_err(|e| format!("open the pin `{}`: {e}", path.display()))
    }

    /// The owner's program.
    pub(super) fn foreign(&self, theirs: u32) -> Result<OwnedFd, String> {
        self.part(theirs, "foreign")
    }

    /// One of ours.
    pub(super) fn program(&self, theirs: u32, ours: u32) -> Result<OwnedFd, String> {
        self.part(theirs, &format!("ours-{ours}")).or_else(|_| bpf::program(ours).map_err(|e| e.to_string()))
    }

    /// Ours for an owner's program: one that there is, or a new one.
    pub(super) fn provide(&self, parts: Parts<'_>, theirs: u32, foreign: BorrowedFd<'_>) -> Result<OwnedFd, String> {
        if let Some(ours) = self.pinned_ours(theirs).map_err(|e| e.to_string())?.last() {
            return self.program(theirs, *ours);
        }
        if self.path(theirs, "array")?.exists() {
            return self.renew(parts, theirs);
        }
        match fs::DirBuilder::new().mode(0o700).create(self.dir()?) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(format!("make the pin directory: {e}")),
            _ => {}
        }
        let Outer { ours, array } = Outer::load(parts, foreign)?;
        self.pin(theirs, "foreign", foreign)?;
        self.pin(theirs, "array", array.as_fd())?;
        self.keep(theirs, ours)
    }

    /// A new one of ours, on the array that there is.
    pub(super) fn renew(&self, parts: Parts<'_>, theirs: u32) -> Result<OwnedFd, String> {
        let array = self.part(theirs, "array")?;
        let ours = Outer::load_on(parts, array.as_fd())?;
        self.keep(theirs, ours)
    }

    fn keep(&self, theirs: u32, ours: OwnedFd) -> Result<OwnedFd, String> {
        let id = bpf::id(ours.as_fd()).map_err(|e| e.to_string())?;
        self.pin(theirs, &format!("ours-{id}"), ours.as_fd())?;
        Ok(ours)
    }

    fn pin(&self, theirs: u32, part: &str, object: BorrowedFd<'_>) -> Result<(), String> {
        let path = self.path(theirs, part)?;
        pins::remove(&path).map_err(|e| e.to_string())?;
        bpf::pin(object, &path).map_err(|e| format!("pin `{}`: {e}", path.display()))
    }

    /// Removes the pins of ours but for this one.
    pub(super) fn leave_only(&self, theirs: u32, ours: Option<u32>) -> Result<(), KernelError> {
        for id in self.pinned_ours(theirs)?.into_iter().filter(|id| Some(*id) != ours) {
            self.remove(theirs, &format!("ours-{id}"))?;
        }
        Ok(())
    }

    fn remove(&self, theirs: u32, part: &str) -> Result<(), KernelError> {
        self.path(theirs, part).map_or(Ok(()), |path| pins::remove(&path))
    }

    /// Takes away what there is for an owner's program, if ours runs it nowhere: not on an interface of another network namespace either.
    /// `false`: it does, or it is not known, and everything stays.
    pub(super) fn clear(&self, theirs: u32) -> Result<bool, KernelError> {
        let is_array = self.path(theirs, "array").is_ok_and(|path| path.exists());
        if is_array && self.users(theirs).is_err() {
            return Ok(false);
        }
        self.leave_only(theirs, None)?;
        let living = if is_array { self.users(theirs).unwrap_or_default() } else { Vec::new() };
        for ours in &living {
            let program = bpf::program(*ours).map_err(|e| e.to_string());
            program
                .and_then(|program| self.pin(theirs, &format!("ours-{ours}"), program.as_fd()))
                .map_err(|e| failed(format!("keep what runs the XDP program {theirs}"), &e))?;
        }
        if !living.is_empty() {
            return Ok(false);
        }
        ["array", "foreign"].into_iter().try_for_each(|part| self.remove(theirs, part))?;
        Ok(true)
    }
}
