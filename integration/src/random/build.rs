//! The network as commands, and as namespaces.

use std::{
    fs,
    io::Write as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};

use super::{
    features::Features,
    flows::Flow,
    topology::{Endpoint, Kind, Ports, Topology, VLAN},
};
use crate::{net::Netns, sockets, taps::Cable};

/// Ports that the kernel gives to sockets: none of a flow's.
const LOCAL_PORTS: &str = "50000 60999";
/// Packets that a tap keeps for its reader: more than a run sends.
const TAP_QUEUE: u32 = 100_000;
/// How long links may take to come up.
const UP_WITHIN: Duration = Duration::from_secs(10);

/// One command, or a part of a batch of them: the namespace (or none), the tool, and its arguments.
pub type Line = (Option<String>, &'static str, String);

/// Everything that has to be typed to get the network, in order.
#[must_use]
pub fn commands(t: &Topology, flows: &[Flow], host: &str, guests: &[String]) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for (g, guest) in guests.iter().enumerate() {
        let port = mac(2, g);
        let inside = mac(1, g);
        let mtu = if t.ports == Ports::Jumbo { 9_000 } else { 1_500 };
        if t.ports == Ports::Tap {
            let set = |device: &str, mac: &str| format!("link set {device} address {mac} txqueuelen {TAP_QUEUE}");
            lines.push((Some(host.to_owned()), "ip", set(&format!("p{g}"), &port)));
            lines.push((Some(guest.clone()), "ip", set("eth0", &inside)));
            continue;
        }
        let veth = format!("type veth peer name eth0 mtu {mtu} address {inside} netns {guest}");
        lines.push((None, "ip", format!("link add p{g} mtu {mtu} address {port} netns {host} {veth}")));
    }
    let mut on_host = |line: String| lines.push((Some(host.to_owned()), "ip", line));
    for (s, segment) in t.segments.iter().enumerate() {
        host_devices(t, s).into_iter().for_each(&mut on_host);
        if segment.addressed {
            let device = t.routed_device(s);
            for v6 in [false, true] {
                let length = if v6 { "64 nodad" } else { "24" };
                on_host(format!("addr add {}/{length} dev {device}", Topology::host_address(s, v6)));
            }
            let own = |f: &&Flow| f.big && f.from == Endpoint::Host && is_in(t, f.to, s);
            for flow in flows.iter().filter(own) {
                on_host(format!("addr add {}/24 dev {device}", Topology::address(s, flow.own_number(), false)));
            }
            for &g in &segment.guests {
                for v6 in [false, true] {
                    let to = t.guest_address(g, v6);
                    let mac = mac(1, g);
                    on_host(format!("neigh add {to} lladdr {mac} dev {device} nud permanent"));
                }
            }
        }
    }
    for (g, guest) in guests.iter().enumerate() {
        lines.extend(guest_lines(t, flows, g).into_iter().map(|line| (Some(guest.clone()), "ip", line)));
    }
    for (s, segment) in t.segments.iter().enumerate() {
        if matches!(segment.kind, Kind::Bridge | Kind::BridgeMacvlan) {
            for &g in &segment.guests {
                let line = format!("fdb replace {} dev p{g} master static", mac(1, g));
                lines.push((Some(host.to_owned()), "bridge", line));
            }
        }
        if segment.kind == Kind::BridgeMacvlan {
            let line = format!("fdb add {} dev br{s} self local", mac(4, s));
            lines.push((Some(host.to_owned()), "bridge", line));
        }
    }
    lines
}

fn is_in(t: &Topology, end: Endpoint, segment: usize) -> bool {
    matches!(end, Endpoint::Guest(g) if t.segment_of(g) == segment)
}

fn mac(kind: u8, n: usize) -> String {
    format!("02:00:00:00:{kind:02x}:{n:02x}")
}

/// Hardware address of the device that the host's routing knows.
fn routed_mac(t: &Topology, s: usize) -> String {
    match t.segments[s].kind {
        Kind::Routed | Kind::Vlan => mac(2, t.segments[s].guests[0]),
        Kind::Bridge => mac(3, s),
        Kind::Macvlan | Kind::BridgeMacvlan => mac(4, s),
    }
}

fn host_devices(t: &Topology, s: usize) -> Vec<String> {
    let segment = &t.segments[s];
    let first = segment.guests[0];
    let mut lines = Vec::new();
    if matches!(segment.kind, Kind::Bridge | Kind::BridgeMacvlan) {
        lines.push(format!("link add br{s} address {} type bridge mcast_snooping 0", mac(3, s)));
        lines.push(format!("link set br{s} up"));
        lines.extend(segment.guests.iter().map(|g| format!("link set p{g} master br{s}")));
    }
    lines.extend(segment.guests.iter().map(|g| format!("link set p{g} up")));
    let below = if segment.kind == Kind::BridgeMacvlan { format!("br{s}") } else { format!("p{first}") };
    match segment.kind {
        Kind::Macvlan | Kind::BridgeMacvlan => {
            if segment.crowd {
                lines.push(format!("link add mx{s} link {below} address {} type macvlan mode bridge", mac(5, s)));
                lines.push(format!("link set mx{s} up"));
            }
            lines.push(format!("link add mv{s} link {below} address {} type macvlan mode bridge", mac(4, s)));
            lines.push(format!("link set mv{s} up"));
        }
        Kind::Vlan => {
            if segment.crowd {
                lines.push(format!("link add link p{first} name p{first}.{0} type vlan id {0}", VLAN - 1));
                lines.push(format!("link set p{first}.{} up", VLAN - 1));
            }
            lines.push(format!("link add link p{first} name p{first}.{VLAN} type vlan id {VLAN}"));
            lines.push(format!("link set p{first}.{VLAN} up"));
        }
        Kind::Routed | Kind::Bridge => {}
    }
    lines
}

fn guest_lines(t: &Topology, flows: &[Flow], g: usize) -> Vec<String> {
    let s = t.segment_of(g);
    let device = t.guest_device(g);
    let mut lines = vec!["link set eth0 up".to_owned()];
    if device != "eth0" {
        lines.push(format!("link add link eth0 name {device} type vlan id {VLAN}"));
        lines.push(format!("link set {device} up"));
    }
    for v6 in [false, true] {
        let length = if v6 { "64 nodad" } else { "24" };
        lines.push(format!("addr add {}/{length} dev {device}", t.guest_address(g, v6)));
    }
    for flow in flows.iter().filter(|f| f.big && f.from == Endpoint::Guest(g)) {
        lines.push(format!("addr add {}/24 dev {device}", Topology::address(s, flow.own_number(), false)));
    }
    for &other in t.segments[s].guests.iter().filter(|o| **o != g) {
        for v6 in [false, true] {
            let to = t.guest_address(other, v6);
            let mac = mac(1, other);
            lines.push(format!("neigh add {to} lladdr {mac} dev {device} nud permanent"));
        }
    }
    if t.segments[s].addressed {
        for v6 in [false, true] {
            let host = Topology::host_address(s, v6);
            lines.push(format!("neigh add {host} lladdr {} dev {device} nud permanent", routed_mac(t, s)));
            lines.push(format!("route add default via {host}"));
        }
        // Addresses that only some flow of the host sends from.
        for flow in flows.iter().filter(|f| f.big && f.from == Endpoint::Host && is_in(t, f.to, s)) {
            let to = Topology::address(s, flow.own_number(), false);
            lines.push(format!("neigh add {to} lladdr {} dev {device} nud permanent", routed_mac(t, s)));
        }
    }
    // And the bridge's other guests' ones.
    for flow in flows.iter().filter(|f| f.big && f.from != Endpoint::Guest(g) && is_in(t, f.from, s)) {
        let Endpoint::Guest(other) = flow.from else { continue };
        let to = Topology::address(s, flow.own_number(), false);
        lines.push(format!("neigh add {to} lladdr {} dev {device} nud permanent", mac(1, other)));
    }
    lines
}

/// Hardware addresses of a guest and of whoever takes its packets to `to`.
#[must_use]
pub fn macs(t: &Topology, from: usize, to: Endpoint) -> ([u8; 6], [u8; 6]) {
    let s = t.segment_of(from);
    let next = match to {
        Endpoint::Guest(g) if t.segment_of(g) == s => mac(1, g),
        _ => routed_mac(t, s),
    };
    let bytes = |text: &str| {
        let mut mac = [0; 6];
        for (byte, part) in mac.iter_mut().zip(text.split(':')) {
            *byte = u8::from_str_radix(part, 16).unwrap_or(0);
        }
        mac
    };
    (bytes(&mac(1, from)), bytes(&next))
}

/// The network as it runs. Gone on drop.
#[derive(Debug)]
pub struct Network {
    /// The host under test.
    pub host: Netns,
    pub guests: Vec<Netns>,
    /// What carries frames between ports that are taps.
    _cables: Vec<Cable>,
}

impl Network {
    /// Builds it, and waits until all links are up.
    ///
    /// # Errors
    /// What the tools say.
    pub fn build(t: &Topology, flows: &[Flow]) -> anyhow::Result<Self> {
        let host = Netns::new("h")?;
        let guests = (0..t.guests()).map(|g| Netns::new(&format!("g{g}"))).collect::<anyhow::Result<Vec<_>>>()?;
        let cable = |(g, guest): (usize, &Netns)| Cable::new((&host, &format!("p{g}")), (guest, "eth0"));
        let cables = if t.ports == Ports::Tap {
            guests.iter().enumerate().map(cable).collect::<anyhow::Result<_>>()?
        } else {
            Vec::new()
        };
        let network = Self { host, guests, _cables: cables };
        network.parameters()?;
        let names: Vec<String> = network.guests.iter().map(|g| g.name().to_owned()).collect();
        let lines = commands(t, flows, network.host.name(), &names);
        for batch in lines.chunk_by(|a, b| (&a.0, a.1) == (&b.0, b.1)) {
            run_batch(batch)?;
        }
        if t.gro {
            for g in 0..t.guests() {
                network.host.run(|| sockets::offload(&format!("p{g}"), sockets::Offload::Receive, true))?;
                if t.threaded {
                    let line = format!("echo 1 > /sys/class/net/p{g}/threaded");
                    let status = network.host.command("sh").args(["-c", &line]).status()?;
                    ensure!(status.success(), "{line}");
                }
            }
        }
        network.wait_until_up(t)?;
        Ok(network)
    }

    /// Namespace of an end.
    #[must_use]
    pub fn of(&self, end: Endpoint) -> &Netns {
        match end {
            Endpoint::Host => &self.host,
            Endpoint::Guest(g) => &self.guests[g],
        }
    }

    fn all(&self) -> impl Iterator<Item = &Netns> {
        self.guests.iter().chain([&self.host])
    }

    fn parameters(&self) -> anyhow::Result<()> {
        for ns in self.all() {
            ns.sysctl("net.ipv4.ip_local_port_range", LOCAL_PORTS)?;
        }
        self.host.sysctl("net.ipv4.ip_forward", "1")?;
        self.host.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        // Rules for IP see bridged packets where br_netfilter is loaded: each rule would be met twice.
        for family in ["iptables", "ip6tables"] {
            let _ = self.host.sysctl(&format!("net.bridge.bridge-nf-call-{family}"), "0");
        }
        Ok(())
    }

    fn wait_until_up(&self, t: &Topology) -> anyhow::Result<()> {
        let begun = Instant::now();
        let wanted = t.devices();
        loop {
            let json: serde_json::Value = serde_json::from_str(&self.host.exec("ip -j -d link show")?)?;
            let is_up = |name: &String| {
                let Some(link) = json.as_array().and_then(|l| l.iter().find(|l| l["ifname"] == name.as_str())) else {
                    return false;
                };
                let state = &link["linkinfo"]["info_slave_data"]["state"];
                // Taps do not say more than that they have a carrier.
                let up = link["operstate"] == "UP" || link["operstate"] == "UNKNOWN";
                let carrier = link["flags"].as_array().is_some_and(|f| f.iter().any(|f| f == "LOWER_UP"));
                up && carrier && (state.is_null() || state == "forwarding")
            };
            let missing: Vec<_> = wanted.iter().filter(|n| !is_up(n)).collect();
            if missing.is_empty() {
                return Ok(());
            }
            ensure!(begun.elapsed() < UP_WITHIN, "not up: {missing:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until packets on their way have arrived: no device counts any more.
    pub fn wait_until_quiet(&self) {
        /// Looks that must be the same.
        const LOOKS: u32 = 3;
        /// Longer than a thread that receives in batches is ever put off by two busy CPUs.
        const BETWEEN: Duration = Duration::from_millis(20);
        let mut last = String::new();
        let mut same = 0;
        while same < LOOKS {
            let now: String = self
                .all()
                .map(|ns| ns.run(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default()))
                .collect();
            same = if now == last { same + 1 } else { 0 };
            last = now;
            std::thread::sleep(BETWEEN);
        }
    }

    /// Packets that devices lost for want of room, which no firewall has refused: they make a run worthless.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn dropped(&self) -> anyhow::Result<Vec<String>> {
        let mut all = Vec::new();
        for ns in self.all() {
            let text = ns.run(|| fs::read_to_string("/proc/thread-self/net/dev"))?;
            for line in text.lines().skip(2) {
                let fields: Vec<&str> = line.split_whitespace().collect();
                let received = fields.get(4).context("rx_dropped")?;
                let sent = fields.get(12).context("tx_dropped")?;
                if (*received, *sent) != ("0", "0") {
                    all.push(format!("{} {} rx_dropped={received} tx_dropped={sent}", ns.name(), fields[0]));
                }
            }
        }
        Ok(all)
    }
}

fn run_batch(lines: &[Line]) -> anyhow::Result<()> {
    let (ns, tool, _) = &lines[0];
    let mut command = Command::new(tool);
    command.args(ns.iter().flat_map(|n| ["-n", n.as_str()])).args(["-batch", "-"]);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().context(*tool)?;
    let text = lines.iter().flat_map(|l| [l.2.as_str(), "\n"]).collect::<String>();
    child.stdin.take().context("stdin")?.write_all(text.as_bytes())?;
    let out = child.wait_with_output()?;
    ensure!(out.status.success(), "{tool} -batch: {}\n{text}", String::from_utf8_lossy(&out.stderr).trim());
    Ok(())
}

/// Leaves out what this kernel does not have.
///
/// # Errors
/// Without root.
pub fn supported(features: &Features) -> anyhow::Result<Features> {
    let ns = Netns::new("probe")?;
    ns.exec("ip link add va type veth peer name vb")?;
    let mut text = features.to_string();
    for (feature, line) in [
        ("macvlan", "ip link add name mv link va type macvlan mode bridge"),
        ("vlan", "ip link add link vb name v type vlan id 5"),
    ] {
        if features.has(feature) && ns.exec(line).is_err() {
            text.extend([",-", feature]);
        }
    }
    Features::parse(&text)
}
