//! Tells when interfaces, queueing disciplines, filters or neighbours come, go or change: the kernel's own announcements
//! (`RTNLGRP_LINK`, `RTNLGRP_TC`, `RTNLGRP_NEIGH`, rtnetlink(7)), of our own network namespace and of those that have a number in it
//! (`NETLINK_LISTEN_ALL_NSID`, netlink(7)).
#![allow(unsafe_code, reason = "recvmsg and setsockopt: the number of a namespace comes beside the message")]

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, netlink};
use tokio::sync::Notify;

/// `RTMGRP_LINK` of `include/uapi/linux/rtnetlink.h`.
const RTMGRP_LINK: u32 = 1;
/// `RTMGRP_NEIGH` of the same header: neighbours, and stations that bridges have learned.
const RTMGRP_NEIGH: u32 = 4;
/// `RTM_NEWNEIGH` and `RTM_DELNEIGH`.
const NEIGHBOUR_MESSAGES: [u16; 2] = [28, 29];
/// `RTMGRP_TC` of the same header.
const RTMGRP_TC: u32 = 8;
/// `RTNLGRP_NSID` of the same header, as a bit: numbers of namespaces come and go.
const RTMGRP_NSID: u32 = 1 << 27;
/// `RTM_NEWNSID` and `RTM_DELNSID`.
const NSID_MESSAGES: [u16; 2] = [88, 89];
/// `NETLINK_LISTEN_ALL_NSID` of `include/uapi/linux/netlink.h`: a socket's option, and the kind of what comes beside a message.
const LISTEN_ALL_NSID: libc::c_int = 8;
/// Room for what comes beside a message: one number.
const BESIDE_BYTES: usize = 64;

/// What has been announced of other namespaces.
#[derive(Debug, Default)]
pub(super) struct Announced {
    /// Changes in them are announced to us.
    pub(super) is_heard: bool,
    /// Numbers of those in which something has changed.
    pub(super) changed: BTreeSet<i32>,
    /// Which numbers are whose may have changed, or announcements were lost: nothing that was known holds.
    pub(super) is_unsure: bool,
}

/// [`Announced`], between whoever hears it and whoever looks at the interfaces.
#[derive(Clone, Debug, Default)]
pub struct Changes(Arc<Mutex<Announced>>);

impl Changes {
    pub(super) fn lock(&self) -> MutexGuard<'_, Announced> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether what changes in namespaces with a number is announced to us.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        self.lock().is_heard
    }
}

/// A subscription. What changed is not looked at: whoever is woken looks at the interfaces themselves, and so is right
/// even if announcements were lost.
pub struct LinkWatch {
    links: Arc<Notify>,
    neighbours: Arc<Notify>,
}

impl LinkWatch {
    /// Subscribes, in the network namespace of the calling thread. A thread waits, and ends with the process. Without `CAP_NET_BROADCAST`
    /// other namespaces are not heard.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn new(changes: Changes) -> io::Result<Self> {
        // No protocol: 0 is `NETLINK_ROUTE`.
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        rustix::net::bind(
            &socket,
            &netlink::SocketAddrNetlink::new(0, RTMGRP_LINK | RTMGRP_TC | RTMGRP_NEIGH | RTMGRP_NSID),
        )?;
        {
            let mut announced = changes.lock();
            announced.is_heard = listen_to_all(&socket);
            announced.is_unsure = true;
        }
        let [wake, wake_for_neighbours] = [(); 2].map(|()| Arc::new(Notify::new()));
        let watch = Self { links: wake.clone(), neighbours: wake_for_neighbours.clone() };
        std::thread::Builder::new().name("links".to_owned()).spawn(move || {
            loop {
                match receive(&socket) {
                    // Of any namespace. They come often, and say nothing of interfaces.
                    Ok(Announcement { kind, .. }) if NEIGHBOUR_MESSAGES.contains(&kind) => {
                        wake_for_neighbours.notify_one();
                        continue;
                    }
                    Ok(Announcement { netns: Some(number), kind }) if !NSID_MESSAGES.contains(&kind) => {
                        changes.lock().changed.insert(number);
                    }
                    Ok(Announcement { kind, .. }) if NSID_MESSAGES.contains(&kind) => changes.lock().is_unsure = true,
                    Ok(_) => {}
                    // More than the socket holds came at once: all the more reason to look.
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                        changes.lock().is_unsure = true;
                        wake_for_neighbours.notify_one();
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => {
                        changes.lock().is_heard = false;
                        tracing::error!(%error, "interfaces are not watched any more");
                        return;
                    }
                }
                wake.notify_one();
            }
        })?;
        Ok(watch)
    }

    /// Waits until an interface has changed.
    pub async fn changed(&self) {
        self.links.notified().await;
    }

    /// Waits until a neighbour or a station has come, gone or moved.
    pub async fn neighbours_changed(&self) {
        self.neighbours.notified().await;
    }
}

fn listen_to_all(socket: &OwnedFd) -> bool {
    let on: libc::c_int = 1;
    // SAFETY: an integer and its size.
    let refused = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_NETLINK,
            LISTEN_ALL_NSID,
            (&raw const on).cast(),
            libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or_default(),
        )
    };
    refused == 0
}

/// What is looked at of an announcement.
struct Announcement {
    /// Number of the namespace it comes from; `None`: our own.
    netns: Option<i32>,
    /// `RTM_*` of its first message.
    kind: u16,
}

/// Waits for the next one.
fn receive(socket: &OwnedFd) -> io::Result<Announcement> {
    let mut bytes = [0u8; 16 << 10];
    // As aligned as the header of what comes in it.
    let mut beside = [0u64; BESIDE_BYTES / 8];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: all zero is a message header with nothing in it.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = beside.as_mut_ptr().cast();
    message.msg_controllen = BESIDE_BYTES as _;
    // SAFETY: the pointers are to locals of the sizes that are named.
    if unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut netns = None;
    // SAFETY: the kernel has filled `message`; the macros stay within what it says is there.
    unsafe {
        let mut head = libc::CMSG_FIRSTHDR(&raw const message);
        while let Some(one) = head.as_ref() {
            if (one.cmsg_level, one.cmsg_type) == (libc::SOL_NETLINK, LISTEN_ALL_NSID) {
                netns = Some(libc::CMSG_DATA(head).cast::<i32>().read_unaligned());
            }
            head = libc::CMSG_NXTHDR(&raw const message, head);
        }
    }
    Ok(Announcement { netns, kind: u16::from_ne_bytes([bytes[4], bytes[5]]) })
}
