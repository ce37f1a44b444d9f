//! What an interface's driver counts, as `ethtool -S` shows it: a witness of packets that no hook sees.
#![allow(unsafe_code, reason = "an ioctl that takes a pointer")]

use std::{collections::BTreeMap, io, os::fd::AsRawFd as _};

use anyhow::ensure;

use crate::net::Netns;

const SIOCETHTOOL: u64 = 0x8946;
/// Commands and the set of strings: `include/uapi/linux/ethtool.h`.
const GET_STRINGS: u32 = 0x1b;
const GET_STATISTICS: u32 = 0x1d;
const SET_INFO: u32 = 0x37;
const STATISTICS: u32 = 1;
const STRING_BYTES: usize = 32;
/// More counters than any of the tests' drivers has.
const COUNTERS_MAX: usize = 512;

#[repr(C)]
struct Request {
    name: [u8; 16],
    data: *mut u64,
    spare: [u64; 2],
}

fn ask(socket: &std::net::UdpSocket, interface: &str, data: &mut [u64]) -> io::Result<()> {
    let mut name = [0; 16];
    name.iter_mut().take(15).zip(interface.bytes()).for_each(|(to, from)| *to = from);
    let mut request = Request { name, data: data.as_mut_ptr(), spare: [0; 2] };
    // SAFETY: `struct ifreq` with room for what the commands write: as many counters as the array has.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Two numbers of four bytes in one word, as they follow each other in memory.
fn pair(first: u32, second: u32) -> u64 {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first.to_ne_bytes());
    bytes[4..].copy_from_slice(&second.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

/// All counters of an interface of a namespace, by name.
///
/// # Errors
/// What the kernel says.
pub fn statistics(ns: &Netns, interface: &str) -> anyhow::Result<BTreeMap<String, u64>> {
    ns.run(|| {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").or_else(|_| std::net::UdpSocket::bind("0.0.0.0:0"))?;
        // `ethtool_sset_info`: command, reserved; mask; the counts.
        let mut info = [pair(SET_INFO, 0), 1 << STATISTICS, 0];
        ask(&socket, interface, &mut info)?;
        let count = u32::from_ne_bytes(info[2].to_ne_bytes()[..4].try_into()?);
        ensure!(count as usize <= COUNTERS_MAX, "{count} counters");
        // `ethtool_gstrings`: command, set, length; names. Then `ethtool_stats`: command, length; numbers.
        let mut names = vec![0u64; 2 + COUNTERS_MAX * STRING_BYTES / 8];
        names[0] = pair(GET_STRINGS, STATISTICS);
        names[1] = pair(count, 0);
        ask(&socket, interface, &mut names)?;
        let mut numbers = vec![0u64; 1 + COUNTERS_MAX];
        numbers[0] = pair(GET_STATISTICS, count);
        ask(&socket, interface, &mut numbers)?;
        let bytes: Vec<u8> = names.iter().flat_map(|word| word.to_ne_bytes()).skip(12).collect();
        let name = |at: usize| {
            let text = &bytes[at * STRING_BYTES..(at + 1) * STRING_BYTES];
            String::from_utf8_lossy(text).trim_end_matches('\0').to_owned()
        };
        Ok((0..count as usize).map(|at| (name(at), numbers[1 + at])).collect())
    })
}

/// Packets that XDP programs dropped or aborted on a veth, and that they sent back or redirected.
///
/// # Errors
/// What the kernel says.
pub fn xdp_of_veth(ns: &Netns, interface: &str) -> anyhow::Result<(u64, u64)> {
    let all = statistics(ns, interface)?;
    let sum =
        |ends: &[&str]| all.iter().filter(|(name, _)| ends.iter().any(|end| name.ends_with(end))).map(|(_, n)| n).sum();
    Ok((sum(&["_xdp_drops", "_xdp_tx_errors"]), sum(&["_xdp_tx", "_xdp_redirect"])))
}
