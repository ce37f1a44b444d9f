//! Random flows, each with a port (or a pair of addresses) of its own, and at most one rule that refuses it.

use super::{
    features::Features,
    path::{Hook, Point, path},
    prng::Prng,
    topology::{Endpoint, Ports, Topology},
};

/// Ports of flows are above this one and below those that the kernel gives out (see [`super::build`]).
const PORT_BASE: u16 = 10_000;
/// Ports a flow may use.
const PORTS_EACH: u16 = 10;
/// Senders' ports of a flow with many.
pub const SPREAD: usize = 200;
/// Linear parts of buffers: nothing but the Ethernet header, the IP header as well, the UDP header as well.
const LINEAR: [u16; 3] = [14, 34, 42];
/// Payload of a datagram of three fragments, and the bytes of each on the wire.
pub const BIG: usize = 3_000;
/// Layer-3 bytes of the fragments of a big datagram over a link of 1,500.
pub const FRAGMENTS: [u64; 3] = [1_500, 1_500, 68];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proto {
    Udp,
    /// Tries to connect, each given up after one SYN.
    TcpSyn,
    /// A connection with data.
    TcpData,
    /// ICMP echo by `ping` processes.
    Ping,
}

/// How much of a flow is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Partial {
    All,
    /// What is over a limit.
    Over(usize),
    EverySecond,
}

/// What the rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    Drop,
    Reject,
    /// `reject with tcp reset`
    Reset,
}

/// A rule that refuses (a part of) a flow, or of its replies.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The replies are refused.
    pub reply: bool,
    pub hook: Hook,
    pub refusal: Refusal,
    pub partial: Partial,
}

/// A copy of every packet goes to somebody else.
#[derive(Clone, Copy, Debug)]
pub struct Tee {
    pub guest: usize,
    /// The copies are refused in the output chain.
    pub refused: bool,
}

#[allow(clippy::struct_excessive_bools, reason = "each is one random choice")]
#[derive(Clone, Debug)]
pub struct Flow {
    /// Its number, which names its counter and its port.
    pub id: usize,
    pub proto: Proto,
    /// IPv6; otherwise it is IPv4.
    pub v6: bool,
    pub from: Endpoint,
    /// Who receives, at last.
    pub to: Endpoint,
    /// Destination port, as sent.
    pub port: u16,
    /// Destination port after translation; the destination was the host then.
    pub translated: Option<u16>,
    /// Its source is translated.
    pub masquerade: bool,
    /// Packets (datagrams, tries, echoes of each `ping`).
    pub count: usize,
    /// `ping` processes at once.
    pub processes: usize,
    /// Bytes behind the transport header.
    pub payload: usize,
    pub cpu: usize,
    /// Datagrams of [`BIG`] bytes, from an address of their own.
    pub big: bool,
    /// Frames larger than a page of which only so many bytes are in the buffer's linear part.
    pub linear: Option<u16>,
    /// Each packet from another port.
    pub spread: bool,
    /// The receiver answers each packet.
    pub echo: bool,
    pub notrack: bool,
    pub tee: Option<Tee>,
    pub rule: Option<Rule>,
    /// Refused by the receiving guest's own firewall, which is not the node's.
    pub guest_firewall: bool,
    /// The receiving socket has a filter of its own that drops all.
    pub filtered: bool,
}

impl Flow {
    /// Points that its packets (or replies) pass.
    #[must_use]
    pub fn path(&self, t: &Topology, reply: bool) -> Vec<Point> {
        let (from, to) = if reply { (self.to, self.from) } else { (self.from, self.to) };
        path(t, from, to).unwrap_or_default()
    }

    /// Destination port of a packet (source port of a reply) at point `at` of its way.
    #[must_use]
    pub fn port_at(&self, way: &[Point], at: usize) -> u16 {
        let passed = way[..at].contains(&Point::Translate);
        self.translated.filter(|_| passed).unwrap_or(self.port)
    }

    #[must_use]
    pub fn source(&self, t: &Topology) -> String {
        match (self.from, self.to) {
            (Endpoint::Guest(g), _) if self.big => Topology::address(t.segment_of(g), self.own_number(), self.v6),
            (Endpoint::Host, Endpoint::Guest(g)) if self.big => {
                Topology::address(t.segment_of(g), self.own_number(), self.v6)
            }
            (Endpoint::Guest(g), _) => t.guest_address(g, self.v6),
            (Endpoint::Host, Endpoint::Guest(g)) => Topology::host_address(t.segment_of(g), self.v6),
            (Endpoint::Host, Endpoint::Host) => String::new(),
        }
    }

    /// The last part of the address that only this flow sends from.
    #[must_use]
    pub const fn own_number(&self) -> usize {
        100 + self.id
    }

    #[must_use]
    pub fn receiver(&self, t: &Topology) -> String {
        match (self.from, self.to) {
            (_, Endpoint::Guest(g)) => t.guest_address(g, self.v6),
            (Endpoint::Guest(g), Endpoint::Host) => Topology::host_address(t.segment_of(g), self.v6),
            (Endpoint::Host, Endpoint::Host) => String::new(),
        }
    }

    /// The destination it is sent to.
    #[must_use]
    pub fn target(&self, t: &Topology) -> String {
        match (self.translated, self.from) {
            (Some(_), Endpoint::Guest(g)) => Topology::host_address(t.segment_of(g), self.v6),
            _ => self.receiver(t),
        }
    }

    /// Layer-3 bytes of one packet, where all are the same.
    #[must_use]
    pub fn bytes(&self) -> Option<u64> {
        let ip = if self.v6 { 40 } else { 20 };
        match self.proto {
            Proto::Udp => Some(ip + 8 + self.payload as u64),
            Proto::TcpSyn => Some(ip + 40),
            Proto::Ping => Some(ip + 8 + 56),
            Proto::TcpData => None,
        }
    }

    /// Whether its path is through the host's routing from one segment to another.
    fn is_forwarded(&self, t: &Topology) -> bool {
        self.path(t, false).contains(&Point::Hook(Hook::Forward))
    }

    /// A random one; none if the two chosen ends cannot reach each other.
    fn random(id: usize, rng: &mut Prng, features: &Features, t: &Topology, cpus: usize) -> Option<Self> {
        let n = t.guests();
        let any = |rng: &mut Prng| if rng.chance(25) { Endpoint::Host } else { Endpoint::Guest(rng.below(n)) };
        let from = any(rng);
        let to = any(rng);
        path(t, from, to)?;
        let proto = match rng.below(100) {
            0..15 if features.has("ping") => Proto::Ping,
            15..30 if features.has("tcp") => Proto::TcpSyn,
            30..40 if features.has("tcp") => Proto::TcpData,
            _ => Proto::Udp,
        };
        let mut flow = Self {
            id,
            proto,
            v6: features.has("v6") && rng.chance(35),
            from,
            to,
            port: PORT_BASE + PORTS_EACH * u16::try_from(id).ok()?,
            translated: None,
            masquerade: false,
            count: if proto == Proto::TcpSyn { rng.between(3, 10) } else { rng.between(5, 60) },
            processes: if proto == Proto::Ping { rng.between(1, 3) } else { 1 },
            payload: rng.between(1, 1_400),
            cpu: rng.below(cpus),
            big: false,
            linear: None,
            spread: false,
            echo: false,
            notrack: false,
            tee: None,
            rule: None,
            guest_firewall: false,
            filtered: false,
        };
        if proto == Proto::Udp {
            flow.choose_datagrams(rng, features, t);
        }
        flow.choose_translation(rng, features, t);
        if proto != Proto::TcpData && rng.chance(65) {
            flow.rule = flow.random_rule(rng, features, t);
        }
        let plain = flow.rule.is_none() && matches!(proto, Proto::Udp | Proto::TcpSyn) && !flow.echo && !flow.big;
        flow.guest_firewall = features.has("guestfw") && plain && to != Endpoint::Host && rng.chance(30);
        let receives = plain && proto == Proto::Udp && !flow.guest_firewall;
        flow.filtered = features.has("sockfilter") && receives && flow.translated.is_none() && rng.chance(20);
        flow.notrack = features.has("notrack")
            && flow.translated.is_none()
            && !flow.masquerade
            && proto == Proto::Udp
            && rng.chance(15);
        Some(flow)
    }

    fn choose_datagrams(&mut self, rng: &mut Prng, features: &Features, t: &Topology) {
        match rng.below(100) {
            0..40 if t.ports == Ports::Jumbo && !self.v6 && self.from != Endpoint::Host => {
                self.linear = Some(*rng.pick(&LINEAR));
                self.payload = rng.between(4_200, 8_900);
            }
            0..15 if features.has("frag") && !self.v6 && t.ports != Ports::Jumbo => {
                self.big = true;
                self.payload = BIG;
                self.count = rng.between(5, 20);
            }
            15..30 if features.has("spread") => {
                self.spread = true;
                self.count = SPREAD;
            }
            30..60 if features.has("echo") => self.echo = true,
            60..75 if features.has("tee") && !self.v6 => {
                let Endpoint::Guest(a) = self.from else { return };
                let segment = |e: Endpoint| match e {
                    Endpoint::Guest(g) => Some(t.segment_of(g)),
                    Endpoint::Host => None,
                };
                let routed = self.to == Endpoint::Host || self.is_forwarded(t);
                let free = |g: &usize| {
                    let s = t.segment_of(*g);
                    t.segments[s].addressed && s != t.segment_of(a) && Some(s) != segment(self.to)
                };
                let others: Vec<usize> = (0..t.guests()).filter(free).collect();
                if routed && !others.is_empty() {
                    self.tee = Some(Tee { guest: *rng.pick(&others), refused: rng.chance(60) });
                }
            }
            _ => {}
        }
    }

    fn choose_translation(&mut self, rng: &mut Prng, features: &Features, t: &Topology) {
        let can = matches!(self.proto, Proto::Udp | Proto::TcpSyn) && !self.big && self.tee.is_none();
        if !features.has("nat") || !can || !self.is_forwarded(t) {
            return;
        }
        if rng.chance(40) {
            // An answer keeps the port, so that it is found by it everywhere.
            self.translated = Some(if self.echo { self.port } else { self.port + 5 });
        }
        self.masquerade = rng.chance(35);
    }

    fn random_rule(&self, rng: &mut Prng, features: &Features, t: &Topology) -> Option<Rule> {
        let reply = (self.echo || (self.proto == Proto::Ping && self.processes == 1)) && rng.chance(35);
        let way = self.path(t, reply);
        let copied = way.iter().position(|p| *p == Point::Tee).filter(|_| self.tee.is_some());
        let hooks: Vec<Hook> = way
            .iter()
            .filter_map(|p| if let Point::Hook(hook) = p { Some(hook.clone()) } else { None })
            // Copies pass output and postrouting, too: a rule there would be met by both.
            .filter(|h| copied.is_none() || !matches!(h, Hook::Postrouting | Hook::PostroutingLate))
            .filter(|h| copied.is_none() || !matches!(h, Hook::BridgeOutput | Hook::BridgePostrouting))
            .filter(|h| copied.is_none() || !matches!(h, Hook::NetdevEgress(_)))
            // `ping` is told of it, and sends the same packet again without counting it.
            .filter(|h| {
                let own_ping = self.proto == Proto::Ping && self.from == Endpoint::Host && !reply;
                !own_ping || !matches!(h, Hook::NetdevEgress(_))
            })
            .collect();
        if hooks.is_empty() {
            return None;
        }
        let hook = rng.pick(&hooks).clone();
        let refusal = match self.proto {
            _ if !features.has("reject") || !hook.can_reject() || rng.chance(60) => Refusal::Drop,
            Proto::TcpSyn if rng.chance(50) => Refusal::Reset,
            _ => Refusal::Reject,
        };
        let partial = match rng.below(100) {
            0..20 if features.has("limit") => Partial::Over(rng.between(2, 20)),
            20..40 if features.has("limit") => Partial::EverySecond,
            _ => Partial::All,
        };
        Some(Rule { reply, hook, refusal, partial })
    }
}

/// Random flows of a topology. Two `ping`s never go the same way: they are told apart by their addresses.
#[must_use]
pub fn random(rng: &mut Prng, features: &Features, t: &Topology, cpus: usize) -> Vec<Flow> {
    let wanted = rng.between(4, 16);
    let mut flows: Vec<Flow> = Vec::new();
    // Some pairs have no way; in the smallest network half of all.
    for _ in 0..wanted * 4 {
        let Some(flow) = Flow::random(flows.len(), rng, features, t, cpus) else { continue };
        let same = |f: &Flow| f.proto == Proto::Ping && (f.from, f.to, f.v6) == (flow.from, flow.to, flow.v6);
        if flow.proto == Proto::Ping && flows.iter().any(same) {
            continue;
        }
        flows.push(flow);
        if flows.len() == wanted {
            break;
        }
    }
    flows
}
