//! Connection tracking, asked over netlink what packets have on the other side of an address translation
//! (`include/uapi/linux/netfilter/nfnetlink_conntrack.h`).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use flowlog_model::translation::Tuple;
use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink},
};

/// Type of a question: `IPCTNL_MSG_CT_GET` of the subsystem `NFNL_SUBSYS_CTNETLINK`.
const GET: u16 = 1 << 8 | 1;
/// Type of an answer: `IPCTNL_MSG_CT_NEW` of the same.
const NEW: u16 = 1 << 8;
/// Type of an answer that says that there is none: `NLMSG_ERROR`.
const ERROR: u16 = 2;
/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;
/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;
/// Bits of an attribute's type that are no flags (`NLA_TYPE_MASK`).
const KIND: u16 = !(3 << 14);
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
/// Bytes of the header of a message.
const HEADER: usize = 16;
/// Bytes of the header behind it (`struct nfgenmsg`).
const GENERIC: usize = 4;
/// Questions that are asked at once. Their answers wait in the socket, which has room for 200 by default (`net.core.rmem_default`).
const ASKED: usize = 64;
/// More than one answer has.
const ANSWER_BYTES: usize = 16 << 10;

/// Asks in the namespace we are in. For each question the tuple on the other side, which is the same where nothing is translated; `None`: no
/// connection is known whose packets have such a tuple.
///
/// # Errors
/// If the kernel has no connection tracking, or nobody may ask.
pub fn ask(questions: &[Tuple]) -> io::Result<Vec<Option<Tuple>>> {
    let kind = SocketType::RAW;
    let protocol = Some(netlink::NETFILTER);
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, kind, SocketFlags::CLOEXEC, protocol)?;
    let mut found = vec![None; questions.len()];
    let mut answer = vec![0; ANSWER_BYTES];
    for (batch, some) in questions.chunks(ASKED).enumerate() {
        let first = batch * ASKED;
        let mut bytes = Vec::new();
        for (n, tuple) in (first..).zip(some) {
            question(&mut bytes, u32::try_from(n).map_err(io::Error::other)?, tuple);
        }
        rustix::net::sendto(&socket, &bytes, SendFlags::empty(), &netlink::SocketAddrNetlink::new(0, 0))?;
        // The kernel has answered by the time that it has taken the questions.
        let mut open = some.len();
        while open > 0 {
            let (n, _) = match rustix::net::recv(&socket, answer.as_mut_slice(), RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN | Errno::NOBUFS) => break,
                other => other?,
            };
            let said = answer.get(..n).and_then(Message::parse).ok_or_else(|| io::Error::other("not a message"))?;
            open -= 1;
            if let Some(errno) = said.refusal() {
                return Err(errno.into());
            }
            let n = said.number as usize;
            if let (Some(slot), Some(asked)) = (found.get_mut(n), questions.get(n)) {
                *slot = said.other_side(*asked);
            }
        }
    }
    Ok(found)
}

/// A message of the kernel's.
struct Message<'a> {
    kind: u16,
    number: u32,
    body: &'a [u8],
}

impl<'a> Message<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
        let body = bytes.get(HEADER..word(0)? as usize)?;
        Some(Self { kind, number: word(8)?, body })
    }

    /// Why there are no answers at all. That there is no such connection is an answer.
    fn refusal(&self) -> Option<Errno> {
        let code = i32::from_ne_bytes(*self.body.first_chunk().filter(|_| self.kind == ERROR)?);
        let errno = Errno::from_raw_os_error(-code);
        (code != 0 && errno != Errno::NOENT).then_some(errno)
    }

    /// The other side of packets with this tuple.
    fn other_side(&self, asked: Tuple) -> Option<Tuple> {
        let attributes = self.body.get(GENERIC..).filter(|_| self.kind == NEW)?;
        let of = |kind| attribute(attributes, kind).and_then(tuple);
        let (original, reply) = (of(CTA_TUPLE_ORIG)?, of(CTA_TUPLE_REPLY)?);
        if asked == original { Some(reply.reversed()) } else { (asked == reply).then(|| original.reversed()) }
    }
}

/// Appends the question which connection packets with this tuple belong to.
fn question(out: &mut Vec<u8>, number: u32, of: &Tuple) {
    let (family, addresses) = match (of.src, of.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let addresses = [(CTA_IP_V4_SRC, src.octets().to_vec()), (CTA_IP_V4_DST, dst.octets().to_vec())];
            (AddressFamily::INET, addresses)
        }
        (src, dst) => {
            let octets = |a: IpAddr| match a {
                IpAddr::V4(a) => a.to_ipv6_mapped().octets().to_vec(),
                IpAddr::V6(a) => a.octets().to_vec(),
            };
            (AddressFamily::INET6, [(CTA_IP_V6_SRC, octets(src)), (CTA_IP_V6_DST, octets(dst))])
        }
    };
    let ports = [
        (CTA_PROTO_NUM, vec![of.proto]),
        (CTA_PROTO_SRC_PORT, of.sport.to_be_bytes().to_vec()),
        (CTA_PROTO_DST_PORT, of.dport.to_be_bytes().to_vec()),
    ];
    let nest = |of: &[(u16, Vec<u8>)]| {
        let mut inner = Vec::new();
        for (kind, value) in of {
            push(&mut inner, *kind, value);
        }
        inner
    };
    let mut tuple = Vec::new();
    push(&mut tuple, CTA_TUPLE_IP | NESTED, &nest(&addresses));
    push(&mut tuple, CTA_TUPLE_PROTO | NESTED, &nest(&ports));
    let start = out.len();
    out.extend([0; 4]);
    out.extend(GET.to_ne_bytes());
    out.extend(REQUEST.to_ne_bytes());
    out.extend(number.to_ne_bytes());
    out.extend([0; 4]);
    let [family, ..] = family.as_raw().to_le_bytes();
    out.extend([family, 0, 0, 0]);
    push(out, CTA_TUPLE_ORIG | NESTED, &tuple);
    let len = u32::try_from(out.len() - start).unwrap_or(0);
    out[start..start + 4].copy_from_slice(&len.to_ne_bytes());
}

/// Appends an attribute.
fn push(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend(u16::try_from(4 + value.len()).unwrap_or(0).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// The first attribute of a kind.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let word = |at: usize| Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
        let (len, kind) = (usize::from(word(0)?), word(2)?);
        let value = bytes.get(4..len)?;
        if kind & KIND == wanted {
            return Some(value);
        }
        bytes = bytes.get(len.next_multiple_of(4)..)?;
    }
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let addresses = attribute(bytes, CTA_TUPLE_IP)?;
    let ports = attribute(bytes, CTA_TUPLE_PROTO)?;
    let address = |v4, v6| {
        let four = attribute(addresses, v4).and_then(|b| Some(IpAddr::from(Ipv4Addr::from(*b.first_chunk::<4>()?))));
        four.or_else(|| Some(IpAddr::from(Ipv6Addr::from(*attribute(addresses, v6)?.first_chunk::<16>()?))))
    };
    let port = |kind| Some(u16::from_be_bytes(*attribute(ports, kind)?.first_chunk()?));
    Some(Tuple {
        src: address(CTA_IP_V4_SRC, CTA_IP_V6_SRC)?,
        dst: address(CTA_IP_V4_DST, CTA_IP_V6_DST)?,
        sport: port(CTA_PROTO_SRC_PORT)?,
        dport: port(CTA_PROTO_DST_PORT)?,
        proto: *attribute(ports, CTA_PROTO_NUM)?.first()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(src: &str, dst: &str) -> Tuple {
        let address = |a: &str| a.parse().expect("an address");
        Tuple { src: address(src), dst: address(dst), sport: 1_000, dport: 53, proto: 17 }
    }

    #[test]
    fn questions_about_connections_that_are_not_there_have_no_answer() {
        // More than are asked at once; in a namespace of its own there are none for sure, here nobody has these addresses.
        let questions =
            [vec![sample("192.0.2.1", "198.51.100.1"); 100], vec![sample("2001:db8::1", "2001:db8::2")]].concat();
        assert_eq!(ask(&questions).expect("connection tracking"), vec![None; 101]);
    }

    #[test]
    fn an_answer_is_read_from_either_side_and_junk_is_none() {
        let inside = sample("10.0.0.1", "198.51.100.1");
        let outside = sample("192.0.2.1", "198.51.100.1");
        // A question is an answer with one of the two tuples.
        let mut bytes = Vec::new();
        question(&mut bytes, 7, &inside);
        let mut reply = Vec::new();
        question(&mut reply, 7, &outside.reversed());
        let second = &mut reply[HEADER + GENERIC..];
        second[2..4].copy_from_slice(&(CTA_TUPLE_REPLY | NESTED).to_ne_bytes());
        bytes.extend_from_slice(second);
        let len = u32::try_from(bytes.len()).expect("small");
        bytes[..4].copy_from_slice(&len.to_ne_bytes());
        bytes[4..6].copy_from_slice(&NEW.to_ne_bytes());
        let said = Message::parse(&bytes).expect("a message");
        assert_eq!((said.number, said.refusal()), (7, None));
        assert_eq!(said.other_side(inside), Some(outside));
        assert_eq!(said.other_side(outside.reversed()), Some(inside.reversed()));
        assert_eq!(said.other_side(outside), None);
        for cut in 0..bytes.len() {
            let said = Message::parse(&bytes[..cut]);
            assert!(said.is_none(), "{cut}");
            let said = Message { kind: NEW, number: 0, body: &bytes[HEADER.min(cut)..cut] };
            assert_eq!(said.other_side(inside), None, "{cut}");
        }
    }
}
