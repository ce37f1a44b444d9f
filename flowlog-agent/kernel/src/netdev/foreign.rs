//! Programs and filters of others at the hooks of an interface: what may have dropped a packet there. tc(8), rtnetlink(7), bpf(2).
//!
//! Names are said where the kernel says them to whoever has no `CAP_SYS_ADMIN`: of filters, not of tcx links and XDP programs.
#![allow(
    unsafe_code,
    reason = "asking for the programs of tcx links has no safe wrapper that does without CAP_SYS_ADMIN"
)]

use std::io;

use flowlog_model::rule::Direction;
use netlink_packet_core::Nla as _;
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage, LinkXdp},
    tc::{TcAttribute, TcHandle, TcMessage, TcOption},
};

use super::{
    foreign_xdp,
    rtnetlink::ask_any,
    traffic_control::{HOOK_MINORS, HOOKS_MAJOR, OWN, kind},
};

/// `BPF_PROG_QUERY` of `include/uapi/linux/bpf.h`.
const BPF_PROG_QUERY: libc::c_long = 16;
/// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS` of the same.
const BPF_TCX: [u32; 2] = [46, 47];
/// Option of an eBPF filter: its program's name (`TCA_BPF_NAME` of `include/uapi/linux/pkt_cls.h`).
const TCA_BPF_NAME: u16 = 7;
/// Its program's id (`TCA_BPF_ID`).
const TCA_BPF_ID: u16 = 11;
/// Programs on one hook of an interface that are named; the kernel takes no more (`BPF_MPROG_MAX`).
const PROGRAMS_MAX: usize = 64;

/// Who else is at the hooks of the interface with this index, in the namespace we are in; without programs with these ids, which are
/// our own. `ID` or `ID:NAME` of a program, the kind of another filter.
#[must_use]
pub fn tc(index: u32, direction: Direction, own: &[u32]) -> Vec<String> {
    let links = tcx(index, BPF_TCX[direction.index()]).unwrap_or_default();
    let links = links.into_iter().filter(|id| !own.contains(id)).map(|id| id.to_string());
    // It has none, or has gone meanwhile.
    links.chain(filters(index, HOOK_MINORS[direction.index()]).unwrap_or_default()).collect()
}

/// Who is in front of our hook on the interface with this index, in the namespace we are in; `own` are the ids of our programs. Nobody, if there is no hook
/// of ours. tcx links run before all filters.
#[must_use]
pub fn in_front(index: u32, direction: Direction, own: &[u32]) -> Vec<String> {
    let links = tcx(index, BPF_TCX[direction.index()]).unwrap_or_default();
    let named = |ids: &[u32]| ids.iter().map(|id| with_name(*id)).collect::<Vec<_>>();
    if let Some(place) = links.iter().position(|id| own.contains(id)) {
        return named(&links[..place]);
    }
    let filters = all_filters(index, HOOK_MINORS[direction.index()]).unwrap_or_default();
    match filters.iter().position(Option::is_none) {
        Some(place) => named(&links).into_iter().chain(filters.into_iter().take(place).flatten()).collect(),
        None => Vec::new(),
    }
}

/// Who is in front of any hook of flowlog's, by the names of its programs: for whoever may ask for them and holds none.
#[must_use]
pub fn in_front_of_flowlog(index: u32, direction: Direction) -> Vec<String> {
    let links = tcx(index, BPF_TCX[direction.index()]).unwrap_or_default();
    let is_own = |id: &&u32| foreign_xdp::name(**id).is_some_and(|name| name.starts_with(OWN));
    let own: Vec<u32> = links.iter().filter(is_own).copied().collect();
    in_front(index, direction, &own)
}

/// `ID`, or `ID:NAME` where that may be asked for.
fn with_name(id: u32) -> String {
    foreign_xdp::name(id).map_or_else(|| id.to_string(), |name| format!("{id}:{name}"))
}

/// The kernel's ids of all programs at a hook, in the namespace we are in.
#[must_use]
pub(crate) fn ids(index: u32, direction: Direction) -> Vec<u32> {
    let links = tcx(index, BPF_TCX[direction.index()]).unwrap_or_default();
    let filters = filter_ids(index, HOOK_MINORS[direction.index()]).unwrap_or_default();
    links.into_iter().chain(filters).collect()
}

/// The id of flowlog's own tcx hook, whoever holds it. For whoever may ask for programs.
#[must_use]
pub(crate) fn flowlog_hook(index: u32, direction: Direction) -> Option<u32> {
    let links = tcx(index, BPF_TCX[direction.index()]).unwrap_or_default();
    links.into_iter().find(|id| foreign_xdp::name(*id).is_some_and(|name| name.starts_with(OWN)))
}

/// The same of XDP.
#[must_use]
pub fn xdp(index: u32, own: &[u32]) -> Vec<String> {
    let mut request = LinkMessage::default();
    request.header.index = index;
    let links = ask_any(RouteNetlinkMessage::GetLink(request), false).unwrap_or_default();
    let attributes = links.into_iter().flat_map(|m| match m {
        RouteNetlinkMessage::NewLink(link) => link.attributes,
        _ => Vec::new(),
    });
    let said = attributes.flat_map(|a| if let LinkAttribute::Xdp(all) = a { all } else { Vec::new() });
    // With several modes at once the general id is missing.
    let mut ids: Vec<u32> = said
        .filter_map(|x| match x {
            LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) | LinkXdp::HwProgId(id) => Some(id),
            _ => None,
        })
        .filter(|id| *id != 0 && !own.contains(id))
        .collect();
    ids.sort_unstable();
    ids.dedup();
    ids.into_iter().map(|id| id.to_string()).collect()
}

/// `union bpf_attr` for `BPF_PROG_QUERY`.
#[repr(C)]
#[derive(Default)]
struct Query {
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Ids of the programs of tcx links.
fn tcx(index: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0u32; PROGRAMS_MAX];
    let mut query = Query {
        target_ifindex: index,
        attach_type,
        prog_ids: ids.as_mut_ptr().expose_provenance() as u64,
        prog_cnt: 64,
        ..Query::default()
    };
    // SAFETY: the kernel reads and writes the attribute, of the size given, and as many ids as it says there is room for.
    let done = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(ids.into_iter().take(query.prog_cnt as usize).filter(|id| *id != 0).collect())
}

/// Filters of others at a hook.
fn filters(index: u32, minor: u16) -> io::Result<Vec<String>> {
    Ok(all_filters(index, minor)?.into_iter().flatten().collect())
}

/// Ids of the programs of filters at a hook.
fn filter_ids(index: u32, minor: u16) -> io::Result<Vec<u32>> {
    Ok(messages(index, minor)?.iter().filter_map(id).collect())
}

/// All filters at a hook, in the order in which they run; ours is `None`.
fn all_filters(index: u32, minor: u16) -> io::Result<Vec<Option<String>>> {
    Ok(messages(index, minor)?.iter().map(word).collect())
}

fn messages(index: u32, minor: u16) -> io::Result<Vec<TcMessage>> {
    let mut request = TcMessage::default();
    request.header.index = index.cast_signed();
    request.header.parent = TcHandle { major: HOOKS_MAJOR, minor };
    let filters = ask_any(RouteNetlinkMessage::GetTrafficFilter(request), true)?;
    let filters = filters.into_iter().filter_map(|m| match m {
        // A chain's head has no handle, and is no filter.
        RouteNetlinkMessage::NewTrafficFilter(f) if f.header.handle != TcHandle::default() => Some(f),
        _ => None,
    });
    Ok(filters.collect())
}

/// The id of a filter's program.
fn id(filter: &TcMessage) -> Option<u32> {
    option(filter, TCA_BPF_ID).and_then(|b| Some(u32::from_ne_bytes(*b.first_chunk()?)))
}

/// What a filter is called; `None`: it is ours.
fn word(filter: &TcMessage) -> Option<String> {
    let kind = kind(filter).unwrap_or("filter");
    if kind != "bpf" {
        return Some(kind.to_owned());
    }
    let id = id(filter);
    let name = option(filter, TCA_BPF_NAME).map(|b| String::from_utf8_lossy(&b).trim_end_matches('\0').to_owned());
    match (id, name) {
        (_, Some(name)) if name.starts_with(OWN) => None,
        (Some(id), Some(name)) => Some(format!("{id}:{name}")),
        (Some(id), None) => Some(id.to_string()),
        (None, name) => name.or_else(|| Some(kind.to_owned())),
    }
}

/// An option of a filter, as it is: the library knows none of eBPF filters.
fn option(filter: &TcMessage, wanted: u16) -> Option<Vec<u8>> {
    let options = filter.attributes.iter().find_map(|a| match a {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    let found: &TcOption = options.iter().find(|o| o.kind() == wanted)?;
    let mut bytes = vec![0; found.value_len()];
    found.emit_value(&mut bytes);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_without_programs_has_none_and_one_that_is_not_there_neither() {
        for index in [1, u32::MAX >> 1] {
            for direction in Direction::BOTH {
                assert_eq!(tc(index, direction, &[]), Vec::<String>::new());
            }
            assert_eq!(xdp(index, &[]), Vec::<String>::new());
            for direction in Direction::BOTH {
                assert_eq!(in_front(index, direction, &[7]), Vec::<String>::new());
            }
        }
    }
}
