//! `RTM_GETLINK`: rtnetlink(7), `include/uapi/linux/if_link.h`.

use std::{collections::BTreeMap, io};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkExtentMask, LinkInfo, LinkLayerType, LinkMessage},
};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

use super::{Counters, Mac, NetDev, netns::Netns};

/// More than the kernel puts into one answer (`NLMSG_GOODSIZE` and what `min_dump_alloc` raises it to).
const ANSWER_BYTES: usize = 64 << 10;

/// All interfaces of the namespace we are in, which is `netns`.
pub(super) fn dump(netns: &Netns) -> io::Result<Vec<NetDev>> {
    let mut request = LinkMessage::default();
    // Counters cost more than all the rest, and nobody wants them here.
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let links = ask(request, true)?;
    let mut uppers: BTreeMap<u32, u32> = BTreeMap::new();
    for (lower, upper) in links.iter().flat_map(stacked) {
        let lowest = uppers.entry(lower).or_insert(upper);
        *lowest = upper.min(*lowest);
    }
    Ok(links.iter().filter_map(|link| device(link, &uppers, netns)).collect())
}

/// What one interface has counted.
pub(super) fn counters(index: u32) -> io::Result<Counters> {
    let mut request = LinkMessage::default();
    request.header.index = index;
    let links = ask(request, false)?;
    let stats = links.iter().flat_map(|l| &l.attributes).find_map(|a| match a {
        LinkAttribute::Stats64(s) => Some(Counters { packets: [s.rx_packets, s.tx_packets] }),
        _ => None,
    });
    stats.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no counters"))
}

/// Pairs of indexes: an interface, and one that is stacked on it.
fn stacked(link: &LinkMessage) -> impl Iterator<Item = (u32, u32)> {
    let me = link.header.index;
    // A veth's "link" is its peer, and one in another namespace has an index of there.
    let elsewhere = link.attributes.iter().any(|a| matches!(a, LinkAttribute::LinkNetNsId(_)));
    let peer = matches!(kind(link), Some(InfoKind::Veth));
    link.attributes.iter().filter_map(move |a| match a {
        LinkAttribute::Controller(bridge) => Some((me, *bridge)),
        LinkAttribute::Link(lower) if !elsewhere && !peer && *lower != me => Some((*lower, me)),
        _ => None,
    })
}

fn kind(link: &LinkMessage) -> Option<&InfoKind> {
    let infos = link.attributes.iter().find_map(|a| match a {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    })?;
    infos.iter().find_map(|i| match i {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    })
}

fn device(link: &LinkMessage, uppers: &BTreeMap<u32, u32>, netns: &Netns) -> Option<NetDev> {
    let name = link.attributes.iter().find_map(|a| match a {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })?;
    let mac = link.attributes.iter().find_map(|a| match a {
        LinkAttribute::Address(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac),
        _ => None,
    });
    let index = link.header.index;
    Some(NetDev {
        name,
        index,
        mac,
        link_header: matches!(link.header.link_layer_type, LinkLayerType::Ether | LinkLayerType::Loopback),
        bridge: matches!(kind(link), Some(InfoKind::Bridge)),
        upper: uppers.get(&index).copied().unwrap_or(0),
        netns: netns.clone(),
    })
}

/// Asks one question and collects the answer.
fn ask(request: LinkMessage, dump: bool) -> io::Result<Vec<LinkMessage>> {
    let mut header = NetlinkHeader::default();
    header.flags = if dump { NLM_F_REQUEST | NLM_F_DUMP } else { NLM_F_REQUEST };
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(RouteNetlinkMessage::GetLink(request)));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    // No protocol: 0 is `NETLINK_ROUTE`.
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    rustix::net::sendto(&socket, &bytes, SendFlags::empty(), &netlink::SocketAddrNetlink::new(0, 0))?;
    let (mut links, mut answer) = (Vec::new(), vec![0; ANSWER_BYTES]);
    loop {
        let (n, _) = rustix::net::recv(&socket, answer.as_mut_slice(), RecvFlags::empty())?;
        let mut rest = &answer[..n];
        while !rest.is_empty() {
            let message: NetlinkMessage<RouteNetlinkMessage> =
                NetlinkMessage::deserialize(rest).map_err(io::Error::other)?;
            match message.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => links.push(link),
                NetlinkPayload::Error(e) if e.code.is_some() => return Err(e.to_io()),
                NetlinkPayload::Done(_) => return Ok(links),
                _ => {}
            }
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length.max(16)..).unwrap_or_default();
        }
        if !dump {
            return Ok(links);
        }
    }
}
