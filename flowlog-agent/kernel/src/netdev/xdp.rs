//! Can an interface's driver run XDP itself? Asked of the kernel's `netdev` generic netlink family (Linux 6.3), which
//! changes nothing. `include/uapi/linux/netdev.h`, `Documentation/netlink/specs/netdev.yaml`.

use rustix::{
    io::Result,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink},
};

const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
/// The driver runs programs and takes `XDP_PASS`, `XDP_DROP`, `XDP_ABORTED`.
const NETDEV_XDP_ACT_BASIC: u8 = 1;

const NLM_F_REQUEST: u16 = 1;
/// Bytes of `nlmsghdr` and `genlmsghdr`.
const HEADERS: usize = 16 + 4;

/// Whether the driver of the interface with this index runs XDP natively; `None` if the kernel does not say.
#[must_use]
pub(crate) fn native(ifindex: u32) -> Option<bool> {
    let family = ask(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_NAME, b"netdev\0").ok()?;
    let id = u16::from_ne_bytes(attribute(&family, CTRL_ATTR_FAMILY_ID)?.first_chunk().copied()?);
    let device = ask(id, NETDEV_CMD_DEV_GET, NETDEV_A_DEV_IFINDEX, &ifindex.to_ne_bytes()).ok()?;
    let features = attribute(&device, NETDEV_A_DEV_XDP_FEATURES)?;
    // A u64 in host order, or fewer bytes; the wanted bit is in the lowest one.
    let lowest = if cfg!(target_endian = "little") { features.first() } else { features.last() };
    lowest.map(|bits| bits & NETDEV_XDP_ACT_BASIC != 0)
}

/// Sends one request with one attribute and returns the one reply.
fn ask(family: u16, command: u8, kind: u16, value: &[u8]) -> Result<Vec<u8>> {
    let attribute_len = 4 + value.len();
    let total = HEADERS + attribute_len.next_multiple_of(4);
    let len = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(total);
    message.extend_from_slice(&len(total).to_ne_bytes());
    message.extend_from_slice(&family.to_ne_bytes());
    message.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    message.extend_from_slice(&[0; 8]); // sequence and port: one request, one reply
    message.extend_from_slice(&[command, 1, 0, 0]);
    message.extend_from_slice(&u16::try_from(attribute_len).unwrap_or(u16::MAX).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(value);
    message.resize(total, 0);
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::GENERIC),
    )?;
    let kernel = netlink::SocketAddrNetlink::new(0, 0);
    rustix::net::sendto(&socket, &message, SendFlags::empty(), &kernel)?;
    let mut reply = vec![0; 16 * 1024];
    let (n, _) = rustix::net::recv(&socket, reply.as_mut_slice(), RecvFlags::empty())?;
    reply.truncate(n);
    Ok(reply)
}

/// The value of an attribute of a reply.
fn attribute(reply: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut rest = reply.get(HEADERS..)?;
    while let Some([l0, l1, k0, k1]) = rest.first_chunk() {
        let len = usize::from(u16::from_ne_bytes([*l0, *l1]));
        let value = rest.get(4..len)?;
        // The upper two bits are flags (nested, byte order).
        if u16::from_ne_bytes([*k0, *k1]) & 0x3fff == wanted {
            return Some(value);
        }
        rest = rest.get(len.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_has_no_native_xdp_and_junk_is_no_answer() {
        assert_ne!(native(1), Some(true));
        assert_eq!(native(u32::MAX), None);
        assert_eq!(attribute(&[0; 24], 3), None);
        assert_eq!(attribute(&[0xff; 40], 3), None);
    }
}
