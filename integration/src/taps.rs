//! A tap device as a virtual machine has it: with a virtio header before each frame, which says how many bytes go into
//! the buffer's linear part. The rest of a frame larger than a page lies in page fragments.
#![allow(unsafe_code)] // ioctl

use std::{fs::File, io::Write as _, os::fd::AsRawFd as _};

use anyhow::{Context as _, ensure};

use crate::net::Netns;

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;

/// The guest's end of a tap; the device goes with it.
pub struct Tap {
    file: File,
}

impl Tap {
    /// Makes one in `ns`, for frames of `mtu` bytes.
    ///
    /// # Errors
    /// Without root, or without `/dev/net/tun`.
    pub fn new(ns: &Netns, name: &str, mtu: usize) -> anyhow::Result<Self> {
        let file = ns.run(|| -> anyhow::Result<File> {
            let file = File::options().read(true).write(true).open("/dev/net/tun").context("/dev/net/tun")?;
            // SAFETY: all zero is a valid request.
            let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
            ensure!(name.len() < libc::IFNAMSIZ, "interface name `{name}`");
            for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
                *to = libc::c_char::try_from(from)?;
            }
            let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
            request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags)?;
            // SAFETY: the request outlives the call.
            let rc = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) };
            ensure!(rc == 0, "tap {name}: {}", std::io::Error::last_os_error());
            Ok(file)
        })?;
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
