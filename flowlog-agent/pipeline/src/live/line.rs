//! What is shown of a record, or of a flow.

use std::net::IpAddr;

use flowlog_ebpf::{abi::class, packet::has_ports};
use flowlog_model::{
    Now, WatchSpec,
    live::{
        FlowLine, Verdict,
        filter::{FlowFacts, InterfaceFacts},
    },
    rule::{Action, Direction},
};
use jiff::Timestamp;

use super::LineNames;
use crate::window::{Flow, block};

/// A watched interface, as those who look know it.
#[derive(Debug)]
pub(crate) struct Place {
    pub spec: WatchSpec,
    /// What its flow log is called.
    pub flow_log: String,
}

/// What is to be shown, before anybody has asked whether it is wanted.
pub(crate) struct Seen {
    pub flow: Flow,
    pub verdict: Verdict,
    /// Of refused packets: an accepted line, or sum, may have held them before.
    pub was_accepted: bool,
    src: IpAddr,
    dst: IpAddr,
}

impl Place {
    pub(crate) fn facts(&self) -> InterfaceFacts<'_> {
        let WatchSpec { interface, interface_id, .. } = &self.spec;
        InterfaceFacts { interface, interface_id, flow_log: &self.flow_log }
    }

    pub(crate) fn account_id(&self) -> Option<&str> {
        self.spec.account_id.as_deref()
    }

    /// Whether the rule has rows for packets of this verdict.
    fn takes(&self, verdict: Verdict) -> bool {
        match self.spec.rule.action {
            Action::Any => true,
            Action::Accepted => verdict != Verdict::Rejected,
            Action::Rejected => verdict == Verdict::Rejected,
        }
    }

    /// What the interface's owner calls a direction.
    pub(crate) fn direction(&self, hook: Direction) -> Direction {
        self.spec.side.owners(hook)
    }
}

impl Seen {
    /// A record, if it has packets that the rule has rows for.
    pub(crate) fn of_record(record: &block::Record, place: &Place) -> Option<Self> {
        let of_class = record.meta().class();
        let verdict = match of_class {
            class::PASSED => Verdict::Accepted,
            class::LOST => Verdict::Lost,
            class::TOLD => return None,
            _ => Verdict::Rejected,
        };
        let flow = Flow::of_record(record);
        Self::of_flow(flow, verdict, of_class == class::REFUSED_COUNTED, place)
    }

    pub(crate) fn of_flow(flow: Flow, verdict: Verdict, was_accepted: bool, place: &Place) -> Option<Self> {
        let (src, dst) = flow.addresses.ips();
        let is_wanted = place.takes(verdict) && place.spec.captures(flow.direction);
        is_wanted.then_some(Self { flow, verdict, was_accepted, src, dst })
    }

    /// Source and destination.
    pub(crate) fn addresses(&self) -> [IpAddr; 2] {
        [self.src, self.dst]
    }

    /// Source and destination port, if its protocol has ports.
    pub(crate) fn ports(&self) -> Option<(u16, u16)> {
        has_ports(self.flow.proto).then_some((self.flow.sport, self.flow.dport))
    }

    pub(crate) fn facts<'a>(&self, place: &Place, reason: Option<&'a str>) -> FlowFacts<'a> {
        FlowFacts {
            verdict: self.verdict,
            src: self.src,
            dst: self.dst,
            ports: self.ports(),
            protocol: self.flow.proto,
            direction: place.direction(self.flow.direction),
            reason,
        }
    }

    /// The kernel's name for why its packets died, if they did.
    pub(crate) fn reason(&self, names: &LineNames) -> Option<String> {
        if self.verdict == Verdict::Accepted { None } else { (names.reason)(self.flow.reason) }
    }

    pub(crate) fn line(&self, place: &Place, reason: Option<String>, names: &LineNames, now: Now) -> FlowLine {
        let Flow { proto, vlan, totals, mark, .. } = self.flow;
        let ports = self.ports();
        let icmp = self.flow.icmp();
        let (rejected, lost) = (self.verdict == Verdict::Rejected, self.verdict == Verdict::Lost);
        let counts = (totals.packets, totals.bytes);
        let (packets, bytes) = if lost { (0, 0) } else { counts };
        FlowLine {
            time: rfc3339(i64::try_from(totals.last_ns).unwrap_or(i64::MAX).saturating_add(now.wall_minus_mono())),
            flow_log: place.flow_log.clone(),
            interface_id: place.spec.interface_id.clone(),
            interface: place.spec.interface.clone(),
            action: if rejected { "REJECT" } else { "ACCEPT" }.to_owned(),
            flow_direction: place.direction(self.flow.direction).as_str().to_owned(),
            protocol: proto,
            srcaddr: self.src.to_string(),
            srcport: ports.map(|(src, _)| src),
            dstaddr: self.dst.to_string(),
            dstport: ports.map(|(_, dst)| dst),
            icmp_type: icmp.map(|(kind, _)| kind),
            icmp_code: icmp.map(|(_, code)| code),
            packets,
            bytes,
            tcp_flags: self.flow.tcp_flags().filter(|_| !lost),
            vlan_id: (vlan != 0).then_some(vlan),
            verdict_rule: rejected.then(|| (names.rule)(mark, self.flow.reason)).flatten(),
            lost_packets: lost.then_some(counts.0),
            lost_bytes: lost.then_some(counts.1),
            reject_reason: reason.clone().filter(|_| rejected),
            lost_reason: reason.filter(|_| lost),
        }
    }
}

/// A point in time, in microseconds.
pub(crate) fn rfc3339(wall_ns: i64) -> String {
    Timestamp::from_nanosecond(wall_ns.into()).map_or_else(|_| String::new(), |time| format!("{time:.6}"))
}
