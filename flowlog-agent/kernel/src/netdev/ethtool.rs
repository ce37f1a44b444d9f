//! A driver's own counters: `ETHTOOL_GDRVINFO`, `ETHTOOL_GSTRINGS`, `ETHTOOL_GSTATS` of `include/uapi/linux/ethtool.h`, by ioctl; and
//! whether it merges packets (`ETHTOOL_GGRO`).
//!
//! The newer interface, ethtool netlink, has the names of a driver's counters and not their values
//! (`Documentation/networking/ethtool-netlink.rst`), and the crates there are speak only that.
#![allow(unsafe_code, reason = "an ioctl that hands the kernel a pointer, and memory of our own for its answer")]

use std::{ffi::c_void, io, ptr, slice};

use rustix::{
    ioctl::{Opcode, Updater, ioctl},
    net::{AddressFamily, SocketFlags, SocketType},
};

const SIOCETHTOOL: Opcode = 0x8946;
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSTATS: u32 = 0x1d;
const ETHTOOL_GGRO: u32 = 0x2b;
/// The set of strings that are names of counters.
const ETH_SS_STATS: u32 = 1;
/// Bytes of a name (`ETH_GSTRING_LEN`), and of each text of `struct ethtool_drvinfo`.
const TEXT_BYTES: usize = 32;
/// Where `driver` and `n_stats` are in `struct ethtool_drvinfo`.
const DRIVER_AT: usize = 4;
const N_STATS_AT: usize = 180;
/// Bytes in front of the names, and in front of the values.
const STRINGS_AT: usize = 12;
const STATS_AT: usize = 8;
/// Bytes of an interface's name with the zero behind it (`IFNAMSIZ`).
const NAME_BYTES: usize = 16;
/// Room for an answer. Kernels before 6.19 write as many names and values as there are by then, whatever room they are told
/// of, and an interface may get more queues at any time. These are names for 524,288 counters: 8 for each of 65,535 queues,
/// more than any driver has. Memory that is not written to costs nothing.
const ROOM_BYTES: usize = 16 << 20;
/// How often an interface is asked whose counters change in number while it is.
const TRIES: usize = 3;

/// `struct ifreq` as this ioctl uses it.
#[repr(C)]
struct Request {
    name: [u8; NAME_BYTES],
    data: *mut c_void,
    rest: [u64; 2],
}

/// Memory for an answer, given back when it is dropped. Not from the allocator, which would keep it.
struct Room(*mut c_void);

impl Room {
    fn new() -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: no address is asked for, so nothing is mapped over.
        let room = unsafe { libc::mmap(ptr::null_mut(), ROOM_BYTES, access, flags, -1, 0) };
        if room == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(room))
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping has this length, is zeroed where nobody has written, and is written to only by `ask`, which
        // borrows it mutably.
        unsafe { slice::from_raw_parts(self.0.cast::<u8>(), ROOM_BYTES) }
    }

    fn word(&self, at: usize) -> u32 {
        self.bytes().get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u32::from_ne_bytes(*b))
    }

    fn text(&self, at: usize) -> String {
        let text = self.bytes().get(at..at + TEXT_BYTES).unwrap_or_default();
        String::from_utf8_lossy(text.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
    }

    /// Asks with a command that begins with these words; the answer is in the same place.
    fn ask(&mut self, interface: &str, words: &[u32]) -> io::Result<()> {
        let mut name = [0; NAME_BYTES];
        let room = name.get_mut(..interface.len()).filter(|room| room.len() < NAME_BYTES);
        room.ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(interface.as_bytes());
        for (at, word) in words.iter().enumerate() {
            // SAFETY: the mapping is page-aligned and has room for the few words of a command.
            unsafe { self.0.cast::<u32>().add(at).write(*word) };
        }
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        let mut request = Request { name, data: self.0, rest: [0; 2] };
        // SAFETY: the request is what this ioctl takes, and what it points at has room for whatever the kernel answers.
        unsafe { ioctl(&socket, Updater::<SIOCETHTOOL, Request>::new(&mut request))? };
        Ok(())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, and nothing refers to it any more.
        unsafe { libc::munmap(self.0, ROOM_BYTES) };
    }
}

/// The counters of an interface's driver.
pub(super) struct Statistics {
    /// Name of the driver.
    pub driver: String,
    /// Its counters, by name.
    pub counters: Vec<(String, u64)>,
}

/// Asks an interface of the namespace we are in; counters only if its driver is `wanted`.
///
/// # Errors
/// If it is gone, or has none of this.
pub(super) fn statistics(interface: &str, wanted: impl Fn(&str) -> bool) -> io::Result<Statistics> {
    let mut room = Room::new()?;
    for _ in 0..TRIES {
        room.ask(interface, &[ETHTOOL_GDRVINFO])?;
        let driver = room.text(DRIVER_AT);
        let count = room.word(N_STATS_AT);
        let most = (ROOM_BYTES - STRINGS_AT) / TEXT_BYTES;
        let n = usize::try_from(count).unwrap_or(usize::MAX).min(most);
        if n == 0 || !wanted(&driver) {
            return Ok(Statistics { driver, counters: Vec::new() });
        }
        room.ask(interface, &[ETHTOOL_GSTRINGS, ETH_SS_STATS, count])?;
        let is_same = room.word(8) == count;
        let names: Vec<String> = (0..n).map(|i| room.text(STRINGS_AT + i * TEXT_BYTES)).collect();
        room.ask(interface, &[ETHTOOL_GSTATS, count])?;
        if is_same && room.word(4) == count {
            let (values, _) = room.bytes()[STATS_AT..].as_chunks::<8>();
            let values = values.iter().map(|b| u64::from_ne_bytes(*b));
            return Ok(Statistics { driver, counters: names.into_iter().zip(values).collect() });
        }
    }
    Err(io::Error::other("the number of its counters keeps changing"))
}

/// Whether packets that come in through an interface of the namespace we are in may be merged between XDP and TC, or will be when it has an
/// XDP program.
///
/// # Errors
/// If it is gone, or has none of this.
pub(crate) fn merges(interface: &str) -> io::Result<bool> {
    let mut room = Room::new()?;
    // One without a driver does not say.
    let turns_it_on = room.ask(interface, &[ETHTOOL_GDRVINFO]).is_ok() && room.text(DRIVER_AT) == "veth";
    room.ask(interface, &[ETHTOOL_GGRO])?;
    Ok(turns_it_on || room.word(4) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whether_an_interface_merges_packets_is_known_of_those_that_are_there() {
        assert!(merges("lo").is_ok());
        assert!(merges("no-such-if0").is_err());
    }

    #[test]
    fn an_interface_without_counters_has_none_and_one_that_is_not_there_is_an_error() {
        if let Ok(found) = statistics("lo", |_| true) {
            assert!(found.counters.is_empty());
        }
        assert!(statistics("no-such-if0", |_| true).is_err());
        assert!(statistics("a-name-that-is-too-long-for-any", |_| true).is_err());
    }
}
