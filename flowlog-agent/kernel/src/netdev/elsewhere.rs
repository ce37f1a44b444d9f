//! Interfaces of other network namespaces, for whoever asks again and again.
//!
//! Looking into a namespace means to enter it: with hundreds of them, twice a second, that is a few percent of a CPU. So each that has been
//! looked into gets a number in our own (`RTM_NEWNSID`, which keeps nothing alive), the kernel announces to us what changes there
//! ([`super::links`]), and only those are looked into again.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    os::fd::AsRawFd as _,
};

use flowlog_model::interface::{Elsewhere, NetDev, Netns, NetnsName};
use netlink_packet_core::NLM_F_ACK;
use netlink_packet_route::{
    RouteNetlinkMessage,
    nsid::{NsidAttribute, NsidMessage},
};

use super::{links::Changes, netns, rtnetlink};

/// What is known of a namespace.
struct Known {
    /// Its number in our own; `None`: it has none, so nothing is announced of it.
    number: Option<i32>,
    devices: Vec<NetDev>,
}

/// See the module's head.
#[derive(Default)]
pub struct Namespaces {
    /// By inode number.
    known: RefCell<BTreeMap<u32, Known>>,
    changes: Changes,
}

impl Namespaces {
    /// Where announcements go.
    #[must_use]
    pub fn changes(&self) -> Changes {
        self.changes.clone()
    }

    /// All interfaces of the `named` namespaces, and if `all` of every other one. A namespace that cannot be entered has none; our own
    /// is none of them, whatever its name.
    #[must_use]
    pub fn interfaces(&self, named: &BTreeSet<NetnsName>, all: bool) -> Elsewhere {
        let Ok(own) = netns::own() else { return Elsewhere::default() };
        let (there, namespaces) = find(&own, named, all);
        let mut known = self.known.borrow_mut();
        self.forget(&mut known, &there);
        for netns in there.values() {
            if !known.contains_key(&netns.inum)
                && let Ok(found) = look_into(netns)
            {
                known.insert(netns.inum, found);
            }
        }
        let devices = there.keys().filter_map(|inum| known.get(inum)).flat_map(|k| k.devices.iter().cloned()).collect();
        Elsewhere { devices, namespaces }
    }

    /// Forgets what may have changed, and whatever is not looked for.
    fn forget(&self, known: &mut BTreeMap<u32, Known>, there: &BTreeMap<u32, Netns>) {
        let mut announced = self.changes.lock();
        let changed = std::mem::take(&mut announced.changed);
        let nothing_holds = std::mem::take(&mut announced.is_unsure) || !announced.is_heard;
        let holds = |k: &Known| k.number.is_some_and(|number| !nothing_holds && !changed.contains(&number));
        known.retain(|inum, k| there.contains_key(inum) && holds(k));
    }
}

/// Namespaces that are looked for, by inode number; and those among them that have a name.
fn find(own: &Netns, named: &BTreeSet<NetnsName>, all: bool) -> (BTreeMap<u32, Netns>, BTreeMap<NetnsName, u32>) {
    let mut there = BTreeMap::new();
    let mut namespaces = BTreeMap::new();
    for name in named {
        let Ok(netns) = netns::at(&name.path()) else { continue };
        namespaces.insert(name.clone(), netns.inum);
        if netns.inum != own.inum {
            there.entry(netns.inum).or_insert(netns);
        }
    }
    for netns in if all { netns::others(own) } else { Vec::new() } {
        there.entry(netns.inum).or_insert(netns);
    }
    (there, namespaces)
}

/// The number first: what changes after the look is announced.
fn look_into(netns: &Netns) -> io::Result<Known> {
    let number = number(netns).ok();
    let devices = netns::enter(netns, || rtnetlink::dump(netns))??;
    Ok(Known { number, devices })
}

/// The number of a namespace in our own; it gets one if it has none.
fn number(netns: &Netns) -> io::Result<i32> {
    let path = netns.path.as_ref().ok_or(io::ErrorKind::NotFound)?;
    let file = File::open(path)?;
    let fd = NsidAttribute::Fd(file.as_raw_fd().cast_unsigned());
    let message = |attributes| {
        let mut message = NsidMessage::default();
        message.attributes = attributes;
        message
    };
    // The kernel chooses. It is no error that there is one.
    let give = RouteNetlinkMessage::NewNsId(message(vec![NsidAttribute::Id(-1), fd.clone()]));
    match rtnetlink::talk(give, NLM_F_ACK) {
        Err(e) if e.raw_os_error() != Some(libc::EEXIST) => return Err(e),
        _ => {}
    }
    let answer = rtnetlink::talk(RouteNetlinkMessage::GetNsId(message(vec![fd])), 0)?;
    let numbers = answer.iter().filter_map(|m| match m {
        RouteNetlinkMessage::NewNsId(found) => Some(&found.attributes),
        _ => None,
    });
    let number = numbers.flatten().find_map(|a| match a {
        NsidAttribute::Id(number) if *number >= 0 => Some(*number),
        _ => None,
    });
    number.ok_or_else(|| io::ErrorKind::NotFound.into())
}
