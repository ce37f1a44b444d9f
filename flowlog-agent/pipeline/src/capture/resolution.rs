//! Which interfaces are meant: from what is to be captured and what there is, to what is to be watched. Pure.

use std::collections::{BTreeMap, BTreeSet};

use flowlog_ebpf::abi::Stacked;
use flowlog_model::{
    capture::{CaptureSpec, WatchSpec},
    interface::{Below, Bound, IfKey, NetDev, NetnsName, OnTop},
    status::CaptureState,
};

use crate::window::Ledger;

/// A rule and the interface it is to be watched on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// The rule, on this interface.
    pub spec: WatchSpec,
    pub dev: NetDev,
}

/// The result of [`resolve`].
#[derive(Debug, Default)]
pub(crate) struct Resolution {
    /// To be watched, by interface id.
    pub wanted: BTreeMap<String, Resolved>,
    /// Not to be watched, and why not, by interface id.
    pub absent: BTreeMap<String, Absent>,
    /// Which interfaces are stacked on which, where any is to be watched.
    pub stacked: BTreeSet<Stacked>,
    /// Devices on top of those that are to be watched, of which all packets leave through them.
    pub on_top: Vec<OnTop>,
}

/// Why an interface is not to be watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Absent {
    /// It is not there yet, or not any more.
    Waiting(String),
    /// Another capture has it.
    Taken(String),
}

impl Absent {
    /// As there is to say of its capture.
    pub(super) fn state(&self) -> CaptureState {
        match self {
            Self::Taken(why) => CaptureState::Trouble { why: why.clone() },
            Self::Waiting(why) => CaptureState::Waiting { why: why.clone() },
        }
    }
}

/// Finds the interface of every capture among `devices`. `namespaces` are those that have a name. `known` says, by interface id, which one it was the last time:
/// it stays the same if it has been given another name, or moved to another namespace.
#[must_use]
pub(crate) fn resolve(
    captures: &[CaptureSpec],
    node_id: &str,
    (devices, namespaces): (&[NetDev], &BTreeMap<NetnsName, u32>),
    known: &BTreeMap<&str, Bound<'_>>,
) -> Resolution {
    let mut found = Resolution::default();
    let mut taken = BTreeMap::<IfKey, String>::new();
    for capture in captures {
        let id = capture.id(node_id);
        let dev = capture.interface.find(devices, known.get(id.as_str()).copied(), namespaces);
        let Some(dev) = dev else {
            let why = Absent::Waiting(format!("waiting for interface {}", capture.interface));
            found.absent.insert(id, why);
            continue;
        };
        if let Some(other) = taken.get(&dev.key()) {
            let why = format!("interface {} is captured as {other} already: it takes one flow log", dev.name);
            found.absent.insert(id, Absent::Taken(why));
            continue;
        }
        taken.insert(dev.key(), id.clone());
        found.wanted.insert(id, Resolved { spec: spec(capture, node_id, dev), dev: dev.clone() });
    }
    let watched: BTreeSet<u32> = found.wanted.values().map(|w| w.dev.netns.inum).collect();
    let pair = |d: &NetDev, upper| Stacked { lower: d.index, upper, netns_inum: d.netns.inum };
    let stacked = devices.iter().filter(|d| watched.contains(&d.netns.inum));
    found.stacked = stacked.flat_map(|d| d.above.iter().map(|upper| pair(d, *upper))).collect();
    found.on_top = on_top(devices, &taken.into_keys().collect());
    found
}

/// Devices of which all packets leave through a watched interface, and the nearest one of each.
fn on_top(devices: &[NetDev], watched: &BTreeSet<IfKey>) -> Vec<OnTop> {
    let below: BTreeMap<IfKey, Below> = devices.iter().filter_map(|d| Some((d.key(), d.below?))).collect();
    let nearest = |upper: &IfKey| {
        let IfKey { netns_inum, .. } = *upper;
        let mut at = *below.get(upper)?;
        // Devices are not stacked in a ring: more steps than devices are none.
        for _ in 0..below.len() {
            let lower = IfKey { netns_inum, index: at.index };
            if watched.contains(&lower) {
                return Some(OnTop { netns_inum, upper: upper.index, below: at });
            }
            let next = *below.get(&lower)?;
            // The device that is nearer to the wire puts its tag in front.
            at = Below { vlan: if next.vlan == 0 { at.vlan } else { next.vlan }, ..next };
        }
        None
    };
    below.keys().filter_map(nearest).collect()
}

fn spec(capture: &CaptureSpec, node_id: &str, dev: &NetDev) -> WatchSpec {
    WatchSpec {
        interface: dev.name.clone(),
        ifindex: dev.index,
        hook: capture.hook,
        rule: capture.rule.clone(),
        node_id: node_id.to_owned(),
        account_id: capture.account_id.clone(),
        interface_id: capture.id(node_id),
        side: capture.side,
        netns_inum: dev.netns.inum,
        netns: dev.netns.name(),
        mac: dev.mac,
        translations: capture.translations,
        labels: capture.labels.clone(),
    }
}

impl Resolution {
    /// Whether exactly this is being watched.
    #[must_use]
    pub(crate) fn is_watched(&self, ledger: &Ledger) -> bool {
        ledger.watched().count() == self.wanted.len() && ledger.watched().all(|(_, w)| self.wants(&w.spec))
    }

    /// The interface of a watch, as it was found.
    #[must_use]
    pub(crate) fn device(&self, spec: &WatchSpec) -> Option<&NetDev> {
        self.wanted.get(&spec.interface_id).map(|wanted| &wanted.dev)
    }

    /// Whether a spec is among what is wanted.
    #[must_use]
    pub(crate) fn wants(&self, spec: &WatchSpec) -> bool {
        self.wanted.get(&spec.interface_id).is_some_and(|w| w.spec.is_same(spec))
    }
}

#[cfg(test)]
mod tests {
    use flowlog_model::{
        Epoch, HookKind, IfaceId, Labels, MonoNs, Now, WallNs,
        interface::{Mac, Netns, Selector},
        rule::{Rule, Side},
    };

    use super::*;
    use crate::window::{Event, WindowClock};

    fn dev(name: &str, index: u32) -> NetDev {
        let mac = Some(Mac([2, 0, 0, 0, 0, u8::try_from(index).expect("small")]));
        let netns = Netns::at(1, None);
        NetDev {
            name: name.to_owned(),
            index,
            mac,
            link_header: true,
            bridge: false,
            below: None,
            above: Vec::new(),
            netns,
            xdp: Vec::new(),
        }
    }

    #[test]
    fn packets_leave_through_the_nearest_watched_interface_below_and_the_outer_tag_counts() {
        let on = |index: u32, lower: u32, vlan| NetDev { below: Some(Below { index: lower, vlan }), ..dev("d", index) };
        // A VLAN on a bond of one active port; on that another VLAN, and a macvlan; a VLAN of a device that nobody watches.
        let devices = [dev("eth0", 2), on(5, 2, 0), on(6, 5, 100), on(7, 6, 7), on(8, 6, 0), on(12, 4, 3)];
        let of = |watched: &[u32]| -> Vec<(u32, u32, u16)> {
            let keys = watched.iter().map(|index| IfKey { netns_inum: 1, index: *index }).collect();
            on_top(&devices, &keys).iter().map(|o| (o.upper, o.below.index, o.below.vlan)).collect()
        };
        assert_eq!(of(&[2]), [(5, 2, 0), (6, 2, 100), (7, 2, 100), (8, 2, 100)]);
        assert_eq!(of(&[2, 6]), [(5, 2, 0), (6, 2, 100), (7, 6, 7), (8, 6, 0)]);
        assert_eq!(of(&[3]), []);
    }

    fn none() -> BTreeMap<NetnsName, u32> {
        BTreeMap::new()
    }

    fn capture(id: &str, interface: Selector) -> CaptureSpec {
        CaptureSpec {
            interface,
            interface_id: Some(id.to_owned()),
            account_id: None,
            hook: HookKind::Tc,
            side: Side::Guest,
            wait: true,
            translations: false,
            labels: Labels::default(),
            rule: Rule::sample(60),
            called: None,
        }
    }

    #[test]
    fn one_interface_is_captured_once_and_the_second_one_is_told() {
        let captures = [capture("a", Selector::name("tap0")), capture("b", Selector::mac(Mac([2, 0, 0, 0, 0, 5])))];
        let found = resolve(&captures, "n", (&[dev("tap0", 5)], &none()), &BTreeMap::new());
        assert!(found.wanted.contains_key("a") && found.wanted.len() == 1);
        assert!(
            matches!(&found.absent["b"], Absent::Taken(why) if why.contains("tap0 is captured as a already")),
            "{:?}",
            found.absent
        );
    }

    #[test]
    fn interfaces_of_one_index_in_two_namespaces_are_two() {
        let other = NetDev { netns: Netns::at(2, Some("blue")), mac: Some(Mac([2, 0, 0, 0, 0, 9])), ..dev("tap0", 5) };
        let captures = [capture("a", Selector::name("tap0")), capture("b", Selector::mac(Mac([2, 0, 0, 0, 0, 9])))];
        let found = resolve(&captures, "n", (&[dev("tap0", 5), other], &none()), &BTreeMap::new());
        let key = |id: &str| found.wanted[id].spec.key();
        assert_eq!((key("a"), key("b")), (IfKey { netns_inum: 1, index: 5 }, IfKey { netns_inum: 2, index: 5 }));
    }

    #[test]
    fn a_watched_interface_under_another_name_is_still_watched() {
        let captures = [capture("a", Selector::name("tap0"))];
        let mut ledger = Ledger::default();
        let before = resolve(&captures, "n", (&[dev("tap0", 5)], &none()), &BTreeMap::new());
        let span = *WindowClock::new(60, Now { mono: MonoNs(0), wall: WallNs(0) }).current();
        let spec = before.wanted["a"].spec.clone();
        ledger.apply(Event::Watch {
            id: IfaceId(1),
            spec: Box::new(spec.clone()),
            span,
            epoch: Epoch(1),
            gap: None,
            since_secs: None,
        });
        let known = BTreeMap::from([("a", spec.bound())]);
        assert!(resolve(&captures, "n", (&[dev("vm-a", 5)], &none()), &known).is_watched(&ledger));
        let gone = resolve(&captures, "n", (&[dev("vm-a", 6)], &none()), &known);
        assert!(
            matches!(&gone.absent["a"], Absent::Waiting(why) if why.contains("interface tap0"))
                && !gone.is_watched(&ledger)
        );
        // A new one with the name is meant, and it is another one.
        let new = resolve(&captures, "n", (&[dev("vm-a", 5), dev("tap0", 6)], &none()), &known);
        assert!(new.wanted["a"].dev.index == 6 && !new.is_watched(&ledger));
    }
}
