//! What each watched interface has to show for each flow, from what was sent and what the firewall says it refused.

use std::collections::BTreeMap;

use super::{
    flows::{FRAGMENTS, Flow, Proto},
    path::{self, Hook, Point, Way},
    rules,
    send::Sent,
    topology::{Endpoint, Kind, Topology},
};
use crate::rows::Row;

/// Packets and bytes of nftables counters, by name.
pub type Counters = BTreeMap<String, (u64, u64)>;

/// How rows of a flow are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// By protocol and destination port.
    To(i64, u16),
    /// By protocol and source port: answers.
    From(i64, u16),
    /// By ICMP type and addresses.
    Echo(i64, String, String),
    /// By a source address that only this flow has.
    Source(String),
}

impl Key {
    /// Whether the row is of this flow.
    #[must_use]
    pub fn has(&self, row: &Row) -> bool {
        match self {
            Self::To(protocol, port) => row.protocol == *protocol && row.dport == i64::from(*port),
            Self::From(protocol, port) => row.protocol == *protocol && row.sport == i64::from(*port),
            Self::Echo(kind, src, dst) => {
                matches!(row.protocol, 1 | 58) && row.icmp_type == *kind && row.src == *src && row.dst == *dst
            }
            Self::Source(src) => row.protocol == 17 && row.src == *src,
        }
    }
}

/// Packets, and bytes where all packets of the flow have the same size, or its fragments are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount {
    pub packets: u64,
    /// Layer-3 bytes, where known.
    pub bytes: Option<u64>,
}

impl Amount {
    /// Whether this was found.
    #[must_use]
    pub fn is(&self, found: (u64, u64)) -> bool {
        self.packets == found.0 && self.bytes.is_none_or(|b| b == found.1)
    }
}

/// What one interface and direction must show of one flow.
#[derive(Clone, Debug)]
pub struct Expected {
    pub what: String,
    pub device: String,
    pub way: Way,
    pub key: Key,
    /// Source address on the wire, where it is known whatever the verdict.
    pub src: Option<String>,
    /// Destination address on the wire.
    pub dst: String,
    /// What its ACCEPT rows must add up to.
    pub accept: Amount,
    /// REJECT; any of these (a datagram that was refused before it was cut is one packet or three).
    pub reject: Vec<Amount>,
    /// Packets whose verdict may be unknown although they were accepted: the socket that got them refused them, or a copy of
    /// them was refused. Where both happened, both are said.
    pub unknowable: u64,
    /// What was refused may be of unknown verdict: it had been put together and cut again, or was a bridge's clone.
    pub doubtful: bool,
}

/// One sort of packets on one way.
struct Class<'a> {
    flow: &'a Flow,
    what: String,
    way: Vec<Point>,
    reply: bool,
    from: Endpoint,
    sent: u64,
    /// Point at which, and how many, were refused.
    refused: Option<(usize, u64)>,
}

/// Everything that must be found, on all interfaces, watched or not.
#[must_use]
pub fn expected(t: &Topology, flows: &[Flow], tracked: bool, sent: &Sent, counters: &Counters) -> Vec<Expected> {
    let packets = |name: &str| counters.get(name).map_or(0, |c| c.0);
    let mut all = Vec::new();
    for flow in flows {
        let rule = |reply: bool| flow.rule.as_ref().filter(|r| r.reply == reply);
        let refused = |reply: bool, way: &[Point]| {
            let rule = rule(reply)?;
            let at = way.iter().position(|p| *p == Point::Hook(rule.hook.clone()))?;
            Some((at, packets(&rules::counter(flow))))
        };
        let class = |what: &str, reply: bool, sent: u64| {
            let way = flow.path(t, reply);
            let from = if reply { flow.to } else { flow.from };
            let refused = refused(reply, &way);
            Class { flow, what: format!("flow {}{what}", flow.id), way, reply, from, sent, refused }
        };
        let forward = class("", false, sent.forward.get(&flow.id).copied().unwrap_or(0));
        let arrived = forward.sent - forward.refused.map_or(0, |r| r.1).min(forward.sent);
        if flow.echo {
            class(" reply", true, sent.reply.get(&flow.id).copied().unwrap_or(0)).expect(t, tracked, &mut all);
        } else if flow.proto == Proto::Ping {
            class(" reply", true, arrived).expect(t, tracked, &mut all);
        }
        if let Some(tee) = flow.tee {
            let made = forward.way.iter().position(|p| *p == Point::Tee).unwrap_or(0);
            let before = forward.refused.filter(|r| r.0 < made).map_or(0, |r| r.1);
            let way = path::copy_path(t, tee.guest);
            let output = way.iter().position(|p| *p == Point::Hook(Hook::Output)).unwrap_or(0);
            let refused = tee.refused.then(|| (output, packets(&rules::copy_counter(flow))));
            let what = format!("flow {} copies", flow.id);
            let from = Endpoint::Host;
            let sent = forward.sent - before;
            Class { flow, what, way, reply: false, from, sent, refused }.expect(t, tracked, &mut all);
        }
        forward.expect(t, tracked, &mut all);
    }
    all
}

impl Class<'_> {
    fn expect(&self, t: &Topology, tracked: bool, all: &mut Vec<Expected>) {
        let refused = self.refused.map_or(0, |r| r.1);
        let unseen = self.refused.map_or_else(Vec::new, |(at, _)| path::refused_unseen(&self.way, at));
        for (i, point) in self.way.iter().enumerate() {
            let Point::Station(device, way) = point else { continue };
            let seen = self.refused.is_some_and(|(at, _)| i < at);
            let is_unseen = unseen.contains(&(device.clone(), *way));
            let reject = if seen || is_unseen { refused } else { 0 };
            let (accept, mut reject) = self.amounts(tracked, i, refused, reject, seen);
            if is_unseen && self.flow.linear.is_some() {
                // Nobody who watches could read its headers.
                reject.push(Amount { packets: 0, bytes: Some(0) });
            }
            let (src, dst) = self.addresses(t, *way);
            all.push(Expected {
                what: self.what.clone(),
                device: device.clone(),
                way: *way,
                key: self.key(t, i),
                src,
                dst,
                accept,
                reject,
                unknowable: self.sent
                    * (u64::from(self.flow.filtered) + u64::from(self.flow.tee.is_some_and(|t| t.refused))),
                doubtful: self.cut_again() || (*way == Way::Ingress && self.is_clone(t)),
            });
        }
    }

    /// ACCEPT and possible REJECT at a station where `all` packets were refused in all and `reject` of them show.
    fn amounts(&self, tracked: bool, station: usize, all: u64, reject: u64, seen: bool) -> (Amount, Vec<Amount>) {
        let left = self.sent - all.min(self.sent);
        if !self.flow.big {
            let of = |packets: u64| Amount { packets, bytes: self.flow.bytes().map(|b| b * packets) };
            return (of(left), vec![of(reject)]);
        }
        let pieces = FRAGMENTS.len() as u64;
        let bytes = FRAGMENTS.iter().sum::<u64>();
        let whole = |n: u64| Amount { packets: n * pieces, bytes: Some(n * bytes) };
        let at = self.refused.map_or(0, |r| r.0);
        if path::is_whole(&self.way, at, self.from, tracked) {
            let mut possible = vec![whole(reject)];
            if !seen {
                possible.push(Amount { packets: reject, bytes: None });
            }
            return (whole(left), possible);
        }
        // Only first fragments have a port to match.
        let first = |n: u64| Amount { packets: n, bytes: Some(n * FRAGMENTS[0]) };
        let accept = Amount { packets: self.sent * pieces - all, bytes: Some(self.sent * bytes - all * FRAGMENTS[0]) };
        // Whoever puts fragments together waits in vain for a first one that was refused before.
        let waits = tracked && !seen && self.way[at..station].contains(&Point::Defragment);
        let ends = self.ends_the_datagram(tracked).is_some_and(|cut| cut < station);
        (if waits || ends { whole(left) } else { accept }, vec![first(reject)])
    }

    /// Point at which datagrams are cut by one who learns that the first fragment was refused, and gives the rest up: it
    /// is told by the device's egress hook, except through a bridge, which tells nothing.
    fn ends_the_datagram(&self, tracked: bool) -> Option<usize> {
        let cut = self.way.iter().position(|p| *p == Point::Fragment)?;
        let (at, _) = self.refused.filter(|r| r.0 > cut)?;
        let told = matches!(self.way[at], Point::Hook(Hook::NetdevEgress(_)));
        let bridged = self.way[cut..at].contains(&Point::Hook(Hook::BridgeOutput));
        (path::is_whole(&self.way, cut, self.from, tracked) && told && !bridged).then_some(cut)
    }

    /// Whether it was refused behind a point at which datagrams are cut again.
    fn cut_again(&self) -> bool {
        let cut = self.way.iter().position(|p| *p == Point::Fragment);
        self.flow.big && cut.zip(self.refused).is_some_and(|(cut, (at, _))| cut < at)
    }

    /// Whether what was refused is a clone that a promiscuous bridge forwards: it hands every frame up as well. A bridge is
    /// promiscuous under a macvlan, whose address it would have to filter for.
    fn is_clone(&self, t: &Topology) -> bool {
        let Endpoint::Guest(guest) = self.from else { return false };
        let forward = self.way.iter().position(|p| *p == Point::Hook(Hook::BridgeForward));
        t.segments[t.segment_of(guest)].kind == Kind::BridgeMacvlan
            && forward.zip(self.refused).is_some_and(|(forward, (at, _))| forward <= at)
    }

    fn key(&self, t: &Topology, at: usize) -> Key {
        let flow = self.flow;
        let protocol = if matches!(flow.proto, Proto::Udp) { 17 } else { 6 };
        if flow.proto == Proto::Ping {
            let kind = match (flow.v6, self.reply) {
                (false, false) => 8,
                (false, true) => 0,
                (true, false) => 128,
                (true, true) => 129,
            };
            let a = flow.source(t);
            let b = flow.receiver(t);
            return if self.reply { Key::Echo(kind, b, a) } else { Key::Echo(kind, a, b) };
        }
        if flow.big {
            return Key::Source(flow.source(t));
        }
        let port = flow.port_at(&self.way, at);
        if self.reply { Key::From(protocol, port) } else { Key::To(protocol, port) }
    }

    /// Source, where it is the same whatever the verdict, and destination on the wire.
    fn addresses(&self, t: &Topology, way: Way) -> (Option<String>, String) {
        let flow = self.flow;
        let source = flow.source(t);
        let receiver = flow.receiver(t);
        let target = flow.target(t);
        if self.what.ends_with("copies") {
            return (Some(source), target);
        }
        let outside = match flow.to {
            Endpoint::Guest(g) if flow.masquerade => Topology::host_address(t.segment_of(g), flow.v6),
            _ => source.clone(),
        };
        match (self.reply, way) {
            (false, Way::Ingress) => (Some(source), target),
            (false, Way::Egress) => ((!flow.masquerade).then_some(source), receiver),
            (true, Way::Ingress) => (Some(receiver), outside),
            (true, Way::Egress) => (flow.translated.is_none().then_some(receiver), source),
        }
    }
}
