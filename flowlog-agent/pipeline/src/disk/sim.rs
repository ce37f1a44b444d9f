//! A file system in memory, with everything a real one may do to those who trust it too much: a power cut forgets
//! names and bytes that were not synced, a disk fills up, a sync fails, the process dies between any two operations.

use std::{
    collections::BTreeMap,
    io::{self, Read},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{File, Filesystem, Item, Kind};

/// Unwinds a simulated process that is killed. Not a panic: nothing is printed.
#[derive(Debug)]
pub(crate) struct Killed;

/// Random numbers from a seed (`SplitMix64`).
#[derive(Clone, Debug)]
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to `n` - 1.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.number() % n.max(1)
    }

    /// True once in `n` times.
    pub(crate) fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// What happens to one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The process is killed before it.
    Kill,
    /// It fails with this error.
    Error(i32),
}

#[derive(Clone, Debug, Default)]
struct Inode {
    bytes: Vec<u8>,
    synced: usize,
    modified_ns: i64,
    /// A write or sync of it failed: later syncs do nothing (the kernel has forgotten the pages).
    poisoned: bool,
}

#[derive(Clone, Debug, Default)]
struct Dir {
    names: BTreeMap<String, usize>,
    durable: BTreeMap<String, usize>,
}

#[derive(Default)]
struct State {
    inodes: Vec<Inode>,
    dirs: BTreeMap<String, Dir>,
    ops: u64,
    writes: u64,
    /// By number of the operation, as `ops` counts them.
    faults: BTreeMap<u64, Fault>,
    /// Every write from this one on fails: the disk is full.
    full_from: Option<u64>,
    dead: bool,
    now_ns: i64,
}

/// See the module's head. Clones are the same disk.
#[derive(Clone, Default)]
pub(crate) struct SimDisk(Arc<Mutex<State>>);

struct SimFile {
    disk: SimDisk,
    inode: usize,
}

impl SimDisk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an operation; it may be the last one of the process, or fail.
    fn op(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.lock();
        state.ops += 1;
        let op = state.ops;
        let fault = state.faults.remove(&op);
        if state.dead || fault == Some(Fault::Kill) {
            state.dead = true;
            drop(state);
            std::panic::resume_unwind(Box::new(Killed));
        }
        match fault {
            Some(Fault::Error(errno)) => Err(io::Error::from_raw_os_error(errno)),
            _ => Ok(state),
        }
    }

    /// An operation of somebody else in the same process (kernel, store): it, too, may be the last one.
    pub(crate) fn step(&self) {
        // An error has no meaning here.
        drop(self.op());
    }

    #[must_use]
    pub(crate) fn ops(&self) -> u64 {
        self.lock().ops
    }

    #[must_use]
    pub(crate) fn writes(&self) -> u64 {
        self.lock().writes
    }

    /// Plans a fault for an operation.
    pub(crate) fn plan(&self, op: u64, fault: Fault) {
        self.lock().faults.insert(op, fault);
    }

    /// From this write on the disk is full; `None`: it has room again.
    pub(crate) fn fill_from(&self, write: Option<u64>) {
        self.lock().full_from = write;
    }

    /// Time for new files.
    pub(crate) fn set_now(&self, ns: i64) {
        self.lock().now_ns = ns;
    }

    /// Whether the process has been killed.
    #[must_use]
    pub(crate) fn is_dead(&self) -> bool {
        self.lock().dead
    }

    /// The next process starts.
    pub(crate) fn revive(&self) {
        let mut state = self.lock();
        state.dead = false;
        state.faults.clear();
    }

    /// The machine loses power: of what was not synced, some is there, some is not, and some is junk.
    pub(crate) fn power_cut(&self, random: &mut Random) {
        let mut state = self.lock();
        let State { inodes, dirs, .. } = &mut *state;
        for dir in dirs.values_mut() {
            // Names change one after the other; the disk has got somewhere in between.
            if random.once_in(2) {
                dir.names = dir.durable.clone();
            }
            dir.durable = dir.names.clone();
        }
        for inode in inodes {
            let unsynced = inode.bytes.len() - inode.synced;
            let kept = usize::try_from(random.below(unsynced as u64 + 1)).unwrap_or(0);
            inode.bytes.truncate(inode.synced + kept);
            // Length may have been written before the bytes: what is there is zeros, or whatever was there before.
            if kept > 0 && random.once_in(2) {
                let from = inode.bytes.len() - kept.min(64);
                let zeros = random.once_in(2);
                for byte in &mut inode.bytes[from..] {
                    *byte = if zeros { 0 } else { random.number().to_le_bytes()[0] };
                }
            }
            inode.synced = inode.bytes.len();
            inode.poisoned = false;
        }
    }
}

fn no_such() -> io::Error {
    io::Error::from(io::ErrorKind::NotFound)
}

impl File for SimFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.op()?;
        state.writes += 1;
        let full = state.full_from.is_some_and(|from| state.writes >= from);
        let inode = &mut state.inodes[self.inode];
        if full {
            // A part of it still fits.
            inode.bytes.extend_from_slice(&bytes[..bytes.len() / 2]);
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        inode.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = match self.disk.op() {
            Ok(state) => state,
            Err(e) => {
                self.disk.lock().inodes[self.inode].poisoned = true;
                return Err(e);
            }
        };
        let inode = &mut state.inodes[self.inode];
        if !inode.poisoned {
            inode.synced = inode.bytes.len();
        }
        Ok(())
    }
}

impl Filesystem for SimDisk {
    fn make_dir(&self, dir: &str) -> io::Result<()> {
        self.op()?.dirs.entry(dir.to_owned()).or_default();
        Ok(())
    }

    fn list(&self, dir: &str) -> io::Result<Vec<Item>> {
        let state = self.op()?;
        let here = state.dirs.get(dir).ok_or_else(no_such)?;
        let mut items: Vec<Item> = here
            .names
            .iter()
            .map(|(name, inode)| {
                let inode = &state.inodes[*inode];
                let bytes = inode.bytes.len() as u64;
                let modified_ns = inode.modified_ns;
                Item { name: name.clone(), kind: Kind::File, bytes, modified_ns }
            })
            .collect();
        let below =
            state.dirs.keys().filter_map(|d| d.strip_prefix(dir)?.strip_prefix('/')).filter(|d| !d.contains('/'));
        items.extend(below.map(|d| Item { name: d.to_owned(), kind: Kind::Directory, bytes: 0, modified_ns: 0 }));
        items.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(items)
    }

    fn create(&self, dir: &str, name: &str) -> io::Result<Box<dyn File>> {
        let mut state = self.op()?;
        let modified_ns = state.now_ns;
        let inode = state.inodes.len();
        state.inodes.push(Inode { modified_ns, ..Inode::default() });
        state.dirs.get_mut(dir).ok_or_else(no_such)?.names.insert(name.to_owned(), inode);
        Ok(Box::new(SimFile { disk: self.clone(), inode }))
    }

    fn open(&self, dir: &str, name: &str) -> io::Result<Box<dyn Read>> {
        let state = self.op()?;
        let inode = *state.dirs.get(dir).and_then(|d| d.names.get(name)).ok_or_else(no_such)?;
        Ok(Box::new(io::Cursor::new(state.inodes[inode].bytes.clone())))
    }

    fn rename(&self, from: (&str, &str), to: (&str, &str)) -> io::Result<()> {
        let mut state = self.op()?;
        let inode = state.dirs.get_mut(from.0).and_then(|d| d.names.remove(from.1)).ok_or_else(no_such)?;
        state.dirs.get_mut(to.0).ok_or_else(no_such)?.names.insert(to.1.to_owned(), inode);
        Ok(())
    }

    fn remove(&self, dir: &str, name: &str) -> io::Result<()> {
        self.op()?.dirs.get_mut(dir).and_then(|d| d.names.remove(name)).map(drop).ok_or_else(no_such)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let mut state = self.op()?;
        let here = state.dirs.get_mut(dir).ok_or_else(no_such)?;
        here.durable = here.names.clone();
        Ok(())
    }
}
