//! What may become of a buffer on its way through the node without being refused: handed up by a bridge, looped back to this
//! node, carried in a tunnel, copied by generic XDP.
//!
//! Every test ends with [`Agent::stop`], which fails if the books of a window do not balance.

use integration::{
    agent::Agent,
    claims::{NONE, PACKETS, PAYLOAD, assert_exact, assert_not_guessed, into, out_of, rules, sum},
    features,
    net::{Netns, Pair},
    stacks::{Bridged, Routed},
    traffic,
};

const COUNT: &str = "table inet w {\n counter got { }\n chain c { type filter hook input priority 0; udp dport 7 counter name got; }\n}\n";

/// A bridge that takes everything hands the packet up and forwards a clone: what it refuses itself has arrived elsewhere.
#[test]
fn what_a_promiscuous_bridge_refuses_for_itself_is_not_refused_on_its_way() {
    let net = Bridged::new(2).unwrap();
    net.host.exec("ip link set br0 promisc on").unwrap();
    net.host.nft(&rules("bridge", "input", "drop")).unwrap();
    net.guests[1].nft(COUNT).unwrap();
    let agent = Agent::start(&net.host, &["tap1", "tap2"], &[]).unwrap();
    net.guests[0].run(|| traffic::udp("10.4.0.2:7", PACKETS, PAYLOAD)).unwrap();
    let landed = agent.stop().unwrap();
    assert_eq!(net.host.nft_counter("bridge t", "refused").unwrap(), sum(PACKETS));
    assert_eq!(net.guests[1].nft_counter("inet w", "got").unwrap(), sum(PACKETS), "what arrived");
    assert_exact(&landed, out_of("tap2"), 7, NONE, sum(PACKETS));
    // That it arrived is not to be seen from the buffer that dies: it could be the only one.
    assert_not_guessed(&landed, into("tap1"), 7, NONE, sum(PACKETS));
}

/// A macvlan makes its bridge promiscuous: it hands every frame up, and forwards a clone. Found by seed 1795687881 of the random
/// networks.
#[test]
fn what_a_bridge_under_a_macvlan_refuses_to_forward_is_of_unknown_verdict_where_it_came_in() {
    let net = Bridged::new(2).unwrap();
    net.host.exec("ip link add mv0 link br0 type macvlan mode bridge").unwrap();
    net.host.exec("ip link set mv0 up").unwrap();
    net.host.nft(&rules("bridge", "forward", "drop")).unwrap();
    let agent = Agent::start(&net.host, &["tap1", "tap2"], &[]).unwrap();
    net.guests[0].run(|| traffic::udp("10.4.0.2:7", PACKETS, PAYLOAD)).unwrap();
    let landed = agent.stop().unwrap();
    assert_eq!(net.host.nft_counter("bridge t", "refused").unwrap(), sum(PACKETS));
    // A clone died. Whether others live on, as in a flood, is not to be seen from it.
    assert_not_guessed(&landed, into("tap1"), 7, NONE, sum(PACKETS));
    assert_exact(&landed, out_of("tap2"), 7, sum(PACKETS), NONE);
}

/// A packet to many passes postrouting twice: once as itself, once as a copy for this node.
#[test]
fn what_is_sent_to_many_and_refused_is_refused_once() {
    let pair = Pair::new().unwrap();
    pair.a.exec("ip route add 239.0.0.0/8 dev eth0").unwrap();
    pair.a.nft(&rules("inet", "postrouting", "drop")).unwrap();
    let agent = Agent::start(&pair.a, &["eth0"], &[]).unwrap();
    pair.a.run(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        // A member on this node: it gets a copy.
        socket.join_multicast_v4(&[239, 1, 1, 1].into(), &[10, 1, 0, 1].into()).unwrap();
        for _ in 0..PACKETS {
            // A refusal is an error of the sender.
            let _ = socket.send_to(&[0; PAYLOAD], "239.1.1.1:7");
        }
    });
    let landed = agent.stop().unwrap();
    assert_eq!(pair.a.nft_counter("inet t", "refused").unwrap(), sum(2 * PACKETS), "themselves and their copies");
    assert_exact(&landed, out_of("eth0"), 7, sum(PACKETS), NONE);
}

/// Generic XDP copies buffers without much room in front. The copy has lost its link header when tc sees it.
#[test]
fn what_generic_xdp_has_copied_is_still_refused() {
    let host = Netns::new("xdp").unwrap();
    host.nft(&rules("inet", "input", "drop")).unwrap();
    for hook in ["xdp", "tc"] {
        let agent = Agent::start(&host, &["lo"], &["--hook", hook]).unwrap();
        host.run(|| [7, 8].map(|port| traffic::udp(&format!("127.0.0.1:{port}"), PACKETS, PAYLOAD).unwrap()));
        let landed = agent.stop().unwrap();
        assert_exact(&landed, into("lo"), 7, sum(PACKETS), NONE);
        assert_exact(&landed, into("lo"), 8, NONE, sum(PACKETS));
        assert_exact(&landed, out_of("lo"), 7, NONE, sum(PACKETS));
    }
    assert_eq!(host.nft_counter("inet t", "refused").unwrap(), sum(2 * PACKETS));
}

/// A tunnel makes a packet of its own: that one is refused, on the way out that it had. What it carries had left.
#[test]
fn what_a_tunnel_carries_has_left_and_its_own_packet_is_refused() {
    let net = Routed::new().unwrap();
    if net.router.exec("ip link add vx0 type vxlan id 5 remote 10.3.0.2 dstport 4789 dev out0").is_err() {
        return features::skipped("this kernel has no vxlan");
    }
    net.router.exec("ip link set vx0 address 02:00:00:00:09:01 up").unwrap();
    net.router.exec("ip addr add 10.9.0.1/24 dev vx0").unwrap();
    net.router.exec("ip neigh add 10.9.0.2 lladdr 02:00:00:00:09:02 dev vx0 nud permanent").unwrap();
    net.router
        .nft("table inet t {\n counter refused { }\n chain c { type filter hook output priority 0; udp dport 4789 counter name refused drop; }\n}\n")
        .unwrap();
    net.client.exec("ip route add 10.9.0.0/24 via 10.2.0.1").unwrap();
    let agent = Agent::start(&net.router, &["in0", "vx0", "out0"], &[]).unwrap();
    // What is forwarded into it, and what begins here.
    net.client.run(|| traffic::udp("10.9.0.2:7", PACKETS, PAYLOAD)).unwrap();
    net.router.run(|| traffic::udp("10.9.0.2:9", PACKETS, PAYLOAD)).unwrap();
    let landed = agent.stop().unwrap();
    let outer = net.router.nft_counter("inet t", "refused").unwrap();
    assert_eq!(outer.0, 2 * PACKETS as u64);
    assert_exact(&landed, into("in0"), 7, NONE, sum(PACKETS));
    assert_exact(&landed, out_of("vx0"), 7, NONE, sum(PACKETS));
    assert_exact(&landed, out_of("vx0"), 9, NONE, sum(PACKETS));
    assert_exact(&landed, out_of("vx0"), 4_789, NONE, NONE);
    assert_exact(&landed, out_of("out0"), 4_789, outer, NONE);
}
