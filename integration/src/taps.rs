//! Tap devices, as virtual machines have them.
#![allow(unsafe_code, reason = "ioctl")]

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    thread::JoinHandle,
};

use anyhow::{Context as _, ensure};
use rustix::{
    event::{PollFd, PollFlags},
    pipe::{PipeFlags, pipe_with},
};

use crate::net::Netns;

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;

/// Makes a tap in `ns`; it goes with what is returned.
fn open(ns: &Netns, name: &str, flags: libc::c_int) -> anyhow::Result<File> {
    ns.run(|| -> anyhow::Result<File> {
        let file = File::options().read(true).write(true).open("/dev/net/tun").context("/dev/net/tun")?;
        // SAFETY: all zero is a valid request.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        ensure!(name.len() < libc::IFNAMSIZ, "interface name `{name}`");
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = libc::c_char::try_from(from)?;
        }
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_TAP | libc::IFF_NO_PI | flags)?;
        // SAFETY: the request outlives the call.
        let rc = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) };
        ensure!(rc == 0, "tap {name}: {}", std::io::Error::last_os_error());
        Ok(file)
    })
}

/// Two taps; what is sent into one is received from the other.
#[derive(Debug)]
pub struct Cable {
    /// Closed to end the thread.
    end: Option<OwnedFd>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl Cable {
    /// Makes both devices. They are down.
    ///
    /// # Errors
    /// Without root, or without `/dev/net/tun`.
    pub fn new(a: (&Netns, &str), b: (&Netns, &str)) -> anyhow::Result<Self> {
        let files = [open(a.0, a.1, 0)?, open(b.0, b.1, 0)?];
        for file in &files {
            rustix::io::ioctl_fionbio(file, true)?;
        }
        let (ended, end) = pipe_with(PipeFlags::CLOEXEC)?;
        let thread = std::thread::spawn(move || carry(&files, &ended));
        Ok(Self { end: Some(end), thread: Some(thread) })
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            eprintln!("the thread of a cable panicked");
        }
    }
}

/// Carries frames both ways until the other end of `ended` is closed.
fn carry(files: &[File; 2], ended: &OwnedFd) -> std::io::Result<()> {
    /// The largest frame with its link header and VLAN tags.
    const FRAME_MAX: usize = 1 << 16;
    let mut frame = vec![0; FRAME_MAX];
    loop {
        let [a, b] = files;
        let mut wait = [a.as_fd(), b.as_fd()].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).to_vec();
        wait.push(PollFd::new(ended, PollFlags::empty()));
        rustix::event::poll(&mut wait, None)?;
        if !wait[2].revents().is_empty() {
            return Ok(());
        }
        for (mut from, mut to) in [(a, b), (b, a)] {
            while let Ok(n) = from.read(&mut frame) {
                // A device that is down takes nothing, like a cable whose other end is not plugged in.
                let _ = to.write(&frame[..n]);
            }
        }
    }
}

/// The guest's end of a tap with a virtio header before each frame, which says how many bytes go into the buffer's linear
/// part. The rest of a frame larger than a page lies in page fragments. The device goes with it.
pub struct Tap {
    file: File,
}

impl Tap {
    /// Makes one in `ns`, for frames of `mtu` bytes.
    ///
    /// # Errors
    /// Without root, or without `/dev/net/tun`.
    pub fn new(ns: &Netns, name: &str, mtu: usize) -> anyhow::Result<Self> {
        let file = open(ns, name, libc::IFF_VNET_HDR)?;
        ns.exec(&format!("ip link set {name} mtu {mtu} up"))?;
        Ok(Self { file })
    }

    /// Sends a frame as the guest does; its first `linear` bytes go into the buffer's linear part.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn send(&mut self, frame: &[u8], linear: u16) -> anyhow::Result<()> {
        // struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset.
        let mut message = vec![0, 0];
        message.extend_from_slice(&linear.to_ne_bytes());
        message.extend_from_slice(&[0; 6]);
        message.extend_from_slice(frame);
        let n = self.file.write(&message)?;
        ensure!(n == message.len(), "{n} of {} bytes", message.len());
        Ok(())
    }
}
