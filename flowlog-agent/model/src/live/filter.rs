//! Which flows are asked for. Conditions of one kind are alternatives, kinds restrict each other, and what is unwanted is left out
//! whatever else holds.

use std::{cmp::Reverse, collections::BTreeSet, mem::discriminant, net::IpAddr};

use super::Verdict;
use crate::rule::{Direction, InvalidField, words};

/// Most conditions of a filter: each costs a comparison for each record.
pub const CONDITIONS_MAX: usize = 64;
/// Names that are shown of those that there are, where one is asked for that is none of them.
const NAMES_SHOWN: usize = 8;
/// What in front of a key makes a condition an unwanted one.
pub const NOT: &str = "not.";

/// Protocols that have a name in filters and lines.
pub(super) const PROTOCOLS: &[(&str, u8)] = &[
    ("icmp", 1),
    ("igmp", 2),
    ("tcp", 6),
    ("udp", 17),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("icmp6", 58),
    ("sctp", 132),
];

/// Addresses that share their first bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    bits: u8,
}

impl Cidr {
    /// An address, or a network.
    ///
    /// # Errors
    /// If it is neither.
    pub fn parse(field: &'static str, value: &str) -> Result<Self, InvalidField> {
        let invalid =
            || InvalidField::new(field, value, "use an address, or a network such as `10.0.0.0/8` or `fd00::/8`");
        let (address, bits) = value.split_once('/').map_or((value, None), |(a, b)| (a, Some(b)));
        let address: IpAddr = address.parse().map_err(|_unreadable| invalid())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), |b| b.parse().map_err(|_unreadable| invalid()))?;
        if bits <= most { Ok(Self { address, bits }) } else { Err(invalid()) }
    }

    /// Whether an address is among them.
    #[must_use]
    pub fn contains(&self, other: IpAddr) -> bool {
        let common = |a: u128, b: u128, width: u32| (a ^ b).checked_shr(width - u32::from(self.bits)).unwrap_or(0) == 0;
        match (self.address, other) {
            (IpAddr::V4(a), IpAddr::V4(b)) => common(u32::from(a).into(), u32::from(b).into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => common(a.into(), b.into(), 128),
            _ => false,
        }
    }
}

/// One thing that may be asked of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Condition {
    Verdict(Verdict),
    Ip(Cidr),
    Source(Cidr),
    Destination(Cidr),
    Port(u16),
    Protocol(u8),
    Direction(Direction),
    /// Name or id of an interface.
    Interface(String),
    FlowLog(String),
    Reason(String),
}

/// Keys of conditions, as in queries; the command line has `-` for `_`.
pub const KEYS: [&str; 10] =
    ["verdict", "ip", "src", "dst", "port", "proto", "direction", "interface", "flow_log", "reason"];

/// What there is to know of a flow before it is shown.
#[derive(Clone, Copy, Debug)]
pub struct FlowFacts<'a> {
    /// What became of its packets.
    pub verdict: Verdict,
    /// Source.
    pub src: IpAddr,
    /// Destination.
    pub dst: IpAddr,
    /// Ports, if its protocol has them.
    pub ports: Option<(u16, u16)>,
    /// Number of its IP protocol.
    pub protocol: u8,
    /// As the interface's owner sees it.
    pub direction: Direction,
    /// The kernel's name for why its packets died.
    pub reason: Option<&'a str>,
}

/// What there is to know of an interface.
#[derive(Clone, Copy, Debug)]
pub struct InterfaceFacts<'a> {
    /// Its name on the node.
    pub interface: &'a str,
    /// Its id.
    pub interface_id: &'a str,
    /// What its flow log is called.
    pub flow_log: &'a str,
}

/// See the module's head.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowFilter {
    wanted: Vec<Condition>,
    unwanted: Vec<Condition>,
}

impl Condition {
    fn parse(key: &str, value: &str) -> Result<Option<Self>, InvalidField> {
        Ok(Some(match key {
            "verdict" => Self::Verdict(value.parse()?),
            "ip" => Self::Ip(Cidr::parse("ip", value)?),
            "src" => Self::Source(Cidr::parse("src", value)?),
            "dst" => Self::Destination(Cidr::parse("dst", value)?),
            "port" => {
                Self::Port(value.parse().map_err(|_unreadable| InvalidField::new("port", value, "use 0 to 65535"))?)
            }
            "proto" => Self::Protocol(protocol(value)?),
            "direction" => {
                let named = Direction::BOTH.into_iter().find(|d| d.as_str() == value);
                let rule = || words(&Direction::BOTH.map(Direction::as_str));
                Self::Direction(named.ok_or_else(|| InvalidField::new("direction", value, rule()))?)
            }
            "interface" => Self::Interface(value.to_owned()),
            "flow_log" => Self::FlowLog(value.to_owned()),
            "reason" => Self::Reason(value.to_owned()),
            _ => return Ok(None),
        }))
    }

    fn is_of_interface(&self) -> bool {
        matches!(self, Self::Interface(_) | Self::FlowLog(_))
    }

    fn takes_interface(&self, of: &InterfaceFacts<'_>) -> bool {
        match self {
            Self::Interface(name) => name == of.interface || name == of.interface_id,
            Self::FlowLog(name) => name == of.flow_log,
            _ => true,
        }
    }

    fn takes(&self, flow: &FlowFacts<'_>) -> bool {
        match self {
            Self::Verdict(verdict) => *verdict == flow.verdict,
            Self::Ip(net) => net.contains(flow.src) || net.contains(flow.dst),
            Self::Source(net) => net.contains(flow.src),
            Self::Destination(net) => net.contains(flow.dst),
            Self::Port(port) => flow.ports.is_some_and(|(src, dst)| *port == src || *port == dst),
            Self::Protocol(protocol) => *protocol == flow.protocol,
            Self::Direction(direction) => *direction == flow.direction,
            Self::Reason(name) => flow.reason.is_some_and(|reason| reason.eq_ignore_ascii_case(name)),
            Self::Interface(_) | Self::FlowLog(_) => true,
        }
    }
}

fn protocol(value: &str) -> Result<u8, InvalidField> {
    let named = PROTOCOLS.iter().find(|(name, _)| name.eq_ignore_ascii_case(value)).map(|(_, number)| *number);
    let all: Vec<&str> = PROTOCOLS.iter().map(|(name, _)| *name).collect();
    let invalid = || InvalidField::new("proto", value, format!("{}, or a number up to 255", words(&all)));
    named.or_else(|| value.parse().ok()).ok_or_else(invalid)
}

/// Names that there are, as many as one reads.
fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: BTreeSet<&str> = names.collect();
    let shown: Vec<&str> = names.iter().copied().take(NAMES_SHOWN).collect();
    match names.len() - shown.len() {
        _ if names.is_empty() => "there is none".to_owned(),
        0 => format!("there are: {}", shown.join(", ")),
        more => format!("there are: {}, and {more} more", shown.join(", ")),
    }
}

/// Drop reasons that share most of their words with a name.
fn near(name: &str, reasons: &[String]) -> String {
    let asked = name.to_ascii_uppercase();
    let parts: Vec<&str> = asked.split('_').filter(|part| part.len() > 1).collect();
    let shared = |reason: &str| parts.iter().filter(|part| reason.contains(**part)).count();
    let mut near: Vec<&str> = reasons.iter().map(String::as_str).filter(|r| shared(r) > 0).collect();
    near.sort_by_key(|reason| (Reverse(shared(reason)), reason.len()));
    near.truncate(NAMES_SHOWN);
    if near.is_empty() { "docs/reasons.md has all".to_owned() } else { format!("there are: {}", near.join(", ")) }
}

impl FlowFilter {
    /// Adds a condition; `false`: there is none of this name. `not.` in front of the key makes it an unwanted one.
    ///
    /// # Errors
    /// For a value that the condition does not take, and past [`CONDITIONS_MAX`].
    pub fn add(&mut self, key: &str, value: &str) -> Result<bool, InvalidField> {
        let (side, key) = match key.strip_prefix(NOT) {
            Some(key) => (&mut self.unwanted, key),
            None => (&mut self.wanted, key),
        };
        let Some(condition) = Condition::parse(key, value)? else { return Ok(false) };
        side.push(condition);
        if self.wanted.len() + self.unwanted.len() > CONDITIONS_MAX {
            return Err(InvalidField::new("filter", value, format!("use {CONDITIONS_MAX} conditions at most")));
        }
        Ok(true)
    }

    /// Whether flows of an interface can be among those that are asked for.
    #[must_use]
    pub fn takes_interface(&self, of: &InterfaceFacts<'_>) -> bool {
        let unwanted = self.unwanted.iter().filter(|c| c.is_of_interface()).any(|c| c.takes_interface(of));
        !unwanted && self.all_kinds(|c| c.takes_interface(of))
    }

    /// Whether a flow of an interface that is [taken](Self::takes_interface) is asked for.
    #[must_use]
    pub fn takes(&self, flow: &FlowFacts<'_>) -> bool {
        let unwanted = self.unwanted.iter().filter(|c| !c.is_of_interface()).any(|c| c.takes(flow));
        !unwanted && self.all_kinds(|c| c.takes(flow))
    }

    /// What it asks for, or does not want, by a name that nothing has: of these interfaces, and of these drop reasons.
    #[must_use]
    pub fn unknown(&self, interfaces: &[InterfaceFacts<'_>], reasons: &[String]) -> Vec<String> {
        let is_known = |c: &&Condition| match c {
            Condition::Reason(name) => reasons.iter().any(|r| r.eq_ignore_ascii_case(name)),
            named if named.is_of_interface() => interfaces.iter().any(|of| named.takes_interface(of)),
            _ => true,
        };
        let words = |c: &Condition| match c {
            Condition::Interface(name) => {
                let there = listed(interfaces.iter().map(|of| of.interface));
                format!("no interface with the name or id `{name}` is captured now; {there}")
            }
            Condition::FlowLog(name) => {
                let there = listed(interfaces.iter().map(|of| of.flow_log));
                format!("no flow log with the name `{name}` captures now; {there}")
            }
            Condition::Reason(name) => format!("this kernel has no drop reason `{name}`; {}", near(name, reasons)),
            _ => String::new(),
        };
        self.wanted.iter().chain(&self.unwanted).filter(|c| !is_known(c)).map(words).collect()
    }

    /// Whether of each kind of wanted conditions one holds.
    fn all_kinds(&self, holds: impl Fn(&Condition) -> bool) -> bool {
        self.wanted
            .iter()
            .all(|one| self.wanted.iter().filter(|other| discriminant(*other) == discriminant(one)).any(&holds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(pairs: &[(&str, &str)]) -> FlowFilter {
        let mut filter = FlowFilter::default();
        for (key, value) in pairs {
            assert!(filter.add(key, value).expect("good"), "{key}");
        }
        filter
    }

    fn flow() -> FlowFacts<'static> {
        FlowFacts {
            verdict: Verdict::Rejected,
            src: "10.1.2.3".parse().expect("an address"),
            dst: "10.9.0.1".parse().expect("an address"),
            ports: Some((4_431, 22)),
            protocol: 6,
            direction: Direction::Ingress,
            reason: Some("NETFILTER_DROP"),
        }
    }

    #[test]
    fn kinds_restrict_each_other_values_of_one_kind_are_alternatives_and_unwanted_ones_win() {
        for (pairs, expected) in [
            (&[][..], true),
            (&[("verdict", "rejected")], true),
            (&[("verdict", "accepted")], false),
            (&[("verdict", "accepted"), ("verdict", "rejected")], true),
            (&[("ip", "10.9.0.0/16")], true),
            (&[("ip", "10.8.0.0/16"), ("ip", "10.1.2.3")], true),
            (&[("src", "10.9.0.0/16")], false),
            (&[("dst", "10.9.0.1")], true),
            (&[("port", "22"), ("proto", "udp")], false),
            (&[("port", "4431"), ("proto", "TCP")], true),
            (&[("proto", "6"), ("direction", "ingress"), ("reason", "netfilter_drop")], true),
            (&[("not.port", "22")], false),
            (&[("verdict", "rejected"), ("not.ip", "fd00::/8")], true),
            (&[("verdict", "rejected"), ("not.reason", "NETFILTER_DROP")], false),
        ] {
            assert_eq!(filter(pairs).takes(&flow()), expected, "{pairs:?}");
        }
        let no_ports = FlowFacts { ports: None, reason: None, ..flow() };
        assert!(!filter(&[("port", "0")]).takes(&no_ports) && filter(&[("not.reason", "X")]).takes(&no_ports));
    }

    #[test]
    fn interfaces_are_meant_by_name_or_id_and_by_their_flow_log() {
        let of = InterfaceFacts { interface: "tap0", interface_id: "nic-1", flow_log: "web" };
        for (pairs, expected) in [
            (&[("interface", "tap0")][..], true),
            (&[("interface", "nic-1"), ("flow_log", "web")], true),
            (&[("interface", "tap1")], false),
            (&[("not.flow_log", "web")], false),
            (&[("not.interface", "tap1"), ("verdict", "lost"), ("not.port", "22")], true),
        ] {
            assert_eq!(filter(pairs).takes_interface(&of), expected, "{pairs:?}");
        }
    }

    #[test]
    fn names_that_nothing_has_are_said_with_those_that_there_are() {
        let of = |interface| InterfaceFacts { interface, interface_id: "nic-1", flow_log: "web" };
        let here = [of("tap0"), of("tap1")];
        let reasons = ["NETFILTER_DROP", "NO_SOCKET", "QDISC_DROP", "TCP_CSUM"].map(str::to_owned);
        let known =
            filter(&[("interface", "tap0"), ("interface", "nic-1"), ("flow_log", "web"), ("reason", "no_socket")]);
        assert_eq!(known.unknown(&here, &reasons), [""; 0]);
        let unknown =
            filter(&[("interface", "tap9"), ("not.flow_log", "old"), ("reason", "netfilter"), ("reason", "nope")]);
        let words = unknown.unknown(&here, &reasons);
        for (said, expected) in words.iter().zip([
            "no interface with the name or id `tap9` is captured now; there are: tap0, tap1",
            "this kernel has no drop reason `netfilter`; there are: NETFILTER_DROP",
            "this kernel has no drop reason `nope`; docs/reasons.md has all",
            "no flow log with the name `old` captures now; there are: web",
        ]) {
            assert_eq!(said, expected);
        }
        assert_eq!(words.len(), 4);
        assert!(filter(&[("interface", "x")]).unknown(&[], &[])[0].ends_with("; there is none"));
        let names: Vec<String> = (0..20).map(|n| format!("tap{n:02}")).collect();
        let many: Vec<InterfaceFacts> = names.iter().map(|name| of(name)).collect();
        assert!(filter(&[("interface", "x")]).unknown(&many, &[])[0].ends_with("tap07, and 12 more"));
    }

    #[test]
    fn networks_hold_what_shares_their_bits() {
        let holds = |net: &str, address: &str| {
            Cidr::parse("ip", net).expect("a network").contains(address.parse().expect("an address"))
        };
        assert!(holds("0.0.0.0/0", "255.1.2.3") && holds("::/0", "fd00::1") && !holds("::/0", "1.2.3.4"));
        assert!(holds("10.0.0.8/29", "10.0.0.15") && !holds("10.0.0.8/29", "10.0.0.16"));
        assert!(holds("fd00::/9", "fd7f::1") && !holds("fd00::/9", "fd80::1"));
        assert!(holds("1.2.3.4", "1.2.3.4") && !holds("1.2.3.4", "1.2.3.5"));
    }

    #[test]
    fn bad_conditions_are_named_with_their_rule() {
        for (key, value, says) in [
            ("ip", "10.0.0.0/33", "ip `10.0.0.0/33`: use an address, or a network"),
            ("src", "nobody", "src `nobody`: use an address"),
            ("port", "65536", "port `65536`: use 0 to 65535"),
            ("proto", "carrier", "proto `carrier`: use `icmp`, `igmp`, `tcp`"),
            ("verdict", "dropped", "verdict `dropped`: use `accepted`, `rejected` or `lost`"),
            ("not.direction", "up", "direction `up`: use `ingress` or `egress`"),
        ] {
            let error = FlowFilter::default().add(key, value).expect_err("bad").to_string();
            assert!(error.starts_with(says), "{error}");
        }
        assert_eq!(FlowFilter::default().add("colour", "red"), Ok(false));
        let mut full = FlowFilter::default();
        assert!((0..CONDITIONS_MAX).all(|_| full.add("port", "1") == Ok(true)) && full.add("not.port", "1").is_err());
        assert!(
            KEYS.iter()
                .all(|key| FlowFilter::default().add(key, "?").is_err() || filter(&[(key, "?")]).wanted.len() == 1)
        );
    }
}
