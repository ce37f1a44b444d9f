//! Which of other people's XDP programs are traced, and what holds that in place. A program is traced once, however many interfaces run it.
//!
//! What traces a program keeps it loaded. So an agent that is told of a replacement lets go of the old one.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use super::{Hooks, pins};
use crate::{
    KernelError, Programs, bpf,
    trace::{self, TraceError},
};

/// What holds a pair in place. Dropped in this order: an exit alone counts nothing.
struct Links {
    entry: OwnedFd,
    exit: OwnedFd,
    /// Where they are pinned, if they are.
    pins: Vec<PathBuf>,
}

/// See the module's head.
#[derive(Default)]
pub(super) struct Traced {
    /// By the kernel's id of the program.
    links: BTreeMap<u32, Links>,
    /// Those that cannot be traced, and why.
    refused: BTreeMap<u32, String>,
}

impl Traced {
    /// Whether a pin is one of these.
    pub(super) fn has(&self, pin: &Path) -> bool {
        self.links.values().any(|links| links.pins.iter().any(|own| own == pin))
    }

    /// Traces nothing any more.
    pub(super) fn end(&mut self) -> Result<(), KernelError> {
        self.refused.clear();
        std::mem::take(&mut self.links).into_values().try_for_each(Links::end)
    }
}

impl Links {
    fn pin(&self) -> io::Result<()> {
        self.pins.iter().zip([&self.entry, &self.exit]).try_for_each(|(path, link)| bpf::pin(link.as_fd(), path))
    }

    /// The pins go first: then our descriptors are the last, and closing them ends it.
    fn end(self) -> Result<(), KernelError> {
        self.pins.iter().try_for_each(|pin| pins::remove(pin))
    }
}

impl Hooks {
    /// Traces these programs, by the kernel's ids, and no others. Those that cannot be traced are tried once.
    ///
    /// # Errors
    /// If pins cannot be removed.
    pub fn trace(&mut self, programs: &Programs, wanted: &BTreeSet<u32>) -> Result<(), KernelError> {
        self.traced.refused.retain(|id, _| wanted.contains(id));
        let gone: Vec<u32> = self.traced.links.keys().filter(|id| !wanted.contains(id)).copied().collect();
        for id in gone {
            self.traced.links.remove(&id).map_or(Ok(()), Links::end)?;
            tracing::info!(id, "somebody else's XDP program is not traced any more");
        }
        for id in wanted {
            if self.traced.links.contains_key(id) || self.traced.refused.contains_key(id) {
                continue;
            }
            match self.begin(programs, *id) {
                Ok(links) => {
                    self.traced.links.insert(*id, links);
                    tracing::info!(id, "somebody else's XDP program is traced: what it drops and forwards has rows");
                }
                Err(error) => {
                    let problem = error.to_string();
                    tracing::warn!(
                        id,
                        problem,
                        "somebody else's XDP program is not traced: there is the driver's count only"
                    );
                    self.traced.refused.insert(*id, problem);
                }
            }
        }
        Ok(())
    }

    /// Why a program is not traced; `None`: it is, or nobody has asked for it.
    #[must_use]
    pub fn untraced(&self, id: u32) -> Option<&str> {
        self.traced.refused.get(&id).map(String::as_str)
    }

    /// Whether a program is traced.
    #[must_use]
    pub fn is_traced(&self, id: u32) -> bool {
        self.traced.links.contains_key(&id)
    }

    fn begin(&self, programs: &Programs, id: u32) -> Result<Links, TraceError> {
        let unpinned = |e: KernelError| TraceError::Pin(e.to_string());
        let pin = |what: &str| self.pins.as_ref().map(|p| p.link(&format!("trace-{id}-{what}")));
        let paths: Vec<PathBuf> = ["entry", "exit"].into_iter().filter_map(pin).collect();
        // What an earlier agent has left would count everything twice.
        paths.iter().try_for_each(|path| pins::remove(path)).map_err(unpinned)?;
        let pair = programs.pair_for(trace::program(id)?.as_fd())?;
        let (entry, exit) = pair.attach()?;
        let links = Links { entry, exit, pins: paths };
        match links.pin() {
            Ok(()) => Ok(links),
            Err(e) => {
                let _ = links.end();
                Err(TraceError::Pin(e.to_string()))
            }
        }
    }
}
