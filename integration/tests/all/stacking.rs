//! Every interface that a packet climbs through gets its own verdict, and nobody else's: bridges with their ports,
//! several devices on one, devices on devices on devices.
//!
//! Every test ends with [`Agent::stop`], which fails if the books of a window do not balance.

use integration::{
    agent::Agent,
    claims::{NONE, PACKETS, PAYLOAD, assert_exact, into, out_of, rules, sum},
    features,
    net::{Netns, address, veth},
    rows::{Objects, Row},
    stacks::{Bridged, neighbour, upper},
    traffic,
};

/// `count` frames from guest `n` (1 is the first) to a MAC and an address.
fn frames(net: &Bridged, n: u8, mac: [u8; 6], to: ([u8; 4], u16), count: usize) -> Vec<Vec<u8>> {
    let own = net.guests[usize::from(n) - 1].mac("eth0").unwrap();
    vec![traffic::udp4((own, mac), ([10, 4, 0, n].into(), 999), (to.0.into(), to.1), PAYLOAD); count]
}

fn send(net: &Bridged, n: u8, frames: &[Vec<u8>]) {
    net.guests[usize::from(n) - 1].run(|| {
        traffic::pin_to_cpu(0);
        traffic::Raw::open("eth0").unwrap().send(frames).unwrap();
    });
}

const HOST: [u8; 4] = [10, 4, 0, 254];

/// The host refuses a guest whose port nobody watches; the neighbour's packets have the same buffers in turn.
#[test]
fn what_a_neighbour_on_the_bridge_is_refused_does_not_show() {
    let net = Bridged::new(2).unwrap();
    net.host
        .nft("table inet t {\n counter refused { }\n chain c { type filter hook input priority 0; ip saddr 10.4.0.2 counter name refused drop; }\n}")
        .unwrap();
    let agent = Agent::start(&net.host, &["tap1"], &[]).unwrap();
    let mac = net.host.mac("br0").unwrap();
    let mine = frames(&net, 1, mac, (HOST, 9), 1);
    let theirs = frames(&net, 2, mac, (HOST, 9), 1);
    for _ in 0..100 {
        send(&net, 1, &mine);
        send(&net, 2, &theirs);
    }
    let landed = agent.stop().unwrap();
    assert_eq!(net.host.nft_counter("inet t", "refused").unwrap(), sum(100));
    assert_exact(&landed, into("tap1"), 9, NONE, sum(100));
    assert_eq!(landed.flows("REJECT"), NONE, "{:#?}", landed.rows);
}

/// Guest 1 sends 20 frames that are flooded to all other ports; the bridge refuses them towards some.
fn flood(to: ([u8; 6], [u8; 4]), ports: usize, refused: &[usize]) -> (Bridged, Objects) {
    let net = Bridged::new(ports).unwrap();
    let counters = (1..=ports).map(|p| format!(" counter to{p} {{ }}\n")).collect::<Vec<_>>().concat();
    let drops = refused
        .iter()
        .map(|p| format!("  oifname \"tap{p}\" ip protocol udp udp dport 7 counter name to{p} drop;\n"))
        .collect::<Vec<_>>()
        .concat();
    net.host
        .nft(&format!(
            "table bridge t {{\n{counters} chain c {{ type filter hook forward priority 0;\n{drops} }}\n}}\n"
        ))
        .unwrap();
    let names: Vec<String> = (1..=ports).map(|p| format!("tap{p}")).collect();
    let watched: Vec<&str> = names.iter().map(String::as_str).collect();
    let agent = Agent::start(&net.host, &watched, &[]).unwrap();
    send(&net, 1, &frames(&net, 1, to.0, (to.1, 7), 20));
    let landed = agent.stop().unwrap();
    for port in 2..=ports {
        let counted = net.host.nft_counter("bridge t", &format!("to{port}")).unwrap();
        assert_eq!(counted, if refused.contains(&port) { sum(20) } else { NONE }, "witness of tap{port}");
    }
    (net, landed)
}

const BROADCAST: ([u8; 6], [u8; 4]) = ([0xff; 6], [10, 4, 0, 255]);
const MULTICAST: ([u8; 6], [u8; 4]) = ([1, 0, 0x5e, 1, 1, 1], [239, 1, 1, 1]);
/// To a station that the bridge does not know: the last port gets the frame itself, the others clones.
const UNKNOWN: ([u8; 6], [u8; 4]) = ([2, 0, 0, 0, 0, 0x77], [10, 4, 0, 77]);

/// A frame that goes on to one port at least was accepted where it came in, whichever copy is refused.
fn refused_per_port_and_accepted_where_it_came_in(to: ([u8; 6], [u8; 4])) {
    for refused in [&[2][..], &[4], &[2, 3], &[3, 4]] {
        eprintln!("refused towards {refused:?}");
        let (_net, landed) = flood(to, 4, refused);
        assert_exact(&landed, into("tap1"), 7, NONE, sum(20));
        for port in 2..=4 {
            let name = format!("tap{port}");
            let [no, yes] = if refused.contains(&port) { [sum(20), NONE] } else { [NONE, sum(20)] };
            assert_exact(&landed, out_of(&name), 7, no, yes);
        }
    }
}

#[test]
fn a_broadcast_frame_is_refused_per_port_and_accepted_where_it_came_in() {
    refused_per_port_and_accepted_where_it_came_in(BROADCAST);
}

#[test]
fn a_multicast_frame_is_refused_per_port_and_accepted_where_it_came_in() {
    refused_per_port_and_accepted_where_it_came_in(MULTICAST);
}

#[test]
fn a_frame_to_an_unknown_station_is_refused_per_port_and_accepted_where_it_came_in() {
    refused_per_port_and_accepted_where_it_came_in(UNKNOWN);
}

/// The kernel takes one tag out of a frame, and leaves its buffer with the ethertype of the next one: a guest that tags twice must not
/// hide what it is refused.
#[test]
fn frames_with_one_two_and_three_vlan_tags_are_refused_alike() {
    for (hook, leaves) in [("prerouting", false), ("forward", true), ("postrouting", true)] {
        for args in [&[][..], &["--hook", "xdp"], &["--action", "rejected"]] {
            let net = Bridged::new(2).unwrap();
            let to = net.guests[1].mac("eth0").unwrap();
            let station = to.map(|b| format!("{b:02x}")).join(":");
            net.host
                .nft(&format!(
                    "table bridge t {{\n counter refused {{ }}\n chain c {{\n  type filter hook {hook} priority 0\n  \
                     ether daddr {station} counter name refused drop\n }}\n}}\n"
                ))
                .unwrap();
            let agent = Agent::start(&net.host, &["tap1", "tap2"], args).unwrap();
            let tags: [&[[u8; 4]]; 4] = [
                &[[0x81, 0, 0, 7]],
                &[[0x81, 0, 0, 7], [0x81, 0, 0, 8]],
                &[[0x88, 0xa8, 0, 7], [0x81, 0, 0, 8]],
                &[[0x81, 0, 0, 7], [0x81, 0, 0, 8], [0x81, 0, 0, 9]],
            ];
            for (tags, port) in tags.iter().zip(7..) {
                let mut tagged = frames(&net, 1, to, ([10, 4, 0, 2], port), PACKETS);
                for frame in &mut tagged {
                    frame.splice(12..12, tags.concat());
                }
                send(&net, 1, &tagged);
            }
            let landed = agent.stop().unwrap();
            // A neighbour's question or answer may be among them.
            assert!(net.host.nft_counter("bridge t", "refused").unwrap().0 >= 4 * PACKETS as u64);
            for port in 7..11 {
                eprintln!("{hook} {args:?}, {} tags", tags[usize::from(u16::try_from(port).unwrap()) - 7].len());
                assert_exact(&landed, into("tap1"), port, sum(PACKETS), NONE);
                assert_exact(&landed, out_of("tap2"), port, if leaves { sum(PACKETS) } else { NONE }, NONE);
            }
            let tagged = |r: &&Row| r.action == "REJECT" && (7..11).contains(&r.dport);
            assert!(landed.rows.iter().filter(tagged).all(|r| r.vlan == 7), "{:#?}", landed.rows);
        }
    }
}

/// A flow log that wants refusals only knows where a packet came in all the same.
#[test]
fn a_port_whose_flow_log_wants_refusals_only_shows_those_of_the_host_behind() {
    for (args, accepted) in [
        (&["--action", "rejected"][..], false),
        (&["--hook", "xdp"], true),
        (&["--hook", "xdp", "--action", "rejected"], false),
    ] {
        for hook in ["input", "forward"] {
            eprintln!("{args:?}, {hook}");
            let net = Bridged::new(1).unwrap();
            let outside = Netns::new("outside").unwrap();
            veth((&outside, "eth0"), (&net.host, "up0")).unwrap();
            address(&net.host, "up0", "10.5.0.1/24").unwrap();
            neighbour(&net.host, "up0", "10.5.0.2", outside.mac("eth0").unwrap()).unwrap();
            net.host.sysctl("net.ipv4.ip_forward", "1").unwrap();
            net.host.nft(&rules("inet", hook, "drop")).unwrap();
            let agent = Agent::start(&net.host, &["tap1"], args).unwrap();
            let to = if hook == "input" { HOST } else { [10, 5, 0, 2] };
            let mac = net.host.mac("br0").unwrap();
            send(&net, 1, &frames(&net, 1, mac, (to, 7), PACKETS));
            send(&net, 1, &frames(&net, 1, mac, (to, 9), PACKETS));
            let landed = agent.stop().unwrap();
            assert_eq!(net.host.nft_counter("inet t", "refused").unwrap(), sum(PACKETS));
            assert_exact(&landed, into("tap1"), 7, sum(PACKETS), NONE);
            assert_exact(&landed, into("tap1"), 9, NONE, if accepted { sum(PACKETS) } else { NONE });
        }
    }
}

/// A port and its bridge are both watched: what is refused behind the bridge is refused for both.
#[test]
fn a_port_and_its_bridge_are_both_refused() {
    for what in ["drop", "reject"] {
        let net = Bridged::new(2).unwrap();
        net.host.nft(&rules("inet", "input", what)).unwrap();
        let agent = Agent::start(&net.host, &["tap1", "br0"], &[]).unwrap();
        let mac = net.host.mac("br0").unwrap();
        for _ in 0..50 {
            send(&net, 1, &frames(&net, 1, mac, (HOST, 7), 1));
            send(&net, 1, &frames(&net, 1, mac, (HOST, 9), 1));
        }
        let landed = agent.stop().unwrap();
        assert_eq!(net.host.nft_counter("inet t", "refused").unwrap(), sum(50));
        for name in ["tap1", "br0"] {
            assert_exact(&landed, into(name), 7, sum(50), NONE);
            assert_exact(&landed, into(name), 9, NONE, sum(50));
        }
    }
}

/// What the bridge refuses on its way up to the host came in: by the port, and by the bridge, whose hook never saw it.
#[test]
fn a_drop_in_the_bridges_input_chain_is_ingress() {
    let net = Bridged::new(1).unwrap();
    net.host.nft(&rules("bridge", "input", "drop")).unwrap();
    let agent = Agent::start(&net.host, &["tap1", "br0"], &[]).unwrap();
    let mac = net.host.mac("br0").unwrap();
    send(&net, 1, &frames(&net, 1, mac, (HOST, 7), PACKETS));
    let landed = agent.stop().unwrap();
    assert_eq!(net.host.nft_counter("bridge t", "refused").unwrap(), sum(PACKETS));
    assert_exact(&landed, into("tap1"), 7, sum(PACKETS), NONE);
    assert_exact(&landed, out_of("br0"), 7, NONE, NONE);
    assert_exact(&landed, into("br0"), 7, sum(PACKETS), NONE);
}

/// A host whose `eth0` has devices on it, and who sends to them.
struct Stack {
    host: Netns,
    outside: Netns,
}

impl Stack {
    fn new() -> Self {
        let host = Netns::new("host").unwrap();
        let outside = Netns::new("outside").unwrap();
        for ns in [&host, &outside] {
            ns.sysctl("net.ipv6.conf.default.disable_ipv6", "1").unwrap();
        }
        veth((&host, "eth0"), (&outside, "eth0")).unwrap();
        Self { host, outside }
    }

    /// Sends from 10.6.N.2 to 10.6.N.1 on `device` (in a VLAN if given), half to port 7, half to port 9.
    fn send(&self, device: &str, n: u8, vlan: Option<u8>) {
        let macs = (self.outside.mac("eth0").unwrap(), self.host.mac(device).unwrap());
        let frame = |port| {
            let mut f = traffic::udp4(macs, ([10, 6, n, 2].into(), 999), ([10, 6, n, 1].into(), port), PAYLOAD);
            if let Some(id) = vlan {
                f.splice(12..12, [0x81, 0, 0, id]);
            }
            f
        };
        self.outside.run(|| {
            traffic::pin_to_cpu(0);
            let raw = traffic::Raw::open("eth0").unwrap();
            for _ in 0..PACKETS {
                raw.send(&[frame(7), frame(9)]).unwrap();
            }
        });
    }

    /// Gives `device` the address 10.6.N.1, and its peer a place.
    fn address(&self, device: &str, n: u8) {
        address(&self.host, device, &format!("10.6.{n}.1/24")).unwrap();
        neighbour(&self.host, device, &format!("10.6.{n}.2"), self.outside.mac("eth0").unwrap()).unwrap();
    }

    /// Watches `interfaces`, sends to each of `uppers`, and checks that all of them tell refused from accepted.
    fn check(&self, uppers: &[(&str, Option<u8>)], interfaces: &[&str]) {
        self.host.nft(&rules("inet", "input", "drop")).unwrap();
        let agent = Agent::start(&self.host, interfaces, &[]).unwrap();
        for (n, (device, vlan)) in (1..).zip(uppers) {
            self.send(device, n, *vlan);
        }
        let landed = agent.stop().unwrap();
        let all = sum(PACKETS * uppers.len());
        assert_eq!(self.host.nft_counter("inet t", "refused").unwrap(), all);
        for name in interfaces {
            let part = if uppers.iter().any(|(u, _)| u == name) { sum(PACKETS) } else { all };
            assert_exact(&landed, into(name), 7, part, NONE);
            assert_exact(&landed, into(name), 9, NONE, part);
        }
    }

    /// Puts devices of these kinds on `eth0`.
    fn uppers(&self, made: &[(&str, &str)]) {
        for (n, (name, kind)) in (1..).zip(made) {
            upper(&self.host, "eth0", name, kind).unwrap();
            self.address(name, n);
        }
    }
}

/// More than one macvlan on a device: what each is refused, the device is refused.
#[test]
fn several_macvlans_on_one_device() {
    if features::missing("several_macvlans_on_one_device", "macvlan") {
        return;
    }
    for watched in [&["eth0"][..], &["eth0", "m2"], &["eth0", "m1", "m2", "m3"]] {
        let stack = Stack::new();
        let bridge = "macvlan mode bridge";
        stack.uppers(&[("m1", bridge), ("m2", bridge), ("m3", bridge)]);
        stack.check(&[("m1", None), ("m2", None), ("m3", None)], watched);
    }
}

/// The same with VLANs.
#[test]
fn several_vlans_on_one_device() {
    if features::missing("several_vlans_on_one_device", "vlan") {
        return;
    }
    for watched in [&["eth0"][..], &["eth0", "v1", "v2"]] {
        let stack = Stack::new();
        stack.uppers(&[("v1", "vlan id 5"), ("v2", "vlan id 6")]);
        stack.check(&[("v1", Some(5)), ("v2", Some(6))], watched);
    }
}

/// The same with ipvlan.
#[test]
fn several_ipvlans_on_one_device() {
    if features::missing("several_ipvlans_on_one_device", "ipvlan") {
        return;
    }
    for watched in [&["eth0"][..], &["eth0", "i2"]] {
        let stack = Stack::new();
        stack.uppers(&[("i1", "ipvlan mode l2"), ("i2", "ipvlan mode l2")]);
        stack.check(&[("i1", None), ("i2", None)], watched);
    }
}

/// Port, bridge, macvlan on the bridge: the macvlan's owner refuses.
#[test]
fn a_chain_of_port_bridge_and_macvlan() {
    if features::missing("a_chain_of_port_bridge_and_macvlan", "macvlan") {
        return;
    }
    for watched in [&["eth0"][..], &["eth0", "br0"], &["eth0", "br0", "m1"]] {
        let stack = Stack::new();
        stack.host.exec("ip link add br0 type bridge mcast_snooping 0").unwrap();
        stack.host.exec("ip link set eth0 master br0").unwrap();
        stack.host.exec("ip link set br0 up").unwrap();
        upper(&stack.host, "br0", "m1", "macvlan mode bridge").unwrap();
        stack.address("m1", 1);
        stack.check(&[("m1", None)], watched);
    }
}

/// A VLAN that is a port of a bridge.
#[test]
fn a_chain_of_vlan_and_bridge() {
    if features::missing("a_chain_of_vlan_and_bridge", "vlan") {
        return;
    }
    for watched in [&["eth0"][..], &["eth0", "v5", "br0"]] {
        let stack = Stack::new();
        upper(&stack.host, "eth0", "v5", "vlan id 5").unwrap();
        stack.host.exec("ip link add br0 type bridge mcast_snooping 0").unwrap();
        stack.host.exec("ip link set v5 master br0").unwrap();
        stack.host.exec("ip link set br0 up").unwrap();
        stack.address("br0", 1);
        stack.check(&[("br0", Some(5))], watched);
    }
}

/// A VLAN on a bond.
#[test]
fn a_chain_of_bond_and_vlan() {
    if features::missing("a_chain_of_bond_and_vlan", "bond") || features::missing("a_chain_of_bond_and_vlan", "vlan") {
        return;
    }
    for watched in [&["eth0"][..], &["eth0", "bond0", "v5"]] {
        let stack = Stack::new();
        stack.host.exec("ip link add bond0 type bond mode active-backup").unwrap();
        stack.host.exec("ip link set eth0 down").unwrap();
        stack.host.exec("ip link set eth0 master bond0").unwrap();
        stack.host.exec("ip link set bond0 up").unwrap();
        upper(&stack.host, "bond0", "v5", "vlan id 5").unwrap();
        stack.address("v5", 1);
        stack.check(&[("v5", Some(5))], watched);
    }
}

/// Refused on the way out before the device below has it: a VLAN there has its tag, a macvlan may hand packets to its neighbours.
#[test]
fn what_leaves_through_vlans_a_bond_and_a_macvlan_and_is_refused_counts_below() {
    let test = "what_leaves_through_vlans_a_bond_and_a_macvlan_and_is_refused_counts_below";
    if ["vlan", "bond", "macvlan"].into_iter().any(|kind| features::missing(test, kind)) {
        return;
    }
    for hook in ["output", "postrouting"] {
        let stack = Stack::new();
        stack.host.exec("ip link add bond0 type bond mode active-backup").unwrap();
        stack.host.exec("ip link set eth0 down").unwrap();
        stack.host.exec("ip link set eth0 master bond0").unwrap();
        stack.host.exec("ip link set bond0 up").unwrap();
        let made =
            [("v5", "vlan id 5"), ("v6", "vlan id 6"), ("m1", "macvlan mode vepa"), ("m2", "macvlan mode bridge")];
        for (n, (name, kind)) in (1..).zip(made) {
            upper(&stack.host, "bond0", name, kind).unwrap();
            stack.address(name, n);
        }
        stack.host.nft(&rules("inet", hook, "drop")).unwrap();
        let agent = Agent::start(&stack.host, &["eth0", "v5"], &[]).unwrap();
        for n in 1..=4 {
            for port in [7, 9] {
                stack.host.run(|| traffic::udp(&format!("10.6.{n}.2:{port}"), PACKETS, PAYLOAD)).unwrap();
            }
        }
        let landed = agent.stop().unwrap();
        assert_eq!(stack.host.nft_counter("inet t", "refused").unwrap(), sum(4 * PACKETS));
        assert_exact(&landed, out_of("v5"), 7, sum(PACKETS), NONE);
        assert_exact(&landed, out_of("eth0"), 7, sum(3 * PACKETS), NONE);
        assert_exact(&landed, out_of("eth0"), 9, NONE, sum(4 * PACKETS));
        for port in [7, 9] {
            let mut below: Vec<(String, i64)> = landed
                .rows
                .iter()
                .filter(|r| r.interface.ends_with("eth0") && r.dport == port)
                .map(|r| (r.dst.clone(), r.vlan))
                .collect();
            below.sort_unstable();
            let all = [("10.6.1.2", 5), ("10.6.2.2", 6), ("10.6.3.2", -1), ("10.6.4.2", -1)];
            let wanted = all.into_iter().take(if port == 7 { 3 } else { 4 });
            assert!(wanted.eq(below.iter().map(|(to, id)| (to.as_str(), *id))), "{port}: {below:?}");
        }
    }
}
