//! The maps of an agent that captures: whoever traces reads its notes, and what it counts.
//!
//! They are found through the programs that use them, pinned or not, so that it does not matter how the agent was started. The loader takes
//! maps from files only: they are pinned on a bpf file system of our own that is mounted nowhere, and is gone with its descriptor.

use std::{
    collections::BTreeMap,
    os::fd::{AsRawFd as _, OwnedFd},
    path::PathBuf,
};

use aya::{
    maps::{Array, HashMap, Map, MapData, MapInfo},
    programs::loaded_programs,
};
use flowlog_ebpf::abi::{Cpu, Range};
use flowlog_model::interface::IfKey;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// What the names of our programs begin with.
const OWN: &str = "flowlog_";
/// The map that every program of an agent's shares with its others: the notes.
const NOTES: &str = "CPU";

/// `abi::Iface`, `abi::Watched`: four words each.
type Words = [u32; 4];

/// See the module's head.
#[derive(Default)]
pub(super) struct Borrowed {
    /// Agents that capture on this machine, whichever is meant.
    agents: usize,
    /// Ids by name.
    maps: BTreeMap<String, u32>,
    ifaces: Option<Array<MapData, Words>>,
    watched: Option<Array<MapData, Words>>,
    bases: Option<HashMap<MapData, [u32; 2], u32>>,
    reasons: Option<Array<MapData, u8>>,
    /// The file system that they are pinned on while they are loaded.
    files: Option<OwnedFd>,
}

/// What an agent wants of an interface: `WANT_*`, and the id it knows it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) id: u16,
    pub(super) flags: u16,
}

impl Borrowed {
    /// Those of the agent one of whose programs has one of these ids; else those of the only one that there is.
    pub(super) fn find(hooks: &[u32]) -> Self {
        let mut agents: BTreeMap<u32, (bool, BTreeMap<String, u32>)> = BTreeMap::new();
        for program in loaded_programs().filter_map(Result::ok) {
            if !program.name_as_str().is_some_and(|name| name.starts_with(OWN)) {
                continue;
            }
            let ids = program.map_ids().ok().flatten().unwrap_or_default();
            let infos = ids.into_iter().filter_map(|id| MapInfo::from_id(id).ok());
            let maps: BTreeMap<String, u32> =
                infos.filter_map(|m| Some((m.name_as_str()?.to_owned(), m.id()))).collect();
            let Some(notes) = maps.get(NOTES) else { continue };
            let (is_here, all) = agents.entry(*notes).or_default();
            *is_here |= hooks.contains(&program.id());
            all.extend(maps);
        }
        let count = agents.len();
        let found = agents.into_values().find(|(is_here, _)| *is_here || count == 1);
        let borrowed = found.map(|(_, maps)| Self::open(maps)).unwrap_or_default();
        Self { agents: count, ..borrowed }
    }

    fn open(maps: BTreeMap<String, u32>) -> Self {
        let data = |name: &str| MapData::from_id(*maps.get(name)?).ok();
        // Another version's are none of ours.
        let is_ours = |notes: MapData| notes.info().is_ok_and(|info| info.value_size() as usize == size_of::<Cpu>());
        if !data(NOTES).is_some_and(is_ours) {
            return Self::default();
        }
        let array = |name: &str| data(name).map(Map::Array);
        Self {
            agents: 1,
            ifaces: array("IFACES").and_then(|map| map.try_into().ok()),
            watched: array("WATCHED").and_then(|map| map.try_into().ok()),
            bases: data("BASES").map(Map::HashMap).and_then(|map| map.try_into().ok()),
            reasons: array("REASONS").and_then(|map| map.try_into().ok()),
            maps,
            files: None,
        }
    }

    /// Whether there is an agent, and it is known which.
    pub(super) fn is_there(&self) -> bool {
        !self.maps.is_empty()
    }

    /// Why there is none.
    pub(super) fn absence(&self) -> &'static str {
        match self.agents {
            0 => "no agent captures",
            1 => "the agent is of another version",
            _ => "several agents capture, none of them here",
        }
    }

    /// A file that stands for the notes, for the loader; `None`: there is no agent.
    pub(super) fn notes_file(&mut self) -> Option<std::io::Result<PathBuf>> {
        let id = *self.maps.get(NOTES)?;
        Some(self.pin(id))
    }

    fn pin(&mut self, id: u32) -> std::io::Result<PathBuf> {
        let context = fsopen("bpf", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&context)?;
        let files = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{NOTES}", files.as_raw_fd()));
        let map = MapData::from_id(id).map_err(std::io::Error::other)?;
        map.pin(&path).map_err(std::io::Error::other)?;
        self.files = Some(files);
        Ok(path)
    }

    /// The programs have them now.
    pub(super) fn forget_files(&mut self) {
        self.files = None;
    }

    /// What the agent wants of an interface; `None`: it does not watch it.
    pub(super) fn wanted(&self, of: IfKey) -> Option<Wanted> {
        let Range { netns_inum, number } = Range::of(of.netns_inum, of.index);
        let base = self.bases.as_ref().and_then(|bases| bases.get(&[netns_inum, number], 0).ok());
        let spot = base.map_or(of.index, |base| of.index.wrapping_add(base));
        let [first, ..] = self.ifaces.as_ref()?.get(&spot, 0).ok()?;
        let (id, flags) = (first & 0xffff, first >> 16);
        // Without a base it may be one of the agent's own namespace, which ours need not be.
        let [_, netns_inum, ..] = self.watched.as_ref()?.get(&id, 0).ok()?;
        let is_it = id != 0 && netns_inum == of.netns_inum;
        is_it.then_some(Wanted { id: u16::try_from(id).ok()?, flags: u16::try_from(flags).ok()? })
    }

    /// What kind of drop the reason at this index is to the agent.
    pub(super) fn action(&self, index: u32) -> Option<u8> {
        self.reasons.as_ref()?.get(&index, 0).ok()
    }
}
