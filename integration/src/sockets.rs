//! Sockets that get in the way of verdicts: raw and multicast sockets whose own filter drops everything, packet
//! sockets, a ring of packets to send, and receive offload. Call from inside a namespace ([`crate::net::Netns::run`]).
#![allow(unsafe_code, reason = "none of this has a safe wrapper")]
#![allow(clippy::cast_possible_truncation, reason = "sizes of C structs")]

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::ensure;

/// `ETH_P_ALL`, in host order.
pub const EVERY_PROTOCOL: u16 = 3;
/// `ETH_P_IP`, in host order.
pub const IPV4: u16 = 0x0800;

fn socket(domain: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the descriptor is checked and owned right away.
    let fd = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set<T>(fd: &OwnedFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    // SAFETY: the value lives until the call returns, and its size is given.
    let rc = unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), size_of::<T>() as u32)
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives a socket a filter (`SO_ATTACH_FILTER`) that drops everything.
fn drop_all(fd: &OwnedFd) -> io::Result<()> {
    let mut code = [libc::sock_filter { code: 6, jt: 0, jf: 0, k: 0 }]; // ret #0
    let program = libc::sock_fprog { len: 1, filter: code.as_mut_ptr() };
    set(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

fn bind<T>(fd: &OwnedFd, address: &T) -> io::Result<()> {
    // SAFETY: the address lives until the call returns, and its size is given.
    let rc = unsafe { libc::bind(fd.as_raw_fd(), std::ptr::from_ref(address).cast(), size_of::<T>() as u32) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A raw ICMP socket that gets a copy of every ICMP packet and drops it in its own filter, as `ping` does with
/// what is for another `ping`.
///
/// # Errors
/// Without root.
pub fn filtered_icmp() -> io::Result<OwnedFd> {
    let fd = socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)?;
    drop_all(&fd)?;
    Ok(fd)
}

/// A UDP socket in a multicast group, whose own filter drops everything if `filtered`.
///
/// # Errors
/// If there is no multicast on the interface with `local`.
pub fn multicast(group: Ipv4Addr, local: Ipv4Addr, port: u16, filtered: bool) -> io::Result<OwnedFd> {
    let fd = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    set(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, &1_i32)?;
    // SAFETY: all zero is a valid address.
    let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    address.sin_family = libc::AF_INET as u16;
    address.sin_port = port.to_be();
    bind(&fd, &address)?;
    let of = |ip: Ipv4Addr| libc::in_addr { s_addr: u32::from(ip).to_be() };
    set(
        &fd,
        libc::IPPROTO_IP,
        libc::IP_ADD_MEMBERSHIP,
        &libc::ip_mreq { imr_multiaddr: of(group), imr_interface: of(local) },
    )?;
    if filtered {
        drop_all(&fd)?;
    }
    Ok(fd)
}

fn index(interface: &str) -> io::Result<i32> {
    let name = std::ffi::CString::new(interface)?;
    // SAFETY: a nul-terminated string.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index.cast_signed()),
    }
}

fn link_address(interface: Option<&str>, protocol: u16) -> io::Result<libc::sockaddr_ll> {
    // SAFETY: all zero is a valid address.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = interface.map_or(Ok(0), index)?;
    Ok(address)
}

/// A packet socket on an interface (or on all) that receives a protocol, as tcpdump and DHCP clients open them.
/// Nobody reads from it. If `filtered`, its own filter drops everything.
///
/// # Errors
/// Without root, or if there is no such interface.
pub fn packets(interface: Option<&str>, protocol: u16, filtered: bool) -> io::Result<OwnedFd> {
    let fd = socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
    if filtered {
        drop_all(&fd)?;
    }
    bind(&fd, &link_address(interface, protocol)?)?;
    Ok(fd)
}

/// Slots of a ring, and the bytes of each: a frame of the usual size and its head.
const SLOTS: usize = 64;
const SLOT: usize = 2048;
/// `tpacket_hdr`, rounded up to `TPACKET_ALIGNMENT`: where a slot's frame begins.
const SLOT_HEAD: usize = 32;
/// `TP_STATUS_SEND_REQUEST`: the kernel is to send the slot.
const SEND: u64 = 1;

/// Sends frames through `PACKET_TX_RING`: the kernel copies the Ethernet header only, the rest stays in the pages of
/// the ring.
///
/// # Errors
/// Without root, if there is no such interface, or if the kernel does not take all of them.
pub fn send_by_ring(interface: &str, frames: &[Vec<u8>]) -> anyhow::Result<()> {
    let fd = socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
    // struct tpacket_req: bytes of a block, blocks, bytes of a slot, slots.
    let request = [4096_u32, (SLOTS * SLOT / 4096) as u32, SLOT as u32, SLOTS as u32];
    set(&fd, libc::SOL_PACKET, libc::PACKET_TX_RING, &request)?;
    let size = SLOTS * SLOT;
    let rw = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping of the socket's ring, of the size that was asked for.
    let ring = unsafe { libc::mmap(std::ptr::null_mut(), size, rw, libc::MAP_SHARED, fd.as_raw_fd(), 0) };
    ensure!(ring != libc::MAP_FAILED, "ring: {}", io::Error::last_os_error());
    let ring: *mut u64 = ring.cast();
    let address = link_address(Some(interface), IPV4)?;
    for batch in frames.chunks(SLOTS) {
        for (slot, frame) in batch.iter().enumerate() {
            ensure!(frame.len() <= SLOT - SLOT_HEAD, "a frame of {} bytes", frame.len());
            // SAFETY: slot and frame lie within the mapping; the head begins with status (u64) and length (u32).
            unsafe {
                let at = ring.add(slot * SLOT / 8);
                std::ptr::copy_nonoverlapping(frame.as_ptr(), at.add(SLOT_HEAD / 8).cast(), frame.len());
                at.add(1).cast::<u32>().write_volatile(frame.len() as u32);
                at.write_volatile(SEND);
            }
        }
        // SAFETY: the address lives until the call returns; there is no other buffer.
        let sent = unsafe {
            libc::sendto(
                fd.as_raw_fd(),
                std::ptr::null(),
                0,
                0,
                (&raw const address).cast(),
                size_of_val(&address) as u32,
            )
        };
        // It waits until all have been sent, and goes on at the slot after the last one: all but the last batch fill the ring.
        ensure!(sent >= 0, "send: {}", io::Error::last_os_error());
    }
    // SAFETY: the mapping from above; nothing points into it any more.
    unsafe { libc::munmap(ring.cast(), size) };
    Ok(())
}

/// What a device may do for the stack.
#[derive(Clone, Copy, Debug)]
pub enum Offload {
    /// Generic receive offload (`gro`): a veth then receives in NAPI batches.
    Receive,
    /// TCP segmentation offload (`tso`).
    Segmentation,
}

/// Switches it on or off (`ethtool -K NAME gro on`).
///
/// # Errors
/// If there is no such interface.
pub fn offload(name: &str, what: Offload, on: bool) -> anyhow::Result<()> {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    const ETHTOOL_STSO: u32 = 0x1f;
    const ETHTOOL_SGRO: u32 = 0x2c;
    let command = match what {
        Offload::Receive => ETHTOOL_SGRO,
        Offload::Segmentation => ETHTOOL_STSO,
    };
    // struct ethtool_value: command, data.
    let mut value = [command, u32::from(on)];
    // SAFETY: all zero is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    ensure!(name.len() < libc::IFNAMSIZ, "interface name `{name}`");
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::try_from(from)?;
    }
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: the request and what it points to outlive the call.
    let rc = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    ensure!(rc == 0, "{what:?} of {name}: {}", io::Error::last_os_error());
    Ok(())
}

/// Queue of netfilter (`NFQUEUE`): a program decides about packets.
pub struct Queue(std::fs::File);

/// `NFNL_SUBSYS_QUEUE`, in the upper half of a message's type.
const QUEUE: u16 = 3 << 8;
const VERDICT: u16 = QUEUE | 1;
const CONFIG: u16 = QUEUE | 2;

impl Queue {
    /// Takes over a queue.
    ///
    /// # Errors
    /// If the kernel has no queues, or somebody has this one.
    pub fn open(number: u16) -> io::Result<Self> {
        const NETLINK_NETFILTER: i32 = 12;
        let queue = Self(socket(libc::AF_NETLINK, libc::SOCK_RAW, NETLINK_NETFILTER)?.into());
        // Attribute 1: bind; 2: packets' heads only (copy range, mode).
        queue.tell(CONFIG, number, &[8, 0, 1, 0, 1, 0, 0, 0])?;
        queue.tell(CONFIG, number, &[9, 0, 2, 0, 0, 0, 0, 0, 1, 0, 0, 0])?;
        Ok(queue)
    }

    fn tell(&self, kind: u16, number: u16, attributes: &[u8]) -> io::Result<()> {
        // struct nlmsghdr: length, type, flags (NLM_F_REQUEST), sequence, port; struct nfgenmsg: family, version, queue.
        let mut message = Vec::with_capacity(20 + attributes.len());
        message.extend_from_slice(&(20 + attributes.len() as u32).to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        message.extend_from_slice(&number.to_be_bytes());
        message.extend_from_slice(attributes);
        io::Write::write_all(&mut &self.0, &message)
    }

    /// Refuses the next `count` packets.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn refuse(&self, number: u16, count: usize) -> io::Result<()> {
        let mut buffer = [0; 4096];
        for _ in 0..count {
            let n = io::Read::read(&mut &self.0, &mut buffer)?;
            // The first attribute is the packet's head, and begins with its id.
            if n < 28 || buffer[4..6] != QUEUE.to_ne_bytes() {
                return Err(io::Error::other("not a packet"));
            }
            // Attribute 2: verdict (0: drop) and id.
            let mut verdict = vec![12, 0, 2, 0, 0, 0, 0, 0];
            verdict.extend_from_slice(&buffer[24..28]);
            self.tell(VERDICT, number, &verdict)?;
        }
        Ok(())
    }
}

/// Has a socket mark its packets as not to be cut, whatever it has heard of the way (`IP_PMTUDISC_PROBE`).
///
/// # Errors
/// Anything the kernel says.
pub fn never_fragment(socket: &std::net::UdpSocket) -> io::Result<()> {
    option(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)
}

/// Has a UDP socket hand what is sent at once to the kernel as one buffer, which is cut into datagrams of `bytes` later
/// (`UDP_SEGMENT`).
///
/// # Errors
/// Anything the kernel says.
pub fn segmented(socket: &std::net::UdpSocket, bytes: u16) -> io::Result<()> {
    option(socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, i32::from(bytes))
}

/// A UDP socket with the smallest receive buffer there is.
///
/// # Errors
/// If there is no such address.
pub fn small(address: &str) -> io::Result<std::net::UdpSocket> {
    let socket = std::net::UdpSocket::bind(address)?;
    option(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, 1)?;
    Ok(socket)
}

fn option(fd: i32, level: i32, name: i32, value: i32) -> io::Result<()> {
    let length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: a number that outlives the call, with its size.
    let set = unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), length) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
