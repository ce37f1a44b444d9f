//! The rule set of the host, and those of guests, as text for `nft -f`.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{
    flows::{Flow, Partial, Proto, Refusal},
    path::{Hook, Point},
    topology::{Endpoint, Topology},
};

/// Family, chain and its declaration.
fn chain(hook: &Hook) -> (&'static str, String, String) {
    let (family, what, hook_name, priority) = match hook {
        Hook::NetdevIngress(device) | Hook::NetdevEgress(device) => {
            let way = if matches!(hook, Hook::NetdevIngress(_)) { "ingress" } else { "egress" };
            let name = format!("{way}_{}", device.replace('.', "_"));
            return ("netdev", name, format!("type filter hook {way} device \"{device}\" priority 0"));
        }
        Hook::BridgePrerouting => ("bridge", "prerouting", "prerouting", 0),
        Hook::BridgeInput => ("bridge", "input", "input", 0),
        Hook::BridgeForward => ("bridge", "forward", "forward", 0),
        Hook::BridgeOutput => ("bridge", "output", "output", 0),
        Hook::BridgePostrouting => ("bridge", "postrouting", "postrouting", 0),
        Hook::Raw => ("inet", "raw", "prerouting", -300),
        Hook::Prerouting => ("inet", "prerouting", "prerouting", -150),
        Hook::PreroutingLate => ("inet", "prerouting_late", "prerouting", -50),
        Hook::Input => ("inet", "input", "input", 0),
        Hook::Forward => ("inet", "forward", "forward", 0),
        Hook::RawOutput => ("inet", "raw_output", "output", -300),
        Hook::Output => ("inet", "output", "output", 0),
        Hook::Postrouting => ("inet", "postrouting", "postrouting", 0),
        Hook::PostroutingLate => ("inet", "postrouting_late", "postrouting", 150),
    };
    (family, what.to_owned(), format!("type filter hook {hook_name} priority {priority}"))
}

const fn protocol(flow: &Flow) -> &'static str {
    match flow.proto {
        Proto::TcpSyn | Proto::TcpData => "tcp",
        Proto::Udp | Proto::Ping => "udp",
    }
}

/// What matches a flow's packets, or its replies, where they have this port.
fn matches(flow: &Flow, t: &Topology, reply: bool, port: u16) -> String {
    if flow.proto == Proto::Ping {
        let a = flow.source(t);
        let b = flow.receiver(t);
        let (a, b) = if reply { (b, a) } else { (a, b) };
        let what = if reply { "reply" } else { "request" };
        return if flow.v6 {
            format!("ip6 saddr {a} ip6 daddr {b} icmpv6 type echo-{what}")
        } else {
            format!("ip saddr {a} ip daddr {b} icmp type echo-{what}")
        };
    }
    format!("{} {} {port}", protocol(flow), if reply { "sport" } else { "dport" })
}

const fn statement(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Drop => "drop",
        Refusal::Reject => "reject",
        Refusal::Reset => "reject with tcp reset",
    }
}

/// Name of the counter of a flow's rule.
#[must_use]
pub fn counter(flow: &Flow) -> String {
    format!("c{}", flow.id)
}

/// Name of the counter of the rule for its copies.
#[must_use]
pub fn copy_counter(flow: &Flow) -> String {
    format!("t{}", flow.id)
}

/// Rules by family and chain.
#[derive(Default)]
struct Tables(BTreeMap<&'static str, (Vec<String>, Chains)>);

/// Head and rules of chains, by name.
type Chains = BTreeMap<String, (String, Vec<String>)>;

impl Tables {
    fn add(&mut self, hook: &Hook, counter: Option<&str>, rule: String) {
        let (family, name, declaration) = chain(hook);
        let (counters, chains) = self.0.entry(family).or_default();
        counters.extend(counter.map(ToOwned::to_owned));
        chains.entry(name).or_insert_with(|| (declaration, Vec::new())).1.push(rule);
    }
}

/// Rules of the host. With `tracked`, connections are tracked even if nothing is translated.
#[must_use]
pub fn host(flows: &[Flow], t: &Topology, tracked: bool) -> String {
    let mut tables = Tables::default();
    for flow in flows.iter().filter(|f| f.notrack) {
        let rule = format!("{} notrack", matches(flow, t, false, flow.port));
        tables.add(&Hook::Raw, None, rule.clone());
        tables.add(&Hook::RawOutput, None, rule);
    }
    for flow in flows {
        if let Some(rule) = &flow.rule {
            let way = flow.path(t, rule.reply);
            let at = way.iter().position(|p| *p == Point::Hook(rule.hook.clone())).unwrap_or(0);
            let partial = match rule.partial {
                Partial::All => String::new(),
                Partial::Over(burst) => format!(" limit rate over 1/hour burst {burst} packets"),
                Partial::EverySecond => " numgen inc mod 2 == 0".to_owned(),
            };
            let c = counter(flow);
            let what = statement(rule.refusal);
            let m = matches(flow, t, rule.reply, flow.port_at(&way, at));
            tables.add(&rule.hook, Some(&c), format!("{m}{partial} counter name {c} {what}"));
        }
        if let Some(tee) = flow.tee.filter(|tee| tee.refused) {
            let c = copy_counter(flow);
            let device = t.routed_device(t.segment_of(tee.guest));
            let m = matches(flow, t, false, flow.port);
            tables.add(&Hook::Output, Some(&c), format!("oifname \"{device}\" {m} counter name {c} drop"));
        }
    }
    let mut text = String::new();
    for (family, (counters, chains)) in tables.0 {
        let _ = writeln!(text, "table {family} f {{");
        for c in counters {
            let _ = writeln!(text, " counter {c} {{}}");
        }
        for (name, (declaration, rules)) in chains {
            let _ = writeln!(text, " chain {name} {{\n  {declaration}\n  {}\n }}", rules.join("\n  "));
        }
        text.push_str("}\n");
    }
    text + &translation(flows, t) + &copies(flows, t) + if tracked { TRACKED } else { "" }
}

/// A rule that looks at connections switches their tracking on.
const TRACKED: &str =
    "table inet c {\n chain c {\n  type filter hook prerouting priority 10\n  ct state new counter\n }\n}\n";

fn translation(flows: &[Flow], t: &Topology) -> String {
    let mut destination = String::new();
    let mut source = String::new();
    for flow in flows {
        let family = if flow.v6 { "ipv6" } else { "ipv4" };
        let proto = protocol(flow);
        if let Some(port) = flow.translated {
            let to = flow.receiver(t);
            let to = if flow.v6 { format!("ip6 to [{to}]:{port}") } else { format!("ip to {to}:{port}") };
            let _ = writeln!(destination, "  meta nfproto {family} {proto} dport {} dnat {to}", flow.port);
        }
        if flow.masquerade {
            let port = flow.translated.unwrap_or(flow.port);
            let _ = writeln!(source, "  meta nfproto {family} {proto} dport {port} masquerade");
        }
    }
    if destination.is_empty() && source.is_empty() {
        return String::new();
    }
    format!(
        "table inet n {{\n chain p {{\n  type nat hook prerouting priority -100\n{destination} }}\n chain s {{\n  type nat hook postrouting priority 100\n{source} }}\n}}\n"
    )
}

fn copies(flows: &[Flow], t: &Topology) -> String {
    let mut rules = String::new();
    for flow in flows {
        if let Some(tee) = flow.tee {
            let to = t.guest_address(tee.guest, false);
            let device = t.routed_device(t.segment_of(tee.guest));
            let m = matches(flow, t, false, flow.port);
            let _ = writeln!(rules, "  {m} dup to {to} device \"{device}\"");
        }
    }
    if rules.is_empty() {
        return rules;
    }
    format!("table ip d {{\n chain c {{\n  type filter hook prerouting priority -200\n{rules} }}\n}}\n")
}

/// Rules of a guest: its own firewall.
#[must_use]
pub fn guest(flows: &[Flow], guest: usize) -> String {
    let mut rules = String::new();
    for flow in flows.iter().filter(|f| f.guest_firewall && f.to == Endpoint::Guest(guest)) {
        let _ = writeln!(rules, "  {} dport {} drop", protocol(flow), flow.translated.unwrap_or(flow.port));
    }
    if rules.is_empty() {
        return rules;
    }
    format!("table inet g {{\n chain c {{\n  type filter hook input priority 0\n{rules} }}\n}}\n")
}
