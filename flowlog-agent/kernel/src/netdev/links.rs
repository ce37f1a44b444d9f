//! Tells when interfaces, queueing disciplines or filters come, go or change: the kernel's own announcements
//! (`RTNLGRP_LINK`, `RTNLGRP_TC`, rtnetlink(7)).

use std::{io, sync::Arc};

use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, netlink};
use tokio::sync::Notify;

/// `RTMGRP_LINK` of `include/uapi/linux/rtnetlink.h`.
const RTMGRP_LINK: u32 = 1;
/// `RTMGRP_TC` of the same header.
const RTMGRP_TC: u32 = 8;

/// A subscription. What changed is not looked at: whoever is woken looks at the interfaces themselves, and so is right
/// even if announcements were lost.
pub struct LinkWatch(Arc<Notify>);

impl LinkWatch {
    /// Subscribes, in the network namespace of the calling thread. A thread waits, and ends with the process.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn new() -> io::Result<Self> {
        // No protocol: 0 is `NETLINK_ROUTE`.
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        rustix::net::bind(&socket, &netlink::SocketAddrNetlink::new(0, RTMGRP_LINK | RTMGRP_TC))?;
        let changed = Arc::new(Notify::new());
        let announced = changed.clone();
        std::thread::Builder::new().name("links".to_owned()).spawn(move || {
            let mut announcement = [0; 16 << 10];
            loop {
                match rustix::net::recv(&socket, announcement.as_mut_slice(), RecvFlags::empty()) {
                    // More than the socket holds came at once: all the more reason to look.
                    Ok(_) | Err(rustix::io::Errno::NOBUFS) => announced.notify_one(),
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => {
                        tracing::error!(%error, "interfaces are not watched any more");
                        return;
                    }
                }
            }
        })?;
        Ok(Self(changed))
    }

    /// Waits until an interface has changed.
    pub async fn changed(&self) {
        self.0.notified().await;
    }
}
