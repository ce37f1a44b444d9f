//! Who else uses `skb->tc_index`, in which our hooks number packets: tc(8), rtnetlink(7).
//!
//! * Queueing disciplines and classifiers that *read* it: then nobody may write it (promise P4). They may be on any interface
//!   that a packet leaves through.
//! * Filters behind ours on the same hook: one that accepts a packet sets it to the class it found, mostly 0
//!   (`tc_run` in `net/core/dev.c`). Then a number may be missing when the packet dies.

use std::io;

use flowlog_model::rule::Direction;
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcHandle, TcMessage, TcOption},
};

use super::rtnetlink::ask_any;

/// Queueing disciplines that read it (`net/sched/sch_gred.c`, `sch_dsmark.c`).
const READING_QDISCS: [&str; 2] = ["gred", "dsmark"];
/// Classifiers that read it, or may by an extended match (`cls_tcindex.c`; `em_meta.c` in basic, cgroup and flow).
const READING_FILTERS: [&str; 4] = ["tcindex", "basic", "cgroup", "flow"];
/// Queueing disciplines with the hooks that our filters are on.
const HOOKS: [&str; 2] = ["clsact", "ingress"];
/// Upper half of the handle of both.
pub(super) const HOOKS_MAJOR: u16 = 0xffff;
/// Lower half of the parent of filters on ingress and on egress (`include/uapi/linux/pkt_sched.h`).
pub(super) const HOOK_MINORS: [u16; 2] = [0xfff2, 0xfff3];
/// Our own filters' names begin with this.
pub(super) const OWN: &str = "flowlog_";

/// The place of filters for one direction.
pub(crate) fn hook(direction: Direction) -> TcHandle {
    TcHandle { major: HOOKS_MAJOR, minor: HOOK_MINORS[direction.index()] }
}

/// What was found, in one network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Users {
    /// Who reads it: kind and interface index. Nobody: empty.
    pub reader: Option<(String, i32)>,
    /// Somebody overwrites it on an interface: kind and interface index.
    pub writer: Option<(String, i32)>,
}

/// Looks at all queueing disciplines and filters of the namespace we are in; `watched` are the interfaces with our hooks.
///
/// # Errors
/// If the kernel does not answer.
pub fn users(watched: &[u32]) -> io::Result<Users> {
    let mut found = Users::default();
    let qdiscs = ask_any(RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()), true)?;
    let qdiscs = qdiscs.into_iter().filter_map(|m| match m {
        RouteNetlinkMessage::NewQueueDiscipline(q) => Some(q),
        _ => None,
    });
    for qdisc in qdiscs {
        let kind = kind(&qdisc).unwrap_or_default().to_owned();
        let index = qdisc.header.index;
        if READING_QDISCS.contains(&kind.as_str()) {
            found.reader.get_or_insert((kind.clone(), index));
        }
        let hooks = HOOKS.contains(&kind.as_str());
        let parents = match (hooks, qdisc.header.handle) {
            (true, _) => Direction::BOTH.map(hook).to_vec(),
            // Without a handle of its own there is nothing to put a filter on.
            (false, TcHandle { major: 0, .. }) => continue,
            (false, handle) => vec![handle],
        };
        for parent in parents {
            let ours = hooks && u32::try_from(index).is_ok_and(|i| watched.contains(&i));
            filters(index, parent, ours, &mut found)?;
        }
    }
    Ok(found)
}

/// Looks at the filters below one parent.
fn filters(index: i32, parent: TcHandle, hooked: bool, found: &mut Users) -> io::Result<()> {
    let mut request = TcMessage::default();
    request.header.index = index;
    request.header.parent = parent;
    let filters = match ask_any(RouteNetlinkMessage::GetTrafficFilter(request), true) {
        Ok(filters) => filters,
        // It has none, or has gone meanwhile.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENODEV | libc::ENOENT | libc::EOPNOTSUPP)) => {
            return Ok(());
        }
        Err(e) => return Err(e),
    };
    for message in filters {
        let RouteNetlinkMessage::NewTrafficFilter(filter) = message else { continue };
        let kind = kind(&filter).unwrap_or_default().to_owned();
        if READING_FILTERS.contains(&kind.as_str()) {
            found.reader.get_or_insert((kind.clone(), index));
        }
        // A chain's head has no handle, and is no filter.
        let is_filter = filter.header.handle != TcHandle::default();
        if hooked && is_filter && !is_own(&filter) {
            found.writer.get_or_insert((kind, index));
        }
    }
    Ok(())
}

pub(super) fn kind(message: &TcMessage) -> Option<&str> {
    message.attributes.iter().find_map(|a| match a {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    })
}

/// Whether a filter is one of ours: eBPF, by its program's name.
fn is_own(filter: &TcMessage) -> bool {
    use netlink_packet_core::Nla as _;
    // The library knows no options of eBPF filters (no upstream issue is known as of 2026-11): looked for as they are.
    let options = filter.attributes.iter().find_map(|a| match a {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    kind(filter) == Some("bpf")
        && options.into_iter().flatten().any(|option: &TcOption| {
            let mut bytes = vec![0; option.value_len()];
            option.emit_value(&mut bytes);
            bytes.starts_with(OWN.as_bytes())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_namespace_has_nobody_who_reads_the_field() {
        assert_eq!(users(&[1]).expect("the kernel answers"), Users::default());
    }
}
