//! Networks of more than two hosts, and devices on top of devices. Neighbours know each other before anything is
//! counted, and nobody speaks IPv6 unasked.

use crate::net::{Netns, address, veth};

/// A router with `in0` (10.2.0.1) and `out0` (10.3.0.1), and a host on each: 10.2.0.2 and 10.3.0.2, both on `eth0`.
#[derive(Debug)]
pub struct Routed {
    /// Host behind the router's `in0`.
    pub client: Netns,
    pub router: Netns,
    /// Host behind the router's `out0`.
    pub server: Netns,
}

impl Routed {
    /// Plugs it together.
    ///
    /// # Errors
    /// Without root.
    pub fn new() -> anyhow::Result<Self> {
        let client = Netns::new("client")?;
        let router = Netns::new("router")?;
        let server = Netns::new("server")?;
        for ns in [&client, &router, &server] {
            ns.sysctl("net.ipv6.conf.default.disable_ipv6", "1")?;
        }
        veth((&client, "eth0"), (&router, "in0"))?;
        veth((&server, "eth0"), (&router, "out0"))?;
        address(&client, "eth0", "10.2.0.2/24")?;
        address(&router, "in0", "10.2.0.1/24")?;
        address(&router, "out0", "10.3.0.1/24")?;
        address(&server, "eth0", "10.3.0.2/24")?;
        client.exec("ip route add default via 10.2.0.1")?;
        server.exec("ip route add default via 10.3.0.1")?;
        router.sysctl("net.ipv4.ip_forward", "1")?;
        client.exec("ping -c 1 -W 5 10.3.0.2")?;
        Ok(Self { client, router, server })
    }
}

/// Guests on a bridge `br0` (10.4.0.254) of a host: `tap1` leads to `guests[0]` (10.4.0.1), and so on.
#[derive(Debug)]
pub struct Bridged {
    pub host: Netns,
    /// The guests; each has an `eth0`.
    pub guests: Vec<Netns>,
}

impl Bridged {
    /// Plugs it together.
    ///
    /// # Errors
    /// Without root.
    pub fn new(guests: usize) -> anyhow::Result<Self> {
        let host = Netns::new("host")?;
        host.sysctl("net.ipv6.conf.default.disable_ipv6", "1")?;
        host.exec("ip link add br0 type bridge mcast_snooping 0")?;
        let mut net = Self { host, guests: Vec::new() };
        for n in 1..=guests {
            let guest = Netns::new(&format!("g{n}"))?;
            guest.sysctl("net.ipv6.conf.default.disable_ipv6", "1")?;
            let tap = format!("tap{n}");
            veth((&guest, "eth0"), (&net.host, &tap))?;
            net.host.exec(&format!("ip link set {tap} master br0"))?;
            address(&guest, "eth0", &format!("10.4.0.{n}/24"))?;
            guest.exec("ip route add default via 10.4.0.254")?;
            net.guests.push(guest);
        }
        net.host.exec("ip link set br0 up")?;
        address(&net.host, "br0", "10.4.0.254/24")?;
        for guest in &net.guests {
            guest.exec("ping -c 1 -W 5 10.4.0.254")?;
        }
        for guest in net.guests.iter().skip(1) {
            guest.exec("ping -c 1 -W 5 10.4.0.1")?;
        }
        Ok(net)
    }
}

/// Puts a device of `kind` (`macvlan mode bridge`, `vlan id 5`, `ipvlan mode l2`) on top of `lower`.
///
/// # Errors
/// If the kernel has no such devices.
pub fn upper(ns: &Netns, lower: &str, name: &str, kind: &str) -> anyhow::Result<()> {
    ns.exec(&format!("ip link add link {lower} name {name} type {kind}"))?;
    ns.exec(&format!("ip link set {name} up")).map(drop)
}

/// Tells `ns` where `ip` is, so that nobody asks.
///
/// # Errors
/// If there is no such interface.
pub fn neighbour(ns: &Netns, interface: &str, ip: &str, mac: [u8; 6]) -> anyhow::Result<()> {
    let mac = mac.map(|b| format!("{b:02x}")).join(":");
    ns.exec(&format!("ip neigh replace {ip} lladdr {mac} dev {interface} nud permanent")).map(drop)
}
