//! Sockets for which there is no safe wrapper.
#![allow(unsafe_code, reason = "raw sockets, socket filters and TCP_INFO have no safe wrapper")]
#![allow(clippy::cast_possible_truncation, reason = "sizes of C structs")]

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

/// A raw IP socket (`v6`, protocol).
///
/// # Errors
/// Without root.
pub fn raw_socket(v6: bool, protocol: i32) -> io::Result<OwnedFd> {
    let family = if v6 { libc::AF_INET6 } else { libc::AF_INET };
    // SAFETY: no pointers; the descriptor is checked and owned right away.
    let fd = unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a filter that drops everything.
///
/// # Errors
/// What the kernel says.
pub fn refuse_all(socket: &impl std::os::fd::AsFd) -> io::Result<()> {
    // BPF_RET | BPF_K, 0.
    let mut code = [libc::sock_filter { code: 6, jt: 0, jf: 0, k: 0 }];
    let program = libc::sock_fprog { len: 1, filter: code.as_mut_ptr() };
    // SAFETY: the program and its code live until the call returns.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of_val(&program) as u32,
        )
    };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Segments that a TCP socket has sent: `tcpi_segs_out`, which is behind what the C library knows of the struct.
///
/// # Errors
/// What the kernel says.
pub fn segments_sent(socket: &std::net::TcpStream) -> io::Result<u64> {
    const SEGS_OUT: usize = 136;
    let mut info = [0_u8; 256];
    let mut length = info.len() as u32;
    // SAFETY: the buffer and its length live until the call returns.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut number = [0; 4];
    number.copy_from_slice(&info[SEGS_OUT..SEGS_OUT + 4]);
    Ok(u64::from(u32::from_ne_bytes(number)))
}
