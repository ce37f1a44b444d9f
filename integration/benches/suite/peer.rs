//! Somebody else's compiled program beside ours: its maps as large as its own agent makes them, and what it did count.
//!
//! A table that is full refuses or forgets flows, which is quick. So a peer that is measured with the sizes in its object may look
//! cheaper than it is: its agent resizes maps before it loads them, and so does `--map`. Whether it was enough, `--counted` says.
#![allow(unsafe_code, reason = "reads maps of any layout by `bpf(2)`, which aya reads as types that are known")]

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    path::PathBuf,
    str::FromStr,
};

use anyhow::{Context as _, ensure};
use aya::{
    Ebpf,
    maps::{Map, MapInfo, MapType},
};

/// Commands of `bpf(2)` (`enum bpf_cmd`).
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;

/// A compiled object, and what its own agent does with it.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Peer {
    /// Anybody's compiled TC or XDP object, to be measured in the same rounds
    #[arg(long, requires = "program")]
    pub object: Option<PathBuf>,
    /// Program in that object
    #[arg(long, requires = "object")]
    pub program: Option<String>,
    /// Entries of a map of that object, as its own agent would make it; may be repeated
    #[arg(long = "map", value_name = "NAME=ENTRIES", requires = "object")]
    pub maps: Vec<Entries>,
    /// Where that program counts packets: a map, the counter's place in its values, and its bytes (4 or 8). Says what share of
    /// the packets is there
    #[arg(long, value_name = "MAP=OFFSET:BYTES", requires = "object")]
    pub counted: Option<Counter>,
}

/// `--map`.
#[derive(Clone, Debug)]
pub(crate) struct Entries {
    pub map: String,
    pub entries: u32,
}

impl FromStr for Entries {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let wrong = || format!("`{word}` is not NAME=ENTRIES, as in `flows=1000000`");
        let (map, entries) = word.split_once('=').ok_or_else(wrong)?;
        Ok(Self { map: map.to_owned(), entries: entries.parse().ok().ok_or_else(wrong)? })
    }
}

/// `--counted`.
#[derive(Clone, Debug)]
pub(crate) struct Counter {
    map: String,
    offset: usize,
    bytes: usize,
}

impl FromStr for Counter {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let wrong = || format!("`{word}` is not MAP=OFFSET:BYTES with 4 or 8 bytes, as in `flows=8:4`");
        let (map, place) = word.split_once('=').ok_or_else(wrong)?;
        let (offset, bytes) = place.split_once(':').ok_or_else(wrong)?;
        let number = |n: &str| n.parse::<usize>().ok().ok_or_else(wrong);
        let counter = Self { map: map.to_owned(), offset: number(offset)?, bytes: number(bytes)? };
        if matches!(counter.bytes, 4 | 8) { Ok(counter) } else { Err(wrong()) }
    }
}

impl Counter {
    /// The map it is in: by what the object calls it, of which the kernel keeps the first letters only.
    fn info(&self, object: &Ebpf) -> anyhow::Result<MapInfo> {
        let (Map::HashMap(map)
        | Map::LruHashMap(map)
        | Map::PerCpuHashMap(map)
        | Map::PerCpuLruHashMap(map)
        | Map::Array(map)
        | Map::PerCpuArray(map)) = object.map(&self.map).with_context(|| format!("no map `{}`", self.map))?
        else {
            anyhow::bail!("map `{}` is neither a hash table nor an array", self.map)
        };
        Ok(map.info()?)
    }

    /// The sum of the counter over all values of its map, of all CPUs.
    pub(crate) fn sum(&self, object: &Ebpf) -> anyhow::Result<u64> {
        let info = self.info(object)?;
        let fd = info.fd()?;
        let one = info.value_size() as usize;
        ensure!(self.offset + self.bytes <= one, "values of map `{}` have {one} bytes", self.map);
        let per_cpu = matches!(info.map_type()?, MapType::PerCpuHash | MapType::LruPerCpuHash | MapType::PerCpuArray);
        let stride = one.next_multiple_of(8);
        let cpus = if per_cpu { possible_cpus()? } else { 1 };
        let mut value = vec![0u8; stride * cpus];
        let mut sum = 0u64;
        let mut key = None;
        while let Some(next) = next_key(fd.as_fd(), key.as_deref(), info.key_size() as usize)? {
            if look_up(fd.as_fd(), &next, &mut value)? {
                for of_cpu in value.chunks(stride) {
                    let mut word = [0u8; 8];
                    word[..self.bytes].copy_from_slice(&of_cpu[self.offset..self.offset + self.bytes]);
                    sum += u64::from_ne_bytes(word);
                }
            }
            key = Some(next);
        }
        Ok(sum)
    }
}

/// CPUs that values of per-CPU maps have room for.
fn possible_cpus() -> anyhow::Result<usize> {
    let cpus = aya::util::nr_cpus().map_err(|(what, e)| anyhow::anyhow!("{what}: {e}"))?;
    Ok(usize::try_from(cpus.get())?)
}

/// Attributes of both commands: `union bpf_attr`, its part for map elements.
#[repr(C)]
struct Element {
    fd: u32,
    pad: u32,
    key: u64,
    /// Value, or next key.
    value: u64,
    flags: u64,
}

/// `false`: there is no such element, or none any more.
fn ask(command: libc::c_long, fd: BorrowedFd<'_>, key: Option<&[u8]>, answer: &mut [u8]) -> io::Result<bool> {
    let key = key.map_or(0, |key| key.as_ptr() as u64);
    let fd = u32::try_from(fd.as_raw_fd()).map_err(io::Error::other)?;
    let element = Element { fd, pad: 0, key, value: answer.as_mut_ptr() as u64, flags: 0 };
    // SAFETY: key and answer are as long as the map says, and outlive the call.
    let rc = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const element, size_of::<Element>()) };
    match rc {
        0 => Ok(true),
        _ if io::Error::last_os_error().kind() == io::ErrorKind::NotFound => Ok(false),
        _ => Err(io::Error::last_os_error()),
    }
}

fn next_key(fd: BorrowedFd<'_>, key: Option<&[u8]>, bytes: usize) -> io::Result<Option<Vec<u8>>> {
    let mut next = vec![0; bytes];
    Ok(ask(BPF_MAP_GET_NEXT_KEY, fd, key, &mut next)?.then_some(next))
}

fn look_up(fd: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    ask(BPF_MAP_LOOKUP_ELEM, fd, Some(key), value)
}
