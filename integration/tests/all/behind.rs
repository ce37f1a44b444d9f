//! P1 where the node routes to a guest on a bridge and refuses before the bridge has picked the port: it counts at the port that the bridge would
//! have picked. Witness: the counters of the rules.
//!
//! Every test ends with [`Agent::stop`], which fails if the books of a window do not balance.

use integration::{
    agent::Agent,
    claims::{NONE, PACKETS, PAYLOAD, assert_exact, into, out_of, rules, sum},
    net::{Netns, address, veth},
    stacks::{Bridged, neighbour},
    traffic,
};

/// A bridge with two guests, and a host outside that reaches them through `up0`.
fn routed() -> (Bridged, Netns) {
    let net = Bridged::new(2).unwrap();
    let outside = Netns::new("outside").unwrap();
    outside.sysctl("net.ipv6.conf.default.disable_ipv6", "1").unwrap();
    veth((&outside, "eth0"), (&net.host, "up0")).unwrap();
    address(&outside, "eth0", "10.5.0.2/24").unwrap();
    address(&net.host, "up0", "10.5.0.1/24").unwrap();
    outside.exec("ip route add default via 10.5.0.1").unwrap();
    net.host.sysctl("net.ipv4.ip_forward", "1").unwrap();
    neighbour(&net.host, "up0", "10.5.0.2", outside.mac("eth0").unwrap()).unwrap();
    neighbour(&outside, "eth0", "10.5.0.1", net.host.mac("up0").unwrap()).unwrap();
    outside.exec("ping -c 1 -W 5 10.4.0.2").unwrap();
    (net, outside)
}

fn send(from: &Netns, to: &str) {
    for port in [7, 9] {
        from.run(|| traffic::udp(&format!("{to}:{port}"), PACKETS, PAYLOAD)).unwrap();
    }
}

#[test]
fn what_the_host_itself_is_refused_on_its_way_to_a_guest_counts_at_the_guests_port() {
    for (hook, watched) in
        ["output", "postrouting"].into_iter().flat_map(|h| [(h, &["tap1", "tap2"][..]), (h, &["tap1", "tap2", "br0"])])
    {
        eprintln!("{hook}, {watched:?}");
        let net = Bridged::new(2).unwrap();
        net.host.nft(&rules("inet", hook, "drop")).unwrap();
        let agent = Agent::start(&net.host, watched, &[]).unwrap();
        send(&net.host, "10.4.0.2");
        let landed = agent.stop().unwrap();
        assert_eq!(net.host.nft_counter("inet t", "refused").unwrap(), sum(PACKETS));
        assert_exact(&landed, out_of("tap2"), 7, sum(PACKETS), NONE);
        assert_exact(&landed, out_of("tap2"), 9, NONE, sum(PACKETS));
        assert_exact(&landed, out_of("tap1"), 7, NONE, NONE);
        if watched.contains(&"br0") {
            assert_exact(&landed, out_of("br0"), 7, sum(PACKETS), NONE);
            assert_exact(&landed, out_of("br0"), 9, NONE, sum(PACKETS));
        }
    }
}

#[test]
fn what_is_forwarded_to_a_guest_and_refused_counts_at_the_guests_port() {
    for hook in ["forward", "postrouting"] {
        for args in [&[][..], &["--action", "rejected"], &["--hook", "clsact"]] {
            eprintln!("{hook}, {args:?}");
            let (net, outside) = routed();
            net.host.nft(&rules("inet", hook, "drop")).unwrap();
            let agent = Agent::start(&net.host, &["up0", "tap1", "tap2"], args).unwrap();
            send(&outside, "10.4.0.2");
            let landed = agent.stop().unwrap();
            assert_eq!(net.host.nft_counter("inet t", "refused").unwrap(), sum(PACKETS));
            let passed = if args.contains(&"rejected") { NONE } else { sum(PACKETS) };
            for place in [into("up0"), out_of("tap2")] {
                assert_exact(&landed, place, 7, sum(PACKETS), NONE);
                assert_exact(&landed, place, 9, NONE, passed);
            }
            assert_exact(&landed, out_of("tap1"), 7, NONE, NONE);
        }
    }
}

/// Who asks for the port is the next hop, and not who is beyond it.
#[test]
fn what_goes_through_a_guest_that_is_a_router_counts_at_its_port() {
    let net = Bridged::new(2).unwrap();
    net.host.exec("ip route add 10.77.0.0/24 via 10.4.0.2").unwrap();
    net.host.nft(&rules("inet", "output", "drop")).unwrap();
    let agent = Agent::start(&net.host, &["tap1", "tap2"], &[]).unwrap();
    send(&net.host, "10.77.0.9");
    let landed = agent.stop().unwrap();
    assert_eq!(net.host.nft_counter("inet t", "refused").unwrap(), sum(PACKETS));
    assert_exact(&landed, out_of("tap2"), 7, sum(PACKETS), NONE);
    assert_exact(&landed, out_of("tap2"), 9, NONE, sum(PACKETS));
}

/// What the bridge would flood has no port: nobody's count is guessed.
#[test]
fn what_goes_to_a_station_that_the_bridge_does_not_know_counts_at_the_bridge_alone() {
    let net = Bridged::new(2).unwrap();
    neighbour(&net.host, "br0", "10.4.0.77", [2, 0, 0, 0, 0, 0x77]).unwrap();
    net.host.nft(&rules("inet", "output", "drop")).unwrap();
    let agent = Agent::start(&net.host, &["tap1", "tap2", "br0"], &[]).unwrap();
    net.host.run(|| traffic::udp("10.4.0.77:7", PACKETS, PAYLOAD)).unwrap();
    let landed = agent.stop().unwrap();
    assert_eq!(net.host.nft_counter("inet t", "refused").unwrap(), sum(PACKETS));
    for port in ["tap1", "tap2"] {
        assert_exact(&landed, out_of(port), 7, NONE, NONE);
    }
    assert_exact(&landed, out_of("br0"), 7, sum(PACKETS), NONE);
}

/// A station that moves takes its refusals along, and one that came after the start has them as well.
#[test]
fn a_guest_that_comes_or_moves_after_the_start_counts_where_it_is() {
    let net = Bridged::new(2).unwrap();
    let station = "02:00:00:00:00:77";
    net.host.nft(&rules("inet", "output", "drop")).unwrap();
    let agent = Agent::start(&net.host, &["tap1", "tap2"], &[]).unwrap();
    neighbour(&net.host, "br0", "10.4.0.77", [2, 0, 0, 0, 0, 0x77]).unwrap();
    for (port, packets) in [("tap1", PACKETS), ("tap2", PACKETS + 1)] {
        net.host.exec(&format!("bridge fdb replace {station} dev {port} master static")).unwrap();
        // The kernel announces it, and the agent looks a tenth of a second later at most. Nothing shows from outside that it has.
        std::thread::sleep(std::time::Duration::from_secs(1));
        net.host.run(|| traffic::udp("10.4.0.77:7", packets, PAYLOAD)).unwrap();
    }
    let landed = agent.stop().unwrap();
    assert_eq!(net.host.nft_counter("inet t", "refused").unwrap(), sum(2 * PACKETS + 1));
    assert_exact(&landed, out_of("tap1"), 7, sum(PACKETS), NONE);
    assert_exact(&landed, out_of("tap2"), 7, sum(PACKETS + 1), NONE);
}

#[test]
fn ipv6_to_a_guest_counts_at_the_guests_port() {
    let net = Bridged::new(2).unwrap();
    for (ns, device, own) in [(&net.host, "br0", "fd04::254/64"), (&net.guests[1], "eth0", "fd04::2/64")] {
        ns.sysctl(&format!("net.ipv6.conf.{device}.disable_ipv6"), "0").unwrap();
        address(ns, device, own).unwrap();
    }
    net.host.exec("ping -c 1 -W 5 fd04::2").unwrap();
    net.host.exec("ip -6 route add fd77::/64 via fd04::2").unwrap();
    net.host.nft(&rules("inet", "output", "drop")).unwrap();
    let agent = Agent::start(&net.host, &["tap1", "tap2"], &[]).unwrap();
    send(&net.host, "[fd04::2]");
    send(&net.host, "[fd77::9]");
    let landed = agent.stop().unwrap();
    let refused = net.host.nft_counter("inet t", "refused").unwrap();
    assert_eq!(refused.0, 2 * PACKETS as u64);
    assert_exact(&landed, out_of("tap2"), 7, refused, NONE);
    assert_exact(&landed, out_of("tap1"), 7, NONE, NONE);
}

#[test]
fn a_bridge_in_another_namespace_has_ports_of_its_own() {
    let home = Netns::new("home").unwrap();
    let net = Bridged::new(2).unwrap();
    net.host.nft(&rules("inet", "output", "drop")).unwrap();
    let netns = net.host.name().to_owned();
    let agent = Agent::start(&home, &["tap1", "tap2"], &["--netns", &netns]).unwrap();
    send(&net.host, "10.4.0.2");
    let landed = agent.stop().unwrap();
    assert_eq!(net.host.nft_counter("inet t", "refused").unwrap(), sum(PACKETS));
    assert_exact(&landed, out_of(&format!("{netns}-tap2")), 7, sum(PACKETS), NONE);
    assert_exact(&landed, out_of(&format!("{netns}-tap1")), 7, NONE, NONE);
}
