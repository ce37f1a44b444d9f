//! `RTM_GETLINK`: rtnetlink(7), `include/uapi/linux/if_link.h`.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use super::below;
use flowlog_model::{
    interface::{Counters, Mac, NetDev, Netns},
    xdp::XdpMode,
};
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkExtentMask, LinkInfo, LinkLayerType, LinkMessage, LinkXdp},
};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

/// More than the kernel puts into one answer (`NLMSG_GOODSIZE` and what `min_dump_alloc` raises it to).
const ANSWER_BYTES: usize = 64 << 10;

/// The driver's program is meant; `include/uapi/linux/if_link.h`.
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
/// Only if the expected one is there.
const XDP_FLAGS_REPLACE: u32 = 1 << 4;

/// All interfaces of the namespace we are in, which is `netns`.
pub(super) fn dump(netns: &Netns) -> io::Result<Vec<NetDev>> {
    let mut request = LinkMessage::default();
    // Counters cost more than all the rest, and nobody wants them here.
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let links = ask(request, true)?;
    let mut uppers = Uppers::new();
    for (lower, upper) in links.iter().flat_map(stacked) {
        uppers.entry(lower).or_default().insert(upper);
    }
    Ok(links.iter().filter_map(|link| device(link, &uppers, netns)).collect())
}

/// The program that the driver of each interface runs, by the interface's index, of those that have one.
pub(crate) fn driver_programs() -> io::Result<Vec<(u32, u32)>> {
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let links = ask(request, true)?;
    let driven = |link: &LinkMessage| {
        let program = xdp(link).into_iter().find_map(|(mode, id)| (mode == XdpMode::Driver).then_some(id))?;
        Some((link.header.index, program))
    };
    Ok(links.iter().filter_map(driven).collect())
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

/// Name of one interface, and the XDP programs on it.
pub(crate) fn programs(index: u32) -> io::Result<(String, Vec<(XdpMode, u32)>)> {
    let mut request = LinkMessage::default();
    request.header.index = index;
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let found = ask(request, false)?.iter().find_map(|link| Some((name(link)?, xdp(link))));
    found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such interface"))
}

/// Puts another XDP program in the place of the one that an interface's driver runs, if that is `expected`: in one step.
pub(crate) fn replace_xdp(index: u32, expected: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut request = LinkMessage::default();
    request.header.index = index;
    request.attributes.push(LinkAttribute::Xdp(vec![
        LinkXdp::Fd(program.as_raw_fd()),
        LinkXdp::Flags(XDP_FLAGS_DRV_MODE | XDP_FLAGS_REPLACE),
        LinkXdp::ExpectedFd(expected.as_raw_fd().cast_unsigned()),
    ]));
    talk(RouteNetlinkMessage::SetLink(request), NLM_F_ACK).map(drop)
}

/// Interfaces that are stacked on an interface, by its index.
type Uppers = BTreeMap<u32, BTreeSet<u32>>;

/// All that is stacked on an interface, directly or through others.
fn above(index: u32, uppers: &Uppers) -> Vec<u32> {
    let mut found = BTreeSet::new();
    let mut todo = vec![index];
    while let Some(lower) = todo.pop() {
        todo.extend(uppers.get(&lower).into_iter().flatten().filter(|upper| found.insert(**upper)));
    }
    found.into_iter().collect()
}

/// Pairs of indexes: an interface, and one that is stacked on it.
fn stacked(link: &LinkMessage) -> impl Iterator<Item = (u32, u32)> {
    use InfoKind::{IpVlan, IpVtap, MacSec, MacVlan, MacVtap, Vlan};
    let me = link.header.index;
    // A veth's "link" is its peer, a tunnel's only the way its packets go: they end here, and new ones begin.
    let climbs = matches!(kind(link), Some(Vlan | MacVlan | MacVtap | IpVlan | IpVtap | MacSec));
    let bridges = link.attributes.iter().filter_map(move |a| match a {
        LinkAttribute::Controller(bridge) => Some((me, *bridge)),
        _ => None,
    });
    bridges.chain(lower(link).filter(|_| climbs).map(|lower| (lower, me)))
}

/// What a driver says of its device.
pub(super) fn infos(link: &LinkMessage) -> &[LinkInfo] {
    let infos = link.attributes.iter().find_map(|a| match a {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    infos.map(Vec::as_slice).unwrap_or_default()
}

fn kind(link: &LinkMessage) -> Option<&InfoKind> {
    infos(link).iter().find_map(|i| match i {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    })
}

/// Index of the device that one is linked to, in the same namespace.
pub(super) fn lower(link: &LinkMessage) -> Option<u32> {
    // One in another namespace has an index of there.
    let elsewhere = link.attributes.iter().any(|a| matches!(a, LinkAttribute::LinkNetNsId(_)));
    link.attributes.iter().find_map(|a| match a {
        LinkAttribute::Link(lower) if !elsewhere && *lower != link.header.index => Some(*lower),
        _ => None,
    })
}

fn device(link: &LinkMessage, uppers: &Uppers, netns: &Netns) -> Option<NetDev> {
    let mac = link.attributes.iter().find_map(|a| match a {
        LinkAttribute::Address(bytes) => <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac),
        _ => None,
    });
    let index = link.header.index;
    Some(NetDev {
        name: name(link)?,
        index,
        mac,
        link_header: matches!(link.header.link_layer_type, LinkLayerType::Ether | LinkLayerType::Loopback),
        bridge: matches!(kind(link), Some(InfoKind::Bridge)),
        above: above(index, uppers),
        below: below::below(link),
        netns: netns.clone(),
        xdp: xdp(link),
    })
}

fn name(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|a| match a {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })
}

/// The XDP programs of an interface: one, or, as "multi", one for each mode.
fn xdp(link: &LinkMessage) -> Vec<(XdpMode, u32)> {
    let said = link.attributes.iter().find_map(|a| match a {
        LinkAttribute::Xdp(said) => Some(said),
        _ => None,
    });
    let said = said.map(Vec::as_slice).unwrap_or_default();
    let mut programs: Vec<(XdpMode, u32)> = said
        .iter()
        .filter_map(|part| match part {
            LinkXdp::DrvProgId(id) => Some((XdpMode::Driver, *id)),
            LinkXdp::SkbProgId(id) => Some((XdpMode::Generic, *id)),
            LinkXdp::HwProgId(id) => Some((XdpMode::Offload, *id)),
            _ => None,
        })
        .collect();
    programs.sort_unstable();
    programs
}

fn ask(request: LinkMessage, dump: bool) -> io::Result<Vec<LinkMessage>> {
    let answer = ask_any(RouteNetlinkMessage::GetLink(request), dump)?;
    let links = answer.into_iter().filter_map(|m| match m {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    });
    Ok(links.collect())
}

/// Asks one question and collects the answer.
pub(super) fn ask_any(request: RouteNetlinkMessage, dump: bool) -> io::Result<Vec<RouteNetlinkMessage>> {
    talk(request, if dump { NLM_F_DUMP } else { 0 })
}

/// As [`ask_any`], with any of `NLM_F_*`: to be told that something was done (`NLM_F_ACK`), as well.
pub(crate) fn talk(request: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
    let dump = flags & NLM_F_DUMP == NLM_F_DUMP;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    // No protocol: 0 is `NETLINK_ROUTE`.
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    rustix::net::sendto(&socket, &bytes, SendFlags::empty(), &netlink::SocketAddrNetlink::new(0, 0))?;
    let mut found = Vec::new();
    let mut answer = vec![0; ANSWER_BYTES];
    loop {
        let (n, _) = rustix::net::recv(&socket, answer.as_mut_slice(), RecvFlags::empty())?;
        let mut rest = &answer[..n];
        while !rest.is_empty() {
            let message: NetlinkMessage<RouteNetlinkMessage> =
                NetlinkMessage::deserialize(rest).map_err(io::Error::other)?;
            match message.payload {
                NetlinkPayload::InnerMessage(inner) => found.push(inner),
                NetlinkPayload::Error(e) if e.code.is_some() => return Err(e.to_io()),
                NetlinkPayload::Done(_) => return Ok(found),
                _ => {}
            }
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length.max(16)..).unwrap_or_default();
        }
        if !dump {
            return Ok(found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_above_is_found_once_however_it_is_stacked() {
        // A bond with a VLAN that is a port of a bridge, and a macvlan on the bond; a circle, which the kernel would refuse.
        let pairs = [(1, 5), (2, 5), (5, 6), (6, 7), (5, 8), (20, 21), (21, 20)];
        let mut uppers = Uppers::new();
        for (lower, upper) in pairs {
            uppers.entry(lower).or_default().insert(upper);
        }
        assert_eq!(above(1, &uppers), [5, 6, 7, 8]);
        assert_eq!(above(6, &uppers), [7]);
        assert_eq!(above(7, &uppers), [0u32; 0]);
        assert_eq!(above(20, &uppers), [20, 21]);
    }
}
