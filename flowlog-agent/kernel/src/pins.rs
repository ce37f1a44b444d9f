//! The pin directory: what keeps programs, maps and hooks alive while no agent runs.
//!
//! ```text
//! <pin dir>/              locked by the agent that uses it
//! <pin dir>/vN/NAME       maps, by their name in the eBPF object; N is `abi::ABI_VERSION`
//! <pin dir>/vN/link-…     what holds a hook: link-drop, link-INDEX-ingress, link-INDEX-egress, link-INDEX-xdp;
//!                         NETNS_INDEX in the place of INDEX in another network namespace
//! <pin dir>/xdp/          other people's XDP programs, and what runs them: `wrap/shelf.rs`; needs no set, and outlives it where it must
//! <pin dir>/vN-new/       a set that is being made; renamed when it is complete
//! ```
//!
//! A set is taken over only if it has every map, each of the type and sizes that this agent would make. Anything
//! else is refused and left alone: another version's set can be emptied by that version only.

use std::{
    fs, io,
    os::{fd::AsRawFd as _, unix::fs::DirBuilderExt as _},
    path::{Path, PathBuf},
};

use aya::maps::{Array, Map, MapData, MapError, MapInfo};
use flowlog_ebpf::abi::{ABI_VERSION, Setup};
use flowlog_host::lock;
use flowlog_model::rule::InvalidField;

use super::{
    KernelError, Sizes,
    cpus::CpuCount,
    maps::SetupPod,
    sizes::{MapSpec, key_of},
};

/// Where pins go unless told otherwise.
pub const PIN_DIR_DEFAULT: &str = "/sys/fs/bpf/flowlog";
/// `BPF_FS_MAGIC` of `include/uapi/linux/magic.h`.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
/// Files that hold hooks begin with this; maps never do.
const LINK: &str = "link-";
/// Where other people's XDP programs are that ours run.
const WRAPS: &str = "xdp";

#[derive(Debug)]
pub struct Pins {
    /// As it was named: for people.
    root: PathBuf,
    /// The same directory by the handle that we have locked: whatever is put in the place of its name, we stay in it.
    handle: PathBuf,
    set: PathBuf,
    adopted: bool,
    _lock: fs::File,
}

/// Whether a directory is on a bpf file system.
#[must_use]
pub(crate) fn is_bpffs(dir: &Path) -> bool {
    rustix::fs::statfs(dir).is_ok_and(|s| s.f_type == BPF_FS_MAGIC)
}

/// What a pinned set was made for.
pub struct MadeFor {
    /// Sizes that its maps were made with.
    pub sizes: Sizes,
    /// Inode of the network namespace that it captures in.
    pub netns_inum: u32,
}

/// What the set of pins below `root` was made for, if there is one.
///
/// # Errors
/// If it is not a set of this ABI.
pub fn made_for(root: &Path) -> Result<Option<MadeFor>, KernelError> {
    let set = root.join(set_name());
    if !set.exists() {
        return Ok(None);
    }
    let entries = |name: &str| {
        let path = set.join(name);
        let info = MapInfo::from_pin(&path);
        info.map(|i| i.max_entries()).map_err(|e| KernelError::from_chain(format!("read `{}`", path.display()), &e))
    };
    let setup = read_setup(&set.join("SETUP"))?;
    let interfaces_max = u16::try_from(entries("WATCHED")?.saturating_sub(1)).unwrap_or(u16::MAX);
    let Setup { passed_slots, refused_slots, netns_inum, .. } = setup;
    let sizes = Sizes { passed_slots, refused_slots, ring_bytes: entries("RING")?, interfaces_max };
    Ok(Some(MadeFor { sizes, netns_inum }))
}

/// What a pinned set of maps was made for.
pub(super) fn read_setup(path: &Path) -> Result<Setup, KernelError> {
    let refused =
        |e: &(dyn std::error::Error + 'static)| KernelError::from_chain(format!("read `{}`", path.display()), e);
    let data = MapData::from_pin(path).map_err(|e| refused(&e))?;
    let map: Array<_, SetupPod> = Map::Array(data).try_into().map_err(|e: MapError| refused(&e))?;
    Ok(map.get(&0, 0).map_err(|e| refused(&e))?.0)
}

/// Names of all pinned maps.
pub(super) fn map_names() -> impl Iterator<Item = &'static str> {
    Sizes::default().maps(CpuCount::without_gaps(1)).into_iter().map(|s| s.name)
}

fn failed(action: impl Into<String>, problem: &dyn std::fmt::Display) -> KernelError {
    KernelError::Refused { action: action.into(), problem: problem.to_string() }
}

/// Entries of a directory by name; none if there is no such directory.
fn list(dir: &Path) -> Result<Vec<String>, KernelError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(format!("list `{}`", dir.display()), &e)),
    };
    let mut names: Vec<String> = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

fn make_dir(path: &Path) -> Result<(), KernelError> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            Err(failed(format!("make the pin directory `{}`", path.display()), &e))
        }
        _ => Ok(()),
    }
}

/// Whether a capture can be pinned there at all.
///
/// # Errors
/// If it is on no bpf file system.
pub fn ensure_pinnable(root: &Path) -> Result<(), KernelError> {
    let parent = root.parent().unwrap_or(Path::new("/"));
    if is_bpffs(root) || is_bpffs(parent) {
        return Ok(());
    }
    let rule = format!(
        "`{}` is no bpf file system; mount one (mount -t bpf bpf /sys/fs/bpf), name another with `--pin-dir`, \
         or capture with `--no-pin` only as long as the agent runs",
        parent.display()
    );
    Err(InvalidField::new("pin_dir", root.display().to_string(), rule).into())
}

/// Only sets of ours have a place here, and only one of this ABI can be used.
fn refuse_strangers(root: &Path, dir: &Path) -> Result<(), KernelError> {
    let known = [set_name(), format!("{}-new", set_name()), WRAPS.to_owned()];
    if let Some(name) = list(dir)?.into_iter().find(|n| !known.contains(n)) {
        let path = root.join(&name);
        let version = name.strip_prefix('v').and_then(|v| v.trim_end_matches("-new").parse::<u32>().ok());
        let problem = match version {
            Some(v) => format!(
                "it belongs to flowlog ABI {v}, this is ABI {ABI_VERSION}; run `flowlog detach` of the version \
                 that made it: that delivers what it holds and removes it"
            ),
            None => "it is not flowlog's; move it away or choose another `--pin-dir`".to_owned(),
        };
        return Err(failed(format!("use the pin `{}`", path.display()), &problem));
    }
    Ok(())
}

/// A set is gone on with if it has every map, each of the type and sizes that these are.
fn check_maps(root: &Path, set: &Path, sizes: Sizes) -> Result<(), KernelError> {
    let refuse = |name: &str, problem: String| {
        let old = key_of(name).map_or_else(|| "the old `[kernel]` sizes".to_owned(), |key| format!("the old `{key}`"));
        Err(failed(
            format!("go on with the pinned map `{}`", root.join(set_name()).join(name).display()),
            &format!(
                "{problem}; put {old} back, or run `flowlog detach` first: that delivers what the maps hold and removes them"
            ),
        ))
    };
    let linked = |path: &Path| path.symlink_metadata().is_ok_and(|m| m.is_symlink());
    if linked(set) {
        return refuse("", "it is a symbolic link".to_owned());
    }
    let names = list(set)?;
    if let Some(name) = names.iter().find(|n| linked(&set.join(n))) {
        return refuse(name, "it is a symbolic link".to_owned());
    }
    let maps = sizes.maps(CpuCount::here()?);
    if let Some(name) = names.iter().find(|n| !n.starts_with(LINK) && !maps.iter().any(|s| s.name == *n)) {
        return refuse(name, "it is not one of flowlog's".to_owned());
    }
    for MapSpec { name, kind, value, entries } in maps {
        let info = match MapInfo::from_pin(set.join(name)) {
            Ok(info) => info,
            Err(e) => return refuse(name, format!("it is no map, or missing ({e})")),
        };
        let has = (info.map_type().ok(), info.value_size() as usize, info.max_entries());
        if has != (Some(kind), value, entries) {
            let (found, size, count) = has;
            let found = found.map_or_else(|| "map of a type unknown here".to_owned(), |kind| format!("{kind:?}"));
            return refuse(
                name,
                format!(
                    "it is a {found} of {count} x {size} bytes, and this configuration needs a {kind:?} of \
                     {entries} x {value} bytes"
                ),
            );
        }
    }
    Ok(())
}

/// Whether an agent with these sizes can go on with what is pinned below `root`, if anything is. Changes nothing.
///
/// # Errors
/// As [`Pins::open`].
pub fn fits(root: &Path, sizes: Sizes) -> Result<(), KernelError> {
    refuse_strangers(root, root)?;
    let set = root.join(set_name());
    if set.exists() { check_maps(root, &set, sizes) } else { Ok(()) }
}

impl Pins {
    /// Makes and locks the directory, and looks whether there is a set to go on with.
    ///
    /// # Errors
    /// If it is not on a bpf file system, another agent has it, or what is in it is not ours to use.
    pub fn open(root: &Path, sizes: Sizes) -> Result<Self, KernelError> {
        ensure_pinnable(root)?;
        let shown = root.display();
        make_dir(root)?;
        // The directory could be a link to somebody else's, or writable by others.
        lock::private_dir(root).map_err(|e| failed(format!("use the pin directory `{shown}`"), &e))?;
        let lock = lock::take(root).map_err(|source| {
            let action = format!("lock the pin directory `{shown}`");
            match source.kind() {
                io::ErrorKind::ResourceBusy => KernelError::InUse { action, source },
                _ => failed(action, &source),
            }
        })?;
        let handle = PathBuf::from(format!("/proc/self/fd/{}", lock.as_raw_fd()));
        let set = handle.join(set_name());
        let mut pins = Self { root: root.to_owned(), handle, set, adopted: false, _lock: lock };
        refuse_strangers(root, &pins.handle)?;
        Self::remove_set(&pins.unfinished())?;
        pins.adopted = pins.set.exists();
        if pins.adopted {
            check_maps(root, &pins.set, sizes)?;
        }
        Ok(pins)
    }

    /// Whether there was a set to go on with.
    #[must_use]
    pub(crate) fn adopted(&self) -> bool {
        self.adopted
    }

    fn unfinished(&self) -> PathBuf {
        self.handle.join(format!("{}-new", set_name()))
    }

    /// Where maps are pinned, or will be until [`complete`](Self::complete).
    pub(super) fn maps_dir(&self) -> Result<PathBuf, KernelError> {
        if self.adopted {
            return Ok(self.set.clone());
        }
        make_dir(&self.unfinished())?;
        Ok(self.unfinished())
    }

    /// A new set has all its maps: from now on it will be taken over.
    pub(super) fn complete(&mut self) -> Result<(), KernelError> {
        if !self.adopted {
            fs::rename(self.unfinished(), &self.set).map_err(|e| failed("rename the new set of pins", &e))?;
            self.adopted = true;
        }
        Ok(())
    }

    /// Where other people's XDP programs are that ours run.
    pub(super) fn wraps_dir(&self) -> PathBuf {
        self.handle.join(WRAPS)
    }

    /// Path of a map's pin in a set that was found.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.set.join(name)
    }

    #[must_use]
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Path of a hook's pin.
    pub(super) fn link(&self, hook: &str) -> PathBuf {
        self.set.join(format!("{LINK}{hook}"))
    }

    /// All pinned hooks, without the prefix of their names.
    pub(super) fn links(&self) -> Result<Vec<String>, KernelError> {
        Ok(list(&self.set)?.into_iter().filter_map(|n| n.strip_prefix(LINK).map(str::to_owned)).collect())
    }

    /// Removes everything of ours: whatever nobody else holds ends with it.
    pub(super) fn remove_all(&self) -> Result<(), KernelError> {
        Self::remove_set(&self.set)?;
        // What still runs an owner's program stays.
        let _ = fs::remove_dir(self.wraps_dir());
        // Somebody may have made it for us.
        let _ = fs::remove_dir(&self.root);
        Ok(())
    }

    fn remove_set(set: &Path) -> Result<(), KernelError> {
        let names = list(set)?;
        if let Some(strange) = names.iter().find(|n| !n.starts_with(LINK) && !map_names().any(|m| m == *n)) {
            let path = set.join(strange);
            return Err(failed(
                format!("remove the pins in `{}`", set.display()),
                &format!("`{}` is not flowlog's", path.display()),
            ));
        }
        // Hooks first: a program must not outlive the maps it is found by.
        for name in names.iter().filter(|n| n.starts_with(LINK)).chain(names.iter().filter(|n| !n.starts_with(LINK))) {
            remove(&set.join(name))?;
        }
        if set.exists() { fs::remove_dir(set).map_err(|e| failed("remove the pin directory", &e)) } else { Ok(()) }
    }
}

/// Removes one pin; that it is gone already is fine.
pub(super) fn remove(path: &Path) -> Result<(), KernelError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(failed(format!("remove the pin `{}`", path.display()), &e))
        }
        _ => Ok(()),
    }
}

fn set_name() -> String {
    format!("v{ABI_VERSION}")
}
