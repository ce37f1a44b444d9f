//! The way of a packet through the host: which interfaces see it and which firewall hooks judge it, in order.

use super::topology::{Endpoint, Kind, Topology};

/// Way through an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    Ingress,
    Egress,
}

impl Way {
    /// As in the column `flow_direction`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// Where a rule can stand.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// netdev ingress of a device.
    NetdevIngress(String),
    /// netdev egress of a device.
    NetdevEgress(String),
    BridgePrerouting,
    BridgeInput,
    BridgeForward,
    BridgeOutput,
    BridgePostrouting,
    /// inet prerouting before connection tracking.
    Raw,
    /// inet prerouting before translation.
    Prerouting,
    /// inet prerouting after translation.
    PreroutingLate,
    Input,
    Forward,
    /// inet output before connection tracking.
    RawOutput,
    Output,
    /// inet postrouting before translation.
    Postrouting,
    /// inet postrouting after translation.
    PostroutingLate,
}

impl Hook {
    /// Whether the rule is one of the table family `inet`: it sees layer 3 only.
    #[must_use]
    pub const fn is_inet(&self) -> bool {
        !matches!(
            self,
            Self::NetdevIngress(_)
                | Self::NetdevEgress(_)
                | Self::BridgePrerouting
                | Self::BridgeInput
                | Self::BridgeForward
                | Self::BridgeOutput
                | Self::BridgePostrouting
        )
    }

    /// Whether `reject` may stand here: nowhere after routing, and not on bridges (which not every kernel can).
    #[must_use]
    pub const fn can_reject(&self) -> bool {
        matches!(
            self,
            Self::NetdevIngress(_)
                | Self::Raw
                | Self::Prerouting
                | Self::PreroutingLate
                | Self::Input
                | Self::Forward
                | Self::RawOutput
                | Self::Output
        )
    }

    /// Whether a packet that dies here is known to have been on its way out, through the next device.
    const fn knows_the_way_out(&self) -> bool {
        matches!(
            self,
            Self::NetdevEgress(_)
                | Self::BridgeForward
                | Self::BridgeOutput
                | Self::BridgePostrouting
                | Self::Forward
                | Self::RawOutput
                | Self::Output
                | Self::Postrouting
                | Self::PostroutingLate
        )
    }
}

/// One thing that happens to a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Point {
    /// An interface's hook sees it.
    Station(String, Way),
    /// A firewall hook judges it.
    Hook(Hook),
    /// Connection tracking, if there is any, puts fragments together.
    Defragment,
    /// The host puts fragments together for its own sockets.
    DefragmentLocal,
    /// A copy is made.
    Tee,
    /// The destination is translated.
    Translate,
    /// It is cut into fragments.
    Fragment,
}

/// The way from one end to the other; none if there is none.
#[must_use]
pub fn path(t: &Topology, from: Endpoint, to: Endpoint) -> Option<Vec<Point>> {
    let addressed = |g: usize| t.segments[t.segment_of(g)].addressed;
    let mut way = Vec::new();
    match (from, to) {
        (Endpoint::Guest(a), Endpoint::Guest(b)) if a == b => return None,
        (Endpoint::Guest(a), Endpoint::Guest(b)) if t.segment_of(a) == t.segment_of(b) => bridged(&mut way, a, b),
        (Endpoint::Guest(a), Endpoint::Guest(b)) if addressed(a) && addressed(b) => {
            up(t, &mut way, a);
            prerouting(&mut way);
            way.push(Point::Hook(Hook::Forward));
            postrouting(&mut way);
            down(t, &mut way, b);
        }
        (Endpoint::Guest(a), Endpoint::Host) if addressed(a) => {
            up(t, &mut way, a);
            prerouting(&mut way);
            way.extend([Point::DefragmentLocal, Point::Hook(Hook::Input)]);
        }
        (Endpoint::Host, Endpoint::Guest(b)) if addressed(b) => {
            way.extend([Point::Hook(Hook::RawOutput), Point::Hook(Hook::Output)]);
            postrouting(&mut way);
            down(t, &mut way, b);
        }
        _ => return None,
    }
    Some(way)
}

/// The way of a copy that the host sends to a guest.
#[must_use]
pub fn copy_path(t: &Topology, to: usize) -> Vec<Point> {
    path(t, Endpoint::Host, Endpoint::Guest(to)).unwrap_or_default()
}

fn bridged(way: &mut Vec<Point>, a: usize, b: usize) {
    let a = format!("p{a}");
    let b = format!("p{b}");
    way.push(Point::Station(a.clone(), Way::Ingress));
    way.extend(
        [
            Hook::NetdevIngress(a),
            Hook::BridgePrerouting,
            Hook::BridgeForward,
            Hook::BridgePostrouting,
            Hook::NetdevEgress(b.clone()),
        ]
        .map(Point::Hook),
    );
    way.push(Point::Station(b, Way::Egress));
}

fn up(t: &Topology, way: &mut Vec<Point>, guest: usize) {
    let kind = t.segments[t.segment_of(guest)].kind;
    for (height, device) in t.chain(guest).into_iter().enumerate() {
        way.push(Point::Station(device.clone(), Way::Ingress));
        way.push(Point::Hook(Hook::NetdevIngress(device)));
        if height == 0 && matches!(kind, Kind::Bridge | Kind::BridgeMacvlan) {
            way.extend([Hook::BridgePrerouting, Hook::BridgeInput].map(Point::Hook));
        }
    }
}

fn down(t: &Topology, way: &mut Vec<Point>, guest: usize) {
    for device in t.chain(guest).into_iter().rev() {
        let bridge = device.starts_with("br");
        way.push(Point::Hook(Hook::NetdevEgress(device.clone())));
        way.push(Point::Station(device, Way::Egress));
        if bridge {
            way.extend([Hook::BridgeOutput, Hook::BridgePostrouting].map(Point::Hook));
        }
    }
}

fn prerouting(way: &mut Vec<Point>) {
    way.extend([
        Point::Defragment,
        Point::Hook(Hook::Raw),
        Point::Tee,
        Point::Hook(Hook::Prerouting),
        Point::Translate,
        Point::Hook(Hook::PreroutingLate),
    ]);
}

fn postrouting(way: &mut Vec<Point>) {
    way.extend([Point::Hook(Hook::Postrouting), Point::Hook(Hook::PostroutingLate), Point::Fragment]);
}

/// Where a packet that dies at point `at` is a REJECT row although those interfaces' hooks have not seen it: on its way out, where the
/// device was known by then, on a bridge the port that it would have picked, and below a VLAN the device; or on its way in through a bridge that was about to
/// receive it.
#[must_use]
pub fn refused_unseen(way: &[Point], at: usize) -> Vec<(String, Way)> {
    let Point::Hook(hook) = &way[at] else { return Vec::new() };
    if *hook == Hook::BridgeInput {
        let in_through = way[at..].iter().find_map(|p| match p {
            Point::Station(device, Way::Ingress) => Some((device.clone(), Way::Ingress)),
            _ => None,
        });
        return in_through.into_iter().collect();
    }
    if !hook.knows_the_way_out() {
        return Vec::new();
    }
    let mut out = way[at..].iter().filter_map(|p| match p {
        Point::Hook(Hook::NetdevEgress(device)) => Some((device.clone(), Way::Egress)),
        _ => None,
    });
    let mut unseen: Vec<_> = out.next().into_iter().collect();
    // A VLAN is named `DEVICE.ID`.
    if unseen.first().is_some_and(|(device, _)| device.starts_with("br") || device.contains('.')) {
        unseen.extend(out.next());
    }
    unseen
}

/// Whether fragments are whole when they come to point `at`.
#[must_use]
pub fn is_whole(way: &[Point], at: usize, from: Endpoint, tracked: bool) -> bool {
    way[..at].iter().fold(from == Endpoint::Host, |whole, point| match point {
        Point::Defragment => whole || tracked,
        Point::DefragmentLocal => true,
        Point::Fragment => false,
        _ => whole,
    })
}
