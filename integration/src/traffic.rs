//! Packets: byte-exact from raw sockets, or from plain ones. Call from inside a namespace ([`crate::net::Netns::run`]).
#![allow(unsafe_code, reason = "AF_PACKET sockets and sendmmsg have no safe wrapper")]
#![allow(clippy::cast_possible_truncation, reason = "sizes of C structs")]

use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::ensure;

/// Frames handed to the kernel in one call.
const BATCH: usize = 64;

/// Ones' complement sum of RFC 1071.
#[must_use]
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let words =
        parts.iter().flat_map(|p| p.chunks(2)).map(|c| u32::from(u16::from_be_bytes([c[0], *c.get(1).unwrap_or(&0)])));
    let sum = words.sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(0xffff)
}

/// An Ethernet frame with an IPv4 UDP packet of `payload` zero bytes.
#[must_use]
pub fn udp4(macs: ([u8; 6], [u8; 6]), from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: usize) -> Vec<u8> {
    let total = u16::try_from(28 + payload).expect("fits");
    let mut f = Vec::with_capacity(42 + payload);
    f.extend_from_slice(&macs.1);
    f.extend_from_slice(&macs.0);
    f.extend_from_slice(&[8, 0, 0x45, 0]);
    f.extend_from_slice(&total.to_be_bytes());
    f.extend_from_slice(&[0, 0, 0x40, 0, 64, 17, 0, 0]);
    f.extend_from_slice(&from.0.octets());
    f.extend_from_slice(&to.0.octets());
    let sum = checksum(&[&f[14..34]]);
    f[24..26].copy_from_slice(&sum.to_be_bytes());
    f.extend_from_slice(&from.1.to_be_bytes());
    f.extend_from_slice(&to.1.to_be_bytes());
    f.extend_from_slice(&(total - 20).to_be_bytes());
    f.extend_from_slice(&[0, 0]); // no checksum: allowed for IPv4 (RFC 768)
    f.resize(42 + payload, 0);
    f
}

/// The same with a TCP segment, whose checksum is right.
#[must_use]
pub fn tcp4(
    macs: ([u8; 6], [u8; 6]),
    from: (Ipv4Addr, u16),
    to: (Ipv4Addr, u16),
    flags: u8,
    payload: usize,
) -> Vec<u8> {
    let mut f = udp4(macs, from, to, 12 + payload);
    f[23] = 6;
    f[24..26].fill(0);
    let sum = checksum(&[&f[14..34]]);
    f[24..26].copy_from_slice(&sum.to_be_bytes());
    f[38..46].fill(0);
    f[46..50].copy_from_slice(&[0x50, flags, 1, 0]);
    let length = u16::try_from(20 + payload).expect("fits").to_be_bytes();
    let sum = checksum(&[&f[26..34], &[0, 6], &length, &f[34..]]);
    f[50..52].copy_from_slice(&sum.to_be_bytes());
    f
}

/// A raw socket on an interface.
pub struct Raw {
    fd: OwnedFd,
    index: i32,
}

impl Raw {
    /// Opens one; needs root.
    ///
    /// # Errors
    /// If the interface does not exist.
    pub fn open(interface: &str) -> io::Result<Self> {
        // SAFETY: no pointers; the descriptor is checked and owned right away.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let name = std::ffi::CString::new(interface)?;
        // SAFETY: a nul-terminated string.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { fd, index: i32::try_from(index).unwrap_or(0) })
    }

    /// Sends all frames, in order; a full queue is waited for.
    ///
    /// # Errors
    /// Anything else the kernel says.
    pub fn send(&self, frames: &[Vec<u8>]) -> io::Result<()> {
        // SAFETY: all zero is a valid address.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = self.index;
        for batch in frames.chunks(BATCH) {
            let mut parts: Vec<libc::iovec> = batch
                .iter()
                .map(|f| libc::iovec { iov_base: f.as_ptr().cast_mut().cast(), iov_len: f.len() })
                .collect();
            let mut messages: Vec<libc::mmsghdr> = parts
                .iter_mut()
                .map(|part| {
                    // SAFETY: all zero is a valid message; its pointers outlive the call below.
                    let mut m: libc::mmsghdr = unsafe { std::mem::zeroed() };
                    m.msg_hdr.msg_name = (&raw mut address).cast();
                    m.msg_hdr.msg_namelen = size_of::<libc::sockaddr_ll>() as u32;
                    m.msg_hdr.msg_iov = part;
                    m.msg_hdr.msg_iovlen = 1;
                    m
                })
                .collect();
            let mut sent = 0;
            while sent < messages.len() {
                let rest = &mut messages[sent..];
                // SAFETY: `rest` and everything it points to lives until the call returns.
                let n = unsafe { libc::sendmmsg(self.fd.as_raw_fd(), rest.as_mut_ptr(), rest.len() as u32, 0) };
                match usize::try_from(n) {
                    Ok(n) => sent += n,
                    Err(_) if io::Error::last_os_error().raw_os_error() == Some(libc::ENOBUFS) => {
                        std::thread::yield_now();
                    }
                    Err(_) => return Err(io::Error::last_os_error()),
                }
            }
        }
        Ok(())
    }
}

impl Raw {
    /// Sends a frame larger than a page so that only its first `linear` bytes lie in the buffer's linear part.
    ///
    /// # Errors
    /// Anything the kernel says.
    pub fn send_non_linear(&self, frame: &[u8], linear: u16) -> io::Result<()> {
        let on: libc::c_int = 1;
        let fd = self.fd.as_raw_fd();
        // SAFETY: the option value is an int that lives until the call returns.
        let rc = unsafe {
            libc::setsockopt(
                fd,
                libc::SOL_PACKET,
                libc::PACKET_VNET_HDR,
                (&raw const on).cast(),
                size_of_val(&on) as u32,
            )
        };
        if rc != 0 {
            return Err(io::Error::last_os_error());
        }
        // struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset.
        let mut message = vec![0, 0];
        message.extend_from_slice(&linear.to_ne_bytes());
        message.extend_from_slice(&[0; 6]);
        message.extend_from_slice(frame);
        // SAFETY: all zero is a valid address.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = self.index;
        address.sll_protocol = 0x0008; // ETH_P_IP, network order
        // SAFETY: message and address live until the call returns.
        let n = unsafe {
            libc::sendto(
                fd,
                message.as_ptr().cast(),
                message.len(),
                0,
                (&raw const address).cast(),
                size_of_val(&address) as u32,
            )
        };
        if n < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Binds the calling thread to a CPU.
///
/// # Panics
/// If there is no such CPU.
pub fn pin_to_cpu(cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).expect("CPU");
}

/// Sends `count` UDP datagrams of `payload` bytes; returns the source port. Refusals by a local firewall are fine.
///
/// # Errors
/// If there is no route.
pub fn udp(to: &str, count: usize, payload: usize) -> anyhow::Result<u16> {
    let socket = UdpSocket::bind(if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" })?;
    for _ in 0..count {
        match socket.send_to(&vec![0; payload], to) {
            Ok(n) => ensure!(n == payload),
            // EPERM: dropped by the output hook; ECONNREFUSED: an answer to an earlier one.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EPERM | libc::ECONNREFUSED)) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(socket.local_addr()?.port())
}
